"""A run is replayed in a fresh process and comes out the same; what does not is found."""

import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from neurodiff.analysis.benchmark_replay import commands, main, plan_of
from neurodiff.analysis.report_verify import clean_environment, compare, verify_run
from neurodiff.cli import app
from neurodiff.core.errors import MissingDataError, NeurodiffError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json, write_json

pytestmark = pytest.mark.slow  # fits a tiny model, and again in a process of its own

FIT = ["fit", "mind3d_tiny", "--data", "simulated_tiny", "-s", "tokenizer.training.steps=5"]
FIT += ["-s", "mesh.threshold=0.15"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is fitted, decoded and scored."""
    out = tmp_path_factory.mktemp("runs")
    for words in ([*FIT, "--out", str(out)], ["reconstruct"], ["evaluate"]):
        command = words if len(words) > 1 else [*words, str(next(out.iterdir()))]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    return Run.open(next(out.iterdir()))


@pytest.fixture
def copy(run, tmp_path):
    return Run.open(shutil.copytree(run.folder, tmp_path / run.folder.name))


def verdicts(table):
    return dict(zip(table["what"], table["verdict"], strict=True))


def test_a_replay_in_a_fresh_process_gives_the_same_scores_and_bytes(run, tmp_path):
    found = verify_run(run.folder, out=tmp_path / "replay")
    assert found.passed, found.text()
    assert found.exit_code == 0
    assert set(found.table["verdict"]) == {"same"}  # this very machine: also the bytes
    assert found.folder != run.folder
    assert found.folder.name == run.folder.name
    rows = found.table.set_index("what")
    assert rows.loc["items with the same bytes", "recorded"] == 12
    assert not rows.loc["items with the same bytes", "counts"]
    assert rows.loc["mean CD of MinD-3D (simulated_tiny)", "counts"]
    assert "verified: exit code 0" in found.text()
    assert "relative 0.001" in found.text()


def test_scores_that_were_changed_are_found(run, copy, tmp_path):
    table = copy.read_scores()
    table.loc[table["condition"] == "MinD-3D", "CD"] *= 1.01
    copy.write_scores(table)
    seen = {}

    def runner(command, environment, folder):
        """Stands in for the process: the run that was not changed is what a replay would give."""
        plan = read_json(command[-1])
        start = Run.open(plan["start"])
        seen.update(plan, items=len(start.items_table()), scored=start.scores_path.is_file())
        return subprocess.CompletedProcess(command, 0, f"progress\n{run.folder}\n", "")

    found = verify_run(copy, start="evaluate", runner=runner)
    assert found.exit_code == 1
    said = verdicts(found.table)
    assert said["mean CD of MinD-3D (simulated_tiny)"] == "DIFFERS"
    assert said["mean IoU of MinD-3D (simulated_tiny)"] == "same"
    assert "the replay differs: exit code 1" in found.text()
    assert (seen["items"], seen["scored"]) == (12, False)  # what is to be done again is not taken
    verify_run(copy, start="reconstruct", runner=runner)
    assert seen["items"] == 0


def test_tolerances_and_bytes_count_as_stated(run, copy):
    table = copy.read_scores()
    table.loc[table["condition"] == "MinD-3D", "CD"] *= 1 + 1e-4
    copy.write_scores(table)
    what = "mean CD of MinD-3D (simulated_tiny)"
    assert verdicts(compare(run, copy))[what] == "within tolerance"
    assert verdicts(compare(run, copy, rtol=1e-6))[what] == "DIFFERS"
    item = next(copy.folder.glob("items/*/*/done.json"))
    record = read_json(item)
    record["files"]["mesh.glb"]["sha256"] = "0" * 64
    write_json(item, record)
    for exact in (False, True):
        rows = compare(run, copy, exact=exact).set_index("what")
        assert rows.loc["items with the same bytes", "verdict"] == "DIFFERS"
        assert bool(rows.loc["items with the same bytes", "counts"]) is exact
    shutil.rmtree(item.parent)
    rows = compare(run, copy).set_index("what")
    assert rows.loc["finished items", ["recorded", "replayed", "verdict"]].tolist() == [
        12,
        11,
        "DIFFERS",
    ]


def test_the_environment_of_a_replay_is_clean(run, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PYTHONSTARTUP", "evil.py")
    monkeypatch.setenv("NEURODIFF_WEIGHTS", "here")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = clean_environment(run)
    assert "SECRET" not in found
    assert "PYTHONSTARTUP" not in found
    assert found["NEURODIFF_WEIGHTS"] == "here"
    assert found["OMP_NUM_THREADS"] == "1"  # as recorded, not as now
    assert "PYTHONPATH" in found
    assert "PYTHONPATH" not in clean_environment(run, own_code=False)


def test_a_virtual_environment_is_built_from_constraints(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_ARGS", "--extra-index-url 'file:///a b'")
    called = []

    def runner(command, environment, folder):
        called.append((list(command), environment))
        failed = "benchmark_replay" in " ".join(command)
        return subprocess.CompletedProcess(command, int(failed), "", "error: stopped here")

    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==2.0\n")
    with pytest.raises(NeurodiffError, match="stopped here"):
        verify_run(run, out=tmp_path / "new", venv=constraints, runner=runner)
    assert called[0][0][:3] == [sys.executable, "-m", "venv"]
    assert called[1][0][-3:-1] == ["-c", str(constraints.resolve())]
    assert called[1][0][5:7] == ["--extra-index-url", "file:///a b"]
    sources = tmp_path / "new" / "sources"  # a copy: no build is left among the repository's files
    assert called[1][0][-1] == str(sources)
    assert (sources / "pyproject.toml").is_file()
    assert (sources / "datasets" / "simulated_tiny.yaml").is_file()
    assert not list(sources.rglob("__pycache__"))
    python = called[2][0][0]
    assert python.startswith(str(tmp_path / "new" / "venv"))
    assert called[1][0][0] == python
    assert "PYTHONPATH" not in called[2][1]  # what was installed is what runs
    with pytest.raises(UsageError, match="constraints"):
        verify_run(run, venv=tmp_path / "nothing.txt", runner=runner)


def test_what_a_recipe_alone_does_not_make_is_refused(run, copy, tmp_path):
    with pytest.raises(MissingDataError, match="not a run"):
        verify_run(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        verify_run(run, out=run.folder)
    with pytest.raises(UsageError, match="tolerances"):
        verify_run(run, rtol=-1.0)
    copy.inputs["targets"] = "ab"
    with pytest.raises(UsageError, match="beyond its recipe"):
        plan_of(copy)
    copy.info.pop("data")
    with pytest.raises(UsageError, match="where its data are"):
        plan_of(copy)


def test_a_plan_says_what_was_done(run, tmp_path, capsys):
    plan = plan_of(run)
    assert plan["decoded"][0]["samples"] == 1
    assert (plan["protocol"], plan["full"], plan["seed"]) == ("neurodiff-1", False, 0)
    assert commands(plan)[0] == "neurodiff fit recipe.yaml --data simulated_tiny --seed 0"
    plan["data"] = "nowhere"
    write_json(tmp_path / "plan.json", {"plan": plan, "folder": str(tmp_path)})
    assert main([str(tmp_path / "plan.json")]) == 2
    assert "error: " in capsys.readouterr().err
