"""Sealed folders: ``done.json`` is written last and says which files are whole.

A stage or item counts as done when its ``done.json`` can be read and every file listed in it is
there with the recorded size and SHA-256. Anything else, whatever a kill left behind, is not done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from neurodiff.core.atomic import TEMPORARY_PREFIX, write_json
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_io import read_json, sha256_of

DONE = "done.json"
HASH_LIMIT = 64 * 2**20  # bytes; larger files are compared by size unless a hash is asked for

Verify = Literal["size", "hash"]


def seal(folder: Path, names: Iterable[str], record: Mapping[str, Any]) -> None:
    """Write ``done.json`` with ``record`` and the size and SHA-256 of each named file.

    Raises
    ------
    UsageError : a named file is not in the folder.
    """
    write_json(folder / DONE, with_files(folder, names, record))


def with_files(folder: Path, names: Iterable[str], record: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` with the size and SHA-256 of each named file, as ``done.json`` holds them."""
    files = {}
    for name in sorted(names):
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{folder} cannot be marked as done: it has no file {name}")
        files[name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    return {**record, "files": files}


def is_sealed(folder: Path, verify: Verify | None = None) -> bool:
    """Whether ``folder`` is done.

    Parameters
    ----------
    verify : ``"size"`` compares sizes, ``"hash"`` also contents; by default contents of files
        below 64 MB.
    """
    record = sealed_record(folder)
    if record is None:
        return False
    for name, stated in record["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != stated["size"]:
                return False
            hashed = verify == "hash" or (verify is None and size < HASH_LIMIT)
            if hashed and sha256_of(path) != stated["sha256"]:
                return False
        except (OSError, KeyError, TypeError):
            return False
    return True


def sealed_record(folder: Path) -> dict[str, Any] | None:
    """Content of ``done.json``, or None where it is missing or not one of ours."""
    try:
        record = read_json(folder / DONE)
    except (DataError, OSError):  # also one that goes while it is read: packed, or made anew
        return None
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        return None
    return record


def whole_files(folder: Path, skip: Iterable[str] = ()) -> list[str]:
    """Files below ``folder``, relative and sorted, without hidden, temporary and skipped ones."""
    skipped = tuple(skip)
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith((".", TEMPORARY_PREFIX, *skipped))]
        for name in files:
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if not name.startswith(".") and not relative.startswith(skipped):
                found.append(relative)
    return sorted(found)
