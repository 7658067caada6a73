"""Pairing of reconstructions and pictures: rates, permutations, clusters, dimensions."""

import numpy as np
import pytest
from scipy import stats

from neurodiff.metrics import clusters, dimension
from neurodiff.metrics.identification import n_way, pairing_rates, similarities
from neurodiff.metrics.statistics import binomial_p_legacy, pairing_null, permutation_p


def features(n=24, d=30, signal=0.5, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((n, d))
    return signal * true + rng.standard_normal((n, d)), true


@pytest.mark.parametrize("vary", ["truths", "reconstructions"])
def test_the_diagonal_is_two_way_identification_and_columns_are_other_pairings(vary):
    scores = np.round(similarities(*features()), 1)  # with ties
    rates = pairing_rates(scores, vary=vary)
    matrix = scores if vary == "truths" else scores.T
    np.testing.assert_allclose(np.diagonal(rates), n_way(matrix, np.arange(24)), atol=1e-12)
    order = np.random.default_rng(1).permutation(24)
    moved = n_way(matrix, order) if vary == "truths" else n_way(matrix, np.argsort(order))[order]
    np.testing.assert_allclose(rates[np.arange(24), order], moved, atol=1e-12)


def test_ties_are_half_or_lost():
    same = np.ones((5, 5))
    assert np.diagonal(pairing_rates(same)) == pytest.approx(0.5)
    assert np.diagonal(pairing_rates(same, ties="lost")) == pytest.approx(0)


def test_groups_compare_within_only():
    scores = similarities(*features())
    groups = ["a"] * 10 + ["b"] * 13 + ["alone"]
    rates = pairing_rates(scores, groups=groups)
    np.testing.assert_allclose(rates[:10, :10], pairing_rates(scores[:10, :10]))
    assert np.isnan(rates[:10, 10:]).all()
    assert np.isnan(rates[23]).all()


def test_bad_scores_fail_loudly():
    with pytest.raises(ValueError, match="1 scores are NaN"):
        pairing_rates(np.array([[np.nan, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="at least 2 items"):
        pairing_rates(np.ones((1, 1)))
    with pytest.raises(ValueError, match="2 groups for 3 items"):
        pairing_rates(np.eye(3), groups=["a", "b"])
    bad = features()[0]
    bad[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        similarities(bad, features()[1])
    with pytest.raises(ValueError, match="30 and 29"):
        similarities(bad, features(d=29)[1])


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.uint8])
def test_similarity_is_the_block_of_corrcoef(kind):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 255, (n, 9000)).astype(kind) for n in (7, 5))  # over two blocks
    expected = np.corrcoef(a, b)[:7, 7:]
    np.testing.assert_allclose(similarities(a, b), expected, atol=1e-12)


def test_equal_rows_tie_exactly():
    predicted, true = features(n=40, d=5000)
    rows = similarities(predicted[:1].repeat(40, axis=0), true)
    assert (rows == rows[0]).all()


def test_permutation_p_is_uniform_on_noise_and_the_binomial_is_not():
    """P15: 300 decoders of noise."""
    exact, published = [], []
    for seed in range(300):
        rates = pairing_rates(similarities(*features(n=40, d=20, signal=0.0, seed=seed)))
        rate = float(np.diagonal(rates).mean())
        exact.append(permutation_p(rate, pairing_null(rates, 99, seed)))
        published.append(binomial_p_legacy(rate, 40))
    assert stats.kstest(exact, "uniform").pvalue > 0.01
    assert np.mean(np.array(exact) < 0.05) < 0.09
    assert np.mean(np.array(published) < 0.05) > 0.3


def test_p_finds_a_signal_in_either_direction():
    scores = similarities(*features(signal=1.0))
    rates = pairing_rates(scores)
    null = pairing_null(rates, 200)
    assert null.mean() == pytest.approx(0.5, abs=0.02)
    assert permutation_p(np.diagonal(rates).mean(), null) == pytest.approx(1 / 201)
    distances = pairing_null(1 - scores, 200)
    observed = np.diagonal(1 - scores).mean()
    assert permutation_p(observed, distances, higher_is_better=False) == pytest.approx(1 / 201)
    assert permutation_p(observed, distances) == 1


def test_permutations_stay_within_groups_and_skip_what_has_no_value():
    groups = ["a"] * 3 + ["b"] * 3 + ["alone"]
    values = np.full((7, 7), np.nan)
    values[:3, :3], values[3:6, 3:6] = 1.0, 2.0
    np.testing.assert_allclose(pairing_null(values, 20, groups=groups), 1.5)
    with pytest.raises(ValueError, match="items x items"):
        pairing_null(np.ones((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        permutation_p(float("nan"), np.ones(3))


@pytest.mark.parametrize("count", [5, 10, 20, 40, 80])
def test_a_decoder_of_clusters_only(count):
    """P16: 1 - 1/(2K) overall, one half within."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((count, 50))
    codes = np.repeat(np.arange(count), 12)
    true = centres[codes] + 0.05 * rng.standard_normal((len(codes), 50))
    guess = centres[codes] + 0.05 * rng.standard_normal((len(codes), 50))
    scores = similarities(guess, true)
    names = [str(code) for code in codes]
    overall = np.diagonal(pairing_rates(scores)).mean()
    within = np.diagonal(pairing_rates(scores, groups=names)).mean()
    expected = clusters.cluster_only_rate(names)
    assert overall == pytest.approx(expected.mean(), abs=0.01)
    # 12 items a cluster instead of many: the limit is off by 1/(2n)
    assert expected.mean() == pytest.approx(clusters.equal_clusters_rate(count), abs=0.01)
    assert within == pytest.approx(0.5, abs=0.06)
    found = clusters.kmeans_clusters(true[::2], true[1::2], count, seed=1)
    again = clusters.kmeans_clusters(true[::2], true[1::2], count, seed=1)
    np.testing.assert_array_equal(found, again)
    if count <= 20:  # each true cluster is one of k-means
        pairs = set(zip(codes[1::2].tolist(), found.tolist(), strict=True))
        assert len(pairs) == count
    assert clusters.cluster_accuracy(found, again) == 1


def test_hits_of_clusters_leave_the_own_truth_out():
    rng = np.random.default_rng(0)
    true = rng.standard_normal((30, 40))  # no clusters at all
    names = [str(k % 3) for k in range(30)]
    among = similarities(true, true)
    perfect = np.diagonal(clusters.cluster_hits(among, among, names))
    assert perfect.mean() < 0.6  # near 1 if the own truth counted
    centres = rng.standard_normal((3, 40))
    near = centres[np.arange(30) % 3] + 0.1 * rng.standard_normal((30, 40))
    hits = clusters.cluster_hits(similarities(near[::-1], near), similarities(near, near), names)
    expected = np.equal.outer(np.arange(30)[::-1] % 3, np.arange(30) % 3)
    np.testing.assert_array_equal(hits, expected.astype(float))
    direct = near - near.mean(axis=1, keepdims=True)
    direct /= np.linalg.norm(direct, axis=1, keepdims=True)
    sums = np.stack(
        [direct[[k for k in range(30) if k % 3 == c and k != 4]].sum(0) for c in range(3)]
    )
    nearest = (direct @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T).argmax(axis=1)
    own = clusters.cluster_hits(similarities(near, near), similarities(near, near), names)[:, 4]
    np.testing.assert_array_equal(own == 1, nearest == 1)
    alone = clusters.cluster_hits(np.eye(3), np.eye(3), ["a", "a", "b"])
    assert np.isnan(alone[:, 2]).all()
    with pytest.raises(ValueError, match="2 clusters for 3 items"):
        clusters.cluster_hits(np.eye(3), np.eye(3), ["a", "b"])


def test_bad_clusters():
    with pytest.raises(ValueError, match="9 clusters of 4 training rows"):
        clusters.kmeans_clusters(np.eye(4), np.eye(4), 9)
    with pytest.raises(ValueError, match="constant"):
        clusters.kmeans_clusters(np.ones((4, 3)), np.eye(3), 2)
    with pytest.raises(ValueError, match="training features"):
        clusters.kmeans_clusters(np.eye(4), np.eye(3), 2)
    with pytest.raises(ValueError, match="at least 2"):
        clusters.cluster_only_rate(["a"])
    with pytest.raises(ValueError, match="at least 1"):
        clusters.equal_clusters_rate(0)


def test_participation_ratio_of_known_spectra():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    axes -= axes.mean(axis=0)
    for variances in ([1.0], [1.0, 1.0, 1.0], [4.0, 1.0]):
        basis = np.linalg.qr(axes)[0][:, : len(variances)]
        x = basis * np.sqrt(variances)
        expected = sum(variances) ** 2 / sum(v**2 for v in variances)
        wide = np.hstack([x, np.zeros((60, 100))]) + 3.0  # more features than items, an offset
        for one in (x, wide, 7 * wide):
            assert dimension.participation_ratio(one) == pytest.approx(expected)
    with pytest.raises(ValueError, match="all items are equal"):
        dimension.participation_ratio(np.ones((4, 3)))


@pytest.mark.parametrize("d", [6, 200])
def test_variance_captured_by_the_training_axes(d):
    rng = np.random.default_rng(0)
    train = rng.standard_normal((50, d)) * np.linspace(3, 1, d)
    centred = train - train.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    inside = rng.standard_normal((30, 2)) @ axes[:2]
    captured = dimension.variance_captured(inside, train, (1, 2, 5, 500))
    assert captured[1] == pytest.approx(1)
    assert captured[0] < 1
    assert (np.diff(captured) >= -1e-12).all()
    self = dimension.variance_captured(train, train, (3,))
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    assert self[0] == pytest.approx(values[:3].sum() / values.sum())
    with pytest.raises(ValueError, match="each is at least 1"):
        dimension.variance_captured(inside, train, (0,))
    with pytest.raises(ValueError, match="all predictions are equal"):
        dimension.variance_captured(np.ones((4, d)), train)


def test_bottleneck_curve():
    asked = []

    def score(rank):
        asked.append(rank)
        return np.array([0.5, 0.7]) * (1 - 1 / (1 + rank))

    table = dimension.bottleneck_curve(score, (1, 5, 50), full=20)
    assert asked == [1, 5, 20]
    assert list(table.columns) == ["rank", "value", "low", "high", "n", "share"]
    assert table["share"].iloc[-1] == 1
    assert table["value"].iloc[0] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="different ranks"):
        dimension.bottleneck_curve(lambda rank: np.ones(rank + 1), (1, 2))
    with pytest.raises(ValueError, match="at least 1"):
        dimension.bottleneck_curve(score, ())
