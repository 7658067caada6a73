"""The table of a cohort: its columns, and what follows from them alone.

Functions of a DataFrame with one row a scan; `Cohort` has them as methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.seeds import item_seed

COLUMNS = (
    "scan", "subject", "session", "path", "age", "sex", "diagnosis", "site", "scanner", "split",
)  # fmt: skip
"""Columns that every table has: scan (its id), session (months from the first), age (years), path
and split ("" where there is none); text columns are missing as None, numbers as NaN."""

NUMBERS = ("session", "age")


def checked_scans(scans: pd.DataFrame, name: str = "") -> pd.DataFrame:
    """The table with every column of `COLUMNS` filled and of one type; ``name`` is for messages.

    Raises
    ------
    DataError : no scan or subject, two scans with one id, a subject in two splits, an age or a
        session that cannot be.
    """
    table = scans.reset_index(drop=True)
    of = f" of {name}" if name else ""
    if not len(table):
        raise DataError(f"the cohort{of} has no scan")
    if "subject" not in table:
        raise DataError(f"the table of scans{of} has no column 'subject'")
    if table["subject"].isna().any():
        raise DataError(f"row {int(table['subject'].isna().argmax())} of the scans has no subject")
    table["subject"] = table["subject"].astype(str)
    for column in NUMBERS:
        if column not in table:
            table[column] = np.nan
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        wrong = (numbers.isna() & table[column].notna()).to_numpy()
        if wrong.any():
            value = table[column].iloc[int(wrong.argmax())]
            raise DataError(f"{column} is {value!r} for {int(wrong.sum())} scans; expected numbers")
        table[column] = numbers
    odd = ((table["age"] < 0) | (table["age"] > 130)).to_numpy()
    if odd.any():
        value = float(table["age"].iloc[int(odd.argmax())])
        raise DataError(f"{int(odd.sum())} scans have an age such as {value:g}; expected years")
    for column in ("path", "split"):
        given = table[column] if column in table else pd.Series([""] * len(table))
        table[column] = pd.Series(["" if pd.isna(v) else str(v) for v in given], dtype=object)
    for column in ("sex", "diagnosis", "site", "scanner"):
        given = table[column] if column in table else pd.Series([None] * len(table))
        values = [None if pd.isna(v) or v == "" else str(v) for v in given]
        table[column] = pd.Series(values, dtype=object)
    if "scan" not in table:
        pairs = zip(table["subject"], table["session"], strict=True)
        table["scan"] = [scan_id(subject, months) for subject, months in pairs]
    table["scan"] = table["scan"].astype(str).astype(object)
    twice = table["scan"].duplicated(keep=False).to_numpy()
    if twice.any():
        rows = np.flatnonzero(twice)
        one = table["scan"].iloc[int(rows[0])]
        same = np.flatnonzero((table["scan"] == one).to_numpy()).tolist()
        raise DataError(
            f"two scans{of} have the id {one} (rows {same[0]} and {same[1]}); give each a scan id "
            "or session of its own, or leave one out"
        )
    splits = table[table["split"] != ""].groupby("subject")["split"].nunique()
    if (splits > 1).any():
        raise DataError(
            f"the subject {splits.index[int((splits > 1).argmax())]} is in {int(splits.max())} "
            "splits; all scans of a subject belong to one"
        )
    others = [column for column in table.columns if column not in COLUMNS]
    return table[[*COLUMNS, *others]]


def scan_id(subject: str, months: float, run: str = "") -> str:
    """``"sub-01_M006"``; ``"sub-01"`` where the session is not known; a run is put at the end."""
    session = "" if months != months else f"_M{months:03.0f}" if float(months).is_integer() else (
        f"_M{months:05.1f}"
    )  # fmt: skip
    return f"{subject}{session}{f'_{run}' if run else ''}"


def dealt(
    first: pd.DataFrame, shares: Mapping[str, float], *, seed: int, stratify: Sequence[str]
) -> dict[str, str]:
    """Subject -> part, of a table with one row a subject; see `Cohort.split`."""
    _check_shares(shares)
    strata = _strata(first, stratify)
    ordered = sorted(
        strata, key=lambda s: (strata[s], item_seed(seed, subject=s, stimulus="", stage="split"))
    )
    taken = dict.fromkeys(shares, 0)
    part_of = {}
    for number, subject in enumerate(ordered, 1):
        name = max(shares, key=lambda part: shares[part] * number - taken[part])
        taken[name] += 1
        part_of[subject] = name
    empty = [name for name, count in taken.items() if not count]
    if empty:
        raise UsageError(
            f"{len(ordered)} subjects leave none for {', '.join(empty)} (shares {dict(shares)}); "
            "give larger shares or more subjects"
        )
    return part_of


def scan_triples(scans: pd.DataFrame) -> pd.DataFrame:
    """Every three scans of one subject in order of time; see `Cohort.triples`."""
    rows = []
    for subject, visits in _visits(scans):
        names, months = visits["scan"].tolist(), visits["session"].tolist()
        for i, k, j in combinations(range(len(names)), 3):
            gap = months[j] - months[i]
            reach = min(months[k] - months[i], months[j] - months[k])
            t = (months[k] - months[i]) / gap
            rows.append((subject, names[i], names[k], names[j], t, gap, reach))
    columns = ["subject", "first", "middle", "last", "t", "gap", "reach"]
    return pd.DataFrame(rows, columns=columns)


def scan_conversions(scans: pd.DataFrame, within: float, before: str, after: str) -> pd.Series:
    """Who went from one diagnosis to another; see `Cohort.conversions`."""
    found: dict[str, bool | None] = {}
    for subject, visits in _visits(scans):
        months = visits["session"].to_numpy() - visits["session"].iloc[0]
        words = visits["diagnosis"].tolist()
        if words[0] != before:
            continue
        changed = any(
            word == after and 0 < month <= within for word, month in zip(words, months, strict=True)
        )
        followed = bool(months[-1] >= within)
        found[subject] = True if changed else False if followed else None
    return pd.Series(found, name="converts", dtype=object)


def _visits(scans: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Scans of each subject in order of time, one a session; those of unknown time left out."""
    known = scans[scans["session"].notna()]
    return [
        (str(subject), part.sort_values("session", kind="stable").drop_duplicates("session"))
        for subject, part in known.groupby("subject", sort=False)
    ]


def _check_shares(shares: Mapping[str, float]) -> None:
    values = list(shares.values())
    if not values or min(values) <= 0 or not math.isclose(sum(values), 1.0, abs_tol=1e-6):
        raise UsageError(f"the shares are {dict(shares)}; give shares above 0 that sum to 1")


def _strata(first: pd.DataFrame, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    keys = []
    for column in columns:
        if column not in first:
            raise UsageError(
                f"there is no column {column!r} to stratify by; there are "
                f"{', '.join(first.columns)}.{suggest(column, first.columns)}"
            )
        values = first[column]
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 3:
            cuts = values.quantile([1 / 3, 2 / 3]).to_numpy()
            keys.append(
                ["" if v != v else str(int(np.searchsorted(cuts, v))) for v in values.tolist()]
            )
        else:
            keys.append(["" if pd.isna(v) else str(v) for v in values.tolist()])
    rows = zip(*keys, strict=True) if keys else [()] * len(first)
    return dict(zip(first["subject"].tolist(), (tuple(row) for row in rows), strict=True))
