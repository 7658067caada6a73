"""Files in and out: nothing unchecked comes in, nothing half-written stays.

Reading never runs code from a file (no pickle, ``weights_only=True``, safe YAML) and ends in a
:class:`~neurodiff.core.errors.DataError` that says which file, what was found, what was expected
and what to do. Writing goes to a unique temporary name in the same folder, is synced to disk and
then renamed, so that a kill or a full disk leaves either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurodiff.core.atomic import (
    atomic_path,
    atomic_write,
    plain,
    save_safetensors,
    write_csv,
    write_json,
    write_npy,
    write_yaml,
)
from neurodiff.core.errors import DataError
from neurodiff.core.safe_archives import (
    check_zip,
    extract_archive,
    is_zip,
    npy_stream_header,
    read_npz,
)
from neurodiff.core.safe_hdf5 import open_hdf5, read_hdf5, read_hdf5_arrays
from neurodiff.core.safe_images import check_image, fresh_header, load_image, open_picture
from neurodiff.core.safe_limits import existing_file as _existing_file
from neurodiff.core.safe_limits import first_line as _first_line
from neurodiff.core.safe_limits import memory_budget, require_budget
from neurodiff.core.safe_meshes import check_mesh, load_mesh
from neurodiff.core.safe_text import parse_yaml, read_json, read_yaml

__all__ = [
    "atomic_path",
    "atomic_write",
    "check_image",
    "check_mesh",
    "check_zip",
    "extract_archive",
    "fresh_header",
    "load_image",
    "load_mesh",
    "load_weights",
    "memory_budget",
    "open_hdf5",
    "open_picture",
    "parse_yaml",
    "plain",
    "read_csv",
    "read_hdf5",
    "read_hdf5_arrays",
    "read_json",
    "read_npy",
    "read_npz",
    "read_yaml",
    "require_budget",
    "require_finite",
    "save_safetensors",
    "sha256_of",
    "write_csv",
    "write_json",
    "write_npy",
    "write_yaml",
]

_BLOCK = 2**24  # elements checked at a time


# --------------------------------------------------------------------------------------- reading


def read_npy(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shape: Sequence[int | None] | None = None,
    finite: bool = True,
    mmap: bool = False,
) -> np.ndarray:
    """Array of a ``.npy`` file, checked before any memory is taken.

    Parameters
    ----------
    path : the file.
    dtype : expected type (``"float32"``), kind (``numpy.floating``) or a tuple of them; byte order
        does not matter. None takes any numbers or booleans.
    shape : expected shape; None inside it stands for any length. None takes any shape.
    finite : refuse NaN and infinity (reads the data once, block by block).
    mmap : return a read-only memory map instead of an array in memory.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : empty, truncated or overlong file, Python objects, wrong type, wrong shape, NaN.
    """
    path = _existing_file(path)
    size = path.stat().st_size
    found_shape, fortran, found, offset = _npy_header(path)
    if found.hasobject or found.kind not in "biufc":
        what = "Python objects" if found.hasobject else f"values of type {found}"
        raise DataError(f"{path} holds {what}; save it again as an array of numbers")
    wanted = dtype if isinstance(dtype, tuple) else (dtype,)
    if dtype is not None and not any(_is_dtype(found, want) for want in wanted):
        names = " or ".join(_dtype_name(want) for want in wanted)
        raise DataError(f"{path} holds {found}; expected {names}: convert it with .astype")
    if shape is not None and not _fits(found_shape, shape):
        raise DataError(
            f"{path} has shape {found_shape}; expected {_shape_text(shape)}: "
            "check that this is the right file"
        )
    expected = offset + math.prod(found_shape) * found.itemsize
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise DataError(
            f"{path} is {state}: {size} bytes found, {expected} expected for "
            f"{found} {found_shape}; copy or download it again"
        )
    if not mmap:
        require_budget(str(path), expected, what="the array")
    order: Literal["F", "C"] = "F" if fortran else "C"
    array: np.ndarray
    if mmap and math.prod(found_shape) > 0:
        array = np.memmap(
            path, dtype=found, mode="r", offset=offset, shape=found_shape, order=order
        )
    else:
        count = math.prod(found_shape)
        array = np.fromfile(path, dtype=found, count=count, offset=offset)
        array = array.reshape(found_shape, order=order)
        array = array.astype(found.newbyteorder("="), copy=False)
    if finite:
        require_finite(array, str(path))
    return array


def require_finite(array: Any, where: str) -> None:
    """Raise DataError that counts and locates NaN and infinity in ``array`` (any array-like)."""
    if array.ndim == 0:
        array = np.asarray(array).reshape(1)
    row = max(1, math.prod(array.shape[1:]))
    step = max(1, _BLOCK // row)
    for start in range(0, array.shape[0], step):
        block = np.asarray(array[start : start + step])
        if block.dtype.kind not in "fc":
            return
        bad = ~np.isfinite(block)
        if bad.any():
            first = [int(axis) for axis in np.argwhere(bad)[0]]
            first[0] += start
            raise DataError(
                f"{where} holds NaN or infinity, first at index {tuple(first)} "
                f"({int(bad.sum())} in rows {start} to {start + len(block) - 1}); "
                "mask or repair these values before use"
            )


def read_csv(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] = (),
    dtype: Any = None,
    separator: str = ",",
    missing_words: bool = True,
) -> Any:
    """Table (pandas DataFrame) of a CSV file with a header line.

    Parameters
    ----------
    path : the file, UTF-8.
    columns : columns that have to be there; others are kept.
    dtype : passed to pandas, e.g. ``{"stimulus": str}`` so that ``007`` stays ``007``.
    separator : ``","``, or a tab for TSV.
    missing_words : read words such as NA, null and None, and empty fields, as missing.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : empty, not text, ragged lines, a value of another type, or a missing column.
    """
    import pandas as pd

    path = _existing_file(path)
    require_budget(str(path), 4 * path.stat().st_size, what="the table")
    try:
        table = pd.read_csv(
            path,
            dtype=dtype,
            sep=separator,
            encoding="utf-8-sig",
            keep_default_na=missing_words,
        )
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty; expected a table with a header line") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save the table as CSV in UTF-8") from None
    except (pd.errors.ParserError, ValueError, OverflowError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a readable table ({first}); correct it") from None
    table.columns = [str(column).strip() for column in table.columns]
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {', '.join(table.columns)}: add what is missing"
        )
    return table


def load_weights(path: str | os.PathLike[str], *, device: str = "cpu") -> dict[str, Any]:
    """Weights of a safetensors or torch file; mapped, so that only what is used is read.

    Parameters
    ----------
    path : ``*.safetensors``, or a file of ``torch.save`` (read with ``weights_only=True``).
    device : where the tensors go.

    Returns
    -------
    The dictionary in the file: name -> tensor, or, in published checkpoints, nested dictionaries.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : truncated or foreign file, a pickle that would run code, no tensor in it.
    """
    path = _existing_file(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path, device=device)
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a complete safetensors file ({_first_line(error)}); "
                "download or save it again"
            ) from None
    return _load_torch(path, device)


def _load_torch(path: Path, device: str) -> dict[str, Any]:
    import pickle
    import warnings

    import torch

    packed = is_zip(path)
    if packed:
        for member in check_zip(path, limit=2**50):
            if member.filename.endswith(".pkl"):
                require_budget(str(path), 16 * member.file_size, what="its list of tensors")
    try:
        with warnings.catch_warnings():  # a foreign pickle protocol ends in an error of our own
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            weights = torch.load(path, map_location=device, weights_only=True, mmap=packed)
    except pickle.UnpicklingError:
        raise DataError(
            f"{path} is a pickle of something other than weights, and loading it could run code; "
            "expected tensors by name: save the model's state_dict as safetensors"
        ) from None
    except Exception as error:  # broken bytes end in any of a dozen types inside the unpickler
        raise DataError(
            f"{path} is not a complete weights file ({_first_line(error)}); "
            "expected safetensors or torch.save: download or save it again"
        ) from None
    if not isinstance(weights, Mapping) or not _any_tensor(weights):
        raise DataError(
            f"{path} holds {type(weights).__name__} without named tensors; expected a state_dict"
        )
    return dict(weights)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    path = _existing_file(path, allow_empty=True)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, type and start of the data."""
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = npy_stream_header(file)
            offset = file.tell()
    except ValueError as error:
        raise DataError(
            f"{path} is not a complete .npy file ({_first_line(error)}); copy or save it again"
        ) from None
    return shape, fortran, dtype, offset


def _is_dtype(found: np.dtype, want: Any) -> bool:
    if isinstance(want, type) and issubclass(want, np.generic) and want in _ABSTRACT:
        return bool(np.issubdtype(found, want))
    return found.newbyteorder("=") == np.dtype(want).newbyteorder("=")


_ABSTRACT = (np.number, np.integer, np.signedinteger, np.unsignedinteger, np.inexact, np.floating)


def _dtype_name(want: Any) -> str:
    return want.__name__ if isinstance(want, type) and want in _ABSTRACT else str(np.dtype(want))


def _fits(found: Sequence[int], want: Sequence[int | None]) -> bool:
    return len(found) == len(want) and all(
        w is None or int(w) == f for f, w in zip(found, want, strict=True)
    )


def _shape_text(shape: Sequence[int | None]) -> str:
    parts = ", ".join("any" if length is None else str(length) for length in shape)
    return f"({parts},)" if len(shape) == 1 else f"({parts})"


def _any_tensor(weights: Mapping[Any, Any]) -> bool:
    import torch

    return any(
        isinstance(value, torch.Tensor) or (isinstance(value, Mapping) and _any_tensor(value))
        for value in weights.values()
    )
