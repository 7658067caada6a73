"""What an attribution's page says of its regions: claims, and how they stand to a planted truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_claims import (
    CARRIES,
    MEANING,
    NOTHING,
    claims,
    why_no_claims,
)
from neurodiff.analysis.attribution_words import LEVEL, significant


def claims_view(
    results: Sequence[Any], truth: pd.DataFrame | None, level: float = LEVEL
) -> dict[str, Any]:
    """Regions by claims: in how many subjects and stages, the table, and what is missing for one.

    ``rows`` is empty where there is no claim; ``why_not`` then says which method to run.
    """
    table = claims(results, level=level)
    carries = {} if truth is None else planted(truth)
    rows = []
    for roi, part in table.groupby("roi", sort=False):
        said = part["claim"].value_counts()
        one = part.iloc[0] if len(part) == 1 else None
        rows.append(
            {
                "roi": roi,
                "carries": carries.get(str(roi), ""),
                "of": len(part),
                "cells": [int(said.get(claim, 0)) for claim in MEANING],
                "claim": "" if one is None else str(one["claim"]),
                "p": None if one is None else float(one["p_both"]),
                "q": None if one is None else float(one["q_both"]),
                "strength": float(part["strength"].mean()),
            }
        )
    rows.sort(key=lambda row: (-row["cells"][0] / row["of"], -row["strength"]))
    pairs = table[["reliance", "alone"]].drop_duplicates()
    return {
        "meaning": MEANING,
        "strongest": CARRIES,
        "weakest": NOTHING,
        "rows": rows,
        "many": any(row["of"] > 1 for row in rows),
        "planted": bool(carries),
        "pairs": [f"{a} and {b}" for a, b in pairs.itertuples(index=False)],
        "why_not": why_no_claims(results),
        "table": table,
    }


def detection_table(
    results: Sequence[Any], truth: pd.DataFrame | None, level: float = LEVEL
) -> pd.DataFrame:
    """Area under the ROC of each method, and of the claims, against the planted truth.

    Empty without one. Claims are ordered by their strength.

    Columns: method, subject, stage, regions, loaded, auc (any information), auc_own (regions that
    carry something of their own against empty ones; NaN where it is not known), found and false
    (regions at q <= level that carry something, and that carry nothing).
    """
    if truth is None:
        return pd.DataFrame()
    carries = planted(truth)
    rows = []
    tables = [(result.method, result.table) for result in results]
    claimed = claims(results, level=level)
    if len(claimed):
        named = {"strength": "value", "p_both": "p", "q_both": "q"}
        tables.append(("claims", claimed.rename(columns=named)))
    for method, table in tables:
        for (subject, stage), part in table.groupby(["subject", "stage"], sort=False):
            known = part[part["roi"].isin(list(carries)) & np.isfinite(part["value"].astype(float))]
            values = known["value"].to_numpy(float)
            kinds = np.array([carries[roi] for roi in known["roi"]])
            loaded, empty = kinds != "none", kinds == "none"
            own = kinds == "unique"
            good = set(significant(known, level))
            hits = known["roi"].isin(list(good)).to_numpy()
            rows.append(
                {
                    "method": method,
                    "subject": subject,
                    "stage": stage,
                    "regions": len(known),
                    "loaded": int(loaded.sum()),
                    "auc": _auc(values[loaded], values[empty]),
                    "auc_own": _auc(values[own], values[empty]),
                    "found": int((hits & loaded).sum()),
                    "false": int((hits & empty).sum()),
                }
            )
    return pd.DataFrame(rows)


def planted(truth: pd.DataFrame) -> dict[str, str]:
    """Area -> "none", "unique", "shared", or the family that it is planted with."""
    words = truth["carries"].astype(str).replace({"nothing": "none"})
    return dict(zip(truth["area"].astype(str), words, strict=True))


def _auc(high: np.ndarray, low: np.ndarray) -> float:
    """Share of pairs in which a loaded region is above an empty one, ties one half."""
    if not len(high) or not len(low):
        return float("nan")
    difference = high[:, None] - low[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
