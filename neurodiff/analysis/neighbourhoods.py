"""Which features lie within a radius of each: discs on the cortical surface, balls in a volume.

A disc follows the cortex: distances are the shortest paths along the edges of the midthickness
mesh, in mm (up to about 10 % longer than true geodesics, as paths along edges are), so that the two
banks of a sulcus, which touch in a volume, are apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from neurodiff.core.errors import UsageError
from neurodiff.core.spaces import MaskerSpace, MaskSpace, SubSpace
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex

SURFACE, VOLUME = "surface", "volume"
_CENTRES = 1000  # whose distances to all vertices are in memory at a time


def neighbourhoods(space: Any, radius: float, kind: str = "auto") -> csr_array:
    """Sparse (features, features): 1 where a column lies within ``radius`` mm of the row's feature.

    Parameters
    ----------
    space : of a recording; a part of a space has the neighbourhoods of the whole, cut to the part.
    radius : mm, > 0.
    kind : "surface", "volume", or "auto" for what the space is.

    Raises
    ------
    UsageError : a space without places, or of the other kind; a radius that is not above 0.
    """
    if not (np.isfinite(radius) and radius > 0):
        raise UsageError(f"the radius is {radius}; give millimetres above 0")
    found = kind_of(space)
    if kind not in ("auto", SURFACE, VOLUME):
        raise UsageError(f"kind is {kind!r}; give 'auto', 'surface' or 'volume'")
    if kind != "auto" and kind != found:
        raise UsageError(
            f"the space {space.name!r} is a {found}, so a searchlight on the {kind} has no "
            f"neighbourhoods in it; give kind={found!r}, or a recording on the {kind}"
        )
    inner, columns = _innermost(space)
    if found == SURFACE:
        near = surface_discs(_cortex_graph(), radius, columns)
    else:
        mask = inner if isinstance(inner, MaskSpace) else MaskSpace.open(inner.masker.mask_img_)
        near = balls(mask, radius)
        near = near if columns is None else near[columns]
    return near if columns is None else csr_array(near[:, columns])


def kind_of(space: Any) -> str:
    """ "surface" or "volume".

    Raises
    ------
    UsageError : the features of this space have no place.
    """
    inner, _ = _innermost(space)
    if isinstance(inner, FlatMapSpace):
        return SURFACE
    if isinstance(inner, MaskSpace) or (
        isinstance(inner, MaskerSpace) and hasattr(inner.masker, "mask_img_")
    ):
        return VOLUME
    if isinstance(inner, FlatImageSpace):
        raise UsageError(
            "the recording holds pixels of the flat map, which distorts distances; read it at the "
            "8,921 vertices (FlatImageSpace().to_vertices) before a searchlight"
        )
    raise UsageError(
        f"the features of space {space.name!r} have no place on a surface or in a volume known "
        "here, so there are no neighbours to search; give a recording in the space of the visual "
        "fsLR-32k vertices or of a volume mask"
    )


def surface_discs(
    lengths: csr_array, radius: float, centres: np.ndarray | None = None
) -> csr_array:
    """Vertices within ``radius`` along the edges of a graph, (centres, vertices).

    Parameters
    ----------
    lengths : symmetric, the length of each edge in mm.
    centres : of the discs; None: every vertex. Each is in its own disc.
    """
    from scipy.sparse.csgraph import dijkstra

    n = lengths.shape[0]
    centres = np.arange(n) if centres is None else centres
    rows, columns = [], []
    for start in range(0, len(centres), _CENTRES):
        some = centres[start : start + _CENTRES]
        distance = dijkstra(lengths, directed=False, indices=some, limit=radius)
        row, column = np.nonzero(np.isfinite(distance))
        rows.append(row + start)
        columns.append(column)
    row, column = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(len(row), np.float32)
    return csr_array((ones, (row, column)), shape=(len(centres), n))


def balls(mask: MaskSpace, radius: float) -> csr_array:
    """Voxels of a mask whose centres lie within ``radius`` mm (up to 1e-6 beyond, for rounding)."""
    from scipy.spatial import cKDTree

    places = np.argwhere(mask.mask) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    tree = cKDTree(places)
    near = tree.sparse_distance_matrix(tree, radius + 1e-6, output_type="coo_matrix").tocoo()
    n = len(places)
    return csr_array((np.ones(len(near.row), np.float32), (near.row, near.col)), shape=(n, n))


def _innermost(space: Any) -> tuple[Any, np.ndarray | None]:
    """The whole space that a part was taken from, and which of its features the part has."""
    columns = None
    while isinstance(space, SubSpace):
        columns = space.columns if columns is None else space.columns[columns]
        space = space.parent
    return space, columns


def _cortex_graph() -> csr_array:
    cortex = load_visual_cortex()
    edges = cortex.neighbours.tocoo()
    places = cortex.midthickness
    lengths = np.linalg.norm(places[edges.row] - places[edges.col], axis=1)
    return csr_array((lengths, (edges.row, edges.col)), shape=edges.shape)
