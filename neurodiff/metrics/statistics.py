"""Uncertainty of scores: bootstrap over items, permutation of the pairing, the way to the ceiling.

Random factors of a design, such as seeds and subjects, are split by `variance_components`.

Values are one number an item (averaged over samples and views beforehand), in any unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from neurodiff.metrics.variance_components import (
    crossed_values,
    standard_error,
    variance_components,
)

__all__ = [
    "Interval",
    "Statistic",
    "binomial_p_legacy",
    "bootstrap_interval",
    "crossed_values",
    "pairing_null",
    "permutation_p",
    "standard_error",
    "variance_components",
    "way_to_ceiling",
]

Statistic = Callable[..., float]


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval, in the unit of the statistic.

    ``low`` and ``high`` are NaN where the interval has no bounds; ``note`` then says why.
    """

    value: float
    low: float
    high: float
    n_items: int
    confidence: float
    method: str
    note: str = ""


def bootstrap_interval(
    values: Float[np.ndarray, " items"] | Sequence[Float[np.ndarray, " items"]],
    statistic: Statistic = np.mean,
    n: int = 2000,
    seed: int = 0,
    *,
    confidence: float = 0.95,
    method: Literal["percentile", "BCa"] = "percentile",
) -> Interval:
    """Confidence interval of a statistic under resampling of the items.

    Parameters
    ----------
    values : one value an item; or several arrays over the same items, which are resampled
        together (paired) and passed to ``statistic`` as separate arguments.
    statistic : ``(items,), ... -> float``.
    n : resamples.
    seed : of the resampling.
    confidence : between 0 and 1.
    method : "percentile", or "BCa" (bias-corrected and accelerated), which is closer to nominal
        for skewed statistics and costs one more evaluation an item.

    Returns
    -------
    The statistic of the values themselves with its interval. Where all resamples agree the
    interval has no width.

    Raises
    ------
    ValueError : fewer than 2 items, NaN or infinite values, unequal lengths, bad settings.

    References
    ----------
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 14.
    """
    arrays = _paired(values)
    _require_settings(n, confidence)
    point = float(statistic(*arrays))
    resampled = _resample(arrays, statistic, n, seed)
    low, high = _percentiles(resampled, confidence)
    if method == "BCa" and low < high:
        low, high = _bca(arrays, statistic, point, resampled, confidence)
    return Interval(point, low, high, len(arrays[0]), confidence, method)


def pairing_null(
    values: Float[np.ndarray, "items _"],
    n: int = 1000,
    seed: int = 0,
    *,
    groups: Sequence[str] | None = None,
) -> Float[np.ndarray, " n"]:
    """Mean score under ``n`` random pairings of reconstructions and true pictures.

    Parameters
    ----------
    values : score of reconstruction j, were picture i its truth; ``pairing_rates``, for example.
    n : permutations.
    seed : of the permutations; the same number and seed of items gives the same permutations, so
        that sets of reconstructions of the same pictures are permuted together.
    groups : permute within these only. Items whose own value is NaN take no part.

    Raises
    ------
    ValueError : the matrix is not square, or ``n`` is below 1.
    """
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"values are {values.shape}; a pairing needs items x items")
    _require_settings(n, 0.5)
    generator = np.random.default_rng(seed)
    labels = np.zeros(len(values), int) if groups is None else np.asarray(groups, dtype=str)
    codes = np.unique(labels, return_inverse=True)[1]
    sums = np.zeros(n)
    kept = ~np.isnan(np.diagonal(values))
    for code in np.unique(codes):
        rows = np.flatnonzero((codes == code) & kept)
        block = values[np.ix_(rows, rows)]
        step = max(1, 2_000_000 // max(len(rows), 1))  # of bounded memory
        for start in range(0, n, step):
            keys = generator.random((min(step, n - start), len(rows)))
            orders = keys.argsort(axis=1)
            sums[start : start + step] += block[np.arange(len(rows)), orders].sum(axis=1)
    return sums / max(int(kept.sum()), 1)


def permutation_p(
    observed: float, null: Float[np.ndarray, " n"], *, higher_is_better: bool = True
) -> float:
    """One-sided p ``(1 + number of permutations at least as good) / (1 + n)``; never 0.

    Raises
    ------
    ValueError : the score or one of its permutations is not finite.

    References
    ----------
    Phipson & Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9.

    Examples
    --------
    >>> permutation_p(0.9, np.array([0.4, 0.5, 0.6]))
    0.25
    """
    if not np.isfinite(observed) or not np.isfinite(null).all():
        raise ValueError("a p-value needs numbers; the score or its permutations hold NaN")
    sign = 1 if higher_is_better else -1
    # rounding may not tell two equal means apart
    good = sign * null >= sign * observed - 1e-12
    return float((1 + good.sum()) / (1 + len(null)))


def binomial_p_legacy(rate: float, items: int) -> float:
    """The p published with 2-way scores: a binomial of ``items (items - 1)`` fair coins.

    Kept to compare with published values. The comparisons of one item are not independent: about
    half of all decoders of pure noise come out below 0.05. Use ``permutation_p``.

    References
    ----------
    Ozcelik & VanRullen 2023, Scientific Reports 13 (released scripts).
    """
    from scipy.stats import binom

    pairs = items * (items - 1)
    return float(binom.sf(rate * pairs, pairs, 0.5))


def way_to_ceiling(
    values: Float[np.ndarray, " items"],
    floor: Float[np.ndarray, " items"],
    ceiling: Float[np.ndarray, " items"],
    *,
    statistic: Statistic = np.mean,
    n: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """How far the scores have come from a floor to a ceiling: 0 at the floor, 1 at the ceiling.

    ``(s(floor) - s(values)) / (s(floor) - s(ceiling))`` with ``s`` the mean, or
    ``statistic=np.median``. Signs cancel, so the direction of the metric does not matter. The
    items of all three are resampled together.

    Parameters
    ----------
    values, floor, ceiling : scores of the same items by the method, by a baseline without brain
        data, and by the best that the decoder can do (true features).
    statistic, n, seed, confidence : as in ``bootstrap_interval`` (percentile).

    Returns
    -------
    The share with its paired interval. Below 0: worse than the floor. Where floor and ceiling
    change places in more than ``(1 - confidence) / 2`` of the resamples the ratio has no bounds:
    ``low`` and ``high`` are NaN and ``note`` says so.

    Raises
    ------
    ValueError : as ``bootstrap_interval``, or floor and ceiling are equal.
    """
    arrays = _paired([values, floor, ceiling])
    _require_settings(n, confidence)
    value, worst, best = (float(statistic(array)) for array in arrays)
    if worst == best:
        raise ValueError(
            f"floor and ceiling are both {worst:.6g}; there is no way between them to measure"
        )
    rows = _resample_columns(arrays, statistic, n, seed)  # (3, n)
    gap = rows[1] - rows[2]
    crossed = float((np.sign(gap) != np.sign(worst - best)).mean())
    point = (worst - value) / (worst - best)
    if crossed > (1 - confidence) / 2:
        note = f"floor and ceiling are not told apart: they change places in {crossed:.1%} of draws"
        nan = float("nan")
        return Interval(point, nan, nan, len(values), confidence, "percentile", note)
    kept = gap != 0
    low, high = _percentiles((rows[1] - rows[0])[kept] / gap[kept], confidence)
    return Interval(point, low, high, len(values), confidence, "percentile")


def _paired(values: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    arrays = [values] if isinstance(values, np.ndarray) else list(values)
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) != 1:
        raise ValueError(f"arrays of {lengths} items cannot be paired; pass the same items in each")
    if lengths[0] < 2:
        raise ValueError(f"got {lengths[0]} items; an interval over items needs at least 2")
    for array in arrays:
        if not np.isfinite(array).all():
            raise ValueError(f"{int((~np.isfinite(array)).sum())} values are NaN or infinite")
    return [array.astype(np.float64) for array in arrays]


def _require_settings(n: int, confidence: float) -> None:
    if n < 1 or not 0 < confidence < 1:
        raise ValueError(f"got n={n}, confidence={confidence}; n >= 1 and 0 < confidence < 1")


def _draws(n_items: int, n: int, seed: int):
    """Yield the resampled rows in blocks of bounded memory: (block, items)."""
    generator = np.random.default_rng(seed)
    block = max(1, 2_000_000 // n_items)
    for start in range(0, n, block):
        yield generator.integers(0, n_items, (min(block, n - start), n_items))


def _resample(arrays: list[np.ndarray], statistic: Statistic, n: int, seed: int) -> np.ndarray:
    """Return the statistic of n resamples: (n,)."""
    if statistic in (np.mean, np.median) and len(arrays) == 1:
        return _resample_columns(arrays, statistic, n, seed)[0]
    return np.array(
        [
            statistic(*(array[row] for array in arrays))
            for rows in _draws(len(arrays[0]), n, seed)
            for row in rows
        ],
        dtype=np.float64,
    )


def _resample_columns(
    arrays: list[np.ndarray], statistic: Statistic, n: int, seed: int
) -> np.ndarray:
    """Return the statistic of each array in the same n resamples: (arrays, n)."""
    blocks = []
    for rows in _draws(len(arrays[0]), n, seed):
        if statistic in (np.mean, np.median):
            blocks.append([statistic(array[rows], axis=1) for array in arrays])
        else:
            blocks.append([[statistic(array[row]) for row in rows] for array in arrays])
    return np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks], axis=1)


def _percentiles(resampled: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def _bca(
    arrays: list[np.ndarray],
    statistic: Statistic,
    point: float,
    resampled: np.ndarray,
    confidence: float,
) -> tuple[float, float]:
    """Shift the percentiles by the bias and the skewness (Efron & Tibshirani, eq. 14.9-14.15)."""
    from scipy.stats import norm

    below = (resampled < point).mean() + 0.5 * (resampled == point).mean()
    if not 0 < below < 1:
        raise ValueError(
            "every resample lies on one side of the statistic, so BCa has no bias estimate; "
            "use method='percentile'"
        )
    bias = norm.ppf(below)
    left_out = np.array(
        [statistic(*(np.delete(array, i) for array in arrays)) for i in range(len(arrays[0]))]
    )
    deviation = left_out.mean() - left_out
    spread = (deviation**2).sum()
    skew = (deviation**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    tails = bias + norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.percentile(resampled, 100 * norm.cdf(bias + tails / (1 - skew * tails)))
    return float(low), float(high)
