"""The scans of an archive as cases: named by pseudonyms, read one at a time, failures listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.atomic import write_csv
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import read_csv
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_geometry import Stack
from neurodiff.datasets.ct_headers import SeriesFacts
from neurodiff.datasets.ct_index import failures, index_ct, read_index, series_table
from neurodiff.datasets.ct_series import CTSeries, SliceSource, read_series

FAILED = ("scan", "step", "reason")
_NEVER_MEASURED = -1500.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One series: its pseudonym, its files, and what its headers say.

    ``stamp`` holds (name, size, time of change) of every file: what a result is known by.
    """

    scan: str
    subject: str
    files: tuple[Path, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    stamp: tuple[tuple[str, int, int], ...] = ()

    def read(self, missing: str = "error") -> CTSeries:
        """The slices; errors as `read_series`."""
        if is_volume(self.files[0]):
            return series_of_volume(Volume.open(self.files[0], unit="HU"), self.facts)
        return read_series(self.files, missing=missing)  # type: ignore[arg-type]

    def without_paths(self, reason: str) -> str:
        """A message that names no folder or file of the archive.

        Names of up to three signs without a dot, such as ``12``, stay: they say nothing, and the
        sentence may need that number.
        """
        for number, path in enumerate(self.files, start=1):
            reason = reason.replace(str(path), f"file {number}")
            if len(path.name) > 3 or "." in path.name:
                whole = rf"(?<![\w.-]){re.escape(path.name)}(?![\w-])"
                reason = re.sub(whole, f"file {number}", reason)
        for folder in sorted(
            {f for path in self.files for f in list(path.parents)[:3]}, reverse=True
        ):
            if len(str(folder)) > 2:  # "a" and "mm" are words of the sentence
                whole = rf"(?<![\w.-]){re.escape(str(folder))}(?![\w-])"
                reason = re.sub(whole, self.scan, reason)
        return reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Archive:
    """Cases of an archive, their table (index = scan), and the files that are none."""

    cases: tuple[Case, ...]
    table: pd.DataFrame
    left_out: pd.DataFrame


def open_archive(
    source: str | Path,
    *,
    root: str | Path | None = None,
    index: str | Path | None = None,
    key: str | None = None,
    progress: Progress = SILENT,
) -> Archive:
    """The cases of a folder, of an index that `neurodiff ct index` wrote, or of a table.

    Parameters
    ----------
    source : a folder, an index (``.parquet``), or a table (``.csv``) of NIfTI or NRRD files in HU,
        which hold no header: columns scan, path, vendor, kernel, and where known subject, model,
        thickness_mm, iterative. Results are then named as the table names them.
    root : of the files of an index or table; by default the folder that it lies in.
    index : of a folder: where its index is kept, so that pseudonyms stay the same.
    key : secret of the pseudonyms.

    Raises
    ------
    MissingDataError : no such folder or index, or files of the index that are not there.
    DataError : no CT slice in it.
    """
    source = Path(source)
    if source.suffix == ".csv":
        return _from_table(source, root)
    if source.suffix == ".parquet":
        table, _ = read_index(source)
        base = Path(root) if root is not None else source.parent
        first = table.loc[table["status"] == "slice", "path"]
        if len(first) and not (base / first.iloc[0]).exists():
            raise MissingDataError(
                f"the files of {source} do not lie in {base}; give the indexed folder as --root"
            )
    else:
        if root is not None:
            raise UsageError("--root goes with an index; a folder is its own root")
        base = source.expanduser()
        table = index_ct(base, index, key=key, progress=progress)
    scans = series_table(table)
    sizes = {
        str(path): (int(size), int(changed))
        for path, size, changed in zip(table["path"], table["size"], table["mtime_ns"], strict=True)
    }
    cases = []
    for row in scans.to_dict("records"):
        names = sorted(row["files"])
        cases.append(
            Case(
                scan=str(row["scan"]),
                subject=str(row["subject"]),
                files=tuple(base / name for name in names),
                facts={str(k): v for k, v in row.items() if k not in ("files", "path")},
                stamp=tuple((name, *sizes[name]) for name in names),
            )
        )
    return Archive(cases=tuple(cases), table=scans.set_index("scan"), left_out=failures(table))


def _from_table(path: Path, root: str | Path | None) -> Archive:
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; give a folder, an index or a table")
    table = read_csv(path, dtype={"scan": str, "subject": str, "kernel": str})
    lacking = [name for name in ("scan", "path", "vendor", "kernel") if name not in table]
    if lacking or not len(table):
        raise DataError(
            f"{path} has no column {', '.join(lacking) or 'filled in'}; a table of volumes needs "
            "scan, path, vendor and kernel"
        )
    base = Path(root) if root is not None else path.parent
    rows = []
    for row in table.to_dict("records"):
        plain = {k: None if v != v else v for k, v in row.items()}
        rows.append({"subject": plain["scan"], "study": plain["scan"], **plain})
    cases = []
    for row in rows:
        scan, file = str(row["scan"]), base / str(row["path"])
        if not scan or scan != Path(scan).name or scan.startswith("."):
            raise DataError(f"{path} names a scan {scan!r}; a scan becomes the name of a folder")
        if not file.is_file() or not is_volume(file):
            raise MissingDataError(
                f"{file} of the scan {scan} is no NIfTI or NRRD file; check path"
            )
        about = file.stat()
        stamp = ((file.name, about.st_size, about.st_mtime_ns),)
        cases.append(
            Case(scan=scan, subject=str(row["subject"]), files=(file,), facts=row, stamp=stamp)
        )
    if len({case.scan for case in cases}) < len(cases):
        raise DataError(f"{path} names a scan twice; give each a name of its own")
    scans = pd.DataFrame(rows).set_index("scan")
    return Archive(
        cases=tuple(cases), table=scans, left_out=pd.DataFrame(columns=["path", "status", "reason"])
    )


def is_volume(path: Path) -> bool:
    """Whether a file is NIfTI or NRRD, by its name."""
    return path.name.lower().endswith((".nii", ".nii.gz", ".nrrd"))


def series_of_volume(volume: Volume, facts: Mapping[str, Any]) -> CTSeries:
    """Slices along a volume's last axis, where they lie; below -1500 HU is padding.

    Raises
    ------
    DataError : several channels, or slices that lean over so far that they have no normal.
    """
    if volume.channels != 1:
        raise DataError(f"{volume.name} has {volume.channels} channels; a CT has one")
    # RAS to LPS, in which DICOM places its slices
    axes = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(volume.affine)[:3]
    sides = np.linalg.norm(axes[:, :2], axis=0)
    hu = np.ascontiguousarray(volume.data[0].transpose(2, 1, 0))
    origins = axes[:, 3] + np.arange(len(hu))[:, None] * axes[:, 2]
    spacing = (float(sides[1]), float(sides[0]))
    padding = hu < _NEVER_MEASURED
    thickness = facts.get("thickness_mm")
    kernel = facts.get("kernel")
    return CTSeries(
        hu=np.where(padding, np.float32(-1024), hu),
        padding=padding,
        stack=Stack(origins, axes[:, 0] / sides[0], axes[:, 1] / sides[1], spacing),
        facts=SeriesFacts(
            vendor=facts.get("vendor"),
            model=facts.get("model"),
            kernel=tuple(str(kernel).split("\\")) if kernel else (),
            iterative=facts.get("iterative"),
            thickness_mm=None if thickness is None else float(thickness),
            spacing_mm=spacing,
            slices=len(hu),
        ),
        sources=tuple(
            SliceSource(path="", position=(float(x), float(y), float(z))) for x, y, z in origins
        ),
        notes=volume.notes,
        name=volume.name,
    )


def each_case(
    cases: Sequence[Case],
    work: Callable[[Case], Any],
    *,
    step: str,
    private: bool = False,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Do one thing to every case; what fails is listed and the next one is taken.

    Parameters
    ----------
    work : its result is kept by scan.
    private : reasons name no folder or file.

    Returns
    -------
    Results by scan, and the failures: columns scan, step, reason.
    """
    found: dict[str, Any] = {}
    failed = []
    progress.begin(step)
    for number, case in enumerate(cases, start=1):
        try:
            found[case.scan] = work(case)
        except NeurodiffError as error:
            reason = case.without_paths(str(error)) if private else str(error)
            failed.append((case.scan, step, reason))
            progress.say(f"  {case.scan} failed: {reason}")
        progress.update(number, len(cases), case.scan)
    return found, pd.DataFrame(failed, columns=list(FAILED))


def write_failed(folder: Path, failed: pd.DataFrame) -> Path | None:
    """``failed.csv`` of a run, or None and no file where nothing failed."""
    path = folder / "failed.csv"
    if not len(failed):
        path.unlink(missing_ok=True)
        return None
    write_csv(path, failed)
    return path


def as_text(table: pd.DataFrame, columns: Sequence[str] | None = None) -> str:
    """A table in columns of text; what headers do not say is ``-``."""
    shown = table if columns is None else table[[c for c in columns if c in table]]
    if not len(shown):
        return "(none)"
    rows = [list(map(str, shown.columns)), *shown.map(_cell).to_numpy().tolist()]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def read_key(path: Path | None) -> str | None:
    """The secret in a file, None where there is no file.

    Raises
    ------
    MissingDataError : no such file.
    UsageError : fewer than 16 characters, which could be guessed.
    """
    if path is None:
        return None
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; write a secret of 16 characters into it")
    key = path.read_text(encoding="utf-8").strip()
    if len(key) < 16:
        raise UsageError(f"the secret in {path} has {len(key)} characters; give 16 or more")
    return key


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
