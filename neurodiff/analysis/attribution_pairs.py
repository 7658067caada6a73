"""Statistics of attributions that exist for a trial's own truth and for the truths of others.

A method gives, for one region, the attribution of trial i towards the true features of stimulus j.
Its value is the mean over stimuli of the diagonal; the null pairs trials with the truths of other
stimuli, so that what a region adds whatever was shown does not count as information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import COLUMNS, Problem
from neurodiff.analysis.attribution_statistics import Resampling, adjusted, exchange_blocks
from neurodiff.analysis.exchange import LEAST_PARTNERS
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.statistics import permutation_p


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """Trials of one subject and the stimuli they showed.

    rows : trials of the test recording, (n,).
    stimuli : names, in order of appearance.
    code : (n,) number of the stimulus of each trial.
    truth : stage -> (stimuli, d), less their mean.
    centre : stage -> (d,) that mean.
    blocks : of each stimulus, by the rule of `exchange`; None where all may change places.
    resampling : draws of this subject's stimuli, the same for every region.
    """

    subject: str
    rows: np.ndarray
    stimuli: tuple[str, ...]
    code: np.ndarray
    truth: Mapping[str, np.ndarray]
    centre: Mapping[str, np.ndarray]
    blocks: np.ndarray | None
    resampling: Resampling

    def by_stimulus(self, values: np.ndarray) -> np.ndarray:
        """Mean over the trials of each stimulus: (n, ...) -> (stimuli, ...)."""
        total = np.zeros((len(self.stimuli), *values.shape[1:]))
        np.add.at(total, self.code, values)
        return total / np.bincount(self.code).reshape(-1, *[1] * (values.ndim - 1))


def shown_to(problem: Problem, stages: Sequence[str], subject: str) -> Shown:
    """Trials and centred truths of a subject.

    Raises
    ------
    UsageError : no such stage.
    DataError : a stage without truth, or fewer than 3 stimuli of this subject.
    """
    trials, truth = problem.test.trials, problem.truth
    rows = np.flatnonzero(trials["subject"].to_numpy() == subject)
    names = trials["stimulus"].to_numpy()[rows]
    stimuli = tuple(dict.fromkeys(names))
    if len(stimuli) < 3:
        raise DataError(
            f"subject {subject!r} has {len(stimuli)} test stimuli; an interval over stimuli and "
            "truths of others need at least 3"
        )
    place = {name: k for k, name in enumerate(stimuli)}
    code = np.array([place[name] for name in names])
    first = rows[np.unique(code, return_index=True)[1]]
    for stage in stages:
        if stage not in problem.decoder.stages:
            raise UsageError(
                f"{problem.decoder.name!r} has no stage {stage!r}; it has "
                f"{', '.join(problem.decoder.stages)}"
            )
        if stage not in truth:
            raise DataError(
                f"there are no true features of stage {stage!r}; give truth for {list(stages)}"
            )
    whole = {s: np.asarray(truth[s], np.float64)[first].reshape(len(first), -1) for s in stages}
    centre = {s: values.mean(axis=0) for s, values in whole.items()}
    return Shown(
        subject=subject,
        rows=rows,
        stimuli=stimuli,
        code=code,
        truth={s: whole[s] - centre[s] for s in stages},
        centre=centre,
        blocks=exchange_blocks(trials.iloc[rows], np.array(stimuli, dtype=object), code),
        resampling=Resampling(
            len(stimuli),
            subject,
            draws=problem.draws,
            seed=problem.seed,
            confidence=problem.confidence,
        ),
    )


def others(shown: Shown, count: int, seed: int) -> np.ndarray:
    """(stimuli, count) numbers of other stimuli of the block, drawn on each stimulus's name.

    As many for each as the smallest block that has enough gives; a smaller one gives its few
    several times, and a stimulus without a partner keeps its place, as under permutations.
    """
    n = len(shown.stimuli)
    blocks = np.zeros(n, int) if shown.blocks is None else shown.blocks
    sizes = np.unique(blocks, return_counts=True)[1]
    count = min(count, int(sizes[sizes > LEAST_PARTNERS].min(initial=n)) - 1)
    found = np.zeros((n, count), np.int64)
    for k, name in enumerate(shown.stimuli):
        key = item_seed(seed, subject=shown.subject, stimulus=name, stage="truth of others")
        choice = np.flatnonzero((blocks == blocks[k]) & (np.arange(n) != k))
        found[k] = np.resize(numpy_generator(key).permutation(choice) if len(choice) else k, count)
    return found


def null_of_others(shown: Shown, wrong: np.ndarray) -> np.ndarray:
    """(draws,) mean over stimuli with one of the other truths drawn for each; (stimuli, count).

    The few truths of a stimulus are spread less around their own mean than all would be, by
    (count - 1) / count in variance, and that mean is off by 1 / count: both are given back, by a
    factor of (count + 1) / (count - 1).
    """
    n, count = wrong.shape
    mean = wrong.mean(axis=1, keepdims=True)
    wide = mean + (wrong - mean) * np.sqrt((count + 1) / max(count - 1, 1))
    picks = numpy_generator(shown.resampling.seed).integers(count, size=(shown.resampling.draws, n))
    return wide[np.arange(n), picks].mean(axis=1)


def null_of_pairs(shown: Shown, pairs: np.ndarray) -> np.ndarray:
    """(draws,) mean over stimuli with the truths permuted; pairs (n, stimuli) of each trial."""
    return shown.resampling.pairing_p(shown.by_stimulus(pairs), shown.blocks)[1]


def table_row(resampling: Resampling, own: np.ndarray, null: np.ndarray) -> dict[str, float]:
    """value, interval, null and one-sided p of stimuli (n,) and null means (draws,)."""
    tail = 50 * (1 - resampling.confidence)
    low, high = resampling.interval(own)
    null_low, null_high = np.percentile(null, [tail, 100 - tail])
    return {
        "value": float(own.mean()),
        "low": float(low),
        "high": float(high),
        "null_mean": float(null.mean()),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "p": permutation_p(float(own.mean()), null),
    }


def attribution_table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as a table, with q: Benjamini-Hochberg over the rows of a subject and stage."""
    table = pd.DataFrame(list(rows))
    table["q"] = np.nan
    family = ["subject", "of_stage" if "of_stage" in table else "stage"]
    for _, part in table.groupby(family, sort=False):
        table.loc[part.index, "q"] = adjusted(part["p"].to_numpy(float))
    return table[[*COLUMNS, *[c for c in table if c not in COLUMNS]]]
