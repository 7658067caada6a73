"""Correlations over stimuli, their null, intervals and ceilings, against numpy and by hand."""

import numpy as np
import pytest
from scipy.stats import binom, false_discovery_control

from neurodiff.metrics.encoding_scores import (
    bootstrap_weights,
    centred_within,
    column_correlations,
    correlation_null,
    exchange_orders,
    false_discovery,
    mean_ceiling,
    normalised,
    resampled_correlations,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_correlations_are_those_of_numpy(rng):
    a, b = rng.standard_normal((2, 20, 5))
    expected = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(5)]
    np.testing.assert_allclose(column_correlations(a, b), expected)
    np.testing.assert_allclose(column_correlations(3 * a - 1, b + 7), expected)


def test_a_constant_prediction_says_nothing_and_a_constant_vertex_is_unknown(rng):
    a, b = rng.standard_normal((2, 20, 2))
    a[:, 0], b[:, 1] = 1e6, -3.0
    np.testing.assert_array_equal(column_correlations(a, b), [0.0, np.nan])


def test_folds_with_other_means_do_not_pull(rng):
    a, b = rng.standard_normal((2, 20, 3))
    folds = np.arange(20) % 4
    moved = a + 100 * folds[:, None]
    np.testing.assert_allclose(
        column_correlations(moved, b, folds), column_correlations(a, b, folds)
    )
    centred = centred_within(b, folds)
    np.testing.assert_allclose([centred[folds == k].mean() for k in range(4)], 0, atol=1e-12)


def test_orders_stay_within_blocks_and_reach_every_permutation():
    orders = exchange_orders(["a", "b", "a", "b", "a"], draws=500, seed=0)
    assert set(np.unique(orders[:, [0, 2, 4]])) == {0, 2, 4}
    assert set(np.unique(orders[:, [1, 3]])) == {1, 3}
    assert len(np.unique(orders, axis=0)) == 12  # 3! x 2!
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(5), (500, 1)))
    with pytest.raises(ValueError, match="each of the 3 stimuli is alone"):
        exchange_orders(["a", "b", "c"], draws=5, seed=0)
    with pytest.raises(ValueError, match="0 permutations"):
        exchange_orders(["a", "a"], draws=0, seed=0)


def test_the_null_is_the_correlation_with_permuted_rows(rng):
    a, b = rng.standard_normal((2, 15, 4))
    b[:, 0] += 3 * a[:, 0]
    orders = exchange_orders(np.zeros(15), 99, 1)
    rois = np.array([[True, True, False, False], [False, False, True, True]])
    null = correlation_null(a, b, orders, rois=rois)
    permuted = np.stack([column_correlations(a, b[order]) for order in orders])
    observed = column_correlations(a, b)
    np.testing.assert_allclose(null.p, (1 + (permuted >= observed).sum(axis=0)) / 100)
    largest = permuted.max(axis=1)
    np.testing.assert_allclose(null.p_max, [(1 + (largest >= r).sum()) / 100 for r in observed])
    np.testing.assert_allclose(null.means, np.stack([permuted[:, mask].mean(1) for mask in rois]))
    assert null.p[0] == null.p_max[0] == 0.01


def test_p_of_noise_is_uniform_and_of_the_largest_family_wise(rng):
    """1,000 vertices of noise: 0.05 and 0.01 within the binomial bound; p_max is never smaller."""
    a, b = rng.standard_normal((2, 40, 1000))
    null = correlation_null(a, b, exchange_orders(np.arange(40) // 10, 199, 0))
    for level in (0.05, 0.01):
        bounds = binom.ppf([0.0005, 0.9995], 1000, level)
        assert bounds[0] <= (null.p <= level).sum() <= bounds[1]
    assert (null.p_max >= null.p).all()
    assert (null.p_max <= 0.05).sum() <= 2


def test_vertices_do_not_depend_on_each_other(rng):
    a, b = rng.standard_normal((2, 20, 6))
    b[:, 3] = 1.0
    orders = exchange_orders(np.zeros(20), 50, 0)
    whole, part = correlation_null(a, b, orders), correlation_null(a[:, :2], b[:, :2], orders)
    np.testing.assert_array_equal(whole.p[:2], part.p)
    assert np.isnan([whole.p[3], whole.p_max[3]]).all()


def test_resampled_correlations_are_those_of_the_repeated_rows(rng):
    a, b = rng.standard_normal((2, 12, 3))
    found = np.concatenate(list(resampled_correlations(a, b, 30, seed=4)))
    weights = np.concatenate(list(bootstrap_weights(12, 30, 4)))
    np.testing.assert_array_equal(weights.sum(axis=1), 12)
    for row, weight in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(12), weight.astype(int))
        np.testing.assert_allclose(row, column_correlations(a[rows], b[rows]))


def test_intervals_cover(rng):
    """95 % percentile intervals of r = 0.5 with 100 stimuli: coverage within the binomial bound."""
    noise = rng.standard_normal((2, 100, 400))
    a, b = noise[0], 0.5 * noise[0] + np.sqrt(0.75) * noise[1]
    drawn = np.concatenate(list(resampled_correlations(a, b, 400, seed=0)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    covered = ((low <= 0.5) & (high >= 0.5)).sum()
    assert binom.ppf(0.0005, 400, 0.93) <= covered <= binom.ppf(0.9995, 400, 0.97)


def test_fdr_is_scipys_over_what_is_known(rng):
    p = rng.random(20)
    holed = p.copy()
    holed[4] = np.nan
    q = false_discovery(holed)
    np.testing.assert_allclose(np.delete(q, 4), false_discovery_control(np.delete(p, 4)))
    assert np.isnan(q[4])
    assert np.isnan(false_discovery(np.full(3, np.nan))).all()


def test_ceiling_of_means_by_spearman_brown(rng):
    single = rng.random(5)
    found = mean_ceiling(single, np.full(7, 3))
    np.testing.assert_allclose(found, 3 * single / (1 + 2 * single))
    np.testing.assert_allclose(mean_ceiling(single, np.ones(7, int)), single)
    np.testing.assert_allclose(mean_ceiling(np.array([0.5]), np.array([1, 3])), 0.5 / (0.5 + 1 / 3))


def test_normalised_is_the_correlation_with_the_noise_free_response(rng):
    """x: signal plus noise of variance 3; r of the signal itself over the root of 1/4 is 1."""
    signal, noise = rng.standard_normal((2, 100_000, 1))
    r = column_correlations(signal, signal + np.sqrt(3) * noise)
    assert normalised(r, np.array([0.25]))[0] == pytest.approx(1, abs=0.02)
    assert np.isnan(normalised(r, np.array([0.04]))).all()
    assert np.isnan(normalised(r, np.array([np.nan]))).all()


def test_bad_arrays_raise(rng):
    with pytest.raises(ValueError, match="at least 3 stimuli"):
        column_correlations(np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="NaN"):
        column_correlations(np.full((3, 1), np.nan), np.zeros((3, 1)))
