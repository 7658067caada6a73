"""Ridge from brain data to a head of targets that may be larger than memory.

The three decoders of Brain-Diffuser (Ozcelik & VanRullen 2023) are 335 ridge fits on the same
brain data. Here they share one `KernelFactor`; predictions are ``H(a) (Y - mean) + mean``, the
targets pass by in blocks of columns, and weights are made only for those who ask for them.

Predictions of ridge vary less than what they predict, and the generator needs features of their
natural spread, so they are re-standardised target by target:

    (prediction - m) / s * std(Y_train) + mean(Y_train)

"loo" takes m and s from the leave-one-out predictions of the training trials, so that one new trial
is enough and no test item leans on another. "test" takes them from the test predictions themselves,
as the released code does: the result for one item then depends on which others are in the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from neurodiff.bridges.device_algebra import Multiplier
from neurodiff.bridges.kernel_factor import KernelFactor, factorise, float_type
from neurodiff.bridges.target_statistics import (
    TargetStatistics,
    column_means,
    head_statistics,
    leave_out_blocks,
    leave_out_errors,
    penalty_grid,
    sketch_columns,
    target_statistics,
)
from neurodiff.core.columns import ColumnSource, open_columns
from neurodiff.core.errors import DataError, UsageError


class FactoredRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Exact ridge with streamed targets and leave-one-out from one factorisation.

    Parameters
    ----------
    alphas : penalties to choose from, > 0; one number is taken as it is. ``None``: 13 values from
        1e-3 to 1e3 in units of the kernel's mean eigenvalue.
    alpha_per : "head": the one with the least leave-one-out error, summed over at most 1,024
        columns drawn by ``seed``; "target": the best one for each column.
    absolute : penalties as they are (published: 5e4, 1e5, 6e4 for z-scored vertices) instead of
        in units of the kernel's mean eigenvalue.
    standardise : "loo", "test" or "none"; see the module.
    dtype : "float64", or "float32" to stream in half the memory and time; the kernel is factored
        in float64 in both.
    device : "cpu", or a device of torch, for the heavy products.
    block : columns of the targets in memory at a time.
    seed : of the columns on which a head's penalty is chosen.

    Attributes
    ----------
    alpha_ : the absolute penalty: a number, or (targets,) per target.
    alphas_ : (alphas,) the absolute grid, ascending.
    sketch_r2_ : (alphas,) leave-one-out R² of the drawn columns together; None with one penalty.
    factor_ : `KernelFactor`; targets_ : `ColumnSource`, the targets by reference.
    statistics_ : `TargetStatistics` of the training trials.

    Raises
    ------
    UsageError : penalties not positive, or an unknown option.
    DataError : NaN, vertices or (unless standardise="none") targets that never vary, fewer than two
        trials, other widths than in ``fit``, one test trial under standardise="test".

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 200)); tokens = X[:, :6].reshape(40, 3, 2)
    >>> FactoredRidge(alphas=[0.1, 1.0]).fit(X, tokens).predict(X[:1]).shape
    (1, 3, 2)
    """

    alpha_: Any
    statistics_: TargetStatistics

    def __init__(
        self,
        alphas: Any = None,
        *,
        alpha_per: str = "head",
        absolute: bool = False,
        standardise: str = "loo",
        dtype: str = "float64",
        device: str = "cpu",
        block: int = 4096,
        seed: int = 0,
    ):
        self.alphas = alphas
        self.alpha_per = alpha_per
        self.absolute = absolute
        self.standardise = standardise
        self.dtype = dtype
        self.device = device
        self.block = block
        self.seed = seed

    def fit(
        self, X: Any, y: Any, groups: Any = None, factor: KernelFactor | None = None
    ) -> FactoredRidge:
        """Choose the penalty and pass once over the targets; returns self.

        Parameters
        ----------
        X : (n, p) brain data; None with a ``factor``.
        y : (n,) or (n, ...) targets, or the path of a ``.npy`` of them; kept by reference, so
            neither the array nor the file may change while the bridge is in use.
        groups : (n,) names of what is left out together, such as the stimulus of each trial.
        factor : of the same trials, shared with other heads; from `factorise`.
        """
        dtype = self._checked_options()
        if X is None and factor is None:
            raise UsageError("X is None and no factor was given; give the brain data or a factor")
        if X is not None:
            X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        if factor is None:
            factor = factorise(X, dtype=dtype, device=self.device, groups=groups)
        else:
            if X is not None:
                factor.refuse_other(X)
            self.n_features_in_ = factor.features
            factor = factor if groups is None else factor.with_groups(groups)
        targets = _targets(y, self)
        if targets.rows != factor.trials:
            raise DataError(
                f"X has {factor.trials} trials and y has {targets.rows} rows; expected one row of "
                "targets for each trial, in the same order"
            )
        grid = penalty_grid(self.alphas, absolute=self.absolute, unit=factor.mean_eigenvalue)
        options: dict[str, Any] = {
            "standardise": self.standardise,
            "dtype": dtype,
            "block": self.block,
        }
        self.sketch_r2_ = None
        if self.alpha_per == "target" and len(grid) > 1:
            self.alpha_, self.statistics_ = target_statistics(factor, targets, grid, **options)
        else:
            alpha = float(grid[0])
            if len(grid) > 1:
                alpha, self.sketch_r2_ = _choose(factor, targets, grid, self.seed)
            self.statistics_ = head_statistics(factor, targets, alpha, **options)
            per_target = self.alpha_per == "target"
            self.alpha_ = np.full(targets.shape[1], alpha) if per_target else alpha
        self.alphas_, self.factor_, self.targets_ = grid, factor, targets
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(m, p) -> (m, ...) in the shape of the targets, re-standardised as in the constructor."""
        check_is_fitted(self)
        X = self._rows(X)
        if self.standardise == "test" and len(X) < 2:
            raise DataError(
                "standardise='test' takes mean and spread from the test trials and got 1 of them; "
                "give all test trials together, or fit with standardise='loo'"
            )
        return self._whole(self._predicted(X, self.standardise), len(X))

    def predict_raw(self, X: Any) -> np.ndarray:
        """(m, p) -> (m, ...) the ridge predictions themselves."""
        check_is_fitted(self)
        X = self._rows(X)
        return self._whole(self._predicted(X, "none"), len(X))

    def predict_blocks(self, X: Any) -> Iterator[tuple[slice, np.ndarray]]:
        """What `predict` returns, as (columns, (m, columns)) block by block."""
        check_is_fitted(self)
        X = self._rows(X)
        return self._predicted(X, self.standardise)

    def loo_blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Exact leave-one-out predictions of the training trials, (columns, (n, columns)); raw."""
        check_is_fitted(self)
        return leave_out_blocks(
            self.factor_,
            self.targets_,
            self.alpha_,
            dtype=float_type(self.dtype),
            block=self.block,
        )

    def loo(self, *, standardise: bool = True) -> np.ndarray:
        """All leave-one-out predictions of the training trials, (n, ...), in memory.

        What a later stage must be trained on, since in-sample predictions are too good.
        ``standardise`` re-standardises them as `predict` does under "loo" (and only then).
        """
        blocks = self.loo_blocks()
        if standardise and self.standardise == "loo":
            blocks = ((place, self._restandardised(part, place)) for place, part in blocks)
        return self._whole(blocks, self.factor_.trials)

    def restandardise(self, predictions: np.ndarray) -> np.ndarray:
        """Raw predictions (m, ...) of all targets -> predictions of the targets' own spread.

        Under "test" the statistics are those of ``predictions``, under "loo" of training.
        """
        check_is_fitted(self)
        flat = np.asarray(predictions).reshape(len(predictions), -1)
        if flat.shape[1] != self.targets_.shape[1]:
            raise DataError(
                f"predictions have {flat.shape[1]} targets; this bridge was fitted on "
                f"{self.targets_.shape[1]}"
            )
        if self.standardise == "none":
            return np.asarray(predictions)
        return self._restandardised(flat, slice(0, flat.shape[1])).reshape(predictions.shape)

    def hat(self, X: Any, alpha: float | None = None) -> np.ndarray:
        """H with ``predict_raw(X) == H @ (Y - mean) + mean``; (m, n), for one penalty."""
        check_is_fitted(self)
        if alpha is None and np.ndim(self.alpha_):
            raise UsageError("this bridge has a penalty for each target; name one: hat(X, alpha)")
        return self.factor_.hat(self._rows(X), float(self.alpha_ if alpha is None else alpha))

    def patterns(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Patterns over vertices times the weights, and the intercepts, without making weights.

        ``r W' = (r X') D`` with the dual coefficients D = (K + a I)^-1 (Y - mean).

        Parameters
        ----------
        rows : (m, p) such as the binary mask of an ROI; not centred.

        Returns
        -------
        (m, targets) and (targets,), float64: the intercept of ridge for X that is not centred.
        """
        check_is_fitted(self)
        rows = self._rows(rows)
        rows = np.vstack([rows, self.factor_.mean[None]])
        found = np.concatenate(
            [part for _, part in self._products(rows, centre=False, dtype=np.dtype(np.float64))],
            axis=1,
        )
        return found[:-1], self.statistics_.mean - found[-1]

    def dual(self, start: int, stop: int) -> np.ndarray:
        """Dual coefficients ``(K + a I)^-1 (Y - mean)`` of some targets; (n, stop - start)."""
        check_is_fitted(self)
        Y = self.targets_.block(start, stop, np.float64) - self.statistics_.mean[start:stop]
        if np.ndim(self.alpha_) == 0:
            return self.factor_.dual(float(self.alpha_), Y)
        out = np.zeros_like(Y)
        for a, of_a in _by_penalty(self.alpha_[start:stop]):
            out[:, of_a] = self.factor_.dual(a, Y[:, of_a])
        return out

    def weights(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Primal weights (stop - start, p) and intercepts of a block of targets, made now."""
        coef = self.dual(start, stop).T @ self.factor_.centred
        return coef, self.statistics_.mean[start:stop] - coef @ self.factor_.mean

    def save(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write the bridge; see `neurodiff.bridges.ridge_files.save_ridge` for the options."""
        from neurodiff.bridges.ridge_files import save_ridge

        save_ridge(self, folder, **options)

    @staticmethod
    def load(folder: str | os.PathLike[str], **options: Any) -> FactoredRidge:
        """Read a bridge; see `neurodiff.bridges.ridge_files.load_ridge` for the options."""
        from neurodiff.bridges.ridge_files import load_ridge

        return load_ridge(folder, **options)

    # ---------------------------------------------------------------------------------- parts

    def _checked_options(self) -> np.dtype:
        for name, known in (
            ("alpha_per", ("head", "target")),
            ("standardise", ("loo", "test", "none")),
        ):
            value = getattr(self, name)
            if value not in known:
                names = " or ".join(repr(k) for k in known)
                raise UsageError(f"{name} is {value!r}; give {names}")
        if not isinstance(self.block, int | np.integer) or self.block < 1:
            raise UsageError(f"block is {self.block!r}; give a whole number of columns from 1")
        return float_type(self.dtype)

    def _rows(self, X: Any) -> np.ndarray:
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _products(
        self, X: np.ndarray, *, centre: bool, dtype: np.dtype
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """H of each penalty times the centred targets, block by block."""

        def multiplier(a: float) -> Multiplier:
            hat = self.factor_.hat(X, a, centre=centre)
            return Multiplier(hat, dtype, self.factor_.device)

        per_target = np.ndim(self.alpha_) == 1
        every = {float(a): multiplier(float(a)) for a in np.unique(self.alpha_)}
        means = self.statistics_.mean
        room = np.zeros((self.targets_.rows, min(self.block, len(means))), dtype)
        for place in self.targets_.slices(self.block):
            Y = self.targets_.block(place.start, place.stop, dtype)
            if dtype == np.float32 and _far_from_zero(Y, means[place]):
                Y = np.subtract(Y, means[place].astype(dtype), out=room[:, : Y.shape[1]])
            if not per_target:
                yield place, every[float(self.alpha_)](Y)
                continue
            out = np.zeros((len(X), Y.shape[1]), dtype)
            for a, of_a in _by_penalty(self.alpha_[place]):
                out[:, of_a] = every[a](Y[:, of_a])
            yield place, out

    def _predicted(self, X: np.ndarray, standardise: str) -> Iterator[tuple[slice, np.ndarray]]:
        dtype = float_type(self.dtype)
        for place, part in self._products(X, centre=True, dtype=dtype):
            part += self.statistics_.mean[place].astype(dtype)
            yield place, part if standardise == "none" else self._restandardised(part, place)

    def _restandardised(self, part: np.ndarray, place: slice) -> np.ndarray:
        known = self.statistics_
        if self.standardise == "loo":
            mean, spread, whose = known.loo_mean[place], known.loo_std[place], "leave-one-out"
        else:
            mean, spread, whose = part.mean(0, np.float64), part.std(0, np.float64), "test"
        spread = np.where(known.std[place] == 0, 1.0, spread)  # a constant target stays what it is
        flat = np.flatnonzero(spread <= 64 * np.finfo(np.float64).eps * np.abs(mean))
        if len(flat):
            raise DataError(
                f"the {whose} predictions of target {place.start + flat[0]} (and {len(flat) - 1} "
                "more near it) do not vary, so they cannot be re-standardised: give more than one "
                "distinct trial, or use standardise='none'"
            )
        scale = known.std[place] / spread
        shift = known.mean[place] - mean * scale
        return part * scale.astype(part.dtype) + shift.astype(part.dtype)

    def _whole(self, blocks: Iterator[tuple[slice, np.ndarray]], rows: int) -> np.ndarray:
        out = np.zeros((rows, self.targets_.shape[1]), float_type(self.dtype))
        for place, part in blocks:
            out[:, place] = part
        return out.reshape(rows, *self.targets_.item_shape)


def _choose(
    factor: KernelFactor, targets: ColumnSource, grid: np.ndarray, seed: int
) -> tuple[float, np.ndarray]:
    """The penalty of a head, and leave-one-out R² of the drawn columns for each penalty."""
    Y = targets.take(sketch_columns(targets.shape[1], seed), np.float64)
    Y = Y - column_means(Y)
    errors = leave_out_errors(factor, grid, Y).sum(axis=1)
    total = np.square(Y).sum()
    r2 = 1 - errors / total if total > 0 else np.full(len(grid), np.nan)
    return float(grid[np.argmin(errors)]), r2


def _far_from_zero(Y: np.ndarray, means: np.ndarray) -> bool:
    """Whether a mean is some ten times the spread: H annuls it, but not its float32 rounding."""
    return bool((np.abs(means) > 2 * np.ptp(Y[:64], axis=0)).any())


def _by_penalty(alpha: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    for a in np.unique(alpha):
        yield float(a), np.flatnonzero(alpha == a)


def _targets(y: Any, estimator: FactoredRidge) -> ColumnSource:
    if y is None:
        raise UsageError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None"
        )
    if isinstance(y, ColumnSource | np.memmap | str | os.PathLike):
        return open_columns(y)
    if not (isinstance(y, np.ndarray) and y.dtype.kind == "f"):
        y = check_array(
            y,
            dtype="numeric",
            ensure_2d=False,
            allow_nd=True,
            ensure_all_finite=False,
            input_name="y",
        )
        if y.dtype.kind == "O":
            y = y.astype(np.float64)
    return open_columns(y)


__all__ = ["FactoredRidge", "KernelFactor", "TargetStatistics", "factorise"]
