"""Histogram of the discretised intensities (IBSI 3.4) and intensity-volume histogram (3.5)."""

from __future__ import annotations

import numpy as np

from neurodiff.metrics.radiomics_chain import Region
from neurodiff.metrics.radiomics_intensity import STATISTICS, spread


def histogram(region: Region) -> dict[str, float]:
    """Statistics, entropy, uniformity and gradients of the grey levels, names ``ih_*``.

    With ties, the mode is the level nearest to the mean, the lower of two equally near ones.
    """
    levels = region.levels[region.intensity]
    described = spread(levels)
    result = {f"ih_{k}": described[k] for k in STATISTICS if k not in ("energy", "rms")}
    counts = np.bincount(levels, minlength=region.bins + 1)[1:].astype(np.float64)
    p = counts[counts > 0] / counts.sum()
    best = np.flatnonzero(counts == counts.max()) + 1
    result["ih_mode"] = float(best[np.argmin(np.abs(best - described["mean"]))])
    result["ih_entropy"] = float(-(p * np.log2(p)).sum()) + 0.0
    result["ih_uniformity"] = float((p * p).sum())
    slope = np.gradient(counts) if counts.size > 1 else np.full(1, np.nan)
    for name, at in (("max", slope.argmax()), ("min", slope.argmin())):
        found = np.isfinite(slope[at])
        result[f"ih_{name}_grad"] = float(slope[at])
        result[f"ih_{name}_grad_g"] = float(at + 1) if found else float("nan")
    return result


def volume_histogram(region: Region, step: float) -> dict[str, float]:
    """Volume fractions at 10 and 90 % of the intensity, and intensities at 10 and 90 % of volume.

    Parameters
    ----------
    step : intensities between the bins of the histogram: 1 for HU (IBSI: "definite, discrete").
    """
    low, high = region.bounds
    values = np.sort(region.values[region.intensity])
    axis = low + step * np.arange(int(np.floor((high - low) / step + 1e-9)) + 1)
    fraction = 1.0 - np.searchsorted(values, axis - 1e-9 * step) / values.size
    result: dict[str, float] = {}
    for percent in (10, 90):
        reached = np.searchsorted(values, low + percent / 100.0 * (high - low) - 1e-9 * step)
        result[f"ivh_v{percent}"] = float(1.0 - reached / values.size)
    for percent in (10, 90):
        below = np.flatnonzero(fraction <= percent / 100.0 + 1e-12)
        # nothing above the highest bin: the next one holds no volume
        result[f"ivh_i{percent}"] = float(axis[below[0]] if below.size else axis[-1] + step)
    result["ivh_diff_v10_v90"] = result["ivh_v10"] - result["ivh_v90"]
    result["ivh_diff_i10_i90"] = result["ivh_i10"] - result["ivh_i90"]
    return result
