"""fMRI-Shape: flat maps of the visual cortex while 3D objects turned for 8 seconds.

Layout of the hub (``Fudan-fMRI/fMRI-Shape``), below ``root``::

    annotations/core_train_list.txt, core_test_list.txt     <synset>/<model id>, one a line
    annotations/apac_list.txt                                the same, for subjects 11 to 13
    sub-0001/npy_data/<synset>/<model id>.npy                float32 (frames, 256, 256)
    stimulus_views/<model id>.png                            a picture of the object, if there
    stimuli/<synset>/<model id>.obj                          a mesh of the object, if there

Traps of the published copies that are read as they are: lists with ``.npy`` behind each name, the
code repository's list of 1,297 instead of 1,300 training objects, folders without the level
``npy_data``.

Values are in the publisher's units: z-scores by the mean and standard deviation of each subject's
first run, so that most trials have another mean and spread; ``restandardise`` makes them
comparable.  A trial is 10 frames of TR 0.8 s; every number of frames from 1 is accepted.

There is one file an object: repeats were not kept, so that a noise ceiling cannot be computed from
this release (the one of `GLMsingleShape` has the repeats).

References
----------
Gao et al. 2024, MinD-3D, ECCV (arXiv 2312.07485).  Licence of the data: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from neurodiff.core.errors import MissingDataError, UsageError, suggest
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.flat_trials import FlatMapTrials, Pad, Restandardise, Values, area_masks
from neurodiff.datasets.fmri_shape_files import (
    LISTS,
    SPLITS,
    TESTED,
    Entry,
    is_simulated,
    lists_of,
    npy_folder,
    npy_path,
    open_stimuli,
    read_lists,
    stimulus_ids,
    subject_folder,
)

Split = Literal["core", "across-person", "across-person-across-class"]

PUBLISHED_FRAMES = {"mind3d-2024": range(2, 8)}
"""Test frames by name: the published test loop reads frames 2 to 7 of 10."""


class FMRIShape:
    """The processed release of fMRI-Shape; see `open`."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        split: Split = "core",
        test_subject: int | str | None = None,
        frames: Iterable[int] | str | None = None,
        pad: Pad = "last",
        restandardise: Restandardise | None = None,
        values: Values = "pixels",
        allow_missing: bool = False,
    ) -> tuple[Recording, Stimuli]:
        """Recording and stimuli of one subject, or of two where people are crossed.

        Parameters
        ----------
        root : folder with ``annotations`` and ``sub-0001`` and so on.
        subject : 1, ``"1"`` or ``"sub-0001"``; trained on.
        split : ``"core"``: the trials of this subject alone, split by the core lists (subjects 9
            and 11 to 13 have test trials only).  ``"across-person"`` (AP): training trials of
            this subject, test trials of subject 9, who saw the same 104 test objects.
            ``"across-person-across-class"`` (APAC): the same, tested on subject 11, who saw 220
            objects of 55 classes, 42 of which training never shows.
        test_subject : another subject to test on; APAC can also be tested on 12 or 13.
        frames : frames by number, or ``"mind3d-2024"``, the frames 2 to 7 of the published test.
        pad, restandardise, values : see `FlatMapTrials`; sessions are a subject's training
            trials, and all trials of a subject who has none.
        allow_missing : leave trials without a file out; the number is in the recording's name.

        Raises
        ------
        UsageError : an option with a value that it does not have, or subjects that a split has not.
        MissingDataError : folder, lists or (unless ``allow_missing``) files that are not there.
        DataError : a list or the header of a file is broken.
        """
        root = Path(root)
        parts = _parts(subject, split, test_subject)
        lists = {part: name for _, of in parts for part, name in of.items()}
        folders = {part: npy_folder(root, who) for who, of in parts for part in of}
        names = {part: subject_folder(who) for who, of in parts for part in of}
        entries = read_lists(root, lists)
        files = {entry: npy_path(folders[entry.split], entry) for entry in entries}
        there = [entry for entry in entries if files[entry].is_file()]
        missing = len(entries) - len(there)
        if not there or (missing and not allow_missing):
            first = next(entry for entry in entries if not files[entry].is_file())
            raise MissingDataError(
                f"{missing} of the {len(entries)} trials that the lists name have no file below "
                f"{folders[first.split]}, first {files[first]}; download them"
                + (", or pass allow_missing=True to work on the others" if there else "")
            )
        ids = stimulus_ids(there)
        subjects = [names[entry.split] for entry in there]
        data = FlatMapTrials(
            [files[entry] for entry in there],
            frames=frames,
            named_frames=PUBLISHED_FRAMES,
            pad=pad,
            restandardise=restandardise,
            values=values,
            reference=[row for row, entry in enumerate(there) if entry.split == "train"],
            subjects=subjects,
        )
        who = " to ".join(dict.fromkeys(subjects))
        recording = Recording(
            data=data,
            trials=_table(there, ids, subjects),
            rois=area_masks(values),
            space=data.space,
            unit=data.unit,
            simulated=is_simulated(root),
            name=f"fMRI-Shape {who}" + (f" ({missing} trials without a file)" if missing else ""),
        )
        return recording, open_stimuli(root, there, ids)


def _table(entries: list[Entry], ids: dict[Entry, str], subjects: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "subject": subjects,
            "stimulus": [ids[entry] for entry in entries],
            "split": [entry.split for entry in entries],
            "synset": [entry.synset for entry in entries],
        }
    )


def _parts(
    subject: int | str, split: str, test_subject: int | str | None
) -> list[tuple[int | str, dict[str, str]]]:
    """Subjects with the lists that are read of each: split -> file."""
    if split not in SPLITS:
        raise UsageError(
            f"there is no split {split!r} of fMRI-Shape; there are {', '.join(SPLITS)}."
            f"{suggest(split, SPLITS)}"
        )
    if split == "core":
        if test_subject is not None:
            raise UsageError(
                "test_subject goes with split='across-person' or 'across-person-across-class', "
                "not with 'core', which tests the subject that it trains on"
            )
        return [(subject, dict(lists_of(subject)))]
    if "train" not in lists_of(subject):
        raise UsageError(
            f"{subject_folder(subject)} has no training trials; {split} trains on one of the "
            "subjects 1 to 8"
        )
    allowed = TESTED[split]
    tested = allowed[0] if test_subject is None else test_subject
    if subject_folder(tested) not in [subject_folder(one) for one in allowed]:
        raise UsageError(
            f"test_subject is {tested!r}; {split} is tested on subject "
            f"{' or '.join(map(str, allowed))}"
        )
    return [(subject, {"train": LISTS["train"]}), (tested, dict(lists_of(tested)))]
