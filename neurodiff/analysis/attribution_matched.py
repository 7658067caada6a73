"""Random sets of features of a region's size and smoothness.

A region's neighbours respond alike, so a scattered random set holds more independent noise, and
more independent signal, than a region of its size. Where the recording's space has a neighbourhood
(a surface, a grid of voxels), sets are patches: grown from a random feature by its neighbours, ring
by ring, the last ring thinned at random. Elsewhere they are scattered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from neurodiff.core.seeds import item_seed, numpy_generator


def neighbours_of(space: Any) -> csr_array | None:
    """Adjacency (features, features) of a space; None where it has none.

    Surfaces of the visual cortex and voxels of a mask (six neighbours) have one, and parts of them.
    """
    parent, columns = getattr(space, "parent", None), getattr(space, "columns", None)
    if parent is not None and columns is not None:
        whole = neighbours_of(parent)
        return None if whole is None else csr_array(whole[columns][:, columns])
    graph = getattr(space, "neighbours", None)
    if graph is not None:
        return csr_array(graph)
    cortex = getattr(space, "cortex", None)
    if cortex is not None and getattr(cortex, "neighbours", None) is not None:
        return csr_array(cortex.neighbours)
    mask = getattr(space, "mask", None)
    if isinstance(mask, np.ndarray) and mask.ndim == 3:
        return voxel_neighbours(mask)
    if type(space).__name__ == "FlatMapSpace":
        from neurodiff.datasets.surface import load_visual_cortex

        return csr_array(load_visual_cortex().neighbours)
    return None


def voxel_neighbours(mask: np.ndarray) -> csr_array:
    """Adjacency of the voxels of a mask that share a face, in the mask's order."""
    where = np.full(mask.shape, -1)
    where[mask] = np.arange(int(mask.sum()))
    ends = []
    for axis in range(3):
        a = np.moveaxis(where, axis, 0)
        pairs = np.stack([a[:-1].ravel(), a[1:].ravel()])
        ends.append(pairs[:, (pairs >= 0).all(axis=0)])
    first, second = np.concatenate(ends, axis=1)
    n = int(mask.sum())
    ones = np.ones(2 * len(first), np.float32)
    return csr_array((ones, (np.r_[first, second], np.r_[second, first])), shape=(n, n))


def matched_sets(
    mask: np.ndarray, count: int, *, graph: csr_array | None, seed: int, name: str
) -> Iterator[np.ndarray]:
    """``count`` boolean masks of as many features as ``mask``, apart from it where there is room.

    Parameters
    ----------
    mask : (features,) of the region.
    graph : of `neighbours_of`; None scatters.
    seed, name : of the draws; the same name has the same sets in any order of the regions.
    """
    size = int(mask.sum())
    free = np.flatnonzero(~mask) if (~mask).sum() >= size else np.arange(len(mask))
    allowed = np.zeros(len(mask), bool)
    allowed[free] = True
    for k in range(count):
        generator = numpy_generator(
            item_seed(seed, subject="", stimulus=name, sample=k, stage="matched sets")
        )
        out = np.zeros(len(mask), bool)
        if graph is None:
            out[generator.choice(free, size, replace=False)] = True
        else:
            _grow(out, size, allowed, graph, generator)
        yield out


def _grow(
    out: np.ndarray,
    size: int,
    allowed: np.ndarray,
    graph: csr_array,
    generator: np.random.Generator,
) -> None:
    """Fill ``out`` with a patch; a patch that meets a border goes on from another seed."""
    indptr, indices = graph.indptr, graph.indices
    ring = np.zeros(0, int)
    taken = 0
    while taken < size:
        if len(ring) == 0:
            ring = generator.choice(np.flatnonzero(allowed & ~out), 1)
        ring = ring[generator.permutation(len(ring))[: size - taken]]
        out[ring] = True
        taken += len(ring)
        beside = np.concatenate([indices[indptr[v] : indptr[v + 1]] for v in ring])
        beside = np.unique(beside)
        ring = beside[allowed[beside] & ~out[beside]]
