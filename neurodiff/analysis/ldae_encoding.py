"""The verb encode: a cohort's semantic codes as one table, which a second call goes on with."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.ldae_scans import (
    Failures,
    Walk,
    affine_text,
    close_run,
    flags_with,
    open_coder,
    open_scans,
    prepared,
    require_folder,
    source_of,
)
from neurodiff.core.code_table import CodeTable, checked_name, read_codes, write_codes
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import package_version
from neurodiff.core.volume import Volume

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE
    from neurodiff.pipelines.ldae_autoencoder_alone import AutoencoderAlone

TABLE = "codes.parquet"
_OTHER_TABLES = (".xlsx", ".xls", ".tsv", ".txt", ".json", ".npy", ".npz", ".h5", ".feather")
_EVERY = 30.0  # seconds between two writings of a growing table
_KEPT = ("scan", "subject", "session", "age", "sex", "diagnosis", "site", "scanner", "split")


def encode_cohort(
    cohort: Cohort | str | Path,
    out: str | Path,
    model: str | Path,
    *,
    root: str | Path | None = None,
    walk: Walk | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Codes of every scan of a cohort as one table; returns its path.

    Parameters
    ----------
    cohort : the name of a data set (with ``root``), a folder of scans, a CSV of them, or a cohort.
    out : a file that ends in .parquet or .csv, or a folder, which then holds ``codes.parquet``.
    model : folder of a model, of a run, or of published weights (`ldae_opening`); of an autoencoder
        alone the codes are the means of its latents.

    Raises
    ------
    UsageError : ``out`` ends like a table of another kind.
    DataError : no scan could be encoded, or the table is of another model.
    NeurodiffError : some scans failed (exit code 1); they are in ``failed.csv`` beside the table.
    """
    path = Path(out)
    if path.suffix.lower() in _OTHER_TABLES and not path.is_dir():
        raise UsageError(
            f"{path} ends in {path.suffix}; a table of codes ends in .parquet or .csv, and a "
            f"folder gets {TABLE}"
        )
    path = checked_name(path if path.suffix in (".parquet", ".csv") else path / TABLE)
    scans, pipe = open_scans(cohort, root), open_coder(model, walk)
    for note in scans.notes:
        progress.say(f"note: {note}")
    about = about_codes(pipe, scans)
    if about["codes"] != "semantic codes":
        progress.say(f"note: {pipe.name} is an autoencoder alone: codes are {about['codes']}")
    rows, again = _known_rows(path, pipe, scans), 0
    require_folder(path.parent)
    failed: Failures = []
    written = time.monotonic()
    progress.begin("encode")
    try:
        for number, name in enumerate(scans.ids):
            row = scans.row(number)
            source = source_of(row)
            try:
                volume = None if source else scans[number]
                source = source or volume.fingerprint()
                if name in rows and rows[name][0]["source"] == source:
                    rows[name][0].update(_told(row))  # the table may tell more by now
                    again += 1
                else:
                    volume = scans[number] if volume is None else volume
                    rows[name] = encoded_row(pipe, row, volume, source)
            except NeurodiffError as error:
                rows.pop(name, None)
                failed.append((name, row["path"], str(error)))
            progress.update(number + 1, len(scans), f"{len(failed)} failed")
            if time.monotonic() - written > _EVERY:
                _write(path, rows, about)
                written = time.monotonic()
    finally:  # also when it is interrupted: the same command goes on from here
        if rows:
            _write(path, rows, about)
    if again:
        progress.say(f"{again} of {len(scans)} scans were encoded before")
    close_run(path.parent, failed, scans, "encoded", progress)
    return path


def _known_rows(
    path: Path, pipe: LDAE | AutoencoderAlone, scans: Cohort
) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """Rows of an earlier call by scan; a table of another model is refused."""
    if not path.is_file():
        return {}
    table = read_codes(path)
    table.require_model(pipe.identity, pipe.code_width, str(path))
    if not table.model and path.suffix == ".parquet":
        raise DataError(f"{path} does not say which model made it; name a new file")
    records = table.scans.to_dict("records")
    rows = {r["scan"]: (r, table.codes[k]) for k, r in enumerate(records)}
    if path.suffix == ".csv":  # it cannot say its model, and another one may have the same width
        rows = {name: row for name, row in rows.items() if row[0].get("model") == pipe.identity}
        foreign = set(table.scans["scan"]) - set(rows)
        if foreign:
            raise DataError(f"{path} holds codes of another model; name a new file")
    others = set(rows) - set(scans.ids)
    if others:
        raise DataError(
            f"{path} holds {len(others)} scans that are not in this cohort, such as "
            f"{min(others)}; name a new file, or delete it"
        )
    return rows


def about_codes(pipe: LDAE | AutoencoderAlone, scans: Cohort) -> dict[str, Any]:
    """What a table of codes says of the model that made it."""
    return {
        "model": pipe.identity,
        "recipe": pipe.name,
        "protocol": pipe.protocol,
        "preparation": None if pipe.preparation is None else asdict(pipe.preparation),
        "grid": list(pipe.grid),
        "codes": what_codes_are(pipe),
        "simulated": scans.simulated,
        "neurodiff": package_version(),
    }


def what_codes_are(pipe: LDAE | AutoencoderAlone) -> str:
    """In words, for the table and for whoever waits for it."""
    shape = getattr(pipe, "latent", None)
    if shape is None:
        return "semantic codes"
    return f"means of an autoencoder's latents {tuple(shape)}, row by row; no semantic codes"


def encoded_row(
    pipe: LDAE | AutoencoderAlone, row: pd.Series, volume: Volume, source: str
) -> tuple[dict[str, Any], np.ndarray]:
    """A scan's line of the table, and its code."""
    made = prepared(pipe, volume)
    code = pipe.codes(made.volume.data[None])[0]
    known = _told(row) | {
        "flags": flags_with(volume, made),
        "low": made.low,
        "high": made.high,
        "grid_affine": affine_text(made.volume.affine),
        "model": pipe.identity,
        "source": source,
    }
    return known, code


def _told(row: pd.Series) -> dict[str, Any]:
    """What the cohort tells of a scan."""
    file = Path(row["path"]).name if row["path"] else ""
    return {name: row[name] for name in _KEPT} | {"file": file}


def _write(path: Path, rows: dict[str, Any], about: dict[str, Any]) -> None:
    known, codes = zip(*rows.values(), strict=True)
    write_codes(path, CodeTable(scans=pd.DataFrame(known), codes=np.stack(codes), about=about))
