"""``neurodiff ct qa``: what a standardization changed, case by case, as one page.

Filter and coherence, noise spectra before and after, shift of HU by tissue, agreement of radiomic
features where the scan was also acquired in the standard, pictures, and what was not recovered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis import ct_agreement, ct_page
from neurodiff.analysis.ct_apply import result_files
from neurodiff.analysis.ct_cohort import Case, each_case, open_archive, read_key
from neurodiff.bridges.ct_filter import RadialFilter
from neurodiff.bridges.ct_phantom import noise_spectrum, uniform_regions
from neurodiff.core.atomic import write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_series import CTSeries, read_series

_MOST_CASES = 40  # of which agreement and pictures are computed, spread over the cohort
_SQUARES_OF_A_SCAN = 60
SPECTRUM_SQUARES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseChange:
    """What happened to one case.

    Attributes
    ----------
    spectra : noise power before, after and (where there is one) of the reference; None where no
        uniform square was found.
    middle : slices of the picture: before, after, reference or None, padding.
    places, features : squares in tissue and their features before, after and of the reference;
        empty where there is no reference.
    arrays : all slices, where they were to be kept.
    """

    scan: str
    report: dict[str, Any]
    spectra: pd.DataFrame | None
    middle: tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]
    spacing: tuple[float, float]
    places: tuple[ct_agreement.Square, ...] = ()
    features: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """What ``ct qa`` did."""

    page: Path
    failed: pd.DataFrame
    text: str


def write_qa(
    results: Path,
    source: Path,
    out: Path,
    *,
    references: Sequence[str] = (),
    root: Path | None = None,
    key_file: Path | None = None,
    progress: Progress = SILENT,
) -> Checked:
    """Write the page, and ``<name>.json`` with every number of it.

    Parameters
    ----------
    results : folder of ``ct apply``.
    source : what it was made from; of a folder, the index beside ``results`` is used.
    references : ``scan=folder`` of scans that were acquired in the standard too; without, series
        of the same study at the same places that are the standard already.

    Raises
    ------
    UsageError : a name that is no page, or a reference that is not ``scan=folder``.
    DataError : ``results`` holds none, or none of them is of this source.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out} must name a file that ends in .html")
    records = result_files(results) if results.is_dir() else {}
    if not records:
        raise MissingDataError(f"{results} holds no result; give the folder that `ct apply` made")
    named = _references(references, set(records))
    beside = results.with_name(f"{results.name}.index.parquet")
    index = beside if source.suffix != ".parquet" and beside.is_file() else None
    archive = open_archive(
        source, root=root, index=index, key=read_key(key_file), progress=progress
    )
    cases = {case.scan: case for case in archive.cases}
    known = [scan for scan in records if scan in cases]
    if not known:
        raise DataError(
            f"none of the {len(records)} results of {results} is a scan of {source}; pseudonyms "
            "differ where the index or the secret is another one: give those of ct apply"
        )
    changed = [s for s in known if records[s]["report"]["status"] != "standard"]
    chosen = changed
    if len(changed) > _MOST_CASES:
        places = np.linspace(0, len(changed) - 1, _MOST_CASES).round().astype(int)
        chosen = [changed[i] for i in places]

    def work(case: Case) -> CaseChange:
        before = case.read(records[case.scan].get("how", {}).get("missing", "error"))
        after = _after(results / case.scan, before)
        folder = named.get(case.scan)
        reference = read_series(folder) if folder else _same_study(case, cases, records, before)
        return change_of(case.scan, before, after, reference, records[case.scan]["report"])

    found, failed = each_case([cases[s] for s in chosen], work, step="qa", progress=progress)
    if not found:
        reason = failed["reason"].iloc[0] if len(failed) else "every scan was the standard already"
        raise DataError(f"there is nothing to show: {reason}")
    report = ct_page.qa_report(
        list(found.values()), records, failed, agreement_of(list(found.values()))
    )
    report.save(out)
    write_json(out.with_suffix(".json"), report.to_json())
    return Checked(
        page=out, failed=failed, text=f"{len(found)} scan{'s' * (len(found) != 1)}\npage: {out}"
    )


def change_of(
    scan: str,
    before: CTSeries,
    after: np.ndarray,
    reference: CTSeries | None,
    report: dict[str, Any],
    *,
    keep: bool = False,
) -> CaseChange:
    """Spectra, features and pictures of one case.

    Parameters
    ----------
    keep : all slices stay in ``arrays`` and no features are computed; for small data.

    Raises
    ------
    DataError : a reference of other slices.
    """
    if reference is not None and (
        reference.hu.shape != before.hu.shape
        or not np.allclose(reference.positions_mm, before.positions_mm, atol=0.05)
    ):
        raise DataError(
            f"the reference of {scan} has slices {reference.hu.shape} at other places than the "
            f"scan {before.hu.shape}; give the same scan in the standard kernel"
        )
    arrays = {"before": before.hu, "after": after}
    padding = before.padding
    if reference is not None:
        arrays["reference"], padding = reference.hu, padding | reference.padding
    k = len(after) // 2
    middle = (
        before.hu[k],
        after[k],
        None if reference is None else reference.hu[k],
        padding[k],
    )
    places: list[ct_agreement.Square] = []
    features: dict[str, pd.DataFrame] = {}
    if reference is not None and not keep:
        places = ct_agreement.squares(
            {scan: reference.hu}, {scan: padding}, most=_SQUARES_OF_A_SCAN
        )
        features = {
            name: ct_agreement.features_of({scan: hu}, places, before.spacing)
            for name, hu in arrays.items()
        }
    return CaseChange(
        scan=scan,
        report=report,
        spectra=_spectra(arrays, before.spacing),
        middle=middle,
        spacing=before.spacing,
        places=tuple(places),
        features=features,
        arrays={**arrays, "padding": padding} if keep else {},
    )


def agreement_of(changes: Sequence[CaseChange]) -> dict[str, Any]:
    """Agreement with the reference before and after; empty where no case has one."""
    having = [c for c in changes if c.places]
    places = [place for c in having for place in c.places]
    if len(places) < 2:
        return {}
    tables = {
        name: pd.concat([c.features[name] for c in having], ignore_index=True)
        for name in ("before", "after", "reference")
    }
    return {
        name: ct_agreement.agreement(tables[name], tables["reference"], places)
        for name in ("before", "after")
    }


def filter_curves(changes: Sequence[CaseChange]) -> dict[str, RadialFilter]:
    """The filters as they were applied, by name; the first scan's where several share one."""
    found: dict[str, RadialFilter] = {}
    for one in changes:
        curve = one.report.get("curve")
        if curve and one.report["filter"] not in found:
            found[one.report["filter"]] = RadialFilter.from_dict(curve)
    return found


def _spectra(arrays: dict[str, np.ndarray], spacing: tuple[float, float]) -> pd.DataFrame | None:
    try:
        places = uniform_regions(arrays["after"], count=SPECTRUM_SQUARES)
        spectra = {name: noise_spectrum(hu, places, spacing) for name, hu in arrays.items()}
    except DataError:
        return None  # no uniform tissue of this size, which the page says
    rows = [
        {"frequency": f, "power": p, "which": name, "sd": float(np.sqrt(spectrum.variance))}
        for name, spectrum in spectra.items()
        for f, p in zip(spectrum.frequency, spectrum.power, strict=True)
        if f <= spectrum.reach
    ]
    return pd.DataFrame(rows)


def _after(folder: Path, before: CTSeries) -> np.ndarray:
    """The result on the slices of its source."""
    if list(folder.glob("slice_*.dcm")):
        hu = read_series(folder).hu
    else:
        found = sorted(folder.glob("*.nii.gz"))
        if not found:
            raise MissingDataError(f"{folder} holds no image; apply the mapping again")
        hu = Volume.open(found[0], unit="HU").data[0].transpose(2, 1, 0)
    if hu.shape != before.hu.shape:
        raise DataError(
            f"the result in {folder} has {hu.shape} slices, rows and columns and its source "
            f"{before.hu.shape}; apply the mapping again"
        )
    return hu


def _same_study(
    case: Case, cases: dict[str, Case], records: dict[str, Any], before: CTSeries
) -> CTSeries | None:
    """The series of the same study that is the standard, where there is one at these places."""
    for scan, other in cases.items():
        if scan == case.scan or records.get(scan, {}).get("report", {}).get("status") != "standard":
            continue
        if (other.subject, other.facts["study"]) != (case.subject, case.facts["study"]):
            continue
        series = other.read()
        same = series.hu.shape == before.hu.shape
        if same and np.allclose(series.positions_mm, before.positions_mm, atol=0.05):
            return series
    return None


def _references(given: Sequence[str], scans: set[str]) -> dict[str, Path]:
    found = {}
    for text in given:
        scan, equals, folder = text.partition("=")
        if not equals or not folder:
            raise UsageError(f"--reference {text} is not SCAN=DIR")
        if scan not in scans:
            raise UsageError(
                f"--reference names {scan}, which is no result; there are "
                f"{', '.join(sorted(scans))}"
            )
        found[scan] = Path(folder)
    return found
