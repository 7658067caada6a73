"""CT on disk as a cohort: one row a series, opened as a volume in HU when it is asked for."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from neurodiff.core.cohort import LEFT_OUT, Cohort
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError, suggest
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_index import failures, index_ct, series_table
from neurodiff.datasets.ct_series import CTSeries, read_series
from neurodiff.datasets.findings import Finding


def open_ct(
    root: str | Path,
    subject: int | str | None = None,
    *,
    index: str | Path | None = None,
    key: str | None = None,
) -> Cohort:
    """Every CT series below a folder.

    Parameters
    ----------
    root : of the archive.
    subject : one of the names in the column subject; None is everybody.
    index : parquet that is kept up to date and saves reading headers again; see `index_ct`.
    key : secret from which the subjects' names are made, so that they are the same next time.

    Returns
    -------
    A cohort with the columns of `series_table`. A scan opens as its `Volume` in HU on an orthogonal
    grid; `open_series` gives the slices.

    Raises
    ------
    MissingDataError : no such folder, or nothing in it.
    DataError : no CT slice.
    UsageError : no such subject.
    """
    root = Path(root).expanduser()
    table = index_ct(root, index, key=key)
    try:
        scans = series_table(table)
    except DataError:
        reasons = failures(table)["reason"].value_counts()
        raise DataError(f"{root} holds no CT slice ({reasons.index[0]})") from None
    lost = failures(table)
    left = pd.DataFrame(
        [(Path(p).name, str(root / p), why) for p, _, why in lost.itertuples(index=False)],
        columns=list(LEFT_OUT),
    )
    scans["path"] = [str(root / path) for path in scans["path"]]
    scans["files"] = [tuple(str(root / file) for file in files) for files in scans["files"]]
    cohort = Cohort(scans, _open_row, left_out=left, name=f"ct {root.name}")
    if subject is None:
        return cohort
    chosen = [name == str(subject) for name in cohort.scans["subject"]]
    if not any(chosen):
        raise UsageError(f"{root} has no subject {subject!r}.{suggest(subject, cohort.subjects)}")
    return cohort.select(chosen)


def open_series(cohort: Cohort, which: int | str, *, missing: str = "error") -> CTSeries:
    """The slices of a scan of `open_ct`, by number or id; errors as `read_series`."""
    row = cohort.row(which)
    if "files" not in row:
        raise UsageError("this cohort is not one of CT series; open it with open_dataset('ct')")
    return read_series(row["files"], missing=missing)  # type: ignore[arg-type]


def check_ct(
    root: str | Path,
    subject: int | str | None = None,
    *,
    index: str | Path | None = None,
    key: str | None = None,
) -> list[Finding]:
    """What of an archive is missing or broken; every series is opened."""
    try:
        cohort = open_ct(root, subject, index=index, key=key)
    except MissingDataError as error:
        return [Finding.missing("scans", root, str(error), "give the folder of the archive")]
    except (DataError, UsageError) as error:
        return [Finding.broken("scans", root, str(error), "correct it")]
    counts = f"{len(cohort)} series of {len(cohort.subjects)} people"
    findings = [Finding.fine("scans", root, counts)]
    for _, (_, path, reason) in cohort.left_out.iterrows():  # type: ignore[union-attr]
        findings.append(Finding.note("left out", path, reason))
    for number, path in enumerate(cohort.scans["path"]):
        try:
            series = open_series(cohort, number)
        except NeurodiffError as error:
            findings.append(Finding.broken("series", path, str(error), "copy or export it again"))
        else:
            findings += [Finding.note("series", path, note) for note in series.notes]
    return findings


def _open_row(row: pd.Series) -> Volume:
    return read_series(row["files"]).volume()
