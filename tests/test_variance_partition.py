"""Variance partitioning against closed forms: independent families, shared ones, and the identity
that parts add up."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import Ridge

from neurodiff.analysis.variance_partition import variance_partition
from neurodiff.bridges.variance import banded_predictions, family_weights
from neurodiff.core.errors import DataError, UsageError
from neurodiff.metrics.encoding_scores import false_discovery
from neurodiff.metrics.variance_shares import (
    error_gain,
    sign_flips,
    subsets,
    variance_parts,
)


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


linear_problem = _load("encoding_subjects").linear_problem


def of(result, stage, roi):
    table = result.table.set_index(["stage", "roi"])
    return table.loc[(stage, roi)]


def test_three_sets_by_hand():
    """A Venn diagram with a different number in each of its seven fields is found again."""
    fields = {k: float(v) for v, k in enumerate(subsets("abc"), start=1)}
    explained = {
        models: sum(v for k, v in fields.items() if set(k) & set(models)) for models in fields
    }
    assert variance_parts(explained, list("abc")) == pytest.approx(fields)


def test_missing_subsets_and_single_families_raise():
    with pytest.raises(ValueError, match=r"no R² of the families b"):
        variance_parts({("a",): 0.1}, ["a", "b"])
    with pytest.raises(ValueError, match="two or more"):
        variance_parts({("a",): 0.1}, ["a"])


def test_gain_sums_to_r2():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    measured = rng.standard_normal((30, 4))
    predicted = measured + rng.standard_normal((30, 4))
    mean = np.broadcast_to(measured.mean(axis=0), (30, 4))
    gain, before = error_gain(predicted, measured, mean)
    expected = r2_score(measured, predicted, multioutput="raw_values")
    np.testing.assert_allclose(gain.sum(axis=0) / before.sum(axis=0), expected)
    # a model that knows no more than the baseline gains nothing, whatever the baseline
    np.testing.assert_array_equal(error_gain(mean + 1, measured, mean + 1)[0], 0)


def test_random_signs_have_the_variance_of_the_sum():
    contributions = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]])
    null = sign_flips(contributions, draws=4000, seed=0)
    np.testing.assert_allclose(null.var(axis=0), [14, 1], rtol=0.1)
    assert set(np.abs(null[:, 1])) == {1.0}


def test_one_family_is_ridge():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((30, 5)), rng.standard_normal((7, 5))
    y = rng.standard_normal((30, 3))
    found = banded_predictions({"a": train}, {"a": test}, y, ["a"], alphas=[0.5])
    scale = np.square(train - train.mean(axis=0)).sum() / 30
    expected = Ridge(alpha=0.5 * scale).fit(train, y).predict(test)
    np.testing.assert_allclose(found, expected)


def test_two_families_are_ridge_on_scaled_columns():
    rng = np.random.default_rng(1)
    train = {"a": rng.standard_normal((30, 5)), "b": 100 * rng.standard_normal((30, 2))}
    test = {"a": rng.standard_normal((7, 5)), "b": 100 * rng.standard_normal((7, 2))}
    y = rng.standard_normal((30, 3))
    found = banded_predictions(train, test, y, ["a", "b"], alphas=[0.5], banded=False)
    scale = {k: np.sqrt(0.5 / (np.square(v - v.mean(axis=0)).sum() / 30)) for k, v in train.items()}
    both = [np.hstack([side[k] * scale[k] for k in ("a", "b")]) for side in (train, test)]
    np.testing.assert_allclose(found, Ridge(alpha=0.5).fit(both[0], y).predict(both[1]))


def test_weights_sum_to_one_and_include_equal_ones():
    weights = family_weights(3)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights[0], 1 / 3)
    assert len(family_weights(2, banded=False)) == 1


def test_parts_of_independent_families():
    """A region of one family: its R² is 1 / (1 + noise), all of it unique, nothing shared."""
    problem = linear_problem(n_train=400, n_test=200, noise=1.0)
    result = variance_partition(problem)
    assert len(result.table) == 6 * 3
    for mine, other in (("first", "second"), ("second", "first")):
        own = of(result, f"unique: {mine}", mine)
        assert own["value"] == pytest.approx(0.5, abs=0.05)
        assert own["p"] == 0.01
        assert own["low"] < own["value"] < own["high"]
        assert of(result, f"unique: {other}", mine)["value"] == pytest.approx(0, abs=0.03)
        assert of(result, "shared: first + second", mine)["value"] == pytest.approx(0, abs=0.03)
        assert of(result, f"unique: {mine}", "empty")["p"] > 0.01


def test_parts_add_up_to_the_whole_and_items_to_the_parts():
    result = variance_partition(linear_problem(draws=9))
    for roi in ("first", "second", "empty"):
        parts = [of(result, s, roi)["value"] for s in PARTS]
        whole = of(result, "model: first + second", roi)["value"]
        assert sum(parts) == pytest.approx(whole)
    sums = result.items.groupby(["stage", "roi"])["value"].sum()
    for _, row in result.table.iterrows():
        assert sums[(row["stage"], row["roi"])] == pytest.approx(row["value"])


PARTS = ("unique: first", "unique: second", "shared: first + second")


def test_the_same_features_twice_share_everything():
    problem = linear_problem(n_train=300, n_test=150, draws=49)
    first = problem.decoder.table["first"]
    result = variance_partition(problem, {"a": first, "b": first})
    assert "a and b have equal features, so that nothing can be unique to either." in result.notes
    assert of(result, "shared: a + b", "first")["value"] == pytest.approx(0.5, abs=0.05)
    assert of(result, "shared: a + b", "first")["p"] == 0.02
    for part in ("unique: a", "unique: b"):
        assert of(result, part, "first")["value"] == pytest.approx(0, abs=1e-9)


def test_three_families_and_ceiling():
    problem = linear_problem(n_train=300, n_test=150, draws=19, repeats=2)
    rng = np.random.default_rng(5)
    stages = dict(problem.decoder.table)
    stages["third"] = {i: rng.standard_normal(3) for i in stages["first"]}
    result = variance_partition(problem, stages)
    assert len(result.table) == 14 * 3
    own = of(result, "unique: first", "first")
    assert own["value"] == pytest.approx(2 / 3, abs=0.05)
    assert own["normalised"] == pytest.approx(1, abs=0.07)
    with pytest.raises(UsageError, match="two or three families"):
        variance_partition(problem, {**stages, "fourth": stages["third"]})
    two = variance_partition(problem, stages, families=["first", "third"])
    assert set(two.table["stage"]) >= {"unique: first", "unique: third"}


def test_cross_validated_without_training_trials():
    problem = linear_problem(n_test=200, with_train=False, draws=19)
    result = variance_partition(problem)
    assert of(result, "unique: first", "first")["value"] == pytest.approx(0.48, abs=0.06)


def test_empty_regions_are_called_within_the_binomial_bound():
    """40 regions beside a loaded one: a useless family predicts worse, so p errs to the safe side,
    and what nobody explains is not shared either."""
    p = []
    for seed in range(40):
        problem = linear_problem(carries=("first", None), vertices=10, n_train=60, seed=seed)
        result = variance_partition(problem)
        p.append([of(result, stage, "empty")["p"] for stage in PARTS])
    assert ((np.array(p) <= 0.05).sum(axis=0) <= binom.ppf(0.999, 40, 0.05)).all()


def test_q_is_no_smaller_than_p():
    table = variance_partition(linear_problem(draws=19)).table
    assert (table["q"] >= table["p"] - 1e-12).all()
    np.testing.assert_allclose(table["q"], false_discovery(table["p"].to_numpy()))


def test_bad_input_is_one_sentence():
    problem = linear_problem(draws=9)
    with pytest.raises(UsageError, match="two or three families, each once, of first, second"):
        variance_partition(problem, families=["first"])
    with pytest.raises(UsageError, match="got first, nowhere"):
        variance_partition(problem, families=["first", "nowhere"])
    with pytest.raises(DataError, match="'gone' has"):
        variance_partition(replace(problem, rois={"gone": np.zeros(60, bool)}))
    rows = np.ones((4, 2))
    with pytest.raises(DataError, match="no feature of family 'a' varies"):
        banded_predictions({"a": rows}, {"a": rows}, rows, ["a"])
    with pytest.raises(DataError, match="alphas must be positive"):
        banded_predictions({"a": np.eye(4)}, {"a": np.eye(4)}, rows, ["a"], alphas=[-1.0])


def test_intervals_are_those_of_r2_on_the_stimuli_drawn():
    """The model rows' bootstrap is 1 - error / error of the training mean on the repeated rows."""
    from neurodiff.analysis.encoding_data import draw_seed, subjects_of
    from neurodiff.analysis.encoding_features import stage_features
    from neurodiff.analysis.variance_partition import _held_out
    from neurodiff.metrics.encoding_scores import bootstrap_weights

    problem = linear_problem(draws=50)
    result = variance_partition(problem, banded=False)
    (data,) = subjects_of(problem, exchange="all")
    sides = stage_features(problem, data)
    predicted = _held_out(data, sides, ("first",), "stimulus", None, False)
    seed = draw_seed(problem, "sub-1", "", "variance bootstrap")
    weights = np.concatenate(list(bootstrap_weights(40, 50, seed)))
    inside = problem.rois["first"]
    error = (data.test.means - predicted)[:, inside] ** 2
    before = (data.test.means - data.train.means.mean(axis=0))[:, inside] ** 2
    values = [
        (1 - error[rows].sum(axis=0) / before[rows].sum(axis=0)).mean()
        for rows in (np.repeat(np.arange(40), one.astype(int)) for one in weights)
    ]
    row = of(result, "model: first", "first")
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(values, [0.025, 0.975]))
