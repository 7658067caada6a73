"""Published figures beside a run's own, through the protocol cards: same protocol, or what differs.

A figure of ours stands in the row of a published one only where nothing differs; else the row says
what does, and our figure stays out of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from neurodiff.analysis.benchmark_scores import ours_of, per_stimulus, tidy_scores
from neurodiff.analysis.image_protocols import image_reasons_against, read_image_card
from neurodiff.analysis.kinds import IMAGES, MIND3D, SCANS, pipeline_of_run
from neurodiff.analysis.protocols import metric_of, network_of, read_card, reasons_against
from neurodiff.analysis.splits import trained_on
from neurodiff.core.run import Run

CARDS = {
    MIND3D: ("mind3d-2024",),
    IMAGES: ("brain-diffuser-2023", "mindeye-2023"),
    SCANS: ("ldae-2025",),
}
SAME, APART = "same protocol", "not comparable"
COLUMNS = ("run", "metric", "ours", "method", "published", "comparable", "source", "card")


def published_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, metric and published figure, with the columns `COLUMNS`.

    ``comparable`` is "same protocol" or "differs in: ..."; ``ours`` is a number in the first case
    and "not comparable" in the second.
    """
    rows: list[tuple[object, ...]] = []
    for run in runs:
        tidy = ours_of(tidy_scores(run))
        if not len(tidy):
            continue
        main = tidy["condition"].iloc[0]
        once = per_stimulus(tidy[tidy["condition"] == main], by_subject=False)
        protocol = str(once["protocol"].iloc[0])
        means = once.groupby("metric", sort=False)["value"].mean().to_dict()
        simulated = bool(run.inputs.get("simulated"))
        for name in CARDS[pipeline_of_run(run.folder)]:
            make = _of_images if name in CARDS[IMAGES] else _of_shapes
            rows += make(run, name, means, protocol, simulated)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_images(
    run: Run, name: str, means: dict[str, float], protocol: str, simulated: bool
) -> list[tuple[object, ...]]:
    card = read_image_card(name)
    sessions = (trained_on(run) or {}).get("sessions")
    rows: list[tuple[object, ...]] = []
    for label, metric in card.metrics.items():
        column = _ours_for(metric.ours, means)
        if column is None:
            continue
        reasons = image_reasons_against(
            column, card, protocol=protocol, simulated=simulated, sessions=sessions
        )
        for one in card.published:
            if label not in one.values:
                continue
            own = [*reasons, *([one.apart] if one.apart else [])]
            if sessions is not None and not simulated and one.sessions != sessions:
                own.append(f"trained on {one.sessions or 'not stated'} sessions, ours {sessions}")
            source = f"{one.source}{' (from memory)' if label in one.unsure else ''}"
            value = one.values[label]
            rows.append(_row(run, column, means, one.method, value, own, source, card.name))
    return rows


def _of_shapes(
    run: Run, name: str, means: dict[str, float], protocol: str, simulated: bool
) -> list[tuple[object, ...]]:
    card = read_card(name)
    rows: list[tuple[object, ...]] = []
    for column in means:
        label = metric_of(column)
        if label not in card.metrics:  # "SSIM k=3 s=1.5": a metric with its settings in its name
            label = column.partition(" k=")[0]
        if label not in card.metrics:
            continue
        known = column if label == metric_of(column) else label
        reasons = reasons_against(known, card, protocol=protocol, simulated=simulated)
        if label != metric_of(column):
            reasons.append(f"ours is {column}, published: {card.metrics[label].settings}")
        if not protocol:
            reasons = [one for one in reasons if not one.startswith("the protocol is ,")]
            reasons.append(f"our protocol is not {card.name}")
        for one in card.published:
            if label in one.values:
                value = one.values[label]
                row = _row(run, column, means, one.method, value, reasons, one.source, card.name)
                rows.append(row)
    return rows


def _ours_for(column: str, means: dict[str, float]) -> str | None:
    """The column of the card, else ours of the same metric by another network."""
    if column in means:
        return column
    same = [name for name in means if metric_of(name) == metric_of(column)]
    return same[0] if same and network_of(column) is not None else None


def _row(
    run: Run,
    column: str,
    means: dict[str, float],
    method: str,
    value: float,
    reasons: Sequence[str],
    source: str,
    card: str,
) -> tuple[object, ...]:
    said = f"differs in: {'; '.join(dict.fromkeys(reasons))}" if reasons else SAME
    ours: object = APART if reasons else means[column]
    return (run.folder.name, column, ours, method, value, said, source, card)
