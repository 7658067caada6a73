"""The BIDS App: T1-weighted scans of a BIDS folder in, BIDS derivatives out.

    participant   per person and session: the semantic code (TSV), the scan as the model sees it and
                  as it draws it (NIfTI on the model's grid), a JSON sidecar with flags and losses
    group         all codes as one table, and one page to look at the cohort

Persons write files of their own, so that one job a person can run beside any other. What is whole
already is not made again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.ldae_scans import Walk, flags_with, open_model, prepared, source_of
from neurodiff.core.atomic import atomic_write, write_json
from neurodiff.core.code_table import CodeTable, write_codes
from neurodiff.core.cohort import Cohort
from neurodiff.core.derivatives import derivative_name, label, write_dataset_description
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import package_version
from neurodiff.core.safe_io import read_csv, read_json
from neurodiff.core.volume import Volume

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE

CODES = ("codes", ".tsv")
GROUP = "group_desc-ldae_codes"
IGNORED = ("*_codes.tsv", "*_codes.json", "*_codes.parquet", "group_*")
VERSION = 1
"""Of the files of a person; another version makes them again."""


@dataclass(frozen=True, kw_only=True)
class BidsAsked:
    """Who is asked for, and how failures are met.

    Parameters
    ----------
    participants : labels with or without ``sub-``; empty is everybody.
    sessions : labels with or without ``ses-``; empty is every session.
    stop_on_first_crash : end with the first scan that fails, instead of going on.
    walk : steps, seed and device.
    """

    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    stop_on_first_crash: bool = False
    walk: Walk = field(default_factory=Walk)


def participant_level(
    bids: Path,
    out: Path,
    model: Path,
    asked: BidsAsked | None = None,
    *,
    progress: Progress = SILENT,
) -> str:
    """Files of each person; returns what was done in one sentence.

    Raises
    ------
    MissingDataError : no such folder, nobody of these labels, no scan.
    UsageError : ``out`` lies in the way of the input.
    NeurodiffError : some scans failed (exit code 1); each is named with its reason.
    """
    asked = asked or BidsAsked()
    bids, out = _folders(bids, out)
    cohort = _chosen(_scans(bids), asked)
    pipe = open_model(model, asked.walk)
    out.mkdir(parents=True, exist_ok=True)
    write_dataset_description(
        out,
        "neurodiff LDAE",
        what="Semantic codes of T1-weighted scans by a latent diffusion autoencoder",
        sources=[_source(bids)],
        ignored=IGNORED,
        parameters={"model": pipe.identity, "recipe": pipe.recipe.name, "seed": asked.walk.seed},
    )
    failed, made, known = [], 0, 0
    for number in progress.over(range(len(cohort)), "participants", len(cohort)):
        row = cohort.row(number)
        try:
            if _is_whole(out, pipe, row):
                known += 1
                continue
            _write_scan(out, pipe, row, cohort[number])
            made += 1
        except NeurodiffError as error:
            failed.append((row["scan"], str(error)))
            if asked.stop_on_first_crash:
                break
    told = f"{made} scans done, {known} were whole before, {len(failed)} failed: {out}"
    if failed:
        first = "; ".join(f"{scan}: {why}" for scan, why in failed[:3])
        raise NeurodiffError(f"{told} ({first}); repair or leave them out, and run it again")
    return told


def group_level(bids: Path, out: Path, *, progress: Progress = SILENT) -> str:
    """One table of all codes that the participant level wrote, and a page of the cohort.

    Raises
    ------
    MissingDataError : no code was written yet.
    DataError : codes of two models.
    """
    from neurodiff.analysis.cohort_page import cohort_page

    bids, out = _folders(bids, out)
    files = sorted(out.rglob("*_desc-ldae_codes.tsv"))
    files = [f for f in files if not f.name.startswith("group")]
    if not files:
        raise MissingDataError(f"{out} holds no codes; run the level participant first")
    rows, codes, models = [], [], {}
    for path in files:
        told = read_json(path.with_suffix(".json"))
        table = read_csv(path, separator="\t")
        models.setdefault(str(told.get("model")), path)
        codes.append(table.filter(regex=r"^c\d+$").to_numpy(np.float32)[0])
        rows.append({k: told.get(k) for k in ("scan", "subject", "session", "flags", "source")})
    if len(models) > 1:
        a, b = list(models.values())[:2]
        raise DataError(f"{a.name} and {b.name} are of two models; name one folder a model")
    if len({len(code) for code in codes}) > 1:
        raise DataError(f"the codes below {out} have different lengths; name one folder a model")
    about = {"model": next(iter(models)), "neurodiff": package_version()}
    scans = pd.DataFrame(rows)
    write_codes(
        out / f"{GROUP}.parquet", CodeTable(scans=scans, codes=np.stack(codes), about=about)
    )
    names = [f"c{k:03d}" for k in range(len(codes[0]))]
    whole = pd.concat([scans, pd.DataFrame(np.stack(codes), columns=names)], axis=1)
    _write_tsv(out / f"{GROUP}.tsv", whole)
    cohort_page(_scans(bids), out / "group_T1w.html", progress=progress)
    return f"{len(files)} scans of {scans['subject'].nunique()} persons: {out / GROUP}.tsv"


# ------------------------------------------------------------------------------- parts


def _folders(bids: Path, out: Path) -> tuple[Path, Path]:
    bids, out = Path(bids).expanduser().resolve(), Path(out).expanduser().resolve()
    if not bids.is_dir():
        raise MissingDataError(f"{bids} is not a folder; give the root of the BIDS data set")
    if out == bids:
        raise UsageError(f"{out} is the input; name another folder, such as {bids}/derivatives/...")
    return bids, out


def _scans(bids: Path) -> Cohort:
    from neurodiff.datasets.brain_mri import discover

    return discover(bids, layout="bids")


def _chosen(cohort: Cohort, asked: BidsAsked) -> Cohort:
    table = cohort.scans
    keep = np.ones(len(table), bool)
    for wanted, column, key in (
        (asked.participants, "subject", "sub"),
        (asked.sessions, "path", "ses"),
    ):
        if not wanted:
            continue
        names = {w.removeprefix(f"{key}-") for w in wanted}
        own = table[column].astype(str)
        if key == "sub":
            labels = own.str.removeprefix("sub-")
        else:
            labels = own.map(lambda path: entities_of(path).get("ses", ""))
        if absent := sorted(names - set(labels)):
            there = ", ".join(sorted(set(labels) - {""})[:8]) or "none"
            raise MissingDataError(
                f"there is no {key}-{absent[0]} with a T1-weighted scan; there are {there}"
            )
        keep &= labels.isin(names).to_numpy()
    if not keep.any():
        raise MissingDataError("nobody is left of these participants and sessions")
    return cohort.select(np.flatnonzero(keep))


def _place(out: Path, row: Any, desc: str, suffix: str, extension: str) -> Path:
    """Path of a scan's file, with the entities of the scan's own file."""
    parts = entities_of(row["path"])
    person = label(str(row["subject"]).removeprefix("sub-"))
    entities = {"sub": person, "ses": parts.get("ses"), "acq": parts.get("acq"),
                "run": parts.get("run"), "desc": desc}  # fmt: skip
    folder = out / f"sub-{person}"
    if entities["ses"]:
        folder = folder / f"ses-{label(entities['ses'])}"
    return folder / "anat" / derivative_name(entities, suffix, extension)


def entities_of(path: Any) -> dict[str, str]:
    """Entities in the name of a BIDS file.

    Examples
    --------
    >>> entities_of("sub-01/ses-b/anat/sub-01_ses-b_run-2_T1w.nii.gz")
    {'sub': '01', 'ses': 'b', 'run': '2'}
    """
    return dict(re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9]+)", Path(str(path)).name))


def _is_whole(out: Path, pipe: LDAE, row: Any) -> bool:
    sidecar = _place(out, row, "ldae", "codes", ".json")
    if not sidecar.is_file():
        return False
    told = read_json(sidecar)
    same = told.get("model") == pipe.identity and told.get("files version") == VERSION
    return same and bool(told.get("source")) and told.get("source") == source_of(row)


def _write_scan(out: Path, pipe: LDAE, row: Any, volume: Volume) -> None:
    made = prepared(pipe, volume)
    seen = made.volume
    code = pipe.codes(seen.data[None])[0]
    drawn = pipe.images(pipe.latents(seen.data[None]))[0]
    codes = _place(out, row, "ldae", *CODES)
    codes.parent.mkdir(parents=True, exist_ok=True)
    # a fresh header: what the scan's own header may tell of a person stays behind
    Volume(seen.data, seen.affine, "0 to 1", "").save(_place(out, row, "preproc", "T1w", ".nii.gz"))
    Volume(drawn, seen.affine, "0 to 1", "").save(_place(out, row, "ldae", "T1w", ".nii.gz"))
    _write_tsv(codes, pd.DataFrame([code], columns=[f"c{k:03d}" for k in range(len(code))]))
    write_json(  # last: what it says is there
        codes.with_suffix(".json"),
        {
            "scan": row["scan"],
            "subject": row["subject"],
            "session": row["session"],
            "flags": flags_with(volume, made),
            "source": source_of(row) or volume.fingerprint(),
            "model": pipe.identity,
            "recipe": pipe.recipe.name,
            "protocol": pipe.protocol,
            "files version": VERSION,
            "Description": "desc-preproc: the scan on the model's grid, 0 to 1; desc-ldae: as its "
            "autoencoder draws it; codes: the semantic code",
        },
    )


def _write_tsv(path: Path, table: pd.DataFrame) -> None:
    with atomic_write(path) as file:
        file.write(table.to_csv(sep="\t", index=False, na_rep="n/a").encode())


def _source(bids: Path) -> dict[str, str]:
    """Of the input's own description: no absolute path is told."""
    try:
        own = read_json(bids / "dataset_description.json")
    except DataError:
        own = {}
    told = {"Name": str(own.get("Name", "BIDS data set"))} if isinstance(own, dict) else {}
    if isinstance(own, dict) and own.get("DatasetDOI"):
        told["DOI"] = str(own["DatasetDOI"])
    return told
