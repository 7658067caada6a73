"""The sections of the benchmark report, as plain data for its template and for its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from neurodiff.analysis import page
from neurodiff.analysis.benchmark_answers import MULTIPLICITY, STATISTICS, found_answers
from neurodiff.analysis.benchmark_bottleneck import bottleneck_facts, bottleneck_of
from neurodiff.analysis.benchmark_data import (
    Leaks,
    effective_dimension,
    leaks_of_run,
    noise_ceilings,
    open_run_data,
    repeats_text,
)
from neurodiff.analysis.benchmark_published import published_rows
from neurodiff.analysis.benchmark_record import record_of
from neurodiff.analysis.benchmark_replay import commands, plan_of
from neurodiff.analysis.benchmark_scores import (
    against_floors,
    missing_scores,
    quantity_of,
    score_rows,
    tidy_scores,
)
from neurodiff.analysis.benchmark_uncertainty import (
    means_by_source,
    sources_of_uncertainty,
    spread_of_samples,
)
from neurodiff.analysis.checklists import NAMES, facts_of, filled, read_checklist
from neurodiff.analysis.figures import format_number
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Run


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the page: facts, then tables (title, table, note, folded), notes, commands."""

    id: str
    link: str
    title: str
    lead: str = ""
    scores: bool = False
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: Sequence[tuple[str, pd.DataFrame, str, bool]] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()

    def view(self) -> dict[str, Any]:
        """For the template."""
        tables = [
            {"title": title, "note": note, "folded": folded, **page.table_view(table)}
            for title, table, note, folded in self.tables
        ]
        return {**vars(self), "tables": tables}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What the benchmark report says beyond the pictures and panels of a pipeline's page."""

    records: dict[str, dict[str, Any]]
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """Records, and every table by section and title."""
        tables = {
            one.id: {title: page.table_numbers(table) for title, table, _, _ in one.tables}
            for one in self.sections
        }
        notes = {one.id: list(one.notes) for one in self.sections if one.notes}
        lines = {one.id: list(one.commands) for one in self.sections if one.commands}
        return {"records": self.records, "tables": tables, "notes": notes, "commands": lines}


def benchmark_of(
    runs: Sequence[Run],
    *,
    notes: Sequence[str] = (),
    strict: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Benchmark:
    """Gather everything about runs.

    Parameters
    ----------
    notes : limits that the page states elsewhere; they answer items of checklists.
    strict : a leak is an error.
    seed : of the bootstrap and of the tests.

    Raises
    ------
    UsageError : with ``strict``, a stimulus of the test that is in the training.
    """
    records, leaks, ceilings, curves = {}, {}, {}, {}
    for run in runs:
        name = run.folder.name
        progress.say(f"gathering {name}")
        opened = open_run_data(run, progress)
        records[name] = record_of(run, opened)
        leaks[name] = leaks_of_run(run, opened, progress)
        if strict and leaks[name].errors:
            raise UsageError(f"{name}: {leaks[name].text}; and --strict is on")
        ceilings[name] = noise_ceilings(opened)
        curves[name] = bottleneck_of(run, opened, seed)
    tidies = {run.folder.name: tidy_scores(run) for run in runs}
    scores = _scores(runs, tidies, ceilings, seed)
    uncertainty = _uncertainty(runs, tidies)
    replay = _replay(runs)
    found = found_answers(
        tidies,
        leaks,
        {name: text for name, (_, text) in ceilings.items()},
        limits=notes,
        sources=uncertainty.notes,
        commands=replay.commands,
    )
    sections = (
        _identity(records),
        _data(records, leaks),
        _weights(records),
        scores,
        *[Section(**one) for one in bottleneck_facts(curves)],
        uncertainty,
        _published(runs),
        _checklists(facts_of(records, found)),
        replay,
    )
    return Benchmark(records=records, sections=sections)


# ------------------------------------------------------------------------------------ sections


def _identity(records: Mapping[str, Mapping[str, Any]]) -> Section:
    facts = {
        name: {
            "identity": record["identity"],
            "circumstances": record["circumstances"],
            "versions": record["versions"],
            "environment": record["environment"],
            "seeds": record["seeds"],
            "how predictions were taken": _rules(record),
            "settings": _flat(record["settings"]),
        }
        for name, record in records.items()
    }
    return Section(
        id="identity",
        link="Identity",
        title="What was run",
        lead="Taken from the runs' own files; what a run did not record is said to be so.",
        facts=facts,
    )


def _rules(record: Mapping[str, Any]) -> dict[str, Any]:
    decoder = record["settings"].get("decoder")
    known = decoder.get("standardise") if isinstance(decoder, Mapping) else None
    return {
        "selection among samples": "none: every sample is scored, and samples are averaged",
        "predictions brought to scale with": known or "nothing of the test set",
        "blending with other pictures": "none",
    }


def _data(records: Mapping[str, Mapping[str, Any]], leaks: Mapping[str, Leaks]) -> Section:
    rows = []
    for name, record in records.items():
        counts = record["data"].get("counts")
        for split, one in (counts if isinstance(counts, Mapping) else {}).items():
            cells = {k: v for k, v in one.items() if k != "stimuli by repeats"}
            rows.append({"run": name, "split": split, **cells, "repeats": repeats_text(one)})
    tables = [("Counts by split", pd.DataFrame(rows), "Repeats: stimuli x trials each.", False)]
    tables = tables if rows else []
    notes = []
    for name, found in leaks.items():
        if len(found.table):
            title = f"Is the test in the training? {name}"
            tables.append((title, found.table, f"{found.note} {found.text}.", False))
        else:
            notes.append(f"{name}: {found.note}")
    failed = {name: record["items"]["failed"] for name, record in records.items()}
    notes += [f"{name}: failed: {line}" for name, lines in failed.items() for line in lines[:20]]
    facts = {
        name: {k: v for k, v in record["data"].items() if k != "counts" or isinstance(v, str)}
        | {"items": record["items"]["counts"]}
        | {"SHA-256 of all items": record["items"]["sha256 of all files"] or "none"}
        for name, record in records.items()
    }
    return Section(
        id="data",
        link="Data",
        title="Data, split and leaks",
        facts=facts,
        tables=tables,
        notes=notes,
    )


def _weights(records: Mapping[str, Mapping[str, Any]]) -> Section:
    tables = [
        (f"{name}: files of weights", pd.DataFrame(record["weights"]), "", len(records) > 1)
        for name, record in records.items()
        if record["weights"]
    ]
    notes = [f"{name}: no weights." for name, record in records.items() if not record["weights"]]
    lead = "Loaded as safetensors or arrays without code. The licence of a fitted part is bounded "
    return Section(
        id="weights",
        link="Weights",
        title="Weights",
        lead=lead + "by the terms of the data it was fitted to.",
        tables=tables,
        notes=notes,
    )


def _scores(
    runs: Sequence[Run],
    tidies: Mapping[str, pd.DataFrame],
    ceilings: Mapping[str, tuple[pd.DataFrame, str]],
    seed: int,
) -> Section:
    tables: list[tuple[str, pd.DataFrame, str, bool]] = []
    notes = []
    for run in runs:
        name, tidy = run.folder.name, tidies[run.folder.name]
        if not len(tidy):
            notes.append(f"{name}: not scored; `neurodiff evaluate` was not run.")
            continue
        rows = score_rows(tidy, seed=seed)
        for (data, subject), part in rows.groupby(["data", "subject"], sort=False):
            who = f", {subject}" if subject else ""
            n = sorted(set(part["n"]))
            text = f"Mean with its 95 % interval; n {', '.join(map(str, n))}."
            tables.append((f"{name}: {data}{who}", _wide(part), text, len(tables) > 3))
        better = {
            str(m): what.higher_is_better
            for m in tidy["metric"].unique()
            if (what := quantity_of(str(m), run)) is not None
        }
        floors = against_floors(tidy, better, seed=seed)
        if len(floors):
            text = (
                "share: 0 at the floor, 1 at the ceiling, beside the raw score and never instead "
                f"of it. {STATISTICS[0].upper()}{STATISTICS[1:]}. Corrected by {MULTIPLICITY}."
            )
            first = ["data"] if floors["data"].nunique() > 1 else []
            first += ["metric", "floor", "ours", "floor mean", "ceiling mean", "difference"]
            columns = [*first, "p", "holm", "q", "n", "share", "share low", "share high", "note"]
            tables.append((f"{name}: against each floor", floors[columns], text, False))
        notes.append(f"{name}: {effective_dimension(run)}.")
        lost = missing_scores(run)
        if len(lost):
            tables.append((f"{name}: items without a number", lost, "", True))
        chances = {
            m: what.chance
            for m in tidy["metric"].unique()
            if (what := quantity_of(str(m), run)) is not None and what.chance is not None
        }
        notes += [f"{name}: chance of {m} is {format_number(c)}." for m, c in chances.items()]
    for name, (table, text) in ceilings.items():
        if len(table):
            tables.append((f"{name}: noise ceilings", table, "Beside the scores.", False))
        notes += [f"{name}: {line}" for line in text.splitlines()]
    return Section(
        id="numbers",
        link="Numbers",
        title="Scores, floors and ceilings",
        scores=True,
        lead="Each subject apart, and all together where there are several.",
        tables=tables,
        notes=notes,
    )


def _wide(part: pd.DataFrame) -> pd.DataFrame:
    """Conditions as rows, metrics as columns, cells in words."""
    table = part.assign(
        words=[
            f"{format_number(m)} [{format_number(lo)}, {format_number(hi)}]"
            if lo == lo
            else format_number(m)
            for m, lo, hi in part[["mean", "low", "high"]].to_numpy()
        ]
    )
    wide = table.pivot_table("words", ["condition", "role"], "metric", "first", sort=False)
    wide = wide.fillna("not available").reset_index("role").rename_axis(None, axis=1)
    return wide.rename_axis(None)


def _uncertainty(runs: Sequence[Run], tidies: Mapping[str, pd.DataFrame]) -> Section:
    table, notes = sources_of_uncertainty(runs)
    means = means_by_source(runs)
    tables: list[tuple[str, pd.DataFrame, str, bool]] = []
    if len(table):
        text = "Variance components of a crossed design; SD in the unit of the metric."
        tables.append(("Where a score would move", table, text, False))
    if len(runs) > 1 and len(means):
        keys = ["data", "metric"]
        wide = means.pivot_table("mean", ["run", "seed", "subject"], keys, sort=False)
        wide.columns = [f"{metric} ({data})" for data, metric in wide.columns]
        tables.append(("Every run and subject", wide.reset_index(), "Means of the method.", False))
    for name, tidy in tidies.items():
        spread = spread_of_samples(tidy)
        if len(spread):
            tables.append((f"{name}: spread of samples", spread, "Of one trial.", False))
    return Section(
        id="uncertainty",
        link="Uncertainty",
        title="Training seeds, subjects and stimuli apart",
        scores=True,
        lead="Several runs of one recipe, with other seeds or people, tell the sources apart.",
        tables=tables,
        notes=notes,
    )


def _published(runs: Sequence[Run]) -> Section:
    table = published_rows(runs)
    tables = [("", table, "", len(table) > 24)] if len(table) else []
    tables = [("Published figures", table, note, fold) for _, table, note, fold in tables]
    return Section(
        id="published",
        link="Published",
        title="Published beside ours",
        lead="A figure of ours stands beside a published one only where nothing differs.",
        tables=tables,
        notes=[] if len(table) else ["No protocol card has a metric of these runs."],
    )


def _checklists(facts: Mapping[str, str]) -> Section:
    tables, notes = [], []
    for name in NAMES:
        checklist = read_checklist(name)
        table = filled(checklist, facts)
        known = int(table["known"].sum())
        title = f"{checklist.title}: {known} of {len(table)} answered"
        tables.append((title, table.drop(columns="known"), checklist.reference, True))
        notes += [checklist.about] if checklist.about not in notes else []
    return Section(
        id="checklists",
        link="Checklists",
        title="Reporting checklists",
        tables=tables,
        notes=notes,
    )


def _replay(runs: Sequence[Run]) -> Section:
    lines, notes = [], []
    for run in runs:
        try:
            plan = plan_of(run)
        except UsageError as error:
            notes.append(f"{run.folder.name}: {error}.")
            continue
        lines += [f"# {run.folder.name}: its recipe.yaml holds every setting"]
        lines += commands(plan, recipe=f"{run.folder.name}/recipe.yaml")
        lines += [f"neurodiff report verify {run.folder.name}   # the same in a fresh process"]
    names = " ".join(run.folder.name for run in runs)
    lines += ["# this page", f"neurodiff report benchmark {names} --out report.html"]
    return Section(
        id="replay",
        link="Replay",
        title="Do it again",
        lead="From the folder that holds the runs.",
        notes=notes,
        commands=lines,
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= _flat(one, name) if isinstance(one, Mapping) and one else {name: one}
    return found
