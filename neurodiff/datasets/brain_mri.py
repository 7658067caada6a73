"""T1-weighted brain scans on disk as a cohort, whatever the layout.

    cohort = discover("/data/adni_bids")
    train, test = cohort.split({"train": 0.9, "test": 0.1}, seed=0).values()

No image is opened until it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from neurodiff.core.cohort import LEFT_OUT, Cohort
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError, suggest
from neurodiff.core.safe_io import read_csv
from neurodiff.core.scan_table import scan_id
from neurodiff.datasets.brain_mri_layouts import (
    Found,
    Tables,
    add_table,
    apply_tables,
    find_bids,
    find_caps,
    find_table,
)
from neurodiff.datasets.brain_mri_studies import (
    find_adni,
    find_ixi,
    find_oasis1,
    find_oasis2,
    find_oasis3,
)
from neurodiff.datasets.findings import Finding

LAYOUTS: dict[str, tuple[Callable[[Path], Found], tuple[str, ...], str]] = {
    "caps": (find_caps, ("subjects/sub-*/ses-*/t1_linear",), "subjects/sub-*/ses-*/t1_linear/"),
    "bids": (find_bids, ("sub-*/ses-*/anat", "sub-*/anat"), "sub-*/[ses-*/]anat/*_T1w.nii.gz"),
    "oasis1": (find_oasis1, ("OAS1_*_MR*", "disc*/OAS1_*_MR*"), "OAS1_*_MR*/PROCESSED/MPRAGE/"),
    "oasis2": (find_oasis2, ("OAS2_*_MR*", "*/OAS2_*_MR*"), "OAS2_*_MR*/RAW/mpr-*.img"),
    "oasis3": (find_oasis3, ("OAS3*_MR_d*",), "OAS3*_MR_d*/anat*/*T1w.nii.gz"),
    "ixi": (find_ixi, ("IXI*-T1.nii*", "IXI-T1/IXI*-T1.nii*"), "IXI*-T1.nii.gz"),
    "adni": (
        find_adni,
        ("[0-9]*_S_[0-9]*/*/*/I[0-9]*", "ADNI/[0-9]*_S_[0-9]*/*/*/I[0-9]*"),
        "ADNI/*_S_*/<series>/<date>/I*/*.nii",
    ),
}
"""Name -> what finds its scans, what tells it apart, and how it is shown to people."""

TABLES = ("scans.csv", "manifest.csv", "dataset.csv")


def discover(
    root: str | Path,
    layout: str = "auto",
    *,
    table: str | Path | None = None,
    repeats: Literal["first", "all"] = "first",
) -> Cohort:
    """Every T1-weighted scan below a folder, or in a table, with what its tables say.

    Parameters
    ----------
    root : the folder, or a CSV with the columns path and subject.
    layout : ``"bids"``, ``"caps"``, ``"oasis1"``, ``"oasis2"``, ``"oasis3"``, ``"ixi"``,
        ``"adni"``, ``"csv"``, or ``"auto"``, which tells it from the names.
    table : a further CSV or TSV by subject, and session where it has that column; it fills what is
        missing.
    repeats : keep the first of several scans of a session, or all of them.

    Returns
    -------
    A cohort in order of subject and session. Its ``left_out`` lists scans that were found and not
    taken, with the reason, and its ``notes`` what is not known.

    Raises
    ------
    MissingDataError : no such folder, or no scan in it.
    UsageError : an unknown layout, or a folder that is two at once.
    DataError : a table that cannot be read.
    """
    if repeats not in ("first", "all"):
        raise UsageError(f"repeats is {repeats!r}; expected 'first' or 'all'")
    root = Path(root).expanduser()
    name = find_layout(root) if layout == "auto" else _known(layout)
    if not root.exists():
        raise MissingDataError(f"{root} does not exist; give the folder of the scans, or a CSV")
    found = find_table(_table_path(root)) if name == "csv" else LAYOUTS[name][0](root)
    if table is not None:
        separator = "\t" if str(table).endswith(".tsv") else ","
        tables = Tables()
        add_table(tables, read_csv(table, dtype=str, separator=separator), str(table))
        apply_tables(found, tables)
    rows = _with_ids(found, keep_all=repeats == "all")
    if not rows:
        reason = f"; first left out: {found.left_out[0][2]}" if found.left_out else ""
        shape = TABLES[0] if name == "csv" else LAYOUTS[name][2]
        if name == "csv" and not found.left_out:
            raise MissingDataError(f"{root} names no scan: the table has no row; add one a scan")
        raise MissingDataError(f"{root} has no T1-weighted scan as {name} ({shape}){reason}")
    return Cohort(
        pd.DataFrame(rows),
        left_out=pd.DataFrame(found.left_out, columns=list(LEFT_OUT)),
        notes=tuple(dict.fromkeys(found.notes)),
        name=f"{name} {root.name}",
    )


def find_layout(root: Path) -> str:
    """Which layout a folder or file has; errors as `discover`."""
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise UsageError(f"{root} is a file; expected a folder of scans, or a CSV of them")
        return "csv"
    if not root.is_dir():
        raise MissingDataError(f"{root} does not exist; give the folder of the scans, or a CSV")
    there = [
        name
        for name, (_, patterns, _) in LAYOUTS.items()
        if any(next(root.glob(pattern), None) is not None for pattern in patterns)
    ]
    if not there and any((root / name).is_file() for name in TABLES):
        return "csv"
    if not there:
        shown = "; ".join(f"{name}: {shape}" for name, (_, _, shape) in LAYOUTS.items())
        raise MissingDataError(
            f"{root} has no layout that is known ({shown}; csv: {', '.join(TABLES)}); give the "
            "folder that holds the subjects, or a CSV with the columns path and subject"
        )
    if len(there) > 1:
        raise UsageError(f"{root} looks like {' and '.join(there)}; name one of them as layout")
    return there[0]


def open_brain_mri(
    root: str | Path,
    subject: int | str | None = None,
    *,
    layout: str = "auto",
    table: str | Path | None = None,
    repeats: Literal["first", "all"] = "first",
) -> Cohort:
    """`discover`, and the scans of one subject where one is named."""
    cohort = discover(root, layout, table=table, repeats=repeats)
    if subject is None:
        return cohort
    wanted = str(subject).removeprefix("sub-")
    chosen = [name.removeprefix("sub-") == wanted for name in cohort.scans["subject"]]
    if not any(chosen):
        raise UsageError(f"{root} has no subject {subject!r}.{suggest(subject, cohort.subjects)}")
    return cohort.select(chosen)


def check_brain_mri(
    root: str | Path,
    subject: int | str | None = None,
    *,
    layout: str = "auto",
    table: str | Path | None = None,
    repeats: Literal["first", "all"] = "first",
) -> list[Finding]:
    """What of a cohort is missing or broken; every scan is opened and looked at."""
    from neurodiff.datasets.brain_mri_flags import flags_of

    try:
        cohort = open_brain_mri(root, subject, layout=layout, table=table, repeats=repeats)
    except MissingDataError as error:
        return [Finding.missing("scans", root, str(error), "give the folder of the scans")]
    except (DataError, UsageError) as error:
        return [Finding.broken("scans", root, str(error), "correct it")]
    counts = f"{len(cohort)} scans of {len(cohort.subjects)} subjects"
    findings = [Finding.fine("scans", root, f"{counts}, {cohort.name}")]
    findings += [Finding.note("table", root, note) for note in cohort.notes]
    for _, (_, path, reason) in cohort.left_out.iterrows():  # type: ignore[union-attr]
        findings.append(Finding.note("left out", path, reason))
    for column in ("session", "age", "diagnosis"):
        lost = int(cohort.scans[column].isna().sum())
        if lost:
            text = f"{lost} of {len(cohort)} scans have no {column}"
            findings.append(Finding.note("table", root, text))
    for number, path in enumerate(cohort.scans["path"]):
        try:
            flags = flags_of(cohort[number])
        except MissingDataError as error:
            findings.append(Finding.missing("scan", path, str(error), "copy it again"))
        except NeurodiffError as error:
            findings.append(Finding.broken("scan", path, str(error), "copy or convert it again"))
        else:
            findings += [Finding.note("scan", path, flag.text) for flag in flags]
    return findings


def ldae_2025_split(cohort: Cohort, stage: str = "representation") -> dict[str, Cohort]:
    """The published split of subjects: `GroupShuffleSplit` with seed 42.

    A tenth of the subjects is the test; of the rest 0.5 % validate (autoencoder: 5 %; probes:
    30 %). It depends on the order of the rows and on the classes that are in the table, so that
    the published supervised runs, on AD and CN alone, have another test than LDAE (protocol
    ``ldae-2025``; our default is `Cohort.split`).

    Parameters
    ----------
    stage : ``"autoencoder"``, ``"diffusion"``, ``"representation"`` or ``"supervised"``.
    """
    from sklearn.model_selection import GroupShuffleSplit

    shares = {"autoencoder": 0.05, "diffusion": 0.005, "representation": 0.005, "supervised": 0.3}
    if stage not in shares:
        raise UsageError(
            f"there is no stage {stage!r}; there are {', '.join(shares)}.{suggest(stage, shares)}"
        )
    if len(cohort.subjects) < 3:
        raise UsageError(f"{len(cohort.subjects)} subjects cannot make three splits; give more")

    def halves(part: Cohort, share: float) -> tuple[Cohort, Cohort]:
        cut = GroupShuffleSplit(n_splits=1, test_size=share, random_state=42)
        rest, chosen = next(cut.split(part.scans, groups=part.scans["subject"]))
        return part.select(rest), part.select(chosen)

    rest, test = halves(Cohort(cohort.scans.assign(split=""), cohort.opener, name=cohort.name), 0.1)
    train, validation = halves(rest, shares[stage])
    parts = {"train": train, "validation": validation, "test": test}
    return {
        name: Cohort(
            part.scans.assign(split=name), cohort.opener, name=cohort.name,
            simulated=cohort.simulated,
        )
        for name, part in parts.items()
    }  # fmt: skip


def _known(layout: str) -> str:
    known = [*LAYOUTS, "csv"]
    if layout not in known:
        raise UsageError(
            f"there is no layout {layout!r}; there are auto, {', '.join(known)}."
            f"{suggest(layout, known)}"
        )
    return layout


def _table_path(root: Path) -> Path:
    if root.is_file():
        return root
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    raise MissingDataError(f"{root} has none of {', '.join(TABLES)}; give the path of the CSV")


def _with_ids(found: Found, *, keep_all: bool) -> list[dict[str, Any]]:
    """Rows with ids, in order; further scans of a session are left out, or named by their run."""
    order = sorted(
        found.rows,
        key=lambda row: (row["subject"], _sortable(row["session"]), row["label"], _natural(row)),
    )
    kept: dict[str, dict[str, Any]] = {}
    for row in order:
        months, label = row["session"], row["label"].removeprefix("ses-")
        name = row.pop("scan", None) or scan_id(row["subject"], months)
        if months != months and label and name == row["subject"]:
            name = f"{name}_{label}"
        if name in kept and keep_all and row["run"]:
            name = f"{name}_{row['run']}"
        if name in kept:
            other = kept[name]["path"]
            reason = f"a second scan with the id {name}, after {Path(other).name}"
            found.left_out.append((name, row["path"], reason))
            continue
        kept[name] = {"scan": name, **row}
    return list(kept.values())


def _sortable(months: float) -> float:
    return float("inf") if months != months else months


def _natural(row: dict[str, Any]) -> tuple[Any, ...]:
    """Runs in order of their numbers, without a run first, a cropped image after a whole one."""
    numbers = [int(number) for number in re.findall(r"\d+", row["run"])]
    return ("Crop" in row["run"], row["run"] != "", numbers, row["path"])
