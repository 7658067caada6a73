"""MATLAB files of version 5 to 7.2: arrays of numbers and text, nothing else, by our own reader.

The usual reader is compiled code that a broken file can crash. This one reads numeric, logical and
character arrays; cells, structures, objects and sparse arrays are left out.

References
----------
MathWorks, MAT-File Format, "Level 5 MAT-files".
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError
from neurodiff.core.safe_limits import existing_file, memory_budget, require_budget, require_ratio

_STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
    16: "u1", 17: "u2", 18: "u4",
}  # fmt: skip
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_CHARACTERS, _MATRIX, _PACKED = 4, 14, 15
_LOGICAL, _COMPLEX = 0x0200, 0x0800


def read_mat_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Name -> array (at least two axes, as MATLAB has them) of the variables of a file.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : another kind of file, cut off, damaged, or over the memory budget.
    """
    path = existing_file(path)
    require_budget(str(path), 2 * path.stat().st_size)
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or len(content) < 136:
        kind = "version 7.3 (HDF5)" if content[:10] == b"MATLAB 7.3" else "not MATLAB 5 to 7.2"
        raise DataError(f"{path} is not a readable MATLAB file ({kind}); save it with -v7")
    found: dict[str, np.ndarray] = {}
    left = memory_budget()
    try:
        at = 128
        while at < len(content):
            kind, data, at = _element(content, at, order, padded=False)
            if kind == _PACKED:
                engine = zlib.decompressobj()
                unpacked = engine.decompress(data, left)
                require_ratio(str(path), len(unpacked), len(data))
                if engine.unconsumed_tail or not engine.eof:
                    raise ValueError("a variable that is cut off, or over the memory budget")
                left -= len(unpacked)
                kind, data, _ = _element(unpacked, 0, order)
            if kind == _MATRIX and data:
                name, array = _matrix(data, order)
                if array is not None:
                    found[name] = array
    except DataError:
        raise
    except (ValueError, struct.error, zlib.error, KeyError, OverflowError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise DataError(f"{path} is not a readable MATLAB file ({first}); get it again") from None
    return found


def _element(content: bytes, at: int, order: str, *, padded: bool = True) -> tuple[int, bytes, int]:
    """Type, data and end of the element that begins at ``at``."""
    if at + 8 > len(content):
        raise ValueError("it ends inside an element")
    kind, size = struct.unpack_from(order + "II", content, at)
    if kind >> 16:  # type and size share four bytes, and up to four of data follow
        size, kind = kind >> 16, kind & 0xFFFF
        if size > 4:
            raise ValueError("a small element of over four bytes")
        return kind, content[at + 4 : at + 4 + size], at + 8
    if size > len(content) - at - 8:
        raise ValueError("it ends inside an element")
    end = at + 8 + size
    return kind, content[at + 8 : end], end + (-size % 8 if padded else 0)


def _numbers(kind: int, data: bytes, order: str) -> np.ndarray:
    if kind not in _STORED:
        raise ValueError(f"values of the unknown type {kind}")
    return np.frombuffer(data, np.dtype(order + _STORED[kind]))


def _matrix(data: bytes, order: str) -> tuple[str, Any]:
    """Name and values; None where it is a cell, structure, object or sparse array."""
    _, flags, at = _element(data, 0, order)
    kind, lengths, at = _element(data, at, order)
    _, name, at = _element(data, at, order)
    word = struct.unpack_from(order + "I", flags)[0]
    class_ = word & 0xFF
    if class_ not in _CLASSES and class_ != _CHARACTERS:
        return name.decode("utf-8", "replace"), None
    shape = tuple(int(n) for n in _numbers(kind, lengths, order))
    if len(shape) < 2 or len(shape) > 32 or min(shape) < 0:
        raise ValueError(f"an array of shape {shape[:8]}")
    parts = []
    for _ in range(2 if word & _COMPLEX else 1):
        if math.prod(shape) == 0 and at >= len(data):
            parts.append(np.zeros(0))
            continue
        kind, values, at = _element(data, at, order)
        array = _numbers(kind, values, order)
        if array.size != math.prod(shape):
            raise ValueError(f"{array.size} values in an array of shape {shape}")
        parts.append(array)
    title = name.decode("utf-8", "replace")
    if class_ == _CHARACTERS:
        letters = np.array([chr(int(c)) if c < 0x110000 else "?" for c in parts[0]], "U1")
        rows = letters.reshape(shape, order="F")
        return title, np.array(["".join(row) for row in rows.reshape(shape[0], -1)])
    wanted = np.dtype(bool) if word & _LOGICAL else np.dtype(_CLASSES[class_])
    with np.errstate(invalid="ignore", over="ignore"):
        values_ = parts[0] + 1j * parts[1] if len(parts) == 2 else parts[0].astype(wanted)
    return title, values_.reshape(shape, order="F")
