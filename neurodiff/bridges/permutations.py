"""What a decoder scores when brain data and targets do not belong together.

The training targets are shuffled among the trials and the ridge is fitted again, which costs one
product each: the hat matrix H depends on the brain data alone, so the shuffled fit predicts
``H @ Y[perm]``. No weights are made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

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
    block: int = 1024,
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
        measure: Callable[[np.ndarray], np.ndarray]
        if statistic is None:
            measure = _Correlation(goal, place.start)
        else:
            measure = _Given(statistic, mean.astype(kind), goal)
        draw = partial(_draw, apply=apply, Y=Y, measure=measure, seed=seed)
        parts.append(np.stack(_spread(draw, permutations)))
    return np.concatenate(parts, axis=-1)


def permutation(n: int, seed: int, k: int) -> np.ndarray:
    """The k-th shuffle of n trials under ``seed``, the same in any order and for any head."""
    drawn = item_seed(seed, subject="", stimulus="", sample=k, stage="ridge-permutation")
    return numpy_generator(drawn).permutation(n)


class _Correlation:
    """Pearson correlation of each column over the test trials; NaN for a constant prediction."""

    def __init__(self, goal: np.ndarray, first: int) -> None:
        centred = goal - goal.mean(axis=0, dtype=np.float64)
        length = np.linalg.norm(centred, axis=0)
        wrong = np.flatnonzero(~(length > 0))
        if len(wrong):
            raise DataError(
                f"target {first + wrong[0]} holds NaN or does not vary over the {len(goal)} test "
                "trials, so it has no correlation; drop it, or give another statistic"
            )
        self.unit = (centred / length).astype(goal.dtype)

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        mean = predicted.mean(axis=0)
        squares = np.einsum("ij,ij->j", predicted, predicted) - len(predicted) * mean**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.einsum("ij,ij->j", predicted, self.unit) / np.sqrt(squares)


class _Given:
    """The caller's statistic of whole predictions."""

    def __init__(self, statistic: Statistic, centre: np.ndarray, goal: np.ndarray) -> None:
        self.statistic, self.centre, self.goal = statistic, centre, goal

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        return np.atleast_1d(self.statistic(predicted + self.centre, self.goal))


def _draw(
    numbers: range,
    *,
    apply: Multiplier,
    Y: np.ndarray,
    measure: Callable[[np.ndarray], np.ndarray],
    seed: int,
) -> list[np.ndarray]:
    shuffled, out = np.zeros_like(Y), np.zeros((apply.rows, Y.shape[1]), Y.dtype)
    drawn = []
    for k in numbers:
        np.take(Y, permutation(len(Y), seed, k), axis=0, out=shuffled, mode="clip")
        drawn.append(measure(apply(shuffled, out)))
    return drawn


def _spread(draw: Callable[[range], list[np.ndarray]], permutations: int) -> list[np.ndarray]:
    """Stretches of permutations side by side, one a thread of the linear algebra library.

    A product of this size gains less from two threads than two products do from one each, and
    shuffling has no threads of its own.
    """
    threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)
    threads = min(threads, permutations)
    if threads == 1:
        return draw(range(permutations))
    edges = np.linspace(0, permutations, threads + 1).astype(int)
    stretches = [range(a, b) for a, b in itertools.pairwise(edges.tolist())]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        return [row for drawn in pool.map(draw, stretches) for row in drawn]


def _same_sizes(hat: np.ndarray, train: ColumnSource, test: ColumnSource) -> None:
    if hat.ndim != 2 or hat.shape != (test.rows, train.rows) or train.shape[1] != test.shape[1]:
        raise DataError(
            f"hat is {hat.shape}, the training targets {train.shape} and the truth {test.shape}; "
            "expected (m, n), (n, targets) and (m, targets)"
        )
