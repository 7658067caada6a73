"""The verbs of brain scans: encode, decode, edit, interpolate.

A run over a cohort goes on when a scan fails and lists it in ``failed.csv``; what is done with the
same model, scan and settings is not done again, so that the same command goes on after a kill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.ldae_encoding import TABLE, encode_cohort
from neurodiff.analysis.ldae_scans import (
    EncodedScan,
    Failures,
    Walk,
    affine_of,
    close_run,
    decoded,
    encode_scan,
    file_name,
    is_written,
    made_by,
    one_scan,
    open_coder,
    open_model,
    open_scans,
    require_folder,
    source_of,
    write_changed,
)
from neurodiff.core.atomic import write_json
from neurodiff.core.code_table import CodeTable, read_codes
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import NeurodiffError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import now, package_version
from neurodiff.core.volume import Volume

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE
    from neurodiff.pipelines.ldae_autoencoder_alone import AutoencoderAlone

__all__ = ["TABLE", "decode_codes", "edit_scans", "encode_cohort", "interpolate_scans"]

_NOWHERE = "not known: the table does not tell it, and the grid's middle is at the origin"
_PARTS = (".nii.gz", "_change.nii.gz")
_MOST_TOLD = 2048  # numbers of a code that are written out


def decode_codes(
    table: str | Path | CodeTable,
    out: str | Path,
    model: str | Path,
    *,
    walk: Walk | None = None,
    progress: Progress = SILENT,
) -> Path:
    """An image on the model's grid for each code of a table; returns the folder.

    The noise is drawn, by the seed and each scan's own name: a code tells what a brain is like, and
    not its every fold. Each ``<scan>.json`` says so.

    Raises
    ------
    DataError : a table that cannot be read, of another model, or of another width.
    """
    walk, out = walk or Walk(), Path(out)
    codes = table if isinstance(table, CodeTable) else read_codes(table)
    pipe = open_coder(model, walk)
    where = "the table of codes" if isinstance(table, CodeTable) else str(table)
    codes.require_model(pipe.identity, pipe.code_width, where)
    require_folder(out)
    done = 0
    for number in progress.over(range(len(codes)), "decode"):
        row, code = codes.scans.iloc[number], codes.codes[number : number + 1]
        affine = affine_of(row.get("grid_affine"))
        record = {
            **made_by(pipe, "decode", walk),
            "seed": walk.seed,
            "code": _as_told(code[0]),
        }
        stem = out / file_name(row["scan"])
        if is_written(stem, record, (".nii.gz",)):
            done += 1
            continue
        values, lost = _image_of(pipe, row, code, walk)
        place = _centred(pipe) if affine is None else affine
        Volume(values, place, "0 to 1", row["scan"]).save(stem.with_name(stem.name + ".nii.gz"))
        about = {
            "made": record,
            "neurodiff": package_version(),
            "written": now(),
            "scan": {"scan": row["scan"], "subject": row["subject"]},
            "affine": place,
            "place": "as prepared for the encoder" if affine is not None else _NOWHERE,
            "cannot be restored": [
                *lost,
                "detail that the autoencoder loses",
                "intensities of the scan; the image runs from 0 to 1",
                "the skull, and everything outside the model's field of view",
            ],
        }
        write_json(stem.with_name(stem.name + ".json"), about)
    if not codes.model:
        progress.say("the table does not say which model made its codes; only their width fits")
    if done:
        progress.say(f"{done} of {len(codes)} codes were decoded before")
    return out


def _image_of(
    pipe: LDAE | AutoencoderAlone, row: pd.Series, code: np.ndarray, walk: Walk
) -> tuple[np.ndarray, list[str]]:
    """The image (1, i, j, k) of a code, and what its making lost."""
    from neurodiff.pipelines.ldae_autoencoder_alone import AutoencoderAlone

    if isinstance(pipe, AutoencoderAlone):  # the code is the latent: there is no noise
        return pipe.images(code)[0], []
    noise = pipe.draw([(row["subject"], row["scan"])], seed=walk.seed)
    lost = (
        "everything that the code does not hold: the noise was drawn, so that folds and noise of "
        "the image are not those of the scan"
    )
    return decoded(pipe, code, noise, walk.steps), [lost]


def _as_told(code: np.ndarray) -> Any:
    """A code for its sidecar: its numbers, or of a whole latent their hash."""
    if len(code) <= _MOST_TOLD:
        return [float(value) for value in code]
    return hashlib.sha256(np.ascontiguousarray(code, "<f4").tobytes()).hexdigest()


def edit_scans(
    scans: Cohort | str | Path,
    out: str | Path,
    model: str | Path,
    towards: str,
    amounts: Sequence[float] = (1.0,),
    *,
    root: str | Path | None = None,
    walk: Walk | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Scans moved along a direction of the model, each from its own noise; returns the folder.

    Writes for each scan and amount ``<scan>/<scan>_<direction><amount>.nii.gz`` on the model's
    grid, ``..._change.nii.gz`` at the scan's own voxels and ``....json``.

    Parameters
    ----------
    scans : one scan's file, or a cohort as `encode_cohort` takes it.
    towards : name of a direction, such as "AD".
    amounts : as in `LDAE.move`; negative ones go the other way.

    Raises
    ------
    UsageError : no direction of this name (those there are named), or an amount that is no number.
    DataError : no scan could be edited.
    NeurodiffError : some scans failed (exit code 1).
    """
    walk, out = walk or Walk(), Path(out)
    if not amounts or not np.isfinite(list(amounts)).all():
        raise UsageError(f"amounts are {list(amounts)}; give at least one finite number")
    cohort, pipe = open_scans(scans, root), open_model(model, walk)
    if towards not in pipe.directions:
        raise UsageError(
            f"this model has no direction {towards!r}; it has "
            f"{', '.join(pipe.directions) or 'none'}: fit it on a cohort that tells it."
            f"{suggest(towards, pipe.directions)}"
        )
    require_folder(out)
    failed: Failures = []
    progress.begin("edit")
    for number, name in enumerate(cohort.ids):
        row = cohort.row(number)
        try:
            _edit(pipe, cohort, number, out, (towards, amounts), walk)
        except NeurodiffError as error:
            failed.append((name, row["path"], str(error)))
        progress.update(number + 1, len(cohort), f"{len(failed)} failed")
    close_run(out, failed, cohort, "edited", progress)
    return out


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
    UsageError : t outside 0 to 1, ids of two subjects, a month without sessions.
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
    notes = _apart(first, second, pipe)
    for note in notes:
        progress.say(note)
    unchanged = decoded(pipe, first.code, first.noise, walk.steps)
    for stem, record in progress.over(list(todo.items()), "interpolate"):
        code, noise = pipe.between(first.code, second.code, first.noise, second.noise, record["t"])
        values = decoded(pipe, code, noise, walk.steps)
        write_changed(stem, first, values, unchanged, record, tuple(notes))
    return out


# ------------------------------------------------------------------------------------- changing


def _edit(
    pipe: LDAE,
    cohort: Cohort,
    number: int,
    out: Path,
    wanted: tuple[str, Sequence[float]],
    walk: Walk,
) -> None:
    """Every amount of one scan that is not done yet."""
    row, volume = cohort.row(number), None
    source = source_of(row)
    if not source:
        volume = cohort[number]
        source = volume.fingerprint()
    towards, amounts = wanted
    name = file_name(row["scan"])
    base = {
        **made_by(pipe, "edit", walk),
        "source": source,
        "direction": towards,
        "weights of the direction": pipe.directions[towards].identity,
        "unit of the amount": pipe.unit_of_moves(towards),
        "noise": "the scan's own, encoded",
    }
    todo = {}
    for amount in amounts:
        stem = out / name / f"{name}_{file_name(towards)}{amount:+g}"
        record = {**base, "amount": float(amount)}
        if not is_written(stem, record, _PARTS):
            todo[stem] = record
    if not todo:
        return
    scan = encode_scan(pipe, row, cohort[number] if volume is None else volume, walk.steps)
    unchanged = decoded(pipe, scan.code, scan.noise, walk.steps)
    scan.made.volume.with_data(unchanged).save(out / name / f"{name}_unchanged.nii.gz")
    for stem, record in todo.items():
        code = pipe.move(scan.code, towards, record["amount"])
        values = decoded(pipe, code, scan.noise, walk.steps)
        write_changed(stem, scan, values, unchanged, record)


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
        if not is_written(stem, record, _PARTS):
            todo[stem] = record
    return todo


def _ends(
    a: str | Path, b: str | Path, cohort: Cohort | str | Path | None, root: str | Path | None
) -> tuple[list[Cohort], list[pd.Series]]:
    """The cohorts and rows of the two scans."""
    if cohort is None:
        parts = [one_scan(Path(one).expanduser()) for one in (a, b)]
        return parts, [part.row(0) for part in parts]
    opened = open_scans(cohort, root)
    rows = [opened.row(str(one)) for one in (a, b)]
    if rows[0]["subject"] != rows[1]["subject"]:
        raise UsageError(
            f"{a} is of {rows[0]['subject']} and {b} of {rows[1]['subject']}; give two scans of "
            "one subject"
        )
    return [opened, opened], rows


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


def _centred(pipe: LDAE | AutoencoderAlone) -> np.ndarray:
    spacing = 1.0 if pipe.preparation is None else pipe.preparation.spacing
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -spacing * (np.array(pipe.grid) - 1) / 2
    return affine
