"""How well two measurements of the same thing agree: concordance, ICC, repeatability, bias.

For radiomic features of the same regions before and after a change of kernel, dose or thickness,
one feature at a time and by class of features. Intervals come from a bootstrap over what is
independent: slices or patients. Regions of one slice share its noise, so they are drawn together
and never by themselves.

See `neurodiff.metrics.agreement_statistics` for the definitions and their sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.agreement_statistics import (
    BlandAltman,
    bland_altman,
    ccc,
    icc,
    repeatability_coefficient,
)
from neurodiff.metrics.radiomics_names import feature_class

__all__ = [
    "Agreement",
    "BlandAltman",
    "agreement_table",
    "bland_altman",
    "ccc",
    "feature_class",
    "icc",
    "repeatability_coefficient",
]

_CLASS_THRESHOLDS = (0.85, 0.9)


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Agreement of two feature tables.

    Attributes
    ----------
    features : one row a feature: class, pairs, ccc with its interval, icc_21, icc_31,
        repeatability, bias and limits.
    classes : one row a class and one "all": features, defined (with a CCC), mean ccc with its
        interval, and how many features reach 0.85 and 0.9.
    pairs, groups : regions that were compared, and slices or patients that were drawn.
    unit : what a group is.
    phantoms, patients : how many of each the regions come from.
    confidence, samples : of the bootstrap.
    left_out : features that only one table has.
    notes : what a reader has to know, in sentences.
    """

    features: pd.DataFrame
    classes: pd.DataFrame
    pairs: int
    groups: int
    unit: str
    phantoms: int
    patients: int
    confidence: float
    samples: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Classes in lines, with what they rest on."""
        lines = [
            f"{self.pairs} pairs of regions in {_number(self.groups, self.unit)} of "
            f"{_number(self.phantoms, 'phantom')} and {_number(self.patients, 'patient')}; "
            f"{self.confidence:.0%} intervals from {self.samples} bootstraps over "
            f"{self.unit}s"
        ]
        for row in self.classes.itertuples(index=False):
            between = f" ({row.ccc_low:.3f} to {row.ccc_high:.3f})"
            lines.append(
                f"{row.feature_class}: mean CCC {row.ccc:.3f}"
                + (between if math.isfinite(row.ccc_low) else " (no interval)")
                + f", {row.above_085} of {row.features} at 0.85 or more"
            )
        return "\n".join([*lines, *self.notes])


def agreement_table(
    a: pd.DataFrame,
    b: pd.DataFrame,
    groups: Any,
    *,
    subjects: Any,
    phantom: Any,
    unit: Literal["slice", "patient"] = "slice",
    bootstrap: tuple[int, float, int] = (1000, 0.95, 0),
    class_of: Callable[[str], str] | None = None,
) -> Agreement:
    """Compare two tables of features of the same regions.

    Parameters
    ----------
    a, b : one row a region, one column a feature, with the same index in the same order.
    groups : the slice or the patient of each row; these are drawn by the bootstrap, whole.
    subjects : the phantom or the patient of each row; a group lies within one.
    phantom : whether that is a phantom.
    unit : what ``groups`` are.
    bootstrap : samples, confidence and seed.
    class_of : class of a feature from its name; without, `feature_class`.

    Returns
    -------
    Pairs of which one is not finite are left out, feature by feature, and counted.

    Raises
    ------
    DataError : fewer than two pairs, tables of other rows, or no feature in both.
    UsageError : one group a region is not given, a group lies in two subjects, or the bootstrap
        is not samples from 1, a confidence between 0 and 1 and a seed.
    """
    names = _check_tables(a, b)
    samples, confidence, seed = bootstrap
    if samples < 1 or not 0 < confidence < 1:
        raise UsageError(
            f"the bootstrap is {bootstrap}; give samples from 1, a confidence within 0 and 1, "
            "and a seed"
        )
    codes, owners, is_phantom = _check_groups(len(a), groups, subjects, phantom)
    x = a[names].to_numpy(dtype=np.float64)
    y = b[names].to_numpy(dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    sums = _group_sums(x, y, known, codes)
    count = int(codes.max()) + 1
    drawn = np.full((0, len(names)), np.nan)
    notes = []
    if count >= 2:
        generator = numpy_generator(
            item_seed(seed, subject="agreement", stimulus=unit, stage="bootstrap")
        )
        weights = generator.multinomial(count, np.full(count, 1 / count), size=samples)
        drawn = _ccc_of_sums(weights.astype(np.float64) @ sums)
        if count < 10:
            notes.append(
                f"Only {_number(count, unit)}: the intervals are rough and tend to be too short."
            )
    else:
        notes.append(f"All regions lie in one {unit}: there are no intervals.")
    subjects_count = len(np.unique(owners))
    if unit == "slice" and subjects_count == 1:
        notes.append("All slices are of one subject: the intervals say nothing about another one.")
    overall = _ccc_of_sums(sums.sum(axis=1, keepdims=True))[0]
    name_class = class_of or feature_class
    labels = [name_class(name) for name in names]
    left = tuple(sorted(set(a.columns) ^ set(b.columns)))
    if left:
        notes.append(f"{len(left)} features are in one table only and were left out.")
    return Agreement(
        features=_feature_rows(names, labels, x, y, known, overall, drawn, confidence),
        classes=_class_rows(labels, overall, drawn, confidence),
        pairs=len(a),
        groups=count,
        unit=unit,
        phantoms=len(np.unique(owners[is_phantom])),
        patients=len(np.unique(owners[~is_phantom])),
        confidence=confidence,
        samples=samples,
        left_out=left,
        notes=tuple(notes),
    )


def _feature_rows(
    names: list[str],
    labels: list[str],
    x: np.ndarray,
    y: np.ndarray,
    known: np.ndarray,
    overall: np.ndarray,
    drawn: np.ndarray,
    confidence: float,
) -> pd.DataFrame:
    low, high = _interval(drawn, confidence)
    rows = []
    for f, name in enumerate(names):
        use = known[:, f]
        row = {
            "feature": name,
            "feature_class": labels[f],
            "pairs": int(use.sum()),
            "ccc": overall[f],
            "ccc_low": low[f],
            "ccc_high": high[f],
        }
        if use.sum() >= 2:
            one, two = x[use, f], y[use, f]
            limits = bland_altman(one, two)
            both = np.stack([one, two], axis=1)
            row |= {
                "icc_21": icc(both),
                "icc_31": icc(both, "3,1"),
                "repeatability": repeatability_coefficient(one, two),
                "bias": limits.bias,
                "limit_low": limits.lower,
                "limit_high": limits.upper,
            }
        rows.append(row)
    columns = [
        "feature",
        "feature_class",
        "pairs",
        "ccc",
        "ccc_low",
        "ccc_high",
        "icc_21",
        "icc_31",
        "repeatability",
        "bias",
        "limit_low",
        "limit_high",
    ]
    return pd.DataFrame(rows, columns=columns)


def _class_rows(
    labels: list[str], overall: np.ndarray, drawn: np.ndarray, confidence: float
) -> pd.DataFrame:
    kinds = np.array(labels)
    rows = []
    for kind in [*dict.fromkeys(labels), "all"]:
        use = np.flatnonzero((kinds == kind) | (kind == "all"))
        own = overall[use]
        low, high = _interval(_mean_known(drawn[:, use])[:, None], confidence)
        row = {
            "feature_class": kind,
            "features": len(use),
            "defined": int(np.isfinite(own).sum()),
            "ccc": float(_mean_known(own[None])[0]),
            "ccc_low": low[0],
            "ccc_high": high[0],
        }
        for threshold in _CLASS_THRESHOLDS:
            row[f"above_{str(threshold).replace('.', '')}"] = int((own >= threshold).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def _group_sums(x: np.ndarray, y: np.ndarray, known: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return n, x, y, xx, yy and xy summed over each group's pairs: (6, groups, features)."""
    n = np.maximum(known.sum(axis=0), 1)
    x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
    # about a common centre and in units of the spread: squares then keep their digits
    centre = (x.sum(axis=0) + y.sum(axis=0)) / (2 * n)
    x, y = np.where(known, x - centre, 0.0), np.where(known, y - centre, 0.0)
    scale = np.maximum(np.abs(x).max(axis=0), np.abs(y).max(axis=0))
    # what rounding makes of a constant is no spread
    scale = np.where(scale > 1e-13 * np.abs(centre), scale, np.inf)
    x, y = x / scale, y / scale
    parts = np.stack([known.astype(np.float64), x, y, x * x, y * y, x * y])
    sums = np.zeros((6, int(codes.max()) + 1, x.shape[1]))
    np.add.at(sums, (slice(None), codes), parts)
    return sums


def _ccc_of_sums(sums: np.ndarray) -> np.ndarray:
    """Concordance from summed moments (6, ..., features); NaN below two pairs."""
    count = sums[0]
    n = np.maximum(count, 1.0)
    mx, my, xx, yy, xy = (s / n for s in sums[1:])
    apart = np.maximum(xx - mx**2, 0.0) + np.maximum(yy - my**2, 0.0) + (mx - my) ** 2
    good = (count >= 2) & (apart > 1e-24)
    return np.where(good, 2 * (xy - mx * my) / np.where(good, apart, 1.0), np.nan)


def _interval(drawn: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of each column over the samples that are defined."""
    low, high = (np.full(drawn.shape[1], np.nan) for _ in range(2))
    for f in range(drawn.shape[1]):
        own = drawn[np.isfinite(drawn[:, f]), f]
        if own.size:
            low[f], high[f] = np.quantile(own, [(1 - confidence) / 2, (1 + confidence) / 2])
    return low, high


def _mean_known(table: np.ndarray) -> np.ndarray:
    known = np.isfinite(table)
    total = np.where(known, table, 0.0).sum(axis=1)
    count = known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _check_tables(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    if len(a) < 2 or len(b) < 2:
        raise DataError(
            f"there are {min(len(a), len(b))} pairs of regions; agreement needs at least 2"
        )
    if not a.index.equals(b.index):
        raise DataError(
            f"the two tables describe other regions ({len(a)} and {len(b)} rows, or another "
            "order); give both the same index"
        )
    names = [name for name in a.columns if name in b.columns]
    if not names:
        raise DataError(
            "the two tables have no feature in common; compute both with the same settings"
        )
    return names


def _check_groups(
    n: int, groups: Any, subjects: Any, phantom: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    for name, given in (("groups", groups), ("subjects", subjects), ("phantom", phantom)):
        if len(given) != n:
            raise UsageError(f"{len(given)} {name} for {n} regions; give one each")
    codes = pd.factorize(pd.Series(list(groups)).astype(str))[0]
    owners = np.asarray([str(s) for s in subjects])
    is_phantom = np.asarray(list(phantom), dtype=bool)
    for code in range(int(codes.max()) + 1):
        own = np.unique(owners[codes == code])
        if len(own) > 1:
            raise UsageError(
                f"group {str(list(groups)[int(np.flatnonzero(codes == code)[0])])!r} lies in "
                f"{len(own)} subjects; name slices so that no two subjects share one"
            )
    mixed = set(owners[is_phantom]) & set(owners[~is_phantom])
    if mixed:
        raise UsageError(f"{len(mixed)} subjects are called both a phantom and a patient")
    return codes, owners, is_phantom


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
