"""``neurodiff ct radiomics`` and ``ct combat``: tables of features, and their harmonization."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.ct_apply import result_files
from neurodiff.analysis.ct_cohort import Case, each_case, is_volume, open_archive, read_key
from neurodiff.core.atomic import atomic_path, write_csv, write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import read_csv, read_json, read_yaml
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_rois import read_rois
from neurodiff.metrics.radiomics import RadiomicsSettings, as_pyradiomics, radiomics

ABOUT = ("scan", "subject", "roi", "vendor", "model", "kernel", "thickness_mm", "voxels")
NAMES = ("both", "ibsi", "pyradiomics")
_MARK = b"neurodiff-radiomics"


@dataclass(frozen=True, kw_only=True, eq=False)
class Extracted:
    """What ``ct radiomics`` did: the table, failures, features without a value, and words."""

    table: pd.DataFrame
    failed: pd.DataFrame
    missing: pd.DataFrame
    text: str


def extract(
    source: Path,
    rois: str,
    out: Path,
    *,
    settings: Path | str | None = None,
    names: str = "both",
    root: Path | None = None,
    key_file: Path | None = None,
    progress: Progress = SILENT,
) -> Extracted:
    """Features of every region of every case, one row a region.

    Parameters
    ----------
    source : a folder of ``ct apply``, an index, or a folder of DICOM.
    rois : path of the masks with {scan}, {subject} or {folder} (the name of the series' folder) in
        it: NIfTI, NRRD, DICOM SEG or RTSTRUCT.
    out : ``.parquet`` or ``.csv``; beside it ``<name>.failed.csv`` and ``<name>.missing.csv``.
    settings : YAML of `RadiomicsSettings`, or "ibsi" or "pyradiomics"; None is "ibsi".
    names : "both", "ibsi" or "pyradiomics".

    Raises
    ------
    UsageError : settings, names or a pattern that do not fit.
    DataError : no region could be computed at all, with the first reason.
    """
    if names not in NAMES:
        raise UsageError(
            f"names is {names!r}; there are {', '.join(NAMES)}.{suggest(names, NAMES)}"
        )
    if out.suffix not in (".parquet", ".csv"):
        raise UsageError(f"--out {out} must name a file that ends in .parquet or .csv")
    if not any(word in rois for word in ("{scan}", "{subject}", "{folder}")):
        raise UsageError(
            f"--rois {rois} is one path for all scans; write {{scan}}, {{subject}} or {{folder}} "
            "into it, for example masks/{scan}.nii.gz"
        )
    chosen = settings_from(settings)
    cases = cases_of(source, root=root, key_file=key_file, progress=progress)
    lost: list[tuple[str, str, str, str]] = []

    def work(case: Case) -> list[dict[str, Any]]:
        path = Path(
            rois.format(scan=case.scan, subject=case.subject, folder=case.files[0].parent.name)
        )
        image, spacing, masks = image_and_masks(case, path)
        rows = []
        for roi, mask in masks.items():
            found = radiomics(image, mask, spacing, chosen, roi)
            lost.extend((case.scan, roi, name, why) for name, why in found.reasons.items())
            facts = {name: case.facts.get(name) for name in ABOUT[3:7]}
            row = {"scan": case.scan, "subject": case.subject, "roi": roi, **facts}
            row["voxels"] = int(mask.sum())
            if names != "pyradiomics":
                row |= found
            if names != "ibsi":
                row |= as_pyradiomics(found)
            rows.append(row)
        return rows

    found, failed = each_case(cases, work, step="radiomics", progress=progress)
    stem = out.with_suffix("")
    _write_failed(stem, failed)
    rows = [row for several in found.values() for row in several]
    if not rows:
        raise DataError(f"no scan gave features; the first: {failed['reason'].iloc[0]}")
    table = pd.DataFrame(rows)
    write_table(table, out, {"settings": asdict(chosen), "names": names})
    missing = pd.DataFrame(lost, columns=["scan", "roi", "feature", "reason"])
    if len(missing):
        write_csv(stem.with_name(f"{stem.name}.missing.csv"), missing)
    lines = [
        f"{len(table)} regions of {table['scan'].nunique()} scans, "
        f"{len(table.columns) - len(ABOUT)} features; {len(failed)} scans failed"
    ]
    for (scan, roi), part in missing.groupby(["scan", "roi"], sort=False):
        lines.append(
            f"  {scan} {roi}: {len(part)} features without a value: {part['reason'].iloc[0]}"
        )
    return Extracted(
        table=table, failed=failed, missing=missing, text="\n".join([*lines, f"features: {out}"])
    )


def settings_from(given: Path | str | None) -> RadiomicsSettings:
    """Settings by name or from a YAML file."""
    if given is None or str(given) == "ibsi":
        return RadiomicsSettings()
    if str(given) == "pyradiomics":
        return RadiomicsSettings.pyradiomics()
    path = Path(given)
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; give a YAML file, ibsi or pyradiomics")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no settings; expected lines such as bin_width: 25")
    return RadiomicsSettings.from_dict(values)


def cases_of(
    source: Path, *, root: Path | None = None, key_file: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Case, ...]:  # fmt: skip
    """Cases of a folder of results, an index or an archive."""
    results = result_files(source) if source.is_dir() else {}
    if not results:
        key = read_key(key_file)
        return open_archive(source, root=root, key=key, progress=progress).cases
    cases = []
    for scan in results:
        folder = source / scan
        files = sorted(folder.glob("slice_*.dcm")) or sorted(folder.glob("*.nii.gz"))
        if not files:
            raise MissingDataError(f"{folder} holds no image; apply the mapping again")
        record = results[scan]
        facts = {**record.get("scanner", {}), "kernel": record["report"]["standard"]}
        cases.append(
            Case(scan=scan, subject=scan.rsplit("_S", 1)[0], files=tuple(files), facts=facts)
        )
    return tuple(cases)


def image_and_masks(
    case: Case, path: Path
) -> tuple[np.ndarray, tuple[float, float, float], dict[str, np.ndarray]]:
    """HU (slices, rows, columns), spacing alike and the masks of one case.

    Tilted and uneven series are resampled on an orthogonal grid, masks with them.
    """
    if is_volume(case.files[0]):
        return _from_nifti(case.files[0], path)
    series = case.read()
    masks = read_rois(path, series)
    if series.regular:
        step = series.stack.step if len(series.hu) > 1 else series.facts.thickness_mm or 1.0
        return series.hu, (float(step), *series.spacing), masks
    volume = series.volume()
    across, down, step = volume.spacing

    def on_grid(mask: np.ndarray) -> np.ndarray:
        return _planes(replace(series, hu=mask.astype(np.float32)).volume()) >= 0.5

    return (
        _planes(volume),
        (float(step), float(down), float(across)),
        {name: on_grid(mask) for name, mask in masks.items()},
    )


def _from_nifti(
    image: Path, path: Path
) -> tuple[np.ndarray, tuple[float, float, float], dict[str, np.ndarray]]:
    if not path.exists():
        raise MissingDataError(f"{path} does not exist; check the path of the mask")
    volume, labels = Volume.open(image, unit="HU"), Volume.open(path)
    if labels.shape != volume.shape or not np.allclose(labels.affine, volume.affine, atol=1e-3):
        what = f"{labels.shape} than the image {volume.shape}"
        if labels.shape == volume.shape:
            corners = np.array(list(itertools.product(*((0, n - 1) for n in volume.shape), [1])))
            apart = (corners @ (np.asarray(labels.affine) - volume.affine).T)[:, :3]
            what = (
                f"than the image: as many voxels, {np.linalg.norm(apart, axis=1).max():.3g} mm away"
            )
        raise DataError(
            f"{path} lies on another grid {what}; draw it on the image, or resample it first"
        )
    values = [v for v in np.unique(labels.data) if v != 0]
    if not values or any(v != round(float(v)) for v in values):
        raise DataError(f"{path} holds no region; expected whole numbers, 0 for the background")
    planes, stem = _planes(labels), path.name.split(".")[0]
    masks = {stem if len(values) == 1 else str(int(v)): planes == v for v in values}
    across, down, step = volume.spacing
    return _planes(volume), (float(step), float(down), float(across)), masks


def _planes(volume: Volume) -> np.ndarray:
    return np.ascontiguousarray(volume.data[0].transpose(2, 1, 0))


def _write_failed(stem: Path, failed: pd.DataFrame) -> None:
    path = stem.with_name(f"{stem.name}.failed.csv")
    path.unlink(missing_ok=True)
    if len(failed):
        write_csv(path, failed)


# ------------------------------------------------------------------------------------ tables


def write_table(table: pd.DataFrame, path: Path, about: dict[str, Any]) -> None:
    """Parquet with ``about`` in its metadata, or CSV with ``about`` in a JSON beside it."""
    if path.suffix == ".csv":
        write_csv(path, table)
        write_json(path.with_suffix(".json"), about)
        return
    import pyarrow
    import pyarrow.parquet

    content = pyarrow.Table.from_pandas(table, preserve_index=False)
    words = json.dumps(about, default=str).encode()
    metadata = {**(content.schema.metadata or {}), _MARK: words}
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(content.replace_schema_metadata(metadata), temporary)


def read_table(path: Path) -> pd.DataFrame:
    """A table of features, parquet or CSV."""
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; make it with `neurodiff ct radiomics`")
    if path.suffix == ".csv":
        return read_csv(path)
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no parquet file or damaged ({type(error).__name__}); extract again"
        ) from None


def feature_columns(table: pd.DataFrame, apart: Sequence[str] = ()) -> list[str]:
    """Features of a table: IBSI's names, or those of pyradiomics where there are no others."""
    numbers = [
        str(c)
        for c in table.columns
        if c not in ABOUT and c not in apart and pd.api.types.is_numeric_dtype(table[c])
    ]
    own = [c for c in numbers if not c.startswith("original_")]
    return own or numbers


# ------------------------------------------------------------------------------------ ComBat


def combat_fit(
    features: Path,
    out: Path,
    *,
    batch: str,
    reference: str | None = None,
    covariates: Sequence[str] = (),
    info: Path | None = None,
    drop_missing: bool = False,
) -> str:
    """Fit ComBat on a table of training rows and save it as JSON.

    Parameters
    ----------
    batch : column that names the scanner, kernel or site of a row.
    reference : batch that the others are brought to; None is the mean of all.
    covariates : columns whose effect is to be kept.
    info : a table with a column scan that holds ``batch`` or the covariates.
    drop_missing : leave out features that have no value in some row, instead of stopping.
    """
    from neurodiff.bridges.combat import ComBat

    table = _joined(features, info, [batch, *covariates])
    names = feature_columns(table, [batch, *covariates])
    if not names:
        raise DataError(f"{features} holds no column of numbers that is a feature")
    dropped = [n for n in names if not np.isfinite(table[n].to_numpy(float)).all()]
    if dropped and drop_missing:
        names = [n for n in names if n not in dropped]
    elif dropped:
        raise DataError(
            f"{len(dropped)} features have rows without a value, first {dropped[0]}; leave those "
            "rows out, or pass --drop-missing to leave out the features"
        )
    kept = table[list(covariates)] if covariates else None
    model = ComBat(reference=reference, constant="keep").fit(table[names], table[batch], kept)
    write_json(
        out,
        {
            "batch": batch,
            "covariates": list(covariates),
            "rows": len(table),
            "left_out": dropped if drop_missing else [],
            "combat": model.as_dict(),
        },
    )
    words = f"{len(names)} features, {len(table)} rows, batches {', '.join(model.batches_)}"
    if dropped:
        words += f"; {len(dropped)} features without a value in some row were left out"
    if len(model.constant_):
        words += f"; {len(model.constant_)} constant features come back unchanged"
    return f"{words}\nmodel: {out}"


def combat_transform(features: Path, out: Path, *, model: Path, info: Path | None = None) -> str:
    """Harmonize rows, which may be new ones, by a saved fit."""
    from neurodiff.bridges.combat import ComBat

    if not model.is_file():
        raise MissingDataError(f"{model} does not exist; make it with `neurodiff ct combat fit`")
    stored = read_json(model)
    if not isinstance(stored, dict) or not {"batch", "covariates", "combat"} <= set(stored):
        raise DataError(f"{model} is no ComBat fit; give the file of `neurodiff ct combat fit`")
    fitted = ComBat.from_dict(stored["combat"])
    batch, covariates = stored["batch"], list(stored["covariates"])
    table = _joined(features, info, [batch, *covariates])
    names = list(fitted.feature_names_in_ or [])
    absent = [name for name in names if name not in table]
    if absent:
        raise DataError(
            f"{features} lacks {len(absent)} features of the fit, first {absent[0]}; extract with "
            "the same settings"
        )
    kept = table[covariates] if covariates else None
    made = fitted.transform(table[names], table[batch], kept)
    about = [c for c in table.columns if c in (*ABOUT, batch, *covariates)]
    write_table(
        pd.concat([table[about], made], axis=1), out, {"combat": str(model.name), "batch": batch}
    )
    others = len(table.columns) - len(about) - len(names)
    words = f"{len(names)} features of {len(table)} rows harmonized"
    if others:
        words += f"; {others} columns that the fit does not know were left out"
    return f"{words}\nfeatures: {out}"


def _joined(features: Path, info: Path | None, wanted: Sequence[str]) -> pd.DataFrame:
    table = read_table(features)
    if info is not None:
        other = read_table(info)
        if "scan" not in other or other["scan"].duplicated().any():
            raise DataError(f"{info} needs a column scan with each scan once")
        extra = [c for c in other.columns if c == "scan" or c not in table]
        table = table.merge(other[extra], on="scan", how="left", validate="many_to_one")
    for column in wanted:
        if column not in table:
            known = [str(c) for c in table.columns if not str(c).startswith("original_")][:12]
            raise UsageError(
                f"there is no column {column!r} in {features}; it begins with {', '.join(known)}."
                f"{suggest(column, [str(c) for c in table.columns])}"
            )
    return table
