"""Regions as label files: which vertex belongs to which region, for wb_view, freeview and nilearn.

One ``.label.gii`` a hemisphere beside the maps, named like a segmentation of BIDS derivatives, with
the regions' names and colours inside. A vertex has one label: where regions overlap, the smaller
one, as in the painted maps.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.analysis.attribution_files import DENSITIES, STRUCTURE, label_of, placed
from neurodiff.core.atomic import atomic_path, write_json
from neurodiff.datasets.cortex_maps import to_hemispheres

_GOLDEN = 0.618033988749895


def write_labels(
    folder: Path,
    rois: Mapping[str, np.ndarray],
    space: Any,
    *,
    participant: str = "group",
    task: str = "",
) -> list[Path]:
    """Write the regions of a surface below ``<participant>/func``; none for voxels.

    Parameters
    ----------
    rois : name -> (features,) of the space.
    participant : ``"sub-01"`` or ``"group"``.

    Returns
    -------
    A ``.label.gii`` and its ``.json`` a hemisphere.
    """
    names = list(rois)
    at = placed(_numbers(rois, space.n_features), space)
    sides: dict[str, np.ndarray] = {}
    given = {"space": "fsLR", "den": "32k"}
    if at.kind in ("fsLR", "grayordinates"):
        cortex = at.values
        if at.kind == "grayordinates":
            cortex = at.space.on_cortex(at.values)
        sides = to_hemispheres(cortex)
    elif at.kind == "fsaverage":
        sides, given = at.values, {"space": "fsaverage"}
    paths = []
    for side, values in sides.items():
        keys = np.nan_to_num(values, nan=0.0).astype(np.int32)
        den = {"den": DENSITIES[len(keys)]} if len(keys) in DENSITIES else {}
        entities = {"hemi": side, **given, **den}
        parts = [participant] if participant != "group" else []
        parts += [f"task-{label_of(task)}"] if label_of(task) else []
        parts += [f"{key}-{entities[key]}" for key in ("hemi", "space", "den") if key in entities]
        stem = folder / participant / "func" / "_".join([*parts, "desc-regions", "dseg"])
        path = stem.with_name(stem.name + ".label.gii")
        _write(path, keys, names, side)
        facts = stem.with_name(stem.name + ".json")
        write_json(facts, _facts(names, keys))
        paths += [path, facts]
    return paths


def colours_of(names: list[str]) -> list[tuple[float, float, float, float]]:
    """Colours that neighbours in the list can be told by, RGBA in [0, 1]."""
    out = []
    for k in range(len(names)):
        lightness, saturation = ((0.45, 0.65), (0.62, 0.8), (0.32, 0.6))[k % 3]
        out.append((*colorsys.hls_to_rgb((k * _GOLDEN) % 1, lightness, saturation), 1.0))
    return out


def _numbers(rois: Mapping[str, np.ndarray], n_features: int) -> np.ndarray:
    """(features,) number of the smallest region from 1, NaN outside of all."""
    out = np.full(n_features, np.nan, np.float32)
    masks = [np.asarray(mask, bool) for mask in rois.values()]
    for number in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        out[masks[number]] = number + 1
    return out


def _write(path: Path, keys: np.ndarray, names: list[str], side: str) -> None:
    import nibabel
    from nibabel.gifti import (
        GiftiDataArray,
        GiftiImage,
        GiftiLabel,
        GiftiLabelTable,
        GiftiMetaData,
    )

    table = GiftiLabelTable()
    outside = GiftiLabel(0, 0.0, 0.0, 0.0, 0.0)
    outside.label = "???"
    table.labels.append(outside)
    for number, (name, colour) in enumerate(zip(names, colours_of(names), strict=True), start=1):
        label = GiftiLabel(number, *colour)
        label.label = name
        table.labels.append(label)
    array = GiftiDataArray(
        keys, intent="NIFTI_INTENT_LABEL", datatype="NIFTI_TYPE_INT32", meta={"Name": "regions"}
    )
    meta = GiftiMetaData({"AnatomicalStructurePrimary": STRUCTURE[side]})
    with atomic_path(path) as temporary:
        nibabel.save(GiftiImage(darrays=[array], meta=meta, labeltable=table), temporary)


def _facts(names: list[str], keys: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(keys, minlength=len(names) + 1)
    return {
        "Description": "regions that were scored; where they overlap, the smaller one",
        "Labels": {name: number for number, name in enumerate(names, start=1)},
        "Vertices": {name: int(counts[k]) for k, name in enumerate(names, start=1) if counts[k]},
    }
