"""Leave a region out and look at what is drawn: meshes or pictures of a few trials.

Features are scored for hundreds of trials in seconds; a mesh or a picture takes the whole pipeline.
So a seeded sample of stimuli (24) is decoded with everything and without each region, with the same
noise, and the score of each against the object that was shown is compared within the stimulus.

    MinD3D          minus the Chamfer distance (lengths, 2,048 points, longest side of a box 1)
    BrainDiffuser   PixCorr
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_conditions import REPLACEMENTS, Conditions
from neurodiff.analysis.attribution_problem import (
    COLUMNS,
    LEAST_STIMULI,
    MethodResult,
    Problem,
)
from neurodiff.analysis.attribution_statistics import Resampling, adjusted
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator

POINTS = 2048
STAGE = "reconstruction"


def reconstruction_loss(
    problem: Problem,
    *,
    trials: int = 24,
    replacement: str = "mean",
    score: Callable[[list[Any], Sequence[str]], np.ndarray] | None = None,
    name: str = "",
) -> MethodResult:
    """The loss of each region in what is drawn.

    Parameters
    ----------
    trials : stimuli, drawn by the problem's seed; of each the first trial.
    replacement : as in `attribution_ablation.leave_one_out`.
    score : (drawn, names of the stimuli) -> (n,), higher is better; None is the pipeline's own.
    name : of the score.

    Returns
    -------
    ``value``: mean over stimuli of score with everything minus score without the region; interval
    by bootstrap over stimuli, ``p`` one-sided by random signs of the stimuli's differences.

    Raises
    ------
    UsageError : a decoder that draws nothing, fewer than 10 trials, no such replacement.
    """
    draw = getattr(problem.decoder, "draw", None)
    if draw is None:
        raise UsageError(
            f"{problem.decoder.name} draws nothing; this method is for MinD3D and BrainDiffuser"
        )
    if replacement not in REPLACEMENTS:
        raise UsageError(f"replacement is {replacement!r}; there are {', '.join(REPLACEMENTS)}")
    if trials < LEAST_STIMULI:
        raise UsageError(f"trials is {trials}; intervals over stimuli need {LEAST_STIMULI}")
    compare = score or problem.decoder.compare
    unit = name or (problem.decoder.compared if score is None else "score")
    conditions = Conditions(problem, tuple(problem.decoder.stages)[:1])
    rows_of = _sampled(problem, trials)
    lines, items = [], []
    whole = _scored(problem, conditions.data, rows_of, draw, compare)
    for roi in problem.progress.over(list(problem.rois), "drawing without", len(problem.rois)):
        mask = np.asarray(problem.rois[roi])
        data = conditions.data.copy()
        data[..., mask] = conditions.replaced(mask, replacement, roi)
        found = _scored(problem, data, rows_of, draw, compare)
        for subject, rows in rows_of.items():
            loss = whole[subject] - found[subject]
            method = f"reconstruction:{replacement}"
            lines.append(_line(problem, method, subject, roi, loss, unit))
            ids = problem.test.trials["stimulus"].astype(str).to_numpy()[rows]
            items.append(
                pd.DataFrame(
                    {"subject": subject, "stimulus": ids, "roi": roi, "stage": STAGE, "value": loss}
                )
            )
    table = pd.DataFrame(lines)
    table["q"] = table.groupby("subject", sort=False)["p"].transform(
        lambda p: adjusted(p.to_numpy())
    )
    maps = {}
    for subject, part in table.groupby("subject", sort=False):
        painted = np.full(problem.test.n_features, np.nan)
        for _, line in part.iterrows():
            painted[np.asarray(problem.rois[line["roi"]])] = line["value"]
        maps[f"{subject}/{STAGE}/value"] = painted
    counts = {len(rows) for rows in rows_of.values()}
    notes = (
        f"{max(counts)} stimuli a subject, drawn by the seed, one trial each, the same noise with "
        f"and without a region; score: {unit}.",
        f"p: one-sided, random signs of the stimuli's differences, {problem.draws} draws; the null "
        "range is theirs. q: Benjamini-Hochberg over the regions of a subject.",
        "The signs ask whether drawing is worse without the region, and not whether what is lost "
        "is about the stimulus: a decoder that is asked outside of what it was fitted on may draw "
        "worse for that alone. Leave-one-out of the features pairs stimuli anew instead.",
    )
    return MethodResult(
        method=f"reconstruction:{replacement}",
        table=table[list(COLUMNS)],
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=notes,
    )


def chamfer_scores(meshes: Sequence[Any], truths: Sequence[Any]) -> np.ndarray:
    """Minus the Chamfer distance (lengths) of meshes in their boxes; an empty mesh is at 2.

    Points are drawn by the number of the pair, so that a mesh is compared with the same ones.
    """
    from neurodiff.metrics.meshes import chamfer_distance

    out = np.full(len(meshes), -2.0)
    for k, (mesh, truth) in enumerate(zip(meshes, truths, strict=True)):
        if len(mesh.faces):
            a, b = (_points(m, k) for m in (mesh, truth))
            out[k] = -float(chamfer_distance(a, b, squared=False))
    return out


def pixcorr_scores(pictures: Sequence[Any], truths: Sequence[Any]) -> np.ndarray:
    """PixCorr of pictures with those that were shown, at the size of the drawn ones."""
    from neurodiff.metrics.images import pixcorr

    return np.array(
        [
            pixcorr(np.asarray(p.convert("RGB")), np.asarray(t.convert("RGB").resize(p.size)))
            for p, t in zip(pictures, truths, strict=True)
        ]
    )


def _points(mesh: Any, number: int) -> np.ndarray:
    import trimesh

    points, _ = trimesh.sample.sample_surface(mesh, POINTS, seed=number)
    points = np.asarray(points, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / max(float((high - low).max()), 1e-9)


def _sampled(problem: Problem, trials: int) -> dict[str, np.ndarray]:
    """Rows of the drawn stimuli of each subject."""
    table = problem.test.trials.reset_index(drop=True)
    chosen = {}
    for subject, part in table.groupby(table["subject"].astype(str), sort=False):
        first = part.drop_duplicates("stimulus").index.to_numpy()
        generator = numpy_generator(
            item_seed(problem.seed, subject=subject, stimulus="", stage="drawn stimuli")
        )
        picked = generator.permutation(len(first))[:trials]
        chosen[str(subject)] = np.sort(first[picked])
    return chosen


def _scored(
    problem: Problem,
    data: np.ndarray,
    rows_of: dict[str, np.ndarray],
    draw: Callable[[np.ndarray, pd.DataFrame], list[Any]],
    compare: Callable[[list[Any], Sequence[str]], np.ndarray],
) -> dict[str, np.ndarray]:
    out = {}
    for subject, rows in rows_of.items():
        trials = problem.test.trials.iloc[rows].reset_index(drop=True)
        drawn = draw(data[rows], trials)
        out[subject] = np.asarray(compare(drawn, list(trials["stimulus"].astype(str))), float)
    return out


def _line(
    problem: Problem, method: str, subject: str, roi: str, loss: np.ndarray, unit: str
) -> dict[str, Any]:
    resampling = Resampling(
        len(loss), subject, draws=problem.draws, seed=problem.seed, confidence=problem.confidence
    )
    low, high = resampling.interval(loss)
    signs = numpy_generator(resampling.seed).choice([-1.0, 1.0], (problem.draws, len(loss)))
    null = signs @ loss / len(loss)
    tail = 50 * (1 - problem.confidence)
    bottom, top = np.percentile(null, [tail, 100 - tail])
    return {
        "method": method, "subject": subject, "stage": STAGE, "roi": roi, "metric": unit,
        "value": float(loss.mean()), "low": float(low), "high": float(high),
        "null_mean": float(null.mean()), "null_low": float(bottom), "null_high": float(top),
        "p": float((1 + (null >= loss.mean() - 1e-12).sum()) / (1 + problem.draws)),
        "n_trials": len(loss), "n_features": int(np.asarray(problem.rois[roi]).sum()), "unit": unit,
    }  # fmt: skip
