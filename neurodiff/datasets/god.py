"""Generic Object Decoding: pictures of 200 categories, 50 of them only ever tested.

::

    Subject1.h5 ... Subject5.h5            BData: voxels, ROI_*, DataType, stimulus_id, ...
    images/training/n01518878_5958.JPEG    if you have them
    images/test/n01443537_22563.JPEG

Training shows 1,200 pictures of 150 categories once, the test 50 pictures of 50 other categories
35 times each, and these are imagined as well.  No category of the test is in training: the clean
zero-shot test that NSD's shared pictures are not.

References
----------
Horikawa & Kamitani 2017, Nature Communications 8:15037.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.recording import Recording
from neurodiff.core.safe_images import open_picture
from neurodiff.core.safe_io import require_finite
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.bdata import BData
from neurodiff.datasets.findings import Finding

SPLITS = {1: "train", 2: "test", 3: "imagery"}
TRAINING, TESTED, REPEATS = 1200, 50, 35
STIMULUS_KEYS = ("stimulus_name", "stimulus_id", "Label")
"""Where a trial says what was shown, newest first."""
_SUFFIXES = (".JPEG", ".jpeg", ".jpg", ".png")


class GOD:
    """Generic Object Decoding; see `open`."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        roi: str = "VC",
        imagery: bool = False,
    ) -> tuple[Recording, Stimuli]:
        """Recording (trials, voxels) as stored, and the stimuli, whose category is their synset.

        Parameters
        ----------
        root : folder with ``Subject1.h5`` and so on.
        subject : 1 to 5.
        roi : region whose voxels are the features, such as ``"VC"``; every other is in the ROIs.
        imagery : whether trials of imagery are kept, as the split ``"imagery"``.

        Raises
        ------
        UsageError : a region that the file does not have.
        MissingDataError : no file of this subject.
        DataError : a broken file, unknown kinds of trials, or values that are not finite.
        """
        path = subject_path(Path(root), subject)
        data = BData.open(path)
        regions = {key[4:]: data.columns(key) for key in data.metadata if key.startswith("ROI_")}
        if roi not in regions:
            raise UsageError(
                f"{path} has no region {roi!r}; it has {', '.join(regions) or 'none'}."
                f"{suggest(roi, regions)}"
            )
        columns = regions[roi]
        kinds = data.column("DataType")
        strange = sorted(set(kinds.tolist()) - set(SPLITS))
        if strange:
            raise DataError(f"{path} has trials of type {strange[0]:g}; expected 1, 2 and 3")
        rows = np.flatnonzero(kinds <= (3 if imagery else 2))
        values = data.table[np.ix_(rows, np.flatnonzero(columns))].astype(np.float32)
        require_finite(values, f"{roi} of {path}")
        names = stimulus_names(data)
        trials = pd.DataFrame(
            {
                "subject": f"sub-{subject_number(subject):02d}",
                "stimulus": [names[row] for row in rows],
                "split": [SPLITS[int(kind)] for kind in kinds[rows]],
            }
        )
        for column in ("Session", "Run"):
            if column in data.metadata and data.columns(column).sum() == 1:
                trials[column.lower()] = data.column(column)[rows].astype(int)
        recording = Recording(
            data=values,
            trials=trials,
            rois={name: mask[columns] for name, mask in regions.items()},
            space=None,
            unit="a.u.",
            name=f"GOD subject {subject_number(subject)}, {roi}",
        )
        ids = list(dict.fromkeys(trials["stimulus"]))
        table = pd.DataFrame({"id": ids, "category": [name.split("_")[0] for name in ids]})
        return recording, Stimuli(table, None, _loader(Path(root)))

    @classmethod
    def check(cls, root: str | Path, subject: int | str | None = None) -> list[Finding]:
        """What is missing or broken, of one subject or of all; reads every file."""
        return check_god(root, subject)


def subject_number(subject: int | str) -> int:
    """1 to 5, from 1, ``"1"``, ``"Subject1"`` or ``"sub-01"``."""
    text = str(subject).strip().lower()
    for begin in ("subject", "sub-"):
        text = text.removeprefix(begin)
    if not text.isdigit() or not 1 <= int(text) <= 5:
        raise UsageError(f"there is no GOD subject {subject!r}; subjects are 1 to 5")
    return int(text)


def subject_path(root: Path, subject: int | str) -> Path:
    """``Subject1.h5`` below ``root``; MissingDataError names those that are there."""
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the folder that holds Subject1.h5")
    path = root / f"Subject{subject_number(subject)}.h5"
    if not path.is_file():
        there = ", ".join(sorted(one.name for one in root.glob("Subject*"))) or "no subject"
        raise MissingDataError(
            f"{path} is missing; below {root} there is {there}: download the .h5"
        )
    return path


def stimulus_names(data: BData) -> list[str]:
    """``"n01518878_5958"`` of each trial, or the synset alone where a category was imagined.

    Files have a name, or a number whose whole part is the synset and whose six decimals are the
    picture.

    Raises
    ------
    DataError : none of `STIMULUS_KEYS`.
    """
    for key in STIMULUS_KEYS:
        if key not in data.metadata:
            continue
        if key in data.labels:
            return [Path(name).stem for name in data.names(key)]
        if key != "stimulus_name":
            return [synset_picture(number) for number in data.column(key).tolist()]
    raise DataError(
        f"{data.path} has none of {', '.join(STIMULUS_KEYS)}; it does not say what was shown"
    )


def synset_picture(number: float) -> str:
    """Name behind a number.

    Examples
    --------
    >>> synset_picture(1443537.022563), synset_picture(1443537.0)
    ('n01443537_22563', 'n01443537')
    """
    if not np.isfinite(number) or number < 0:
        raise DataError(
            f"a trial shows stimulus {number}; expected a number such as 1443537.022563"
        )
    synset, picture = f"{number:.6f}".split(".")
    return f"n{int(synset):08d}" + (f"_{int(picture)}" if int(picture) else "")


def _loader(root: Path) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        for folder in ("training", "test"):
            for suffix in _SUFFIXES:
                path = root / "images" / folder / f"{name}{suffix}"
                if path.is_file():
                    return open_picture(path)
        raise MissingDataError(
            f"{root / 'images' / 'training' / f'{name}.JPEG'} is missing, and so in images/test; "
            "the pictures are given out on request by the laboratory"
        )

    return load


def check_god(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """Findings of one subject, or of all that are there."""
    root = Path(root)
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    there = sorted(root.glob("Subject[1-5].h5"))
    numbers: list[int | str] = [int(path.stem[-1]) for path in there]
    if subject is not None:
        numbers = [subject]
    if not numbers:
        return [Finding.missing("subject", root, "no Subject1.h5 or so", "download a subject")]
    findings = []
    for number in numbers:
        what = f"subject {number}"
        try:
            recording, stimuli = GOD.open(root, number, imagery=True)
        except MissingDataError as error:
            findings.append(Finding.missing(what, root, str(error), "download it again"))
        except (DataError, UsageError) as error:
            findings.append(Finding.broken(what, root, str(error), "download it again"))
        else:
            findings += _judged(what, root, recording, stimuli)
    return findings


def _judged(what: str, root: Path, recording: Recording, stimuli: Stimuli) -> list[Finding]:
    trials = recording.trials
    shown = {split: trials[trials["split"] == split] for split in SPLITS.values()}
    text = ", ".join(f"{len(rows)} {split}" for split, rows in shown.items())
    findings = [Finding.fine(what, root, f"{text} trials of {recording.n_features} voxels")]
    counts = shown["test"]["stimulus"].value_counts()
    if len(shown["train"]) != TRAINING or len(counts) != TESTED or set(counts) != {REPEATS}:
        text = (
            f"{len(shown['train'])} training trials and {len(counts)} tested pictures; expected "
            f"{TRAINING}, and {TESTED} shown {REPEATS} times each"
        )
        findings.append(Finding.broken(f"{what} trials", root, text, "download it again"))
    categories = {
        split: {name.split("_")[0] for name in rows["stimulus"]} for split, rows in shown.items()
    }
    both = sorted(categories["train"] & categories["test"])
    if both:
        text = f"{len(both)} categories are in training and in test, first {both[0]}"
        findings.append(Finding.broken(f"{what} split", root, text, "download it again"))
    if not (root / "images").is_dir():
        text = "no folder images; responses can be decoded, but not compared with pictures"
        findings.append(
            Finding.note(f"{what} pictures", root, text + " (ask the laboratory for them)")
        )
    else:
        seen = trials[trials["split"] != "imagery"]["stimulus"].unique()
        missing = [name for name in seen if not _has_picture(root, name)]
        if missing:
            text = f"{len(missing)} of {len(seen)} pictures, first {missing[0]}"
            to_do = "ask the laboratory for them"
            findings.append(Finding.missing(f"{what} pictures", root, text, to_do))
    return findings


def _has_picture(root: Path, name: str) -> bool:
    return any(
        (root / "images" / folder / f"{name}{suffix}").is_file()
        for folder in ("training", "test")
        for suffix in _SUFFIXES
    )
