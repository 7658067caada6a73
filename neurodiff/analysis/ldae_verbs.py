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
from neurodiff.analysis.ldae_interpolating import PARTS, interpolate_scans
from neurodiff.analysis.ldae_scans import (
    Failures,
    Walk,
    affine_of,
    close_run,
    decoded,
    encode_scan,
    file_name,
    is_written,
    made_by,
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
        if not is_written(stem, record, PARTS):
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


def _centred(pipe: LDAE | AutoencoderAlone) -> np.ndarray:
    spacing = 1.0 if pipe.preparation is None else pipe.preparation.spacing
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -spacing * (np.array(pipe.grid) - 1) / 2
    return affine
