"""Power cuts, workers of other machines, and 2,000 items: what is done is whole and stays."""

import contextlib
import gc
import json
import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

import neurodiff.jobs as jobs
from neurodiff.core import run_items
from neurodiff.core.atomic import OPEN, atomic_write, remove_leftovers_of_the_dead, temporary_name
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.processes import machine
from neurodiff.core.run import Run
from neurodiff.core.run_items import Commits
from neurodiff.jobs_lease import PACKING, Holder, acquire, live_leases
from neurodiff.jobs_manifest import read_manifest
from neurodiff.jobs_pack import packed_keys, unpack
from neurodiff.jobs_tasks import Rehearsal
from neurodiff.jobs_worker import work


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {"x": 1}, {}, command="test", seed=3)


def planned(run, **settings):
    return jobs.plan(run, "rehearsal", settings={"items": 6, "seconds": 0.0, **settings})


# ------------------------------------------------------------------------------------ power cuts


class Disk:
    """What a disk is sure to hold: of a file its content when it was synced last, and each item
    under its own name with what its files held when it took it."""

    def __init__(self, monkeypatch):
        self.synced, self.named, self.lock = {}, {}, threading.Lock()
        self.rename, self.fsync = os.rename, os.fsync
        monkeypatch.setattr(os, "fsync", self.sync)
        monkeypatch.setattr(os, "rename", self.take_name)

    def sync(self, descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_file():
            with self.lock:
                self.synced[path] = path.read_bytes()

    def take_name(self, source, target):
        with self.lock:
            held = {p: self.synced.get(p) for p in Path(source).rglob("*") if p.is_file()}
            self.named[Path(target)] = {
                p.relative_to(source).as_posix(): c for p, c in held.items()
            }
        self.rename(source, target)

    def after_a_power_cut(self):
        """Items that a ledger would take for done, and those of them that are not whole."""
        done = {f: files for f, files in self.named.items() if files.get("done.json")}
        broken = []
        for folder, files in done.items():
            stated = json.loads(files["done.json"])["files"]
            if any(len(files.get(name) or b"") != one["size"] for name, one in stated.items()):
                broken.append(folder)
        return len(done), len(broken)


def test_no_partial_item_is_done_after_a_power_cut(run, monkeypatch):
    """At every moment: an item takes its name only when all of its content is on the disk."""
    manifest = planned(run, items=40, files=2, values=5)
    disk = Disk(monkeypatch)
    assert work(manifest, 0, 1).done == 40
    assert disk.after_a_power_cut() == (40, 0)


def test_without_syncing_files_a_power_cut_would_show(run, monkeypatch):
    """The twin: ``done.json`` is synced, and the others are left to the system."""
    manifest = planned(run, items=6, files=2, values=5)
    disk, sync = Disk(monkeypatch), run_items._sync
    monkeypatch.setattr(
        run_items, "_sync", lambda path: sync(path) if path.name == "done.json" else None
    )
    assert work(manifest, 0, 1).done == 6
    assert disk.after_a_power_cut() == (6, 6)


def test_what_a_worker_calls_done_has_its_name_on_the_disk(run, monkeypatch):
    manifest = planned(run, items=20, files=1, values=5)
    seen, sync, ended = {}, run_items._sync, []

    def noted(path):
        if path.parent.name == "items":  # the folder that holds the item's name
            seen.setdefault(path, []).append(len(ended))
        sync(path)

    monkeypatch.setattr(run_items, "_sync", noted)
    assert work(manifest, 0, 1).done == 20
    assert sum(map(len, seen.values())) == 20


def test_items_wait_for_the_disk_together(run, monkeypatch):
    """Not one after the other, which took most of the time of a small item."""
    both = threading.Barrier(2)
    monkeypatch.setattr(run_items, "_sync", lambda path: both.wait(20))
    assert work(planned(run, items=2, files=1, values=5), 0, 1).done == 2


def test_an_item_that_cannot_take_its_place_is_a_failure_and_a_full_disk_is_not(run, monkeypatch):
    manifest, sync, number = planned(run), run_items._sync, [5]  # EIO
    bad = manifest.item(run, manifest.rows[2]).seed

    def broken(path):
        if path.name == "done.json" and json.loads(path.read_text())["seed"] == bad:
            raise OSError(number[0], os.strerror(number[0]), str(path))
        sync(path)

    monkeypatch.setattr(run_items, "_sync", broken)
    outcome = work(manifest, 0, 1)
    assert (outcome.done, outcome.failed, outcome.why) == (5, 1, "finished")
    assert "Input/output error" in manifest.item(run, manifest.rows[2]).failure["error"]
    assert jobs.status(run).failed == 1
    number[0] = 28  # ENOSPC
    assert jobs.retry(run) == 1
    with pytest.raises(DataError, match="disk full"):
        work(manifest, 0, 1)
    assert jobs.status(run).pending == 1
    assert not list(run.folder.rglob(".tmp-*"))
    assert not OPEN


def test_a_stopped_worker_leaves_after_what_is_on_its_way(run, monkeypatch):
    sync = run_items._sync
    monkeypatch.setattr(run_items, "_sync", lambda path: (time.sleep(0.01), sync(path)))
    with pytest.raises(KeyboardInterrupt), Commits() as commits:  # noqa: PT012
        for row in planned(run).rows:
            item = run.item("rehearsal", row.subject, row.stimulus, row.sample, row.settings)
            with item.write_dir(commits=commits) as folder:
                (folder / "a").write_text("a")
        raise KeyboardInterrupt
    assert jobs.status(run, verify="hash").done == 6


def test_an_answer_of_a_file_server_that_was_lost(run, monkeypatch):
    """NFS asks again, and hears that there is nothing to rename: it was done the first time."""
    rename = os.rename

    def twice(source, target):
        rename(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", twice)
    manifest = planned(run)
    outcome = work(manifest, 0, 1)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert jobs.status(run, verify="hash").done == 6


def test_a_writer_whose_folder_was_removed_is_told(run, monkeypatch):
    """The twin of the case above: nothing took the item's place."""
    monkeypatch.setattr(os, "rename", lambda source, target: os.stat("/nowhere/at/all"))
    outcome = work(planned(run), 0, 1)
    assert (outcome.done, outcome.failed) == (0, 6)


# ------------------------------------------------------------------------------ other machines


def test_temporary_names_tell_machine_process_and_start(tmp_path, monkeypatch):
    """A worker removes what its own machine's dead left, and of others only what is old."""
    target, hour = tmp_path / "x.npy", 3600
    with atomic_write(target) as file:
        file.write(b"x")
        os.utime(next(tmp_path.glob(".tmp-*")), (0, 0))
        assert remove_leftovers_of_the_dead(tmp_path) == 0  # ours: it runs, however old
        monkeypatch.setattr("neurodiff.core.atomic.machine", lambda: "0000beef")
        os.utime(next(tmp_path.glob(".tmp-*")))
        assert remove_leftovers_of_the_dead(tmp_path) == 0  # seen from elsewhere: perhaps it runs
    monkeypatch.undo()
    here = [
        f".tmp-{machine()}.{pid}.{start}-ab-x" for pid, start in ((2**22 + 5, 1), (os.getpid(), 1))
    ]
    there = [".tmp-0000beef.1.1-ab-young", ".tmp-0000beef.1.1-ab-old", ".tmp-1-ab-of-no-machine"]
    for name in (*here, *there):
        (tmp_path / name).touch()
    os.utime(tmp_path / there[1], (time.time() - hour - 60,) * 2)
    # ours at once, and also where the number of the dead was given to a living process
    assert remove_leftovers_of_the_dead(tmp_path) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"x.npy", there[0], there[2]}


def test_a_heartbeat_dates_what_atomic_writes_have_open(tmp_path):
    with atomic_write(tmp_path / "x") as file:
        file.write(b"x")
        [path] = tmp_path.glob(".tmp-*")
        os.utime(path, (0, 0))
        run_items.touch_open_folders()
        assert time.time() - path.stat().st_mtime < 60
    assert not OPEN


def test_long_names_still_fit(tmp_path):
    for name in ("x" * 251 + ".npy", "é" * 120 + ".csv"):
        with atomic_write(tmp_path / name) as file:
            file.write(b"x")
        assert temporary_name(tmp_path / name).suffix == Path(name).suffix
    assert len(list(tmp_path.iterdir())) == 2


def elsewhere(number=1):
    return Holder(machine="0000beef", process=number, started=1, token=f"{number:016x}")


def test_packing_waits_for_nobody_and_takes_nothing_from_a_worker(run):
    """Beside a live worker it is refused; what is packed is not made again by one who begins."""
    manifest = planned(run, fail=["item-00005"])  # so that the batch is not finished
    leases = manifest.folder / "leases"
    assert work(manifest, 0, 2).done == 5
    with acquire(leases, "shard-1-of-2"), pytest.raises(UsageError, match=r"1 at work .shard-1-of"):
        jobs.collect(run, pack=True)
    other = acquire(leases, "shard-1-of-2", holder=elsewhere())  # another machine's
    with other.start(0.02), pytest.raises(UsageError, match="shard-1-of-2"):
        jobs.collect(run, pack=True, patience=5.0)
    assert packed_keys(manifest.folder) == set()
    assert acquire(leases, "shard-1-of-2", holder=elsewhere(2))  # its machine went away
    assert live_leases(leases, patience=0.2) == []
    jobs.collect(run, pack=True, patience=0.2)
    assert len(packed_keys(manifest.folder)) == 5


def test_a_worker_that_begins_while_items_are_packed_makes_none_twice(run, monkeypatch):
    manifest = planned(run)
    assert work(manifest, 0, 1).done == 6
    told, real = [], jobs.pack_shard

    def beside(*arguments):
        found = real(*arguments)
        told.append(work(manifest, 0, 1, patience=0.2).why)
        return found

    monkeypatch.setattr(jobs, "pack_shard", beside)
    jobs.collect(run, pack=True)
    assert told == ["held"]
    assert not list(run.folder.glob("items/??/*"))


def test_a_packer_that_died_elsewhere_stops_nobody(run):
    manifest = planned(run)
    assert acquire(manifest.folder / "leases", PACKING, holder=elsewhere())
    assert work(manifest, 0, 1, patience=0.2).done == 6


@pytest.mark.parametrize("safe", [True, False])
def test_items_come_back_whole_beside_a_worker(run, monkeypatch, safe):
    """A worker that makes an item which is just brought back, and differs in its last digits.

    The twin brings files back one by one into the item's own folder, and leaves a mixture.
    """
    manifest = planned(run, items=1, files=2, values=5)
    item = manifest.item(run, manifest.rows[0])
    assert work(manifest, 0, 1).done == 1
    jobs.collect(run, pack=True)
    [pack] = (manifest.folder / "packs").iterdir()

    @contextlib.contextmanager
    def beside(folder):
        if not safe:
            folder.mkdir(parents=True)
            yield folder
            return
        with run_items.folder_beside(folder) as place:
            yield place

    def moved(place, folder, names, before):
        with contextlib.suppress(OSError), item.write_dir() as other:
            for name in names:
                (other / name).write_text("of another machine")
        if safe:
            run_items.move_in(place, folder, names, before)
        else:
            (folder / names[0]).write_text("from the pack, and killed here")

    monkeypatch.setattr("neurodiff.jobs_pack.folder_beside", beside)
    monkeypatch.setattr("neurodiff.jobs_pack.move_in", moved)
    unpack(run, pack)
    assert item.is_done("hash") == safe
    assert run.states([item.key]) == ["done"]


# -------------------------------------------------------------------------------------- memory


def growth(run, monkeypatch, items):
    """Bytes that a worker holds more at its last item than at a fifth of the way."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    manifest, held, do = planned(run, items=items, files=1, values=5), {}, Rehearsal.do
    count = [0]

    def counted(task, state, item, folder, extra):
        count[0] += 1
        if count[0] in (items // 5, items):
            gc.collect()
            held[count[0]] = tracemalloc.get_traced_memory()[0]
        return do(task, state, item, folder, extra)

    monkeypatch.setattr(Rehearsal, "do", counted)
    part = read_manifest(manifest.folder, shard=(0, 1))
    tracemalloc.start()
    try:
        assert work(part, 0, 1).done == items
    finally:
        tracemalloc.stop()
    return held[items] - held[items // 5]


FLAT = 40  # bytes an item: less than the smallest object that could be kept of it


def test_the_memory_of_a_worker_does_not_grow_with_its_items(run, monkeypatch):
    assert growth(run, monkeypatch, 2000) < FLAT * 1600


def test_one_number_kept_of_each_item_would_show(run, monkeypatch):
    """The twin: every item leaves its key behind."""
    kept, real = [], Commits.put

    def leaky(commits, item, *arguments):
        kept.append(f"{item.key} {len(kept)}")
        real(commits, item, *arguments)

    monkeypatch.setattr(Commits, "put", leaky)
    assert growth(run, monkeypatch, 1000) > FLAT * 800
