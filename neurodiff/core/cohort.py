"""Cohort: a table of scans of many people, opened one at a time.

``cohort[i]`` is a `Volume`. The table has one row a scan; what a data set does not say is missing
there, never guessed. A subject's scans stay together in every split.

Examples
--------
>>> scans = pd.DataFrame({"subject": ["a", "a", "b", "c"], "session": [0.0, 12.0, 0.0, 0.0]})
>>> cohort = Cohort(scans, opener=lambda row: None)
>>> cohort.ids
['a_M000', 'a_M012', 'b_M000', 'c_M000']
>>> parts = cohort.split({"train": 2 / 3, "test": 1 / 3}, seed=0)
>>> [sorted(part.subjects) for part in parts.values()]
[['a', 'c'], ['b']]
"""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, NeurodiffError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import sha256_of
from neurodiff.core.seeds import item_seed
from neurodiff.core.volume import Volume

COLUMNS = (
    "scan", "subject", "session", "path", "age", "sex", "diagnosis", "site", "scanner", "split",
)  # fmt: skip
"""Columns that every table has: scan (its id), session (months from the first), age (years), path
and split ("" where there is none); text columns are missing as None, numbers as NaN."""

LEFT_OUT = ("scan", "path", "reason")
NUMBERS = ("session", "age")

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Cohort:
    """Scans of people.

    Parameters
    ----------
    scans : one row a scan with at least ``subject``; `COLUMNS` that are missing are filled, and
        further ones kept. ``scan`` is by default ``<subject>_M<months>``.
    opener : from a row to its `Volume`; by default the file at ``path`` is read.
    left_out : scan, path and reason of what was found and is not in the table.
    notes : what to know about the table as a whole.
    name, simulated : of the data set.

    Raises
    ------
    DataError : no scan, two scans with one id, a subject in two splits, an age that cannot be.
    """

    scans: pd.DataFrame
    opener: Callable[[pd.Series], Volume] | None = None
    left_out: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    name: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scans", _filled(self.scans, self.name))
        left = pd.DataFrame(columns=list(LEFT_OUT)) if self.left_out is None else self.left_out
        object.__setattr__(self, "left_out", left.reset_index(drop=True))

    # ------------------------------------------------------------------------------ its scans

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, which: int | str) -> Volume:
        """The scan of a row's number or of an id."""
        row = self.row(which)
        if self.opener is not None:
            return self.opener(row)
        if not row["path"]:
            raise DataError(f"{row['scan']} has no path; give the cohort an opener or paths")
        return Volume.open(row["path"])

    def __iter__(self) -> Iterator[Volume]:
        return (self[number] for number in range(len(self)))

    def row(self, which: int | str) -> pd.Series:
        """The line of the table for a row's number or an id.

        Raises
        ------
        UsageError : no such id; IndexError : no such number.
        """
        if isinstance(which, str):
            if which not in self._place:
                raise UsageError(
                    f"there is no scan {which!r} in this cohort of {len(self)}."
                    f"{suggest(which, self.ids)}"
                )
            which = self._place[which]
        return self.scans.iloc[which]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids)}

    @property
    def ids(self) -> list[str]:
        return self.scans["scan"].tolist()

    @property
    def subjects(self) -> list[str]:
        """Names of the people, in order of first appearance."""
        return list(dict.fromkeys(self.scans["subject"]))

    def each(
        self, do: Callable[[pd.Series, Volume], T], *, progress: Progress = SILENT
    ) -> tuple[dict[str, T], pd.DataFrame]:
        """``do(row, volume)`` for every scan; one that fails is listed and the rest goes on.

        Returns
        -------
        Results by the scan's id, and a table scan, path, reason of what failed. Only errors that
        neurodiff can put into a sentence are caught.
        """
        results: dict[str, T] = {}
        failed = []
        for number, name in enumerate(self.ids):
            row = self.scans.iloc[number]
            try:
                results[name] = do(row, self[number])
            except NeurodiffError as error:
                failed.append((name, row["path"], str(error)))
            progress.update(number + 1, len(self), f"{len(failed)} failed")
        return results, pd.DataFrame(failed, columns=list(LEFT_OUT))

    # ------------------------------------------------------------------------------ parts

    def select(self, which: Any) -> Cohort:
        """Some scans: a boolean mask, numbers, ids, or a query of the columns.

        Examples
        --------
        ``cohort.select("session == 0 and diagnosis in ['AD', 'CN']")``

        Raises
        ------
        UsageError : a query that does not fit, an unknown id, or nothing left.
        """
        if isinstance(which, str):
            try:
                which = self.scans.eval(which)
            except Exception as error:  # pandas raises what its parser and its columns raise
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise UsageError(
                    f"the query {which!r} does not fit the scans ({first}); columns are "
                    f"{', '.join(map(str, self.scans.columns))}"
                ) from None
        chosen = np.asarray(which)
        if chosen.dtype.kind in "UO" and len(chosen) and isinstance(chosen.flat[0], str):
            chosen = np.array([self.row(name).name for name in chosen])
        if chosen.dtype.kind in "bO" and len(chosen) != len(self):
            raise UsageError(f"the mask has {len(chosen)} values for {len(self)} scans")
        rows = np.flatnonzero(chosen.astype(bool)) if chosen.dtype.kind in "bO" else chosen
        if not len(rows):
            raise UsageError("the selection leaves no scan; check it against cohort.scans")
        return replace(self, scans=self.scans.iloc[rows])

    def first_scans(self) -> Cohort:
        """The earliest scan of each subject; a missing session counts as the last."""
        order = self.scans.sort_values("session", kind="stable", na_position="last")
        return self.select(np.sort(order.drop_duplicates("subject").index.to_numpy()))

    def part(self, name: str) -> Cohort:
        """The scans whose column split says ``name``."""
        there = [split for split in dict.fromkeys(self.scans["split"]) if split]
        if name not in there:
            raise UsageError(
                f"there is no split {name!r} in this cohort; it has {', '.join(there) or 'none'}: "
                f"make some with cohort.split.{suggest(name, there)}"
            )
        return self.select((self.scans["split"] == name).to_numpy())

    def split(
        self,
        shares: Mapping[str, float],
        *,
        seed: int,
        stratify: Sequence[str] = ("diagnosis",),
    ) -> dict[str, Cohort]:
        """Parts that share no subject, each with its name in the column split.

        Parameters
        ----------
        shares : name of a part -> share of the subjects; they sum to 1.
        seed : of the order of the subjects; rows may come in any order.
        stratify : columns whose values every part holds in like shares, taken at a subject's first
            scan; numbers are cut into thirds. A missing value is a stratum of its own.

        Returns
        -------
        Parts in the order of ``shares``. Numbers of subjects differ from the shares by less than 1
        in all, and in each stratum by less than 2.

        Raises
        ------
        UsageError : shares that do not sum to 1, an unknown column, a part without a subject.
        """
        _check_shares(shares)
        strata = self._strata(stratify)
        ordered = sorted(
            strata,
            key=lambda s: (strata[s], item_seed(seed, subject=s, stimulus="", stage="split")),
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
                f"{len(ordered)} subjects leave none for {', '.join(empty)} (shares "
                f"{dict(shares)}); give larger shares or more subjects"
            )
        names = np.array([part_of[subject] for subject in self.scans["subject"]])
        marked = replace(self, scans=self.scans.assign(split=names))
        return {name: marked.part(name) for name in shares}

    def _strata(self, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
        first = self.first_scans().scans
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

    # ------------------------------------------------------------------------------ its columns

    def join(self, columns: pd.DataFrame) -> Cohort:
        """With further columns, a table whose index is the scan's id; others are missing."""
        unknown = [str(name) for name in columns.index if str(name) not in self._place]
        if unknown or columns.index.has_duplicates:
            what = f"no scan {unknown[0]!r}" if unknown else "the same scan twice"
            raise DataError(f"the table to join names {what}; its index is the scan's id")
        added = columns.reindex(self.ids).reset_index(drop=True)
        return replace(
            self, scans=self.scans.drop(columns=columns.columns, errors="ignore").join(added)
        )

    def require(self, *columns: str) -> None:
        """Raise DataError that counts the scans where one of these columns is missing."""
        for column in columns:
            if column not in self.scans:
                raise DataError(f"the scans have no column {column!r}")
            lost = self.scans[column].isna().to_numpy() | (self.scans[column] == "").to_numpy()
            if lost.any():
                first = self.ids[int(np.flatnonzero(lost)[0])]
                raise DataError(
                    f"{int(lost.sum())} of {len(self)} scans have no {column}, first {first}; fill "
                    f'it in, or leave them out with cohort.select("{column}.notna()")'
                )

    def classes(self, column: str = "diagnosis", names: Sequence[str] = ("CN", "AD")) -> Cohort:
        """The scans of these classes.

        Raises
        ------
        DataError : a class has no scan, because two are needed to tell anything apart.
        """
        counts = {name: int((self.scans[column] == name).sum()) for name in names}
        absent = [name for name, count in counts.items() if not count]
        if absent:
            known = self.scans[column].dropna()
            found = ", ".join(f"{n} {c}" for n, c in known.value_counts().sort_index().items())
            raise DataError(
                f"no scan has the {column} {' or '.join(absent)}, and a comparison needs "
                f"{' and '.join(names)}; there are {found or 'none'}"
            )
        return self.select(self.scans[column].isin(list(names)).to_numpy())

    def triples(self) -> pd.DataFrame:
        """Every three scans of one subject in order of time, to fill in the middle one.

        Returns
        -------
        Columns subject, first, middle, last (ids), t (place of the middle, 0 to 1), gap (months
        from first to last) and reach (months from the middle to the nearer end): both published
        meanings of "gap". Only the first of several scans at one time counts.
        """
        rows = []
        known = self.scans[self.scans["session"].notna()]
        for subject, scans in known.groupby("subject", sort=False):
            seen = scans.sort_values("session", kind="stable").drop_duplicates("session")
            names, months = seen["scan"].tolist(), seen["session"].tolist()
            for i, k, j in _ordered_triples(len(names)):
                gap = months[j] - months[i]
                reach = min(months[k] - months[i], months[j] - months[k])
                t = (months[k] - months[i]) / gap
                rows.append((subject, names[i], names[k], names[j], t, gap, reach))
        columns = ["subject", "first", "middle", "last", "t", "gap", "reach"]
        return pd.DataFrame(rows, columns=columns)

    def fingerprint(self, *, contents: bool = False) -> str:
        """SHA-256 of the table and of each file's name and size; or, slower, of its contents.

        The folder that the files lie in does not count.
        """
        digest = hashlib.sha256(f"cohort-1 {self.name} {self.simulated}".encode())
        for column in sorted(set(self.scans.columns) - {"path"}):
            values = [str(column), *map(str, self.scans[column].tolist())]
            digest.update("\x1f".join(values).encode() + b"\x1e")
        for text in self.scans["path"]:
            path = Path(text)
            if text and path.is_file():
                facts = f"{path.name} {path.stat().st_size} {sha256_of(path) if contents else ''}"
                digest.update(facts.encode() + b"\x1e")
        return digest.hexdigest()

    # ------------------------------------------------------------------------------ its face

    def __repr__(self) -> str:
        return f"<Cohort {', '.join(f'{key} {value}' for key, value in self.facts().items())}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for key, value in self.facts().items()
        )
        return f"<table>{rows}</table>"

    def facts(self) -> dict[str, Any]:
        """Numbers of scans, subjects, diagnoses, sites and splits, for people to read."""
        facts: dict[str, Any] = {"name": self.name} if self.name else {}
        facts |= {"scans": len(self), "subjects": len(self.subjects)}
        for column in ("diagnosis", "site", "split"):
            counts = self.scans[column].replace("", None).value_counts().sort_index()
            if len(counts):
                facts[column] = ", ".join(f"{name} {count}" for name, count in counts.items())
        ages = self.scans["age"].dropna()
        if len(ages):
            facts["age"] = f"{ages.min():.1f} to {ages.max():.1f}"
        if self.left_out is not None and len(self.left_out):
            facts["left out"] = len(self.left_out)
        if self.simulated:
            facts["simulated"] = "yes"
        return facts


def scan_id(subject: str, months: float, run: str = "") -> str:
    """``"sub-01_M006"``; ``"sub-01"`` where the session is not known; a run is put at the end."""
    session = "" if months != months else f"_M{months:03.0f}" if float(months).is_integer() else (
        f"_M{months:05.1f}"
    )  # fmt: skip
    return f"{subject}{session}{f'_{run}' if run else ''}"


def _ordered_triples(n: int) -> Iterator[tuple[int, int, int]]:
    return ((i, k, j) for i in range(n) for k in range(i + 1, n) for j in range(k + 1, n))


def _check_shares(shares: Mapping[str, float]) -> None:
    values = list(shares.values())
    if not values or min(values) <= 0 or not math.isclose(sum(values), 1.0, abs_tol=1e-6):
        raise UsageError(f"the shares are {dict(shares)}; give shares above 0 that sum to 1")


def _filled(scans: pd.DataFrame, name: str) -> pd.DataFrame:
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
