"""Intensity features: statistics of the voxels (IBSI 3.3) and local peaks (IBSI 3.2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neurodiff.metrics.radiomics_chain import PEAK_RADIUS_MM, Region

STATISTICS = (
    "mean", "var", "skew", "kurt", "median", "min", "p10", "p90", "max", "iqr", "range",
    "mad", "rmad", "medad", "cov", "qcod", "energy", "rms",
)  # fmt: skip


def statistics(region: Region) -> dict[str, float]:
    """First order statistics of the intensities in the region, names ``stat_*``.

    ``stat_total_energy`` (energy times the volume of a voxel) is pyradiomics', not IBSI's.
    """
    values = region.values[region.intensity]
    result = {f"stat_{name}": value for name, value in spread(values).items()}
    result["stat_total_energy"] = result["stat_energy"] * region.voxel_volume()
    return result


def spread(values: Any) -> dict[str, float]:
    """Describe a sample: the 18 statistics of IBSI 3.3, by their short names.

    Kurtosis is the excess (0 for a normal distribution), deviations are those of the population.
    Skewness and kurtosis of a constant are 0 after IBSI; ratios with a divisor of 0 are NaN.

    Examples
    --------
    >>> spread(np.array([1.0, 2.0, 3.0, 4.0]))["var"]
    1.25
    """
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    centred = x - mean
    squares = centred * centred
    variance = float(squares.mean())
    low, p10, p25, median, p75, p90, high = np.percentile(x, [0, 10, 25, 50, 75, 90, 100]).tolist()
    flat = high == low
    inner = x[(x >= p10) & (x <= p90)]
    squared = float((x * x).sum())
    return {
        "mean": mean,
        "var": 0.0 if flat else variance,
        "skew": 0.0 if flat else float((squares * centred).mean()) / variance**1.5,
        "kurt": 0.0 if flat else float((squares * squares).mean()) / variance**2 - 3.0,
        "median": median,
        "min": low,
        "p10": p10,
        "p90": p90,
        "max": high,
        "iqr": p75 - p25,
        "range": high - low,
        "mad": float(np.abs(centred).mean()),
        "rmad": float(np.abs(inner - inner.mean()).mean()),
        "medad": float(np.abs(x - median).mean()),
        "cov": math.sqrt(variance) / mean if mean != 0 else math.nan,
        "qcod": (p75 - p25) / (p75 + p25) if p75 + p25 != 0 else math.nan,
        "energy": squared,
        "rms": math.sqrt(squared / x.size),
    }


def local_peaks(region: Region) -> dict[str, float]:
    """Highest mean over a sphere of 1 cm^3, about the brightest voxel and about any voxel.

    The sphere counts voxels whose centres lie within 6.2 mm, in the region or not, inside the
    image (IBSI 3.2). Where several voxels are brightest, the highest of their means is taken.
    """
    from scipy.signal import fftconvolve

    axes = [np.arange(-m, m + 1) * s for m, s in zip(region.margin, region.spacing, strict=True)]
    distance2 = sum(a**2 for a in np.meshgrid(*axes, indexing="ij"))
    sphere = (distance2 <= PEAK_RADIUS_MM**2 * (1 + 1e-9)).astype(np.float64)
    known = np.isfinite(region.around)
    # about the region's mean, so that the transform's rounding is small against its contrast
    centre = float(region.values[region.intensity].mean())
    values = np.where(known, region.around - centre, 0.0)
    total = fftconvolve(values, sphere, mode="valid")
    count = np.full(total.shape, sphere.sum())
    if not known.all():
        count = np.rint(fftconvolve(known.astype(np.float64), sphere, mode="valid"))
    means = total[region.intensity] / count[region.intensity] + centre
    own = region.values[region.intensity]
    return {
        "loc_peak_loc": float(means[own == own.max()].max()),
        "loc_peak_glob": float(means.max()),
    }
