"""Leases: who is at work on a shard. They save double work; what is right does not depend on them.

A lease is a file that is created exclusively, ``<name>.<generation>``. Its first line is a counter
that the holder raises every few seconds, the rest says who holds it. A lease whose holder is gone
is not removed but succeeded: the successor creates the next generation, exclusively, so that of
several only one wins, and the old holder sees at its next heartbeat that it was succeeded. One that
is given back says so. The files go when the whole batch is finished (`remove_leases`): a file that
is removed earlier might be found missing by somebody who was about to succeed it.

Whether a holder is gone is never told by comparing a file's date with one's own clock: clocks of
two machines differ. On the holder's own machine its process is asked for; a job that Slurm started
again succeeds its own former start; anybody else is watched, and is gone when the counter has not
changed for ``patience`` seconds of the watcher's own clock. Neither is a folder's listing believed,
which may lag behind on a shared file system: the next generation is found by opening it.

Two workers on one item do no harm, since items are written whole under a key of their content: an
orphan that outlives its lease finishes its item, sees it was succeeded, and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurodiff.core.processes import began, is_alive, machine

BEAT = 15.0  # seconds between two heartbeats
PATIENCE = 180.0  # without one a holder is gone; network file systems cache for up to a minute
PACKING = "packing"  # name of the lease of who moves items into packs, when no worker may be alive
_COUNTER = 20  # digits of the counter, in front of everything else
_RELEASED = "released".ljust(_COUNTER)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease, by names that are never given twice (see `core.processes`).

    ``job`` : number of the scheduler's job, empty outside of one; ``restart``: how often the
    scheduler started it again. ``token``: drawn for this lease.
    """

    machine: str
    process: int
    started: int
    token: str
    job: str = ""
    restart: int = 0

    @classmethod
    def myself(cls, environment: Mapping[str, str] | None = None) -> Holder:
        """This process."""
        given = os.environ if environment is None else environment
        text = given.get("SLURM_RESTART_COUNT", "0")
        return cls(
            machine=machine(),
            process=os.getpid(),
            started=began(os.getpid()),
            token=secrets.token_hex(8),
            job=given.get("SLURM_JOB_ID", ""),
            restart=int(text) if text.isdecimal() else 0,
        )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A lease file as it was read: its generation, counter, holder, and the item in progress."""

    generation: int
    counter: str
    holder: Holder | None
    item: str

    @property
    def released(self) -> bool:
        """Whether its holder gave it back."""
        return self.counter == _RELEASED


class Lease:
    """A lease that is held: a context that gives it back at the end.

    Made by `acquire`. ``lost`` becomes true when somebody else succeeded it.
    """

    def __init__(self, folder: Path, name: str, generation: int, holder: Holder) -> None:
        self.folder, self.name, self.generation = folder, name, generation
        self.holder = holder
        self.lost = False
        self.left_behind = ""  # the item at which the holder before was, and did not finish
        self._item = ""
        self._count = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"{self.name}.{self.generation}"

    def at(self, item: str) -> None:
        """Say which item is in progress: whoever succeeds us takes it last."""
        self._item = item
        self.beat()

    def beat(self) -> bool:
        """Raise the counter; whether the lease is still ours."""
        with self._lock:
            if not self.lost:
                self._count += 1
                self._write(f"{self._count:0{_COUNTER}d}")
                self.lost = self.lost or _exists(self.folder / f"{self.name}.{self.generation + 1}")
            return not self.lost

    def release(self) -> None:
        """Stop beating and give the lease back."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._write(_RELEASED)

    def _write(self, counter: str) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY)
        except FileNotFoundError:  # removed: somebody took the batch for finished
            self.lost = True
            return
        except OSError:
            return  # a file system that is away for a moment; the next beat tells
        try:
            os.pwrite(descriptor, f"{counter} {self._item:64.64}".encode("ascii"), 0)
        except OSError:
            pass
        finally:
            os.close(descriptor)

    def start(self, every: float = BEAT, also: Callable[[], Any] | None = None) -> Lease:
        """Beat in a thread from now on; ``also`` is called with each beat, as long as we work,
        even for a lease that was lost: its item in progress is still finished."""

        def run() -> None:
            while not self._ended.wait(every):
                self.beat()
                if also is not None:
                    also()

        self._thread = threading.Thread(target=run, name=f"lease {self.name}", daemon=True)
        self._thread.start()
        return self

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire(
    folder: Path,
    name: str,
    *,
    holder: Holder | None = None,
    patience: float = PATIENCE,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], Any] = time.sleep,
) -> Lease | None:
    """The lease of that name, or None where another holder is alive.

    Parameters
    ----------
    patience : seconds without a heartbeat after which a holder that cannot be asked is gone.
    now, wait : this machine's clock that never goes back, and a pause; of tests.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with acquire(folder, "shard-0-of-2") as lease:
    ...     print(acquire(folder, "shard-0-of-2"), lease.path.name)
    None shard-0-of-2.1
    >>> newest_lease(folder, "shard-0-of-2").released
    True
    """
    folder.mkdir(parents=True, exist_ok=True)
    me = holder or Holder.myself()
    while True:
        newest = newest_lease(folder, name)
        if newest is not None and not _gone(folder, name, newest, me, patience, now, wait):
            return None
        generation = 1 if newest is None else newest.generation + 1
        lease = Lease(folder, name, generation, me)
        if _create(lease.path, me):
            if newest is not None and not newest.released:
                lease.left_behind = newest.item
            return lease
        wait(0.05)  # somebody was faster; look at that one


def newest_lease(folder: Path, name: str) -> Seen | None:
    """The highest generation there is, found by opening; None where there is no lease."""
    newest, generation = None, 1
    while (seen := _read(folder / f"{name}.{generation}", generation)) is not None:
        newest, generation = seen, generation + 1
    return newest


def held_leases(folder: Path) -> dict[str, Seen]:
    """The newest lease of each name in a folder; of people who want to know, not for decisions."""
    names = {
        path.name.rpartition(".")[0]
        for path in folder.glob("*.*")
        if path.name.rpartition(".")[2].isdecimal()
    }
    found = {name: newest_lease(folder, name) for name in sorted(names)}
    return {name: seen for name, seen in found.items() if seen is not None}


def live_leases(
    folder: Path,
    *,
    packing: bool = False,
    patience: float = PATIENCE,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], Any] = time.sleep,
) -> list[str]:
    """Names of the leases of workers (or of who is packing) whose holder is alive.

    Those that cannot be asked are watched together until a counter changes, at most for
    ``patience`` seconds; the first that is found alive ends the watch.
    """
    unsure: dict[str, Seen] = {}
    alive = []
    found = {PACKING: newest_lease(folder, PACKING)} if packing else held_leases(folder)
    for name, seen in found.items():
        if seen is None or seen.released or _is_dead_here(seen.holder):
            continue
        if name == PACKING and not packing:
            continue
        if _is_alive_here(seen.holder):
            alive.append(name)
        else:
            unsure[name] = seen
    deadline = now() + patience
    while unsure and not alive and now() < deadline:
        wait(min(max(patience / 20, 0.01), 5.0))
        for name, before in list(unsure.items()):
            seen = newest_lease(folder, name)
            if seen is None or seen.released:
                del unsure[name]
            elif (seen.generation, seen.counter) != (before.generation, before.counter):
                alive.append(name)
    return alive


def remove_leases(folder: Path) -> None:
    """Remove every lease of a batch that is finished: a worker that still holds one has nothing to
    do, and sees that it is gone. That of who packs stays until it is given back."""
    packing = newest_lease(folder, PACKING)
    for path in folder.glob("*"):
        if path.name.rpartition(".")[0] != PACKING or packing is None or packing.released:
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- helpers


def _gone(folder, name, seen: Seen, me: Holder, patience: float, now, wait) -> bool:
    """Whether the holder of a lease is gone; watches it where it cannot be asked."""
    who = seen.holder
    if seen.released or _is_dead_here(who):
        return True
    if who is not None:
        if _is_alive_here(who):
            return False  # its process runs, which a frozen counter does not change
        if who.job and who.job == me.job and who.restart < me.restart:
            return True  # Slurm ended that start before it made this one
    deadline = now() + patience
    while now() < deadline:
        wait(min(max(patience / 20, 0.01), 5.0))
        again = _read(folder / f"{name}.{seen.generation}", seen.generation)
        if again is None:
            return True  # the batch was finished and its leases removed
        if again.counter != seen.counter:
            return False
    return True


def _is_dead_here(who: Holder | None) -> bool:
    return who is not None and who.machine == machine() and not is_alive(who.process, who.started)


def _is_alive_here(who: Holder | None) -> bool:
    return (
        who is not None
        and who.machine == machine()
        and bool(who.started)
        and is_alive(who.process, who.started)
    )


def _create(path: Path, holder: Holder) -> bool:
    """Whether this call, and no other, made the file. The file system decides."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        text = f"{0:0{_COUNTER}d} {'':64}\n{json.dumps(asdict(holder))}\n"
        file.write(text.encode("ascii"))
        file.flush()
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
    return True


def _read(path: Path, generation: int) -> Seen | None:
    """A lease file; None where there is none. One that was cut off while created has no holder."""
    try:
        text = path.read_bytes().decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        text = ""
    first, _, rest = text.partition("\n")
    holder = None
    with contextlib.suppress(ValueError, TypeError):
        values = json.loads(rest)
        holder = (
            Holder(
                machine=str(values["machine"]),
                process=int(values["process"]),
                started=int(values["started"]),
                token=str(values["token"]),
                job=str(values.get("job", "")),
                restart=int(values.get("restart", 0)),
            )
            if isinstance(values, dict) and _complete(values)
            else None
        )
    return Seen(
        generation=generation,
        counter=first[:_COUNTER],
        holder=holder,
        item=first[_COUNTER:].strip(),
    )


def _complete(values: dict[str, Any]) -> bool:
    return {"machine", "process", "started", "token"} <= set(values)


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return False
    return True
