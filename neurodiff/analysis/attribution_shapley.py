"""Shapley values of regions: each region's mean gain over all orders in which regions can join.

A coalition's score v(S) is that of the decoder with the regions of S as they are and the others at
their training mean; features in no region stay as they are, and belong to no region. So

    sum over regions of phi = v(all regions) - v(none)

exactly, for each stimulus and each possible pairing. Information that several regions carry alike
is divided among them, where leave-one-out counts it for none and region-alone for each.

Up to 10 regions all coalitions are scored (2^K); beyond, orders are drawn, each with its reverse,
which keeps the sum exact and gives a standard error for each value.

Sources: Shapley 1953; Castro, Gomez & Tejada 2009 (sampling); Mitchell et al. 2022, JMLR 23
(antithetic orders).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb

import numpy as np

from neurodiff.analysis.attribution_ablation import (
    Views,
    chosen_stages,
    finished,
    items_of,
    row_of,
    views_of,
)
from neurodiff.analysis.attribution_conditions import Conditions
from neurodiff.analysis.attribution_problem import MethodResult, Problem
from neurodiff.analysis.attribution_statistics import exchange_words, interval_words
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator

ORDERS, ORDERS_SLOW = 64, 8
Coalition = tuple[bool, ...]
Value = Callable[[Coalition], list[np.ndarray]]


def shapley(
    problem: Problem,
    *,
    exact_up_to: int = 10,
    samples: int | None = None,
    stages: tuple[str, ...] | None = None,
    allow_overlap: bool = False,
) -> MethodResult:
    """Shapley values of a problem's regions.

    Parameters
    ----------
    exact_up_to : regions up to which all coalitions are scored.
    samples : orders drawn beyond; even. None: 64 where all stages are linear, else 8.
    stages : of the decoder; None: the linear ones, or all where none is linear.
    allow_overlap : a feature of two regions is there when either is; refused by default.

    Returns
    -------
    ``value`` in units of the metric. ``standard_error`` over drawn orders, 0 where exact, is of the
    sampling alone; ``low`` and ``high`` are over stimuli. ``total`` is v(all) - v(none), the sum of
    the values.

    Raises
    ------
    UsageError : regions that overlap, an odd or small number of samples.
    """
    pairs = problem.overlapping()
    if pairs and not allow_overlap:
        a, b = pairs[0]
        raise UsageError(
            f"{len(pairs)} pairs of regions overlap, first {a} and {b}: a Shapley value shares out "
            "what is taken away, and these features would be taken twice; give regions that do "
            "not overlap, or allow_overlap=True"
        )
    if stages is None:
        tell = getattr(problem.decoder, "linear", lambda _: None)
        linear = tuple(s for s in problem.decoder.stages if tell(s) is not None)
        stages = linear or None
    conditions = Conditions(problem, chosen_stages(problem, stages))
    views = list(views_of(problem, conditions.stages))
    names = list(problem.rois)
    exact = len(names) <= exact_up_to
    slow = any(conditions.linear[s] is None for s in conditions.stages)
    samples = (ORDERS_SLOW if slow else ORDERS) if samples is None else samples
    if not exact and (samples < 4 or samples % 2):
        raise UsageError(f"samples is {samples}; give an even number of orders from 4")
    value = _value_of(problem, conditions, views)
    if exact:
        effects, errors = _exact(value, len(names), len(views), problem), None
    else:
        effects, errors = _sampled(value, len(names), len(views), samples, problem)
    all_in, none_in = value((True,) * len(names)), value((False,) * len(names))
    rows, items = [], []
    for k, view in enumerate(views):
        total = float(np.diagonal(all_in[k] - none_in[k]).mean())
        for r, name in enumerate(names):
            line = row_of(problem, view, "shapley", name, effects[k][r])
            line |= {"standard_error": 0.0 if errors is None else errors[k][r], "total": total}
            rows.append(line)
            items.append(items_of(view, name, np.diagonal(effects[k][r])))
    how = (
        f"Exact: {2 ** len(names)} coalitions of {len(names)} regions."
        if exact
        else f"Sampled: {samples} orders of {len(names)} regions, half of them the reverse of the "
        "others; standard_error is that of the sampling."
    )
    blocks = views[0].scorer.blocks
    notes = (
        f"{how} The values of a subject and stage sum to v(all regions) - v(none).",
        f"p: one-sided, {exchange_words(blocks)}, {problem.draws} draws, the null range is theirs; "
        "q: Benjamini-Hochberg over the regions of a subject and stage.",
        "Regions that carry the same share it; a value near 0 says that a region adds nothing in "
        "any company.",
        *filter(None, [interval_words(len(views[0].scorer.ids))]),
    )
    return finished(problem, "shapley", rows, items, notes)


def shapley_weights(regions: int) -> np.ndarray:
    """Weight of v(S with r) - v(S without r) for |S| = 0 .. regions - 1: |S|! (K-|S|-1)! / K!.

    Examples
    --------
    >>> shapley_weights(3)
    array([0.33333333, 0.16666667, 0.33333333])
    """
    return np.array([1 / (regions * comb(regions - 1, size)) for size in range(regions)])


def _value_of(problem: Problem, conditions: Conditions, views: list[Views]) -> Value:
    """Score matrices of a coalition, one for each view."""
    masks = [np.asarray(mask) for mask in problem.rois.values()]
    overlap = bool(problem.overlapping())
    parts = {
        stage: [conditions.part(stage, mask) for mask in masks]
        for stage in conditions.stages
        if conditions.linear[stage] is not None and not overlap
    }
    rest = {stage: conditions.full(stage) - sum(of) for stage, of in parts.items()}

    def predicted(stage: str, members: Coalition) -> np.ndarray:
        if stage in parts:
            own = [part for part, there in zip(parts[stage], members, strict=True) if there]
            return rest[stage] + sum(own) if own else rest[stage]
        kept = np.zeros(conditions.data.shape[-1], bool)
        away = np.zeros(conditions.data.shape[-1], bool)
        for mask, there in zip(masks, members, strict=True):
            kept |= mask if there else False
            away |= mask
        return conditions.without(stage, away & ~kept, "mean", "")

    def value(members: Coalition) -> list[np.ndarray]:
        found = {stage: predicted(stage, members) for stage in conditions.stages}
        return [view.scorer.matrix(found[view.stage][view.rows]) for view in views]

    return value


def _exact(value: Value, regions: int, views: int, problem: Problem) -> list[list[np.ndarray]]:
    """Each score matrix is made once and added to every region with its weight."""
    weights = shapley_weights(regions)
    effects: list[list[np.ndarray]] = [[np.zeros(0)] * regions for _ in range(views)]
    numbers = range(2**regions)
    for number in problem.progress.over(numbers, "Shapley, coalitions", len(numbers)):
        members = tuple(bool(number >> r & 1) for r in range(regions))
        size = sum(members)
        for k, matrix in enumerate(value(members)):
            for r, there in enumerate(members):
                weight = weights[size - 1] if there else -weights[size]
                before = effects[k][r]
                effects[k][r] = weight * matrix if not len(before) else before + weight * matrix
    return effects


def _sampled(
    value: Value, regions: int, views: int, samples: int, problem: Problem
) -> tuple[list[list[np.ndarray]], list[list[float]]]:
    """Means over drawn orders, and the standard errors over pairs of an order and its reverse."""
    effects: list[list[np.ndarray]] = [[np.zeros(0)] * regions for _ in range(views)]
    gains = np.zeros((views, regions, samples))
    orders = list(_orders(regions, samples, problem.seed))
    for number, order in enumerate(problem.progress.over(orders, "Shapley, orders", len(orders))):
        members = [False] * regions
        before = value(tuple(members))
        for r in order:
            members[r] = True
            after = value(tuple(members))
            for k in range(views):
                gain = (after[k] - before[k]) / samples
                effects[k][r] = gain if not len(effects[k][r]) else effects[k][r] + gain
                gains[k, r, number] = np.diagonal(gain).mean() * samples
            before = after
    pairs = gains.reshape(views, regions, samples // 2, 2).mean(axis=3)
    errors = pairs.std(axis=2, ddof=1) / np.sqrt(samples // 2)
    return effects, [[float(e) for e in row] for row in errors]


def _orders(regions: int, samples: int, seed: int) -> Iterator[list[int]]:
    for k in range(samples // 2):
        generator = numpy_generator(
            item_seed(seed, subject="", stimulus="", sample=k, stage="Shapley orders")
        )
        order = [int(r) for r in generator.permutation(regions)]
        yield order
        yield order[::-1]
