"""What codes of scans tell of a person, beside baselines, chance and age, sex and site.

Every question is a grouped cross-validation: no subject is on both sides of a fold, and everything
learned is learned in the fold.  What is printed with each number: on which samples, of how many
subjects, an interval over subjects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurodiff.analysis.probe_evaluation import DIFFERENCE, TaskEvaluation
from neurodiff.analysis.probe_folds import FoldFeatures, rows_of
from neurodiff.analysis.probe_tasks import ProbeTask, TaskScans, probe_tasks, task_scans
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.scan_table import checked_scans


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeReport:
    """Tables of :func:`evaluate_probes`.

    Attributes
    ----------
    table : one row a score: task, features, design, folds, per, metric, value, low, high (95 %),
        scans (samples; subjects where ``per`` is a mean), subjects, positive (samples of the
        positive class), higher_is_better.  Chance has the design "chance".
    differences : task, folds, per, metric, a, b, value (a - b), low, high, scans, subjects; paired.
    predictions : task, features, design, folds, repeat, scan, subject, fold, truth, prediction.
    notes : what was left out and why, and how to read the numbers.
    tasks : that were answered.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    predictions: pd.DataFrame
    notes: tuple[str, ...]
    tasks: tuple[ProbeTask, ...]

    def value(self, task: str, features: str, metric: str, **which: str) -> float:
        """One number of the table; ``which``: design, folds, per (by default the first there is).

        Raises
        ------
        UsageError : there is none.
        """
        rows = self.table
        for column, wanted in {
            "task": task,
            "features": features,
            "metric": metric,
            **which,
        }.items():
            rows = rows[rows[column] == wanted]
        if not len(rows):
            raise UsageError(f"there is no {metric} of {features!r} for {task!r} in this report")
        return float(rows["value"].iloc[0])


def evaluate_probes(
    features: Mapping[str, np.ndarray | FoldFeatures],
    scans: pd.DataFrame,
    *,
    tasks: Iterable[ProbeTask | str] | None = None,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    bootstrap: int = 1000,
    progress: Progress = SILENT,
) -> ProbeReport:
    """Linear probes of several sets of features for several questions.

    Parameters
    ----------
    features : name -> (n, d) array, or `FoldFeatures` where something is learned first.  The first
        is "ours": differences are it minus each other, and shuffled labels are tried with it.
    scans : one row for each of the n scans, with ``subject``; see `checked_scans`.
    tasks : names, or tasks of `probe_tasks`, which also has the published protocol.  ``None``: all
        that the table can answer; others are listed in the notes.
    folds : fewer where a class has fewer subjects.
    repeats : of the cross-validation with other folds; scores are means over them.
    seed : of folds, shuffles and resamples.
    bootstrap : resamples of subjects.

    Raises
    ------
    DataError : features with NaN or of other than n rows, a named task that the table cannot
        answer, or no task that it can.
    UsageError : no features, an unknown task, fewer than 2 folds.
    """
    table = checked_scans(scans)
    known = _checked(features, table)
    if folds < 2 or repeats < 1 or bootstrap < 0:
        raise UsageError(
            f"folds is {folds}, repeats {repeats} and bootstrap {bootstrap}; expected at least 2, "
            "1 and 0"
        )
    chosen, skipped = _tasks(tasks, table)
    notes = list(skipped)
    parts = []
    for number, data in enumerate(chosen):
        progress.begin(f"probes: {data.task.name} ({number + 1} of {len(chosen)})")
        part = TaskEvaluation(data, folds, repeats, seed, bootstrap, progress)
        part.run({name: rows_of(feature, data.rows) for name, feature in known.items()})
        notes += [*data.notes, *part.notes]
        parts.append(part)
    notes.append(
        "intervals are 95 % over subjects, for the fitted probes; they do not hold what another "
        "training set changes"
    )
    return ProbeReport(
        table=pd.concat([pd.DataFrame(part.rows) for part in parts], ignore_index=True),
        differences=pd.concat(
            [
                pd.DataFrame(part.differences, columns=DIFFERENCE)
                for part in parts
                if part.differences
            ]
            or [pd.DataFrame(columns=DIFFERENCE)],
            ignore_index=True,
        ),
        predictions=pd.concat([f for part in parts for f in part.predictions], ignore_index=True),
        notes=tuple(dict.fromkeys(notes)),
        tasks=tuple(data.task for data in chosen),
    )


def _tasks(
    tasks: Iterable[ProbeTask | str] | None, table: pd.DataFrame
) -> tuple[list[TaskScans], list[str]]:
    """Scans of each task, and sentences on those that cannot be answered."""
    asked = None if tasks is None else list(tasks)
    if asked is None:
        wanted = probe_tasks()
    else:
        wanted = tuple(
            one for t in asked for one in ((t,) if isinstance(t, ProbeTask) else probe_tasks([t]))
        )
    chosen, reasons = [], []
    for task in wanted:
        try:
            chosen.append(task_scans(task, table))
        except DataError as error:
            if asked is not None:
                raise
            reasons.append(f"left out: {error}")
    if not chosen:
        raise DataError(
            "no question can be asked of these scans: "
            + ("; ".join(r.removeprefix("left out: ") for r in reasons) or "no task was given")
        )
    return chosen, reasons


def _checked(
    features: Mapping[str, np.ndarray | FoldFeatures], table: pd.DataFrame
) -> dict[str, np.ndarray | FoldFeatures]:
    if not features:
        raise UsageError("there are no features to probe; give name -> array (scans, numbers)")
    known: dict[str, np.ndarray | FoldFeatures] = {}
    for name, feature in features.items():
        values = np.asarray(feature.values if isinstance(feature, FoldFeatures) else feature)
        if values.dtype.kind not in "fiub" or len(values.shape) < 2 or len(values) != len(table):
            raise DataError(
                f"features {name!r} are {values.shape} of {values.dtype}; expected one row of "
                f"numbers for each of {len(table)} scans"
            )
        if not isinstance(feature, FoldFeatures) and values.ndim != 2:
            raise DataError(f"features {name!r} are {values.shape}; expected (scans, numbers)")
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            first = table["scan"].iloc[int(bad.argmax())]
            raise DataError(
                f"features {name!r} hold NaN or infinity for {int(bad.sum())} scans, first "
                f"{first}; leave these scans out"
            )
        known[str(name)] = feature if isinstance(feature, FoldFeatures) else values
    return known
