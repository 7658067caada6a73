"""T1-weighted scans in BIDS, in Clinica's CAPS, and in tables (CSV).

Each ``find_...`` looks at names and small tables alone and returns a `Found`: no image is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.core.errors import DataError
from neurodiff.core.safe_io import read_csv
from neurodiff.datasets.brain_mri_words import (
    column_of,
    diagnosis_of,
    months_between,
    months_of,
    number_of,
    sex_of,
    text_of,
    values_of,
)

SUBJECT = ("participant_id", "subject", "subject_id", "ptid", "id")
SESSION = ("session_id", "session", "session_label", "viscode", "visit")
AGE = ("age", "age_at_scan", "age_at_visit", "age_at_session", "age_bl", "age_baseline")
SEX = ("sex", "gender", "ptgender", "m/f")
DIAGNOSIS = ("diagnosis", "dx", "dx_group", "research_group", "group", "diagnosis_sc", "dx_bl")
SITE = ("site", "site_id", "centre", "center", "institution", "acquisition_site")
SCANNER = ("scanner", "scanner_model", "manufacturers_model_name", "manufacturer")
MONTHS = ("months", "session_months", "months_from_baseline", "month")
DATE = ("examination_date", "acq_time", "acq_date", "session_date", "scan_date", "examdate", "date")
PATH = ("path", "image_path", "t1_path", "filepath", "filename", "file")
OF_FIRST = ("age_bl", "age_baseline", "diagnosis_sc", "dx_bl")  # said of the first visit only
PEOPLE = (("age", AGE), ("sex", SEX), ("diagnosis", DIAGNOSIS), ("site", SITE),
          ("scanner", SCANNER))  # fmt: skip


@dataclass
class Found:
    """Rows of scans, with what was left out (scan, path, reason) and what to know.

    A row has subject, label (of the session), run (what tells scans of a session apart; the first
    in order is kept), path, and where they are known the columns of a cohort.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Tables:
    """What is known of a person, by subject, and of a visit, by subject and session's label."""

    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    visits: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------ BIDS


def find_bids(root: Path) -> Found:
    """``sub-*/[ses-*/]anat/*_T1w.nii[.gz]`` with ``participants.tsv`` and ``*_sessions.tsv``."""
    found = Found()
    patterns = ("sub-*/ses-*/anat/*_T1w.nii*", "sub-*/anat/*_T1w.nii*")
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        if path.name.endswith((".nii", ".nii.gz")):
            _add_bids(found, path, root)
    apply_tables(found, bids_tables(root, found))
    return found


def find_caps(root: Path) -> Found:
    """``subjects/<sub>/<ses>/t1_linear/*_T1w.nii.gz``; an uncropped image goes before a cropped.

    Both are in MNI space; the grid is 169 x 208 x 179 voxels where ``desc-Crop`` is in the name.
    """
    found = Found()
    for path in sorted(root.glob("subjects/sub-*/ses-*/t1_linear/*_T1w.nii.gz")):
        _add_bids(found, path, root / "subjects")
    apply_tables(found, bids_tables(root, found))
    return found


def _add_bids(found: Found, path: Path, root: Path) -> None:
    folders = path.relative_to(root).parts
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    entities = dict(re.findall(r"(?:^|_)([a-zA-Z]+)-([a-zA-Z0-9]+)", name))
    subject = folders[0]
    label = folders[1] if folders[1].startswith("ses-") else ""
    for key, folder in (("sub", subject), ("ses", label)):
        said = f"{key}-{entities[key]}" if key in entities else ""
        if said and said != folder:
            reason = f"its name says {said}, its folder {folder or 'no session'}"
            found.left_out.append((subject, str(path), reason))
            return
    rest = {k: v for k, v in entities.items() if k not in ("sub", "ses", "space", "res")}
    run = "_".join(f"{key}-{value}" for key, value in rest.items())
    found.rows.append({"subject": subject, "label": label, "run": run, "path": str(path)})


def bids_tables(root: Path, found: Found) -> Tables:
    """``participants.tsv``, and the ``sessions.tsv`` of the root or of each subject."""
    tables = Tables()
    listed = root / "participants.tsv"
    if listed.is_file():
        add_table(tables, read_csv(listed, separator="\t", dtype=str), str(listed))
    else:
        found.notes.append(f"{root} has no participants.tsv: ages and diagnoses are not known")
    for subject in dict.fromkeys(row["subject"] for row in found.rows):
        path = root / subject / f"{subject}_sessions.tsv"
        if path.is_file():
            try:
                table = read_csv(path, separator="\t", dtype=str)
                add_table(tables, table.assign(participant_id=subject), str(path))
            except DataError as error:
                found.notes.append(f"{error}; the visits of {subject} are not known")
    return tables


# ------------------------------------------------------------------------------------------- CSV


def find_table(path: Path) -> Found:
    """Scans of a CSV: the columns of LDAE and AXIAL, those of BrLP, or one's own.

    A path and a subject are needed; session, age, sex, diagnosis, site, scanner, split and
    latent_path are read where they are there, a scan's id from ``scan``, and further columns are
    kept. A session that is a plain number is of months; without a session column the months are
    read from ``ses-M006`` in the path, as the published code does. Relative paths start at the
    table's folder.
    Ages of BrLP are hundredths, its diagnoses 0, 0.5 and 1 for CN, MCI and AD.
    """
    table = read_csv(path, dtype=str)
    for names in (PATH, SUBJECT):
        if column_of(table, names) is None:
            raise DataError(
                f"{path} has no column {names[0]!r} (or {', '.join(names[1:])}); its columns are "
                f"{', '.join(table.columns)}{_other_delimiter(table)}"
            )
    found = Found()
    is_brlp = column_of(table, ("image_uid",)) is not None
    columns = {name: values_of(table, names) for name, names in PEOPLE}
    files, people = values_of(table, PATH), values_of(table, SUBJECT)
    sessions, months = values_of(table, SESSION), values_of(table, MONTHS)
    splits, latents = values_of(table, ("split",)), values_of(table, ("latent_path",))
    uids, ids = values_of(table, ("image_uid",)), values_of(table, ("scan", "scan_id"))
    extras = _further(table)
    for i, text in enumerate(files):
        subject, file = text_of(people[i]), text_of(text)
        if subject is None or file is None:
            found.left_out.append(
                (subject or "", file or "", f"line {i + 2} of {path.name} has no "
                 f"{'subject' if subject is None else 'path'}")
            )  # fmt: skip
            continue
        place = path.parent / Path(file).expanduser()
        if not place.is_file():
            found.left_out.append((subject, str(place), "the file does not exist"))
            continue
        in_path = re.search(r"ses-(M\d+|d\d+)", file)
        label = text_of(sessions[i]) or (in_path.group(1) if in_path else "")
        known = number_of(months[i])
        known = months_of(label) if known != known else known
        if known != known and label and sessions[i] is not None:
            known = number_of(label)  # a plain number in a column of sessions is of months
        row = _people_row({name: values[i] for name, values in columns.items()})
        if is_brlp:
            row |= _brlp(columns["age"][i], columns["diagnosis"][i])
        row |= {"subject": subject, "label": label, "run": "", "path": str(place), "session": known}
        row["split"] = text_of(splits[i]) or ""
        row |= {name: values[i] for name, values in extras.items()}
        if text_of(ids[i]):
            row["scan"] = text_of(ids[i])
        if text_of(latents[i]):
            row["latent_path"] = str(path.parent / Path(str(latents[i])).expanduser())
        if uids[i] is not None:
            row["label"] = row["label"] or str(uids[i])
        found.rows.append(row)
    unread = [
        i + 2
        for i, age in enumerate(columns["age"])
        if text_of(age) is not None and not 0 <= number_of(age) <= 130
    ]
    if unread:
        found.notes.append(
            f"{path.name} has {len(unread)} ages that are no numbers from 0 to 130, first in line "
            f"{unread[0]}; they count as not known"
        )
    if is_brlp:
        _months_from_ages(found)
    _one_visit_is_the_first(found)
    return found


def _further(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns that have no meaning here, by name; as numbers where all of them are."""
    meant = [*PATH, *SUBJECT, *SESSION, *MONTHS, "split", "latent_path", "image_uid", "scan",
             "scan_id", *(name for _, names in PEOPLE for name in names)]  # fmt: skip
    taken = {column_of(table, (name,)) for name in meant}
    kept = {}
    for column in table.columns:
        if column not in taken:
            numbers = pd.to_numeric(table[column], errors="coerce")
            is_number = (numbers.notna() | table[column].isna()).all()
            kept[str(column)] = (numbers if is_number else table[column]).tolist()
    return kept


def _brlp(age: Any, diagnosis: Any) -> dict[str, Any]:
    years, severity = number_of(age), number_of(diagnosis)
    named = {0.0: "CN", 0.5: "MCI", 1.0: "AD"}.get(severity)
    return {"age": years * 100 if years <= 1.3 else years, "diagnosis": named}


def _months_from_ages(found: Found) -> None:
    first: dict[str, float] = {}
    for row in found.rows:
        age = row.get("age", float("nan"))
        if age == age:
            first[row["subject"]] = min(age, first.get(row["subject"], age))
    for row in found.rows:
        if row["session"] != row["session"] and row["subject"] in first:
            row["session"] = round(12 * (row.get("age", float("nan")) - first[row["subject"]]), 1)


# --------------------------------------------------------------------------------------- joining


def _other_delimiter(table: pd.DataFrame) -> str:
    """What to do where all columns came as one, because something else than commas parts them."""
    if len(table.columns) > 1:
        return ""
    found = {";": "semicolons", "\t": "tabs", "|": "bars"}
    sign = next((s for s in found if s in str(table.columns[0])), None)
    return "" if sign is None else f": they are parted by {found[sign]}; save it with commas"


def add_table(tables: Tables, table: pd.DataFrame, where: str) -> None:
    """Take up rows of people (no session column) or of visits; a repeated row must agree.

    Raises
    ------
    DataError : no column of subjects.
    """
    subject = column_of(table, SUBJECT)
    if subject is None:
        raise DataError(
            f"{where} has no column of subjects (participant_id, subject); its columns are "
            f"{', '.join(table.columns)}"
        )
    session = column_of(table, SESSION)
    for line in table.to_dict("records"):
        name = _as_subject(text_of(line[subject]))
        label = "" if session is None else _as_label(line[session])
        if session is None:
            tables.people[name] = {**tables.people.get(name, {}), **line}
        else:
            tables.visits[name, label] = {**tables.visits.get((name, label), {}), **line}


def apply_tables(found: Found, tables: Tables) -> None:
    """Fill months, age, sex, diagnosis, site and scanner; a visit's table goes before a person's.

    An age that only a person's table states, or a column such as ``age_bl``, is that of the first
    session: the months since are added. A diagnosis that only a person's table states is taken for
    every session. Where a label states no months, dates of the visits do.
    """
    for subject, rows in _by_subject(found.rows).items():
        person = tables.people.get(_as_subject(subject), {})
        visits = [
            tables.visits.get((_as_subject(subject), _as_label(r["label"])), {}) for r in rows
        ]
        dates = months_between([_first(visit, DATE) for visit in visits])
        for row, visit, by_date in zip(rows, visits, dates, strict=True):
            months = row.get("session", float("nan"))
            for known in (months_of(row["label"]), number_of(_first(visit, MONTHS)), by_date):
                months = known if months != months else months
            row["session"] = months
            own = {
                key: value for key, value in visit.items() if column_of((key,), OF_FIRST) is None
            }
            mine, theirs = _people_row(_named(own)), _people_row(_named({**visit, **person}))
            for key, value in {**theirs, **mine}.items():
                row.setdefault(key, value)
            if "age" not in mine and "age" in theirs and row["age"] == theirs["age"]:
                row["age_at_first"] = theirs["age"]
    _one_visit_is_the_first(found)
    for rows in _by_subject(found.rows).values():
        start = min((row["session"] for row in rows if row["session"] == row["session"]), default=0)
        for row in rows:
            base = row.pop("age_at_first", None)
            if base is not None:
                row["age"] = base + (row["session"] - start) / 12  # unknown months, unknown age
    unknown = [row["label"] for row in found.rows if row["session"] != row["session"]]
    if unknown:
        found.notes.append(
            f"{len(unknown)} scans have a session such as {unknown[0]!r}, which states no months, "
            "and no date; their months are missing"
        )


def _one_visit_is_the_first(found: Found) -> None:
    """A subject's only session is at month 0, whatever it is called."""
    for rows in _by_subject(found.rows).values():
        if len({row["label"] for row in rows}) == 1:
            for row in rows:
                if row.get("session", float("nan")) != row.get("session", float("nan")):
                    row["session"] = 0.0


def _named(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _first(line, names) for name, names in PEOPLE}


def _people_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The known ones of age, sex, diagnosis, site and scanner, in this package's words."""
    age = number_of(values["age"])
    row = {
        "age": age if 0 <= age <= 130 else float("nan"),
        "sex": sex_of(values["sex"]),
        "diagnosis": diagnosis_of(values["diagnosis"]),
        "site": text_of(values["site"]),
        "scanner": text_of(values["scanner"]),
    }
    return {key: value for key, value in row.items() if value is not None and value == value}


def _first(line: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of these columns that holds something, in a row's dictionary."""
    for name in names if line else ():
        column = column_of(line, (name,))
        if column is not None and text_of(line[column]) is not None:
            return line[column]
    return None


def _by_subject(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["subject"], []).append(row)
    return groups


def _as_subject(name: str | None) -> str:
    return str(name).removeprefix("sub-")


def _as_label(label: Any) -> str:
    """Session labels compare without prefix; M6, M06 and M006 are one."""
    text = str(text_of(label) or "").removeprefix("ses-")
    months = months_of(text)
    return text.lower() if months != months else f"m{months:g}"
