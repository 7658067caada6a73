"""z-scores of a run's grayordinates, by mean and SD (over frames, divisor n) of what is asked.

``run``        by the run's own mean and SD
``session``    by mean and SD over all runs of the session
``first-run``  by mean and SD of the subject's first run, as in the published arrays: the released
               script meant the whole subject and accumulated its first run each time, so that later
               runs have another mean and spread
``none``       the scanner's units
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from neurodiff.datasets.fmriprep import cleaned, read_confounds
from neurodiff.datasets.prepare_plan import PrepareSettings, RunPlan


def standardised(
    series: Float[np.ndarray, "frames places"],
    mean: Float[np.ndarray, " places"],
    deviation: Float[np.ndarray, " places"],
) -> Float[np.ndarray, "frames places"]:
    """z-scores by a given mean and SD; a place that does not vary becomes 0."""
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return np.where(varies, (series - mean) / np.where(varies, deviation, 1.0), 0.0)


def standardised_run(
    plan: RunPlan, plans: list[RunPlan], settings: PrepareSettings, columns: np.ndarray
) -> Float[np.ndarray, "frames places"]:
    """A run's cleaned series at the grayordinates ``columns``, z-scored as the settings say.

    ``plans`` are all runs of the subject; mean and SD of several runs are kept in their plans, so
    that their series are read once.
    """
    series = _clean_run(plan, settings, columns)
    if settings.zscore == "none":
        return series
    sources = statistic_runs(plan, plans, settings)
    if sources == [plan]:
        return standardised(series, series.mean(axis=0), series.std(axis=0))
    if sources[0].statistics is None:
        mean, deviation = _pooled(
            series if one is plan else _clean_run(one, settings, columns) for one in sources
        )
        for one in plans:  # the runs that share these sources
            if statistic_runs(one, plans, settings) == sources:
                one.statistics = (mean, deviation)
        sources[0].statistics = (mean, deviation)
    return standardised(series, *sources[0].statistics)


def statistic_runs(plan: RunPlan, plans: list[RunPlan], settings: PrepareSettings) -> list[RunPlan]:
    """The runs whose frames give mean and SD for a run."""
    if settings.zscore == "first-run":
        return plans[:1]
    if settings.zscore == "session":
        return [one for one in plans if one.run.session == plan.run.session]
    return [plan]


def _pooled(parts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD over the frames of all parts (Chan's update: no large numbers are squared)."""
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        n, own = len(part), part.mean(axis=0)
        step = own - mean
        squares = squares + ((part - own) ** 2).sum(axis=0) + step**2 * (count * n / (count + n))
        mean = mean + step * (n / (count + n))
        count += n
    return np.asarray(mean), np.sqrt(np.asarray(squares) / count)


def _clean_run(plan: RunPlan, settings: PrepareSettings, columns: np.ndarray) -> np.ndarray:
    confounds = None
    if plan.confounds is not None:
        confounds = read_confounds(plan.confounds, settings.confounds, plan.series.n_frames)
    return cleaned(
        plan.series.read(columns),
        confounds,
        detrend=settings.detrend,
        high_pass=settings.high_pass,
        tr=plan.series.tr,
    )
