"""Intervals and variance components on data whose answer is known."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neurodiff.metrics import statistics


def skewed(n: int = 60) -> np.ndarray:
    return np.random.default_rng(3).exponential(size=n)


def test_interval_of_a_mean_is_the_binomial_one():
    """n values of 0 and 1: the bootstrapped mean is Binomial(n, p) / n."""
    values = np.repeat([0.0, 1.0], [70, 30])
    got = statistics.bootstrap_interval(values, n=20_000)
    expected = stats.binom(100, 0.3).interval(0.95)
    # Percentiles of a lattice: at most one step of 1/100 off.
    assert got.value == pytest.approx(0.3)
    np.testing.assert_allclose([got.low, got.high], np.array(expected) / 100, atol=0.0101)
    assert got.n_items == 100


def test_interval_shifts_and_scales_with_the_values():
    values = skewed()
    plain = statistics.bootstrap_interval(values, seed=5)
    moved = statistics.bootstrap_interval(2 * values + 1, seed=5)
    assert moved.low == pytest.approx(2 * plain.low + 1)
    assert moved.high == pytest.approx(2 * plain.high + 1)


def test_seed_fixes_the_interval():
    values = skewed()
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)
    assert statistics.bootstrap_interval(values) != statistics.bootstrap_interval(values, seed=1)


def test_confidence_widens_the_interval():
    widths = []
    for confidence in (0.5, 0.9, 0.99):
        got = statistics.bootstrap_interval(skewed(), confidence=confidence)
        widths.append(got.high - got.low)
    assert widths == sorted(widths)
    assert widths[0] < 0.6 * widths[1]


def test_median_and_general_statistics_take_the_same_draws():
    values = skewed()
    fast = statistics.bootstrap_interval(values, np.median, n=300)
    slow = statistics.bootstrap_interval(values, lambda x: float(np.median(x)), n=300)
    assert fast == slow


def test_paired_arrays_are_resampled_together():
    """A constant difference has no uncertainty when, and only when, the pairs are kept."""
    values = skewed()
    got = statistics.bootstrap_interval(
        [values + 0.25, values], lambda a, b: float(a.mean() - b.mean()), n=200
    )
    np.testing.assert_allclose([got.low, got.value, got.high], 0.25, atol=1e-12)


def test_bca_agrees_with_scipy():
    values = skewed(40)
    ours = statistics.bootstrap_interval(values, np.mean, n=10_000, method="BCa")
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(9)
    ).confidence_interval
    percentile = statistics.bootstrap_interval(values, np.mean, n=10_000)
    np.testing.assert_allclose([ours.low, ours.high], theirs, atol=0.02)
    assert ours.low > percentile.low  # a long right tail moves both ends up
    assert ours.high > percentile.high + 0.02


def test_constant_values_have_no_width():
    for method in ("percentile", "BCa"):
        got = statistics.bootstrap_interval(np.full(9, 0.5), method=method)
        assert (got.low, got.value, got.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0]), "at least 2"),
        (np.array([1.0, np.nan]), "1 values are NaN"),
        ([np.zeros(3), np.zeros(4)], "cannot be paired"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        statistics.bootstrap_interval(values)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_way_to_ceiling_of_a_known_share(statistic):
    """Each item has gone 30% of its own way of equal length: exact in every resample."""
    floor = skewed()
    ceiling = floor - 0.5
    got = statistics.way_to_ceiling(floor - 0.15, floor, ceiling, statistic=statistic)
    np.testing.assert_allclose([got.low, got.value, got.high], 0.3, atol=1e-12)
    flipped = statistics.way_to_ceiling(-(floor - 0.15), -floor, -ceiling, statistic=statistic)
    assert flipped.value == pytest.approx(0.3)


def test_way_to_ceiling_is_a_ratio_of_means_not_a_mean_of_ratios():
    floor, ceiling = np.array([1.0, 4.0]), np.array([0.0, 0.0])
    values = np.array([1.0, 2.0])
    got = statistics.way_to_ceiling(values, floor, ceiling, n=500)
    assert got.value == pytest.approx((2.5 - 1.5) / 2.5)
    # Resamples can only be (first, first), (second, second) or both: 0, 1/2 and 0.4.
    assert (got.low, got.high) == (0, 0.5)


def test_way_to_ceiling_ends():
    floor, ceiling = skewed() + 1, 0.1 * skewed()
    assert statistics.way_to_ceiling(floor, floor, ceiling).value == 0
    assert statistics.way_to_ceiling(ceiling, floor, ceiling).value == 1
    with pytest.raises(ValueError, match="no way between"):
        statistics.way_to_ceiling(floor, floor, floor)


def test_way_without_a_gap_has_no_bounds_and_says_so():
    noise = np.random.default_rng(0).normal(size=(2, 30))
    got = statistics.way_to_ceiling(noise[0], noise[0], noise[1])
    assert np.isnan([got.low, got.high]).all()
    assert "not told apart" in got.note


def spread(n: int, variance: float) -> np.ndarray:
    """n centred values with the given sample variance."""
    x = np.arange(n) - (n - 1) / 2
    return x * np.sqrt(variance / x.var(ddof=1))


def test_additive_effects_are_recovered_exactly():
    a, b, c = spread(3, 0.5), spread(4, 2.0), spread(6, 0.1)
    values = 7 + a[:, None, None] + b[:, None] + c
    got = statistics.variance_components(values)
    expected = dict.fromkeys(got, 0.0) | {"seed": 0.5, "subject": 2.0, "stimulus": 0.1}
    assert list(got) == list(expected)
    np.testing.assert_allclose(list(got.values()), list(expected.values()), atol=1e-12)


def test_interaction_lands_in_its_own_component():
    """A product of centred effects: the mains lose what the interaction adds to their squares."""
    u, v = spread(3, 1.0), spread(4, 2.0)
    values = np.broadcast_to((u[:, None] * v)[:, :, None], (3, 4, 5)).copy()
    got = statistics.variance_components(values)
    assert got["seed:subject"] == pytest.approx(2.0)
    assert got["seed"] == pytest.approx(-2.0 / 4)
    assert got["subject"] == pytest.approx(-2.0 / 3)
    assert got["stimulus"] == pytest.approx(0)
    assert got["residual"] == pytest.approx(0)


@pytest.mark.parametrize("planted", [(0,), (1, 2), (0, 1, 2)])
def test_estimator_is_unbiased(planted):
    """The mean over all signs of a random effect of unit variance is the planted component.

    A quadratic form sees of an effect only its second moments, which equally likely signs share
    with any independent effects of variance 1; all of them can be listed in a 2 x 2 x 2 design.
    """
    shape = tuple(2 if axis in planted else 1 for axis in range(3))
    signs = list(product([-1.0, 1.0], repeat=int(np.prod(shape))))
    estimates = [
        list(
            statistics.variance_components(
                np.broadcast_to(np.reshape(sign, shape), (2, 2, 2)).copy()
            ).values()
        )
        for sign in signs
    ]
    names = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    np.testing.assert_allclose(
        np.mean(estimates, axis=0), [float(name == planted) for name in names], atol=1e-12
    )


def test_standard_error_adds_components_over_their_levels():
    components = {"a": 4.0, "b": 9.0, "a:b": -1.0, "residual": 6.0}
    got = statistics.standard_error(
        {"a": 4.0, "b": 9.0, "a:b": 2.0, "residual": 6.0}, {"a": 2, "b": 3}
    )
    assert got == pytest.approx(np.sqrt(4 / 2 + 9 / 3 + 2 / 6 + 6 / 6))
    without = statistics.standard_error(components, {"a": 2, "b": 3})
    assert without == pytest.approx(np.sqrt(4 / 2 + 9 / 3 + 6 / 6))


def test_table_becomes_the_array_whatever_its_order():
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    rows = [
        {"seed": i, "subject": f"sub-{j}", "stimulus": k, "cd": values[i, j, k]}
        for i, j, k in product(range(2), range(3), range(4))
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=1)
    np.testing.assert_array_equal(statistics.crossed_values(table, "cd"), values)
    with pytest.raises(ValueError, match="1 are missing, 0 appear"):
        statistics.crossed_values(table.iloc[1:], "cd")
    with pytest.raises(ValueError, match="no column 'iou'"):
        statistics.crossed_values(table, "iou")


def test_bad_designs_are_named():
    with pytest.raises(ValueError, match="'seed' has one level"):
        statistics.variance_components(np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="factors name"):
        statistics.variance_components(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="every cell"):
        statistics.variance_components(np.full((2, 2, 2), np.nan))
