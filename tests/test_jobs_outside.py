"""What surrounds a worker cannot get into it: folders, an allocation, odd paths."""

import io
import os
import subprocess
import sys
import tarfile

import pytest
from typer.testing import CliRunner

import neurodiff.jobs as jobs
from neurodiff.cli import app
from neurodiff.core.errors import UsageError
from neurodiff.core.run import Run
from neurodiff.jobs_backends import script_text
from neurodiff.jobs_site import Site
from neurodiff.jobs_slurm import _outside_an_allocation, slurm_parameters


def planned(folder):
    run = Run.create(folder, {"x": 1}, {}, command="test", seed=0)
    return run, jobs.plan(
        run, "rehearsal", settings={"items": 2, "seconds": 0.0, "files": 1, "values": 3}
    )


def test_a_worker_takes_no_code_from_the_folder_one_stands_in(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    trap = "from pathlib import Path; Path(__file__).with_name('sprung').touch()\n"
    for name in ("json", "numpy", "neurodiff"):
        (data / f"{name}.py").write_text(trap)
    monkeypatch.chdir(data)
    run, _ = planned(tmp_path / "run")
    jobs.submit(run, 1, on="local")
    assert jobs.collect(run)["state"].tolist() == ["done", "done"]
    assert not (data / "sprung").exists()
    # and the trap is one: without -P it is sprung
    subprocess.run([sys.executable, "-c", "import json"], cwd=data, check=True)
    assert (data / "sprung").exists()


def test_tasks_of_slurm_do_neither():
    setup = slurm_parameters("x", Site(setup=("module load x",)))["setup"]
    assert setup == ["export PYTHONSAFEPATH=1", "module load x"]


def test_a_worker_here_does_not_know_the_job_that_a_person_works_in(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    run, _ = planned(tmp_path / "run")
    seen = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        "neurodiff.jobs_backends.subprocess.Popen",
        lambda *a, **how: seen.append(how.get("env")) or popen(*a, **how),
    )
    jobs.submit(run, 1, on="local")
    [environment] = [one for one in seen if one is not None]
    assert "SLURM_JOB_ID" not in environment
    assert environment["PATH"] == os.environ["PATH"]


def test_a_job_is_submitted_as_from_outside_an_allocation(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    with _outside_an_allocation():
        assert [n for n in os.environ if n.startswith("SLURM_")] == ["SLURM_CONF"]
    assert os.environ["SLURM_CPUS_PER_TASK"] == "7"


def test_a_path_with_spaces_and_percent_signs_is_one_to_sbatch(tmp_path):
    _, manifest = planned(tmp_path / "run of 50% #1")
    text = script_text(manifest, 2, Site(more={"comment": "two words"}))
    [line] = [one for one in text.splitlines() if one.startswith("#SBATCH --output=")]
    assert line.endswith('/logs/%A_%a.out"')
    assert line.removeprefix("#SBATCH --output=").startswith(f'"{tmp_path}/run of 50%% #1/batch/')
    assert '#SBATCH --comment="two words"\n' in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    with pytest.raises(UsageError, match="quotes or line ends"):
        script_text(manifest, 2, Site(more={"comment": 'a "b"'}))


def test_unpack_takes_an_archive_whole_or_not_at_all(tmp_path):
    good, bad = tmp_path / "good.tar", tmp_path / "bad.tar"
    for path, names in ((good, ["a/b.txt"]), (bad, ["a/b.txt", "../out.txt"])):
        with tarfile.open(path, "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 3
                archive.addfile(member, io.BytesIO(b"abc"))

    def call(path, out, *more):
        return CliRunner().invoke(app, ["unpack", str(path), "--out", str(out), *more])

    assert call(good, tmp_path / "one").exit_code == 0
    assert (tmp_path / "one" / "a" / "b.txt").read_bytes() == b"abc"
    assert call(good, tmp_path / "one").exit_code == 2  # it holds something
    refused = call(bad, tmp_path / "two")
    assert refused.exit_code == 3
    assert "bad.tar" in refused.output
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "out.txt").exists()
    assert call(tmp_path / "no.tar", tmp_path / "three").exit_code == 3
