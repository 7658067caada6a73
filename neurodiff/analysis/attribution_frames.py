"""Which frame (TR) of a trial carries what a decoder reads, in the whole brain and by region.

    leave_out   what the scalar of a trial loses when a frame is replaced by the baseline's
    only        what it gains over the baseline when that frame alone is the trial's
    gradients   gradient x input, summed over a frame; where there are derivatives

The scalar is that of `attribution_differentiable`: the projection of the decoded features on the
trial's own true features, or their cosine.  What a frame carries is not when neurons fired: the
response to an image peaks about 5 s after it and is spread over several frames, neighbouring frames
tell the same, and each can make the other look dispensable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

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
    tensor_scores,
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
from neurodiff.analysis.attribution_statistics import exchange_words
from neurodiff.core.errors import UsageError

EVERYWHERE = "all features"
HOW = ("leave_out", "only", "gradients")
_BATCH = 32
_WRONG = 8


def frame_maps(
    problem: Problem,
    *,
    how: str = "leave_out",
    scalar: str = "projection",
    baseline: str = "mean",
    by_region: bool = True,
    stages: Sequence[str] | None = None,
) -> MethodResult:
    """Value of each frame, over all features and within each region.

    Parameters
    ----------
    problem : with a recording (trials, frames, features).
    how : one of :data:`HOW`, see the module.
    scalar : "projection" or "similarity".
    baseline : "mean" of the subject's training trials, frame by frame, or "zero".
    by_region : also each region; frames x regions trials are decoded then where a stage is not
        linear and ``how`` is not "gradients".
    stages : of the decoder; by default all.

    Returns
    -------
    Rows have the stage "<stage>, frame <number from 1>", and the columns frame, of_stage and how.

    Raises
    ------
    UsageError : a recording without frames, an unknown option, no derivatives where asked for.
    DataError : no training trials of a subject, too few stimuli, a stage without truth.
    """
    if len(problem.test.data.shape) != 3:
        raise UsageError(
            f"trials have shape {tuple(problem.test.data.shape[1:])}; a map by frame needs a "
            "recording (trials, frames, features), not one number a trial and feature"
        )
    if how not in HOW:
        raise UsageError(f"how is {how!r}; known are {', '.join(HOW)}")
    checked_scalar(scalar)
    regions = {EVERYWHERE: np.ones(problem.test.n_features, bool)}
    regions |= dict(problem.rois) if by_region else {}
    chosen = tuple(stages or problem.decoder.stages)
    rows, items, maps, notes = [], [], {}, []
    for subject in problem.subjects:
        shown = shown_to(problem, chosen, subject)
        base = baseline_trial(problem, subject, baseline)
        notes.append(f"Null of {subject}: truths of other stimuli; {exchange_words(shown.blocks)}.")
        for stage in chosen:
            found = _of_stage(problem, stage, shown, base, list(regions.values()), how, scalar)
            for k, (region, mask) in enumerate(regions.items()):
                for t in range(problem.test.data.shape[1]):
                    own, null = found(k, t)
                    values = shown.by_stimulus(own)
                    place = {
                        "subject": subject,
                        "stage": f"{stage}, frame {t + 1}",
                        "roi": region,
                        "frame": t + 1,
                    }
                    items.append(
                        pd.DataFrame({**place, "stimulus": shown.stimuli, "value": values})
                    )
                    rows.append(
                        {
                            "method": f"frames:{how}",
                            **place,
                            "metric": scalar,
                            **table_row(shown.resampling, values, null),
                            "n_trials": len(shown.rows),
                            "n_features": int(mask.sum()),
                            "unit": unit_of(scalar),
                            "of_stage": stage,
                            "how": how,
                        }
                    )
    table = attribution_table(rows)
    for (subject, stage, frame), part in table.groupby(["subject", "of_stage", "frame"]):
        if by_region and part["roi"].ne(EVERYWHERE).any():
            whose = f" {subject}" if len(problem.subjects) > 1 else ""
            maps[f"frames:{how} {stage} frame {frame}{whose}"] = _painted(part, problem)
    words = {
        "leave_out": "what the scalar loses when the frame is replaced by the baseline's",
        "only": "what the scalar gains over the baseline when the frame alone is the trial's",
        "gradients": "gradient x input of the frame",
    }
    return MethodResult(
        method=f"frames:{how}",
        table=table,
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=(
            f"Value: {words[how]}. {scalar_words(scalar)} Baseline: {baseline_name(baseline)}, "
            "frame by frame.",
            "p is one-sided, (1 + b) / (1 + B); q is Benjamini-Hochberg over frames and regions "
            "of a subject and stage. Intervals: bootstrap over stimuli.",
            "A frame's value says when the decoder reads, seconds after the neurons; "
            "neighbouring frames tell the same, so that leaving one out may cost little.",
            *notes,
        ),
    )


Frame = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def _of_stage(
    problem: Problem,
    stage: str,
    shown: Shown,
    base: np.ndarray,
    masks: Sequence[np.ndarray],
    how: str,
    scalar: str,
) -> Frame:
    """(region, frame) -> values of the trials (n,), and null means (draws,)."""
    own = np.arange(len(shown.rows)), shown.code
    frames, true = len(base), shown.truth[stage]

    def cells(region: int, frame: int) -> np.ndarray:
        return (np.arange(frames) == frame)[:, None] & masks[region]

    def of(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return pairs[own], null_of_pairs(shown, pairs)

    def score(decoded: np.ndarray) -> np.ndarray:
        return pair_scores(decoded - shown.centre[stage], true, scalar)

    if stage in affine_stages(problem.decoder):
        parts = LinearParts(problem, shown, stage, base)
        full, nothing = parts.still + parts.whole, np.broadcast_to(parts.still, parts.whole.shape)

        def linear(region: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
            moved = parts.of(cells(region, frame))
            if how == "gradients":
                return of(pair_derivatives(moved, full - shown.centre[stage], true, scalar))
            if how == "only":
                return of(score(nothing + moved) - score(nothing))
            return of(score(full) - score(full - moved))

        return linear
    if how == "gradients":
        graph = differentiable(problem.decoder, seed=problem.seed)
        return _by_gradients(problem, graph, stage, shown, base, masks, scalar)

    data = np.asarray(problem.test.data[shown.rows], np.float32)
    trials = problem.test.trials.iloc[shown.rows].reset_index(drop=True)

    def decoded(values: np.ndarray) -> np.ndarray:
        found = problem.decoder.decode(np.ascontiguousarray(values, np.float32), trials)
        return score(np.asarray(found[stage], np.float64).reshape(len(values), -1))

    start = np.broadcast_to(base, data.shape)
    reference = decoded(start if how == "only" else data)

    def any_decoder(region: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = cells(region, frame)
        if how == "only":
            return of(decoded(np.where(chosen, data, start)) - reference)
        return of(reference - decoded(np.where(chosen, start, data)))

    return any_decoder


def _by_gradients(
    problem: Problem,
    graph: Graph,
    stage: str,
    shown: Shown,
    base: np.ndarray,
    masks: Sequence[np.ndarray],
    scalar: str,
) -> Frame:
    """As `attribution_gradients.gradients`, with the frames kept apart."""
    trials = problem.test.trials.iloc[shown.rows].reset_index(drop=True)
    centre = torch.from_numpy(shown.centre[stage]).float()
    truth = torch.from_numpy(shown.truth[stage]).float()
    other = others(shown, _WRONG, problem.seed)
    aims = np.concatenate([shown.code[:, None], other[shown.code]], axis=1)  # (n, 1 + wrong)
    stack = np.stack(masks).astype(np.float64)
    sums = np.zeros((len(masks), len(base), *aims.shape))
    start = torch.from_numpy(base)
    for first in range(0, len(shown.rows), _BATCH):
        place = np.arange(first, min(first + _BATCH, len(shown.rows)))
        x = torch.from_numpy(np.array(problem.test.data[shown.rows[place]], np.float32))
        x.requires_grad_()
        decoded = graph(x, trials.iloc[place])[stage].flatten(1) - centre
        for j in range(aims.shape[1]):
            value = tensor_scores(decoded, truth[torch.from_numpy(aims[place, j])], scalar).sum()
            (slope,) = torch.autograd.grad(value, x, retain_graph=True)
            cells = (slope * (x - start)).detach().double().numpy()  # (n, frames, features)
            sums[:, :, place, j] = np.einsum("rf,ntf->rtn", stack, cells, optimize=True)

    def found(region: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
        values = sums[region, frame]
        return values[:, 0], null_of_others(shown, shown.by_stimulus(values[:, 1:]))

    return found


def _painted(part: pd.DataFrame, problem: Problem) -> np.ndarray:
    """(features,) the value of the region of a feature; the mean where regions overlap."""
    total, count = np.zeros(problem.test.n_features), np.zeros(problem.test.n_features)
    for name, value in zip(part["roi"], part["value"], strict=True):
        if name != EVERYWHERE:
            total += np.where(problem.rois[name], value, 0)
            count += problem.rois[name]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
