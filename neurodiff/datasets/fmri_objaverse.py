"""fMRI-Objaverse: flat maps of the visual cortex while textured 3D objects turned.

Layout of the hub (``Fudan-fMRI/fMRI-Objaverse``), below ``root``::

    Object_caption_Cap3D.csv          category,uid,caption; captions hold bare commas
    train_list.txt, test_list.txt     <category>  <000-107>/<uid>.glb; also below annotations
    sub-0001/npy_data/<uid>.npy       float32 (frames, 256, 256), any number of frames
    stimuli/<000-107>/<uid>.glb       the textured object, if there
    stimulus_views/<uid>.png          a picture of it, if there

3,142 objects of 117 categories with a long tail: the most frequent have over 70 objects, some a
single one (`category_counts`).  Values are in the publisher's units, as in ``fmri_shape``.  There
is one file an object: repeats were not kept, so that a noise ceiling cannot be computed.

References
----------
Gao et al. 2024 (arXiv 2409.11315).  Licence of the data: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from neurodiff.core.errors import MissingDataError, UsageError, suggest
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.flat_trials import FlatMapTrials, Pad, Restandardise, Values, area_masks
from neurodiff.datasets.fmri_objaverse_check import check_fmri_objaverse
from neurodiff.datasets.fmri_objaverse_files import (
    CAPTIONS,
    Caption,
    Shown,
    npy_folder,
    npy_path,
    open_stimuli,
    read_captions,
    read_lists,
    split_by_hash,
)
from neurodiff.datasets.fmri_shape_files import is_simulated, subject_folder

PUBLISHED_FRAMES = {"mind3d-2024": range(2, 8), "mind3d-2024-dataset": range(1, 7)}
"""Test frames by name. The published code disagrees with itself: its inference script reads frames
2 to 7, its data set class 1 to 6."""

SPLITS = ("lists", "hash")


class FMRIObjaverse:
    """The processed release of fMRI-Objaverse; see `open`."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        split: Literal["lists", "hash"] = "lists",
        frames: Iterable[int] | str | None = None,
        pad: Pad = "last",
        restandardise: Restandardise | None = None,
        values: Values = "pixels",
        allow_missing: bool = False,
    ) -> tuple[Recording, Stimuli]:
        """Recording and stimuli of one subject.

        Parameters
        ----------
        root : folder with the table of captions and ``sub-0001`` and so on.
        subject : 1, ``"1"`` or ``"sub-0001"``.
        split : ``"lists"``, by ``train_list.txt`` and ``test_list.txt``; or ``"hash"``, where
            there are none: all captioned objects, one in 20 as test by the hash of its name.
            That is no published split.
        frames : frames by number, ``"mind3d-2024"`` (2 to 7, the published inference) or
            ``"mind3d-2024-dataset"`` (1 to 6, the published data set class).
        pad, restandardise, values : see `FlatMapTrials`; a session is the training trials.
        allow_missing : leave trials without a file out; the number is in the recording's name.

        Raises
        ------
        UsageError : an option with a value that it does not have.
        MissingDataError : folder, lists or (unless ``allow_missing``) files that are not there.
        DataError : a list, the table of captions or the header of a file is broken.
        """
        root = Path(root)
        folder = npy_folder(root, subject)
        entries, captions = read_objects(root, split)
        there = [shown for shown in entries if npy_path(folder, shown).is_file()]
        missing = len(entries) - len(there)
        if not there or (missing and not allow_missing):
            first = next(one for one in entries if not npy_path(folder, one).is_file())
            raise MissingDataError(
                f"{missing} of the {len(entries)} trials that the lists name have no file below "
                f"{folder}, first {npy_path(folder, first)}; download them"
                + (", or pass allow_missing=True to work on the others" if there else "")
            )
        data = FlatMapTrials(
            [npy_path(folder, shown) for shown in there],
            frames=frames,
            named_frames=PUBLISHED_FRAMES,
            pad=pad,
            restandardise=restandardise,
            values=values,
            reference=[row for row, shown in enumerate(there) if shown.split == "train"],
        )
        name = subject_folder(subject)
        trials = pd.DataFrame(
            {
                "subject": name,
                "stimulus": [shown.uid for shown in there],
                "split": [shown.split for shown in there],
                "category": [shown.category for shown in there],
            }
        )
        recording = Recording(
            data=data,
            trials=trials,
            rois=area_masks(values),
            space=data.space,
            unit=data.unit,
            simulated=is_simulated(root),
            name=f"fMRI-Objaverse {name}"
            + (f" ({missing} trials without a file)" if missing else ""),
        )
        return recording, open_stimuli(root, there, captions)

    @classmethod
    def check(cls, root: str | Path, subject: int | str | None = None) -> list[Finding]:
        """Everything that is missing or broken; reads every file."""
        return check_fmri_objaverse(root, subject)


def read_objects(root: Path, split: str = "lists") -> tuple[list[Shown], dict[str, Caption]]:
    """Objects of the split, and captions by uid; there may be none where there are lists."""
    if split not in SPLITS:
        raise UsageError(
            f"there is no split {split!r} of fMRI-Objaverse; there are {', '.join(SPLITS)}."
            f"{suggest(split, SPLITS)}"
        )
    table = root / CAPTIONS
    if split == "hash":
        captions = read_captions(table)
        return split_by_hash(captions.values()), captions
    entries = read_lists(root)
    return entries, read_captions(table) if table.is_file() else {}


def category_counts(stimuli: Stimuli) -> pd.Series:
    """Objects of each category, most first: the long tail of a set."""
    return stimuli.table["category"].value_counts()
