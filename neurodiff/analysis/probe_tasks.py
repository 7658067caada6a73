"""What probes are asked: which scans take part, what is true of them, what is adjusted for.

Under "neurodiff-1" the positive class is the disease.  Under "ldae-2025" the published labels are
kept: sorted by name, so that CN is the positive class of AD and CN, and every scan is a sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.scan_table import scan_conversions

EVERY, FIRST, MEAN = "every scan", "first scan", "mean over scans"
COVARIATES = ("age", "sex", "site")


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One question.

    Parameters
    ----------
    name : as in tables.
    kind : "class" or "number".
    column : of the table of scans that is asked for; "converts" is `scan_conversions`.
    positive, negative : the two classes; scans of others take no part.
    within : months, for "converts"; only first scans take part.
    unit : of a number.
    adjust : columns to adjust for; that of the task itself is left out.
    site_folds : leave out one site at a time as well.
    per : what a sample is: `EVERY`, `FIRST`, `MEAN` (of a subject's predictions).
    """

    name: str
    kind: Literal["class", "number"] = "class"
    column: str = "diagnosis"
    positive: str = ""
    negative: str = ""
    within: float | None = None
    unit: str = ""
    adjust: tuple[str, ...] = COVARIATES
    site_folds: bool = True
    per: tuple[str, ...] = (EVERY, FIRST, MEAN)


TASKS = (
    ProbeTask(name="AD vs CN", positive="AD", negative="CN"),
    ProbeTask(name="MCI vs CN", positive="MCI", negative="CN"),
    ProbeTask(name="AD vs MCI", positive="AD", negative="MCI"),
    ProbeTask(
        name="conversion within 36 months",
        column="converts",
        positive="converts",
        negative="stays MCI",
        within=36.0,
        per=(FIRST,),
    ),
    ProbeTask(name="age", kind="number", column="age", unit="years"),
    ProbeTask(name="sex", column="sex", positive="F", negative="M"),
)
PUBLISHED_TASKS = (
    ProbeTask(
        name="AD vs CN", positive="CN", negative="AD", adjust=(), site_folds=False, per=(EVERY,)
    ),
    ProbeTask(
        name="age", kind="number", column="age", unit="years", adjust=(), site_folds=False,
        per=(EVERY,),
    ),
)  # fmt: skip


def probe_tasks(
    names: Iterable[str] | None = None,
    *,
    protocol: Literal["neurodiff-1", "ldae-2025"] = "neurodiff-1",
    within: float = 36.0,
) -> tuple[ProbeTask, ...]:
    """Tasks of a protocol by name, or all.

    Parameters
    ----------
    within : months in which a conversion counts; renames that task.

    Raises
    ------
    UsageError : no such protocol or task.

    Examples
    --------
    >>> [task.name for task in probe_tasks(["age", "AD vs CN"])]
    ['age', 'AD vs CN']
    >>> probe_tasks(["AD vs CN"], protocol="ldae-2025")[0].positive
    'CN'
    """
    if protocol not in ("neurodiff-1", "ldae-2025"):
        raise UsageError(f"there is no protocol {protocol!r}; there are neurodiff-1 and ldae-2025")
    all_tasks = TASKS if protocol == "neurodiff-1" else PUBLISHED_TASKS
    known = {}
    for task in all_tasks:
        if task.within is not None and task.within != within:
            task = replace(task, within=within, name=f"conversion within {within:g} months")
        known[task.name] = task
    wanted = list(known) if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"there is no task {name!r} under {protocol}; there are {', '.join(known)}."
                f"{suggest(name, known)}"
            )
    return tuple(known[name] for name in wanted)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskScans:
    """The scans of one task, in order of the table: m of n rows.

    ``rows`` (m,) are row numbers of the whole table, ``truth`` (m,) bool or float64, ``first`` (m,)
    True at each subject's earliest, ``covariates`` the columns to adjust for (m rows), and
    ``complete`` (m,) True where none of them is missing.  ``sites`` is None where sites are not
    known for all.
    """

    task: ProbeTask
    rows: np.ndarray
    truth: np.ndarray
    subjects: np.ndarray
    scans: np.ndarray
    first: np.ndarray
    covariates: pd.DataFrame
    complete: np.ndarray
    sites: np.ndarray | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def strata(self) -> np.ndarray:
        """What folds hold in like shares: the class, or thirds of the number."""
        if self.task.kind == "class":
            return self.truth.astype(np.int64)
        return np.searchsorted(np.quantile(self.truth, [1 / 3, 2 / 3]), self.truth)

    def of_class(self, positive: bool) -> int:
        """Number of subjects whose first scan is of this class."""
        return int((self.truth[self.first] == positive).sum())


def task_scans(task: ProbeTask, scans: pd.DataFrame) -> TaskScans:
    """The scans that take part in a task; what is missing is counted in the notes.

    scans : of a cohort (`Cohort.scans`), one row a scan.

    Raises
    ------
    DataError : no column, fewer than 2 subjects of a class, or fewer than 4 subjects with a number.
    """
    if task.column != "converts" and task.column not in scans:
        raise DataError(f"{task.name}: the scans have no column {task.column!r}")
    rows, truth, notes = _answers(task, scans)
    table = scans.iloc[rows]
    subjects = table["subject"].astype(str).to_numpy(dtype=object)
    session = table["session"].fillna(np.inf).to_numpy()
    first = np.zeros(len(rows), bool)
    earliest: dict[str, int] = {}
    for place in np.argsort(session, kind="stable"):
        earliest.setdefault(subjects[place], int(place))
    first[list(earliest.values())] = True
    people = len(earliest)
    if task.kind == "class":
        counts = {True: int(truth[first].sum()), False: int((~truth[first]).sum())}
        if min(counts.values()) < 2:
            raise DataError(
                f"{task.name}: {counts[True]} subjects are {task.positive} and {counts[False]} are "
                f"{task.negative} at their first scan; at least 2 of each are needed"
            )
        mixed = sum(len(set(truth[subjects == name].tolist())) > 1 for name in earliest)
        if mixed:
            notes.append(
                f"{task.name}: {mixed} subjects change their class; per subject that of the first "
                "scan counts"
            )
    elif people < 4 or np.ptp(truth) == 0:
        raise DataError(
            f"{task.name}: {people} subjects have a {task.column}; at least 4 that differ are "
            "needed"
        )
    covariates, complete = _covariates(task, table, notes)
    sites = table["site"] if "site" in table else pd.Series([None] * len(table))
    known = sites.notna().all() and sites.nunique() > 1
    return TaskScans(
        task=task,
        rows=rows,
        truth=truth,
        subjects=subjects,
        scans=table["scan"].to_numpy(dtype=object),
        first=first,
        covariates=covariates,
        complete=complete,
        sites=sites.astype(str).to_numpy(dtype=object) if known else None,
        notes=tuple(notes),
    )


def _answers(task: ProbeTask, scans: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Row numbers, what is true of them, and notes."""
    notes: list[str] = []
    if task.column == "converts":
        found = scan_conversions(scans, float(task.within or 36.0), "MCI", "AD")
        unknown = int(found.isna().sum()) if len(found) else 0
        if unknown:
            notes.append(
                f"{task.name}: {unknown} of {len(found)} subjects with MCI were not followed for "
                "long enough and are left out"
            )
        answer = found.dropna()
        order = scans.sort_values("session", kind="stable", na_position="last")
        firsts = set(order.drop_duplicates("subject").index)
        rows = [
            place
            for place, (index, subject) in enumerate(
                zip(scans.index, scans["subject"].astype(str), strict=True)
            )
            if index in firsts and subject in answer.index
        ]
        names = scans["subject"].astype(str).iloc[rows]
        return np.array(rows, np.int64), np.array([bool(answer[n]) for n in names], bool), notes
    values = scans[task.column]
    known = values.notna().to_numpy()
    if not known.all():
        notes.append(
            f"{task.name}: {int((~known).sum())} of {len(scans)} scans have no {task.column} and "
            "are left out"
        )
    if task.kind == "class":
        rows = np.flatnonzero(values.isin([task.positive, task.negative]).to_numpy())
        return rows, (values.iloc[rows] == task.positive).to_numpy(dtype=bool), notes
    rows = np.flatnonzero(known)
    return rows, values.iloc[rows].to_numpy(dtype=np.float64), notes


def _covariates(
    task: ProbeTask, table: pd.DataFrame, notes: list[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Columns to adjust for, without those that say nothing, and where all are known."""
    kept = []
    for column in task.adjust:
        if column == task.column:
            continue
        if column not in table or table[column].isna().all():
            notes.append(f"{task.name}: no scan has a {column}; it is not adjusted for")
        elif table[column].nunique() > 1:
            kept.append(column)
    covariates = table[kept].reset_index(drop=True)
    complete = covariates.notna().all(axis=1).to_numpy(dtype=bool)
    if kept and not complete.all():
        notes.append(
            f"{task.name}: {int((~complete).sum())} scans lack one of {', '.join(kept)}; adjusted "
            "rows are without them"
        )
    return covariates, complete
