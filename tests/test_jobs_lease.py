"""A lease has one holder, whatever the clocks of the machines say."""

import os
import threading
import time

import pytest

from neurodiff import jobs_lease
from neurodiff.core.processes import began, is_alive, machine
from neurodiff.jobs_lease import Holder, acquire, held_leases, newest_lease, remove_leases

NAME = "shard-0-of-1"


def elsewhere(number=1, **more):
    return Holder(machine="0000beef", process=number, started=1, token=f"{number:016x}", **more)


def dead_here():
    """A holder of this machine whose process is gone."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return Holder(machine=machine(), process=pid, started=1, token="d" * 16)


def race(folder, contenders=8):
    barrier, won = threading.Barrier(contenders), []

    def contend(number):
        barrier.wait()
        lease = acquire(folder, NAME, holder=elsewhere(number), patience=0.3)
        if lease is not None:
            won.append(lease.start(0.02))

    threads = [threading.Thread(target=contend, args=(n,)) for n in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in won:
        lease.release()
    return len(won)


def test_of_many_one_gets_it(tmp_path):
    assert [race(tmp_path / str(k)) for k in range(5)] == [1] * 5


def test_without_exclusive_creation_several_would(tmp_path, monkeypatch):
    """The twin: look first, then write."""

    def look_then_write(path, holder):
        if path.exists():
            return False
        time.sleep(0.02)
        path.unlink(missing_ok=True)
        return create(path, holder)

    create = jobs_lease._create
    monkeypatch.setattr(jobs_lease, "_create", look_then_write)
    assert max(race(tmp_path / str(k)) for k in range(5)) > 1


def test_of_many_one_succeeds_a_dead_holder(tmp_path):
    for k in range(5):
        acquire(tmp_path / str(k), NAME, holder=dead_here())
        assert race(tmp_path / str(k)) == 1
        assert newest_lease(tmp_path / str(k), NAME).generation == 2


def taken_from_the_living(folder, skew):
    """Whether a holder of another machine that lives, and whose clock is off, loses its lease."""
    holder = acquire(folder, NAME, holder=elsewhere()).start(0.03)
    stop = threading.Event()

    def skewed():
        while not stop.wait(0.01):
            os.utime(holder.path, (time.time() + skew,) * 2)

    clock = threading.Thread(target=skewed)
    clock.start()
    time.sleep(0.05)
    try:
        return acquire(folder, NAME, holder=elsewhere(2), patience=0.4) is not None
    finally:
        stop.set()
        clock.join()
        holder.release()


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_clocks_do_not_matter(tmp_path, skew):
    assert not taken_from_the_living(tmp_path, skew)


def test_by_the_date_of_the_file_the_living_would_lose_theirs(tmp_path, monkeypatch):
    """The twin: a lease is stale when its file is older than the patience, by one's own clock."""

    def by_date(folder, name, seen, me, patience, now, wait):
        path = folder / f"{name}.{seen.generation}"
        return time.time() - path.stat().st_mtime > patience

    monkeypatch.setattr(jobs_lease, "_gone", by_date)
    found = []
    for k in range(3):
        found.append(taken_from_the_living(tmp_path / str(k), -86400.0))
    assert any(found)


def test_a_silent_holder_is_succeeded_after_the_patience_by_our_own_clock(tmp_path):
    first = acquire(tmp_path, NAME, holder=elsewhere())
    first.at("a" * 64)
    clock, waits = {"now": 0.0}, []

    def wait(seconds):
        clock["now"] += seconds
        waits.append(seconds)

    second = acquire(
        tmp_path, NAME, holder=elsewhere(2), patience=180.0, now=lambda: clock["now"], wait=wait
    )
    assert 180 <= sum(waits) <= 190
    assert second.generation == 2
    assert second.left_behind == "a" * 64
    assert not first.beat()
    assert first.lost
    first.release()  # an orphan that gives back what is not its own any more harms nobody
    assert second.beat()
    assert newest_lease(tmp_path, NAME).holder == elsewhere(2)


def test_a_beat_while_watched_keeps_the_lease(tmp_path):
    first, clock = acquire(tmp_path, NAME, holder=elsewhere()), {"now": 0.0}

    def wait(seconds):
        clock["now"] += seconds
        if clock["now"] > 100:
            first.beat()

    later = acquire(
        tmp_path, NAME, holder=elsewhere(2), patience=180.0, now=lambda: clock["now"], wait=wait
    )
    assert later is None


def test_no_patience_is_needed_where_the_holder_can_be_asked(tmp_path):
    def never(_):
        raise AssertionError("waited")

    mine = acquire(tmp_path / "a", NAME)
    assert acquire(tmp_path / "a", NAME, wait=never) is None  # its process, this one, runs
    mine.release()
    assert acquire(tmp_path / "a", NAME, wait=never).left_behind == ""
    acquire(tmp_path / "b", NAME, holder=dead_here())
    assert acquire(tmp_path / "b", NAME, wait=never).generation == 2
    acquire(tmp_path / "c", NAME, holder=elsewhere(job="7", restart=0))
    again = elsewhere(2, job="7", restart=1)
    assert acquire(tmp_path / "c", NAME, holder=again, wait=never).generation == 2


def test_a_listing_that_lags_behind_is_not_believed(tmp_path, monkeypatch):
    acquire(tmp_path, NAME, holder=dead_here())
    second = acquire(tmp_path, NAME)
    monkeypatch.setattr(os, "scandir", lambda *_: iter(()))
    monkeypatch.setattr(os, "listdir", lambda *_: [])
    assert acquire(tmp_path, NAME, holder=Holder.myself()) is None
    assert newest_lease(tmp_path, NAME).generation == second.generation


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 20, b"0" * 86 + b"\n[1]\n"])
def test_a_lease_cut_off_while_created_is_watched_and_succeeded(tmp_path, content):
    (tmp_path / f"{NAME}.1").write_bytes(content)
    assert acquire(tmp_path, NAME, patience=0.05).generation == 2


def test_leases_go_when_the_batch_is_finished(tmp_path):
    lease = acquire(tmp_path, NAME)
    assert list(held_leases(tmp_path)) == [NAME]
    remove_leases(tmp_path)
    assert not lease.beat()
    assert list(tmp_path.iterdir()) == []


def test_a_process_is_known_by_its_beginning():
    assert is_alive(os.getpid(), began(os.getpid()))
    assert not is_alive(os.getpid(), began(os.getpid()) + 1)  # the number was given again
    gone = dead_here()
    assert not is_alive(gone.process)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(pid)  # ended, and not yet waited for
    os.waitpid(pid, 0)
