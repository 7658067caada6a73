"""The page of an attribution: what each method says of each region, beside null, ceiling and truth.

One HTML file that asks for nothing from a network. Above a budget its pictures lie in a folder
beside it, ``attribution_files``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from neurodiff.analysis.attribution_claims import claim_sentences, claims
from neurodiff.analysis.attribution_maps import BrainMap
from neurodiff.analysis.attribution_words import (
    LEVEL,
    disagreements,
    kind_of,
    listed,
    shared_worth,
    significant,
)
from neurodiff.analysis.figures import Axis, format_number, is_number, strip_axis
from neurodiff.analysis.page_claims import claims_view, detection_table, planted
from neurodiff.core.atomic import atomic_write, plain
from neurodiff.core.errors import UsageError

BUDGET_MB = 25.0
FILES = "attribution_files"
CORRECTION = (
    "p is (1 + b) / (1 + B); q is corrected over the regions of a subject and stage, in the way "
    "that the notes of each method say"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PageData:
    """What the page shows.

    Parameters
    ----------
    results : of methods, in the order of the page.
    simulated : the recordings are simulated; the page says so throughout.
    facts : name -> words: pipeline, metric, trials, subjects, regions.
    pictures : (method, subject, stage, statistic) -> PNG.
    maps : of which the pictures are, for their words.
    ceilings : a table, or sentences on why there is none.
    truth : planted, with columns area and carries ("nothing" or "none" where nothing is), else
        None.
    links : words -> file relative to the page, e.g. interactive views.
    """

    results: Sequence[Any]
    simulated: bool
    title: str = "Which regions carry the information"
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[tuple[str, str, str, str], bytes] = field(default_factory=dict)
    maps: Sequence[BrainMap] = ()
    ceilings: pd.DataFrame | None = None
    ceiling_notes: Sequence[str] = ()
    truth: pd.DataFrame | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    level: float = LEVEL


def write_page(data: PageData, path: str | Path, *, budget_mb: float = BUDGET_MB) -> Path:
    """Write the page; above the budget its pictures are files in a folder beside it.

    Raises
    ------
    UsageError : there is no result.
    DataError : the folder cannot be written to.
    """
    path = Path(path)
    text = page_html(data)
    if len(text.encode("utf-8")) > budget_mb * 1e6:
        addresses = {}
        for number, (key, png) in enumerate(data.pictures.items(), start=1):
            target = path.parent / FILES / f"map-{number:03d}.png"
            with atomic_write(target) as file:
                file.write(png)
            addresses[key] = f"{FILES}/{target.name}"
        text = page_html(data, addresses=addresses)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
    return path


def page_html(
    data: PageData, *, addresses: Mapping[tuple[str, str, str, str], str] | None = None
) -> str:
    """The page as text; pictures are inside it, or at ``addresses``."""
    import jinja2

    if not data.results:
        raise UsageError("there is no result to show; run at least one method")
    shown = addresses or {key: _inside(png) for key, png in data.pictures.items()}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("neurodiff.analysis", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    return environment.get_template("attribution.jinja").render(
        data=data,
        in_files=addresses is not None,
        findings=findings(data),
        claims=_claims(data),
        correction=CORRECTION,
        disagreements=[
            *disagreements(data.results, data.level),
            *shared_worth(data.results, data.level),
        ],
        overview=_overview(data),
        sections=[_section(result, data, shown) for result in data.results],
        truth=_truth(data),
        ceilings=None if data.ceilings is None else _table(_ceilings(data.ceilings)),
        numbers=_script_json(to_json(data)),
    )


def to_json(data: PageData) -> dict[str, Any]:
    """Every number of the page."""
    tables = {result.method: result.table.to_dict("records") for result in data.results}
    return plain(
        {
            "format": "neurodiff-attribution-1",
            "simulated": data.simulated,
            "facts": dict(data.facts),
            "methods": tables,
            "notes": {result.method: list(result.notes) for result in data.results},
            "claims": claims(data.results, level=data.level).to_dict("records"),
            "truth": None if data.truth is None else data.truth.to_dict("records"),
            "detection": detection(data).to_dict("records"),
        }
    )


def findings(data: PageData) -> list[str]:
    """The claims; then a sentence a method, subject and stage: how many regions, the highest."""
    said = claim_sentences(claims(data.results, level=data.level), data.level)
    for result in data.results:
        name = kind_of(result.method).name
        for (subject, stage), rows in result.table.groupby(["subject", "stage"], sort=False):
            good = significant(rows, data.level)
            at = f"{subject}, {stage}" if stage else str(subject)
            if good:
                text = (
                    f"{name} ({at}): {len(good)} of {len(rows)} regions at q ≤ {data.level:g}, "
                    f"highest {listed(good[:3])}."
                )
            else:
                text = f"{name} ({at}): none of {len(rows)} regions at q ≤ {data.level:g}."
            said.append(text)
    return said


def detection(data: PageData) -> pd.DataFrame:
    """How well methods and claims tell loaded from empty regions; see `page_claims`."""
    return detection_table(data.results, data.truth, data.level)


# ------------------------------------------------------------------------------ views of parts


def _section(result: Any, data: PageData, shown: Mapping[Any, str]) -> dict[str, Any]:
    kind = kind_of(result.method)
    stages = []
    for stage, rows in result.table.groupby("stage", sort=False):
        stages.append({"name": stage, **_panel(rows, data)})
    by_key = {(m.method, m.subject, m.stage, m.statistic): m for m in data.maps}
    pictures = [
        {"address": address, "title": " · ".join(part for part in key[1:] if part), "map": one}
        for key, address in shown.items()
        if key[0] == result.method
        for one in [by_key.get(key)]
    ]
    return {
        "id": "m-" + "".join(c if c.isalnum() else "-" for c in result.method),
        "method": result.method,
        "kind": kind,
        "stages": stages,
        "pictures": pictures,
        "table": _table(result.table),
        "notes": list(result.notes),
    }


def _panel(rows: pd.DataFrame, data: PageData) -> dict[str, Any]:
    """Sorted rows of one stage with their figures, and the axis below them."""
    columns = ["value", "low", "high", "null_low", "null_high"]
    axis = Axis.around([*rows[columns].to_numpy(float).ravel(), 0.0])
    carries = {} if data.truth is None else planted(data.truth)
    subjects = list(dict.fromkeys(rows["subject"]))
    order = rows.groupby("roi", sort=False)["value"].mean().sort_values(ascending=False)
    lines = []
    for roi in order.index:
        part = rows[rows["roi"] == roi]
        hits = len(significant_rows(part, data.level))
        one = part.iloc[0] if len(part) == 1 else None
        lines.append(
            {
                "roi": roi,
                "figure": roi_strip(part, axis, label=f"{roi}: {format_number(order[roi])}"),
                "value": float(order[roi]),
                "low": None if one is None else one["low"],
                "high": None if one is None else one["high"],
                "null": None if one is None else one["null_mean"],
                "p": None if one is None else one["p"],
                "q": None if one is None else one["q"],
                "hits": hits,
                "subjects": len(part),
                "features": int(part["n_features"].iloc[0]),
                "carries": carries.get(str(roi), ""),
            }
        )
    first = rows.iloc[0]
    trials = sorted({int(n) for n in rows["n_trials"]})
    return {
        "lines": lines,
        "axis": strip_axis(axis, label=str(first["unit"])),
        "unit": first["unit"],
        "metric": first["metric"],
        "trials": " to ".join(str(n) for n in dict.fromkeys((trials[0], trials[-1]))),
        "subjects": subjects,
        "many": len(subjects) > 1,
        "planted": bool(carries),
    }


def significant_rows(rows: pd.DataFrame, level: float) -> pd.DataFrame:
    """Rows (a subject each) of one region with q, or without it p, at or below the level."""
    q = rows["q"].astype(float)
    return rows[q.where(np.isfinite(q), rows["p"].astype(float)) <= level]


def roi_strip(rows: pd.DataFrame, axis: Axis, *, label: str = "", height: int = 26) -> Markup:
    """One region: null band (grey), interval, a dot a subject, and their mean as a tick.

    Parameters
    ----------
    rows : one row a subject.
    """
    parts = [
        f'<line x1="{axis.percent(t):.2f}%" x2="{axis.percent(t):.2f}%" y1="0" y2="{height}" '
        'stroke="#eceff3"/>'
        for t in axis.ticks()
    ]
    zero = axis.percent(0.0)
    parts.append(f'<line x1="{zero:.2f}%" x2="{zero:.2f}%" y1="0" y2="{height}" stroke="#8b93a1"/>')
    low, high = rows["null_low"].astype(float).min(), rows["null_high"].astype(float).max()
    if is_number(low) and is_number(high):
        left, right = axis.percent(low), axis.percent(high)
        parts.append(
            f'<rect x="{left:.2f}%" width="{max(right - left, 0.2):.2f}%" y="4" '
            f'height="{height - 8}" fill="#c6ccd6" opacity=".75"><title>null: {low:.3g} to '
            f"{high:.3g}</title></rect>"
        )
    step = (height - 10) / max(len(rows), 1)
    for number, row in enumerate(rows.to_dict("records")):
        if not is_number(row["value"]):
            continue
        y = 5 + step * (number + 0.5)
        good = len(significant_rows(pd.DataFrame([row]), LEVEL)) > 0
        colour = "#c2410c" if good else "#55606f"
        if is_number(row["low"]) and is_number(row["high"]):
            ends = axis.percent(float(row["low"])), axis.percent(float(row["high"]))
            parts.append(
                f'<line x1="{ends[0]:.2f}%" x2="{ends[1]:.2f}%" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{colour}" stroke-width="{2.6 if len(rows) == 1 else 1.4}" opacity=".6"/>'
            )
        radius = 5.0 if len(rows) == 1 else 3.4
        title = escape(f"{row['subject']}: {format_number(row['value'])}")
        fill = colour if good else "#fff"
        parts.append(
            f'<circle cx="{axis.percent(float(row["value"])):.2f}%" cy="{y:.1f}" r="{radius}" '
            f'fill="{fill}" stroke="{colour}" stroke-width="1.5"><title>{title}</title></circle>'
        )
    if len(rows) > 1:
        x = axis.percent(float(rows["value"].astype(float).mean()))
        parts.append(
            f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="2" y2="{height - 2}" stroke="#1c2330" '
            'stroke-width="2.2"/>'
        )
    return Markup(
        f'<svg class="strip" width="100%" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _claims(data: PageData) -> dict[str, Any]:
    view = claims_view(data.results, data.truth, data.level)
    return view | {"table": _table(view["table"])}


def _overview(data: PageData) -> dict[str, Any]:
    """Regions by methods: how many subjects and stages find the region."""
    regions = list(dict.fromkeys(roi for r in data.results for roi in r.table["roi"]))
    carries = {} if data.truth is None else planted(data.truth)
    rows = []
    for roi in regions:
        cells = []
        for result in data.results:
            part = result.table[result.table["roi"] == roi]
            hits = len(significant_rows(part, data.level))
            cells.append({"hits": hits, "of": len(part), "share": hits / max(len(part), 1)})
        rows.append({"roi": roi, "cells": cells, "carries": carries.get(str(roi), "")})
    rows.sort(key=lambda row: -sum(cell["share"] for cell in row["cells"]))
    return {
        "methods": [kind_of(result.method).name for result in data.results],
        "rows": rows,
        "planted": bool(carries),
    }


def _truth(data: PageData) -> dict[str, Any] | None:
    if data.truth is None:
        return None
    found = detection(data)
    found["method"] = [kind_of(method).name for method in found["method"]]
    named = found.rename(
        columns={
            "auc": "AUC, any information",
            "auc_own": "AUC, own information",
            "found": "loaded, found",
            "false": "empty, found",
        }
    )
    return {"detection": _table(named), "areas": _table(data.truth)}


def _ceilings(table: pd.DataFrame) -> pd.DataFrame:
    """The table with one row for what is available in no region, instead of one a region."""
    lacks = table["note"].str.startswith("not available")
    same = ["subject", "kind", "note"]
    none = lacks.groupby([table[name] for name in same]).transform("all")
    shown = table[~(none & table.duplicated(same))].copy()
    shown.loc[none[shown.index], "roi"] = ""
    return shown


def _table(table: pd.DataFrame) -> dict[str, Any]:
    numbers = [pd.api.types.is_numeric_dtype(table[name]) for name in table]
    rows = [
        [
            format_number(value) if number else str(value)
            for value, number in zip(row, numbers, strict=True)
        ]
        for row in table.itertuples(index=False)
    ]
    columns = [
        {"name": str(name), "number": number}
        for name, number in zip(table.columns, numbers, strict=True)
    ]
    return {"columns": columns, "rows": rows}


def _inside(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _script_json(value: Any) -> Markup:
    import json

    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
