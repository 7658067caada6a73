"""Batches: what is planned, done once, told, mended and packed, on one machine."""

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import neurodiff.jobs as jobs
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.safe_io import write_json
from neurodiff.jobs_backends import script_text
from neurodiff.jobs_container import apptainer_definition
from neurodiff.jobs_filesystem import check_filesystem
from neurodiff.jobs_manifest import MANIFEST, find_batch, read_manifest
from neurodiff.jobs_pack import packed_keys, unpack
from neurodiff.jobs_site import Site, read_site, staged, staging
from neurodiff.jobs_slurm import _tasks, slurm_parameters
from neurodiff.jobs_tasks import TASKS, Rehearsal, task_of
from neurodiff.jobs_worker import DEATHS, QUARANTINE, Stop, requeue, work

QUICK = {"items": 12, "seconds": 0.0, "files": 2, "values": 20}


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {"x": 1}, {}, command="test", seed=7)


def planned(run, **more):
    return jobs.plan(run, "rehearsal", settings={**QUICK, **more})


def inline(run, shards=1, **more):
    return jobs.submit(run, shards, "inline", **more)


def noises(run, manifest):
    return {row.key: manifest.item(run, row).record["noise"] for row in manifest.rows}


# --------------------------------------------------------------------------------- planning


def test_the_same_plan_is_the_same_batch_and_another_is_another(run):
    first = planned(run)
    assert planned(run).folder == first.folder
    assert planned(run, items=13).folder != first.folder
    assert read_manifest(first.folder).keys == first.keys
    assert len(run.items_table()) == 13
    assert run.status()["pending"] == 13


def test_shards_are_every_nth_item_and_together_all(run):
    manifest = planned(run)
    for n in (1, 3, 5, 12, 40):
        parts = [[r.key for r in manifest.shard(k, n)] for k in range(n)]
        assert sorted(itertools.chain(*parts)) == sorted(manifest.keys)
        for k in range(n):
            of_file = read_manifest(manifest.folder, shard=(k, n))
            assert of_file.keys == parts[k] == manifest.keys[k::n]
    with pytest.raises(UsageError, match="shard 3 of 3"):
        manifest.shard(3, 3)


def test_only_what_is_asked_for(run):
    made = jobs.plan(
        run, "rehearsal", stimuli=["item-00003", "item-00005"], samples=2, settings=QUICK
    )
    assert [(r.stimulus, r.sample) for r in made.rows] == [
        ("item-00003", 0), ("item-00003", 1), ("item-00005", 0), ("item-00005", 1),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no subject 'nobody' to do; there are rehearsal"):
        jobs.plan(run, "rehearsal", subjects=["nobody"], settings=QUICK)
    with pytest.raises(UsageError, match=r"no task 'recontruct'.*Did you mean 'reconstruct'"):
        jobs.plan(run, "recontruct")
    with pytest.raises(UsageError, match=r"no setting item; .*Did you mean 'items'"):
        jobs.plan(run, "rehearsal", settings={"item": 3})
    with pytest.raises(UsageError, match="samples is 0"):
        jobs.plan(run, "rehearsal", samples=0)


def test_a_batch_is_found_by_the_beginning_of_its_name(run):
    with pytest.raises(MissingDataError, match="has no batch"):
        jobs.status(run)
    one, two = planned(run), planned(run, items=2)
    with pytest.raises(UsageError, match="has several batches"):
        find_batch(run)
    assert find_batch(run, two.name[:-2]) == two.folder
    with pytest.raises(UsageError, match="has no batch 'evaluate'"):
        jobs.status(run, batch="evaluate")
    assert {one.folder, two.folder} == {Path(run.folder / "batch" / s.batch)
                                        for s in jobs.statuses(run)}  # fmt: skip


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: "{",
        lambda text: "[]\n",
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text[: len(text) // 2],
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text.replace('["', '["../../', 1),
        lambda text: text.replace("{}]", "3]", 1),
        lambda text: text.replace('"rehearsal"', "null", 1).replace("task", "tusk"),
        lambda text: "\x00" + text,
        lambda text: "[" * 100_000,
    ],
)
def test_a_broken_manifest_is_told(run, spoil):
    path = planned(run).folder / MANIFEST
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match="manifest"):
        inline(run)


def test_a_manifest_cannot_choose_what_is_imported(run):
    path = planned(run).folder / MANIFEST
    path.write_text(path.read_text().replace('"task": "rehearsal"', '"task": "os:system"'))
    with pytest.raises(UsageError, match="there is no task 'os:system'"):
        inline(run)
    assert all(module.startswith("neurodiff.") for module in TASKS.values())


def test_a_row_that_names_another_item_is_refused(run):
    path = planned(run).folder / MANIFEST
    path.write_text(path.read_text().replace("item-00004", "item-99999"))
    with pytest.raises(DataError, match="whose key is"):
        inline(run)


# ---------------------------------------------------------------------------------- working


def test_items_are_done_once_whatever_the_shards(run, tmp_path):
    manifest = planned(run)
    assert (inline(run).done, jobs.status(run).finished) == (12, True)
    expected = noises(run, manifest)
    before = {p: p.stat().st_mtime_ns for p in run.folder.glob("items/??/*/*")}
    inline(run, 5)
    assert before == {p: p.stat().st_mtime_ns for p in run.folder.glob("items/??/*/*")}
    for shards in (2, 7):
        other = Run.create(tmp_path / f"run{shards}", {"x": 1}, {}, command="test", seed=7)
        assert planned(other).keys == manifest.keys
        inline(other, shards)
        assert noises(other, manifest) == expected
    another = Run.create(tmp_path / "seed", {"x": 1}, {}, command="test", seed=8)
    planned(another)
    inline(another)
    assert set(noises(another, manifest).values()).isdisjoint(expected.values())


def test_failures_are_counted_then_left_alone_then_tried_again(run):
    manifest = planned(run, fail=["item-00002"])
    for attempt in range(1, QUARANTINE + 1):
        told = inline(run)
        assert told.done == 11
        assert (told.failed, told.quarantined) == ((1, 0), (0, 1))[attempt == QUARANTINE]
    assert told.finished
    assert told.errors == {"the item of item-00002 was asked to fail": 1}
    [row] = [row for row in manifest.rows if row.stimulus == "item-00002"]
    item = manifest.item(run, row)
    assert item.failure["attempts"] == QUARANTINE
    before = item.failure
    inline(run)
    assert item.failure == before
    assert jobs.retry(run) == 1
    assert (jobs.status(run).pending, jobs.retry(run)) == (1, 0)
    inline(run)
    assert item.failure["attempts"] == 1


def test_an_error_of_ours_leaves_its_place_and_no_folder_of_the_user(run, monkeypatch):
    def broken(*_):
        return {}[Path.home()]

    monkeypatch.setattr(Rehearsal, "do", broken)
    manifest = planned(run)
    assert inline(run).failed == 12
    failure = manifest.item(run, manifest.rows[0]).failure
    assert failure["kind"] == "KeyError"
    assert failure["where"][-1].endswith(" broken")
    assert "/" not in "".join(failure["where"])


def test_a_full_disk_blames_no_item(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Rehearsal, "do", full)
    planned(run)
    with pytest.raises(DataError, match="disk full"):
        inline(run)
    assert jobs.status(run).pending == 12
    assert not jobs.status(run).workers


def test_a_model_that_is_not_there_blames_no_item(run, monkeypatch):
    def missing(*_):
        raise MissingDataError("no weights")

    monkeypatch.setattr(Rehearsal, "prepare", missing)
    planned(run)
    with pytest.raises(MissingDataError, match="no weights"):
        inline(run)
    assert jobs.status(run).pending == 12


def test_the_state_is_loaded_once_and_only_for_work(run, monkeypatch):
    calls, prepare = [], Rehearsal.prepare
    monkeypatch.setattr(Rehearsal, "prepare", lambda *a: calls.append(1) or prepare(*a))
    manifest = planned(run)
    work(manifest, 0, 1)
    assert len(calls) == 1
    work(manifest, 0, 1)
    assert len(calls) == 1


def test_a_signal_lets_the_item_in_progress_be_finished(run, monkeypatch):
    do = Rehearsal.do

    def interrupted(task, state, item, folder, extra):
        if item.stimulus == "item-00004":
            os.kill(os.getpid(), signal.SIGTERM)
        return do(task, state, item, folder, extra)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Rehearsal, "do", interrupted)
    outcome = work(planned(run), 0, 1)
    assert (outcome.why, outcome.done, outcome.code) == ("stopped", 5, 143)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not jobs.status(run).workers  # the lease was given back
    assert inline(run).done == 12


def test_a_shard_that_is_held_is_left_to_its_holder(run):
    manifest = planned(run)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        from neurodiff.core.processes import began, machine
        from neurodiff.jobs_lease import Holder, acquire

        holder = Holder(machine=machine(), process=child.pid, started=began(child.pid), token="x")
        acquire(manifest.folder / "leases", "shard-0-of-1", holder=holder)
        outcome = work(manifest, 0, 1)
        assert (outcome.why, outcome.code, jobs.status(run).done) == ("held", 4, 0)
        assert jobs.status(run).workers == ("shard-0-of-1",)
    finally:
        child.communicate(b"\n")
    assert work(manifest, 0, 1).done == 12


def test_an_orphan_that_was_succeeded_stops_and_harms_nothing(run, monkeypatch):
    """Its machine fell silent; another took the shard; then it goes on with the item it had."""
    from neurodiff.jobs_lease import Holder

    manifest, do, seen = planned(run), Rehearsal.do, []

    def silent(task, state, item, folder, extra):
        if item.stimulus == "item-00004" and not seen:
            seen.append(1)
            inner = work(manifest, 0, 1, beat=60.0, patience=0.05, stop=After(5 + 3))
            assert (inner.why, inner.done) == ("stopped", 4)
        return do(task, state, item, folder, extra)

    monkeypatch.setattr(Rehearsal, "do", silent)
    names = iter("ab")
    monkeypatch.setattr(
        Holder, "myself",
        lambda: Holder(machine=next(names) * 8, process=1, started=1, token="x"),
    )  # fmt: skip
    outcome = work(manifest, 0, 1, beat=60.0)
    assert outcome.why == "lost"
    found = jobs.status(run, verify="hash")
    assert (found.done, found.failed, found.pending) == (9, 0, 3)


class After(Stop):
    """Asked to stop at the n-th item that is looked at."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def __bool__(self):
        self.left -= 1
        return self.left < 0


def test_the_item_at_which_a_worker_died_comes_last(run, monkeypatch):
    from neurodiff.jobs_lease import Holder, acquire

    manifest, order, do = planned(run), [], Rehearsal.do
    dead = Holder(machine="dead" * 2, process=1, started=1, token="x")
    lease = acquire(manifest.folder / "leases", "shard-0-of-1", holder=dead)
    lease.at(manifest.rows[3].key)
    monkeypatch.setattr(
        Rehearsal, "do",
        lambda task, state, item, *rest: order.append(item.key) or do(task, state, item, *rest),
    )  # fmt: skip
    assert work(manifest, 0, 1, patience=0.05).done == 12
    keys = manifest.keys
    assert order == [*keys[:3], *keys[4:], keys[3]]


def test_deaths_are_counted_apart_from_errors(run):
    assert DEATHS > QUARANTINE
    from neurodiff.jobs_worker import count_failure, is_quarantined

    manifest = planned(run)
    item = manifest.item(run, manifest.rows[0])
    for _ in range(DEATHS - 1):
        count_failure(item, "its worker was ended by SIGKILL", death=True)
    assert not is_quarantined(item.failure)
    count_failure(item, "its worker was ended by SIGKILL", death=True)
    assert is_quarantined(item.failure)


def test_a_worker_that_cannot_begin_is_told_with_its_words(run):
    path = planned(run).folder / MANIFEST
    path.write_text(path.read_text().replace("item-00000", "item-99999"))
    with pytest.raises(DataError, match=r"worker of shard 0 ended: .*whose key is"):
        jobs.submit(run, 1, "local")
    with pytest.raises(UsageError, match="more has"):
        Site(more={"wrap": "x\nrm"})


def test_one_and_three_workers_make_the_same(run, tmp_path):
    manifest = planned(run)
    told = jobs.submit(run, 3, "local")
    assert (told.done, told.workers) == (12, ())
    other = Run.create(tmp_path / "one", {"x": 1}, {}, command="test", seed=7)
    planned(other)
    inline(other)
    assert noises(run, manifest) == noises(other, manifest)


# ------------------------------------------------------------------------------------ Slurm


def fake_scontrol(folder, state, *, refuse=False):
    path = folder / "scontrol"
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {folder}/asked\n'
        f'[ "$1" = requeue ] && exit {int(refuse)}\n'
        f'echo "JobId=12 ArrayJobId=12 ArrayTaskId=1 JobState={state}"\n'
        'echo "JobId=13 ArrayJobId=12 ArrayTaskId=0 JobState=RUNNING"\n'
    )
    path.chmod(0o755)
    return {"SLURM_JOB_ID": "12"}


@pytest.mark.parametrize(
    ("state", "asks"),
    [("RUNNING", 1), ("COMPLETING", 0), ("CANCELLED", 0), ("PENDING", 0)],
)
def test_only_a_running_job_asks_to_be_started_again(tmp_path, monkeypatch, state, asks):
    environment = fake_scontrol(tmp_path, state)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert requeue(environment) is bool(asks)
    assert (tmp_path / "asked").read_text().count("requeue 12") == asks


def test_a_refused_request_is_made_three_times_and_none_for_ever(tmp_path, monkeypatch):
    environment = fake_scontrol(tmp_path, "RUNNING", refuse=True)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert not requeue(environment)
    assert (tmp_path / "asked").read_text().count("requeue 12") == 3
    assert not requeue({**environment, "SLURM_RESTART_COUNT": "50"})
    assert (tmp_path / "asked").read_text().count("requeue 12") == 3
    assert not requeue({})


def test_without_slurm_it_says_where_to_go(run, monkeypatch):
    planned(run)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDataError, match="there is no sbatch"):
        jobs.submit(run, 2, "slurm")
    assert jobs.status(run, scheduler=True).scheduler == {}


def test_array_ranges_are_counted():
    assert [_tasks(text) for text in ("3", "4-7%2", "1,3-5", "", "0-99%5", "x")] == [
        1, 4, 4, 1, 100, 1,
    ]  # fmt: skip


def test_the_script_is_shell_and_asks_for_what_the_site_says(run):
    site = Site(account="lab", qos="normal", partition="gpu", gres="gpu:1", memory_gb=12.5,
                minutes=60, at_once=5, local_disk="$TMPDIR", setup=("module load cuda",),
                container="/images/n d.sif", more={"mail-type": "END"})  # fmt: skip
    manifest = planned(run)
    text = script_text(manifest, 7, site)
    for line in ("account=lab", "qos=normal", "partition=gpu", "gres=gpu:1", "mem=12800M",
                 "time=60", "array=0-6%5", "requeue", "signal=B:USR2@90", "open-mode=append",
                 "mail-type=END"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in text
    assert "\nmodule load cuda\n" in text
    assert f"--bind {run.folder} '/images/n d.sif' python -P -m neurodiff.jobs_worker" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    with pytest.raises(UsageError, match="at least 15"):
        Site(minutes=5)


@pytest.mark.parametrize(
    "index", [{"SLURM_ARRAY_TASK_ID": "1"}, {"PBS_ARRAY_INDEX": "1"}, {"SGE_TASK_ID": "2"},
              {"LSB_JOBINDEX": "2"}]
)  # fmt: skip
def test_the_script_does_the_shard_of_its_index(run, repository, index):
    manifest = planned(run)
    text = script_text(manifest, 3, Site())
    environment = {**os.environ, "PYTHONPATH": str(repository), **index}
    subprocess.run(["bash"], input=text, text=True, check=True, env=environment,
                   capture_output=True)  # fmt: skip
    states = jobs.collect(run)["state"].tolist()
    assert states == ["pending", "done", "pending"] * 4


def test_parameters_for_submitit():
    found = slurm_parameters("x", Site(partition="gpu", more={"mail-type": "END"}))
    assert found["partition"] == "gpu"
    assert found["additional_parameters"] == {"requeue": True, "mail-type": "END"}
    assert "account" not in found


def test_a_site_profile_is_checked(tmp_path, monkeypatch):
    path = tmp_path / "site.yaml"
    path.write_text("partition: gpu\ngres: gpu:1\nminutes: 30\nsetup: [module load x]\n")
    assert read_site(path) == Site(
        partition="gpu", gres="gpu:1", minutes=30, setup=("module load x",)
    )
    monkeypatch.setenv("NEURODIFF_SITE", str(path))
    assert read_site(None).partition == "gpu"
    for text, said in (
        ("partitoin: gpu", "Did you mean 'partition'"),
        ("minutes: soon", "minutes"),
        ("- a", "no site profile"),
        ('account: "a\\nb"', "account"),
        ("a: [", "site.yaml"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_site(path)
    with pytest.raises(MissingDataError):
        read_site(tmp_path / "none.yaml")


def test_weights_are_copied_to_the_local_disk_once(tmp_path, monkeypatch):
    model = tmp_path / "model"
    (model / "part").mkdir(parents=True)
    (model / "part" / "weights").write_bytes(b"1")
    place = staging(str(tmp_path / "disk"))
    copy = place(model)
    assert copy.name == "model"
    assert (copy / "part" / "weights").read_bytes() == b"1"
    inode = (copy / "part" / "weights").stat().st_ino
    assert (place(model) / "part" / "weights").stat().st_ino == inode
    (model / "part" / "weights").write_bytes(b"22")
    assert (place(model) / "part" / "weights").read_bytes() == b"22"
    assert staging(None)(model) == model
    with pytest.raises(UsageError, match="not set on this node"):
        staging("$NO_SUCH_DISK")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be copied"):
        staged(model, tmp_path / "file")


# ------------------------------------------------------------------------------------ packs


def test_packs_hold_the_items_and_give_them_back(run, tmp_path):
    manifest = planned(run, fail=["item-00002"])
    inline(run)
    before = {p.relative_to(run.folder): p.read_bytes() for p in run.folder.rglob("items/??/*/*")
              if p.name != "failed.json"}  # fmt: skip
    table = jobs.collect(run, pack=True, shards=2)
    assert table["state"].value_counts().to_dict() == {"done": 11, "failed": 1}
    assert len(list(run.folder.glob("items/??/*/done.json"))) == 0
    assert len(packed_keys(manifest.folder)) == 11
    packs = sorted((manifest.folder / "packs").iterdir())
    digests = [p.read_bytes() for p in packs]
    assert len(packs) == 2
    assert (inline(run).done, inline(run).quarantined) == (11, 1)  # what is packed is not redone
    jobs.collect(run, pack=True, shards=2)
    assert [p.read_bytes() for p in packs] == digests  # equal items make equal packs
    assert jobs.unpack(run) == 11
    after = {p.relative_to(run.folder): p.read_bytes() for p in run.folder.rglob("items/??/*/*")
             if p.name != "failed.json"}  # fmt: skip
    assert after == before
    assert not list(manifest.folder.glob("packs"))


def test_more_items_join_a_pack(run):
    manifest = planned(run, fail=["item-00002"])
    inline(run)
    jobs.collect(run, pack=True)
    [path] = (manifest.folder / MANIFEST,)
    path.write_text(path.read_text().replace('"fail": ["item-00002"]', '"fail": []'))
    jobs.retry(run)
    assert inline(run).done == 12
    jobs.collect(run, pack=True)
    assert len(packed_keys(manifest.folder)) == 12
    assert jobs.status(run).done == 12


@pytest.mark.parametrize("moment", range(0, 24, 5))
def test_a_kill_while_packing_loses_nothing(run, monkeypatch, moment):
    """The pack is whole before the first folder goes."""
    manifest = planned(run)
    inline(run)
    count, unlink = [], Path.unlink

    class Killed(BaseException):
        pass

    def kill(path, *rest, **more):
        count.append(1)
        if len(count) == moment + 1 and "items" in str(path):
            raise Killed
        return unlink(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)
        with contextlib.suppress(Killed):
            jobs.collect(run, pack=True)
    assert jobs.status(run).done == 12
    jobs.collect(run, pack=True)
    assert len(packed_keys(manifest.folder)) == 12
    jobs.unpack(run)
    assert jobs.status(run, verify="hash").done == 12


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "a" * 64 + "/../../evil", "a" * 64 + "/x\\..\\y", "evil"]
)
def test_a_pack_that_leads_elsewhere_is_refused(run, tmp_path, name):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(DataError, match="no file of an item"):
        unpack(run, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a" * 64 + "/bomb", b"0" * 10**7)
    with pytest.raises(DataError, match="compressed"):
        unpack(run, path)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable pack"):
        unpack(run, path)
    assert not (tmp_path / "evil").exists()


# --------------------------------------------------------------------- file system, container


def test_a_good_file_system_passes_and_leaves_nothing(tmp_path):
    found = {one.name: one for one in check_filesystem(tmp_path)}
    assert {"exclusive create", "rename", "rename of folders", "clock skew", "safe write"} <= set(
        found
    )
    assert all(one.status != "MISSING" for one in found.values())
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingDataError):
        check_filesystem(tmp_path / "none")


def test_a_bad_file_system_is_told(tmp_path, monkeypatch):
    from neurodiff import jobs_filesystem

    real = os.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda path, flags, *rest: real(path, flags & ~os.O_EXCL, *rest))
        assert jobs_filesystem.exclusive_creation(tmp_path).status == "MISSING"

    def slow_replace(new, path):
        Path(path).unlink()
        time.sleep(0.001)  # the reader's turn
        Path(path).write_bytes(Path(new).read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", slow_replace)
        assert jobs_filesystem.whole_renames(tmp_path).status == "MISSING"
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: None)
        assert jobs_filesystem.folder_renames(tmp_path).status == "MISSING"
    now = jobs_filesystem.time.time
    with monkeypatch.context() as patch:
        patch.setattr(jobs_filesystem.time, "time", lambda: now() + 60)
        skew = jobs_filesystem.clock(tmp_path)
    assert (skew.status, skew.value[:3]) == ("warning", "-60")


def test_the_container_is_defined_for_this_version():
    text = apptainer_definition()
    assert "From: python:3.11-slim" in text
    assert "{" not in text.replace("${SLURM_CPUS_PER_TASK:-1}", "")


# ------------------------------------------------------------------------------- command line


def call(*arguments, code=0):
    from neurodiff.cli import Verbs
    from neurodiff.cli_batch import app

    app.info.cls = Verbs
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff batch")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_the_commands_from_plan_to_collect(run):
    few = ["--task", "rehearsal", "-s", "items=6", "-s", "seconds=0.0", "-s", "fail=[item-00001]"]
    assert "6 items" in call("plan", run.folder, *few).stdout
    result = call("submit", run.folder, *few, "--on", "inline", "--shards", 2, code=1)
    assert "1 of 6 items failed" in result.stderr
    assert "5 of 6 items done (83 %), 1 failed" in call("status", run.folder).stdout
    call("resume", run.folder, "--on", "inline", code=1)
    call("resume", run.folder, "--on", "inline", code=1)
    text = call("status", run.folder, "--verify", "hash").stdout
    assert "0 failed, 1 in quarantine" in text
    assert "1 x the item of item-00001 was asked to fail" in text
    assert "1 items will be tried again" in call("retry", run.folder).stdout
    assert "5 done, 1 pending" in call("collect", run.folder, "--pack").stdout
    assert "5 items are back" in call("collect", run.folder, "--unpack").stdout
    assert (
        "#SBATCH --array=0-2%3"
        in call("resume", run.folder, "--on", "script", "--shards", 3).stdout
    )
    assert "no job that Slurm knows" in call("cancel", run.folder).stdout
    assert "--verify much" in call("status", run.folder, "--verify", "much", code=2).stderr
    call("status", run.folder / "none", code=3)


def test_the_definition_file_is_printed_or_written(tmp_path):
    assert "Bootstrap: docker" in call("apptainer").stdout
    call("apptainer", "--out", tmp_path / "neurodiff.def")
    assert "%post" in (tmp_path / "neurodiff.def").read_text()


def test_a_foreign_failed_file_counts_as_one_failure(run):
    manifest = planned(run)
    item = manifest.item(run, manifest.rows[0])
    write_json(item.path("failed.json"), {"error": "disk", "attempts": "many"})
    assert jobs.status(run).failed == 1
    item.path("failed.json").write_text("{broken")
    assert jobs.status(run).errors == {"no reason was written": 1}
    assert inline(run).done == 12
    assert json.loads((item.folder / "done.json").read_text())["key"] == item.key


def test_task_names_and_stop():
    assert task_of("rehearsal").name == "rehearsal"
    stop = Stop(parent=os.getppid())
    assert not stop
    stop.ask()
    assert stop
    assert Stop(parent=1 if os.getppid() != 1 else 2)
    assert issubclass(UsageError, NeurodiffError)
