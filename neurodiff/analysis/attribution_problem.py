"""What attribution asks and what it answers: a decoder, a problem, the result of one method.

A :class:`Problem` holds a fitted decoder with the trials that it is asked about. Every method is a
function of a problem that gives a :class:`MethodResult`, whose table has :data:`COLUMNS` first:

    value      how much the region carries; higher is more
    low, high  95 % interval, by bootstrap over stimuli
    null_*     mean and 95 % range of what the method's null gives; the notes name the null
    p, q       (1 + b) / (1 + B), and with the correction that the notes name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording

COLUMNS = (
    "method", "subject", "stage", "roi", "metric", "value", "low", "high", "null_mean", "null_low",
    "null_high", "p", "q", "n_trials", "n_features", "unit",
)  # fmt: skip
LEAST_STIMULI = 10


@runtime_checkable
class Decoder(Protocol):
    """What attribution asks of a fitted pipeline: brain in, features out, stage by stage.

    ``name`` is the pipeline's; ``stages`` are in the order of the computation. A decoder may have
    ``affine``, a set of stages that are a sum over features of the brain plus a constant: methods
    then add up parts that were computed once.
    """

    name: str
    stages: tuple[str, ...]

    def decode(self, data: np.ndarray, trials: pd.DataFrame) -> dict[str, np.ndarray]:
        """Responses (n, *frames, features) of these trials -> stage -> (n, d)."""
        ...

    def truth(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """What each stage should give for stimuli of these names: stage -> (n, d)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A decoder, the trials it is asked about, and the regions that may carry what it needs.

    Parameters
    ----------
    decoder : fitted; never fitted again, except where a method says so.
    test : trials that the fit has not seen.
    train : the trials of the fit, which methods read means and noise from.
    truth : stage -> (trials of ``test``, d).
    rois : name -> boolean (features,).
    metric : name of `attribution_statistics.METRICS`.
    seed : of every draw.
    draws : of permutations and of the bootstrap.
    confidence : of intervals.

    Raises
    ------
    UsageError : fewer than 10 test stimuli, draws or confidence out of range.
    DataError : a region without features or of another width, truth of other length.
    """

    decoder: Decoder
    test: Recording
    truth: Mapping[str, np.ndarray]
    rois: Mapping[str, np.ndarray]
    metric: str = "correlation"
    train: Recording | None = None
    seed: int = 0
    draws: int = 1000
    confidence: float = 0.95
    progress: Progress = SILENT

    def __post_init__(self) -> None:
        shown = self.test.trials["stimulus"].nunique()
        if shown < LEAST_STIMULI:
            raise UsageError(
                f"there are {shown} test stimuli; attribution needs at least {LEAST_STIMULI}, "
                "because its intervals are over stimuli"
            )
        if self.draws < 1 or not 0 < self.confidence < 1:
            raise UsageError(
                f"draws is {self.draws} and confidence {self.confidence}; give a whole number from "
                "1 and a number between 0 and 1"
            )
        if not self.rois:
            raise UsageError("there is no region; give rois=, name -> boolean mask over features")
        for name, mask in self.rois.items():
            mask = np.asarray(mask)
            if mask.dtype != bool or mask.shape != (self.test.n_features,):
                raise DataError(
                    f"region {name!r} is {mask.dtype} of shape {mask.shape}; expected booleans of "
                    f"the {self.test.n_features} features of this recording"
                )
            if not mask.any():
                raise DataError(
                    f"region {name!r} has no feature of this recording; leave it out, or give its "
                    "mask in the recording's space"
                )
        for stage, rows in self.truth.items():
            if len(rows) != self.test.n_trials:
                raise DataError(
                    f"the truth of stage {stage!r} has {len(rows)} rows; there are "
                    f"{self.test.n_trials} test trials"
                )

    @property
    def subjects(self) -> list[str]:
        """Subjects of the test trials, in order of appearance."""
        return [str(s) for s in dict.fromkeys(self.test.trials["subject"])]

    def overlapping(self) -> list[tuple[str, str]]:
        """Pairs of regions that share a feature."""
        names = list(self.rois)
        masks = np.stack([np.asarray(self.rois[n]) for n in names]).astype(np.float32)
        shared = np.triu(masks @ masks.T, 1)
        return [(names[i], names[j]) for i, j in np.argwhere(shared > 0)]


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodResult:
    """What one method found.

    Parameters
    ----------
    method : its name, with the replacement or variant after a colon.
    table : one row a (subject, stage, region); :data:`COLUMNS` first, further ones after.
    maps : name -> (features,) in the recording's space, NaN where nothing is said.
    items : one row a stimulus, region and stage, with its ``value``; None where there is none.
    notes : sentences for the page: number of trials, null, correction, what it cannot say.
    """

    method: str
    table: pd.DataFrame
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    items: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = [c for c in COLUMNS if c not in self.table]
        if missing:
            raise UsageError(
                f"the table of {self.method!r} lacks the columns {', '.join(missing)}; a method "
                "gives all of attribution_problem.COLUMNS"
            )
