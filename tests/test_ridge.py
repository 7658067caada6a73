"""Ridge against independent truths: a linear solve, literal refits, scikit-learn's contract."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodiff.bridges.ridge import MultiTargetRidge


@parametrize_with_checks([MultiTargetRidge(), MultiTargetRidge(per_target=True)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(name="problem")
def _problem():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((30, 80)) + 2.0
    Y = X @ rng.standard_normal((80, 4)) + 5 * rng.standard_normal((30, 4)) - 7.0
    return X, Y


def test_equals_linear_solve(problem):
    X, Y = problem
    model = MultiTargetRidge(alphas=[0.3]).fit(X, Y)
    Xc = X - X.mean(0)
    weights = np.linalg.solve(Xc.T @ Xc + model.alpha_[0] * np.eye(80), Xc.T @ (Y - Y.mean(0)))
    np.testing.assert_allclose(model.coef_, weights.T, atol=1e-10)
    np.testing.assert_allclose(model.predict(X), Xc @ weights + Y.mean(0), atol=1e-9)


def test_leave_one_out_equals_literal_refits(problem):
    X, Y = problem
    model = MultiTargetRidge(alphas=[0.05]).fit(X, Y)
    for i in range(0, 30, 7):
        others = np.arange(30) != i
        refit = Ridge(alpha=model.alpha_[0]).fit(X[others], Y[others])
        np.testing.assert_allclose(model.loo_predictions_[i], refit.predict(X[i : i + 1])[0])


def test_penalty_follows_the_noise_of_each_target(problem):
    X, _ = problem
    rng = np.random.default_rng(0)
    # the leading direction of X can be read from few trials; pure noise cannot
    clean = X @ np.linalg.svd(X - X.mean(0))[2][:1].T
    noise = rng.standard_normal((30, 1))
    model = MultiTargetRidge(per_target=True).fit(X, np.hstack([clean, noise]))
    assert model.alpha_[1] > model.alpha_[0]
    assert model.loo_r2_[0] > 0.2 > model.loo_r2_[1]


@pytest.mark.parametrize("alphas", [[0.0], [-1.0], [np.nan], []])
def test_refuses_penalties_that_are_not_positive(problem, alphas):
    with pytest.raises(ValueError, match="alphas must be positive"):
        MultiTargetRidge(alphas=alphas).fit(*problem)


def test_leaving_out_groups_equals_literal_refits(problem):
    """All repeats of a stimulus go at once; a single trial is a group of one."""
    X, Y = problem
    groups = np.array(["cup", "lamp", "sofa", "cup", "cup", "lamp", *map(str, range(24))])
    model = MultiTargetRidge(alphas=[0.05]).fit(X, Y, groups)
    for name in ("cup", "lamp", "sofa", "7"):
        out = groups == name
        refit = Ridge(alpha=model.alpha_[0]).fit(X[~out], Y[~out])
        np.testing.assert_allclose(model.loo_predictions_[out], refit.predict(X[out]))
    with pytest.raises(ValueError, match="one name for each"):
        model.fit(X, Y, groups[:5])
