"""How far a batch is, counted from the files of its items and from nothing else.

A scheduler forgets jobs, calls orphans running and has no idea of items; a driver dies. So no
counter is kept anywhere: 100,000 items are looked at in about a second.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json
from neurodiff.core.sealed import sealed_record
from neurodiff.jobs_lease import PACKING, Seen, held_leases, remove_leases
from neurodiff.jobs_manifest import Manifest, Row
from neurodiff.jobs_pack import packed_keys
from neurodiff.jobs_worker import is_quarantined

SUBMISSIONS = "submissions.jsonl"
_SAMPLED = 50  # finished items whose seconds tell how long the others take


@dataclass(frozen=True, kw_only=True)
class Status:
    """Counts of a batch's items; ``failed`` are tried again by `resume`, ``quarantined`` are not.

    ``workers``: names of shards with a worker that gave no lease back. ``seconds``: median of an
    item, from those that are done; None before. ``errors``: sentence -> number of items.
    """

    batch: str
    task: str
    items: int
    done: int
    failed: int
    quarantined: int
    pending: int
    workers: tuple[str, ...] = ()
    seconds: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    scheduler: Mapping[str, int] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether a `resume` would have nothing to do."""
        return self.done + self.quarantined == self.items

    def __str__(self) -> str:
        share = 100 * self.done / self.items if self.items else 100.0
        lines = [
            f"{self.batch}: {self.done} of {self.items} items done ({share:.0f} %), "
            f"{self.failed} failed, {self.quarantined} in quarantine, {self.pending} pending"
        ]
        if self.workers:
            lines.append(f"  at work or not given back: {', '.join(self.workers)}")
        left = self.failed + self.pending
        if self.seconds is not None and left:
            by = max(1, len(self.workers))
            lines.append(
                f"  {self.seconds:.3g} s an item: about {_spell(left * self.seconds / by)} left "
                f"with {by} worker{'s' if by > 1 else ''}"
            )
        if self.scheduler:
            told = ", ".join(f"{n} {state}" for state, n in sorted(self.scheduler.items()))
            lines.append(f"  the scheduler says: {told}")
        for sentence, n in sorted(self.errors.items(), key=lambda pair: -pair[1])[:5]:
            lines.append(f"  {n} x {sentence}")
        return "\n".join(lines)


def states_of(run: Run, manifest: Manifest, *, verify: Any = "none") -> list[str]:
    """``done``, ``failed``, ``quarantined`` or ``pending`` of each row of a manifest, in order.

    ``verify`` : as `Run.states`; "hash" reads every file of every item.
    """
    packed = packed_keys(manifest.folder)
    found = run.states(manifest.keys, verify=verify)
    for place, (key, state) in enumerate(zip(manifest.keys, found, strict=True)):
        if key in packed:
            found[place] = "done"
        elif state == "failed" and is_quarantined(_failure(run, key)):
            found[place] = "quarantined"
    return found


def status_of(run: Run, manifest: Manifest, *, verify: Any = "none") -> Status:
    """Counts of a batch, from its files."""
    states = states_of(run, manifest, verify=verify)
    count = {name: states.count(name) for name in ("done", "failed", "quarantined", "pending")}
    errors: dict[str, int] = {}
    for row, state in zip(manifest.rows, states, strict=True):
        if state in ("failed", "quarantined"):
            sentence = str(_failure(run, row.key).get("error", "no reason was written"))
            errors[sentence] = errors.get(sentence, 0) + 1
    return Status(
        batch=manifest.name,
        task=manifest.task,
        items=len(manifest),
        **count,
        workers=tuple(workers_of(manifest.folder)),
        seconds=_seconds(run, manifest, states),
        errors=errors,
    )


def workers_of(batch: Path) -> dict[str, Seen]:
    """Leases that were not given back: of live workers, and of dead ones nobody succeeded yet."""
    found = held_leases(batch / "leases")
    return {name: s for name, s in found.items() if not s.released and name != PACKING}


def rows_in(manifest: Manifest, run: Run, wanted: Iterable[str]) -> list[Row]:
    """Rows whose state is one of ``wanted``."""
    kept = set(wanted)
    states = states_of(run, manifest)
    return [row for row, state in zip(manifest.rows, states, strict=True) if state in kept]


def tidy(manifest: Manifest) -> None:
    """Remove what killed workers left; when a `resume` would find nothing to do, leases as well.

    ``manifest`` : the whole one.
    """
    run = Run(manifest.run_folder)
    run.remove_dead_writers()
    left = {"pending", "failed"}
    if left.isdisjoint(states_of(run, manifest)):
        remove_leases(manifest.folder / "leases")


def note_submission(batch: Path, record: Mapping[str, Any]) -> None:
    """Append a line to ``submissions.jsonl``: who was asked to do what. Nothing depends on it."""
    batch.mkdir(parents=True, exist_ok=True)
    with open(batch / SUBMISSIONS, "ab") as file:
        file.write(json.dumps(record).encode() + b"\n")


def submissions_of(batch: Path) -> list[dict[str, Any]]:
    """Lines of ``submissions.jsonl`` that can be read."""
    path = batch / SUBMISSIONS
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _failure(run: Run, key: str) -> dict[str, Any]:
    try:
        value = read_json(run.folder / "items" / key[:2] / key / "failed.json")
    except (OSError, ValueError):  # our DataError is a ValueError
        return {}
    return value if isinstance(value, dict) else {}


def _spell(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _seconds(run: Run, manifest: Manifest, states: list[str]) -> float | None:
    done = [r.key for r, state in zip(manifest.rows, states, strict=True) if state == "done"]
    step = max(1, len(done) // _SAMPLED)
    found = []
    for key in done[::step][:_SAMPLED]:
        record = sealed_record(run.folder / "items" / key[:2] / key)
        if record is not None and isinstance(record.get("seconds"), int | float):
            found.append(float(record["seconds"]))
    return statistics.median(found) if found else None
