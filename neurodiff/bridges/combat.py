"""ComBat: take the shift and scale of a batch (scanner, kernel, site) out of features.

Fitted on training rows and applied to others: a test row meets only estimates from the training.
For features x, batches i and covariates C,

    x = alpha + C beta + gamma_i + delta_i e,    harmonized = (z - gamma*_i) / delta*_i s + alpha
    + C beta,    z = (x - alpha - C beta) / s

where the starred estimates are shrunk over features by empirical Bayes. With a reference batch,
alpha, beta's intercept and s are the reference's, and its rows come back bit for bit.

References
----------
Johnson, Li & Rabinovic 2007, Biostatistics 8:118-127 (equations 3.1 to 3.3). Zhang et al. 2018,
BMC Bioinformatics 19:262 (reference batch).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from neurodiff.bridges.combat_tables import (
    CovariateCode,
    batch_labels,
    feature_matrix,
    like_input,
)
from neurodiff.core.errors import DataError, UsageError, suggest

_MOST_STEPS = 10_000


class ComBat(BaseEstimator):
    """Harmonize features between batches.

    Parameters
    ----------
    reference : batch to which the others are brought; None: the mean of all batches.
    empirical_bayes : shrink a batch's shifts and scales towards their mean over features. Needs
        two features or more. Off: a batch's own estimates, by which training batches get exactly
        equal means and variances.
    mean_only : leave scales alone; the only choice for a batch of one row.
    constant : "error", or "keep": features without variance within batches come back unchanged
        and are named in ``constant_``.
    tolerance : relative change at which the empirical Bayes iteration ends. (The usual published
        programs stop at 1e-4, which changes the fourth digit.)

    Attributes
    ----------
    batches_ : names of the batches, sorted; gamma_, delta_ : (batches, features) starred shift
        and variance in units of ``sd_``; gamma_raw_, delta_raw_ : before the shrinkage.
    mean_, sd_ : (features,) alpha and s; beta_ : (covariates, features).
    constant_ : positions of the constant features.

    Raises
    ------
    UsageError, DataError : see `fit` and `transform`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 5)); batch = np.repeat(["sharp", "soft"], 20); X[:20] += 3
    >>> out = ComBat(empirical_bayes=False).fit_transform(X, batch)
    >>> bool(np.allclose(out[:20].mean(axis=0), out[20:].mean(axis=0)))
    True
    """

    def __init__(
        self,
        *,
        reference: Any = None,
        empirical_bayes: bool = True,
        mean_only: bool = False,
        constant: str = "error",
        tolerance: float = 1e-8,
    ):
        self.reference = reference
        self.empirical_bayes = empirical_bayes
        self.mean_only = mean_only
        self.constant = constant
        self.tolerance = tolerance

    def fit(self, X: Any, batch: Any, covariates: Any = None) -> ComBat:
        """Estimate shifts and scales.

        Parameters
        ----------
        X : (n, features), an array or a table.
        batch : (n,) names.
        covariates : table or array (n, ...) of what is to be kept: numbers, or words, which
            become one column a level. None: nothing.

        Raises
        ------
        UsageError : a setting, the reference or the number of rows does not fit.
        DataError : NaN, a single batch, a batch of one row (unless ``mean_only``), a single
            feature with empirical Bayes, constant features (unless they are kept), or covariates
            that a batch determines.
        """
        if self.constant not in ("error", "keep"):
            raise UsageError(f"constant is {self.constant!r}; give 'error' or 'keep'")
        values, self.feature_names_in_ = feature_matrix(X)
        labels = batch_labels(batch, len(values))
        self.n_features_in_ = values.shape[1]
        self.batches_ = np.unique(labels)
        code = np.searchsorted(self.batches_, labels)
        sizes = np.bincount(code)
        self._check_batches(sizes)
        self.covariates_ = CovariateCode.learn(covariates, len(values))
        known = self.covariates_.matrix(covariates, len(values))
        coefficients, within = _regress(values, code, known)
        k = len(self.batches_)
        chosen = np.ones(len(values), dtype=bool)
        if self.reference is None:
            self.mean_ = sizes @ coefficients[:k] / sizes.sum()
        else:
            at = int(np.flatnonzero(self.batches_ == str(self.reference))[0])
            self.mean_, chosen = coefficients[at], code == at
        self.beta_ = coefficients[k:]
        self.sd_ = np.sqrt((within[chosen] ** 2).mean(axis=0))
        self.constant_ = self._constant(values, code, within)
        usable = np.setdiff1d(np.arange(values.shape[1]), self.constant_)
        if self.empirical_bayes and len(usable) < 2:
            raise DataError(
                f"there is {len(usable)} feature that varies; empirical Bayes shares strength "
                "between at least 2: set empirical_bayes=False"
            )
        self.sd_[self.constant_] = 1.0
        z = (values - self.mean_ - known @ self.beta_) / self.sd_
        self.gamma_raw_ = np.stack([z[code == i].mean(axis=0) for i in range(k)])
        self.delta_raw_ = np.ones_like(self.gamma_raw_)
        if not self.mean_only:
            self.delta_raw_ = np.stack([z[code == i].var(axis=0, ddof=1) for i in range(k)])
        self._shrink(z, code, usable)
        self.gamma_[:, self.constant_], self.delta_[:, self.constant_] = 0.0, 1.0
        return self

    def transform(self, X: Any, batch: Any, covariates: Any = None) -> Any:
        """Harmonize rows with what `fit` learned; gives back what it got, a table or an array.

        Raises
        ------
        UsageError : other features, rows or covariates than in the fit.
        DataError : a batch that was not in the training, or NaN.
        """
        check_is_fitted(self)
        values, names = feature_matrix(X)
        self._check_features(values, names)
        labels = batch_labels(batch, len(values))
        unknown = sorted(set(labels.tolist()) - set(self.batches_.tolist()))
        if unknown:
            raise DataError(
                f"batch {unknown[0]!r} was not in the training, which had "
                f"{', '.join(self.batches_)}; a shift cannot be known without rows of it."
                f"{suggest(unknown[0], self.batches_)}"
            )
        code = np.searchsorted(self.batches_, labels)
        kept = self.mean_ + self.covariates_.matrix(covariates, len(values)) @ self.beta_
        z = (values - kept) / self.sd_
        result = (z - self.gamma_[code]) / np.sqrt(self.delta_[code]) * self.sd_ + kept
        result[:, self.constant_] = values[:, self.constant_]
        if self.reference is not None:
            own = labels == str(self.reference)
            result[own] = values[own]
        return like_input(result, X)

    def fit_transform(self, X: Any, batch: Any, covariates: Any = None) -> Any:
        """`fit`, then `transform` of the same rows."""
        return self.fit(X, batch, covariates).transform(X, batch, covariates)

    def as_dict(self) -> dict[str, Any]:
        """Everything that `transform` needs, as plain lists for JSON or YAML."""
        check_is_fitted(self)
        arrays = ("mean_", "sd_", "beta_", "gamma_", "delta_", "gamma_raw_", "delta_raw_")
        return {
            "settings": self.get_params(),
            "batches": self.batches_.tolist(),
            "features": self.feature_names_in_,
            "constant": self.constant_.tolist(),
            "covariates": self.covariates_.as_dict(),
            **{name: getattr(self, name).tolist() for name in arrays},
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> ComBat:
        """Restore what `as_dict` gave.

        Raises
        ------
        DataError : an entry is missing or does not fit the others.
        """
        try:
            model = cls(**stored["settings"])
            model.batches_ = np.array(stored["batches"], dtype=str)
            model.feature_names_in_ = stored["features"]
            model.constant_ = np.array(stored["constant"], dtype=np.int64)
            model.covariates_ = CovariateCode(**stored["covariates"])
            for name in ("mean_", "sd_", "gamma_", "delta_", "gamma_raw_", "delta_raw_"):
                setattr(model, name, np.array(stored[name], dtype=np.float64))
            count = len(model.mean_)
            model.beta_ = np.array(stored["beta_"], dtype=np.float64).reshape(-1, count)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"this is no stored ComBat ({error!r}); give the file that a fit wrote"
            ) from None
        model.n_features_in_ = count
        expected = (len(model.batches_), count)
        if model.gamma_.shape != expected or model.delta_.shape != expected:
            raise DataError(
                f"the stored ComBat has shifts {model.gamma_.shape} where {expected} were "
                "expected; the file is damaged: fit again"
            )
        return model

    def _check_batches(self, sizes: np.ndarray) -> None:
        if len(self.batches_) < 2:
            raise DataError(
                f"all rows are of batch {str(self.batches_[0])!r}; ComBat needs at least 2 batches"
            )
        if self.reference is not None and str(self.reference) not in self.batches_:
            raise UsageError(
                f"the reference is {self.reference!r}; the batches are "
                f"{', '.join(self.batches_)}.{suggest(self.reference, self.batches_)}"
            )
        if not self.mean_only and sizes.min() < 2:
            raise DataError(
                f"batch {str(self.batches_[int(sizes.argmin())])!r} has 1 row, which has no scale; "
                "add rows, leave the batch out, or set mean_only=True"
            )

    def _constant(self, values: np.ndarray, code: np.ndarray, within: np.ndarray) -> np.ndarray:
        """Positions of features that do not vary in some batch whose scale is needed.

        The scale of a batch without variance is zero, by which rows would be divided; with
        ``mean_only`` only features that vary nowhere are constant.
        """
        size = np.maximum(np.abs(values).max(axis=0), 1e-300)
        if self.mean_only:
            flat = np.sqrt((within**2).mean(axis=0)) <= 1e-12 * size
            flat |= self.sd_ <= 1e-12 * size
        else:
            spread = [np.ptp(values[code == i], axis=0) for i in range(len(self.batches_))]
            flat = (np.stack(spread) <= 1e-12 * size).any(axis=0) | (self.sd_ <= 1e-12 * size)
        found = np.flatnonzero(flat)
        if found.size and self.constant == "error":
            names = self.feature_names_in_
            shown = [str(names[f]) if names else f"number {f}" for f in found[:5]]
            raise DataError(
                f"{found.size} features have no variance in a batch ({', '.join(shown)}"
                f"{', ...' if found.size > 5 else ''}); leave them out, or set constant='keep' "
                "to get them back unchanged"
            )
        return found

    def _shrink(self, z: np.ndarray, code: np.ndarray, usable: np.ndarray) -> None:
        self.gamma_, self.delta_ = self.gamma_raw_.copy(), self.delta_raw_.copy()
        if self.empirical_bayes:
            for i in range(len(self.batches_)):
                rows = z[code == i][:, usable]
                self.gamma_[i, usable], self.delta_[i, usable] = _posterior(
                    rows, self.mean_only, self.tolerance
                )
        if self.reference is not None:
            own = self.batches_ == str(self.reference)
            self.gamma_[own], self.delta_[own] = 0.0, 1.0

    def _check_features(self, values: np.ndarray, names: list[str] | None) -> None:
        if values.shape[1] != self.n_features_in_:
            raise UsageError(
                f"there are {values.shape[1]} features; this ComBat was fitted on "
                f"{self.n_features_in_}"
            )
        if names and self.feature_names_in_ and names != self.feature_names_in_:
            other = [n for n, m in zip(names, self.feature_names_in_, strict=True) if n != m]
            raise UsageError(
                f"feature {other[0]!r} is not where the fit had it; give the columns of the fit "
                "in its order"
            )


def _regress(
    values: np.ndarray, code: np.ndarray, covariates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on batches and covariates: coefficients and residuals."""
    design = np.concatenate([np.eye(code.max() + 1)[code], covariates], axis=1)
    scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
    if np.linalg.matrix_rank(design / scale) < design.shape[1]:
        raise DataError(
            "the covariates are determined by the batches or by each other, so their effects "
            "cannot be told apart; leave out the covariate, or add rows that cross both"
        )
    coefficients = np.linalg.lstsq(design / scale, values, rcond=None)[0] / scale[:, None]
    return coefficients, values - design @ coefficients


def _posterior(z: np.ndarray, mean_only: bool, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Shift and variance of one batch after shrinkage over its features (rows, features).

    Equation 3.1 of Johnson et al., with the priors' parameters by moments; iterated to its fixed
    point. Where features show no spread of shifts (or variances) at all, the prior is a point and
    so is the estimate.
    """
    n = len(z)
    gamma = z.mean(axis=0)
    prior_mean, prior_variance = gamma.mean(), gamma.var(ddof=1)
    if mean_only:
        weight = n * prior_variance
        return (weight * gamma + prior_mean) / (weight + 1), np.ones_like(gamma)
    delta = z.var(axis=0, ddof=1)
    inner = ((z - gamma) ** 2).sum(axis=0)
    m, s2 = delta.mean(), delta.var(ddof=1)
    point = s2 <= 1e-24 * m**2
    shape, rate = (0.0, 0.0) if point else ((2 * s2 + m**2) / s2, (m * s2 + m**3) / s2)
    new_gamma, new_delta = gamma, np.full_like(delta, m) if point else delta
    for _ in range(_MOST_STEPS):
        weight = n * prior_variance
        g = (weight * gamma + new_delta * prior_mean) / (weight + new_delta)
        squares = inner + n * (gamma - g) ** 2
        d = new_delta if point else (squares / 2 + rate) / (n / 2 + shape - 1)
        change = max(np.abs(g - new_gamma).max(), np.abs(d / new_delta - 1).max())
        new_gamma, new_delta = g, d
        if change <= tolerance:
            break
    return new_gamma, new_delta
