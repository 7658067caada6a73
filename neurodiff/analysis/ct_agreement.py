"""How well two versions of the same slices agree: squares in tissue, features, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError
from neurodiff.metrics.agreement import Agreement, agreement_table
from neurodiff.metrics.radiomics import RadiomicsSettings, as_pyradiomics, radiomics

FAMILIES = ("stat", "ih", "cm", "rlm", "szm", "ngt", "ngl")
SETTINGS = RadiomicsSettings(
    bin_width=25.0, bin_origin="multiple", aggregation=("2_5D_avg",), families=FAMILIES
)
SIDE = 32
BODY = -900.0


@dataclass(frozen=True, kw_only=True)
class Square:
    """A square of ``SIDE`` pixels: scan, slice, row and column of its corner."""

    scan: str
    slice: int
    row: int
    column: int

    def of(self, hu: np.ndarray) -> np.ndarray:
        """Its pixels (1, side, side)."""
        rows = slice(self.row, self.row + SIDE)
        return hu[self.slice : self.slice + 1, rows, self.column : self.column + SIDE]


def squares(
    soft: Mapping[str, np.ndarray],
    padding: Mapping[str, np.ndarray],
    *,
    inside: float = 0.5,
    most: int = 240,
) -> list[Square]:
    """Squares without overlap of which a share ``inside`` is above -300 HU, none of it padding.

    At most ``most``, spread evenly over scans and slices.
    """
    found = []
    for scan, hu in soft.items():
        for k, r, c in np.ndindex(len(hu), hu.shape[1] // SIDE, hu.shape[2] // SIDE):
            one = Square(scan=scan, slice=k, row=r * SIDE, column=c * SIDE)
            if not one.of(padding[scan]).any() and (one.of(hu) > -300).mean() >= inside:
                found.append(one)
    if len(found) > most:
        found = [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]
    return found


def features_of(
    hu: Mapping[str, np.ndarray], places: Sequence[Square], spacing: tuple[float, float]
) -> pd.DataFrame:
    """93 features, as pyradiomics names them, of every square."""
    everywhere = np.ones((1, SIDE, SIDE), bool)
    rows = []
    for one in places:
        values = one.of(hu[one.scan]).astype(np.float64)
        found = as_pyradiomics(radiomics(values, everywhere, (1.0, *spacing), SETTINGS))
        rows.append({name.removeprefix("original_"): value for name, value in found.items()})
    return pd.DataFrame(rows)


def agreement(
    a: pd.DataFrame,
    b: pd.DataFrame,
    places: Sequence[Square],
    *,
    seed: int = 0,
    samples: int = 1000,
    phantom: bool = False,
) -> Agreement:
    """Agreement by feature and class; the bootstrap draws patients, or slices of a single one.

    Raises
    ------
    DataError : fewer than two squares.
    """
    if len(places) < 2:
        raise DataError(
            f"there are {len(places)} squares of {SIDE} pixels in tissue; agreement needs 2 or more"
        )
    scans = [one.scan for one in places]
    several = len(set(scans)) > 1
    groups = scans if several else [f"{one.scan} {one.slice}" for one in places]
    return agreement_table(
        a,
        b,
        groups,
        subjects=scans,
        phantom=np.full(len(places), phantom),
        unit="patient" if several else "slice",
        bootstrap=(samples, 0.95, seed),
        class_of=lambda feature: feature.split("_")[0],
    )


def body_rmse(made: np.ndarray, target: np.ndarray, padding: np.ndarray) -> float:
    """Root mean square difference, HU, where the target is above -900 HU."""
    body = (target > BODY) & ~padding
    if not body.any():
        raise DataError("nothing of the reference lies above -900 HU, so there is no body in it")
    return float(np.sqrt(np.square((made - target)[body], dtype=np.float64).mean()))
