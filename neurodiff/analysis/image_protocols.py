"""Protocols of decoded pictures: what each column is, and when it may stand beside published ones.

Three protocols. ``brain-diffuser-2023`` and ``mindeye-2023`` are the published evaluations as
released; ``neurodiff-1`` is the corrected one. Every column is computed under each of them; what
differs is

    step                     brain-diffuser-2023   mindeye-2023          neurodiff-1
    pixels, at 425           bicubic, uint8        from 256, bilinear    bilinear, uint8
    column called SSIM       columns as channels   2d                    both, named
    ties of 2-way            lost                  lost                  one half
    AlexNet, Inception       224, 224 px           256, 342 px           224, 224 px
    EfficientNet-B1          V1 at 224 px          V2 at 255 px          V1 at 224 px
    p                        permutation, and the  permutation           permutation
                             binomial one, flagged

2-way compares each reconstruction with other *true* pictures, as published; the other direction
is a column of its own. The name of the network is part of a column's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from neurodiff.analysis.protocols import (
    Quantity,
    column,
    metric_of,
    network_of,
    refuse_incomparable,
)
from neurodiff.core.config import load
from neurodiff.core.errors import UsageError, suggest
from neurodiff.metrics.images import Resize

TWO_WAY, BACK, WITHIN = "2-way", "2-way, reconstructions vary", "2-way within"
CLUSTER_HIT = "cluster hit"
DISTANCE, NEAREST = "distance", "nearest train"
SSIM_2D, SSIM_COLUMNS = "SSIM 2d", "SSIM columns"


@dataclass(frozen=True, kw_only=True)
class ImageProtocol:
    """Settings that change numbers.

    Parameters
    ----------
    pixels : rule by which pictures come to 425 px for PixCorr and SSIM.
    stored : pixels on a side to which both pictures are brought before anything else, or None.
    ssim : the column that the published tables call SSIM.
    ties : of 2-way identification.
    alexnet, inception, efficientnet : input of these networks, pixels on a side.
    efficientnet_weights : torchvision's first or second set.
    binomial : show the published p beside that of the permutations, flagged.
    clusters : of k-means, where stimuli have no categories (40: Shirakawa et al. 2025).
    """

    name: str
    pixels: Resize
    stored: int | None
    ssim: str
    ties: Literal["half", "lost"]
    alexnet: int = 224
    inception: int = 224
    efficientnet: int = 224
    efficientnet_weights: Literal["V1", "V2"] = "V1"
    binomial: bool = False
    clusters: int = 40


IMAGE_PROTOCOLS = {
    one.name: one
    for one in (
        ImageProtocol(
            name="neurodiff-1", pixels="bilinear", stored=None, ssim=SSIM_2D, ties="half"
        ),
        ImageProtocol(
            name="brain-diffuser-2023",
            pixels="bicubic",
            stored=None,
            ssim=SSIM_COLUMNS,
            ties="lost",
            binomial=True,
        ),
        ImageProtocol(
            name="mindeye-2023",
            pixels="bilinear float",
            stored=256,
            ssim=SSIM_2D,
            ties="lost",
            alexnet=256,
            inception=342,
            efficientnet=255,
            efficientnet_weights="V2",
        ),
    )
}

IMAGE_QUANTITIES = {
    "PixCorr": Quantity(
        unit="",
        higher_is_better=True,
        chance=None,
        description="Pearson correlation of all pixels at 425 px; rewards blur",
    ),
    SSIM_2D: Quantity(
        unit="",
        higher_is_better=True,
        chance=None,
        description="structural similarity, grey, 425 px, windows over the picture; rewards blur",
    ),
    SSIM_COLUMNS: Quantity(
        unit="",
        higher_is_better=True,
        chance=None,
        description="structural similarity whose windows run down each column of pixels alone, as "
        "scikit-image before 0.20 read the released call",
    ),
    TWO_WAY: Quantity(
        unit="",
        higher_is_better=True,
        chance=0.5,
        description="the reconstruction told from one other true picture, by correlation of "
        "features; all others, exact",
    ),
    BACK: Quantity(
        unit="",
        higher_is_better=True,
        chance=0.5,
        description="the true picture's own reconstruction told from one other reconstruction",
    ),
    WITHIN: Quantity(
        unit="",
        higher_is_better=True,
        chance=0.5,
        description="2-way among true pictures of the same cluster: what is left once the cluster "
        "is known",
    ),
    CLUSTER_HIT: Quantity(
        unit="",
        higher_is_better=True,
        chance=None,
        description="the reconstruction is nearest to the centre of its own cluster of true "
        "pictures, its own truth left out",
    ),
    DISTANCE: Quantity(
        unit="",
        higher_is_better=False,
        chance=None,
        description="one minus the correlation of the features of reconstruction and truth",
    ),
}


def image_protocol_of(name: str) -> ImageProtocol:
    """The protocol of this name.

    Raises
    ------
    UsageError : there is none.
    """
    if name not in IMAGE_PROTOCOLS:
        raise UsageError(
            f"there is no protocol {name!r} for pictures; there is {', '.join(IMAGE_PROTOCOLS)}."
            f"{suggest(name, IMAGE_PROTOCOLS)}"
        )
    return IMAGE_PROTOCOLS[name]


def image_quantity(name: str) -> Quantity:
    """How to read a column, with or without a network in its name."""
    return IMAGE_QUANTITIES[metric_of(name)]


def is_image_metric(name: str) -> bool:
    """Whether a column of a table holds scores."""
    return metric_of(name) in IMAGE_QUANTITIES


def metric_records(names: Sequence[str]) -> list[dict]:
    """Columns as the report's ``metrics``: name, unit, direction, chance, description."""
    return [
        {
            "name": name,
            "unit": image_quantity(name).unit,
            "higher_is_better": image_quantity(name).higher_is_better,
            "chance": image_quantity(name).chance,
            "description": image_quantity(name).description,
        }
        for name in names
    ]


# ------------------------------------------------------------------------------- protocol cards


@dataclass(frozen=True, kw_only=True)
class ImageCardMetric:
    """One metric of a card and the column of ours that is the same; "none" where there is none."""

    ours: str
    settings: str
    slips: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PublishedImages:
    """One row of a published table.

    ``sessions`` of NSD that the method was trained on (0 where not stated); ``unsure`` names the
    figures that were not read in the paper itself but quoted from memory; ``apart`` is why the row
    is not comparable with others, beyond its sessions.
    """

    method: str
    sessions: int
    source: str
    values: dict[str, float]
    unsure: list[str] = field(default_factory=list)
    apart: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageCard:
    """A file in ``analysis/``: definitions, published figures, and what was not found."""

    name: str
    reference: str
    data: str
    metrics: dict[str, ImageCardMetric]
    published: list[PublishedImages]
    not_found: list[str] = field(default_factory=list)


def read_image_card(name: str = "brain-diffuser-2023") -> ImageCard:
    """The card of a protocol, by name or path.

    Raises
    ------
    UsageError : no such card, a wrong key, or a figure of a metric that it does not define.
    """
    card = load(name, ImageCard, kind="analysis")
    for row in card.published:
        unknown = sorted({*row.values, *row.unsure} - set(card.metrics))
        if unknown:
            raise UsageError(
                f"card {card.name!r} gives {row.method!r} a {unknown[0]!r} that it does not define"
            )
        empty = sorted(set(row.unsure) - set(row.values))
        if empty:
            raise UsageError(f"card {card.name!r}: {row.method!r} has no {empty[0]!r} to be unsure")
    return card


def published_images(card: ImageCard) -> pd.DataFrame:
    """The published figures: index method with its sessions; the metrics; not comparable; source.

    What no source gives is the text "not found"; a figure quoted from memory ends in "(?)".
    """
    rows = {}
    for row in card.published:
        cells: dict[str, object] = {}
        for metric in card.metrics:
            value = row.values.get(metric)
            cells[metric] = (
                "not found"
                if value is None
                else f"{value:.3f} (?)"
                if metric in row.unsure
                else value
            )
        rows[_label(row)] = cells | {"not comparable": row.apart, "source": row.source}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def image_reasons_against(
    name: str, card: ImageCard, *, protocol: str, simulated: bool, sessions: int | None = None
) -> list[str]:
    """Why a column of ours may not stand in one column with the card's figures; empty if it may.

    Parameters
    ----------
    sessions : of NSD that our decoder was fitted on; None where the data are not NSD.
    """
    known = {metric.ours: label for label, metric in card.metrics.items()}
    reasons = []
    if name not in known:
        same = [label for ours, label in known.items() if metric_of(ours) == metric_of(name)]
        network = network_of(name)
        reasons.append(
            f"the network is {network}, published are those of {', '.join(same)}"
            if network is not None and same
            else f"{card.name} has no {name}"
        )
    if simulated:
        reasons.append("the data are simulated")
    elif sessions is None:
        reasons.append(f"the data are not those published ({card.data})")
    elif sessions not in {row.sessions for row in card.published}:
        reasons.append(f"no published row has {sessions} sessions")
    if protocol != card.name:
        reasons.append(f"the protocol is {protocol}, published is {card.name}")
    return reasons


def beside_published_images(
    means: dict[str, float],
    card: ImageCard,
    *,
    label: str,
    protocol: str,
    simulated: bool,
    sessions: int | None = None,
) -> pd.DataFrame:
    """Our means as one more row of the published table, among the rows of as many sessions.

    Parameters
    ----------
    means : column of ours -> mean. All of them have to be comparable.

    Raises
    ------
    UsageError : a column is not; lists every reason. Nothing is merged then.
    """
    reasons = {
        name: image_reasons_against(
            name, card, protocol=protocol, simulated=simulated, sessions=sessions
        )
        for name in means
    }
    refuse_incomparable(reasons, label, card.name)
    alike = [row for row in card.published if row.sessions == sessions]
    table = published_images(card).loc[[_label(row) for row in alike]]
    row: dict[str, object] = {
        metric: means.get(one.ours, "not computed") for metric, one in card.metrics.items()
    }
    row |= {"not comparable": "", "source": "this run"}
    ours = pd.DataFrame([row], index=[f"{label} ({sessions} sessions)"])
    return pd.concat([table, ours]).rename_axis("method")


def _label(row: PublishedImages) -> str:
    return f"{row.method} ({row.sessions} sessions)" if row.sessions else row.method


__all__ = [
    "BACK",
    "CLUSTER_HIT",
    "DISTANCE",
    "IMAGE_PROTOCOLS",
    "IMAGE_QUANTITIES",
    "NEAREST",
    "SSIM_2D",
    "SSIM_COLUMNS",
    "TWO_WAY",
    "WITHIN",
    "ImageCard",
    "ImageProtocol",
    "beside_published_images",
    "column",
    "image_protocol_of",
    "image_quantity",
    "image_reasons_against",
    "is_image_metric",
    "metric_of",
    "metric_records",
    "published_images",
    "read_image_card",
]
