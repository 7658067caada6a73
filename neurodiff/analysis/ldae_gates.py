"""Gates of an LDAE: what each stage reached beside the project's bars, and findings in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from neurodiff.analysis.figures import format_number
from neurodiff.analysis.ldae_evaluation import LDAEEvaluation
from neurodiff.analysis.ldae_probes import OURS, TRAINING_PCA

if TYPE_CHECKING:
    from neurodiff.analysis.probes import ProbeReport
    from neurodiff.pipelines.ldae import LDAE

LABELS = {
    "autoencoder": "autoencoder alone (ceiling)",
    "encoded": "code and its own noise",
    "semantic": "code, drawn noise",
}
MAIN_METRIC = {"class": ("AUC", True), "number": ("MAE", False)}
INTENSITIES, ORACLE = "intensity statistics", "oracle"
Gate = dict[str, Any]


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
    names = [m for m in found.reconstruction.scores if str(m).startswith("brain SSIM")]
    if not names:
        return
    metric, told = names[0], []
    rows = summary[summary["score"] == metric].set_index("condition")
    for condition in ("autoencoder", "encoded", "semantic"):
        if condition in rows.index:
            row = rows.loc[condition]
            note = f"95 % {span(row)}; {int(row['scans'])} scans"
            gate("reconstruction", f"{metric}, {LABELS[condition]}", row["mean"], note=note)
            told.append(f"{LABELS[condition]} {row['mean']:.3f}")
    if "training mean" in rows.index:
        told.append(f"mean scan {rows.loc['training mean', 'mean']:.3f}")
    findings.append(f"{metric} against the scan: {', '.join(told)}.")


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
        words = [f"codes {format_number(ours['value'])} ({span(ours)})"]
        unit = task.unit if metric == "MAE" else ""
        gate("probes", f"{task.name}: {metric} of the codes, {per}", ours["value"], unit=unit,
             note=f"95 % {span(ours)}; {int(ours['scans'])} samples of "
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
            note = f"95 % {span(gap)}, paired over people" if gap is not None else ""
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
            f"95 % {span(row)}; Spearman {row['spearman']:.2f}, monotone in "
            f"{row['monotone']:.0%} of {int(row['scans'])} scans",
        )
    if "ventricles_ml" in trends.index:
        row = trends.loc["ventricles_ml"]
        findings.append(
            f"Edits towards {name} move the measured ventricles by {row['slope']:+.1f} ml a unit "
            f"({span(row)}), monotonically in {row['monotone']:.0%} of scans."
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
            f"95 % {span(row)}; {SLERP} minus {COPY}, whose change is none; "
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


def span(row: Any) -> str:
    """The interval of a row, from ``low`` to ``high``."""
    low, high = row["low"], row["high"]
    return f"{format_number(low)} to {format_number(high)}"
