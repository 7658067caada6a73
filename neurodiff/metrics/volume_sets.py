"""How far two sets of volumes are apart, by features that the caller states.

The published FID of LDAE is on features of a network for medical volumes (MedicalNet-ResNet50);
its value was not printed.  Neither function here is that number: a distance of sets means nothing
without the name of its features, the size of the sets and the distance of real from real.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neurodiff.core.errors import UsageError
from neurodiff.metrics.frechet import frechet_distance

Features = Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class Discrepancy:
    """Squared maximum mean discrepancy; ``p`` by permutation of the sets' membership."""

    value: float
    p: float
    bandwidth: float


def mmd(
    a: Features,
    b: Float[np.ndarray, "m d"],
    *,
    bandwidth: float | None = None,
    permutations: int = 500,
    seed: int = 0,
) -> Discrepancy:
    """Unbiased squared MMD with a Gaussian kernel ``exp(-|x - y|^2 / (2 bandwidth^2))``.

    Its expectation is 0 for two sets of one population at any n, so that it may come out negative.

    Parameters
    ----------
    bandwidth : None takes the median distance of all pairs of the two sets together.
    permutations, seed : of the test; 0 permutations give p NaN.

    Raises
    ------
    UsageError : fewer than 2 vectors in a set, NaN, or vectors that are all equal.

    References
    ----------
    Gretton et al. 2012, Journal of Machine Learning Research 13, eq. 3 and section 2.3.
    """
    for name, values in (("first", a), ("second", b)):
        if len(values) < 2:
            raise UsageError(f"the {name} set has {len(values)} vectors; MMD needs 2")
        if not np.isfinite(values).all():
            raise UsageError(f"the {name} set holds NaN or infinity")
    both = np.concatenate([a, b]).astype(np.float64)
    squared = (both**2).sum(1)
    distances = np.clip(squared[:, None] + squared[None] - 2 * both @ both.T, 0, None)
    np.fill_diagonal(distances, 0)
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(distances[np.triu_indices(len(both), 1)])))
    if not bandwidth > 0:
        raise UsageError(
            f"the kernel's bandwidth is {bandwidth}; most vectors are equal, so state one above 0"
        )
    kernel = np.exp(-distances / (2 * bandwidth**2))
    np.fill_diagonal(kernel, 0)
    members = np.arange(len(both)) < len(a)
    value = _unbiased(kernel, members)
    if permutations < 1:
        return Discrepancy(value, float("nan"), bandwidth)
    generator = np.random.default_rng(seed)
    null = [_unbiased(kernel, generator.permutation(members)) for _ in range(permutations)]
    p = (1 + int((np.array(null) >= value - 1e-15).sum())) / (1 + permutations)
    return Discrepancy(value, p, bandwidth)


def frechet_with_note(a: Features, b: Float[np.ndarray, "m d"]) -> tuple[float, str]:
    """Fréchet distance, and what n does to it.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> frechet_with_note(rng.normal(size=(9, 16)), rng.normal(size=(9, 16)))[1]
    'n = 9 and 9 below 17: the covariances lack rank, biased upward; compare at this n only'
    """
    n, m, d = len(a), len(b), a.shape[1]
    note = f"n = {n} and {m}"
    if min(n, m) < d + 1:
        note += f" below {d + 1}: the covariances lack rank, biased upward; compare at this n only"
    elif min(n, m) < 10 * d:
        note += f" for {d} features: biased upward; compare at this n only"
    return frechet_distance(a, b), note


def _unbiased(kernel: np.ndarray, first: np.ndarray) -> float:
    n, m = int(first.sum()), int((~first).sum())
    rows = kernel @ first
    within_a, between = rows[first].sum(), rows[~first].sum()
    within_b = kernel.sum() - within_a - 2 * between
    return float(within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * between / (n * m))
