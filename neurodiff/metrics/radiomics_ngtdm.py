"""Neighbourhood grey tone difference (IBSI 3.10): how a voxel differs from its neighbours' mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurodiff.metrics import radiomics_matrices as shared
from neurodiff.metrics.radiomics_chain import Region

FEATURES = ("coarseness", "contrast", "busyness", "complexity", "strength")


def tone_differences(region: Region, dimensions: Sequence[str]) -> dict[str, float]:
    """Features of the tone differences for each of 2D, 2.5D and 3D, names ``ngt_*``."""
    result: dict[str, float] = {}
    for dimension in dimensions:
        if dimension == "2D":
            parts = shared.slices_of(region.levels)
        else:
            parts = [region.levels]
        rows = [tone_features(*tone_sums(p, space=dimension == "3D")) for p in parts]
        mean = shared.averaged(rows)
        result |= {f"ngt_{name}_{dimension}": mean[name] for name in FEATURES}
    return result


def tone_sums(levels: np.ndarray, *, space: bool) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, and summed absolute differences, of every grey level from 0.

    Neighbours are the 26 (8 within a slice) next voxels that lie in the region; a voxel without
    any does not count.
    """
    inside = levels > 0
    axes = (0, 1, 2) if space else (1, 2)
    neighbours = _box_sum(inside.astype(np.int64), axes)[inside] - 1
    total = _box_sum(levels.astype(np.int64), axes)[inside] - levels[inside]
    has = neighbours > 0
    level = levels[inside][has]
    apart = np.abs(level - total[has] / neighbours[has])
    return np.bincount(level).astype(np.float64), np.bincount(level, weights=apart)


def tone_features(counts: np.ndarray, sums: np.ndarray) -> dict[str, float]:
    """Features from voxels and summed differences of every level.

    Conventions of IBSI where a divisor is zero: coarseness 10^6; contrast and busyness of one
    level, and strength of no difference, 0. All NaN where no voxel has a neighbour.
    """
    total = counts.sum()
    if total == 0:
        return dict.fromkeys(FEATURES, float("nan"))
    i = np.flatnonzero(counts).astype(np.float64)
    p = counts[counts > 0] / total
    s = sums[counts > 0]
    n = len(i)
    weighted = (p * s).sum()
    apart = np.abs(i[:, None] - i)
    values = dict.fromkeys(FEATURES, 0.0)
    values["coarseness"] = 1e6 if weighted == 0 else 1 / weighted
    if n > 1:
        spread = (p[:, None] * p * apart**2).sum() / (n * (n - 1))
        values["contrast"] = spread * s.sum() / total
        values["busyness"] = weighted / np.abs((i * p)[:, None] - i * p).sum()
        both = p[:, None] + p
        values["complexity"] = (apart * ((p * s)[:, None] + p * s) / both).sum() / total
        if s.sum() > 0:
            values["strength"] = (both * apart**2).sum() / s.sum()
    return {name: float(value) for name, value in values.items()}


def _box_sum(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Sum over a voxel and its neighbours along the axes; nothing lies beyond the box."""
    for axis in axes:
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        total = values.copy()
        total[tuple(behind)] += values[tuple(ahead)]
        total[tuple(ahead)] += values[tuple(behind)]
        values = total
    return values
