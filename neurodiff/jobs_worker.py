"""A worker does one shard of a batch: its items one by one, as the ledger says what is left.

The signal rule: SIGTERM, SIGINT and Slurm's SIGUSR2 let the item in progress be finished; then the
worker gives its lease back, asks Slurm to start its job again, and leaves. Leaving without asking
loses the rest of the shard where a site gives a grace time: Slurm then takes the job for failed.

Run as ``python -m neurodiff.jobs_worker RUN BATCH K N``. Exit codes: 0 the shard is done, 1 some
items failed, 2 and 3 as everywhere, 4 another worker holds the shard, 70 a fault of neurodiff, 143
stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurodiff.core.atomic import DISK_FULL, remove_leftovers_of_the_dead
from neurodiff.core.errors import NeurodiffError, UsageError, file_error
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Item, Run
from neurodiff.core.run_items import Commits, touch_open_folders
from neurodiff.jobs_lease import BEAT, PATIENCE, Lease, acquire, live_leases
from neurodiff.jobs_manifest import Manifest, Row, read_manifest
from neurodiff.jobs_pack import packed_keys
from neurodiff.jobs_tasks import Place, Task, task_of

QUARANTINE = 3  # failures after which an item is left alone until `retry`
DEATHS = 8  # deaths of its worker; more, since a kill may come from outside and an error does not
REQUEUES = 50  # times that a job may ask to be started again, so that nothing goes on for ever
STOPPED, HELD, BROKEN = 143, 4, 70
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


@dataclass
class Outcome:
    """What a worker did: numbers of items, and why it left."""

    done: int = 0
    before: int = 0
    failed: int = 0
    quarantined: int = 0
    why: str = "finished"  # or "stopped", "held", "lost"

    @property
    def code(self) -> int:
        """Exit code of the worker's process."""
        if self.why in ("stopped", "lost"):
            return STOPPED
        if self.why == "held":
            return HELD
        return 1 if self.failed or self.quarantined else 0

    def __str__(self) -> str:
        return (
            f"{self.why}: {self.done} items done, {self.before} before, {self.failed} failed, "
            f"{self.quarantined} in quarantine"
        )


class Stop:
    """Whether to leave after the item in progress: a signal came, or the parent is gone."""

    def __init__(self, parent: int | None = None) -> None:
        self._asked = threading.Event()
        self._parent = parent

    def ask(self, *_: object) -> None:
        """Leave after the item in progress; the handler of signals."""
        self._asked.set()

    def __bool__(self) -> bool:
        orphaned = self._parent is not None and os.getppid() != self._parent
        return self._asked.is_set() or orphaned

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Within the block signals only ask; whatever handled them before comes back after it."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers
            return
        before = {number: signal.signal(number, self.ask) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def work(
    manifest: Manifest,
    k: int,
    n: int,
    *,
    stop: Stop | None = None,
    place: Place = Path,
    beat: float = BEAT,
    patience: float = PATIENCE,
    progress: Progress | None = None,
) -> Outcome:
    """Do what is left of shard k of n.

    Parameters
    ----------
    manifest : the shard's rows alone are enough (``read_manifest(folder, shard=(k, n))``).
    place : where a folder of weights or data is read; see `jobs_site.staged`.

    Raises
    ------
    NeurodiffError : the task's state cannot be loaded, or the disk is full; no item is blamed.
    """
    stop = Stop() if stop is None else stop
    progress = SILENT if progress is None else progress
    run, name = Run(manifest.run_folder), f"shard-{k}-of-{n}"
    lease = acquire(manifest.folder / "leases", name, patience=patience)
    if lease is None:
        return Outcome(why="held")
    with lease.start(beat, also=touch_open_folders), stop.on_signals():
        if live_leases(manifest.folder / "leases", packing=True, patience=patience):
            return Outcome(why="held")
        run.remove_dead_writers()
        return _shard(run, manifest, (k, n), lease, stop, place, progress)


def _shard(
    run: Run,
    manifest: Manifest,
    which: tuple[int, int],
    lease: Lease,
    stop: Stop,
    place: Place,
    progress: Progress,
) -> Outcome:
    task, outcome, state, loaded = task_of(manifest.task), Outcome(), None, False
    packed = packed_keys(manifest.folder)
    rows = list(manifest.rows)
    # the item at which the last worker died comes last: if it kills, it keeps no other waiting
    rows.sort(key=lambda row: row.key == lease.left_behind)
    progress.begin(f"shard {which[0]} of {which[1]}")
    block: list[tuple[Item, Row]] = []
    most = together_of(task, manifest.settings)
    with Commits() as commits:
        for number, row in enumerate(rows):
            if stop:
                outcome.why = "stopped"
                break
            item = manifest.item(run, row)
            if row.key in packed or item.done:
                outcome.before += 1
            elif is_quarantined(item.failure):
                outcome.quarantined += 1
            else:
                block.append((item, row))
            if not block or (len(block) < most and number + 1 < len(rows)):
                continue
            if not loaded:
                state, loaded = task.prepare(run, manifest.settings, place), True
            lease.at(block[0][0].key)
            if lease.lost:
                outcome.why = "lost"
                break
            for made in do_items(task, state, [(item, row.extra) for item, row in block], commits):
                outcome.done += made
                outcome.failed += not made
            block = []
            _blame_commits(commits, outcome)
            progress.update(number + 1, len(rows), f"{outcome.failed} failed")
        commits.wait()
        _blame_commits(commits, outcome)
    lease.at("")
    return outcome


def _blame_commits(commits: Commits, outcome: Outcome) -> None:
    """Count items that were made and could not be put into their places."""
    for item, error in commits.failures():
        if not item.done:
            count_failure(item, _sentence(error), kind=type(error).__name__, where=_where(error))
            outcome.done -= 1
            outcome.failed += 1


def together_of(task: Task, settings: Mapping[str, Any]) -> int:
    """Items that a worker does in one go: the setting ``together`` of tasks that can."""
    asked = settings.get("together", 1)
    if not isinstance(asked, int) or asked < 1:
        raise UsageError(f"together is {asked!r}; give a whole number from 1")
    return asked if hasattr(task, "do_many") else 1


def do_items(
    task: Task,
    state: Any,
    work: list[tuple[Item, Mapping[str, Any]]],
    commits: Commits | None = None,
) -> list[bool]:
    """Make items in one go; where that fails, one by one, so that only the guilty fail.

    With ``commits`` those that were made are on their way to the disk, else they are there.
    """
    if len(work) > 1:
        found: list[dict[str, Any]] = [{} for _ in work]
        for item, _ in work:
            _clear(item)
        try:
            with contextlib.ExitStack() as stack:
                folders = [
                    stack.enter_context(item.write_dir(one, commits))
                    for (item, _), one in zip(work, found, strict=True)
                ]
                items, extras = [item for item, _ in work], [extra for _, extra in work]
                records = task.do_many(state, items, folders, extras)  # type: ignore[attr-defined]
                for one, record in zip(found, records, strict=True):
                    one.update(record)
            return [True] * len(work)
        except Exception as error:
            if _disk_full(error):
                raise
    return [item.done or do_item(task, state, item, extra, commits) for item, extra in work]


def do_item(
    task: Task,
    state: Any,
    item: Item,
    extra: Mapping[str, Any],
    commits: Commits | None = None,
) -> bool:
    """Make one item, or write down why it could not be made; whether it was made.

    Raises
    ------
    DataError : the disk is full, which is no fault of the item.
    """
    _clear(item)
    found: dict[str, Any] = {}
    try:
        with item.write_dir(found, commits) as folder:
            found.update(task.do(state, item, folder, extra))
    except Exception as error:
        if _disk_full(error):
            raise
        if item.done:  # somebody else made it meanwhile
            return True
        count_failure(item, _sentence(error), kind=type(error).__name__, where=_where(error))
        return False
    return True


def is_quarantined(failure: Mapping[str, Any]) -> bool:
    """Whether an item with this ``failed.json`` is left alone."""
    return _count(failure, "attempts") >= QUARANTINE or _count(failure, "deaths") >= DEATHS


def count_failure(item: Item, sentence: str, *, death: bool = False, **more: Any) -> None:
    """Write an item's failure down and count it, as an error or as the death of its worker."""
    before = item.failure
    counts = {name: _count(before, name) for name in ("attempts", "deaths")}
    counts["deaths" if death else "attempts"] += 1
    item.fail(sentence, **counts, **more)


def requeue(environment: Mapping[str, str] | None = None, tries: int = 3) -> bool:
    """Ask Slurm to start this job again; whether it will be.

    Slurm itself may have been first, which it answers with "Job is pending execution". In a grace
    time, and before the time limit, a job still counts as running and has to ask; one that was
    cancelled does not, and must not be brought back.
    """
    given = os.environ if environment is None else environment
    job = given.get("SLURM_JOB_ID", "")
    restarts = given.get("SLURM_RESTART_COUNT", "0")
    if not job or (restarts.isdecimal() and int(restarts) >= REQUEUES):
        return False
    for line in _scontrol("-o", "show", "job", job)[1].splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        if fields.get("JobId") == job and fields.get("JobState") != "RUNNING":
            return False  # Slurm is ending it already: it was cancelled, or is in the queue again
    for attempt in range(tries):
        code, said = _scontrol("requeue", job)
        if code == 0 or "pending" in said.lower():
            return True
        time.sleep(0.2 * (attempt + 1))
    return False


def main(arguments: list[str] | None = None) -> int:
    """One shard in this process; what the local back end and printed scripts start."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m neurodiff.jobs_worker")
    parser.add_argument("run", type=Path)
    parser.add_argument("batch")
    parser.add_argument("k", type=int)
    parser.add_argument("n", type=int)
    parser.add_argument("--parent", type=int, help="leave when this process is gone")
    parser.add_argument("--patience", type=float, default=PATIENCE)
    parser.add_argument("--local-disk", help="copy weights there and read them from it")
    given = parser.parse_args(arguments)
    return run_shard(
        given.run / "batch" / given.batch,
        given.k,
        given.n,
        parent=given.parent,
        patience=given.patience,
        local_disk=given.local_disk,
    )


def run_shard(
    folder: Path,
    k: int,
    n: int,
    *,
    parent: int | None = None,
    patience: float = PATIENCE,
    local_disk: str | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """A shard from its folder to an exit code, with the request to Slurm when it was stopped."""
    from neurodiff.jobs_ledger import tidy
    from neurodiff.jobs_site import staging

    stop = Stop(parent)
    try:
        with stop.on_signals():  # also while the manifest is read
            manifest = read_manifest(folder, shard=(k, n))
            outcome = work(
                manifest,
                k,
                n,
                stop=stop,
                place=staging(local_disk),
                patience=patience,
                progress=Progress.to_stdout(every=60.0),
            )
            say(f"shard {k} of {n} {outcome}")
            if outcome.why == "finished":
                tidy(read_manifest(folder))
            if outcome.why == "stopped" and requeue():
                say("the job will be started again")
            return outcome.code
    except NeurodiffError as error:
        print(f"error: {error}", file=sys.stderr)
        # not the code of an item that failed
        return error.exit_code if error.exit_code != 1 else BROKEN
    except Exception as error:
        if isinstance(error, OSError) and (told := file_error(error)) is not None:
            print(f"error: {told}", file=sys.stderr)
            return told.exit_code
        traceback.print_exc()
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return BROKEN


# ------------------------------------------------------------------------------------- helpers


def _clear(item: Item) -> None:
    """Remove what a killed writer left in an item's folder."""
    if item.folder.is_dir():
        remove_leftovers_of_the_dead(item.folder)


def _scontrol(*arguments: str) -> tuple[int, str]:
    """Exit code and text of scontrol; -1 where it is not there or does not come back."""
    try:
        # a session of its own: the signals that end the job are sent to its processes
        answer = subprocess.run(
            ["scontrol", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError):
        return -1, ""
    return answer.returncode, answer.stdout + answer.stderr


def _count(failure: Mapping[str, Any], name: str) -> int:
    value = failure.get(name, 0)
    return value if isinstance(value, int) else 0


def _disk_full(error: BaseException) -> bool:
    causes = [error, error.__cause__]
    return any(isinstance(one, OSError) and one.errno in DISK_FULL for one in causes)


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, NeurodiffError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


def _where(error: Exception) -> list[str]:
    """Places of the traceback, innermost last, without folders: files of a user are nobody's."""
    if isinstance(error, NeurodiffError):
        return []
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


if __name__ == "__main__":
    sys.exit(main())
