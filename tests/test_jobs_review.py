"""Batches in the hands of people who err, of machines that are slow, and of two workers at once."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

import neurodiff.jobs as jobs
from neurodiff.core.atomic import remove_leftovers_of_the_dead
from neurodiff.core.errors import DataError, UsageError, file_error
from neurodiff.core.run import Run
from neurodiff.core.run_items import touch_open_folders
from neurodiff.core.safe_io import write_json
from neurodiff.jobs_backends import script_text
from neurodiff.jobs_decoding import Reconstruct, known_settings
from neurodiff.jobs_ledger import note_submission
from neurodiff.jobs_manifest import MANIFEST, read_manifest
from neurodiff.jobs_site import Site
from neurodiff.jobs_slurm import submit_calls
from neurodiff.jobs_tasks import Rehearsal
from neurodiff.jobs_worker import run_shard, work


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {"x": 1}, {}, command="test", seed=3)


def planned(run, **settings):
    return jobs.plan(run, "rehearsal", settings={"items": 6, "seconds": 0.0, **settings})


def call(*arguments, code):
    from neurodiff.cli import Verbs
    from neurodiff.cli_batch import app

    app.info.cls = Verbs
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff batch")
    assert result.exit_code == code, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


# --------------------------------------------------------------------------------- two workers


def write(item, text, names=("a", "b")):
    with item.write_dir() as folder:
        for name in names:
            (folder / name).write_text(text)


def contents(item):
    return {name: (item.folder / name).read_text() for name in item.record["files"]}


def test_of_two_who_make_one_item_the_first_stays_whole(run):
    """Results of two machines may differ in their last digits; a mixture is nobody's."""
    item = run.item("t", "1", "cup", 0, "x")
    item.fail("before")
    with item.write_dir() as folder:
        (folder / "a").write_text("slow")
        write(run.item("t", "1", "cup", 0, "x"), "fast")
    assert contents(item) == {"a": "fast", "b": "fast"}
    assert item.is_done("hash")
    write(item, "again", ("b",))  # what is asked for anew replaces the old one, and all of it
    assert contents(item) == {"b": "again"}
    assert sorted(p.name for p in item.folder.iterdir()) == ["b", "done.json"]
    assert [p.name for p in item.folder.parent.iterdir()] == [item.key]


def test_a_kill_while_an_item_is_replaced_leaves_no_mixture(run, monkeypatch):
    """Also where folders cannot be renamed, and the files have to be moved one by one."""
    item, replace, rename = run.item("t", "1", "cup", 0, "x"), os.replace, os.rename
    write(item, "old")

    def refused(source, target):
        if os.path.isdir(source):
            raise OSError(errno.EXDEV, "another layer")
        rename(source, target)

    def killed(source, target):
        if str(target).endswith(f"{item.key}/b"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(item, "new")
    assert run.states([item.key]) == ["pending"]  # the quick ledger, which reads no file
    write(item, "new")
    assert contents(item) == {"a": "new", "b": "new"}


def test_many_at_once_never_mix(run):
    errors = []

    def one(k):
        try:
            for _ in range(4):
                item = run.item("t", "1", "cup", 0, "x")
                write(item, f"{k}")
                with contextlib.suppress(OSError):
                    (item.folder / "done.json").unlink()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(k,)) for k in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    item = run.item("t", "1", "cup", 0, "x")
    write(item, "last")
    assert len(set(contents(item).values())) == 1
    assert item.is_done("hash")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_an_item_that_goes_while_it_is_looked_at_is_not_done(run, monkeypatch, number):
    """`collect --pack` beside workers; on NFS what another machine removed is a stale handle."""
    item = run.item("t", "1", "cup", 0, "x")
    write(item, "x")

    def gone(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("neurodiff.core.sealed.read_json", gone)
    monkeypatch.setattr("neurodiff.core.run_items.read_json", gone)
    assert not item.done
    assert item.failure == {}


# ---------------------------------------------------------------------------------- slow items


def elsewhere(run, monkeypatch):
    """What another machine's worker removes when it starts an hour and more later."""
    monkeypatch.setattr("neurodiff.core.run.machine", lambda: "f" * 8)
    return Run(run.folder).remove_dead_writers()


def test_an_item_of_hours_keeps_its_folder(run, monkeypatch):
    """Its first file may come after hours; every heartbeat dates its folder anew."""
    item, hours_ago = run.item("t", "1", "cup", 0, "x"), time.time() - 7200
    with item.write_dir() as folder:
        os.utime(folder, (hours_ago, hours_ago))
        touch_open_folders()
        assert elsewhere(run, monkeypatch) == 0
        (folder / "a").write_text("late")
    assert item.done


def test_without_the_heartbeat_another_machine_would_remove_it(run, monkeypatch):
    item, hours_ago = run.item("t", "1", "cup", 0, "x"), time.time() - 7200
    with pytest.raises(FileNotFoundError), item.write_dir() as folder:  # noqa: PT012
        os.utime(folder, (hours_ago, hours_ago))
        assert elsewhere(run, monkeypatch) == 1
        (folder / "a").write_text("late")


def test_the_worker_dates_the_folder_of_its_item(run, monkeypatch):
    do, ages = Rehearsal.do, []

    def slow(task, state, item, folder, extra):
        os.utime(folder, (0, 0))
        deadline = time.monotonic() + 5
        while folder.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        ages.append(time.time() - folder.stat().st_mtime)
        return do(task, state, item, folder, extra)

    monkeypatch.setattr(Rehearsal, "do", slow)
    assert work(planned(run, items=1), 0, 1, beat=0.01).done == 1
    assert ages[0] < 60


# --------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\xfe"])
def test_planning_again_mends_a_broken_manifest(run, content):
    """As its error says."""
    manifest = planned(run)
    (manifest.folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match="plan it again"):
        read_manifest(manifest.folder)
    assert planned(run).folder == manifest.folder
    assert len(read_manifest(manifest.folder)) == 6


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_may_not_be_written_is_one_sentence(run, monkeypatch, number):
    manifest = planned(run)

    def refused(batch, record):
        raise OSError(number, os.strerror(number), str(batch / "submissions.jsonl"))

    monkeypatch.setattr(jobs, "note_submission", refused)
    said = call("submit", run.folder, "--on", "inline", code=3)
    assert f"submissions.jsonl: {os.strerror(number)}" in said
    monkeypatch.setattr(jobs, "note_submission", note_submission)
    monkeypatch.setattr(
        Run, "remove_dead_writers", lambda _: refused(manifest.folder, None)
    )  # a file system without a sentence of its own
    call("collect", run.folder, code=3)
    said = []
    assert run_shard(manifest.folder, 0, 1, say=said.append) == 3
    assert said == []


def test_items_where_a_file_lies(run, capsys):
    manifest = planned(run)
    (run.folder / "items").write_text("")
    assert run_shard(manifest.folder, 0, 1) == 3
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "could not be written" in said


def test_faults_of_ours_keep_their_traceback():
    assert file_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert file_error(OSError("no number")) is None
    assert file_error(PermissionError(errno.EACCES, "Permission denied")) is None
    assert "runs/a: Permission denied" in str(
        file_error(PermissionError(errno.EACCES, "Permission denied", "runs/a"))
    )


# ------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    "wrong", ["items=abc", "items=-3", "seconds=soon", "values=1.5", "files=0", "items=true"]
)
def test_settings_of_a_rehearsal_are_checked_when_planned(run, wrong):
    said = call("submit", run.folder, "--task", "rehearsal", "-s", wrong, code=2)
    assert said.startswith(f"error: {wrong.partition('=')[0]} is ")
    assert not (run.folder / "batch").exists()  # nothing that could not be done is written down


def test_one_stimulus_that_fails_may_be_a_word(run):
    assert jobs.plan(run, "rehearsal", settings={"fail": "item-00001"}).settings["fail"] == [
        "item-00001"
    ]


@pytest.mark.parametrize("together", [0, "x", True, 1.5])
def test_together_is_checked_when_planned(run, together):
    with pytest.raises(UsageError, match=r"together is .* whole number"):
        jobs.plan(run, "reconstruct", settings={"together": together})
    assert not (run.folder / "batch").exists()


@pytest.mark.parametrize("settings", [{"draws": "abc"}, {"draws": 0}, {"methods": 3}])
def test_settings_of_attribution_are_checked_when_planned(run, settings):
    with pytest.raises(UsageError):
        jobs.plan(run, "attribute", settings=settings)


def test_words_are_words():
    defaults = Reconstruct.DEFAULTS
    assert known_settings("reconstruct", {"subject": 1}, defaults)["subject"] == "1"
    for wrong in (["a"], {"a": 1}, True):
        with pytest.raises(UsageError, match=r"root is .* one word or path"):
            known_settings("reconstruct", {"root": wrong}, defaults)


def test_a_run_of_recordings_has_no_scans(tmp_path):
    run = Run.create(tmp_path / "objects", {"pipeline": "mind3d"}, {}, command="test", seed=0)
    with pytest.raises(UsageError, match="its task is reconstruct"):
        jobs.plan(run, "encode")


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_gb": -5.0},
        {"memory_gb": float("nan")},
        {"memory_gb": float("inf")},
        {"partition": "a b; rm"},
        {"qos": " x"},
        {"container": "x\ny"},
        {"local_disk": "x\n#SBATCH y"},
    ],
)
def test_a_site_profile_that_cannot_be_meant(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Site(**wrong)


def test_a_refusal_of_slurm_is_wrong_usage(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")

    def refuse(*_, **__):
        raise submitit.core.utils.FailedJobError("sbatch: error: invalid partition specified: gpu")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", refuse)
    with pytest.raises(UsageError, match=r"Slurm refused the job: .* invalid partition"):
        submit_calls([print], tmp_path / "logs", "name", Site())


def test_a_damaged_failed_file_of_another_hand_is_no_traceback(run):
    manifest = planned(run)
    item = manifest.item(run, manifest.rows[0])
    write_json(item.path("failed.json"), ["no", "dictionary"])
    assert jobs.status(run).failed == 1


# --------------------------------------------------------------------------------- in a container


def in_a_container(run, tmp_path, apptainer, state="RUNNING", **more):
    """The printed script, on stand-ins for apptainer and scontrol; its end and what was asked."""
    tools, asked = tmp_path / "tools", tmp_path / "asked"
    tools.mkdir()
    asked.write_text("")
    for name, text in (
        ("apptainer", apptainer),
        ("scontrol", f'echo "$*" >> {asked}; echo "JobId=7 JobName=x JobState={state}"'),
    ):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    text = script_text(planned(run), 1, Site(container="/images/n.sif"))
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_JOB_ID": "7",
        **more,
    }
    process = subprocess.Popen(["bash", "-c", text], env=environment, stdout=subprocess.DEVNULL)
    return process, asked


def test_a_container_runs_its_own_python(run, tmp_path, repository):
    """That of the machine which prints the script is not in the image."""
    apptainer = f'while [ "$1" != python ]; do shift; done; shift; exec {sys.executable} "$@"'
    process, asked = in_a_container(run, tmp_path, apptainer, PYTHONPATH=str(repository))
    assert process.wait() == 0
    assert jobs.status(run).done == 6
    assert asked.read_text() == ""


@pytest.mark.parametrize(
    ("state", "restarts", "again"),
    [("RUNNING", "0", True), ("CANCELLED", "0", False), ("RUNNING", "50", False)],
)
def test_a_stopped_container_is_started_again_from_outside(run, tmp_path, state, restarts, again):
    """The image has no scontrol; a signal to the script reaches the worker."""
    ready = tmp_path / "ready"
    apptainer = f"trap 'kill $!; sleep 0.1; exit 143' TERM; sleep 20 & touch {ready}; wait; exit 1"
    process, asked = in_a_container(
        run, tmp_path, apptainer, state=state, SLURM_RESTART_COUNT=restarts
    )
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    assert process.wait() == 143
    assert ("requeue 7" in asked.read_text()) == again


@pytest.mark.parametrize("skew", [-7200, 7200])
def test_a_clock_that_is_wrong_removes_no_living_file(tmp_path, monkeypatch, skew):
    """A shared folder dates by its own clock; the process of another machine has no number here."""
    young, old = (tmp_path / f".tmp-0000beef.7.7-{mark}-x.npy" for mark in ("abcd", "ef01"))
    young.touch()
    old.touch()
    os.utime(old, (time.time() - 3700,) * 2)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew)
    assert remove_leftovers_of_the_dead(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == [young.name]
