"""One array of an archive that ``np.savez`` wrote, mapped in place where it is not packed."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_archives import check_zip, npy_stream_header, read_npz


def map_npz_member(path: Path, name: str, item: tuple[int, ...]) -> np.ndarray:
    """Real numbers (n, *item) of an archive; a memory map unless the archive is packed.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no archive, no such array, or one of another type or shape.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; check the path")
    try:
        # mapped arrays take no memory: only a packed one is held against the budget, by read_npz
        members = {member.filename: member for member in check_zip(path, limit=2**50)}
        there = list(members)
        member = members.get(f"{name}.npy")
        if member is None:
            raise DataError(f"{path} has no array {name!r} but {', '.join(there) or 'nothing'}")
        if member.compress_type == zipfile.ZIP_STORED:
            array = _stored_member(path, member)
        else:
            array = read_npz(path, [name])[name]
    except DataError:
        raise
    except (zipfile.BadZipFile, ValueError, TypeError, SyntaxError, OverflowError, OSError,
            EOFError, struct.error) as error:  # fmt: skip
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a whole archive of arrays ({first})") from None
    if array.shape[1:] != item or array.ndim != 1 + len(item) or array.dtype.kind != "f":
        raise DataError(
            f"{name} of {path} is {array.dtype} {array.shape}; expected real numbers (n, "
            f"{', '.join(map(str, item))})"
        )
    return array


def _stored_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        file.seek(sum(struct.unpack("<26x2H", file.read(30))), os.SEEK_CUR)
        shape, fortran, dtype = npy_stream_header(file)
        offset = file.tell()
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of type {dtype}")
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
