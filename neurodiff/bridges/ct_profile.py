"""Slice thickness as weights over thin slices, fitted from thin and thick reconstructions.

A thick slice of the same scan is a weighted mean of thin ones. Helical sensitivity profiles are
wider than a box: on one real pair (1 mm to 5 mm) the plain mean of five slices leaves 19.6 HU RMSE
and the seven weights below 7.7 HU, so weights are fitted where a pair is at hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import check_slices

#: 1 mm slices to one of 5 mm, Philips Ingenuity helical; sums to 1
ONE_TO_FIVE = np.array([0.5, 1, 1, 1, 1, 1, 0.5]) / 6


def fit_taps(
    thin: Any,
    thick: Any,
    centres: Any,
    *,
    taps: int = 7,
    symmetric: bool = True,
    padding: np.ndarray | None = None,
) -> np.ndarray:
    """Weights (taps,) by least squares, summing to 1.

    Parameters
    ----------
    thin : (slices, rows, columns), HU, evenly spaced.
    thick : (m, rows, columns), HU, of the same scan.
    centres : (m,) index of the thin slice at the middle of each thick one.
    taps : odd number of thin slices that a thick one may hold.
    symmetric : equal weights before and after the middle.
    padding : bool like ``thin``; those pixels are left out.

    Raises
    ------
    DataError : shapes that do not match, or fewer than two thick slices with all their neighbours.
    """
    thin, thick = check_slices(thin, "the thin series"), check_slices(thick, "the thick series")
    centres = np.asarray(centres)
    if taps < 1 or taps % 2 == 0:
        raise UsageError(f"taps is {taps}; give an odd number, such as 7")
    if thin.shape[1:] != thick.shape[1:] or centres.shape != (len(thick),):
        raise DataError(
            f"thin slices {thin.shape[1:]}, thick slices {thick.shape[1:]} and {centres.shape} "
            f"centres; expected one grid and {len(thick)} centres"
        )
    half = taps // 2
    whole = [i for i, c in enumerate(centres) if half <= c < len(thin) - half]
    if len(whole) < 2:
        raise DataError(
            f"{len(whole)} thick slices have all {taps} thin ones around them; two are needed"
        )
    size = half + 1 if symmetric else taps
    # differences from the middle slice make the sum 1 without a constraint
    gram, right = np.zeros((size - 1, size - 1)), np.zeros(size - 1)
    for i in whole:
        near = thin[centres[i] - half : centres[i] + half + 1].astype(np.float64)
        used = np.ones(near.shape[1:], bool)
        if padding is not None:
            used = ~np.asarray(padding[centres[i] - half : centres[i] + half + 1]).any(axis=0)
        middle = near[half]
        if symmetric:
            columns = [near[half - k] + near[half + k] - 2 * middle for k in range(1, size)]
        else:
            columns = [near[k] - middle for k in range(taps) if k != half]
        A = np.stack([column[used] for column in columns], axis=1)
        gram += A.T @ A
        right += A.T @ (thick[i].astype(np.float64) - middle)[used]
    if np.linalg.matrix_rank(gram, tol=1e-9 * max(float(np.trace(gram)), 1e-30)) < len(gram):
        raise DataError("the thin slices do not differ enough to tell their weights apart")
    found = np.linalg.solve(gram, right)
    weights = np.zeros(taps)
    if symmetric:
        for k in range(1, size):
            weights[half - k] = weights[half + k] = found[k - 1]
    else:
        weights[np.arange(taps) != half] = found
    weights[half] = 1 - weights.sum()
    return weights


def thicken(
    thin: Any, taps: Any, centres: Any, *, padding: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Thick slices (m, rows, columns) and where they were not measured (bool alike).

    Beyond the first and last thin slice the weights that remain are scaled to sum to 1. A pixel is
    padding where it is in any thin slice that counts.
    """
    thin = check_slices(thin)
    taps = np.asarray(taps, np.float64)
    if taps.ndim != 1 or len(taps) % 2 == 0 or abs(taps.sum() - 1) > 1e-3:
        raise UsageError(f"taps are {np.round(taps, 3)}; give an odd number that sum to 1")
    half = len(taps) // 2
    centres = np.asarray(centres)
    if len(centres) and (centres.min() < 0 or centres.max() >= len(thin)):
        raise DataError(f"centres lie outside the {len(thin)} thin slices")
    result = np.zeros((len(centres), *thin.shape[1:]), np.float32)
    outside = np.zeros(result.shape, bool)
    for i, centre in enumerate(centres):
        first, last = max(centre - half, 0), min(centre + half + 1, len(thin))
        weights = taps[first - centre + half : last - centre + half]
        result[i] = np.tensordot(weights / weights.sum(), thin[first:last], axes=1)
        if padding is not None:
            outside[i] = np.asarray(padding[first:last]).any(axis=0)
            result[i][outside[i]] = thin[centre][outside[i]]
    return result, outside
