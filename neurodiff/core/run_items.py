"""One result of a run: how it is named, made whole, marked as done or as failed."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodiff.core import provenance
from neurodiff.core.atomic import DISK_FULL, TEMPORARY_PREFIX, plain, write_error, write_json
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.processes import machine
from neurodiff.core.safe_io import read_json
from neurodiff.core.sealed import (
    DONE,
    Verify,
    is_sealed,
    seal,
    sealed_record,
    whole_files,
    with_files,
)
from neurodiff.core.seeds import item_seed

if TYPE_CHECKING:
    from neurodiff.core.run import Run

_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV)
_TRIES = 20  # of putting an item into its place, beside others who do the same
_OPEN: set[Path] = set()  # folders that this process is writing items into

ITEM_COLUMNS = ["key", "task", "subject", "stimulus", "sample", "settings"]


class Item:
    """One result of a run: the folder ``items/<key[:2]>/<key>``."""

    def __init__(
        self, run: Run, task: str, subject: str, stimulus: str, sample: int, settings: str
    ) -> None:
        self.task = task
        self.subject = subject
        self.stimulus = stimulus
        self.sample = sample
        self.settings = settings
        identity = [task, subject, stimulus, sample, settings]
        # as `canonical`, of what is plain already: 100,000 of them are made for a batch
        text = json.dumps(identity, separators=(",", ":"))
        self.key = hashlib.sha256(text.encode("ascii")).hexdigest()
        self._run = run

    @functools.cached_property
    def seed(self) -> int:
        """Of the item's noise: from the run's seed and what the item is."""
        return item_seed(
            self._run.seed,
            subject=self.subject,
            stimulus=self.stimulus,
            sample=self.sample,
            stage=self.task,
        )

    @functools.cached_property
    def folder(self) -> Path:
        """``items/<key[:2]>/<key>`` of the run."""
        return self._run._item_folder(self.key)

    @property
    def done(self) -> bool:
        """Whether the item is finished and its files are whole."""
        return self.is_done()

    def is_done(self, verify: Verify | None = None) -> bool:
        """As ``done``; ``verify="size"`` is quick, ``"hash"`` reads files of any size."""
        return is_sealed(self.folder, verify)

    @property
    def record(self) -> dict[str, Any]:
        """Content of ``done.json``; empty before."""
        return sealed_record(self.folder) or {}

    @property
    def error(self) -> str | None:
        """The sentence of ``failed.json``, or None."""
        return None if (found := failure_in(self.folder)) is None else str(found.get("error", ""))

    @property
    def failure(self) -> dict[str, Any]:
        """Content of ``failed.json``; empty where there is none."""
        return failure_in(self.folder) or {}

    def forgive(self) -> bool:
        """Remove ``failed.json``, so that the item counts as never tried; whether there was one."""
        try:
            (self.folder / "failed.json").unlink()
        except FileNotFoundError:
            return False
        return True

    def path(self, name: str) -> Path:
        """Path of a file of this item; its folder is made. Write it atomically."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
        return path

    @contextlib.contextmanager
    def write_dir(self, extra: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Context that yields an empty folder; its files become the item, ``done.json`` last.

        On an error the folder is removed and the item stays as it was. ``extra`` is read at the
        end, so that what the block finds out may be put into it. Where somebody else finishes the
        item meanwhile, theirs stays.
        """
        started, before = time.monotonic(), self._mark()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._beside()
        temporary.mkdir()
        _OPEN.add(temporary)
        try:
            yield temporary
            names = whole_files(temporary)
            record = self._record(time.monotonic() - started, self.seed, extra, names)
            text = json.dumps(plain(with_files(temporary, names, record)), allow_nan=False)
            (temporary / DONE).write_text(text, encoding="utf-8")
            self._move_in(temporary, names, before)
        except OSError as error:
            if isinstance(error, DataError) or error.errno not in DISK_FULL:
                raise
            raise write_error(self.folder, error) from error
        finally:
            _OPEN.discard(temporary)
            shutil.rmtree(temporary, ignore_errors=True)

    def _beside(self) -> Path:
        """A name beside the item's folder that tells whose it is; see `Run.remove_dead_writers`."""
        mark = f"{machine()}-{os.getpid()}-{secrets.token_hex(6)}"
        return self.folder.with_name(f"{TEMPORARY_PREFIX}{mark}")

    def _move_in(self, temporary: Path, names: list[str], before: tuple[int, int]) -> None:
        """A whole folder takes the item's place; one that is in the way is moved away whole.

        Two writers of one item, whose results may differ in their last digits, would otherwise
        leave files of both under the record of one.
        """
        for name in (*names, DONE):
            _sync(temporary / name)
        for attempt in range(_TRIES):
            try:
                os.rename(temporary, self.folder)
                break
            except OSError as error:
                if error.errno not in _IN_THE_WAY or attempt == _TRIES - 1:
                    raise
            if self._mark() != before and self.is_done("size"):
                break  # another worker was faster
            old = self._beside()
            try:
                os.rename(self.folder, old)
            except FileNotFoundError:
                continue  # another worker moved it first
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._move_files(temporary, names)
                break
            shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):  # some network file systems do not sync folders
            _sync(self.folder.parent)

    def _mark(self) -> tuple[int, int]:
        """Tells one ``done.json`` from another; zeros where there is none."""
        try:
            found = os.stat(self.folder / DONE)
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def _move_files(self, temporary: Path, names: list[str]) -> None:
        """Where folders cannot be renamed, as in the layers of a container: file by file."""
        (self.folder / DONE).unlink(missing_ok=True)  # first: what is half new is not done
        for name in (*names, DONE):
            os.replace(temporary / name, self.path(name))
        (self.folder / "failed.json").unlink(missing_ok=True)

    def finish(
        self, seconds: float, seed: int | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Mark as done, with the size and SHA-256 of every file in the folder."""
        names = whole_files(self.folder, (DONE, "failed.json"))
        self._finish(seconds, self.seed if seed is None else seed, extra, names)

    def fail(self, sentence: str, **more: Any) -> None:
        """Write why the item could not be made, and ``more``; it is tried again on resume."""
        write_json(
            self.path("failed.json"),
            {**more, **self.row(), "error": str(sentence), "time": provenance.now()},
        )

    def row(self) -> dict[str, Any]:
        """The item's line of ``items.csv``."""
        values = (self.key, self.task, self.subject, self.stimulus, self.sample, self.settings)
        return dict(zip(ITEM_COLUMNS, values, strict=True))

    def __repr__(self) -> str:
        name = f"{self.task} {self.subject} {self.stimulus} {self.sample}"
        return f"<Item {name}, {'done' if self.is_done('size') else 'not done'}>"

    def _finish(
        self, seconds: float, seed: int, extra: Mapping[str, Any] | None, names: list[str]
    ) -> None:
        seal(self.folder, names, self._record(seconds, seed, extra, names))
        (self.folder / "failed.json").unlink(missing_ok=True)

    def _record(
        self, seconds: float, seed: int, extra: Mapping[str, Any] | None, names: list[str]
    ) -> dict[str, Any]:
        if not names:
            raise UsageError(f"item {self.key[:10]} of {self.task} has no file to finish with")
        own = {**self.row(), "seed": int(seed), "seconds": round(float(seconds), 3)}
        return {**(extra or {}), **own}


def touch_open_folders() -> None:
    """Date the folders that items of this process are being written into as of now.

    Another machine takes a folder that is long unchanged for that of a dead writer, and an item may
    compute for hours before its first file. Called with every heartbeat of a worker.
    """
    for folder in tuple(_OPEN):
        with contextlib.suppress(OSError):
            os.utime(folder)


def failure_in(folder: Path) -> dict[str, Any] | None:
    """Content of an item's ``failed.json``, or None where it is missing or broken."""
    try:
        value = read_json(folder / "failed.json")
    except (DataError, OSError):  # also one that goes while it is read: the item was made
        return None
    return value if isinstance(value, dict) else None


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values: sorted keys, plain types, NaN by name."""
    text = json.dumps(plain(value, nan=True), sort_keys=True, separators=(",", ":"))
    return text.encode("ascii")


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
