"""Predictions for scans of subjects that a probe never saw.

Everything that is learned from data (columns' means and SDs, principal components, adjustment for
covariates, the penalty, the probe) is learned from the training subjects of each fold.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.analysis.probe_tasks import TaskScans
from neurodiff.bridges.probes import LogisticProbe, RidgeProbe

Design = Literal["features", "adjusted", "covariates", "covariates + features"]
FEATURES, ADJUSTED, COVARIATES_ONLY, BOTH = (
    "features",
    "adjusted",
    "covariates",
    "covariates + features",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldFeatures:
    """Features that have to be learned from the training subjects.

    Parameters
    ----------
    values : (n, ...) what they are learned from, one row a scan.
    model : unfitted; a copy is fitted in each fold.  With ``transform`` (a scikit-learn
        transformer or Pipeline) its output goes to a probe.  With ``scores`` it is a predictor of
        its own: ``fit(values, truth, groups)``, then ``scores(values)`` gives probabilities of the
        positive class or numbers.
    first_fold_only : predict for the subjects of the first fold alone, where fitting takes long.
    """

    values: np.ndarray
    model: Any
    first_fold_only: bool = False

    @property
    def predicts(self) -> bool:
        return hasattr(self.model, "scores")


def cross_predicted(
    feature: np.ndarray | FoldFeatures | None,
    data: TaskScans,
    fold: np.ndarray,
    *,
    design: Design = "features",
    truth: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Out-of-fold prediction of each scan of a task: (m,), NaN where there is none.

    Parameters
    ----------
    feature : rows of the *task* (m, d); None for the design "covariates".
    fold : (m,) number of the fold in which a scan is predicted.  No other scan of a subject in a
        fold is trained on there, even where folds (sites) part it.
    design : see :func:`design_matrices`.
    truth : in place of the task's own (shuffled labels).
    seed : of the inner folds.

    Returns
    -------
    Probability of the positive class, or the number.  A fold whose training scans are of one class
    predicts nothing.
    """
    answers = data.truth if truth is None else truth
    use = np.ones(len(data), bool) if design == FEATURES else data.complete
    out = np.full(len(data), np.nan)
    numbers = np.unique(fold)
    learned = feature if isinstance(feature, FoldFeatures) else None
    if learned is not None and learned.first_fold_only:
        numbers = numbers[:1]
    for number in numbers:
        test = use & (fold == number)
        train = use & ~np.isin(data.subjects, data.subjects[fold == number])
        if not test.any() or train.sum() < 4 or len(np.unique(answers[train])) < 2:
            continue
        if learned is not None and learned.predicts:
            model = copy.deepcopy(learned.model)
            model.fit(learned.values[train], answers[train], data.subjects[train])
            out[test] = model.scores(learned.values[test])
            continue
        known, unknown = _in_fold(feature, answers, train, test)
        X, X_test, free = design_matrices(
            known, unknown, data.covariates[train], data.covariates[test], design
        )
        settings = {"free": free, "seed": seed}
        if data.task.kind == "class":
            probe = LogisticProbe(**settings).fit(X, answers[train], data.subjects[train])
            out[test] = probe.predict_proba(X_test)[:, 1]
        else:
            out[test] = (
                RidgeProbe(**settings).fit(X, answers[train], data.subjects[train]).predict(X_test)
            )
    return out


def design_matrices(
    train: np.ndarray,
    test: np.ndarray,
    covariates: pd.DataFrame,
    covariates_test: pd.DataFrame,
    design: Design,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Columns for a probe, and how many of them, the first, it does not penalise.

    - "features": as they come.
    - "covariates": age, and sex and site as one column for each value seen in training.
    - "adjusted": what least squares on the covariates leaves of each feature, with coefficients of
      the training scans.
    - "covariates + features": both.  The covariates are not penalised, in neither design with them,
      so that the one model lies within the other and a gain is the features'.
    """
    if design == FEATURES:
        return train, test, 0
    known, unknown = covariate_columns(covariates, covariates_test)
    if design == COVARIATES_ONLY:
        return known, unknown, known.shape[1]
    if design == ADJUSTED:
        ones, more = np.ones((len(known), 1)), np.ones((len(unknown), 1))
        slopes = np.linalg.lstsq(np.hstack([ones, known]), train, rcond=None)[0]
        return (
            train - np.hstack([ones, known]) @ slopes,
            test - np.hstack([more, unknown]) @ slopes,
            0,
        )
    return np.hstack([known, train]), np.hstack([unknown, test]), known.shape[1]


def covariate_columns(train: pd.DataFrame, test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as z-scores of the training scans; words as a column for each value but the first.

    A value that training never saw (a site that is left out) is the mean of those it saw.
    """
    known, unknown = [], []
    for name in train.columns:
        if pd.api.types.is_numeric_dtype(train[name]):
            mean, deviation = float(train[name].mean()), float(train[name].std(ddof=0))
            spread = deviation if deviation > 0 else 1.0
            known.append((train[name].to_numpy(float) - mean) / spread)
            unknown.append((test[name].to_numpy(float) - mean) / spread)
            continue
        values = sorted(train[name].unique())
        new = ~test[name].isin(values).to_numpy()
        for value in values[1:]:
            column = (train[name] == value).to_numpy(float)
            known.append(column)
            unknown.append(np.where(new, column.mean(), (test[name] == value).to_numpy(float)))
    if not known:  # every covariate is one value here
        return np.zeros((len(train), 1)), np.zeros((len(test), 1))
    return np.stack(known, axis=1), np.stack(unknown, axis=1)


def rows_of(feature: np.ndarray | FoldFeatures, rows: np.ndarray) -> np.ndarray | FoldFeatures:
    """The feature of some scans alone."""
    if isinstance(feature, FoldFeatures):
        return FoldFeatures(
            values=feature.values[rows],
            model=feature.model,
            first_fold_only=feature.first_fold_only,
        )
    return feature[rows]


def _in_fold(
    feature: np.ndarray | FoldFeatures | None,
    answers: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    if feature is None:
        return np.zeros((int(train.sum()), 0)), np.zeros((int(test.sum()), 0))
    if isinstance(feature, FoldFeatures):
        model = copy.deepcopy(feature.model).fit(feature.values[train], answers[train])
        return model.transform(feature.values[train]), model.transform(feature.values[test])
    return feature[train].astype(np.float64), feature[test].astype(np.float64)
