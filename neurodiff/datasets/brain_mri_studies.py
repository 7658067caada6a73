"""T1-weighted scans in the layouts that studies hand out: OASIS-1, -2 and -3, IXI and ADNI.

OASIS-2, OASIS-3's tables and ADNI's trees were not verified on the studies' own files; columns
are looked up whatever their case and blanks, and what is not found stays missing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.core.errors import DataError
from neurodiff.core.safe_io import read_csv
from neurodiff.datasets.brain_mri_layouts import Found, Tables, apply_tables
from neurodiff.datasets.brain_mri_words import (
    DAYS_PER_MONTH,
    column_of,
    diagnosis_of,
    diagnosis_of_cdr,
    months_between,
    months_of,
    number_of,
    sex_of,
    text_of,
)

NAN = float("nan")
NEAR_DAYS = 365.0  # a clinical visit further than this from the scan says nothing about it


def find_oasis1(root: Path) -> Found:
    """``OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/*.img`` and the cross-sectional CSV.

    The masked image in the space of Talairach's atlas is taken, else the unmasked one, else the
    one in the subject's own space. MR2 is the same person as MR1, scanned again within 90 days.
    Diagnosis by CDR; the young, who have none, have no diagnosis.
    """
    found = Found()
    lines = _by_key(_table_with(root, ("mr delay", "delay"), ("id",), found), ("id",))
    for folder in sorted([*root.glob("OAS1_*_MR*"), *root.glob("disc*/OAS1_*_MR*")]):
        image = _oasis1_image(folder)
        if image is None:
            found.left_out.append((folder.name, str(folder), "no image in PROCESSED/MPRAGE"))
            continue
        line = lines.get(folder.name, {})
        delay = number_of(_get(line, "delay"))
        is_first = folder.name.endswith("MR1")
        found.rows.append(
            {
                "subject": folder.name[:9],
                "label": folder.name[10:],
                "run": "",
                "path": str(image),
                "session": 0.0 if is_first else round(delay / DAYS_PER_MONTH, 1),
                "age": number_of(_get(line, "age")),
                "sex": sex_of(_get(line, "m/f", "sex")),
                "diagnosis": diagnosis_of_cdr(_get(line, "cdr")),
                "cdr": number_of(_get(line, "cdr")),
                "site": "OASIS",
                "variant": _oasis1_variant(image),
            }
        )
    if found.rows:
        found.notes.append(
            "Analyze files of OASIS-1 state no left and right; nibabel takes x from left to right"
        )
    return found


def _oasis1_image(folder: Path) -> Path | None:
    place = folder / "PROCESSED" / "MPRAGE"
    for pattern in ("T88_111/*t88_masked_gfc.img", "T88_111/*t88_gfc.img", "SUBJ_111/*.img"):
        images = sorted(place.glob(pattern))
        if images:
            return images[0]
    return None


def _oasis1_variant(image: Path) -> str:
    return "masked" if "masked" in image.name else "atlas" if "t88" in image.name else "own space"


def find_oasis2(root: Path) -> Found:
    """``OAS2_0001_MR1/RAW/mpr-1.nifti.img`` and the longitudinal CSV (columns MRI ID, MR Delay)."""
    found = Found()
    lines = _by_key(_table_with(root, ("mr delay",), ("mri id",), found), ("mri id",))
    folders = sorted([*root.glob("OAS2_*_MR*"), *root.glob("*/OAS2_*_MR*")])
    for folder in (folder for folder in folders if folder.is_dir()):
        images = sorted([*folder.glob("RAW/mpr-*.img"), *folder.glob("RAW/mpr-*.nii*")])
        if not images:
            found.left_out.append((folder.name, str(folder), "no mpr-* image in RAW"))
        line = lines.get(folder.name, {})
        delay = number_of(_get(line, "mr delay"))
        for image in images:
            found.rows.append(
                {
                    "subject": folder.name[:9],
                    "label": folder.name[10:],
                    "run": image.name.split(".")[0],
                    "path": str(image),
                    "session": round(delay / DAYS_PER_MONTH, 1),
                    "age": number_of(_get(line, "age")),
                    "sex": sex_of(_get(line, "m/f", "sex")),
                    "diagnosis": diagnosis_of_cdr(_get(line, "cdr")),
                    "cdr": number_of(_get(line, "cdr")),
                    "group": text_of(_get(line, "group")),
                    "site": "OASIS",
                }
            )
    return found


def find_oasis3(root: Path) -> Found:
    """``OAS30001_MR_d0757/anat*/**/*T1w.nii.gz``; sessions are days from entry.

    Age from ``AgeatEntry`` of the demographics plus these days; diagnosis from the CDR of the
    clinical visit nearest to the scan, at most a year away.
    """
    found = Found()
    people = _by_key(
        _table_with(root, ("ageatentry",), ("oasisid", "subject"), found), ("oasisid", "subject")
    )
    ratings = _table_with(root, ("cdrtot",), ("oasisid",), found)
    visits = {} if ratings is None else _visits(ratings)
    for path in sorted(root.glob("OAS3*_MR_d*/anat*/**/*T1w.nii*")):
        folder = path.relative_to(root).parts[0]
        matched = re.fullmatch(r"(OAS3\d+)_MR_d(\d+)", folder)
        if matched is None or not path.name.endswith((".nii", ".nii.gz")):
            continue
        subject, days = matched.group(1), float(matched.group(2))
        line = people.get(subject, {})
        entry = number_of(_get(line, "ageatentry"))
        run = "_".join(re.findall(r"(?:acq|run)-[A-Za-z0-9]+", path.name))
        found.rows.append(
            {
                "subject": subject,
                "label": f"d{matched.group(2)}",
                "run": run or path.relative_to(root).parts[1],
                "path": str(path),
                "session": round(days / DAYS_PER_MONTH, 1),
                "age": entry + days / 365.25,
                "sex": {"1": "M", "2": "F"}.get(str(_get(line, "gender")).split(".")[0])
                or sex_of(_get(line, "sex")),
                "diagnosis": diagnosis_of_cdr(_nearest(visits.get(subject, []), days)),
                "site": "OASIS",
            }
        )
    if found.rows:
        found.notes.append("OASIS-3 sessions are months from a subject's entry, not first scan")
    return found


def _visits(table: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """Days and CDR of each clinical visit, by subject."""
    visits: dict[str, list[tuple[float, float]]] = {}
    for line in table.to_dict("records"):
        label = re.search(r"_d(\d+)", str(_get(line, "oasis_session_label")))
        days = number_of(label.group(1) if label else _get(line, "days_to_visit"))
        rating = number_of(_get(line, "cdrtot"))
        if days == days and rating == rating:
            visits.setdefault(str(_get(line, "oasisid")), []).append((days, rating))
    return visits


def _nearest(visits: list[tuple[float, float]], days: float) -> float:
    near = min(visits, key=lambda visit: abs(visit[0] - days), default=(NAN, NAN))
    return near[1] if abs(near[0] - days) <= NEAR_DAYS else NAN


def find_ixi(root: Path) -> Found:
    """``IXI002-Guys-0828-T1.nii.gz`` and ``IXI.csv`` (or ``IXI.xls``, where it can be read).

    Everybody is healthy (CN) and was scanned once. A person with two ages in the table has none.
    """
    found = Found()
    people = _ixi_people(root, found)
    for path in sorted([*root.glob("IXI*-T1.nii*"), *root.glob("IXI-T1/IXI*-T1.nii*")]):
        matched = re.match(r"IXI(\d+)-([A-Za-z]+)-(\w+)-T1", path.name)
        if matched is None:
            continue
        person = people.get(int(matched.group(1)), {})
        found.rows.append(
            {
                "subject": f"IXI{matched.group(1)}",
                "label": "",
                "run": matched.group(3),
                "path": str(path),
                "session": 0.0,
                "age": person.get("age", NAN),
                "sex": person.get("sex"),
                "diagnosis": "CN",
                "site": matched.group(2),
            }
        )
    return found


def _ixi_people(root: Path, found: Found) -> dict[int, dict[str, Any]]:
    for folder in (root, root.parent):
        if (folder / "IXI.csv").is_file():
            table = read_csv(folder / "IXI.csv", dtype=str)
            break
        if (folder / "IXI.xls").is_file():
            try:
                table = pd.read_excel(folder / "IXI.xls", dtype=str)
                break
            except ImportError as error:
                package = getattr(error, "name", None) or "xlrd"
                found.notes.append(
                    f"IXI.xls needs the package {package}: install it, or save the table as "
                    "IXI.csv; ages are not known"
                )
                return {}
            except Exception as error:  # xlrd raises types of its own
                raise DataError(f"{folder / 'IXI.xls'} is not a readable table ({error})") from None
    else:
        found.notes.append(f"{root} has no IXI.csv or IXI.xls: ages are not known")
        return {}
    people: dict[int, dict[str, Any]] = {}
    twice = set()
    for line in table.to_dict("records"):
        number, age = number_of(_get(line, "ixi_id")), number_of(_get(line, "age"))
        if number != number:
            continue
        sex = {1.0: "M", 2.0: "F"}.get(number_of(_get(line, "sex_id (1=m, 2=f)", "sex_id")))
        known = people.setdefault(int(number), {"age": age, "sex": sex})
        if known["age"] != age and known["age"] == known["age"] and age == age:
            twice.add(int(number))
    for number in twice:
        people[number]["age"] = NAN
    if twice:
        listed = ", ".join(f"IXI{number:03d}" for number in sorted(twice)[:5])
        found.notes.append(f"{len(twice)} people have two ages in the table of IXI: {listed}")
    return people


def find_adni(root: Path) -> Found:
    """``002_S_0295/<series>/<date>/I<number>/*.nii`` and tables of IDA or ADNIMERGE.

    A table with "Image Data ID" goes by image: visit, age at the scan, group, sex. ADNIMERGE goes
    by person and nearest examination (at most a year away); its AGE is at the first visit. Without
    a visit's code the months count from a person's first scan. The site is in a person's number.
    """
    found = Found()
    place = root / "ADNI" if (root / "ADNI").is_dir() else root
    images = _by_key(
        _table_with(root, ("image data id", "image id"), ("subject",), found),
        ("image data id", "image id"),
    )
    merged = _table_with(root, ("examdate",), ("ptid",), found)
    series: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted(place.glob("[0-9]*_S_[0-9]*/*/*/I[0-9]*")):
        files = sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")])
        subject, name, date, uid = folder.relative_to(place).parts
        if not files:
            dicom = any(folder.glob("*.dcm"))
            reason = "it holds DICOM; convert it by dcm2niix" if dicom else "it holds no .nii"
            found.left_out.append((f"{subject} {uid}", str(folder), reason))
            continue
        line = images.get(uid.removeprefix("I"), images.get(uid, {}))
        row = {
            "subject": subject,
            "label": text_of(_get(line, "visit")) or date[:10],
            "run": uid,
            "path": str(files[0]),
            "session": months_of(_get(line, "visit") or ""),
            "age": number_of(_get(line, "age")),
            "sex": sex_of(_get(line, "sex")),
            "diagnosis": diagnosis_of(_get(line, "group")),
            "site": subject.split("_")[0],
            "series": name,
            "date": date[:10],
        }
        series.setdefault(subject, []).append(row)
    for subject, rows in series.items():
        _complete_adni(rows, _examinations(merged, subject))
        found.rows += rows
    apply_tables(found, Tables())
    return found


def _examinations(merged: pd.DataFrame | None, subject: str) -> list[dict[str, Any]]:
    if merged is None:
        return []
    names = merged[column_of(merged, ("ptid",))]
    return merged[names == subject].to_dict("records")


def _complete_adni(rows: list[dict[str, Any]], exams: list[dict[str, Any]]) -> None:
    """Fill what an image's own table did not say."""
    since = months_between(row["date"] for row in rows)
    when = pd.to_datetime(pd.Series([_get(e, "examdate") for e in exams]), errors="coerce")
    for row, months in zip(rows, since, strict=True):
        exam: dict[str, Any] = {}
        apart = (when - pd.to_datetime(row["date"], errors="coerce")).abs()
        if apart.notna().any() and apart.min().days <= NEAR_DAYS:
            exam = exams[int(apart.idxmin())]
        visit = months_of(_get(exam, "viscode") or "")
        if row["session"] != row["session"]:
            row["session"] = visit if visit == visit else months
        if row["age"] != row["age"] and exam:
            start = when.min()
            years = (pd.to_datetime(row["date"]) - start).days / 365.25
            row["age"] = number_of(_get(exam, "age")) + years
        row["sex"] = row["sex"] or sex_of(_get(exam, "ptgender"))
        row["diagnosis"] = row["diagnosis"] or diagnosis_of(_get(exam, "dx"))


def _table_with(
    root: Path, any_of: tuple[str, ...], also: tuple[str, ...], found: Found
) -> pd.DataFrame | None:
    """The first CSV of the root with these columns; its absence becomes a note."""
    for path in sorted(root.glob("*.csv")):
        try:
            table = read_csv(path, dtype=str)
        except DataError as error:
            found.notes.append(str(error))
            continue
        if column_of(table, any_of) is not None and column_of(table, also) is not None:
            return table
    found.notes.append(
        f"{root} has no CSV with the columns {also[0]!r} and {any_of[0]!r}; what it states is "
        "missing"
    )
    return None


def _by_key(table: pd.DataFrame | None, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    if table is None:
        return {}
    key = column_of(table, names)
    lines = table.to_dict("records")
    return {str(line[key]).removeprefix("I"): line for line in reversed(lines)} | {
        str(line[key]): line for line in reversed(lines)
    }


def _get(line: dict[str, Any], *names: str) -> Any:
    """Value of the first of these columns in a row's dictionary, or None."""
    column = column_of(line, names)
    return None if column is None else text_of(line[column])
