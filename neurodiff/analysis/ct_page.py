"""The pages of CT standardization: of a user's cohort, and of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis import ct_pictures
from neurodiff.analysis.report import PictureGrid, Report, ReportData
from neurodiff.core.provenance import now, package_version

if TYPE_CHECKING:
    from neurodiff.analysis.ct_qa import CaseChange
    from neurodiff.bridges.ct_filter import RadialFilter
    from neurodiff.metrics.agreement import Agreement

LIMITS = (
    "Research use; no diagnostic claim. A filter holds between reconstructions of one scanner's "
    "raw data; nothing is claimed across vendors.",
    "Contrast phase, tube voltage, beam hardening and dose stay as they were. What iterative "
    "reconstruction did that is not linear stays as well.",
    "What lies below 0.5 lp/cm is the input's, so the mean of an organ does not move; detail that "
    "the source's kernel removed is not invented.",
    "The ConvolutionKernel in the headers stays the acquired one; descriptions name the standard.",
)
CLASS_COLUMNS = ("feature class", "features", "CCC before", "interval before", "CCC after",
                 "interval after", "at 0.85 before", "at 0.85 after")  # fmt: skip
_OPTIMISTIC = (
    " Scans that the filter was fitted on agree better than others would, and a phantom counts as "
    "a patient here: the headers do not tell them apart."
)
_LEVELS = 24  # frequencies that a curve shows


def qa_report(
    changes: Sequence[CaseChange],
    records: Mapping[str, Any],
    failed: pd.DataFrame,
    agreements: Mapping[str, Agreement],
) -> Report:
    """The page of ``ct qa``."""
    from neurodiff.analysis.ct_qa import filter_curves

    shifts = shift_table(changes)
    curves = curve_rows(filter_curves(changes), [c.spectra for c in changes], changes)
    warnings = not_recovered(changes)
    tables: list[tuple[str, pd.DataFrame, str]] = [
        (
            "Shift of the mean by tissue",
            shifts,
            "HU, after minus before, inside air, lung, soft (water-like) tissue and bone; missing "
            "where a scan holds less than 4 square cm of it.",
        ),
        ("What was not recovered", warnings, "Scans by what the standardizer said of them."),
    ]
    headline = [_shift_sentence(shifts)]
    if agreements:
        before, after = agreements["before"], agreements["after"]
        tables.insert(0, ("Agreement with the reference, by class", class_table(before, after),
                          agreement_note(after) + _OPTIMISTIC))  # fmt: skip
        tables.append(
            (
                "Agreement with the reference, by feature",
                feature_table(before, after),
                "CCC with the 95 % interval; the repeatability coefficient is in units of the "
                "feature.",
            )
        )
        headline.insert(0, agreement_sentence(before, after))
    else:
        headline.append(
            "No scan was also acquired in the standard, so how well features agree is not known."
        )
    if len(failed):
        tables.append(("Failed", failed, "Scans that could not be looked at."))
    statuses = pd.Series([r["report"]["status"] for r in records.values()]).value_counts()
    return Report(
        ReportData(
            title="CT standardization: what changed",
            simulated=False,
            subtitle=f"{len(records)} scans: "
            + ", ".join(f"{count} {name}" for name, count in statuses.items()),
            headline=headline,
            about="picture",
            grids=[picture_grid(changes)],
            metrics=curve_metrics(),
            curve=curves,
            curve_level="line pairs per cm",
            curve_title="Filter, coherence and noise",
            curve_lead="The gain that was applied, the coherence of its fit, and noise in uniform "
            "tissue over all scans shown.",
            tables=tables,
            notes=[*LIMITS, _spectra_note(changes)],
            provenance={
                "neurodiff": package_version(),
                "made": now(),
                "mapping": ", ".join(sorted({str(r.get("mapping")) for r in records.values()})),
                "scans shown": str(len(changes)),
            },
        )
    )


def shift_table(changes: Sequence[CaseChange]) -> pd.DataFrame:
    """One row a scan: mean change in HU of all pixels and by tissue."""
    return pd.DataFrame(
        [{"scan": c.scan, **dict(c.report["shift_hu"])} for c in changes]
    ).set_index("scan")


def not_recovered(changes: Sequence[CaseChange]) -> pd.DataFrame:
    """One row a sentence: how many scans it was said of."""
    said: dict[str, int] = {}
    for one in changes:
        sentences = list(one.report["warnings"]) or ["nothing to note"]
        for text in sentences:
            said[text] = said.get(text, 0) + 1
    return pd.DataFrame({"what": list(said), "scans": list(said.values())})


def curve_metrics() -> list[dict[str, Any]]:
    """Units of the curves; none has a better direction."""
    return [
        {"name": "gain", "unit": "factor", "higher_is_better": None},
        {"name": "coherence", "unit": "0 to 1", "higher_is_better": None},
        {"name": "noise power", "unit": "log10 of HU² mm²", "higher_is_better": None},
    ]


def curve_rows(
    filters: Mapping[str, RadialFilter],
    spectra: Sequence[pd.DataFrame | None],
    changes: Sequence[Any] = (),
) -> pd.DataFrame:
    """Rows of the figures: gain and coherence of each filter, noise power of each version."""
    spacing = [c.spacing for c in changes] or [(1.0, 1.0)]
    highest = 5.0 / min(min(pair) for pair in spacing)
    levels = [round(float(v), 2) for v in np.linspace(0, highest, _LEVELS // 2)]
    rows: list[dict[str, Any]] = []
    empty = {"low": np.nan, "high": np.nan}
    for name, one in filters.items():
        label = name.removesuffix(".json").replace("_", " to ", 1)
        for level in levels:
            known = float(np.interp(level, one.frequency, one.coherence))
            values = {"gain": float(one.at(level)), "coherence": known}
            rows += [
                {"level": level, "condition": label, "metric": metric, "value": value, **empty}
                for metric, value in values.items()
            ]
    there = [table for table in spectra if table is not None]
    if there:
        every = pd.concat(there)
        # rings of scans with other pixels fall into common steps
        step = max(0.25, round(highest / 7, 2))
        every = every.assign(level=(every["frequency"] / step).round() * step)
        means = every.groupby(["which", "level"], sort=False)["power"].mean().reset_index()
        order = {"before": 0, "after": 1, "reference": 2}
        means = means.sort_values(["which", "level"], key=lambda c: c.map(order).fillna(c))
        rows += [
            {"level": r.level, "condition": r.which, "metric": "noise power",
             "value": float(np.log10(max(r.power, 1e-12))), **empty}
            for r in means.itertuples(index=False) if r.level > 0
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=["level", "condition", "metric", "value", "low", "high"])


def class_table(before: Agreement, after: Agreement) -> pd.DataFrame:
    """Agreement by class before and after, in words a table shows."""
    rows = []
    for a, b in zip(
        before.classes.itertuples(index=False), after.classes.itertuples(index=False), strict=True
    ):
        rows.append(
            (a.feature_class, a.features, a.ccc, _interval(a), b.ccc, _interval(b),
             a.above_085, b.above_085)
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(CLASS_COLUMNS))


def feature_table(before: Agreement, after: Agreement) -> pd.DataFrame:
    """Agreement by feature before and after."""
    one = before.features.set_index("feature")
    rows = []
    for row in after.features.itertuples(index=False):
        old = one.loc[row.feature]
        rows.append(
            (row.feature, float(old["ccc"]), row.ccc, _interval(row), row.icc_21, row.repeatability)
        )
    names = ["feature", "CCC before", "CCC after", "interval after", "ICC(2,1) after",
             "repeatability after"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def agreement_note(one: Agreement) -> str:
    """What an agreement rests on."""
    counts = ((one.groups, one.unit), (one.phantoms, "phantom"), (one.patients, "patient"))
    if one.unit == "patient":
        counts = counts[1:]
    words = ", ".join(f"{count} {name if count == 1 else name + 's'}" for count, name in counts)
    base = (
        f"{one.pairs} squares of 32 x 32 pixels in tissue, {words}. 93 features as pyradiomics "
        f"names them, bins of 25 HU. Intervals: {one.confidence:.0%}, {one.samples} bootstraps "
        f"over {one.unit}s."
    )
    return " ".join([base, *one.notes])


def agreement_sentence(before: Agreement, after: Agreement) -> str:
    """Mean CCC before and after in one sentence."""
    a, b = (x.classes.set_index("feature_class").loc["all"] for x in (before, after))
    return (
        f"Radiomic features agree with the reference at a mean CCC of {b['ccc']:.3f} "
        f"({b['ccc_low']:.3f} to {b['ccc_high']:.3f}) after standardization and {a['ccc']:.3f} "
        f"before; {int(b['above_085'])} of {int(b['features'])} features reach 0.85, "
        f"{int(a['above_085'])} did before."
    )


def picture_grid(changes: Sequence[CaseChange], most: int = 12) -> PictureGrid:
    """The middle slice of scans, spread over the cohort."""
    chosen = np.linspace(0, len(changes) - 1, min(most, len(changes))).round().astype(int)
    items = []
    for at in dict.fromkeys(int(i) for i in chosen):
        one = changes[at]
        before, after, reference, padding = one.middle
        pictures = ct_pictures.before_after(before, after, reference, padding)
        items.append((one.scan, pictures, f"{one.report['status']}, {one.report['filter']}"))
    return PictureGrid(
        title="Middle slices",
        why="Spread evenly over the scans, not chosen by result; crops show pixels as they are.",
        names=ct_pictures.NAMES,
        items=items,
    )


def _interval(row: Any) -> str:
    if not np.isfinite(row.ccc_low):
        return "none"
    return f"{row.ccc_low:.3f} to {row.ccc_high:.3f}"


def _shift_sentence(shifts: pd.DataFrame) -> str:
    parts = []
    for tissue in ("air", "lung", "soft", "bone"):
        values = pd.to_numeric(shifts[tissue], errors="coerce").abs().dropna()
        if len(values):
            parts.append(f"{tissue} {values.max():.2f}")
    largest = ", ".join(parts) if parts else "no tissue large enough to measure it"
    return f"Largest shift of a scan's mean, HU: {largest}."


def _spectra_note(changes: Sequence[CaseChange]) -> str:
    lacking = sum(c.spectra is None for c in changes)
    return (
        f"{lacking} of {len(changes)} scans hold no uniform square of 32 pixels, so their noise "
        "is not in the figure."
        if lacking
        else "Noise is measured in the most uniform squares of soft tissue, trend taken off."
    )
