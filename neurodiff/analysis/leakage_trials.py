"""Leaks between trials: the same stimulus, numbers, run or statistics in training and test."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.leakage import EXAMPLES, Check, Thresholds, not_checked, passed
from neurodiff.analysis.leakage_stimuli import Sides
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.metrics.duplicates import exact_pairs

SOURCES = ("train", "all", "test", "trial", "unknown")
_BLOCK_BYTES = 32 * 2**20
_MOST_FEATURES = 2048  # evenly spaced, for the checks of numbers
_FEWEST_FEATURES = 8
_MOST_PARTS = 64
_RESIDUAL = 1e-5  # share of a row's energy that is left when it is a mean of other rows


def stimulus_checks(sides: Sides) -> list[Check]:
    """Stimuli of which both sides have trials, whoever saw them."""
    shared = [name for name in sides.test if name in set(sides.train)]
    if not shared:
        return [passed("same-stimulus", len(sides.test), "equal ids")]
    return [
        Check(
            kind="same-stimulus",
            severity="error",
            count=len(shared),
            of=len(sides.test),
            examples=tuple(shared[:EXAMPLES]),
            threshold="equal ids",
            advice="put all trials of a stimulus, of every person, on one side of the split",
        )
    ]


def trial_checks(
    train: Recording, test: Recording, same_things: Collection[tuple[str, str]]
) -> list[Check]:
    """Rows that are in both, and rows that are means of rows of the other side.

    A row counts as a mean where a non-negative combination of at most 64 trials of its stimulus and
    person on the other side leaves less than 1e-5 of its energy, the mean trial taken off. Means
    that also hold further trials are not found by their numbers; their stimulus is in both, which
    `stimulus_checks` says.
    """
    if train.data.shape[1:] != test.data.shape[1:]:
        why = (
            f"trials have shapes {tuple(train.data.shape[1:])} in training and "
            f"{tuple(test.data.shape[1:])} in test"
        )
        return [not_checked(kind, why) for kind in ("same-trial", "averaged-repeats")]
    pairs = exact_pairs(row_hashes(train), row_hashes(test))
    rows = sorted(set(pairs.second.tolist()))
    equal = passed("same-trial", test.n_trials, "equal numbers")
    if rows:
        equal = Check(
            kind="same-trial",
            severity="error",
            count=len(rows),
            of=test.n_trials,
            examples=tuple(trial_text(test, row) for row in rows[:EXAMPLES]),
            threshold="equal numbers",
            advice="split the trials, not copies of them",
        )
    return [equal, _averages(train, test, same_things, set(rows))]


def run_checks(train: Recording, test: Recording) -> list[Check]:
    """Runs (subject, session, run) of which both sides have trials."""
    keys = ["subject", "session", "run"]
    every = pd.concat([train.trials[keys], test.trials[keys]])
    if len(every[["session", "run"]].drop_duplicates()) == 1:
        why = (
            "all trials are in one run, as is filled in where the runs of a recording are not known"
        )
        return [not_checked("same-run", why)]
    threshold = "equal subject, session and run"
    of_train = set(train.trials[keys].itertuples(index=False, name=None))
    runs = list(dict.fromkeys(test.trials[keys].itertuples(index=False, name=None)))
    shared = [run for run in runs if run in of_train]
    if not shared:
        return [passed("same-run", len(runs), threshold)]
    return [
        Check(
            kind="same-run",
            severity="warning",
            count=len(shared),
            of=len(runs),
            examples=tuple(f"{s}, session {k}, run {r}" for s, k, r in shared[:EXAMPLES]),
            threshold=threshold,
            advice="hold out whole runs: trials of one run share drift, noise and normalisation",
        )
    ]


def statistics_checks(
    train: Recording,
    test: Recording,
    preprocessing: Mapping[str, str | Collection[str]] | None,
    limits: Thresholds,
) -> list[Check]:
    """Normalisation with the help of test trials, by what is stated and by the numbers.

    By numbers: over training and test trials together, for everybody, each person, session or run,
    99 % of the features have mean 0 (or mean 0 and SD 1) to within ``limits.statistics`` SD, and
    the training trials alone do not: their median |mean| is over ten times that of both together,
    and above the threshold. Whoever normalises by training alone meets the first condition by
    chance only: with a tenth of 1,000 trials as test, the mean of both has an SD of 0.01, and one
    feature is within 1e-4 of 0 with probability 0.008; eight independent ones, the fewest that
    are judged, with 2e-17. Not found is normalisation with a test set so small that the training
    mean moves by less than the threshold.
    """
    found = [_stated(name, source, train, test) for name, source in (preprocessing or {}).items()]
    found.append(_measured(train, test, limits.statistics))
    return found


# ----------------------------------------------------------------------------------------- parts


def _stated(name: str, source: str | Collection[str], train: Recording, test: Recording) -> Check:
    kind, of = "test-statistics", test.n_trials
    if isinstance(source, str):
        if source not in SOURCES:
            raise UsageError(
                f"preprocessing {name!r} is said to be over {source!r}; give one of "
                f"{', '.join(SOURCES)}, or the ids of the stimuli that were used"
            )
        if source == "unknown":
            return not_checked(kind, f"over which trials {name} was computed is not known")
        used = of if source in ("all", "test") else 0
        examples = (f"{name}: over {source} trials",)
    else:
        ids = set(map(str, source)) - set(train.trials["stimulus"])
        rows = test.trials["stimulus"].isin(ids)
        used = int(rows.sum())
        names = list(dict.fromkeys(test.trials["stimulus"][rows]))
        examples = (f"{name}: over {', '.join(names[:EXAMPLES])}",)
    if not used:
        return passed(kind, of, "as stated")
    return Check(
        kind=kind,
        severity="error",
        count=used,
        of=of,
        examples=examples,
        threshold="as stated",
        advice="take means and standard deviations from training trials alone",
    )


def _measured(train: Recording, test: Recording, limit: float) -> Check:
    kind = "test-statistics"
    if train.n_features != test.n_features:
        why = f"{train.n_features} features in training and {test.n_features} in test"
        return not_checked(kind, why)
    columns = _some_columns(train.n_features)
    sums = [_sums(recording, columns) for recording in (train, test)]
    threshold = f"numbers: |mean| <= {limit:g} SD over both, and not over training"
    judged = False
    frames = int(np.prod(test.frames)) if test.frames else 1
    for depth, where in enumerate(("", ", person by person", ", by session", ", by run")):
        groups = [_grouped(one, depth) for one in sums]
        shared = [key for key in groups[1] if key in groups[0]]
        hits, words = [], ""
        for key in shared:
            both = groups[0][key] + groups[1][key]
            verdict = _verdict(groups[0][key], both, limit)
            judged |= verdict is not None
            if verdict:
                hits.append(key)
                words = verdict
        if hits and len(hits) >= max(1, 0.5 * len(shared)):
            return Check(
                kind=kind,
                severity="error",
                count=round(sum(groups[1][key][0][0] for key in hits) / frames),
                of=test.n_trials,
                examples=(f"{words} over training and test together{where}",),
                threshold=threshold,
                advice="take means and standard deviations from training trials alone",
            )
    if not judged:
        return not_checked(kind, "too few trials or features that vary to judge by numbers")
    return passed(kind, test.n_trials, threshold)


def _verdict(train: np.ndarray, both: np.ndarray, limit: float) -> str | None:
    """What both together were normalised to, "" for nothing, None where it cannot be judged.

    Arguments are stacks (count, sum, sum of squares) with the count repeated over features.
    """
    if train[0][0] < 3 or both[0][0] - train[0][0] < 1:
        return None
    mean = both[1] / both[0]
    spread = np.sqrt(np.maximum(both[2] / both[0] - mean**2, 0))
    varies = spread > np.maximum(1e-6 * np.abs(mean), 1e-12)
    if varies.sum() < _FEWEST_FEATURES:
        return None
    alone = np.abs(train[1] / train[0])[varies] / spread[varies]
    centred = np.abs(mean[varies]) / spread[varies]
    if np.quantile(centred, 0.99) > limit:
        return ""
    if np.median(alone) <= max(limit, 10 * np.median(centred)):
        return ""
    n = both[0][0]
    near = [np.abs(spread[varies] * f - 1) <= 10 * limit for f in (1.0, np.sqrt(n / (n - 1)))]
    return "mean 0 and SD 1" if max(x.mean() for x in near) >= 0.99 else "mean 0"


def _sums(recording: Recording, columns: np.ndarray) -> dict[tuple[Any, ...], np.ndarray]:
    """(subject, session, run) -> stack of count, sum and sum of squares over trials and frames."""
    runs = recording.trials[["subject", "session", "run"]]
    found: dict[tuple[Any, ...], np.ndarray] = {}
    for start, block in _blocks(recording):
        values = block[..., columns].reshape(len(block), -1, len(columns)).astype(np.float64)
        here = runs.iloc[start : start + len(block)].reset_index(drop=True)
        for key, rows in here.groupby(list(here), sort=False).indices.items():
            part = values[rows].reshape(-1, len(columns))
            count = np.full(len(columns), float(len(part)))
            stack = np.stack([count, part.sum(axis=0), (part**2).sum(axis=0)])
            found[key] = found.get(key, 0) + stack
    return found


def _grouped(sums: Mapping[tuple[Any, ...], np.ndarray], depth: int) -> dict[Any, np.ndarray]:
    """Stacks of everything (depth 0), of each subject (1), session (2) or run (3)."""
    found: dict[Any, np.ndarray] = {}
    for key, stack in sums.items():
        found[key[:depth]] = found.get(key[:depth], 0) + stack
    return found


def _averages(
    train: Recording,
    test: Recording,
    same_things: Collection[tuple[str, str]],
    known: Collection[int],
) -> Check:
    kind, threshold = "averaged-repeats", f"{_RESIDUAL:g} of a row's energy is left"
    backwards = [(of_test, of_train) for of_train, of_test in same_things]
    means = [row for row in _means_of(train, test, same_things) if row not in set(known)]
    parts = {part for row, some in _means_of(test, train, backwards).items() for part in some}
    rows = sorted({*means, *(parts - set(known))})
    if not rows:
        return passed(kind, test.n_trials, threshold)
    return Check(
        kind=kind,
        severity="error",
        count=len(rows),
        of=test.n_trials,
        examples=tuple(trial_text(test, row) for row in rows[:EXAMPLES]),
        threshold=threshold,
        advice="average repeats after the split, within each side",
    )


def _means_of(
    parts: Recording, wholes: Recording, same_things: Collection[tuple[str, str]]
) -> dict[int, list[int]]:
    """Row of ``wholes`` -> the rows of ``parts`` of which it is a mean; others are left out."""
    others: dict[str, set[str]] = {}
    for of_part, of_whole in same_things:
        others.setdefault(of_whole, {of_whole}).add(of_part)
    if parts.trials["stimulus"].isin({*wholes.trials["stimulus"], *_flat(others)}).sum() == 0:
        return {}
    common = _common_pattern(parts, wholes)
    rows_of = parts.trials.reset_index(drop=True).groupby(["subject", "stimulus"]).indices
    found = {}
    for row, trial in enumerate(wholes.trials.itertuples(index=False)):
        names = others.get(trial.stimulus, {trial.stimulus})
        rows = [k for name in names for k in rows_of.get((trial.subject, name), [])][:_MOST_PARTS]
        used = _combination(parts, rows, wholes.data[row], common) if rows else []
        if used:
            found[row] = [rows[k] for k in used]
    return found


def _flat(others: Mapping[str, set[str]]) -> set[str]:
    return {name for names in others.values() for name in names}


def _common_pattern(*recordings: Recording) -> np.ndarray:
    """Mean of some trials: what all share, such as raw signal levels, is no trace of a trial."""
    means = []
    for one in recordings:
        rows = np.unique(np.linspace(0, one.n_trials - 1, min(one.n_trials, 32)).astype(np.int64))
        block = np.asarray(one.data[rows], np.float64)[..., _some_columns(one.n_features)]
        means.append(block.mean(axis=0))
    return np.mean(means, axis=0)


def _combination(
    parts: Recording, rows: list[int], whole: np.ndarray, common: np.ndarray
) -> list[int]:
    """Which rows make the whole by a non-negative combination; none where a residue is left."""
    from scipy.optimize import nnls

    columns = _some_columns(parts.n_features)
    own = (np.asarray(whole, np.float64)[..., columns] - common).ravel()
    those = np.asarray(parts.data[np.array(rows)], np.float64)[..., columns]
    those = (those - common).reshape(len(rows), -1)
    energy = float(own @ own)
    if own.size <= 2 * len(rows) or energy == 0:  # any row is a combination of as many others
        return []
    weights, left = nnls(those.T, own)
    if left**2 > _RESIDUAL * energy:
        return []
    return np.flatnonzero(weights > 1e-3 * weights.max()).tolist()


def row_hashes(recording: Recording) -> list[bytes]:
    """A hash of each row's numbers."""
    hashes = []
    for _, block in _blocks(recording):
        # + 0: minus zero and zero are the same number
        rows = np.ascontiguousarray(block + np.float32(0), dtype="<f4")
        hashes += [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
    return hashes


def _blocks(recording: Recording) -> Any:
    row_bytes = 4 * int(np.prod(recording.data.shape[1:]))
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, recording.n_trials, step):
        yield start, np.asarray(recording.data[start : start + step], dtype=np.float32)


def _some_columns(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, _MOST_FEATURES)).astype(np.int64))


def trial_text(recording: Recording, row: int) -> str:
    """A trial in words: stimulus, person, repeat."""
    trial = recording.trials.iloc[row]
    return f"{trial['stimulus']} ({trial['subject']}, repeat {trial['repeat']})"
