"""Grey level run lengths (IBSI 3.7): how far one level goes on along a direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurodiff.metrics import radiomics_matrices as shared
from neurodiff.metrics.radiomics_chain import Region

NAMES = {
    "small": "sre", "large": "lre", "low": "lgre", "high": "hgre",
    "small_low": "srlge", "small_high": "srhge", "large_low": "lrlge", "large_high": "lrhge",
    "level_non_uniformity": "glnu", "level_non_uniformity_normalised": "glnu_norm",
    "size_non_uniformity": "rlnu", "size_non_uniformity_normalised": "rlnu_norm",
    "percentage": "r_perc", "level_variance": "gl_var", "size_variance": "rl_var",
    "entropy": "rl_entr",
}  # fmt: skip


def run_lengths(region: Region, aggregations: Sequence[str]) -> dict[str, float]:
    """Features of the run length matrices under each aggregation, names ``rlm_*``."""
    result: dict[str, float] = {}
    found: dict[str, list] = {}
    for aggregation in aggregations:
        dimension, how = aggregation.rsplit("_", 1)
        if dimension not in found:
            steps = shared.SPACE if dimension == "3D" else shared.PLANE
            parts = shared.slices_of(region.levels) if dimension == "2D" else [region.levels]
            found[dimension] = [(directional_runs(p, steps), float((p > 0).sum())) for p in parts]
        rows = []
        for runs, voxels in found[dimension]:
            if how == "comb":
                merged = [np.concatenate(x) for x in zip(*runs, strict=True)]
                runs, voxels = [tuple(merged)], voxels * len(runs)
            rows += [shared.size_features(*shared.counted(*one), voxels) for one in runs]
        mean = shared.averaged(rows)
        result |= shared.renamed(mean, NAMES, "rlm", aggregation)
    return result


def directional_runs(
    levels: np.ndarray, steps: Sequence[tuple[int, int, int]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Level and length of every run along each direction.

    The flat array, cut into rows as long as the step, has the voxels of a line under each other:
    its transpose is all lines, one after the other, with empty voxels in between.
    """
    flat, strides = shared.padded(levels)
    runs = []
    for step in steps:
        gap = shared.stride(step, strides)
        rows = -(-flat.size // gap) + 1  # one empty row more: the end of each line
        lines = np.zeros(rows * gap, dtype=levels.dtype)
        lines[: flat.size] = flat
        lines = lines.reshape(rows, gap).T.ravel()
        changes = np.flatnonzero(lines[1:] != lines[:-1]) + 1
        starts = np.concatenate([[0], changes])
        lengths = np.diff(np.concatenate([starts, [lines.size]]))
        level = lines[starts]
        inside = level > 0
        runs.append((level[inside], lengths[inside]))
    return runs
