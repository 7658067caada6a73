"""What a batch asks of a file system, tried out: ``doctor --fs DIR``."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from pathlib import Path

from neurodiff.core.doctor import MISSING, NOTE, OK, WARNING, Finding
from neurodiff.core.errors import DataError, MissingDataError

_CONTENDERS, _ROUNDS = 8, 20
_SKEW = 2.0  # seconds; file systems round dates
_SLOW = 50.0  # milliseconds


def check_filesystem(folder: str | os.PathLike[str]) -> list[Finding]:
    """Exclusive creation, renames, dates, and the time that a safe write takes, in a folder.

    Everything is tried with files of our own, which are removed. What several machines see of each
    other's files can only be told by running this on two of them.

    Raises
    ------
    MissingDataError : there is no such folder.
    DataError : nothing can be written to it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingDataError(f"{folder} is not a folder; name one on the file system to be tried")
    place = folder / f".neurodiff-fs-{secrets.token_hex(6)}"
    try:
        place.mkdir()
    except OSError as error:
        raise DataError(f"{folder} cannot be written to ({error.strerror or error})") from error
    try:
        return [
            exclusive_creation(place),
            whole_renames(place),
            folder_renames(place),
            clock(place),
            safe_writes(place),
            *_room(place),
        ]
    finally:
        shutil.rmtree(place, ignore_errors=True)


def exclusive_creation(folder: Path) -> Finding:
    """Whether of many that create one file exactly one is told that it did."""
    for number in range(_ROUNDS):
        path, won = folder / f"exclusive-{number}", []
        barrier = threading.Barrier(_CONTENDERS)

        def contend(path: Path = path, won: list[int] = won, barrier=barrier) -> None:
            barrier.wait()
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won.append(1)

        _together(contend)
        if len(won) != 1:
            return Finding(
                name="exclusive create",
                value=f"{len(won)} of {_CONTENDERS} made the same file",
                status=MISSING,
                advice="leases do not hold here: run one worker a batch, or take another folder",
            )
    return Finding(name="exclusive create", value=f"one of {_CONTENDERS} wins, {_ROUNDS} times")


def whole_renames(folder: Path) -> Finding:
    """Whether a reader sees a file as it was or as it is, while it is replaced."""
    path, broken, stop = folder / "replaced", [], threading.Event()
    texts = {letter * 4096 for letter in "ab"}
    path.write_text("a" * 4096)

    def read() -> None:
        while not stop.is_set():
            try:
                if path.read_text() not in texts:
                    broken.append("a mixture")
            except OSError as error:
                broken.append(error.strerror or str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(100):
            new = folder / f"new-{number}"
            new.write_text("ab"[number % 2] * 4096)
            os.replace(new, path)
    finally:
        stop.set()
        reader.join()
    if broken:
        return Finding(
            name="rename",
            value=f"a reader met {broken[0]} while a file was replaced",
            status=MISSING,
            advice="results may be read half written: take another folder",
        )
    return Finding(name="rename", value="a replaced file is the old one or the new one")


def folder_renames(folder: Path) -> Finding:
    """Whether a folder takes its place at once, and not over one that has files."""
    new, there = folder / "whole", folder / "there"
    for place in (new, there):
        place.mkdir()
        (place / "file").write_text("x")
    try:
        os.rename(new, there)
    except OSError:
        pass
    else:
        return Finding(
            name="rename of folders",
            value="a folder with files was replaced",
            status=MISSING,
            advice="two workers could lose each other's results: take another folder",
        )
    try:
        os.rename(new, folder / "moved")
    except OSError as error:
        return Finding(
            name="rename of folders",
            value=error.strerror or str(error),
            status=MISSING,
            advice="items cannot be brought into place: take another folder",
        )
    return Finding(name="rename of folders", value="at once, and over no folder with files")


def clock(folder: Path) -> Finding:
    """How far the dates of new files are from this machine's clock, in seconds."""
    before = time.time()
    (folder / "clock").write_text("x")
    after = time.time()
    date = (folder / "clock").stat().st_mtime
    skew = date - after if date > after else min(0.0, date - before)
    if abs(skew) > _SKEW:
        return Finding(
            name="clock skew",
            value=f"{skew:+.1f} s",
            status=WARNING,
            advice="batches do not depend on it; other programs may, and logs mislead",
        )
    return Finding(name="clock skew", value=f"{skew:+.2f} s")


def safe_writes(folder: Path) -> Finding:
    """Milliseconds of a small file that is on the disk, with its folder, before it is renamed."""
    started, rounds = time.perf_counter(), 20
    for number in range(rounds):
        path = folder / f"safe-{number}"
        with open(path, "wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path, folder / f"safe-{number}-done")
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    spent = 1000 * (time.perf_counter() - started) / rounds
    slow = spent > _SLOW
    return Finding(
        name="safe write",
        value=f"{spent:.1f} ms a file",
        status=NOTE if slow else OK,
        advice="items of a second or less will wait for the disk" if slow else "",
    )


def _room(folder: Path) -> list[Finding]:
    try:
        room = os.statvfs(folder)
    except (OSError, AttributeError):
        return []
    free = room.f_bavail * room.f_frsize / 2**30
    found = [Finding(name="free space", value=f"{free:.1f} GB", status=OK if free > 1 else WARNING)]
    if room.f_files:
        few = room.f_favail < 1_000_000
        found.append(
            Finding(
                name="free files",
                value=f"{room.f_favail:,}",
                status=NOTE if few else OK,
                advice="an item takes a folder and two files or more: collect --pack"
                if few
                else "",
            )
        )
    return found


def _together(action) -> None:
    threads = [threading.Thread(target=action) for _ in range(_CONTENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
