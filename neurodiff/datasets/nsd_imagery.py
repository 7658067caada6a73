"""NSD-Imagery: the people of NSD see, or imagine, 18 cued targets; a test out of distribution.

::

    nsddata/bdata/nsdimagery/nsdimagery_subj01_<run>.tsv      48 rows; TRIAL, CONDITION, CUE, ...
    nsddata/experiments/nsdimagery/rawtargetimages/{setA,setB}/*.png
    nsddata_betas/ppdata/subj01/func1pt8mm/nsdimagerybetas_fithrf_GLMdenoise_RR/
        betas_nsdimagery.{nii.gz,hdf5}                        720 betas, int16

Twelve runs, in the order of `RUNS`.  A run shows six targets, eight times each: bars and crosses
(set A), photographs (set B) or concepts (set C, without pictures), each called by the letter of its
cue.  A trial of a vision or imagery run has one beta; one of an attention run has two, which are
left out here.  In half of the trials of a vision run the cue is that of another target: what was
seen is CONDITION, not CUE.

References
----------
Kneeland et al. 2025, CVPR, and the NSD data manual, "Functional data (nsdimagery)".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.recording import Recording
from neurodiff.core.safe_images import open_picture
from neurodiff.core.safe_io import read_csv
from neurodiff.core.spaces import MaskSpace
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.nsd import existing_root
from neurodiff.datasets.nsd_extra import check_sessions, open_session
from neurodiff.datasets.nsd_files import VERSION, subject_name, subject_number

RUNS = (
    "visA", "attA", "imgA_1", "visB", "attB", "imgB_1", "visC", "attC", "imgC_1",
    "imgA_2", "imgB_2", "imgC_2",
)  # fmt: skip
TASKS = {"vis": "vision", "img": "imagery", "att": "attention"}
SETS = {"A": "simple", "B": "natural", "C": "concept"}
LETTERS = {"A": "HRVLPE", "B": "WKBCDT", "C": "SZMYNF"}
TRIALS = 48  # of a run
BETAS = 720  # of the session: 9 runs of 48, 3 of 96
TARGETS = {
    "H": "bar_000.0deg", "R": "bar_045.0deg", "V": "bar_090.0deg", "L": "bar_135.0deg",
    "P": "crs_000.0deg", "E": "crs_045.0deg",
    "W": "shared0385", "K": "shared0413", "B": "shared0741", "C": "shared0842", "D": "shared0907",
}  # fmt: skip
"""How the file of a target begins; the one that is left over in set B is T."""
BEHAVIOUR = Path("nsddata/bdata/nsdimagery")
PICTURES = Path("nsddata/experiments/nsdimagery/rawtargetimages")


class NSDImagery:
    """NSD-Imagery; see `open`."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        task: Literal["vision", "imagery"] = "vision",
        sets: str = "AB",
        space: str = "func1pt8mm",
        version: str = VERSION,
        mask: str | Path | MaskSpace = "nsdgeneral",
    ) -> tuple[Recording, Stimuli]:
        """Recording (trials, voxels) in percent signal change, all of it split ``"test"``.

        Eight trials of each target that was seen, sixteen of each that was imagined;
        ``mean_repeats`` averages them.

        Parameters
        ----------
        root, subject, space, mask : as in `NSD.open`.
        task : what the subject did.
        sets : letters of the sets: A bars and crosses, B photographs, C concepts (no pictures).
        version : of the betas, without the ``nsdimagery`` before it.

        Raises
        ------
        UsageError : a task or set that there is not.
        MissingDataError : no betas, mask or table of a run.
        DataError : broken files, or files of another subject.
        """
        root, number = existing_root(root), subject_number(subject)
        if task not in ("vision", "imagery"):
            raise UsageError(f"there is no task {task!r}; there are vision, imagery")
        if not sets or not set(sets) <= set(SETS):
            raise UsageError(f"sets is {sets!r}; give some of the letters A, B, C")
        trials = trial_table(root, number, task, sets)
        whole = open_session(
            root, number, "nsdimagery", pd.DataFrame(index=range(BETAS)),
            space=space, version=version, mask=mask,
        )  # fmt: skip
        chosen = whole.select(trials["beta"].to_numpy())
        recording = Recording(
            chosen.data, trials, chosen.rois, chosen.space, "%", False, f"{whole.name}, {task}"
        )
        table = trials.drop_duplicates("stimulus")[["stimulus", "category"]]
        table = table.rename(columns={"stimulus": "id"})
        return recording, Stimuli(table, None, _loader(root))

    @classmethod
    def check(cls, root: str | Path, subject: int | str | None = None) -> list[Finding]:
        """Whether what was seen of one subject, or of all, can be opened, with every picture."""
        number = None if subject is None else subject_number(subject)
        return check_sessions("NSD-Imagery", "nsdimagery", Path(root), number, cls.open)


def blocks() -> dict[str, range]:
    """Betas of each run, as the manual counts them: two a trial of an attention run.

    Examples
    --------
    >>> blocks()["imgA_1"]
    range(144, 192)
    """
    found, start = {}, 0
    for run in RUNS:
        stop = start + TRIALS * (2 if run.startswith("att") else 1)
        found[run], start = range(start, stop), stop
    return found


def trial_table(root: Path, subject: int, task: str, sets: str) -> pd.DataFrame:
    """Trials of a task, in order; column beta is the place in the file of betas, from 0.

    Raises
    ------
    MissingDataError : the table of a run is not there.
    DataError : other trials than 1 to 48, or a target that the set does not have.
    """
    parts = []
    for number, (run, betas) in enumerate(blocks().items(), start=1):
        if TASKS[run[:3]] != task or run[3] not in sets:
            continue
        path = root / BEHAVIOUR / f"nsdimagery_{subject_name(subject)}_{run}.tsv"
        table = read_csv(
            path, columns=("TRIAL", "CONDITION"), dtype={"CONDITION": str}, separator="\t",
            missing_words=False,
        ).sort_values("TRIAL")  # fmt: skip
        if table["TRIAL"].tolist() != list(range(1, TRIALS + 1)):
            raise DataError(f"{path} has {len(table)} trials; expected each of 1 to {TRIALS} once")
        letters = [str(value).strip() for value in table["CONDITION"]]
        strange = sorted(set(letters) - set(LETTERS[run[3]]))
        if strange:
            raise DataError(
                f"{path} has the condition {strange[0]!r}; set {run[3]} has "
                f"{', '.join(LETTERS[run[3]])}.{suggest(strange[0], LETTERS[run[3]])}"
            )
        parts.append(
            pd.DataFrame(
                {
                    "subject": subject_name(subject),
                    "run": number,
                    "stimulus": [f"imagery-{letter}" for letter in letters],
                    "split": "test",
                    "task": task,
                    "category": SETS[run[3]],
                    "beta": np.asarray(betas),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _loader(root: Path) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        return open_picture(target_path(root, name.split("-")[-1]))

    return load


def target_path(root: Path, letter: str) -> Path:
    """Picture of a target of set A or B.

    Raises
    ------
    MissingDataError : set C, which has none, or a file that is not there.
    """
    group = next((name for name, letters in LETTERS.items() if letter in letters), None)
    folder = root / PICTURES / f"set{group}"
    files = sorted(folder.glob("*.png"))
    begin = TARGETS.get(letter)
    if begin is None:
        others = tuple(TARGETS[one] for one in LETTERS.get(group or "", "") if one in TARGETS)
        found = [path for path in files if not path.name.startswith(others)] if others else []
    else:
        found = [path for path in files if path.name.startswith(begin)]
    if len(found) != 1:
        raise MissingDataError(
            f"the target {letter} has {len(found)} pictures in {folder}; "
            + ("concepts have none" if group == "C" else "download rawtargetimages of NSD-Imagery")
        )
    return found[0]
