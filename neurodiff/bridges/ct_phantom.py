"""Kernel filters from phantom scans: transfer functions of rods, noise spectra of uniform regions.

A kernel change from the same raw data passes signal and noise through one filter H, so two phantom
scans that need not be pairs give it twice: H = MTF_target / MTF_source from a rod's edge, and
H = sqrt(NPS_target / NPS_source) from uniform material at equal dose. Both scans have to come from
scanner settings that differ in the kernel alone. A kernel is never guessed from its noise: the
user names both scans. The rod's edge is read by `ct_rod`.

References
----------
Samei et al. 2019, AAPM Task Group 233, for the circular-edge MTF; Solomon and Samei 2012 and ICRU
report 87 for noise spectra. Measured fact behind the second ratio: on the Toshiba FC51/FC13 pair
sqrt(|T|^2/|S|^2) equals the fitted H within 1 to 2 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neurodiff.bridges.ct_filter import LOCKED, RadialFilter
from neurodiff.bridges.ct_rod import Transfer, rod_transfer
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import check_slices, check_spacing, radial_frequency

__all__ = [
    "FLOOR",
    "NoiseSpectrum",
    "Transfer",
    "filter_from_noise",
    "filter_from_transfer",
    "match_noise",
    "noise_spectrum",
    "rod_transfer",
    "uniform_regions",
]

#: a ratio of transfer functions stops where the source's falls below this
FLOOR = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSpectrum:
    """Noise power over radial frequency.

    Attributes
    ----------
    frequency : (bins,) lp/cm.
    power : (bins,) HU^2 mm^2; its integral over the plane is the variance.
    count : (bins,) coefficients in each ring, which are fewer in the corners of the plane.
    reach : Nyquist frequency of the coarser axis, lp/cm: rings up to it are whole.
    variance : HU^2, measured on the same regions after the trend was taken off.
    regions : how many regions were averaged.
    """

    frequency: np.ndarray
    power: np.ndarray
    count: np.ndarray
    reach: float
    variance: float
    regions: int

    def filtered_sd(self, gain: RadialFilter) -> float:
        """SD, HU, of this noise behind a filter: root of the sum of ``power * gain^2``."""
        ring = self.power * self.count
        share = (ring * gain.at(self.frequency) ** 2).sum() / ring.sum()
        return float(np.sqrt(self.variance * share))


def noise_spectrum(
    hu: Any,
    regions: list[tuple[int, int]],
    spacing: tuple[float, float],
    *,
    size: int = 32,
    bins: int = 24,
) -> NoiseSpectrum:
    """Noise power of uniform squares: trend taken off, averaged over squares, slices and angle.

    Parameters
    ----------
    hu : (slices, rows, columns), HU.
    regions : (row, column) of the upper left corner of each square, the same in every slice.
    spacing : (row_mm, column_mm).
    size : pixels a side of a square.
    bins : rings up to the Nyquist frequency of the coarser axis; as wide ones follow to the corner.

    Raises
    ------
    DataError : no square, one that leaves the image, or squares without noise.
    """
    hu = check_slices(hu)
    row_mm, column_mm = check_spacing(spacing)
    if not regions or size < 8:
        raise DataError(f"{len(regions)} regions of {size} pixels; give at least one of 8 or more")
    for row, column in regions:
        if min(row, column) < 0 or row + size > hu.shape[1] or column + size > hu.shape[2]:
            raise DataError(
                f"the square of {size} pixels at ({row}, {column}) leaves the slice of "
                f"{hu.shape[1]} x {hu.shape[2]}"
            )
    squares = np.stack([hu[:, r : r + size, c : c + size] for r, c in regions], axis=1)
    squares = squares.reshape(-1, size * size).astype(np.float64)
    squares = squares - squares @ _trend(size)
    variance = float((squares**2).sum() / (len(squares) * (size * size - 6)))
    if not variance > 0:
        raise DataError("the regions hold no noise at all; they are not from a scanner")
    # a sharp kernel has a hundred times more power at 5 lp/cm than at 1; the window keeps it there
    window = np.multiply.outer(np.hanning(size + 2)[1:-1], np.hanning(size + 2)[1:-1])
    power = np.abs(np.fft.fft2(squares.reshape(-1, size, size) * window)) ** 2
    power = power.mean(axis=0) * row_mm * column_mm / (window**2).sum()
    radius = radial_frequency((size, size), (row_mm, column_mm), half=False)
    reach = 5 / max(row_mm, column_mm)
    inside = radius > 0  # the mean was taken off
    ring = (radius[inside] * bins / (reach * (1 + 1e-9))).astype(int)
    count = np.bincount(ring)
    filled = count > 0
    mean_of = [
        np.bincount(ring, weights=values[inside])[filled] / count[filled]
        for values in (radius, power)
    ]
    return NoiseSpectrum(
        frequency=mean_of[0],
        power=mean_of[1],
        count=count[filled],
        reach=reach,
        variance=variance,
        regions=len(squares),
    )


def filter_from_transfer(
    source: Transfer, target: Transfer, *, floor: float = FLOOR, lock: float = LOCKED
) -> RadialFilter:
    """MTF_target / MTF_source, as far as the source's is at ``floor`` or above.

    Beyond it the ratio is unknown: a softening filter keeps its last value, a sharpening one goes
    back to 1 there, so that nothing is amplified which was not measured. Coherence is 0 there.

    Raises
    ------
    UsageError : a floor outside (0, 1).
    DataError : the source's curve falls below the floor at once.
    """
    if not 0 < floor < 1:
        raise UsageError(f"the floor is {floor:g}; give a share between 0 and 1, such as {FLOOR}")
    reach = min(source.falls_to(floor), source.frequency[-1], target.frequency[-1])
    inner = source.frequency[source.frequency <= reach]
    if len(inner) < 3:
        raise DataError(
            f"the source's transfer function is below {floor:g} from {reach:.1f} lp/cm on; nothing "
            "can be fitted to it"
        )
    gain = np.maximum(target.at(inner), 0) / source.at(inner)
    beyond = [inner[-1] * 1.1, max(inner[-1] * 1.2, source.frequency[-1])]
    last = min(float(gain[-1]), 1.0)
    f = np.concatenate([inner, beyond])
    coherence = np.concatenate([np.full(len(inner), np.nan), [0.0, 0.0]])
    found = RadialFilter(
        frequency=f,
        gain=np.concatenate([gain, [last, last]]),
        coherence=coherence,
        error=np.full(len(f), np.nan),
        source=f"ratio of rods' transfer functions up to {reach:.1f} lp/cm",
    )
    return found.locked(lock)


def filter_from_noise(
    source: NoiseSpectrum, target: NoiseSpectrum, *, lock: float = LOCKED
) -> RadialFilter:
    """sqrt(NPS_target / NPS_source): valid for one dose, one thickness and linear kernels.

    The lowest frequencies, where a filtered back-projection has no noise to measure, are taken from
    a smooth curve through the others that is 1 at 0.

    Raises
    ------
    DataError : noise in fewer than three rings.
    """
    reach = min(source.reach, target.reach)
    f = source.frequency[source.frequency <= reach * (1 + 1e-9)]
    below = np.interp(f, source.frequency, source.power)
    above = np.interp(f, target.frequency, target.power)
    used = below > 1e-6 * below.max()
    if used.sum() < 3:
        raise DataError("the source's noise lies in fewer than three bins; measure more regions")
    logs = 0.5 * np.log(np.maximum(above[used] / below[used], 1e-8))
    # H is 1 at 0 and smooth over line pairs: powers of f through the rings, each with the weight of
    # its coefficients. Rings near 0 have the least, and structure of the phantom in them.
    share = f[used] / reach
    order = min(6, 1 + int(used.sum()) // 2)
    basis = np.stack([share**k for k in range(2, order + 1)], axis=1)
    weight = np.sqrt(share)[:, None]
    powers, *_ = np.linalg.lstsq(basis * weight, logs * weight[:, 0], rcond=None)
    gain = np.exp(basis @ powers)
    squares = min(source.regions, target.regions)
    found = RadialFilter.from_gain(
        np.concatenate([[0.0], f[used]]),
        np.concatenate([[1.0], gain]),
        source=f"root of the ratio of noise spectra of {squares} regions",
    )
    return found.locked(lock)


def match_noise(shape: RadialFilter, source: NoiseSpectrum, target_sd: float) -> RadialFilter:
    """The power of a filter's gain behind which the source's noise has the SD ``target_sd``.

    One number of the target kernel (its noise in uniform material at the same dose) fixes the
    strength of a filter whose shape comes from elsewhere: an approximation, for lack of a pair.

    Parameters
    ----------
    shape : a filter whose gain is raised to a power between 0 and 4.
    source : noise spectrum of the source kernel.
    target_sd : HU.

    Raises
    ------
    DataError : no power in that range gives this SD.
    """
    from scipy.optimize import brentq

    def raised(power: float) -> RadialFilter:
        gain = np.maximum(shape.gain, 1e-6) ** power
        return RadialFilter.from_gain(shape.frequency, gain)

    def excess(power: float) -> float:
        return source.filtered_sd(raised(power)) - target_sd

    ends = [excess(0.0), excess(4.0)]
    if not target_sd > 0 or ends[0] * ends[1] > 0:
        raise DataError(
            f"noise of {np.sqrt(source.variance):.1f} HU cannot be brought to {target_sd:g} HU by "
            f"this filter (it reaches {ends[1] + target_sd:.1f} HU); take another shape"
        )
    power = float(brentq(excess, 0.0, 4.0, xtol=1e-6))
    found = raised(power)
    source_text = f"({shape.source}) to the power {power:.3f}, for a noise of {target_sd:g} HU"
    return RadialFilter.from_gain(found.frequency, found.gain, source=source_text).locked()


def uniform_regions(hu: Any, *, size: int = 32, count: int = 8) -> list[tuple[int, int]]:
    """Corners of the ``count`` most uniform squares of water-like material, apart from each other.

    Squares whose mean lies within -200 and 200 HU in every slice, in ascending order of the SD of
    the means of blocks of 8 pixels: structure, and hardly the noise, whose least values would
    otherwise be chosen.

    Raises
    ------
    UsageError : a size that is no multiple of 8 from 16 on.
    DataError : there is no such square.
    """
    hu = check_slices(hu)
    if size < 16 or size % 8:
        raise UsageError(f"squares of {size} pixels; give a multiple of 8 from 16 on")
    rows, columns = (length // 8 for length in hu.shape[1:])
    blocks = hu[:, : rows * 8, : columns * 8].reshape(len(hu), rows, 8, columns, 8).mean((2, 4))
    side = size // 8
    found = []
    for row in range(rows - side + 1):
        for column in range(columns - side + 1):
            square = blocks[:, row : row + side, column : column + side]
            if np.abs(square.mean(axis=(1, 2))).max() <= 200:
                found.append((float(square.std(axis=(1, 2)).mean()), row * 8, column * 8))
    kept: list[tuple[int, int]] = []
    for _, row, column in sorted(found):
        if all(abs(row - r) >= size or abs(column - c) >= size for r, c in kept):
            kept.append((row, column))
        if len(kept) == count:
            break
    if not kept:
        raise DataError(
            f"no square of {size} pixels with a mean between -200 and 200 HU; give the regions"
        )
    return kept


def _trend(size: int) -> np.ndarray:
    """Projector (pixels, pixels) onto the planes and paraboloids of a square."""
    x = np.linspace(-1, 1, size)
    rows, columns = (part.ravel() for part in np.meshgrid(x, x, indexing="ij"))
    basis = np.stack([np.ones_like(rows), rows, columns, rows**2, rows * columns, columns**2], 1)
    return basis @ np.linalg.pinv(basis)
