"""Scores that clinics read off a CT: emphysema index, 15th percentile, calcium score.

Each depends on kernel and thickness (a sharp kernel's noise alone makes emphysema), which is why
they are compared before and after standardization. Research use: none of these is a diagnosis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError

# lower bounds of the four weights of Agatston, HU
_WEIGHT_BOUNDS = (130.0, 200.0, 300.0, 400.0)
AGATSTON_KVP = 120.0
AGATSTON_INCREMENT_MM = 3.0


def emphysema_index(hu: np.ndarray, lung: np.ndarray, *, threshold: float | int = -950.0) -> float:
    """Percent of the lung's voxels below a threshold (LAA-950).

    Parameters
    ----------
    hu : intensities, HU.
    lung : mask of the lungs without airways, same shape.
    threshold : HU; a voxel at the threshold does not count.

    Returns
    -------
    From 0 to 100.

    Raises
    ------
    DataError : the mask lies on another grid or is empty, or the lung holds NaN.

    References
    ----------
    Gevenois et al. 1996, American Journal of Respiratory and Critical Care Medicine 154:187-192.

    Examples
    --------
    >>> emphysema_index(np.array([-960.0, -950.0, -900.0, -800.0]), np.ones(4, dtype=bool))
    25.0
    """
    return 100.0 * float((_inside(hu, lung, "lung") < threshold).mean())


def perc15(hu: np.ndarray, lung: np.ndarray) -> float:
    """Return the 15th percentile of the lung's intensities, HU (lung density: add 1000 for g/L).

    Raises
    ------
    DataError : as `emphysema_index`.

    References
    ----------
    Dirksen et al. 1999, American Journal of Respiratory and Critical Care Medicine 160:1468-1472.
    """
    return float(np.percentile(_inside(hu, lung, "lung"), 15))


@dataclass(frozen=True, kw_only=True)
class CalciumScore:
    """Agatston-like score and what it was made of.

    Attributes
    ----------
    score : unitless, 0 where no lesion counts.
    volume_mm3 : of the voxels that count.
    lesions : connected areas of single slices that count.
    by_slice : score of each slice.
    """

    score: float
    volume_mm3: float
    lesions: int
    by_slice: tuple[float, ...]


def agatston(
    hu: np.ndarray,
    where: np.ndarray,
    spacing_mm: Any,
    *,
    kvp: float | int | None = None,
    threshold: float | int = 130.0,
    least_area_mm2: float = 1.0,
    rescale: bool = True,
) -> CalciumScore:
    """Agatston-like calcium score.

    In each slice, areas of connected voxels (corners included) at or above the threshold and
    inside ``where`` are lesions if they cover at least the least area. A lesion gives its area in
    mm^2 times 1, 2, 3 or 4 for a peak from 130, 200, 300 or 400 HU. "Agatston-like", since the
    original is of electron beam CT in slices of 3 mm; a clinic's score also rests on gating and on
    a reader who says which lesions are coronary.

    Parameters
    ----------
    hu : (slices, rows, columns), HU.
    where : bool like hu: where calcium counts (the heart without bone).
    spacing_mm : distance of slices, rows and columns.
    kvp : tube voltage, if known; the weights are those of 120 kVp and another one is refused.
    threshold : HU, at least 130.
    least_area_mm2 : smaller areas are noise.
    rescale : multiply by the distance of slices over 3 mm, so that thin slices do not count the
        same calcium several times.

    Raises
    ------
    DataError : another shape or grid, an empty mask, NaN within it, a spacing that is not
        positive, or a voltage other than 120 kVp.

    References
    ----------
    Agatston et al. 1990, Journal of the American College of Cardiology 15:827-832; Ohnesorge et
    al. 2002, European Radiology 12 (slices that are not 3 mm apart).
    """
    from scipy import ndimage

    _inside(hu, where, "calcium's region")
    if hu.ndim != 3:
        raise DataError(f"the image has shape {hu.shape}; give (slices, rows, columns)")
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise DataError(f"the spacing is {spacing_mm} mm; give three numbers above 0")
    if kvp is not None and kvp != AGATSTON_KVP:
        raise DataError(
            f"the scan was made at {kvp:g} kVp; Agatston's weights hold at 120 kVp, where calcium "
            "has other HU"
        )
    if not threshold >= _WEIGHT_BOUNDS[0]:
        raise DataError(f"the threshold is {threshold:g} HU; a lesion has at least 130 HU")
    increment, row, column = spacing_mm
    factor = increment / AGATSTON_INCREMENT_MM if rescale else 1.0
    bright = where & (hu >= threshold)
    scores, lesions, voxels = [], 0, 0
    for k in range(len(hu)):
        label, count = ndimage.label(bright[k], structure=np.ones((3, 3)))
        if not count:
            scores.append(0.0)
            continue
        size = np.bincount(label.ravel(), minlength=count + 1)[1:]
        peak = np.atleast_1d(ndimage.maximum(hu[k], label, np.arange(1, count + 1)))
        area = size * row * column
        large = area >= least_area_mm2 * (1 - 1e-9)
        weight = np.searchsorted(_WEIGHT_BOUNDS, peak, side="right")
        scores.append(float((area * weight)[large].sum()) * factor)
        lesions += int(large.sum())
        voxels += int(size[large].sum())
    return CalciumScore(
        score=math.fsum(scores),
        volume_mm3=voxels * increment * row * column,
        lesions=lesions,
        by_slice=tuple(scores),
    )


def _inside(hu: np.ndarray, mask: np.ndarray, what: str) -> np.ndarray:
    if mask.shape != hu.shape:
        raise DataError(
            f"the mask of the {what} lies on a grid of {mask.shape}, the image on {hu.shape}; "
            "resample the mask onto the image first"
        )
    if mask.dtype != bool:
        raise DataError(f"the mask of the {what} is {mask.dtype}; give a bool array")
    values = hu[mask].astype(np.float64)
    if values.size == 0:
        raise DataError(f"the mask of the {what} is empty; give one with at least one voxel")
    if not np.isfinite(values).all():
        raise DataError(
            f"the {what} holds {int((~np.isfinite(values)).sum())} voxels of NaN or infinity; "
            "leave them out of the mask"
        )
    return values
