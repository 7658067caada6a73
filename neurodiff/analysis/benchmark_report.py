"""The benchmark report: one page about one run or several with every check that the field asks for.

The page of the pipeline (pictures by a fixed draw, worst, median and best; panels of scores beside
chance, floors and ceiling) with sections about identity, data and leaks, weights, numbers,
uncertainty, published figures, checklists and replay. Up to a budget it is one file; beyond it, a
folder: the page, its pictures and the pages of objects to rotate.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.analysis.benchmark_sections import Benchmark, Section, benchmark_of
from neurodiff.analysis.figures import format_number
from neurodiff.analysis.kinds import IMAGES, SCANS, pipeline_of_run
from neurodiff.analysis.leakage_run import TITLE
from neurodiff.analysis.page import script_json
from neurodiff.analysis.report import Pair, Report, ReportData
from neurodiff.core.atomic import atomic_write, plain, write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Run

BUDGET_MB = 25.0
PAIRS_A_PAGE = 24
_PICTURE = re.compile(r'src="data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)"')
_POLICY = "img-src data: blob:"


class BenchmarkReport(Report):
    """A report with the sections of a benchmark behind it."""

    def __init__(self, data: ReportData, benchmark: Benchmark) -> None:
        super().__init__(data)
        self.benchmark = benchmark

    def to_json(self) -> dict[str, Any]:
        """Every number of the page; the benchmark's under ``benchmark``."""
        return super().to_json() | {"benchmark": plain(self.benchmark.to_json())}

    def html(self, *, interactive: bool = True, links: Sequence[tuple[str, str]] = ()) -> str:
        """The page as text; ``links`` are to pages beside it, in a folder."""
        import jinja2

        from neurodiff.analysis.checklists import UNKNOWN

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("neurodiff.analysis", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["number"] = format_number
        environment.filters["script_json"] = script_json
        environment.filters["plain_words"] = _words
        sections = list(self.benchmark.sections)
        if links:
            title = "Objects to rotate"
            sections.insert(0, Section(id="rotate", link="Rotate", title=title, links=links))
        context = self._context(interactive) | {
            "sections": [one.view() for one in sections],
            "unknown": UNKNOWN,
            "in_folder": bool(links) or not interactive,
        }
        return environment.get_template("benchmark.jinja").render(context)


def benchmark_page(
    runs: Sequence[Run | str | Path],
    out: str | Path,
    *,
    budget_mb: float = BUDGET_MB,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Write the report of runs of one pipeline, and its numbers beside it as JSON.

    Parameters
    ----------
    out : an ``.html`` file. Where the page would be larger than ``budget_mb`` (millions of
        bytes), a folder of its name without the ending is written instead, with ``index.html``.
    strict : a test stimulus in the training is an error.

    Returns
    -------
    The page's path.

    Raises
    ------
    UsageError : no run, one that is named twice, runs of two pipelines or protocols, a leak with
        ``strict``, a name that does not end in .html.
    MissingDataError : nothing decoded or scored.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out} must name a file that ends in .html")
    if not budget_mb > 0:
        raise UsageError(f"a budget of {budget_mb} MB was given; give a number above 0")
    report = benchmark_report(runs, strict=strict, progress=progress)
    content = report.html().encode("utf-8")
    numbers = report.to_json()
    if len(content) <= budget_mb * 1e6:
        with atomic_write(out) as file:
            file.write(content)
        write_json(out.with_suffix(".json"), numbers)
        return out
    size = len(content) / 1e6
    progress.say(f"the page has {size:.1f} MB, above {budget_mb:g}: writing a folder")
    return _write_folder(report, numbers, out.with_suffix(""))


def benchmark_report(
    runs: Sequence[Run | str | Path], *, strict: bool = False, progress: Progress = SILENT
) -> BenchmarkReport:
    """The report as an object, for a notebook; errors as `benchmark_page`."""
    opened = [one if isinstance(one, Run) else Run.open(one) for one in runs]
    folders = {run.folder.resolve() for run in opened}
    if not opened or len(folders) < len(opened):
        raise UsageError("name each run once" if opened else "name at least one run folder")
    kinds = {pipeline_of_run(run.folder): run.folder.name for run in opened}
    if len(kinds) > 1:
        text = " and ".join(f"{name} of {kind}" for kind, name in kinds.items())
        raise UsageError(f"one report is about runs of one pipeline: {text}; write two")
    names = [run.folder.name for run in opened]
    if len(set(names)) < len(names):
        raise UsageError("two runs have folders of the same name; rename one")
    [kind] = kinds
    data = _pipeline_page(kind, opened, progress)
    benchmark = benchmark_of(opened, notes=data.notes, strict=strict, progress=progress)
    # the section about data and leaks has the audit; the page of the pipeline need not repeat it
    own = [one for one in data.tables if not one[0].startswith(TITLE)]
    data = replace(data, title=f"Benchmark. {data.title}", provenance={}, tables=own)
    return BenchmarkReport(data, benchmark)


def data_of_numbers(numbers: dict[str, Any]) -> ReportData:
    """What a ``report.json`` holds, as a page without pictures."""
    conditions = {
        name: {"role": one["role"], **one["metrics"]}
        for name, one in (numbers.get("conditions") or {}).items()
    }
    curve = pd.DataFrame((numbers.get("curve") or {}).get("rows") or [])
    return ReportData(
        title=str(numbers.get("title", "")),
        simulated=bool(numbers.get("simulated")),
        subtitle=str(numbers.get("subtitle", "")),
        headline=numbers.get("headline") or (),
        gates=numbers.get("gates") or (),
        conditions=pd.DataFrame.from_dict(conditions, orient="index"),
        metrics=numbers.get("metrics") or (),
        curve=curve if len(curve) else None,
        curve_level=(numbers.get("curve") or {}).get("level") or "level",
        curve_default=(numbers.get("curve") or {}).get("default"),
        tables=[
            (one["title"], _table(one), one.get("note", "")) for one in numbers.get("tables") or ()
        ],
        notes=[
            *(numbers.get("notes") or ()),
            "Pictures are on the run's own page, report.html in its folder.",
        ],
    )


def _pipeline_page(kind: str, runs: Sequence[Run], progress: Progress) -> ReportData:
    """The page of the pipeline; of what only has numbers left, those."""
    if kind == SCANS:
        return _from_numbers(runs)
    try:
        if kind == IMAGES:
            from neurodiff.analysis.image_run_report import image_findings
            from neurodiff.analysis.page_images import image_report

            return image_report(image_findings(runs, progress)).data
        from neurodiff.analysis.run_report import report_data

        return report_data(runs, progress)
    except (MissingDataError, IndexError):
        if not all((run.folder / "report.json").is_file() for run in runs):
            raise
        return _from_numbers(runs)  # a demonstration: it keeps its numbers, not its items


def _from_numbers(runs: Sequence[Run]) -> ReportData:
    parts = []
    for run in runs:
        try:
            parts.append(data_of_numbers(run.read_report_json()))
        except DataError:
            raise MissingDataError(
                f"{run.folder} has no report.json; run `neurodiff evaluate {run.folder}` first"
            ) from None
    first = parts[0]
    if len(parts) == 1:
        return first
    tables, conditions = [], []
    for run, part in zip(runs, parts, strict=True):
        tables += [(f"{run.folder.name}: {title}", t, note) for title, t, note in part.tables]
        own = part.conditions.copy()
        own.index = pd.Index([f"{run.folder.name}: {name}" for name in own.index])
        conditions.append(own)
    return replace(
        first,
        title=f"{len(parts)} runs",
        simulated=any(part.simulated for part in parts),
        headline=[
            f"{run.folder.name}: {line}"
            for run, part in zip(runs, parts, strict=True)
            for line in part.headline
        ],
        gates=[
            {**gate, "stage": f"{run.folder.name}: {gate['stage']}"}
            for run, part in zip(runs, parts, strict=True)
            for gate in part.gates
        ],
        conditions=pd.concat(conditions),
        tables=tables,
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _write_folder(report: BenchmarkReport, numbers: dict[str, Any], folder: Path) -> Path:
    """``index.html`` with linked pictures, pages of objects to rotate, and the numbers."""
    pairs = [*report.data.pairs, *report.data.plumbing]
    pages = [pairs[k : k + PAIRS_A_PAGE] for k in range(0, len(pairs), PAIRS_A_PAGE)]
    links = []
    for number, part in enumerate(pages, start=1):
        name = f"objects-{number}.html"
        _write_text(folder / name, _objects_page(report.data, part))
        links.append((name, f"{len(part)} objects, page {number} of {len(pages)}"))
    text = report.html(interactive=False, links=links)
    text = text.replace(_POLICY, "img-src 'self' file: data: blob:", 1)
    written: dict[str, str] = {}

    def linked(match: re.Match[str]) -> str:
        kind, data = match.groups()
        content = base64.b64decode(data)
        name = f"pictures/{hashlib.sha256(content).hexdigest()[:16]}.{kind.replace('jpeg', 'jpg')}"
        if name not in written:
            written[name] = kind
            with atomic_write(folder / name) as file:
                file.write(content)
        return f'src="{name}"'

    _write_text(folder / "index.html", _PICTURE.sub(linked, text))
    write_json(folder / "report.json", numbers)
    return folder / "index.html"


def _objects_page(data: ReportData, pairs: Sequence[Pair]) -> str:
    title = f"{data.title}: objects"
    own = ReportData(title=title, simulated=data.simulated, metrics=data.metrics, pairs=pairs)
    return Report(own).html()


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def _table(one: dict[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame(one["rows"], columns=one["columns"])
    if one["index"] != [str(k) for k in range(len(table))]:  # names, and not mere counting
        table.index = pd.Index(one["index"])
    return table


def _words(value: Any) -> str:
    """A value of a record in words."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)
