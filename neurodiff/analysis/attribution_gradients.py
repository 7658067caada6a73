"""Gradient x input and integrated gradients: how much of a decoded trial each region accounts for.

With f the scalar of a trial (`attribution_differentiable`) and b the baseline trial:

    gradient x input      (x - b) . f'(x)
    integrated gradients  (x - b) . mean over a in 0..1 of f'(b + a (x - b))

summed over the features (and frames) of a region.  The second adds up to f(x) - f(b) over all
features (completeness); its steps are doubled until that holds to ``tolerance``.  Where the decoder
is affine both are found by decoding regions alone, and with the projection they are one and exact.

They describe the model, not the brain: a region that the model does not read gets 0 whatever it
carries, and of two regions that tell the same the penalty of the fit decides which is read.

Sundararajan, Taly & Yan 2017, Axiomatic Attribution for Deep Networks, ICML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_differentiable import (
    Graph,
    LinearParts,
    affine_stages,
    baseline_name,
    baseline_trial,
    checked_scalar,
    differentiable,
    pair_derivatives,
    pair_scores,
    scalar_words,
    unit_of,
)
from neurodiff.analysis.attribution_pairs import (
    Shown,
    attribution_table,
    null_of_others,
    null_of_pairs,
    others,
    shown_to,
    table_row,
)
from neurodiff.analysis.attribution_problem import MethodResult, Problem
from neurodiff.analysis.attribution_slopes import Slopes
from neurodiff.analysis.attribution_statistics import exchange_words
from neurodiff.core.errors import UsageError

MOST_STEPS = 512
_NULL_STEPS = 4  # at least; the null needs a quarter of the steps


def gradients(
    problem: Problem,
    *,
    scalar: str = "projection",
    baseline: str = "mean",
    wrong: int = 8,
    stages: Sequence[str] | None = None,
) -> MethodResult:
    """Gradient x input of each region, in shares of the truth (or of the cosine).

    Parameters
    ----------
    problem : with a decoder that has linear stages or is a function of tensors.
    scalar : "projection" or "similarity", see `attribution_differentiable`.
    baseline : "mean" of the subject's training trials, or "zero".
    wrong : truths of other stimuli that a trial is asked about, where a stage is not linear.
    stages : of the decoder; by default all.

    Raises
    ------
    UsageError : an unknown option or stage, a decoder without derivatives, no training trials.
    DataError : no training trials of a subject, too few stimuli, a stage without truth.
    """
    named = tuple(stages) if stages else None
    how = _How(
        method="gradient_x_input", scalar=scalar, baseline=baseline, wrong=wrong, stages=named
    )
    return _attribute(problem, how)


def integrated_gradients(
    problem: Problem,
    *,
    scalar: str = "projection",
    baseline: str = "mean",
    wrong: int = 4,
    steps: int = 16,
    tolerance: float = 0.01,
    stages: Sequence[str] | None = None,
) -> MethodResult:
    """Integrated gradients of each region; completeness is printed, and a column of the table.

    Parameters
    ----------
    scalar, baseline, wrong, stages : as of :func:`gradients`.
    steps : of the integral, Gauss-Legendre; doubled up to 512 while it is not complete.
    tolerance : largest sum over trials of |sum of attributions - (f(x) - f(b))|, as a share of
        the sum of |f(x) - f(b)|.

    Raises
    ------
    UsageError, DataError : as :func:`gradients`; steps or tolerance out of range.
    """
    if not 1 <= steps <= MOST_STEPS or not tolerance > 0:
        raise UsageError(
            f"steps is {steps} and tolerance {tolerance}; give 1 to {MOST_STEPS} steps and a "
            "share above 0"
        )
    how = _How(
        method="integrated_gradients",
        scalar=scalar,
        baseline=baseline,
        wrong=wrong,
        steps=steps,
        tolerance=tolerance,
        stages=tuple(stages) if stages else None,
    )
    return _attribute(problem, how)


@dataclass(frozen=True, kw_only=True)
class _How:
    """Options of both methods; ``steps`` 0 is gradient x input."""

    method: str
    scalar: str
    baseline: str
    wrong: int
    steps: int = 0
    tolerance: float = 0.01
    stages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        checked_scalar(self.scalar)
        if self.wrong < 2:
            raise UsageError(f"wrong is {self.wrong}; give at least 2 truths of other stimuli")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """Of one subject and stage, by region.

    own : (regions, n) of each trial towards its own truth.
    null : (regions, draws).
    incomplete : share; missed the worst trial, in units of the mean |f(x) - f(b)|.
    map : (features,) mean over trials.
    """

    own: np.ndarray
    null: np.ndarray
    incomplete: float
    missed: float
    steps: int
    map: np.ndarray


def _attribute(problem: Problem, how: _How) -> MethodResult:
    decoder, affine = problem.decoder, affine_stages(problem.decoder)
    stages = how.stages or decoder.stages
    graph = None
    regions, masks = list(problem.rois), np.stack(list(problem.rois.values()))
    rows, items, notes = [], [], []
    maps: dict[str, np.ndarray] = {}
    for subject in problem.subjects:
        shown = shown_to(problem, stages, subject)
        base = baseline_trial(problem, subject, how.baseline)
        for stage in stages:
            if stage in affine:
                found = _of_affine(problem, stage, shown, base, masks, how)
            else:
                graph = graph or differentiable(decoder, seed=problem.seed)
                found = _of_graph(problem, graph, stage, shown, base, masks, how)
            text = _completeness(how, subject, stage, found)
            problem.progress.say(f"  {text}")
            notes.append(text)
            name = f"{how.method} {stage}" + (f" {subject}" if len(problem.subjects) > 1 else "")
            maps[name] = found.map
            for k, region in enumerate(regions):
                values = shown.by_stimulus(found.own[k])
                place = {"subject": subject, "stage": stage, "roi": region}
                items.append(pd.DataFrame({**place, "stimulus": shown.stimuli, "value": values}))
                rows.append(
                    {
                        "method": how.method,
                        **place,
                        "metric": how.scalar,
                        **table_row(shown.resampling, values, found.null[k]),
                        "n_trials": len(shown.rows),
                        "n_features": int(masks[k].sum()),
                        "unit": unit_of(how.scalar),
                        "incomplete": found.incomplete,
                        "steps": found.steps,
                    }
                )
    curved = [s for s in stages if s not in affine]
    return MethodResult(
        method=how.method,
        table=attribution_table(rows),
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=(*_notes(problem, how, curved, sorted(affine & set(stages))), *notes),
    )


# ----------------------------------------------------------------------------- affine decoders


def _of_affine(
    problem: Problem,
    stage: str,
    shown: Shown,
    base: np.ndarray,
    masks: np.ndarray,
    how: _How,
) -> _Found:
    parts = LinearParts(problem, shown, stage, base)
    start, true = parts.still - shown.centre[stage], shown.truth[stage]
    own = np.arange(len(shown.rows)), shown.code
    ends = np.broadcast_to(start, parts.whole.shape), start + parts.whole
    before, after = (pair_scores(y, true, how.scalar)[own] for y in ends)

    def pairs(moved: np.ndarray, steps: int) -> np.ndarray:
        """(n, stimuli): mean derivative along ``moved``; it changes through the scalar alone."""
        total = np.zeros((len(moved), len(true)))
        nodes, weights = np.polynomial.legendre.leggauss(steps or 1)
        places = zip((nodes + 1) / 2, weights / 2, strict=True) if steps else [(1.0, 1.0)]
        for place, weight in places:
            total += weight * pair_derivatives(moved, start + place * parts.whole, true, how.scalar)
        return total

    steps = how.steps if how.scalar == "similarity" else min(how.steps, 1)
    while True:
        share, worst = _incomplete(pairs(parts.whole, steps)[own], after - before)
        if not how.steps or share <= how.tolerance or 2 * steps > MOST_STEPS:
            break
        steps *= 2
    values, null = [], []
    for mask in masks:
        found = pairs(parts.of(mask), steps)
        values.append(found[own])
        null.append(null_of_pairs(shown, found))
    return _Found(
        own=np.stack(values),
        null=np.stack(null),
        incomplete=share,
        missed=worst,
        steps=steps,
        map=_painted(np.mean(values, axis=1), masks),
    )


# --------------------------------------------------------------------------- any other decoder


def _of_graph(
    problem: Problem,
    graph: Graph,
    stage: str,
    shown: Shown,
    base: np.ndarray,
    masks: np.ndarray,
    how: _How,
) -> _Found:
    slopes = Slopes(problem, graph, stage, shown, base, masks, scalar=how.scalar)
    gain, steps = slopes.gains(), how.steps
    while True:
        own, mean = slopes.towards(shown.code[:, None], steps)
        share, worst = _incomplete(own[-1, :, 0], gain)
        if not steps or share <= how.tolerance or 2 * steps > MOST_STEPS:
            break
        steps *= 2
        problem.progress.say(f"  {stage}: incomplete by {share:.1%}; {steps} steps")
    other = others(shown, how.wrong, problem.seed)
    coarse = min(steps, max(_NULL_STEPS, steps // 4))
    towards, _ = slopes.towards(other[shown.code], coarse)
    null = np.stack([shown.by_stimulus(one) for one in towards[:-1]])
    return _Found(
        own=own[:-1, :, 0],
        null=np.stack([null_of_others(shown, one) for one in null]),
        incomplete=share,
        missed=worst,
        steps=steps,
        map=mean,
    )


# --------------------------------------------------------------------------------------- words


def _incomplete(reached: np.ndarray, gain: np.ndarray) -> tuple[float, float]:
    """Sum of what is missed as a share of the sum of gains; the worst trial by the mean gain."""
    missed, size = np.abs(reached - gain), max(float(np.abs(gain).mean()), 1e-12)
    return float(missed.mean() / size), float(missed.max() / size)


def _completeness(how: _How, subject: str, stage: str, found: _Found) -> str:
    place = f"{stage} of {subject}"
    size = f"{found.incomplete:.2g} of |f(x) - f(b)|, at worst {found.missed:.2g} in one trial"
    if not how.steps:
        return f"{place}: the sum over all features misses {size}; a gradient promises no less"
    text = f"{place}: integrated gradients miss {size}, with {found.steps} steps"
    if found.incomplete <= how.tolerance:
        return f"{text}: complete to {how.tolerance:.0%}"
    return f"{text}: NOT complete to {how.tolerance:.0%}, so that their sum is not the change"


def _painted(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(features,) the value of the region a feature lies in; the mean where there are several."""
    count = masks.sum(axis=0)
    return np.where(count > 0, values @ masks / np.maximum(count, 1), np.nan)


def _notes(problem: Problem, how: _How, curved: list[str], affine: list[str]) -> list[str]:
    notes = [
        f"{scalar_words(how.scalar)} Baseline: {baseline_name(how.baseline)}.",
        "p is one-sided, (1 + b) / (1 + B). q is Benjamini-Hochberg over the regions of a subject "
        "and stage. Intervals: bootstrap over stimuli.",
        "Gradients describe the model: a region that it does not read gets 0, whatever the "
        "region carries.",
    ]
    for subject in problem.subjects:
        words = exchange_words(shown_to(problem, (), subject).blocks)
        notes.append(f"Null of {subject}: truths of other stimuli; {words}.")
    if curved:
        notes.append(
            f"{', '.join(curved)}: of all pairings, {how.wrong} other truths of each stimulus "
            "were computed, and the null draws from them"
            + (" (integrals of a quarter of the steps)." if how.steps else ".")
        )
    if affine:
        notes.append(
            f"{', '.join(affine)}: affine, so that each region was decoded alone, which is exact; "
            "the map shows a region's sum in all its features."
        )
    if problem.overlapping():
        notes.append("Some regions overlap, so that their values do not add up.")
    return notes
