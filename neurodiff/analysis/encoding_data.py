"""What encoding maps, patterns, variance partitioning, RSA and searchlights read from a `Problem`:
for each subject the mean response to each stimulus, the features of each stage, who may change
places with whom, and how much of a response repeats.

The repeats of a stimulus are averaged before anything is fitted or scored, so a fold, a permutation
and a bootstrap draw always takes a stimulus as a whole. A trial with frames counts as its mean over
frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import Problem
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
    exchange : which stimuli permutations may swap: "runs" those shown in the same sessions and runs
        equally often; "all" any two; a column of the trials table: those of the same value; "auto":
        "runs" where most stimuli have a partner, else "all" with a note.
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
    """Exchange block of each stimulus, and a sentence that says what they are."""
    n = len(responses.ids)
    whole = np.zeros(n, int) if folds is None else folds
    by_run = _run_sets(responses)
    blocks = np.array([f"{a} | {b}" for a, b in zip(by_run, whole, strict=True)])
    shared = np.unique(blocks, return_inverse=True, return_counts=True)
    swappable = int((shared[2][shared[1]] > 1).sum())
    within = "" if folds is None else " and the same fold"
    if exchange == "runs" or (exchange == "auto" and swappable > 0.8 * n):
        if swappable < 2:
            raise UsageError(
                f"no two of the {n} stimuli were shown in the same runs, so a null within runs has "
                "no permutation; give exchange='all' if stimuli were dealt to runs at random"
            )
        return blocks, (
            f"the null permutes stimuli that were shown in the same runs equally often{within} "
            f"({len(shared[0])} blocks of {n} stimuli; {n - swappable} have no partner)"
        )
    if exchange == "auto":
        return np.asarray(whole), (
            f"only {swappable} of {n} stimuli share their runs with another, so the null permutes "
            "all of them, as if they had been dealt to runs at random; give exchange='runs' or a "
            "column to keep it within blocks"
        )
    if exchange == "all":
        return np.asarray(whole), f"the null permutes all {n} stimuli, whatever their runs"
    if exchange not in responses.table:
        raise UsageError(
            f"exchange is {exchange!r}; give 'auto', 'runs', 'all' or a column of the trials: "
            f"{', '.join(map(str, responses.table.columns))}"
        )
    values = responses.table[exchange].astype(str)
    blocks = np.array([f"{a} | {b}" for a, b in zip(values, whole, strict=True)])
    return blocks, f"the null permutes stimuli of the same {exchange}{within}"


def repeatable_share(test: Responses, train: Responses) -> tuple[np.ndarray | None, str]:
    """Share of a single trial's variance that repeats, from whichever side has repeats."""
    for side, name in ((test, "test"), (train, "training")):
        again = int((side.repeats > 1).sum())
        if again >= 2:
            share = single_trial_ceiling(side.trials, [str(k) for k in side.of])
            return share, f"the ceiling is measured on {again} {name} stimuli with repeats"
    return None, "the ceiling is not available: no two stimuli have repeats"


def stage_features(
    problem: Problem, data: SubjectData, features: Mapping[str, Any] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Stage -> features of the training and of the test stimuli, ``(stimuli, d)`` float64 each.

    Parameters
    ----------
    features : None: the stages of ``problem.truth`` (test) and of the decoder's ``truth`` (train).
        Else name -> DataFrame whose index are stimulus ids, or mapping from id to a vector; or an
        array with one row for each stimulus of `stimulus_ids`, in that order.

    Raises
    ------
    UsageError : no stage, an unknown shape. DataError : a stimulus without features, NaN.
    """
    if features is not None and not features:
        raise UsageError("features is empty; give name -> features, or None for the stages' own")
    if features is None:
        sides = _own_stages(problem, data)
    else:
        ids = stimulus_ids(problem)
        sides = {}
        for name, given in features.items():
            rows = _by_id(name, given, ids)
            sides[name] = tuple(
                np.stack([_vector(name, rows, one) for one in side.ids])
                for side in (data.train, data.test)
            )
    return {
        name: (_checked(name, train, data.train.ids), _checked(name, test, data.test.ids))
        for name, (train, test) in sides.items()
    }


def shown_features(
    problem: Problem, responses: Responses, features: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Stage -> features of the test stimuli in ``responses``, as `stage_features` gives them."""
    n = len(responses.ids)
    alone = SubjectData(
        subject="",
        train=responses,
        test=responses,
        folds=np.zeros(n, int),
        blocks=np.zeros(n, int),
        single=None,
        notes=(),
    )
    return {name: sides[1] for name, sides in stage_features(problem, alone, features).items()}


def stimulus_ids(problem: Problem) -> list[str]:
    """Stimuli of the training trials and then of the test trials, in order of first appearance."""
    recordings = [problem.test] if problem.train is None else [problem.train, problem.test]
    return list(dict.fromkeys(name for one in recordings for name in one.trials["stimulus"]))


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


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by the training stimuli's mean and SD; columns that never vary in training are left out.

    Raises
    ------
    DataError : no column varies.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0)
    kept = spread > 1e-10 * np.maximum(np.abs(mean), 1e-300)
    if not kept.any():
        raise DataError(
            f"none of the {train.shape[1]} features varies over the {len(train)} training stimuli; "
            "there is nothing to fit"
        )
    return tuple((side[:, kept] - mean[kept]) / spread[kept] for side in (train, test))  # type: ignore[return-value]


def draw_seed(problem: Problem, subject: str, stage: str, what: str) -> int:
    """Seed of a draw, the same whatever else is computed."""
    return item_seed(problem.seed, subject=subject, stimulus=stage, stage=what)


def _run_sets(responses: Responses) -> list[str]:
    sets: list[list[str]] = [[] for _ in responses.ids]
    for row, run in zip(responses.of, responses.runs, strict=True):
        sets[row].append(str(run))
    return [" + ".join(sorted(runs)) for runs in sets]


def _own_stages(problem: Problem, data: SubjectData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if not problem.truth:
        raise UsageError("the problem has no true features of its stages; give features=")
    shown = problem.test.trials["stimulus"].tolist()
    row_of = {name: k for k, name in reversed(list(enumerate(shown)))}
    rows = [row_of[name] for name in data.test.ids]
    test = {stage: _flat(values)[rows] for stage, values in problem.truth.items()}
    if data.folds is not None:
        return {stage: (values, values) for stage, values in test.items()}
    train = problem.decoder.truth(data.train.ids)
    missing = sorted(set(test) - set(train))
    if missing:
        raise DataError(
            f"the decoder has no true features of stage {missing[0]!r} for the training stimuli; "
            f"it has {', '.join(train) or 'none'}"
        )
    return {stage: (_flat(train[stage]), test[stage]) for stage in test}


def _by_id(name: str, given: Any, ids: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(given, pd.DataFrame):
        return {str(key): row for key, row in zip(given.index, given.to_numpy(), strict=True)}
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items()}
    values = np.asarray(given)
    if values.ndim < 2 or len(values) != len(ids):
        raise UsageError(
            f"features {name!r} have shape {values.shape}; give one row for each of the {len(ids)} "
            "stimuli (training first, then test, in order of first appearance), or a table by id"
        )
    return dict(zip(ids, _flat(values), strict=True))


def _vector(name: str, rows: Mapping[str, Any], stimulus: str) -> np.ndarray:
    if stimulus not in rows:
        raise DataError(f"features {name!r} have no row for stimulus {stimulus!r}; add it")
    return np.asarray(rows[stimulus], np.float64).ravel()


def _flat(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    return values.reshape(len(values), -1)


def _checked(name: str, values: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(values) != len(ids) or values.shape[1] == 0:
        raise DataError(
            f"features {name!r} have shape {values.shape}; expected {len(ids)} stimuli and at "
            "least one feature each"
        )
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(
            f"features {name!r} of stimulus {ids[bad[0]]!r} hold NaN or infinity; make them again"
        )
    return values
