"""Unique and shared variance of two or more feature families, from the R² of all their subsets.

Think of the explained variance of the full model as a Venn diagram, one set a family: the R² of a
model with the families S is the sum of all parts that any of S covers. Solved for the parts:

    V(S) = R²(all) - R²(all without S)            what is lost without S: parts inside S only
    part(T) = sum over S within T of (-1)^(|T| - |S|) V(S)

For two families: unique(a) = R²(ab) - R²(b), shared = R²(a) + R²(b) - R²(ab). The parts add up to
R²(all). On held-out data any of them may be negative: a model that adds a useless family predicts
worse, and a shared part is negative where two families explain more together than the sum of each
alone (suppression).

References
----------
Seibold & McPhee 1979, Human Communication Research 5 (commonality analysis); Lescroart, Stansbury &
Gallant 2015, Frontiers in Computational Neuroscience 9 (encoding models).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

Families = tuple[str, ...]


def subsets(families: Sequence[str]) -> list[Families]:
    """All subsets but the empty one, small ones first, in the order of ``families``.

    Examples
    --------
    >>> subsets(["a", "b"])
    [('a',), ('b',), ('a', 'b')]
    """
    return [part for size in range(1, len(families) + 1) for part in combinations(families, size)]


def variance_parts(
    explained: Mapping[Families, Any], families: Sequence[str]
) -> dict[Families, Any]:
    """Part of the explained variance that exactly the named families cover.

    Parameters
    ----------
    explained : subset -> R², numbers or arrays of one shape; every subset of `subsets`.
    families : the order of the names in the keys.

    Raises
    ------
    ValueError : a subset is missing, or fewer than 2 families.

    Examples
    --------
    >>> parts = variance_parts({("a",): 0.3, ("b",): 0.2, ("a", "b"): 0.4}, ["a", "b"])
    >>> {"+".join(k): round(v, 6) for k, v in parts.items()}
    {'a': 0.2, 'b': 0.1, 'a+b': 0.1}
    """
    if len(families) < 2 or len(set(families)) != len(families):
        raise ValueError(f"families are {tuple(families)}; give two or more, each once")
    wanted = subsets(families)
    missing = [part for part in wanted if part not in explained]
    if missing:
        raise ValueError(f"no R² of the families {' + '.join(missing[0])}; every subset is needed")
    whole = explained[tuple(families)]

    def lost(without: Families) -> Any:
        rest = tuple(name for name in families if name not in without)
        return whole - explained[rest] if rest else whole

    return {
        part: sum((-1) ** (len(part) - len(inner)) * lost(inner) for inner in subsets(part))
        for part in wanted
    }


def error_gain(
    predicted: Float[np.ndarray, "stimuli vertices"],
    measured: Float[np.ndarray, "stimuli vertices"],
) -> Float[np.ndarray, "stimuli vertices"]:
    """What each stimulus adds to R²: squared distance from the mean minus squared error.

    Divided by the sum of squares about the mean, and summed over stimuli, it is R². The mean is
    that of the measured stimuli, the same for all models, so that their R² can be subtracted.
    """
    if predicted.shape != measured.shape:
        raise ValueError(f"predictions are {predicted.shape}, measurements {measured.shape}")
    measured = measured.astype(np.float64)
    return (measured - measured.mean(axis=0)) ** 2 - (measured - predicted) ** 2


def sign_flips(
    contributions: Float[np.ndarray, "stimuli parts"], draws: int, seed: int
) -> Float[np.ndarray, "draws parts"]:
    """Sums over stimuli under random signs, the same signs for all parts.

    The null of a contribution whose distribution over stimuli is symmetric about zero.

    References
    ----------
    Winkler et al. 2014, NeuroImage 92 (exchangeability by sign flips).
    """
    generator = np.random.default_rng(seed)
    out = np.zeros((draws, contributions.shape[1]))
    step = max(1, 2_000_000 // max(len(contributions), 1))
    for start in range(0, draws, step):
        n = min(step, draws - start)
        signs = generator.integers(0, 2, (n, len(contributions))) * 2.0 - 1.0
        out[start : start + n] = signs @ contributions
    return out
