"""Identification: is the right item told from n - 1 others?

Three doors to one rule. ``n_way`` takes any score matrix; ``feature_identification`` builds it
from predicted and true features; ``classifier_n_way`` reads class probabilities of pictures. The
default is the exact expectation over all ways to draw the distractors; the published draws are
``n_way_sampled``. A tie for the best among k candidates counts 1/k, so scores that know nothing
give exactly 1/n, and higher scores are better everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from neurodiff.metrics.records import Metric

COLUMNS = 4096  # of features held in float64 at a time
# RandomState is numpy's legacy generator: the published draws can be repeated only with it.
Draws = np.random.Generator | np.random.RandomState


def chance(n: int) -> float:
    """Return the expected n-way score of a guess: 1 / n."""
    _require_ways(n)
    return 1.0 / n


def n_way(
    scores: Float[np.ndarray, "items candidates"],
    truth: Int[np.ndarray, " items"],
    n: int = 2,
    *,
    allowed: Bool[np.ndarray, "items candidates"] | None = None,
    too_few: Literal["raise", "nan"] = "raise",
) -> Float[np.ndarray, " items"]:
    """Exact n-way top-1 identification: the mean over all draws of n - 1 distractors.

    With L candidates scored below the truth, E equal to it and M candidates in all besides it,
    the expected credit is ``(C(L+E+1, n) - C(L, n)) / ((E+1) C(M, n-1))``; without ties this is
    the hypergeometric ``C(L, n-1) / C(M, n-1)``, and for n = 2 ``(L + E/2) / M``.

    Parameters
    ----------
    scores : of each candidate for each item, higher is better.
    truth : column of the right candidate.
    n : candidates shown, the truth among them.
    allowed : which candidates may be drawn as distractors; the truth's own entry is ignored.
    too_few : "nan" gives NaN for items with fewer than n - 1 distractors instead of an error.

    Returns
    -------
    One expected hit rate an item, from 0 to 1; chance is 1/n.

    Raises
    ------
    ValueError : scores are NaN, truth is no column, or an item has too few distractors.

    Examples
    --------
    >>> n_way(np.array([[0.9, 0.1, 0.4], [0.2, 0.5, 0.5]]), np.array([0, 1]), n=2)
    array([1.  , 0.75])
    """
    _require_ways(n)
    items, candidates = scores.shape
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} scores are NaN; a rank needs numbers")
    if items and (truth.min() < 0 or truth.max() >= candidates):
        raise ValueError(f"truth must lie in 0 .. {candidates - 1}, the columns of the scores")
    others = np.ones(scores.shape, bool) if allowed is None else allowed.copy()
    rows = np.arange(items)
    others[rows, truth] = False
    right = scores[rows, truth][:, None]
    lower = ((scores < right) & others).sum(axis=1)
    equal = ((scores == right) & others).sum(axis=1)
    total = others.sum(axis=1)
    short = total < n - 1
    if short.any() and too_few == "raise":
        first = int(np.nonzero(short)[0][0])
        raise ValueError(
            f"{int(short.sum())} items have too few distractors for {n}-way identification "
            f"(item {first} has {total[first]}); lower n, or pass too_few='nan'"
        )
    counts = zip(lower.tolist(), equal.tolist(), total.tolist(), strict=True)
    return np.array([_expected_credit(l, e, m, n) for l, e, m in counts], dtype=np.float64)


def two_way(
    scores: Float[np.ndarray, "items candidates"],
    truth: Int[np.ndarray, " items"],
) -> Float[np.ndarray, " items"]:
    """Share of the other candidates that score below the truth, ties one half: ``n_way`` of 2."""
    return n_way(scores, truth, 2)


def n_way_sampled(
    scores: Float[np.ndarray, "items candidates"],
    truth: Int[np.ndarray, " items"],
    n: int = 2,
    *,
    generator: Draws,
    trials: int = 100,
) -> Float[np.ndarray, " items"]:
    """n-way identification as published: ``trials`` random draws of the distractors an item.

    Each draw is ``generator.choice(others, n - 1, replace=False)`` with the other columns in
    ascending order, which is the published call; a ``RandomState`` of the same seed repeats its
    numbers. Ties count 1/k (in the published code they depend on the order of the columns).

    Returns
    -------
    The mean credit over draws, one an item; its standard error is about
    ``sqrt(p (1 - p) / trials)``, and ``n_way`` is its expectation.

    Raises
    ------
    ValueError : as ``n_way``, or ``trials`` is below 1.

    References
    ----------
    Gao et al. 2024, ECCV (MinD-3D); Chen et al. 2023, CVPR (MinD-Vis).
    """
    if trials < 1:
        raise ValueError(f"trials is {trials}; at least one draw is needed")
    n_way(scores, truth, n)  # the same checks
    rates = np.zeros(len(scores))
    for item, (row, right) in enumerate(zip(scores, truth.tolist(), strict=True)):
        others = np.delete(np.arange(len(row)), right)
        for _ in range(trials):
            drawn = row[generator.choice(others, n - 1, replace=False)]
            if (drawn <= row[right]).all():
                rates[item] += 1.0 / (1 + (drawn == row[right]).sum())
    return rates / trials


def classifier_n_way(
    predicted: Float[np.ndarray, "items classes"],
    true: Float[np.ndarray, "items classes"],
    n: int = 2,
    *,
    generator: Draws | None = None,
    trials: int = 100,
) -> Float[np.ndarray, " items"]:
    """n-way top-1 by a classifier: does the prediction look like the class of the truth?

    The class is the largest entry of the true picture's probabilities; a hit means that the
    predicted picture gives it more than n - 1 other classes. Logits serve as well as
    probabilities, as only their order counts.

    Parameters
    ----------
    predicted, true : class probabilities of the predicted and the true pictures (one row a view).
    n : classes compared.
    generator : None for the exact expectation (default); else the published draws from it.
    trials : draws an item, with a generator.

    Returns
    -------
    One rate an item; average over views, then over objects. Chance is 1/n.

    References
    ----------
    Chen et al. 2023, CVPR (MinD-Vis); Gao et al. 2024, ECCV (n = 2 and 10, 100 draws, 1,000
    ImageNet classes of a ViT-H/14).
    """
    if np.isnan(true).any():
        raise ValueError("class probabilities of the true pictures are NaN")
    classes = true.argmax(axis=1)
    if generator is None:
        return n_way(predicted, classes, n)
    return n_way_sampled(predicted, classes, n, generator=generator, trials=trials)


def feature_identification(
    predicted: Float[np.ndarray, "items features"],
    true: Float[np.ndarray, "items features"],
    n: int = 2,
    *,
    similarity: Literal["correlation", "cosine"] = "correlation",
    candidates: Literal["truths", "predictions"] = "truths",
    ids: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    too_few: Literal["raise", "nan"] = "raise",
) -> Float[np.ndarray, " items"]:
    """Identify each item by the similarity of predicted and true features.

    Parameters
    ----------
    predicted, true : features of the same items, row by row.
    n : items compared; 2 with correlation and "truths" is Brain-Diffuser's two-way score.
    similarity : Pearson correlation over features, or cosine.
    candidates : "truths" asks which true item the prediction belongs to; "predictions" asks
        which prediction belongs to the true item.
    ids : stimulus of each row; other rows of the same stimulus (repeats, samples, subjects) are
        no distractors.
    categories : distractors come from the item's own category only. Within a category a guess
        of the category scores chance, so what remains is the exemplar.
    too_few : as in ``n_way``, for small categories.

    Returns
    -------
    One rate an item; chance is 1/n.

    Raises
    ------
    ValueError : a row is constant (correlation) or zero (cosine), NaN, or labels do not fit.

    References
    ----------
    Ozcelik & VanRullen 2023, Scientific Reports 13 (Brain-Diffuser).
    """
    scores = similarities(predicted, true, similarity=similarity)
    if candidates == "predictions":
        scores = scores.T
    allowed = np.ones(scores.shape, dtype=bool)
    for name, labels, same in (("ids", ids, False), ("categories", categories, True)):
        if labels is None:
            continue
        if len(labels) != len(scores):
            raise ValueError(f"{len(labels)} {name} for {len(scores)} items; give one each")
        codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1]
        allowed &= (codes[:, None] == codes) == same
    return n_way(scores, np.arange(len(scores)), n, allowed=allowed, too_few=too_few)


def pairing_rates(
    scores: Float[np.ndarray, "reconstructions truths"],
    *,
    vary: Literal["truths", "reconstructions"] = "truths",
    groups: Sequence[str] | None = None,
    ties: Literal["half", "lost"] = "half",
) -> Float[np.ndarray, "reconstructions truths"]:
    """2-way rate of every reconstruction, were any of the pictures its truth.

    Entry (j, i) is the share of the other candidates that score below (j, i). The diagonal is the
    2-way score of the items; the rest is what a permutation of the pairing needs.

    Parameters
    ----------
    scores : likeness of reconstruction j and true picture i, square.
    vary : "truths" (published): reconstruction j is compared with other true pictures;
        "reconstructions": true picture i is compared with other reconstructions. The two differ
        slightly for a good decoder.
    groups : cluster of each item; candidates, and pairings, are those of the item's own cluster
        only. Other entries are NaN, as are those of a cluster of one.
    ties : count one half; or are "lost", as in the published code, by which a decoder whose
        answer is always the same scores about 0 where the reconstructions vary.

    Raises
    ------
    ValueError : the matrix is not square or holds NaN, fewer than 2 items, or one group each is
        not given.

    Examples
    --------
    >>> pairing_rates(np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.3], [0.1, 0.2, 0.8]]))
    array([[1.  , 0.  , 0.5 ],
           [0.  , 0.75, 0.75],
           [0.  , 0.5 , 1.  ]])
    """
    from scipy.stats import rankdata

    n = len(scores)
    if scores.shape != (n, n) or n < 2:
        raise ValueError(f"scores are {scores.shape}; 2-way needs n x n with at least 2 items")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} scores are NaN; a rank needs numbers")
    if groups is not None and len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} items; give one each")
    axis = 1 if vary == "truths" else 0
    method = "average" if ties == "half" else "min"
    if groups is None:
        return (rankdata(scores, method=method, axis=axis) - 1) / (n - 1)
    codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    rates = np.full((n, n), np.nan)
    for code in range(codes.max() + 1):
        rows = np.flatnonzero(codes == code)
        if len(rows) > 1:
            block = np.ix_(rows, rows)
            rates[block] = pairing_rates(scores[block], vary=vary, ties=ties)
    return rates


def similarities(
    a: Shaped[np.ndarray, "n features"],
    b: Shaped[np.ndarray, "m _"],
    *,
    similarity: Literal["correlation", "cosine"] = "correlation",
) -> Float[np.ndarray, "n m"]:
    """Return the correlation or cosine of every row of ``a`` with every row of ``b``.

    The block of ``np.corrcoef`` of the stacked rows that is wanted, a quarter of its products,
    in float64 over blocks of columns: nothing of the size of the input is copied. Rounded to 12
    decimals, so that equal rows tie.

    Raises
    ------
    ValueError : a row is not finite, constant (correlation) or zero (cosine), or the number of
        features differs.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and {b.shape[1]} numbers cannot be compared")
    centres = [_centres(x, similarity) for x in (a, b)]
    products = np.zeros((len(a), len(b)))
    squares = [np.zeros(len(a)), np.zeros(len(b))]
    for start in range(0, a.shape[1], COLUMNS):
        blocks = []
        for x, centre, square in zip((a, b), centres, squares, strict=True):
            block = x[:, start : start + COLUMNS].astype(np.float64)
            block -= centre[:, None]
            square += np.einsum("ij,ij->i", block, block)
            blocks.append(block)
        products += blocks[0] @ blocks[1].T
    lengths = [
        _lengths(square, centre, a.shape[1], similarity)
        for square, centre in zip(squares, centres, strict=True)
    ]
    products /= lengths[0][:, None]
    products /= lengths[1]
    # equal rows are a tie, wherever the matrix product rounded them
    return np.round(products, 12)


def correlation_distance(
    predicted: Float[np.ndarray, "items features"], true: Float[np.ndarray, "items features"]
) -> Float[np.ndarray, " items"]:
    """One minus the Pearson correlation of each predicted row with its own true row, 0 to 2."""
    a, b = (_unit_rows(x.astype(np.float64), "correlation") for x in (predicted, true))
    return 1.0 - (a * b).sum(axis=1)


def _centres(x: np.ndarray, similarity: str) -> np.ndarray:
    centres = x.mean(axis=1, dtype=np.float64)
    if not np.isfinite(centres).all():
        raise ValueError("features hold NaN or infinity; similarity needs numbers")
    return centres if similarity == "correlation" else np.zeros(len(x))


def _lengths(
    squares: np.ndarray, centres: np.ndarray, features: int, similarity: str
) -> np.ndarray:
    lengths = np.sqrt(squares)
    # what is left of a constant row is the rounding of its mean
    flat = lengths <= 1e-12 * np.sqrt(features) * np.abs(centres)
    if flat.any():
        what = "constant" if similarity == "correlation" else "zero"
        first = int(np.nonzero(flat)[0][0])
        raise ValueError(f"row {first} of the features is {what}; it has no {similarity}")
    return lengths


def _unit_rows(x: np.ndarray, similarity: str) -> np.ndarray:
    centres = _centres(x, similarity)
    x = x - centres[:, None]
    squares = np.einsum("ij,ij->i", x, x)
    return x / _lengths(squares, centres, x.shape[1], similarity)[:, None]


@lru_cache(maxsize=4096)
def _expected_credit(lower: int, equal: int, total: int, n: int) -> float:
    """Exact integers until the one division, so that chance comes out as 1/n to the last bit."""
    if total < n - 1:
        return float("nan")
    ways = comb(lower + equal + 1, n) - comb(lower, n)
    return ways / ((equal + 1) * comb(total, n - 1))


def _require_ways(n: int) -> None:
    if n < 2:
        raise ValueError(f"n is {n}; identification needs at least 2 candidates")


TWO_WAY = Metric(
    name="2-way",
    unit="",
    higher_is_better=True,
    chance=0.5,
    reference="Ozcelik & VanRullen 2023, Scientific Reports 13",
    protocol="Pearson correlation of features, all other items as distractors, ties 1/2",
    function=feature_identification,
)
