"""The page of an LDAE: what was measured, against which bars, and what it shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.figures import format_number
from neurodiff.analysis.ldae_evaluation import LDAEEvaluation
from neurodiff.analysis.ldae_probes import OURS, TRAINING_PCA
from neurodiff.analysis.report import Report, ReportData
from neurodiff.core.progress import Progress
from neurodiff.core.provenance import peak_memory_mb

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
LABELS = {
    "autoencoder": "autoencoder alone (ceiling)",
    "encoded": "code and its own noise",
    "semantic": "code, drawn noise",
}
MAIN_METRIC = {"class": ("AUC", True), "number": ("MAE", False)}
INTENSITIES, ORACLE = "intensity statistics", "oracle"

Gate = dict[str, Any]


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


# -------------------------------------------------------------------------------- gates


def gates_of(found: LDAEEvaluation, pipe: LDAE) -> tuple[list[Gate], list[str]]:
    """Stage by stage, with the bars of the project, and the findings in words."""
    gates: list[Gate] = []
    findings: list[str] = []

    def gate(stage, measure, value, reference=None, passed=None, note="", unit=""):
        keys = ("stage", "measure", "value", "reference", "unit", "passed", "note")
        row = (stage, measure, value, reference, unit, passed, note)
        gates.append(dict(zip(keys, row, strict=True)))

    for one in pipe.gates:
        for measure, value in one.items():
            if measure != "stage" and isinstance(value, int | float):
                gate(one["stage"], measure, value)
    if found.reconstruction is not None:
        _reconstruction_gates(found, gate, findings)
    if found.probes is not None:
        _probe_gates(found.probes, gate, findings)
    for name, table in found.editing.items():
        _edit_gates(name, table, gate, findings)
    if found.interpolation is not None:
        _interpolation_gates(found.interpolation, gate, findings)
    if found.clamp is not None:
        _clamp_gates(found.clamp, gate, findings)
    bars = [one for one in gates if one["passed"] is not None]
    if bars:
        met = sum(bool(one["passed"]) for one in bars)
        findings.append(f"{met} of {len(bars)} bars are met; the table of gates shows each.")
    return gates, findings


def _reconstruction_gates(found: LDAEEvaluation, gate: Any, findings: list[str]) -> None:
    assert found.reconstruction is not None
    summary = found.reconstruction.summary()
    summary = summary[summary["target"] == "scan"]
    told = []
    for metric in (m for m in found.reconstruction.scores if str(m).startswith("brain SSIM")):
        rows = summary[summary["score"] == metric].set_index("condition")
        for condition in ("autoencoder", "encoded", "semantic"):
            if condition in rows.index:
                row = rows.loc[condition]
                note = f"95 % {_span(row)}; {int(row['scans'])} scans"
                gate("reconstruction", f"{metric}, {LABELS[condition]}", row["mean"], note=note)
                told.append(f"{LABELS[condition]} {row['mean']:.3f}")
        if "training mean" in rows.index:
            told.append(f"mean scan {rows.loc['training mean', 'mean']:.3f}")
        findings.append(f"{metric} against the scan: {', '.join(told)}.")
        break


def _probe_gates(probes: ProbeReport, gate: Any, findings: list[str]) -> None:
    """Level with PCA of equal dimension, above intensity statistics, the oracle beside."""
    for task in probes.tasks:
        metric, higher = MAIN_METRIC[task.kind]
        rows = probes.table[
            (probes.table["task"] == task.name)
            & (probes.table["metric"] == metric)
            & (probes.table["design"] == "features")
            & (probes.table["folds"] == "subjects")
        ]
        if not len(rows):
            continue
        per = rows["per"].iloc[0]
        rows = rows[rows["per"] == per].drop_duplicates("features").set_index("features")
        if OURS not in rows.index:
            continue
        ours = rows.loc[OURS]
        others = {
            name: next((f for f in rows.index if str(f).startswith(name)), None)
            for name in (TRAINING_PCA, INTENSITIES, ORACLE)
        }
        words = [f"codes {format_number(ours['value'])} ({_span(ours)})"]
        unit = task.unit if metric == "MAE" else ""
        gate("probes", f"{task.name}: {metric} of the codes, {per}", ours["value"], unit=unit,
             note=f"95 % {_span(ours)}; {int(ours['scans'])} samples of "
             f"{int(ours['subjects'])} people")  # fmt: skip
        for name, feature in others.items():
            if feature is None:
                continue
            other = rows.loc[feature]
            words.append(f"{name} {format_number(other['value'])}")
            if name == ORACLE or task.name not in ("AD vs CN", "age"):
                continue
            gap = _difference(probes, task.name, per, metric, str(feature))
            sign = 1 if higher else -1
            if name == TRAINING_PCA:  # level: the interval of the difference reaches 0, or better
                best = sign * (gap["high"] if higher else gap["low"]) if gap is not None else None
                passed = None if best is None else bool(best >= 0)
                measure = f"{task.name}: {metric}, codes minus PCA of equal dimension"
            else:
                passed = bool(sign * (ours["value"] - other["value"]) > 0)
                measure = f"{task.name}: {metric}, codes minus intensity statistics"
            value = ours["value"] - other["value"]
            note = f"95 % {_span(gap)}, paired over people" if gap is not None else ""
            gate("probes", measure, value, 0.0, passed, note, unit)
        if task.name in ("AD vs CN", "age"):
            findings.append(f"{task.name}, {metric}, {per}: {', '.join(words)}.")


def _difference(
    probes: ProbeReport, task: str, per: str, metric: str, other: str
) -> pd.Series | None:
    table = probes.differences
    rows = table[
        (table["task"] == task)
        & (table["per"] == per)
        & (table["metric"] == metric)
        & (table["a"] == OURS)
        & (table["b"] == other)
        & (table["folds"] == "subjects")
    ]
    return rows.iloc[0] if len(rows) else None


def _edit_gates(name: str, table: Any, gate: Any, findings: list[str]) -> None:
    trends = table.trends().set_index("measure")
    for measure, row in trends.iterrows():
        if measure == "brain_ml":
            continue
        bar = None
        if measure == "ventricles_ml":
            bar = bool(row["low"] > 0 and row["spearman"] >= 0.9)
        elif measure == "hippocampi_ml" and name == "AD":
            bar = bool(row["high"] < 0)
        gate(
            f"edit towards {name}",
            f"{measure} for one unit of amount",
            row["slope"],
            0.0 if bar is not None else None,
            bar,
            f"95 % {_span(row)}; Spearman {row['spearman']:.2f}, monotone in "
            f"{row['monotone']:.0%} of {int(row['scans'])} scans",
        )
    if "ventricles_ml" in trends.index:
        row = trends.loc["ventricles_ml"]
        findings.append(
            f"Edits towards {name} move the measured ventricles by {row['slope']:+.1f} ml a unit "
            f"({_span(row)}), monotonically in {row['monotone']:.0%} of scans."
        )


def _interpolation_gates(table: Any, gate: Any, findings: list[str]) -> None:
    """The change-sensitive score against the copy, whose change is none."""
    from neurodiff.analysis.volume_interpolation import COPY, CORRELATION
    from neurodiff.analysis.volume_interpolation import OURS as SLERP

    gaps = table.against_copy()
    target = "truth" if (gaps["target"] == "truth").any() else "scan"
    gaps = gaps[(gaps["definition"] == "gap") & (gaps["target"] == target)]
    where = "the brain itself" if target == "truth" else "the scan"
    for row in gaps[gaps["score"] == CORRELATION].to_dict("records"):
        gate(
            "filling in",
            f"{CORRELATION} with {where}, {row['months']:g} months",
            row["mean"],
            0.0,
            row["verdict"] == "better",
            f"95 % {_span(row)}; {SLERP} minus {COPY}, whose change is none; "
            f"{int(row['subjects'])} people",
        )
    told = []
    chosen = {CORRELATION: CORRELATION, "error ventricles_ml": "error of the ventricles"}
    chosen |= {s: s for s in gaps["score"].unique() if str(s).startswith(("SSIM", "MSE"))}
    for score, name in chosen.items():
        part = gaps[gaps["score"] == score]
        for verdict in ("better", "worse", "not told apart"):
            months = ", ".join(f"{m:g}" for m in part.loc[part["verdict"] == verdict, "months"])
            if months:
                told.append(f"{name} {verdict} at {months} months")
    findings.append(
        f"A missing visit filled in, against {where}, beside copying the nearest visit: "
        f"{'; '.join(told)}."
    )


def _clamp_gates(table: Any, gate: Any, findings: list[str]) -> None:
    summary = table.summary().set_index(["model", "score"])["mean"]
    for score in ("noise std", "noise max", "semantic spread"):
        for model in ("no clamp", "clamp"):
            if (model, score) in summary.index:
                gate("clamp of latents", f"{score}, {model}", summary[model, score])
    if ("clamp", "noise std") in summary.index:
        findings.append(
            f"Clamping latents to [-1, 1] as released: encoded noise has SD "
            f"{summary['clamp', 'noise std']:.2f} (without {summary['no clamp', 'noise std']:.2f}; "
            "1 is right), and pictures from the code alone keep "
            f"{summary['clamp', 'semantic spread']:.2f} of the latents' spread (without "
            f"{summary['no clamp', 'semantic spread']:.2f})."
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
                    row[metric] += f" ({_span(one)})"
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


def _span(row: Any) -> str:
    low, high = row["low"], row["high"]
    return f"{format_number(low)} to {format_number(high)}"


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
    info = run.info
    return {
        "run folder": Path(run.folder).name,
        "command": info["command"],
        "seed": str(run.seed),
        "fingerprint": run.fingerprint,
        "created": info["created"],
        "neurodiff": str(info["neurodiff"]),
        "git": {k: str(v) for k, v in (info.get("git") or {}).items()},
        "versions": {k: str(v) for k, v in info["versions"].items()},
        "platform": info["platform"],
        "processors": str(os.cpu_count()),
        "protocol": pipe.protocol,
        "model": pipe.identity[:10],
        "peak memory": f"{peak_memory_mb():.0f} MB",
        "people": ", ".join(f"{n} {name}" for name, n in people.items()),
    }
