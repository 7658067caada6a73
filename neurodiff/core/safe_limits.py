"""How much a file may ask for: memory budget, packing ratio, what a path may be.

Every reader of files from outside compares what a header promises with these numbers before it
takes memory.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

from neurodiff.core.errors import DataError, MissingDataError, UsageError

#: gzip and zip cannot pack better than this; a file that claims more is damaged or hostile.
DEFLATE_LIMIT = 1032
#: Above ``RATIO_FROM`` bytes an archive that packs better than this holds hardly anything.
RATIO_LIMIT = 200
RATIO_FROM = 64 * 2**20
_DEFAULT = 16 * 2**30


def memory_budget() -> int:
    """Bytes that one file may take in memory.

    ``NEURODIFF_FILE_MEMORY_GB`` where it is set, otherwise half of the machine's memory and at most
    16 GiB.

    Raises
    ------
    UsageError : the variable is no positive number.
    """
    stated = os.environ.get("NEURODIFF_FILE_MEMORY_GB")
    if stated:
        try:
            found = float(stated)
        except ValueError:
            found = 0.0
        if not 0 < found < 2**20:
            raise UsageError(
                f"NEURODIFF_FILE_MEMORY_GB is {stated[:40]!r}; set it to a number of GiB such as 16"
            )
        return int(found * 2**30)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _DEFAULT
    return max(2**28, min(_DEFAULT, total // 2))


def require_budget(where: str, size: int, *, what: str = "the file") -> None:
    """DataError where ``size`` bytes are over `memory_budget`."""
    budget = memory_budget()
    if size > budget:
        raise DataError(
            f"{where}: {what} would take {size / 2**30:.3g} GiB, over the budget of "
            f"{budget / 2**30:.3g} GiB a file; if it is sound, set NEURODIFF_FILE_MEMORY_GB"
        )


def require_ratio(where: str, unpacked: int, packed: int, *, start: int = RATIO_FROM) -> None:
    """DataError where ``unpacked`` bytes cannot, or should not, come out of ``packed`` bytes."""
    impossible = unpacked > DEFLATE_LIMIT * (packed + 1024)
    if impossible or (unpacked > start and unpacked > RATIO_LIMIT * max(packed, 1)):
        raise DataError(
            f"{where} is damaged, truncated or a bomb: {packed} bytes cannot soundly unpack to "
            f"{unpacked}; get it again from its source"
        )


def require_deflated(path: Path) -> None:
    """DataError where the packed part of a deflated DICOM file unpacks as a bomb does."""
    size, budget, total = path.stat().st_size, memory_budget(), 0
    with open(path, "rb") as file:
        head = file.read(2**16)
        # the length of group 2 (0002,0000), UL, stands first after the mark
        start = 144 + int.from_bytes(head[140:144], "little")
        file.seek(min(start, size))
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            while data := file.read(2**16):
                total += len(engine.decompress(data))
                if total > budget:
                    break
        except zlib.error:
            return  # the reader says where it is damaged
    require_budget(str(path), total, what="all of it unpacked")
    require_ratio(str(path), total, size)


def existing_file(path: str | os.PathLike[str], *, allow_empty: bool = False) -> Path:
    """``path`` where it is a file that can be read.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : a folder, a pipe or device, an empty file, or one that may not be read.
    """
    if "\0" in os.fspath(path):
        raise DataError(f"the path {os.fspath(path)!r} has a zero byte in it; correct it")
    path = Path(path)
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; expected a file")
        if path.exists() and not path.is_file():  # opening a pipe would wait without end
            raise DataError(f"{path} is a pipe or a device; expected a file")
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise MissingDataError(
            f"{path} does not exist; check the path, or get the data again"
        ) from None
    except PermissionError:
        raise DataError(f"{path} may not be read by this account; change its permissions") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from None
    if size == 0 and not allow_empty:
        raise DataError(f"{path} is empty (0 bytes); copy or make it again")
    return path


def first_bytes(path: Path, size: int) -> bytes:
    """The first ``size`` bytes of a file, unpacked where its content is gzip.

    Raises
    ------
    DataError : gzip that is damaged in its beginning.
    """
    with open(path, "rb") as file:
        start = file.read(size)
    if start[:2] != b"\x1f\x8b":
        return start
    try:
        with gzip.open(path, "rb") as file:
            return file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is damaged where it begins ({first_line(error)}); copy it again"
        ) from None


def first_line(error: BaseException) -> str:
    """The first line of an error, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
