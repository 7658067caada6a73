"""The page of an LDAE: panels, tables and notes around the gates of `ldae_gates`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.figures import format_number
from neurodiff.analysis.ldae_evaluation import LDAEEvaluation
from neurodiff.analysis.ldae_gates import LABELS, Gate, gates_of, span
from neurodiff.analysis.page import page_provenance
from neurodiff.analysis.report import Report, ReportData
from neurodiff.core.progress import Progress

if TYPE_CHECKING:
    from neurodiff.analysis.demo_ldae import CohortOutcome
    from neurodiff.analysis.probes import ProbeReport
    from neurodiff.core.run import Run
    from neurodiff.pipelines.ldae import LDAE

ROLES = {
    "autoencoder": "ceiling",
    "encoded": "ours",
    "semantic": "ours",
    "training mean": "no-brain baseline",
    "another person": "chance",
}


def write_ldae_page(outcome: CohortOutcome, progress: Progress) -> list[str]:
    """Write ``report.html`` and ``report.json`` of the demo; returns the headline findings."""
    gates, findings = gates_of(outcome.found, outcome.pipe)
    report = ldae_report(
        outcome.run,
        outcome.pipe,
        outcome.found,
        title="LDAE: brain scans, codes, edits and missing visits",
        subtitle="A simulated longitudinal cohort with a planted truth: a check of plumbing and "
        "method, never a statement about brains",
        simulated=True,
        gates=gates,
        findings=findings,
        seconds=outcome.seconds,
        people={name: len(part.subjects) for name, part in outcome.parts.items()},
    )
    progress.say("report: writing the page")
    outcome.run.write_report_html(report.html())
    outcome.run.write_report_json(report.to_json())
    return findings


def ldae_report(
    run: Run,
    pipe: LDAE,
    found: LDAEEvaluation,
    *,
    title: str,
    subtitle: str,
    simulated: bool,
    gates: Sequence[Gate],
    findings: Sequence[str],
    seconds: dict[str, float],
    people: dict[str, int],
) -> Report:
    """The page of one run."""
    conditions, metrics = _conditions(found)
    return Report(
        ReportData(
            title=title,
            simulated=simulated,
            subtitle=subtitle,
            headline=list(findings),
            gates=list(gates),
            conditions=conditions,
            metrics=metrics,
            about="scan",
            curve=_curve(found),
            curve_level="amount of the edit",
            curve_title="Edits: volumes measured in the edited scans",
            curve_lead="A ruler of intensities measures each edited scan. What an edit along a "
            "disease or age should move are the ventricles (up) and the hippocampi (down).",
            grids=found.grids,
            tables=_tables(found, seconds),
            notes=[*_notes(simulated), *found.notes],
            provenance=_provenance(run, pipe, people),
        )
    )


# -------------------------------------------------------------------------------- panels


def _conditions(found: LDAEEvaluation) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The reconstruction against the scan, as the page's panels."""
    if found.reconstruction is None:
        return pd.DataFrame(), []
    summary = found.reconstruction.summary()
    summary = summary[summary["target"] == "scan"]
    names = [m for m, higher in found.reconstruction.scores.items() if higher is not None]
    rows: dict[str, dict[str, Any]] = {}
    for row in summary[summary["score"].isin(names)].to_dict("records"):
        label = LABELS.get(row["condition"], row["condition"])
        line = rows.setdefault(label, {"role": ROLES.get(row["condition"], "ours")})
        line[row["score"]] = {
            **{k: row[k] for k in ("mean", "median", "low", "high")},
            "n": row["subjects"],
        }
    metrics = [
        {
            "name": name,
            "unit": "dB" if name == "PSNR" else "",
            "higher_is_better": found.reconstruction.scores[name],
            "chance": None,
            "description": "against the scan; intervals over people",
        }
        for name in names
    ]
    return pd.DataFrame.from_dict(rows, orient="index"), metrics


def _curve(found: LDAEEvaluation) -> pd.DataFrame | None:
    parts = []
    for name, table in found.editing.items():
        summary = table.summary()
        for measure in ("ventricles_ml", "hippocampi_ml"):
            rows = summary[summary["score"] == measure]
            parts.append(
                pd.DataFrame(
                    {
                        "level": rows["amount"].astype(float),
                        "condition": f"towards {name}",
                        "metric": measure.replace("_ml", ", ml"),
                        "value": rows["mean"],
                        "low": rows["low"],
                        "high": rows["high"],
                    }
                )
            )
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else None


def _tables(
    found: LDAEEvaluation, seconds: dict[str, float]
) -> list[tuple[str, pd.DataFrame, str]]:
    tables: list[tuple[str, pd.DataFrame, str]] = []
    if found.probes is not None:
        for task in found.probes.tasks:
            tables.append((f"Probes: {task.name}", probe_table(found.probes, task), _about(task)))
    if found.interpolation is not None:
        tables.append(
            (
                "Filling in a visit",
                _wide(found.interpolation, ["definition", "months", "target", "method"]),
                "Means over people. Gap: months from the first to the last visit; reach: from the "
                "middle to the nearer one. " + " ".join(found.interpolation.notes),
            )
        )
    for name, table in found.editing.items():
        trends = table.trends()
        tables.append((f"Edits towards {name}: trends", trends, " ".join(table.notes)))
        tables.append(
            (
                f"Edits towards {name}: by amount",
                _wide(table, ["amount"]),
                "Outside: brain farther than 8 mm from ventricles and hippocampi, against the "
                "unedited reconstruction. Back: edited, encoded anew, moved back.",
            )
        )
    if found.clamp is not None:
        tables.append(
            (
                "The clamp of the released sampler, both ways",
                _wide(found.clamp, ["model", "steps"]).T.reset_index(names="score"),
                "The same weights. Encoded noise should be of SD 1; spreads and slope should be 1.",
            )
        )
    if found.generation is not None:
        tables.append(
            (
                "Sets of drawn scans",
                found.generation,
                "Features are stated; no network of a published FID is behind them. The floor is "
                "one half of the real people against the other.",
            )
        )
    spent = {**{k: v for k, v in seconds.items()}, **{f"  {k}": v for k, v in
             found.seconds.items()}}  # fmt: skip
    tables.append(
        (
            "Where the time went",
            pd.DataFrame({"part": list(spent), "seconds": list(spent.values())}),
            "Wall time of this call; indented: parts of the evaluation.",
        )
    )
    return tables


def probe_table(probes: ProbeReport, task: Any) -> pd.DataFrame:
    """One row a set of features and design; the main scores of first scans with intervals."""
    from neurodiff.analysis.probe_lines import row_label

    metrics = {
        "class": ("AUC", "balanced accuracy", "sensitivity", "specificity", "Brier"),
        "number": ("MAE", "RMSE", "R2", "r"),
    }[task.kind]
    table = probes.table[probes.table["task"] == task.name]
    lines = []
    for (per, name, design, folds), part in table.groupby(
        ["per", "features", "design", "folds"], sort=False
    ):
        by = part.set_index("metric")
        row = {"features": row_label(name, design, folds, task), "per": per}
        for metric in metrics:
            if metric in by.index:
                one = by.loc[metric]
                row[metric] = format_number(one["value"])
                if np.isfinite(one["low"]):
                    row[metric] += f" ({span(one)})"
        row["n"] = f"{int(part['scans'].iloc[0])} of {int(part['subjects'].iloc[0])} people"
        lines.append(row)
    return pd.DataFrame(lines).fillna("–")


def _about(task: Any) -> str:
    what = (
        f"Predicted in {task.unit}."
        if task.kind == "number"
        else f"{task.positive} is positive, {task.negative} negative."
    )
    return f"{what} Grouped cross-validation over people; 95 % intervals over people."


def _wide(table: Any, index: list[str]) -> pd.DataFrame:
    summary = table.summary()
    wide = summary.pivot_table(
        index=[c for c in index if c in summary], columns="score", values="mean", sort=False
    )
    return wide.reset_index().rename_axis(columns=None)


def _notes(simulated: bool) -> list[str]:
    notes = [
        "No way through the latents can be better than the autoencoder: read every score of the "
        "model against that ceiling. Code and its own noise near the ceiling says only that the "
        "walk closes; what the code knows is shown by drawn noise.",
        "Probes see people that neither the model nor PCA was trained on.",
    ]
    if simulated:
        notes.insert(
            0,
            "Simulated brains are one template, warped, with planted ventricles and hippocampi; "
            "diagnosis acts on nothing else. No figure here says what the method does on people.",
        )
    return notes


def _provenance(run: Run, pipe: LDAE, people: dict[str, int]) -> dict[str, Any]:
    return {
        **page_provenance(
            run,
            {
                "protocol": pipe.protocol,
                "model": pipe.identity[:10],
            },
        ),
        "people": ", ".join(f"{n} {name}" for name, n in people.items()),
    }
