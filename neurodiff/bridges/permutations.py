"""What a decoder scores when brain data and targets do not belong together.

The training targets are shuffled among the trials and the ridge is fitted again, which costs one
product each: the hat matrix H depends on the brain data alone, so the shuffled fit predicts
``H @ Y[perm]``. No weights are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from neurodiff.bridges.device_algebra import Multiplier
from neurodiff.bridges.kernel_factor import float_type
from neurodiff.bridges.target_statistics import centred_block
from neurodiff.core.columns import ColumnSource, open_columns
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, numpy_generator

#: (m, targets) predictions and truths of one block -> numbers, the last axis of which is joined
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def permutation_null(
    hat: np.ndarray,
    targets: Any,
    truth: Any,
    *,
    statistic: Statistic | None = None,
    permutations: int = 1000,
    seed: int = 0,
    dtype: str = "float32",
    block: int = 2048,
) -> np.ndarray:
    """Null distribution of a statistic over refits with shuffled training targets.

    Parameters
    ----------
    hat : (m, n) from ``FactoredRidge.hat`` or ``KernelFactor.hat``.
    targets : (n, ...) training targets: an array, a path of ``.npy``, or a `ColumnSource`.
    truth : (m, ...) what the test trials should give.
    statistic : function of (m, c) predictions and truths of one block of targets; None is the
        correlation of each target over the test trials, (c,).
    permutations : number of shuffles, >= 1. The k-th shuffle depends on ``seed`` and k alone.
    dtype : type of the products.
    block : targets at a time; a statistic that is not target by target needs all of them in one.

    Returns
    -------
    (permutations, ...) the statistic, joined over blocks along its last axis.

    Raises
    ------
    DataError : rows that do not match, NaN in the targets, or truths that never vary.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> null = permutation_null(
    ...     rng.standard_normal((9, 20)), rng.standard_normal((20, 3)),
    ...     rng.standard_normal((9, 3)), permutations=5,
    ... )
    >>> null.shape
    (5, 3)
    """
    if permutations < 1:
        raise UsageError(f"{permutations} permutations; give a whole number from 1")
    train, test = open_columns(targets), open_columns(truth)
    _same_sizes(hat, train, test)
    kind = float_type(dtype)
    apply = Multiplier(hat, kind)
    parts = []
    for place in train.slices(block):
        Y, mean = centred_block(train, place, kind)
        goal = test.block(place.start, place.stop, kind)
        centre = mean.astype(kind)
        if statistic is None:
            unit = _unit_columns(goal, place.start)
        drawn = []
        for k in range(permutations):
            predicted = apply(Y[permutation(len(Y), seed, k)])
            if statistic is None:
                drawn.append(_correlations(predicted, unit))
            else:
                drawn.append(np.atleast_1d(statistic(predicted + centre, goal)))
        parts.append(np.stack(drawn))
    return np.concatenate(parts, axis=-1)


def permutation(n: int, seed: int, k: int) -> np.ndarray:
    """The k-th shuffle of n trials under ``seed``, the same in any order and for any head."""
    drawn = item_seed(seed, subject="", stimulus="", sample=k, stage="ridge-permutation")
    return numpy_generator(drawn).permutation(n)


def _correlations(predicted: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column with a column of mean 0 and length 1; NaN if constant."""
    mean = predicted.mean(axis=0)
    squares = np.einsum("ij,ij->j", predicted, predicted) - len(predicted) * mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("ij,ij->j", predicted, unit) / np.sqrt(squares)


def _unit_columns(goal: np.ndarray, first: int) -> np.ndarray:
    centred = goal - goal.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    wrong = np.flatnonzero(~(length > 0))
    if len(wrong):
        raise DataError(
            f"target {first + wrong[0]} holds NaN or does not vary over the {len(goal)} test "
            "trials, so it has no correlation; drop it, or give another statistic"
        )
    return (centred / length).astype(goal.dtype)


def _same_sizes(hat: np.ndarray, train: ColumnSource, test: ColumnSource) -> None:
    if hat.ndim != 2 or hat.shape != (test.rows, train.rows) or train.shape[1] != test.shape[1]:
        raise DataError(
            f"hat is {hat.shape}, the training targets {train.shape} and the truth {test.shape}; "
            "expected (m, n), (n, targets) and (m, targets)"
        )
