"""How much a batch costs beside its items: planning, status, overhead an item, memory.

    python benchmarks/jobs.py [--items 100000] [--work 10000] [--folder DIR]

Planned, and looked at when finished, are 100,000 items; done are 10,000 of two small files by three
workers. An item of nothing takes what its four waits for the disk take (its file, ``done.json``,
two folders), which protect against a power cut. A worker lets several items wait together
(`run_items.Commits`); the table has the time of an item with and without that, in turns, and of one
that waits for no disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import neurodiff.jobs as jobs
from neurodiff import jobs_worker
from neurodiff.core import run_items
from neurodiff.core.run import Run
from neurodiff.core.sealed import DONE
from neurodiff.jobs_manifest import find_batch, read_manifest

NOTHING = {"seconds": 0.0, "files": 1, "values": 10}


def made(folder: Path, items: int) -> tuple[Run, float]:
    """A run with a planned batch, and the seconds that planning took."""
    run = Run.create(folder, {"x": items}, {}, command="benchmark", seed=0)
    started = time.perf_counter()
    jobs.plan(run, "rehearsal", settings={"items": items, **NOTHING})
    return run, time.perf_counter() - started


def finished(run: Run) -> None:
    """Mark every item as done, without waiting for the disk: only their files are looked at."""
    for key in read_manifest(find_batch(run)).keys:
        folder = run.folder / "items" / key[:2] / key
        folder.mkdir(parents=True)
        (folder / "part-0.bin").write_bytes(b"0" * 40)
        (folder / DONE).write_text('{"files": {"part-0.bin": {"size": 40}}, "seconds": 0.1}')


class Alone(run_items.Commits):
    """An item after the other: none waits while another does."""

    def put(self, *arguments) -> None:
        self._free.acquire()
        self._commit(*arguments)


def overhead(folder: Path, items: int, how: str) -> float:
    """Milliseconds of an item in which nothing is computed."""
    run, _ = made(folder, items)
    sync, commits = run_items._sync, jobs_worker.Commits
    if how == "no disk":
        run_items._sync = lambda _: None
    if how == "alone":
        jobs_worker.Commits = Alone
    try:
        started = time.perf_counter()
        jobs.submit(run, 1, "inline")
        return 1000 * (time.perf_counter() - started) / items
    finally:
        run_items._sync, jobs_worker.Commits = sync, commits


def memory_of(word: str) -> dict[int, float]:
    """Resident MB of each process whose command holds a word."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if word in command and "jobs_worker" in command:
                pages = int((path / "statm").read_text().split()[1])
                found[int(path.name)] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        except (OSError, ValueError, UnicodeDecodeError):
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--work", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=500, help="items of the overhead")
    parser.add_argument("--turns", type=int, default=3, help="of which the median is told")
    parser.add_argument("--folder", type=Path, help="on the file system that is of interest")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        run, seconds = made(Path(place) / "many", given.items)
        rows.append((f"plan {given.items:,} items", f"{seconds:.1f} s", "under 10 s"))
        finished(run)
        started = time.perf_counter()
        assert jobs.status(run).done == given.items
        seconds = time.perf_counter() - started
        rows.append((f"status of {given.items:,} finished", f"{seconds:.1f} s", "under 5 s"))

        found: dict[str, list[float]] = {"together": [], "alone": [], "no disk": []}
        for turn in range(given.turns):
            for how, spent in found.items():
                spent.append(overhead(Path(place) / f"few-{how[:2]}-{turn}", given.few, how))
        for how, name, wanted in (
            ("together", "overhead an item, all waits counted", "under 5 ms"),
            ("alone", "  where each item waits alone", ""),
            ("no disk", "  without any wait for the disk", ""),
        ):
            text = f"{statistics.median(found[how]):.2f} ms"
            rows.append((name, text, wanted or f"{min(found[how]):.2f} to {max(found[how]):.2f}"))

        run, _ = made(Path(place) / "work", given.work)
        series: dict[int, list[float]] = {}
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.1):
                for pid, megabytes in memory_of(str(run.folder)).items():
                    series.setdefault(pid, []).append(megabytes)

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        told = jobs.submit(run, 3, "local")
        spent = time.perf_counter() - started
        stop.set()
        watcher.join()
        assert isinstance(told, jobs.Status)
        assert told.done == given.work
        rows.append((f"{given.work:,} items, 3 workers", f"{spent:.0f} s", ""))
        # from a quarter of the way on, when everything is imported, to the last fifth,
        # when a worker reads the whole manifest to see whether the batch is finished
        grown = [
            one[-1 - len(one) // 5] - one[len(one) // 4]
            for one in series.values()
            if len(one) >= 12
        ]
        peak = max(max(one) for one in series.values())
        rows.append(("  memory of a worker", f"{peak:.0f} MB", ""))
        rows.append(("  its growth while it works", f"{max(grown):+.1f} MB", "flat"))
    for name, value, wanted in rows:
        print(f"{name:<36} {value:>10}   {wanted}")


if __name__ == "__main__":
    main()
