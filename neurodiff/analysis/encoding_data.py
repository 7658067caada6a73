"""What encoding maps, patterns, variance partitioning, RSA and searchlights read from a `Problem`:
for each subject the mean response to each stimulus, the features of each stage, who may change
places with whom, and how much of a response repeats.

The repeats of a stimulus are averaged before anything is fitted or scored, so a fold, a permutation
and a bootstrap draw always takes a stimulus as a whole. A trial with frames counts as its mean over
frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import Problem
from neurodiff.analysis.exchange import exchange_of, run_sets
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.ceilings import single_trial_ceiling

LEAST_STIMULI = 10
_ROWS = 64  # trials read at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Responses:
    """Mean response of one subject to each stimulus of one recording.

    Attributes
    ----------
    ids : stimuli, in order of first appearance.
    means : (stimuli, features) over repeats and frames, float64.
    trials : (trials, features) over frames, float32; of : (trials,) the row of ``ids`` of each.
    runs : (trials,) subject's session and run of each trial, as text.
    repeats : (stimuli,) trials averaged.
    table : one row a stimulus: the trials table's row of its first trial.
    """

    ids: list[str]
    means: np.ndarray
    trials: np.ndarray
    of: np.ndarray
    runs: np.ndarray
    repeats: np.ndarray
    table: pd.DataFrame


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectData:
    """One subject's two sides; ``folds`` is None where ``train`` and ``test`` are apart.

    With ``folds`` (one a stimulus of ``test``) the two are the same recording: every fold is to be
    predicted by what was fitted on the others.

    Attributes
    ----------
    blocks : (test stimuli,) exchange blocks of permutations; within folds, where there are some.
    single : (features,) share of a single trial's variance that repeats; None: not available.
    notes : sentences on both.
    """

    subject: str
    train: Responses
    test: Responses
    folds: np.ndarray | None
    blocks: np.ndarray
    single: np.ndarray | None
    notes: tuple[str, ...]


def subjects_of(
    problem: Problem, *, folds: int = 5, exchange: str = "auto", groups: str = "stimulus"
) -> list[SubjectData]:
    """The subjects of a problem's recordings, each apart.

    Parameters
    ----------
    folds : where ``problem.train`` is None, into how many folds the stimuli are dealt by the seed.
    exchange : which stimuli permutations may swap: "auto", "runs", "all" or a column of the trials
        table; see `exchange.exchange_of`.
    groups : column of the trials table whose values are never cut by a fold.

    Raises
    ------
    UsageError : fewer than 10 test stimuli, fewer than 2 folds, an unknown column.
    DataError : a subject of the test set who has no training trial.
    """
    test_names = list(dict.fromkeys(problem.test.trials["subject"]))
    made = []
    for subject in test_names:
        test = responses_of(problem.test, subject)
        if len(test.ids) < LEAST_STIMULI:
            raise UsageError(
                f"{subject} has {len(test.ids)} test stimuli; a correlation over stimuli with its "
                f"null needs at least {LEAST_STIMULI}: give more test stimuli"
            )
        dealt = None
        if problem.train is None:
            train = test
            dealt = deal_folds(test, folds, problem.seed, subject, groups)
        else:
            if subject not in set(problem.train.trials["subject"]):
                raise DataError(
                    f"{subject} has test trials and no training trial; give the training trials of "
                    "the same subject, or leave train out to cross-validate within the test set"
                )
            train = responses_of(problem.train, subject)
            if len(train.ids) < LEAST_STIMULI:
                raise UsageError(
                    f"{subject} has {len(train.ids)} training stimuli; a regression needs at least "
                    f"{LEAST_STIMULI}: give more training stimuli"
                )
        blocks, said = exchange_blocks(test, exchange, dealt)
        single, told = repeatable_share(test, train)
        made.append(
            SubjectData(
                subject=subject,
                train=train,
                test=test,
                folds=dealt,
                blocks=blocks,
                single=single,
                notes=(f"{subject}: {said}", f"{subject}: {told}"),
            )
        )
    return made


def responses_of(recording: Recording, subject: str) -> Responses:
    """Read one subject's trials, some at a time; frames are averaged on reading."""
    rows = np.flatnonzero((recording.trials["subject"] == subject).to_numpy())
    table = recording.trials.iloc[rows].reset_index(drop=True)
    trials = np.zeros((len(rows), recording.n_features), np.float32)
    for start in range(0, len(rows), _ROWS):
        part = np.asarray(recording.data[rows[start : start + _ROWS]], np.float32)
        axes = tuple(range(1, part.ndim - 1))
        trials[start : start + _ROWS] = part.mean(axis=axes) if axes else part
    if not np.isfinite(trials).all():
        bad = int(np.argwhere(~np.isfinite(trials))[0][0])
        raise DataError(
            f"trial {rows[bad]} of {subject} (stimulus {table['stimulus'][bad]!r}) holds NaN or "
            "infinity; drop these trials or features first"
        )
    ids = list(dict.fromkeys(table["stimulus"]))
    row_of = {name: k for k, name in enumerate(ids)}
    of = np.array([row_of[name] for name in table["stimulus"]])
    repeats = np.bincount(of, minlength=len(ids))
    sums = np.zeros((len(ids), trials.shape[1]))
    np.add.at(sums, of, trials)
    first = np.array([int(np.flatnonzero(of == k)[0]) for k in range(len(ids))])
    runs = table["session"].astype(str) + " / " + table["run"].astype(str)
    return Responses(
        ids=ids,
        means=sums / repeats[:, None],
        trials=trials,
        of=of,
        runs=runs.to_numpy(dtype=str),
        repeats=repeats,
        table=table.iloc[first].reset_index(drop=True),
    )


def thinned(
    responses: Responses, most: int, seed: int, subject: str
) -> tuple[Responses, list[str]]:
    """At most ``most`` of the stimuli, drawn by the seed, and a sentence if there were more.

    Subjects who saw the same stimuli keep the same ones.
    """
    n = len(responses.ids)
    if most < LEAST_STIMULI:
        raise UsageError(f"most is {most}; give at least {LEAST_STIMULI} stimuli")
    if n <= most:
        return responses, []
    key = item_seed(seed, subject="", stimulus="", stage="rsa stimuli")
    order = sorted(responses.ids)
    chosen = {order[k] for k in numpy_generator(key).choice(n, most, replace=False)}
    kept = np.array([name in chosen for name in responses.ids])
    place = np.cumsum(kept) - 1
    trials = kept[responses.of]
    part = Responses(
        ids=[name for name in responses.ids if name in chosen],
        means=responses.means[kept],
        trials=responses.trials[trials],
        of=place[responses.of[trials]],
        runs=responses.runs[trials],
        repeats=responses.repeats[kept],
        table=responses.table[kept].reset_index(drop=True),
    )
    return part, [f"{subject}: {most} of {n} test stimuli, drawn by the seed"]


def deal_folds(
    responses: Responses, folds: int, seed: int, subject: str, groups: str = "stimulus"
) -> np.ndarray:
    """Fold of each stimulus, dealt by the seed; values of the column ``groups`` stay together."""
    if groups not in responses.table:
        raise UsageError(
            f"the trials table has no column {groups!r}; it has "
            f"{', '.join(map(str, responses.table.columns))}"
        )
    codes = np.unique(responses.table[groups].astype(str), return_inverse=True)[1]
    n = int(codes.max()) + 1
    if not 2 <= folds <= n:
        raise UsageError(f"{folds} folds of {n} groups ({groups}); give from 2 to {n}")
    key = item_seed(seed, subject=subject, stimulus="", stage="encoding folds")
    of_group = np.zeros(n, int)
    of_group[numpy_generator(key).permutation(n)] = np.arange(n) % folds
    return of_group[codes]


def exchange_blocks(
    responses: Responses, exchange: str, folds: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """Exchange block of each stimulus (`exchange.exchange_of`), and a sentence on what they are."""
    shown = run_sets(responses.runs, responses.of, len(responses.ids))
    blocks, words = exchange_of(shown, exchange, folds=folds, table=responses.table)
    return np.zeros(len(shown), int) if blocks is None else blocks, words


def repeatable_share(test: Responses, train: Responses) -> tuple[np.ndarray | None, str]:
    """Share of a single trial's variance that repeats, from whichever side has repeats."""
    for side, name in ((test, "test"), (train, "training")):
        again = int((side.repeats > 1).sum())
        if again >= 2:
            share = single_trial_ceiling(side.trials, [str(k) for k in side.of])
            return share, f"the ceiling is measured on {again} {name} stimuli with repeats"
    return None, "the ceiling is not available: no two stimuli have repeats"


def finished(notes: Iterable[str]) -> tuple[str, ...]:
    """Each note once, with its full stop: a page sets them one after another."""
    return tuple(dict.fromkeys(f"{note.rstrip('.')}." for note in notes))


def roi_masks(problem: Problem) -> dict[str, np.ndarray]:
    """The ROIs of the problem, or all features as one where it names none; none may be empty."""
    n = problem.test.n_features
    rois = dict(problem.rois) or {"all": np.ones(n, bool)}
    for name, mask in rois.items():
        if mask.shape != (n,) or not mask.any():
            raise DataError(
                f"ROI {name!r} has {int(mask.sum())} of the {n} features of this recording "
                f"(mask of shape {mask.shape}); leave it out, or check labels and mask"
            )
    return rois


def draw_seed(problem: Problem, subject: str, stage: str, what: str) -> int:
    """Seed of a draw, the same whatever else is computed."""
    return item_seed(problem.seed, subject=subject, stimulus=stage, stage=what)
