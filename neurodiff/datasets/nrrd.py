"""NRRD files (``.nrrd``): one scalar image with its place in space, read without running a thing.

Read here: an attached header, encodings raw and gzip, three axes of real numbers, spaces of the
names right/left, anterior/posterior, superior. Detached data files are refused: their names could
lead anywhere.

References
----------
The NRRD format, teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_limits import require_budget, require_ratio
from neurodiff.core.volume import Volume, checked_affine

_HEADER_LIMIT = 2**20  # bytes
_LARGEST = 2**31  # voxels
TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(
        ("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"
    ),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    "float": "f4",
    "double": "f8",
}
SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
"""Space -> signs that turn its directions into RAS."""


def read_nrrd_volume(path: str | Path, unit: str = "a.u.", channels: bool = False) -> Volume:
    """A NRRD file as a `Volume`; what `Volume.open` calls.

    Parameters
    ----------
    path : the file.
    unit : of a value; the format does not say it.
    channels : changes nothing; files of several images are refused.

    Raises
    ------
    MissingDataError : no such file.
    DataError : no NRRD, a header that cannot be, another encoding, detached data, data that are cut
        off or longer than declared, no space directions, NaN.
    """
    path = Path(path)
    fields, data = _split(path)
    sizes = _sizes(fields, path)
    affine, notes = _affine(fields, path)
    values = _values(fields, data, sizes, path)
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds NaN or infinity; expected finite numbers")
    return Volume.from_array(values, affine, unit=unit, name=str(path), notes=notes)


def _split(path: Path) -> tuple[dict[str, str], bytes]:
    """Fields of the header, and the bytes after it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its rights") from None
    if not re.match(rb"NRRD000[1-5]\r?\n", content[:10]):
        raise DataError(f"{path} does not begin as NRRD does; copy it again or convert it to NIfTI")
    ends = [m.end() for m in [re.search(rb"\r?\n\r?\n", content[:_HEADER_LIMIT])] if m]
    head = content[: ends[0]] if ends else content[:_HEADER_LIMIT]
    fields = {}
    for line in head.decode("ascii", "replace").splitlines()[1:]:
        if line.startswith("#") or ":=" in line or ": " not in line:
            continue  # comments and key/value pairs are not needed and may hold names
        key, _, found = line.partition(":")
        fields[key.strip().lower().replace(" ", "")] = found.strip()
    if "datafile" in fields:
        raise DataError(
            f"{path} names another file for its data, which is not followed; save it as one file "
            "(.nrrd with an attached header)"
        )
    if not ends:
        raise DataError(f"{path} has no end of its header; copy it again")
    return fields, content[ends[0] :]


def _sizes(fields: dict[str, str], path: Path) -> tuple[int, int, int]:
    words = fields.get("sizes", "").split()
    count = fields.get("dimension", "")
    if count != "3" or len(words) != 3 or not all(re.fullmatch(r"\d{1,7}", w) for w in words):
        raise DataError(
            f"{path} declares dimension {count[:20]!r} and sizes {' '.join(words)[:60]!r}; "
            "expected one image of three axes"
        )
    i, j, k = (int(word) for word in words)
    if min(i, j, k) < 1 or i * j * k > _LARGEST:
        raise DataError(f"{path} declares {i} x {j} x {k} voxels, which cannot be; copy it again")
    return i, j, k


def _values(
    fields: dict[str, str], data: bytes, sizes: tuple[int, int, int], path: Path
) -> np.ndarray:
    kind = TYPES.get(fields.get("type", "").lower())
    if kind is None:
        known = "integers of 8 to 32 bits, float and double"
        raise DataError(f"{path} holds type {fields.get('type', '')[:40]!r}; {known} are read")
    if any(fields.get(skip, "0") not in ("", "0") for skip in ("lineskip", "byteskip")):
        raise DataError(f"{path} skips lines or bytes before its data; save it again without")
    endian = fields.get("endian", "little").lower()
    if endian not in ("little", "big"):
        raise DataError(f"{path} states the byte order {endian[:20]!r}; expected little or big")
    dtype = np.dtype(kind).newbyteorder("<" if endian == "little" else ">")
    wanted = math.prod(sizes) * dtype.itemsize
    encoding = fields.get("encoding", "").lower()
    if encoding in ("gzip", "gz"):
        require_ratio(str(path), wanted, len(data), start=2**30)
        require_budget(str(path), wanted, what="all of its values")
        try:
            engine = zlib.decompressobj(wbits=31)
            data = engine.decompress(data, wanted + 1)  # never more than was declared
        except zlib.error:
            raise DataError(f"the compressed data of {path} are damaged; copy it again") from None
    elif encoding != "raw":
        raise DataError(f"{path} is encoded as {encoding[:20]!r}; raw and gzip are read")
    if len(data) != wanted:
        state = "cut off" if len(data) < wanted else "longer than declared"
        raise DataError(
            f"the data of {path} are {state} ({len(data)} bytes where {wanted} are declared); copy "
            "it again"
        )
    return np.frombuffer(data, dtype).reshape(sizes, order="F").astype(np.float32)


def _affine(fields: dict[str, str], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    space = fields.get("space", "").lower()
    directions = _vectors(fields.get("spacedirections", ""), 3)
    if space in SPACES and directions is not None:
        signs = np.array(SPACES[space], float)
        origin = _vectors(fields.get("spaceorigin", ""), 1)
        affine = np.eye(4)
        affine[:3, :3] = signs[:, None] * directions.T
        notes: tuple[str, ...] = ()
        if origin is None:
            notes = ("the header states no space origin; the first voxel lies at 0 0 0",)
        else:
            affine[:3, 3] = signs * origin[0]
        return checked_affine(affine, str(path)), notes
    raise DataError(
        f"{path} states no place in space (space {space[:40]!r} with three space directions); save "
        "it again with directions in RAS or LPS, or convert it to NIfTI"
    )


def _vectors(words: str, count: int) -> Any:
    """``(a,b,c) (d,e,f)`` as an array (count, 3); None where it is anything else."""
    parts = re.findall(r"\(([^()]*)\)", words)
    if len(parts) != count or re.sub(r"\([^()]*\)|\s", "", words):
        return None
    try:
        found = np.array([[float(v) for v in part.split(",")] for part in parts])
    except ValueError:
        return None
    return found if found.shape == (count, 3) and np.isfinite(found).all() else None
