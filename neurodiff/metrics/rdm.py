"""Representational dissimilarity: how different the responses to each pair of stimuli are, and how
far two such tables agree.

A table is kept as its upper triangle, ``(pairs,)`` in the order of ``scipy.spatial.distance``
(``squareform`` makes the matrix). Pairs that cannot be measured are NaN and leave every comparison.

References
----------
Kriegeskorte, Mur & Bandettini 2008, Frontiers in Systems Neuroscience 2; Nili et al. 2014, PLoS
Computational Biology 10 (noise ceiling, tau-a); Walther et al. 2016, NeuroImage 137 (crossnobis);
Schütt et al. 2023, eLife 12 (bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Whitening = Literal["shrunk", "diagonal", "none"]


def correlation_rdm(
    patterns: Float[np.ndarray, "stimuli features"],
) -> Float[np.ndarray, " pairs"]:
    """One minus the Pearson correlation of each pair of rows, 0 to 2; NaN for a constant row.

    Examples
    --------
    >>> correlation_rdm(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 2.0, 1.0]])).round(6)
    array([0., 2., 2.])
    """
    rows = _rows(patterns, 2)
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    scale = np.abs(rows).max(axis=1)
    varies = length > 1e-12 * np.sqrt(rows.shape[1]) * scale
    unit = np.where(varies[:, None], centred / np.where(varies, length, 1.0)[:, None], np.nan)
    return 1.0 - np.clip(_upper(unit @ unit.T), -1, 1)


def euclidean_rdm(
    patterns: Float[np.ndarray, "stimuli features"],
) -> Float[np.ndarray, " pairs"]:
    """Mean over features of the squared difference of each pair of rows, in squared units."""
    rows = _rows(patterns, 1)
    rows = rows - rows.mean(axis=0)
    return np.maximum(_distances(rows @ rows.T), 0.0) / rows.shape[1]


def crossnobis_rdm(
    trials: Float[np.ndarray, "trials features"],
    stimuli: Int[np.ndarray, " trials"],
    runs: Sequence[object] | np.ndarray | None = None,
    *,
    whiten: Whitening = "shrunk",
) -> Float[np.ndarray, " pairs"]:
    """Cross-validated squared Mahalanobis distance of each pair, mean over features; unbiased.

    Noise adds nothing to it on average, so 0 means "not told apart" and values may be negative.
    (S is estimated from the same trials; with f degrees of freedom, trials minus stimuli, that
    leaves about 2 / f of what noise adds to a plain distance, the same for pairs of equal repeats.)
    From products of different trials only, so that the noise of a trial is never multiplied by
    itself (the mean over all leave-one-trial-out partitions):

        d_ij = g_ii + g_jj - 2 g_ij,   g_ij = mean of x_a' S^-1 x_b over trials a of i, b of j

    with a != b, and, with ``runs``, only a and b of different runs, whose noise is shared.

    Parameters
    ----------
    stimuli : (trials,) number of the stimulus of each trial, from 0 without gaps.
    runs : a label a trial; None: all trials are independent.
    whiten : S is the noise covariance within stimuli, "shrunk" (Ledoit & Wolf 2004; features
        squared in memory), its "diagonal", or with "none" the identity.

    Returns
    -------
    (pairs,); NaN where a pair has no two trials that may be multiplied.

    Raises
    ------
    ValueError : a stimulus with one trial, numbers of stimuli with gaps, lengths that differ.
    """
    rows = _rows(trials, 1)
    if stimuli.shape != (len(rows),):
        raise ValueError(f"{len(stimuli)} stimulus numbers for {len(rows)} trials; give one each")
    counts = np.bincount(stimuli)
    if (counts < 2).any():
        single = int((counts < 2).sum())
        raise ValueError(
            f"{single} of {len(counts)} stimuli have fewer than two trials; a cross-validated "
            "distance needs two of each"
        )
    rows = rows - rows.mean(axis=0)  # distances do not depend on it; products lose no digits
    member = (np.arange(len(counts))[:, None] == stimuli).astype(np.float64)  # (stimuli, trials)
    residuals = rows - (member @ rows / counts[:, None])[stimuli]
    white = _whitened(rows, residuals, len(rows) - len(counts), whiten)
    allowed = ~np.eye(len(rows), dtype=bool)
    if runs is not None:
        labels = np.unique(np.asarray(runs, dtype=str), return_inverse=True)[1]
        allowed &= labels[:, None] != labels
    products = np.where(allowed, white @ white.T, 0.0)
    number = member @ allowed @ member.T
    total = member @ products @ member.T
    gram = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return _distances(gram) / rows.shape[1]


def compare_rdms(
    a: Float[np.ndarray, " pairs"], b: Float[np.ndarray, " others"], method: str = "spearman"
) -> float:
    """Agreement of two tables over the pairs that both have, from -1 to 1.

    "spearman" and "pearson" correlations, or "kendall": tau-a, which does not favour models that
    predict ties. NaN where a table does not vary.

    Raises
    ------
    ValueError : lengths that differ, or fewer than 3 pairs in common.

    Examples
    --------
    >>> compare_rdms(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), "kendall")
    0.3333333333333333
    """
    a, b = _common(a, b)
    if method == "kendall":
        return kendall_tau_a(a, b)
    if method == "spearman":
        a, b = ranks(a), ranks(b)
    elif method != "pearson":
        raise ValueError(f"the comparison is {method!r}; give 'spearman', 'pearson' or 'kendall'")
    a, b = a - a.mean(), b - b.mean()
    product = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / product) if product > 0 else float("nan")


def kendall_tau_a(a: Float[np.ndarray, " pairs"], b: Float[np.ndarray, " pairs"]) -> float:
    """(concordant - discordant) / all comparisons: from scipy's tau-b by its own denominator."""
    from scipy.stats import kendalltau

    every = len(a) * (len(a) - 1) / 2
    left = [every - _tied(one) for one in (a, b)]
    if min(left) == 0:
        return 0.0  # nothing is ordered: no comparison agrees or disagrees
    return float(kendalltau(a, b).statistic * np.sqrt(left[0] * left[1]) / every)


def ranks(values: Float[np.ndarray, "*rows pairs"]) -> Float[np.ndarray, "*rows pairs"]:
    """Ranks along the last axis, ties share their mean."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1)


def unit_ranks(
    rdms: Float[np.ndarray, "tables pairs"], method: str = "spearman"
) -> Float[np.ndarray, "tables pairs"]:
    """Rows whose products are the correlations of the tables: ranked, centred, of unit length.

    Rows that do not vary become 0. Permuting stimuli permutes a row's entries, so a null needs the
    ranks once. "pearson" leaves the values unranked.
    """
    rows = ranks(rdms) if method == "spearman" else rdms.astype(np.float64)
    rows = rows - rows.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def permuted_pairs(order: Int[np.ndarray, " stimuli"]) -> Int[np.ndarray, " pairs"]:
    """Where each pair of the table goes when stimulus k takes the place of ``order[k]``.

    ``rdm[permuted_pairs(order)]`` is the upper triangle of ``matrix[order][:, order]``.
    """
    n = len(order)
    first, second = np.triu_indices(n, 1)
    low, high = np.minimum(order[first], order[second]), np.maximum(order[first], order[second])
    return low * n - low * (low + 1) // 2 + high - low - 1


def drawn_pairs(rows: Int[np.ndarray, " drawn"], n: int) -> Int[np.ndarray, " pairs"]:
    """Pairs of a bootstrap draw of stimuli; a stimulus drawn twice makes no pair with itself.

    Such a pair would have distance zero in both tables and raise any agreement.
    """
    rows = np.sort(rows)
    first, second = np.triu_indices(len(rows), 1)
    low, high = rows[first], rows[second]
    apart = low < high
    low, high = low[apart], high[apart]
    return low * n - low * (low + 1) // 2 + high - low - 1


def noise_ceiling_across(
    rdms: Float[np.ndarray, "subjects pairs"], method: str = "spearman"
) -> tuple[float, float]:
    """Lower and upper bound of the mean agreement that any model can reach with the subjects.

    Upper: each subject with the mean of all tables (ranked, for "spearman"), the subject's own in
    it; lower: with the mean of the others.

    Raises
    ------
    ValueError : fewer than two subjects.

    References
    ----------
    Nili et al. 2014, PLoS Computational Biology 10.
    """
    if len(rdms) < 2:
        raise ValueError(f"{len(rdms)} subjects; a ceiling across subjects needs at least two")
    whole = rdms[:, np.isfinite(rdms).all(axis=0)]
    if method in ("spearman", "kendall"):
        scaled = ranks(whole)
    else:
        scaled = unit_ranks(whole, "pearson")
    mean = scaled.mean(axis=0)
    upper = [compare_rdms(one, mean, method) for one in whole]
    lower = [
        compare_rdms(whole[k], np.delete(scaled, k, axis=0).mean(axis=0), method)
        for k in range(len(whole))
    ]
    return float(np.mean(lower)), float(np.mean(upper))


def noise_ceiling_within(agreement: float) -> tuple[float, float]:
    """Bounds for one subject's table from the agreement of two halves of the repeats.

    Spearman-Brown takes the agreement of halves to that of two whole tables, the reliability
    ``R = 2 r / (1 + r)``. Lower: R, what another measurement of the same length would reach; upper:
    ``sqrt(R)``, what the table without noise would reach. An agreement below zero counts as zero.

    Examples
    --------
    >>> noise_ceiling_within(1.0)
    (1.0, 1.0)
    """
    if not np.isfinite(agreement):
        return float("nan"), float("nan")
    half = max(float(agreement), 0.0)
    whole = 2 * half / (1 + half)
    return whole, float(np.sqrt(whole))


def _whitened(rows: np.ndarray, residuals: np.ndarray, freedom: int, how: str) -> np.ndarray:
    """Rows times the inverse root of the noise covariance."""
    if how == "none":
        return rows
    scale = len(rows) / freedom  # residuals have lost the means of the stimuli
    variances = np.square(residuals).mean(axis=0) * scale
    if not variances.max() > 0:
        raise ValueError("the trials of every stimulus are equal, so there is no noise to whiten")
    if how == "diagonal":
        return rows / np.sqrt(np.maximum(variances, 1e-10 * variances.max()))
    if how != "shrunk":
        raise ValueError(f"whiten is {how!r}; give 'shrunk', 'diagonal' or 'none'")
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(residuals, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance * scale)
    return (rows @ vectors) / np.sqrt(np.maximum(values, 1e-10 * values.max()))


def _distances(gram: np.ndarray) -> np.ndarray:
    own = np.diagonal(gram)
    return _upper(own[:, None] + own - 2 * gram)


def _upper(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def _rows(patterns: np.ndarray, least: int) -> np.ndarray:
    if patterns.ndim != 2 or patterns.shape[0] < 3 or patterns.shape[1] < least:
        raise ValueError(
            f"patterns are {patterns.shape}; a table of distances needs at least 3 rows and "
            f"{least} features"
        )
    if not np.isfinite(patterns).all():
        raise ValueError("patterns hold NaN or infinity; distances need numbers")
    return patterns.astype(np.float64)


def _common(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise ValueError(f"tables of {len(a)} and {len(b)} pairs; give the same stimuli in both")
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        raise ValueError(f"{int(both.sum())} pairs are in both tables; at least 3 are needed")
    return a[both], b[both]


def _tied(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1].astype(float)
    return float((counts * (counts - 1) / 2).sum())
