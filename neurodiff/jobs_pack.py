"""Many finished items in one file a shard, for file systems that count files.

A pack is a zip without compression and with fixed dates, so that equal items make equal packs. Its
table of contents is its index: an item is done when its ``done.json`` is in a pack that is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from neurodiff.core.atomic import atomic_path
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.run_items import folder_beside, mark_of, move_in
from neurodiff.core.sealed import DONE, is_sealed, sealed_record
from neurodiff.jobs_lease import BEAT, PACKING, PATIENCE, acquire, live_leases

PACKS = "packs"
_MEMBER = re.compile(r"^(?P<key>[0-9a-f]{64})/(?P<name>[^/\\\0]+(?:/[^/\\\0]+)*)$")
_DATE = (1980, 1, 1, 0, 0, 0)
_BLOCK = 2**20


@contextlib.contextmanager
def alone(batch: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """A block in which no worker of a batch is at work, and none begins: it would take items that
    are being packed for missing, and make them again.

    Workers look for our lease after they have taken theirs, and we for theirs after we have ours,
    so that of two who begin at once at least one sees the other.

    Parameters
    ----------
    patience : seconds for which the lease of a worker that cannot be asked is watched.

    Raises
    ------
    UsageError : a worker, or another one who packs, is alive.
    """
    folder = batch / "leases"
    lease = acquire(folder, PACKING, patience=patience)
    if lease is None:
        raise UsageError(
            f"{batch.name} is being packed or unpacked by another process; wait for it"
        )
    with lease.start(min(BEAT, patience / 4)):
        if found := live_leases(folder, patience=patience):
            raise UsageError(
                f"{batch.name} has {len(found)} at work ({', '.join(found[:3])}), who would make "
                "items again that are packed meanwhile; wait until they are done, or cancel them"
            )
        yield


def pack_shard(run: Run, batch: Path, keys: Iterable[str], name: str) -> tuple[Path | None, int]:
    """Put the finished items among ``keys`` into one file, and remove their folders after it.

    The file is whole before the first folder goes, so that a kill at any moment loses nothing.

    Returns
    -------
    The pack, or None where no item is finished, and the number of items in it.

    Raises
    ------
    DataError : an item's files are not what its ``done.json`` says; the disk is full.
    """
    path = batch / PACKS / f"{name}.zip"
    finished = [key for key in keys if is_sealed(run.folder / "items" / key[:2] / key, "size")]
    if not finished:
        return (path if path.is_file() else None), 0
    if path.is_file():  # of an earlier call: what it has goes into the new one
        finished += _keys_in(path)
        unpack(run, path)
    return _write_pack(run, path, finished)


def _write_pack(run: Run, path: Path, keys: Iterable[str]) -> tuple[Path, int]:
    """The pack of exactly these finished items, in place of one that may be there."""
    folders = [run.folder / "items" / key[:2] / key for key in sorted(set(keys))]
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        for folder in folders:
            record = sealed_record(folder)
            if record is None:
                raise DataError(f"{folder} is not finished; resume the batch and pack again")
            for name in [*sorted(record["files"]), DONE]:
                _add(archive, folder / name, f"{folder.name}/{name}")
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise DataError(f"{path} is broken at {broken}; the items are still there: pack again")
    for folder in folders:
        (folder / DONE).unlink(missing_ok=True)  # first: half a folder is not done
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
    return path, len(folders)


def packed_keys(batch: Path) -> set[str]:
    """Keys of the items that lie in packs of a batch."""
    found: set[str] = set()
    for path in sorted((batch / PACKS).glob("*.zip")):
        found |= _keys_in(path)
    return found


def unpack(run: Run, path: Path) -> int:
    """Bring the items of a pack back into their folders; how many. Those that are there stay.

    Each comes back whole or not at all, so that a worker which makes it meanwhile is not disturbed.

    Raises
    ------
    DataError : it is no pack of ours: a name that leads elsewhere, more bytes than it says.
    """
    count = 0
    with _opened(path) as archive:
        members: dict[str, list[tuple[str, zipfile.ZipInfo]]] = {}
        for info in archive.infolist():
            found = _MEMBER.match(info.filename)
            parts = found["name"].split("/") if found else [".."]
            if found is None or any(part in ("", ".", "..") for part in parts):
                raise DataError(f"{path} holds {info.filename!r}, which is no file of an item")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise DataError(f"{path} holds compressed files; it is no pack of ours")
            members.setdefault(found["key"], []).append((found["name"], info))
        for key, files in members.items():
            item = run.folder / "items" / key[:2] / key
            if is_sealed(item, "size"):
                continue
            before = mark_of(item)
            with folder_beside(item) as place:
                for name, info in files:
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(info) as source, open(place / name, "wb") as file:
                        shutil.copyfileobj(source, file, _BLOCK)
                if not is_sealed(place, "hash"):
                    raise DataError(f"{path} holds item {key[:10]} broken; remove the pack, resume")
                move_in(place, item, [name for name, _ in files if name != DONE], before)
            count += 1
    return count


def unpack_all(run: Run, batch: Path) -> int:
    """Bring every item of a batch back into its folder and remove the packs; how many."""
    count = 0
    for path in sorted((batch / PACKS).glob("*.zip")):
        count += unpack(run, path)
        path.unlink()
    with contextlib.suppress(OSError):
        (batch / PACKS).rmdir()
    return count


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_STORED
    info.external_attr = 0o644 << 16
    try:
        info.file_size = os.stat(path).st_size
        with open(path, "rb") as source, archive.open(info, "w") as target:
            shutil.copyfileobj(source, target, _BLOCK)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; resume the batch and pack again") from error


def _keys_in(path: Path) -> set[str]:
    with _opened(path) as archive:
        found = (_MEMBER.match(name) for name in archive.namelist())
        return {one["key"] for one in found if one and one["name"] == DONE}


@contextlib.contextmanager
def _opened(path: Path):
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a readable pack ({error}); restore it") from None
