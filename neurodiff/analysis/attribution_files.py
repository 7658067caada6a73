"""Files of attribution: maps as NIfTI, GIfTI and CIFTI with BIDS names, and results of methods.

Names follow BIDS derivatives, entities in the order of the standard:

    sub-01_task-objects_space-fsLR_den-91k_stat-importance_desc-leaveoneoutmean_statmap.dscalar.nii

``stat`` and the suffix ``statmap`` are those of the draft on statistical maps (BEP041), which
nilearn writes too; ``.bidsignore`` names them, so that a validator of the present standard passes.
Headers are made here, from nothing: no text of a source file gets into them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurodiff.core.atomic import atomic_path, write_csv, write_json, write_npy
from neurodiff.core.derivatives import write_dataset_description
from neurodiff.core.errors import DataError
from neurodiff.core.recording import MaskerSpace, MaskSpace, SubSpace
from neurodiff.core.safe_io import read_csv, read_json, read_npy
from neurodiff.core.sealed import is_sealed
from neurodiff.datasets.cortex_maps import to_hemispheres
from neurodiff.datasets.grayordinates import GrayordinateSpace
from neurodiff.datasets.nsd_rois import FsaverageSpace
from neurodiff.datasets.surface import (
    N_GRAYORDINATES,
    N_MESH,
    FlatImageSpace,
    FlatMapSpace,
    load_grayordinates,
    load_visual_cortex,
)

DENSITIES = {163842: "164k", 40962: "41k", 10242: "10k", 2562: "3k", 32492: "32k"}
WORDS = ("subject", "stage", "roi", "stimulus", "method", "metric", "unit")
STRUCTURE = {"L": "CortexLeft", "R": "CortexRight"}


@dataclass(frozen=True, kw_only=True)
class MapNames:
    """What goes into the name of a map; signs that BIDS does not allow are dropped."""

    subject: str
    task: str
    statistic: str
    method: str
    stage: str
    space_label: str | None = None
    painted: bool = True

    @property
    def participant(self) -> str:
        """``"sub-01"``, or ``"group"`` where a map is of several subjects."""
        label = label_of(re.sub(r"^sub-", "", self.subject)) if self.subject != "all" else ""
        return f"sub-{label}" if label else "group"

    def name(self, ending: str, **entities: str) -> str:
        """The file's name; ``entities`` : hemi, space, den."""
        parts = [self.participant] if self.participant != "group" else []
        parts += [f"task-{label_of(self.task)}"] if label_of(self.task) else []
        parts += [f"{key}-{entities[key]}" for key in ("hemi", "space", "den") if key in entities]
        parts.append(f"stat-{label_of(self.statistic)}")
        parts.append(f"desc-{label_of(self.method + self.stage.capitalize())}")
        return "_".join([*parts, "statmap"]) + ending


def label_of(text: str) -> str:
    """Letters and digits of ``text``, as a BIDS label has them.

    Examples
    --------
    >>> label_of("leave_one_out:mean"), label_of("sim-own-0001")
    ('leaveoneoutmean', 'simown0001')
    """
    return re.sub(r"[^A-Za-z0-9]", "", text)


class Placed(NamedTuple):
    """Values in a kind of file.

    "fsLR" (59,412 cortical grayordinates), "grayordinates" (of the space's CIFTI file, subcortical
    voxels too), "fsaverage" or "voxels".
    """

    kind: str
    values: Any
    space: Any


def has_place(space: Any) -> bool:
    """Whether features of a space have a place in a brain that a file can hold."""
    while isinstance(space, SubSpace):
        space = space.parent
    known = (FlatMapSpace, FlatImageSpace, GrayordinateSpace, FsaverageSpace, MaskSpace)
    return isinstance(space, (*known, MaskerSpace))


def placed(values: Any, space: Any) -> Placed:
    """Values (features,) of a space on the whole cortex or in a volume, NaN elsewhere.

    Flat maps go to vertices by the pixel that stands for each vertex, so that values of two regions
    are never mixed.

    Raises
    ------
    DataError : features without a place.
    """
    values = np.asarray(values, np.float32)
    if isinstance(space, SubSpace):
        full = np.full(space.parent.n_features, np.nan, np.float32)
        full[space.columns] = values
        return placed(full, space.parent)
    if isinstance(space, FlatImageSpace):
        return placed(values[load_visual_cortex().vertex_pixel], FlatMapSpace())
    if isinstance(space, FlatMapSpace):
        whole = np.full(len(load_grayordinates().mesh), np.nan, np.float32)
        whole[load_visual_cortex().grayordinates] = values
        return Placed("fsLR", whole, space)
    if isinstance(space, GrayordinateSpace):
        return Placed("grayordinates", space.to_image(values), space)
    if isinstance(space, FsaverageSpace):
        full = space.to_image(values)
        left = len(space.masks[0])
        return Placed("fsaverage", {"L": full[:left], "R": full[left:]}, space)
    if isinstance(space, MaskSpace):
        volume = np.full(space.mask.shape, np.nan, np.float32)
        volume[space.mask] = values
        return Placed("voxels", (volume, space.affine), space)
    if isinstance(space, MaskerSpace):
        inside = space.to_image(np.ones(space.n_features, np.float32))
        known = space.to_image(np.where(np.isfinite(values), values, 0))
        said = space.to_image(np.isfinite(values).astype(np.float32))
        volume = np.asarray(known.dataobj, np.float32)
        volume = np.where(
            (np.asarray(inside.dataobj) != 0) & (np.asarray(said.dataobj) != 0), volume, np.nan
        )
        return Placed("voxels", (volume.astype(np.float32), np.asarray(inside.affine)), space)
    raise DataError(
        f"the features of the space {getattr(space, 'name', space)!r} have no place in a brain, so "
        "there is no map to write; give a recording of vertices or voxels"
    )


def write_map(folder: Path, names: MapNames, values: Any, space: Any) -> list[Path]:
    """Write one map in every format of its space, below ``<participant>/func``; returns paths."""
    at = placed(values, space)
    place = folder / names.participant / "func"
    if at.kind in ("fsLR", "grayordinates"):
        title = f"{names.method} {names.stage} {names.statistic}".replace("  ", " ")
        cortex, axis, given = at.values, None, {"space": "fsLR", "den": "91k"}
        if at.kind == "grayordinates":
            cortex, axis = at.space.on_cortex(at.values), at.space.axis
            if len(axis) != N_GRAYORDINATES:
                del given["den"]
        dense = place / names.name(".dscalar.nii", **given)
        _write_cifti(dense, at.values, title, axis)
        sides = to_hemispheres(cortex)
        return [
            dense,
            *(
                _write_gifti(
                    place / names.name(".func.gii", hemi=side, space="fsLR", den="32k"),
                    data,
                    side,
                    title,
                )
                for side, data in sides.items()
            ),
        ]
    if at.kind == "fsaverage":
        paths = []
        for side, data in at.values.items():
            given = {"hemi": side, "space": "fsaverage"}
            if len(data) in DENSITIES:
                given["den"] = DENSITIES[len(data)]
            paths.append(
                _write_gifti(place / names.name(".func.gii", **given), data, side, names.statistic)
            )
        return paths
    space_name = label_of(names.space_label or "")
    given = {"space": space_name} if space_name else {}
    return [_write_nifti(place / names.name(".nii.gz", **given), *at.values, space_name)]


def _write_cifti(path: Path, values: np.ndarray, title: str, axis: Any = None) -> Path:
    import nibabel
    from nibabel.cifti2 import Cifti2Image, ScalarAxis

    brain = _cortex_axis() if axis is None else axis
    image = Cifti2Image(values[None], (ScalarAxis([title]), brain))
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
    return path


@lru_cache(maxsize=1)
def _cortex_axis() -> Any:
    """The 59,412 cortical grayordinates, made once a process: it takes longer than a file."""
    from nibabel.cifti2 import BrainModelAxis

    gray = load_grayordinates()
    left = BrainModelAxis.from_surface(gray.left, N_MESH, "CortexLeft")
    return left + BrainModelAxis.from_surface(gray.right, N_MESH, "CortexRight")


def _write_gifti(path: Path, data: np.ndarray, side: str, title: str) -> Path:
    import nibabel
    from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiMetaData

    array = GiftiDataArray(
        np.asarray(data, np.float32),
        intent="NIFTI_INTENT_NONE",
        datatype="NIFTI_TYPE_FLOAT32",
        meta={"Name": title},
    )
    meta = GiftiMetaData({"AnatomicalStructurePrimary": STRUCTURE[side]})
    with atomic_path(path) as temporary:
        nibabel.save(GiftiImage(darrays=[array], meta=meta), temporary)
    return path


def _write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray, space: str) -> Path:
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(volume, np.float32), affine)
    code = 4 if space.startswith("MNI") else 2  # the standard space, else aligned to something
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
    return path


def write_sidecar(path: Path, facts: Mapping[str, Any]) -> Path:
    """Facts of a map as JSON beside it."""
    stem = re.sub(r"\.(dscalar\.nii|func\.gii|nii\.gz)$", "", path.name)
    target = path.with_name(stem + ".json")
    write_json(target, dict(facts))
    return target


def write_description(
    folder: Path, *, simulated: bool, sources: Sequence[Mapping[str, str]] = ()
) -> Path:
    """``dataset_description.json`` and ``.bidsignore`` of a folder of derivatives."""
    return write_dataset_description(
        folder,
        "ROI attribution" + (" (simulated subjects)" if simulated else ""),
        what="Which regions carry the information that a decoder uses",
        sources=sources,
        ignored=("*_statmap.*", "*_dseg.*", "attribution.*", "attribution_files/", "results/"),
    )


# ------------------------------------------------------------------------- results of methods


class StoredResult(NamedTuple):
    """A `MethodResult` read back, field by field."""

    method: str
    table: pd.DataFrame
    maps: Mapping[str, np.ndarray]
    items: pd.DataFrame | None
    notes: tuple[str, ...]


def save_result(result: Any, folder: Path) -> Path:
    """Write a method's result into a folder of its own, which is then sealed by its owner."""
    write_csv(folder / "table.csv", result.table)
    keys = list(result.maps)
    if keys:
        maps = np.stack([np.asarray(result.maps[key], np.float32) for key in keys])
        write_npy(folder / "maps.npy", maps)
    if result.items is not None:
        write_csv(folder / "items.csv", result.items)
    facts = {"method": result.method, "notes": list(result.notes), "maps": keys}
    write_json(folder / "facts.json", facts)
    return folder


def open_result(folder: Path) -> StoredResult:
    """What `save_result` wrote into a folder that was sealed.

    Raises
    ------
    DataError : it is not whole.
    """
    if not is_sealed(folder):
        raise DataError(f"{folder} holds no finished method; compute it again")
    facts = read_json(folder / "facts.json")
    maps = {}
    if facts["maps"]:
        stacked = read_npy(folder / "maps.npy", dtype=np.float32, finite=False)
        maps = dict(zip(facts["maps"], stacked, strict=True))
    items = folder / "items.csv"
    return StoredResult(
        method=str(facts["method"]),
        table=_table(folder / "table.csv"),
        maps=maps,
        items=_table(items) if items.is_file() else None,
        notes=tuple(str(note) for note in facts["notes"]),
    )


def _table(path: Path) -> pd.DataFrame:
    table = read_csv(path, dtype=dict.fromkeys(WORDS, str))
    for name in set(WORDS) & set(table):
        table[name] = table[name].fillna("")
    return table
