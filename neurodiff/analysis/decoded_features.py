"""Features as a decoder gives them for brain data: encoder tokens, aggregated features, output of
the bridge. To ask which vertices they describe, they must not come from the trials they describe.

What is decoded from a trial holds that trial's noise, and the same noise is in the vertices: a
regression of one on the other would find every vertex that the decoder reads, with or without a
signal. So the repeats of each test stimulus are dealt to two sides, every second one to each: the
features are decoded from one side, the responses are those of the other, and the regression is
cross-validated over stimuli. The decoder itself was fitted on other trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from neurodiff.analysis.attribution_problem import Problem
from neurodiff.analysis.encoding_data import LEAST_STIMULI
from neurodiff.core.errors import DataError, UsageError

_TRIALS = 64  # decoded at a time


def decoded_halves(
    problem: Problem,
) -> Iterator[tuple[Problem, dict[str, dict[str, np.ndarray]], str]]:
    """For each subject: a problem of one half of the repeats, features decoded from the other.

    Yields
    ------
    A problem without training trials whose test trials are the second, fourth, ... of each
    stimulus; stage -> stimulus -> mean of what is decoded from the first, third, ...; a sentence.

    Raises
    ------
    UsageError : fewer than 10 test stimuli with two trials.
    DataError : the decoder gives NaN, or another number of rows.
    """
    table = problem.test.trials
    for subject in dict.fromkeys(table["subject"]):
        rows = np.flatnonzero((table["subject"] == subject).to_numpy())
        stimuli = table["stimulus"].to_numpy()[rows]
        order = table.iloc[rows].groupby("stimulus", sort=False).cumcount().to_numpy()
        names, counts = np.unique(stimuli, return_counts=True)
        twice = np.isin(stimuli, names[counts >= 2])
        n = int((counts >= 2).sum())
        if n < LEAST_STIMULI:
            raise UsageError(
                f"{subject} has {n} of {len(names)} test stimuli with two trials; features decoded "
                f"from brain data need other trials of at least {LEAST_STIMULI} stimuli to be "
                "compared with: give repeats, or source='truth'"
            )
        first, second = rows[twice & (order % 2 == 0)], rows[twice & (order % 2 == 1)]
        features = _decoded(problem, first)
        half = replace(
            problem,
            test=problem.test.select(second),
            train=None,
            truth={stage: values[second] for stage, values in problem.truth.items()},
        )
        yield (
            half,
            features,
            (
                f"{subject}: features decoded from every second trial of {n} stimuli with repeats, "
                "responses of their other trials"
            ),
        )


def _decoded(problem: Problem, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    sums: dict[str, dict[str, np.ndarray]] = {}
    counts: dict[str, int] = {}
    for start in range(0, len(rows), _TRIALS):
        part = rows[start : start + _TRIALS]
        trials = problem.test.trials.iloc[part].reset_index(drop=True)
        found = problem.decoder.decode(np.asarray(problem.test.data[part], np.float32), trials)
        for stimulus in trials["stimulus"]:
            counts[stimulus] = counts.get(stimulus, 0) + 1
        for stage, values in found.items():
            values = np.asarray(values, np.float64).reshape(len(values), -1)
            if len(values) != len(part) or not np.isfinite(values).all():
                raise DataError(
                    f"the decoder {problem.decoder.name!r} gave {values.shape} for stage {stage!r} "
                    f"of {len(part)} trials, or numbers that are not finite; fit it again"
                )
            of_stage = sums.setdefault(stage, {})
            for stimulus, row in zip(trials["stimulus"], values, strict=True):
                of_stage[stimulus] = of_stage.get(stimulus, 0.0) + row
    return {
        stage: {stimulus: total / counts[stimulus] for stimulus, total in rows_of.items()}
        for stage, rows_of in sums.items()
    }
