"""The leakage audit of a model of several people, whose vertices may differ.

What is shared by stimuli is looked for among everybody's: a stimulus that one person is trained on
and another is tested with is a leak, since the layers of both lead into one space. Numbers, runs
and statistics are compared within each person; equal rows also between people, which one file
under two names would give.

References
----------
Shirakawa et al. 2025, Neural Networks; Scotti et al. 2024, arXiv 2403.11207 (one space for all).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neurodiff.analysis import leakage_stimuli as of_stimuli
from neurodiff.analysis import leakage_trials as of_trials
from neurodiff.analysis.leakage import (
    EXAMPLES,
    SEVERITIES,
    Check,
    LeakageReport,
    Thresholds,
    merged,
    not_checked,
    passed,
)
from neurodiff.analysis.leakage_strictness import LENIENT, Strictness
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.metrics.duplicates import exact_pairs


@dataclass(frozen=True, eq=False, kw_only=True)
class Person:
    """One person's trials: those that the model learns from, and those that it is tested on; None
    where there are none. ``name`` is for messages."""

    name: str
    train: Recording | None
    test: Recording | None

    @classmethod
    def of(cls, recording: Recording, *, train: Recording | None = None) -> Person:
        """From all trials of a person: those of the split "train" against all others.

        Parameters
        ----------
        train : what is really learned from, such as a part for a new person's layer; a recording
            without trials of the split "train" leaves it None.
        """
        is_train = (recording.trials["split"] == "train").to_numpy()
        own = recording.select(is_train) if is_train.any() else None
        name = str(recording.trials["subject"].iloc[0])
        rest = recording.select(~is_train) if not is_train.all() else None
        return cls(name=name, train=own if train is None else train, test=rest)


def audit_people(
    people: Sequence[Person],
    stimuli: Stimuli | None = None,
    *,
    features: Mapping[str, np.ndarray] | None = None,
    images: Mapping[str, Any] | bool = False,
    meshes: Mapping[str, Any] | bool = False,
    preprocessing: Mapping[str, str | Collection[str]] | None = None,
    disjoint: bool = False,
    thresholds: Thresholds | None = None,
    progress: Progress = SILENT,
) -> LeakageReport:
    """Hold everybody's training trials against everybody's test trials.

    Parameters
    ----------
    people : each once. The others as `neurodiff.analysis.leakage.audit`.

    Raises
    ------
    UsageError : a person twice, nobody with training trials, nobody with test trials; as `audit`.
    DataError : as `audit`.
    """
    names = [one.name for one in people]
    if len(set(names)) < len(names):
        raise UsageError(f"people are {', '.join(names)}; give each once")
    sides = _sides(people)
    if not sides.train or not sides.test:
        lacking = "training" if not sides.train else "test"
        raise UsageError(f"none of {', '.join(names) or 'no people'} has {lacking} trials")
    if (images is True or meshes is True) and stimuli is None:
        raise UsageError("pictures or meshes of the stimuli were asked for; give stimuli")
    limits = thresholds or Thresholds()
    same: set[tuple[str, str]] = set()
    found = [
        *of_stimuli.picture_checks(sides, stimuli, images, limits, same, progress),
        *of_stimuli.object_checks(sides, stimuli),
        *of_stimuli.mesh_checks(sides, stimuli, meshes, limits, same, progress),
        *of_stimuli.feature_checks(sides, features, limits),
        *of_stimuli.cluster_checks(sides, stimuli, None, disjoint),
        *[_of_people(one, people) for one in of_trials.stimulus_checks(sides)],
        *_within(people, preprocessing, limits, same),
    ]
    return LeakageReport(tuple(merged(found)))


def audit_people_before_fit(
    people: Sequence[Person],
    stimuli: Stimuli,
    strictness: Strictness = LENIENT,
    *,
    shapes: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> LeakageReport | None:
    """As `leakage_run.audit_before_fit`, for a model of several people.

    Raises
    ------
    DataError : under ``strict``, a finding that is not allowed (exit code 3).
    """
    if not any(one.test is not None for one in people):
        progress.say("leakage: not checked: nobody has other trials than those of a fit")
        return None
    meshes: Any = shapes if shapes is not None else stimuli.load_mesh is not None
    report = audit_people(
        people,
        stimuli,
        images=strictness.strict and stimuli.load_image is not None,
        meshes=meshes if strictness.strict else False,
        progress=progress,
    )
    for line in report.lines():
        progress.say(line)
    report.raise_if_strict(strictness.strict, strictness.allow)
    return report


# ----------------------------------------------------------------------------------------- parts


def _sides(people: Sequence[Person]) -> of_stimuli.Sides:
    def each(which: str) -> tuple[str, ...]:
        parts = [getattr(one, which) for one in people]
        known = [part.trials["stimulus"] for part in parts if part is not None]
        return tuple(dict.fromkeys(str(name) for some in known for name in some))

    return of_stimuli.Sides(each("train"), each("test"))


def _of_people(check: Check, people: Sequence[Person]) -> Check:
    """A stimulus on both sides, with who was trained on it and who is tested with it."""
    if check.severity != "error":
        return check
    words = []
    for stimulus in check.examples:
        who = [
            [one.name for one in people if _has(getattr(one, side), stimulus)]
            for side in ("train", "test")
        ]
        words.append(f"{stimulus} (trains {', '.join(who[0])}; tests {', '.join(who[1])})")
    return replace(check, examples=tuple(words))


def _has(part: Recording | None, stimulus: str) -> bool:
    return part is not None and bool((part.trials["stimulus"] == stimulus).any())


def _within(
    people: Sequence[Person],
    preprocessing: Mapping[str, str | Collection[str]] | None,
    limits: Thresholds,
    same: set[tuple[str, str]],
) -> list[Check]:
    """Checks of each person's numbers, runs and statistics, added up; and equal rows of two."""
    kinds = ("same-trial", "averaged-repeats", "same-run", "test-statistics")
    found: dict[str, list[Check]] = {kind: [] for kind in kinds}
    for one in people:
        if one.train is None or one.test is None:
            continue
        own = [
            *of_trials.trial_checks(one.train, one.test, same),
            *of_trials.run_checks(one.train, one.test),
            *of_trials.statistics_checks(one.train, one.test, preprocessing, limits),
        ]
        for check in merged(own, kinds):
            told = tuple(x if one.name in x else f"{one.name}: {x}" for x in check.examples)
            found[check.kind].append(replace(check, examples=told))
    found["same-trial"] += _between(people)
    return [_added(kind, checks) for kind, checks in found.items()]


def _between(people: Sequence[Person]) -> list[Check]:
    """Rows of one person's training that are another's test rows."""
    hashes = {
        (one.name, side): of_trials.row_hashes(part)
        for one in people
        for side, part in (("train", one.train), ("test", one.test))
        if part is not None
    }
    found = []
    for a in people:
        for b in people:
            if a is b or a.train is None or b.test is None:
                continue
            if a.train.data.shape[1:] != b.test.data.shape[1:]:
                continue  # of other vertices: no row can be equal
            pairs = exact_pairs(hashes[a.name, "train"], hashes[b.name, "test"])
            rows = sorted(set(pairs.second.tolist()))
            if rows:
                shown = [f"{of_trials.trial_text(b.test, k)} is a training trial of {a.name}"
                         for k in rows[:EXAMPLES]]  # fmt: skip
                advice = "one recording stands under two names; leave one out"
                found.append(
                    Check(
                        kind="same-trial",
                        severity="error",
                        count=len(rows),
                        of=b.test.n_trials,
                        examples=tuple(shown),
                        threshold="equal numbers",
                        advice=advice,
                    )
                )
    return found


def _added(kind: str, checks: Sequence[Check]) -> Check:
    """One check of several people's: counts add up, the worst severity stands."""
    made = [one for one in checks if one.severity != "not checked"]
    if not made:
        reasons = "; ".join(dict.fromkeys(one.advice for one in checks))
        return not_checked(kind, reasons or "nobody has trials on both sides")
    worst = min(made, key=lambda one: SEVERITIES.index(one.severity)).severity
    thresholds = "; ".join(dict.fromkeys(one.threshold for one in made if one.threshold))
    of = sum(one.of for one in made)
    if worst == "passed":
        return passed(kind, of, thresholds)
    bad = [one for one in made if one.severity == worst]
    return Check(
        kind=kind,
        severity=worst,
        count=sum(one.count for one in bad),
        of=of,
        examples=tuple(dict.fromkeys(x for one in bad for x in one.examples))[:EXAMPLES],
        threshold=thresholds,
        advice="; ".join(dict.fromkeys(one.advice for one in bad if one.advice)),
    )
