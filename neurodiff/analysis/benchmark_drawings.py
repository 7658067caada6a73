"""How figures of `report_figures` are drawn from their tables with matplotlib.

Each function takes an empty figure and the table that is also written as CSV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neurodiff.analysis.benchmark_scores import ALL
from neurodiff.analysis.figures import ROLES, role_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"ring": "o", "dot": "o", "diamond": "D", "disc": "o", "square": "s"}
_COLOURS = ("#c2410c", "#2f66b0", "#15803d", "#7c3aed", "#a16207", "#0e7490", "#be185d", "#4a5462")


def draw_scores(figure: Figure, table: pd.DataFrame) -> None:
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
    axes = _grid(figure, len(metrics), 0.7 + 0.2 * len(names))
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
        _name(axis, metric)
        axis.set_xlabel(f"{'higher' if higher else 'lower'} is better", fontsize=7)
        if not higher:
            axis.invert_xaxis()
    for k, axis in enumerate(axes):
        if k % 2:
            axis.set_yticklabels([])


def draw_items(figure: Figure, table: pd.DataFrame) -> None:
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
        axis.set_xlabel("stimuli, worst to best", fontsize=7)
        _name(axis, metric)
        if not higher:
            axis.invert_yaxis()
    axes[0].legend(fontsize=6.5, loc="best")


def draw_floors(figure: Figure, table: pd.DataFrame) -> None:
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


def draw_seeds(figure: Figure, table: pd.DataFrame) -> None:
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
        _name(axis, f"mean {metric}")
    axes[0].legend(fontsize=6.5)


def draw_training(figure: Figure, table: pd.DataFrame) -> None:
    """Losses by step, one panel a stage."""
    stages = list(dict.fromkeys(table["stage"]))
    axes = _grid(figure, len(stages), 1.7)
    for axis, stage in zip(axes, stages, strict=True):
        part = table[table["stage"] == stage]
        groups = part.groupby(["run", "measure"], sort=False)
        for k, ((run, measure), rows) in enumerate(groups):
            label = f"{measure}, {run}" if table["run"].nunique() > 1 else measure
            colour = _COLOURS[k % len(_COLOURS)]
            rows = rows.sort_values("step", kind="stable")  # a resumed stage logs steps again
            axis.plot(rows["step"], rows["value"], color=colour, lw=1, marker=".", label=label)
        axis.set_xlabel("step", fontsize=7)
        _name(axis, stage)
    axes[0].legend(fontsize=6)


def draw_curve(figure: Figure, table: pd.DataFrame) -> None:
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
        axis.set_xlabel(str(part["level name"].iloc[0]), fontsize=7)
        _name(axis, metric)
    axes[0].legend(fontsize=6)


def draw_attribution(figure: Figure, table: pd.DataFrame) -> None:
    """Importance of regions with intervals, one panel a method, a colour a subject."""
    methods = list(dict.fromkeys(table["method"]))
    regions = list(dict.fromkeys(table["roi"].astype(str)))
    axes = _grid(figure, len(methods), 0.7 + 0.16 * len(regions))
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
        _name(axis, method)


def _name(axis: Axes, words: str) -> None:
    axis.set_title(words, fontsize=7.5, loc="left")


def _grid(figure: Figure, n: int, height: float, columns: int = 2) -> list[Axes]:
    columns = min(columns, n)
    rows = -(-n // columns)
    figure.set_size_inches(figure.get_size_inches()[0], 0.5 + rows * height)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[n:]:
        spare.set_axis_off()
    return list(axes[:n])
