"""Scores of a run's decoded objects beside baselines and ceiling, and their summary as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from neurodiff.analysis.decoding import by_source, stored_results
from neurodiff.analysis.splits import (
    COLUMNS,
    class_lines,
    describe,
    mark,
    trained_on,
)
from neurodiff.core.errors import MissingDataError
from neurodiff.core.progress import Progress
from neurodiff.core.run import MODEL, Run

SET_COLUMNS = ["data", "protocol", "condition", "metric", "value", "low", "high", "n", "note"]


class RunScores(NamedTuple):
    """Scores of items and conditions, scores of whole sets, and what is to be known of networks."""

    table: pd.DataFrame
    sets: pd.DataFrame
    notes: tuple[str, ...]


def score_run(
    opened: Run,
    *,
    full: bool,
    progress: Progress,
    protocol: str = "neurodiff-1",
    weights: Path | None = None,
) -> RunScores:
    """Scores of every decoded item of a run, which are also written to its folder.

    Columns: key, condition, data, simulated, protocol, and those of `Evaluation.table`. The
    reconstructions are the condition ``MinD-3D``; one row a trial and other condition has the key
    of the trial's first item. Conditions that cannot be made are left out, and the progress says
    why.
    """
    from neurodiff.analysis.demo import OURS
    from neurodiff.analysis.evaluation import NO_TRUTH, evaluate
    from neurodiff.analysis.neighbours import Neighbours
    from neurodiff.analysis.networks import find_networks
    from neurodiff.analysis.protocols import protocol_of

    protocol_of(protocol)
    stored = stored_results(opened)
    if not stored:
        raise MissingDataError(
            f"{opened.folder} holds no reconstruction; run `neurodiff reconstruct {opened.folder}`"
        )
    networks = find_networks(weights) if full else None
    beside = Neighbours(opened, opened.folder / MODEL, progress)
    known_people = trained_on(opened)
    parts, sets = [], []
    for source, group in by_source(stored):
        results = [one.result for one in group]
        own = evaluate(
            results, source.stimuli(), protocol, full=full, weights=weights, progress=progress
        )
        scored = own.table
        columns = ["key", "condition", "data", "simulated", "protocol", *scored.columns]
        scored["key"] = [one.key for one in group]
        scored["condition"] = OURS
        known = ~scored["note"].str.startswith(NO_TRUTH)
        trials = ["subject", "stimulus", "repeat"]
        once = scored[known].drop_duplicates(trials)
        tables = [scored]
        rows = [{"condition": _sample_name(OURS, r)} | r for r in own.sets.to_dict("records")]
        if len(once):
            others = beside.scores(
                source,
                [results[k] for k in once.index],
                full=full,
                protocol=protocol,
                weights=weights,
            )
            rows += beside.sets
            if len(others):
                tables.append(others.merge(once[[*trials, "key"]], on=trials, how="left"))
        for row in rows:
            row.pop("sample", None)
            sets.append({"data": source.label, "protocol": protocol} | row)
        for part in tables:
            part["data"] = source.label
            part["simulated"] = any(one.simulated for one in group)
            part["protocol"] = protocol
            parts.append(mark(part, known_people)[[*columns, *COLUMNS]])
    table = pd.concat(parts, ignore_index=True)
    of_sets = pd.DataFrame(sets, columns=SET_COLUMNS)
    opened.write_scores(table)
    opened.write_set_scores(of_sets)
    opened.info["networks"] = (
        {use: {"name": one.name, "sha256": one.hashes()} for use, one in networks.found.items()}
        if networks is not None
        else {}
    )
    opened.touch()
    return RunScores(table, of_sets, tuple(networks.lines()) if networks is not None else ())


def _sample_name(condition: str, row: dict[str, Any]) -> str:
    """Each sample of a trial makes a set of its own."""
    return f"{condition}, sample {row['sample'] + 1}" if row["sample"] else condition


def summary_text(
    table: pd.DataFrame,
    sets: pd.DataFrame | None = None,
    trained: Mapping[str, Any] | None = None,
) -> str:
    """Mean, median and interval of each metric, one block a data set, as plain text.

    Below it stand the other conditions, the ways from the floors to the ceiling, and the scores
    of whole sets. A network that makes a column is in the column's name. A block is one data set
    and one of the splits core, across-person, across-class and across-person-across-class;
    ``trained`` is what the run was trained on.
    """
    from neurodiff.analysis.demo import OURS
    from neurodiff.analysis.evaluation import Evaluation
    from neurodiff.analysis.neighbours import (
        condition_rows,
        findings,
        mean_table,
        protocol_in,
        remarks,
        set_table,
    )
    from neurodiff.analysis.protocols import quantity

    lines = []
    for (data, _), block in table.groupby(["data", "generalisation"], sort=False):
        part = block[block["condition"] == OURS]
        protocol = protocol_in(part)
        scored = Evaluation(part.reset_index(drop=True), protocol)
        label = ", simulated" if part["simulated"].all() else ""
        by = f", by {protocol}" if protocol != "neurodiff-1" else ""
        empty = int((part["note"] == "empty mesh").sum())
        [split] = set(part["generalisation"])
        how = describe(split, part["subject"], trained)
        lines.append(f"{data}{label}: {len(part)} items, {empty} with an empty mesh{by}")
        lines += [f"  split: {how}"] if how else []
        summary = scored.summary()
        width = max([7, *(len(str(name)) for name in summary.index)])
        if (summary["n"] > 0).any():
            for name, row in summary.iterrows():
                if row["n"] == 0:
                    lines.append(
                        f"  {name:<{width}} not available: no item that it can be asked of"
                    )
                    continue
                what = quantity(str(name))
                better = "higher" if what.higher_is_better else "lower"
                chance = f", chance {what.chance:g}" if what.chance is not None else ""
                lines.append(
                    f"  {name:<{width}} mean {row['mean']:.3f} [{row['low']:.3f}, "
                    f"{row['high']:.3f}], median {row['median']:.3f}, n {int(row['n'])} stimuli"
                    f"{f', {what.unit}' if what.unit else ''}{chance} ({better} is better)"
                )
        lines += [f"  {line}" for line in class_lines(part, scored.metrics)]
        if scored.no_truth:
            names = ", ".join(scored.no_truth[:3]) + (" ..." if len(scored.no_truth) > 3 else "")
            lines.append(f"  no truth (no mesh) for {len(scored.no_truth)} stimuli: {names}")
        if len(part) < len(block):
            lines.append("  beside the same trials, means with 95 % intervals over stimuli:")
            text = mean_table(condition_rows(block)).rename_axis(columns="condition").to_string()
            lines += [f"    {line}" for line in text.splitlines()]
            lines += [f"  {line}" for line in [*findings(block), *remarks(block)]]
        own = sets[sets["data"] == data] if sets is not None else pd.DataFrame()
        if len(own):
            lines.append("  of all items together, with a 95 % interval (jackknife over items):")
            lines += [f"    {line}" for line in set_table(own).to_string().splitlines()]
            lines += [f"  {name}: {note}" for name, note in set_remarks(own)]
    return "\n".join(lines)


def set_remarks(sets: pd.DataFrame) -> list[tuple[str, str]]:
    """What is to be known of scores of whole sets: unit, direction, and rank; one a metric."""
    from neurodiff.analysis.protocols import quantity

    found: dict[str, str] = {}
    for row in sets.to_dict("records"):
        what = quantity(row["metric"])
        better = "higher" if what.higher_is_better else "lower"
        note = f"; {row['note']}" if row["note"] else ""
        found.setdefault(row["metric"], f"{what.unit}, {better} is better{note}")
    return list(found.items())
