"""An archive of CT as one table: how each file was made, by headers alone.

    table = index_ct("/archive", "ct_index.parquet")     # again: only what is new or changed
    coverage(table)                                      # scans by vendor, model, kernel, thickness
    scans = series_table(table)                          # one row a series

No patient's name, number or date is stored: patients, studies and series are keyed hashes. A file
that cannot be read is a row with its reason, and the run goes on.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.atomic import atomic_path
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_archives import check_parquet
from neurodiff.datasets.ct_headers import image_type, number, read_header, text
from neurodiff.datasets.ct_headers import why_not_a_slice as why_not
from neurodiff.datasets.ct_identity import keyed, pseudonym
from neurodiff.datasets.ct_kernels import kernel_name
from neurodiff.datasets.ct_slices import slices_of

TEXTS = (
    "path", "status", "reason", "patient", "study", "series", "group", "series_number", "vendor",
    "model", "software", "kernel", "kernel_name", "kernel_class", "iterative", "body_part",
    "image_type",
)  # fmt: skip
NUMBERS = (
    "kvp", "mas", "ctdivol", "pitch", "thickness_mm", "row_mm", "column_mm", "diameter_mm",
    "position_mm", "tilt_header",
)  # fmt: skip
WHOLE = ("size", "mtime_ns", "rows", "columns", "frames")
FLAGS = ("contrast", "derived", "lossy", "burned_in")
COLUMNS = (*TEXTS, *NUMBERS, *WHOLE, *FLAGS)
"""Columns of the table, one row a file. ``status`` is "slice", "left out" or "unreadable", with its
``reason``; ``path`` is below the root; what a header does not say is missing."""

VERSION = 1
SKIPPED = (".json", ".parquet", ".csv", ".yaml")


def index_ct(
    root: str | Path,
    out: str | Path | None = None,
    *,
    key: str | bytes | None = None,
    workers: int = 1,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """The table of every file below a folder.

    Parameters
    ----------
    root : of the archive.
    out : a parquet file, which is written, and read first where it is there: files of the same
        path, size and time of change are not opened again.
    key : secret of the hashes, which is not stored; with the same key `write_series` gives the same
        names. Without it a salt is drawn and kept in ``out``: whoever has that file and a list of
        patients can match them.
    workers : processes; 1 reads in this one, which suits local disks below some 10,000 files.
    progress : where to tell how far it is.

    Returns
    -------
    `COLUMNS`, in order of paths; ``attrs["counts"]`` holds how many were read, kept and gone.

    Raises
    ------
    MissingDataError : no such folder, or no file in it.
    UsageError : another key than that of ``out``.
    DataError : ``out`` is no index.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise MissingDataError(f"{root} is no folder; give the folder of the archive")
    secret = key.encode() if isinstance(key, str) else key
    known, about = read_index(out) if out is not None and Path(out).exists() else (None, {})
    secret, about = _secret(secret, about, out)
    there = {path: facts for path, *facts in _walk(root)}
    if not there:
        raise MissingDataError(f"{root} holds no file; give the folder of the archive")
    kept = _unchanged(known, there)
    jobs = [
        (str(root / path), path, *facts, secret) for path, facts in there.items()
        if path not in kept.index
    ]  # fmt: skip
    rows = []
    progress.begin("index")
    for done, row in enumerate(_rows(jobs, workers), start=1):
        rows.append(row)
        progress.update(done, len(jobs))
    fresh = _typed(pd.DataFrame(rows, columns=list(COLUMNS)))
    table = pd.concat([kept.reset_index(drop=True), fresh]) if len(kept) else fresh
    table = table.sort_values("path", kind="stable").reset_index(drop=True)
    gone = 0 if known is None else int((~known["path"].isin(list(there))).sum())
    if out is not None:
        _write(table, Path(out), about)
    table.attrs["counts"] = {"read": len(fresh), "kept": len(kept), "gone": gone}
    return table


def read_index(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Table and description of an index that `index_ct` wrote.

    Raises
    ------
    MissingDataError : no such file.
    DataError : another file, a damaged one, or one of another version.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.exists():
        raise MissingDataError(f"{path} does not exist; make it with `neurodiff ct index`")
    try:
        check_parquet(path)
        table = pyarrow.parquet.read_table(path)
        table.validate(full=True)  # text is decoded late, and may be none
        about = json.loads((table.schema.metadata or {}).get(b"neurodiff-ct-index", b"{}"))
        frame = table.to_pandas()
    except DataError:
        raise
    except Exception as error:  # broken bytes end in any of a dozen types inside pyarrow
        raise DataError(
            f"{path} is no parquet file or damaged ({type(error).__name__}); remove it and index "
            "again"
        ) from None
    if about.get("version") != VERSION or list(frame.columns) != list(COLUMNS):
        raise DataError(
            f"{path} is no CT index of version {VERSION}; give another name, or remove it"
        )
    return _typed(frame), about


def coverage(table: pd.DataFrame) -> pd.DataFrame:
    """How many patients, series and slices each way of making images has.

    Parameters
    ----------
    table : of `index_ct`.

    Returns
    -------
    Columns vendor, model, kernel, thickness_mm, iterative, patients, series, slices, most slices
    first; missing where headers do not say.
    """
    scans = _slices(table)
    by = ["vendor", "model", "kernel", "thickness_mm", "iterative"]
    counts = scans.assign(kernel=scans["kernel_name"]).groupby(by, dropna=False)
    found = counts.agg(
        patients=("patient", "nunique"), series=("group", "nunique"), slices=("frames", "sum")
    )
    return found.reset_index().sort_values("slices", ascending=False, ignore_index=True)


def series_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row a series, of those files that are slices.

    Returns
    -------
    Columns subject (``anon-...``), scan, path (the folder that holds its files), files (a tuple),
    slices, step_mm (usual distance), scanner, vendor, model, kernel, kernel_name, kernel_class,
    iterative, kvp, mas, ctdivol, pitch, thickness_mm, row_mm, column_mm, contrast, body_part,
    derived, burned_in, series_number, study.
    """
    rows: list[dict[str, Any]] = []
    taken: dict[str, int] = {}
    for _, part in _slices(table).groupby("group", sort=False):
        middle = part.sort_values("position_mm", kind="stable").iloc[len(part) // 2]
        gaps = np.sort(np.diff(np.sort(part["position_mm"].dropna().to_numpy())))
        gaps = gaps[gaps > 0.01]
        name = f"{middle['patient']}_S{middle['series_number'] or '0'}"
        taken[name] = taken.get(name, 0) + 1
        words = [word for word in (middle["vendor"], middle["model"]) if isinstance(word, str)]
        keep = (
            "vendor", "model", "kernel", "kernel_name", "kernel_class", "iterative", "kvp",
            "ctdivol", "pitch", "thickness_mm", "row_mm", "column_mm", "contrast", "body_part",
            "derived", "burned_in", "series_number", "study",
        )  # fmt: skip
        rows.append(
            {
                "subject": middle["patient"],
                "scan": name if taken[name] == 1 else f"{name}.{taken[name]}",
                "path": os.path.commonpath([os.path.dirname(p) or "." for p in part["path"]]),
                "files": tuple(part["path"]),
                "slices": int(part["frames"].sum()),
                "step_mm": float(gaps[(len(gaps) - 1) // 2]) if len(gaps) else np.nan,
                "scanner": " ".join(words) or None,
                "mas": float(part["mas"].mean()),
                **{column: middle[column] for column in keep},
            }
        )
    return pd.DataFrame(rows)


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """Path, status and reason of every file that is no slice."""
    chosen = table["status"] != "slice"
    return table.loc[chosen, ["path", "status", "reason"]].reset_index(drop=True)


# ------------------------------------------------------------------------------- one file


def index_file(path: str, name: str, size: int, changed: int, key: bytes) -> dict[str, Any]:
    """The row of one file; never an error, whatever the file is."""
    row: dict[str, Any] = {"path": name, "size": size, "mtime_ns": changed}
    try:
        dataset = read_header(path)
        reason = why_not(dataset)
        if reason is not None:
            status = "unreadable" if reason.startswith("without modality") else "left out"
            return row | {"status": status, "reason": reason}
        slices = slices_of(dataset, path)
        facts = slices[0].facts
    except DataError as error:
        plain = str(error).replace(path, name)
        status = "left out" if "is no DICOM file" in plain else "unreadable"
        return row | {"status": status, "reason": plain}
    except Exception as error:  # a hostile header; the archive's other files still count
        return row | {"status": "unreadable", "reason": f"damaged ({type(error).__name__})"}
    header = slices[0]
    across, down = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    rounded = [round(v, 2) + 0.0 for v in header.measured]
    named, kind = kernel_name(facts["vendor"], facts["kernel"])
    who = text(dataset, "PatientID") or text(dataset, "PatientName") or ""
    return row | {
        **{name_: facts[name_] for name_ in (*NUMBERS, *FLAGS, *TEXTS) if name_ in facts},
        "status": "slice",
        "patient": pseudonym(who, key),
        "study": keyed(key, "study", header.source.study).hex()[:16],
        "series": keyed(key, "series", header.source.series).hex()[:16],
        "group": keyed(key, "group", repr((who, header.group, rounded))).hex()[:16],
        "series_number": header.label if header.label != "?" else None,
        "kernel": "\\".join(facts["kernel"]) or None,
        "kernel_name": named,
        "kernel_class": kind,
        "image_type": "\\".join(image_type(dataset)[:4]) or None,
        "row_mm": header.spacing[0],
        "column_mm": header.spacing[1],
        "position_mm": float(np.array(header.source.position) @ np.cross(across, down)),
        "rows": header.shape[0],
        "columns": header.shape[1],
        "frames": int(number(dataset, "NumberOfFrames") or 1),
    }


def _rows(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[dict[str, Any]]:
    if workers < 1:
        raise UsageError(f"workers is {workers}; expected 1 or more")
    if workers == 1 or len(jobs) < 500:  # a process costs more than some hundred headers
        yield from (index_file(*job) for job in jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    fresh = multiprocessing.get_context("spawn")  # a fork of threads may never wake up
    with ProcessPoolExecutor(workers, mp_context=fresh) as pool:
        yield from pool.map(_index_job, jobs, chunksize=100)


def _index_job(job: tuple[Any, ...]) -> dict[str, Any]:
    return index_file(*job)


def _walk(root: Path) -> Iterator[tuple[str, int, int]]:
    """(path below the root, size, time of change) of every file that may be DICOM."""
    folders = [str(root)]
    while folders:
        try:
            entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
        except OSError:
            continue  # a folder without rights: nothing in it can be named
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_file() and not entry.name.lower().endswith(SKIPPED):
                facts = entry.stat()
                yield os.path.relpath(entry.path, root), facts.st_size, facts.st_mtime_ns


# ------------------------------------------------------------------------------- the table


def _slices(table: pd.DataFrame) -> pd.DataFrame:
    chosen = table[table["status"] == "slice"]
    if not len(chosen):
        raise DataError(f"none of the {len(table)} files of the index is a CT slice")
    return chosen


def _unchanged(known: pd.DataFrame | None, there: dict[str, list[int]]) -> pd.DataFrame:
    """Rows, by path, of files that are as they were."""
    if known is None:
        return pd.DataFrame(columns=list(COLUMNS)).set_index("path", drop=False)
    same = [
        there.get(path) == [size, changed]
        for path, size, changed in zip(
            known["path"], known["size"], known["mtime_ns"], strict=True
        )
    ]  # fmt: skip
    return known[same].set_index("path", drop=False)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """One type a column, so that tables of any archive can be joined."""
    columns: dict[str, Any] = {}
    for column in TEXTS:
        columns[column] = pd.Series(
            [v if isinstance(v, str) else None for v in table[column]], dtype=object
        )
    for column in NUMBERS:
        columns[column] = pd.to_numeric(table[column], errors="coerce").astype(float).to_numpy()
    for column in WHOLE:
        columns[column] = table[column].fillna(0).astype("int64").to_numpy()
    for column in FLAGS:
        columns[column] = pd.array(
            [None if pd.isna(v) else bool(v) for v in table[column]], dtype="boolean"
        )
    return pd.DataFrame(columns)[list(COLUMNS)]


def _secret(
    key: bytes | None, about: dict[str, Any], out: str | Path | None
) -> tuple[bytes, dict[str, Any]]:
    """The secret of the hashes, and what is stored of it: a salt, or a mark of the key."""
    if key is None and about.get("mark"):
        raise UsageError(f"{out} was made with a key; give the same one, or another file")
    if key is None:
        salt = about.get("salt") or secrets.token_hex(32)
        return bytes.fromhex(salt), {"version": VERSION, "salt": salt}
    mark = keyed(key, "mark", "").hex()[:16]
    if about and about.get("mark") != mark:
        raise UsageError(f"{out} was made with another key, or none; give that, or another file")
    return key, {"version": VERSION, "mark": mark}


def _write(table: pd.DataFrame, out: Path, about: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    content = pyarrow.Table.from_pandas(table, preserve_index=False)
    metadata = {
        **(content.schema.metadata or {}),
        b"neurodiff-ct-index": json.dumps(about).encode(),
    }
    with atomic_path(out) as temporary:
        pyarrow.parquet.write_table(content.replace_schema_metadata(metadata), temporary)
