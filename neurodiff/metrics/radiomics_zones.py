"""Zones of one grey level: their sizes (GLSZM, IBSI 3.8) and distances to the edge (GLDZM, 3.9)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurodiff.metrics import radiomics_matrices as shared
from neurodiff.metrics.radiomics_chain import Region

SIZES = {
    "small": "sze", "large": "lze", "low": "lgze", "high": "hgze",
    "small_low": "szlge", "small_high": "szhge", "large_low": "lzlge", "large_high": "lzhge",
    "level_non_uniformity": "glnu", "level_non_uniformity_normalised": "glnu_norm",
    "size_non_uniformity": "zsnu", "size_non_uniformity_normalised": "zsnu_norm",
    "percentage": "z_perc", "level_variance": "gl_var", "size_variance": "zs_var",
    "entropy": "zs_entr",
}  # fmt: skip
DISTANCES = {
    "small": "sde", "large": "lde", "low": "lgze", "high": "hgze",
    "small_low": "sdlge", "small_high": "sdhge", "large_low": "ldlge", "large_high": "ldhge",
    "level_non_uniformity": "glnu", "level_non_uniformity_normalised": "glnu_norm",
    "size_non_uniformity": "zdnu", "size_non_uniformity_normalised": "zdnu_norm",
    "percentage": "z_perc", "level_variance": "gl_var", "size_variance": "zd_var",
    "entropy": "zd_entr",
}  # fmt: skip


def zones(region: Region, dimensions: Sequence[str], families: Sequence[str]) -> dict[str, float]:
    """Features of zone sizes (``szm_*``) and zone distances (``dzm_*``).

    Zones join voxels of one level that touch, corners included: 26 neighbours, 8 within a slice.
    The distance of a zone is the least of its voxels' to the edge of the morphological mask, in
    steps across faces; a voxel at the edge has distance 1.
    """
    result: dict[str, float] = {}
    cache: dict[bool, tuple[np.ndarray, ...]] = {}
    for dimension in dimensions:
        space = dimension == "3D"
        if space not in cache:
            cache[space] = _zone_table(region, space, "dzm" in families)
        level, size, distance, where = cache[space]
        for family, names, what in (("szm", SIZES, size), ("dzm", DISTANCES, distance)):
            if family not in families:
                continue
            if dimension == "2D":
                voxels = (region.levels > 0).sum(axis=(1, 2))
                rows = [
                    shared.size_features(
                        *shared.counted(level[where == k], what[where == k]), float(voxels[k])
                    )
                    for k in np.unique(where)
                ]
            else:
                voxels = float((region.levels > 0).sum())
                rows = [shared.size_features(*shared.counted(level, what), voxels)]
            result |= shared.renamed(shared.averaged(rows), names, family, dimension)
    return result


def label_zones(levels: np.ndarray, steps: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Number of the zone of each voxel of the region, in the order of ``levels[levels > 0]``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    flat, strides = shared.padded(levels)
    inside = np.flatnonzero(flat)
    number = np.zeros(flat.size, dtype=np.int32)
    number[inside] = np.arange(inside.size)
    heads, tails = [], []
    for step in steps:
        gap = shared.stride(step, strides)
        same = np.flatnonzero((flat[:-gap] == flat[gap:]) & (flat[gap:] > 0))
        heads.append(number[same])
        tails.append(number[same + gap])
    head, tail = np.concatenate(heads), np.concatenate(tails)
    graph = coo_array(
        (np.ones(head.size, dtype=np.int8), (head, tail)), shape=(inside.size, inside.size)
    )
    return connected_components(graph, directed=False)[1]


def edge_distance(mask: np.ndarray, *, space: bool) -> np.ndarray:
    """Steps across faces from each voxel of a mask to the first one outside (1 at the edge).

    Parameters
    ----------
    space : count steps in three dimensions; otherwise within a slice only.
    """
    from scipy.ndimage import distance_transform_cdt, generate_binary_structure

    structure = generate_binary_structure(3, 1)
    if not space:
        structure[[0, 2]] = False
    wide = np.pad(mask, 1)
    return distance_transform_cdt(wide, metric=structure)[1:-1, 1:-1, 1:-1]


def _zone_table(region: Region, space: bool, distances: bool) -> tuple[np.ndarray, ...]:
    """Return the level, size, distance and first slice of every zone."""
    inside = region.levels > 0
    label = label_zones(region.levels, shared.SPACE if space else shared.PLANE)
    size = np.bincount(label)
    level = np.zeros(size.size, dtype=np.int64)
    level[label] = region.levels[inside]
    slice_of = np.zeros(size.size, dtype=np.int64)
    slice_of[label] = np.nonzero(inside)[0]
    distance = np.full(size.size, np.iinfo(np.int32).max, dtype=np.int64)
    if distances:
        away = edge_distance(region.morphological, space=space)
        np.minimum.at(distance, label, away[inside])
    return level, size, distance, slice_of
