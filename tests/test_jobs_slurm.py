"""A real Slurm, started here: what is preempted, killed or lost is done all the same, once each.

Each test of the worker's rule about signals or kills looks at the items alone, since Slurm's word
on a job is not the truth about its work. Skipped with a message where Slurm cannot be started.
"""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

import neurodiff.jobs as jobs
from neurodiff.core.run import Run
from neurodiff.jobs_manifest import read_manifest
from neurodiff.jobs_site import Site
from neurodiff.jobs_slurm import ShardCall, cancel, submit_calls


def _load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


slurm = _load("slurm_cluster")
slow = pytest.mark.skipif(
    not os.environ.get("NEURODIFF_TEST_SLOW"), reason="a minute each: make test-slow"
)


@pytest.fixture(scope="module")
def cluster():
    if reason := slurm.why_not():
        pytest.skip(f"no Slurm for this test: {reason}")
    started = slurm.Cluster()
    try:
        yield started.start()
    finally:
        started.stop()


@pytest.fixture
def batch(cluster, tmp_path, monkeypatch, repository):
    """A function that makes a run with a batch; Slurm's commands are on the path."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = Run.create(tmp_path / "run", {"x": 1}, {}, command="test", seed=7)

    def make(items, seconds):
        settings = {"items": items, "seconds": seconds, "files": 2, "values": 50}
        jobs.plan(run, "rehearsal", settings=settings)
        return run

    yield make
    cluster.cancel_all()


def site(partition, gres=None):
    return Site(partition=partition, gres=gres, minutes=15)


def until(reached, seconds, tell):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, tell()
        time.sleep(0.1)


def finish(run, seconds=60):
    until(lambda: jobs.status(run).finished, seconds, lambda: str(jobs.status(run, scheduler=True)))
    complete(run)


def complete(run):
    """Every item is there, once, whole, and with the noise of its own seed."""
    found = jobs.status(run, verify="hash")
    assert (found.done, found.items) == (found.items, len(set(keys(run))))
    on_disk = sorted(path.parent.name for path in run.folder.glob("items/??/*/done.json"))
    assert on_disk == sorted(keys(run))
    assert not list(run.folder.glob("items/??/.tmp-*"))


def keys(run):
    [folder] = (run.folder / "batch").iterdir()
    return read_manifest(folder).keys


def done(run):
    return jobs.status(run).done


def job_of(run):
    [folder] = (run.folder / "batch").iterdir()
    from neurodiff.jobs_ledger import submissions_of

    return submissions_of(folder)[-1]["jobs"][0].partition("_")[0]


def preempt(cluster):
    """A job of a better partition takes the whole node for a moment."""
    number = cluster.submit("sleep 1", "--partition=high", "--cpus-per-task=4")
    cluster.wait(number, {"COMPLETED"}, 40)


def test_an_array_of_one_gpu_tasks_on_two_gpus(cluster, batch):
    run = batch(24, 0.05)
    told = jobs.submit(run, 4, "slurm", site("low", "gpu:1"))
    assert told.items == 24
    finish(run)
    gpus = {run.item("rehearsal", "rehearsal", f"item-{k:05d}", 0, s).record["gpu"]
            for k in range(24) for s in [settings_of(run)]}  # fmt: skip
    assert gpus <= {"0", "1"}
    assert gpus
    cluster.wait(job_of(run), {"COMPLETED"})
    assert jobs.status(run, scheduler=True).scheduler == {"COMPLETED": 4}
    assert not list(run.folder.glob("batch/*/leases/*"))


def settings_of(run):
    [folder] = (run.folder / "batch").iterdir()
    return read_manifest(folder).rows[0].settings


@pytest.mark.parametrize("partition", ["low", "lowgrace"])
def test_preemption_loses_nothing(cluster, batch, partition):
    """GraceTime 0 and 5: the worker asks to be started again, or Slurm is faster."""
    run = batch(40, 0.25)
    jobs.submit(run, 2, "slurm", site(partition))
    until(lambda: done(run) >= 4, 30, lambda: str(jobs.status(run, scheduler=True)))
    preempt(cluster)
    before = done(run)
    assert before < 40
    finish(run)
    assert any(int(job["Restarts"]) >= 1 for job in cluster.jobs(job_of(run)))


def test_a_printed_script_survives_preemption_as_well(cluster, batch, tmp_path):
    run = batch(40, 0.25)
    path = tmp_path / "array.sh"
    path.write_text(jobs.submit(run, 2, "script", site("lowgrace")))
    number = cluster.ask("sbatch", "--parsable", str(path)).strip()
    until(lambda: done(run) >= 4, 30, lambda: str(cluster.states(number)))
    preempt(cluster)
    assert done(run) < 40
    finish(run)
    assert any(int(job["Restarts"]) >= 1 for job in cluster.jobs(number))


def test_the_signal_before_the_time_limit_starts_the_job_again(cluster, batch):
    run = batch(40, 0.25)
    jobs.submit(run, 2, "slurm", site("low"))
    until(lambda: done(run) >= 4, 30, lambda: str(jobs.status(run, scheduler=True)))
    cluster.ask("scancel", "--signal=USR2", job_of(run))
    finish(run)
    assert all(int(job["Restarts"]) >= 1 for job in cluster.jobs(job_of(run)))


class WithoutRequeue:
    """The worker as it would be without asking Slurm to start it again."""

    def __init__(self, call):
        self.call = call

    def __call__(self):
        import neurodiff.jobs_worker

        neurodiff.jobs_worker.requeue = lambda *_: False
        return self.call()


def test_without_the_request_a_grace_time_loses_the_shard(cluster, batch):
    """The twin: leaving is not enough, since Slurm takes the job for failed."""
    run = batch(40, 0.25)
    [folder] = (run.folder / "batch").iterdir()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    calls = [WithoutRequeue(ShardCall(folder=str(folder), k=k, n=2)) for k in range(2)]
    number = submit_calls(calls, folder / "slurm", "twin", site("lowgrace"))[0].partition("_")[0]
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    until(lambda: done(run) >= 4, 30, lambda: str(cluster.states(number)))
    preempt(cluster)
    cluster.wait(number, {"FAILED"}, 30)
    assert done(run) < 40


def test_a_killed_worker_is_resumed(cluster, batch):
    run = batch(30, 0.15)
    jobs.submit(run, 2, "slurm", site("low"))
    until(lambda: done(run) >= 4, 30, lambda: str(jobs.status(run, scheduler=True)))
    workers = cluster.processes("submitit.core._submit")
    victims = [n for n in workers if Path(f"/proc/{n}/comm").read_text().startswith("python")]
    os.kill(victims[0], signal.SIGKILL)
    number = job_of(run)
    cluster.wait(number, {"COMPLETED", "FAILED"}, 40)
    assert "FAILED" in cluster.states(number)
    assert done(run) < 30
    jobs.resume(run, 3, "slurm", site=site("low"))  # another number of shards
    finish(run)


def test_a_killed_node_daemon_loses_nothing(cluster, batch):
    run = batch(30, 0.15)
    jobs.submit(run, 2, "slurm", site("low"))
    until(lambda: done(run) >= 4, 30, lambda: str(jobs.status(run, scheduler=True)))
    cluster.kill("slurmd")
    time.sleep(1)
    cluster.start_node()
    finish(run)


def test_cancel_stops_an_array_and_keeps_what_is_done(cluster, batch):
    run = batch(60, 0.25)
    jobs.submit(run, 2, "slurm", site("low"))
    until(lambda: done(run) >= 2, 30, lambda: str(jobs.status(run, scheduler=True)))
    [folder] = (run.folder / "batch").iterdir()
    assert cancel(folder) == [job_of(run)]
    cluster.wait(job_of(run), {"CANCELLED", "FAILED"}, 30)
    time.sleep(8)  # longer than a job waits that is started again
    assert 2 <= done(run) < 60
    assert set(cluster.states(job_of(run))) <= {"CANCELLED", "FAILED"}


@slow
@pytest.mark.slow
def test_a_killed_controller_loses_nothing(cluster, batch):
    run = batch(120, 0.2)
    jobs.submit(run, 2, "slurm", site("low"))
    until(lambda: done(run) >= 4, 30, lambda: str(jobs.status(run, scheduler=True)))
    time.sleep(6)  # by then it has saved its state: else it would take the tasks for strangers'
    cluster.kill("slurmctld")
    time.sleep(1)
    cluster.start_controller()
    finish(run, 90)


@slow
@pytest.mark.slow
def test_a_lost_node_loses_nothing(cluster, batch):
    """slurmd, its steps and the workers die; when the node is back the array goes on."""
    run = batch(60, 0.3)
    jobs.submit(run, 2, "slurm", site("low"))
    until(lambda: done(run) >= 4, 30, lambda: str(jobs.status(run, scheduler=True)))
    cluster.kill("slurmd")
    for word in ("slurmstepd", "submitit.core._submit"):
        for number in cluster.processes(word):
            os.kill(number, signal.SIGKILL)
    before = done(run)
    until(lambda: "down" in cluster.ask("sinfo", "-h", "-o", "%T"), 90, lambda: "never down")
    assert done(run) == before
    cluster.start_node()
    finish(run, 120)
