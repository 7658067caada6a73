"""Variance partitioning: what of a region's predictable response each family of features explains
alone, and what two or three of them share.

Encoding models of every subset of the families (banded ridge, weights and penalty chosen in
training) predict held-out stimuli; the parts follow from their R² by `metrics.variance_shares`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult, Problem
from neurodiff.analysis.encoding_data import (
    SubjectData,
    draw_seed,
    finished,
    roi_masks,
    subjects_of,
)
from neurodiff.analysis.encoding_features import stage_features, standardised
from neurodiff.bridges.variance import banded_predictions
from neurodiff.core.errors import UsageError
from neurodiff.metrics.encoding_scores import (
    bootstrap_weights,
    false_discovery,
    mean_ceiling,
)
from neurodiff.metrics.statistics import permutation_p
from neurodiff.metrics.variance_shares import (
    Families,
    error_gain,
    sign_flips,
    subsets,
    variance_parts,
)


def variance_partition(
    problem: Problem,
    features: Mapping[str, Any] | None = None,
    *,
    families: Sequence[str] | None = None,
    folds: int = 5,
    groups: str = "stimulus",
    banded: bool = True,
    alphas: Any = None,
) -> MethodResult:
    """Unique and shared held-out R² of two or three feature families.

    Parameters
    ----------
    features : None for the stages of the problem, or name -> features; see
        `encoding_features.stage_features`.
    families : which of them, two or three; None where there are no more.
    folds, groups : as in `encoding_maps`. banded : weights of the families are chosen, else equal.

    Returns
    -------
    ``table``: a row a subject, part and ROI; the part stands in ``stage``: "unique: a", "shared:
    a + b", and the R² of every model, "model: a + b". ``value``: mean R² over the ROI's vertices
    (may be negative), interval by bootstrap over test stimuli, null by random signs of each
    stimulus's contribution; p is one-sided (above zero), since fitting noise alone pulls all of
    them below zero; q by FDR over the rows of a subject. ``normalised``: value over the mean
    ceiling, NaN where not available.
    ``maps``: R² of each part, ``"<subject>/<part>/R2"``. ``items``: each stimulus's contribution.

    Raises
    ------
    UsageError : fewer than two or more than three families, fewer than 10 stimuli.
    DataError : an empty ROI, features that never vary.
    """
    rois = roi_masks(problem)
    tables, maps, items, notes = [], {}, [], []
    for data in subjects_of(problem, folds=folds, exchange="all", groups=groups):
        sides = _chosen(stage_features(problem, data, features), families)
        names = list(sides)
        notes += _equal_families(sides)
        gains: dict[Families, np.ndarray] = {}
        baseline = _training_mean(data)
        for part in problem.progress.over(subsets(names), f"variance partition, {data.subject}"):
            predicted = _held_out(data, sides, part, groups, alphas, banded)
            gains[part], before = error_gain(predicted, data.test.means, baseline)
        parts = _labelled(gains, names)
        rows, made, per_item = _scored(problem, data, parts, before, rois)
        table = pd.DataFrame(rows)
        _need_each_family(table, names)
        table["q"] = false_discovery(table["p"].to_numpy(float))
        tables.append(table)
        maps |= made
        items.append(per_item)
        notes.append(data.notes[1])
    return MethodResult(
        method="variance_partition",
        table=pd.concat(tables, ignore_index=True)[[*COLUMNS, "normalised"]],
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=finished((*_sentences(problem, banded), *notes)),
    )


def _chosen(
    sides: dict[str, tuple[np.ndarray, np.ndarray]], families: Sequence[str] | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = list(sides) if families is None else list(families)
    unknown = [name for name in names if name not in sides]
    if unknown or not 2 <= len(set(names)) <= 3 or len(set(names)) != len(names):
        raise UsageError(
            f"variance is parted between two or three families, each once, of "
            f"{', '.join(sides)}; got {', '.join(names)}: name them with families="
        )
    return {name: sides[name] for name in names}


def _equal_families(sides: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """A sentence for each pair of families that are one, such as stages with one truth."""
    return [
        f"{a} and {b} have equal features, so that nothing can be unique to either"
        for a, b in combinations(sides, 2)
        if np.array_equal(sides[a][1], sides[b][1])
    ]


def _held_out(
    data: SubjectData,
    sides: Mapping[str, tuple[np.ndarray, np.ndarray]],
    part: Families,
    groups: str,
    alphas: Any,
    banded: bool,
) -> np.ndarray:
    labels = data.train.table[groups].astype(str).to_numpy()

    def fitted(kept: np.ndarray, inside: np.ndarray) -> np.ndarray:
        scaled = {name: standardised(sides[name][0][kept], sides[name][1][inside]) for name in part}
        return banded_predictions(
            {name: two[0] for name, two in scaled.items()},
            {name: two[1] for name, two in scaled.items()},
            data.train.means[kept],
            part,
            alphas=alphas,
            banded=banded,
            groups=labels[kept],
        )

    if data.folds is None:
        return fitted(np.arange(len(data.train.ids)), np.arange(len(data.test.ids)))
    predicted = np.zeros_like(data.test.means)
    for fold in np.unique(data.folds):
        inside = np.flatnonzero(data.folds == fold)
        predicted[inside] = fitted(np.flatnonzero(data.folds != fold), inside)
    return predicted


def _training_mean(data: SubjectData) -> np.ndarray:
    """What a model without features predicts for each test stimulus."""
    if data.folds is None:
        return np.broadcast_to(data.train.means.mean(axis=0), data.test.means.shape)
    baseline = np.zeros_like(data.test.means)
    for fold in np.unique(data.folds):
        baseline[data.folds == fold] = data.test.means[data.folds != fold].mean(axis=0)
    return baseline


def _labelled(gains: Mapping[Families, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Contribution (stimuli, vertices) of each part and model, by the name in the table."""
    parts = variance_parts(gains, names)
    found = {
        f"{'unique' if len(part) == 1 else 'shared'}: {' + '.join(part)}": values
        for part, values in parts.items()
    }
    return found | {f"model: {' + '.join(part)}": values for part, values in gains.items()}


def _scored(
    problem: Problem,
    data: SubjectData,
    parts: Mapping[str, np.ndarray],
    before: np.ndarray,
    rois: Mapping[str, np.ndarray],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], pd.DataFrame]:
    measured = data.test.means
    total = before.sum(axis=0)
    varies = measured.std(axis=0) > 1e-10 * np.abs(measured).max(axis=0, initial=0.0)
    masks = np.stack([mask & varies for mask in rois.values()]).astype(float)
    masks /= np.maximum(masks.sum(axis=1, keepdims=True), 1)
    safe = np.where(varies, total, 1.0)
    ceiling = np.full(len(rois), np.nan)
    if data.single is not None:
        share = mean_ceiling(data.single.astype(float), data.test.repeats)
        ceiling = masks @ np.nan_to_num(share)
    # (parts, stimuli, rois): adds up over stimuli to the region's R²
    each = {name: (gain / safe) @ masks.T for name, gain in parts.items()}
    drawn = _resampled(problem, data.subject, parts, before, masks)
    tails = [(1 - problem.confidence) / 2, (1 + problem.confidence) / 2]
    seed = draw_seed(problem, data.subject, "", "variance signs")
    rows, items = [], []
    for name, values in each.items():
        null = sign_flips(values, problem.draws, seed)
        for k, (roi, mask) in enumerate(rois.items()):
            known = bool((mask & varies).any())
            value = float(values[:, k].sum()) if known else np.nan
            low, high = np.quantile(drawn[name][:, k], tails)
            rows.append(
                {
                    **dict(method="variance_partition", subject=data.subject, stage=name),
                    **dict(roi=roi, metric="R2", value=value, low=low, high=high),
                    "null_mean": float(null[:, k].mean()),
                    "null_low": float(np.quantile(null[:, k], tails[0])),
                    "null_high": float(np.quantile(null[:, k], tails[1])),
                    "p": permutation_p(value, null[:, k]) if known else np.nan,
                    "n_trials": len(measured),
                    "n_features": int(mask.sum()),
                    "unit": "share of variance",
                    "normalised": value / ceiling[k] if ceiling[k] > 0 else np.nan,
                }
            )
        items.append(
            pd.DataFrame(
                {
                    "subject": data.subject,
                    "stimulus": np.repeat(data.test.ids, len(rois)),
                    "roi": np.tile(list(rois), len(measured)),
                    "stage": name,
                    "value": values.ravel(),
                }
            )
        )
    maps = {
        f"{data.subject}/{name}/R2": np.where(varies, gain.sum(axis=0) / safe, np.nan)
        for name, gain in parts.items()
    }
    return rows, maps, pd.concat(items)


def _need_each_family(table: pd.DataFrame, names: list[str]) -> None:
    """A shared part is called only where each of its families predicts alone: p is the largest.

    The sign flips alone will not do: the penalties of a joint model are chosen among more, so that
    on noise it may lose more than its families do apart, which looks like a part that they share.
    """
    p = table.set_index(["stage", "roi"])["p"]
    for part in subsets(names):
        if len(part) > 1:
            shared = f"shared: {' + '.join(part)}"
            for row in table.index[table["stage"] == shared]:
                roi = table.at[row, "roi"]
                alone = [p[(f"model: {name}", roi)] for name in part]
                table.at[row, "p"] = max([table.at[row, "p"], *alone])


def _resampled(
    problem: Problem,
    subject: str,
    parts: Mapping[str, np.ndarray],
    before: np.ndarray,
    masks: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each region's mean R² over stimuli drawn again, (draws, rois) by part."""
    seed = draw_seed(problem, subject, "", "variance bootstrap")
    found: dict[str, list[np.ndarray]] = {name: [] for name in parts}
    for weights in bootstrap_weights(len(before), problem.draws, seed):
        total = weights @ before
        scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        for name, gain in parts.items():
            found[name].append(((weights @ gain) * scale) @ masks.T)
    return {name: np.concatenate(values) for name, values in found.items()}


def _sentences(problem: Problem, banded: bool) -> tuple[str, ...]:
    ridge = "banded ridge (a weight for each family)" if banded else "ridge with equal weights"
    return (
        f"variance partitioning: {ridge} on every subset of the families, held-out R² about the "
        "mean of the training responses; parts add up to the R² of all families together",
        "any part may be negative: an added family can make held-out predictions worse, and a "
        "shared part is negative where families explain more together than the sum of each alone",
        f"p: random signs of each stimulus's contribution, (1 + b) / (1 + {problem.draws}), taken "
        "as independent between stimuli; one-sided, above zero: what is below zero is not tested, "
        "as fitting noise alone pulls there; that of a shared part is the largest of its own and "
        "those of its families alone; q: Benjamini-Hochberg over the rows of a subject",
        "shared variance cannot be given to one family by any such analysis",
    )
