"""How well each vertex is predicted from a stimulus: correlation, its null, its interval, its
ceiling, and the correction for many vertices.

Everything here is a function of predicted and measured responses ``(stimuli, vertices)``, one row
a stimulus (repeats averaged). Correlations are over stimuli; where the predictions come from
several folds, ``folds`` names the fold of each row and both sides are centred within it first, so
that the different means of the folds' training sets do not pull the correlation down.

The null permutes stimuli within exchange blocks: a label a row, and only rows with the same label
change places. All vertices share a permutation, so the largest value of each permutation gives the
family-wise p of every vertex, whatever their dependence (Nichols & Holmes 2002).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

_BLOCK = 4_000_000  # numbers in memory at a time
_ROUNDING = 1e-9  # two equal correlations may differ by this


def column_correlations(
    predicted: Float[np.ndarray, "stimuli vertices"],
    measured: Float[np.ndarray, "stimuli vertices"],
    folds: Sequence[object] | np.ndarray | None = None,
) -> Float[np.ndarray, " vertices"]:
    """Pearson correlation of each column over stimuli, from -1 to 1.

    NaN where a measured column does not vary; 0 where only the prediction does not, since a
    constant prediction says nothing (a ridge of a vertex without signal often shrinks to it).

    Raises
    ------
    ValueError : shapes that differ, fewer than 3 stimuli, NaN or infinity.

    Examples
    --------
    >>> column_correlations(np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [4.0], [6.0]]))
    array([1.])
    """
    p, m = _pair(predicted, measured, folds)
    return (p * m).sum(axis=0)


def exchange_orders(
    blocks: Sequence[object] | np.ndarray, draws: int, seed: int
) -> Int[np.ndarray, "draws stimuli"]:
    """Permutations of the rows in which rows change places only within their block.

    Parameters
    ----------
    blocks : a label a row; rows of the same label are exchangeable.
    draws : number of permutations, >= 1.
    seed : of all of them.

    Raises
    ------
    ValueError : every block has a single row, so that nothing can change places.

    Examples
    --------
    >>> orders = exchange_orders(["a", "a", "b", "b"], draws=8, seed=0)
    >>> bool((orders[:, :2] < 2).all())
    True
    """
    codes = np.unique(np.asarray(blocks, dtype=str), return_inverse=True)[1]
    if draws < 1:
        raise ValueError(f"{draws} permutations; give a whole number from 1")
    groups = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    if max(len(rows) for rows in groups) < 2:
        raise ValueError(
            f"each of the {len(codes)} stimuli is alone in its exchange block, so none can change "
            "places; give larger blocks"
        )
    generator = np.random.default_rng(seed)
    orders = np.tile(np.arange(len(codes)), (draws, 1))
    for rows in groups:
        if len(rows) > 1:
            orders[:, rows] = rows[generator.random((draws, len(rows))).argsort(axis=1)]
    return orders


@dataclass(frozen=True, kw_only=True, eq=False)
class CorrelationNull:
    """What permuted stimuli give.

    Attributes
    ----------
    p : (vertices,) one-sided, (1 + b) / (1 + draws); NaN where a vertex does not vary.
    p_max : (vertices,) the same against the largest vertex of each permutation (family-wise).
    means : (rois, draws) mean over the vertices of each region, for each permutation.
    """

    p: Float[np.ndarray, " vertices"]
    p_max: Float[np.ndarray, " vertices"]
    means: Float[np.ndarray, "rois draws"]


def correlation_null(
    predicted: Float[np.ndarray, "stimuli vertices"],
    measured: Float[np.ndarray, "stimuli vertices"],
    orders: Int[np.ndarray, "draws stimuli"],
    *,
    rois: Bool[np.ndarray, "rois vertices"] | None = None,
    folds: Sequence[object] | np.ndarray | None = None,
) -> CorrelationNull:
    """Correlations with the measured rows in each of the ``orders``, counted vertex by vertex.

    Parameters
    ----------
    orders : from `exchange_orders`; with ``folds``, blocks must lie within folds.
    rois : regions whose mean correlation is kept for each permutation.

    References
    ----------
    Phipson & Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9 (p);
    Nichols & Holmes 2002, Human Brain Mapping 15 (largest statistic).
    """
    p, m = _pair(predicted, measured, folds)
    observed = (p * m).sum(axis=0)
    known = np.isfinite(observed)
    p, m = np.where(known, p, 0.0), np.where(known, m, 0.0)
    masks = np.zeros((0, p.shape[1])) if rois is None else (rois & known).astype(np.float64)
    sizes = np.maximum(masks.sum(axis=1), 1)
    better = np.zeros(p.shape[1])
    largest = np.full(len(orders), -np.inf)
    means = np.zeros((len(masks), len(orders)))
    width = max(1, 100_000 // len(p))  # columns that stay in the processor's cache
    for start in range(0, p.shape[1], width):
        at = slice(start, start + width)
        if not known[at].any():
            continue
        left, right, goal = p[:, at].copy(), m[:, at].copy(), observed[at] - _ROUNDING
        inside, some = masks[:, at], known[at]
        for k, order in enumerate(orders):
            r = np.einsum("ij,ij->j", left, right[order])
            better[at] += r >= goal
            largest[k] = max(largest[k], r[some].max())
            means[:, k] += inside @ r
    means /= sizes[:, None]
    draws = len(orders)
    largest.sort()
    beyond = draws - np.searchsorted(largest, np.where(known, observed, 0.0) - _ROUNDING)
    return CorrelationNull(
        p=np.where(known, (1 + better) / (1 + draws), np.nan),
        p_max=np.where(known, (1 + beyond) / (1 + draws), np.nan),
        means=means,
    )


def resampled_correlations(
    predicted: Float[np.ndarray, "stimuli vertices"],
    measured: Float[np.ndarray, "stimuli vertices"],
    draws: int,
    seed: int,
    *,
    folds: Sequence[object] | np.ndarray | None = None,
) -> Iterator[Float[np.ndarray, "part vertices"]]:
    """Correlations over stimuli drawn with replacement, some draws at a time.

    The same ``seed`` and number of stimuli draw the same stimuli for any vertices.
    """
    p, m = _pair(predicted, measured, folds)
    for weights in bootstrap_weights(len(p), draws, seed):
        sums = [weights @ part for part in (p, m, p * p, m * m, p * m)]
        mean_p, mean_m, square_p, square_m, product = (total / len(p) for total in sums)
        spread = np.sqrt(np.maximum(square_p - mean_p**2, 0) * np.maximum(square_m - mean_m**2, 0))
        covariance = product - mean_p * mean_m
        # a resample without spread: as in `column_correlations`, a constant says nothing
        r = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 1e-12 / len(p))
        yield np.where(np.isfinite(mean_m), r, np.nan)


def bootstrap_weights(n: int, draws: int, seed: int) -> Iterator[Float[np.ndarray, "part n"]]:
    """How often each of ``n`` stimuli is drawn, in blocks of bounded memory; rows sum to ``n``."""
    generator = np.random.default_rng(seed)
    step = max(1, min(draws, _BLOCK // max(n, 1), 64))
    for start in range(0, draws, step):
        chosen = generator.integers(0, n, (min(step, draws - start), n))
        weights = np.zeros(chosen.shape)
        np.add.at(weights, (np.arange(len(chosen))[:, None], chosen), 1.0)
        yield weights


def false_discovery(p: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Benjamini-Hochberg q of every finite p (scipy); NaN stays NaN and is not counted."""
    from scipy.stats import false_discovery_control

    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def mean_ceiling(
    single: Float[np.ndarray, " vertices"], repeats: Shaped[np.ndarray, " stimuli"]
) -> Float[np.ndarray, " vertices"]:
    """Share of the variance of means over repeats that a stimulus model could explain.

    From the share ``c`` of a single trial: S / (S + N mean(1 / k)) with S = c and N = 1 - c.

    Examples
    --------
    >>> mean_ceiling(np.array([0.5]), np.array([2, 2]))
    array([0.66666667])
    """
    left = (1 - single) * np.mean(1 / repeats.astype(np.float64))
    total = single + left
    return np.divide(single, total, out=np.full(total.shape, np.nan), where=total > 0)


def normalised(
    r: Float[np.ndarray, "*any"],
    ceiling: Float[np.ndarray, "*any"],
    least: float = 0.05,
) -> Float[np.ndarray, "*any"]:
    """``r / sqrt(ceiling)``, the correlation with the noise-free response; it may exceed 1.

    NaN where the ceiling (a share of variance) is below ``least``: dividing by a small ceiling
    that is itself estimated gives numbers of any size.

    References
    ----------
    Hsu, Borst & Theunissen 2004, Network 15; Schoppe et al. 2016, Frontiers in Computational
    Neuroscience 10.
    """
    enough = ceiling >= least
    root = np.sqrt(np.where(enough, ceiling, 1.0))
    return np.where(enough, r / root, np.nan)


def centred_within(
    values: Float[np.ndarray, "stimuli vertices"], folds: Sequence[object] | np.ndarray | None
) -> Float[np.ndarray, "stimuli vertices"]:
    """Columns minus their mean over the rows of the same fold (None: over all rows)."""
    values = values.astype(np.float64)
    if folds is None:
        return values - values.mean(axis=0)
    codes = np.unique(np.asarray(folds, dtype=str), return_inverse=True)[1]
    for code in range(codes.max() + 1):
        rows = codes == code
        values[rows] -= values[rows].mean(axis=0)
    return values


def _pair(
    predicted: np.ndarray, measured: np.ndarray, folds: object
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides centred and of unit length; constant predictions 0, constant measurements NaN."""
    if predicted.shape != measured.shape or len(predicted) < 3:
        raise ValueError(
            f"predictions are {predicted.shape} and measurements {measured.shape}; a correlation "
            "needs the same shape and at least 3 stimuli"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(measured).all()):
        raise ValueError("predictions or measurements hold NaN or infinity")
    sides = []
    for values, empty in ((predicted, 0.0), (measured, np.nan)):
        scale = np.abs(values).max(axis=0, initial=0.0)
        values = centred_within(values, folds)
        length = np.linalg.norm(values, axis=0)
        varies = length > 1e-10 * np.sqrt(len(values)) * scale
        unit = values / np.where(varies, length, 1.0)
        sides.append(np.where(varies, unit, empty))
    return sides[0], sides[1]
