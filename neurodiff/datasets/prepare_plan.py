"""Settings of ``neurodiff prepare``, and what a subject's runs hold, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError
from neurodiff.datasets.cifti import DenseSeries
from neurodiff.datasets.events import (
    events_path,
    first_frames,
    frames_of,
    has_column,
    read_events,
)
from neurodiff.datasets.fmriprep import BoldRun, confounds_path, open_run, read_confounds

ZScore = Literal["run", "session", "first-run", "none"]
ZSCORES = ("run", "session", "first-run", "none")
KEEP = ("maps", "vertices", "both")
FOLDERS = {"maps": "npy_data", "vertices": "grayordinates"}


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Everything that decides what a trial holds.

    Attributes
    ----------
    delay : seconds from onset to the trial's first frame; there is no default.
    tr : seconds; checked against the files. None takes theirs.
    frames : of a trial; None takes the stated duration over the TR.
    zscore : see the module.
    confounds : columns of fMRIPrep's table, by name or pattern.
    detrend, high_pass : remove a linear trend; cosine drifts below this frequency (Hz).
    keep : flat maps (the hub's layout), the 8,921 vertices, or both.
    stimulus_column, trial_type, drop_last : see `events.read_events`.
    drop_outside : leave trials that do not fit into their run out, instead of an error.
    """

    delay: float
    tr: float | None = None
    frames: int | None = None
    zscore: ZScore = "run"
    confounds: tuple[str, ...] = ()
    detrend: bool = False
    high_pass: float | None = None
    keep: Literal["maps", "vertices", "both"] = "maps"
    stimulus_column: str | None = None
    trial_type: tuple[str, ...] = ()
    drop_last: bool = False
    drop_outside: bool = False

    def __post_init__(self) -> None:
        if not np.isfinite(self.delay):
            raise UsageError(f"the delay is {self.delay}; give seconds, such as 4")
        for name, value in (("tr", self.tr), ("high_pass", self.high_pass)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}; give a number above 0")
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"frames is {self.frames}; a trial has at least one")
        for name, word, known in (("zscore", self.zscore, ZSCORES), ("keep", self.keep, KEEP)):
            if word not in known:
                raise UsageError(f"{name} is {word!r}; expected {', '.join(known)}")


@dataclass
class RunPlan:
    """One run with its trials, checked before anything is written."""

    run: BoldRun
    series: DenseSeries
    events: Path
    confounds: Path | None
    trials: pd.DataFrame
    frames: int
    outside: int = 0
    statistics: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    @property
    def inputs(self) -> list[Path]:
        """Files that the run's trials are made from, the series first."""
        return [p for p in (self.run.path, self.events, self.confounds) if p is not None]


def plan_runs(
    runs: list[BoldRun],
    events: str,
    settings: PrepareSettings,
    tests: set[tuple[str, str]] | None,
) -> list[RunPlan]:
    """The runs of a subject; every header and table is read and checked here."""
    plans: list[RunPlan] = []
    count: dict[tuple[str, str], int] = {}
    used: dict[Path, BoldRun] = {}
    for run in runs:
        series = open_run(run, settings.tr)
        path = events_path(
            events, subject=run.subject, session=run.session, run=run.run, task=run.task
        )
        if path in used and not has_column(path, "run"):
            raise UsageError(
                f"{path} would be the events of both {used[path].path.name} and {run.path.name}; "
                "give a path with {run}, a folder of BIDS, or a table with a column run"
            )
        used[path] = run
        table = read_events(
            path,
            stimulus_column=settings.stimulus_column,
            trial_type=settings.trial_type,
            drop_last=settings.drop_last,
            only={"subject": run.subject, "session": run.session or 1, "run": run.run},
        )
        frames = settings.frames or frames_of(path, table, series.tr)
        table["first_frame"] = first_frames(
            table["onset"].to_numpy(), delay=settings.delay, tr=series.tr, start=series.start
        )
        outside = (table["first_frame"] < 0) | (table["first_frame"] + frames > series.n_frames)
        outside |= table["onset"] < 0
        if outside.any() and not settings.drop_outside:
            bad = table[outside].iloc[0]
            raise DataError(
                f"{path}, line {bad['row']}: the trial at {bad['onset']:g} s needs frames "
                f"{bad['first_frame']} to {bad['first_frame'] + frames - 1}, and {run.path.name} "
                f"has 0 to {series.n_frames - 1} ({series.n_frames * series.tr:g} s); "
                f"{int(outside.sum())} trials lie outside the run: check events, delay and TR, or "
                "pass --drop-outside"
            )
        table = table[~outside].reset_index(drop=True)
        if tests is not None:
            keys = zip(table["folder"], table["stimulus"], strict=True)
            table["split"] = ["test" if key in tests else "train" for key in keys]
        table["split"] = table["split"].replace("", "train")
        repeats = []
        for key in zip(table["folder"], table["stimulus"], strict=True):
            count[key] = count.get(key, 0) + 1
            repeats.append(count[key])
        table["repeat"] = repeats
        beside = confounds_path(run) if settings.confounds else None
        if beside is not None:
            read_confounds(beside, settings.confounds, series.n_frames)
        plans.append(RunPlan(run, series, path, beside, table, frames, int(outside.sum())))
    lengths = sorted({plan.frames for plan in plans})
    if len(lengths) > 1:
        raise DataError(
            f"trials of subject {runs[0].subject} have {lengths[0]} to {lengths[-1]} frames; say "
            "with --frames how many a trial has"
        )
    return plans
