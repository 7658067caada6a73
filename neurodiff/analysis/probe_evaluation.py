"""One question asked of every set of features: folds, designs, chance, scores and differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from neurodiff.analysis.probe_folds import (
    ADJUSTED,
    BOTH,
    COVARIATES_ONLY,
    FEATURES,
    FoldFeatures,
    cross_predicted,
)
from neurodiff.analysis.probe_intervals import Samples, Scored, interval, samples, scored
from neurodiff.analysis.probe_tasks import FIRST, TaskScans
from neurodiff.bridges.probes import group_folds
from neurodiff.core.progress import Progress
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.probe_scores import LOWER_IS_BETTER

SUBJECTS, SITES = "subjects", "sites"
SHUFFLED, CONSTANT_CLASS, CONSTANT_NUMBER = "shuffled labels", "majority class", "mean"
CHANCE = (CONSTANT_CLASS, CONSTANT_NUMBER, SHUFFLED)
SHUFFLES = 3
SITE_FOLDS = 10  # at most; more sites are left out several at a time


DIFFERENCE = [
    "task", "folds", "per", "metric", "a", "b", "value", "low", "high", "scans", "subjects",
]  # fmt: skip


class TaskEvaluation:
    """One task: predictions of every set and design, their scores, and differences."""

    def __init__(
        self,
        data: TaskScans,
        folds: int,
        repeats: int,
        seed: int,
        bootstrap: int,
        progress: Progress,
    ) -> None:
        self.data, self.seed, self.bootstrap, self.progress = data, seed, bootstrap, progress
        self.repeats = repeats
        self.count = folds
        if data.task.kind == "class":
            self.count = min(folds, data.of_class(True), data.of_class(False))
        self.count = min(self.count, len(np.unique(data.subjects)))
        self.notes: list[str] = []
        if self.count < folds:
            self.notes.append(f"{data.task.name}: {self.count} folds, for want of subjects")
        self.rows: list[dict] = []
        self.differences: list[dict] = []
        self.predictions: list[pd.DataFrame] = []
        self.known: dict[tuple[str, str, str], np.ndarray] = {}
        self.scored: dict[tuple[str, str, str, str], Scored] = {}

    def run(self, features: Mapping[str, np.ndarray | FoldFeatures]) -> None:
        data = self.data
        plans = [self.fold_plan(data.strata, f"repeat {r}") for r in range(self.repeats)]
        covariates = len(data.covariates.columns) > 0
        steps: list[tuple[str, str, str]] = [(name, FEATURES, SUBJECTS) for name in features]
        probed = [n for n, f in features.items() if not getattr(f, "predicts", False)]
        if covariates:
            steps.append((", ".join(data.covariates.columns), COVARIATES_ONLY, SUBJECTS))
            steps += [(name, design, SUBJECTS) for design in (ADJUSTED, BOTH) for name in probed]
        if data.task.site_folds and data.sites is not None:
            steps += [(name, FEATURES, SITES) for name in probed]
            self.site_notes()
        for done, (name, design, by) in enumerate(steps):
            folds = plans if by == SUBJECTS else [self.site_plan()]
            values = [
                cross_predicted(
                    features.get(name) if design != COVARIATES_ONLY else None,
                    data,
                    fold,
                    design=design,
                    seed=self.seed,
                )
                for fold in folds
            ]
            self.keep(name, design, by, np.stack(values), folds)
            self.progress.update(done + 1, len(steps), name)
        self.chance(next(iter(features)), next(iter(features.values())))
        self.compare(list(features), probed, covariates)

    # ------------------------------------------------------------------------------- folds

    def fold_plan(self, strata: np.ndarray, stage: str) -> np.ndarray:
        return group_folds(
            self.data.subjects,
            strata,
            self.count,
            seed=self.seed,
            stage=f"probe {self.data.task.name} {stage}",
        )

    def site_plan(self) -> np.ndarray:
        assert self.data.sites is not None
        codes = np.unique(self.data.sites, return_inverse=True)[1]
        if codes.max() < SITE_FOLDS:
            return codes
        return group_folds(
            self.data.sites, self.data.strata, SITE_FOLDS, seed=self.seed, stage="sites"
        )

    def site_notes(self) -> None:
        data = self.data
        count = len(np.unique(data.sites))
        if count > SITE_FOLDS:
            self.notes.append(
                f"{data.task.name}: {count} sites are left out in {SITE_FOLDS} sets of whole sites"
            )
        parted = sum(
            len(set(data.sites[data.subjects == name])) > 1 for name in np.unique(data.subjects)
        )
        if parted:
            self.notes.append(
                f"{data.task.name}: {parted} subjects were scanned at several sites; while one of "
                "these is left out, none of their scans is trained on"
            )

    # ------------------------------------------------------------------------------- results

    def keep(
        self,
        name: str,
        design: str,
        by: str,
        scores: np.ndarray,
        folds: list[np.ndarray],
    ) -> None:
        """Predictions (repeats, m) into the tables."""
        data = self.data
        for repeat, (values, fold) in enumerate(zip(scores, folds, strict=True)):
            there = np.isfinite(values)
            self.predictions.append(
                pd.DataFrame(
                    {
                        "task": data.task.name,
                        "features": name,
                        "design": design,
                        "folds": by,
                        "repeat": repeat,
                        "scan": data.scans[there],
                        "subject": data.subjects[there],
                        "fold": fold[there],
                        "truth": data.truth[there].astype(np.float64),
                        "prediction": values[there],
                    }
                )
            )
        there = np.isfinite(scores).all(axis=0)
        if not there.any():
            self.notes.append(f"{data.task.name}: {name} ({design}, {by}) predicts nothing")
            return
        if not there.all():
            self.notes.append(
                f"{data.task.name}: {name} ({design}, {by}) predicts {int(there.sum())} of "
                f"{len(data)} scans"
            )
        self.known[name, design, by] = scores
        for per in self.samples_of():
            these = samples(data, scores, per)
            if len(these.truth) >= 2:
                self.scored[name, design, by, per] = self.add(name, design, by, per, these)

    def samples_of(self) -> tuple[str, ...]:
        """Ways to count; one of them where every subject has one scan."""
        per = self.data.task.per
        return per if not self.data.first.all() or len(per) == 1 else (FIRST,)

    def add(self, name: str, design: str, by: str, per: str, these: Samples) -> Scored:
        result = scored(these, bootstrap=self.bootstrap, seed=self.seed)
        for metric, value in result.value.items():
            low, high = interval(result.resampled[metric])
            self.rows.append(
                {
                    "task": self.data.task.name,
                    "features": name,
                    "design": design,
                    "folds": by,
                    "per": per,
                    "metric": metric,
                    "value": value,
                    "low": low,
                    "high": high,
                    "scans": len(these.truth),
                    "subjects": these.people,
                    "positive": int(these.truth.sum()) if these.kind == "class" else 0,
                    "higher_is_better": metric not in LOWER_IS_BETTER,
                }
            )
        return result

    def chance(self, name: str, feature: np.ndarray | FoldFeatures) -> None:
        """A constant, and the first features with labels that belong to other subjects."""
        data = self.data
        label = CONSTANT_CLASS if data.task.kind == "class" else CONSTANT_NUMBER
        for per in self.samples_of():
            these = samples(data, np.zeros((1, len(data))), per)
            constant = np.full((1, len(these.truth)), float(these.truth.mean()))
            self.add(label, "chance", SUBJECTS, per, replace(these, scores=constant))
        everything = []
        for number in range(SHUFFLES):
            truth = shuffled(data, item_seed(self.seed, subject="", stimulus=f"{number}"))
            strata = truth.astype(int) if data.task.kind == "class" else data.strata
            fold = self.fold_plan(strata, f"shuffle {number}")
            values = cross_predicted(feature, data, fold, truth=truth, seed=self.seed)
            everything.append((truth, values))
        for per in self.samples_of():
            parts = []
            for truth, values in everything:
                parts.append(samples(replace(data, truth=truth), values[None], per))
            # scores of several shuffles stand in one set; a subject is drawn with all of them
            joined = Samples(
                kind=data.task.kind,
                truth=np.concatenate([p.truth for p in parts]),
                scores=np.concatenate([p.scores for p in parts], axis=1),
                subjects=np.concatenate([p.subjects for p in parts]),
            )
            if len(joined.truth) >= 2:
                self.add(f"{name}, {SHUFFLED}", "chance", SUBJECTS, per, joined)

    def compare(self, names: list[str], probed: list[str], covariates: bool) -> None:
        """Ours minus each other, and what features add to the covariates; paired over subjects."""
        first = names[0]
        pairs = [((first, d, by), (n, d, by)) for d, by in _COMPARED for n in names[1:]]
        if covariates:
            alone = (", ".join(self.data.covariates.columns), COVARIATES_ONLY, SUBJECTS)
            pairs += [((name, BOTH, SUBJECTS), alone) for name in probed]
        for a, b in pairs:
            if a in self.known and b in self.known:
                for per in self.samples_of():
                    self.difference(a, b, per)

    def difference(self, a: tuple[str, str, str], b: tuple[str, str, str], per: str) -> None:
        both = [self.known[key] for key in (a, b)]
        there = np.isfinite(np.concatenate(both)).all(axis=0)
        results = []
        for key, scores in zip((a, b), both, strict=True):
            whole = np.isfinite(scores).all(axis=0)
            if (key[0], key[1], key[2], per) in self.scored and bool((whole == there).all()):
                results.append(self.scored[key[0], key[1], key[2], per])
                continue
            these = samples(self.data, np.where(there, scores, np.nan), per)
            if len(these.truth) < 2:
                return
            results.append(scored(these, bootstrap=self.bootstrap, seed=self.seed))
        kept = samples(self.data, np.where(there, both[0], np.nan), per)
        for metric, value in results[0].value.items():
            low, high = interval(results[0].resampled[metric] - results[1].resampled[metric])
            self.differences.append(
                {
                    "task": self.data.task.name,
                    "folds": a[2],
                    "per": per,
                    "metric": metric,
                    "a": _label(a),
                    "b": _label(b),
                    "value": value - results[1].value[metric],
                    "low": low,
                    "high": high,
                    "scans": len(kept.truth),
                    "subjects": kept.people,
                }
            )


_COMPARED = ((FEATURES, SUBJECTS), (ADJUSTED, SUBJECTS), (FEATURES, SITES))


def shuffled(data: TaskScans, seed: int) -> np.ndarray:
    """Truth in which each subject has another's answer on all its scans.

    A number keeps how it changes between the scans of a subject, so that only people are mixed up.
    """
    names = np.unique(data.subjects.astype(str))
    first = dict(zip(data.subjects[data.first], data.truth[data.first], strict=True))
    order = numpy_generator(seed).permutation(len(names))
    other = dict(zip(names, (first[names[place]] for place in order), strict=True))
    given = np.array([other[name] for name in data.subjects])
    if data.task.kind == "class":
        return given.astype(bool)
    own = np.array([first[name] for name in data.subjects])
    return given + data.truth - own


def _label(key: tuple[str, str, str]) -> str:
    name, design, _ = key
    return name if design in (FEATURES, COVARIATES_ONLY) else f"{name} [{design}]"
