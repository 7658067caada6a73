"""Where a score would move: with another training seed, another person, other stimuli.

Several runs of one recipe that differ in seed or person are a crossed design. Its variance
components (`variance_components`, method of moments) tell the sources apart, and the standard error
of the grand mean adds them up. One run alone has stimuli only, and the table says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.benchmark_record import digest
from neurodiff.analysis.benchmark_scores import ours_of, tidy_scores
from neurodiff.core.run import Run
from neurodiff.metrics.statistics import crossed_values, standard_error, variance_components

FACTORS = ("seed", "subject", "stimulus")
COLUMNS = ("data", "metric", "source", "levels", "variance", "SD", "share", "note")


def sources_of_uncertainty(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Variance components of the method's scores, one block for each group of like runs.

    Returns
    -------
    data, metric, source (seed, subject, stimulus, their interactions, residual, "standard error of
    the mean"), levels, variance, SD, share of the sum of the positive components, note; and
    sentences about what cannot be said.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, members in like_runs(runs).items():
        table = cells_of(members)
        if not len(table):
            notes.append(f"{name}: nothing is scored.")
            continue
        for (data, metric), part in table.groupby(["data", "metric"], sort=False):
            found, said = _components(part)
            rows += [{"data": data, "metric": metric} | row for row in found]
            notes += [f"{name}, {data}: {line}" for line in said]
    return pd.DataFrame(rows, columns=list(COLUMNS)), list(dict.fromkeys(notes))


def like_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by what has to agree: recipe (all settings) and data set; label -> runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = digest({"recipe": run.recipe, "data": run.inputs.get("data")})
        groups.setdefault(key, []).append(run)
    found: dict[str, list[Run]] = {}
    for key, members in groups.items():
        first = members[0]
        name = f"{first.recipe.get('name', 'recipe')} on {first.inputs.get('data', 'its data')}"
        found[f"{name} ({key[:6]})" if name in found else name] = members
    return found


def cells_of(runs: Sequence[Run]) -> pd.DataFrame:
    """The method's scores, samples and repeats averaged: data, metric, seed, subject, stimulus."""
    parts = []
    for run in runs:
        own = ours_of(tidy_scores(run))
        if len(own):
            main = own["condition"].iloc[0]  # of several conditions of the method, the first
            own = own[own["condition"] == main]
            keys = ["data", "metric", "subject", "stimulus"]
            cells = own.groupby(keys, sort=False)["value"].mean().reset_index()
            parts.append(cells.assign(seed=run.seed))
    if not parts:
        return pd.DataFrame(columns=["data", "metric", *FACTORS, "value"])
    table = pd.concat(parts, ignore_index=True)
    table["data"] = [str(name).partition(", subject")[0] for name in table["data"]]
    return table.groupby(["data", "metric", *FACTORS], sort=False)["value"].mean().reset_index()


def means_by_source(runs: Sequence[Run]) -> pd.DataFrame:
    """The method's means, one row a run, subject, data set and metric, with the run's seed."""
    rows = []
    for run in runs:
        for key, part in cells_of([run]).groupby(["subject", "data", "metric"], sort=False):
            rows.append((run.folder.name, run.seed, *key, part["value"].mean(), len(part)))
    return pd.DataFrame(rows, columns=["run", "seed", "subject", "data", "metric", "mean", "n"])


def spread_of_samples(tidy: pd.DataFrame) -> pd.DataFrame:
    """SD over the samples of a trial, averaged over trials; empty where there is one sample."""
    own = ours_of(tidy)
    keys = ["data", "metric", "subject", "stimulus", "repeat"]
    if not len(own) or own["sample"].nunique() < 2:
        return pd.DataFrame(columns=["data", "metric", "SD over samples", "samples"])
    inside = own.groupby(keys, sort=False)["value"].agg(["var", "size"]).reset_index()
    found = inside.groupby(["data", "metric"], sort=False)
    table = pd.DataFrame({"SD over samples": np.sqrt(found["var"].mean())})
    table["samples"] = found["size"].max()
    return table.reset_index()


def _components(part: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    levels = {name: int(part[name].nunique()) for name in FACTORS}
    named = {"seed": "training seed", "subject": "subject", "stimulus": "stimulus"}
    notes = [
        f"one {named[name]}: how far scores move with another is not known from these runs."
        for name in ("seed", "subject")
        if levels[name] < 2
    ]
    outer = [name for name in ("seed", "subject") if levels[name] > 1]
    block, dropped = _balanced(part, outer)
    if isinstance(block, str):
        return [], [*notes, block]
    if dropped:
        notes.append(f"{dropped} stimuli are left out: not every seed and subject has them.")
    used = [*outer, "stimulus"]
    levels = {name: int(block[name].nunique()) for name in used}
    if levels["stimulus"] < 2:
        return [], [*notes, "fewer than 2 stimuli in common: nothing to take apart."]
    components = variance_components(crossed_values(block, "value", used), used)
    return _rows(components, levels), notes


def _rows(components: Mapping[str, float], levels: dict[str, int]) -> list[dict[str, Any]]:
    total = sum(max(value, 0.0) for value in components.values())
    only = len(levels) == 1
    rows = []
    for name, variance in components.items():
        source = next(iter(levels)) if only else name
        parts = list(levels) if name == "residual" else name.split(":")
        note = "not told from 0" if variance <= 0 else ""
        if name == "residual" and not only:
            note = note or f"{' x '.join(levels)}, with the noise of a cell"
        rows.append(
            {
                "source": source,
                "levels": " x ".join(str(levels[one]) for one in parts),
                "variance": variance,
                "SD": float(np.sqrt(max(variance, 0.0))),
                "share": max(variance, 0.0) / total if total else float("nan"),
                "note": note,
            }
        )
    error = standard_error(dict(components), levels)
    last = {"source": "standard error of the mean", "levels": "", "share": float("nan")}
    note = f"over random levels of {', '.join(levels)}"
    return [*rows, last | {"variance": error**2, "SD": error, "note": note}]


def _balanced(part: pd.DataFrame, outer: list[str]) -> tuple[pd.DataFrame | str, int]:
    """The stimuli that every seed and subject has, or why the design has a hole."""
    if not outer:
        return part, 0
    cells = part[outer].drop_duplicates()
    full = int(np.prod([part[name].nunique() for name in outer]))
    if len(cells) < full:
        return f"{full - len(cells)} of {full} runs of {' x '.join(outer)} are missing.", 0
    times = part.groupby("stimulus")["value"].size()
    kept = set(times.index[times == full])
    if not kept:
        return f"no stimulus is common to all levels of {' and '.join(outer)}.", 0
    return part[part["stimulus"].isin(kept)], len(times) - len(kept)
