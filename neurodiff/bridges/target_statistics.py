"""Penalties and training statistics of a head of targets, streamed in blocks of columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neurodiff.bridges.device_algebra import Multiplier, upper_factor
from neurodiff.bridges.kernel_factor import KEPT_OPERATORS, KernelFactor
from neurodiff.bridges.leave_out import leave_out_residuals
from neurodiff.core.columns import ColumnSource
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, numpy_generator

Standardise = Literal["loo", "test", "none"]

#: columns drawn, at most, to choose the penalty of a head
SKETCH = 1024
_RUN = 2048  # rows whose sum is taken in the streaming type before float64 takes over


@dataclass(frozen=True, eq=False, kw_only=True)
class TargetStatistics:
    """Of each target over the training trials, all float64 (targets,); None where not asked for.

    Attributes
    ----------
    mean, std : of the targets themselves (ddof 0).
    loo_mean, loo_std : of their leave-one-out predictions (ddof 0).
    """

    mean: np.ndarray
    std: Any = None
    loo_mean: Any = None
    loo_std: Any = None


def penalty_grid(alphas: Any, *, absolute: bool, unit: float) -> np.ndarray:
    """Ascending absolute penalties from ``alphas`` (a number, several, or None for a default).

    Raises
    ------
    UsageError : not positive finite numbers, or absolute penalties without a value.
    """
    if alphas is None:
        if absolute:
            raise UsageError(
                "alphas is None and absolute=True; name the penalties, such as alphas=[6e4]"
            )
        alphas = np.logspace(-3, 3, 13)
    try:
        grid = np.atleast_1d(np.asarray(alphas, np.float64))
    except (TypeError, ValueError):
        grid = np.zeros(0)
    if grid.ndim != 1 or len(grid) == 0 or not np.all(np.isfinite(grid) & (grid > 0)):
        raise UsageError(f"alphas must be positive numbers; got {alphas!r}")
    return np.unique(grid) * (1.0 if absolute else unit)


def sketch_columns(count: int, seed: int, size: int = SKETCH) -> np.ndarray:
    """Which of ``count`` columns stand for all in the choice of a penalty: at most ``size``."""
    if count <= size:
        return np.arange(count)
    rng = numpy_generator(item_seed(seed, subject="", stimulus="", stage="ridge-sketch"))
    return np.sort(rng.choice(count, size, replace=False))


def leave_out_errors(factor: KernelFactor, grid: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Summed squared leave-one-out error of each penalty and target; (alphas, targets).

    ``Y`` (n, targets) is centred. Few penalties are inverted one by one, which costs less than the
    eigenvectors that serve any number of them.
    """
    if len(grid) <= KEPT_OPERATORS and not factor.by_eigenvectors:
        return np.stack([np.square(factor.leave_out(a) @ Y - Y).sum(axis=0) for a in grid])
    values, U, _ = factor.eigen
    UtY = U.T @ Y
    return np.stack(
        [
            np.square(leave_out_residuals(a, values, U, Y, UtY, factor.members)).sum(axis=0)
            for a in grid
        ]
    )


def centred_block(
    targets: ColumnSource, place: slice, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """A block of targets in ``dtype`` without its means, and the means in float64.

    Raises
    ------
    DataError : NaN or infinity in it.
    """
    block = targets.block(place.start, place.stop, dtype)
    mean = column_means(block, place.start)
    if targets.array is not None and np.shares_memory(block, targets.array):
        return block - mean.astype(dtype), mean
    block -= mean.astype(dtype)  # in place: the block is ours
    return block, mean


def column_means(block: np.ndarray, first: int = 0) -> np.ndarray:
    """Means over rows in float64 at the speed of the block's own type; (n, c) -> (c,)."""
    total = np.zeros(block.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(block), _RUN):
            part = block[start : start + _RUN]
            total += np.ones(len(part), part.dtype) @ part
    bad = np.flatnonzero(~np.isfinite(total))
    if len(bad):
        raise DataError(
            f"Input y contains NaN or infinity in {len(bad)} of these columns, first in target "
            f"{first + bad[0]}; repair or drop these targets before fitting"
        )
    return total / len(block)


def head_statistics(
    factor: KernelFactor,
    targets: ColumnSource,
    alpha: float,
    *,
    standardise: Standardise,
    dtype: np.dtype,
    block: int,
) -> TargetStatistics:
    """One pass over a head of one penalty: what ``standardise`` needs of the training trials.

    The leave-one-out predictions are not made for it. Their variance is ``|R y|^2 / n`` with R the
    triangular factor of their centred operator, half the products, and their mean one row.
    """
    count = targets.shape[1]
    mean, std, loo_mean, loo_std = (np.zeros(count) for _ in range(4))
    if standardise == "loo":
        operator = factor.leave_out(alpha).astype(np.float64)
        average = operator.mean(axis=0)
        operator -= average
        operator = upper_factor(operator, factor.device)
        spread = Multiplier(operator, dtype, factor.device, upper=True)
        del operator  # n x n in float64: 0.6 GB for 8,859 trials
    for place in targets.slices(block):
        if standardise == "none":
            values = targets.block(place.start, place.stop, dtype)
            mean[place] = column_means(values, place.start)
            continue
        Y, mean[place] = centred_block(targets, place, dtype)
        std[place] = spread_of(Y, mean[place])
        if standardise == "loo":
            loo_mean[place] = mean[place] + average.astype(dtype) @ Y
            loo_std[place] = np.sqrt(spread.squared_norms(Y) / len(Y))
    return _collected(mean, std, loo_mean, loo_std, standardise)


def target_statistics(
    factor: KernelFactor,
    targets: ColumnSource,
    grid: np.ndarray,
    *,
    standardise: Standardise,
    dtype: np.dtype,
    block: int,
) -> tuple[np.ndarray, TargetStatistics]:
    """One pass that chooses a penalty for each target, and what ``standardise`` needs."""
    values, U, _ = factor.eigen
    U = U.astype(dtype, copy=False)
    count = targets.shape[1]
    alpha, mean, std, loo_mean, loo_std = (np.zeros(count) for _ in range(5))
    for place in targets.slices(block):
        Y, mean[place] = centred_block(targets, place, dtype)
        UtY = U.T @ Y
        least = np.full(Y.shape[1], np.inf)
        chosen = np.full(Y.shape[1], grid[0])
        best = np.zeros_like(Y)
        for a in grid:
            residuals = leave_out_residuals(a, values, U, Y, UtY, factor.members)
            error = np.einsum("ij,ij->j", residuals, residuals)
            better = error < least
            least[better], chosen[better] = error[better], a
            best[:, better] = residuals[:, better]
        alpha[place] = chosen
        if standardise == "none":
            continue
        std[place] = spread_of(Y, mean[place])
        predicted = Y - best
        loo_mean[place] = mean[place] + predicted.mean(axis=0, dtype=np.float64)
        loo_std[place] = predicted.std(axis=0, dtype=np.float64)
    return alpha, _collected(mean, std, loo_mean, loo_std, standardise)


def leave_out_blocks(
    factor: KernelFactor,
    targets: ColumnSource,
    alpha: Any,
    *,
    dtype: np.dtype,
    block: int,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Leave-one-out predictions of the training trials, (columns, (n, columns)), block by block.

    ``alpha`` is one penalty, or one for each target.
    """
    one = np.ndim(alpha) == 0
    if one:
        operator = Multiplier(factor.leave_out(float(alpha)), dtype, factor.device)
    else:
        values, U, _ = factor.eigen
        U = U.astype(dtype, copy=False)
    for place in targets.slices(block):
        Y, mean = centred_block(targets, place, dtype)
        if one:
            yield place, operator(Y) + mean.astype(dtype)
            continue
        out = np.zeros_like(Y)
        for a in np.unique(alpha[place]):
            of_a = np.flatnonzero(alpha[place] == a)
            mine = Y[:, of_a]
            out[:, of_a] = mine - leave_out_residuals(
                a, values, U, mine, U.T @ mine, factor.members
            )
        yield place, out + mean.astype(dtype)


def spread_of(Y: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Standard deviation (ddof 0) of centred targets; 0 where only rounding varies.

    An encoder may have dead outputs, so a constant target is no mistake: it is predicted as what it
    is, since its spread of 0 scales whatever ridge says to nothing.
    """
    std = np.sqrt(np.einsum("ij,ij->j", Y, Y) / len(Y))
    return np.where(std <= 8 * np.finfo(Y.dtype).eps * np.abs(mean), 0.0, std)


def _collected(mean, std, loo_mean, loo_std, standardise: Standardise) -> TargetStatistics:
    if standardise != "none":
        constant = std == 0
        if constant.all():
            raise DataError(
                f"all {len(std)} targets are constant over the training trials, so there is "
                "nothing to predict; check the targets"
            )
        loo_mean, loo_std = np.where(constant, mean, loo_mean), np.where(constant, 1.0, loo_std)
    return TargetStatistics(
        mean=mean,
        std=None if standardise == "none" else std,
        loo_mean=loo_mean if standardise == "loo" else None,
        loo_std=loo_std if standardise == "loo" else None,
    )
