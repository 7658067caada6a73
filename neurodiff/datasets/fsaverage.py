"""Meshes of fsaverage: fsaverage5 as nilearn ships it, any other from the user's GIfTI files.

Meshes of fsaverage are nested: the first 10,242 vertices of a hemisphere of fsaverage6 and of
fsaverage are those of fsaverage5, in this order (Fischl et al. 1999), so that a map of a finer one
is drawn on fsaverage5 by its first vertices. Distances need the mesh itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import block_diag, csr_array

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_images import load_image
from neurodiff.datasets.nsd_rois import FsaverageSpace

N_FSAVERAGE5 = 10242
"""Vertices of a hemisphere."""
SIDES = ("left", "right")
Mesh = tuple[np.ndarray, np.ndarray]


def edge_lengths(
    space: FsaverageSpace, surface: Sequence[str | os.PathLike[str]] | None = None
) -> csr_array:
    """Lengths (mm) of the edges between the features of a space, symmetric.

    Parameters
    ----------
    surface : GIfTI files of the left and of the right hemisphere, best midthickness, else white or
        pial; None for fsaverage5, whose midthickness is half-way between white and pial.

    Raises
    ------
    UsageError : a mesh that is not here, or not two files.
    DataError : a broken file, or one with another number of vertices.
    """
    sizes = [len(mask) for mask in space.masks]
    if surface is None:
        if sizes != [N_FSAVERAGE5] * 2:
            raise UsageError(
                f"distances on the surface need its mesh, and that of {space.name!r} "
                f"({sizes[0]:,} vertices a hemisphere) is not installed; give surface= the GIfTI "
                "files of both hemispheres, e.g. of mris_convert lh.white lh.white.surf.gii"
            )
        meshes = [_midthickness5(side) for side in SIDES]
    else:
        if isinstance(surface, str | os.PathLike) or len(surface) != 2:
            raise UsageError("surface is two GIfTI files, the left and the right hemisphere")
        meshes = [open_mesh(path) for path in surface]
        for path, (points, _), size in zip(surface, meshes, sizes, strict=True):
            if len(points) != size:
                raise DataError(
                    f"{path} has {len(points):,} vertices and {space.name!r} has {size:,} a "
                    "hemisphere; give the surface that the recording is on"
                )
    return joined_graphs(
        [mesh_graph(*mesh, mask) for mesh, mask in zip(meshes, space.masks, strict=True)]
    )


def mesh_graph(points: np.ndarray, triangles: np.ndarray, kept: np.ndarray) -> csr_array:
    """Edge lengths (mm) between some vertices of a mesh, symmetric.

    kept : a boolean mask, or numbers of vertices.
    """
    ends = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    ends = np.unique(np.sort(ends, axis=1), axis=0)
    mm = np.linalg.norm(points[ends[:, 0]] - points[ends[:, 1]], axis=1)
    both = np.concatenate([ends, ends[:, ::-1]])
    whole = csr_array((np.tile(mm, 2), (both[:, 0], both[:, 1])), shape=(len(points),) * 2)
    return whole[kept][:, kept]


def joined_graphs(parts: Sequence[csr_array]) -> csr_array:
    """Graphs beside each other, without an edge between them."""
    return csr_array(block_diag(parts, format="csr"))


def open_mesh(path: str | os.PathLike[str]) -> Mesh:
    """Points (vertices, 3) in mm and triangles of a GIfTI surface.

    Raises
    ------
    MissingDataError, DataError : no such file, a broken one, or one without a surface.
    """
    image = load_image(Path(path))
    found = [
        [a.data for a in getattr(image, "darrays", []) if a.intent == code]
        for code in (1008, 1009)  # NIFTI_INTENT_POINTSET, NIFTI_INTENT_TRIANGLE
    ]
    if not all(found):
        raise DataError(
            f"{path} holds no surface (points and triangles); give a *.surf.gii, not a map on it"
        )
    points, triangles = np.asarray(found[0][0], float), np.asarray(found[1][0], np.int64)
    sound = points.ndim == triangles.ndim == 2 and points.shape[1] == triangles.shape[1] == 3
    if sound and len(triangles):
        sound = np.isfinite(points).all() and 0 <= triangles.min() <= triangles.max() < len(points)
    if not sound:
        raise DataError(f"{path} has triangles of points that it does not have; write it again")
    return points, triangles


@lru_cache(maxsize=1)
def fsaverage5() -> dict[str, Path]:
    """Files of nilearn's fsaverage5 by name, such as ``infl_left`` and ``sulc_right``."""
    from nilearn.datasets import fetch_surf_fsaverage

    files = fetch_surf_fsaverage("fsaverage5")  # this one is inside the package
    return {name: Path(files[name]) for name in files if name != "description"}


@lru_cache(maxsize=2)
def _midthickness5(side: str) -> Mesh:
    (white, triangles), (pial, _) = (packaged_mesh(f"{k}_{side}") for k in ("white", "pial"))
    return (white + pial) / 2, triangles


@lru_cache(maxsize=8)
def packaged_mesh(name: str) -> Mesh:
    """A surface of :func:`fsaverage5`, such as ``"infl_left"``."""
    import nibabel

    image: Any = nibabel.load(fsaverage5()[name])
    points, triangles = image.agg_data()
    return np.asarray(points, float), np.asarray(triangles, np.int64)


@lru_cache(maxsize=2)
def sulcal_depth5(side: str) -> np.ndarray:
    """(10242,) of a hemisphere, "left" or "right"."""
    import nibabel

    image: Any = nibabel.load(fsaverage5()[f"sulc_{side}"])
    return np.asarray(image.agg_data(), np.float32)
