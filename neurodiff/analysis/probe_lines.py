"""A report of probes as lines of markdown, which read as well in a terminal."""

from __future__ import annotations

import pandas as pd

from neurodiff.analysis.probe_evaluation import SITES
from neurodiff.analysis.probe_folds import ADJUSTED, BOTH, COVARIATES_ONLY, FEATURES
from neurodiff.analysis.probe_tasks import EVERY, FIRST, ProbeTask
from neurodiff.analysis.probes import ProbeReport

SHOWN = {
    "class": ("AUC", "balanced accuracy", "sensitivity", "specificity", "precision", "Brier"),
    "number": ("MAE", "RMSE", "R2", "r"),
}
_MAIN = {"class": "AUC", "number": "MAE"}


def probe_lines(
    report: ProbeReport,
    *,
    per: tuple[str, ...] = (FIRST, EVERY),
    designs: tuple[str, ...] | None = None,
) -> list[str]:
    """One block a task: its tables, differences with intervals, and the notes at the end.

    Parameters
    ----------
    per : samples to show a table of, where the task has them.  The first of them is the one whose
        differences are shown.
    designs : rows to show, such as "features" and "chance"; None shows all.

    Returns
    -------
    Lines of markdown.
    """
    lines: list[str] = []
    for task in report.tasks:
        rows = report.table[report.table["task"] == task.name]
        if designs is not None:
            rows = rows[rows["design"].isin(designs)]
        there = [one for one in per if (rows["per"] == one).any()] or [rows["per"].iloc[0]]
        lines += [f"### {task.name}", "", _what(task), ""]
        for one in there:
            lines += [*_table(task, rows[rows["per"] == one], one), ""]
        lines += _differences(report, task, there[0])
    if report.notes:
        lines += ["Notes:", "", *(f"- {note}" for note in report.notes), ""]
    return lines


def _what(task: ProbeTask) -> str:
    if task.kind == "number":
        return f"Predicted in {task.unit}; 95 % intervals over subjects."
    return (
        f"{task.positive} is positive, {task.negative} negative; sensitivity, precision and F1 are "
        f"of {task.positive}; 95 % intervals over subjects."
    )


def _table(task: ProbeTask, rows: pd.DataFrame, per: str) -> list[str]:
    metrics = SHOWN[task.kind]
    main = rows.iloc[0]
    positive = f", {main['positive']} of them {task.positive}" if task.kind == "class" else ""
    unit = f" ({task.unit})" if task.unit else ""
    head = [f"{m}{unit}" if m in ("MAE", "RMSE") else m for m in metrics]
    lines = [
        f"{per}: {main['scans']} scans of {main['subjects']} subjects{positive}",
        "",
        f"| features | {' | '.join(head)} | n |",
        f"|---|{'---:|' * (len(metrics) + 1)}",
    ]
    keys = ["features", "design", "folds"]
    for (name, design, folds), part in rows.groupby(keys, sort=False):
        by = part.set_index("metric")
        cells = [_cell(by.loc[m], with_interval=m == _MAIN[task.kind]) for m in metrics]
        n = f"{by['scans'].iloc[0]} of {by['subjects'].iloc[0]}"
        label = row_label(str(name), str(design), str(folds), task)
        lines.append(f"| {label} | {' | '.join(cells)} | {n} |")
    return lines


def row_label(name: str, design: str, folds: str, task: ProbeTask) -> str:
    """What a row of the table is, in words."""
    if design == COVARIATES_ONLY:
        return f"{name} alone"
    if design == "chance":
        return f"{name} (chance)"
    others = ", ".join(column for column in task.adjust if column != task.column)
    words = {FEATURES: "", ADJUSTED: f", adjusted for {others}", BOTH: f" and {others}"}[design]
    return f"{name}{words}{', other sites' if folds == SITES else ''}"


def _cell(row: pd.Series, *, with_interval: bool) -> str:
    if pd.isna(row["value"]):
        return "-"
    if with_interval and not pd.isna(row["low"]):
        return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}"


def _differences(report: ProbeReport, task: ProbeTask, per: str) -> list[str]:
    table = report.differences
    rows = table[
        (table["task"] == task.name) & (table["per"] == per) & (table["metric"] == _MAIN[task.kind])
    ]
    if not len(rows):
        return []
    lines = [f"Differences in {_MAIN[task.kind]}, {per}, paired over subjects:", ""]
    for _, row in rows.iterrows():
        sites = ", other sites" if row["folds"] == SITES else ""
        lines.append(
            f"- {row['a']} minus {row['b']}{sites}: {row['value']:+.3f} [{row['low']:+.3f}, "
            f"{row['high']:+.3f}], {row['scans']} scans of {row['subjects']} subjects"
        )
    return [*lines, ""]
