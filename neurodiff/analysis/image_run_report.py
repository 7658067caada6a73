"""The page about runs that decoded pictures: plain data for `page_images` from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neurodiff.analysis.figures import format_number
from neurodiff.analysis.image_conditions import CEILING, OURS
from neurodiff.analysis.image_fit import MODEL
from neurodiff.analysis.image_items import TRUE_TASK, StoredPicture, stored_pictures
from neurodiff.analysis.image_protocols import (
    TWO_WAY,
    ImageCard,
    beside_published_images,
    image_reasons_against,
    metric_of,
    read_image_card,
)
from neurodiff.analysis.image_run_scores import (
    LOW,
    GroupScores,
    read_image_scores,
    score_image_run,
)
from neurodiff.analysis.image_verbs import split_lines, way_lines
from neurodiff.analysis.leakage_run import leakage_table
from neurodiff.analysis.page_images import (
    ImageFindings,
    image_report,
    nearness_table,
    picture_grids,
    score_table,
)
from neurodiff.analysis.run_report import provenance_of, require_different, written
from neurodiff.analysis.splits import trained_on
from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json
from neurodiff.pipelines.pictures import Picture

if TYPE_CHECKING:
    import PIL.Image

RANKED_BY = ("CLIP", "EfficientNet", "")  # the network of the 2-way score that ranks items


def image_report_of(runs: Sequence[Run], out: Path, progress: Progress = SILENT) -> Path:
    """Write the page to ``out`` and its numbers beside it, as ``.json`` and in the run's folder.

    The first group of items (see ``groups_of``) has the figures and the walls of pictures, the
    others a table each.

    Raises
    ------
    UsageError : no run, one that is named twice, or runs that were scored by different protocols.
    MissingDataError : a run without pictures.
    """
    require_different(runs)
    return written(image_report(image_findings(runs, progress)), runs, out)


def image_findings(runs: Sequence[Run], progress: Progress = SILENT) -> ImageFindings:
    """Everything the page shows."""
    groups: list[tuple[Run, GroupScores]] = []
    protocols: dict[str, str] = {}
    for run in runs:
        found = read_image_scores(run)
        if found is None:
            progress.say(f"scoring {run.folder.name}")
            found = score_image_run(run, progress=progress)
        protocols[str((run.info.get("scores") or {}).get("protocol"))] = run.folder.name
        groups += [(run, group) for group in found]
    if len(protocols) > 1:
        text = " and ".join(f"{folder} by {name}" for name, folder in protocols.items())
        raise UsageError(
            f"scores of two protocols do not go into one table: {text}; run `neurodiff evaluate "
            "RUN --protocol NAME` with one of them for all"
        )
    [protocol] = protocols
    scored = [(run, group) for run, group in groups if group.conditions is not None]
    if not scored:
        raise MissingDataError(
            "no item of these runs has a true picture to stand beside; there is nothing to report"
        )
    headline: list[str] = []
    notes: list[str] = []
    tables: list[tuple[str, pd.DataFrame, str]] = []
    for run, group in groups:
        label = f"{run.folder.name}, {group.label}" if len(runs) > 1 else group.label
        if group.conditions is None:
            notes.append(f"{label}: {len(group.pictures)} items have no true picture, no score.")
            continue
        evaluation = group.conditions.evaluations[OURS]
        headline += [f"{label}: {x}." for x in split_lines(evaluation.table, trained_on(run))]
        headline += [f"{label}: {line}." for line in _findings(group)]
        notes += [line for line in group.remarks if line.startswith(("Not available", "Training"))]
    main_run, main = scored[0]
    for run, group in scored[1:]:
        assert group.conditions is not None
        label = f"{run.folder.name}, {group.label}"
        tables.append((f"Scores of {label}", score_table(group.conditions), "As the first table."))
    published, told = published_beside(main_run, main, protocol)
    tables += _nearness(main)
    for run in runs:
        title, table, text = leakage_table(run, progress)
        tables.append((f"{title}: {run.folder.name}" if len(runs) > 1 else title, table, text))
    return ImageFindings(
        title="Brain-Diffuser: pictures of "
        + (main_run.folder.name if len(runs) == 1 else f"{len(runs)} runs"),
        simulated=any(one.simulated for _, group in groups for one in group.pictures),
        conditions=main.conditions,  # type: ignore[arg-type]  # of a scored group
        subtitle=f"{len(main.pictures)} pictures; protocol {protocol}",
        headline=headline,
        gates=[gate for run in runs for gate in _gates(run, run.folder.name, len(runs) > 1)],
        grids=_grids(main_run, main, progress),
        published=published,
        tables=tables,
        notes=list(dict.fromkeys([*notes, *told])),
        provenance={run.folder.name: provenance_of(run) for run in runs},
    )


def rank_metric(metrics: Sequence[str]) -> str:
    """The column by which items are ranked: 2-way of CLIP, else another, else PixCorr."""
    two_way = [name for name in metrics if metric_of(name) == TWO_WAY]
    for start in RANKED_BY:
        for name in two_way:
            if name.removeprefix(f"{TWO_WAY} [").startswith(start):
                return name
    return "PixCorr"


def _findings(group: GroupScores) -> list[str]:
    """The main score in words, and how far it is on its way to the ceiling."""
    assert group.conditions is not None
    table = group.conditions.table
    own = table[table["condition"] == OURS].set_index("metric")
    name = rank_metric(list(own.index))
    row = own.loc[name]
    mean, low, high = (format_number(row[column]) for column in ("mean", "low", "high"))
    chance = f", chance {format_number(row['chance'])}" if pd.notna(row["chance"]) else ""
    text = f"{name} {mean} [{low}, {high}] over {int(row['n'])} pictures{chance}"
    return [text, *(line for line in way_lines(group) if line.startswith(f"{name}:"))]


def _grids(run: Run, group: GroupScores, progress: Progress) -> list[Any]:
    assert group.conditions is not None
    scores = group.conditions.evaluations[OURS].table
    known = set(scores.dropna(subset=["PixCorr"])["stimulus"])
    pictures = [one.picture for one in group.pictures if one.picture.stimulus in known]
    stimuli = group.pictures[0].source.stimuli()
    shown: dict[str, PIL.Image.Image] = {}
    for name in progress.over(dict.fromkeys(p.stimulus for p in pictures), "pictures of the page"):
        shown[name] = stimuli[name].image()
    answers: dict[str, list[Picture]] = {OURS: pictures}
    low = [
        Picture(p.subject, p.stimulus, p.repeat, p.sample, p.init_image)
        for p in pictures
        if p.init_image is not None
    ]
    if low:
        answers[LOW] = low
    ceiling = [one.picture for one in stored_pictures(run, TRUE_TASK) if _same(one, group)]
    if ceiling and CEILING in group.conditions.evaluations:
        answers[CEILING] = ceiling
    metric = rank_metric(group.conditions.evaluations[OURS].metrics)
    return picture_grids(shown, answers, scores, metric, seed=run.seed)


def _same(one: StoredPicture, group: GroupScores) -> bool:
    first = group.pictures[0]
    return (one.source.data, one.averaged) == (first.source.data, first.averaged)


def _nearness(group: GroupScores) -> list[tuple[str, pd.DataFrame, str]]:
    """The score by how near the nearest training picture is, where that is known."""
    assert group.conditions is not None
    evaluation = group.conditions.evaluations[OURS]
    metric = rank_metric(evaluation.metrics)
    networks = [name for name in evaluation.table if str(name).startswith("nearest train [")]
    if not networks:
        return []
    network = str(networks[0]).removeprefix("nearest train [").removesuffix("]")
    try:
        table = nearness_table(evaluation, metric, network)
    except UsageError:  # too few pictures
        return []
    return [(f"{metric} by the nearest training picture", table, f"Likeness by {network}.")]


def published_beside(
    run: Run, group: GroupScores, protocol: str
) -> tuple[pd.DataFrame | None, list[str]]:
    """The published rows of as many sessions with ours, where every reason allows it."""
    if protocol == "neurodiff-1":
        return None, [
            "No published figures stand beside these: they were made by other protocols "
            "(`neurodiff evaluate RUN --protocol brain-diffuser-2023` or mindeye-2023)."
        ]
    assert group.conditions is not None
    card: ImageCard = read_image_card(protocol)
    simulated = any(one.simulated for one in group.pictures)
    sessions = (trained_on(run) or {}).get("sessions")
    table = group.conditions.table
    own = table[table["condition"] == OURS].set_index("metric")["mean"]
    means, notes = {}, []
    for name in own.index:
        if metric_of(name) not in {metric_of(one.ours) for one in card.metrics.values()}:
            continue
        reasons = image_reasons_against(
            name, card, protocol=protocol, simulated=simulated, sessions=sessions
        )
        if reasons:
            notes.append(f"{name}: not comparable with published figures ({'; '.join(reasons)}).")
        else:
            means[name] = float(own[name])
    if not means:
        return None, notes
    beside = beside_published_images(
        means, card, label=group.label, protocol=protocol, simulated=simulated, sessions=sessions
    )
    return beside, notes


def _gates(run: Run, name: str, several: bool) -> list[dict[str, Any]]:
    """What each stage of the fit measured."""
    from neurodiff.pipelines.brain_diffuser_files import INDEX

    try:
        stages = read_json(run.folder / MODEL / INDEX).get("gates") or []
    except MissingDataError:
        return []
    prefix = f"{name}: " if several else ""
    return [
        {"stage": f"{prefix}{stage['stage']}", "measure": measure, "value": value}
        for stage in stages
        for measure, value in stage.items()
        if measure != "stage" and value is not None
    ]
