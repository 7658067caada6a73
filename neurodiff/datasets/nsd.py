"""The Natural Scenes Dataset: betas of up to 30,000 trials of pictures in each of eight people.

::

    recording, stimuli = open_dataset("nsd", root=..., subject=1, sessions=37, averaged=True)
    train, test = recording.split()          # 8,859 and 982 pictures for subject 1

A picture is a test picture where all subjects share it (1,000 of each subject's 10,000).  37
sessions are what was public before the Algonauts 2023 challenge ended, and what Brain-Diffuser
used; 40 are all.  Tables of the two are not comparable.  The betas of a picture are the plain mean
of its one to three trials, in percent signal change, without standardising sessions.

Files: `nsd_files`; masks and ROIs: `nsd_rois`; betas: `nsd_betas`; pictures: `nsd_stimuli`.

References
----------
Allen et al. 2022, Nature Neuroscience 25, 116-126.  Ozcelik & VanRullen 2023, Scientific Reports 13
(the split).  NSD's terms forbid to pass the data or its components on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.nsd_betas import BetaFile, SessionTrials, average
from neurodiff.datasets.nsd_files import (
    HEMISPHERES,
    TRIALS,
    VERSION,
    Design,
    betas_folder,
    expected_names,
    ranges,
    read_design,
    session_numbers,
    session_paths,
    subject_name,
    subject_number,
)
from neurodiff.datasets.nsd_rois import Grid, open_grid, open_rois, read_map
from neurodiff.datasets.nsd_stimuli import open_stimuli, stimulus_id

Unusable = Literal["error", "drop"]


class NSD:
    """The Natural Scenes Dataset as it is on its server; see `open`."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        sessions: int | Iterable[int] | None = None,
        space: str = "func1pt8mm",
        version: str = VERSION,
        mask: str | Path | MaskSpace = "nsdgeneral",
        averaged: bool = False,
        unusable: Unusable = "error",
    ) -> tuple[Recording, Stimuli]:
        """Recording (trials, voxels) in percent signal change, and the pictures that were shown.

        Parameters
        ----------
        root : folder with ``nsddata``, ``nsddata_betas``, ``nsddata_stimuli`` and ``annots``.
        subject : 1 to 8, or ``"subj01"``.
        sessions : the first so many, such as 37; a list; or None, all that the subject completed.
        space : ``"func1pt8mm"`` or ``"func1mm"``, a volume; or ``"fsaverage"``, a surface.
        version : folder of the betas.
        mask : name of a file in ``roi``, ``"brainmask"``, the path of a mask (above 0 is inside),
            or a `MaskSpace`.
        averaged : the trials of a picture become one, their mean; files are read one after the
            other when the recording is opened.  The column repeat then counts the trials.
            Otherwise they are read when they are indexed, and ``mean_repeats`` averages the same,
            but many sessions of a whole surface are then read again and again.
        unusable : what to do about features that are not finite in some trial, or, where
            ``averaged`` or ``"drop"`` reads all of them, do not vary: ``"error"`` or ``"drop"``.

        Raises
        ------
        UsageError : an option with a value that it does not have.
        MissingDataError : a session, the mask or the design is not there.
        DataError : broken files, or files of another subject.
        """
        if unusable not in ("error", "drop"):
            raise UsageError(f"unusable is {unusable!r}; expected 'error' or 'drop'")
        root, number = existing_root(root), subject_number(subject)
        numbers = session_numbers(number, sessions)
        grid = open_grid(root, number, space, mask)
        files = session_files(betas_folder(root, number, space, version), number, numbers, grid)
        trials = trial_table(read_design(root), number, numbers)
        name = f"NSD {subject_name(number)}, {version}, sessions {ranges(numbers)}"
        recording = Recording(
            data=SessionTrials(files),
            trials=trials,
            rois=open_rois(root, number, space, grid),
            space=grid.space,
            unit="%",
            name=name,
        )
        if averaged or unusable == "drop":
            recording = _averaged(recording, files, unusable, keep_trials=not averaged)
        return recording, open_stimuli(root, list(dict.fromkeys(trials["nsd_id"].tolist())))

    @classmethod
    def check(cls, root: str | Path, subject: int | str | None = None) -> list[Finding]:
        """What is there, missing or broken; reads every header, and one session of values."""
        from neurodiff.datasets.nsd_check import check_nsd

        return check_nsd(root, subject)

    @classmethod
    def ncsnr(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        space: str = "func1pt8mm",
        version: str = VERSION,
        mask: str | Path = "nsdgeneral",
    ) -> np.ndarray:
        """Signal over noise of single trials, float64 (features,), in the order of the recording.

        See `noise_ceiling`.  With features left out of a recording, leave them out here too.

        Raises
        ------
        MissingDataError : no such file, or no such mask.
        DataError : another shape than the mask has.
        """
        root, number = existing_root(root), subject_number(subject)
        grid = open_grid(root, number, space, mask)
        paths = ncsnr_paths(root, number, space, version)
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise MissingDataError(f"{missing[0]} does not exist; download it, or go without")
        return read_map(grid, paths)


def noise_ceiling(ncsnr: np.ndarray, repeats: Any) -> np.ndarray:
    """Share of the variance of a feature's averaged betas that any model could explain.

    Parameters
    ----------
    ncsnr : (features,); signal SD over noise SD of single trials, >= 0.
    repeats : trials averaged for each stimulus, >= 1: one number, or one for each stimulus, such as
        the column repeat of an averaged recording.

    Returns
    -------
    (features,), 0 to 1: ncsnr² / (ncsnr² + mean of 1 / repeats).

    Raises
    ------
    UsageError : ``repeats`` below 1 or ``ncsnr`` negative or not finite.

    References
    ----------
    Allen et al. 2022, Methods, there in percent.

    Examples
    --------
    >>> noise_ceiling(np.array([0.0, 1.0]), repeats=3)
    array([0.  , 0.75])
    """
    ncsnr, counts = np.asarray(ncsnr, np.float64), np.asarray(repeats, np.float64)
    if counts.size == 0 or not (counts >= 1).all():
        raise UsageError(f"repeats is {repeats!r}; give 1 or more trials for each stimulus")
    if not np.isfinite(ncsnr).all() or (ncsnr < 0).any():
        raise UsageError("ncsnr has values that are negative or not finite; leave them out first")
    signal = ncsnr**2
    return signal / (signal + np.mean(1 / counts))


# ------------------------------------------------------------------------------------- its parts


def existing_root(root: str | Path) -> Path:
    """The folder; MissingDataError where there is none."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the folder that holds nsddata")
    return root


def session_files(folder: Path, subject: int, sessions: list[int], grid: Grid) -> list[BetaFile]:
    """The files of these sessions, headers compared with the mask.

    Raises
    ------
    MissingDataError : sessions without files, by number.
    DataError : headers that do not fit.
    """
    surface = grid.affine is None
    found = {number: session_paths(folder, session_stem(number), surface) for number in sessions}
    missing = [number for number, paths in found.items() if paths is None]
    if missing:
        raise MissingDataError(_missing_sentence(folder, subject, sessions, missing, surface))
    files = [BetaFile(paths, grid.masks, TRIALS, grid.affine) for paths in found.values() if paths]
    for file in files:
        file.check()
    return files


def session_stem(number: int) -> str:
    """Name of a session's file, without its ending."""
    return f"betas_session{number:02d}"


def trial_table(design: Design, subject: int, sessions: list[int]) -> pd.DataFrame:
    """The trials of these sessions, in order; column trial counts from 0 over all sessions."""
    shown, is_test = design.shown(subject, sessions)
    return pd.DataFrame(
        {
            "subject": subject_name(subject),
            "session": np.repeat(sessions, TRIALS),
            "run": np.concatenate([design.runs(number) for number in sessions]),
            "stimulus": [stimulus_id(number) for number in shown.tolist()],
            "split": np.where(is_test, "test", "train"),
            "trial": np.concatenate([np.arange(TRIALS) + (k - 1) * TRIALS for k in sessions]),
            "nsd_id": shown,
        }
    )


def ncsnr_paths(root: Path, subject: int, space: str, version: str) -> tuple[Path, ...]:
    """Files of the signal's SD over the noise's: one a hemisphere on the surface, else one."""
    folder = betas_folder(root, subject, space, version)
    if space == "fsaverage":
        return tuple(folder / f"{side}.ncsnr.mgh" for side in HEMISPHERES)
    return (folder / "ncsnr.nii.gz",)


def _missing_sentence(
    folder: Path, subject: int, sessions: list[int], missing: list[int], surface: bool
) -> str:
    there = [number for number in sessions if number not in missing]
    first = expected_names(session_stem(missing[0]), surface)
    sentence = (
        f"{len(missing)} of {len(sessions)} sessions of {subject_name(subject)} are missing "
        f"({ranges(missing)}): {folder} has no {first}"
    )
    if there == list(range(1, len(there) + 1)) and there:
        return f"{sentence}; download them, or pass sessions={len(there)} to work on the first ones"
    if there:
        return f"{sentence}; download them, or pass a list of the others as sessions"
    others = sorted(path.name for path in folder.parent.glob("*betas*") if path.is_dir())
    return f"{sentence}; download them. There is {', '.join(others) or 'no folder of betas'} beside"


def _averaged(
    recording: Recording, files: list[BetaFile], unusable: str, *, keep_trials: bool
) -> Recording:
    """Means of each picture, and features without use refused or dropped."""
    keys = recording.trials["nsd_id"].to_numpy()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))  # pictures in order of first presentation
    found = average(files, place[group], len(first))
    bad = found.missing | found.constant
    if bad.any() and unusable == "error":
        raise DataError(
            f"{recording.name}: {int(found.missing.sum())} of {len(bad)} features hold NaN in some "
            f"trial and {int(found.constant.sum())} never vary, first feature "
            f"{int(np.flatnonzero(bad)[0])}; pass unusable='drop' to leave them out"
        )
    if bad.all():
        raise DataError(f"{recording.name}: no feature of the mask varies; check the betas")
    if keep_trials:
        kept = [file.restricted(~bad) for file in files]
        recording, data = recording.select_features(~bad), SessionTrials(kept)
    else:
        table = recording.trials.iloc[np.sort(first)].copy()
        table["repeat"] = found.counts
        recording = Recording(
            found.means, table, recording.rois, recording.space, "%", False, recording.name
        )
        recording = recording.select_features(~bad) if bad.any() else recording
        data = recording.data
    left_out = f" ({int(bad.sum())} of {len(bad)} features left out)" if bad.any() else ""
    return replace(recording, data=data, name=recording.name + left_out)
