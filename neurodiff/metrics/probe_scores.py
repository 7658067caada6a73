"""Scores of a predicted class or number, under many weightings of the items at once.

A bootstrap over subjects gives each item a whole number of copies; all resamples are scored by a
few sums over a (resamples, items) array of such weights, ties and all.  Weights of 1 give the plain
score.  Undefined scores (no positive item; nothing called positive, for the precision) are NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

CLASS_SCORES = (
    "AUC",
    "accuracy",
    "balanced accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "F1",
    "average precision",
    "Brier",
)
NUMBER_SCORES = ("MAE", "RMSE", "R2", "r")
LOWER_IS_BETTER = ("Brier", "MAE", "RMSE")


def class_scores(
    truth: Bool[np.ndarray, " items"],
    probability: Float[np.ndarray, " items"],
    weights: Float[np.ndarray, "resamples items"],
) -> dict[str, Float[np.ndarray, " resamples"]]:
    """Scores of probabilities of the positive class; an item above 0.5 is called positive.

    Parameters
    ----------
    truth : True for the positive class.
    probability : from 0 to 1.
    weights : copies of each item.

    Returns
    -------
    `CLASS_SCORES`, each from 0 to 1.  "Brier" is the mean squared error of the probability, less is
    better; "average precision" sums the precision over steps of the sensitivity.

    Examples
    --------
    >>> truth = np.array([True, False, True, False])
    >>> scores = class_scores(truth, np.array([0.9, 0.6, 0.8, 0.1]), np.ones((1, 4)))
    >>> float(scores["AUC"][0]), float(scores["specificity"][0])
    (1.0, 0.5)
    """
    called = probability > 0.5
    of_true, of_false = weights * truth, weights * ~truth
    positive, negative = of_true.sum(axis=1), of_false.sum(axis=1)
    hits, alarms = of_true @ called, of_false @ called
    sensitivity = _ratio(hits, positive)
    specificity = _ratio(negative - alarms, negative)
    total = positive + negative
    return {
        "AUC": _auc(probability, of_true, of_false),
        "accuracy": _ratio(hits + negative - alarms, total),
        "balanced accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _ratio(hits, hits + alarms),
        "F1": _ratio(2 * hits, hits + alarms + positive),
        "average precision": _average_precision(probability, of_true, of_false),
        "Brier": _ratio(weights @ (probability - truth) ** 2, total),
    }


def number_scores(
    truth: Float[np.ndarray, " items"],
    predicted: Float[np.ndarray, " items"],
    weights: Float[np.ndarray, "resamples items"],
) -> dict[str, Float[np.ndarray, " resamples"]]:
    """`NUMBER_SCORES`: errors in the unit of the number, share of variance, correlation.

    ``R2`` compares with the mean of the same items, so the mean itself scores 0.
    """
    total = weights.sum(axis=1)
    error = predicted - truth
    squared = weights @ error**2
    centred = truth - truth.mean()  # of both, so that squares do not cancel
    other = predicted - predicted.mean()
    of_truth = weights @ centred**2 - _ratio((weights @ centred) ** 2, total)
    of_other = weights @ other**2 - _ratio((weights @ other) ** 2, total)
    together = weights @ (centred * other) - _ratio((weights @ centred) * (weights @ other), total)
    flat = 1e-12 * (weights @ centred**2 + 1e-300)
    both = np.where((of_truth > flat) & (of_other > 1e-12), of_truth * of_other, 0.0)
    return {
        "MAE": _ratio(weights @ np.abs(error), total),
        "RMSE": np.sqrt(_ratio(squared, total)),
        "R2": 1 - _ratio(squared, np.where(of_truth > flat, of_truth, 0.0)),
        "r": _ratio(together, np.sqrt(both)),
    }


def _auc(
    score: Float[np.ndarray, " items"],
    of_true: Float[np.ndarray, "resamples items"],
    of_false: Float[np.ndarray, "resamples items"],
) -> Float[np.ndarray, " resamples"]:
    """Share of pairs in which the positive item has the higher score; ties count one half."""
    positive, negative = _of_equal(score, of_true), _of_equal(score, of_false)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _ratio((positive * below).sum(axis=1), pairs)


def _average_precision(
    score: Float[np.ndarray, " items"],
    of_true: Float[np.ndarray, "resamples items"],
    of_false: Float[np.ndarray, "resamples items"],
) -> Float[np.ndarray, " resamples"]:
    positive = _of_equal(-score, of_true)
    hits = np.cumsum(positive, axis=1)
    called = hits + np.cumsum(_of_equal(-score, of_false), axis=1)
    precision = hits / np.where(called > 0, called, 1.0)  # no copy of any: no hit either
    return _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))


def _of_equal(
    score: Float[np.ndarray, " items"], weights: Float[np.ndarray, "resamples items"]
) -> Float[np.ndarray, "resamples values"]:
    """Weights summed over the items of each different score, the lowest first."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return np.add.reduceat(weights[:, order], starts, axis=1)


def _ratio(
    above: Float[np.ndarray, " resamples"], below: Float[np.ndarray, " resamples"]
) -> Float[np.ndarray, " resamples"]:
    known = below > 0
    return np.where(known, above / np.where(known, below, 1.0), np.nan)
