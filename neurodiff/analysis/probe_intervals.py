"""Scores of predictions with intervals over subjects.

A subject is drawn with all its scans, or not: scans of one person are not independent, and an
interval over scans would be too narrow.  Intervals say how much the score depends on who was
tested; the probe is not fitted again, so that they do not hold what another training set changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurodiff.analysis.probe_tasks import EVERY, FIRST, MEAN, TaskScans
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.probe_scores import class_scores, number_scores

_BLOCK = 2_000_000  # weights at a time
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What is scored: ``truth`` (n,), ``scores`` (repeats, n), ``subjects`` (n,)."""

    kind: str
    truth: np.ndarray
    scores: np.ndarray
    subjects: np.ndarray

    @property
    def people(self) -> int:
        return len(np.unique(self.subjects))

    def of(self, subjects: np.ndarray) -> Samples:
        """The samples of these subjects alone."""
        kept = np.isin(self.subjects, subjects)
        return Samples(
            kind=self.kind,
            truth=self.truth[kept],
            scores=self.scores[:, kept],
            subjects=self.subjects[kept],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Metric -> its value, and metric -> (resamples,) of it."""

    value: dict[str, float]
    resampled: dict[str, np.ndarray]


def samples(data: TaskScans, scores: np.ndarray, per: str) -> Samples:
    """Predictions (repeats, m) of a task as samples.

    Parameters
    ----------
    per : "every scan"; "first scan" of each subject; "mean over scans" of the predictions of a
        subject (the class is that of the first scan, a number the mean of the true ones).

    Raises
    ------
    UsageError : none of these.
    """
    kept = np.isfinite(scores).all(axis=0)
    if per == FIRST:
        kept &= data.first
    if per in (EVERY, FIRST):
        return Samples(
            kind=data.task.kind,
            truth=data.truth[kept],
            scores=scores[:, kept],
            subjects=data.subjects[kept],
        )
    if per != MEAN:
        raise UsageError(f"per is {per!r}; known are {EVERY!r}, {FIRST!r} and {MEAN!r}")
    names, codes = np.unique(data.subjects[kept].astype(str), return_inverse=True)
    counts = np.bincount(codes)
    means = np.stack([np.bincount(codes, one[kept]) / counts for one in scores])
    if data.task.kind == "class":
        of_first = dict(zip(data.subjects[data.first], data.truth[data.first], strict=True))
        truth = np.array([of_first[name] for name in names], bool)
    else:
        truth = np.bincount(codes, data.truth[kept]) / counts
    return Samples(kind=data.task.kind, truth=truth, scores=means, subjects=names.astype(object))


def scored(these: Samples, *, bootstrap: int, seed: int) -> Scored:
    """Every score, a mean over repeats, and its resamples over subjects.

    The same subjects and seed give the same resamples, so that two sets of predictions are compared
    in pairs.
    """
    names, codes = np.unique(these.subjects.astype(str), return_inverse=True)
    value = _means(these, np.ones((1, len(codes))))
    generator = numpy_generator(item_seed(seed, subject="", stimulus="", stage="probe bootstrap"))
    shares = np.full(len(names), 1 / len(names))
    step = max(1, _BLOCK // max(1, len(codes)))
    blocks = []
    for start in range(0, bootstrap, step):
        copies = generator.multinomial(len(names), shares, size=min(step, bootstrap - start))
        blocks.append(_means(these, copies[:, codes].astype(np.float64)))
    resampled = {
        name: np.concatenate([block[name] for block in blocks]) if blocks else np.full(1, np.nan)
        for name in value
    }
    return Scored(value={name: float(v[0]) for name, v in value.items()}, resampled=resampled)


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """Percentiles of the resamples in which the score exists; NaN where it never does."""
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return float("nan"), float("nan")
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def _means(these: Samples, weights: np.ndarray) -> dict[str, np.ndarray]:
    score = class_scores if these.kind == "class" else number_scores
    each = [score(these.truth, one, weights) for one in these.scores]
    return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}
