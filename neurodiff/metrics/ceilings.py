"""How much of a response repeats: the noise ceiling, from repeats of the same stimulus.

That of the published ncsnr maps is `neurodiff.datasets.nsd.noise_ceiling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def single_trial_ceiling(
    responses: Float[np.ndarray, "trials features"], stimuli: Sequence[str]
) -> Float[np.ndarray, " features"]:
    """Share of a single trial's variance that any model of the stimulus could explain.

    One-way random effects: the noise variance is that within stimuli, pooled; the signal variance
    is that of the stimulus means minus the noise left in them, not below 0.

    Parameters
    ----------
    responses : one row a trial; any unit.
    stimuli : what each trial showed. Stimuli shown once are left out.

    Returns
    -------
    signal / (signal + noise), from 0 to 1, one a feature; NaN where a feature does not vary.

    Raises
    ------
    ValueError : fewer than two stimuli were shown more than once, or lengths differ.

    References
    ----------
    Allen et al. 2022, Nature Neuroscience 25, Methods (the same quantity for equal repeats).

    Examples
    --------
    >>> single_trial_ceiling(np.array([[1.0], [1.0], [3.0], [3.0]]), ["a", "a", "b", "b"])
    array([1.])
    """
    if len(stimuli) != len(responses):
        raise ValueError(f"{len(stimuli)} stimuli for {len(responses)} trials; give one each")
    names, of = np.unique(np.asarray(stimuli, dtype=str), return_inverse=True)
    groups = [np.flatnonzero(of == k) for k in range(len(names))]
    groups = [rows for rows in groups if len(rows) > 1]
    if len(groups) < 2:
        raise ValueError(
            f"{len(groups)} of {len(names)} stimuli were shown more than once; a noise ceiling "
            "needs at least two"
        )
    values = [responses[rows].astype(np.float64) for rows in groups]
    means = np.stack([block.mean(axis=0) for block in values])
    within = sum(((block - block.mean(axis=0)) ** 2).sum(axis=0) for block in values)
    noise = within / sum(len(block) - 1 for block in values)
    left = noise * np.mean([1 / len(block) for block in values])
    signal = np.maximum(means.var(axis=0, ddof=1) - left, 0)
    total = signal + noise
    return np.divide(signal, total, out=np.full(total.shape, np.nan), where=total > 0)


def ceiling_of_means(
    single: Float[np.ndarray, " features"], repeats: int | Sequence[int]
) -> Float[np.ndarray, " features"]:
    """Ceiling of means of several trials, from that of single trials (Spearman-Brown).

    Parameters
    ----------
    single : of a single trial, 0 to 1; NaN stays NaN.
    repeats : trials in each mean, one number, or one for each stimulus.

    Returns
    -------
    c / (c + (1 - c) m) with m the mean of 1 / repeats.

    Raises
    ------
    ValueError : a ceiling outside 0 to 1, fewer than one trial.

    Examples
    --------
    >>> ceiling_of_means(np.array([0.5, 1.0]), 3)
    array([0.75, 1.  ])
    """
    counts = np.asarray(repeats, np.float64)
    if counts.size == 0 or not (counts >= 1).all():
        raise ValueError(f"repeats is {repeats!r}; give 1 or more trials for each mean")
    known = single[np.isfinite(single)]
    if ((known < 0) | (known > 1)).any():
        raise ValueError("a ceiling lies outside 0 to 1; give shares of a single trial's variance")
    rest = (1 - single) * np.mean(1 / counts)
    return np.divide(single, single + rest, out=np.full(single.shape, np.nan), where=single >= 0)


def split_half_ceiling(
    responses: Float[np.ndarray, "trials features"],
    stimuli: Sequence[str],
    *,
    splits: int = 20,
    seed: int = 0,
) -> Float[np.ndarray, " features"]:
    """Ceiling of a single trial from the agreement of halves of the repeats.

    Trials of each stimulus are dealt at random into two means of h trials, h being half the
    repeats of the least repeated stimulus; their correlation r over stimuli, averaged over
    ``splits``, is the reliability of a mean of h trials, and r / (h - (h - 1) r) that of one.

    Parameters
    ----------
    stimuli : what each trial showed. Stimuli shown once are left out.
    splits : random splits.
    seed : of the splits.

    Returns
    -------
    0 to 1, one a feature (below 0, by chance, becomes 0); NaN where a feature does not vary.

    Raises
    ------
    ValueError : fewer than three stimuli were shown more than once, lengths differ, no split.

    References
    ----------
    Spearman 1910 and Brown 1910, British Journal of Psychology 3.
    """
    if len(stimuli) != len(responses):
        raise ValueError(f"{len(stimuli)} stimuli for {len(responses)} trials; give one each")
    if splits < 1:
        raise ValueError(f"{splits} splits; give at least 1")
    names, of = np.unique(np.asarray(stimuli, dtype=str), return_inverse=True)
    groups = [np.flatnonzero(of == k) for k in range(len(names))]
    groups = [rows for rows in groups if len(rows) > 1]
    if len(groups) < 3:
        raise ValueError(
            f"{len(groups)} of {len(names)} stimuli were shown more than once; split halves "
            "correlate over at least three"
        )
    half = min(map(len, groups)) // 2
    rng = np.random.default_rng(seed)
    total = np.zeros(responses.shape[1])
    for _ in range(splits):
        dealt = np.stack([rng.permutation(rows)[: 2 * half] for rows in groups])
        first, second = (
            responses[part.T].mean(axis=0, dtype=np.float64)
            for part in (dealt[:, :half], dealt[:, half:])
        )
        total += _column_correlations(first, second)
    r = np.clip(total / splits, 0, 1)
    return r / (half - (half - 1) * r)


def normalised_correlation(
    raw: Float[np.ndarray, " features"],
    ceiling: Float[np.ndarray, " features"],
    *,
    least: float = 0.05,
) -> Float[np.ndarray, " features"]:
    """Held-out correlation in units of the largest that the noise allows, ``raw / sqrt(ceiling)``.

    To be shown beside the raw value, never instead. It is not cut at 1: more than 1 says that the
    ceiling is too low or the score has seen the test set.

    Parameters
    ----------
    raw : correlation of predicted and measured responses.
    ceiling : share of the measured responses' variance that the stimulus explains.
    least : ceilings below are too small to divide by.

    Returns
    -------
    NaN where the ceiling is below ``least`` or not known.
    """
    known = np.nan_to_num(ceiling, nan=-1.0) >= least
    root = np.sqrt(np.where(known, ceiling, 1.0))
    return np.where(known, raw / root, np.nan)


def _column_correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(axis=0) for x in (first, second))
    length = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    out = np.full(length.shape, np.nan)
    return np.divide((a * b).sum(axis=0), length, out=out, where=length > 0)
