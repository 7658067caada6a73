"""Representational similarity: do two stimuli that differ for a stage of the decoder also differ in
a region, and how far could any model agree with the region?

A region's table of distances between the responses to the test stimuli is compared with a stage's
table of distances between its features. No regression is fitted, so no training set is needed; and
no weights are fitted either, so a region that carries a stage's features among others agrees little
with it.

References
----------
Kriegeskorte, Mur & Bandettini 2008, Frontiers in Systems Neuroscience 2; Nili et al. 2014, PLoS
Computational Biology 10; Walther et al. 2016, NeuroImage 137.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult, Problem
from neurodiff.analysis.encoding_data import (
    LEAST_STIMULI,
    Responses,
    draw_seed,
    exchange_blocks,
    responses_of,
    roi_masks,
    shown_features,
    thinned,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.encoding_scores import exchange_orders, false_discovery
from neurodiff.metrics.rdm import (
    compare_rdms,
    correlation_rdm,
    crossnobis_rdm,
    drawn_pairs,
    euclidean_rdm,
    noise_ceiling_across,
    noise_ceiling_within,
    permuted_pairs,
    unit_ranks,
)
from neurodiff.metrics.statistics import permutation_p

#: columns of the table beside those of every method
EXTRA = ("distance", "ceiling_low", "ceiling_high", "across_low", "across_high")
DISTANCES = ("correlation", "euclidean", "crossnobis")
COMPARISONS = ("spearman", "kendall", "pearson")
_HALVES = 10  # random splits of the repeats
_FULL_COVARIANCE = 1500  # features; larger regions are whitened by their variances alone
_RESAMPLES = 200  # each ranks every table anew


def rsa(
    problem: Problem,
    features: Mapping[str, Any] | None = None,
    *,
    distance: str = "correlation",
    comparison: str = "spearman",
    exchange: str = "auto",
    most: int = 300,
) -> MethodResult:
    """Agreement of each region's distances with those of each stage, with noise ceilings.

    Parameters
    ----------
    features : None for the stages of the problem, or name -> features; see
        `encoding_data.stage_features`.
    distance : of responses: "correlation" or "euclidean" between means over repeats, or
        "crossnobis" between trials, which needs two trials of each stimulus and takes products
        across runs only where every stimulus has trials in two runs.
    comparison : "spearman", "kendall" (tau-a) or "pearson".
    exchange : which stimuli the null may swap; see `encoding_data.subjects_of`.
    most : stimuli compared; more are thinned to a random sample by the seed, and the notes say so.

    Returns
    -------
    ``table``: a row a subject, stage and ROI; ``value``: agreement, interval by bootstrap over
    stimuli (pairs of a stimulus with itself dropped), null and one-sided p by permuted stimuli, q
    by FDR over the rows of a subject. ``ceiling_*``: bounds for this subject from halves of the
    repeats; ``across_*``: bounds from the agreement of subjects; NaN where not available.
    ``items``: each stimulus's own agreement, of its row of the table. ``maps``: each region's
    table, ``"<subject>/<roi>/rdm"``, (pairs,).

    Raises
    ------
    UsageError : fewer than 10 test stimuli, unknown options, one repeat where two are needed.
    DataError : an empty ROI.
    """
    _checked_options(distance, comparison)
    rois = roi_masks(problem)
    tables, items, maps, notes, kept_rdms = [], [], {}, [], {}
    for subject in dict.fromkeys(problem.test.trials["subject"]):
        responses, told = thinned(responses_of(problem.test, subject), most, problem.seed, subject)
        if len(responses.ids) < LEAST_STIMULI:
            raise UsageError(
                f"{subject} has {len(responses.ids)} test stimuli; RSA with its null needs at "
                f"least {LEAST_STIMULI}: give more test stimuli"
            )
        blocks, said = exchange_blocks(responses, exchange)
        notes += [f"{subject}: {said}", *told]
        models = {
            stage: model_rdm(values)
            for stage, values in shown_features(problem, responses, features).items()
        }
        measured, ceilings = {}, {}
        for name, mask in problem.progress.over(list(rois.items()), f"RSA tables, {subject}"):
            measured[name] = response_rdm(responses, mask, distance)
            ceilings[name] = _within(problem, responses, mask, distance, comparison, subject, name)
        kept_rdms[subject] = (responses.ids, measured)
        maps |= {f"{subject}/{name}/rdm": rdm for name, rdm in measured.items()}
        rows, each = _scored(problem, subject, responses, models, measured, blocks, comparison)
        for row in rows:
            row["n_features"] = int(rois[row["roi"]].sum())
            row["distance"] = distance
            row["ceiling_low"], row["ceiling_high"] = ceilings[row["roi"]]
        table = pd.DataFrame(rows)
        table["q"] = false_discovery(table["p"].to_numpy(float))
        tables.append(table)
        items.append(each)
    table = pd.concat(tables, ignore_index=True)
    across = {name: _across(kept_rdms, name, comparison) for name in rois}
    table["across_low"] = [across[name][0] for name in table["roi"]]
    table["across_high"] = [across[name][1] for name in table["roi"]]
    return MethodResult(
        method="rsa",
        table=table[[*COLUMNS, *EXTRA]],
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=(*_sentences(problem, distance, comparison), *notes),
    )


def model_rdm(values: np.ndarray) -> np.ndarray:
    """Distances of a stage's features: correlation, or Euclidean for fewer than three features."""
    return euclidean_rdm(values) if values.shape[1] < 3 else correlation_rdm(values)


def response_rdm(responses: Responses, mask: np.ndarray, distance: str) -> np.ndarray:
    """Distances of the responses within a region; NaN where it has too few features for them."""
    n = len(responses.ids)
    if distance == "crossnobis":
        single = int((responses.repeats < 2).sum())
        if single:
            raise UsageError(
                f"{single} of {n} test stimuli have one trial; crossnobis needs two of each: give "
                "distance='correlation', or only stimuli with repeats"
            )
        runs = responses.runs if _in_two_runs(responses) else None
        whiten = "shrunk" if mask.sum() <= _FULL_COVARIANCE else "diagonal"
        return crossnobis_rdm(responses.trials[:, mask], responses.of, runs, whiten=whiten)
    if distance == "euclidean":
        return euclidean_rdm(responses.means[:, mask])
    if mask.sum() < 3:
        return np.full(n * (n - 1) // 2, np.nan)
    return correlation_rdm(responses.means[:, mask])


def _in_two_runs(responses: Responses) -> bool:
    pairs = pd.DataFrame({"stimulus": responses.of, "run": responses.runs}).drop_duplicates()
    return bool((pairs["stimulus"].value_counts() >= 2).all())


def _scored(
    problem: Problem,
    subject: str,
    responses: Responses,
    models: Mapping[str, np.ndarray],
    measured: Mapping[str, np.ndarray],
    blocks: np.ndarray,
    comparison: str,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    n = len(responses.ids)
    tables, wanted = np.stack(list(measured.values())), np.stack(list(models.values()))
    orders = exchange_orders(blocks, problem.draws, draw_seed(problem, subject, "", "rsa null"))
    values = _agreements(tables, wanted, comparison)
    nulls = _nulls(tables, wanted, orders, comparison)
    again = np.stack(
        [
            _agreements(tables[:, place], wanted[:, place], comparison)
            for place in _draws(problem, subject, n)
        ]
    )
    each = _per_stimulus(tables, wanted, n)
    tails = [(1 - problem.confidence) / 2, (1 + problem.confidence) / 2]
    rows, items = [], []
    for m, stage in enumerate(models):
        for k, name in enumerate(measured):
            value, null = float(values[k, m]), nulls[:, k, m]
            row: dict[str, Any] = dict(method="rsa", subject=subject, stage=stage, roi=name)
            row |= {"metric": f"rsa_{comparison}", "n_trials": n, "unit": "correlation"}
            row |= {"value": value, "low": np.nan, "high": np.nan, "p": np.nan}
            row |= {"null_mean": np.nan, "null_low": np.nan, "null_high": np.nan}
            if np.isfinite(value):
                row["low"], row["high"] = np.nanquantile(again[:, k, m], tails)
                row["null_mean"] = float(null.mean())
                row["null_low"], row["null_high"] = np.quantile(null, tails)
                row["p"] = permutation_p(value, null)
            rows.append(row)
            what = {"subject": subject, "stimulus": responses.ids, "roi": name, "stage": stage}
            items.append(pd.DataFrame(what | {"value": each[:, k, m]}))
    return rows, pd.concat(items)


def _agreements(tables: np.ndarray, models: np.ndarray, comparison: str) -> np.ndarray:
    """Each region's table with each model, (rois, models); NaN where one is not known or flat."""
    found = np.full((len(tables), len(models)), np.nan)
    known = [
        np.isfinite(side).all(axis=1) & (np.ptp(side, axis=1) > 0) for side in (tables, models)
    ]
    if comparison != "kendall":
        sides = [
            unit_ranks(side[ok], comparison)
            for side, ok in zip((tables, models), known, strict=True)
        ]
        found[np.ix_(*known)] = sides[0] @ sides[1].T
    for k, m in np.argwhere(np.isnan(found)):
        both = np.isfinite(tables[k]) & np.isfinite(models[m])
        left = tables[k, both], models[m, both]
        # a table that does not vary, or has hardly a pair, agrees with nothing
        if both.sum() >= 3 and min(np.ptp(side) for side in left) > 0:
            found[k, m] = compare_rdms(*left, comparison)
    return found


def _nulls(
    tables: np.ndarray, models: np.ndarray, orders: np.ndarray, comparison: str
) -> np.ndarray:
    """`_agreements` with the stimuli of the models permuted, (draws, rois, models)."""
    places = (permuted_pairs(order) for order in orders)
    if comparison == "kendall" or not (np.isfinite(tables).all() and np.isfinite(models).all()):
        drawn = [_agreements(tables, models[:, place], comparison) for place in places]
        return np.nan_to_num(np.stack(drawn))
    sides = [unit_ranks(side, comparison) for side in (tables, models)]  # ranks are permuted along
    return np.stack([sides[0] @ sides[1][:, place].T for place in places])


def _draws(problem: Problem, subject: str, n: int) -> Iterator[np.ndarray]:
    generator = numpy_generator(draw_seed(problem, subject, "", "rsa bootstrap"))
    for _ in range(min(problem.draws, _RESAMPLES)):
        yield drawn_pairs(generator.integers(0, n, n), n)


def _per_stimulus(tables: np.ndarray, models: np.ndarray, n: int) -> np.ndarray:
    """Spearman correlation of each stimulus's distances to the others, (n, rois, models)."""
    from scipy.spatial.distance import squareform

    sides = [np.stack([squareform(row, checks=False) for row in side]) for side in (tables, models)]
    apart = ~np.eye(n, dtype=bool)
    return np.stack(
        [_agreements(*(side[:, k, apart[k]] for side in sides), "spearman") for k in range(n)]
    )


def _within(
    problem: Problem,
    responses: Responses,
    mask: np.ndarray,
    distance: str,
    comparison: str,
    subject: str,
    roi: str,
) -> tuple[float, float]:
    """Bounds from random halves of each stimulus's trials; NaN where there are too few repeats.

    Stimuli with enough repeats for both halves take part; of an odd number one half has one more.
    """
    need = 4 if distance == "crossnobis" else 2
    enough = np.flatnonzero(responses.repeats >= need)
    if len(enough) < LEAST_STIMULI or (distance == "correlation" and mask.sum() < 3):
        return float("nan"), float("nan")
    key = item_seed(problem.seed, subject=subject, stimulus=roi, stage="rsa halves")
    generator = numpy_generator(key)
    rows_of = [np.flatnonzero(responses.of == k) for k in enough]
    agreements = []
    for _ in range(_HALVES):
        halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for rows in rows_of:
            rows = generator.permutation(rows)
            halves[0].append(rows[: len(rows) // 2])
            halves[1].append(rows[len(rows) // 2 :])
        rdms = [_half_rdm(responses, half, mask, distance) for half in halves]
        agreements.append(_agreements(rdms[0][None], rdms[1][None], comparison)[0, 0])
    return noise_ceiling_within(float(np.mean(agreements)))


def _half_rdm(
    responses: Responses, half: list[np.ndarray], mask: np.ndarray, distance: str
) -> np.ndarray:
    trials = responses.trials[:, mask].astype(np.float64)
    if distance == "crossnobis":
        of = np.repeat(np.arange(len(half)), [len(rows) for rows in half])
        return crossnobis_rdm(trials[np.concatenate(half)], of, whiten="diagonal")
    means = np.stack([trials[rows].mean(axis=0) for rows in half])
    return euclidean_rdm(means) if distance == "euclidean" else correlation_rdm(means)


def _across(
    kept: Mapping[str, tuple[list[str], Mapping[str, np.ndarray]]], roi: str, comparison: str
) -> tuple[float, float]:
    """Bounds across subjects over the stimuli that all have seen; NaN for one subject."""
    from scipy.spatial.distance import squareform

    common = sorted(set.intersection(*(set(ids) for ids, _ in kept.values())))
    if len(kept) < 2 or len(common) < LEAST_STIMULI:
        return float("nan"), float("nan")
    rdms = []
    for ids, measured in kept.values():
        rows = [ids.index(name) for name in common]
        matrix = squareform(measured[roi], checks=False)[np.ix_(rows, rows)]
        rdms.append(squareform(matrix, checks=False))
    stacked = np.stack(rdms)
    if np.isfinite(stacked).all(axis=0).sum() < 3:
        return float("nan"), float("nan")
    return noise_ceiling_across(stacked, comparison)


def _checked_options(distance: str, comparison: str) -> None:
    for name, value, known in (
        ("distance", distance, DISTANCES),
        ("comparison", comparison, COMPARISONS),
    ):
        if value not in known:
            raise UsageError(f"{name} is {value!r}; give {', '.join(known[:-1])} or {known[-1]}")


def _sentences(problem: Problem, distance: str, comparison: str) -> tuple[str, ...]:
    measured = {
        "correlation": "1 - correlation of mean responses, which noise raises for all pairs",
        "euclidean": "squared Euclidean distance of mean responses, which noise raises",
        "crossnobis": "crossnobis between trials, on which noise has no effect on average; noise "
        f"covariance shrunk, its diagonal for regions of more than {_FULL_COVARIANCE} features",
    }[distance]
    return (
        f"RSA: distances of responses are {measured}; of features 1 - correlation (squared "
        f"Euclidean for fewer than three features); agreement: {comparison}",
        f"p: stimuli permuted, one-sided, (1 + b) / (1 + {problem.draws}); q: Benjamini-Hochberg "
        "over the rows of a subject; intervals: "
        f"{min(problem.draws, _RESAMPLES)} draws of stimuli, a stimulus with itself dropped",
        f"ceiling_low and ceiling_high: {_HALVES} random halves of the repeats, Spearman-Brown; "
        "lower: another measurement of the same length, upper: a table without noise; not "
        "available with one trial a stimulus (four are needed for crossnobis)",
        "across_low and across_high: agreement of each subject with the others' mean, and with "
        "everybody's; not available for one subject",
        "no weights are fitted: a region that carries a stage's features among many others may "
        "agree little with it",
    )
