"""The curve over bottlenecks: as many numbers as were planted do as well as all."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis import benchmark_bottleneck as module
from neurodiff.analysis.benchmark_bottleneck import (
    COLUMNS,
    bottleneck_facts,
    bottleneck_of,
    bottleneck_table,
)
from neurodiff.analysis.kinds import IMAGES
from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.core.errors import DataError


@pytest.fixture(scope="module")
def planted():
    """A head of 40 features that are two numbers of 30 voxels, and 20 test rows."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 30))
    weights = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 40))
    Y = X @ weights + 0.1 * rng.standard_normal((120, 40))
    bridge = FactoredRidge([1e-3], standardise="none").fit(X[:100], Y[:100])
    trials = pd.DataFrame({"subject": "s", "stimulus": [f"p{k}" for k in range(20)]})
    return {"vision": bridge}, X[100:], {"vision": Y[100:]}, trials


def test_two_numbers_do_as_well_as_all_and_one_does_not(planted):
    table = bottleneck_table(*planted).set_index("numbers")
    assert list(table.reset_index()[list(COLUMNS)]) == list(COLUMNS)
    assert list(table.index) == ["1", "2", "5", "10", "20", "all"]  # 50 are more than 30 voxels
    share = table["share of all numbers"]
    assert share["1"] < 0.9
    assert share["2"] == pytest.approx(1.0, abs=0.01)
    assert share["all"] == 1.0
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_the_order_of_the_trials_changes_nothing(planted):
    heads, X, truth, trials = planted
    order = np.random.default_rng(1).permutation(20)
    mixed = bottleneck_table(
        heads, X[order], {"vision": truth["vision"][order]},
        trials.iloc[order].reset_index(drop=True),
    )  # fmt: skip
    pd.testing.assert_frame_equal(mixed, bottleneck_table(heads, X, truth, trials))


def test_what_cannot_be_had_is_said_and_other_pipelines_have_no_section(monkeypatch):
    run = SimpleNamespace(folder="somewhere")
    monkeypatch.setattr(module, "pipeline_of_run", lambda _: "mind3d")
    assert bottleneck_of(run, "no data")[1] == ""
    assert bottleneck_facts({"a": bottleneck_of(run, "no data")}) == []
    monkeypatch.setattr(module, "pipeline_of_run", lambda _: IMAGES)
    assert bottleneck_of(run, "no data")[1] == "not available: no data"

    def broken(*_):
        raise DataError("the networks are not there")

    monkeypatch.setattr(module, "_curve", broken)
    curve = bottleneck_of(run, (None, None))
    [facts] = bottleneck_facts({"a": curve})
    assert facts["notes"] == ["a: not available: the networks are not there"]
    assert facts["tables"] == []
