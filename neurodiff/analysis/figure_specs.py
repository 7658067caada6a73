"""Specifications of figures: which runs to make and what to draw of them, in one YAML file.

A file in ``analysis/`` names recipes, data sets and seeds; `carry_out` fits, decodes and scores
what is not there yet, and draws. The same file gives the same runs: a run's folder is named after
its recipe and data, and what is done is not repeated.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurodiff.analysis.benchmark_replay import fit_recipe, plan_of, replay
from neurodiff.analysis.kinds import IMAGES, SCANS, pipeline_of
from neurodiff.analysis.report_figures import (
    KINDS,
    FigureSpec,
    attribution_tables,
    write_figures,
)
from neurodiff.core.config import load
from neurodiff.core.errors import MissingDataError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Run


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Attribution of regions that is made in each run; see ``neurodiff attribute``."""

    rois: list[str] | None = None
    methods: list[str] | None = None
    metric: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Make:
    """Runs to make: one a seed and subject. ``root`` of the data comes from the command line."""

    recipe: str
    data: str
    seeds: list[int] = field(default_factory=lambda: [0])
    subjects: list[str | int | None] = field(default_factory=lambda: [None])
    settings: list[str] = field(default_factory=list)
    samples: int = 1
    protocol: str = "neurodiff-1"
    attribute: Attribute | None = None


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A file in ``analysis/``; ``report`` also writes the benchmark report of the runs."""

    name: str
    what: str
    make: list[Make]
    figures: list[FigureSpec]
    report: bool = False


def read_specification(name: str) -> Specification:
    """A specification by name or path.

    Raises
    ------
    UsageError : no such file, a wrong key, no run to make, a kind of figure that there is not, or
        two figures of one name.
    """
    found = load(name, Specification, kind="analysis")
    if not found.make or not found.figures:
        raise UsageError(f"{found.name} names no run to make or no figure; give both")
    for one in found.figures:
        if one.kind not in KINDS:
            raise UsageError(
                f"{found.name}: there is no figure {one.kind!r}; there are {', '.join(KINDS)}."
                f"{suggest(one.kind, KINDS)}"
            )
    files = [one.file or one.kind for one in found.figures]
    twice = sorted({one for one in files if files.count(one) > 1})
    if twice:
        raise UsageError(f"{found.name}: two figures are called {twice[0]}; give each its file")
    return found


def carry_out(
    specification: Specification | str,
    out: str | Path,
    *,
    root: Path | None = None,
    format: str = "svg",
    progress: Progress = SILENT,
) -> list[Path]:
    """Make the runs below ``out/runs`` and draw the figures into ``out``.

    Parameters
    ----------
    root : folder of the data, where the data set has one.

    Raises
    ------
    UsageError, DataError : as of fitting, decoding, scoring and drawing.
    """
    spec = read_specification(specification) if isinstance(specification, str) else specification
    if any(one.attribute for one in spec.make) and not _attributes():
        raise UsageError(f"{spec.name} asks for attribution, which this version does not have")
    out = Path(out)
    runs: list[Run] = []
    for one in spec.make:
        for subject in one.subjects:
            for seed in one.seeds:
                runs.append(_made(one, subject, seed, out, root, progress))
    paths = write_figures(runs, out, format, spec.figures)
    if spec.report:
        from neurodiff.analysis.benchmark_report import benchmark_page

        paths.append(benchmark_page(runs, out / f"{spec.name}.html", progress=progress))
    return paths


def steps_of(spec: Specification) -> list[str]:
    """What `carry_out` does, one line a run and figure."""
    lines = [
        f"run: {one.recipe} on {one.data}, seed {seed}"
        + (f", subject {subject}" if subject is not None else "")
        for one in spec.make
        for subject in one.subjects
        for seed in one.seeds
    ]
    return lines + [f"figure: {one.file or one.kind} ({one.kind})" for one in spec.figures]


def _made(
    make: Make, subject: Any, seed: int, out: Path, root: Path | None, progress: Progress
) -> Run:
    pipeline = pipeline_of(make.recipe)
    progress.say(f"{make.recipe} on {make.data}, seed {seed}")
    place = (out / "runs", make.data, root, subject, seed)
    run = Run.open(fit_recipe(pipeline, make.recipe, make.settings, *place))
    if not _scored(run, make):
        own = {"data": make.data, "root": None, "subject": subject, "samples": make.samples}
        plan = plan_of(run)
        named = own | {"data": plan["data"], "root": plan["root"], "averaged": pipeline == IMAGES}
        plan |= {"decoded": [] if pipeline == SCANS else [named], "protocol": make.protocol}
        replay(plan, out, start=run.folder)
        run = Run.open(run.folder)
    if make.attribute is not None:
        _attribute(run, make.attribute, seed)
    return run


def _scored(run: Run, make: Make) -> bool:
    """Whether the run has its scores by this protocol, and every sample."""
    try:
        table = run.read_scores()
    except MissingDataError:
        return False
    if "protocol" not in table:  # scans have no other
        return bool(len(table))
    known = set(table["protocol"]) == {make.protocol}
    return known and int(table["sample"].max()) + 1 >= make.samples


def _attributes() -> Any:
    """The verb that attributes regions, where it is there."""
    try:
        return importlib.import_module("neurodiff.analysis.attribution_verbs").attribute_run
    except ModuleNotFoundError:
        return None


def _attribute(run: Run, how: Attribute, seed: int) -> None:
    out = run.folder / "attribution"
    if not attribution_tables(run):
        rois: Sequence[str] | None = how.rois
        _attributes()(run.folder, out, rois, how.methods, how.metric, seed)
