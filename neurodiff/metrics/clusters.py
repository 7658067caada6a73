"""Scores within clusters, and what knowing the cluster alone is worth.

A decoder that answers with the right one of K equal clusters, and nothing else, has a 2-way score
of 1 - 1/(2K): 0.95 for ten clusters. Overall scores of 0.9 and more can therefore not by
themselves tell a reconstruction from a guess of the category; scores within clusters can.

References
----------
Shirakawa et al. 2025, Neural Networks (40 clusters of the scenes' text features).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped


def cluster_only_rate(clusters: Sequence[str]) -> Float[np.ndarray, " items"]:
    """Expected 2-way rate of each item for a decoder that knows only the cluster.

    All items of other clusters are told apart, those of the own cluster are a tie:
    ``((n - s) + (s - 1) / 2) / (n - 1)`` with s items in the cluster of n.

    Raises
    ------
    ValueError : fewer than 2 items.

    Examples
    --------
    >>> cluster_only_rate(["cup", "cup", "lamp"])
    array([0.75, 0.75, 1.  ])
    """
    n = len(clusters)
    if n < 2:
        raise ValueError(f"{n} items; 2-way identification needs at least 2")
    _, codes, counts = np.unique(
        np.asarray(clusters, dtype=str), return_inverse=True, return_counts=True
    )
    sizes = counts[codes]
    return ((n - sizes) + (sizes - 1) / 2) / (n - 1)


def equal_clusters_rate(count: int) -> float:
    """``1 - 1/(2K)``, the limit of ``cluster_only_rate`` for many items in K equal clusters.

    Examples
    --------
    >>> equal_clusters_rate(10)
    0.95
    """
    if count < 1:
        raise ValueError(f"the number of clusters is {count}; expected at least 1")
    return 1 - 1 / (2 * count)


def kmeans_clusters(
    train: Shaped[np.ndarray, "train features"],
    items: Shaped[np.ndarray, "items _"],
    count: int,
    *,
    seed: int = 0,
) -> Int[np.ndarray, " items"]:
    """Cluster of each item by k-means of *training* features; test items take no part in it.

    Rows are centred and brought to unit length, so that distance orders as correlation does.

    Parameters
    ----------
    count : clusters, at most the training rows.
    seed : of the starts (four, the best is kept).

    Raises
    ------
    ValueError : more clusters than training rows, other features, a constant or non-finite row.
    """
    from sklearn.cluster import KMeans

    if train.shape[1] != items.shape[1]:
        raise ValueError(f"training features are {train.shape}, those of items {items.shape}")
    if not 1 <= count <= len(train):
        raise ValueError(f"{count} clusters of {len(train)} training rows; expected 1 to that many")
    found = KMeans(count, n_init=4, random_state=seed).fit(_rows(train))
    return found.predict(_rows(items)).astype(np.int64)


def cluster_hits(
    scores: Float[np.ndarray, "items items"],
    among: Float[np.ndarray, "items items"],
    clusters: Sequence[str],
) -> Float[np.ndarray, "items items"]:
    """Whether reconstruction j is nearest to the cluster of picture i, were that its truth.

    Nearest in direction to the sum of a cluster's true pictures, of which picture i is left out:
    otherwise a reconstruction of its truth alone would count as knowledge of the cluster.

    Parameters
    ----------
    scores : correlation of reconstruction j and true picture i.
    among : correlation of the true pictures with each other.
    clusters : one a picture.

    Returns
    -------
    1 for a hit, one half for a tie with another cluster, 0; NaN for pictures whose cluster has no
    other member. The diagonal is the accuracy of the items.

    Raises
    ------
    ValueError : not one cluster an item.
    """
    if len(clusters) != len(scores):
        raise ValueError(f"{len(clusters)} clusters for {len(scores)} items; give one each")
    codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)[1]
    member = np.eye(codes.max() + 1)[codes]  # (items, clusters)
    along = scores @ member
    from_item = among @ member
    squares = np.einsum("ic,ic->c", member, from_item)  # squared length of each sum
    alike = along / np.sqrt(np.maximum(squares, 1e-24))
    own = from_item[np.arange(len(codes)), codes]
    left = np.sqrt(np.maximum(squares[codes] - 2 * own + 1, 1e-24))  # without picture i
    right = (along[:, codes] - scores) / left
    hits = np.full(scores.shape, np.nan)
    for code in range(member.shape[1]):
        columns = np.flatnonzero(codes == code)
        if len(columns) < 2:
            continue
        rest = np.delete(alike, code, axis=1).max(axis=1, initial=-np.inf)[:, None]
        gap = np.round(right[:, columns] - rest, 12)
        hits[:, columns] = np.where(gap > 0, 1.0, np.where(gap == 0, 0.5, 0.0))
    return hits


def cluster_accuracy(predicted: Int[np.ndarray, " items"], true: Int[np.ndarray, " _"]) -> float:
    """Share of items whose reconstruction falls into the cluster of the truth."""
    if len(predicted) != len(true) or len(true) == 0:
        raise ValueError(f"{len(predicted)} predicted clusters for {len(true)} true ones")
    return float((predicted == true).mean())


def _rows(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not (length > 0).all() or not np.isfinite(length).all():
        raise ValueError("a row of the features is constant or not finite; it has no direction")
    return x / length
