"""Are attribution methods right where the truth is planted? Found areas, false alarms, coverage.

``planted_problem`` makes the `Problem` of a simulated subject whose decoder is a ridge;
``run_methods`` asks any of the methods; ``detection`` says how well their values tell informative
areas from empty ones (area under the ROC curve, chance 0.5); ``calibration`` counts rejections and
intervals that hold the true value, and compares the counts with the binomial law that they must
follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution import run_method
from neurodiff.analysis.attribution_claims import ALONE, RELIANCE, claims
from neurodiff.analysis.attribution_decoders import LinearStage, flat
from neurodiff.analysis.attribution_problem import MethodResult, Problem
from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.attribution_expectations import population_encoding
from neurodiff.datasets.simulated.attribution_subjects import AttributionSubject

STAGE = "features"
LEVELS = (0.05, 0.01)
SLACK = 0.01
"""A count is outside its bound if the binomial law gives one as extreme less often than this."""


@dataclass(frozen=True, eq=False)
class PlantedDecoder:
    """A ridge from responses to the features of a simulated subject's stimuli."""

    subject: AttributionSubject
    model: MultiTargetRidge
    name: str = "ridge"
    stages: tuple[str, ...] = (STAGE,)

    @property
    def weights(self) -> np.ndarray:
        """(vertices, features)"""
        return np.atleast_2d(self.model.coef_).T

    def decode(self, data: np.ndarray, trials: pd.DataFrame) -> dict[str, np.ndarray]:
        """Responses (trials, vertices) -> features (trials, d)."""
        return {STAGE: self.model.predict(np.asarray(data)).reshape(len(data), -1)}

    def truth(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Features of the stimuli of these names."""
        return {STAGE: self.subject.features(list(ids))}

    def linear(self, stage: str) -> LinearStage:
        """The ridge as a sum over vertices."""
        weights, constant = self.weights, np.atleast_1d(self.model.intercept_)
        return LinearStage(flat, lambda rows: rows @ weights, constant, weights)


def planted_problem(
    subject: AttributionSubject,
    *,
    train: int = 1000,
    test: int = 300,
    repeats: int = 1,
    metric: str = "correlation",
    draws: int = 1000,
    seed: int = 0,
) -> Problem:
    """A subject's recordings with a ridge fitted on the training trials.

    Parameters
    ----------
    train, test : stimuli; each training stimulus is shown once, each test stimulus ``repeats``
        times.
    metric, draws, seed : of the `Problem`.
    """
    recordings = subject.study(train=train, test=test, repeats=repeats)
    shown = list(recordings[0].trials["stimulus"])
    model = MultiTargetRidge().fit(recordings[0].array(), subject.features(shown))
    decoder = PlantedDecoder(subject, model)
    held_out = recordings[1]
    return Problem(
        decoder=decoder,
        test=held_out,
        train=recordings[0],
        truth=decoder.truth(list(held_out.trials["stimulus"])),
        rois=subject.rois,
        metric=metric,
        seed=seed,
        draws=draws,
    )


def run_methods(
    problem: Problem,
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[MethodResult]:
    """Ask each method; ``"leave_one_out:permuted"`` names the replacement after the colon.

    Parameters
    ----------
    options : method, with or without what follows a colon -> keyword arguments.

    Raises
    ------
    UsageError : a method that is not among those of `analysis.attribution`.
    """
    given = options or {}
    return [
        run_method(
            problem, method, **(given.get(method) or given.get(method.partition(":")[0], {}))
        )
        for method in methods
    ]


def claim_rows(
    results: Sequence[MethodResult], pairs: Sequence[tuple[str, str]] | None = None
) -> pd.DataFrame:
    """What `attribution_claims.claims` makes of results, as rows of a method "claim: A + B".

    Parameters
    ----------
    pairs : (reliance, alone); None: every pair that there is.

    Returns
    -------
    method, subject, roi, value (the strength), p (``p_both``) and claim; no interval.
    """
    there = [result.method for result in results]
    if pairs is None:
        pairs = [(a, b) for a in RELIANCE if a in there for b in ALONE if b in there]
    rows = [
        claims(results, reliance=a, alone=b)[["subject", "roi", "strength", "p_both", "claim"]]
        .rename(columns={"strength": "value", "p_both": "p"})
        .assign(method=f"claim: {a} + {b}", low=np.nan, high=np.nan)
        for a, b in pairs
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def encoding_truth(problem: Problem) -> dict[str, float]:
    """The value that `encoding_maps` gives each area, were there infinitely many test trials.

    The fit is that of the method; its predictions of the test stimuli are linear in the features,
    so their weights are known, and with them the correlation in closed form.

    Raises
    ------
    UsageError : the problem is not a `planted_problem` with one trial a test stimulus.
    """
    from neurodiff.analysis.encoding_data import subjects_of
    from neurodiff.analysis.encoding_features import stage_features
    from neurodiff.analysis.encoding_maps import held_out

    decoder = problem.decoder
    if not isinstance(decoder, PlantedDecoder) or (problem.test.trials["repeat"] > 1).any():
        raise UsageError(
            "the true value of an encoding map is known for planted problems with one trial a test "
            "stimulus; make one with planted_problem"
        )
    (data,) = subjects_of(problem)
    train, test = stage_features(problem, data)[STAGE]
    predicted = held_out(data, train, test)
    centred = [side - side.mean(axis=0) for side in (test, predicted)]
    weights = np.linalg.lstsq(*centred, rcond=None)[0]
    r = population_encoding(decoder.subject, weights)
    return {roi: float(r[mask].mean()) for roi, mask in problem.rois.items()}


def detection(values: Mapping[str, float], informative: Mapping[str, bool]) -> float:
    """Area under the ROC curve: share of pairs of an informative and an empty area in which the
    informative one has the higher value, ties one half.

    Raises
    ------
    UsageError : an area without a value, or areas of one kind only.

    Examples
    --------
    >>> detection({"V1": 0.4, "V2": 0.1, "MT": 0.1}, {"V1": True, "V2": True, "MT": False})
    0.75
    """
    absent = [area for area in informative if not np.isfinite(values.get(area, np.nan))]
    if absent:
        raise UsageError(f"area {absent[0]!r} has no value; a ROC curve needs one of each area")
    loaded = np.array([values[area] for area, is_loaded in informative.items() if is_loaded])
    empty = np.array([values[area] for area, is_loaded in informative.items() if not is_loaded])
    if not len(loaded) or not len(empty):
        raise UsageError(
            f"{len(loaded)} informative and {len(empty)} empty areas; a ROC curve needs both"
        )
    gaps = np.sign(loaded[:, None] - empty[None])
    return float((gaps + 1).mean() / 2)


def one_area_each(table: pd.DataFrame) -> pd.DataFrame:
    """One row a subject and method, of an area that goes round: rows that are independent.

    The areas of a subject share its noise and its decoder, so that a binomial law holds over
    subjects, not over all rows.
    """
    areas = list(dict.fromkeys(table["roi"]))
    turn = {subject: areas[k % len(areas)] for k, subject in enumerate(table["subject"].unique())}
    return table[table["roi"] == table["subject"].map(turn)]


def calibration(table: pd.DataFrame, *, slack: float = SLACK) -> pd.DataFrame:
    """Counts of rejections at 0.05 and 0.01, and of intervals that hold the truth, a method.

    Parameters
    ----------
    table : method, p, low, high and ``true``, the value of infinitely many trials (NaN: unknown);
        rows of a method independent of each other.
    slack : of `scipy.stats.binomtest`, two-sided; a count with a smaller p is not "inside".

    Returns
    -------
    method, what ("p <= 0.05", ...), stated (the rate that is claimed), n, count, rate, low and high
    (the counts that leave ``slack / 2`` outside at either end), binomial p, and verdict: "inside",
    "too many" or "too few". For rejections "too few" means that the method is conservative; for
    intervals, that they are too narrow.
    """
    from scipy.stats import binom, binomtest

    rows = []
    for method, part in table.groupby("method", sort=False):
        claims = [
            (f"p <= {level}", level, (part["p"] <= level)[part["p"].notna()]) for level in LEVELS
        ]
        known = part[["low", "high", "true"]].notna().all(axis=1)
        inside = (part["low"] <= part["true"]) & (part["true"] <= part["high"])
        claims.append(("95 % interval holds the truth", 0.95, inside[known]))
        for what, stated, hits in claims:
            n, count = len(hits), int(hits.sum())
            if n == 0:
                continue
            p = float(binomtest(count, n, stated).pvalue)
            wrong = "too many" if count > n * stated else "too few"
            rows.append(
                {
                    "method": method,
                    "what": what,
                    "stated": stated,
                    "n": n,
                    "count": count,
                    "rate": count / n,
                    "low": int(binom.ppf(slack / 2, n, stated)),
                    "high": int(binom.ppf(1 - slack / 2, n, stated)),
                    "binomial p": p,
                    "verdict": wrong if p < slack else "inside",
                }
            )
    return pd.DataFrame(rows)
