"""Areas of one person, such as a localiser's, as boolean arrays over a recording's features.

Read are

- GIfTI labels or values of one hemisphere, fsLR-32k: ``.label.gii``, ``.shape.gii``, ``.func.gii``
- CIFTI labels or values: ``.dlabel.nii``, ``.dscalar.nii``
- a volume (NIfTI mask), sampled at the cortex: ``.nii``, ``.nii.gz``

Labels give one area each, by their names; values give one area a map, where they are above a
threshold. Both hemispheres of an area are one area. What lies outside the recording is left out.

For a recording of voxels (a `MaskSpace`) a volume has to be on its grid; the others are for
recordings of the cortex: 8,921 vertices, or 256 x 256 pictures, where an area becomes the pixels
that show it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.safe_images import load_image
from neurodiff.core.spaces import MaskSpace, SubSpace, open_image
from neurodiff.datasets.cifti import open_cifti, surface_vertices
from neurodiff.datasets.surface import (
    N_MESH,
    FlatImageSpace,
    FlatMapSpace,
    load_grayordinates,
    load_midthickness,
    load_visual_cortex,
)

Masks = dict[str, np.ndarray]


@dataclass(frozen=True)
class Localisers:
    """Areas over the 8,921 visual vertices, and the files they are from."""

    masks: Masks = field(default_factory=dict)
    files: tuple[str, ...] = ()


def read_localisers(paths: Sequence[str | Path], *, threshold: float = 0.0) -> Localisers:
    """Areas of several files at the 8,921 visual vertices; equal names are joined."""
    masks: Masks = {}
    for path in paths:
        for name, mask in rois_for(FlatMapSpace(), path, threshold=threshold).items():
            masks[name] = masks[name] | mask if name in masks else mask
    return Localisers(masks, tuple(str(path) for path in paths))


def with_localisers(
    recording: Recording,
    *paths: str | Path,
    threshold: float = 0.0,
    surfaces: Mapping[str, str | Path] | None = None,
) -> Recording:
    """The recording with the areas of these files beside the ones it has.

    Parameters
    ----------
    threshold : values above it are inside.
    surfaces : ``{"L": ..., "R": ...}``, the person's own midthickness surfaces (fsLR-32k GIfTI, mm)
        in the space of a volume; by default the group average, which fits volumes in MNI space.

    Raises
    ------
    MissingDataError, DataError : a file that is missing, broken, of another space, or without a
        feature inside the recording.
    UsageError : a kind of file that does not go with the recording's space.
    """
    masks: Masks = {}
    for path in paths:
        found = rois_for(recording.space, path, threshold=threshold, surfaces=surfaces)
        for name, mask in found.items():
            masks[name] = masks[name] | mask if name in masks else mask
    return replace(recording, rois={**recording.rois, **masks})


def rois_for(
    space: Any,
    path: str | Path,
    *,
    threshold: float = 0.0,
    surfaces: Mapping[str, str | Path] | None = None,
) -> dict[str, Bool[np.ndarray, " features"]]:
    """Areas of one file over the features of a space; see `with_localisers`."""
    if isinstance(space, SubSpace):
        inside = rois_for(space.parent, path, threshold=threshold, surfaces=surfaces)
        return _some(path, {name: mask[space.columns] for name, mask in inside.items()})
    if isinstance(space, MaskSpace):
        return _some(path, _of_voxels(space, Path(path), threshold))
    if not isinstance(space, FlatMapSpace | FlatImageSpace):
        raise UsageError(
            f"areas of {path} have no place in the space {space.name!r}; expected vertices or "
            "pictures of the cortex, or voxels of a mask"
        )
    cortex = load_visual_cortex()
    mesh = load_grayordinates().mesh[cortex.grayordinates]
    masks = {name: on[mesh] for name, on in _of_mesh(Path(path), threshold, surfaces).items()}
    if isinstance(space, FlatImageSpace):
        shown = cortex.pixel_vertex.ravel()
        masks = {name: (shown >= 0) & mask[shown] for name, mask in masks.items()}
    return _some(path, masks)


# ---------------------------------------------------------------------------------- by kind


def _of_mesh(path: Path, threshold: float, surfaces: Mapping[str, str | Path] | None) -> Masks:
    """Areas over the 64,984 vertices of both meshes."""
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; check the path")
    name = path.name.lower()
    if name.endswith((".gii", ".gii.gz")):
        return _of_gifti(path, threshold)
    if name.endswith((".dlabel.nii", ".dscalar.nii", ".dtseries.nii")):
        return _of_cifti(path, threshold)
    if name.endswith((".nii", ".nii.gz")):
        return _of_volume(path, threshold, surfaces)
    raise UsageError(
        f"{path} is no file of areas that is read; give .label.gii, .shape.gii, .func.gii, "
        ".dlabel.nii, .dscalar.nii, .nii or .nii.gz"
    )


def _of_gifti(path: Path, threshold: float) -> Masks:
    image: Any = load_image(path)
    arrays = getattr(image, "darrays", [])
    if not arrays or any(array.data.shape != (N_MESH,) for array in arrays):
        shape = arrays[0].data.shape if arrays else "no data"
        raise DataError(
            f"{path} has {shape} values; expected one for each of {N_MESH:,} vertices of fsLR-32k: "
            "resample it to fsLR-32k"
        )
    begin = 0 if _hemisphere(path, image, arrays) == "L" else N_MESH
    names = {key: text for key, text in image.labeltable.get_labels_as_dict().items() if key != 0}
    masks: Masks = {}
    for number, array in enumerate(arrays, start=1):
        given = array.metadata.get("Name") or _stem(path)
        title = given if len(arrays) == 1 or array.metadata.get("Name") else f"{given}_{number}"
        for name, inside in _areas(array.data, names, title, threshold).items():
            whole = masks.setdefault(name, np.zeros(2 * N_MESH, bool))
            whole[begin : begin + N_MESH] |= inside
    return masks


def _of_cifti(path: Path, threshold: float) -> Masks:
    image, kind, brain = open_cifti(path)
    data = np.asarray(image.dataobj)
    masks: Masks = {}
    for side, (columns, vertices) in surface_vertices(path, brain).items():
        place = vertices + (0 if side == "L" else N_MESH)
        for row, values in enumerate(data[:, columns]):
            tables = getattr(kind, "label", None)
            names = {} if tables is None else {k: v[0] for k, v in tables[row].items() if k != 0}
            titles = getattr(kind, "name", None)
            title = _stem(path) if titles is None else str(titles[row])
            for name, inside in _areas(values, names, title, threshold).items():
                masks.setdefault(name, np.zeros(2 * N_MESH, bool))[place] |= inside
    return masks


def _of_volume(path: Path, threshold: float, surfaces: Mapping[str, str | Path] | None) -> Masks:
    """Areas at the vertices: each takes the voxel that it lies in."""
    image = open_image(path)
    volume = np.asarray(image.dataobj)
    if volume.ndim != 3:
        raise DataError(f"{path} has shape {volume.shape}; expected a volume (i, j, k)")
    points = _vertex_places(surfaces)
    inverse = np.linalg.inv(image.affine)
    index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    within = ((index >= 0) & (index < volume.shape)).all(axis=1)
    values = np.zeros(len(points), volume.dtype)
    values[within] = volume[tuple(index[within].T)]
    return _areas(values, {}, _stem(path), threshold)


def _of_voxels(space: MaskSpace, path: Path, threshold: float) -> Masks:
    if not path.name.lower().endswith((".nii", ".nii.gz")) or re.search(
        r"\.d\w+\.nii$", path.name.lower()
    ):
        raise UsageError(f"{path} is of the cortex, and the recording of voxels; give a volume")
    values = space.vectors(open_image(path), str(path))
    if values.ndim != 1:
        raise DataError(f"{path} has {len(values)} volumes; expected one")
    return _areas(values, {}, _stem(path), threshold)


# ----------------------------------------------------------------------------------- helpers


def _areas(values: np.ndarray, names: Mapping[int, str], title: str, threshold: float) -> Masks:
    """Name -> inside: one area a label, or one where the values are above the threshold."""
    if names:
        return {text: values == key for key, text in names.items()}
    return {title: np.nan_to_num(np.asarray(values, float), nan=-np.inf) > threshold}


def _some(path: str | Path, masks: Masks) -> Masks:
    """Areas with at least one feature; DataError where there is none at all."""
    there = {name: mask for name, mask in masks.items() if mask.any()}
    if not there:
        raise DataError(
            f"{path} has no area inside this recording ({len(masks)} in all lie elsewhere or are "
            "empty); check its space and the threshold"
        )
    return there


def _hemisphere(path: Path, image: Any, arrays: Sequence[Any]) -> str:
    for meta in (image.meta, *(array.metadata for array in arrays)):
        structure = str(meta.get("AnatomicalStructurePrimary", ""))
        if structure in ("CortexLeft", "CortexRight"):
            return structure[len("Cortex")]
    named = re.search(r"(?:^|[._])(?:hemi-)?([LR]|lh|rh)(?=[._])", path.name)
    if named is None:
        raise DataError(
            f"{path} does not say its hemisphere; name it like area.L.label.gii or "
            "hemi-L_area.label.gii, or set AnatomicalStructurePrimary"
        )
    return named[1][0].upper()


def _vertex_places(surfaces: Mapping[str, str | Path] | None) -> Float[np.ndarray, "mesh 3"]:
    if surfaces is None:
        return load_midthickness()
    if set(surfaces) != {"L", "R"}:
        raise UsageError(f"surfaces has {', '.join(surfaces)}; give both 'L' and 'R'")
    parts = []
    for side in ("L", "R"):
        surface: Any = load_image(surfaces[side])
        points = surface.agg_data("pointset")
        if np.shape(points) != (N_MESH, 3):
            raise DataError(f"{surfaces[side]} has {np.shape(points)} points; expected fsLR-32k")
        parts.append(points)
    return np.concatenate(parts).astype(float)


def _stem(path: Path) -> str:
    """``sub-01_hemi-L_FFA.shape.gii`` -> ``FFA``: the last part without endings and keys."""
    stem = re.sub(
        r"(\.(label|shape|func|dlabel|dscalar|dtseries))?\.(gii|nii)(\.gz)?$", "", path.name
    )
    stem = re.sub(r"(?<=[._])(?:hemi-)?[LR](?=[._]|$)|^(?:hemi-)?[LR](?=[._])", "", stem)
    parts = [part for part in re.split(r"[._]", stem) if part]
    last = parts[-1] if parts else "area"
    if last in ("mask", "roi", "label", "dseg") and len(parts) > 1:
        last = parts[-2]
    return last.split("-", 1)[-1]
