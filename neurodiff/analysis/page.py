"""Arranges numbers and objects for the template of the report: panels, cards, tables.

Each function turns one part of ``ReportData`` into what the template prints (a view) or into
what ``report.json`` holds (numbers). No function here changes its input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from neurodiff.analysis import figures, viewer
from neurodiff.core.provenance import peak_memory_mb

if TYPE_CHECKING:
    import jinja2

    from neurodiff.analysis.report import Pair, PictureGrid, ReportData
    from neurodiff.core.run import Run

STATISTICS = ("mean", "median", "low", "high", "n")
WHY = {
    "fixed random draw": "Drawn by a fixed seed among all held-out objects, not chosen by result.",
    "best": "Chosen because their scores are the best of all held-out objects.",
    "median": "Chosen because their scores lie in the middle.",
    "worst": "Chosen because their scores are the worst of all held-out objects.",
}


def templates() -> jinja2.Environment:
    """The templates of this package; every text in them is escaped, and no name may be missing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neurodiff.analysis", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = figures.format_number
    return environment


def page_provenance(run: Run, more: Mapping[str, str]) -> dict[str, Any]:
    """What a page says of the run it is about and of the machine; ``more`` comes before memory."""
    info = run.info
    return {
        "run folder": Path(run.folder).name,
        "command": info["command"],
        "seed": str(run.seed),
        "fingerprint": run.fingerprint,
        "created": info["created"],
        "neurodiff": str(info["neurodiff"]),
        "git": {k: str(v) for k, v in (info.get("git") or {}).items()},
        "versions": {k: str(v) for k, v in info["versions"].items()},
        "platform": info["platform"],
        "processors": str(os.cpu_count()),
        **more,
        "peak memory": f"{peak_memory_mb():.0f} MB",
    }


def statistics_of(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Mean, median, low, high and n of one condition under one metric; None where missing."""
    given = row.get(metric)
    if isinstance(given, Mapping):
        cell = {name: given.get(name) for name in STATISTICS}
    else:
        cell = {name: row.get(f"{metric}.{name}") for name in STATISTICS}
    count: Any = cell["n"]
    cell["n"] = int(count) if figures.is_number(count) else None
    return cell


def score_panel(metric: Mapping[str, Any], rows: list) -> dict[str, Any]:
    """One metric: an axis that runs from worse to better, and a strip for each condition."""
    name, better = str(metric["name"]), bool(metric["higher_is_better"])
    cells = [(condition, role, statistics_of(row, name)) for condition, role, row in rows]
    values = [cell[k] for _, _, cell in cells for k in ("mean", "median", "low", "high")]
    axis = figures.Axis.around([*values, metric.get("chance")], reverse=not better)
    ceilings = [cell["mean"] for _, role, cell in cells if role == "ceiling"]
    references = {"chance": metric.get("chance"), "ceiling": ceilings[0] if ceilings else None}
    lines = []
    for condition, role, cell in cells:
        words = f"{condition}: mean {figures.format_number(cell['mean'])}"
        point = {**cell, "role": role, "name": condition}
        figure = figures.strip([point], axis, references=references, label=words)
        lines.append({"name": condition, "role": role, "cell": cell, "figure": figure})
    return {
        "metric": metric,
        "lines": lines,
        "axis": figures.strip_axis(axis, label=f"axis of {name}, better to the right"),
        "known": any(figures.is_number(v) for v in values),
    }


def factor_rows(table: pd.DataFrame, roles: Mapping[str, str]) -> dict[str, Any] | None:
    """Factors as rows of dots; a column takes the role of the condition of its name."""
    if table.empty:
        return None
    known = {"chance": "chance", "ceiling": "ceiling", **roles}
    columns = [str(c) for c in table.columns]
    drawn = [c for c in columns if c in known]
    numbers = [v for c in table.columns for v in table[c] if str(c) in known]
    axis = figures.Axis.around([*numbers, 0.0, 1.0])
    rows = []
    for factor, values in table.iterrows():
        cells = dict(zip(columns, values, strict=True))
        points = [{"mean": cells[c], "role": known[c], "name": c} for c in drawn]
        order = [role.name for role in figures.ROLES if role.name != "ours"] + ["ours"]
        points.sort(key=lambda p: order.index(p["role"]))
        figure = figures.strip(
            points, axis, references={"chance": 0.0}, label=f"correlations of {factor}"
        )
        rows.append({"name": str(factor), "figure": figure, "cells": list(cells.values())})
    return {
        "columns": [{"name": c, "role": known.get(c)} for c in columns],
        "rows": rows,
        "axis": figures.strip_axis(axis, label="axis of correlations"),
    }


def curve_panels(data: ReportData, roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """One figure a metric of the curve; ValueError where a column is missing."""
    if data.curve is None or data.curve.empty:
        return []
    missing = {"level", "condition", "metric", "value", "low", "high"} - set(data.curve.columns)
    if missing:
        raise ValueError(f"the curve has no column {sorted(missing)}")
    units = {str(m["name"]): m for m in data.metrics}
    shown = []
    for metric, frame in data.curve.groupby("metric", sort=False):
        record = units.get(str(metric), {})
        figure = figures.curve(
            frame,
            roles=roles,
            level_name=data.curve_level,
            value_name=str(metric),
            default=data.curve_default,
        )
        shown.append(
            {
                "metric": str(metric),
                "unit": record.get("unit", ""),
                "higher_is_better": record.get("higher_is_better"),
                "figure": figure,
                "rows": frame.to_dict("records"),
            }
        )
    return shown


def card(pair: Pair, number: int, data: ReportData, *, plumbing: bool = False) -> dict[str, Any]:
    """Stills, words and scores of one pair; ``turns`` says whether there is a mesh to turn."""

    def still(words: str, image: Image.Image | None, mesh: Any) -> dict[str, Any]:
        uri = viewer.picture_uri(image) if image is not None else None
        alt = f"{words}: {pair.caption}"
        return {"label": words, "uri": uri, "alt": alt, "empty": _is_bare(mesh)}

    left = "stimulus picture" if plumbing else "truth"
    stills = [
        still(left, pair.truth_still, pair.truth),
        still("reconstruction", pair.reconstruction_still, pair.reconstruction),
    ]
    stills += [
        still(name, image, pair.extra.get(name)) for name, image in pair.extra_stills.items()
    ]
    units = {str(m["name"]): m.get("unit", "") for m in data.metrics}
    return {
        "number": number,
        "pair": pair,
        "stills": stills,
        "scores": [(name, value, units.get(name, "")) for name, value in pair.scores.items()],
        "turns": not (viewer.is_empty(pair.truth) and viewer.is_empty(pair.reconstruction)),
    }


def _is_bare(mesh: Any) -> bool:
    return mesh is not None and viewer.is_empty(mesh)


def scene(pair: Pair) -> dict[str, Any]:
    """Packed meshes of one pair for the viewer."""
    named = {"truth": pair.truth, "reconstruction": pair.reconstruction, **pair.extra}
    panels = [
        {"label": label, **viewer.pack_mesh(mesh)}
        for label, mesh in named.items()
        if mesh is not None
    ]
    return {"title": pair.caption or pair.stimulus, "category": pair.category, "panels": panels}


def ordered(pairs: Sequence[Pair]) -> list[Pair]:
    """Sort pairs by why they are shown: the fixed random draw first, unknown reasons last."""
    known = list(WHY)
    return sorted(
        pairs, key=lambda pair: known.index(pair.why) if pair.why in known else len(known)
    )


def card_groups(cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put cards under one heading for each reason, in the order they come."""
    groups: dict[str, list] = {}
    for one in cards:
        groups.setdefault(one["pair"].why, []).append(one)
    return [
        {
            "why": why,
            "meaning": WHY.get(why, ""),
            "cards": members,
            "three": any(len(one["stills"]) > 2 for one in members),
        }
        for why, members in groups.items()
    ]


def gate_rows(gates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gates with every key; ValueError where a stage or a measure has no name."""
    for gate in gates:
        if not gate.get("stage") or not gate.get("measure"):
            raise ValueError(f"a gate has no 'stage' or no 'measure': {dict(gate)}")
    empty = {"value": None, "reference": None, "unit": "", "passed": None, "note": ""}
    return [{**empty, **gate} for gate in gates]


def metric_rows(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Metrics with every key; ValueError where a metric lacks its name or its direction."""
    for metric in metrics:
        if not metric.get("name") or "higher_is_better" not in metric:
            raise ValueError(f"a metric has no 'name' or no 'higher_is_better': {dict(metric)}")
    return [{"unit": "", "chance": None, "description": "", **metric} for metric in metrics]


def pair_numbers(pair: Pair) -> dict[str, Any]:
    """Words, scores and mesh sizes of one pair."""

    def size(mesh: Any) -> dict[str, int] | None:
        if mesh is None:
            return None
        return {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}

    return {
        "stimulus": pair.stimulus,
        "category": pair.category,
        "caption": pair.caption,
        "why": pair.why,
        "scores": dict(pair.scores),
        "truth": size(pair.truth),
        "reconstruction": size(pair.reconstruction),
        "extra": {name: size(mesh) for name, mesh in pair.extra.items()},
    }


def grid_view(grid: PictureGrid) -> dict[str, Any]:
    """Pictures of a grid as data addresses; ValueError where an item lacks a picture's place."""
    items = []
    for label, pictures, words in grid.items:
        if len(pictures) != len(grid.names):
            raise ValueError(f"{label} has {len(pictures)} pictures for the names {grid.names}")
        stills = [
            {
                "name": name,
                "uri": None
                if image is None
                else viewer.thumbnail_uri(image, max_side=max(112, 2 * grid.width)),
            }
            for name, image in zip(grid.names, pictures, strict=True)
        ]
        items.append({"label": label, "stills": stills, "words": words})
    return {
        "title": grid.title,
        "why": grid.why,
        "names": list(grid.names),
        "items": items,
        "width": grid.width,
        "height": grid.height,
    }


def grid_numbers(grid: PictureGrid) -> dict[str, Any]:
    """Which items a grid shows, without the pictures."""
    return {
        "title": grid.title,
        "why": grid.why,
        "names": list(grid.names),
        "items": [{"label": label, "words": words} for label, _, words in grid.items],
    }


def table_numbers(table: pd.DataFrame) -> dict[str, Any]:
    """A table as columns, index and rows."""
    return {
        "columns": [str(c) for c in table.columns],
        "index": [str(i) for i in table.index],
        "rows": [list(row) for row in table.itertuples(index=False, name=None)],
    }


def table_view(table: pd.DataFrame) -> dict[str, Any]:
    """Cells as words; columns that hold numbers are marked so that they align."""

    def words(value: Any) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if isinstance(value, str):
            return value
        return figures.format_number(value)

    counted = isinstance(table.index, pd.RangeIndex)
    columns = [
        {
            "name": str(c),
            "number": any(figures.is_number(v) for v in table.iloc[:, k])
            or all(v is None or v != v for v in table.iloc[:, k]),
        }
        for k, c in enumerate(table.columns)
    ]
    rows = [
        {"name": "" if counted else str(name), "cells": [words(v) for v in values]}
        for name, values in zip(table.index, table.itertuples(index=False, name=None), strict=True)
    ]
    return {"columns": columns, "rows": rows, "named": not counted}


def script_json(value: Any) -> Any:
    """JSON for a script element: no character of it can close the element."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, code)
    return Markup(text)
