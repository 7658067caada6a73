"""The verb interpolate: a visit between two scans of one person."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.ldae_scans import (
    EncodedScan,
    Walk,
    decoded,
    encode_scan,
    file_name,
    is_written,
    made_by,
    one_scan,
    open_model,
    open_scans,
    require_folder,
    source_of,
    write_changed,
)
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE

PARTS = (".nii.gz", "_change.nii.gz")


def interpolate_scans(
    a: str | Path,
    b: str | Path,
    out: str | Path,
    model: str | Path,
    t: float | Sequence[float] | None = 0.5,
    *,
    cohort: Cohort | str | Path | None = None,
    month: float | None = None,
    **options: Any,
) -> Path:
    """Scans between two of one person: codes on the line, noises on the great circle.

    Writes ``<a>_to_<b>_t<t>.nii.gz`` on the model's grid, the change from the first scan at that
    scan's own voxels, and a JSON file; returns the folder.

    Parameters
    ----------
    a, b : two scan files, or with ``cohort`` two ids of one subject.
    t : places between them, 0 is the first and 1 the second.
    month : instead of ``t``: months from the baseline; the sessions of the two ids give ``t``.
    options : ``root`` of the cohort, ``walk``, ``progress``.

    Raises
    ------
    UsageError : t outside 0 to 1, scans of two subjects, one scan twice, a month without sessions.
    DataError : a scan that cannot be read or prepared.
    """
    root, walk = options.pop("root", None), options.pop("walk", None) or Walk()
    progress: Progress = options.pop("progress", SILENT)
    if options:
        raise UsageError(f"interpolate has no option {', '.join(options)}")
    ends, rows = _ends(a, b, cohort, root)
    places = _places(t, month, rows)
    pipe, out = open_model(model, walk), Path(out)
    require_folder(out)
    todo = _between(pipe, list(zip(ends, rows, strict=True)), out, (places, month), walk)
    if len(todo) < len(places):
        done = len(places) - len(todo)
        progress.say(f"{done} of {len(places)} images were made before")
    if not todo:
        return out
    first, second = (
        encode_scan(pipe, row, part[row["scan"]], walk.steps)
        for part, row in zip(ends, rows, strict=True)
    )
    notes = [*_whose(rows, cohort is not None), *_apart(first, second, pipe)]
    for note in notes:
        progress.say(note)
    unchanged = decoded(pipe, first.code, first.noise, walk.steps)
    for stem, record in progress.over(list(todo.items()), "interpolate"):
        code, noise = pipe.between(first.code, second.code, first.noise, second.noise, record["t"])
        values = decoded(pipe, code, noise, walk.steps)
        write_changed(stem, first, values, unchanged, record, tuple(notes))
    return out


def _between(
    pipe: LDAE,
    ends: list[tuple[Cohort, pd.Series]],
    out: Path,
    wanted: tuple[list[float], float | None],
    walk: Walk,
) -> dict[Path, dict[str, Any]]:
    """Stem and record of every image between two scans that is not made yet."""
    places, month = wanted
    one, other = (
        {"scan": row["scan"], "source": source_of(row) or part[row["scan"]].fingerprint()}
        for part, row in ends
    )
    if one["source"] == other["source"]:
        raise UsageError(
            f"{one['scan']} and {other['scan']} are the same scan; give two visits of one person"
        )
    name = f"{file_name(one['scan'])}_to_{file_name(other['scan'])}"
    todo = {}
    for place in places:
        record = {
            **made_by(pipe, "interpolate", walk),
            "from": one,
            "to": other,
            "t": place,
            "month": month,
            "codes": "on the line between the two",
            "noise": "on the great circle between the two",
        }
        stem = out / f"{name}_t{place:.3f}"
        if not is_written(stem, record, PARTS):
            todo[stem] = record
    return todo


def _ends(
    a: str | Path, b: str | Path, cohort: Cohort | str | Path | None, root: str | Path | None
) -> tuple[list[Cohort], list[pd.Series]]:
    """The cohorts and rows of the two scans."""
    if cohort is None:
        parts = [one_scan(Path(one).expanduser()) for one in (a, b)]
        rows = [part.row(0) for part in parts]
        people = [_named_subject(str(row["path"])) for row in rows]
    else:
        opened = open_scans(cohort, root)
        parts, rows = [opened, opened], [opened.row(str(one)) for one in (a, b)]
        people = [row["subject"] for row in rows]
    if "" not in people and people[0] != people[1]:
        raise UsageError(
            f"{a} is of {people[0]} and {b} of {people[1]}; give two scans of one subject"
        )
    return parts, rows


def _named_subject(path: str) -> str:
    """The subject that a file's name tells in the way of BIDS, "" where it tells none."""
    found = re.match(r"sub-[A-Za-z0-9]+", Path(path).name)
    return found[0] if found else ""


def _whose(rows: list[pd.Series], checked: bool) -> list[str]:
    """A note where nothing tells that two files are of one person."""
    if checked or all(_named_subject(str(row["path"])) for row in rows):
        return []
    return [
        "nothing tells that the two files are of one person (name them sub-<label>_..., or give "
        "ids with --cohort): between two people there is no missing visit"
    ]


def _places(
    t: float | Sequence[float] | None, month: float | None, rows: list[pd.Series]
) -> list[float]:
    """t of every image to make."""
    if month is not None:
        start, end = (float(row["session"]) for row in rows)
        if not np.isfinite([start, end]).all() or start == end:
            raise UsageError(
                f"--month needs two scans whose months are known and differ, and {rows[0]['scan']} "
                f"and {rows[1]['scan']} have {start:g} and {end:g}; give two ids of a cohort with "
                "sessions (--cohort), or --t"
            )
        place = (float(month) - start) / (end - start)
        if not 0 <= place <= 1:
            raise UsageError(
                f"month {month:g} is not between {start:g} and {end:g}, the months of "
                f"{rows[0]['scan']} and {rows[1]['scan']}; nothing beyond the two is made"
            )
        return [place]
    places = [float(t)] if isinstance(t, int | float) else [float(one) for one in t or ()]
    if not places:
        raise UsageError("give --t, from 0 (the first scan) to 1 (the second), or --month")
    for place in places:
        if not 0 <= place <= 1:
            raise UsageError(f"t is {place:g}; expected a place between the two scans, 0 to 1")
    return places


def _apart(first: EncodedScan, second: EncodedScan, pipe: LDAE) -> list[str]:
    """A note where the grids of the two scans do not lie in one place."""
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(pipe.size.grid) - 1
    one, other = (scan.made.volume.affine for scan in (first, second))
    far = float(np.abs(corners @ (one - other).T).max())
    if far <= max(first.made.volume.spacing) / 2:
        return []
    return [
        f"the two scans do not lie in one place (up to {far:.0f} mm apart on the model's grid): "
        "bring both to one space first, or what lies between them is a blend of two places"
    ]
