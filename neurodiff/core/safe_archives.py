"""Archives: npz, zip, tar. Sizes come from headers first; nothing is written outside its folder."""

from __future__ import annotations

import lzma
import math
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_limits import (
    existing_file,
    first_line,
    memory_budget,
    require_budget,
    require_ratio,
)

_MEMBERS = 100_000
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, struct.error, OSError,
    EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError, MemoryError, IndexError,
    KeyError, SyntaxError, TypeError, RecursionError,
)  # fmt: skip


def is_zip(path: Path) -> bool:
    """Whether a file looks like a zip archive; also where its directory is broken."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, OSError, ValueError):
        return True


def check_zip(path: str | os.PathLike[str], *, limit: int | None = None) -> list[zipfile.ZipInfo]:
    """The members of a zip archive, whose declared sizes are within bounds.

    Parameters
    ----------
    limit : bytes of all members together, unpacked; by default `memory_budget`. A member cannot
        give more than it declares: the reader stops there.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no zip archive, too many members, encrypted, over the limit, or packed as only a
        bomb is.
    """
    path = existing_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _BROKEN as error:
        raise DataError(
            f"{path} is not a whole zip archive ({first_line(error)}); copy it again"
        ) from None
    if len(members) > _MEMBERS:
        raise DataError(f"{path} has {len(members)} members; at most {_MEMBERS} are read")
    size, packed = path.stat().st_size, sum(m.compress_size for m in members)
    if packed > size:  # members that share their bytes: the overlapping bomb
        raise DataError(f"{path} has members that lie over each other; get it again")
    for member in members:
        if member.flag_bits & 1:
            raise DataError(f"{path} is encrypted; decrypt it first")
    total = sum(member.file_size for member in members)
    require_ratio(str(path), total, size)
    if limit is None:
        require_budget(str(path), total, what="all of it unpacked")
    elif total > limit:
        raise DataError(f"{path} unpacks to {total} bytes; at most {limit} are taken")
    return members


def read_npz(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, *, text: bool = False
) -> dict[str, np.ndarray]:
    """Arrays of an archive that ``np.savez`` wrote; every header is checked before memory is taken.

    Parameters
    ----------
    names : arrays that have to be there, the only ones that are read; None reads all.
    text : take arrays of text as well as of numbers.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no archive of arrays, a bomb, Python objects, an array that is not there.
    """
    path = existing_file(path)
    there = {m.filename.removesuffix(".npy"): m for m in check_zip(path)}
    wanted = list(there) if names is None else list(names)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise DataError(
            f"{path} has no array {', '.join(map(repr, missing))} but "
            f"{', '.join(list(there)[:12]) or 'nothing'}; make it again"
        )
    kinds = "biufcUS" if text else "biufc"
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in wanted:
                with archive.open(there[name]) as file:
                    arrays[name] = _member(file, there[name].file_size, kinds)
    except _BROKEN as error:
        raise DataError(
            f"{path} is not a whole archive of arrays ({first_line(error)}); make it again"
        ) from None
    return arrays


def npy_stream_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of an array that begins here; ValueError where none does."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"an array header of version {version[0]}.{version[1]}")
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # the header is Python text, which breaks in many ways
        raise ValueError(first_line(error)) from None
    if any(length < 0 for length in shape) or dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype} and shape {shape}, which cannot be")
    return shape, fortran, dtype


def _member(file: Any, size: int, kinds: str) -> np.ndarray:
    shape, fortran, dtype = npy_stream_header(file)
    if dtype.hasobject or dtype.kind not in kinds:
        raise ValueError(f"an array of type {dtype}, expected numbers")
    wanted = math.prod(shape) * dtype.itemsize
    if file.tell() + wanted != size:
        raise ValueError(f"an array of {wanted} bytes in a member of {size}")
    data = file.read(wanted)
    if len(data) != wanted:
        raise ValueError("a member that is cut off")
    file.read(1)  # the checksum is compared at the end
    array = np.frombuffer(bytearray(data), dtype) if wanted else np.zeros(math.prod(shape), dtype)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array.reshape(shape, order="F" if fortran else "C")


def check_parquet(path: str | os.PathLike[str]) -> None:
    """A Parquet file whose table is within the memory budget.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : over the budget. What is no Parquet file ends in pyarrow's own error.
    """
    import pyarrow.parquet

    path = existing_file(path)
    about = pyarrow.parquet.read_metadata(path)
    groups = [about.row_group(k) for k in range(about.num_row_groups)]
    stored = sum(group.total_byte_size for group in groups)
    require_budget(str(path), max(stored, 8 * about.num_rows * about.num_columns), what="the table")


def extract_archive(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, limit: int = 50 * 2**30
) -> Path:
    """Unpack a zip or tar archive into a new folder, whole or not at all.

    Links, devices and names that lead out of the folder are refused, also by a link made earlier.

    Parameters
    ----------
    out : a folder that does not exist, or is empty.
    limit : bytes that the members may take on disk together.

    Raises
    ------
    UsageError : ``out`` holds something.
    MissingDataError : there is no such archive.
    DataError : another kind of file, a name that leads out, a link, over the limit, damaged.
    """
    path, out = existing_file(path), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and holds something; give a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".tmp-new-", dir=out.parent))
    try:
        if is_zip(path):
            _unzip(path, work, limit)
        else:
            _untar(path, work, limit)
        work.chmod(0o777 & ~_umask())
        if out.exists():
            out.rmdir()
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _unzip(path: Path, out: Path, limit: int) -> None:
    for member in check_zip(path, limit=limit):
        _require_inside(path, member.filename, out)
        mode = member.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{path} holds a link or device, {member.filename!r}; it is refused")
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(out)
    except _BROKEN as error:
        raise DataError(f"{path} is damaged ({first_line(error)}); copy it again") from None


def _untar(path: Path, out: Path, limit: int) -> None:
    total = count = 0
    packed = path.stat().st_size
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                _require_inside(path, member.name, out)
                if not (member.isreg() or member.isdir()):
                    raise DataError(
                        f"{path} holds a link or device, {member.name!r}; it is refused"
                    )
                total, count = total + member.size, count + 1
                if total > limit or count > _MEMBERS:
                    raise DataError(
                        f"{path} unpacks to over {limit} bytes or {_MEMBERS} members; it is refused"
                    )
                require_ratio(str(path), total, packed)
                archive.extract(member, out, filter="data")
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{path} is no whole zip or tar archive ({first_line(error)}); copy it again"
        ) from None


def _require_inside(path: Path, name: str, out: Path) -> None:
    pure = PurePosixPath(name.replace("\\", "/"))
    inside = not pure.is_absolute() and ".." not in pure.parts and ":" not in name[:3]
    if inside and "\0" not in name:
        root = os.path.realpath(out)
        place = os.path.realpath(out / pure)
        inside = os.path.commonpath([root, place]) == root
    else:
        inside = False
    if not inside:
        raise DataError(f"{path} holds {name[:80]!r}, which leads out of its folder; it is refused")


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def require_gzip(path: Path, *, start: int = 2**30) -> None:
    """DataError where the length that a gzip file states is over budget or packed as a bomb is."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - 4))
        stated = int.from_bytes(file.read(4), "little")  # modulo 2**32: a lower bound
    if stated > memory_budget() or stated > start:
        require_budget(str(path), stated, what="all of it unpacked")
        require_ratio(str(path), stated, size, start=start)
