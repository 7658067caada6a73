"""What may be claimed of a region, from two questions that must both be answered with yes.

Leave-one-out asks whether the decoder relies on a region. It may do so although the region carries
nothing: where an empty region shares noise with a loaded one, a good decoder subtracts that noise
by it, and the loss without it is real (a suppressor; Haufe et al. 2014). A region alone, or an
encoding map, asks whether the region's responses go with the stimulus at all; shared noise cannot
answer that with yes. The claim "this region carries information, and the decoder needs it" is the
intersection of both, so it may be made when both nulls are rejected, at the level of one test:

    p_both = max(p_reliance, p_alone)        intersection-union test (Berger 1982)

whatever the dependence of the two. The four outcomes are the rules of Weichwald et al. (2015) for
decoding beside encoding. Which two methods are asked is fixed by the order of :data:`RELIANCE` and
:data:`ALONE` and never by their p: the better of several would be found too often.

Keeping a region's noise and taking out its signal only would ask the same in one step, but the
signal must be estimated on the trials that fitted the decoder, and both have learned the same
chance correlations: an empty region then seems to lose something.

References
----------
Berger 1982, Technometrics 24; Haufe et al. 2014, NeuroImage 87; Weichwald et al. 2015,
NeuroImage 110.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_statistics import adjusted
from neurodiff.core.errors import UsageError

LEVEL = 0.05
RELIANCE = (
    "leave_one_out:mean", "leave_one_out:permuted", "leave_one_out:noise", "leave_one_out:refit",
)  # fmt: skip
ALONE = ("encoding", "roi_only:refit", "roi_only", "rsa")
CARRIES = "carries"
CANCELS = "relied on, nothing of its own shown: may cancel noise"
SHARED = "carries, not shown to be needed: may be shared"
NOTHING = "nothing shown"
MEANING = {
    CARRIES: "Its responses go with the stimulus, and the decoder loses without it.",
    SHARED: (
        "Its responses go with the stimulus; that the decoder loses without it is not shown: "
        "others carry the same, or the loss is too small for these trials."
    ),
    CANCELS: (
        "The decoder loses without it, and its responses are not shown to go with the stimulus: it "
        "helps to subtract noise of other regions, tells something only together with them, or "
        "tells too little for these trials."
    ),
    NOTHING: "Neither is shown with these trials.",
}
"""Claim -> what it says, from the strongest to the weakest."""
_FAR = 1e6  # strength of a value whose interval has no width
COLUMNS = (
    "subject", "stage", "roi", "claim", "p_both", "q_both", "strength", "reliance", "p_reliance",
    "q_reliance", "alone", "p_alone", "q_alone",
)  # fmt: skip


def claims(
    results: Sequence[Any],
    *,
    reliance: str | None = None,
    alone: str | None = None,
    level: float = LEVEL,
) -> pd.DataFrame:
    """What may be claimed of each region that both questions were asked of.

    Parameters
    ----------
    results : of methods, each with ``method`` and ``table`` (`attribution_problem.MethodResult`).
    reliance, alone : method to be used; None: the first of :data:`RELIANCE` and :data:`ALONE` among
        the results that has the subject and stage.
    level : of q.

    Returns
    -------
    One row a subject, stage and region, with the columns of :data:`COLUMNS`; none where one of the
    questions was not asked. Every q is Benjamini-Hochberg over the regions of a subject and stage.
    ``claim``: of :data:`MEANING`; "carries" where ``q_both`` is at or below the level. Else the q
    of either question, which is never above ``q_both``, says what is shown. ``strength``: the
    smaller of the two values, each in half-widths of its interval; it orders regions, and above 1
    both intervals lie above nothing.

    Raises
    ------
    UsageError : a method that is not among the results.

    Examples
    --------
    >>> row = {"subject": "a", "stage": "s", "value": 1.0, "low": 0.5, "high": 1.5}
    >>> def result(name, p):
    ...     lines = [row | {"roi": roi, "p": one, "q": one} for roi, one in p.items()]
    ...     return type("Result", (), {"method": name, "table": pd.DataFrame(lines)})
    >>> found = claims([result("leave_one_out:mean", {"V1": 0.01, "V2": 0.01, "V3": 0.6}),
    ...                 result("encoding", {"V1": 0.01, "V2": 0.7, "V3": 0.01})])
    >>> for roi, claim in zip(found["roi"], found["claim"]):
    ...     print(roi, claim)
    V1 carries
    V2 relied on, nothing of its own shown: may cancel noise
    V3 carries, not shown to be needed: may be shared
    """
    tables = {result.method: result.table for result in results}
    for name in (reliance, alone):
        if name is not None and name not in tables:
            raise UsageError(f"there is no result of {name!r}; there are {', '.join(tables)}")
    asked = [m for m in (RELIANCE if reliance is None else (reliance,)) if m in tables]
    told = [m for m in (ALONE if alone is None else (alone,)) if m in tables]
    found, done = [], set()
    for method in asked:
        for (subject, stage), rows in tables[method].groupby(["subject", "stage"], sort=False):
            if (subject, stage) in done:
                continue
            for other in told:
                table = tables[other]
                part = table[(table["subject"] == subject) & (table["stage"] == stage)]
                pairs = rows.merge(part, on="roi", suffixes=("_r", "_a"))
                if len(pairs):
                    found.append(_claimed(pairs, method, other, level))
                    done.add((subject, stage))
                    break
    if not found:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(found, ignore_index=True)[list(COLUMNS)]


def why_no_claims(results: Sequence[Any]) -> str:
    """What is missing for a claim, in words; empty where nothing is."""
    there = {result.method for result in results}
    lacks = []
    if not there & set(RELIANCE):
        lacks.append("leave_one_out")
    if not there & set(ALONE):
        lacks.append("encoding (or roi_only)")
    if not lacks:
        return ""
    return (
        "A claim needs reliance and information side by side; run "
        f"{' and '.join(lacks)} beside what was asked."
    )


def claim_sentences(table: pd.DataFrame, level: float = LEVEL) -> list[str]:
    """One sentence a subject and stage, with the regions of each claim but the last."""
    from neurodiff.analysis.attribution_words import listed, quoted

    said = []
    for (subject, stage), rows in table.groupby(["subject", "stage"], sort=False):
        parts = []
        ordered = rows.sort_values("strength", ascending=False)
        for claim in (CARRIES, SHARED, CANCELS):
            names = ordered.loc[ordered["claim"] == claim, "roi"].astype(str).tolist()
            if names:
                parts.append(f"{quoted(claim)} {listed(names)}")
        silent = int((rows["claim"] == NOTHING).sum())
        if silent:
            parts.append(f"{quoted(NOTHING)} {silent} of {len(rows)} regions")
        at = f"{subject}, {stage}" if stage else str(subject)
        first = rows.iloc[0]
        said.append(
            f"Claims ({at}; {first['reliance']} and {first['alone']}, q ≤ {level:g}): "
            f"{'; '.join(parts)}."
        )
    return said


def _claimed(pairs: pd.DataFrame, reliance: str, alone: str, level: float) -> pd.DataFrame:
    """The claims of one subject and stage from the rows of two methods, side by side."""
    p = {side: pairs[f"p_{side}"].to_numpy(float) for side in "ra"}
    q = {side: adjusted(values) for side, values in p.items()}
    both = np.maximum(p["r"], p["a"])  # NaN where either is
    q_both = adjusted(both)
    words = np.select(
        [q_both <= level, q["a"] <= level, q["r"] <= level],
        [CARRIES, SHARED, CANCELS],
        NOTHING,
    )
    strength = np.minimum(*(_in_half_widths(pairs, side) for side in "ra"))
    return pd.DataFrame(
        {
            "subject": pairs["subject_r"],
            "stage": pairs["stage_r"],
            "roi": pairs["roi"],
            "claim": words,
            "p_both": both,
            "q_both": q_both,
            "strength": strength,
            "reliance": reliance,
            "p_reliance": p["r"],
            "q_reliance": q["r"],
            "alone": alone,
            "p_alone": p["a"],
            "q_alone": q["a"],
        }
    )


def _in_half_widths(pairs: pd.DataFrame, side: str) -> np.ndarray:
    value, low, high = (
        pairs[f"{name}_{side}"].to_numpy(float) for name in ("value", "low", "high")
    )
    half = (high - low) / 2
    known = half > 0
    out = np.where(known, value / np.where(known, half, 1.0), _FAR * np.sign(value))
    return np.where(np.isfinite(value) & np.isfinite(half), out, np.nan)
