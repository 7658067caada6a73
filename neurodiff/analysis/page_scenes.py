"""The page of the Brain-Diffuser demo: what was measured, against which bars, and what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.image_conditions import CEILING, OURS
from neurodiff.analysis.image_run_scores import LOW
from neurodiff.analysis.page import page_provenance
from neurodiff.analysis.page_images import (
    ImageFindings,
    dimension_table,
    image_report,
    picture_grids,
)
from neurodiff.analysis.report import PictureGrid
from neurodiff.core.progress import Progress
from neurodiff.datasets.simulated.scene_subject import PREFERRED
from neurodiff.datasets.simulated.subject import DEFAULT_CEILING, HARD_CEILING

if TYPE_CHECKING:
    from neurodiff.analysis.demo_images import SceneOutcome

TWO_WAY, WITHIN = "2-way [scene judge]", "2-way within [scene judge]"


def write_scene_page(outcome: SceneOutcome, progress: Progress) -> list[str]:
    """Write ``report.html`` and ``report.json``; returns the headline findings."""
    conditions = outcome.conditions
    assert conditions is not None
    gates, findings = _gates(outcome)
    place = {name: k for k, name in enumerate(outcome.scenes["test"].ids)}
    ids = [one.stimulus for one in outcome.pictures["ours"]]
    shown = {name: outcome.stimuli[name].image() for name in ids if name in place}
    grids = picture_grids(
        shown,
        {
            OURS: outcome.pictures["ours"],
            LOW: outcome.pictures[LOW],
            CEILING: outcome.pictures["true"],
        },
        conditions.evaluations[OURS].table,
        TWO_WAY,
        seed=outcome.run.seed,
        limit=48,
    )
    report = image_report(
        ImageFindings(
            title="Brain-Diffuser: from fMRI to an image",
            simulated=True,
            subtitle="A simulated subject with a planted truth: every score has a known answer",
            headline=findings,
            gates=gates,
            conditions=conditions,
            grids=[*grids, *_roi_grid(outcome)],
            bottleneck={OURS: outcome.bottleneck},
            bottleneck_metric=TWO_WAY,
            rois=_roi_table(outcome),
            tables=_tables(outcome),
            notes=_notes(),
            provenance=_provenance(outcome),
        )
    )
    progress.say("report: writing the page")
    outcome.run.write_report_html(report.html())
    outcome.run.write_report_json(report.to_json())
    return findings


def _gates(outcome: SceneOutcome) -> tuple[list[dict], list[str]]:
    """Stage by stage, so that a failing chain shows where; with the bars of the project."""
    gates: list[dict] = []

    def gate(stage, measure, value, reference=None, passed=None, note=""):
        row = (stage, measure, value, reference, "", passed, note)
        keys = ("stage", "measure", "value", "reference", "unit", "passed", "note")
        gates.append(dict(zip(keys, row, strict=True)))

    for one in outcome.pipe.gates:
        for measure, value in one.items():
            if measure != "stage" and value is not None and not one["stage"].startswith("decoder"):
                gate(one["stage"], measure, value)
    for row in outcome.heads.to_dict("records"):
        gate(
            f"decoder, {row['head']}",
            f"correlation over test scenes, mean of {row['targets']:,} targets",
            row["test correlation"],
            note=f"95 % {row['low']:.2f} to {row['high']:.2f}; shuffled {row['chance']:.3f}, "
            f"p {row['p']:.3f}",
        )
    for task, share in outcome.judged.items():
        gate("judge", f"{task} of true held-out scenes", share)
    assert outcome.conditions is not None
    table = outcome.conditions.table.set_index(["condition", "metric"])
    findings = []
    for metric, bar in ((TWO_WAY, 0.85), (WITHIN, 0.50), ("PixCorr", 0.50)):
        row = table.loc[(OURS, metric)]
        way = float(row["share"])
        interval = f"{row['share_low']:.2f} to {row['share_high']:.2f}"
        passed = bool(way >= bar) if np.isfinite(way) else False
        note = f"95 % {interval}; score {row['mean']:.3f}, base: {row['base'] or 'none'}"
        gate("whole chain", f"way from base to ceiling, {metric}", way, bar, passed, note)
        told = (
            f"{way:.0%} of the way from the best baseline without a brain ({row['base']})"
            if np.isfinite(way)
            else f"no way to tell: {row['note']}"
        )
        findings.append(
            f"{metric}: {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f}), ceiling "
            f"{table.loc[(CEILING, metric), 'mean']:.3f}; {told}."
        )
    p = float(table.loc[(OURS, TWO_WAY), "p"])
    gate("whole chain", "permutation p of 2-way", p, 0.01, bool(p < 0.01))
    for name, found in outcome.rois.items():
        at = found.overall
        own = name == "each area alone"
        gate(
            "scenes of areas",
            f"AUC of tuned above null areas, {name}",
            at.value,
            0.90 if own else None,
            bool(at.value >= 0.90) if own else None,
            f"95 % {at.low:.2f} to {at.high:.2f}; chance 0.5",
        )
        if own:
            findings.append(
                f"Scenes of single areas: AUC {at.value:.2f} ({at.low:.2f} to {at.high:.2f}) of "
                "what a tuned area prefers above areas that carry nothing (chance 0.5)."
            )
    wins = [g for g in gates if g["passed"] is not None]
    met = sum(bool(g["passed"]) for g in wins)
    findings.append(f"{met} of {len(wins)} bars are met; the table of gates shows each.")
    return gates, findings


def _roi_table(outcome: SceneOutcome) -> pd.DataFrame:
    parts = [found.table.assign(scaling=name) for name, found in outcome.rois.items()]
    return pd.concat(parts, ignore_index=True)


def _roi_grid(outcome: SceneOutcome) -> list[PictureGrid]:
    """The first scenes of every area, tuned ones first."""
    if not outcome.roi_pictures:
        return []
    most = max(len(pictures) for pictures in outcome.roi_pictures.values())
    names = tuple(f"sample {k + 1}" for k in range(most))
    items = []
    for area, pictures in outcome.roi_pictures.items():
        told = f"prefers {PREFERRED[area][1]}" if area in PREFERRED else "carries nothing"
        items.append((area, [one.image for one in pictures], told))
    return [
        PictureGrid(
            title="Scenes that single areas call for",
            why="Every tuned area and every area that carries nothing, all samples.",
            names=names,
            items=items,
        )
    ]


def _tables(outcome: SceneOutcome) -> list[tuple[str, pd.DataFrame, str]]:
    from neurodiff.pipelines.brain_diffuser_settings import HEADS

    predicted, true = outcome.features["ours"], outcome.features["true"]
    spans = {}
    for head in HEADS:
        targets = outcome.pipe.heads[head].targets_
        train = targets.block(0, min(targets.shape[1], 2000), np.float32)
        spans[head] = tuple(
            part.reshape(len(part), -1)[:, : train.shape[1]]
            for part in (getattr(predicted, head), getattr(true, head), train)
        )
    return [
        (
            "What the judge tells from the pictures",
            outcome.answers,
            "Share of held-out scenes of which object, place and colour are told rightly.",
        ),
        (
            "Decoders before any generator",
            outcome.heads,
            "Correlation over test scenes, mean over targets, interval over targets; chance and p "
            "by refits with shuffled training targets.",
        ),
        (
            "Dimensions that predictions use",
            dimension_table(spans),
            "Participation ratio; of each head's first 2,000 targets. Far fewer dimensions in "
            "predictions than in true features is what regression on clustered targets does.",
        ),
        (
            "What was planted",
            outcome.areas,
            f"Noise ceiling {DEFAULT_CEILING} of a trial in the median informative vertex.",
        ),
        (
            "Where the time went",
            pd.DataFrame(
                {"part": list(outcome.seconds), "seconds": list(outcome.seconds.values())}
            ),
            "Wall time of this call; what was done before took none.",
        ),
    ]


def _notes() -> list[str]:
    return [
        "Simulated scenes are made by a few rules, so their categories and places are far easier "
        "to tell than those of photographs; no figure here says how well a real brain is decoded.",
        "The generator, the VDVAE and the judge were trained on the training scenes only; the "
        "text and vision encoders are packaged networks. The judge shares nothing with what the "
        "decoders predict.",
        f"The hard case is the same subject at a median noise ceiling of {HARD_CEILING} a trial.",
    ]


def _provenance(outcome: SceneOutcome) -> dict[str, Any]:
    return {
        **page_provenance(
            outcome.run,
            {
                "protocol": outcome.pipe.recipe.protocol,
                "statistics of predictions": outcome.pipe.recipe.decoder.standardise,
                "wall time of this call": f"{sum(outcome.seconds.values()):.0f} s",
            },
        ),
        "scenes": f"{len(outcome.scenes['train'])} training, {len(outcome.scenes['test'])} held "
        "out, each shown three times",
    }
