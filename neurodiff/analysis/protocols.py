"""Protocols: what each column of a table of scores is, and when it may stand beside published ones.

Two protocols. ``mind3d-2024`` is the published evaluation as released, its slips included;
``neurodiff-1`` is the corrected one:

    step              mind3d-2024                       neurodiff-1
    frame of CD, EMD  reconstruction "adjusted"         both as they stand; and turned to best fit
    2-way, 10-way     100 draws, seeded by the item     exact expectation over the draws
    LPIPS             pictures in 0..1                  pictures in -1..1
    SSIM              columns of pixels as channels     one picture
    FPD               points of the truth with          both drawn from the surface
                      replacement from 10,000

Both: PSNR of uint8 on white, CD and EMD of 2,048 points x 1e2, FPD x 1e-1. The name of a network is
part of the column's name, ``LPIPS [AlexNet]``: two networks never share a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from neurodiff.core.config import load
from neurodiff.core.errors import UsageError, suggest

RENDERER = "ray caster, 224 px"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings that change numbers. ``quick`` columns need neither weights nor minutes."""

    name: str
    quick: tuple[str, ...]
    full: tuple[str, ...]
    adjusts: bool
    draws: int | None
    lpips_values: str
    columns_as_channels: bool
    with_replacement: bool


PROTOCOLS = {
    one.name: one
    for one in (
        Protocol(
            name="neurodiff-1",
            quick=("CD", "F@2%", "IoU", "within"),
            full=("CD turned", "EMD", "PSNR", "SSIM", "2-way", "10-way", "LPIPS", "FPD"),
            adjusts=False,
            draws=None,
            lpips_values="-1..1",
            columns_as_channels=False,
            with_replacement=False,
        ),
        Protocol(
            name="mind3d-2024",
            quick=("CD", "PSNR", "SSIM"),
            full=("EMD", "2-way", "10-way", "LPIPS", "FPD"),
            adjusts=True,
            draws=100,
            lpips_values="0..1",
            columns_as_channels=True,
            with_replacement=True,
        ),
    )
}
NETWORK_USES = {"2-way": "n-way", "10-way": "n-way", "LPIPS": "LPIPS", "FPD": "FPD"}


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """How to read a column: unit, direction, chance (None where it has to be measured)."""

    unit: str
    higher_is_better: bool
    chance: float | None
    description: str


_SHAPE = "2,048 points a side, x 1e2"
QUANTITIES = {
    "CD": Quantity(
        unit="side^2 x 1e2",
        higher_is_better=False,
        chance=None,
        description=f"Chamfer distance: squared, two-sided, {_SHAPE}",
    ),
    "CD turned": Quantity(
        unit="side^2 x 1e2",
        higher_is_better=False,
        chance=None,
        description="Chamfer distance after the best turn about the vertical axis: a minimum, to "
        "be read beside the same of the baselines; its points are those of EMD, not of CD",
    ),
    "F@2%": Quantity(
        unit="",
        higher_is_better=True,
        chance=None,
        description="F-score at 2 % of the longest side",
    ),
    "IoU": Quantity(
        unit="",
        higher_is_better=True,
        chance=None,
        description="volume intersection over union at 32^3 voxels",
    ),
    "within": Quantity(
        unit="",
        higher_is_better=True,
        chance=0.5,
        description="2-way identification among shown objects of the same category, by rendered "
        "views",
    ),
    "EMD": Quantity(
        unit="side x 1e2",
        higher_is_better=False,
        chance=None,
        description=f"earth mover's distance, exact, {_SHAPE}",
    ),
    "PSNR": Quantity(
        unit="dB",
        higher_is_better=True,
        chance=None,
        description=f"peak signal-to-noise ratio, mean of six views on white ({RENDERER})",
    ),
    "SSIM": Quantity(
        unit="",
        higher_is_better=True,
        chance=None,
        description=f"structural similarity, grey, 425 px, mean of six views ({RENDERER})",
    ),
    "LPIPS": Quantity(
        unit="",
        higher_is_better=False,
        chance=None,
        description=f"learned perceptual distance, mean of six views ({RENDERER})",
    ),
    "2-way": Quantity(
        unit="",
        higher_is_better=True,
        chance=0.5,
        description="ImageNet class of the true view told from 1 other, mean of six views "
        f"({RENDERER})",
    ),
    "10-way": Quantity(
        unit="",
        higher_is_better=True,
        chance=0.1,
        description="ImageNet class of the true view told from 9 others, mean of six views "
        f"({RENDERER})",
    ),
    "FPD": Quantity(
        unit="x 1e-1",
        higher_is_better=False,
        chance=None,
        description="Fréchet distance of PointNet activations: one number of a set of items, "
        "biased upward below as many items as dimensions; compare at the same n only",
    ),
}


def protocol_of(name: str) -> Protocol:
    """The protocol of this name.

    Raises
    ------
    UsageError : there is none.
    """
    if name not in PROTOCOLS:
        raise UsageError(
            f"there is no protocol {name!r} for shapes; there is {', '.join(PROTOCOLS)}."
            f"{suggest(name, PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def column(metric: str, network: str | None = None) -> str:
    """Name of a column: the metric, and in brackets the network that makes it."""
    return metric if network is None else f"{metric} [{network}]"


def metric_of(name: str) -> str:
    """The metric of a column, without its network."""
    return name.partition(" [")[0]


def network_of(name: str) -> str | None:
    """The network of a column; None where it needs none."""
    network = name.partition(" [")[2]
    return network.removesuffix("]") or None


def quantity(name: str) -> Quantity:
    """How to read a column, with or without a network in its name."""
    return QUANTITIES[metric_of(name)]


def is_metric(name: str) -> bool:
    """Whether a column of a table holds scores."""
    return metric_of(name) in QUANTITIES


# ------------------------------------------------------------------------------- protocol cards


@dataclass(frozen=True, kw_only=True)
class CardMetric:
    """One metric of a card: ``network`` and ``renderer`` are "none" where there is none."""

    network: str
    renderer: str
    settings: str
    slips: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a published table, and where it was read."""

    method: str
    source: str
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ProtocolCard:
    """A file in ``analysis/``: definitions, published figures, and what was not found."""

    name: str
    reference: str
    data: str
    metrics: dict[str, CardMetric]
    published: list[Published]
    not_found: list[str] = field(default_factory=list)


def read_card(name: str = "mind3d-2024") -> ProtocolCard:
    """The card of a protocol, by name or path.

    Raises
    ------
    UsageError : no such card, a wrong key, or a figure of a metric that it does not define.
    """
    card = load(name, ProtocolCard, kind="analysis")
    for row in card.published:
        unknown = sorted(set(row.values) - set(card.metrics))
        if unknown:
            raise UsageError(
                f"card {card.name!r} gives {row.method!r} a {unknown[0]!r} that it does not define"
            )
    return card


def published_table(card: ProtocolCard) -> pd.DataFrame:
    """The published figures: index method, columns the metrics *with their networks*, source.

    What no source gives is the text "not found".
    """
    columns = {m: column(m, None if c.network == "none" else c.network) for m, c in _items(card)}
    rows = {
        row.method: {columns[m]: row.values.get(m, "not found") for m in card.metrics}
        | {"source": row.source}
        for row in card.published
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def reasons_against(
    name: str, card: ProtocolCard, *, protocol: str, simulated: bool, renderer: str = RENDERER
) -> list[str]:
    """Why a column of ours may not stand in one column with the card's figures; empty if it may."""
    known = card.metrics.get(metric_of(name))
    if known is None:
        return [f"{card.name} has no {metric_of(name)}"]
    network = network_of(name) or "none"
    reasons = []
    if simulated:
        reasons.append("the data are simulated")
    if protocol != card.name:
        reasons.append(f"the protocol is {protocol}, published is {card.name}")
    if network != known.network:
        reasons.append(f"the network is {network}, published is {known.network}")
    if known.renderer not in ("none", renderer):
        reasons.append(f"views come from the {renderer}, published from {known.renderer}")
    return reasons


def beside_published(
    means: dict[str, float],
    card: ProtocolCard,
    *,
    label: str,
    protocol: str,
    simulated: bool,
    renderer: str = RENDERER,
) -> pd.DataFrame:
    """Our means as one more row of the published table.

    Parameters
    ----------
    means : column of ours -> mean. All of them have to be comparable.

    Raises
    ------
    UsageError : a column is not; lists every reason. Nothing is merged then.
    """
    reasons = {
        name: reasons_against(name, card, protocol=protocol, simulated=simulated, renderer=renderer)
        for name in means
    }
    refuse_incomparable(reasons, label, card.name)
    table = published_table(card)
    row = {name: means.get(name, "not computed") for name in table.columns if name != "source"}
    return pd.concat([table, pd.DataFrame([row | {"source": "this run"}], index=[label])])


def refuse_incomparable(reasons: Mapping[str, Sequence[str]], label: str, card: str) -> None:
    """UsageError with every reason against setting ``label`` beside the figures of a card."""
    wrong = {name: " and ".join(why) for name, why in reasons.items() if why}
    if wrong:
        text = "; ".join(f"{name}: {why}" for name, why in wrong.items())
        raise UsageError(
            f"{label} cannot stand in one table with the figures published for {card}: {text}"
        )


def _items(card: ProtocolCard) -> list[tuple[str, CardMetric]]:
    return list(card.metrics.items())
