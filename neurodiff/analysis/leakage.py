"""What of the test set training has already seen: an audit before any fit.

``audit`` holds training trials against test trials and returns a :class:`LeakageReport`: one row a
check, also for checks that found nothing and for those that could not be made, with their reason.

    same-stimulus      error    a stimulus is shown in both
    same-trial         error    a trial's numbers are in both
    averaged-repeats   error    a test row is made of training trials, or the reverse
    same-run           warning  trials of one run of one person in both: shared noise and drift
    test-statistics    error    training data were normalised with the help of test trials
    exact-duplicate    error    two ids, one picture or one mesh, value by value
    recompressed       error    two ids, one picture saved, resized or changed a little
    crop               error    a picture is a window of another one
    other-view         error    the same object under two ids, by the table's column ``object``
    same-shape         error    meshes that differ by place, turn, size, mirror or triangles
    similar-features   warning  supplied feature vectors of nearly one direction
    cluster-overlap    info     test stimuli whose cluster is in training; error where the split
                                is said to be disjoint

Under ``--strict`` errors and warnings end a fit (exit code 3) unless their kind is allowed by name:
the standard split of NSD, for one, shares runs by design.

References
----------
Shirakawa et al. 2025, Neural Networks (clusters shared by training and test); Scotti et al. 2024
(statistics of test images in the public preprocessing, and averages).
"""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.leakage_strictness import KINDS, SEVERITIES, require_kinds
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli

FORMAT = "neurodiff-leakage-1"
COLUMNS = ("check", "severity", "count", "of", "examples", "threshold", "what to do")
EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When two things count as the same; benchmarks/leakage.py measures what each finds.

    Parameters
    ----------
    hash_bits : of 64, by which DCT hashes of a recompressed picture may differ.
    picture_correlation : of 16 x 16 means of a pair that the hashes propose.
    crop_bits, crop_correlation : the same for windows of a picture, see `crop_pairs`.
    mesh_signature : largest difference of two signatures, for one mesh moved, turned or scaled.
    shape_descriptor : largest difference of two descriptors of 20,000 points of a surface, by
        which pairs are proposed; half of it, of 320,000 points, confirms them. Where fewer
        points, n, are given instead of meshes it is wider by the square root of 20,000 / n, and
        nothing confirms it.
    cosine : of feature vectors, less the mean of the training stimuli.
    statistics : largest mean, and difference of the standard deviation from 1, that count as
        normalised, in standard deviations.
    """

    hash_bits: int = 10
    picture_correlation: float = 0.95
    crop_bits: int = 16
    crop_correlation: float = 0.95
    mesh_signature: float = 1e-3
    shape_descriptor: float = 0.008
    cosine: float = 0.95
    statistics: float = 1e-4

    def __post_init__(self) -> None:
        if not (0 <= self.hash_bits <= 64 and 0 <= self.crop_bits <= 64):
            raise UsageError("hash_bits and crop_bits are bits of a hash of 64; give 0 to 64")
        for name in ("picture_correlation", "crop_correlation", "cosine"):
            if not -1 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected -1 to 1")
        for name in ("mesh_signature", "shape_descriptor", "statistics"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the audit. ``count`` of ``of`` test trials or stimuli; -1 where not counted."""

    kind: str
    severity: str
    count: int = 0
    of: int = 0
    examples: tuple[str, ...] = ()
    threshold: str = ""
    advice: str = ""

    def __str__(self) -> str:
        named = f" ({'; '.join(self.examples)})" if self.examples else ""
        return f"{self.kind}: {self.count} of {self.of}{named}"


@dataclass(frozen=True)
class LeakageReport:
    """All checks of an audit, in the order of `KINDS`."""

    checks: tuple[Check, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a check, with the columns `COLUMNS`; text and whole numbers."""
        rows = [
            (c.kind, c.severity, c.count, c.of, "; ".join(c.examples), c.threshold, c.advice)
            for c in self.checks
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    @property
    def errors(self) -> tuple[Check, ...]:
        """Checks that found test data in training."""
        return tuple(c for c in self.checks if c.severity == "error")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """Checks that found what training and test share, short of the data themselves."""
        return tuple(c for c in self.checks if c.severity == "warning")

    def lines(self) -> list[str]:
        """One sentence a finding, for the shell; one sentence that says so where there is none."""
        found = [
            f"leakage, {c.severity}: {c.kind}: {c.count} of {c.of} ({'; '.join(c.examples)}); "
            f"{c.advice}"
            for c in (*self.errors, *self.warnings)
        ]
        skipped = [c.kind for c in self.checks if c.severity == "not checked"]
        text = f"; not checked: {', '.join(skipped)}" if skipped else ""
        done = len(self.checks) - len(skipped)
        return found or [f"leakage: {done} checks found nothing{text}"]

    def raise_if_strict(self, strict: bool = True, allow: Collection[str] = ()) -> None:
        """End here where training has seen test data.

        Parameters
        ----------
        strict : False does nothing, so that a caller can pass the user's option on.
        allow : kinds that the user knows of and accepts.

        Raises
        ------
        DataError : a finding that is an error or a warning and not allowed; exit code 3.
        UsageError : ``allow`` names no check.
        """
        require_kinds(list(allow))
        if not strict:
            return
        found = [c for c in (*self.errors, *self.warnings) if c.kind not in allow]
        if found:
            first = found[0]
            more = ", ".join(c.kind for c in found[1:])
            raise DataError(
                f"training and test share data: {first.kind}, {first.count} of {first.of} "
                f"({'; '.join(first.examples)}){f', and also {more}' if more else ''}; "
                f"{first.advice}, or allow what is meant to be so by its name"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a run's folder and the page; `from_json` reads it."""
        return {
            "format": FORMAT,
            "checks": [asdict(c) | {"examples": list(c.examples)} for c in self.checks],
        }

    @classmethod
    def from_json(cls, value: Any) -> LeakageReport:
        """What `to_json` gave.

        Raises
        ------
        DataError : another format, or a check that is not one.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise DataError(f"this is no leakage audit of format {FORMAT}; fit the run again")
        try:
            checks = [
                Check(**{**one, "examples": tuple(map(str, one["examples"]))})
                for one in value["checks"]
            ]
        except (TypeError, KeyError) as error:
            raise DataError(
                f"the leakage audit holds a check that is none ({error}); fit the run again"
            ) from None
        return cls(tuple(checks))

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.lines()[0])}</p>{self.table.to_html(index=False)}"


def audit(
    train: Recording,
    test: Recording,
    stimuli: Stimuli | None = None,
    *,
    features: Mapping[str, np.ndarray] | None = None,
    images: Mapping[str, Any] | bool = False,
    meshes: Mapping[str, Any] | bool = False,
    preprocessing: Mapping[str, str | Collection[str]] | None = None,
    clusters: Mapping[str, str] | None = None,
    disjoint: bool = False,
    thresholds: Thresholds | None = None,
    progress: Progress = SILENT,
) -> LeakageReport:
    """Hold the training trials against the test trials, before anything is fitted.

    Parameters
    ----------
    train, test : trials, of one or several people; every row is read once.
    stimuli : what was shown; its columns ``object`` and category are used where there are any.
    features : stimulus id -> feature vector, of a network of the user's choice.
    images : stimulus id -> picture (PIL image, or array of grey levels or RGB, 0 to 255); True
        reads those of ``stimuli``. Reading ten thousand takes a minute, so it is asked for.
    meshes : stimulus id -> ``trimesh.Trimesh``, or points (n, 3) of its surface; True as above.
    preprocessing : step -> what its statistics were taken from: "train", "all", "test",
        "trial" (each trial by itself), "unknown", or the ids of the stimuli used.
    clusters : stimulus id -> cluster; without it the categories of ``stimuli``.
    disjoint : the split claims that no cluster is in both; an overlap is then an error.

    Returns
    -------
    One check for each of `KINDS`.

    Raises
    ------
    UsageError : True for pictures or meshes without stimuli, unknown words in ``preprocessing``.
    DataError : a picture, mesh or vector that cannot be read or compared; the stimulus is named.
    """
    from neurodiff.analysis import leakage_stimuli as of_stimuli
    from neurodiff.analysis import leakage_trials as of_trials

    limits = thresholds or Thresholds()
    sides = of_stimuli.Sides.of(train, test)
    if (images is True or meshes is True) and stimuli is None:
        raise UsageError("pictures or meshes of the stimuli were asked for; give stimuli")
    same_things: set[tuple[str, str]] = set()  # (training id, test id) under other names
    found = [
        *of_stimuli.picture_checks(sides, stimuli, images, limits, same_things, progress),
        *of_stimuli.object_checks(sides, stimuli),
        *of_stimuli.mesh_checks(sides, stimuli, meshes, limits, same_things, progress),
        *of_stimuli.feature_checks(sides, features, limits),
        *of_stimuli.cluster_checks(sides, stimuli, clusters, disjoint),
        *of_trials.stimulus_checks(sides),
        *of_trials.trial_checks(train, test, same_things),
        *of_trials.run_checks(train, test),
        *of_trials.statistics_checks(train, test, preprocessing, limits),
    ]
    return LeakageReport(tuple(merged(found)))


def passed(kind: str, of: int, threshold: str = "") -> Check:
    """A check that found nothing."""
    return Check(kind=kind, severity="passed", of=of, threshold=threshold)


def not_checked(kind: str, why: str) -> Check:
    """A check that could not be made; ``why`` is a reason in words."""
    return Check(kind=kind, severity="not checked", advice=why)


def merged(found: Sequence[Check], kinds: Sequence[str] = KINDS) -> list[Check]:
    """One check a kind: pictures and meshes both have exact duplicates."""
    one_each = []
    for kind in kinds:
        same = [c for c in found if c.kind == kind]
        worst = min(same, key=lambda c: SEVERITIES.index(c.severity))
        if worst.severity == "not checked":
            reasons = "; ".join(dict.fromkeys(c.advice for c in same))
            one_each.append(not_checked(kind, reasons))
            continue
        made = [c for c in same if c.severity == worst.severity]
        one_each.append(
            Check(
                kind=kind,
                severity=worst.severity,
                count=max(c.count for c in made),
                of=max(c.of for c in made),
                examples=tuple(dict.fromkeys(x for c in made for x in c.examples))[:EXAMPLES],
                threshold="; ".join(dict.fromkeys(c.threshold for c in made if c.threshold)),
                advice="; ".join(dict.fromkeys(c.advice for c in made if c.advice)),
            )
        )
    return one_each
