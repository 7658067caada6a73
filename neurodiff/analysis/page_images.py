"""The page about decoded pictures: what was shown beside what was reconstructed, and the anchors.

A function of plain data: tables, pictures, words. No picture on it is chosen by hand: the wall
shows all items, or a draw whose seed is named, and beside it the worst, median and best by one
named score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.figures import format_number, is_number
from neurodiff.analysis.image_conditions import CEILING, NO_BRAIN, OURS, Conditions
from neurodiff.analysis.image_protocols import NEAREST, column, image_quantity, metric_records
from neurodiff.analysis.report import PictureGrid, Report, ReportData
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.statistics import bootstrap_interval

if TYPE_CHECKING:
    import PIL.Image

    from neurodiff.analysis.image_scores import ImageEvaluation
    from neurodiff.pipelines.pictures import Picture

LIMIT = 120  # items on the wall; more are drawn from
BY_RANK = 4  # worst, median and best items each
BLUR = (
    "PixCorr and SSIM reward blur: a blurred start of a generator alone can score higher than its "
    "finished pictures. Read them beside the ceiling and the mean training picture."
)
CLUSTERS = (
    "2-way scores also reward a decoder that knows the category alone: 'cluster only' is what it "
    "scores, and '2-way within' what is left once the category is known."
)


@dataclass(frozen=True, kw_only=True)
class ImageFindings:
    """What the page shows; only ``title``, ``simulated`` and ``conditions`` have no default.

    Parameters
    ----------
    conditions : of ``image_conditions``.
    grids : of ``picture_grids``.
    bottleneck : condition -> a table of ``metrics.dimension.bottleneck_curve``;
        ``bottleneck_metric`` is the column of scores that it was made of.
    rois : one row a region of the cortex, shown as it is.
    published : of ``published_images``, or of ``beside_published_images``.
    tables : (title, table, note) for anything else.
    """

    title: str
    simulated: bool
    conditions: Conditions
    subtitle: str = ""
    headline: Sequence[str] = ()
    gates: Sequence[Mapping[str, Any]] = ()
    grids: Sequence[PictureGrid] = ()
    bottleneck: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    bottleneck_metric: str = "PixCorr"
    rois: pd.DataFrame | None = None
    published: pd.DataFrame | None = None
    tables: Sequence[tuple[str, pd.DataFrame, str]] = ()
    notes: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_image_page(path: str | Path, findings: ImageFindings) -> Path:
    """Write the page as one HTML file, whole or not at all."""
    return image_report(findings).save(path)


def image_report(findings: ImageFindings) -> Report:
    """The page as a report: ``html``, ``to_json``, ``save``, and itself in a notebook."""
    table = findings.conditions.table
    metrics = metric_records(list(dict.fromkeys(table["metric"])))
    tables = [
        (
            "Scores beside their anchors",
            score_table(findings.conditions),
            "Mean with its 95 % interval over the pictures that were shown. p: share of "
            "permutations of the pairing that score at least as well, one-sided. Way: (score - "
            "base) / (ceiling - base), where the base is the best baseline without a brain.",
        )
    ]
    first = next(iter(findings.conditions.evaluations.values()), None)
    if first is not None and first.table["subject"].nunique() > 1:
        tables.append(("Subject by subject", subject_table(first), "Mean with its 95 % interval."))
    if findings.rois is not None:
        tables.append(("Region by region", findings.rois, ""))
    tables += list(findings.tables)
    if findings.published is not None:
        note = (
            "(?): quoted from memory, not read in the paper. Rows of different session counts are "
            "not comparable; identification is a share."
        )
        tables.append(("Published figures", findings.published.reset_index(), note))
    evaluations = findings.conditions.evaluations.values()
    notes = [*findings.notes, BLUR, CLUSTERS]
    notes += list(dict.fromkeys(note for one in evaluations for note in one.notes))
    return Report(
        ReportData(
            title=findings.title,
            simulated=findings.simulated,
            subtitle=findings.subtitle,
            headline=findings.headline,
            provenance=findings.provenance,
            gates=findings.gates,
            conditions=findings.conditions.wide(),
            metrics=metrics,
            curve=bottleneck_frame(findings.bottleneck, findings.bottleneck_metric),
            curve_level="dimensions of the brain data that the decoder may use",
            curve_title="Bottleneck",
            curve_lead="The same decoder, allowed to read the brain through a few dimensions only.",
            grids=findings.grids,
            about="picture",
            tables=tables,
            notes=notes,
        )
    )


def score_table(conditions: Conditions, label: str = OURS) -> pd.DataFrame:
    """One row a metric: chance, best baseline without a brain, ours, p, cluster only, ceiling, way.

    Parameters
    ----------
    label : the condition that is ours; where there is none of that name, the first.
    """
    table = conditions.table
    if label not in set(table["condition"]):
        label = str(table["condition"].iloc[0])
    rows = []
    for metric, part in table.groupby("metric", sort=False):
        by_name = part.set_index("condition")
        if label not in by_name.index:
            continue
        ours = by_name.loc[label]
        blind = part[(part["role"] == NO_BRAIN) & part["mean"].notna()]
        best = "–"
        if len(blind):
            up = image_quantity(str(metric)).higher_is_better
            row = blind.loc[blind["mean"].idxmax() if up else blind["mean"].idxmin()]
            best = f"{format_number(row['mean'])} ({row['condition']})"
        ceiling = by_name["mean"].get(CEILING)
        rows.append(
            {
                "metric": metric,
                "chance": _words(ours["chance"]),
                "best without a brain": best,
                "ours": _words(ours["mean"], ours["low"], ours["high"]),
                "p": _words(ours["p"]),
                "cluster only": _words(ours["reference"]),
                "ceiling": _words(ceiling),
                "way": _words(ours["share"], ours["share_low"], ours["share_high"]),
            }
        )
    return pd.DataFrame(rows)


def subject_table(evaluation: ImageEvaluation) -> pd.DataFrame:
    """One row a metric, one column a subject, and the mean over subjects of each picture."""
    columns = {name: evaluation.summary(subject=name) for name in evaluation.table["subject"]}
    columns["mean over subjects"] = evaluation.summary()
    rows = [
        {"metric": metric}
        | {
            name: _words(one["mean"][metric], one["low"][metric], one["high"][metric])
            for name, one in columns.items()
        }
        for metric in evaluation.metrics
    ]
    return pd.DataFrame(rows)


def nearness_table(
    evaluation: ImageEvaluation, metric: str, network: str, *, parts: int = 4
) -> pd.DataFrame:
    """A score as a function of how near the nearest training picture was to what was shown.

    A decoder that retrieves scores well only where the training set held nearly the same picture.

    Parameters
    ----------
    metric : a column of the scores.
    network : whose features tell how near.
    parts : of equally many pictures.

    Returns
    -------
    Columns nearest (range of the correlation), n, mean, low, high.

    Raises
    ------
    UsageError : a column is not there (nearness needs training pictures), or too few pictures.
    """
    near = column(NEAREST, network)
    table = evaluation.table
    for name in (metric, near):
        if name not in table:
            raise UsageError(f"the scores have no {name!r}; score with train, or name another")
    means = table.groupby("stimulus")[[metric, near]].mean().dropna().sort_values(near)
    if len(means) < 2 * parts:
        raise UsageError(f"{len(means)} pictures make no {parts} parts; take fewer parts")
    rows = []
    for chosen in np.array_split(np.arange(len(means)), parts):
        part = means.iloc[chosen]
        interval = bootstrap_interval(part[metric].to_numpy(np.float64))
        low, high = format_number(part[near].iloc[0]), format_number(part[near].iloc[-1])
        rows.append(
            {
                "nearest training picture": f"{low} to {high}",
                "n": len(part),
                "mean": interval.value,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return pd.DataFrame(rows)


def bottleneck_frame(curves: Mapping[str, pd.DataFrame], metric: str) -> pd.DataFrame | None:
    """Tables of ``bottleneck_curve`` as the report's curve; None where there is none."""
    frames = [
        table.rename(columns={"rank": "level"}).assign(condition=name, metric=metric)
        for name, table in curves.items()
    ]
    columns = ["level", "condition", "metric", "value", "low", "high"]
    return pd.concat(frames)[columns].reset_index(drop=True) if frames else None


def picture_grids(
    shown: Mapping[str, PIL.Image.Image],
    answers: Mapping[str, Sequence[Picture]],
    scores: pd.DataFrame,
    metric: str,
    *,
    seed: int = 0,
    limit: int = LIMIT,
) -> list[PictureGrid]:
    """A wall of all items (or a seeded draw), then the worst, median and best by rank.

    Parameters
    ----------
    shown : stimulus -> the true picture.
    answers : condition -> its pictures; the first condition's items are those on the wall.
    scores : the first condition's table of ``evaluate_images``.
    metric : the column by which items are ranked, and which is written below each.
    seed : of the draw, where there are more than ``limit`` items.

    Raises
    ------
    UsageError : no answers, a column that is not there, or a stimulus without a true picture.
    """
    if not answers or metric not in scores:
        known = ", ".join(str(name) for name in scores)
        raise UsageError(f"there is no {metric!r} to rank pictures by; the scores have {known}")
    found = {
        name: {(p.subject, p.stimulus, p.repeat, p.sample): p.image for p in pictures}
        for name, pictures in answers.items()
    }
    keys = list(next(iter(found.values())))
    lacking = [key[1] for key in keys if key[1] not in shown]
    if lacking:
        raise UsageError(f"there is no true picture of stimulus {lacking[0]!r}; give all of them")
    index = ["subject", "stimulus", "repeat", "sample"]
    values = scores.set_index(index)[metric].to_dict()
    several = {k: len({key[k] for key in keys}) > 1 for k in (0, 2, 3)}

    def item(key: tuple) -> tuple[str, list, str]:
        label = key[1]
        if several[0]:
            label = f"{key[0]}: {label}"
        if several[2] or several[3]:
            label += f", repeat {key[2]}, sample {key[3]}"
        pictures = [shown[key[1]], *(one.get(key) for one in found.values())]
        return label, pictures, f"{metric} {format_number(values.get(key))}"

    names = ("shown", *found)
    chosen, title = keys, f"All {len(keys)} items"
    why = "Every item that was decoded, in the order of the data."
    if len(keys) > limit:
        draw = item_seed(seed, subject="", stimulus="", stage="pictures on the page")
        order = numpy_generator(draw).permutation(len(keys))[:limit]
        chosen, title = [keys[k] for k in order], f"{limit} of {len(keys)} items"
        why = f"A random draw (seed {seed}), not chosen by result."
    grids = [PictureGrid(title=title, why=why, names=names, items=[item(key) for key in chosen])]
    ranked = sorted((k for k in keys if is_number(values.get(k))), key=lambda k: values[k])
    if not image_quantity(metric).higher_is_better:
        ranked.reverse()
    if len(ranked) >= 3 * BY_RANK:
        middle = (len(ranked) - BY_RANK) // 2
        for word, start in (("Worst", 0), ("Median", middle), ("Best", len(ranked) - BY_RANK)):
            part = ranked[start : start + BY_RANK]
            grids.append(
                PictureGrid(
                    title=f"{word} {BY_RANK} by {metric}",
                    why=f"Chosen by rank alone, places {start + 1} to {start + BY_RANK} of "
                    f"{len(ranked)} from the worst.",
                    names=names,
                    items=[item(key) for key in part],
                )
            )
    return grids


def dimension_table(
    heads: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    ranks: Sequence[int] = (1, 10, 100),
) -> pd.DataFrame:
    """How many dimensions the predictions of each head use, beside those of the true features.

    Parameters
    ----------
    heads : name -> (predicted, true, training) features, one row an item.

    Returns
    -------
    Columns head, dimensions of predictions and of truths (participation ratio), and the share of
    the variance of each in the first axes of the training features.
    """
    from neurodiff.metrics.dimension import participation_ratio, variance_captured

    rows = []
    for name, (predicted, true, train) in heads.items():
        flat = [x.reshape(len(x), -1) for x in (predicted, true, train)]
        row: dict[str, Any] = {
            "head": name,
            "dimensions, predicted": participation_ratio(flat[0]),
            "dimensions, true": participation_ratio(flat[1]),
        }
        shares = [variance_captured(x, flat[2], ranks) for x in flat[:2]]
        for k, rank in enumerate(ranks):
            row[f"in {rank} training axes, predicted"] = shares[0][k]
            row[f"in {rank} training axes, true"] = shares[1][k]
        rows.append(row)
    return pd.DataFrame(rows)


def _words(value: object, low: object = None, high: object = None) -> str:
    if not is_number(value):
        return "–"
    words = format_number(value)
    if is_number(low) and is_number(high):
        words += f" ({format_number(low)} to {format_number(high)})"
    return words
