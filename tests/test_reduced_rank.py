"""Bottlenecks against the decomposition of the augmented problem, and permutations by refits."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge

from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.kernel_factor import factorise
from neurodiff.bridges.permutations import permutation, permutation_null
from neurodiff.bridges.reduced_rank import (
    bottleneck_predictions,
    find_bottleneck,
    target_gram,
)
from neurodiff.core.columns import open_columns
from neurodiff.core.errors import DataError, UsageError


@pytest.fixture(name="problem", params=[(40, 90), (90, 12)], ids=["dual", "primal"])
def _problem(request):
    n, p = request.param
    rng = np.random.default_rng(2)
    X = rng.standard_normal((n, p)) + 1.0
    Y = X[:, :10] @ rng.standard_normal((10, 3)) @ rng.standard_normal((3, 20))
    Y = Y + 2 * rng.standard_normal((n, 20)) + 5.0
    return X, Y, rng.standard_normal((7, p)) + 1.0


def literal(X, Y, alpha, rank):
    """Weights (p, targets) of rank-r ridge: SVD of the fit of the augmented rows."""
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)
    W = np.linalg.solve(Xc.T @ Xc + alpha * np.eye(X.shape[1]), Xc.T @ Yc)
    augmented = np.vstack([Xc, np.sqrt(alpha) * np.eye(X.shape[1])])
    V = np.linalg.svd(augmented @ W)[2][:rank].T
    return W @ V @ V.T


def model_leave_out(model, X, Y, rank):
    """Leave-one-out predictions of the fitted ridge, through the literal r directions."""
    V = np.linalg.svd(literal(X, Y, model.alpha_, rank))[2][:rank].T
    held = model.loo(standardise=False)
    return (held - Y.mean(0)) @ V @ V.T + Y.mean(0)


def joined(blocks, ranks):
    parts = [found for _, found in blocks]
    return {r: np.concatenate([part[r] for part in parts], axis=1) for r in ranks}


@pytest.mark.parametrize("alphas", [[5.0], [5.0, 6.0]])
def test_equals_the_decomposition_of_the_augmented_problem(problem, alphas):
    X, Y, new = problem
    model = FactoredRidge(alphas, absolute=True, standardise="none", block=7).fit(X, Y)
    ranks = [1, 2, 5, None]
    found = joined(bottleneck_predictions(model, new, ranks), ranks)
    for rank in ranks[:-1]:
        W = literal(X, Y, model.alpha_, rank)
        np.testing.assert_allclose(
            found[rank], (new - X.mean(0)) @ W + Y.mean(0), rtol=0, atol=1e-9
        )
        assert np.linalg.matrix_rank(found[rank] - Y.mean(0), tol=1e-8) == min(rank, len(new))
    np.testing.assert_allclose(found[None], model.predict(new), rtol=0, atol=1e-9)


def test_no_other_subspace_of_the_size_fits_better(problem):
    X, Y, _ = problem
    rng = np.random.default_rng(0)
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)

    def loss(W):
        return np.square(Yc - Xc @ W).sum() + 5.0 * np.square(W).sum()

    model = FactoredRidge(5.0, absolute=True, standardise="none").fit(X, Y)
    eye = joined(bottleneck_predictions(model, np.eye(X.shape[1]) + X.mean(0), [3]), [3])[3]
    best = eye - Y.mean(0)
    for _ in range(20):
        bend = np.linalg.qr(np.eye(20) + 0.05 * rng.standard_normal((20, 20)))[0]
        assert loss(best @ bend) > loss(best)


def test_every_size_has_the_spread_of_the_targets(problem):
    X, Y, new = problem
    one = FactoredRidge([0.1, 1.0], block=6).fit(X, Y)
    two = FactoredRidge([0.1, 1.0], standardise="test").fit(X, Y)
    ranks = [1, 4, None]
    train_side = joined(bottleneck_predictions(one, new, ranks), ranks)
    np.testing.assert_allclose(train_side[None], one.predict(new), rtol=1e-7)
    alone = joined(bottleneck_predictions(one, new[:1], ranks), ranks)
    np.testing.assert_allclose(alone[1], train_side[1][:1])
    held = model_leave_out(one, X, Y, 4)
    scale = Y.std(0) / held.std(0)
    raw = joined(
        bottleneck_predictions(clone(one).set_params(standardise="none").fit(X, Y), new, [4]), [4]
    )[4]
    np.testing.assert_allclose(train_side[4], (raw - held.mean(0)) * scale + Y.mean(0))
    released = joined(bottleneck_predictions(two, new, ranks), ranks)
    for rank in ranks:
        np.testing.assert_allclose(released[rank].mean(0), Y.mean(0))
        np.testing.assert_allclose(released[rank].std(0), Y.std(0))


def test_a_bottleneck_shared_by_heads_is_that_of_the_weighted_targets(problem):
    X, Y, new = problem
    factor = factorise(X)
    heads = {"a": Y[:, :8], "b": Y[:, 8:]}
    weights = {"a": 1.0, "b": 4.0}
    gram = sum(weights[k] * target_gram(factor, open_columns(y)) for k, y in heads.items())
    shared = find_bottleneck(factor, 5.0, gram)
    stacked = np.hstack([np.sqrt(weights[k]) * y for k, y in heads.items()])
    W = literal(X, stacked, 5.0, 2)
    model = FactoredRidge(5.0, absolute=True, standardise="none").fit(
        None, heads["b"], factor=factor
    )
    found = joined(bottleneck_predictions(model, new, [2], bottleneck=shared), [2])[2]
    expected = (new - X.mean(0)) @ W[:, 8:] / 2.0 + heads["b"].mean(0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_wrong_sizes_get_a_sentence(problem):
    X, Y, new = problem
    model = FactoredRidge([1.0], standardise="test").fit(X, Y)
    for ranks, sentence in ([0], "from 1, or None"), ([1.5], "from 1, or None"), ([], "no sizes"):
        with pytest.raises(UsageError, match=sentence):
            bottleneck_predictions(model, new, ranks)
    with pytest.raises(DataError, match="several test trials"):
        bottleneck_predictions(model, new[:1], [1])
    each = FactoredRidge([1.0, 2.0], alpha_per="target").fit(X, Y)
    with pytest.raises(UsageError, match="alpha_per='head'"):
        bottleneck_predictions(each, new, [1])
    with pytest.raises(UsageError, match="positive number"):
        find_bottleneck(model.factor_, -1.0, np.eye(len(X)))
    with pytest.raises(DataError, match="gram has shape"):
        find_bottleneck(model.factor_, 1.0, np.eye(3))
    with pytest.raises(DataError, match="no direction"):
        find_bottleneck(model.factor_, 1.0, np.zeros((len(X), len(X))))


def test_permutations_equal_refits(problem):
    X, Y, new = problem
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((7, 20))
    hat = FactoredRidge(5.0, absolute=True).fit(X, Y).hat(new)
    options = {"permutations": 4, "seed": 3, "dtype": "float64", "block": 6}
    null = permutation_null(hat, Y, truth, **options)
    errors = permutation_null(
        hat, Y, truth, statistic=lambda p, t: np.square(p - t).mean(axis=0), **options
    )
    assert null.shape == errors.shape == (4, 20)
    for k in range(4):
        shuffled = Y[permutation(len(Y), 3, k)]
        refit = Ridge(alpha=5.0).fit(X, shuffled).predict(new)
        for t in range(0, 20, 5):
            np.testing.assert_allclose(null[k, t], np.corrcoef(refit[:, t], truth[:, t])[0, 1])
        np.testing.assert_allclose(errors[k], np.square(refit - truth).mean(axis=0))


def test_the_null_is_centred_and_the_truth_stands_out(problem):
    X, Y, _ = problem
    half = len(X) // 2
    model = FactoredRidge([0.1, 1.0], standardise="none").fit(X[:half], Y[:half])
    null = permutation_null(model.hat(X[half:]), Y[:half], Y[half:], permutations=200)
    found = model.predict(X[half:])
    r = np.array([np.corrcoef(found[:, t], Y[half:, t])[0, 1] for t in range(20)])
    assert abs(null.mean()) < 0.02
    assert r.mean() > np.quantile(null.mean(axis=1), 0.95)


def test_wrong_permutations_get_a_sentence(problem):
    X, Y, new = problem
    hat = FactoredRidge([1.0]).fit(X, Y).hat(new)
    truth = np.random.default_rng(0).standard_normal((7, 20))
    with pytest.raises(UsageError, match="from 1"):
        permutation_null(hat, Y, truth, permutations=0)
    with pytest.raises(DataError, match="expected"):
        permutation_null(hat, Y[1:], truth)
    with pytest.raises(DataError, match="target 0 holds NaN or does not vary"):
        permutation_null(hat, Y, np.ones_like(truth))
    with pytest.raises(DataError, match="NaN or infinity"):
        permutation_null(hat, np.full_like(Y, np.nan), truth)
