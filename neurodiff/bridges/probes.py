"""Linear probes: what a straight line through features says about a class or a number.

Both are solved, not trained for a while: ridge in closed form, logistic regression to convergence.
With Z the columns brought to mean 0 and SD 1 and d their number::

    ridge      minimise  sum (y - b - Z w)^2            + penalty d |w|^2
    logistic   minimise  2 sum log(1 + exp(-s (b + Z w))) + penalty d |w|^2,   s = +-1

The intercept ``b`` is free, and so are the first ``free`` columns (age, sex, site): w and d are
then of the others.  d is the mean eigenvalue of Z Z', so one grid of penalties suits 3
columns and 768.  The penalty is chosen by inner folds that never part a group (a subject), each
with means and SDs of its own training rows.  One singular value decomposition a fold serves all
penalties: w lies in the span of the rows, so at most as many numbers are solved for as there are
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from neurodiff.core.seeds import item_seed

_FREE = 0.02
_DIRECT = 160  # coefficients up to which a Newton step is solved directly
PENALTIES = tuple(float(10.0**power) for power in range(-3, 4))


def group_folds(
    groups: Sequence[Any] | np.ndarray,
    strata: Sequence[Any] | np.ndarray,
    folds: int,
    *,
    seed: int,
    stage: str = "folds",
) -> Int[np.ndarray, " n"]:
    """Number of the fold of each row; a group lies in one fold, a stratum in all of them alike.

    Parameters
    ----------
    groups : (n,) names; taken as text.
    strata : (n,) class of each row; a group belongs to the stratum of most of its rows, and
        groups with as many of two are one more stratum.
    folds : number of folds, no more than there are groups.
    seed, stage : of the order of the groups. Rows may come in any order.

    Raises
    ------
    ValueError : fewer than 2 folds, or fewer groups than folds.

    Examples
    --------
    >>> folds = group_folds(["a", "a", "b", "c", "d"], [0, 0, 0, 1, 1], 2, seed=0)
    >>> bool(folds[0] == folds[1]), bool(folds[2] != folds[1]), bool(folds[3] != folds[4])
    (True, True, True)
    """
    names = np.asarray([str(group) for group in groups], dtype=object)
    labels = np.asarray([str(stratum) for stratum in strata], dtype=object)
    of: dict[str, dict[str, int]] = {}
    for name, label in zip(names, labels, strict=True):
        counts = of.setdefault(name, {})
        counts[label] = counts.get(label, 0) + 1
    if not 2 <= folds <= len(of):
        raise ValueError(f"{folds} folds of {len(of)} groups; give 2 to as many as there are")
    stratum = {
        name: " or ".join(sorted(c for c in counts if counts[c] == max(counts.values())))
        for name, counts in of.items()
    }
    key = {name: item_seed(seed, subject=name, stimulus="", stage=stage) for name in of}
    # strata in an order that their names have no part in: what is positive changes no fold
    rank: dict[str, int] = {}
    for name in sorted(of, key=lambda n: key[n]):
        rank.setdefault(stratum[name], len(rank))
    order = sorted(of, key=lambda n: (rank[stratum[n]], key[n]))
    place = {name: number % folds for number, name in enumerate(order)}
    return np.array([place[name] for name in names], dtype=np.int64)


class _Probe(BaseEstimator):
    """What both probes share: columns of one scale, one decomposition, the choice of the penalty.

    Parameters
    ----------
    penalties : to choose from, > 0. ``None``: 7 from 1e-3 to 1e3.
    folds : inner folds; fewer where there are fewer groups (of a class).
    free : so many columns, the first ones, are not penalised, whatever penalty is chosen.  (In
        logistic regression by 0.01 |w|^2, which keeps a separating one finite.)
    seed : of the inner folds.
    """

    def __init__(
        self,
        penalties: Sequence[float] | None = None,
        *,
        folds: int = 5,
        free: int = 0,
        seed: int = 0,
    ):
        self.penalties = penalties
        self.folds = folds
        self.free = free
        self.seed = seed

    def _fit(self, X: np.ndarray, y: np.ndarray, strata: np.ndarray, groups: Any) -> None:
        grid = np.sort(PENALTIES if self.penalties is None else np.asarray(self.penalties, float))
        if grid.ndim != 1 or not len(grid) or not np.all(np.isfinite(grid) & (grid > 0)):
            raise ValueError(f"penalties must be positive numbers; got {self.penalties!r}")
        if not 0 <= int(self.free) <= X.shape[1]:
            raise ValueError(f"free is {self.free} of {X.shape[1]} columns")
        members = np.arange(len(X)) if groups is None else np.asarray(groups)
        if members.shape != (len(X),):
            raise ValueError(f"groups are {members.shape}; give one name for each of {len(X)} rows")
        self.inner_scores_, self.inner_folds_ = self._inner(X, y, strata, members, grid)
        best = len(grid) // 2
        if self.inner_folds_:  # of equal scores the strongest penalty
            best = int(np.flatnonzero(self.inner_scores_ <= self.inner_scores_.min() + 1e-12)[-1])
        self.penalty_ = float(grid[best])
        mean, deviation, Z = _standard(X)
        (weight, intercept) = self._paths(Z, y, grid[best : best + 1])
        self.mean_, self.deviation_ = mean, deviation
        self.standard_coef_ = weight[0]
        self.standard_intercept_ = float(intercept[0])
        self.coef_ = self.standard_coef_ / deviation
        self.intercept_ = self.standard_intercept_ - float(self.coef_ @ mean)

    def _inner(self, X, y, strata, groups, grid) -> tuple[np.ndarray, int]:
        """Mean loss of each penalty over the inner folds, and how many of these there are."""
        labels, codes = np.unique(strata, return_inverse=True)
        fewest = min(len(np.unique(groups[codes == code])) for code in range(len(labels)))
        folds = min(int(self.folds), fewest if self._needs_all else len(np.unique(groups)))
        scores = np.zeros(len(grid))
        if folds < 2 or len(grid) == 1 or self.free == X.shape[1]:  # nothing to choose
            return scores, 0
        fold = group_folds(groups, strata, folds, seed=self.seed, stage="inner folds")
        for number in range(folds):
            train, test = fold != number, fold == number
            if self._needs_all and len(np.unique(y[train])) < len(labels):
                continue
            mean, deviation, Z = _standard(X[train])
            weights, intercepts = self._paths(Z, y[train], grid)
            values = ((X[test] - mean) / deviation) @ weights.T + intercepts
            scores += self._losses(values, y[test]) / len(y)
        return scores, folds

    def _value(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return (X - self.mean_) / self.deviation_ @ self.standard_coef_ + self.standard_intercept_


class RidgeProbe(RegressorMixin, _Probe):
    """Ridge regression of one number, its penalty chosen by grouped inner folds.

    Parameters
    ----------
    penalties, folds, free, seed : see this module and `_Probe`.

    Attributes
    ----------
    coef_, intercept_ : for features as they come; ``standard_coef_``, ``standard_intercept_`` for
        columns of mean 0 and SD 1, with ``mean_`` and ``deviation_``.
    penalty_ : the chosen one; ``inner_scores_`` the mean squared errors it was chosen by.
    inner_folds_ : 0 where there were too few groups; the middle penalty is taken then.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 5)); y = X[:, 0] + 70
    >>> bool(abs(RidgeProbe().fit(X, y).predict(X) - y).mean() < 0.05)
    True
    """

    _needs_all = False

    def fit(self, X, y, groups=None) -> RidgeProbe:
        """``groups`` (n,) names what an inner fold may not part, such as the subject."""
        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64, ensure_min_samples=2)
        y = np.asarray(y, np.float64)
        cuts = np.quantile(y, [1 / 3, 2 / 3])
        self._fit(X, y, np.searchsorted(cuts, y), groups)
        return self

    def predict(self, X) -> Float[np.ndarray, " n"]:
        return self._value(X)

    def _paths(self, Z, y, grid) -> tuple[np.ndarray, np.ndarray]:
        known, rest, centred = Z[:, : self.free], Z[:, self.free :], y - y.mean()
        # free columns are fitted by least squares, and ridge sees what they leave (FWL theorem)
        basis = _span(known)
        left, singular, right = _svd(rest - basis @ (basis.T @ rest))
        projected = left.T @ (centred - basis @ (basis.T @ centred))
        shrunk = singular / (singular**2 + grid[:, None] * max(rest.shape[1], 1)) * projected
        slopes = shrunk @ right
        freed = np.linalg.pinv(known) @ (centred[:, None] - rest @ slopes.T)
        weights = np.hstack([freed.T, slopes])
        return weights, y.mean() - weights @ Z.mean(axis=0)

    @staticmethod
    def _losses(values, y) -> np.ndarray:
        return ((values - y[:, None]) ** 2).sum(axis=0)


class LogisticProbe(ClassifierMixin, _Probe):
    """Logistic regression of two classes, its penalty chosen by grouped inner folds.

    The inner score is the log loss.  Solved by Newton steps to convergence.

    Parameters
    ----------
    penalties, folds, free, seed : see this module and `_Probe`.

    Attributes
    ----------
    classes_ : the two; the second one is the positive one.
    coef_, intercept_, standard_coef_, ..., penalty_, inner_folds_ : as `RidgeProbe`;
        ``inner_scores_`` are log losses.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 5)); y = np.where(X[:, 0] > 0, "AD", "CN")
    >>> probe = LogisticProbe().fit(X, y)
    >>> list(probe.classes_), probe.predict_proba(X).shape
    ([np.str_('AD'), np.str_('CN')], (60, 2))
    """

    _needs_all = True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X, y, groups=None) -> LogisticProbe:
        """``groups`` (n,) names what an inner fold may not part, such as the subject."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(y)}."
            )
        if len(self.classes_) < 2:
            raise ValueError(
                f"this classifier needs 2 classes and got one class, {self.classes_[0]!r}"
            )
        self._fit(X, codes.astype(np.float64), codes, groups)
        return self

    def decision_function(self, X) -> Float[np.ndarray, " n"]:
        """Logit of the second class."""
        return self._value(X)

    def predict_proba(self, X) -> Float[np.ndarray, "n 2"]:
        from scipy.special import expit

        logit = self._value(X)
        return np.stack([expit(-logit), expit(logit)], axis=1)

    def predict(self, X) -> np.ndarray:
        positive = self._value(X) > 0
        return self.classes_[positive.astype(np.int64)]

    def _paths(self, Z, y, grid) -> tuple[np.ndarray, np.ndarray]:
        known, rest = Z[:, : self.free], Z[:, self.free :]
        left, singular, right = _svd(rest)
        rotated = np.hstack([left * singular, known, np.ones((len(y), 1))])
        shrink = np.zeros(rotated.shape[1])
        shrink[len(singular) : -1] = _FREE
        start = np.zeros(rotated.shape[1])
        start[-1] = np.log(y.mean() / (1 - y.mean()))
        weights, intercepts = np.zeros((len(grid), Z.shape[1])), np.zeros(len(grid))
        for place in np.argsort(-grid):  # from the strongest: each start is near its end
            shrink[: len(singular)] = grid[place] * max(rest.shape[1], 1)
            start = _newton(rotated, y, shrink, start)
            weights[place] = np.r_[start[len(singular) : -1], start[: len(singular)] @ right]
            intercepts[place] = start[-1]
        return weights, intercepts

    @staticmethod
    def _losses(values, y) -> np.ndarray:
        return np.logaddexp(0, np.where(y[:, None] > 0.5, -values, values)).sum(axis=0)


def _newton(X: np.ndarray, y: np.ndarray, shrink: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Coefficients of logistic regression with a penalty ``shrink`` on each; X holds a column of 1.

    Newton steps that are halved until the loss falls.  The loss is strictly convex, so this ends in
    its minimum from anywhere.  Written out because scikit-learn's solver, which ends in the same
    place, spends more time on checks of its input than on these small systems.

    Raises
    ------
    ValueError : no end in 100 steps, which takes numbers far from any scale.
    """
    from scipy.special import expit

    sign = np.where(y > 0.5, -1.0, 1.0)

    def loss(weights: np.ndarray) -> float:
        return float(np.logaddexp(0, sign * (X @ weights)).sum() + shrink @ weights**2 / 2)

    weights, value = start, loss(start)
    for _ in range(100):
        share = expit(X @ weights)
        gradient = X.T @ (share - y) + shrink * weights
        step = _newton_step(X, share * (1 - share), shrink + 1e-10, gradient)
        fall = float(gradient @ step)
        if fall <= 1e-13 * (1.0 + value):
            return weights
        length = 1.0
        while (new := loss(weights - length * step)) > value - 0.1 * length * fall:
            length /= 2
            if length < 1e-6:  # rounding: the loss falls no further
                return weights
        weights, value = weights - length * step, new
    raise ValueError("the logistic probe found no minimum in 100 steps; check the scale of y and X")


def _newton_step(
    X: np.ndarray, curve: np.ndarray, shrink: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """Solution of (X' diag(curve) X + diag(shrink)) step = gradient.

    Directly where it is small; otherwise by conjugate gradients, which need few products because
    the columns, but for the free ones, are orthogonal: the diagonal nearly is the matrix.
    """
    if X.shape[1] <= _DIRECT:
        curvature = (X * curve[:, None]).T @ X
        curvature[np.diag_indices_from(curvature)] += shrink
        return np.linalg.solve(curvature, gradient)
    diagonal = curve @ X**2 + shrink
    step, left = np.zeros_like(gradient), gradient.copy()
    scaled = left / diagonal
    way, old = scaled.copy(), float(left @ scaled)
    end = 1e-8 * old
    for _ in range(2 * X.shape[1]):
        if old <= end:
            break
        product = X.T @ (curve * (X @ way)) + shrink * way
        length = old / float(way @ product)
        step += length * way
        left -= length * product
        scaled = left / diagonal
        new = float(left @ scaled)
        way, old = scaled + new / old * way, new
    return step


def _standard(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, SD and the columns of mean 0 and SD 1; a constant one stays 0."""
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    flat = deviation <= 1e-12 * np.maximum(np.abs(mean), 1.0)
    deviation = np.where(flat, 1.0, deviation)
    return mean, deviation, np.where(flat, 0.0, (X - mean) / deviation)


def _svd(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular value decomposition without the directions in which nothing varies.

    By the eigenvectors of the smaller of Z Z' and Z' Z, a few times faster; what it loses, singular
    values below 1e-7 of the largest, any penalty here shrinks to nothing.
    """
    tall = Z.shape[0] >= Z.shape[1]
    squares, vectors = np.linalg.eigh(Z.T @ Z if tall else Z @ Z.T)
    kept = squares > max(1e-14 * squares.max(initial=0.0), 1e-20)
    singular, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    if tall:
        return Z @ vectors / singular, singular, vectors.T
    return vectors, singular, (Z.T @ vectors / singular).T


def _span(Z: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of Z."""
    return _svd(Z)[0]
