"""Which regions are asked about: those of a recording by name, or those of label files.

HCP-MMP1 areas come with recordings of the cortex, retinotopic and localiser regions with those of
NSD and of cards that name localisers; others are given as files: NIfTI, GIfTI or CIFTI, labels or
values (see `datasets.localisers`). A NIfTI of whole numbers with several labels gives a region a
label, named by the BIDS table beside it (``<name>_dseg.tsv`` with columns index and name) where
there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.recording import MaskerSpace, MaskSpace, Recording, SubSpace
from neurodiff.core.safe_io import read_csv
from neurodiff.core.spaces import open_image
from neurodiff.datasets.localisers import rois_for

ENDINGS = (".nii", ".nii.gz", ".gii")
MOST_LABELS = 1000


def regions_of(recording: Recording, rois: Sequence[str] | None = None) -> Recording:
    """The recording with the regions that were asked for, and no others.

    Parameters
    ----------
    rois : names and paths of files, mixed as one likes; None for all that the recording has.

    Raises
    ------
    UsageError : no such region, or none at all.
    DataError : a file that is broken, of another space, or without a feature of the recording.
    """
    if rois is None:
        if not len(recording.rois):
            raise UsageError(
                f"the recording{f' {recording.name!r}' if recording.name else ''} has no regions; "
                "give --rois FILE, a NIfTI, GIfTI or CIFTI file of labels in its space"
            )
        return recording
    masks: dict[str, np.ndarray] = {}
    for one in rois:
        if str(one).lower().endswith(ENDINGS):
            masks |= file_regions(recording, Path(one))
        elif one in recording.rois:
            masks[one] = np.asarray(recording.rois[one])
        else:
            known = list(recording.rois)
            few = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
            raise UsageError(
                f"there is no region {one!r}; the recording has {few or 'none'}."
                f"{suggest(one, known)}"
            )
    if not masks:
        raise UsageError("no region was named; name some, or leave --rois out for all")
    return replace(recording, rois=masks)


def file_regions(recording: Recording, path: Path) -> dict[str, np.ndarray]:
    """Regions of one file over the features of a recording."""
    space = recording.space
    volume = re.search(
        r"(?<!\.dlabel)(?<!\.dscalar)(?<!\.dtseries)\.nii(\.gz)?$", path.name.lower()
    )
    if volume is not None:
        found = _labels_of_voxels(space, path) or _labels_at_vertices(space, path)
        if found:
            return found
    return rois_for(space, path)


def _labels_of_voxels(space: Any, path: Path) -> dict[str, np.ndarray]:
    """A region a label of a volume on the grid of the voxels; empty where it has one label only."""
    if isinstance(space, SubSpace):
        inside = _labels_of_voxels(space.parent, path)
        cut = {name: mask[space.columns] for name, mask in inside.items()}
        return {name: mask for name, mask in cut.items() if mask.any()}
    if isinstance(space, MaskerSpace):
        values = np.asarray(space.masker.transform(open_image(path)), float).ravel()
    elif isinstance(space, MaskSpace):
        values = space.vectors(open_image(path), str(path)).astype(float)
    else:
        return {}
    whole = np.isfinite(values).all() and np.array_equal(values, np.round(values))
    labels = np.unique(values[values > 0]).astype(int) if whole and values.ndim == 1 else []
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"{path} has {len(labels):,} labels inside the recording; it looks like values and not "
            "like labels"
        )
    if len(labels) < 2 and not isinstance(space, MaskerSpace):
        return {}
    if not len(labels):
        raise DataError(f"{path} has no label inside this recording; check its space")
    names = _names(path)
    return {names.get(int(k), f"label {int(k)}"): values == k for k in labels}


def _labels_at_vertices(space: Any, path: Path) -> dict[str, np.ndarray]:
    """A region a label of a volume, at the vertices of the cortex; empty for one label."""
    if isinstance(space, MaskSpace | MaskerSpace):
        return {}
    values = np.asarray(open_image(path).dataobj)
    labels = np.unique(values[values > 0]) if values.ndim == 3 else np.zeros(0)
    if len(labels) < 2 or not np.array_equal(labels, np.round(labels)):
        return {}
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"{path} has {len(labels):,} labels; it looks like values and not like labels"
        )
    names, found = _names(path), {}
    above = _above(space, path, float(labels[0]) - 0.5)
    for label, following in zip(labels, [*labels[1:], np.inf], strict=True):
        # what is above this label and not above the next one
        higher = _above(space, path, float(following) - 0.5)
        inside = above & ~higher
        if inside.any():
            found[names.get(int(label), f"label {int(label)}")] = inside
        above = higher
    return found


def _above(space: Any, path: Path, threshold: float) -> np.ndarray:
    try:
        [mask] = rois_for(space, path, threshold=threshold).values()
    except DataError:  # no feature above it
        return np.zeros(space.n_features, bool)
    return mask


def _names(path: Path) -> dict[int, str]:
    """Label -> name of the table beside a NIfTI of labels, empty where there is none."""
    table = path.with_name(re.sub(r"\.nii(\.gz)?$", ".tsv", path.name))
    if not table.is_file():
        return {}
    rows = read_csv(table, columns=("index", "name"), separator="\t", dtype={"name": str})
    return dict(zip(rows["index"].astype(int), rows["name"], strict=True))
