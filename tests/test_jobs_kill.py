"""kill -9 at random moments of a local batch: what comes out is what would have come out anyway."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import neurodiff.jobs as jobs
from neurodiff.core.run import Item, Run
from neurodiff.jobs_manifest import read_manifest
from neurodiff.jobs_worker import work

ITEMS, WORKERS, KILLS = 60, 3, 50
SETTINGS = {"items": ITEMS, "seconds": 0.06, "files": 4, "values": 300}


def planned(folder):
    run = Run.create(folder, {"x": 1}, {}, command="test", seed=11)
    return run, jobs.plan(run, "rehearsal", settings=SETTINGS)


def start(manifest, k, n=WORKERS):
    """A worker as a process of its own, without the seconds that a fresh interpreter takes."""
    number = os.fork()
    if number:
        return number
    code = 99
    with contextlib.suppress(BaseException):
        code = work(read_manifest(manifest.folder, shard=(k, n)), k, n, patience=5.0).code
    os._exit(code)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(manifest):
    codes = [
        os.waitstatus_to_exitcode(os.waitpid(start(manifest, k), 0)[1]) for k in range(WORKERS)
    ]
    assert codes == [0] * WORKERS
    jobs.collect(manifest.run_folder)


def contents(run):
    """Every file of every item; of done.json all but the time it took."""
    found = {}
    for path in sorted((run.folder / "items").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "done.json":
                data = {k: v for k, v in json.loads(data).items() if k != "seconds"}
            found[path.relative_to(run.folder).as_posix()] = data
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run, manifest = planned(tmp_path_factory.mktemp("jobs") / "run")
    pids = [start(manifest, k) for k in range(WORKERS)]
    assert [ended(pid) for pid in pids] == [0] * WORKERS
    found = contents(run)
    assert len(found) == ITEMS * 5
    return found


def disturb(manifest, kills=KILLS):
    """Kill workers at random moments and start them again; how many kills hit a writer."""
    rng, alive, hit = random.Random(5), {}, 0
    for _ in range(kills):
        for k in range(WORKERS):
            if k not in alive:
                alive[k] = start(manifest, k)
        time.sleep(rng.uniform(0.01, 0.05))
        victim = rng.choice(list(alive))
        pid = alive.pop(victim)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        hit += bool(list(manifest.run_folder.glob(f"items/??/.tmp-*-{pid}-*")))
    for pid in alive.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return hit


def test_fifty_kills_change_nothing(tmp_path, undisturbed):
    run, manifest = planned(tmp_path / "run")
    hit = disturb(manifest)
    assert hit > 10
    finish(manifest)
    assert contents(run) == undisturbed
    assert not list(run.folder.rglob(".tmp-*"))
    assert not list(run.folder.glob("batch/*/leases/*"))
    assert jobs.status(run, verify="hash").done == ITEMS


def test_without_whole_writes_the_kills_would_be_seen(tmp_path, undisturbed, monkeypatch):
    """The twin: files are written in place, and an item counts as done once it has a file."""

    @contextlib.contextmanager
    def in_place(item, extra=None):
        item.folder.mkdir(parents=True, exist_ok=True)
        yield item.folder
        record = {**(extra or {}), **item.row(), "seed": item.seed, "seconds": 0.0, "files": {}}
        (item.folder / "done.json").write_text(json.dumps(record))

    monkeypatch.setattr(Item, "write_dir", in_place)
    monkeypatch.setattr(Item, "done", property(lambda item: item.folder.is_dir()))
    run, manifest = planned(tmp_path / "run")
    disturb(manifest, 12)
    for k in range(WORKERS):
        os.waitpid(start(manifest, k), 0)
    found = contents(run)
    parts = [name for name in undisturbed if not name.endswith("done.json")]
    assert sum(found.get(name) != undisturbed[name] for name in parts) > 3


def test_the_local_back_end_starts_dead_workers_again(tmp_path):
    """An item that kills its worker keeps no other waiting, and is left alone in the end."""
    run = Run.create(tmp_path / "run", {"x": 1}, {}, command="test", seed=1)
    settings = {"items": 8, "seconds": 0.0, "values": 10, "die": ["item-00001"]}
    jobs.plan(run, "rehearsal", settings=settings)
    told = jobs.submit(run, 1)
    assert (told.done, told.quarantined, told.finished) == (7, 1, True)
    assert list(told.errors) == ["its worker was ended by SIGKILL"]
    assert not list(run.folder.rglob(".tmp-*"))
    log = next(run.folder.glob("batch/*/logs/*.log")).read_text()
    assert "7 items done" not in log  # they were done before the last death, which came last
    assert jobs.retry(run) == 1
    assert jobs.status(run).pending == 1


BATCH = """
import sys
import neurodiff.jobs as jobs
print(jobs.submit(sys.argv[1], 3))
"""


def test_workers_leave_when_their_parent_is_killed(tmp_path, repository):
    run = Run.create(tmp_path / "run", {"x": 1}, {}, command="test", seed=1)
    jobs.plan(run, "rehearsal", settings={"items": 300, "seconds": 0.05, "values": 10})
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    parent = subprocess.Popen([sys.executable, "-c", BATCH, str(run.folder)], env=environment)
    end = time.monotonic() + 60
    while jobs.status(run).done < 6:
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while jobs.status(run).workers:  # each gives its lease back after the item in progress
        assert time.monotonic() < end
        time.sleep(0.05)
    count = jobs.status(run).done
    time.sleep(0.3)
    assert jobs.status(run).done == count < 300
