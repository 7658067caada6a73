"""Uncertainty of scores: bootstrap over items, permutation of the pairing, the way to the ceiling,
variance components.

Values are one number an item (averaged over samples and views beforehand), in any unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from pandas import DataFrame

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


def variance_components(
    values: Float[np.ndarray, "*levels"],
    factors: Sequence[str] = ("seed", "subject", "stimulus"),
) -> dict[str, float]:
    """Split the variance of scores into random factors of a crossed, balanced design.

    One score a cell, say seeds x subjects x stimuli. Expected mean squares are solved for the
    components (method of moments): with A a set of factors, ``MS_A = sum over B that contain A
    of v_B * (product of the levels outside B)``.

    Parameters
    ----------
    values : one axis a factor, at least 2 levels each.
    factors : names of the axes.

    Returns
    -------
    Variances by name, in the squared unit of the values: "seed", ..., "seed:subject", ..., and
    "residual" (all factors together with the noise of a cell). Unbiased, hence sometimes
    negative where a component is small; read a negative one as "not told from 0".

    Raises
    ------
    ValueError : axes and names differ, a factor has one level, values are not finite.

    References
    ----------
    Searle, Casella & McCulloch 1992, Variance Components, chapter 4.
    """
    if values.ndim != len(factors) or values.ndim == 0 or len(set(factors)) != len(factors):
        raise ValueError(f"values have {values.ndim} axes; factors name {tuple(factors)}")
    if min(values.shape) < 2:
        name = factors[int(np.argmin(values.shape))]
        raise ValueError(f"factor {name!r} has one level; a variance needs at least 2, or drop it")
    if not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity; a balanced design needs every cell")
    axes = tuple(range(values.ndim))
    subsets = [s for size in range(1, len(axes) + 1) for s in combinations(axes, size)]
    squares = {subset: _mean_square(values.astype(np.float64), subset) for subset in subsets}
    components = {}
    for subset in subsets:
        total = sum(
            (-1) ** (len(other) - len(subset)) * square
            for other, square in squares.items()
            if set(subset) <= set(other)
        )
        outside = int(np.prod([values.shape[axis] for axis in axes if axis not in subset]))
        name = "residual" if len(subset) == len(axes) else ":".join(factors[a] for a in subset)
        components[name] = float(total / outside)
    return components


def standard_error(components: dict[str, float], levels: dict[str, int]) -> float:
    """Standard error of the grand mean over random levels of all factors.

    Parameters
    ----------
    components : of ``variance_components``; negative ones count as 0.
    levels : number of levels of each factor, which may be those of a study yet to be planned.
    """
    total = 0.0
    for name, variance in components.items():
        names = levels if name == "residual" else name.split(":")
        total += max(variance, 0.0) / float(np.prod([levels[factor] for factor in names]))
    return float(np.sqrt(total))


def crossed_values(
    table: DataFrame, value: str, factors: Sequence[str] = ("seed", "subject", "stimulus")
) -> Float[np.ndarray, "*levels"]:
    """Arrange a table with one row a cell as the array that ``variance_components`` takes.

    Levels come in sorted order.

    Raises
    ------
    ValueError : a column is missing, a cell is missing, or a cell appears twice.
    """
    missing = [name for name in (value, *factors) if name not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {missing[0]!r}; it has {list(table.columns)}")
    levels, codes = [], []
    for name in factors:
        found, code = np.unique(np.asarray(table[name]), return_inverse=True)
        levels.append(len(found))
        codes.append(code)
    cells = np.bincount(np.ravel_multi_index(codes, levels), minlength=int(np.prod(levels)))
    if (cells != 1).any():
        raise ValueError(
            f"the design {' x '.join(factors)} is not balanced: of {cells.size} cells "
            f"{int((cells == 0).sum())} are missing, {int((cells > 1).sum())} appear repeatedly"
        )
    values = np.zeros(levels, dtype=np.float64)
    values[tuple(codes)] = np.asarray(table[value], dtype=np.float64)
    return values


def _mean_square(values: np.ndarray, subset: tuple[int, ...]) -> float:
    """Return the mean square of the (interaction) effect of some axes."""
    rest = tuple(axis for axis in range(values.ndim) if axis not in subset)
    effect = values.mean(axis=rest) if rest else values.copy()
    for axis in range(effect.ndim):
        effect = effect - effect.mean(axis=axis, keepdims=True)
    freedom = np.prod([size - 1 for size in effect.shape])
    return float((effect**2).sum() * np.prod([values.shape[a] for a in rest]) / freedom)


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
