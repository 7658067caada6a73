"""NSD-synthetic: the people of NSD look at 284 artificial pictures; a test out of distribution.

::

    nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat       masterordering (744,), from 1
    nsddata_betas/ppdata/subj01/func1pt8mm/nsdsyntheticbetas_fithrf_GLMdenoise_RR/
        betas_nsdsynthetic.{nii.gz,hdf5}                              744 trials, int16
    nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_stimuli.hdf5    imgBrick (220, h, w, 3)
    nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_colorstimuli_subj01.hdf5    imgBrick (64, ...)

One session of 8 runs of 93 trials, in turns a task at fixation and a one-back memory task; in ten
trials of each run a picture is shown twice in a row.  The last 64 pictures are each subject's own.

References
----------
Gifford et al. 2025, arXiv 2503.06286, and the NSD data manual, "Functional data (nsdsynthetic)".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.nsd import existing_root
from neurodiff.datasets.nsd_extra import check_sessions, open_session
from neurodiff.datasets.nsd_files import VERSION, read_mat, subject_name, subject_number
from neurodiff.datasets.nsd_stimuli import read_picture

PICTURES, SHARED, TRIALS, RUNS = 284, 220, 744, 8
DESIGN = Path("nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat")
FOLDER = Path("nsddata_stimuli/stimuli/nsdsynthetic")
TASKS = ("fixation", "memory")


class NSDSynthetic:
    """NSD-synthetic; see `open`."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        task: Literal["fixation", "memory"] | None = None,
        space: str = "func1pt8mm",
        version: str = VERSION,
        mask: str | Path | MaskSpace = "nsdgeneral",
        square_root: bool = False,
    ) -> tuple[Recording, Stimuli]:
        """Recording (trials, voxels) in percent signal change, all of it split ``"test"``.

        Parameters
        ----------
        root, subject, space, mask : as in `NSD.open`.
        task : trials of one task only.
        version : of the betas, without the ``nsdsynthetic`` before it.
        square_root : whether pictures are brought from the linear light of the experiment's
            display to ordinary pixel values by 255 sqrt(x / 255), as public code does before it
            shows them to a network; False gives what is in the file.

        Raises
        ------
        UsageError : a task that there is not.
        MissingDataError : no betas, mask or design.
        DataError : broken files, or files of another subject.
        """
        root, number = existing_root(root), subject_number(subject)
        if task not in (None, *TASKS):
            raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
        trials = trial_table(root, number)
        recording = open_session(
            root, number, "nsdsynthetic", trials, space=space, version=version, mask=mask
        )
        if task is not None:
            recording = recording.select((trials["task"] == task).to_numpy())
        shown = sorted(set(recording.trials["stimulus"]))
        return recording, Stimuli(
            pd.DataFrame({"id": shown}), None, lambda name: _picture(root, name, square_root)
        )

    @classmethod
    def check(cls, root: str | Path, subject: int | str | None = None) -> list[Finding]:
        """Whether the session of one subject, or of all, can be opened, with every picture."""
        number = None if subject is None else subject_number(subject)
        return check_sessions("NSD-synthetic", "nsdsynthetic", Path(root), number, cls.open)


def stimulus_id(number: int, subject: int) -> str:
    """``"synthetic-017"``, counted from 0; the subject's own are ``"synthetic-230-subj01"``."""
    own = "" if number < SHARED else f"-{subject_name(subject)}"
    return f"synthetic-{number:03d}{own}"


def trial_table(root: Path, subject: int) -> pd.DataFrame:
    """The 744 trials; one_back is a trial with the same picture as the one before it.

    Raises
    ------
    MissingDataError : no design.
    DataError : other numbers of trials or pictures.
    """
    path = root / DESIGN
    order = np.asarray(read_mat(path, ("masterordering",))["masterordering"]).reshape(-1)
    if order.size != TRIALS or order.dtype.kind not in "iuf":
        raise DataError(f"{path} has {order.size} trials; expected {TRIALS}: download it again")
    if order.min() < 1 or order.max() > PICTURES or not np.array_equal(order, np.floor(order)):
        raise DataError(
            f"{path} has pictures {order.min()} to {order.max()}; expected whole numbers from 1 to "
            f"{PICTURES}: download it again"
        )
    numbers = order.astype(np.int64) - 1
    run = np.repeat(np.arange(1, RUNS + 1), TRIALS // RUNS)
    again = np.zeros(TRIALS, dtype=bool)
    again[1:] = (numbers[1:] == numbers[:-1]) & (run[1:] == run[:-1])
    return pd.DataFrame(
        {
            "subject": subject_name(subject),
            "run": run,
            "stimulus": [stimulus_id(number, subject) for number in numbers.tolist()],
            "split": "test",
            "task": np.where(run % 2 == 1, *TASKS),
            "one_back": again,
        }
    )


def _picture(root: Path, name: str, square_root: bool) -> Any:
    import PIL.Image

    _, number, *owner = name.split("-")
    if owner:
        path = root / FOLDER / f"nsdsynthetic_colorstimuli_{owner[0]}.hdf5"
        image = read_picture(path, int(number) - SHARED)
    else:
        image = read_picture(root / FOLDER / "nsdsynthetic_stimuli.hdf5", int(number))
    if not square_root:
        return image
    values = np.sqrt(np.asarray(image) / 255.0) * 255.0
    return PIL.Image.fromarray(values.astype(np.uint8))
