"""Leave a region out and look at what is drawn: meshes or pictures of a few trials.

Features are scored for hundreds of trials in seconds; a mesh or a picture takes the whole pipeline.
So a seeded sample of stimuli (24) is decoded with everything and without each region, with the same
noise. What is drawn is compared with the object that was shown, and with those of other sampled
stimuli, so that the null is that of the other methods: another pairing of what is drawn and what
was shown. Comparing takes time, so stimuli change places within small blocks, dealt at random (and
within runs, where the rule of `exchange` says so), which keeps the test exact. A loss that is as
large for the wrong objects (a decoder asked outside of what it was fitted on draws worse for that
alone) is then no information.

    MinD3D          minus the Chamfer distance (lengths, 2,048 points, longest side of a box 1)
    BrainDiffuser   PixCorr
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from neurodiff.analysis.attribution_statistics import (
    Resampling,
    adjusted,
    exchange_blocks,
    interval_words,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator

POINTS = 2048
BLOCK = 8
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
    score : (drawn, names of stimuli) -> (n,), higher is better, also for stimuli that were not
        shown; None is the pipeline's own.
    name : of the score.

    Returns
    -------
    ``value``: mean over stimuli of score with everything minus score without the region; interval
    by bootstrap over stimuli; ``null_*`` and one-sided ``p`` by other pairings of what is drawn and
    what was shown, within blocks of about 8 stimuli. The null's mean is what drawing loses whatever
    was shown. Costs some 8 comparisons a trial and region beside the drawing.

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
    sampled = [_sampled(problem, subject, trials) for subject in problem.subjects]
    method = f"reconstruction:{replacement}"
    lines, items = [], []
    whole = [_scored(problem, conditions.data, one, draw, compare) for one in sampled]
    for roi in problem.progress.over(list(problem.rois), "drawing without", len(problem.rois)):
        mask = np.asarray(problem.rois[roi])
        data = conditions.data.copy()
        data[..., mask] = conditions.replaced(mask, replacement, roi)
        for one, before in zip(sampled, whole, strict=True):
            loss = before - _scored(problem, data, one, draw, compare)
            lines.append(_line(problem, method, one, roi, loss, unit))
            items.append(
                pd.DataFrame(
                    {"subject": one.subject, "stimulus": one.ids, "roi": roi, "stage": STAGE,
                     "value": np.diagonal(loss)}
                )
            )  # fmt: skip
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
    most = max(len(one.rows) for one in sampled)
    notes = (
        f"{most} stimuli a subject, drawn by the seed, one trial each, the same noise with and "
        f"without a region; score: {unit}.",
        f"p: one-sided, what is drawn and what was shown are paired anew within "
        f"{len(set(sampled[0].blocks))} random blocks of these {most}{sampled[0].within}, "
        f"{problem.draws} draws; the null range is theirs, and its middle is what drawing loses "
        "for objects that were not shown. q: Benjamini-Hochberg over the regions of a subject.",
        *filter(None, [interval_words(most)]),
    )
    return MethodResult(
        method=method,
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


@dataclass(frozen=True, eq=False)
class _Sample:
    """Rows of one subject's sampled stimuli, their names, and which may change places."""

    subject: str
    rows: np.ndarray
    ids: list[str]
    blocks: np.ndarray
    within: str


def _sampled(problem: Problem, subject: str, trials: int) -> _Sample:
    table = problem.test.trials.reset_index(drop=True)
    part = table[table["subject"].astype(str) == subject]
    first = part.drop_duplicates("stimulus").index.to_numpy()
    generator = numpy_generator(
        item_seed(problem.seed, subject=subject, stimulus="", stage="drawn stimuli")
    )
    rows = np.sort(first[generator.permutation(len(first))[:trials]])
    shown = table.iloc[rows].reset_index(drop=True)
    ids = shown["stimulus"].astype(str)
    runs = exchange_blocks(shown, ids.to_numpy(), np.arange(len(ids)))
    within = "" if runs is None else f", each within one of {len(set(runs))} sets of runs"
    blocks, labels = np.zeros(len(ids), int), np.zeros(len(ids)) if runs is None else runs
    for label in dict.fromkeys(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        for part in np.array_split(members, max(1, round(len(members) / BLOCK))):
            blocks[part] = blocks.max() + 1
    return _Sample(subject, rows, list(ids), blocks, within)


def _scored(
    problem: Problem,
    data: np.ndarray,
    sample: _Sample,
    draw: Callable[[np.ndarray, pd.DataFrame], list[Any]],
    compare: Callable[[list[Any], Sequence[str]], np.ndarray],
) -> np.ndarray:
    """(stimuli, stimuli): score of what is drawn of each, were each its truth; 0 across blocks."""
    trials = problem.test.trials.iloc[sample.rows].reset_index(drop=True)
    drawn, n = draw(data[sample.rows], trials), len(sample.rows)
    out, own = np.zeros((n, n)), np.arange(n)
    for step in range(n):  # own truths together, first: they are what is reported
        other = (own + step) % n
        kept = own[sample.blocks == sample.blocks[other]]
        if len(kept):
            names = [sample.ids[k] for k in other[kept]]
            out[kept, other[kept]] = np.asarray(compare([drawn[k] for k in kept], names), float)
    return out


def _line(
    problem: Problem, method: str, sample: _Sample, roi: str, loss: np.ndarray, unit: str
) -> dict[str, Any]:
    own = np.diagonal(loss)
    resampling = Resampling(
        len(own),
        sample.subject,
        draws=problem.draws,
        seed=problem.seed,
        confidence=problem.confidence,
    )
    low, high = resampling.interval(own)
    p, null = resampling.pairing_p(loss, sample.blocks)
    tail = 50 * (1 - problem.confidence)
    bottom, top = np.percentile(null, [tail, 100 - tail])
    return {
        "method": method, "subject": sample.subject, "stage": STAGE, "roi": roi, "metric": unit,
        "value": float(own.mean()), "low": float(low), "high": float(high),
        "null_mean": float(null.mean()), "null_low": float(bottom), "null_high": float(top),
        "p": p, "n_trials": len(own), "n_features": int(np.asarray(problem.rois[roi]).sum()),
        "unit": unit,
    }  # fmt: skip
