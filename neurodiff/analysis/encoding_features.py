"""Features of the stimuli of a problem, stage by stage, in the order of a subject's stimuli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import Problem
from neurodiff.analysis.encoding_data import Responses, SubjectData
from neurodiff.core.errors import DataError, UsageError


def with_stages(
    problem: Problem, features: Mapping[str, Any] | None, stages: Sequence[str] | None
) -> tuple[Problem, Mapping[str, Any] | None]:
    """Problem and features with the named stages only; None keeps all.

    Raises
    ------
    UsageError : no such stage.
    """
    if stages is None:
        return problem, features
    there = problem.truth if features is None else features
    strange = [name for name in stages if name not in there]
    if strange or not stages:
        raise UsageError(
            f"there is no stage {strange[0] if strange else ''!r}; there are "
            f"{', '.join(there) or 'none'}"
        )
    if features is not None:
        return problem, {name: features[name] for name in stages}
    return replace(problem, truth={name: problem.truth[name] for name in stages}), None


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
