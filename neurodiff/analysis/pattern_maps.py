"""Activation patterns of the linear decoder of each stage: where the response varies with what is
decoded, which the decoder's weights do not say.

For each stage the leading principal components of its features over the training stimuli (the
latents) are decoded by ridge from all vertices, and the weights are turned into patterns
(`bridges.activation_patterns`). A region's value is the size of its pattern: the root mean square,
over vertices and latents, of the change of a vertex in its own SD for one SD of the decoded latent.

References
----------
Haufe et al. 2014, NeuroImage 87.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult, Problem
from neurodiff.analysis.encoding_data import (
    Responses,
    SubjectData,
    draw_seed,
    exchange_blocks,
    roi_masks,
    stage_features,
    subjects_of,
)
from neurodiff.bridges.activation_patterns import (
    LatentDecoder,
    activation_patterns,
    leading_latents,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import numpy_generator
from neurodiff.metrics.encoding_scores import exchange_orders, false_discovery
from neurodiff.metrics.statistics import permutation_p


def patterns(
    problem: Problem,
    features: Mapping[str, Any] | None = None,
    *,
    components: int = 8,
    exchange: str = "auto",
    groups: str = "stimulus",
    alphas: Any = None,
) -> MethodResult:
    """Size of each region's activation pattern, stage by stage.

    Parameters
    ----------
    problem : patterns belong to the fit, so they are of the training stimuli; without ``train``, of
        the test stimuli, on which the ridge is then fitted.
    features : None for the stages of the problem, or name -> features; see
        `encoding_data.stage_features`.
    components : latents of each stage, at most; fewer where the features or the fit span fewer.
    exchange : which stimuli the null may swap; see `encoding_data.subjects_of`.
    groups, alphas : of the choice of the penalty, as in `encoding_maps`.

    Returns
    -------
    ``table``: a row a subject, stage and ROI; ``value``: root mean square of the pattern, in SD of
    the vertex for one SD of the latent. ``null_*`` and one-sided p: ridge refitted to latents of
    permuted stimuli (same penalty); the size of a pattern is never 0, so compare it to
    ``null_mean``. Interval: stimuli drawn again with the decoder held, reflected about the value
    (basic bootstrap), because a size grows with noise. q by FDR over the rows of a subject.
    ``maps``: ``"<subject>/<stage>/pattern"`` size at each vertex, ``".../pattern 1"``, ... the
    signed pattern of each latent.

    Raises
    ------
    UsageError : fewer than 10 stimuli, no component.
    DataError : an empty ROI, features or responses that never vary.
    """
    if components < 1:
        raise UsageError(f"{components} components; give a whole number from 1")
    rois = roi_masks(problem)
    tables, maps, notes = [], {}, []
    for data in subjects_of(problem, folds=2, exchange="all", groups="stimulus"):
        blocks, said = exchange_blocks(data.train, exchange)
        X, varies = _scaled(data.train)
        decoder = LatentDecoder(X, alphas, _labels(data, groups))
        rows = []
        stages = stage_features(problem, data, features).items()
        for stage, (train, _) in problem.progress.over(list(stages), f"patterns, {data.subject}"):
            latents, share = leading_latents(train, components)
            made = _scored(problem, data, stage, decoder, latents, blocks, rois)
            rows += made[0]
            for name, values in made[1].items():
                # a vertex that never varies has no pattern in units of its SD
                maps[f"{data.subject}/{stage}/{name}"] = np.where(varies, values, np.nan)
            notes.append(
                f"{data.subject}, {stage}: {latents.shape[1]} latents, {share:.0%} of the "
                "features' variance"
            )
        table = pd.DataFrame(rows)
        table["q"] = false_discovery(table["p"].to_numpy(float))
        tables.append(table)
        notes.append(f"{data.subject}: {said}")
    return MethodResult(
        method="patterns",
        table=pd.concat(tables, ignore_index=True)[list(COLUMNS)],
        maps=maps,
        notes=(*_sentences(problem), *notes),
    )


def _labels(data: SubjectData, groups: str) -> np.ndarray:
    if groups not in data.train.table:
        raise UsageError(f"the trials table has no column {groups!r} to group the stimuli by")
    return data.train.table[groups].astype(str).to_numpy()


def _scaled(responses: Responses) -> tuple[np.ndarray, np.ndarray]:
    """Mean responses in SD of each vertex (0 where it never varies), and which vary."""
    centred = responses.means - responses.means.mean(axis=0)
    spread = centred.std(axis=0)
    varies = spread > 1e-10 * np.maximum(np.abs(responses.means).max(axis=0), 1e-300)
    return centred / np.where(varies, spread, 1.0) * varies, varies


def _scored(
    problem: Problem,
    data: SubjectData,
    stage: str,
    decoder: LatentDecoder,
    latents: np.ndarray,
    blocks: np.ndarray,
    rois: Mapping[str, np.ndarray],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    alpha = decoder.choose(latents)
    X = decoder.centred
    decoded = decoder.decoded(latents, alpha)
    found = _in_sd(X, decoded)
    masks = np.stack(list(rois.values())).astype(float)
    values = _sizes(found, masks)
    seed = draw_seed(problem, data.subject, "", "pattern null")
    null = np.stack(
        [
            _sizes(_in_sd(X, decoder.decoded(latents[order], alpha)), masks)
            for order in exchange_orders(blocks, problem.draws, seed)
        ]
    )
    generator = numpy_generator(draw_seed(problem, data.subject, "", "pattern bootstrap"))
    again = []
    for _ in range(problem.draws):
        drawn = generator.integers(0, len(X), len(X))
        again.append(_sizes(_in_sd(X[drawn], decoded[drawn]), masks))
    tails = [(1 - problem.confidence) / 2, (1 + problem.confidence) / 2]
    upper, lower = np.quantile(np.stack(again), tails[::-1], axis=0)
    rows = [
        {
            **dict(method="patterns", subject=data.subject, stage=stage, roi=name),
            **dict(metric="pattern size", value=float(values[k])),
            "low": float(max(2 * values[k] - upper[k], 0.0)),
            "high": float(2 * values[k] - lower[k]),
            "null_mean": float(null[:, k].mean()),
            "null_low": float(np.quantile(null[:, k], tails[0])),
            "null_high": float(np.quantile(null[:, k], tails[1])),
            "p": permutation_p(float(values[k]), null[:, k]),
            "n_trials": len(X),
            "n_features": int(mask.sum()),
            "unit": "SD a SD",
        }
        for k, (name, mask) in enumerate(rois.items())
    ]
    maps = {"pattern": np.sqrt(np.square(found).mean(axis=1))}
    maps |= {f"pattern {k + 1}": found[:, k] for k in range(found.shape[1])}
    return rows, maps


def _in_sd(X: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Patterns for one SD of each decoded latent, (features, latents)."""
    return activation_patterns(X, decoded) * decoded.std(axis=0)


def _sizes(found: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Root mean square over the vertices of each region and over latents, (rois,)."""
    return np.sqrt(masks @ np.square(found).mean(axis=1) / masks.sum(axis=1))


def _sentences(problem: Problem) -> tuple[str, ...]:
    side = "training" if problem.train is not None else "test"
    return (
        f"patterns: cov(X) W cov(s)^-1 (Haufe et al. 2014) of the ridge from all vertices to the "
        f"latents of each stage, over the {side} stimuli; each vertex in its own SD",
        f"p: the ridge is refitted to permuted stimuli, one-sided, (1 + b) / (1 + {problem.draws});"
        " q: Benjamini-Hochberg over the rows of a subject; intervals hold the decoder and are "
        "reflected about the value, of which noise is a part: an empty region's lies below it",
        "the null is that no vertex anywhere knows the stimulus, and its decoder fits noise "
        "everywhere: for an empty region beside a loaded one p is larger than it need be",
        "a vertex whose noise is shared with the signal's vertices has no pattern, one that is "
        "correlated with the latents has, whether the decoder needs it or not",
    )
