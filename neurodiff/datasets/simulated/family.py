"""What every family of simulated objects shares: its record, and words for factors.

A family maps factors in [0, 1] to a list of :class:`~.shapes.Part` in loose units (about one unit
long, y up, the front towards +z, not yet centred) and to a caption. No part is thinner than 0.07
of the finished unit cube, so that a 48^3 grid keeps every leg, shelf, wall and wing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from neurodiff.datasets.simulated.shapes import Part

Factors = Mapping[str, float]


@dataclass(frozen=True)
class Family:
    """One category: its factor names, its geometry and its words."""

    factors: tuple[str, ...]
    build: Callable[[Factors], list[Part]]
    describe: Callable[[Factors], str]

    @classmethod
    def named(
        cls,
        factors: str,
        build: Callable[[Factors], list[Part]],
        describe: Callable[[Factors], str],
    ) -> Family:
        """The family whose factor names are separated by blanks."""
        return cls(tuple(factors.split()), build, describe)


def between(share: float, low: float, high: float) -> float:
    """The value at ``share`` of the way from ``low`` to ``high``."""
    return low + (high - low) * share


def word(share: float, low: str, high: str, middle: str = "") -> str:
    """The word for a factor's lower, middle or upper third."""
    return low if share < 1 / 3 else high if share > 2 / 3 else middle


def sentence(noun: str, *adjectives: str, having: tuple[str, ...] = ()) -> str:
    """A phrase such as "a tall chair with armrests and an open back"; empty words drop out."""
    text = " ".join(["a", *(adjective for adjective in adjectives if adjective), noun])
    details = [detail for detail in having if detail]
    if details:
        listed = [", ".join(details[:-1]), details[-1]] if details[1:] else details
        text = f"{text} with {' and '.join(listed)}"
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def side_range(side: int, low: float, high: float) -> tuple[float, float]:
    """The range on the right, or its mirror image on the left."""
    return (low, high) if side > 0 else (-high, -low)
