"""The transfer function of a CT kernel from the edge of a round rod.

References
----------
Samei et al. 2019, AAPM Task Group 233, for the circular-edge MTF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import check_slices, check_spacing


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """A modulation transfer function: ``frequency`` (bins,) lp/cm from 0 and ``value`` there."""

    frequency: np.ndarray
    value: np.ndarray

    def at(self, frequency: Any) -> np.ndarray:
        """Value at frequencies, lp/cm; the last value beyond the range."""
        return np.asarray(np.interp(frequency, self.frequency, self.value))

    def falls_to(self, level: float) -> float:
        """First frequency, lp/cm, at which the curve is at ``level``; infinity where it never is.

        ``falls_to(0.5)`` and ``falls_to(0.1)`` are the usual figures of a kernel.
        """
        below = np.flatnonzero(self.value <= level)
        if not len(below):
            return float("inf")
        first = int(below[0])
        if first == 0:
            return float(self.frequency[0])
        (a, b), (va, vb) = self.frequency[first - 1 : first + 1], self.value[first - 1 : first + 1]
        return float(a + (b - a) * (va - level) / (va - vb))


def rod_transfer(
    hu: Any,
    centre: tuple[float, float],
    radius_mm: float,
    spacing: tuple[float, float],
    *,
    bins: int = 64,
) -> Transfer:
    """Transfer function from the edge of a round rod.

    The profile over the distance from the rod's centre, finer than a pixel because the distances
    fall everywhere, is differentiated and transformed. Slices are averaged first.

    Parameters
    ----------
    hu : (slices, rows, columns), HU; the rod stands across the slices.
    centre : (row, column) of the rod, pixels; refined by the centre of its contrast.
    radius_mm : of the rod; the blur has to be well below it.
    spacing : (row_mm, column_mm).
    bins : of the result, up to the frequency of half a pixel's diagonal.

    Raises
    ------
    UsageError : a radius below two pixels.
    DataError : the surroundings of the rod leave the image, or it has no contrast.
    """
    image = check_slices(hu).mean(axis=0, dtype=np.float64)
    row_mm, column_mm = check_spacing(spacing)
    if not radius_mm > 2 * max(row_mm, column_mm):
        raise UsageError(f"a radius of {radius_mm:g} mm is below two pixels; measure a larger rod")
    reach = 1.7 * radius_mm
    for _ in range(3):  # the centre of contrast moves the window, which moves the centre
        rows, columns = (np.arange(size) - at for size, at in zip(image.shape, centre, strict=True))
        distance = np.hypot(rows[:, None] * row_mm, columns[None] * column_mm)
        edges = [centre[0] * row_mm, (image.shape[0] - 1 - centre[0]) * row_mm]
        edges += [centre[1] * column_mm, (image.shape[1] - 1 - centre[1]) * column_mm]
        if min(edges) < reach:
            raise DataError(
                f"a rod of {radius_mm:g} mm at pixel ({centre[0]:.0f}, {centre[1]:.0f}) needs "
                f"{reach:.1f} mm of image around its centre; there are {min(edges):.1f}"
            )
        near = distance <= reach
        outside = np.median(image[(distance > 1.4 * radius_mm) & near])
        contrast = np.where(near, image - outside, 0)
        total = contrast.sum()
        core = image[distance < 0.5 * radius_mm]
        if abs(core.mean() - outside) <= 4 * core.std() / np.sqrt(len(core)) + 1e-9:
            raise DataError(
                f"the rod at pixel ({centre[0]:.0f}, {centre[1]:.0f}) does not stand out from its "
                "surroundings; check the centre or take more slices"
            )
        centre = tuple(
            float((contrast * np.arange(size)[line]).sum() / total)
            for size, line in zip(image.shape, (np.s_[:, None], np.s_[None, :]), strict=True)
        )
    # the edge lies where it lies in each direction: a rod that leans is oval, and an oval rod read
    # as a circle would look blurred
    angle = np.arctan2(
        (np.arange(image.shape[0]) - centre[0])[:, None] * row_mm,
        (np.arange(image.shape[1]) - centre[1])[None] * column_mm,
    )
    beside = distance - _edge_radius(image, centre, radius_mm, (row_mm, column_mm), angle)
    step = min(row_mm, column_mm) / 5
    at = np.arange(-0.65 * radius_mm, 0.65 * radius_mm, step)
    edge = _profile(beside[near], image[near], at, step)
    line = np.gradient(edge, step)
    # a window about the edge keeps the noise of the plateaus out of the transform
    line = line * np.cos(np.clip(at / (0.65 * radius_mm), -1, 1) * np.pi / 2) ** 2
    highest = 5 / min(row_mm, column_mm)
    f = np.linspace(0, highest, bins)
    value = np.abs(np.exp(-2j * np.pi * f[:, None] * at / 10) @ line)
    # undo the bins' box and the two-point difference, both of known transfer
    known = np.sinc(f * step / 10) * np.sinc(2 * f * step / 10)
    return Transfer(frequency=f, value=value / value[0] / known)


def _edge_radius(
    image: np.ndarray,
    centre: tuple[float, float],
    radius_mm: float,
    spacing: tuple[float, float],
    angle: np.ndarray,
) -> np.ndarray:
    """Distance, mm, of the rod's edge from its centre in the directions ``angle`` (any shape).

    Along each of 180 rays the edge is where a step of the same integral lies; a Fourier series of
    order 4 over the angle, in which the pixels' noise averages out.
    """
    from scipy.ndimage import map_coordinates

    low, high = 0.4 * radius_mm, 1.6 * radius_mm
    rays = np.arange(180) * np.pi / 90
    radii = np.linspace(low, high, 400)
    rows = centre[0] + radii[None] * np.sin(rays)[:, None] / spacing[0]
    columns = centre[1] + radii[None] * np.cos(rays)[:, None] / spacing[1]
    values = map_coordinates(image, [rows, columns], order=1, mode="nearest")
    inner, outer = values[:, :80].mean(), values[:, -80:].mean()
    edges = low + (high - low) * ((values - outer) / (inner - outer)).mean(axis=1)

    def waves(theta: np.ndarray) -> np.ndarray:
        parts = [np.ones_like(theta)]
        for order in range(1, 5):
            parts += [np.cos(order * theta), np.sin(order * theta)]
        return np.stack(parts, axis=-1)

    weights, *_ = np.linalg.lstsq(waves(rays), edges, rcond=None)
    return waves(angle) @ weights


def _profile(
    distance: np.ndarray, values: np.ndarray, places: np.ndarray, step: float
) -> np.ndarray:
    """Means of values in bins of width ``step`` around ``places``; (places,), gaps filled."""
    index = np.rint((distance - places[0]) / step).astype(int)
    kept = (index >= 0) & (index < len(places))
    count = np.bincount(index[kept], minlength=len(places))
    total = np.bincount(index[kept], weights=values[kept], minlength=len(places))
    there = count > 0
    return np.interp(places, places[there], total[there] / count[there])
