"""The verbs of reports from the command line: words, defaults and exit codes."""

import pytest
import typer
from typer.testing import CliRunner

from neurodiff.analysis import benchmark_report, figure_specs, report_figures, report_verify, verbs
from neurodiff.cli import Verbs
from neurodiff.cli_report import figures, report_app
from neurodiff.core.run import Run


@pytest.fixture
def call():
    app = typer.Typer(cls=Verbs)
    app.add_typer(report_app, name="report")
    app.command("figures")(figures)

    def run(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    return run


def make(folder, steps=1):
    inputs = {"data": "made", "simulated": True}
    return Run.create(folder, {"name": "x", "steps": steps}, inputs, command="x", seed=0)


def test_a_run_folder_still_gives_the_page(call, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(verbs, "report_runs", lambda runs, out: seen.append((runs, out)) or out)
    call("report", "a", "b", "--out", "p.html")
    call("report", "--out", "p.html", "a")
    call("report", "page", "a")
    assert [[str(one) for one in runs] for runs, _ in seen] == [["a", "b"], ["a"], ["a"]]
    assert "must name a file" in call("report", "a", "--out", "p.pdf", code=2).stderr


def test_diff_says_same_or_different_by_its_exit_code(call, tmp_path):
    make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", steps=2)
    same = call("report", "diff", tmp_path / "a", tmp_path / "b")
    assert same.stdout.splitlines()[-1] == "same: exit code 0"
    out = tmp_path / "diff.json"
    other = call("report", "diff", tmp_path / "a", tmp_path / "c", "--out", out, code=1)
    assert "steps: 1 | 2" in other.stdout
    assert out.is_file()
    assert "neither" in call("report", "diff", tmp_path / "a", tmp_path / "z", code=3).stderr


def test_options_reach_the_functions(call, monkeypatch, tmp_path):
    seen = {}

    def keep(name, answer):
        def function(*arguments, **options):
            seen[name] = (arguments, {k: v for k, v in options.items() if k != "progress"})
            return answer

        return function

    class Found:
        exit_code = 1

        def text(self):
            return "the replay differs"

    monkeypatch.setattr(benchmark_report, "benchmark_page", keep("page", "p.html"))
    monkeypatch.setattr(report_verify, "verify_run", keep("verify", Found()))
    monkeypatch.setattr(report_figures, "write_figures", keep("figures", ["x.pdf"]))
    monkeypatch.setattr(figure_specs, "carry_out", keep("spec", ["y.svg"]))
    call("report", "benchmark", "a", "b", "--budget", "3", "--strict")
    assert seen["page"][1] == {"budget_mb": 3.0, "strict": True}
    call("report", "verify", "a", "--from", "evaluate", "--exact", code=1)
    assert seen["verify"][1]["start"] == "evaluate"
    assert seen["verify"][1]["exact"] is True
    make(tmp_path / "r")
    call("figures", tmp_path / "r", "--format", "pdf", "--kind", "scores")
    assert seen["figures"][0][2] == "pdf"
    assert seen["figures"][0][3][0].kind == "scores"
    call("figures", "figures_tiny", "--root", "data")
    assert seen["spec"][0][0].name == "figures_tiny"


def test_a_specification_can_be_told_before_it_is_done(call, tmp_path):
    shown = call("figures", "figures_tiny", "--dry-run").stdout.splitlines()
    assert shown[0] == "run: mind3d_tiny on simulated_tiny, seed 0"
    assert "Did you mean" in call("figures", "figures_tinny", code=2).stderr
    call("figures", tmp_path, "--dry-run", code=2)
    call("report", code=2)
