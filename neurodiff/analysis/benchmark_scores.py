"""Scores of runs of any pipeline in one layout, and what can be said about them.

The unit of every interval and of every permutation is the stimulus: samples, repeats and, in rows
"all", subjects are averaged first. Training seeds, subjects and stimuli are sources of uncertainty
of their own, told apart by `sources_of_uncertainty` where several runs of one recipe are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis import demo, page_ldae, protocols
from neurodiff.analysis.image_conditions import OURS as OUR_PICTURES
from neurodiff.analysis.image_protocols import image_quantity, is_image_metric
from neurodiff.analysis.protocols import Quantity, is_metric
from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.run import Run
from neurodiff.metrics.statistics import bootstrap_interval, permutation_p, way_to_ceiling

COLUMNS = ("data", "protocol", "condition", "role", "metric", "subject", "stimulus", "sample")
TIDY = (*COLUMNS, "repeat", "value")
ALL = "all"
FLIPS = 9999  # sign flips of a paired test
FLOORS = ("chance", "no-brain baseline")


def tidy_scores(run: Run) -> pd.DataFrame:
    """One row an item, condition and metric, with the columns `TIDY`; empty before evaluation."""
    try:
        table = run.read_scores()
    except MissingDataError:
        return pd.DataFrame(columns=list(TIDY))
    table = table.copy()
    if "scan" in table and "part" in table:  # brain scans: people are the unit, not their visits
        table = table[table["part"] == "reconstruction"].drop(columns="scan")
        table = table.rename(columns={"subject": "stimulus"})
    if "condition" not in table or "stimulus" not in table:
        return pd.DataFrame(columns=list(TIDY))
    defaults = {"data": str(run.inputs.get("data", "")), "protocol": "", "subject": ""}
    for name, value in ({"repeat": 1, "sample": 0} | defaults).items():
        if name not in table:
            table[name] = value
    if "role" not in table:
        known = _roles(run)
        table["role"] = [known.get(str(name), "strong baseline") for name in table["condition"]]
    names = ("subject", "stimulus", "data", "protocol", "condition")
    table[list(names)] = table[list(names)].astype(str)
    metrics = [name for name in table if quantity_of(str(name), run) is not None]
    keys = [name for name in TIDY if name not in ("metric", "value")]
    long = table.melt(keys, metrics, var_name="metric", value_name="value")
    return long.dropna(subset=["value"])[list(TIDY)].reset_index(drop=True)


def quantity_of(name: str, run: Run | None = None) -> Quantity | None:
    """How to read a metric of any pipeline; None where the name is of no metric."""
    if is_metric(name):
        return protocols.quantity(name)
    if is_image_metric(name):
        return image_quantity(name)
    if run is None:
        return None
    for one in _reported(run).get("metrics") or ():
        if one.get("name") == name:
            return Quantity(
                unit=str(one.get("unit") or ""),
                higher_is_better=bool(one["higher_is_better"]),
                chance=one.get("chance"),
                description=str(one.get("description") or ""),
            )
    return None


def per_stimulus(tidy: pd.DataFrame, by_subject: bool = True) -> pd.DataFrame:
    """Samples and repeats averaged within subject and stimulus; then, if asked, subjects."""
    keys = ["data", "protocol", "condition", "role", "metric"]
    once = tidy.groupby([*keys, "subject", "stimulus"], sort=False)["value"].mean().reset_index()
    if by_subject:
        return once
    return once.groupby([*keys, "stimulus"], sort=False)["value"].mean().reset_index()


def score_rows(tidy: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean with its 95 % interval over stimuli: each subject, and "all" where there are several.

    Returns
    -------
    data, condition, role, metric, subject, mean, low, high, median, n (stimuli).
    """
    parts = [per_stimulus(tidy)]
    if tidy["subject"].nunique() > 1:
        parts.append(per_stimulus(tidy, by_subject=False).assign(subject=ALL))
    table = pd.concat(parts, ignore_index=True)
    rows = []
    keys = ["data", "condition", "role", "metric", "subject"]
    for key, part in table.groupby(keys, sort=False):
        values = part["value"].to_numpy(np.float64)
        low = high = float("nan")
        if len(values) > 1:
            found = bootstrap_interval(values, seed=seed)
            low, high = found.low, found.high
        numbers = (values.mean(), low, high, np.median(values), len(values))
        rows.append((*key, *numbers))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "median", "n"])


def summary_numbers(tidy: pd.DataFrame) -> dict[str, Any]:
    """data -> condition -> metric -> mean and n, over all subjects; for records and comparisons."""
    found: dict[str, Any] = {}
    if not len(tidy):
        return found
    table = per_stimulus(tidy, by_subject=False)
    for (data, condition, metric), part in table.groupby(
        ["data", "condition", "metric"], sort=False
    ):
        cell = {"mean": float(part["value"].mean()), "n": len(part)}
        found.setdefault(str(data), {}).setdefault(str(condition), {})[str(metric)] = cell
    return found


def against_floors(
    tidy: pd.DataFrame, better: dict[str, bool], *, seed: int = 0, flips: int = FLIPS
) -> pd.DataFrame:
    """The method against each floor on the same stimuli: paired test, and the way to the ceiling.

    The p is one-sided, of random signs of the paired differences, (1 + b) / (1 + B): it holds
    where, without an effect, method and floor could change places stimulus by stimulus. ``holm``
    and ``q`` (Benjamini and Hochberg) count all tests of one data set.

    Parameters
    ----------
    better : metric -> whether higher is better.

    Returns
    -------
    data, metric, floor, ours, floor mean, ceiling mean, difference, share (0 the floor, 1 the
    ceiling) with its interval, p, holm, q, n.
    """
    from scipy.stats import false_discovery_control

    rows = []
    table = per_stimulus(tidy, by_subject=False)
    for (data, metric), block in table.groupby(["data", "metric"], sort=False):
        wide = block.pivot(index="stimulus", columns="condition", values="value")
        roles = dict(zip(block["condition"], block["role"], strict=True))
        ours = [name for name in wide if roles[name] == "ours"]
        ceilings = [name for name in wide if roles[name] == "ceiling"]
        for floor in (name for name in wide if roles[name] in FLOORS):
            if not ours:
                continue
            columns = [ours[0], floor, *ceilings[:1]]
            values = wide[columns].dropna().to_numpy(np.float64).T
            if values.shape[1] < 2:
                continue
            rows.append(
                {"data": data, "metric": metric, "floor": floor}
                | _paired(values, better.get(str(metric), True), seed, flips)
            )
    found = pd.DataFrame(rows)
    if not len(found):
        return found
    for _, part in found.groupby("data", sort=False):
        p = part["p"].to_numpy()
        found.loc[part.index, "holm"] = holm(p)
        found.loc[part.index, "q"] = false_discovery_control(p)
    return found


def holm(p: np.ndarray) -> np.ndarray:
    """P-values corrected by Holm's step-down (1979), in the order given.

    Examples
    --------
    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.zeros(len(p))
    corrected[order] = np.minimum(steps, 1.0)
    return corrected


def missing_scores(run: Run) -> pd.DataFrame:
    """How many items have no number, and why: conditions and metrics where some items have none.

    Columns: condition, metric, missing, of, notes.
    """
    columns = ["condition", "metric", "missing", "of", "notes"]
    try:
        table = run.read_scores()
    except MissingDataError:
        return pd.DataFrame(columns=columns)
    if (
        "condition" not in table or "part" in table
    ):  # parts of brain scans have metrics of their own
        return pd.DataFrame(columns=columns)
    rows = []
    for metric in (name for name in table if quantity_of(str(name), run) is not None):
        for condition, part in table.groupby("condition", sort=False):
            lost = part[part[metric].isna()]
            if len(lost) and len(lost) < len(part):
                notes = (
                    lost["note"].dropna().astype(str) if "note" in lost else pd.Series(dtype=str)
                )
                text = "; ".join(dict.fromkeys(note for note in notes if note))
                rows.append((condition, metric, len(lost), len(part), text or "not stated"))
    return pd.DataFrame(rows, columns=columns)


def ours_of(tidy: pd.DataFrame) -> pd.DataFrame:
    """The rows of the method under test."""
    return tidy[tidy["role"] == "ours"]


def _paired(values: np.ndarray, higher: bool, seed: int, flips: int) -> dict[str, Any]:
    """Values: (method, floor and, where there is one, ceiling) x stimuli."""
    gain = (values[0] - values[1]) * (1 if higher else -1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, len(gain)))
    row = {
        "ours": values[0].mean(),
        "floor mean": values[1].mean(),
        "difference": gain.mean(),
        "p": permutation_p(float(gain.mean()), (signs * gain).mean(axis=1)),
        "n": values.shape[1],
    }
    empty = {"ceiling mean": np.nan, "share": np.nan, "share low": np.nan, "share high": np.nan}
    if len(values) < 3:
        return row | empty | {"note": "no ceiling"}
    ceiling = values[2].mean()
    if (ceiling - values[1].mean()) * (1 if higher else -1) <= 0:
        return row | empty | {"ceiling mean": ceiling, "note": "the ceiling is no better"}
    found = way_to_ceiling(values[0], values[1], values[2], seed=seed)
    share = {"share": found.value, "share low": found.low, "share high": found.high}
    return row | {"ceiling mean": ceiling, "note": found.note} | share


def _roles(run: Run) -> dict[str, str]:
    reported = _reported(run).get("conditions") or {}
    roles = {str(name): str(one.get("role")) for name, one in reported.items() if "role" in one}
    pictures = {OUR_PICTURES: "ours"}
    return {**page_ldae.ROLES, **pictures, **demo.ROLES, **roles}


def _reported(run: Run) -> dict[str, Any]:
    try:
        return run.read_report_json()
    except DataError:
        return {}
