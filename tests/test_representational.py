"""RSA of subjects whose agreement is known, its ceilings, and its null."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, spearmanr

from neurodiff.analysis.attribution_problem import COLUMNS
from neurodiff.analysis.representational import rsa
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.metrics.rdm import correlation_rdm, euclidean_rdm


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


linear_problem = _load("encoding_subjects").linear_problem


def rows(result):
    return result.table.set_index(["subject", "stage", "roi"])


def test_a_rotation_of_the_features_agrees_fully():
    """Orthogonal weights without noise keep every Euclidean distance."""
    problem = linear_problem(d=2, draws=19)
    features = np.stack([problem.truth["first"], problem.truth["second"]])
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    data = np.concatenate(
        [features[0] @ turn, np.random.default_rng(0).standard_normal((40, 2))], 1
    )
    trials = problem.test.trials
    rois = {"turned": np.array([1, 1, 0, 0], bool), "noise": np.array([0, 0, 1, 1], bool)}
    test = Recording.from_arrays(data, trials, rois)
    result = rsa(replace(problem, test=test, rois=rois), distance="euclidean")
    own = rows(result).loc[("sub-1", "first", "turned")]
    assert own["value"] == pytest.approx(1.0, abs=1e-5)
    assert own["p"] == 1 / 20
    assert own["low"] == pytest.approx(1.0, abs=1e-5)
    assert rows(result).loc[("sub-1", "second", "turned")]["p"] > 0.05


@pytest.mark.parametrize("comparison", ["spearman", "kendall", "pearson"])
def test_values_are_those_of_the_tables(comparison):
    problem = linear_problem(draws=9)
    result = rsa(problem, comparison=comparison)
    assert list(result.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    a = correlation_rdm(problem.test.array()[:, problem.rois["first"]])
    b = correlation_rdm(problem.truth["first"])
    np.testing.assert_allclose(result.maps["sub-1/first/rdm"], a, atol=1e-5)
    if comparison == "spearman":
        found = rows(result).loc[("sub-1", "first", "first")]["value"]
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-4)


def test_regions_agree_with_what_they_carry_and_stay_below_the_ceiling():
    problem = linear_problem(vertices=60, noise=0.5, repeats=4, subjects=3, n_test=30)
    for distance in ("correlation", "crossnobis"):
        table = rows(rsa(problem, distance=distance))
        for subject in ("sub-1", "sub-2", "sub-3"):
            own = table.loc[(subject, "first", "first")]
            other = table.loc[(subject, "first", "second")]
            assert own["p"] == 0.01
            assert own["q"] < 0.05
            assert own["value"] > 0.5 > other["value"]
            assert own["ceiling_low"] < own["ceiling_high"] <= 1
            assert own["value"] < own["ceiling_high"] + 0.02
            assert own["across_low"] <= own["across_high"]
            empty = table.loc[(subject, "first", "empty")]
            assert empty["ceiling_low"] < 0.5 * own["ceiling_low"]


def test_the_empty_regions_p_is_uniform():
    """200 regions without a signal and one null: p <= 0.05 within the binomial bound."""
    problem = linear_problem(carries=(None,), vertices=800, n_test=20, draws=99)
    rois = {f"{k}": np.arange(800) // 4 == k for k in range(200)}
    p = rsa(replace(problem, rois=rois)).table.query("stage == 'first'")["p"]
    assert binom.ppf(0.0005, 200, 0.05) <= (p <= 0.05).sum() <= binom.ppf(0.9995, 200, 0.05)


def test_one_repeat_has_no_ceiling_and_no_crossnobis():
    problem = linear_problem(draws=9)
    assert rsa(problem).table[["ceiling_low", "ceiling_high", "across_low"]].isna().all(axis=None)
    with pytest.raises(UsageError, match="40 of 40 test stimuli have one trial; crossnobis needs"):
        rsa(problem, distance="crossnobis")


def test_order_of_trials_changes_nothing():
    problem = linear_problem(repeats=2, draws=9)
    swapped = np.concatenate([np.arange(40), 40 + np.arange(40)[::-1]])
    other = replace(
        problem,
        test=problem.test.select(swapped),
        truth={stage: values[swapped] for stage, values in problem.truth.items()},
    )
    a, b = rsa(problem).table, rsa(other).table
    np.testing.assert_allclose(a["value"], b["value"], atol=1e-6)
    np.testing.assert_allclose(a["p"], b["p"])


def test_few_features_and_many_stimuli():
    problem = linear_problem(draws=9, n_test=30)
    tiny = {"tiny": np.arange(60) < 2, "first": problem.rois["first"]}
    table = rows(rsa(replace(problem, rois=tiny)))
    assert np.isnan(table.loc[("sub-1", "first", "tiny")]["value"])
    assert np.isfinite(table.loc[("sub-1", "first", "first")]["p"])
    result = rsa(problem, most=12)
    assert set(result.table["n_trials"]) == {12}
    assert any("12 of 30 test stimuli, drawn by the seed" in note for note in result.notes)
    assert len(result.maps["sub-1/first/rdm"]) == 66


def test_items_name_each_stimulus():
    result = rsa(linear_problem(draws=9))
    one = result.items.query("stage == 'first' and roi == 'first'")
    assert list(one["stimulus"]) == [f"test-{k}" for k in range(40)]
    assert one["value"].mean() > 0.3


def test_one_feature_takes_euclidean_distances():
    problem = linear_problem(draws=9)
    feature = {i: v[:1] for i, v in problem.decoder.table["first"].items()}
    found = rsa(problem, {"one": feature}).table
    b = euclidean_rdm(problem.truth["first"][:, :1])
    a = correlation_rdm(problem.test.array()[:, problem.rois["first"]])
    expected = spearmanr(a, b).statistic
    assert found.set_index("roi").loc["first", "value"] == pytest.approx(expected, abs=1e-4)


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match="sub-1 has 9 test stimuli"):
        rsa(linear_problem(n_test=9))
    problem = linear_problem(draws=9)
    with pytest.raises(UsageError, match="distance is 'cosine'"):
        rsa(problem, distance="cosine")
    with pytest.raises(UsageError, match="comparison is 'tau'"):
        rsa(problem, comparison="tau")
    with pytest.raises(DataError, match="ROI 'gone' has 0"):
        rsa(replace(problem, rois={"gone": np.zeros(60, bool)}))
