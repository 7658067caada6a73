"""What NSD's two additional sessions have in common: one file of betas, NSD's masks and ROIs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from neurodiff.core.errors import MissingDataError, NeurodiffError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.nsd_betas import BetaFile, SessionTrials
from neurodiff.datasets.nsd_files import betas_folder, expected_names, session_paths, subject_name
from neurodiff.datasets.nsd_rois import open_grid, open_rois


def open_session(
    root: Path,
    subject: int,
    experiment: str,
    trials: pd.DataFrame,
    *,
    space: str,
    version: str,
    mask: str | Path | MaskSpace,
) -> Recording:
    """Recording of all trials of one additional session, in percent signal change.

    Parameters
    ----------
    experiment : ``"nsdsynthetic"`` or ``"nsdimagery"``; the folder of betas is its name and
        ``version``, the file ``betas_`` and its name.
    trials : one row for each beta of the file.

    Raises
    ------
    MissingDataError : no betas, or no mask.
    DataError : files that do not fit.
    """
    grid = open_grid(root, subject, space, mask)
    folder = betas_folder(root, subject, space, f"{experiment}{version}")
    surface, stem = space == "fsaverage", f"betas_{experiment}"
    paths = session_paths(folder, stem, surface)
    if paths is None:
        others = sorted(path.name for path in folder.parent.glob(f"{experiment}betas*"))
        raise MissingDataError(
            f"{folder} has no {expected_names(stem, surface)}; download them. There is "
            f"{', '.join(others) or 'no betas of this session'} beside"
        )
    file = BetaFile(paths, grid.masks, len(trials), grid.affine)
    file.check()
    return Recording(
        data=SessionTrials([file]),
        trials=trials,
        rois=open_rois(root, subject, space, grid),
        space=grid.space,
        unit="%",
        name=f"{experiment} {subject_name(subject)}, {version}",
    )


def check_session(what: str, root: Path, subject: int, opener: object) -> list[Finding]:
    """Whether the session opens and its first and last trial can be read; and its pictures."""
    name = f"{subject_name(subject)} {what}"
    try:
        recording, stimuli = opener(root, subject)  # type: ignore[operator]
        recording.data[[0, -1]]
    except MissingDataError as error:
        return [Finding.missing(name, root, str(error), "download it from NSD")]
    except NeurodiffError as error:
        return [Finding.broken(name, root, str(error), "download it from NSD again")]
    text = f"{recording.n_trials} trials of {len(stimuli)} stimuli, {recording.n_features} voxels"
    findings = [Finding.fine(name, root, text)]
    for stimulus in stimuli.ids:
        try:
            stimuli[stimulus].image()
        except NeurodiffError as error:
            make = Finding.missing if isinstance(error, MissingDataError) else Finding.broken
            findings.append(make(f"{name} pictures", root, str(error), "download it from NSD"))
            break
    return findings


def check_sessions(
    what: str, experiment: str, root: Path, subject: int | None, opener: object
) -> list[Finding]:
    """As `check_session`, of one subject or of all that have betas of the experiment."""
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    found = root.glob(f"nsddata_betas/ppdata/subj0[1-8]/*/{experiment}betas*")
    numbers = sorted({int(path.parts[-3][-2:]) for path in found})
    if subject is not None:
        numbers = [subject]
    if not numbers:
        text = f"no betas of {what} of any subject"
        return [Finding.missing("subject", root, text, "download a subject")]
    return [row for number in numbers for row in check_session(what, root, number, opener)]
