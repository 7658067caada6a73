"""fMRI-Shape as single-trial betas: the GLMsingle release, one HDF5 file a subject.

::

    fmri/sub-0001.hdf5                      or directly below root
        vox      (trials, voxels) float32   one GLMsingle beta a presentation and voxel
        stimuli  (trials,) bytes            ./stimuli/<synset>/<model id>.mp4
    splits/core_train_list.txt, core_test_list.txt, apact_sub0011_list.txt
                                            or annotations/ with the names of the hub

17,842 to 22,525 voxels a subject, about 1 GB for all twelve.  Unlike the flat maps, this release
keeps the repeats: subjects 1 to 9 saw each test object twice, subjects 11 to 13 saw 55 objects
three times; so a noise ceiling can be computed.

References
----------
The AAAI-26 release of NeuroSculptor3D, on data of Gao et al. 2024, ECCV.  Licence: Apache-2.0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.safe_hdf5 import open_hdf5
from neurodiff.core.safe_io import require_finite
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.flat_trials_check import count_table
from neurodiff.datasets.fmri_shape_files import (
    CLASSES,
    Entry,
    lists_of,
    open_stimuli,
    read_list,
    stimulus_ids,
    subject_folder,
)

ZScore = Literal["train", "self"]
LIST_FOLDERS = ("splits", "annotations")
OTHER_NAMES = {"apac_list.txt": ("apact_sub0011_list.txt",)}
_BLOCK = 64  # trials read at a time


class GLMsingleShape:
    """The GLMsingle release of fMRI-Shape; see `open`."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        zscore: ZScore | None = None,
        average_repeats: bool = False,
    ) -> tuple[Recording, Stimuli]:
        """Recording (trials, voxels) and stimuli of one subject.

        The voxels of two subjects are not the same, so there is no recording across people.

        Parameters
        ----------
        root : folder with ``fmri`` and ``splits``.
        subject : 1, ``"1"`` or ``"sub-0001"``.
        zscore : None keeps the betas; ``"train"`` brings each voxel to mean 0 and standard
            deviation 1 over the subject's training trials, ``"self"`` over all of its trials,
            which is what is published for subjects 9 and 11 to 13, who have no training trials.
            A voxel that does not vary becomes 0.
        average_repeats : the repeats of an object become one trial, their mean; after ``zscore``.

        Raises
        ------
        UsageError : an option with a value that it does not have, ``"train"`` without training
            trials.
        MissingDataError : no file of this subject, or no list.
        DataError : no HDF5 file, or other datasets, types and shapes than above.
        """
        if zscore not in (None, "train", "self"):
            raise UsageError(f"zscore is {zscore!r}; expected None, 'train' or 'self'")
        root = Path(root)
        path = hdf5_path(root, subject)
        splits = _splits(root, subject)
        entries = [_with_split(path, name, splits) for name in read_stimuli(path)]
        training = np.array([entry.split == "train" for entry in entries])
        if zscore == "train" and not training.any():
            raise UsageError(
                f"{subject_folder(subject)} has no training trials to take mean and deviation "
                "from; use zscore='self'"
            )
        rows = np.flatnonzero(training) if zscore == "train" else np.arange(len(entries))
        shown = list(dict.fromkeys(entries))
        ids = stimulus_ids(shown)
        trials = pd.DataFrame(
            {
                "subject": subject_folder(subject),
                "stimulus": [ids[entry] for entry in entries],
                "split": [entry.split for entry in entries],
                "synset": [entry.synset for entry in entries],
            }
        )
        unit = "beta" if zscore is None else f"z by {zscore}"
        recording = Recording(
            data=HDF5Trials(path, None if zscore is None else rows),
            trials=trials,
            rois={},
            space=None,
            unit=unit,
            name=f"fMRI-Shape GLMsingle {subject_folder(subject)}",
        )
        if average_repeats:
            recording = recording.mean_repeats()
        return recording, open_stimuli(root, shown, ids)

    @classmethod
    def check(cls, root: str | Path, subject: int | str | None = None) -> list[Finding]:
        """Everything that is missing or broken; reads every file."""
        return check_glmsingle(root, subject)


class HDF5Trials:
    """The dataset ``vox`` of a file, float32 ``(trials, voxels)``, read when it is indexed.

    Parameters
    ----------
    path : the file.
    reference : trials whose mean and standard deviation each voxel is standardised by, or None.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, path: Path, reference: np.ndarray | None = None) -> None:
        self.path = path
        self.shape = read_shape(path)
        self._reference = reference
        self._moments: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        if np.ndim(rows) == 0:
            return self._standardised(self._read(np.array([int(rows)])))[0]
        return self._standardised(self._read(rows))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        ascending, place = np.unique(rows, return_inverse=True)  # HDF5 reads in this order only
        if len(ascending) == 0:
            return np.zeros((0, self.shape[1]), np.float32)
        span = slice(int(ascending[0]), int(ascending[-1]) + 1)
        with _opened(self.path) as file:
            dense = len(ascending) == span.stop - span.start
            block = np.asarray(file["vox"][span if dense else ascending], np.float32)
        require_finite(block, f"vox of {self.path}, trials {span.start} to {span.stop - 1},")
        return block[place]

    def _standardised(self, block: np.ndarray) -> np.ndarray:
        if self._reference is None:
            return block
        if self._moments is None:
            self._moments = self._measured(self._reference)
        mean, deviation = self._moments
        varies = deviation > 0
        return np.where(varies, (block - mean) / np.where(varies, deviation, 1), 0).astype(
            np.float32
        )

    def _measured(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each voxel, in float64, two passes."""
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        mean = sum(self._read(block).sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
        squares = sum(((self._read(block) - mean) ** 2).sum(axis=0) for block in blocks)
        return mean, np.sqrt(squares / len(rows))


def check_glmsingle(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """Everything that is missing or broken, without stopping at the first; reads every file."""
    root = Path(root)
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    names = subjects_in(root) if subject is None else [subject_folder(subject)]
    if not names:
        text = "there is no sub-*.hdf5, neither here nor in fmri/"
        return [Finding.missing("subject", root, text, "download a subject")]
    findings = []
    for name in names:
        try:
            path = hdf5_path(root, name)
            recording, _ = GLMsingleShape.open(root, name)
            for start in range(0, recording.n_trials, _BLOCK):
                recording.data[start : start + _BLOCK]
        except MissingDataError as error:
            findings.append(Finding.missing(name, root, str(error), "download what is missing"))
        except DataError as error:
            findings.append(Finding.broken(name, root, str(error), "download it again"))
        else:
            trials = recording.trials
            text = (
                f"{recording.n_trials} trials of {recording.n_features} voxels, "
                f"{trials['stimulus'].nunique()} objects, "
                f"{int((trials['repeat'] > 1).sum())} repeats"
            )
            findings.append(Finding.fine(name, path, text))
            once = trials.drop_duplicates("stimulus")
            classes = [CLASSES.get(synset, synset) for synset in once["synset"]]
            findings.append(count_table(path, classes, once["split"]))
    return findings


def hdf5_path(root: Path, subject: int | str) -> Path:
    """``fmri/sub-0001.hdf5``, or the file directly below ``root``.

    Raises
    ------
    MissingDataError : no such folder or subject; names the subjects that are there.
    """
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the root of the GLMsingle release")
    name = f"{subject_folder(subject)}.hdf5"
    for path in (root / "fmri" / name, root / name):
        if path.is_file():
            return path
    there = ", ".join(subjects_in(root)) or "no subject"
    raise MissingDataError(f"{root / 'fmri' / name} is missing; below {root} there is {there}")


def subjects_in(root: Path) -> list[str]:
    """Subjects that have a file, sorted."""
    return sorted(
        {path.stem for place in (root / "fmri", root) for path in place.glob("sub-*.hdf5")}
    )


def read_shape(path: Path) -> tuple[int, int]:
    """Trials and voxels of a file, from its headers.

    Raises
    ------
    DataError : no HDF5 file, no dataset ``vox`` or ``stimuli``, another type or shape, lengths that
        differ.
    """
    with _opened(path) as file:
        for name in ("vox", "stimuli"):
            if name not in file or not hasattr(file[name], "shape"):
                there = ", ".join(file) or "nothing"
                raise DataError(
                    f"{path} has no dataset {name!r} but {there}; expected 'vox' (trials, voxels) "
                    "and 'stimuli' (trials,)"
                )
        vox, stimuli = file["vox"], file["stimuli"]
        if vox.ndim != 2 or vox.dtype != np.float32 or 0 in vox.shape:
            raise DataError(
                f"vox of {path} is {vox.dtype} {vox.shape}; expected float32 (trials, voxels)"
            )
        if stimuli.shape != vox.shape[:1]:
            raise DataError(
                f"{path} has {vox.shape[0]} trials in vox and stimuli of shape {stimuli.shape}; "
                "expected one stimulus a trial"
            )
        return int(vox.shape[0]), int(vox.shape[1])


def read_stimuli(path: Path) -> list[tuple[str, str]]:
    """Synset and model of each trial.

    Raises
    ------
    DataError : as `read_shape`, or a name that is not ``./stimuli/<synset>/<model id>.mp4``.
    """
    read_shape(path)
    with _opened(path) as file:
        names = [value for value in file["stimuli"][:]]
    found = []
    for row, value in enumerate(names):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        parts = re.fullmatch(r"(?:.*/)?(\w[\w-]*)/(\w[\w.-]*?)\.mp4", text)
        if parts is None:
            raise DataError(
                f"{path}, stimulus of trial {row} is {text!r}; expected "
                "./stimuli/<synset>/<model id>.mp4"
            )
        found.append((parts[1], parts[2]))
    return found


def _splits(root: Path, subject: int | str) -> dict[tuple[str, str], Entry]:
    entries: dict[tuple[str, str], Entry] = {}
    for split, name in lists_of(subject).items():
        names = (name, *OTHER_NAMES.get(name, ()))
        places = [root / folder / one for folder in LIST_FOLDERS for one in names]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise MissingDataError(
                f"{root / LIST_FOLDERS[0] / names[-1]} is missing; download the folder splits of "
                "the release, or the folder annotations of fMRI-Shape"
            )
        entries |= {(entry.synset, entry.model): entry for entry in read_list(path, split)}
    return entries


def _with_split(path: Path, name: tuple[str, str], splits: dict[tuple[str, str], Entry]) -> Entry:
    if name not in splits:
        raise DataError(
            f"{path} holds a trial of {'/'.join(name)}, which no list of this subject names; "
            "download the lists again"
        )
    return splits[name]


def _opened(path: Path) -> Any:
    return open_hdf5(path)
