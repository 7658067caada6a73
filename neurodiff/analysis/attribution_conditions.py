"""What a decoder says when features of the brain are replaced: conditions made once and added up.

The three replacements are those of `attribution_ablation`. Each stands for a whole condition of the
test trials; linear stages add up parts that were computed once, others are asked anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from neurodiff.analysis.attribution_decoders import linear_stage
from neurodiff.analysis.attribution_problem import Problem
from neurodiff.analysis.attribution_statistics import exchange_blocks
from neurodiff.core.seeds import item_seed, numpy_generator

Replacement = Literal["mean", "permuted", "noise"]
REPLACEMENTS = ("mean", "permuted", "noise")


class Conditions:
    """What the decoder says of a problem's trials when features are replaced.

    Parts of linear stages are computed once a region and added up; other stages are asked anew, and
    one answer serves all of them.
    """

    def __init__(self, problem: Problem, stages: tuple[str, ...]) -> None:
        self.problem, self.stages = problem, stages
        self.data = np.asarray(problem.test.array())
        self.trials = problem.test.trials
        known = self.data if problem.train is None else np.asarray(problem.train.array())
        self._known = known
        self._known_trials = self.trials if problem.train is None else problem.train.trials
        self.mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.linear = {stage: linear_stage(problem.decoder, stage) for stage in stages}
        self._rows: dict[str, np.ndarray] = {}
        self._known_rows: dict[str, np.ndarray] = {}
        self._people: list[tuple[str, np.ndarray, list[np.ndarray], np.ndarray]] | None = None
        self._asked: dict[bytes, dict[str, np.ndarray]] = {}
        self._base: dict[str, np.ndarray] = {}
        self.whole = problem.decoder.decode(self.data, self.trials)

    def full(self, stage: str) -> np.ndarray:
        return rows_of_stage(self.whole[stage])

    def part(self, stage: str, mask: np.ndarray) -> np.ndarray:
        """What the features of ``mask`` add to a linear stage, over their training means."""
        line = self.linear[stage]
        assert line is not None
        if stage not in self._rows:
            self._rows[stage] = line.read(self.data) - line.read(self.mean[None])
        return line.of(self._rows[stage], mask)

    def without(self, stage: str, mask: np.ndarray, replacement: str, name: str) -> np.ndarray:
        line = self.linear[stage]
        if line is None:
            data = self.data.copy()
            data[..., mask] = self.replaced(mask, replacement, name)
            return self._ask(data, stage)
        part = self.part(stage, mask)
        rest = self.full(stage) - part
        if replacement == "mean":
            return rest
        if replacement == "permuted":
            return rest + part[self._order(name)]
        return rest + self._noise_part(stage, mask, name)

    def _noise_part(self, stage: str, mask: np.ndarray, name: str) -> np.ndarray:
        """What the noise of `replaced` adds to a linear stage: the same mixture of known parts."""
        line = self.linear[stage]
        assert line is not None
        if stage not in self._known_rows:
            self._known_rows[stage] = line.read(self._known) - line.read(self.mean[None])
        out = np.zeros((len(self.data), self.full(stage).shape[1]))
        for rows, known, mixture in self._mixtures(name):
            parts = line.of(self._known_rows[stage][known], mask)
            centre = parts.mean(axis=0)
            out[rows] = mixture @ (parts - centre) + centre
        return out

    def only(self, stage: str, mask: np.ndarray) -> np.ndarray:
        line = self.linear[stage]
        if line is not None:
            return self.base(stage) + self.part(stage, mask)
        data = np.repeat(self.mean[None], len(self.data), axis=0)
        data[..., mask] = self.data[..., mask]
        return self._ask(data, stage)

    def base(self, stage: str) -> np.ndarray:
        """What a stage says when every feature is at its training mean; (n, d)."""
        if stage not in self._base:  # the same for every region and random set
            if self.linear[stage] is not None:
                everything = np.ones(self.data.shape[-1], bool)
                self._base[stage] = self.full(stage) - self.part(stage, everything)
            else:
                silent = np.repeat(self.mean[None], len(self.data), axis=0)
                self._base[stage] = self._ask(silent, stage)
        return self._base[stage]

    def _ask(self, data: np.ndarray, stage: str) -> np.ndarray:
        key = _digest(data)
        if key not in self._asked:
            self._asked.clear()  # the stages of one condition are asked one after another
            self._asked[key] = self.problem.decoder.decode(data, self.trials)
        return rows_of_stage(self._asked[key][stage])

    def replaced(self, mask: np.ndarray, replacement: str, name: str) -> np.ndarray:
        """What stands in for the responses of ``mask``; (n, *frames, features of the mask)."""
        if replacement == "mean":
            return self.mean[..., mask]
        if replacement == "permuted":
            return self.data[..., mask][self._order(name)]
        out = np.zeros_like(self.data[..., mask])
        for rows, which, mixture in self._mixtures(name):
            known = self._known[which][..., mask].astype(np.float64)
            centre = known.mean(axis=0)
            drawn = mixture @ (known - centre).reshape(len(known), -1)
            out[rows] = drawn.reshape(len(rows), *centre.shape) + centre
        return out

    def _mixtures(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each subject: test rows, rows of its known trials, and weights (rows, known rows).

        The product of the weights and the centred known trials has exactly their covariance. The
        weights of a trial depend on what it is, and not on which others are in the table.
        """
        keys = ["subject", "stimulus", "session", "run", "repeat"]
        again = self.trials.groupby(keys, sort=False).cumcount().to_numpy()
        told = list(self.trials[keys].astype(str).itertuples(index=False, name=None))
        known_of = self._known_trials["subject"].astype(str).to_numpy()
        for subject, rows, _, _ in self._exchange():
            own = np.flatnonzero(known_of == subject)
            known = own if len(own) > 1 else np.arange(len(known_of))
            weights = np.zeros((len(rows), len(known)))
            for place, row in enumerate(rows):
                seed = item_seed(
                    self.problem.seed,
                    subject=subject,
                    stimulus="\x1f".join([name, *told[row]]),
                    sample=int(again[row]),
                    stage="replaced, noise",
                )
                weights[place] = numpy_generator(seed).standard_normal(len(known))
            yield rows, known, weights / np.sqrt(max(len(known) - 1, 1))

    def _exchange(self) -> list[tuple[str, np.ndarray, list[np.ndarray], np.ndarray]]:
        """Of each subject: its rows, the rows of each stimulus, and what may change places."""
        if self._people is None:
            self._people = []
            of_people = self.trials["subject"].astype(str).to_numpy()
            for subject in dict.fromkeys(of_people):
                rows = np.flatnonzero(of_people == subject)
                part = self.trials.iloc[rows].reset_index(drop=True)
                ids, of = np.unique(part["stimulus"].astype(str).to_numpy(), return_inverse=True)
                blocks = exchange_blocks(part, ids, of)
                labels = np.full(len(ids), "") if blocks is None else blocks.astype(str)
                labels = _with_partners(labels)
                members = [rows[of == k] for k in range(len(ids))]
                self._people.append((subject, rows, members, labels))
        return self._people

    def _order(self, name: str) -> np.ndarray:
        """Rows of another stimulus for each trial, within a run where runs part the stimuli."""
        order = np.arange(len(self.trials))
        for subject, _, members, labels in self._exchange():
            for label in np.unique(labels):
                seed = item_seed(
                    self.problem.seed,
                    subject=subject,
                    stimulus=f"{name}\x1f{label}",
                    stage="replaced, permuted",
                )
                mixed = numpy_generator(seed).permutation(np.flatnonzero(labels == label))
                # one cycle: no stimulus keeps its own; its repeats take those of one other
                for taker, giver in zip(mixed, np.roll(mixed, 1), strict=True):
                    rows, given = members[taker], members[giver]
                    order[rows] = given[np.arange(len(rows)) % len(given)]
        return order


def _with_partners(labels: np.ndarray) -> np.ndarray:
    """Stimuli that are alone in their block together, so that each is given another's responses."""
    labels = labels.astype(object)
    names, counts = np.unique(labels, return_counts=True)
    alone = np.isin(labels, names[counts == 1])
    if alone.any():
        labels[alone] = "alone" if alone.sum() > 1 else names[counts.argmax()]
    return labels.astype(str)


def rows_of_stage(values: np.ndarray) -> np.ndarray:
    """(n, d) float64 of what a stage gives."""
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _digest(data: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(data).data).digest()
