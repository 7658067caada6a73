"""fMRIPrep derivatives: which runs there are, and their series without confounds.

Read are ``sub-<label>[_ses-<label>][_task-<label>][_run-<n>]_space-fsLR_den-91k_bold.dtseries.nii``
anywhere below a folder, the confounds table ``..._desc-confounds_timeseries.tsv`` (or
``_regressors.tsv``) beside it, and the ``RepetitionTime`` of a JSON file beside it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.safe_io import read_csv, read_json
from neurodiff.datasets.cifti import DenseSeries, open_dtseries
from neurodiff.datasets.events import entities

PATTERN = "_space-fsLR_den-91k_bold.dtseries.nii"
TR_TOLERANCE = 1e-3  # s
_LEADING = 12  # frames at the start in which a confound may be missing (derivatives, scrubbing)


@dataclass(frozen=True)
class BoldRun:
    """One run of one subject; ``run`` is 1 where the name states none."""

    path: Path
    subject: str
    session: str
    task: str
    run: int

    @property
    def name(self) -> str:
        """``ses-1_task-x_run-02``, for files of this run."""
        session = f"ses-{self.session}_" if self.session else ""
        task = f"task-{self.task}_" if self.task else ""
        return f"{session}{task}run-{self.run:02d}"


def find_runs(
    root: Path, subjects: Sequence[str] = (), task: str | None = None
) -> dict[str, list[BoldRun]]:
    """Subject -> its runs, by session and run number.

    Parameters
    ----------
    subjects : labels with or without ``sub-``; a number finds any padding. Empty: all there are.
    task : only this task.

    Raises
    ------
    MissingDataError : no folder, no such file in it, a subject or task that is not there.
    DataError : two files of the same run.
    """
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the folder that fMRIPrep wrote")
    runs = []
    for path in sorted(root.rglob(f"sub-*{PATTERN}")):
        parts = entities(path.name)
        number = re.fullmatch(r"\d+", parts.get("run", "1"))
        if number is None:
            raise DataError(f"{path} has the run {parts['run']!r}; expected a number")
        runs.append(
            BoldRun(path, parts["sub"], parts.get("ses", ""), parts.get("task", ""), int(number[0]))
        )
    if not runs:
        other = sorted(root.rglob("sub-*_bold.dtseries.nii"))
        what = f", but {other[0].name}" if other else ""
        raise MissingDataError(
            f"{root} holds no sub-*{PATTERN}{what}; run fMRIPrep with --cifti-output 91k"
        )
    there = sorted({run.subject for run in runs})
    chosen = [_known_subject(root, label, there) for label in subjects] or there
    if task is not None:
        tasks = sorted({run.task for run in runs})
        runs = [run for run in runs if run.task == task]
        if not runs:
            raise MissingDataError(
                f"{root} has no task {task!r}; there are "
                f"{', '.join(filter(None, tasks)) or 'none'}.{suggest(task, tasks)}"
            )
    found: dict[str, list[BoldRun]] = {}
    for label in dict.fromkeys(chosen):
        own = [run for run in runs if run.subject == label]
        if not own:
            raise MissingDataError(f"subject {label} has no run of task {task!r} in {root}")
        own.sort(key=lambda run: (_by_number(run.session), run.task, run.run))
        names = [run.name for run in own]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise DataError(
                f"subject {label} has two files of {twice} below {root}; give one folder of "
                "derivatives"
            )
        found[label] = own
    return found


def open_run(run: BoldRun, tr: float | None) -> DenseSeries:
    """The run's series, its TR checked against ``tr`` and the JSON file beside it.

    Raises
    ------
    DataError : the header has another TR than was said, or than the JSON file says.
    """
    series = open_dtseries(run.path)
    if not series.tr > 0:
        raise DataError(f"{run.path} has a TR of {series.tr:g} s in its header; repair the header")
    if tr is not None and abs(series.tr - tr) > TR_TOLERANCE:
        raise DataError(
            f"{run.path} has a TR of {series.tr:g} s in its header, and --tr says {tr:g} s; one of "
            "them is wrong, and trials would be cut at other times"
        )
    beside = run.path.with_name(run.path.name.split(".")[0] + ".json")
    if beside.is_file():
        content = read_json(beside)
        stated = content.get("RepetitionTime") if isinstance(content, dict) else None
        if isinstance(stated, int | float) and abs(stated - series.tr) > TR_TOLERANCE:
            raise DataError(
                f"{beside} says RepetitionTime {stated:g} s, and the header of {run.path.name} "
                f"{series.tr:g} s; one of them is wrong"
            )
    return series


def confounds_path(run: BoldRun) -> Path:
    """The run's confounds table.

    Raises
    ------
    MissingDataError : there is none beside the series.
    """
    stem = run.path.name.split("_space-")[0]
    for ending in ("timeseries", "regressors"):
        path = run.path.with_name(f"{stem}_desc-confounds_{ending}.tsv")
        if path.is_file():
            return path
    raise MissingDataError(
        f"{run.path.parent / stem}_desc-confounds_timeseries.tsv is missing; copy it from "
        "fMRIPrep's output, or leave --confounds out"
    )


def read_confounds(
    path: Path, names: Sequence[str], n_frames: int
) -> Float[np.ndarray, "frames confounds"]:
    """Columns of a confounds table by name or pattern (``trans_*``), missing first values filled.

    Derivatives have no value in the first frame: it takes the column's mean, which is 0 once the
    column is centred.

    Raises
    ------
    UsageError : a name that fits no column.
    DataError : another number of frames, or a value that is missing in the middle of a run.
    """
    table = read_csv(path, separator="\t")
    if len(table) != n_frames:
        raise DataError(
            f"{path} has {len(table)} rows, and the series {n_frames} frames; they are not of the "
            "same run"
        )
    chosen: list[str] = []
    for name in names:
        fits = fnmatch.filter(table.columns, name)
        if not fits:
            raise UsageError(
                f"{path.name} has no confound {name!r}.{suggest(name, table.columns)} It has "
                f"{len(table.columns)} columns, first {', '.join(table.columns[:6])}"
            )
        chosen += fits
    columns = []
    for name in dict.fromkeys(chosen):
        values = table[name].to_numpy()
        if values.dtype.kind not in "fiu":
            raise DataError(f"{path}: the confound {name!r} is not of numbers")
        values = values.astype(float)
        there = np.isfinite(values)
        if not there.any() or not there[_LEADING:].all():
            raise DataError(f"{path}: the confound {name!r} has missing values within the run")
        columns.append(np.where(there, values, values[there].mean()))
    return np.stack(columns, axis=1)


def cleaned(
    series: Float[np.ndarray, "frames places"],
    confounds: Float[np.ndarray, "frames confounds"] | None,
    *,
    detrend: bool,
    high_pass: float | None,
    tr: float,
) -> Float[np.ndarray, "frames places"]:
    """The series without linear trend, slow drift and confounds; its mean is kept.

    One least-squares fit by nilearn: confounds are removed orthogonally to the cosine drifts
    (Lindquist et al. 2019).
    """
    if confounds is None and not detrend and high_pass is None:
        return series
    from nilearn.signal import clean

    mean = series.mean(axis=0)
    residuals = clean(
        series - mean,
        detrend=detrend,
        standardize=None,
        confounds=confounds,
        standardize_confounds=True,
        filter="cosine" if high_pass is not None else False,
        high_pass=high_pass,
        t_r=tr,
    )
    return residuals - residuals.mean(axis=0) + mean


def _known_subject(root: Path, label: str, there: list[str]) -> str:
    bare = label.removeprefix("sub-")
    if bare in there:
        return bare
    same = [one for one in there if bare.isdecimal() and one.isdecimal() and int(one) == int(bare)]
    if len(same) == 1:
        return same[0]
    raise MissingDataError(
        f"{root} has no subject {label!r}; there are {', '.join(there)}.{suggest(bare, there)}"
    )


def _by_number(session: str) -> tuple[int, str]:
    return (int(session), "") if session.isdecimal() else (0, session)
