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

import numpy as np
import pandas as pd

from neurodiff.analysis.benchmark_scores import (
    ALL,
    against_floors,
    per_stimulus,
    quantity_of,
    score_rows,
    tidy_scores,
)
from neurodiff.analysis.benchmark_uncertainty import means_by_source
from neurodiff.analysis.figures import ROLES, role_of
from neurodiff.core.atomic import atomic_path, write_csv
from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf")
MARKERS = {"ring": "o", "dot": "o", "diamond": "D", "disc": "o", "square": "s"}
_STYLE = {
    "svg.hashsalt": "neurodiff",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_COLOURS = ("#c2410c", "#2f66b0", "#15803d", "#7c3aed", "#a16207", "#0e7490", "#be185d", "#4a5462")


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
    draw: Callable[[Figure, pd.DataFrame, FigureSpec], None],
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
        draw(figure, numbers, spec)
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


def _attribution_table(runs: Sequence[Run], spec: FigureSpec) -> pd.DataFrame:
    parts = []
    for run in runs:
        for path in sorted(run.folder.glob("attribution*/**/table.csv")):
            part = read_csv(path, columns=("method", "roi", "value"))
            part.insert(0, "run", run.folder.name)
            parts.append(part)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
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


# ----------------------------------------------------------------------------------- drawings


def _grid(figure: Figure, n: int, height: float, columns: int = 2) -> list[Axes]:
    columns = min(columns, n)
    rows = -(-n // columns)
    figure.set_size_inches(figure.get_size_inches()[0], 0.5 + rows * height)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[n:]:
        spare.set_axis_off()
    return list(axes[:n])


def _draw_scores(figure: Figure, table: pd.DataFrame, spec: FigureSpec) -> None:
    """Means with intervals: conditions as rows, one panel a metric, subjects as small marks."""
    order = [role.name for role in ROLES]
    several = table["run"].nunique() > 1
    table = table.assign(
        row=[f"{c} ({r})" if several else c for c, r in table[["condition", "run"]].to_numpy()]
    )
    rows = table.drop_duplicates("row")
    rows = rows.iloc[np.argsort([order.index(r) for r in rows["role"]], kind="stable")]
    names = rows["row"].tolist()
    metrics = list(dict.fromkeys(table["metric"]))
    axes = _grid(figure, len(metrics), 0.55 + 0.2 * len(names))
    for axis, metric in zip(axes, metrics, strict=True):
        part = table[table["metric"] == metric]
        for one in part.to_dict("records"):
            role = role_of(one["role"])
            y = names.index(one["row"])
            main = (
                one["subject"] == ALL or part[part["row"] == one["row"]]["subject"].nunique() == 1
            )
            if main and one["low"] == one["low"]:
                axis.plot([one["low"], one["high"]], [y, y], color=role.colour, lw=2, alpha=0.5)
            axis.plot(
                one["mean"],
                y if main else y - 0.22,
                MARKERS[role.marker] if main else "|",
                color=role.colour,
                ms=5 if main else 4,
                mfc="white" if role.marker == "ring" else role.colour,
            )
        chance = part["chance"].iloc[0]
        if chance == chance:
            axis.axvline(chance, color=role_of("chance").colour, lw=0.8, ls="--")
        higher = bool(part["higher is better"].iloc[0])
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_xlabel(f"{metric} ({'higher' if higher else 'lower'} is better)")
        if not higher:
            axis.invert_xaxis()
    for k, axis in enumerate(axes):
        if k % 2:
            axis.set_yticklabels([])


def _draw_items(figure: Figure, table: pd.DataFrame, spec: FigureSpec) -> None:
    """Every stimulus, worst to best by the method; floors and ceiling of the same stimulus."""
    metrics = list(dict.fromkeys(table["metric"]))
    axes = _grid(figure, len(metrics), 2.0)
    for axis, metric in zip(axes, metrics, strict=True):
        part = table[table["metric"] == metric]
        higher = bool(part["higher is better"].iloc[0])
        keys = ["run", "data", "subject", "stimulus"]
        ours = part[part["role"] == "ours"].drop_duplicates(keys)
        ranked = ours.sort_values("value", ascending=higher, kind="stable")
        place = {key: k for k, key in enumerate(ranked[keys].itertuples(index=False, name=None))}
        for role in ROLES:
            rows = part[(part["role"] == role.name) & (part["role"] != "strong baseline")]
            x = [place.get(key, -1) for key in rows[keys].itertuples(index=False, name=None)]
            mine = role.name == "ours"
            axis.plot(
                x,
                rows["value"],
                MARKERS[role.marker],
                color=role.colour,
                ms=3 if mine else 2,
                alpha=1.0 if mine else 0.35,
                label=role.name if len(rows) else None,
                ls="none",
            )
        axis.set_xlabel("stimuli, worst to best")
        axis.set_ylabel(metric)
        if not higher:
            axis.invert_yaxis()
    axes[0].legend(fontsize=6.5, loc="best")


def _draw_floors(figure: Figure, table: pd.DataFrame, spec: FigureSpec) -> None:
    """How far from each floor to the ceiling."""
    floors = list(dict.fromkeys(table["floor"]))
    lines = list(dict.fromkeys(table[["run", "metric"]].itertuples(index=False, name=None)))
    several = table["run"].nunique() > 1
    height = 0.9 + 0.12 * len(lines) * max(len(floors), 2)
    figure.set_size_inches(figure.get_size_inches()[0], height)
    axis = figure.subplots()
    for k, floor in enumerate(floors):
        colour = _COLOURS[(k + 1) % len(_COLOURS)]
        part = table[table["floor"] == floor]
        for n, one in enumerate(part.to_dict("records")):
            y = lines.index((one["run"], one["metric"])) + 0.7 * (k + 0.5) / len(floors) - 0.35
            if one["share low"] == one["share low"]:
                ends = [one["share low"], one["share high"]]
                axis.plot(ends, [y, y], color=colour, lw=1.5, alpha=0.6)
            axis.plot(one["share"], y, "o", color=colour, ms=4, label=floor if n == 0 else None)
    names = [f"{metric} ({run})" if several else metric for run, metric in lines]
    axis.set_yticks(range(len(lines)), names)
    axis.axvline(0, color="#6b7280", lw=0.8, ls="--")
    axis.axvline(1, color=role_of("ceiling").colour, lw=0.8, ls="--")
    axis.set_xlim(max(axis.get_xlim()[0], -1.5), min(axis.get_xlim()[1], 2.5))
    axis.set_xlabel("share of the way from the floor (0) to the ceiling (1)")
    figure.legend(fontsize=6.5, loc="outside lower center", ncols=2)


def _draw_seeds(figure: Figure, table: pd.DataFrame, spec: FigureSpec) -> None:
    """Means of each training seed; a line a subject."""
    metrics = list(dict.fromkeys(table["metric"]))
    seeds = sorted(set(table["seed"]))
    axes = _grid(figure, len(metrics), 1.9)
    for axis, metric in zip(axes, metrics, strict=True):
        part = table[table["metric"] == metric]
        for k, (subject, rows) in enumerate(part.groupby("subject", sort=True)):
            rows = rows.sort_values("seed")
            x = [seeds.index(seed) for seed in rows["seed"]]
            colour = _COLOURS[k % len(_COLOURS)]
            axis.plot(x, rows["mean"], "-o", color=colour, lw=0.8, ms=4, label=subject or "all")
        axis.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
        axis.set_xlabel("training seed")
        axis.set_ylabel(f"mean {metric}")
    axes[0].legend(fontsize=6.5)


def _draw_training(figure: Figure, table: pd.DataFrame, spec: FigureSpec) -> None:
    """Losses by step, one panel a stage."""
    stages = list(dict.fromkeys(table["stage"]))
    axes = _grid(figure, len(stages), 1.7)
    for axis, stage in zip(axes, stages, strict=True):
        part = table[table["stage"] == stage]
        groups = part.groupby(["run", "measure"], sort=False)
        for k, ((run, measure), rows) in enumerate(groups):
            label = f"{measure}, {run}" if table["run"].nunique() > 1 else measure
            colour = _COLOURS[k % len(_COLOURS)]
            axis.plot(rows["step"], rows["value"], color=colour, lw=1, marker=".", label=label)
        axis.set_xlabel("step")
        axis.set_ylabel(stage)
    axes[0].legend(fontsize=6)


def _draw_curve(figure: Figure, table: pd.DataFrame, spec: FigureSpec) -> None:
    """A metric over levels (of noise, for instance), with bands."""
    metrics = list(dict.fromkeys(table["metric"]))
    axes = _grid(figure, len(metrics), 2.2)
    for axis, metric in zip(axes, metrics, strict=True):
        part = table[table["metric"] == metric]
        for k, (condition, rows) in enumerate(part.groupby("condition", sort=False)):
            rows = rows.sort_values("level")
            colour = _COLOURS[k % len(_COLOURS)]
            low, high = (rows[name].to_numpy(np.float64) for name in ("low", "high"))
            axis.fill_between(rows["level"], low, high, color=colour, alpha=0.15, lw=0)
            axis.plot(rows["level"], rows["value"], "-o", color=colour, ms=3, lw=1, label=condition)
        axis.set_xlabel(str(part["level name"].iloc[0]))
        axis.set_ylabel(metric)
    axes[0].legend(fontsize=6)


def _draw_attribution(figure: Figure, table: pd.DataFrame, spec: FigureSpec) -> None:
    """Importance of regions with intervals, one panel a method, a colour a subject."""
    methods = list(dict.fromkeys(table["method"]))
    regions = list(dict.fromkeys(table["roi"].astype(str)))
    axes = _grid(figure, len(methods), 0.6 + 0.16 * len(regions))
    who = table["subject"].astype(str) if "subject" in table else pd.Series("", table.index)
    people = list(dict.fromkeys(who))
    for axis, method in zip(axes, methods, strict=True):
        part = table[table["method"] == method]
        for one in part.assign(who=who[part.index]).to_dict("records"):
            k = people.index(one["who"])
            y = regions.index(str(one["roi"])) + 0.5 * (k + 0.5) / len(people) - 0.25
            colour = _COLOURS[k % len(_COLOURS)]
            if one.get("low", np.nan) == one.get("low", np.nan):
                axis.plot([one["low"], one["high"]], [y, y], color=colour, lw=1.5, alpha=0.5)
            axis.plot(one["value"], y, "o", color=colour, ms=3)
        axis.axvline(0, color="#6b7280", lw=0.8, ls="--")
        axis.set_yticks(range(len(regions)), regions)
        axis.set_xlabel(method)


KINDS: dict[str, tuple[Callable[..., pd.DataFrame], Callable[..., None]]] = {
    "scores": (_score_table, _draw_scores),
    "items": (_item_table, _draw_items),
    "floors": (_floor_table, _draw_floors),
    "seeds": (_seed_table, _draw_seeds),
    "training": (_training_table, _draw_training),
    "curve": (_curve_table, _draw_curve),
    "attribution": (_attribution_table, _draw_attribution),
}
"""Kinds of figures: how the table is made, and how it is drawn."""
