"""Grey level co-occurrence (IBSI 3.6): how often two levels lie one step apart.

Matrices are symmetric. One is counted for each direction, and for each slice where slices count
by themselves; the aggregation says which are merged before the features, and which features are
averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurodiff.metrics import radiomics_matrices as shared
from neurodiff.metrics.radiomics_chain import Region

FEATURES = (
    "joint_max", "joint_avg", "joint_var", "joint_entr", "diff_avg", "diff_var", "diff_entr",
    "sum_avg", "sum_var", "sum_entr", "energy", "contrast", "dissimilarity", "inv_diff",
    "inv_diff_norm", "inv_diff_mom", "inv_diff_mom_norm", "inv_var", "corr", "auto_corr",
    "clust_tend", "clust_shade", "clust_prom", "info_corr1", "info_corr2", "mcc",
)  # fmt: skip


def cooccurrence(region: Region, aggregations: Sequence[str], distance: int) -> dict[str, float]:
    """Features of the co-occurrence matrices under each aggregation, by IBSI's names.

    ``cm_mcc`` (the maximal correlation coefficient of Haralick) is not one of IBSI's; it is here
    because pyradiomics has it.
    """
    grey, index = np.unique(region.levels, return_inverse=True)
    codes = index.reshape(region.levels.shape).astype(np.int32)
    if grey[0] != 0:  # a box without an empty voxel: 0 still stands for "outside"
        codes += 1
        grey = np.concatenate([[0], grey])
    grey = grey[1:].astype(np.float64)
    flat = {}
    if any(a.startswith("3D") for a in aggregations):
        flat["3D"] = pair_counts(codes, len(grey), shared.SPACE, distance)
    if any(a.startswith("2_5D") for a in aggregations):
        flat["2_5D"] = pair_counts(codes, len(grey), shared.PLANE, distance)
    result: dict[str, float] = {}
    for aggregation in aggregations:
        dimension, how = aggregation.rsplit("_", 1)
        if dimension == "2D":
            rows = []
            for part in shared.slices_of(codes):
                matrices = pair_counts(part, len(grey), shared.PLANE, distance)
                rows += _each(matrices, grey, region.bins, merge=how == "comb")
        else:
            rows = _each(flat[dimension], grey, region.bins, merge=how == "comb")
        mean = shared.averaged(rows)
        for name in FEATURES:
            result[f"cm_{name}_{aggregation}"] = mean.get(name, float("nan"))
    return result


def pair_counts(
    codes: np.ndarray, levels: int, steps: Sequence[tuple[int, int, int]], distance: int = 1
) -> np.ndarray:
    """Symmetric counts of pairs for each step.

    Parameters
    ----------
    codes : (slices, rows, columns), 1 .. levels in the region and 0 outside.
    steps : directions, one of each opposite pair.
    distance : voxels (Chebyshev) between the two of a pair.

    Returns
    -------
    int64 (steps, levels, levels).
    """
    flat, strides = shared.padded(codes, distance)
    width = levels + 1
    counts = np.zeros((len(steps), levels, levels), dtype=np.int64)
    scaled = flat.astype(np.int64 if width > 40_000 else np.int32) * width
    for k, step in enumerate(steps):
        gap = distance * shared.stride(step, strides)
        pairs = np.bincount(scaled[:-gap] + flat[gap:], minlength=width * width)
        one = pairs.reshape(width, width)[1:, 1:]
        counts[k] = one + one.T
    return counts


def _each(
    counts: np.ndarray, grey: np.ndarray, bins: int, *, merge: bool
) -> list[dict[str, float]]:
    if merge:
        counts = counts.sum(axis=0, keepdims=True)
    return [matrix_features(c, grey, bins) for c in counts if c.any()]


def matrix_features(counts: np.ndarray, grey: np.ndarray, bins: int) -> dict[str, float]:
    """Features of one symmetric matrix of counts.

    Parameters
    ----------
    counts : (levels, levels), not all zero.
    grey : the grey level of each row.
    bins : N_g of the normalised differences: the highest grey level of the region.

    Returns
    -------
    The 25 features of IBSI and the maximal correlation coefficient. Correlations of a matrix of
    one level alone are NaN: a variance, or an entropy, of zero would divide.
    """
    p = counts / counts.sum()
    marginal = p.sum(axis=0)
    mean = (marginal * grey).sum()
    variance = (marginal * (grey - mean) ** 2).sum()
    level = grey.astype(np.int64)
    difference = np.bincount(np.abs(level[:, None] - level).ravel(), weights=p.ravel())
    total = np.bincount((level[:, None] + level).ravel(), weights=p.ravel())
    d = np.arange(len(difference), dtype=np.float64)
    s = np.arange(len(total), dtype=np.float64)
    diff_avg, sum_avg = (d * difference).sum(), (s * total).sum()
    about = s - 2 * mean
    auto = grey @ p @ grey
    entropy, own = _entropy(p), _entropy(marginal)
    # the two cross entropies of a symmetric matrix are both twice that of its margin
    several = own > 1e-12
    values = (
        p.max(), mean, variance, entropy,
        diff_avg, (difference * (d - diff_avg) ** 2).sum(), _entropy(difference),
        sum_avg, (total * (s - sum_avg) ** 2).sum(), _entropy(total),
        (p * p).sum(), (difference * d * d).sum(), diff_avg,
        (difference / (1 + d)).sum(), (difference / (1 + d / bins)).sum(),
        (difference / (1 + d * d)).sum(), (difference / (1 + (d / bins) ** 2)).sum(),
        (difference[1:] / d[1:] ** 2).sum(),
        (auto - mean**2) / variance if several else np.nan, auto,
        (total * about**2).sum(), (total * about**3).sum(), (total * about**4).sum(),
        (entropy - 2 * own) / own if several else np.nan,
        np.sqrt(max(0.0, 1 - np.exp(-2 * (2 * own - entropy)))),
        _maximal_correlation(p, marginal) if several else np.nan,
    )  # fmt: skip
    return {name: float(v) for name, v in zip(FEATURES, values, strict=True)}


def _entropy(p: np.ndarray) -> float:
    used = p[p > 0]
    return float(-(used * np.log2(used)).sum()) + 0.0


def _maximal_correlation(p: np.ndarray, marginal: np.ndarray) -> float:
    """Root of the second largest eigenvalue of Haralick's Q, a square of a symmetric matrix."""
    used = marginal > 0
    root = np.sqrt(marginal[used])
    values = np.sort(np.abs(np.linalg.eigvalsh(p[np.ix_(used, used)] / root[:, None] / root)))
    return float(values[-2])
