"""Results of methods with the columns of attribution, made by hand: what `MethodResult` has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

COLUMNS = (
    *("method", "subject", "stage", "roi", "metric", "value", "low", "high"),
    *("null_mean", "null_low", "null_high", "p", "q", "n_trials", "n_features", "unit"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A stand-in with the fields of a method's result."""

    method: str
    table: pd.DataFrame
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    items: pd.DataFrame | None = None
    notes: tuple[str, ...] = ("q: Benjamini-Hochberg over the regions of a subject and stage.",)


def made(
    method: str,
    values: Mapping[str, float],
    rois: Mapping[str, np.ndarray],
    *,
    good: Sequence[str] = (),
    subjects: Sequence[str] = ("sub-01",),
    stage: str = "bridge",
    maps: Mapping[str, np.ndarray] | None = None,
) -> Made:
    """A result with the given value a region; ``good`` regions have q 0.01, the others 0.6."""
    rows = []
    for number, subject in enumerate(subjects):
        for roi, value in values.items():
            value = value + 0.01 * number
            q = 0.01 if roi in good else 0.6
            band = (value - 0.02, value + 0.02, 0.0, -0.03, 0.03)
            size = int(np.sum(rois[roi]))
            who = (method, subject, stage, roi, "correlation")
            rows.append((*who, value, *band, q / 3, q, 300, size, "loss of correlation"))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Made(method=method, table=table, maps=dict(maps or {}))
