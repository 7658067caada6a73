"""The page of the CT demo: bars, agreement by direction and class, clinical scores, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis import ct_page
from neurodiff.analysis.ct_cohort import FAILED
from neurodiff.analysis.report import Report, ReportData
from neurodiff.core.provenance import peak_memory_mb

if TYPE_CHECKING:
    from neurodiff.analysis.ct_demo import CTOutcome
    from neurodiff.analysis.ct_demo_directions import Direction
    from neurodiff.metrics.agreement import Agreement

#: bars of the demo, set before it was run: the project's CCC of the recoverable direction, and
#: what a reader of the clinical scores would not notice
BARS = {
    "ccc": 0.93,
    "rmse": 20.0,
    "shift": 0.5,
    "emphysema": 1.0,
    "percentile": 3.0,
    "agatston": 0.1,
}
UNITS = {"emphysema index": "% of the lung", "15th percentile": "HU", "Agatston-like": "score"}


def write_demo_page(outcome: CTOutcome) -> list[str]:
    """Write ``report.html`` and ``report.json``; returns the headline findings."""
    report = demo_report(outcome)
    outcome.run.write_report_html(report.html())
    outcome.run.write_report_json(report.to_json())
    return list(report.data.headline)


def demo_report(outcome: CTOutcome) -> Report:
    """The page."""
    easy = outcome.directions[0]
    scores = score_table(outcome.scores)
    gates = _gates(outcome, scores)
    missed = [f"{gate['stage']}, {gate['measure']}" for gate in gates if gate["passed"] is False]
    headline = []
    if easy.before is not None and easy.after is not None:
        headline.append(
            f"Sharp to soft, {easy.after.patients} simulated patients, filter fitted on others: "
            + ct_page.agreement_sentence(easy.before, easy.after)
            + " The simulator's kernel change is one linear filter by construction, so this checks "
            "the chain; the lines below are harder."
        )
    emphysema = scores.loc["emphysema index"]
    headline += [
        f"Emphysema index: the sharp kernel reads {emphysema['before']:.1f} % where the standard "
        f"reads {emphysema['reference']:.1f} % and {emphysema['truth']:.1f} % was planted; after "
        f"standardization {emphysema['after']:.1f} %.",
        *(_sentence(one) for one in outcome.directions[1:]),
        f"{len(outcome.applied.failed)} scans were refused or failed, each with a reason; the "
        "others were done.",
        f"Bars not reached: {'; '.join(missed)}." if missed else "Every bar was reached.",
    ]
    tables = [
        ("Directions", direction_table(outcome.directions),
         "Mean CCC of 93 features with the scan as acquired in the target kernel, root mean square "
         "difference in the body in HU, before and after. Reported whatever the outcome."),
        *_class_tables(outcome.directions),
        ("Scores that clinics read", scores.reset_index(),
         "Mean over scans. Truth is what was planted, free of noise and blur; the reference is the "
         "scan as acquired in the standard kernel, which a filter can reach and no more."),
        ("Refused and failed", refusal_table(outcome.applied.failed),
         "Planted on purpose: every one has to be here, and none of them may be standardized."),
        ("Shift of the mean by tissue", ct_page.shift_table(outcome.changes),
         "HU, after minus before."),
        ("What the standardizer said", ct_page.not_recovered(outcome.changes), ""),
        ("Where the time went",
         pd.DataFrame({"part": list(outcome.seconds), "seconds": list(outcome.seconds.values())}),
         "Wall time of this call."),
    ]  # fmt: skip
    from neurodiff.analysis.ct_qa import filter_curves

    return Report(
        ReportData(
            title="CT standardization: two kernels, one standard",
            simulated=True,
            subtitle="Simulated chests as a DICOM archive: the truth behind every score is known",
            headline=headline,
            about="picture",
            gates=gates,
            grids=[ct_page.picture_grid(outcome.changes, 8)],
            metrics=ct_page.curve_metrics(),
            curve=ct_page.curve_rows(
                filter_curves(outcome.changes),
                [c.spectra for c in outcome.changes],
                outcome.changes,
            ),
            curve_level="line pairs per cm",
            curve_title="Filter, coherence and noise",
            curve_lead="The gain that was applied, the coherence of its fit, and noise in uniform "
            "tissue of held-out scans.",
            tables=tables,
            notes=_notes(outcome),
            provenance=_provenance(outcome),
        )
    )


def direction_table(directions: list[Direction]) -> pd.DataFrame:
    """One row a direction."""
    rows = []
    for one in directions:
        if one.before is None or one.after is None:
            rows.append((one.name, np.nan, np.nan, "none", np.nan, np.nan, np.nan, one.refused))
            continue
        a, b = (x.classes.set_index("feature_class").loc["all"] for x in (one.before, one.after))
        between = f"{b['ccc_low']:.3f} to {b['ccc_high']:.3f}"
        rows.append(
            (one.name, a["ccc"], b["ccc"], between, int(b["above_085"]), *one.rmse,
             "; ".join(one.said) or "nothing to note")
        )  # fmt: skip
    names = ["direction", "CCC before", "CCC after", "interval", "features at 0.85", "RMSE before",
             "RMSE after", "what was said"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean of each score by version, and mean absolute difference from the reference."""
    wide = scores.pivot(index=["score", "scan"], columns="version", values="value")
    table = wide.groupby("score").mean()[["truth", "reference", "before", "after"]]
    for version in ("before", "after"):
        apart = (wide[version] - wide["reference"]).abs()
        table[f"off the reference, {version}"] = apart.groupby("score").mean()
    table.insert(0, "unit", [UNITS[name] for name in table.index])
    return table.loc[list(UNITS)]


def refusal_table(failed: pd.DataFrame) -> pd.DataFrame:
    """Failures without an index."""
    return failed[list(FAILED)].reset_index(drop=True)


def _class_tables(directions: list[Direction]) -> list[tuple[str, pd.DataFrame, str]]:
    return [
        (
            f"By class: {one.name}",
            ct_page.class_table(one.before, one.after),
            ct_page.agreement_note(one.after),
        )
        for one in directions
        if one.before is not None and one.after is not None
    ]


def _gates(outcome: CTOutcome, scores: pd.DataFrame) -> list[dict[str, Any]]:
    gates: list[dict[str, Any]] = []

    def gate(stage, measure, value, reference=None, passed=None, unit="", note=""):
        keys = ("stage", "measure", "value", "reference", "passed", "unit", "note")
        row = (stage, measure, value, reference, passed, unit, note)
        gates.append(dict(zip(keys, row, strict=True)))

    fit = next(iter(outcome.standardizer.fits.values()))
    note = f"{fit.rmse_before:.1f} before; {fit.slices} pairs"
    good = fit.rmse_after <= BARS["rmse"]
    gate("fit", "RMSE in the body, held-out slices", fit.rmse_after, BARS["rmse"], good, "HU", note)
    easy, stage = outcome.directions[0], "agreement, sharp to soft"
    if easy.after is not None and easy.before is not None:
        old, new = (_mean_ccc(one) for one in (easy.before, easy.after))
        note = f"{old:.3f} before; other patients and other pixels than fitted"
        gate(stage, "mean CCC of 93 features", new, BARS["ccc"], new >= BARS["ccc"], "", note)
        error, note = easy.rmse[1], f"{easy.rmse[0]:.1f} before"
        gate(stage, "RMSE in the body", error, BARS["rmse"], error <= BARS["rmse"], "HU", note)
    largest = float(ct_page.shift_table(outcome.changes)["all"].abs().max())
    good = largest <= BARS["shift"]
    gate("mean HU", "largest shift of a scan's mean", largest, BARS["shift"], good, "HU")
    for name, bar, unit in (
        ("emphysema index", BARS["emphysema"], "% of the lung"),
        ("15th percentile", BARS["percentile"], "HU"),
        ("Agatston-like", BARS["agatston"], "share of the reference"),
    ):
        row = scores.loc[name]
        whole = max(float(row["reference"]), 1e-9) if name == "Agatston-like" else 1.0
        old, new = (float(row[f"off the reference, {v}"]) / whole for v in ("before", "after"))
        measure = f"{name}, off the reference"
        gate("clinical scores", measure, new, bar, new <= bar, unit, f"{old:.2f} before")
    counts = (
        ("hard scans refused or failed", len(outcome.applied.failed), outcome.expected_refusals),
        (
            "other scans done",
            len(outcome.applied.made) + len(outcome.applied.before),
            2 * outcome.size.tested,
        ),
        ("scans done again by a second call", len(outcome.again.made), 0),
    )
    for measure, value, wanted in counts:
        gate("cohort", measure, value, wanted, value == wanted, "scans")
    note = ", ".join(outcome.leaks[:3])
    leaked = len(outcome.leaks)
    gate("privacy", "files with an identifier of a patient", leaked, 0, not leaked, "files", note)
    for one in outcome.directions[1:]:
        if one.after is None:
            gate("hard directions", one.name, "refused", note=one.refused)
            continue
        said = "; ".join(one.said)
        gate("hard directions", f"mean CCC, {one.name}", _mean_ccc(one.after), note=said)
    return gates


def _mean_ccc(one: Agreement) -> float:
    return float(one.classes.set_index("feature_class").loc["all", "ccc"])


def _sentence(one: Direction) -> str:
    if one.before is None or one.after is None:
        return f"{one.name[0].upper()}{one.name[1:]}: refused. {one.refused}"
    a, b = (x.classes.set_index("feature_class").loc["all", "ccc"] for x in (one.before, one.after))
    return f"{one.name[0].upper()}{one.name[1:]}: mean CCC {a:.3f} before, {b:.3f} after."


def _notes(outcome: CTOutcome) -> list[str]:
    return [
        "In the simulator a change of kernel is one linear filter, as measured on two real pairs, "
        "so agreement of nearly 1 in the easy direction checks the chain and is no evidence about "
        "a scanner. Measured figures on real pairs are in the documents.",
        "Soft to sharp comes back here because the simulated soft kernel keeps all frequencies "
        "that these pixels hold. On real pairs it does not (benchmarks/ct_linear.py); the smooth "
        "kernel stands for that.",
        "Slices of 5 mm are weighted means of simulated slices of 1 mm by a slice profile that was "
        "measured on one real pair, so that row checks the chain as well; other patients than the "
        "one its weights were fitted on.",
        "The filter was fitted on other simulated patients with other pixels; that its spacing "
        "lies outside the fitted range is said above.",
        "The diffusion mode was trained on the same pairs and stands beside the linear one."
        if any("diffusion" in one.name for one in outcome.directions)
        else "The diffusion mode is left out: its training takes some ten minutes "
        "(run_ct_demo(..., diffusion='ct_diffusion_demo') adds its row).",
        *ct_page.LIMITS,
    ]


def _provenance(outcome: CTOutcome) -> dict[str, Any]:
    info, size = outcome.run.info, outcome.size
    return {
        "run folder": outcome.run.folder.name,
        "command": info["command"],
        "seed": str(outcome.run.seed),
        "fingerprint": outcome.run.fingerprint,
        "created": info["created"],
        "neurodiff": str(info["neurodiff"]),
        "versions": {k: str(v) for k, v in info["versions"].items()},
        "platform": info["platform"],
        "wall time of this call": f"{sum(outcome.seconds.values()):.0f} s",
        "peak memory": f"{peak_memory_mb():.0f} MB",
        "scans": f"{size.fitted} patients fitted at {size.fit_pixels} pixels, {size.tested} tested "
        f"at {size.test_pixels}, {size.slices} slices each",
    }
