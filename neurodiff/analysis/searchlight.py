"""Searchlight: how much the vertices around each vertex carry, on the cortical surface or in a
volume, with a p that is corrected for all of them by the largest score of each permutation.

Two scores. "rsa": Spearman agreement between distances of the responses around a vertex and
distances of a stage's features; nothing is fitted. "identification": a ridge from the vertices
around to the leading components of the stage's features, fitted in training; the share of pairs in
which the decoded components of a test stimulus are more like its own than like another's, chance
0.5.

A searchlight says what a neighbourhood carries, not what a vertex does: a strong vertex colours
every disc that it lies in, so maps are wider than what they show by the radius.

References
----------
Kriegeskorte, Goebel & Bandettini 2006, PNAS 103; Oosterhof, Wiestler, Downing & Diedrichsen 2011,
NeuroImage 56 (surface); Nichols & Holmes 2002, Human Brain Mapping 15 (largest statistic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult, Problem
from neurodiff.analysis.encoding_data import (
    LEAST_STIMULI,
    Responses,
    SubjectData,
    draw_seed,
    exchange_blocks,
    finished,
    responses_of,
    roi_masks,
    subjects_of,
    thinned,
)
from neurodiff.analysis.encoding_features import shown_features, stage_features, with_stages
from neurodiff.analysis.neighbourhoods import SURFACE, VOLUME, Surface, kind_of, neighbourhoods
from neurodiff.analysis.representational import model_rdm
from neurodiff.bridges.activation_patterns import LatentDecoder, projected_latents
from neurodiff.core.errors import DataError, UsageError
from neurodiff.metrics.encoding_scores import bootstrap_weights, exchange_orders, false_discovery
from neurodiff.metrics.identification import pairing_rates, similarities
from neurodiff.metrics.searchlight_scores import ScoreNull, pairing_null_sums, rsa_null
from neurodiff.metrics.statistics import permutation_p

#: columns of the table beside those of every method
EXTRA = ("largest", "p_max", "share_significant")
SCORES = ("rsa", "identification")
SIGNIFICANT = 0.05
_RESAMPLES = 200


def searchlight(
    problem: Problem,
    features: Mapping[str, Any] | None = None,
    *,
    stages: Sequence[str] | None = None,
    radius: float = 8.0,
    score: str = "rsa",
    kind: str = "auto",
    exchange: str = "auto",
    most: int = 100,
    components: int = 8,
    least: int = 10,
    surface: Surface | None = None,
) -> MethodResult:
    """A map of what the features around each feature carry of each stage.

    Parameters
    ----------
    features : None for the stages of the problem, or name -> features; see
        `encoding_features.stage_features`.
    stages : only these of them; None for all.
    radius : mm; along the cortex on a surface, straight in a volume.
    score : "rsa", or "identification", which needs training trials.
    kind : "surface", "volume" or "auto" for what the recording is.
    exchange : which stimuli the null may swap; see `encoding_data.subjects_of`.
    most : test stimuli of "rsa"; more are thinned to a random sample by the seed.
    components : of a stage's features that "identification" decodes, at most.
    least : features that a neighbourhood needs; smaller ones are NaN in the maps.
    surface : of a recording on fsaverage, the GIfTI files of the left and the right hemisphere;
        None for fsaverage5, which nilearn ships.

    Returns
    -------
    ``table``: a row a subject, stage and ROI; ``value``: mean score over the ROI's centres (their
    neighbourhoods reach beyond the ROI), interval by bootstrap over test stimuli, null and
    one-sided p of that mean by permuted stimuli, q by FDR over the rows of a subject; ``largest``
    score, its family-wise ``p_max`` and the share of centres with p_max <= 0.05.
    ``maps``: "score", "p" and "p_max" as ``"<subject>/<stage>/<name>"``; "size": features around
    each feature.

    Raises
    ------
    UsageError : a space without neighbours or of the other kind, fewer than 10 test stimuli, no
        training trials for "identification".
    DataError : an empty ROI, or no neighbourhood that is large enough.
    """
    if score not in SCORES:
        raise UsageError(f"score is {score!r}; give {' or '.join(map(repr, SCORES))}")
    if score == "identification" and problem.train is None:
        raise UsageError(
            "identification fits a ridge around each feature and there are no training trials; "
            "give train, or score='rsa'"
        )
    problem, features = with_stages(problem, features, stages)
    rois = roi_masks(problem)
    near = neighbourhoods(problem.test.space, radius, kind, surface=surface)
    size = np.diff(near.indptr)
    if not (size >= least).any():
        raise DataError(
            f"no neighbourhood of {radius:g} mm has {least} features (the largest has "
            f"{size.max()}); give a larger radius"
        )
    tables, notes = [], []
    maps: dict[str, np.ndarray] = {"size": size.astype(float)}
    run = _rsa if score == "rsa" else _identification
    options = {"exchange": exchange, "most": most, "components": components, "least": least}
    for subject in dict.fromkeys(problem.test.trials["subject"]):
        problem.progress.begin(f"searchlight, {subject}")
        masks = np.stack(list(rois.values()))
        nulls, intervals, n, said = run(problem, subject, features, near, masks, options)
        rows = []
        for stage, null in nulls.items():
            rows += _rows(problem, subject, stage, null, intervals[stage], rois, n, score)
            for name, values in (("score", null.score), ("p", null.p), ("p_max", null.p_max())):
                maps[f"{subject}/{stage}/{name}"] = values
        table = pd.DataFrame(rows)
        table["q"] = false_discovery(table["p"].to_numpy(float))
        tables.append(table)
        notes += said
    return MethodResult(
        method="searchlight",
        table=pd.concat(tables, ignore_index=True)[[*COLUMNS, *EXTRA]],
        maps=maps,
        notes=finished((*_sentences(problem, score, radius, size, least), *notes)),
    )


def _rsa(
    problem: Problem,
    subject: str,
    features: Mapping[str, Any] | None,
    near: csr_array,
    masks: np.ndarray,
    options: Mapping[str, Any],
) -> tuple[dict[str, ScoreNull], dict[str, np.ndarray], int, list[str]]:
    responses, told = thinned(
        responses_of(problem.test, subject), options["most"], problem.seed, subject
    )
    n = _enough(responses, subject)
    blocks, said = exchange_blocks(responses, options["exchange"])
    models = {
        stage: model_rdm(values)
        for stage, values in shown_features(problem, responses, features).items()
    }
    for stage, table in models.items():
        if not np.isfinite(table).all() or not np.ptp(table) > 0:
            raise DataError(
                f"the features of stage {stage!r} are the same for some test stimulus and every "
                "other number of it, so their distances are not known; leave the stage out"
            )
    orders = exchange_orders(
        blocks, problem.draws, draw_seed(problem, subject, "", "searchlight null")
    )
    seed = draw_seed(problem, subject, "", "searchlight bootstrap")
    weights = np.concatenate(list(bootstrap_weights(n, min(problem.draws, _RESAMPLES), seed)))
    nulls, again = rsa_null(
        responses.means,
        near,
        np.stack(list(models.values())),
        orders,
        rois=masks,
        least=options["least"],
        weights=weights,
    )
    found = dict(zip(models, nulls, strict=True))
    return found, dict(zip(models, again, strict=True)), n, [*told, f"{subject}: {said}"]


def _identification(
    problem: Problem,
    subject: str,
    features: Mapping[str, Any] | None,
    near: csr_array,
    masks: np.ndarray,
    options: Mapping[str, Any],
) -> tuple[dict[str, ScoreNull], dict[str, np.ndarray], int, list[str]]:
    (data,) = [
        one for one in subjects_of(problem, exchange=options["exchange"]) if one.subject == subject
    ]
    n = len(data.test.ids)
    kept = np.diff(near.indptr) >= options["least"]
    orders = exchange_orders(
        data.blocks, problem.draws, draw_seed(problem, subject, "", "searchlight null")
    )
    seed = draw_seed(problem, subject, "", "searchlight bootstrap")
    weights = np.concatenate(list(bootstrap_weights(n, problem.draws, seed))) / n
    found, again = {}, {}
    for stage, (train, test) in stage_features(problem, data, features).items():
        latents = projected_latents(train, test, options["components"])
        if latents[0].shape[1] < 3:
            raise DataError(
                f"stage {stage!r} has {latents[0].shape[1]} components; identification by "
                "correlation needs at least 3: give more features or components, or score='rsa'"
            )
        null = ScoreNull.of(kept, masks, problem.draws)
        each = np.zeros((len(masks), n))
        for centre in problem.progress.over(np.flatnonzero(kept), f"{subject}, {stage}"):
            inside = near.indices[near.indptr[centre] : near.indptr[centre + 1]]
            rates = _rates(data, inside, *latents)
            own = np.diagonal(rates)
            permuted = pairing_null_sums(rates, orders)
            null.add(np.array([centre]), np.array([own.mean()]), permuted[None])
            each += masks[:, centre, None] * own
        each /= np.maximum((masks & kept).sum(axis=1, keepdims=True), 1)
        found[stage], again[stage] = null, each @ weights.T
    return found, again, n, [data.notes[0]]


def _rates(
    data: SubjectData, inside: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """2-way rate of every decoded test stimulus, were any of them the one shown; (n, n)."""
    X, shown = data.train.means[:, inside], data.test.means[:, inside]
    spread = X.std(axis=0)
    if not spread.max() > 0:
        return np.full((len(test), len(test)), 0.5)
    decoder = LatentDecoder(X)
    weights = decoder.weights(train, decoder.choose(train))
    predicted = (shown - X.mean(axis=0)) @ weights
    return pairing_rates(similarities(predicted, test))


def _enough(responses: Responses, subject: str) -> int:
    if len(responses.ids) < LEAST_STIMULI:
        raise UsageError(
            f"{subject} has {len(responses.ids)} test stimuli; a searchlight with its null needs "
            f"at least {LEAST_STIMULI}: give more test stimuli"
        )
    return len(responses.ids)


def _rows(
    problem: Problem,
    subject: str,
    stage: str,
    null: ScoreNull,
    again: np.ndarray,
    rois: Mapping[str, np.ndarray],
    n: int,
    score: str,
) -> list[dict[str, Any]]:
    tails = [(1 - problem.confidence) / 2, (1 + problem.confidence) / 2]
    p_max = null.p_max()
    rows = []
    for k, (name, mask) in enumerate(rois.items()):
        known = mask & np.isfinite(null.score)
        row: dict[str, Any] = dict(method="searchlight", subject=subject, stage=stage, roi=name)
        row |= {"metric": f"searchlight_{score}", "n_trials": n, "n_features": int(mask.sum())}
        row |= {"unit": "correlation" if score == "rsa" else "rate"}
        names = ("value", "low", "high", "null_mean", "null_low", "null_high", "p", *EXTRA)
        row |= dict.fromkeys(names, float("nan"))
        if known.any():
            row["value"] = float(null.score[known].mean())
            row["low"], row["high"] = np.quantile(again[k], tails)
            row["null_mean"] = float(null.means[k].mean())
            row["null_low"], row["null_high"] = np.quantile(null.means[k], tails)
            row["p"] = permutation_p(row["value"], null.means[k])
            row["largest"] = float(null.score[known].max())
            row["p_max"] = float(p_max[known].min())
            row["share_significant"] = float(np.mean(p_max[known] <= SIGNIFICANT))
        rows.append(row)
    return rows


def _sentences(
    problem: Problem, score: str, radius: float, size: np.ndarray, least: int
) -> tuple[str, ...]:
    kind = kind_of(problem.test.space)
    along = {SURFACE: "along the cortex", VOLUME: "straight"}.get(
        kind, "along the cortex, and straight among the voxels of a subcortical structure"
    )
    what = {
        "rsa": "Spearman agreement of distances (1 - correlation) of responses and of features",
        "identification": "2-way identification from a ridge to the stage's leading components, "
        "chance 0.5",
    }[score]
    held = {
        "rsa": f"{min(problem.draws, _RESAMPLES)} draws of stimuli with the ranks held",
        "identification": "draws of stimuli with the fits held",
    }[score]
    return (
        f"searchlight on the {kind}: {radius:g} mm {along}, median {np.median(size):.0f} features; "
        f"{int((size < least).sum())} of {len(size)} neighbourhoods have fewer than {least} and "
        f"are left out; {what}",
        f"p: stimuli permuted, one-sided, (1 + b) / (1 + {problem.draws}); p_max: against the "
        "largest score over all centres, family-wise; q of a ROI: Benjamini-Hochberg over the rows "
        f"of a subject; intervals: {held}",
        "a neighbourhood reaches beyond its ROI: near a border the value belongs to both sides",
    )
