"""What was shown when: BIDS events and the published run tables, and which frames a trial has.

Frame k of a run is acquired at ``start + k * TR``.  The first frame of a trial is the first one at
or after the onset plus the haemodynamic delay::

    first = ceil((onset + delay - start) / TR)

and the trial is the ``n`` frames from there on.  The delay of the published recordings is not
stated, so that there is no default (CineBrain, of the same laboratory, uses 4 s).  A quotient that
is an integer up to 1e-6 is taken as that integer: 5.6 / 0.8 is 7, not 6.999....
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.safe_io import read_csv

RELEASE = {"onset": "videoStartTime", "end": "videoStopTime", "stimulus": "stim_path"}
"""Columns of the run tables of fMRI-Shape and fMRI-Objaverse; seconds from the run's start."""

STIMULUS_COLUMNS = ("stim_path", "stim_file", "stimulus", "stim_id")
_ROUNDING = 1e-6  # of a frame
_FIELD = re.compile(r"\{(subject|session|run|task)(?::0(\d))?\}")
_NAME = re.compile(r"\w[\w.-]*")


def first_frames(
    onsets: Float[np.ndarray, " trials"], *, delay: float, tr: float, start: float = 0.0
) -> Int[np.ndarray, " trials"]:
    """First frame of each trial; see the module.

    Examples
    --------
    >>> first_frames(np.array([0.0, 1.6, 1.7]), delay=4.0, tr=0.8)
    array([5, 7, 8])
    """
    exact = (np.asarray(onsets, float) + delay - start) / tr
    return np.ceil(exact - _ROUNDING).astype(int)


def read_events(
    path: Path,
    *,
    stimulus_column: str | None = None,
    trial_type: Sequence[str] = (),
    drop_last: bool = False,
    only: Mapping[str, object] | None = None,
) -> pd.DataFrame:
    """Trials of a run, in order of onset.

    Parameters
    ----------
    path : BIDS ``events.tsv`` (onset, duration) or a release table (videoStartTime,
        videoStopTime); comma or tab.
    stimulus_column : by default the first of stim_path, stim_file, stimulus, stim_id that is there.
        A value is an id, or a path ``.../<category>/<id>.mp4``.
    trial_type : keep these values of the column trial_type only.
    drop_last : leave the table's last row out, as readers of the release do.
    only : column -> value, such as ``{"run": 2}``, of one table for several runs; where the table
        has no such column, all its rows are taken.

    Returns
    -------
    Columns row (line of the file, the header is 1), onset, duration (s; NaN where not stated),
    stimulus, folder (of the stimulus' path, or "objects"), category (the column of this name, or
    the folder), split ("" where not stated). Rows without a stimulus are left out.

    Raises
    ------
    MissingDataError, DataError : no file, no such column, an onset that is no number, no trial.
    """
    table = read_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    table["row"] = np.arange(2, len(table) + 2)
    if drop_last:
        table = table.iloc[:-1]
    for name, value in (only or {}).items():
        if name in table:
            same = [_bare(str(one).removesuffix(".0")) == _bare(str(value)) for one in table[name]]
            table = table[same]
    if trial_type:
        _require(path, table, "trial_type")
        table = table[table["trial_type"].isin(list(trial_type))]
    column = stimulus_column or next((c for c in STIMULUS_COLUMNS if c in table), "stim_file")
    _require(path, table, column)
    is_release = RELEASE["onset"] in table
    _require(path, table, RELEASE["onset"] if is_release else "onset")
    table = table[table[column].notna()]
    if len(table) == 0:
        raise DataError(f"{path} has no trial: no row of it names a stimulus in {column!r}")
    onset = _seconds(path, table, RELEASE["onset"] if is_release else "onset")
    if is_release and RELEASE["end"] in table:
        duration = _seconds(path, table, RELEASE["end"]) - onset
    elif "duration" in table:
        duration = pd.to_numeric(table["duration"], errors="coerce").to_numpy(float)
    else:
        duration = np.full(len(table), np.nan)
    names = [
        _named(path, row, value) for row, value in zip(table["row"], table[column], strict=True)
    ]
    given = table["category"] if "category" in table else pd.Series([None] * len(table))
    split = table["split"] if "split" in table else pd.Series([None] * len(table))
    found = pd.DataFrame(
        {
            "row": table["row"].to_numpy(),
            "onset": onset,
            "duration": duration,
            "stimulus": [name for _, name in names],
            "folder": [folder for folder, _ in names],
            "category": [
                str(stated) if isinstance(stated, str) else folder
                for stated, (folder, _) in zip(given, names, strict=True)
            ],
            "split": [value if isinstance(value, str) else "" for value in split],
        }
    )
    return found.sort_values("onset", kind="stable").reset_index(drop=True)


def has_column(path: Path, name: str) -> bool:
    """Whether the table of events has this column."""
    return name in read_csv(path, separator="\t" if path.suffix == ".tsv" else ",")


def frames_of(path: Path, events: pd.DataFrame, tr: float) -> int:
    """Frames of a trial from the stated durations: the nearest whole number.

    Raises
    ------
    DataError : no duration, or trials of different lengths.
    """
    frames = np.rint(events["duration"].to_numpy() / tr)
    if not np.isfinite(frames).all() or len(set(frames)) != 1 or frames[0] < 1:
        said = ", ".join(f"{value:g}" for value in sorted(set(events["duration"]))[:4])
        raise DataError(
            f"{path} does not state one duration for its trials (s: {said}); say with --frames how "
            "many frames a trial has"
        )
    return int(frames[0])


def events_path(pattern: str, *, subject: str, session: str, run: int, task: str) -> Path:
    """The events file of a run: ``pattern`` with its fields filled in, or found in a BIDS folder.

    Parameters
    ----------
    pattern : a file (of the only run), a folder with BIDS names, or a path with ``{subject}``,
        ``{session}``, ``{task}`` and ``{run}``; ``{run:02}`` pads with zeros.

    Raises
    ------
    MissingDataError : there is no such file.
    UsageError : a field that is not one of the four.
    """
    known = {"subject": subject, "session": session, "run": run, "task": task}

    def fill(match: re.Match[str]) -> str:
        return str(known[match[1]]).rjust(int(match[2] or 0), "0")

    filled = _FIELD.sub(fill, pattern)
    if "{" in filled:
        raise UsageError(
            f"--events {pattern} has a field that is not known; there are {{subject}}, "
            "{session}, {task} and {run}, and {run:02} pads with zeros"
        )
    path = Path(filled)
    if not path.is_dir():
        if not path.is_file():
            raise MissingDataError(
                f"{path}, the events of subject {subject}, run {run}, does not exist; give a file, "
                "a folder of BIDS, or a path with {subject}, {session}, {task} and {run}"
            )
        return path
    parts = {"ses": session, "task": task, "run": str(run)}
    found = [
        file
        for file in sorted(path.rglob(f"sub-{subject}_*events.tsv"))
        if all(
            not want or _bare(have) == _bare(want)
            for key, want in parts.items()
            if (have := entities(file.name).get(key)) is not None
        )
    ]
    if len(found) != 1:
        what = ", ".join(file.name for file in found[:3]) or "none"
        raise MissingDataError(
            f"{path} has {len(found)} events files of subject {subject}, run {run} ({what}); "
            "expected one *_events.tsv"
        )
    return found[0]


def entities(name: str) -> dict[str, str]:
    """``sub-01_task-x_run-2_bold.nii`` -> {"sub": "01", "task": "x", "run": "2"}."""
    pairs = (part.split("-", 1) for part in name.split(".")[0].split("_") if "-" in part)
    return {key: value for key, value in pairs}


def _bare(value: str) -> str:
    """Labels are compared without their padding and their key."""
    return value.strip().removeprefix("sub-").removeprefix("ses-").lstrip("0") or "0"


def _named(path: Path, row: int, value: object) -> tuple[str, str]:
    """(category, id) of ``.../<category>/<id>.mp4``; the category is "objects" where none is."""
    whole = PurePosixPath(str(value).strip().replace("\\", "/"))
    name = whole.stem if re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,3}", whole.suffix) else whole.name
    folder = whole.parent.name or "objects"
    for text in (name, folder):
        if not _NAME.fullmatch(text) or ".." in text:
            raise DataError(
                f"{path}, line {row}: {str(value)!r} gives no file name for the trial; expected an "
                "id, or a path <category>/<id>, of letters, digits, '_', '-' and '.'"
            )
    return folder, name


def _seconds(path: Path, table: pd.DataFrame, column: str) -> np.ndarray:
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = table.iloc[bad[0]]
        raise DataError(
            f"{path}, line {row['row']}: {column} is {row[column]!r}; expected seconds from the "
            "start of the run"
        )
    return values


def _require(path: Path, table: pd.DataFrame, column: str) -> None:
    if column not in table:
        columns = [str(name) for name in table.columns if name != "row"]
        raise DataError(
            f"{path} has no column {column!r}; its columns are {', '.join(columns)}."
            f"{suggest(column, columns)}"
        )
