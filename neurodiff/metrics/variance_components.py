"""Variance of scores split into random factors, such as seed, subject and stimulus."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from pandas import DataFrame


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
