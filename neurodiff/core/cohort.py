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
from neurodiff.core.scan_table import checked_scans, dealt, scan_conversions, scan_triples
from neurodiff.core.volume import Volume

LEFT_OUT = ("scan", "path", "reason")

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
        object.__setattr__(self, "scans", checked_scans(self.scans, self.name))
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
        """Names of the scans, in order."""
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
                # columns alone: no name of this module or of the caller can be reached with @
                which = self.scans.eval(which, local_dict={}, global_dict={})
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
        part_of = dealt(self.first_scans().scans, shares, seed=seed, stratify=stratify)
        names = np.array([part_of[subject] for subject in self.scans["subject"]])
        marked = replace(self, scans=self.scans.assign(split=names))
        return {name: marked.part(name) for name in shares}

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
        return scan_triples(self.scans)

    def conversions(
        self, within: float = 36.0, *, before: str = "MCI", after: str = "AD"
    ) -> pd.Series:
        """Who went from one diagnosis to another: True, False, or missing, by subject.

        Only subjects whose first scan says ``before``. True where a later one, at most ``within``
        months after it, says ``after``; False where the last scan is at least as far and none
        does; missing where they were not followed for long enough.
        """
        return scan_conversions(self.scans, within, before, after)

    def array(self, *, progress: Progress = SILENT) -> np.ndarray:
        """All scans in memory, float32 (n, channels, i, j, k).

        Raises
        ------
        DataError : scans of different shape or place; prepare them first.
        """
        first = self[0]
        out = np.zeros((len(self), *first.data.shape), np.float32)
        for number, scan in enumerate(self.ids):
            volume = first if number == 0 else self[number]
            same = volume.data.shape == first.data.shape
            if not same or not np.allclose(volume.affine, first.affine, atol=1e-3):
                what = f"shape {volume.data.shape}" if not same else "another affine"
                raise DataError(
                    f"{scan} has {what} and {self.ids[0]} has {first.data.shape}; prepare the "
                    "scans on one grid first"
                )
            out[number] = volume.data
            progress.update(number + 1, len(self))
        return out

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
