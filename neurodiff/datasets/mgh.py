"""FreeSurfer's MGH and MGZ files, of which a header and blocks of the last axis are read.

The header is 284 bytes, big-endian; values follow with the first axis fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_images import check_image

OFFSET = 284
TYPES: dict[int, np.dtype] = {
    0: np.dtype("u1"), 1: np.dtype(">i4"), 3: np.dtype(">f4"), 4: np.dtype(">i2"),
}  # fmt: skip


def mgh_header(path: Path) -> tuple[tuple[int, int, int, int], np.dtype]:
    """Shape (always of 4 axes) and type of the values.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : another kind of file.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; download it")
    try:
        with opened(path) as file:
            data = file.read(OFFSET)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); download it again") from None
    if len(data) < OFFSET:
        raise DataError(f"{path} has {len(data)} bytes; an MGH file has a header of {OFFSET}")
    version, *shape, kind, _ = struct.unpack(">7i", data[:28])
    if version != 1 or kind not in TYPES or min(shape) < 1:
        raise DataError(
            f"{path} is not a readable image (MGH version {version}, shape {tuple(shape)}, type "
            f"{kind}); download it again"
        )
    return (shape[0], shape[1], shape[2], shape[3]), TYPES[kind]


def read_mgh(path: Path) -> np.ndarray:
    """All values, in the byte order of the machine, shape of 4 axes.

    Raises
    ------
    MissingDataError, DataError : as `mgh_header`, and a truncated file.
    """
    shape, dtype = mgh_header(path)
    check_image(path)
    size = math.prod(shape) * dtype.itemsize
    try:
        with opened(path) as file:
            file.seek(OFFSET)
            data = file.read(size)
    except (OSError, EOFError, zlib.error, MemoryError, OverflowError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again") from None
    if len(data) < size:
        raise DataError(f"{path} is truncated: {len(data)} of {size} bytes; download it again")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(shape, order="F")


def opened(path: Path) -> Any:
    """The file, open for reading, unpacked where its name ends in gz or mgz."""
    return gzip.open(path, "rb") if path.name.endswith("gz") else open(path, "rb")
