"""Searchlight of a category: how well a classifier tells it from the features around each feature.

In a volume this is nilearn's `SearchLight`; on the cortex the same classifier and the same folds
run over discs along the surface. The score is balanced accuracy, whose chance is one over the
number of categories however often each was shown.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult, Problem
from neurodiff.analysis.encoding_data import (
    LEAST_STIMULI,
    Responses,
    draw_seed,
    exchange_blocks,
    finished,
    responses_of,
    roi_masks,
)
from neurodiff.analysis.neighbourhoods import (
    VOLUME,
    Surface,
    innermost,
    kind_of,
    neighbourhoods,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.spaces import MaskSpace
from neurodiff.metrics.encoding_scores import exchange_orders, false_discovery
from neurodiff.metrics.statistics import permutation_p

Splits = list[tuple[np.ndarray, np.ndarray]]


def category_searchlight(
    problem: Problem,
    column: str = "category",
    *,
    radius: float = 8.0,
    estimator: Any = None,
    folds: int = 5,
    permutations: int = 0,
    exchange: str = "auto",
    n_jobs: int = 1,
    surface: Surface | None = None,
) -> MethodResult:
    """Balanced accuracy around each feature of a column of the trials.

    Parameters
    ----------
    column : of the trials tables; one value a stimulus.
    radius : mm, along the cortex on a surface, straight in a volume.
    estimator : a scikit-learn classifier; None: linear discriminant with shrunk covariance.
    folds : without training trials, of the cross-validation over test stimuli, balanced between
        categories; with them, the classifier is fitted there and tested on the test stimuli.
    permutations : searchlights over permuted stimuli, for p; each takes as long as the first. 0:
        no p, and the notes say so.
    exchange : which stimuli permutations may swap; see `encoding_data.subjects_of`.
    n_jobs : processes of nilearn in a volume.
    surface : as of `searchlight.searchlight`.

    Returns
    -------
    ``table``: a row a subject and ROI, ``stage`` the column; ``value``: mean accuracy over the
    ROI's centres; without an interval. ``maps``: "score", "p" and "p_max" (largest score of each
    permutation) as ``"<subject>/<column>/<name>"``.

    Raises
    ------
    UsageError : no such column, one category, a category with fewer stimuli than folds, a space
        without neighbours, fewer than 10 test stimuli.
    """
    rois = roi_masks(problem)
    near = neighbourhoods(problem.test.space, radius, surface=surface)
    tables, maps, notes = [], {}, []
    for subject in dict.fromkeys(problem.test.trials["subject"]):
        test = responses_of(problem.test, subject)
        if len(test.ids) < LEAST_STIMULI:
            raise UsageError(
                f"{subject} has {len(test.ids)} test stimuli; a searchlight needs at least "
                f"{LEAST_STIMULI}: give more test stimuli"
            )
        train = None if problem.train is None else responses_of(problem.train, subject)
        rows, labels, splits = _design(train, test, column, folds, problem, subject)
        blocks, said = exchange_blocks(test, exchange)

        def scores(
            targets: np.ndarray,
            rows: np.ndarray = rows,
            splits: Splits = splits,
        ) -> np.ndarray:
            return _scores(problem, near, rows, targets, splits, radius, estimator, n_jobs)

        found = scores(labels)
        null = np.zeros((0, len(found)))
        if permutations:
            seed = draw_seed(problem, subject, column, "category searchlight null")
            orders = exchange_orders(blocks, permutations, seed)
            first = len(labels) - len(test.ids)  # training labels stay: the fit is the same
            null = np.stack(
                [
                    scores(np.concatenate([labels[:first], labels[first:][order]]))
                    for order in problem.progress.over(list(orders), f"permutations, {subject}")
                ]
            )
        made = _called(found, null)
        maps |= {f"{subject}/{column}/{name}": values for name, values in made.items()}
        table = pd.DataFrame(_rows(subject, column, found, null, rois, len(test.ids), problem))
        table["q"] = false_discovery(table["p"].to_numpy(float))
        tables.append(table)
        classes = len(np.unique(labels))
        notes.append(f"{subject}: {classes} categories, chance {1 / classes:.3g}; {said}")
    return MethodResult(
        method="searchlight",
        table=pd.concat(tables, ignore_index=True)[list(COLUMNS)],
        maps=maps,
        notes=finished((_sentence(problem, column, radius, permutations), *notes)),
    )


def _design(
    train: Responses | None,
    test: Responses,
    column: str,
    folds: int,
    problem: Problem,
    subject: str,
) -> tuple[np.ndarray, np.ndarray, Splits]:
    """Rows (stimuli, features), their labels, and what is fitted and tested on."""
    sides = [test] if train is None else [train, test]
    for side in sides:
        if column not in side.table:
            raise UsageError(
                f"the trials table has no column {column!r}; it has "
                f"{', '.join(map(str, side.table.columns))}"
            )
    labels = np.concatenate([side.table[column].astype(str).to_numpy() for side in sides])
    rows = np.concatenate([side.means for side in sides])
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2:
        raise UsageError(f"all stimuli of {subject} are of one {column}, {names[0]!r}; give two")
    if train is not None:
        n = len(train.ids)
        return rows, labels, [(np.arange(n), np.arange(n, len(labels)))]
    if counts.min() < folds:
        raise UsageError(
            f"{column} {names[counts.argmin()]!r} has {counts.min()} stimuli, fewer than the "
            f"{folds} folds; give fewer folds, or leave the category out"
        )
    from sklearn.model_selection import StratifiedKFold

    seed = draw_seed(problem, subject, column, "category folds") % 2**32
    dealer = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return rows, labels, list(dealer.split(rows, labels))


def _scores(
    problem: Problem,
    near: Any,
    rows: np.ndarray,
    labels: np.ndarray,
    splits: Splits,
    radius: float,
    estimator: Any,
    n_jobs: int,
) -> np.ndarray:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if estimator is None:
        estimator = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    if kind_of(problem.test.space) != VOLUME:
        from sklearn.model_selection import cross_val_score

        return np.array(
            [
                cross_val_score(
                    estimator,
                    rows[:, near.indices[near.indptr[k] : near.indptr[k + 1]]],
                    labels,
                    cv=splits,
                    scoring="balanced_accuracy",
                ).mean()
                for k in range(rows.shape[1])
            ]
        )
    return _in_volume(problem.test.space, rows, labels, splits, radius, estimator, n_jobs)


def _in_volume(
    space: Any,
    rows: np.ndarray,
    labels: np.ndarray,
    splits: Splits,
    radius: float,
    estimator: Any,
    n_jobs: int,
) -> np.ndarray:
    import nibabel
    from nilearn.decoding import SearchLight

    inner, columns = innermost(space)
    mask = inner if isinstance(inner, MaskSpace) else MaskSpace.open(inner.masker.mask_img_)
    place = np.argwhere(mask.mask)
    place = place if columns is None else place[columns]
    at = tuple(place.T)
    volume = np.zeros((*mask.mask.shape, len(rows)), np.float32)
    volume[at] = rows.T
    inside = np.zeros(mask.mask.shape, np.uint8)
    inside[at] = 1
    light = SearchLight(
        mask_img=nibabel.Nifti1Image(inside, mask.affine),
        radius=radius,
        estimator=estimator,
        n_jobs=n_jobs,
        scoring="balanced_accuracy",
        cv=splits,
    )
    with warnings.catch_warnings():
        # said of any estimator that is not named by a word; folds and score are given here
        warnings.filterwarnings("ignore", message="Use a custom estimator at your own risk")
        light.fit(nibabel.Nifti1Image(volume, mask.affine), labels)
    return np.asarray(light.scores_, float)[at]


def _called(found: np.ndarray, null: np.ndarray) -> dict[str, np.ndarray]:
    unknown = np.full(found.shape, np.nan)
    if len(null) == 0:
        return {"score": found, "p": unknown, "p_max": unknown}
    draws = len(null)
    largest = null.max(axis=1)
    return {
        "score": found,
        "p": (1 + (null >= found - 1e-12).sum(axis=0)) / (1 + draws),
        "p_max": (1 + (largest[:, None] >= found - 1e-12).sum(axis=0)) / (1 + draws),
    }


def _rows(
    subject: str,
    column: str,
    found: np.ndarray,
    null: np.ndarray,
    rois: Any,
    n: int,
    problem: Problem,
) -> Sequence[dict[str, Any]]:
    tails = [(1 - problem.confidence) / 2, (1 + problem.confidence) / 2]
    rows = []
    for name, mask in rois.items():
        value, means = float(found[mask].mean()), null[:, mask].mean(axis=1)
        row: dict[str, Any] = dict(method="searchlight", subject=subject, stage=column, roi=name)
        row |= {"metric": "searchlight_balanced_accuracy", "value": value, "unit": "rate"}
        names = ("low", "high", "null_mean", "null_low", "null_high", "p")
        row |= dict.fromkeys(names, float("nan"))
        row |= {"n_trials": n, "n_features": int(mask.sum())}
        if len(means):
            row["null_mean"], row["p"] = float(means.mean()), permutation_p(value, means)
            row["null_low"], row["null_high"] = np.quantile(means, tails)
        rows.append(row)
    return rows


def _sentence(problem: Problem, column: str, radius: float, permutations: int) -> str:
    how = "fitted on training stimuli" if problem.train is not None else "cross-validated"
    kind = kind_of(problem.test.space)
    p = (
        f"p by {permutations} searchlights of permuted stimuli, p_max against the largest of each"
        if permutations
        else "no p (permutations=0)"
    )
    return (
        f"searchlight on the {kind}, {radius:g} mm: balanced accuracy of {column}, {how}; {p}; "
        "no interval"
    )
