"""The same thing twice: perceptual hashes, crops, feature vectors, descriptors of shapes.

Pure maths on arrays. Each ``..._pairs`` function compares every row of one set with every row of
another and returns the pairs below or above its threshold, so that a training set can be held
against a test set.

    exact_pairs      equal keys
    hash_pairs       64-bit DCT hashes, few bits apart: recompressed, resized, slightly changed
    crop_pairs       a picture that is a window of another one (at least 40 % of each side)
    cosine_pairs     feature vectors of nearly the same direction
    nearby_pairs     descriptors that differ by little in every entry, see `shape_descriptors`

References
----------
Zauner 2010, "Implementation and benchmarking of perceptual image hash functions" (the DCT hash).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt64

SIDE = 64  # of a thumbnail, pixels
_INNER = 32  # samples of a window along each side, of which the lowest frequencies are kept
_LOW = 8
_BLOCK = 2**16  # hashes compared at a time: they stay in the cache
WINDOW_SIDES = (0.95, 0.88, 0.81, 0.74, 0.67, 0.6, 0.54, 0.485, 0.435)
WINDOW_STEP = 0.07  # of the picture's side, at most; of sides below 0.6 less, in proportion
_ALIKE = 0.7  # correlation of low frequencies that a proposed window has at least
_SMALL = (
    0.6  # side of a window below which more is asked for: so little of a picture is less its own
)
_SMALL_ALIKE, _SMALL_LEAST = 0.8, 0.96
_HOPEFUL = 0.75  # correlation after the coarse search below which the fine one is left out
_SECOND = 0.97  # correlation that a second search has to reach
_FLAT = 1.0  # SD in grey levels below which a picture has no pattern to compare


class Pairs(NamedTuple):
    """Rows of the first and of the second set, and how far apart (or alike) they are."""

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    value: Float[np.ndarray, " pairs"]


# -------------------------------------------------------------------------------------- pictures


def thumbnail(grey: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "64 64"]:
    """Mean grey level of each of 64 x 64 equal parts of a picture, 0 to 255.

    Parameters
    ----------
    grey : 0 to 255; any size and aspect ratio, which is given up.

    Raises
    ------
    ValueError : an empty picture, or values that are not finite.
    """
    if grey.size == 0 or not np.isfinite(grey).all():
        raise ValueError(f"a picture of shape {grey.shape} is empty or not finite")
    rows, columns = (_area(length, SIDE, 0.0, 1.0) for length in grey.shape)
    return (rows @ grey @ columns.T).astype(np.float32)


def picture_hashes(thumbnails: Float[np.ndarray, "n 64 64"]) -> UInt64[np.ndarray, " n"]:
    """64-bit DCT hash of each picture: which low frequencies lie above their median.

    Raises
    ------
    ValueError : a thumbnail is not 64 x 64.
    """
    return _hash_of(_frequencies(thumbnails, (0.0, 0.0, 1.0)))


def is_flat(thumbnails: Float[np.ndarray, "n 64 64"]) -> Shaped[np.ndarray, " n"]:
    """Pictures of one grey, whose hash says nothing; leave them out of `hash_pairs`."""
    return thumbnails.std(axis=(1, 2)) < _FLAT


def hash_pairs(
    first: UInt64[np.ndarray, " n"], second: UInt64[np.ndarray, " m"], most: int
) -> Pairs:
    """Pairs of hashes that differ in at most ``most`` of 64 bits; value is the number of bits.

    Two independent hashes differ in 32 bits on average (SD 4): within 6 bits by chance once in
    2e11 pairs of independent bits. Pictures alike are less than independent.

    Raises
    ------
    ValueError : ``most`` is not within 0 to 64.

    Examples
    --------
    >>> hash_pairs(np.array([0, 7], np.uint64), np.array([1], np.uint64), 2)[:2]
    (array([0, 1]), array([0, 0]))
    """
    if not 0 <= most <= 64:
        raise ValueError(f"{most} bits of 64; expected 0 to 64")
    step = max(1, _BLOCK // max(1, len(second)))
    found = []
    differ = np.zeros((step, len(second)), np.uint64)
    apart = np.zeros((step, len(second)), np.uint8)
    for start in range(0, len(first), step):
        block = first[start : start + step]
        bits = apart[: len(block)]
        np.bitwise_count(
            np.bitwise_xor(block[:, None], second[None], out=differ[: len(block)]), out=bits
        )
        places = np.flatnonzero(bits <= most)
        if len(places):
            rows, columns = np.divmod(places, len(second))
            found.append((rows + start, columns, bits[rows, columns].astype(np.float64)))
    return _joined(found)


def windows() -> list[tuple[float, float, float]]:
    """(top, left, side) of the windows in which `crop_pairs` looks, as shares of the picture."""
    found = []
    for side in WINDOW_SIDES:
        step = WINDOW_STEP * min(1.0, side / 0.6)
        places = np.linspace(0, 1 - side, int(np.ceil((1 - side) / step)) + 1)
        found += [(float(top), float(left), side) for top in places for left in places]
    return found


def crop_pairs(
    whole: Float[np.ndarray, "n 64 64"],
    crops: Float[np.ndarray, "m 64 64"],
    *,
    most: int = 16,
    least: float = 0.95,
) -> Pairs:
    """Pairs in which a picture of ``crops`` is a window of a picture of ``whole``.

    Hashes of 510 windows of each whole picture propose pairs, of which those with other low
    frequencies are dropped; a proposal counts where the crop and the best of the windows around
    correlate by at least ``least`` over 32 x 32 samples.
    Found are crops that keep at least 40 % of both sides, and their aspect ratio within about
    5 %; smaller ones need feature vectors and `cosine_pairs`.

    Parameters
    ----------
    most : bits of 64 by which the hash of a proposed window may differ.
    least : correlation of grey levels, -1 to 1; below 60 % of a side 0.96 at least.

    Returns
    -------
    Pairs with the correlation as value; flat pictures are in none.
    """
    flat = is_flat(crops)
    of_crops = _frequencies(crops, (0.0, 0.0, 1.0))
    hashes, patterns = _hash_of(of_crops), _patterns(of_crops)
    proposed: dict[tuple[int, int], tuple[float, tuple[float, float, float]]] = {}
    for window in windows():
        coefficients = _frequencies(whole, window)
        empty = np.square(coefficients).sum(axis=(1, 2)) - coefficients[:, 0, 0] ** 2 < _FLAT
        near = hash_pairs(_hash_of(coefficients), hashes, most)
        keep = np.flatnonzero(~empty[near.first] & ~flat[near.second])
        own = _patterns(coefficients)
        asked = _SMALL_ALIKE if window[2] < _SMALL else _ALIKE
        for start in range(0, len(keep), 2**14):
            part = keep[start : start + 2**14]
            first, second = near.first[part], near.second[part]
            alike = np.einsum("pk,pk->p", own[first], patterns[second])
            for i, j, value in zip(*map(np.ndarray.tolist, (first, second, alike)), strict=True):
                if value >= asked and value > proposed.get((i, j), (0.0,))[0]:
                    proposed[i, j] = (value, window)
    kept = []
    for (i, j), (_, window) in proposed.items():
        enough = max(least, _SMALL_LEAST) if window[2] < _SMALL else least
        value = _best_correlation(whole[i], crops[j], window, enough)
        if value >= enough:
            kept.append((i, j, value))
    kept.sort()
    array = np.array(kept, np.float64).reshape(-1, 3)
    return Pairs(array[:, 0].astype(np.int64), array[:, 1].astype(np.int64), array[:, 2])


def correlations(
    first: Float[np.ndarray, "pairs 64 64"], second: Float[np.ndarray, "pairs 64 64"]
) -> Float[np.ndarray, " pairs"]:
    """Correlation of pairs of thumbnails over 16 x 16 means of their grey levels; 0 where one is
    flat. Fine detail is what compression and a smaller size take away."""
    a, b = (_coarse(x).reshape(len(x), -1) for x in (first, second))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    length = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), length, out=np.zeros(len(a)), where=length > 0)


# -------------------------------------------------------------------------------------- features


def cosine_pairs(
    first: Float[np.ndarray, "n features"],
    second: Float[np.ndarray, "m features"],
    least: float,
    *,
    centre: Float[np.ndarray, " features"] | None = None,
) -> Pairs:
    """Pairs of vectors whose cosine is at least ``least``, after subtracting ``centre``.

    Features of networks share a large common part; without the mean of the training set
    as ``centre`` any two pictures are alike.

    Raises
    ------
    ValueError : other widths, a value that is not finite, ``least`` outside -1 to 1.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"vectors of {first.shape[1]} and of {second.shape[1]} features")
    if not -1 <= least <= 1:
        raise ValueError(f"a cosine of {least}; expected -1 to 1")
    a, b = (_directions(x, centre) for x in (first, second))
    step = max(1, 2**22 // max(1, len(b)))
    found = []
    for start in range(0, len(a), step):
        alike = a[start : start + step] @ b.T
        rows, columns = np.nonzero(alike >= least)
        found.append((rows + start, columns, alike[rows, columns].astype(np.float64)))
    return _joined(found)


def exact_pairs(first: Sequence[Hashable], second: Sequence[Hashable]) -> Pairs:
    """Pairs of equal keys, such as hashes of bytes; a key that is None equals nothing.

    Examples
    --------
    >>> exact_pairs(["a", "b", None], ["b", None]).first
    array([1])
    """
    places: dict[Hashable, list[int]] = {}
    for k, key in enumerate(second):
        if key is not None:
            places.setdefault(key, []).append(k)
    found = [(i, j) for i, key in enumerate(first) for j in places.get(key, [])]
    rows = np.array(found, np.int64).reshape(-1, 2)
    return Pairs(rows[:, 0], rows[:, 1], np.zeros(len(rows)))


# ---------------------------------------------------------------------------------------- shapes


def nearby_pairs(
    first: Float[np.ndarray, "n entries"], second: Float[np.ndarray, "m entries"], most: float
) -> Pairs:
    """Pairs of descriptors that differ by at most ``most`` in every entry; value is the largest.

    Raises
    ------
    ValueError : a descriptor is not finite.
    """
    from scipy.spatial import cKDTree

    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a descriptor is not finite; leave its shape out")
    if len(first) == 0 or len(second) == 0:
        return _joined([])
    near = cKDTree(second).query_ball_point(first, most, p=np.inf)
    rows = np.array([i for i, some in enumerate(near) for _ in some], np.int64)
    columns = np.array([j for some in near for j in sorted(some)], np.int64)
    return Pairs(rows, columns, np.abs(first[rows] - second[columns]).max(axis=1, initial=0.0))


# ----------------------------------------------------------------------------------------- parts


def _area(length: int, side: int, start: float, share: float) -> np.ndarray:
    """(side, length) means over ``side`` equal parts of ``[start, start + share]`` of a line."""
    edges = (start + share * np.linspace(0, 1, side + 1)) * length
    cells = np.arange(length)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    overlap = np.maximum(overlap, 0)
    return overlap / overlap.sum(axis=1, keepdims=True)


def _frequencies(thumbnails: np.ndarray, window: tuple[float, float, float]) -> np.ndarray:
    """(n, 9, 9) lowest DCT coefficients of a window: two small products a picture."""
    from scipy.fft import dct

    if thumbnails.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"thumbnails are {thumbnails.shape[1:]}; expected {SIDE} x {SIDE}")
    top, left, share = window
    low = dct(np.eye(_INNER), axis=0, norm="ortho")[: _LOW + 1]
    rows = (low @ _area(SIDE, _INNER, top, share)).astype(np.float32)
    columns = (low @ _area(SIDE, _INNER, left, share)).astype(np.float32)
    flat = np.ascontiguousarray(thumbnails, np.float32).reshape(-1, SIDE)
    return rows @ (flat @ columns.T).reshape(-1, SIDE, len(columns))  # one large product first


def _hash_of(coefficients: np.ndarray) -> np.ndarray:
    """64 bits of (n, 9, 9): 8 x 8 without the mean, for which (8, 0) stands in."""
    flat = coefficients[:, :_LOW, :_LOW].reshape(len(coefficients), -1).copy()
    flat[:, 0] = coefficients[:, _LOW, 0]
    bits = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _patterns(coefficients: np.ndarray) -> np.ndarray:
    """(n, 80) coefficients without the mean, of length 1."""
    flat = coefficients.reshape(len(coefficients), -1)[:, 1:]
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def _best_correlation(
    whole: np.ndarray, crop: np.ndarray, window: tuple[float, float, float], least: float
) -> float:
    """Correlation of a crop with the best window around one; coarse steps, then fine ones.

    What is not alike after the coarse steps is given up, and what is, but less than ``least``, is
    searched a second time from where the first search ended: a step in side or place alone may
    not have led there. A longer search finds more by chance, so that more is asked of it.
    """
    shrink = _area(SIDE, _INNER, 0.0, 1.0)
    target = _unit(shrink @ crop @ shrink.T)
    best, at, first = -1.0, window, -1.0
    for step in (0.03, 0.012, 0.005, 0.02, 0.008, 0.003):
        if step == 0.02:
            if best >= least:
                return best
            first = best
        top, left, side = at
        for share in (side - step, side, side + step):
            if not 0 < share <= 1:
                continue
            # the middle of the window stays while its side changes
            shift = 0.5 * (side - share)
            tops, lefts = (_places(start + shift, share, step) for start in (top, left))
            rows = np.stack([_area(SIDE, _INNER, place, share) for place in tops])
            columns = np.stack([_area(SIDE, _INNER, place, share) for place in lefts])
            cuts = np.einsum("rij,jk,cmk->rcim", rows, whole, columns, optimize=True)
            for r, c in np.ndindex(len(tops), len(lefts)):
                value = float((_unit(cuts[r, c]) * target).sum())
                if value > best:
                    best, at = value, (tops[r], lefts[c], share)
        if best < min(_HOPEFUL, least):
            return best
    return best if best >= max(least, _SECOND) else first


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    blocks = thumbnails.astype(np.float64).reshape(len(thumbnails), 16, 4, 16, 4)
    return blocks.mean(axis=(2, 4))


def _places(start: float, share: float, step: float) -> list[float]:
    inside = [min(max(start + k * step, 0.0), 1 - share) for k in (-1, 0, 1)]
    return list(dict.fromkeys(inside))


def _unit(values: np.ndarray) -> np.ndarray:
    values = values - values.mean()
    return values / max(float(np.sqrt((values**2).sum())), 1e-12)


def _directions(x: np.ndarray, centre: np.ndarray | None) -> np.ndarray:
    x = x.astype(np.float32) if centre is None else (x - centre).astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("a feature vector is not finite; leave its stimulus out")
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def _joined(found: list) -> Pairs:
    if not found:
        none = np.zeros(0, np.int64)
        return Pairs(none, none, np.zeros(0))
    return Pairs(*(np.concatenate(part) for part in zip(*found, strict=True)))
