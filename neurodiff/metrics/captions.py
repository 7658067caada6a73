"""Captions as truth: is the caption of what was shown the nearest of all?

Embeddings are given as arrays, one row a text, by any sentence encoder; they are compared by
cosine.  Captions with the same words have the same embedding and count as ties.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from neurodiff.metrics.identification import similarities
from neurodiff.metrics.records import Metric


def caption_rank(
    predicted: Float[np.ndarray, "items features"],
    captions: Float[np.ndarray, "captions features"],
    truth: Int[np.ndarray, " items"],
) -> Float[np.ndarray, " items"]:
    """Rank of the true caption among all captions by cosine, 1 for the nearest.

    Captions that are as near as the true one share their ranks: half of them count as nearer, so
    that chance is ``(captions + 1) / 2`` whatever the ties.

    Parameters
    ----------
    predicted : embedding predicted for each item.
    captions : embedding of each candidate.
    truth : row of ``captions`` that belongs to each item.

    Raises
    ------
    ValueError : a row is zero or not finite, or ``truth`` is no row of the captions.

    Examples
    --------
    >>> captions = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> caption_rank(np.array([[1.0, 0.2], [1.0, 0.2]]), captions, np.array([0, 1]))
    array([1., 2.])
    """
    scores = similarities(predicted, captions, similarity="cosine")
    if len(truth) and (truth.min() < 0 or truth.max() >= len(captions)):
        raise ValueError(f"truth must lie in 0 .. {len(captions) - 1}, the rows of the captions")
    right = scores[np.arange(len(truth)), truth][:, None]
    same = np.isclose(scores, right, rtol=0, atol=1e-9)  # the same words, up to rounding
    nearer = ((scores > right) & ~same).sum(axis=1)
    return 1.0 + nearer + (same.sum(axis=1) - 1) / 2


def recall_at(ranks: Float[np.ndarray, " items"], k: int) -> Float[np.ndarray, " items"]:
    """1 where the true caption is among the ``k`` nearest, else 0; chance is ``k / captions``.

    Raises
    ------
    ValueError : ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least one caption is looked at")
    return (ranks <= k).astype(np.float64)


def text_similarity(
    predicted: Float[np.ndarray, "items features"], true: Float[np.ndarray, "items features"]
) -> Float[np.ndarray, " items"]:
    """Cosine of each predicted embedding with that of its own caption, -1 to 1.

    It has no fixed chance: captions of one set are alike, so set it beside the mean over captions
    of other items.

    Raises
    ------
    ValueError : a row is zero or not finite, or the numbers of rows differ.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted has shape {predicted.shape} and true {true.shape}")
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in _checked(predicted, true)]
    return (unit[0] * unit[1]).sum(axis=1)


def _checked(*arrays: np.ndarray) -> list[np.ndarray]:
    wide = [x.astype(np.float64) for x in arrays]
    for x in wide:
        if not np.isfinite(x).all() or not x.any(axis=1).all():
            raise ValueError("an embedding is zero or not finite; a cosine needs a direction")
    return wide


TEXT_SIMILARITY = Metric(
    name="text similarity",
    unit="",
    higher_is_better=True,
    chance=None,
    reference="none",
    protocol="cosine of sentence embeddings, own caption",
    function=text_similarity,
)
