"""A ridge fitted anew on some features of the brain: what they could tell, whoever else is there.

    responses (mean over frames) -> kernel, factored once -> hat matrix of each stage

The penalty is chosen by exact leave-one-stimulus-out error. Stages share the factorisation of a set
of features; targets are streamed by `FactoredRidge`, so that wide stages fit in memory.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from neurodiff.analysis.attribution_conditions import rows_of_stage
from neurodiff.analysis.attribution_problem import Problem
from neurodiff.bridges.factored_ridge import FactoredRidge, KernelFactor, factorise
from neurodiff.core.errors import DataError, UsageError


class Asked(Protocol):
    """A subject's test rows at a stage."""

    subject: str
    stage: str
    rows: np.ndarray


class Refits:
    """Ridges of a problem with training trials.

    Raises
    ------
    UsageError : no training trials.
    DataError : fewer than two training stimuli of a subject, stimuli without truth, or a set whose
        features never vary over the training trials.
    """

    def __init__(self, problem: Problem) -> None:
        if problem.train is None:
            raise UsageError("refit fits on the training trials; give train=")
        table = problem.train.trials
        self._stimuli = table["stimulus"].astype(str).to_numpy()
        self._people = table["subject"].astype(str).to_numpy()
        self._targets = problem.decoder.truth(list(self._stimuli))
        self._seen, self._asked = _means(problem.train.array()), _means(problem.test.array())
        self._last: tuple[tuple[str, bytes], KernelFactor, np.ndarray] | None = None

    def predicted(self, view: Asked, mask: np.ndarray) -> np.ndarray:
        """(trials of the view, d) from a ridge on the features of ``mask`` alone."""
        own = self._people == view.subject
        factor, columns = self._factor(view.subject, own, mask)
        targets = rows_of_stage(self._targets[view.stage])[own]
        ridge = FactoredRidge(standardise="none").fit(None, targets, factor=factor)
        return ridge.predict_raw(self._asked[view.rows][:, columns])

    def _factor(
        self, subject: str, own: np.ndarray, mask: np.ndarray
    ) -> tuple[KernelFactor, np.ndarray]:
        key = subject, np.packbits(mask).tobytes()
        if self._last is None or self._last[0] != key:  # stages of a set follow one another
            if len(set(self._stimuli[own])) < 2:
                shown = len(set(self._stimuli[own]))
                raise DataError(
                    f"{subject} has {shown} training stimuli; a ridge needs at least 2: give the "
                    "training trials of the same subjects"
                )
            seen = self._seen[own]
            columns = np.flatnonzero(mask & (seen.max(axis=0) > seen.min(axis=0)))
            if not len(columns):
                raise DataError(
                    f"the {int(mask.sum())} features asked for never vary over the training "
                    f"trials of {subject}; leave this region out"
                )
            factor = factorise(seen[:, columns], groups=self._stimuli[own])
            self._last = key, factor, columns
        return self._last[1], self._last[2]


def _means(data: np.ndarray) -> np.ndarray:
    """Over the frames; (n, features)."""
    data = np.asarray(data, np.float64)
    return data.mean(axis=tuple(range(1, data.ndim - 1))) if data.ndim > 2 else data
