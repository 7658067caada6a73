"""The audit of a fit: said before it, kept with the run, an error where strict."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neurodiff.analysis.leakage import LeakageReport
from neurodiff.analysis.leakage_run import (
    KEY,
    TITLE,
    Strictness,
    audit_before_fit,
    audit_of_run,
    leakage_table,
    remember_audit,
    stated_statistics,
)
from neurodiff.cli import app
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run
from neurodiff.core.stimuli import Stimuli

STRICT = Strictness(strict=True)


def recorded(test=("c", "d"), splits=("train", "test")):
    names = ["a", "b", *test]
    table = pd.DataFrame(
        {"stimulus": names, "split": [splits[0]] * 2 + [splits[1]] * 2, "run": [1, 1, 2, 2]}
    )
    data = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32)
    return Recording.from_arrays(data, table)


def shown(same=False):
    """Pictures by id; "d" is "a" again where ``same``."""
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 255, (64, 64), np.uint8) for name in "abcd"}
    if same:
        pictures["d"] = pictures["a"]
    return Stimuli(pd.DataFrame({"id": list("abcd")}), load_image=pictures.__getitem__)


def severity(report, kind):
    return {c.kind: c.severity for c in report.checks}[kind]


def test_a_clean_split_passes_and_pictures_are_compared_only_where_strict():
    report = audit_before_fit(recorded(), shown())
    assert severity(report, "exact-duplicate") == "not checked"
    report = audit_before_fit(recorded(), shown(), STRICT)
    assert severity(report, "exact-duplicate") == "passed"
    assert severity(report, "same-shape") == "not checked"  # no meshes come with these


def test_strict_ends_and_what_is_allowed_passes():
    with pytest.raises(DataError, match=r"exact-duplicate, 1 of 2 \(d = a\)") as caught:
        audit_before_fit(recorded(), shown(same=True), STRICT)
    assert caught.value.exit_code == 3
    allowing = Strictness(strict=True, allow=("exact-duplicate",))
    assert audit_before_fit(recorded(), shown(same=True), allowing).errors
    with pytest.raises(UsageError, match="no leakage check 'duplicates'"):
        Strictness(strict=True, allow=("duplicates",))
    with pytest.raises(DataError, match="same-stimulus, 1 of 2"):
        audit_before_fit(recorded(test=("a", "d")), shown(), STRICT)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("recipe", ["mind3d_tiny", "no_such_recipe"])
def test_an_unknown_check_is_said_before_anything_else(dry, recipe, tmp_path):
    words = ["fit", recipe, "--data", "nowhere", "--strict", "--allow", "same-stimulis", *dry]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "no leakage check 'same-stimulis'; there are same-stimulus, " in result.output
    assert "same-person" in result.output
    assert "Did you mean 'same-stimulus'" in result.output
    assert not list(tmp_path.iterdir())


def test_without_test_trials_there_is_nothing_to_hold_against():
    assert audit_before_fit(recorded(splits=("train", "train")), shown(), STRICT) is None


def test_test_statistics_of_a_recipe_are_an_error():
    said = stated_statistics("test")
    report = audit_before_fit(recorded(), shown(), preprocessing=said)
    assert [c.kind for c in report.errors] == ["test-statistics"]
    assert stated_statistics("loo") == stated_statistics(None) == {}


def test_a_run_keeps_its_audit_and_one_without_says_why(tmp_path):
    run = Run.create(tmp_path / "run", {"name": "r"}, {"data": "mine"}, command=["x"], seed=0)
    with pytest.raises(MissingDataError, match="does not say on which data"):
        audit_of_run(run)
    title, table, text = leakage_table(run)
    assert title == TITLE
    assert list(table["severity"]) == ["not checked"]
    assert "does not say on which data" in text
    report = audit_before_fit(recorded(test=("a", "d")), shown())
    remember_audit(run, report)
    run.touch()
    again = audit_of_run(Run.open(run.folder))
    assert again == report
    assert isinstance(again, LeakageReport)
    assert "read with: same-stimulus" in leakage_table(run)[2]
    remember_audit(run, None)
    assert KEY in run.info
