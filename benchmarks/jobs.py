"""How much a batch costs beside its items: planning, status, overhead an item, memory.

    python benchmarks/jobs.py [--items 100000] [--work 10000] [--folder DIR]

Planned, and looked at when finished, are 100,000 items; done are 10,000 of two small files by three
workers. An item of nothing takes what three waits for the disk take (its file, ``done.json``, the
folder), which the table tells apart: they are the file system's, and protect against a power cut.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import neurodiff.jobs as jobs
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

        run, _ = made(Path(place) / "few", given.few)
        waits, sync = [0.0], run_items._sync

        def timed(path: Path) -> None:
            before = time.perf_counter()
            sync(path)
            waits[0] += time.perf_counter() - before

        run_items._sync = timed
        started = time.perf_counter()
        jobs.submit(run, 1, "inline")
        spent = 1000 * (time.perf_counter() - started) / given.few
        run_items._sync = sync
        disk = 1000 * waits[0] / given.few
        rows.append(("overhead an item", f"{spent - disk:.2f} ms", "under 5 ms"))
        rows.append(("  and three waits for the disk", f"{disk:.2f} ms", ""))

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
