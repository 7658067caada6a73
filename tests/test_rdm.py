"""Tables of distances against scipy and hand cases; agreement, ceilings and bootstrap pairs."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, spearmanr

from neurodiff.metrics.rdm import (
    compare_rdms,
    correlation_rdm,
    crossnobis_rdm,
    drawn_pairs,
    euclidean_rdm,
    kendall_tau_a,
    noise_ceiling_across,
    noise_ceiling_within,
    permuted_pairs,
    unit_ranks,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_distances_are_those_of_scipy(rng):
    rows = rng.standard_normal((7, 12))
    np.testing.assert_allclose(correlation_rdm(rows), pdist(rows, "correlation"))
    np.testing.assert_allclose(euclidean_rdm(rows), pdist(rows, "sqeuclidean") / 12)


def test_distances_do_not_depend_on_the_mean_or_the_order_of_features(rng):
    rows, order = rng.standard_normal((7, 12)), rng.permutation(12)
    np.testing.assert_allclose(euclidean_rdm(rows + 1e3), euclidean_rdm(rows))
    np.testing.assert_allclose(correlation_rdm(3 * rows[:, order] + 5), correlation_rdm(rows))


def test_a_constant_row_has_no_correlation_distance(rng):
    rows = rng.standard_normal((4, 5))
    rows[1] = 2.0
    matrix = squareform(np.nan_to_num(correlation_rdm(rows), nan=-1.0), checks=False)
    assert (matrix[1, [0, 2, 3]] == -1).all()
    assert (np.delete(matrix[0], [0, 1]) >= 0).all()


def test_crossnobis_by_hand():
    """Two trials a stimulus in one feature: (a1 - b1) and (a2 - b2) averaged over all crossings."""
    trials = np.array([[1.0], [3.0], [0.0], [1.0], [5.0], [5.0]])
    found = crossnobis_rdm(trials, np.array([0, 0, 1, 1, 2, 2]), whiten="none")
    # g_00 = 1*3, g_11 = 0*1, g_22 = 25, g_01 = 2*0.5, g_02 = 2*5, g_12 = 0.5*5
    np.testing.assert_allclose(found, [3 + 0 - 2, 3 + 25 - 20, 0 + 25 - 5])


def test_crossnobis_over_runs_is_the_mean_of_cross_run_products(rng):
    """One trial a stimulus and run: the mean over ordered pairs of runs of difference products."""
    runs, stimuli, features = 3, 5, 4
    rows = rng.standard_normal((runs, stimuli, features))
    found = crossnobis_rdm(
        rows.reshape(-1, features),
        np.tile(np.arange(stimuli), runs),
        np.repeat(np.arange(runs), stimuli),
        whiten="none",
    )
    rows = rows - rows.mean(axis=(0, 1))
    expected = []
    for i in range(stimuli):
        for j in range(i + 1, stimuli):
            d = rows[:, i] - rows[:, j]
            pairs = [d[a] @ d[b] for a in range(runs) for b in range(runs) if a != b]
            expected.append(np.mean(pairs) / features)
    np.testing.assert_allclose(found, expected)


def test_crossnobis_is_unbiased_under_noise_that_euclid_is_not(rng):
    """No signal: on average 0, where the distance of means is twice the noise over repeats."""
    found, plain = [], []
    for _ in range(40):
        trials = rng.standard_normal((20, 50))
        stimuli = np.repeat(np.arange(5), 4)
        found.append(crossnobis_rdm(trials, stimuli, whiten="none").mean())
        plain.append(euclidean_rdm(trials.reshape(5, 4, 50).mean(axis=1)).mean())
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40)
    assert np.mean(plain) == pytest.approx(2 / 4, rel=0.05)


def test_whitening_makes_it_invariant_to_a_mixing_of_features(rng):
    """With far more trials than features the shrinkage is small, and Mahalanobis is invariant."""
    signal = 3 * rng.standard_normal((4, 3))
    stimuli = np.tile(np.arange(4), 500)
    trials = signal[stimuli] + rng.standard_normal((2000, 3))
    mixing = np.array([[1.0, 0.4, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 1.0]])
    a = crossnobis_rdm(trials, stimuli)
    b = crossnobis_rdm(trials @ mixing, stimuli)
    np.testing.assert_allclose(a, b, rtol=0.06)
    np.testing.assert_allclose(a, pdist(signal, "sqeuclidean") / 3, rtol=0.15)


def test_crossnobis_refuses_one_repeat_and_leaves_pairs_of_one_run_out():
    with pytest.raises(ValueError, match="1 of 3 stimuli have fewer than two trials"):
        crossnobis_rdm(np.eye(5), np.array([0, 0, 1, 1, 2]))
    found = crossnobis_rdm(
        np.eye(6), np.array([0, 0, 1, 1, 2, 2]), [1, 2, 1, 2, 1, 1], whiten="none"
    )
    np.testing.assert_array_equal(np.isnan(found), [False, True, True])
    with pytest.raises(ValueError, match="no noise to whiten"):
        crossnobis_rdm(np.repeat(np.eye(3), 2, axis=0), np.array([0, 0, 1, 1, 2, 2]))


def test_agreement_is_that_of_scipy(rng):
    a = rng.integers(0, 6, 40).astype(float)  # with ties
    b = a + rng.integers(0, 6, 40)
    assert compare_rdms(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert compare_rdms(a, b, "pearson") == pytest.approx(np.corrcoef(a, b)[0, 1])
    every = [(a[i] - a[j]) * (b[i] - b[j]) for i in range(40) for j in range(i)]
    expected = float(np.sign(every).mean())
    assert kendall_tau_a(a, b) == pytest.approx(expected)
    untied = rng.permutation(20).astype(float)
    other = rng.permutation(20).astype(float)
    assert kendall_tau_a(untied, other) == pytest.approx(kendalltau(untied, other).statistic)
    assert kendall_tau_a(untied, np.ones(20)) == 0.0


def test_agreement_skips_pairs_that_are_not_known(rng):
    a, b = rng.standard_normal(10), rng.standard_normal(10)
    holed = a.copy()
    holed[[2, 5]] = np.nan
    kept = np.delete(np.arange(10), [2, 5])
    assert compare_rdms(holed, b) == pytest.approx(spearmanr(a[kept], b[kept]).statistic)
    with pytest.raises(ValueError, match="0 pairs are in both tables"):
        compare_rdms(np.full(10, np.nan), b)
    with pytest.raises(ValueError, match="tables of 10 and 9 pairs"):
        compare_rdms(a, b[:9])


def test_agreement_does_not_depend_on_the_order_of_stimuli(rng):
    a, b, order = rng.standard_normal((6, 9)), rng.standard_normal((6, 9)), rng.permutation(6)
    together = compare_rdms(correlation_rdm(a[order]), correlation_rdm(b[order]))
    assert together == pytest.approx(compare_rdms(correlation_rdm(a), correlation_rdm(b)))


def test_permuted_pairs_are_the_permuted_matrix(rng):
    rdm, order = rng.random(28), rng.permutation(8)
    matrix = squareform(rdm)[order][:, order]
    np.testing.assert_array_equal(rdm[permuted_pairs(order)], squareform(matrix, checks=False))


def test_drawn_pairs_drop_those_of_a_stimulus_with_itself(rng):
    rdm, rows = rng.random(28), np.array([3, 0, 3, 7])
    found = rdm[drawn_pairs(rows, 8)]
    matrix = squareform(rdm)
    expected = [matrix[0, 3], matrix[0, 3], matrix[0, 7], matrix[3, 7], matrix[3, 7]]
    np.testing.assert_allclose(np.sort(found), np.sort(expected))


def test_products_of_unit_ranks_are_spearman(rng):
    rdms = rng.random((3, 28))
    found = unit_ranks(rdms) @ unit_ranks(rdms).T
    np.testing.assert_allclose(found, spearmanr(rdms.T).statistic)


def test_ceiling_across_equal_subjects_is_one_and_is_ordered(rng):
    rdm = rng.random(28)
    assert noise_ceiling_across(np.stack([rdm, rdm])) == pytest.approx((1, 1))
    noisy = rdm + rng.standard_normal((5, 28))
    for method in ("spearman", "pearson", "kendall"):
        low, high = noise_ceiling_across(noisy, method)
        assert low < high
    with pytest.raises(ValueError, match="1 subjects; a ceiling across subjects"):
        noise_ceiling_across(rdm[None])


def test_ceiling_within_is_what_a_model_reaches(rng):
    """Planted tables: halves with noise variance 2, the whole with 1; agreements known exactly."""
    truth = rng.standard_normal(400_000)
    halves = truth + np.sqrt(2) * rng.standard_normal((2, 400_000))
    low, high = noise_ceiling_within(compare_rdms(*halves, "pearson"))
    assert low == pytest.approx(1 / 2, abs=0.01)
    assert high == pytest.approx(np.sqrt(1 / 2), abs=0.01)
    assert compare_rdms(halves.mean(axis=0), truth, "pearson") == pytest.approx(high, abs=0.01)
    assert noise_ceiling_within(-0.2) == (0.0, 0.0)
    assert np.isnan(noise_ceiling_within(float("nan"))).all()


def test_bad_patterns_raise():
    with pytest.raises(ValueError, match=r"patterns are \(2, 4\)"):
        correlation_rdm(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        euclidean_rdm(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="the comparison is 'cosine'"):
        compare_rdms(np.arange(4.0), np.arange(4.0), "cosine")
