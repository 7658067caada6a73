"""Leave one region out, or give the decoder one region alone.

``leave_one_out``: the loss of score when a region's responses are replaced, the rest being as it
was. Three replacements, which answer different questions:

    mean      each feature at its mean over the training trials: the region says nothing
    permuted  the region's responses to another test stimulus (of the same run, where runs part the
              stimuli), all its features together and all repeats of a stimulus alike: it says
              something wrong, and as loudly and as reliably as before
    noise     Gaussian noise with the region's mean and covariance over the subject's training
              trials, frames and features together: as loud and as smooth, and about nothing

``roi_only`` is the other end: the score of the decoder when every other region is at its training
mean. Both ask the decoder that was fitted on all regions: how much it *relies* on one. A decoder
divides its weights among regions that carry the same, so each of them seems to matter some.
``refit=True`` fits a ridge anew, without the region or on it alone: what is *unique* to it (nothing
where others carry the same), and what it could tell by itself.

The null of ``p`` is another pairing of predictions and stimuli (`attribution_statistics`); beside
it, ``null_*`` and ``p_matched`` say what random sets of the region's size and smoothness do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_conditions import (
    REPLACEMENTS,
    Conditions,
    Replacement,
    rows_of_stage,
)
from neurodiff.analysis.attribution_matched import matched_sets, neighbours_of
from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult, Problem
from neurodiff.analysis.attribution_refit import Refits
from neurodiff.analysis.attribution_statistics import (
    Resampling,
    Scorer,
    adjusted,
    checked_metric,
    exchange_words,
    interval_words,
    max_statistic_p,
)
from neurodiff.core.errors import UsageError

_MATCHED, _MATCHED_NOISE, _MATCHED_SLOW = 99, 19, 5  # noise is drawn anew for each trial and set
_PAIRING = "pairing null"  # of a row until the regions of a subject and stage are together


def leave_one_out(
    problem: Problem,
    *,
    replacement: Replacement = "mean",
    matched: int | None = None,
    stages: tuple[str, ...] | None = None,
    refit: bool = False,
) -> MethodResult:
    """The loss of score without each region.

    Parameters
    ----------
    replacement : "mean", "permuted" or "noise", see the module.
    matched : random sets a region; None: 99 (19 with noise) where the stage is linear, else 5.
    stages : of the decoder; None is all.
    refit : instead of replacing, compare a ridge (`attribution_refit`, penalty by leaving out
        one stimulus at a time) from all features with one from the other features: what others can
        make up for is then no loss. Random sets are fitted too, so none unless asked for.

    Returns
    -------
    ``value``: score of the whole minus score without the region, with a bootstrap interval over
    stimuli; ``null_*`` of the matched sets; ``p`` one-sided by other pairings, ``q`` by FDR over
    the regions of a subject and stage. Further columns: ``score_full``, ``score``, ``p_matched``
    (against the random sets) and ``p_max`` (family-wise, by the greatest region of each draw).

    Raises
    ------
    UsageError : no such replacement, stage or metric; no training trials where they are needed.
    """
    if replacement not in REPLACEMENTS:
        raise UsageError(f"replacement is {replacement!r}; there are {', '.join(REPLACEMENTS)}")
    if refit:
        return _refitted(problem, "leave_one_out:refit", True, matched or 0, stages)

    def values(conditions: Conditions, stage: str, mask: np.ndarray, name: str) -> np.ndarray:
        return conditions.without(stage, mask, replacement, name)

    return _ablated(problem, f"leave_one_out:{replacement}", values, True, matched, stages)


def roi_only(
    problem: Problem,
    *,
    matched: int | None = None,
    stages: tuple[str, ...] | None = None,
    refit: bool = False,
) -> MethodResult:
    """The score, less chance, of each region alone.

    Parameters
    ----------
    matched, stages : as `leave_one_out`.
    refit : fit a ridge (`attribution_refit`, penalty by leave-one-stimulus-out) from the region's
        training responses to the truth of the training stimuli, instead of asking the decoder with
        every other region at its mean. Random sets are fitted too, so none unless asked for.

    Returns
    -------
    As `leave_one_out`; ``value`` is score minus chance.
    """
    if refit:
        return _refitted(problem, "roi_only:refit", False, matched or 0, stages)

    def values(conditions: Conditions, stage: str, mask: np.ndarray, name: str) -> np.ndarray:
        return conditions.only(stage, mask)

    return _ablated(problem, "roi_only", values, False, matched, stages)


@dataclass(frozen=True, eq=False)
class Views:
    """A problem cut by subject and stage, with a scorer of each."""

    subject: str
    stage: str
    rows: np.ndarray
    scorer: Scorer
    resampling: Resampling


def views_of(problem: Problem, stages: tuple[str, ...]) -> Iterator[Views]:
    """Each subject and stage, in order."""
    people = problem.test.trials["subject"].astype(str).to_numpy()
    for subject in problem.subjects:
        rows = np.flatnonzero(people == subject)
        trials = problem.test.trials.iloc[rows].reset_index(drop=True)
        shown = trials["stimulus"].nunique()
        if shown < 10:
            raise UsageError(
                f"{subject} has {shown} test stimuli; attribution needs at least 10 a subject"
            )
        resampling = Resampling(
            shown, subject, draws=problem.draws, seed=problem.seed, confidence=problem.confidence
        )
        for stage in stages:
            truth = rows_of_stage(problem.truth[stage])[rows]
            metric = checked_metric(problem.metric, truth.shape[1])
            yield Views(subject, stage, rows, Scorer(truth, trials, metric), resampling)


def chosen_stages(problem: Problem, stages: tuple[str, ...] | None) -> tuple[str, ...]:
    """The stages asked for, or all; UsageError for one that the decoder does not have."""
    there = tuple(problem.decoder.stages)
    for stage in stages or ():
        if stage not in there:
            raise UsageError(f"there is no stage {stage!r}; the decoder has {', '.join(there)}")
    return tuple(stages or there)


Predict = Callable[[Conditions, str, np.ndarray, str], np.ndarray]


def _ablated(
    problem: Problem,
    method: str,
    predict: Predict,
    is_loss: bool,
    matched: int | None,
    stages: tuple[str, ...] | None,
) -> MethodResult:
    conditions = Conditions(problem, chosen_stages(problem, stages))
    views = list(views_of(problem, conditions.stages))
    whole = [v.scorer.matrix(conditions.full(v.stage)[v.rows]) for v in views]
    graph = neighbours_of(problem.test.space)
    counts = {}
    for stage in conditions.stages:
        slow = conditions.linear[stage] is None
        usual = _MATCHED_NOISE if method.endswith(":noise") else _MATCHED
        counts[stage] = (_MATCHED_SLOW if slow else usual) if matched is None else matched
    rows, items = [], []
    for name in problem.progress.over(list(problem.rois), method, len(problem.rois)):
        mask = np.asarray(problem.rois[name])
        sets = list(
            matched_sets(mask, max(counts.values()), graph=graph, seed=problem.seed, name=name)
        )
        nulls: dict[int, list[float]] = {k: [] for k in range(len(views))}
        found = {s: predict(conditions, s, mask, name) for s in conditions.stages}
        for number, other in enumerate(sets):
            asked = [s for s in conditions.stages if number < counts[s]]
            drawn = {s: predict(conditions, s, other, f"{name}\x1f{number}") for s in asked}
            for k, view in enumerate(views):
                if view.stage in drawn:
                    matrix = view.scorer.matrix(drawn[view.stage][view.rows])
                    score = float(np.diagonal(matrix).mean())
                    base = float(np.diagonal(whole[k]).mean()) if is_loss else view.scorer.chance
                    nulls[k].append(base - score if is_loss else score - base)
        for k, view in enumerate(views):
            matrix = view.scorer.matrix(found[view.stage][view.rows])
            scores = np.diagonal(matrix)
            effect = whole[k] - matrix if is_loss else matrix - view.scorer.chance
            rows.append(
                row_of(problem, view, method, name, effect, null=np.asarray(nulls[k]))
                | {
                    "score_full": float(np.diagonal(whole[k]).mean()),
                    "score": float(scores.mean()),
                }
            )
            items.append(items_of(view, name, np.diagonal(effect)))
    return finished(problem, method, rows, items, _words(problem, method, views, counts, graph))


def row_of(
    problem: Problem,
    view: Views,
    method: str,
    roi: str,
    effect: np.ndarray,
    *,
    null: np.ndarray | None = None,
) -> dict[str, Any]:
    """One line of the table, from the effect of each prediction on each possible truth."""
    values = np.diagonal(effect)
    low, high = view.resampling.interval(values)
    p, pairing = view.resampling.pairing_p(effect, view.scorer.blocks)
    of = np.asarray(problem.rois[roi])
    line: dict[str, Any] = {
        "method": method, "subject": view.subject, "stage": view.stage, "roi": roi,
        "metric": view.scorer.metric, "value": float(values.mean()), "low": float(low),
        "high": float(high), "n_trials": len(view.rows), "n_features": int(of.sum()),
        "unit": view.scorer.metric, "p": p, _PAIRING: pairing,
    }  # fmt: skip
    given = pairing if null is None or not len(null) else null
    tail = 50 * (1 - problem.confidence)
    line["null_mean"] = float(np.mean(given))
    line["null_low"], line["null_high"] = (
        float(v) for v in np.percentile(given, [tail, 100 - tail])
    )
    line["p_matched"] = np.nan
    if null is not None and len(null):
        line["p_matched"] = float((1 + (null >= line["value"] - 1e-12).sum()) / (1 + len(null)))
    return line


def items_of(view: Views, roi: str, values: np.ndarray) -> pd.DataFrame:
    """Each stimulus' value."""
    return pd.DataFrame(
        {"subject": view.subject, "stimulus": view.scorer.ids, "roi": roi, "stage": view.stage,
         "value": values}
    )  # fmt: skip


def finished(
    problem: Problem,
    method: str,
    rows: list[dict[str, Any]],
    items: list[pd.DataFrame],
    notes: tuple[str, ...],
) -> MethodResult:
    """Table with q and p_max (`max_statistic_p`), maps that paint each region with its value."""
    table = pd.DataFrame([{k: v for k, v in row.items() if k != _PAIRING} for row in rows])
    table["q"] = np.nan
    table["p_max"] = np.nan
    maps: dict[str, np.ndarray] = {}
    for subject, stage in dict.fromkeys(zip(table["subject"], table["stage"], strict=True)):
        own = np.flatnonzero((table["subject"] == subject) & (table["stage"] == stage))
        nulls = np.stack([rows[k][_PAIRING] for k in own])
        table.iloc[own, table.columns.get_loc("q")] = adjusted(table["p"].to_numpy(float)[own])
        table.iloc[own, table.columns.get_loc("p_max")] = max_statistic_p(
            table["value"].to_numpy(float)[own], nulls
        )
        for column in ("value", "q"):
            painted = np.full(problem.test.n_features, np.nan)
            for k, number in zip(own, table[column].to_numpy(float)[own], strict=True):
                painted[np.asarray(problem.rois[rows[k]["roi"]])] = number
            maps[f"{subject}/{stage}/{column}"] = painted
    table = table[[*COLUMNS, *(c for c in table if c not in COLUMNS)]]
    return MethodResult(
        method=method, table=table, maps=maps, items=pd.concat(items, ignore_index=True),
        notes=notes,
    )  # fmt: skip


def _refitted(
    problem: Problem, method: str, is_loss: bool, matched: int, stages: tuple[str, ...] | None
) -> MethodResult:
    if problem.train is None:
        raise UsageError("refit fits on the training trials; give train=")
    chosen = chosen_stages(problem, stages)
    views, graph = list(views_of(problem, chosen)), neighbours_of(problem.test.space)
    fits = Refits(problem)
    rows, items = [], []

    def matrix(view: Views, mask: np.ndarray) -> np.ndarray:
        return view.scorer.matrix(fits.predicted(view, mask))

    everything = np.ones(problem.test.n_features, bool)
    whole = {id(v): matrix(v, everything) for v in views} if is_loss else {}

    def effect(view: Views, mask: np.ndarray) -> np.ndarray:
        if is_loss:
            return whole[id(view)] - matrix(view, ~mask)
        return matrix(view, mask) - view.scorer.chance

    for name in problem.progress.over(list(problem.rois), method, len(problem.rois)):
        mask = np.asarray(problem.rois[name])
        if is_loss and mask.all():
            raise UsageError(f"region {name!r} is the whole recording; nothing is left to fit")
        sets = list(matched_sets(mask, matched, graph=graph, seed=problem.seed, name=name))
        for view in views:
            null = np.array([np.diagonal(effect(view, other)).mean() for other in sets])
            found = effect(view, mask)
            rows.append(row_of(problem, view, method, name, found, null=null))
            items.append(items_of(view, name, np.diagonal(found)))
    counts = dict.fromkeys(chosen, matched)
    return finished(problem, method, rows, items, _words(problem, method, views, counts, graph))


def _words(
    problem: Problem, method: str, views: list[Views], counts: dict[str, int], graph: Any
) -> tuple[str, ...]:
    first = views[0]
    notes = [
        f"{len(first.rows)} trials of {len(first.scorer.ids)} stimuli a subject; intervals: "
        f"bootstrap over stimuli (expanded percentiles), {problem.draws} draws, the decoder held.",
        f"p: one-sided, {exchange_words(first.scorer.blocks)}, {problem.draws} draws; q: "
        "Benjamini-Hochberg over the regions of a subject and stage; p_max: against the greatest "
        "of these regions in each draw.",
    ]
    if few := interval_words(len(first.scorer.ids)):
        notes.append(few)
    if any(counts.values()):
        kind = "patches grown on the recording's neighbourhood" if graph is not None else (
            "scattered features, because the space has no neighbourhood")  # fmt: skip
        notes.append(
            f"Null range: {max(counts.values())} random sets of each region's size ({kind}), apart "
            "from the region; they may lie on informative cortex, so they say what an average "
            "piece of this recording does, and not what an empty one does."
        )
    if method == "leave_one_out:refit":
        notes.append(
            "A loss near 0 does not say that a region carries nothing: what other regions carry "
            "too is not lost with it."
        )
    elif method.startswith("leave_one_out"):
        notes.append(
            "The decoder was fitted with all regions: the loss says how much it relies on one, and "
            "regions that carry the same share its weights."
        )
    if method == "roi_only":
        notes.append(
            "The decoder was fitted on all regions together; its weights of a region may hold what "
            "cancels another's noise, which counts against the region when it is alone."
        )
    if pairs := problem.overlapping():
        a, b = pairs[0]
        notes.append(
            f"{len(pairs)} pairs of regions overlap (first: {a} and {b}); features of both count "
            "in both."
        )
    return tuple(notes)
