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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurodiff.analysis.attribution_differentiable import (
    Graph,
    affine_stages,
    baseline_name,
    baseline_trial,
    checked_scalar,
    differentiable,
    pair_derivatives,
    pair_scores,
    tensor_scores,
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
from neurodiff.core.errors import DataError, UsageError

_BATCH = 32
_ROWS = 256  # of a batch of trials times steps
MOST_STEPS = 512
_AFFINE = 1e-3  # of the spread, by which an affine decoder may miss a mid point


def gradients(
    problem: Problem, *, scalar: str = "projection", baseline: str = "mean", wrong: int = 8
) -> MethodResult:
    """Gradient x input of each region, in shares of the truth (or of the cosine).

    Parameters
    ----------
    problem : with a decoder that has affine stages or is a function of tensors.
    scalar : "projection" or "similarity", see `attribution_differentiable`.
    baseline : "mean" of the subject's training trials, or "zero".
    wrong : truths of other stimuli that a trial is asked about, where the decoder is not affine.

    Raises
    ------
    UsageError : an unknown option, a decoder without derivatives, no training trials.
    DataError : as `baseline_trial` and `shown_to`.
    """
    return _attribute(problem, "gradient_x_input", scalar, baseline, wrong, steps=0)


def integrated_gradients(
    problem: Problem,
    *,
    scalar: str = "projection",
    baseline: str = "mean",
    wrong: int = 4,
    steps: int = 16,
    tolerance: float = 0.01,
) -> MethodResult:
    """Integrated gradients of each region; completeness is printed, and a column of the table.

    Parameters
    ----------
    scalar, baseline, wrong : as of :func:`gradients`.
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
    return _attribute(
        problem, "integrated_gradients", scalar, baseline, wrong, steps=steps, tolerance=tolerance
    )


@dataclass(kw_only=True, eq=False)
class _Found:
    """Of one subject and stage, by region.

    own : (regions, n) of each trial towards its own truth.
    null : (regions, draws).
    incomplete : share; missed the worst trial, in units of the mean |f(x) - f(b)|.
    """

    own: np.ndarray
    null: np.ndarray
    incomplete: float
    missed: float
    steps: int
    map: np.ndarray = field(default_factory=lambda: np.zeros(0))


def _attribute(
    problem: Problem,
    method: str,
    scalar: str,
    baseline: str,
    wrong: int,
    *,
    steps: int,
    tolerance: float = 0.01,
) -> MethodResult:
    checked_scalar(scalar)
    if wrong < 2:
        raise UsageError(f"wrong is {wrong}; give at least 2 truths of other stimuli")
    decoder, affine = problem.decoder, affine_stages(problem.decoder)
    curved = [s for s in decoder.stages if s not in affine]
    graph = differentiable(decoder, seed=problem.seed) if curved else None
    regions, masks = list(problem.rois), np.stack(list(problem.rois.values()))
    rows: list[dict[str, Any]] = []
    items, maps, notes = [], {}, []
    for subject in problem.subjects:
        shown = shown_to(problem.test.trials, problem.truth, decoder.stages, subject)
        base = baseline_trial(problem, subject, baseline)
        found: dict[str, _Found] = {}
        if affine:
            found |= _of_affine(problem, shown, base, masks, scalar, steps)
        for stage in curved:
            found[stage] = _of_graph(
                problem, graph, stage, shown, base, masks,
                scalar=scalar, wrong=wrong, steps=steps, tolerance=tolerance,
            )  # fmt: skip
        for stage in decoder.stages:
            one = found[stage]
            text = _completeness(method, subject, stage, one, tolerance)
            problem.progress.say(f"  {text}")
            notes.append(text)
            for k, region in enumerate(regions):
                per_stimulus = shown.by_stimulus(one.own[k])
                rows.append(
                    {
                        "method": method, "subject": subject, "stage": stage, "roi": region,
                        "metric": scalar,
                        **table_row(
                            per_stimulus, one.null[k], draws=problem.draws,
                            confidence=problem.confidence, seed=problem.seed,
                        ),
                        "n_trials": len(shown.rows), "n_features": int(masks[k].sum()),
                        "unit": "share of truth" if scalar == "projection" else "cosine",
                        "incomplete": one.incomplete, "steps": one.steps,
                    }
                )  # fmt: skip
                items.append(
                    pd.DataFrame(
                        {"subject": subject, "stimulus": shown.stimuli, "stage": stage,
                         "roi": region, "value": per_stimulus}
                    )
                )  # fmt: skip
            name = f"{method} {stage}" + (f" {subject}" if len(problem.subjects) > 1 else "")
            maps[name] = one.map if len(one.map) else _painted(one.own.mean(axis=1), masks)
    return MethodResult(
        method=method,
        table=attribution_table(rows),
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=(*_notes(problem, scalar, baseline, wrong if curved else 0, affine), *notes),
    )


# ----------------------------------------------------------------------------- affine decoders


def decoded_regions(
    problem: Problem, shown: Shown, base: np.ndarray, masks: np.ndarray
) -> tuple[dict[str, np.ndarray], Callable[[int], dict[str, np.ndarray]]]:
    """What an affine decoder gives for the baseline, and what each region adds to it.

    Parameters
    ----------
    masks : (regions, features), or (regions, *frames, features).

    Returns
    -------
    stage -> (n, d) of the baseline; and a function of the region's number, -1 for all features,
    that gives stage -> (n, d) of the change.

    Raises
    ------
    DataError : the decoder says that it is affine, and decodes a mid point elsewhere.
    """
    trials = problem.test.trials.iloc[shown.rows]
    data = np.asarray(problem.test.data[shown.rows], np.float32)
    step = data - base
    stages = [s for s in problem.decoder.stages if s in affine_stages(problem.decoder)]

    def decode(values: np.ndarray) -> dict[str, np.ndarray]:
        found = problem.decoder.decode(values.astype(np.float32), trials)
        return {s: np.asarray(found[s], np.float64).reshape(len(values), -1) for s in stages}

    still = decode(np.broadcast_to(base, data.shape))

    def change(region: int) -> dict[str, np.ndarray]:
        moved = decode(data if region < 0 else base + np.where(masks[region], step, 0))
        return {s: moved[s] - still[s] for s in stages}

    half, whole = decode(base + step / 2), change(-1)
    for s in stages:
        off = np.abs(half[s] - still[s] - whole[s] / 2).max()
        if off > _AFFINE * max(float(np.abs(whole[s]).max()), 1e-9):
            raise DataError(
                f"stage {s!r} of {problem.decoder.name!r} is listed as affine, but half a step "
                "decodes to something else than half the change; take it out of decoder.affine"
            )
    return still, change


def _of_affine(
    problem: Problem, shown: Shown, base: np.ndarray, masks: np.ndarray, scalar: str, steps: int
) -> dict[str, _Found]:
    still, change = decoded_regions(problem, shown, base, masks)
    whole, found = change(-1), {}
    # derivatives of an affine decoder change along the path through the scalar alone
    nodes, weights = np.polynomial.legendre.leggauss(max(steps, 1))
    places = [(1.0, 1.0)]
    if steps and scalar == "similarity":
        places = [((x + 1) / 2, w / 2) for x, w in zip(nodes, weights, strict=True)]

    def pairs(stage: str, moved: np.ndarray) -> np.ndarray:
        start = still[stage] - shown.centre[stage]
        total = np.zeros((len(moved), len(shown.stimuli)))
        for place, weight in places:
            at = start + place * whole[stage]
            total += weight * pair_derivatives(moved, at, shown.truth[stage], scalar)
        return total

    own_column = np.arange(len(shown.rows)), shown.code
    for stage in still:
        start = still[stage] - shown.centre[stage]
        gain = [
            pair_scores(y, shown.truth[stage], scalar)[own_column]
            for y in (start + whole[stage], start)
        ]
        reached = pairs(stage, whole[stage])[own_column]
        share, worst = _incomplete(reached, gain[0] - gain[1])
        found[stage] = _Found(
            own=np.zeros((len(masks), len(shown.rows))),
            null=np.zeros((len(masks), problem.draws)),
            incomplete=share,
            missed=worst,
            steps=len(places),
        )
    for k in range(len(masks)):
        for stage, moved in change(k).items():
            values = pairs(stage, moved)
            found[stage].own[k] = values[own_column]
            square = shown.by_stimulus(values)
            found[stage].null[k] = null_of_pairs(square, problem.draws, problem.seed)
    return found


# --------------------------------------------------------------------------- any other decoder


def _of_graph(
    problem: Problem,
    graph: Graph,
    stage: str,
    shown: Shown,
    base: np.ndarray,
    masks: np.ndarray,
    *,
    scalar: str,
    wrong: int,
    steps: int,
    tolerance: float,
) -> _Found:
    trials = problem.test.trials.iloc[shown.rows].reset_index(drop=True)
    centre = torch.from_numpy(shown.centre[stage]).float()
    truth = torch.from_numpy(shown.truth[stage]).float()

    def f(x: torch.Tensor, row: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
        given = graph(x, trials.iloc[row.numpy()])
        if stage not in given:
            raise UsageError(
                f"the decoder {problem.decoder.name!r} has a stage {stage!r} that its tensors do "
                f"not give; they give {', '.join(given)}"
            )
        return tensor_scores(given[stage].flatten(1) - centre, truth[aim], scalar)

    while True:
        own, gain, mean = _towards(problem, f, shown, base, masks, shown.code, steps)
        share, worst = _incomplete(own[-1], gain)
        if not steps or share <= tolerance or 2 * steps > MOST_STEPS:
            break
        steps *= 2
        problem.progress.say(f"  {stage}: incomplete by {share:.1%}; {steps} steps")
    other = others(shown, wrong, problem.seed)
    towards = np.stack(
        [
            _towards(problem, f, shown, base, masks, other[shown.code, j], steps)[0]
            for j in range(other.shape[1])
        ],
        axis=-1,
    )  # (regions + 1, n, wrong)
    null = np.stack(
        [
            null_of_others(shown.by_stimulus(one), problem.draws, problem.seed)
            for one in towards[:-1]
        ]
    )
    return _Found(own=own[:-1], null=null, incomplete=share, missed=worst, steps=steps, map=mean)


def _towards(
    problem: Problem,
    f: Callable[..., torch.Tensor],
    shown: Shown,
    base: np.ndarray,
    masks: np.ndarray,
    aims: np.ndarray,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attributions towards stimuli ``aims`` (n,): by region and in all (regions + 1, n);
    f(x) - f(b), (n,); mean over trials, (features,)."""
    sums = np.zeros((len(masks) + 1, len(shown.rows)))
    gain, total = np.zeros(len(shown.rows)), 0.0
    start = torch.from_numpy(base)
    for first in range(0, len(shown.rows), _BATCH):
        place = np.arange(first, min(first + _BATCH, len(shown.rows)))
        x = torch.from_numpy(np.array(problem.test.data[shown.rows[place]], np.float32))
        row, aim = torch.from_numpy(place), torch.from_numpy(aims[place])
        with torch.no_grad():
            gain[place] = (f(x, row, aim) - f(start.expand_as(x), row, aim)).double().numpy()
        values = _integrated(f, x, start, row, aim, steps).double().numpy()
        values = values.reshape(len(place), -1, values.shape[-1]).sum(axis=1)
        sums[:-1, place] = masks.astype(np.float64) @ values.T
        sums[-1, place] = values.sum(axis=1)
        total = total + values.sum(axis=0)
    return sums, gain, total / len(shown.rows)


def _integrated(
    f: Callable[..., torch.Tensor],
    x: torch.Tensor,
    start: torch.Tensor,
    row: torch.Tensor,
    aim: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Attributions of each number of a batch; with 0 steps gradient x input."""
    if not steps:
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(at, row, aim).sum(), at, allow_unused=True)
        return torch.zeros_like(x) if slope is None else slope * (x - start)
    from captum.attr import IntegratedGradients

    return (
        IntegratedGradients(f)
        .attribute(
            x,
            baselines=start[None].expand_as(x).contiguous(),
            additional_forward_args=(row, aim),
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=max(_ROWS, len(x)),
        )
        .detach()
    )


# --------------------------------------------------------------------------------------- words


def _incomplete(reached: np.ndarray, gain: np.ndarray) -> tuple[float, float]:
    """Sum of what is missed as a share of the sum of gains; the worst trial by the mean gain."""
    missed, size = np.abs(reached - gain), max(float(np.abs(gain).mean()), 1e-12)
    return float(missed.mean() / size), float(missed.max() / size)


def _completeness(method: str, subject: str, stage: str, found: _Found, tolerance: float) -> str:
    place = f"{stage} of {subject}"
    size = f"{found.incomplete:.2g} of |f(x) - f(b)|, at worst {found.missed:.2g} in one trial"
    if method == "gradient_x_input":
        return f"{place}: the sum over all features misses {size}; gradients promise no more"
    text = f"{place}: integrated gradients miss {size}, with {found.steps} steps"
    if found.incomplete <= tolerance:
        return f"{text}: complete to {tolerance:.0%}"
    return f"{text}: NOT complete to {tolerance:.0%}; read these values with that in mind"


def _painted(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(features,) the value of the region a feature lies in; the mean where there are several."""
    count = masks.sum(axis=0)
    return np.where(count > 0, values @ masks / np.maximum(count, 1), np.nan)


def _notes(
    problem: Problem, scalar: str, baseline: str, wrong: int, affine: Mapping | frozenset
) -> list[str]:
    notes = [
        f"Scalar: {scalar} of the decoded features on the trial's own true features, both less "
        "the mean of the true features of the subject's test stimuli.",
        f"Baseline: {baseline_name(baseline)}.",
        "p is one-sided, (1 + b) / (1 + B), against truths of other stimuli "
        + (f"({wrong} for each stimulus). " if wrong else "(all permuted over stimuli). ")
        + "q is Benjamini-Hochberg over the regions of a subject and stage. Intervals: bootstrap "
        "over stimuli.",
        "Gradients describe the model: a region that it does not read gets 0, whatever the "
        "region carries.",
    ]
    if affine:
        notes.append(
            f"Affine stages ({', '.join(sorted(affine))}): by decoding each region alone, which "
            "is exact; their maps show each region's sum in all its features."
        )
    if problem.overlapping():
        notes.append("Some regions overlap, so that their values do not add up.")
    return notes
