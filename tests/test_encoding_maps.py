"""Encoding maps of subjects whose ceiling, and so whose answer, is known in closed form."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from neurodiff.analysis.attribution_problem import COLUMNS
from neurodiff.analysis.encoding_maps import encoding_maps
from neurodiff.core.errors import DataError, UsageError


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


linear_problem = _load("encoding_subjects").linear_problem


def rows(result):
    return result.table.set_index(["subject", "stage", "roi"])


def test_what_each_region_carries_is_found_and_reaches_the_ceiling():
    """With many training stimuli r is the root of the ceiling, 1 / (1 + 1 / 2), normalised 1."""
    problem = linear_problem(n_train=600, n_test=200, repeats=2, subjects=2)
    result = encoding_maps(problem)
    assert list(result.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert len(result.table) == 2 * 2 * 3
    table = rows(result)
    for subject in ("sub-1", "sub-2"):
        for stage in ("first", "second"):
            own = table.loc[(subject, stage, stage)]
            assert own["value"] == pytest.approx(np.sqrt(2 / 3), abs=0.04)
            assert own["normalised"] == pytest.approx(1.0, abs=0.05)
            assert own["ceiling"] == pytest.approx(2 / 3, abs=0.06)
            assert own["low"] < own["value"] < own["high"]
            assert own["p"] == 1 / 100
            assert own["q"] <= 0.05
            assert own["share_significant"] == 1.0
            other = table.loc[(subject, stage, "second" if stage == "first" else "first")]
            assert abs(other["value"]) < 0.06
            assert other["p"] > 0.01
            assert abs(table.loc[(subject, stage, "empty")]["value"]) < 0.06
    r = result.maps["sub-1/first/r"]
    assert r.shape == (60,)
    assert r[:20].min() > np.abs(r[20:]).max()
    assert (result.maps["sub-1/first/p_max"][:20] == 0.01).all()


def test_items_sum_to_the_value_of_their_region():
    result = encoding_maps(linear_problem(draws=9))
    sums = result.items.groupby(["subject", "stage", "roi"])["value"].sum()
    for key, row in rows(result).iterrows():
        assert sums[key] == pytest.approx(row["value"], abs=1e-9)


def test_empty_vertices_are_called_at_the_stated_rate_and_fdr_is_controlled():
    """300 vertices without a signal: p <= 0.05 within the binomial bound; none survive FDR here."""
    problem = linear_problem(carries=(None,), vertices=300, draws=199)
    p = encoding_maps(problem).maps["sub-1/first/p"]
    assert binom.ppf(0.001, 300, 0.05) <= (p <= 0.05).sum() <= binom.ppf(0.999, 300, 0.05)
    planted = linear_problem(carries=("first", None), vertices=60, n_train=200, n_test=80)
    q = encoding_maps(planted).maps["sub-1/first/q"]
    assert (q[:60] <= 0.05).all()
    assert (q[60:] <= 0.05).sum() <= binom.ppf(0.999, 60, 0.05)


def test_without_a_test_split_it_is_cross_validated():
    problem = linear_problem(n_test=200, with_train=False)
    table = rows(encoding_maps(problem))
    assert table.loc[("sub-1", "first", "first")]["value"] == pytest.approx(np.sqrt(0.5), abs=0.06)
    # centring within folds: an empty region is not pulled below zero
    assert table.loc[("sub-1", "first", "empty")]["p"] > 0.01
    assert abs(table.loc[("sub-1", "first", "empty")]["value"]) < 0.06


def test_repeats_and_their_order_change_nothing():
    problem = linear_problem(repeats=2, draws=19)
    order = np.random.default_rng(1).permutation(problem.test.n_trials)
    # stimuli keep their order of first appearance, which the draws refer to
    order = np.concatenate([np.arange(40), 40 + np.argsort(order[:40])])
    mixed = replace(
        problem,
        test=problem.test.select(order),
        truth={stage: values[order] for stage, values in problem.truth.items()},
    )
    a, b = encoding_maps(problem), encoding_maps(mixed)
    pd.testing.assert_frame_equal(a.table, b.table)


def test_frames_count_as_their_mean():
    table = rows(encoding_maps(linear_problem(frames=3, n_train=300, n_test=150, draws=19)))
    assert table.loc[("sub-1", "first", "first")]["value"] == pytest.approx(np.sqrt(0.5), abs=0.06)


def test_features_given_by_table_mapping_and_array_agree():
    problem = linear_problem(draws=9)
    by_id = problem.decoder.table["first"]
    ids = [f"train-{k}" for k in range(80)] + [f"test-{k}" for k in range(40)]
    table = pd.DataFrame(by_id).T
    array = np.stack([by_id[i] for i in ids])
    found = [encoding_maps(problem, {"mine": given}) for given in (by_id, table, array)]
    own = encoding_maps(problem).table.query("stage == 'first'")
    for result in found:
        np.testing.assert_allclose(result.table["value"], own["value"])


def test_without_repeats_normalised_is_not_available_and_said_so():
    result = encoding_maps(linear_problem(draws=9))
    assert result.table["normalised"].isna().all()
    assert result.table["ceiling"].isna().all()
    assert any("ceiling is not available: no two stimuli have repeats" in n for n in result.notes)


def test_exchange_blocks_are_runs_and_said_so():
    result = encoding_maps(linear_problem(draws=9))
    assert any("same runs equally often (4 blocks of 40 stimuli" in note for note in result.notes)
    alone = linear_problem(draws=9, runs=40)
    assert any("only 0 of 40 share their runs" in note for note in encoding_maps(alone).notes)
    with pytest.raises(UsageError, match="no two of the 40 stimuli were shown in the same runs"):
        encoding_maps(alone, exchange="runs")


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match=r"9 test stimuli; .* at least 10"):
        encoding_maps(linear_problem(n_test=9))
    problem = linear_problem(draws=9)
    with pytest.raises(DataError, match="'gone' has"):
        encoding_maps(replace(problem, rois={"gone": np.zeros(60, bool)}))
    with pytest.raises(DataError, match="no row for stimulus 'train-0'"):
        encoding_maps(problem, {"mine": {}})
    with pytest.raises(UsageError, match="one row for each of the 120 stimuli"):
        encoding_maps(problem, {"mine": np.zeros((3, 2))})
    with pytest.raises(DataError, match="none of the 2 features varies"):
        encoding_maps(problem, {"mine": np.zeros((120, 2))})
    with pytest.raises(UsageError, match="exchange is 'weekday'"):
        encoding_maps(problem, exchange="weekday")
    truth = {"first": np.full((40, 4), np.nan)}
    with pytest.raises(DataError, match="of stimulus 'test-0' hold NaN"):
        encoding_maps(replace(problem, truth=truth))


class Reads:
    """A decoder that hands on some vertices as they are, noise and all."""

    name, stages = "reads", ("tokens",)

    def decode(self, data, trials):
        return {"tokens": data[:, 15:45].reshape(len(data), 3, 10)}

    def truth(self, ids):
        return {"tokens": np.zeros((len(ids), 2))}


def test_decoded_features_come_from_other_trials():
    """Vertices 15 to 44 are read: up to 39 they carry a signal, then noise that does not repeat."""
    problem = replace(linear_problem(repeats=2, n_test=150, noise=0.3), decoder=Reads())
    result = encoding_maps(problem, source="decoded")
    r = result.maps["sub-1/tokens/r"]
    assert r[20:40].min() > 0.6
    assert np.abs(r[40:]).max() < 0.3
    assert rows(result).loc[("sub-1", "tokens", "empty")]["p"] > 0.01
    assert any("every second trial of 150 stimuli" in note for note in result.notes)
    with pytest.raises(UsageError, match="sub-1 has 0 of 40 test stimuli with two trials"):
        encoding_maps(linear_problem(draws=9), source="decoded")
    with pytest.raises(UsageError, match="'decoded' together with features"):
        encoding_maps(problem, {"a": {}}, source="decoded")
    with pytest.raises(UsageError, match="source is 'brain'"):
        encoding_maps(problem, source="brain")
