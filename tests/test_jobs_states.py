"""A state machine over the ledger: whatever happens in whatever order, nothing is lost.

Workers of made-up machines are preempted, killed at any write, left behind as orphans, and come
back with other numbers of shards; listings of folders lag behind, and the dates of files are those
of other clocks. What is done stays done and right, and a last `resume` finishes the rest.
"""

import contextlib
import functools
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import neurodiff.jobs as jobs
from neurodiff.core import run_items
from neurodiff.core.run import Item, Run
from neurodiff.jobs_lease import Holder
from neurodiff.jobs_manifest import read_manifest
from neurodiff.jobs_tasks import Rehearsal
from neurodiff.jobs_worker import QUARANTINE, Stop, work

ITEMS = 5
SHARDS = st.integers(1, 3)


class Killed(BaseException):
    """The process is gone: nothing that would be tidied up is."""


class After(Stop):
    def __init__(self, n):
        super().__init__()
        self.left = n

    def __bool__(self):
        self.left -= 1
        return self.left < 0


class Batch(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda _: None)  # a kill is no power cut
        self.place = tempfile.TemporaryDirectory()
        self.run = Run.create(Path(self.place.name) / "run", {}, {}, command="test", seed=3)
        sizes = {"items": ITEMS, "seconds": 0.0, "files": 2, "values": 3}
        self.manifest = jobs.plan(self.run, "rehearsal", settings=sizes)
        self.done, self.machines, self.failing = set(), 0, set()
        self.patch.setattr(Rehearsal, "do", self.do(Rehearsal.do))
        self.inside = None

    def do(self, real):
        def wrapped(task, state, item, folder, extra):
            if item.key in self.failing:
                raise ValueError("asked to fail")
            found = real(task, state, item, folder, extra)
            if self.inside is not None:
                inside, self.inside = self.inside, None
                inside()
            return found

        return wrapped

    def worker(self, k, n, stop=None, listing=True):
        """A worker of a machine of its own, which nobody can ask whether it lives."""
        self.machines += 1
        who = Holder(machine=f"{self.machines:08d}", process=1, started=1, token="x" * 16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Holder, "myself", lambda: who)
            patch.setattr(run_items, "machine", lambda: who.machine)
            if not listing:
                patch.setattr(Path, "glob", lambda *_: iter(()))
            part = read_manifest(self.manifest.folder, shard=(k % n, n))
            return work(part, k % n, n, stop=stop, beat=60.0, patience=0.002)

    @rule(k=SHARDS, n=SHARDS, listing=st.booleans())
    def finish_a_shard(self, k, n, listing):
        assert self.worker(k, n, listing=listing).why == "finished"

    @rule(k=SHARDS, n=SHARDS, after=st.integers(0, 3))
    def preempt(self, k, n, after):
        self.worker(k, n, stop=After(after))

    @rule(k=SHARDS, n=SHARDS, at=st.integers(0, 11), listing=st.booleans())
    def kill(self, k, n, at, listing):
        """At the at-th change of the file system that a worker makes for its items."""
        left = [at]

        def deadly(real):
            def wrapped(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*arguments, **options)

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            for name in ("rename", "replace", "mkdir"):
                patch.setattr(os, name, deadly(getattr(os, name)))
            patch.setattr(run_items, "_sync", deadly(run_items._sync))
            patch.setattr(run_items.shutil, "rmtree", lambda *_, **__: None)
            patch.setattr("neurodiff.jobs_lease.Lease.release", lambda lease: lease._ended.set())
            with contextlib.suppress(Killed):
                self.worker(k, n, listing=listing)

    @rule(k=SHARDS, n=SHARDS, other=SHARDS)
    def orphan(self, k, n, other):
        """While a worker is at an item, others take it for dead and do everything."""
        self.inside = lambda: [self.worker(j, other) for j in range(other)]
        self.worker(k, n)
        self.inside = None

    @rule(place=st.integers(0, ITEMS - 1))
    def an_item_fails_for_a_while(self, place):
        self.failing ^= {self.manifest.keys[place]}

    @rule()
    def retry(self):
        jobs.retry(self.run)
        assert jobs.status(self.run).quarantined == 0

    @rule(seed=st.integers(0, 99))
    def other_clocks(self, seed):
        rng = random.Random(seed)
        for path in self.run.folder.rglob("*"):
            if ".tmp-" not in str(path):
                os.utime(path, (rng.uniform(1e9, 3e9),) * 2)

    @rule()
    def look(self):
        told = jobs.status(self.run)
        assert told.done + told.failed + told.quarantined + told.pending == ITEMS

    @invariant()
    def what_is_done_stays_and_is_right(self):
        states = self.run.states(self.manifest.keys, verify="hash")
        plain = self.run.states(self.manifest.keys)
        done = {key for key, s in zip(self.manifest.keys, states, strict=True) if s == "done"}
        assert done == {k for k, s in zip(self.manifest.keys, plain, strict=True) if s == "done"}
        assert self.done <= done
        self.done = done
        for row in self.manifest.rows:
            item = self.manifest.item(self.run, row)
            if row.key in done:
                assert item.record["noise"] == expected()[row.stimulus]
            elif item.failure:
                assert item.failure["attempts"] <= QUARANTINE

    def teardown(self):
        try:
            self.failing = set()
            jobs.retry(self.run)
            for k in range(2):
                self.worker(k, 2)
            self.run.remove_dead_writers(others_older_than_s=-1.0)
            jobs.collect(self.run)
            self.what_is_done_stays_and_is_right()
            assert len(self.done) == ITEMS
            assert not list(self.run.folder.glob("batch/*/leases/*"))
            assert not list((self.run.folder / "items").rglob(".tmp-*"))
        finally:
            self.patch.undo()
            self.place.cleanup()


@functools.cache
def expected():
    with tempfile.TemporaryDirectory() as place:
        run = Run.create(Path(place) / "run", {}, {}, command="test", seed=3)
        sizes = {"items": ITEMS, "seconds": 0.0, "files": 2, "values": 3}
        manifest = jobs.plan(run, "rehearsal", settings=sizes)
        jobs.submit(run, 1, "inline")
        return {r.stimulus: manifest.item(run, r).record["noise"] for r in manifest.rows}


HOW = settings(
    max_examples=25,
    stateful_step_count=10,
    phases=[Phase.generate],  # the twins are to fail, and need no smallest example
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_nothing_is_lost_whatever_happens():
    run_state_machine_as_test(Batch, settings=HOW)


def test_the_machine_finds_writes_that_are_not_whole(monkeypatch):
    """The twin: ``done.json`` comes first, and the files after it."""

    def first(item, temporary, names, before):
        item.folder.mkdir(parents=True, exist_ok=True)
        for name in ("done.json", *names):
            os.replace(temporary / name, item.path(name))

    monkeypatch.setattr(Item, "_move_in", first)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Batch, settings=HOW)


def test_the_machine_finds_a_ledger_that_forgets(monkeypatch):
    """The twin: a failure of one attempt removes what another has done."""
    fail = Item.fail

    def forgetful(item, *arguments, **options):
        (item.folder / "done.json").unlink(missing_ok=True)
        fail(item, *arguments, **options)

    monkeypatch.setattr(Item, "fail", forgetful)
    monkeypatch.setattr(Item, "done", property(lambda item: False))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Batch, settings=HOW)
