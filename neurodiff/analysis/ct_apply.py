"""``neurodiff ct apply``: a cohort brought to one standard, case by case, resumable.

The table of covered and uncovered scans stands before anything is done. Each case is one folder
that appears whole or not at all, named by its pseudonym, with ``done.json`` beside its images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.analysis.ct_cohort import (
    FAILED,
    Archive,
    Case,
    as_text,
    each_case,
    open_archive,
    read_key,
    write_failed,
)
from neurodiff.core.atomic import (
    remove_leftovers_of_the_dead,
    replaced_folder,
    write_csv,
    write_json,
)
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import fingerprint
from neurodiff.core.safe_io import read_json
from neurodiff.datasets.ct_nifti import write_nifti
from neurodiff.datasets.ct_series import CTSeries
from neurodiff.datasets.ct_write import write_series
from neurodiff.pipelines.ct_mapping import APPLIED
from neurodiff.pipelines.ct_standardizer import CTStandardizer, Standardized

MODES, FORMATS, IDENTITIES = ("linear", "diffusion"), ("dicom", "nifti"), ("link", "deidentify")
_SPLIT = "pass missing='interpolate' or 'split'"  # what a reader can do, and a cohort cannot
TABLE = ("scan", "vendor", "model", "kernel", "thickness_mm", "status", "filter", "reason")


@dataclass(frozen=True, kw_only=True)
class HowToApply:
    """Choices of ``ct apply``.

    Attributes
    ----------
    mode : "linear" or "diffusion".
    to : "dicom" or "nifti".
    identity : "link" keeps patient and study in the headers, "deidentify" replaces them; folders
        are named by pseudonyms in both.
    missing : what to do with a series that lacks slices: "error" or "interpolate".
    extrapolate : filters hold for other models of their vendor too.
    dry_run : print the table and stop.
    seed : of the noise of the diffusion mode.
    despite_gate : of the diffusion mode: accept an autoencoder that failed its gate, and say so.
    """

    mode: str = "linear"
    to: str = "dicom"
    identity: str = "link"
    missing: str = "error"
    extrapolate: bool = False
    dry_run: bool = False
    seed: int = 0
    despite_gate: bool = False

    def __post_init__(self) -> None:
        for name, given, known in (
            ("mode", self.mode, MODES),
            ("to", self.to, FORMATS),
            ("identity", self.identity, IDENTITIES),
            ("missing", self.missing, ("error", "interpolate")),
        ):
            if given not in known:
                raise UsageError(f"{name} is {given!r}; there are {' and '.join(known)}")
        if self.despite_gate and self.mode != "diffusion":
            raise UsageError("--despite-gate goes with --mode diffusion; linear has no gate")


@dataclass(frozen=True, kw_only=True, eq=False)
class Applied:
    """What ``ct apply`` did: the table, scans made now, scans made before, failures."""

    table: pd.DataFrame
    made: tuple[str, ...]
    before: tuple[str, ...]
    failed: pd.DataFrame
    text: str


def apply_cohort(
    source: Path,
    out: Path,
    mapping: Path,
    how: HowToApply | None = None,
    *,
    root: Path | None = None,
    key_file: Path | None = None,
    progress: Progress = SILENT,
) -> Applied:
    """Standardize every covered scan of an index or a folder.

    Parameters
    ----------
    source : an index (``.parquet``), a table of volumes (``.csv``, see `open_archive`), or a
        folder, whose index is kept beside ``out`` as ``<out>.index.parquet`` and is not to be
        passed on with it.
    out : folder of the results: ``<scan>/`` with images and ``done.json``, ``table.csv``, and
        ``failed.csv`` where something failed.
    mapping : folder of ``ct fit``, or its ``mapping.yaml``.
    key_file : secret of the pseudonyms; needed to deidentify.

    Raises
    ------
    UsageError : settings that do not go together.
    DataError, MissingDataError : no mapping, no archive.
    """
    how = how or HowToApply()
    key = read_key(key_file)
    if how.identity == "deidentify" and key is None:
        raise UsageError("--deidentify needs a secret from which names are made: --key-file FILE")
    made = open_standardizer(mapping)
    network = None
    if how.mode == "diffusion":
        from neurodiff.pipelines.ct_networks import diffusion_beside

        network = diffusion_beside(mapping, how.seed, despite_gate=how.despite_gate)
    beside = (
        None
        if source.suffix in (".parquet", ".csv")
        else out.with_name(f"{out.name}.index.parquet")
    )
    if source.suffix == ".csv" and how.to == "dicom":
        raise UsageError(f"{source} lists volumes without DICOM headers; pass --to nifti")
    archive = open_archive(source, root=root, index=beside, key=key, progress=progress)
    table = covered(made, archive, extrapolate=how.extrapolate)
    progress.say(as_text(table, TABLE))
    counts = table["status"].value_counts()
    progress.say(", ".join(f"{count} {status}" for status, count in counts.items()))
    aside = int((archive.left_out["status"] == "left out").sum())
    if aside:
        progress.say(f"{aside} files are no CT slice, or encrypted; `ct index` lists each reason")
    if how.dry_run:
        return Applied(
            table=table, made=(), before=(), failed=_none(), text="nothing was applied (--dry-run)"
        )
    write_csv(out / "table.csv", table)
    status = dict(zip(table["scan"], table["status"], strict=True))
    chosen = [c for c in archive.cases if status[c.scan] in (*APPLIED, "standard")]
    mark = identity_of_mapping(made, network)
    known: list[str] = []

    def work(case: Case) -> None:
        stamp = fingerprint({"mapping": mark, "how": asdict(how), "input": case.stamp})
        if _done(out / case.scan, stamp):
            known.append(case.scan)
            return
        try:
            series = case.read(how.missing)
        except DataError as error:
            words = str(error).replace(_SPLIT, "pass --missing interpolate")
            raise DataError(words) from None
        if network is None:
            done = made.apply(series, extrapolate=how.extrapolate)
        else:
            done = network.apply(made, series, scan=case.scan, extrapolate=how.extrapolate)
        marks = {"stamp": stamp, "mapping": mark}
        _write(case, out / case.scan, series, done, how, key=key, marks=marks)

    private = how.identity == "deidentify"
    found, failed = each_case(chosen, work, step="apply", private=private, progress=progress)
    remove_leftovers_of_the_dead(out)
    failed = pd.concat(
        [failed, _not_covered(table), _unreadable(archive, private)], ignore_index=True
    )
    path = write_failed(out, failed)
    fresh = tuple(scan for scan in found if scan not in known)
    text = f"{len(fresh)} standardized, {len(known)} done before, {len(failed)} not done"
    if path is not None:
        text += f"; why: {path}"
    return Applied(
        table=table,
        made=fresh,
        before=tuple(known),
        failed=failed,
        text=f"{text}\nresults: {out}",
    )


def open_standardizer(mapping: Path) -> CTStandardizer:
    """From the folder of ``ct fit``, or from a ``mapping.yaml`` written by hand."""
    if mapping.suffix in (".yaml", ".yml"):
        if mapping.with_name("settings.json").is_file() and mapping.name == "mapping.yaml":
            return CTStandardizer.from_pretrained(mapping.parent)
        return CTStandardizer.from_mapping(mapping)
    return CTStandardizer.from_pretrained(mapping)


def identity_of_mapping(made: CTStandardizer, network: Any = None) -> str:
    """Hash of all that a result depends on: rules, filters, settings, and networks if used."""
    if made.mapping is None:
        raise UsageError("this standardizer holds no filter; fit it or load a mapping")
    content = {
        "standard": asdict(made.mapping.standard),
        "rules": [asdict(rule) for rule in made.mapping.rules],
        "filters": {name: one.to_dict() for name, one in made.mapping.filters.items()},
        "settings": asdict(made.settings) | {"workers": 0},  # threads change no value
        "network": network.identity if network is not None else "",
    }
    return fingerprint(content)


def covered(made: CTStandardizer, archive: Archive, *, extrapolate: bool = False) -> pd.DataFrame:
    """Which scans are covered, and why not: see `CTMapping.table`."""
    table = made.table(archive.table)
    if not extrapolate or made.mapping is None:
        return table
    for at, case in enumerate(archive.cases):
        decision = made.mapping.decide(case.facts, any_model=True)
        table.loc[at, ["status", "reason"]] = [decision.status, decision.reason]
        table.loc[at, "filter"] = decision.rule.filter if decision.rule else ""
    return table


def _write(
    case: Case,
    folder: Path,
    series: CTSeries,
    done: Standardized,
    how: HowToApply,
    *,
    key: str | None,
    marks: dict[str, str],
) -> None:
    """One folder with images and ``done.json``, whole or not at all."""
    standard = done.report["standard"]
    kernel = series.facts.kernel[0] if series.facts.kernel else "?"
    provenance = {
        **marks,
        "model": f"neurodiff {how.mode} {marks['mapping']}",
        **{k: v for k, v in done.report.items() if k != "curve"},
    }
    with replaced_folder(folder) as new:
        if how.to == "dicom":
            write_series(
                series,
                done.hu,
                new,
                mode=how.identity,  # type: ignore[arg-type]  # checked by the settings
                description=f"{kernel} to {standard}, {how.mode}"[:64],
                provenance=provenance,
                key=key,
            )
        else:
            new.mkdir(parents=True)
            write_nifti(
                series,
                done.hu,
                new / f"{case.scan}.nii.gz",
                mode=how.identity,  # type: ignore[arg-type]
                provenance=provenance,
                key=key,
            )
        write_json(
            new / "done.json",
            {
                **marks,
                "scan": case.scan,
                "scanner": {"vendor": series.facts.vendor, "model": series.facts.model},
                "how": asdict(how),
                "report": done.report,
            },
        )


def _done(folder: Path, stamp: str) -> bool:
    path = folder / "done.json"
    return path.is_file() and read_json(path).get("stamp") == stamp


def _none() -> pd.DataFrame:
    return pd.DataFrame(columns=list(FAILED))


def _not_covered(table: pd.DataFrame) -> pd.DataFrame:
    lost = table[~table["status"].isin([*APPLIED, "standard"])]
    rows = [(scan, status, why) for scan, status, why in zip(
        lost["scan"], lost["status"], lost["reason"], strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=list(FAILED))


def _unreadable(archive: Archive, private: bool) -> pd.DataFrame:
    """Files that should have been slices; localizers and texts were left out on purpose."""
    lost = archive.left_out[archive.left_out["status"] == "unreadable"]
    if private and len(lost):
        note = f"{len(lost)} files cannot be read; the index beside this folder lists them"
        return pd.DataFrame([("", "index", note)], columns=list(FAILED))
    rows = [(path, "index", why) for path, _, why in lost.itertuples(index=False)]
    return pd.DataFrame(rows, columns=list(FAILED))


def result_files(folder: Path) -> dict[str, Any]:
    """What the folder of ``ct apply`` holds: scan -> ``done.json``; other folders are left out."""
    found = {}
    for path in sorted(folder.glob("*/done.json")):
        record = read_json(path)
        if isinstance(record, dict) and "report" in record:
            found[path.parent.name] = record
    return found
