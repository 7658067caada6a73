"""What a decoder says when features of the brain are replaced: conditions made once and added up.

The three replacements are those of `attribution_ablation`. Each stands for a whole condition of the
test trials; linear stages add up parts that were computed once, others are asked anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from neurodiff.analysis.attribution_decoders import linear_stage
from neurodiff.analysis.attribution_problem import Problem
from neurodiff.analysis.attribution_statistics import exchange_blocks
from neurodiff.core.seeds import item_seed, numpy_generator

Replacement = Literal["mean", "permuted", "noise"]
REPLACEMENTS = ("mean", "permuted", "noise")
_MOST_BYTES = 2**28  # of answers that are kept


class _Kept:
    """What the methods of a problem share: answers, and what a decoder makes once of its trials."""

    def __init__(self, problem: Problem) -> None:
        self.data = np.asarray(problem.test.array())
        known = self.data if problem.train is None else np.asarray(problem.train.array())
        self.mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.linear = {s: linear_stage(problem.decoder, s) for s in problem.decoder.stages}
        self.rows: dict[str, np.ndarray] = {}
        self.known_rows: dict[str, np.ndarray] = {}
        self.prepared: dict[str, Any] = {}
        self._answers: OrderedDict[Hashable, dict[str, np.ndarray]] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, key: Hashable) -> dict[str, np.ndarray]:
        self._answers.move_to_end(key)
        return self._answers[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._answers

    def add(self, key: Hashable, answer: dict[str, np.ndarray]) -> None:
        self._answers[key] = {**self._answers.get(key, {}), **answer}
        self._bytes += _size(answer)
        while self._bytes > _MOST_BYTES and len(self._answers) > 1:
            self._bytes -= _size(self._answers.popitem(last=False)[1])


_KEPT: WeakKeyDictionary[Problem, _Kept] = WeakKeyDictionary()


class Conditions:
    """What the decoder says of a problem's trials when features are replaced.

    Parts of linear stages are computed once a region and added up; other stages are asked anew, and
    one answer serves all of them, and every method that asks the same of the problem. A decoder
    with ``prepared`` makes what conditions share once.
    """

    def __init__(self, problem: Problem, stages: tuple[str, ...]) -> None:
        self.problem, self.stages = problem, stages
        if problem not in _KEPT:
            _KEPT[problem] = _Kept(problem)
        self._kept = kept = _KEPT[problem]
        self.data, self.mean, self.linear = kept.data, kept.mean, kept.linear
        self.trials = problem.test.trials
        self._rows, self._known_rows = kept.rows, kept.known_rows
        self._known_data: np.ndarray | None = None
        self._known_trials = self.trials if problem.train is None else problem.train.trials
        self._people: list[tuple[str, np.ndarray, list[np.ndarray], np.ndarray]] | None = None
        self._base: dict[str, np.ndarray] = {}

    @property
    def _known(self) -> np.ndarray:
        """Responses that means and noise are of; they are not held longer than a method runs."""
        if self._known_data is None:
            train = self.problem.train
            self._known_data = self.data if train is None else np.asarray(train.array())
        return self._known_data

    def full(self, stage: str) -> np.ndarray:
        """(n, d) of a stage when nothing is replaced."""
        return self._ask("shown", None, None, (), stage)

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
            key = (replacement, "" if replacement == "mean" else name)
            return self._ask("shown", mask, replacement, key, stage)
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
        return self._ask("silent", mask, None, (), stage)

    def base(self, stage: str) -> np.ndarray:
        """What a stage says when every feature is at its training mean; (n, d)."""
        if stage not in self._base:  # the same for every region and random set
            if self.linear[stage] is not None:
                everything = np.ones(self.data.shape[-1], bool)
                self._base[stage] = self.full(stage) - self.part(stage, everything)
            else:
                self._base[stage] = self._ask("silent", None, None, (), stage)
        return self._base[stage]

    def _ask(
        self,
        start: Literal["shown", "silent"],
        mask: np.ndarray | None,
        replacement: str | None,
        what: tuple[str, ...],
        stage: str,
    ) -> np.ndarray:
        """A stage's answer to the trials as shown, or at the mean, with features replaced.

        replacement : of the features of ``mask``; None is the trials' own responses.
        what : tells replacements of these features apart.
        """
        if mask is not None and not mask.any():
            mask, what = None, ()
        key = (start, None if mask is None else np.packbits(mask).tobytes(), what)
        if key not in self._kept or stage not in self._kept[key]:
            values = None
            if mask is not None:
                values = self.data[..., mask]
                if replacement is not None:
                    values = self.replaced(mask, replacement, what[-1])
            self._kept.add(key, self._answer(start, mask, values, stage))
        return rows_of_stage(self._kept[key][stage])

    def _answer(
        self, start: str, mask: np.ndarray | None, values: np.ndarray | None, stage: str
    ) -> dict[str, np.ndarray]:
        decoder, line = self.problem.decoder, self.linear[stage]
        prepare = getattr(decoder, "prepared", None)
        curved = [s for s in decoder.stages if self.linear[s] is None]
        begin = np.broadcast_to(self.mean, self.data.shape) if start == "silent" else self.data
        if line is not None and curved and mask is None and start == "shown":
            everywhere = np.ones(self.data.shape[-1], bool)  # the others would be asked for it, too
            return {stage: line.constant + line.of(line.read(self.data), everywhere)}
        if prepare is not None and line is None:
            if start not in self._kept.prepared:
                self._kept.prepared[start] = prepare(begin, self.trials, curved)
            if self._kept.prepared[start] is not None:
                return self._kept.prepared[start].decode(mask, values)
        data = np.array(begin)
        if mask is not None:
            data[..., mask] = values
        return decoder.decode(data, self.trials)

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


def _size(answer: dict[str, np.ndarray]) -> int:
    return sum(np.asarray(values).nbytes for values in answer.values())
