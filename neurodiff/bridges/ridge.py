"""Ridge from brain data to many targets, with one factorisation for every penalty and target.

Closed forms (n trials, p vertices; X and Y centred):

    K = X X' = U diag(e) U'                      once, O(n^2 p + n^3)
    dual(a) = (K + a I)^-1 Y                     any penalty a and target: two matrix products
    leave-one-out residual = a dual / (a G_ii - 1/n),   G = (K + a I)^-1

The last line is exact for the model with an intercept (Hastie, Tibshirani & Friedman 2009,
eq. 7.64, with the hat matrix of centring added), so the penalty is chosen, and predictions for
the training trials are made, without a single refit. For targets that outgrow memory, or brain data
shared by several heads, see `neurodiff.bridges.factored_ridge`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from neurodiff.bridges.leave_out import leave_out_residuals, repeated_rows


class MultiTargetRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression with an exact leave-one-out choice of the penalty.

    Parameters
    ----------
    alphas : penalties to choose from, > 0, in units of the kernel's mean eigenvalue (so that the
        same grid suits 500 and 15,000 vertices). ``None``: 13 values from 1e-3 to 1e3.
    per_target : one penalty a target (True), or the one with the least summed error (False).

    Attributes
    ----------
    alpha_ : the chosen penalty, absolute; (targets,)
    coef_ : (targets, features), or (features,) if ``y`` was one-dimensional
    intercept_ : (targets,) or a number
    loo_predictions_ : (n, targets); each training trial predicted by the model fitted on the
        others; with ``groups`` in ``fit``, on the trials of the other groups. What a later stage
        must be trained on, since in-sample predictions are too good.
    loo_r2_ : (targets,) share of variance explained by ``loo_predictions_``

    Raises
    ------
    ValueError : an alpha is not positive or not finite; X or y holds NaN; fewer than 2 trials.

    References
    ----------
    Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, section 7.10.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 200)); y = X[:, :3]
    >>> MultiTargetRidge().fit(X, y).predict(X).shape
    (40, 3)
    """

    def __init__(self, alphas: Sequence[float] | None = None, *, per_target: bool = False):
        self.alphas = alphas
        self.per_target = per_target

    def fit(self, X, y, groups=None) -> MultiTargetRidge:
        """Factorise once, choose the penalty by leave-one-out error; returns self.

        ``groups`` (n,) names what belongs together, such as the stimulus of each trial: then a
        whole group is left out at a time, because its other repeats would give it away.
        """
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=np.float64, ensure_min_samples=2
        )
        grid = np.logspace(-3, 3, 13) if self.alphas is None else np.asarray(self.alphas, float)
        if grid.ndim != 1 or len(grid) == 0 or not np.all(np.isfinite(grid) & (grid > 0)):
            raise ValueError(f"alphas must be positive numbers; got {self.alphas!r}")
        one_dimensional = y.ndim == 1
        Y = np.asarray(y, np.float64).reshape(len(y), -1)
        x_mean, y_mean = X.mean(axis=0), Y.mean(axis=0)
        Xc, Yc = X - x_mean, Y - y_mean
        eigenvalues, U = np.linalg.eigh(Xc @ Xc.T)
        eigenvalues = np.clip(eigenvalues, 0, None)
        scale = eigenvalues.mean()
        grid = np.sort(grid) * (scale if scale > 0 else 1.0)
        UtY = U.T @ Yc
        members = repeated_rows(groups, len(Y))
        errors = np.stack(
            [
                np.sum(leave_out_residuals(a, eigenvalues, U, Yc, UtY, members) ** 2, axis=0)
                for a in grid
            ]
        )  # (alphas, targets)
        if self.per_target:
            chosen = grid[np.argmin(errors, axis=0)]
        else:
            chosen = np.full(Y.shape[1], grid[np.argmin(errors.sum(axis=1))])
        dual = np.zeros_like(Yc)
        loo = np.zeros_like(Yc)
        for a in np.unique(chosen):
            of_a = chosen == a
            dual[:, of_a] = U @ (UtY[:, of_a] / (eigenvalues + a)[:, None])
            loo[:, of_a] = Y[:, of_a] - leave_out_residuals(
                a, eigenvalues, U, Yc[:, of_a], UtY[:, of_a], members
            )
        coef = dual.T @ Xc
        intercept = y_mean - coef @ x_mean
        variance = np.sum(Yc**2, axis=0)
        self.alpha_ = chosen
        self.coef_ = coef[0] if one_dimensional else coef
        self.intercept_ = float(intercept[0]) if one_dimensional else intercept
        self.loo_predictions_ = loo
        self.loo_r2_ = 1 - np.sum((Y - loo) ** 2, axis=0) / np.where(variance > 0, variance, np.nan)
        return self

    def predict(self, X) -> Float[np.ndarray, ...]:
        """(n, features) -> (n, targets), or (n,) if fitted on a one-dimensional ``y``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_.T + self.intercept_
