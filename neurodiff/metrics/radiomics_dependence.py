"""Neighbouring grey level dependence (NGLDM, IBSI 3.11; in pyradiomics: GLDM)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurodiff.metrics import radiomics_matrices as shared
from neurodiff.metrics.radiomics_chain import Region

NAMES = {
    "small": "lde", "large": "hde", "low": "lgce", "high": "hgce",
    "small_low": "ldlge", "small_high": "ldhge", "large_low": "hdlge", "large_high": "hdhge",
    "level_non_uniformity": "glnu", "level_non_uniformity_normalised": "glnu_norm",
    "size_non_uniformity": "dcnu", "size_non_uniformity_normalised": "dcnu_norm",
    "percentage": "dc_perc", "level_variance": "gl_var", "size_variance": "dc_var",
    "entropy": "dc_entr", "energy": "dc_energy",
}  # fmt: skip


def dependence(
    region: Region, dimensions: Sequence[str], *, distance: int = 1, coarseness: int = 0
) -> dict[str, float]:
    """Features of the dependence counts for each of 2D, 2.5D and 3D, names ``ngl_*``.

    pyradiomics' GLDM is the same matrix: of 3D, or of 2.5D where it is told to stay in a plane.
    """
    result: dict[str, float] = {}
    for dimension in dimensions:
        parts = shared.slices_of(region.levels) if dimension == "2D" else [region.levels]
        rows = []
        for part in parts:
            counts = dependent_neighbours(
                part, space=dimension == "3D", distance=distance, coarseness=coarseness
            )
            level = part[part > 0]
            rows.append(shared.size_features(*shared.counted(level, counts + 1), float(level.size)))
        result |= shared.renamed(shared.averaged(rows), NAMES, "ngl", dimension)
    return result


def dependent_neighbours(
    levels: np.ndarray, *, space: bool, distance: int = 1, coarseness: int = 0
) -> np.ndarray:
    """How many neighbours of each voxel of the region differ by at most ``coarseness`` levels.

    Neighbours lie within ``distance`` (Chebyshev). In the order of ``levels[levels > 0]``.
    """
    flat, strides = shared.padded(levels, distance)
    counts = np.zeros(flat.size, dtype=np.int64)
    inside = flat > 0
    reach = range(-distance, distance + 1)
    steps = [
        (a, b, c)
        for a in (reach if space else (0,))
        for b in reach
        for c in reach
        if (a, b, c) > (0, 0, 0)
    ]
    for step in steps:
        gap = shared.stride(step, strides)
        near, far = flat[:-gap], flat[gap:]
        alike = near == far if coarseness == 0 else np.abs(near - far) <= coarseness
        alike &= inside[:-gap]
        alike &= inside[gap:]
        counts[:-gap] += alike
        counts[gap:] += alike
    return counts[inside]
