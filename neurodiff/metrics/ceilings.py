"""How much of a response repeats: the noise ceiling, from repeats of the same stimulus."""

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
