"""The command line: what each verb passes on, and how an error ends.

The implementations are replaced by recorders; that their signatures fit is asked of the real ones.
"""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from typer.testing import CliRunner

import neurodiff
from neurodiff.cli import app
from neurodiff.core import doctor
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError

VERBS = ["demo", "check", "fit", "reconstruct", "evaluate", "report", "doctor"]

# What the command line calls: module, function, positional and keyword arguments.
CALLS = {
    "run_demo": ("neurodiff.analysis.demo", 4, ()),
    "check_dataset": ("neurodiff.datasets.opening", 1, ("root", "subject")),
    "fit": ("neurodiff.analysis.verbs", 8, ()),
    "reconstruct_run": ("neurodiff.analysis.verbs", 5, ()),
    "reconstruct_file": ("neurodiff.analysis.verbs", 3, ()),
    "evaluate_run": ("neurodiff.analysis.verbs", 4, ()),
    "report_runs": ("neurodiff.analysis.verbs", 2, ()),
}


class Recorder:
    """Stands for every implementation: notes its calls, returns or raises what it was told."""

    def __init__(self):
        self.calls, self.answer, self.error = [], None, None

    def function(self, name):
        def called(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if self.error is not None:
                raise self.error
            return self.answer

        return called


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    for name, (place, _, _) in CALLS.items():
        package, _, module_name = place.rpartition(".")
        module = sys.modules.get(place)
        if not isinstance(module, ModuleType) or not hasattr(module, "is_a_recorder"):
            module = ModuleType(place)
            module.is_a_recorder = True
            monkeypatch.setitem(sys.modules, place, module)
            monkeypatch.setattr(
                importlib.import_module(package), module_name, module, raising=False
            )
        setattr(module, name, recorder.function(name))
    return recorder


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, list(arguments), prog_name="neurodiff")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run, verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: neurodiff {verb} ")


def test_help_lists_the_verbs_and_the_exit_codes(run):
    output = run("--help").output
    for verb in VERBS:
        assert f"\n  {verb} " in output
    assert "3 data or weights missing or broken" in " ".join(output.split())


def test_version(run):
    assert run("--version").output == f"neurodiff {neurodiff.__version__}\n"


def test_demo_passes_its_arguments(run, recorder):
    recorder.answer = Path("here") / "report.html"
    result = run("demo", "mind3d", "--out", "here", "--seed", "7", "--size", "tiny")
    assert result.exit_code == 0
    assert recorder.calls == [("run_demo", ("mind3d", Path("here"), 7, "tiny"), {})]
    assert result.stdout == f"{Path('here') / 'report.html'}\n"


def test_demo_needs_no_argument(run, recorder):
    assert run("demo").exit_code == 0
    assert recorder.calls == [("run_demo", ("mind3d", Path("demo"), 0, "demo"), {})]


def test_fit_passes_its_arguments(run, recorder):
    settings = ["-s", "prior.steps=10", "-s", "name=a=b"]
    place = ["--out", "runs", "--data", "fmri_shape", "--root", "d", "--subject", "2"]
    result = run("fit", "mind3d_small", *settings, *place, "--seed", "3", "--dry-run")
    assert result.exit_code == 0, result.output
    overrides = ["prior.steps=10", "name=a=b"]
    expected = ("mind3d_small", overrides, Path("runs"), "fmri_shape", Path("d"), 2, 3, True)
    assert recorder.calls == [("fit", expected, {})]


def test_reconstruct_a_run_on_new_data(run, recorder):
    assert run("reconstruct", "r", "--data", "mine", "--root", "d", "--samples", "4").exit_code == 0
    expected = (Path("r"), "mine", Path("d"), None, 4)
    assert recorder.calls == [("reconstruct_run", expected, {})]


def test_reconstruct_a_file(run, recorder):
    assert run("reconstruct", "in.npy", "out", "--model", "m").exit_code == 0
    assert recorder.calls == [
        ("reconstruct_file", (Path("in.npy"), Path("out"), Path("m")), {}),
    ]


def test_evaluate_and_report(run, recorder):
    assert run("evaluate", "r", "--full").exit_code == 0
    assert run("report", "a", "b", "--out", "page.html").exit_code == 0
    assert recorder.calls == [
        ("evaluate_run", (Path("r"), True, "neurodiff-1", None), {}),
        ("report_runs", ([Path("a"), Path("b")], Path("page.html")), {}),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nope"],
        ["fix"],
        ["demo", "brains"],
        ["demo", "--nope"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "one"],
        ["check"],
        ["fit"],
        ["fit", "r", "-s", "no_value"],
        ["fit", "r", "-s", "=3"],
        ["reconstruct"],
        ["reconstruct", "in.npy", "out"],
        ["reconstruct", "in.npy", "--model", "m"],
        ["reconstruct", "in.npy", "out", "--model", "m", "--samples", "2"],
        ["reconstruct", "run", "--samples", "0"],
        ["evaluate"],
        ["report"],
        ["report", "r", "--out", "page.pdf"],
    ],
)
def test_wrong_usage_ends_with_2_and_starts_nothing(run, recorder, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.output
    assert recorder.calls == []


def test_no_argument_shows_the_help(run):
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NeurodiffError("3 of 9 items failed"), 1),
        (UsageError("unknown recipe 'mind'"), 2),
        (DataError("a.npy is truncated"), 3),
        (MissingDataError("no folder d"), 3),
    ],
)
@pytest.mark.parametrize("arguments", [["demo"], ["fit", "r"], ["evaluate", "r"]])
def test_our_errors_are_one_line(run, recorder, arguments, error, code):
    recorder.error = error
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stderr == f"error: {error}\n"
    assert result.stdout == ""


def test_other_errors_keep_their_traceback(run, recorder):
    recorder.error = ZeroDivisionError("a fault of ours")
    assert isinstance(run("demo").exception, ZeroDivisionError)


def test_interruption(run, recorder):
    recorder.error = KeyboardInterrupt()
    result = run("fit", "r")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; run the same command again to continue\n"


def test_check_prints_every_entry_and_ends_with_3_where_one_is_broken(run, recorder):
    advice = "download it again; " * 10  # long texts are not cut
    recorder.answer = pd.DataFrame(
        {
            "status": ["ok", "broken"],
            "what": ["trials", "list"],
            "found": ["", "holds NaN"],
            "what_to_do": ["", advice],
        }
    )
    result = run("check", "mine", "--root", "d", "--subject", "1")
    assert recorder.calls == [("check_dataset", ("mine",), {"root": Path("d"), "subject": 1})]
    assert result.exit_code == 3
    indent = " " * 9
    assert result.stdout.splitlines() == [
        "ok       trials",
        "broken   list",
        f"{indent}holds NaN",
        f"{indent}{advice}",
    ]
    assert result.stderr == "error: 1 of 2 entries of mine are missing or broken\n"


def test_a_subject_is_a_number_or_a_label(run, recorder):
    recorder.answer = pd.DataFrame({"status": ["ok"], "what": ["trials"]})
    for label in ["3", "sub-07"]:
        assert run("check", "mine", "--subject", label).exit_code == 0
    assert [call[2]["subject"] for call in recorder.calls] == [3, "sub-07"]


def test_check_of_sound_data(run, recorder):
    recorder.answer = pd.DataFrame({"status": ["ok"], "what": ["a.npy"]})
    result = run("check", "mine", "--root", "d")
    assert result.exit_code == 0
    assert result.stdout.endswith("all 1 entries are in order\n")


def test_doctor_ends_with_3_where_something_is_missing(run, monkeypatch):
    finding = doctor.Finding(name="x", value="gone", status=doctor.MISSING, advice="install x")
    monkeypatch.setattr(doctor, "diagnose", lambda: [finding])
    result = run("doctor")
    assert result.exit_code == 3
    assert "install x" in result.stdout
    assert result.stdout.endswith("needed and missing or unfit: x\n")


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_implementation_takes_what_the_command_line_passes(name):
    place, positional, keywords = CALLS[name]
    function = getattr(importlib.import_module(place), name)
    inspect.signature(function).bind(*range(positional), **dict.fromkeys(keywords))
