"""Where the files of the Natural Scenes Dataset lie, and the design of its experiment.

::

    nsddata/experiments/nsd/nsd_expdesign.mat
    nsddata/ppdata/subj01/func1pt8mm/roi/*.nii.gz
    nsddata/freesurfer/{subj01,fsaverage}/label/*.mgz.ctab
    nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session01.{nii.gz,hdf5}
    nsddata_betas/ppdata/subj01/fsaverage/betas_.../{lh,rh}.betas_session01.mgh
    nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5
    annots/COCO_73k_annots_curated.npy

Ids of pictures are counted from 1 in the design and from 0 everywhere else, here too.

References
----------
Allen et al. 2022, Nature Neuroscience 25, and the NSD data manual.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_mat import read_mat_arrays

SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
"""Sessions that each subject completed."""
DIMENSIONS = {
    1: (81, 104, 83), 2: (82, 106, 84), 3: (81, 106, 82), 4: (85, 99, 80),
    5: (79, 97, 78), 6: (85, 113, 83), 7: (78, 95, 81), 8: (80, 103, 78),
}  # fmt: skip
"""Voxels of each subject's volume at 1.8 mm; no two subjects share them."""
TRIALS = 750  # of a session
WITHHELD = 3  # sessions that were public only after the Algonauts 2023 challenge
SHARED = 1000  # pictures that every subject saw: the test set
PICTURES = 73_000
VERSION = "betas_fithrf_GLMdenoise_RR"
SPACES = ("func1pt8mm", "func1mm", "fsaverage")
HEMISPHERES = ("lh", "rh")
DESIGN = Path("nsddata/experiments/nsd/nsd_expdesign.mat")
STIMULI = Path("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
CAPTIONS = Path("annots/COCO_73k_annots_curated.npy")


def subject_number(subject: int | str) -> int:
    """1 to 8, from 1, ``"1"``, ``"01"`` or ``"subj01"``."""
    found = re.fullmatch(r"(?:subj)?0*([1-8])", str(subject).strip())
    if found is None:
        raise UsageError(f"there is no NSD subject {subject!r}; subjects are 1 to 8")
    return int(found[1])


def subject_name(subject: int | str) -> str:
    """``"subj01"``."""
    return f"subj{subject_number(subject):02d}"


def session_numbers(subject: int, sessions: int | Iterable[int] | None) -> list[int]:
    """Sessions by number: all that the subject completed, the first so many, or those listed.

    Raises
    ------
    UsageError : a session that the subject does not have, none, or one that is named twice.
    """
    most = SESSIONS[subject]
    if sessions is None:
        return list(range(1, most + 1))
    wanted = range(1, sessions + 1) if isinstance(sessions, int) else list(sessions)
    if not len(wanted) or not all(isinstance(k, int) and 1 <= k <= most for k in wanted):
        raise UsageError(
            f"sessions is {sessions!r}; {subject_name(subject)} has sessions 1 to {most}: give "
            "the number of the first ones, such as 37, or a list of them"
        )
    if len(set(wanted)) != len(wanted):
        raise UsageError(f"sessions is {sessions!r}; name each session once")
    return sorted(wanted)


def betas_folder(root: Path, subject: int, space: str, version: str) -> Path:
    """Folder of one preparation of the betas; UsageError where the space is unknown."""
    _require_space(space)
    return root / "nsddata_betas/ppdata" / subject_name(subject) / space / version


def volume_folder(root: Path, subject: int, space: str) -> Path:
    """Folder of masks in the space of a volume; ROIs are in ``roi`` below it."""
    _require_space(space)
    return root / "nsddata/ppdata" / subject_name(subject) / space


def _require_space(space: str) -> None:
    if space not in SPACES:
        raise UsageError(f"there is no space {space!r}; there are {', '.join(SPACES)}")


def label_folders(root: Path, subject: int) -> list[Path]:
    """Folders that may hold surface labels and their names, the subject's first."""
    return [root / "nsddata/freesurfer" / who / "label" for who in (subject_name(subject),
                                                                    "fsaverage")]  # fmt: skip


def session_paths(folder: Path, stem: str, surface: bool) -> tuple[Path, ...] | None:
    """Files of ``stem``, such as ``betas_session01``: two of a surface, one of a volume, or None.

    HDF5 is taken before NIfTI where both are there, as it is read without unpacking.
    """
    if surface:
        paths = tuple(folder / f"{side}.{stem}.mgh" for side in HEMISPHERES)
        return paths if all(path.is_file() for path in paths) else None
    for suffix in (".hdf5", ".nii.gz", ".nii"):
        if (folder / f"{stem}{suffix}").is_file():
            return (folder / f"{stem}{suffix}",)
    return None


def expected_names(stem: str, surface: bool) -> str:
    """For sentences: the file names that `session_paths` looks for."""
    if surface:
        return " and ".join(f"{side}.{stem}.mgh" for side in HEMISPHERES)
    return f"{stem}.hdf5 or {stem}.nii.gz"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as text.

    Examples
    --------
    >>> ranges([1, 2, 3, 7, 9, 10])
    '1 to 3, 7, 9 to 10'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


# ---------------------------------------------------------------------------------------- design


@dataclass(frozen=True, eq=False)
class Design:
    """Which picture each trial of each subject showed.

    Attributes
    ----------
    order : (30000,) int; the m-th (from 1) of the subject's 10,000 pictures, at each trial.
    pictures : (8, 10000) int; picture (from 0) that is the m-th of each subject, m from 1.
    per_run : (40, 12) int; trials in each run of each session, or None where not stated.
    """

    order: np.ndarray
    pictures: np.ndarray
    per_run: np.ndarray | None

    def shown(self, subject: int, sessions: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Picture (from 0) of each trial of these sessions, and whether it is a test picture.

        A picture is a test picture where m is at most 1000: the pictures that all subjects share.

        Raises
        ------
        DataError : the design ends before the last session.
        """
        trials = np.concatenate(
            [np.arange((session - 1) * TRIALS, session * TRIALS) for session in sessions]
        )
        if trials[-1] >= len(self.order):
            raise DataError(
                f"the design has {len(self.order)} trials; session {trials[-1] // TRIALS + 1} "
                f"ends at trial {trials[-1] + 1}: download nsd_expdesign.mat again"
            )
        m = self.order[trials]
        return self.pictures[subject - 1, m - 1], m <= SHARED

    def runs(self, session: int) -> np.ndarray:
        """Run (from 1) of each trial of a session; 1 throughout where the design does not say."""
        if self.per_run is None or session > len(self.per_run):
            return np.ones(TRIALS, dtype=np.int64)
        return np.repeat(np.arange(1, self.per_run.shape[1] + 1), self.per_run[session - 1])


def read_design(root: Path) -> Design:
    """The design of the experiment, from ``nsd_expdesign.mat``.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no MATLAB file, or fields of other shapes or with numbers out of range.
    """
    path = root / DESIGN
    fields = read_mat(path, ("masterordering", "subjectim"))
    order = _whole(path, "masterordering", fields["masterordering"]).reshape(-1)
    pictures = _whole(path, "subjectim", fields["subjectim"])
    if pictures.ndim != 2 or len(pictures) != len(SESSIONS) or order.size == 0:
        raise DataError(
            f"{path} has subjectim of shape {pictures.shape} and {order.size} trials; expected "
            "(8, 10000) and 30000: download it again"
        )
    for name, values, most in (
        ("masterordering", order, pictures.shape[1]),
        ("subjectim", pictures, PICTURES),
    ):
        if values.min() < 1 or values.max() > most:
            raise DataError(
                f"{path} has {name} from {values.min()} to {values.max()}; expected 1 to {most}: "
                "numbers in this file are counted from 1; download it again"
            )
    return Design(order, pictures - 1, _per_run(fields.get("stimpattern")))


def _per_run(pattern: Any) -> np.ndarray | None:
    if pattern is None or np.ndim(pattern) != 3:
        return None
    counts = np.asarray(pattern, dtype=np.int64).sum(axis=2)
    return counts if (counts.sum(axis=1) == TRIALS).all() else None


def _whole(path: Path, name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iuf" or not np.array_equal(values, np.floor(values)):
        raise DataError(f"{path} has {name} of type {values.dtype}; expected whole numbers")
    return values.astype(np.int64)


def read_mat(path: Path, needed: Iterable[str]) -> dict[str, Any]:
    """Fields of a MATLAB file up to version 7.2.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : another kind of file, or a field that is not in it.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; download it from NSD")
    fields: dict[str, Any] = read_mat_arrays(path)
    missing = [name for name in needed if name not in fields]
    if missing:
        there = ", ".join(name for name in fields if not name.startswith("__")) or "nothing"
        raise DataError(f"{path} has no {', '.join(missing)} but {there}; download it again")
    return fields
