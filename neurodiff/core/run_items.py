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
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodiff.core import provenance
from neurodiff.core.atomic import (
    DISK_FULL,
    OPEN,
    TEMPORARY_PREFIX,
    plain,
    touch_open,
    write_error,
    write_json,
)
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
#: Items that wait for the disk at the same time. One that waits alone waits three times; of eight
#: at once the file system writes the journal once for all.
COMMITTERS = 8

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
    def write_dir(
        self, extra: Mapping[str, Any] | None = None, commits: Commits | None = None
    ) -> Iterator[Path]:
        """Context that yields an empty folder; its files become the item, ``done.json`` last.

        On an error the folder is removed and the item stays as it was. ``extra`` is read at the
        end, so that what the block finds out may be put into it. Where somebody else finishes the
        item meanwhile, theirs stays.

        Parameters
        ----------
        commits : takes the whole folder over, and waits for the disk while the next item is made;
            without it the item is done when the block ends.
        """
        started, before = time.monotonic(), mark_of(self.folder)
        with folder_beside(self.folder, commits) as temporary:
            yield temporary
            names = whole_files(temporary)
            record = self._record(time.monotonic() - started, self.seed, extra, names)
            text = json.dumps(plain(with_files(temporary, names, record)), allow_nan=False)
            (temporary / DONE).write_text(text, encoding="utf-8")
            if commits is None:
                self._move_in(temporary, names, before)
            else:
                commits.put(self, temporary, names, before)

    def _move_in(self, temporary: Path, names: Sequence[str], before: tuple[int, int]) -> None:
        move_in(temporary, self.folder, names, before)

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


class Commits:
    """Whole items on their way to the disk, several at a time: a context that waits for the last.

    Each goes the way of an item alone (its files are synced, it takes its name, the folder above is
    synced), in a thread of its own, so that the file system can serve them together. Until it has
    its name an item is not done for anybody, and a kill loses at most those that are on their way.
    """

    def __init__(self, atonce: int = COMMITTERS) -> None:
        self._pool = ThreadPoolExecutor(atonce, "commit")
        self._free = threading.Semaphore(4 * atonce)  # what is further behind is waited for
        self._failed: deque[tuple[Item, BaseException]] = deque()

    def put(
        self, item: Item, temporary: Path, names: Sequence[str], before: tuple[int, int]
    ) -> None:
        """Take a whole folder over, which has to become the item."""
        self._free.acquire()
        OPEN.add(temporary)
        self._pool.submit(self._commit, item, temporary, names, before)

    def failures(self) -> Iterator[tuple[Item, Exception]]:
        """Items that could not be put into their places since this was asked last.

        Raises
        ------
        DataError : the disk is full, which is no fault of an item.
        """
        while self._failed:
            item, error = self._failed.popleft()
            if not isinstance(error, Exception):
                raise error
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise write_error(item.folder, error) from error
            yield item, error

    def wait(self) -> None:
        """Until nothing is on its way; nothing can be put after it."""
        self._pool.shutdown(wait=True)

    def __enter__(self) -> Commits:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def _commit(
        self, item: Item, temporary: Path, names: Sequence[str], before: tuple[int, int]
    ) -> None:
        try:
            item._move_in(temporary, names, before)
        except BaseException as error:
            self._failed.append((item, error))
        finally:
            OPEN.discard(temporary)
            shutil.rmtree(temporary, ignore_errors=True)
            self._free.release()


@contextlib.contextmanager
def folder_beside(folder: Path, commits: Commits | None = None) -> Iterator[Path]:
    """An empty folder beside one that it is to become, under a name that tells whose it is (see
    `Run.remove_dead_writers`); it is gone after the block unless ``commits`` took it over."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _name_beside(folder)
    temporary.mkdir(exist_ok=True)  # a file server that answers twice says it is there
    OPEN.add(temporary)
    kept = False
    try:
        yield temporary
        kept = commits is not None
    except OSError as error:
        if isinstance(error, DataError) or error.errno not in DISK_FULL:
            raise
        raise write_error(folder, error) from error
    finally:
        if not kept:
            OPEN.discard(temporary)
            shutil.rmtree(temporary, ignore_errors=True)


def mark_of(folder: Path) -> tuple[int, int]:
    """Tells one ``done.json`` from another; zeros where there is none."""
    try:
        found = os.stat(folder / DONE)
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def move_in(temporary: Path, folder: Path, names: Sequence[str], before: tuple[int, int]) -> None:
    """A whole folder takes an item's place; one that is in the way is moved away whole.

    Two writers of one item, whose results may differ in their last digits, would otherwise leave
    files of both under the record of one.

    Parameters
    ----------
    names : of the files, without ``done.json``.
    before : `mark_of` when the work began; a finished item that came since stays.
    """
    for name in (*names, DONE):
        _sync(temporary / name)
    for inner in {temporary, *((temporary / name).parent for name in names)}:
        with contextlib.suppress(OSError):  # some network file systems do not sync folders
            _sync(inner)
    for attempt in range(_TRIES):
        try:
            os.rename(temporary, folder)
            break
        except OSError as error:
            # ENOENT: a file server did it, and was asked again since its answer was lost
            if error.errno not in (*_IN_THE_WAY, errno.ENOENT) or attempt == _TRIES - 1:
                raise
            if mark_of(folder) != before and is_sealed(folder, "size"):
                break  # also where another worker was faster
            if error.errno == errno.ENOENT:
                raise
        old = _name_beside(folder)
        try:
            os.rename(folder, old)
        except FileNotFoundError:
            continue  # another worker moved it first
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_files(temporary, folder, names)
            break
        shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):
        _sync(folder.parent)


def touch_open_folders() -> None:
    """Date what this process is writing as of now; called with every heartbeat of a worker.

    Another machine takes a folder that is long unchanged for that of a dead writer, and an item may
    compute for hours before its first file.
    """
    touch_open()


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


def _name_beside(folder: Path) -> Path:
    mark = f"{machine()}-{os.getpid()}-{secrets.token_hex(6)}"
    return folder.with_name(f"{TEMPORARY_PREFIX}{mark}")


def _move_files(temporary: Path, folder: Path, names: Sequence[str]) -> None:
    """Where folders cannot be renamed, as in the layers of a container: file by file."""
    (folder / DONE).unlink(missing_ok=True)  # first: what is half new is not done
    for name in (*names, DONE):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / name, target)
    (folder / "failed.json").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
