"""The page about runs that `fit` and `reconstruct` made.

Items whose stimulus has a mesh are pairs, truth beside reconstruction, with their scores. Items
without one, such as recordings whose objects are not distributed, are a plumbing check: the
picture that was shown beside what came out, and no claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.ceilings import ceilings_of_run
from neurodiff.analysis.decoding import Stored, by_source, own_source, stored_results
from neurodiff.analysis.demo import OURS
from neurodiff.analysis.evaluation import NO_TRUTH, Evaluation, true_meshes
from neurodiff.analysis.leakage_run import leakage_table
from neurodiff.analysis.neighbours import (
    condition_rows,
    findings,
    mean_table,
    protocol_in,
    remarks,
    set_table,
)
from neurodiff.analysis.protocols import (
    beside_published,
    is_metric,
    published_table,
    quantity,
    read_card,
    reasons_against,
)
from neurodiff.analysis.report import Pair, Report, ReportData
from neurodiff.analysis.splits import class_lines, describe, mark, trained_on
from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json, write_json
from neurodiff.core.stimuli import Stimuli
from neurodiff.geometry.views import view_strip

if TYPE_CHECKING:
    from PIL import Image

MOST_PAIRS = 24
MOST_CHECKS = 12
STILL = 160


def report_of(runs: Sequence[Run], out: Path, progress: Progress = SILENT) -> Path:
    """Write the page to ``out`` and its numbers beside it, as ``.json`` and in the runs' folders.

    Raises
    ------
    UsageError : no run, one that is named twice, or runs that were scored by different protocols.
    MissingDataError : a run without reconstructions.
    """
    require_different(runs)
    return written(Report(report_data(runs, progress)), runs, out)


def require_different(runs: Sequence[Run]) -> None:
    """UsageError where there is no run, or one that is named twice."""
    folders = [run.folder.resolve() for run in runs]
    if not folders or len(set(folders)) < len(folders):
        raise UsageError("name each run once" if folders else "name at least one run folder")


def written(page: Report, runs: Sequence[Run], out: Path) -> Path:
    """Write a page and its numbers beside it, as ``.json``, and of one run in its folder, too."""
    numbers = page.to_json()
    path = page.save(out)
    write_json(out.with_suffix(".json"), numbers)
    if len(runs) == 1:
        runs[0].write_report_json(numbers)
    return path


def report_data(runs: Sequence[Run], progress: Progress = SILENT) -> ReportData:
    """Everything the page shows."""
    from neurodiff.analysis.run_scores import score_run, set_remarks

    conditions: dict[str, dict[str, Any]] = {}
    beside: dict[str, dict[str, Any]] = {}  # data -> its conditions, where there are several
    pairs: list[Pair] = []
    plumbing: list[Pair] = []
    headline: list[str] = []
    gates: list[dict[str, Any]] = []
    provenance: dict[str, Any] = {}
    metrics: list[str] = []
    notes: list[str] = []
    tables: list[tuple[str, pd.DataFrame, str]] = []
    protocols: dict[str, str] = {}
    simulated = False
    for run in runs:
        stored = stored_results(run)
        table = _scores(run, stored)
        if table is None:
            progress.say(f"scoring {run.folder.name}")
            table = score_run(run, full=False, progress=progress).table
        protocols[protocol_in(table)] = run.folder.name
        if len(protocols) > 1:
            text = " and ".join(f"{folder} by {name}" for name, folder in protocols.items())
            raise UsageError(
                f"scores of two protocols do not go into one table: {text}; run `neurodiff "
                "evaluate RUN --protocol NAME` with one of them for all"
            )
        for data, own in _set_scores(run, protocol_in(table)).groupby("data", sort=False):
            text = "; ".join(f"{name}: {note}" for name, note in set_remarks(own))
            tables.append((f"Of all items together: {data}", set_table(own), text))
        answers = table[table["condition"] == OURS].set_index("key")
        simulated |= any(one.simulated for one in stored) or bool(run.inputs.get("simulated"))
        provenance[run.folder.name] = provenance_of(run)
        notes += [f"{line[0].upper()}{line[1:]}." for line in ceilings_of_run(run)]
        gates += _gates(run, prefix=f"{run.folder.name}: " if len(runs) > 1 else "")
        for source, group in by_source(stored):
            stimuli = source.stimuli()
            scores = answers.loc[[one.key for one in group]]
            known = ~scores["note"].str.startswith(NO_TRUTH).to_numpy()
            label = f"{run.folder.name}, {source.label}" if len(runs) > 1 else source.label
            trained = trained_on(run)
            marked = mark(scores.reset_index(), trained)
            for split, rows in marked.groupby("generalisation", sort=False):
                how = describe(str(split), rows["subject"], trained)
                headline += [f"{label}: {how}."] if how else []
            scored = [one for one, yes in zip(group, known, strict=True) if yes]
            blind = [one for one, yes in zip(group, known, strict=True) if not yes]
            if scored:
                part = Evaluation(scores[known].reset_index(), protocol_in(scores))
                summary = part.summary()
                metrics += [name for name in summary.index if name not in metrics]
                conditions[label] = {"role": "ours"} | {
                    name: row.to_dict() for name, row in summary.iterrows()
                }
                lines = class_lines(marked, list(summary.index))
                headline += [f"{label}: {line}." for line in lines]
                row = summary.loc["CD"]
                headline.append(
                    f"{label}: {len(scored)} reconstructions of {int(row['n'])} stimuli, mean CD "
                    f"{row['mean']:.2f} (median {row['median']:.2f})."
                )
                block = table[table["key"].isin([one.key for one in group])]
                if len(rows := condition_rows(block)) > 1:
                    beside[label] = rows
                    headline += [f"{label}: {line}." for line in findings(block)]
                    notes += [f"{label}: {line}" for line in remarks(block)]
                if source != own_source(run):
                    notes.append(
                        f"{label} was named with --data: whether its objects were among those of "
                        "training is not known here."
                    )
                made = _pairs(scored, scores[known], stimuli, progress)
                if len(runs) > 1:
                    where = f"{run.folder.name}, seed {run.seed}"
                    made = [replace(one, caption=f"{one.caption} ({where})") for one in made]
                pairs += made
            if blind:
                headline.append(
                    f"{label}: {len(blind)} recordings without a mesh of the stimulus went through "
                    "the chain; this checks the plumbing and says nothing about decoding."
                )
                plumbing += [_check(one, stimuli) for one in blind[:MOST_CHECKS]]
                if len(blind) > MOST_CHECKS:
                    notes.append(
                        f"{label}: {MOST_CHECKS} of {len(blind)} plumbing items are shown."
                    )
    for run in runs:
        title, table, text = leakage_table(run, progress)
        tables.append((f"{title}: {run.folder.name}" if len(runs) > 1 else title, table, text))
    for label in conditions:
        if label not in beside:
            notes.append(
                f"The scores of {label} have no baselines or ceiling beside them: the model or the "
                "training data could not be opened; `neurodiff evaluate` says why."
            )
    [protocol] = protocols
    published, told = _published(conditions, protocol, simulated)
    tables += published
    notes += told
    if len(conditions) == 1 and beside:
        [conditions] = beside.values()
    else:  # each has a ceiling of its own, and a figure shows one
        text = "Means with 95 % intervals over stimuli, on the same trials."
        tables += [(f"Beside {k}", mean_table(rows), text) for k, rows in beside.items()]
    return ReportData(
        title="MinD-3D: reconstructions of " + (runs[0].folder.name if len(runs) == 1 else "runs"),
        subtitle=f"{len(pairs)} pairs and {len(plumbing)} plumbing checks; protocol {protocol}",
        simulated=simulated,
        headline=headline,
        provenance=provenance,
        gates=gates,
        conditions=pd.DataFrame.from_dict(conditions, orient="index"),
        metrics=[_metric(name) for name in metrics],
        pairs=pairs,
        plumbing=plumbing,
        tables=tables,
        notes=notes,
    )


def _scores(run: Run, stored: list[Stored]) -> pd.DataFrame | None:
    """The run's table of scores, if it is there and holds every item."""
    try:
        table = run.read_scores()
    except MissingDataError:
        return None
    if not {"key", "condition", "data", "note", "CD"} <= set(table.columns):
        return None
    table["note"] = ["" if pd.isna(note) else str(note) for note in table["note"]]
    ours = set(table["key"][table["condition"] == OURS])
    return table if stored and {one.key for one in stored} <= ours else None


def _set_scores(run: Run, protocol: str) -> pd.DataFrame:
    """Scores of whole sets that were made together with the run's table of scores."""
    try:
        table = run.read_set_scores()
    except MissingDataError:
        return pd.DataFrame(columns=["data"])
    table["note"] = ["" if pd.isna(note) else str(note) for note in table["note"]]
    return table[table["protocol"] == protocol]


def _published(
    conditions: dict[str, dict[str, Any]], protocol: str, simulated: bool
) -> tuple[list[tuple[str, pd.DataFrame, str]], list[str]]:
    """The published figures as a table of their own, with ours where every reason allows it."""
    if protocol != "mind3d-2024" or not conditions:
        return [], []
    card = read_card(protocol)
    notes: list[str] = []
    means: dict[str, dict[str, float]] = {}
    for label, cells in conditions.items():
        for name, cell in cells.items():
            if name == "role":
                continue
            reasons = reasons_against(name, card, protocol=protocol, simulated=simulated)
            if reasons:
                notes.append(f"{label}, {name}: not comparable with published ({reasons[0]})")
            elif cell["n"]:
                means.setdefault(label, {})[name] = cell["mean"]
    table = published_table(card)
    for label, row in means.items():
        merged = beside_published(row, card, label=label, protocol=protocol, simulated=simulated)
        table = pd.concat([table, merged.loc[[label]]])
    text = f"{card.reference}; {card.data}. Not found: {'; '.join(card.not_found)}."
    return [("Published figures", table.astype(str), text)], list(dict.fromkeys(notes))


def _pairs(
    stored: list[Stored], scores: pd.DataFrame, stimuli: Stimuli, progress: Progress
) -> list[Pair]:
    """A fixed random draw, and the best, median and worst by CD."""
    chosen = _chosen(scores["CD"].to_numpy(float))
    truths = true_meshes(stimuli, [stored[k].result.stimulus for k in chosen])
    names = [str(name) for name in scores if is_metric(str(name))]
    several = any(one.result.sample for one in stored)
    pairs = []
    for k in progress.over(list(chosen), "pictures"):
        result = stored[k].result
        stimulus, truth = stimuli[result.stimulus], truths[result.stimulus]
        again = f", repeat {result.repeat}" if result.repeat > 1 else ""
        again += f", sample {result.sample + 1}" if several else ""
        pairs.append(
            Pair(
                stimulus=result.stimulus,
                category=stimulus.category,
                caption=(stimulus.caption or result.stimulus) + again,
                why=chosen[k],
                truth=truth,
                reconstruction=result.mesh,
                truth_still=_still(truth),
                reconstruction_still=_still(result.mesh),
                scores={name: float(scores[name].iloc[k]) for name in names},
            )
        )
    return pairs


def _chosen(distance: np.ndarray) -> dict[int, str]:
    """Item -> why; each item once, the random draw first."""
    order = np.argsort(distance, kind="stable")
    n = len(order)
    few = min(2, n)
    middle = (n - few) // 2
    drawn = np.random.default_rng(0).permutation(n)[: MOST_PAIRS - 3 * few]
    why = dict.fromkeys(drawn.tolist(), "fixed random draw")
    for name, rows in (
        ("best", order[:few]),
        ("worst", order[n - few :]),
        ("median", order[middle : middle + few]),
    ):
        for k in rows.tolist():
            why.setdefault(k, name)
    return why


def _check(one: Stored, stimuli: Stimuli) -> Pair:
    stimulus = stimuli[one.result.stimulus]
    try:
        picture = stimulus.image()
    except MissingDataError:
        picture = None
    return Pair(
        stimulus=one.result.stimulus,
        category=stimulus.category,
        caption=f"{stimulus.caption or one.result.stimulus} ({one.source.name}: plumbing check)",
        why="plumbing check",
        truth_still=picture,
        reconstruction=one.result.mesh,
        reconstruction_still=_still(one.result.mesh),
    )


def _still(mesh: Any) -> Image.Image | None:
    return view_strip(mesh, size=STILL, azimuths=(30.0,)) if len(mesh.faces) else None


def _metric(name: str) -> dict[str, Any]:
    what = quantity(name)
    return {
        "name": name,
        "unit": what.unit,
        "higher_is_better": what.higher_is_better,
        "chance": what.chance,
        "description": what.description,
    }


def _gates(run: Run, prefix: str) -> list[dict[str, Any]]:
    """What each stage of the fit measured."""
    from neurodiff.pipelines.mind3d_files import INDEX

    try:
        stages = read_json(run.folder / "model" / INDEX).get("gates") or []
    except MissingDataError:
        return []
    return [
        {"stage": f"{prefix}{stage['stage']}", "measure": measure, "value": value}
        for stage in stages
        for measure, value in stage.items()
        if measure != "stage"
    ]


def provenance_of(run: Run) -> dict[str, Any]:
    """Where a run comes from, in words."""
    info, inputs = run.info, run.inputs
    revision = info.get("git") or {}
    words = {
        "recipe": run.recipe.get("name", ""),
        "training data": inputs.get("data", ""),
        "simulated": "yes" if inputs.get("simulated") else "no",
        "training trials": inputs.get("trials", ""),
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "command": " ".join(info.get("command") or []),
        "neurodiff": info.get("neurodiff") or "",
        "revision": f"{revision.get('commit') or 'unknown'}",
        "platform": info.get("platform", ""),
        "wall time": f"{info.get('wall_s', 0):.0f} s",
        "peak memory": f"{info.get('peak_memory_mb', 0):.0f} MB",
    }
    return {key: str(value) for key, value in words.items()}
