"""The report: one HTML file without a network request, truth beside reconstruction.

``ReportData`` holds what a page shows; ``Report`` writes it as HTML and as JSON with every
number. The page forbids itself any request (a content security policy), escapes all text, and
holds the objects as packed meshes that a viewer opens one pair at a time, on a click.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from neurodiff.analysis import figures, page, viewer
from neurodiff.core.safe_io import atomic_write, plain

FORMAT = "neurodiff-report-1"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One held-out object: the truth beside what was reconstructed.

    ``truth``, ``reconstruction`` and the values of ``extra`` are ``trimesh.Trimesh`` with y up
    in one common frame, or None where there is none; a mesh without faces is shown as 'empty
    mesh'. ``why`` says how the item was chosen: a key of ``page.WHY``, or any other words.
    ``extra_stills`` are pictures of ``extra`` under the same names. ``scores`` are in the units
    of the metrics; NaN is shown as 'not available'. For real recordings without a mesh of the
    stimulus, ``truth`` is None and ``truth_still`` the picture that was shown.
    """

    stimulus: str
    category: str
    caption: str
    why: str
    truth: Any = None
    reconstruction: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    truth_still: Image.Image | None = None
    reconstruction_still: Image.Image | None = None
    extra_stills: Mapping[str, Image.Image] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PictureGrid:
    """Rows of small pictures: what was shown, and beside it what was reconstructed.

    ``title`` says which items these are and ``why`` how they were chosen; ``names`` are the
    pictures of an item, in order; ``items`` are (label, pictures, words), where a picture that is
    None is shown as missing. ``width`` and ``height`` are of a picture on the page, in pixels.
    """

    title: str
    why: str
    names: Sequence[str]
    items: Sequence[tuple[str, Sequence[Image.Image | None], str]]
    width: int = 92
    height: int = 92


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything one page shows; only ``title`` and ``simulated`` have no default.

    Parameters
    ----------
    headline : findings in plain language, one sentence each.
    provenance : name -> words, or -> a dict of the same kind (one level).
    gates : dicts with stage, measure, value, reference, unit, passed (True, False or None where
        no bar is set), note; one row a measure, in the order of the chain.
    conditions : index = condition; column ``role`` (a name of ``figures.ROLES``); and for each
        metric either one column of dicts with mean, median, low, high, n, or the columns
        ``<metric>.mean`` ... (or a MultiIndex (metric, statistic)). Missing ones become NaN.
    metrics : dicts with name, unit, higher_is_better, chance (None where there is none),
        description; their order is the order on the page.
    factor_table : index = planted factor, columns = conditions; held-out correlations.
    curve : columns level, condition, metric, value, low, high; ``curve_level`` names the level
        and its unit, ``curve_default`` marks the one that the rest of the page uses, and
        ``curve_title`` and ``curve_lead`` are the words above it.
    grids : pictures of many items; ``about`` says what the page scores: "object" or "picture".
    pairs : held-out objects; ``plumbing`` : items of real recordings, claimed to be nothing
        but a check that real files pass through the chain.
    tables : (title, table, note) for anything else.
    notes : limits, and what is not shown.
    """

    title: str
    simulated: bool
    subtitle: str = ""
    headline: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    gates: Sequence[Mapping[str, Any]] = ()
    conditions: pd.DataFrame = field(default_factory=pd.DataFrame)
    metrics: Sequence[Mapping[str, Any]] = ()
    factor_table: pd.DataFrame = field(default_factory=pd.DataFrame)
    curve: pd.DataFrame | None = None
    curve_level: str = "median single-trial noise ceiling"
    curve_default: float | None = None
    curve_title: str = "Noise levels"
    curve_lead: str = "The same chain at several levels of noise."
    grids: Sequence[PictureGrid] = ()
    about: str = "object"
    pairs: Sequence[Pair] = ()
    tables: Sequence[tuple[str, pd.DataFrame, str]] = ()
    notes: Sequence[str] = ()
    plumbing: Sequence[Pair] = ()


class Report:
    """A page about one or several runs.

    Examples
    --------
    >>> page = Report(ReportData(title="Demo", simulated=True))
    >>> "Simulated" in page.html()
    True
    """

    def __init__(self, data: ReportData) -> None:
        self.data = data

    def to_json(self) -> dict[str, Any]:
        """Every number of the page as plain JSON; NaN and infinity become null."""
        data = self.data
        curve = pd.DataFrame() if data.curve is None else data.curve
        content = {
            "format": FORMAT,
            "title": data.title,
            "subtitle": data.subtitle,
            "simulated": data.simulated,
            "headline": list(data.headline),
            "provenance": data.provenance,
            "gates": page.gate_rows(data.gates),
            "metrics": page.metric_rows(data.metrics),
            "conditions": {
                name: {
                    "role": role,
                    "metrics": {m: page.statistics_of(row, m) for m in self._metric_names()},
                }
                for name, role, row in self._conditions()
            },
            "factors": page.table_numbers(data.factor_table),
            "curve": {
                "level": data.curve_level,
                "default": data.curve_default,
                "rows": curve.to_dict("records"),
            },
            "grids": [page.grid_numbers(grid) for grid in data.grids],
            "pairs": [page.pair_numbers(pair) for pair in page.ordered(data.pairs)],
            "tables": [
                {"title": title, "note": note, **page.table_numbers(table)}
                for title, table, note in data.tables
            ],
            "notes": list(data.notes),
            "plumbing": [page.pair_numbers(pair) for pair in data.plumbing],
        }
        return plain(content)

    def html(self, *, interactive: bool = True) -> str:
        """The page as text; ``interactive=False`` leaves out meshes and viewer (about 0.5 MB)."""
        environment = page.templates()
        environment.filters["script_json"] = page.script_json
        return environment.get_template("report.jinja").render(self._context(interactive))

    def save(self, path: str | Path) -> Path:
        """Write the page to ``path``, whole or not at all; DataError if the disk is full."""
        target = Path(path)
        content = self.html().encode("utf-8")
        with atomic_write(target) as file:
            file.write(content)
        return target

    def _repr_html_(self) -> str:
        """Page for a notebook, in a frame of its own and with still pictures only.

        Jupyter drops outputs of several megabytes; ``save`` gives the page whose objects rotate.
        """
        from markupsafe import escape

        content, title = escape(self.html(interactive=False)), escape(self.data.title)
        return (
            f'<iframe title="{title}" srcdoc="{content}" width="100%" height="720" '
            'style="border:1px solid #d5d9e0;border-radius:8px"></iframe>'
        )

    def _metric_names(self) -> list[str]:
        return [str(metric["name"]) for metric in self.data.metrics]

    def _conditions(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Rows (name, role, flat cells) in the order of the roles, then of the table."""
        table = self.data.conditions
        if table.empty:
            return []
        flat = table.copy(deep=False)
        flat.columns = pd.Index(
            [".".join(str(p) for p in c if p != "") if isinstance(c, tuple) else c for c in table]
        )
        if "role" not in flat:
            raise ValueError("the table of conditions has no column 'role'")
        order = [role.name for role in figures.ROLES]
        rows = [
            (str(name), figures.role_of(str(row["role"])).name, row.to_dict())
            for name, row in flat.iterrows()
        ]
        return sorted(rows, key=lambda row: order.index(row[1]))

    def _context(self, interactive: bool) -> dict[str, Any]:
        data = self.data
        rows = self._conditions()
        pairs = page.ordered(data.pairs)
        cards = [page.card(pair, number, data) for number, pair in enumerate(pairs, start=1)]
        checks = [
            page.card(pair, number, data, plumbing=True)
            for number, pair in enumerate(data.plumbing, start=len(cards) + 1)
        ]
        every = [*pairs, *data.plumbing]
        script, version = viewer.viewer_bundle() if interactive and every else ("", "")
        return {
            "data": data,
            "numbers": self.to_json(),
            "roles": [role for role in figures.ROLES if role.name in {r for _, r, _ in rows}],
            "legend_mark": figures.legend_mark,
            "gates": page.gate_rows(data.gates),
            "panels": [page.score_panel(m, rows) for m in page.metric_rows(data.metrics) if rows],
            "groups": page.card_groups(cards),
            "plumbing": checks,
            "grids": [page.grid_view(grid) for grid in data.grids],
            "factors": page.factor_rows(data.factor_table, {name: role for name, role, _ in rows}),
            "curves": page.curve_panels(data, {name: role for name, role, _ in rows}),
            "tables": [
                {"title": title, "note": note, **page.table_view(table)}
                for title, table, note in data.tables
            ],
            "scenes": [page.scene(pair) for pair in every] if interactive else [],
            "viewer_script": script,
            "viewer_version": version,
        }
