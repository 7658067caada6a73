"""How many dimensions predictions use, and whether they are those of the training targets.

Regression on clustered targets may answer within a few directions of the training set ("output
dimension collapse"): scores then rest on telling clusters apart.

References
----------
Shirakawa et al. 2025, Neural Networks; Mayo et al. 2024, NeurIPS (BrainBits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

if TYPE_CHECKING:
    from pandas import DataFrame

RANKS = (1, 2, 5, 10, 20, 50, 100, 500)


def participation_ratio(x: Shaped[np.ndarray, "items features"]) -> float:
    """Effective number of dimensions: ``(sum of variances)^2 / sum of squared variances``.

    From 1 (all items on a line) to min(items - 1, features) (a sphere). The variances are the
    eigenvalues of the covariance, and the ratio needs no eigendecomposition.

    Raises
    ------
    ValueError : fewer than 2 items, values not finite, or all items equal.

    Examples
    --------
    >>> participation_ratio(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    2.0
    """
    gram = _gram(_centred(x))
    total = np.trace(gram)
    if total <= 0:
        raise ValueError("all items are equal; they span no dimension")
    return float(total**2 / (gram**2).sum())


def variance_captured(
    predictions: Shaped[np.ndarray, "items features"],
    train: Shaped[np.ndarray, "train _"],
    ranks: Sequence[int] = RANKS,
) -> Float[np.ndarray, " ranks"]:
    """Share of the predictions' variance that lies in the first principal axes of the training set.

    Predictions that collapsed reach 1 with few axes; true features of held-out pictures, scored
    by the same function, show how far they would come.

    Parameters
    ----------
    predictions, train : rows of the same features, each centred on its own mean.
    ranks : numbers of axes; those beyond the training set's rank take what there is.

    Returns
    -------
    One share a rank, 0 to 1, never falling.

    Raises
    ------
    ValueError : features differ, a rank is below 1, values not finite, equal items.
    """
    if predictions.shape[1] != train.shape[1]:
        raise ValueError(f"predictions are {predictions.shape}, training features {train.shape}")
    if len(ranks) == 0 or min(ranks) < 1:
        raise ValueError(f"ranks are {tuple(ranks)}; each is at least 1")
    x, basis = _centred(predictions), _centred(train)
    total = float((x**2).sum())
    if total <= 0:
        raise ValueError("all predictions are equal; they have no variance")
    if len(basis) <= basis.shape[1]:  # axes are combinations of the rows
        values, vectors = np.linalg.eigh(basis @ basis.T)
        along = (x @ basis.T) @ vectors
        kept = values > values.max(initial=0.0) * 1e-12
        shares = (along[:, kept] ** 2).sum(axis=0) / values[kept]
    else:
        values, vectors = np.linalg.eigh(basis.T @ basis)
        kept = values > values.max(initial=0.0) * 1e-12
        shares = ((x @ vectors[:, kept]) ** 2).sum(axis=0)
    sums = np.cumsum(shares[::-1]) / total
    if len(sums) == 0:
        raise ValueError("all training rows are equal; they have no principal axes")
    return np.array([min(sums[min(rank, len(sums)) - 1], 1.0) for rank in ranks])


def bottleneck_curve(
    score: Callable[[int], Sequence[float] | Float[np.ndarray, " items"]],
    ranks: Sequence[int] = RANKS,
    *,
    full: int | None = None,
    seed: int = 0,
) -> DataFrame:
    """Scores of decoders that see the brain through ``rank`` dimensions only.

    Parameters
    ----------
    score : of a rank, one number an item (the same items at every rank).
    ranks : bottlenecks to try; those at or above ``full`` are left out.
    full : the rank without a bottleneck, which comes last and to which the shares refer; None
        takes the largest of ``ranks``.
    seed : of the bootstrap over items.

    Returns
    -------
    Columns rank, value (mean), low, high (95 %), n, share (of the value at the full rank).

    Raises
    ------
    ValueError : no rank, a rank below 1, or items that differ between ranks.

    References
    ----------
    Mayo et al. 2024, NeurIPS (BrainBits): 30 to 50 dimensions keep most of the fidelity.
    """
    import pandas as pd

    from neurodiff.metrics.statistics import bootstrap_interval

    last = max(ranks, default=0) if full is None else full
    tried = [*sorted({rank for rank in ranks if rank < last}), last]
    if tried[0] < 1:
        raise ValueError(f"ranks are {tuple(ranks)}, full is {full}; each is at least 1")
    rows, items = [], set()
    for rank in tried:
        values = np.asarray(score(rank), dtype=np.float64)
        items.add(len(values))
        if len(items) > 1:
            raise ValueError(f"scores of {sorted(items)} items at different ranks; use the same")
        found = bootstrap_interval(values, seed=seed)
        rows.append([rank, found.value, found.low, found.high, found.n_items])
    table = pd.DataFrame(rows, columns=["rank", "value", "low", "high", "n"])
    table["share"] = table["value"] / table["value"].iloc[-1]
    return table


def _centred(x: np.ndarray) -> np.ndarray:
    if len(x) < 2:
        raise ValueError(f"{len(x)} items; a variance needs at least 2")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity; mask or repair them before use")
    return x - x.mean(axis=0)


def _gram(x: np.ndarray) -> np.ndarray:
    return x @ x.T if len(x) <= x.shape[1] else x.T @ x
