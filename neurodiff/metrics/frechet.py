"""Fréchet distance between two sets of feature vectors, and how sure it is.

The covariance of n vectors in d dimensions has rank n - 1 at most. Below n = d + 1 (1,806 for the
point-cloud distance, whose features have 1,805 entries) the estimate is biased upward and depends
on n: compare only values of one n, and read none as the distance of the populations.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from neurodiff.metrics.statistics import Interval

GROUPS = 20  # of the jackknife


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Fréchet distance of the two normal distributions with the sets' means and covariances.

    ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` with unbiased covariances. The trace
    of the root is the sum of the singular values of ``A B^T``, where A and B are the centred sets
    over ``sqrt(n - 1)``: exact at any rank and never larger than the smaller of n and d on a
    side, whereas the published ``sqrtm`` of a (d, d) product falls back on rounding errors (or on
    1e-4 on the diagonal, where the root is not finite) when the covariances lack rank.

    Raises
    ------
    ValueError : fewer than 2 vectors in a set, or NaN or infinity.

    References
    ----------
    Dowson & Landau 1982, Journal of Multivariate Analysis 12. Heusel et al. 2017, NeurIPS.
    """
    for name, values in (("first", a), ("second", b)):
        if len(values) < 2:
            raise ValueError(f"the {name} set has {len(values)} vectors; a covariance needs 2")
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} set holds NaN or infinity")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    between = ((mean_a - mean_b) ** 2).sum()
    within = (root_a**2).sum() + (root_b**2).sum()
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(max(between + within - 2 * shared, 0.0))


def frechet_interval(
    predicted: Float[np.ndarray, "items d"],
    true: Float[np.ndarray, "items d"],
    *,
    confidence: float = 0.95,
) -> Interval:
    """Fréchet distance of predictions and truths of the same items with a jackknife interval.

    Items are left out in up to 20 groups, prediction and truth together. A bootstrap would not
    do: items drawn twice lower the rank and raise the distance. The interval covers the choice
    of items, not the bias of a small n; ``note`` states n against d + 1.

    Raises
    ------
    ValueError : as ``frechet_distance``; the sets differ in length.
    """
    from scipy.stats import t

    if len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predictions for {len(true)} truths; give one each")
    n, d = predicted.shape
    value = frechet_distance(predicted, true)
    note = f"n = {n}"
    if n < d + 1:
        note += f" below {d + 1:,}: the covariances lack rank, compare at this n only"
    groups = min(GROUPS, n)
    if n - -(-n // groups) < 2:
        nan = float("nan")
        return Interval(value, nan, nan, n, confidence, "jackknife", note)
    member = np.arange(n) % groups
    left_out = np.array(
        [frechet_distance(predicted[member != g], true[member != g]) for g in range(groups)]
    )
    error = np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    reach = float(t.ppf(0.5 + confidence / 2, groups - 1) * error)
    low, high = max(value - reach, 0.0), value + reach
    return Interval(value, low, high, n, confidence, "jackknife", note)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a root R of the covariance with ``R^T R = S`` and as few rows as can be."""
    values = values.astype(np.float64)
    mean = values.mean(axis=0)
    root = (values - mean) / np.sqrt(len(values) - 1)
    return mean, np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root
