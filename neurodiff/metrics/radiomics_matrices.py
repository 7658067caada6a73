"""What the texture families share: neighbours, slices, and features of a level-by-size matrix.

Runs (GLRLM), zones (GLSZM), zone distances (GLDZM) and dependence (NGLDM) count how often a grey
level i meets a size j. IBSI gives the four families the same features under different names; they
are written once, here, on the non-zero entries of the matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

PLANE = ((0, 0, 1), (0, 1, -1), (0, 1, 0), (0, 1, 1))
SPACE = tuple(step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0))

# in the order in which `size_features` gives them
SIZE_FEATURES = (
    "small", "large", "low", "high", "small_low", "small_high", "large_low", "large_high",
    "level_non_uniformity", "level_non_uniformity_normalised",
    "size_non_uniformity", "size_non_uniformity_normalised",
    "percentage", "level_variance", "size_variance", "entropy", "energy",
)  # fmt: skip


def padded(levels: np.ndarray, distance: int = 1) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the flat level array with empty voxels between its lines, and its three strides.

    A step from any voxel then is one number, and no step out of the box meets another voxel.
    """
    wide = np.pad(levels, ((0, distance), (0, distance), (0, distance)))
    _, rows, columns = wide.shape
    return wide.ravel(), (rows * columns, columns, 1)


def stride(step: Sequence[int], strides: tuple[int, int, int]) -> int:
    """How far apart in the flat array two voxels one step apart lie."""
    return sum(a * b for a, b in zip(step, strides, strict=True))


def slices_of(levels: np.ndarray) -> Iterable[np.ndarray]:
    """Every slice that holds a voxel of the region, as an array of one slice."""
    for k in np.flatnonzero(levels.any(axis=(1, 2))):
        yield levels[k : k + 1]


def averaged(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over matrices of each feature, over those matrices for which it is defined."""
    if not rows:
        return {}
    table = np.array([list(row.values()) for row in rows], dtype=np.float64)
    known = np.isfinite(table)
    count = known.sum(axis=0)
    total = np.where(known, table, 0.0).sum(axis=0)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return dict(zip(rows[0], mean.tolist(), strict=True))


def counted(level: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-zero entries of the matrix of levels by sizes: levels, sizes and their counts."""
    wide = int(size.max()) + 1 if size.size else 1
    code = level.astype(np.int64) * wide + size
    if wide * (int(level.max(initial=0)) + 1) <= max(4 * code.size, 65536):
        count = np.bincount(code)
        found = np.flatnonzero(count)
        return found // wide, found % wide, count[found]
    found, count = np.unique(code, return_counts=True)
    return found // wide, found % wide, count


def size_features(
    level: np.ndarray, size: np.ndarray, count: np.ndarray, voxels: float
) -> dict[str, float]:
    """Features of a matrix of grey levels by sizes, from its non-zero entries.

    Parameters
    ----------
    level, size, count : entry by entry; levels and sizes from 1.
    voxels : what the percentage is taken of.

    References
    ----------
    IBSI reference manual, 3.7 (runs), 3.8 (zones), 3.9 (distances), 3.11 (dependence).
    """
    if count.size == 0:
        return dict.fromkeys(SIZE_FEATURES, math.nan)
    i, j, n = (x.astype(np.float64) for x in (level, size, count))
    total = n.sum()
    p = n / total
    by_level = np.bincount(level, weights=n)
    # sizes may be huge and few
    by_size = np.bincount(np.unique(size, return_inverse=True)[1], weights=n)
    i2, j2 = i * i, j * j
    mean_i, mean_j = (p * i).sum(), (p * j).sum()
    values = (
        (p / j2).sum(), (p * j2).sum(), (p / i2).sum(), (p * i2).sum(),
        (p / (i2 * j2)).sum(), (p * i2 / j2).sum(), (p * j2 / i2).sum(), (p * i2 * j2).sum(),
        (by_level**2).sum() / total, (by_level**2).sum() / total**2,
        (by_size**2).sum() / total, (by_size**2).sum() / total**2,
        total / voxels, (p * (i - mean_i) ** 2).sum(), (p * (j - mean_j) ** 2).sum(),
        -(p * np.log2(p)).sum() + 0.0, (p * p).sum(),
    )  # fmt: skip
    return {name: float(v) for name, v in zip(SIZE_FEATURES, values, strict=True)}


def renamed(
    features: Mapping[str, float], names: Mapping[str, str], prefix: str, suffix: str
) -> dict[str, float]:
    """Give shared features a family's own names."""
    return {f"{prefix}_{own}_{suffix}": features[shared] for shared, own in names.items()}
