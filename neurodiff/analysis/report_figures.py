"""Figures of runs as SVG or PDF, each with its numbers as CSV beside it.

Every figure is drawn from the table that is written: nothing is drawn that the CSV does not hold.
The same table gives the same bytes (no date, fixed identifiers). Simulated data are called so in
every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neurodiff.analysis import benchmark_drawings as drawings
from neurodiff.analysis.benchmark_scores import (
    against_floors,
    per_stimulus,
    quantity_of,
    score_rows,
    tidy_scores,
)
from neurodiff.analysis.benchmark_uncertainty import means_by_source
from neurodiff.core.atomic import atomic_path, write_csv
from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf")
_STYLE = {
    "svg.hashsalt": "neurodiff",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """One figure: which kind, of which metrics, conditions and data, and the name of its files.

    Empty lists mean all. Sizes are in inches; a height of 0 follows from the content.
    """

    kind: str
    file: str = ""
    title: str = ""
    metrics: list[str] | None = None
    conditions: list[str] | None = None
    data: list[str] | None = None
    width: float = 7.0
    height: float = 0.0


def write_figures(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path,
    format: str = "svg",
    specs: Sequence[FigureSpec] | None = None,
) -> list[Path]:
    """Draw figures of one run or several into the folder ``out``.

    Parameters
    ----------
    format : "svg" or "pdf".
    specs : what to draw; by default every kind that the runs have numbers for.

    Returns
    -------
    Paths of figures and tables, two a figure.

    Raises
    ------
    UsageError : another format, a kind, metric or condition that there is not.
    MissingDataError : a figure that was asked for has no numbers; or no figure has.
    """
    if format not in FORMATS:
        raise UsageError(f"figures are written as {' or '.join(FORMATS)}, not as {format!r}")
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    opened = [one if isinstance(one, Run) else Run.open(one) for one in given]
    if not opened:
        raise UsageError("name at least one run folder")
    asked = specs is not None
    wanted = [FigureSpec(kind=kind) for kind in KINDS] if specs is None else list(specs)
    paths: list[Path] = []
    for spec in wanted:
        if spec.kind not in KINDS:
            raise UsageError(
                f"there is no figure {spec.kind!r}; there are {', '.join(KINDS)}."
                f"{suggest(spec.kind, KINDS)}"
            )
        table, draw = KINDS[spec.kind]
        try:
            numbers = table(opened, spec)
        except MissingDataError:
            if asked:
                raise
            continue
        if not len(numbers):
            if asked:
                names = ", ".join(run.folder.name for run in opened)
                raise MissingDataError(f"{names}: no numbers for the figure {spec.kind!r}")
            continue
        paths += _write(numbers, draw, spec, opened, Path(out), format)
    if not paths:
        raise MissingDataError(
            f"{opened[0].folder} has no scores yet; run `neurodiff evaluate {opened[0].folder}`"
        )
    return paths


def _write(
    numbers: pd.DataFrame,
    draw: Callable[[Figure, pd.DataFrame], None],
    spec: FigureSpec,
    runs: Sequence[Run],
    out: Path,
    format: str,
) -> list[Path]:
    import matplotlib
    from matplotlib.figure import Figure

    stem = spec.file or spec.kind
    if Path(stem).name != stem:
        raise UsageError(f"file {stem!r} of a figure is a path; give a name without folders")
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(spec.width, spec.height or 3.0), layout="constrained")
        draw(figure, numbers)
        if spec.height:
            figure.set_size_inches(spec.width, spec.height)
        simulated = any(run.inputs.get("simulated") for run in runs)
        label = " (simulated)" if simulated else ""
        figure.suptitle(f"{spec.title or spec.kind}{label}", x=0.01, ha="left", fontsize=9.5)
        path = out / f"{stem}.{format}"
        metadata = {"Date": None} if format == "svg" else {"CreationDate": None}
        with atomic_path(path) as place:
            figure.savefig(place, format=format, metadata=metadata)
    write_csv(out / f"{stem}.csv", numbers)
    return [path, out / f"{stem}.csv"]


# ------------------------------------------------------------------------------ tables of figures


def _score_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    parts = []
    for run in runs:
        rows = score_rows(_chosen(tidy_scores(run), spec))
        rows.insert(0, "run", run.folder.name)
        rows["chance"] = [_chance(run, str(name)) for name in rows["metric"]]
        rows["higher is better"] = [_higher(run, str(name)) for name in rows["metric"]]
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def _item_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    parts = []
    for run in runs:
        once = per_stimulus(_chosen(tidy_scores(run), spec), by_subject=True)
        once.insert(0, "run", run.folder.name)
        once["higher is better"] = [_higher(run, str(name)) for name in once["metric"]]
        parts.append(once)
    return pd.concat(parts, ignore_index=True)


def _floor_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    parts = []
    for run in runs:
        tidy = _chosen(tidy_scores(run), spec)
        better = {str(name): _higher(run, str(name)) for name in tidy["metric"].unique()}
        found = against_floors(tidy, better)
        if len(found):
            found.insert(0, "run", run.folder.name)
            parts.append(found)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return table[table["share"].notna()].reset_index(drop=True) if len(table) else table


def _seed_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    table = means_by_source(runs)
    if spec.metrics:
        _require(spec.metrics, table["metric"], "metric")
        table = table[table["metric"].isin(spec.metrics)]
    several = len(table[["seed", "subject"]].drop_duplicates()) > 1
    return table.reset_index(drop=True) if several else table.iloc[:0]


def _training_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    import json

    rows = []
    for run in runs:
        for path in sorted((run.folder / "stages").glob("*/metrics.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    values = json.loads(line)
                except ValueError:  # cut off by a kill
                    continue
                step = values.get("step") if isinstance(values, dict) else None
                for name, value in values.items() if step is not None else ():
                    if name.startswith("loss") and isinstance(value, int | float):
                        stage = path.parent.name.rpartition("-")[0]
                        rows.append((run.folder.name, stage, name, int(step), float(value)))
    return pd.DataFrame(rows, columns=["run", "stage", "measure", "step", "value"])


def _curve_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    parts = []
    for run in runs:
        try:
            curve = run.read_report_json().get("curve") or {}
        except DataError:
            continue
        part = pd.DataFrame(curve.get("rows") or [])
        if len(part):
            part.insert(0, "run", run.folder.name)
            part["level name"] = curve.get("level") or "level"
            parts.append(part)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return _chosen(table, spec) if len(table) else table


def attribution_tables(run: Run) -> list[Path]:
    """Tables of regions below the run's folders ``attribution*``, by their columns."""
    found = []
    for path in sorted(run.folder.glob("attribution*/**/*.csv")):
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            columns = set(file.readline().strip().split(","))
        if {"method", "roi", "value", "metric"} <= columns and "stimulus" not in columns:
            found.append(path)
    return found


def _attribution_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    parts = []
    for run in runs:
        for path in attribution_tables(run):
            part = read_csv(path)
            part.insert(0, "run", run.folder.name)
            parts.append(part)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    keys = ["run", "method", "subject", "stage", "roi", "metric"]
    table = table.drop_duplicates([key for key in keys if key in table])  # kept in two layouts
    if len(table) and spec.conditions:
        _require(spec.conditions, table["method"], "method")
        table = table[table["method"].isin(spec.conditions)]
    return table.reset_index(drop=True)


def _chosen(table: pd.DataFrame, spec: FigureSpec) -> pd.DataFrame:
    for names, column in (
        (spec.metrics, "metric"),
        (spec.conditions, "condition"),
        (spec.data, "data"),
    ):
        if names and column in table:
            _require(names, table[column], column)
            table = table[table[column].isin(names)]
    return table.reset_index(drop=True)


def _require(names: Sequence[str], there: Any, what: str) -> None:
    known = list(dict.fromkeys(map(str, there)))
    for name in names:
        if known and name not in known:
            raise UsageError(
                f"there is no {what} {name!r}; there are {', '.join(known)}.{suggest(name, known)}"
            )


def _higher(run: Run, metric: str) -> bool:
    what = quantity_of(metric, run)
    return True if what is None else what.higher_is_better


def _chance(run: Run, metric: str) -> float:
    what = quantity_of(metric, run)
    return float("nan") if what is None or what.chance is None else float(what.chance)


KINDS: dict[str, tuple[Callable[..., pd.DataFrame], Callable[..., None]]] = {
    "scores": (_score_table, drawings.draw_scores),
    "items": (_item_table, drawings.draw_items),
    "floors": (_floor_table, drawings.draw_floors),
    "seeds": (_seed_table, drawings.draw_seeds),
    "training": (_training_table, drawings.draw_training),
    "curve": (_curve_table, drawings.draw_curve),
    "attribution": (_attribution_table, drawings.draw_attribution),
}
"""Kinds of figures: how the table is made, and how it is drawn."""
