"""Concordance, intraclass correlation, repeatability and bias of two lists of measurements.

References
----------
Lin 1989, Biometrics 45:255-268 (concordance). Shrout & Fleiss 1979, Psychological Bulletin
86:420-428 (ICC). Bland & Altman 1986, Lancet 327:307-310. Raunig et al. 2015, Statistical Methods
in Medical Research 24:27-67 (repeatability coefficient).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError

# of a difference of two measurements with the same error, at 95 %
_REPEATABILITY = 1.959963984540054


def ccc(x: Any, y: Any) -> float:
    """Lin's concordance correlation coefficient: correlation, less what scale and shift cost.

    Parameters
    ----------
    x, y : (n,) two measurements of the same n things.

    Returns
    -------
    2 s_xy / (s_x^2 + s_y^2 + (mean x - mean y)^2) with moments over n; from -1 to 1. NaN where
    both are the same constant.

    Raises
    ------
    DataError : fewer than two pairs, lengths that differ, or numbers that are not finite.

    Examples
    --------
    >>> round(ccc([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]), 4)
    0.5714
    """
    x, y = _pairs(x, y)
    if np.ptp(x) == 0 and np.array_equal(x, y):  # rounding would pass for variance
        return math.nan
    apart = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    shared = ((x - x.mean()) * (y - y.mean())).mean()
    return float(2 * shared / apart)


def icc(ratings: Any, kind: str = "2,1") -> float:
    """Intraclass correlation of single ratings, two-way.

    Parameters
    ----------
    ratings : (n things, k raters or reconstructions).
    kind : "2,1": absolute agreement, raters are a sample; "3,1": consistency, a rater's own shift
        does not count.

    Returns
    -------
    At most 1. NaN where no rating varies.

    Raises
    ------
    DataError : fewer than two things or two raters, or numbers that are not finite.
    UsageError : another kind.

    Examples
    --------
    >>> shifted = [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]
    >>> round(icc(shifted), 4), round(icc(shifted, "3,1"), 4)
    (0.6667, 1.0)
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise DataError(
            f"ratings have shape {table.shape}; an ICC needs at least 2 things by 2 raters"
        )
    if not np.isfinite(table).all():
        raise DataError("ratings hold NaN or infinity; leave those things out first")
    if kind not in ("2,1", "3,1"):
        raise UsageError(f"the kind of ICC is {kind!r}; give '2,1' or '3,1'")
    if np.ptp(table) == 0:
        return math.nan
    n, k = table.shape
    table = table - table.mean()
    rows = k * (table.mean(axis=1) ** 2).sum()
    columns = n * (table.mean(axis=0) ** 2).sum()
    error = max((table**2).sum() - rows - columns, 0.0) / ((n - 1) * (k - 1))
    between, raters = rows / (n - 1), columns / (k - 1)
    below = between + (k - 1) * error
    if kind == "2,1":
        below += k * (raters - error) / n
    return float((between - error) / below) if below > 0 else math.nan


def repeatability_coefficient(x: Any, y: Any) -> float:
    """Return the difference that 95 % of repeats stay under: 1.96 sqrt(2) within-subject SD.

    In units of the measurement. The within-subject variance is the mean of d^2 / 2, so a shift
    between the two counts as error; `bland_altman` tells them apart.

    Raises
    ------
    DataError : as `ccc`.
    """
    x, y = _pairs(x, y)
    return float(_REPEATABILITY * math.sqrt(((x - y) ** 2).mean()))


@dataclass(frozen=True, kw_only=True)
class BlandAltman:
    """Mean and limits of the differences ``y - x``, in units of the measurement."""

    bias: float
    sd: float
    lower: float
    upper: float


def bland_altman(x: Any, y: Any) -> BlandAltman:
    """Bias of ``y`` against ``x`` and its 95 % limits of agreement (SD over n - 1).

    Raises
    ------
    DataError : as `ccc`.
    """
    x, y = _pairs(x, y)
    d = y - x
    bias, sd = float(d.mean()), float(d.std(ddof=1))
    reach = _REPEATABILITY * sd
    return BlandAltman(bias=bias, sd=sd, lower=bias - reach, upper=bias + reach)


def _pairs(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    one, two = (np.asarray(v, dtype=np.float64) for v in (x, y))
    if one.ndim != 1 or one.shape != two.shape:
        raise DataError(
            f"the two measurements have shapes {one.shape} and {two.shape}; give two lists of "
            "one length"
        )
    if one.size < 2:
        raise DataError(f"there is {one.size} pair of measurements; agreement needs at least 2")
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise DataError("measurements hold NaN or infinity; leave those pairs out first")
    return one, two
