"""Encoding maps: which vertices are predicted by the features of each stage, on stimuli that the
fit has never seen.

For each stage (encoder tokens, aggregated features, bridge output, VDVAE, CLIP text, CLIP vision,
or any features given) a ridge from the features of the training stimuli to every vertex, one
penalty a vertex chosen by exact leave-one-stimulus-out, predicts the mean response to each test
stimulus. Scores are correlations over test stimuli.

This is the direction of a model of the brain (features -> response); a vertex that is predicted
carries something linear in these features, or in something correlated with them. It does not say
that the decoder uses the vertex: see leave-one-out and Shapley values for that.

References
----------
Naselaris, Kay, Nishimoto & Gallant 2011, NeuroImage 56; Allen et al. 2022, Nature Neuroscience 25.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult, Problem
from neurodiff.analysis.decoded_features import decoded_halves
from neurodiff.analysis.encoding_data import (
    SubjectData,
    draw_seed,
    roi_masks,
    stage_features,
    standardised,
    subjects_of,
)
from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.core.errors import UsageError
from neurodiff.metrics.encoding_scores import (
    centred_within,
    column_correlations,
    correlation_null,
    exchange_orders,
    false_discovery,
    mean_ceiling,
    normalised,
    resampled_correlations,
)
from neurodiff.metrics.statistics import permutation_p

#: columns of the table beside those of every method
EXTRA = (
    "median",
    "median_low",
    "median_high",
    "share_significant",
    "ceiling",
    "normalised",
    "normalised_low",
    "normalised_high",
)
LEAST_CEILING = 0.05
SIGNIFICANT = 0.05


def encoding_maps(
    problem: Problem,
    features: Mapping[str, Any] | None = None,
    *,
    source: str = "truth",
    folds: int = 5,
    exchange: str = "auto",
    groups: str = "stimulus",
    alphas: Any = None,
) -> MethodResult:
    """Held-out correlation of every vertex with what each stage's features predict.

    Parameters
    ----------
    problem : with ``train``, fitted there and scored on ``test``; without, cross-validated within
        ``test``.
    features : None for the stages of the problem, or name -> features of the stimuli; see
        `encoding_data.stage_features`.
    source : of the stages' features where none are given: "truth", from the stimuli; or "decoded",
        what the decoder makes of other trials of the same test stimuli (encoder tokens, aggregated
        features, the bridge's output), which needs two trials of each; see `decoded_features`.
    folds : of the cross-validation. ``groups``: column of the trials whose values are left out
        together, in folds and in the choice of the penalty.
    exchange : which stimuli the null may swap; see `encoding_data.subjects_of`.
    alphas : penalties in units of the kernel's mean eigenvalue; None: 13 from 1e-3 to 1e3.

    Returns
    -------
    ``table``: a row a subject, stage and ROI. ``value``: mean r over the ROI's vertices, with a
    bootstrap interval over test stimuli (the fit is held); ``null_*`` and ``p`` (one-sided) by
    permuted stimuli; ``q`` by FDR over the rows of a subject; beside them ``median``,
    ``share_significant`` (vertices with q <= 0.05, FDR over all vertices), ``ceiling`` (median
    share of variance that repeats in the means) and ``normalised`` (mean of r / sqrt(ceiling) over
    vertices with a ceiling of at least 0.05), NaN where not available.
    ``maps``: "r", "normalised", "p", "q" and "p_max" (family-wise) as
    ``"<subject>/<stage>/<name>"``, (features,).
    ``items``: for each test stimulus and ROI, its mean share in r over vertices; these sum to the
    ROI's value over the stimuli.

    Raises
    ------
    UsageError : fewer than 10 stimuli on a side, options that do not fit.
    DataError : an empty ROI, a stimulus without features, features that never vary.
    """
    if problem.draws < 1:
        raise UsageError(f"{problem.draws} draws; give a whole number from 1")
    if source == "decoded" and features is None:
        return _of_decoded(problem, folds=folds, exchange=exchange, groups=groups, alphas=alphas)
    if source != "truth":
        given = " together with features" if source == "decoded" else ""
        raise UsageError(f"source is {source!r}{given}; give 'truth', or 'decoded' alone")
    rois = roi_masks(problem)
    subjects = subjects_of(problem, folds=folds, exchange=exchange, groups=groups)
    tables, maps, items, notes = [], {}, [], []
    for data in subjects:
        rows = []
        for stage, sides in problem.progress.over(
            list(stage_features(problem, data, features).items()), f"encoding maps, {data.subject}"
        ):
            predicted = held_out(data, *sides, groups=groups, alphas=alphas)
            made = _scored(problem, data, stage, predicted, rois)
            rows += made[0]
            maps |= {f"{data.subject}/{stage}/{name}": values for name, values in made[1].items()}
            items.append(made[2])
        table = pd.DataFrame(rows)
        table["q"] = false_discovery(table["p"].to_numpy(float))
        tables.append(table)
        notes += data.notes
    return MethodResult(
        method="encoding",
        table=pd.concat(tables, ignore_index=True)[[*COLUMNS, *EXTRA]],
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=(*_sentences(problem, subjects), *notes),
    )


def _of_decoded(problem: Problem, **options: Any) -> MethodResult:
    """The maps of features decoded from half of the repeats, on the other half."""
    parts, told = [], []
    for half, features, said in decoded_halves(problem):
        parts.append(encoding_maps(half, features, **options))
        told.append(said)
    return MethodResult(
        method="encoding",
        table=pd.concat([part.table for part in parts], ignore_index=True),
        maps={name: values for part in parts for name, values in part.maps.items()},
        items=pd.concat([part.items for part in parts], ignore_index=True),
        notes=(*dict.fromkeys(note for part in parts for note in part.notes), *told),
    )


def held_out(
    data: SubjectData,
    train: np.ndarray,
    test: np.ndarray,
    *,
    groups: str = "stimulus",
    alphas: Any = None,
) -> np.ndarray:
    """Predicted mean responses to the test stimuli, (stimuli, vertices), by fits without them.

    Parameters
    ----------
    train, test : features (stimuli, d), standardised here by training stimuli only.
    """
    if data.folds is None:
        return _fitted(data, np.arange(len(train)), groups, alphas, train, test)
    predicted = np.zeros_like(data.test.means)
    for fold in np.unique(data.folds):
        inside = data.folds == fold
        kept = np.flatnonzero(~inside)
        predicted[inside] = _fitted(data, kept, groups, alphas, train[kept], test[inside])
    return predicted


def _fitted(
    data: SubjectData,
    rows: np.ndarray,
    groups: str,
    alphas: Any,
    train: np.ndarray,
    test: np.ndarray,
) -> np.ndarray:
    train, test = standardised(train, test)
    if groups not in data.train.table:
        raise UsageError(f"the trials table has no column {groups!r} to group the stimuli by")
    labels = data.train.table[groups].astype(str).to_numpy()[rows]
    ridge = FactoredRidge(alphas, alpha_per="target", standardise="none")
    return ridge.fit(train, data.train.means[rows], groups=labels).predict_raw(test)


def _scored(
    problem: Problem,
    data: SubjectData,
    stage: str,
    predicted: np.ndarray,
    rois: Mapping[str, np.ndarray],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], pd.DataFrame]:
    measured, folds = data.test.means, data.folds
    names, masks = list(rois), np.stack(list(rois.values()))
    r = column_correlations(predicted, measured, folds)
    orders = exchange_orders(
        data.blocks, problem.draws, draw_seed(problem, data.subject, "", "encoding null")
    )
    null = correlation_null(predicted, measured, orders, rois=masks, folds=folds)
    q = false_discovery(null.p)
    ceiling = np.full(r.shape, np.nan)
    if data.single is not None:
        ceiling = mean_ceiling(data.single.astype(float), data.test.repeats)
    share = normalised(r, ceiling, LEAST_CEILING)
    drawn = _intervals(problem, data, predicted, masks, ceiling)
    rows = []
    for k, (name, mask) in enumerate(rois.items()):
        known = mask & np.isfinite(r)
        value = _or_nan(np.mean, r[known])
        row = {
            **dict(method="encoding", subject=data.subject, stage=stage, roi=name, metric="r"),
            "value": value,
            "low": drawn["mean"][0][k],
            "high": drawn["mean"][1][k],
            "null_mean": float(null.means[k].mean()),
            "null_low": float(np.quantile(null.means[k], (1 - problem.confidence) / 2)),
            "null_high": float(np.quantile(null.means[k], (1 + problem.confidence) / 2)),
            "p": permutation_p(value, null.means[k]) if known.any() else np.nan,
            "n_trials": len(data.test.ids),
            "n_features": int(mask.sum()),
            "unit": "correlation",
            "median": _or_nan(np.median, r[known]),
            "median_low": drawn["median"][0][k],
            "median_high": drawn["median"][1][k],
            "share_significant": float(np.mean(q[known] <= SIGNIFICANT)) if known.any() else np.nan,
            "ceiling": _or_nan(np.median, ceiling[mask & np.isfinite(ceiling)]),
            "normalised": _or_nan(np.mean, share[mask & np.isfinite(share)]),
            "normalised_low": drawn["normalised"][0][k],
            "normalised_high": drawn["normalised"][1][k],
        }
        rows.append(row)
    maps = {"r": r, "normalised": share, "p": null.p, "q": q, "p_max": null.p_max}
    return rows, maps, _items(data, stage, predicted, names, masks)


def _intervals(
    problem: Problem,
    data: SubjectData,
    predicted: np.ndarray,
    masks: np.ndarray,
    ceiling: np.ndarray,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Percentile intervals of each ROI's mean, median and normalised mean over stimuli drawn again.

    The ceiling is held: it is another measurement.
    """
    seed = draw_seed(problem, data.subject, "", "encoding bootstrap")
    used = masks.any(axis=0)
    inside = [mask[used] for mask in masks]
    part, measured, ceiling = predicted[:, used], data.test.means[:, used], ceiling[used]
    found: dict[str, list[np.ndarray]] = {"mean": [], "median": [], "normalised": []}
    blocks = resampled_correlations(part, measured, problem.draws, seed, folds=data.folds)
    for r in blocks:
        share = normalised(r, np.broadcast_to(ceiling, r.shape), LEAST_CEILING)
        for name, values, of in (
            ("mean", r, np.mean),
            ("median", r, np.median),
            ("normalised", share, np.mean),
        ):
            found[name].append(np.stack([_row_wise(of, values[:, mask]) for mask in inside]))
    out = {}
    for name, parts in found.items():
        drawn = np.concatenate(parts, axis=1)  # (rois, draws)
        tails = [(1 - problem.confidence) / 2, (1 + problem.confidence) / 2]
        low, high = (np.quantile(drawn, tail, axis=1) for tail in tails)  # NaN stays NaN
        out[name] = (low, high)
    return out


def _row_wise(statistic: Any, values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values).all(axis=0)
    if not known.any():
        return np.full(len(values), np.nan)
    return statistic(values[:, known], axis=1)


def _or_nan(statistic: Any, values: np.ndarray) -> float:
    return float(statistic(values)) if len(values) else float("nan")


def _items(
    data: SubjectData, stage: str, predicted: np.ndarray, names: list[str], masks: np.ndarray
) -> pd.DataFrame:
    """Each stimulus's term in the correlation, averaged over the vertices of each ROI."""
    sides = [centred_within(side, data.folds) for side in (predicted, data.test.means)]
    lengths = [np.linalg.norm(side, axis=0) for side in sides]
    known = np.isfinite(column_correlations(predicted, data.test.means, data.folds))
    product = lengths[0] * lengths[1]
    terms = sides[0] * sides[1] / np.where(product > 0, product, 1.0)
    weights = (masks & known).astype(float)
    values = terms @ (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)).T
    return pd.DataFrame(
        {
            "subject": data.subject,
            "stimulus": np.repeat(data.test.ids, len(names)),
            "roi": np.tile(names, len(data.test.ids)),
            "stage": stage,
            "value": values.ravel(),
        }
    )


def _sentences(problem: Problem, subjects: list[SubjectData]) -> tuple[str, ...]:
    fitted = (
        "fitted on the training stimuli and scored on the test stimuli"
        if problem.train is not None
        else "cross-validated over stimuli, means of the folds removed before the correlation"
    )
    floor = 1 / (problem.draws + 1)
    return (
        f"encoding: ridge from each stage's features to every vertex, {fitted}; repeats are "
        "averaged first; r is over stimuli",
        f"p is one-sided, (1 + b) / (1 + {problem.draws}), so at least {floor:.2g}; share "
        "significant: q <= 0.05, Benjamini-Hochberg over the vertices of a subject and stage; "
        "p_max is family-wise over them; q of a ROI: Benjamini-Hochberg over ROIs and stages of a "
        "subject",
        "intervals draw test stimuli again and hold the fit and the ceiling",
        f"normalised is r / sqrt(ceiling) where the ceiling is at least {LEAST_CEILING}; it may "
        "exceed 1, and is not available without repeats",
        "a vertex is predicted also by features that are merely correlated with what it responds "
        "to, and features of one stage share variance with those of others: see variance "
        "partitioning",
        f"{len(subjects)} subjects, each fitted and shown apart",
    )
