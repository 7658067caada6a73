"""Scores of many small neighbourhoods of features at once, with permutations shared by all, so that
the largest of each permutation corrects for all of them.

Everything is a function of arrays and takes the neighbourhoods as a sparse matrix, a row a centre.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from neurodiff.metrics.rdm import correlation_rdm, permuted_pairs, unit_ranks

_BLOCK = 4_000_000  # numbers in memory at a time
_ROUNDING = 1e-6  # of permuted scores in float32


@dataclass(eq=False)
class ScoreNull:
    """Collects scores and their permutations centre by centre.

    Attributes
    ----------
    score, p : (centres,) NaN where a neighbourhood was left out.
    largest : (draws,) largest permuted score over all centres.
    means : (rois, draws) mean permuted score over the centres of each region.
    """

    score: Float[np.ndarray, " centres"]
    p: Float[np.ndarray, " centres"]
    largest: Float[np.ndarray, " draws"]
    means: Float[np.ndarray, "rois draws"]
    _weights: Float[np.ndarray, "rois centres"] = field(repr=False)

    @classmethod
    def of(
        cls, kept: Bool[np.ndarray, " centres"], rois: Bool[np.ndarray, "rois centres"], draws: int
    ) -> ScoreNull:
        """Nothing collected yet; ``kept`` says which centres will be."""
        inside = (rois & kept).astype(np.float64)
        weights = inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)
        n = len(kept)
        return cls(
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.full(draws, -np.inf),
            np.zeros((len(rois), draws)),
            weights,
        )

    def add(
        self,
        centres: Int[np.ndarray, " some"],
        observed: Float[np.ndarray, " some"],
        permuted: Float[np.ndarray, "some draws"],
    ) -> None:
        draws = len(self.largest)
        better = (permuted >= observed[:, None] - _ROUNDING).sum(axis=1)
        self.score[centres] = observed
        self.p[centres] = (1 + better) / (1 + draws)
        self.largest = np.maximum(self.largest, permuted.max(axis=0))
        self.means += self._weights[:, centres] @ permuted

    def p_max(self) -> Float[np.ndarray, " centres"]:
        """Family-wise p of each centre, (1 + b) / (1 + draws) against the largest ones."""
        known = np.isfinite(self.score)
        largest = np.sort(self.largest)
        observed = np.where(known, self.score, 0.0) - _ROUNDING
        beyond = len(largest) - np.searchsorted(largest, observed)
        return np.where(known, (1 + beyond) / (1 + len(largest)), np.nan)


def neighbourhood_tables(
    means: Float[np.ndarray, "stimuli features"],
    near: csr_array,
    centres: Int[np.ndarray, " centres"],
) -> Iterator[tuple[Int[np.ndarray, " some"], Float[np.ndarray, "some pairs"]]]:
    """Ranked correlation distances of the responses around each centre, some centres at a time.

    Rows are those of `unit_ranks`: their products with another such row are Spearman correlations.
    Centres around which a stimulus has equal responses everywhere get a row of zeros.
    """
    pairs = len(means) * (len(means) - 1) // 2
    step = max(1, _BLOCK // pairs)
    for start in range(0, len(centres), step):
        some = centres[start : start + step]
        tables = np.zeros((len(some), pairs))
        for row, centre in enumerate(some):
            inside = near.indices[near.indptr[centre] : near.indptr[centre + 1]]
            table = correlation_rdm(means[:, inside])
            if np.isfinite(table).all():
                tables[row] = table
        yield some, unit_ranks(tables)


def rsa_null(
    means: Float[np.ndarray, "stimuli features"],
    near: csr_array,
    models: Float[np.ndarray, "models pairs"],
    orders: Int[np.ndarray, "draws stimuli"],
    *,
    rois: Bool[np.ndarray, "rois features"],
    least: int = 10,
    weights: Float[np.ndarray, "resamples stimuli"],
) -> tuple[list[ScoreNull], Float[np.ndarray, "models rois resamples"]]:
    """Spearman agreement of the distances around each feature with each model's distances.

    Parameters
    ----------
    models : tables of distances, without NaN.
    orders : permutations of the stimuli, from `exchange_orders`.
    least : features that a neighbourhood needs at least.
    weights : how often each stimulus is drawn in each resample, for intervals. Ranks are those of
        all stimuli; a pair of a stimulus with itself has no part.

    Returns
    -------
    A null a model; and the mean of each region in each resample.
    """
    kept = np.diff(near.indptr) >= least
    ranked = unit_ranks(models)
    permuted = np.stack([ranked[:, permuted_pairs(order)] for order in orders])
    permuted = permuted.transpose(1, 2, 0).astype(np.float32)  # (models, pairs, draws)
    first, second = np.triu_indices(len(means), 1)
    drawn = (weights[:, first] * weights[:, second]).T  # (pairs, resamples)
    found = [ScoreNull.of(kept, rois, len(orders)) for _ in models]
    again = np.zeros((len(models), len(rois), len(weights)))
    for some, tables in neighbourhood_tables(means, near, np.flatnonzero(kept)):
        single = tables.astype(np.float32)
        for k, null in enumerate(found):
            null.add(some, tables @ ranked[k], (single @ permuted[k]).astype(np.float64))
            inside = null._weights[:, some]
            again[k] += inside @ _weighted_correlation(tables, ranked[k], drawn)
    return found, again


def _weighted_correlation(tables: np.ndarray, model: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row with ``model`` under each column of weights; 0 if flat."""
    total = weights.sum(axis=0)
    weights = weights / np.where(total > 0, total, 1.0)
    mean, other = tables @ weights, model @ weights
    spread = (tables**2) @ weights - mean**2
    variance = spread * ((model**2) @ weights - other**2)
    covariance = (tables * model) @ weights - mean * other
    root = np.sqrt(np.maximum(variance, 0))
    return np.divide(covariance, root, out=np.zeros_like(covariance), where=root > 1e-15)


def pairing_null_sums(
    rates: Float[np.ndarray, "items items"], orders: Int[np.ndarray, "draws items"]
) -> Float[np.ndarray, " draws"]:
    """Mean of ``rates[order[i], i]`` for each order: the score of permuted pairings.

    Examples
    --------
    >>> pairing_null_sums(np.eye(2), np.array([[0, 1], [1, 0]]))
    array([1., 0.])
    """
    return rates[orders, np.arange(rates.shape[1])].mean(axis=1)
