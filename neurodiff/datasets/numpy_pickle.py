"""Arrays out of pickles, without running anything that the pickle asks for.

Published weights and tables of names come as pickles.  A pickle is a program; this one can only
build dictionaries, lists, text and numbers, and arrays of numbers through stand-ins of our own:
neither numpy's constructors nor any other function is called by it.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_archives import npy_stream_header

_NUMBERS = re.compile(r"[<>|=]?[biufc](1|2|4|8|16)|\?")


def read_pickled_arrays(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of a pickled dictionary, read-only.

    Parameters
    ----------
    path : the pickle; all of it is read into memory.
    names : keys that have to be there; others are left out.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : anything but a dictionary of arrays of numbers, a pickle that calls a function, or a
        truncated file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; check the path")
    with open(path, "rb") as file:
        value = load_plain(file, str(path))
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}; expected a dictionary of arrays")
    found = {}
    for name in names:
        array = value.get(name)
        if not isinstance(array, np.ndarray):
            there = ", ".join(map(str, list(value)[:12])) or "nothing"
            raise DataError(f"{path} has no array {name!r}; it has {there}")
        found[name] = array
    return found


def read_npy_dictionary(path: str | Path) -> dict[Any, Any]:
    """The dictionary that ``np.save`` stored as an array of one Python object.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : another content, or a pickle that calls a function.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; check the path")
    with open(path, "rb") as file:
        try:
            shape, _, dtype = npy_stream_header(file)
        except ValueError as error:
            raise DataError(f"{path} is not a .npy file ({error})") from None
        if not dtype.hasobject or shape != ():
            raise DataError(f"{path} holds {dtype} {shape}; expected one dictionary")
        value = load_plain(file, str(path))
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}; expected a dictionary")
    return value


def load_plain(file: BinaryIO, where: str) -> Any:
    """Plain values and arrays of numbers of an open pickle; ``where`` begins the error."""
    try:
        return _finished(_Reader(file).load())
    except _Refused as error:
        raise DataError(
            f"{where} asks for {error}, and loading it could run code; expected arrays of numbers "
            "only: save them again as .npy"
        ) from None
    except Exception as error:  # a broken pickle ends in errors of a dozen types
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{where} is not a whole pickle of arrays ({first})") from None


class _Refused(Exception):
    """A name that a pickle of arrays does not need."""


class _Type:
    """Stands in for ``numpy.dtype``: a code, and the byte order that its state adds."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not (code == "O8" or _NUMBERS.fullmatch(code)):
            raise ValueError(f"an array of type {code!r}")
        self.code, self.order = code, code[0] if code[0] in "<>|=" else "="

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("an array of records")
        self.order = order

    def numpy(self) -> np.dtype:
        if self.code == "O8":
            raise ValueError("an array of Python objects")
        code = self.code.lstrip("<>|=")
        return np.dtype(code if self.order == "|" else self.order + code)


class _Array:
    """Stands in for ``numpy.ndarray``: filled by its state, made into an array at the end."""

    def __init__(self) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.state = (shape, dtype, "F" if fortran else "C", data)

    def numpy(self) -> Any:
        if self.state is None:
            raise ValueError("an array without content")
        shape, dtype, order, data = self.state
        if not isinstance(dtype, _Type) or not isinstance(shape, tuple):
            raise ValueError("an array without a type")
        if dtype.code == "O8" and shape == () and isinstance(data, list) and len(data) == 1:
            return _finished(data[0])  # np.save of one Python object
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        count = math.prod(shape)
        return np.frombuffer(data, dtype.numpy(), count).reshape(shape, order=order)


def _blank(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (shape, dtype, order, data)
    return array


def _scalar(dtype: Any, data: Any) -> _Array:
    return _from_buffer(data, dtype, (1,), "C")


def _latin(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise ValueError("bytes made of something else")
    return b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin,
    ("__builtin__", "bytes"): _no_bytes,  # how old protocols write empty bytes
    ("numpy", "dtype"): _Type,
}
_KNOWN["numpy", "ndarray"] = "ndarray"  # only ever handed to _reconstruct
for _place in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_place}.multiarray", "_reconstruct"] = _blank
    _KNOWN[f"{_place}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_place}.numeric", "_frombuffer"] = _from_buffer


# The unpickler written in Python: that in C believes the numbers of a memo and fills gigabytes.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise _Refused(f"{module}.{name}")
        return known


def _finished(value: Any) -> Any:
    """The value with arrays in the place of stand-ins."""
    if isinstance(value, _Array):
        return value.numpy()
    if isinstance(value, dict):
        return {_key(key): _finished(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError(f"a value of type {type(value).__name__}")


def _key(key: Any) -> Any:
    """A key as a plain value; numbers of numpy, which are stand-ins, become Python's."""
    return key.numpy()[0].item() if isinstance(key, _Array) else key
