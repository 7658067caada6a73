"""From an image and a mask to what radiomic features are computed on: the IBSI processing chain.

In the order of the IBSI reference manual (chapter 2): interpolation, rounding of grey levels,
re-segmentation, discretisation. Two masks come out: the morphological one, which says what shape
the region has, and the intensity one, from which voxels outside the range were taken.

References
----------
Zwanenburg et al. 2020, Radiology 295:328-338; Image Biomarker Standardisation Initiative,
reference manual (arXiv 1612.07003), chapter 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neurodiff.core.errors import DataError

if TYPE_CHECKING:
    from neurodiff.metrics.radiomics import RadiomicsSettings

# radius of the sphere of 1 cm^3 of the local intensity peak
PEAK_RADIUS_MM = (3000.0 / (4.0 * math.pi)) ** (1.0 / 3.0)
# cubic splines look far, with a weight that falls by 0.27 a voxel: 2e-10 is left after this many
_SPLINE_REACH = 17
_MAX_LEVELS = 100_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A region of interest after the chain, cropped to its box.

    Attributes
    ----------
    values : float64 (slices, rows, columns), intensities; numbers outside the masks mean nothing.
    morphological, intensity : bool like values; the second lies within the first.
    levels : int32 like values, grey levels from 1 in the intensity mask, 0 elsewhere.
    bins : N_g, the highest grey level.
    spacing : mm of a voxel along slices, rows and columns.
    bounds : lowest and highest intensity that the region can have (its own, or those of the range
        of re-segmentation where one was given), for the intensity-volume histogram.
    around : float64, values with a margin of the radius of the peak's sphere; NaN where the image
        ends or holds no number.
    margin : voxels of that margin along the three axes.
    """

    values: np.ndarray
    morphological: np.ndarray
    intensity: np.ndarray
    levels: np.ndarray
    bins: int
    spacing: tuple[float, float, float]
    bounds: tuple[float, float]
    around: np.ndarray
    margin: tuple[int, int, int]

    def voxel_volume(self) -> float:
        """In mm^3."""
        return math.prod(self.spacing)


def prepare(
    image: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float, float],
    settings: RadiomicsSettings,
    roi_name: str,
) -> Region:
    """Take an image (slices, rows, columns) and a mask through the chain.

    Raises
    ------
    DataError : nothing is left of the region, it holds numbers that are not finite, or its grey
        levels are too many.
    """
    wanted = settings.spacing_on_axes(spacing)
    margin = _margin(wanted)
    if wanted == spacing and settings.interpolation != "always":
        values, inside = _crop(image, mask, margin)
    else:
        values, inside = _resample(image, mask, spacing, wanted, margin, settings)
    if not inside.any():
        raise DataError(
            f"nothing is left of ROI {roi_name!r} at a spacing of {_text(wanted)} mm; it is "
            "smaller than a voxel of that grid: give a finer one"
        )
    if settings.round_levels:
        values = np.rint(values)
    box = tuple(slice(m, n - m) for m, n in zip(margin, values.shape, strict=True))
    around, values, inside = values, values[box], inside[box]
    bad = int((~np.isfinite(values[inside])).sum())
    if bad:
        raise DataError(
            f"{bad} of {int(inside.sum())} voxels of ROI {roi_name!r} are NaN or infinite; "
            "leave them out of the mask or repair the image"
        )
    kept = _resegment(values, inside, settings, roi_name)
    low, high = float(values[kept].min()), float(values[kept].max())
    bottom, top = settings.range_or(low, high)
    levels = _discretise(values, kept, low, high, bottom, settings, roi_name)
    return Region(
        values=values,
        morphological=inside,
        intensity=kept,
        levels=levels,
        bins=int(levels.max()),
        spacing=wanted,
        bounds=(bottom, top),
        around=around,
        margin=margin,
    )


def _margin(spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    a, b, c = (math.floor(PEAK_RADIUS_MM / s + 1e-9) for s in spacing)
    return a, b, c


def _crop(
    image: np.ndarray, mask: np.ndarray, margin: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask's box with a margin on every side; NaN where the image ends."""
    box = mask_box(mask)
    take, pad = [], []
    for side, reach, size in zip(box, margin, mask.shape, strict=True):
        low, high = side.start - reach, side.stop + reach
        take.append(slice(max(low, 0), min(high, size)))
        pad.append((max(-low, 0), max(high - size, 0)))
    values = image[tuple(take)].astype(np.float64)
    return (
        np.pad(values, pad, constant_values=np.nan),
        np.pad(mask[tuple(take)], pad, constant_values=False),
    )


def mask_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds every voxel of a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        used = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _resample(
    image: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float, float],
    wanted: tuple[float, float, float],
    margin: tuple[int, int, int],
    settings: RadiomicsSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate onto a grid of the wanted spacing whose centre is that of the image.

    IBSI 2.4: ceil(n * old / new) voxels a side, centres of both grids aligned. Only the part of
    the grid about the region is computed; the numbers are those of the whole grid.
    """
    from scipy.ndimage import map_coordinates

    order = 3 if settings.interpolator == "cubic" else 1
    starts, coordinates, outside = [], [], []
    for axis, side in enumerate(mask_box(mask)):
        size, ratio = mask.shape[axis], wanted[axis] / spacing[axis]
        new = math.ceil(size / ratio - 1e-9)
        first = (size - 1) / 2 - (new - 1) / 2 * ratio
        low = math.floor((side.start - 1 - first) / ratio) - margin[axis]
        high = math.ceil((side.stop - first) / ratio) + margin[axis]
        index = np.arange(low, high + 1)
        where = first + index * ratio
        outside.append((index < 0) | (index >= new))
        reach = _SPLINE_REACH if order == 3 else 1
        start = max(math.floor(where[0]) - reach, 0)
        stop = min(math.ceil(where[-1]) + reach + 1, size)
        starts.append(slice(min(start, size - 1), max(stop, 1)))
        coordinates.append(where - starts[-1].start)
    grid = np.meshgrid(*coordinates, indexing="ij")
    part = tuple(starts)
    values = map_coordinates(image[part].astype(np.float64), grid, order=order, mode="nearest")
    inside = map_coordinates(mask[part].astype(np.float64), grid, order=1, mode="nearest")
    gone = outside[0][:, None, None] | outside[1][None, :, None] | outside[2][None, None, :]
    values[gone], kept = np.nan, (inside >= 0.5 - 1e-9) & ~gone
    if not kept.any():
        return values, kept
    return _crop(values, kept, margin)


def _resegment(
    values: np.ndarray, inside: np.ndarray, settings: RadiomicsSettings, roi_name: str
) -> np.ndarray:
    """Take voxels outside the range, and outliers beyond n standard deviations, from the mask.

    Mean and deviation are those of the region before; with both, what both keep is kept.
    """
    kept = inside.copy()
    low, high = settings.range_or(-math.inf, math.inf)
    kept &= (values >= low) & (values <= high)
    if settings.outlier_sd is not None:
        own = values[inside]
        reach = settings.outlier_sd * own.std()
        kept &= np.abs(values - own.mean()) <= reach
    if not kept.any():
        own = values[inside]
        raise DataError(
            f"no voxel of ROI {roi_name!r} is left by the re-segmentation to "
            f"{settings.resegment_range}; its intensities are {own.min():g} to {own.max():g}: "
            "give a range that meets them"
        )
    return kept


def _discretise(
    values: np.ndarray,
    kept: np.ndarray,
    low: float,
    high: float,
    bottom: float,
    settings: RadiomicsSettings,
    roi_name: str,
) -> np.ndarray:
    """Return grey levels from 1 within the intensity mask (IBSI 2.7)."""
    own = values[kept]
    if settings.bin_count is not None:
        spread = high - low
        level = np.ones(own.shape)
        if spread > 0:
            level = np.minimum(
                np.floor(settings.bin_count * (own - low) / spread) + 1, settings.bin_count
            )
    elif settings.bin_width is not None:
        width = settings.bin_width
        if settings.bin_origin == "multiple":
            bottom = math.floor(low / width) * width
        level = np.floor((own - bottom) / width) + 1
    else:
        level = own
        if (level != np.rint(level)).any() or low < 1:
            raise DataError(
                f"ROI {roi_name!r} holds intensities such as {own.min():g} and is to be used "
                "without discretisation, which needs whole grey levels from 1; give bin_width "
                "or bin_count"
            )
    if level.max() > _MAX_LEVELS:
        raise DataError(
            f"ROI {roi_name!r} gives {level.max():.0f} grey levels, at most {_MAX_LEVELS} are "
            "computed; give a wider bin_width"
        )
    levels = np.zeros(values.shape, dtype=np.int32)
    levels[kept] = level
    return levels


def _text(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{s:g}" for s in spacing)
