"""A whole simulated study: objects, how they are split, and recordings of any subject.

Splits of the objects: ``train`` and ``test`` hold different objects of the 12 categories;
``unseen`` holds objects of 3 categories that training never meets. A held-out subject is another
``subject`` number: its own tuning and noise, the same objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np
import pandas as pd

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.simulated.objects import (
    CATEGORIES,
    HELD_OUT_CATEGORIES,
    SimulatedObject,
    make_objects,
    stimuli,
    training_arrays,
)
from neurodiff.datasets.simulated.stimulus_features import FeatureSpace, StimulusFeatures
from neurodiff.datasets.simulated.subject import (
    DEFAULT_CEILING,
    INDIVIDUAL,
    PlantedSubject,
    plant_subject,
    record,
)
from neurodiff.geometry.bank import ShapeBank, grey_views


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How much is simulated. 3,000 training objects is the size of fMRI-Objaverse (3,142)."""

    train_per_category: int = 250
    test_per_category: int = 10
    unseen_per_category: int = 8
    n_categories: int = 12


@dataclass(frozen=True)
class Study:
    """Objects with their arrays; ``split`` is aligned with ``bank.ids``.

    ``space`` gives the features of any other object, on the scale of the training objects.
    """

    seed: int
    bank: ShapeBank
    stimuli: Stimuli
    split: np.ndarray
    features: StimulusFeatures
    space: FeatureSpace
    _planted: dict = field(default_factory=dict, repr=False)

    def ids(self, split: str) -> list[str]:
        """Objects of a split: train, test or unseen."""
        return [name for name, s in zip(self.bank.ids, self.split, strict=True) if s == split]

    def subject(
        self, number: int = 1, *, ceiling: float = DEFAULT_CEILING, individual: float = INDIVIDUAL
    ) -> PlantedSubject:
        """Subject ``number`` at a median single-trial noise ceiling; see `plant_subject`."""
        key = (number, ceiling, individual)
        if key not in self._planted:
            self._planted[key] = plant_subject(
                _rows(self.features, self.split == "train"),
                subject=number,
                seed=self.seed,
                median_ceiling=ceiling,
                individual=individual,
            )
        return self._planted[key]

    def record(
        self,
        split: str,
        *,
        subject: int = 1,
        ceiling: float = DEFAULT_CEILING,
        individual: float = INDIVIDUAL,
        repeats: int = 1,
        progress: Progress = SILENT,
    ) -> Recording:
        """The subject sees the objects of a split."""
        chosen = self.split == split
        if not chosen.any():
            raise UsageError(f"no split {split!r}; there are {', '.join(sorted(set(self.split)))}")
        return record(
            self.subject(subject, ceiling=ceiling, individual=individual),
            _rows(self.features, chosen),
            self.ids(split),
            split=split,
            repeats=repeats,
            # runs of test and training trials never mix
            first_run={"train": 1, "test": 1001, "unseen": 2001}[split],
            progress=progress,
        )

    def record_others(
        self,
        bank: ShapeBank,
        *,
        split: str = "others",
        subject: int = 1,
        ceiling: float = DEFAULT_CEILING,
        repeats: int = 1,
        progress: Progress = SILENT,
    ) -> Recording:
        """The subject sees objects that are not of the study, such as scanned or modelled ones.

        Their ids must not be those of the study, whose trials would have the same noise.
        """
        same = set(bank.ids) & set(self.bank.ids)
        if same:
            raise UsageError(f"{sorted(same)[0]!r} is an object of the study; give others")
        return record(
            self.subject(subject, ceiling=ceiling),
            self.space(bank.views, bank.grid, list(bank.categories)),
            list(bank.ids),
            split=split,
            repeats=repeats,
            first_run=3001,
            progress=progress,
        )


def make_study(
    settings: StudySettings,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress = SILENT,
) -> Study:
    """Make the objects; the result does not depend on the number of ``workers``.

    More than one are new processes: a script that asks for them needs the usual
    ``if __name__ == "__main__":``.
    """
    if not 1 <= settings.n_categories <= len(CATEGORIES):
        raise UsageError(
            f"n_categories is {settings.n_categories}; there are 1 to {len(CATEGORIES)}"
        )
    n_train, n_test = settings.train_per_category, settings.test_per_category
    if n_train * settings.n_categories < 2 or min(n_test, settings.unseen_per_category) < 0:
        raise UsageError(
            f"{n_train} training, {n_test} test and {settings.unseen_per_category} unseen objects "
            "a category: there must be at least two to train on, and no count below 0"
        )
    known = CATEGORIES[: settings.n_categories]
    parts = {
        "train": make_objects(n_train, seed=seed, categories=known),
        "test": make_objects(n_test, seed=seed, categories=known, start=n_train),
        "unseen": make_objects(
            settings.unseen_per_category, seed=seed, categories=HELD_OUT_CATEGORIES
        ),
    }
    objects = [item for part in parts.values() for item in part]
    split = np.repeat(list(parts), [len(part) for part in parts.values()])
    bank = bank_from_objects(objects, seed=seed, workers=workers, progress=progress)
    train = split == "train"
    space = FeatureSpace(
        bank.views[train],
        bank.grid[train],
        [c for c, t in zip(bank.categories, train, strict=True) if t],
    )
    features = space(bank.views, bank.grid, list(bank.categories))
    return Study(seed, bank, stimuli(objects), split, features, space)


def bank_from_objects(
    objects: Sequence[SimulatedObject],
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress = SILENT,
    size: int = 60,
) -> ShapeBank:
    """Arrays with exact occupancy; each object's depend on its own id and ``seed`` only.

    ``size`` objects are a job of one worker; up to two jobs are done in this process.
    """
    if len(objects) == 0 or workers < 1:
        raise UsageError(f"{len(objects)} objects and {workers} workers: nothing to simulate")
    jobs = [(list(objects[k : k + size]), seed) for k in range(0, len(objects), size)]
    if workers > 1 and len(jobs) > 2:
        # spawned, not forked: the parent may hold threads of torch or open3d
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rows = list(progress.over(pool.map(_arrays, jobs), "simulating objects", len(jobs)))
    else:
        rows = [_arrays(job) for job in progress.over(jobs, "simulating objects")]
    surface, queries, occupied, grid, views = (np.concatenate(c) for c in zip(*rows, strict=True))
    return ShapeBank(
        tuple(item.id for item in objects),
        tuple(item.category for item in objects),
        surface,
        queries,
        occupied,
        grid,
        views,
    )


def factor_table(objects: Sequence[str], of: Stimuli) -> pd.DataFrame:
    """Planted factors of each object; NaN where its category has no such factor."""
    return of.table.set_index("id").loc[list(objects), of.factor_names]


def _arrays(job: tuple[list[SimulatedObject], int]) -> tuple[np.ndarray, ...]:
    objects, seed = job
    arrays = training_arrays(objects, seed=seed)
    views = np.stack([grey_views(item.mesh(32)) for item in objects])
    return arrays.surface, arrays.queries, arrays.occupied, arrays.grid, views


def _rows(features: StimulusFeatures, chosen: np.ndarray) -> StimulusFeatures:
    return StimulusFeatures(
        features.contrast[chosen], features.shape[chosen], features.category[chosen]
    )
