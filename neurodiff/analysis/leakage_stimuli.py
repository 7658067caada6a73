"""Leaks between stimuli: one picture, object or cluster under ids of both sides of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurodiff.analysis.leakage import EXAMPLES, Check, Thresholds, not_checked, passed
from neurodiff.core.errors import DataError
from neurodiff.core.progress import Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.metrics.clusters import equal_clusters_rate
from neurodiff.metrics.duplicates import (
    Pairs,
    correlations,
    cosine_pairs,
    crop_pairs,
    exact_pairs,
    hash_pairs,
    is_flat,
    nearby_pairs,
    picture_hashes,
    thumbnail,
)
from neurodiff.metrics.shape_descriptors import mesh_signature, shape_descriptor

PICTURES = ("exact-duplicate", "recompressed", "crop")
POINTS = 20_000  # of a surface, for its descriptor
_DROP = "leave one of them out, or put both on one side of the split"


@dataclass(frozen=True)
class Sides:
    """Ids of the stimuli of training and of test, in order, each once."""

    train: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, train: Recording, test: Recording) -> Sides:
        return cls(*(tuple(dict.fromkeys(one.trials["stimulus"])) for one in (train, test)))

    @property
    def each(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.train, *self.test)))


def picture_checks(
    sides: Sides,
    stimuli: Stimuli | None,
    images: Mapping[str, Any] | bool,
    limits: Thresholds,
    same_things: set[tuple[str, str]],
    progress: Progress,
) -> list[Check]:
    """Pictures that are equal, recompressed or windows of each other; pairs are added to
    ``same_things``. A pair is named by the strictest of the three."""
    load = _loader(images, stimuli, "image")
    if load is None:
        return [not_checked(kind, "the pictures were not asked for (images)") for kind in PICTURES]
    keys: dict[str, str] = {}
    small: dict[str, np.ndarray] = {}
    for name in progress.over(list(sides.each), "pictures compared"):
        pixels = _pixels(name, load(name))
        keys[name] = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        small[name] = thumbnail(_grey(pixels))
    of_train, of_test = ([keys[name] for name in side] for side in (sides.train, sides.test))
    a, b = (np.stack([small[name] for name in side]) for side in (sides.train, sides.test))
    exact = _names(sides, exact_pairs(of_train, of_test))
    near = hash_pairs(picture_hashes(a), picture_hashes(b), limits.hash_bits)
    keep = ~is_flat(a)[near.first] & ~is_flat(b)[near.second]
    first, second = near.first[keep], near.second[keep]
    alike = _correlations(a, b, first, second) >= limits.picture_correlation
    changed = _names(sides, Pairs(first[alike], second[alike], near.value[keep][alike]))
    sizes = {"most": limits.crop_bits, "least": limits.crop_correlation}
    forth, back = crop_pairs(a, b, **sizes), crop_pairs(b, a, **sizes)
    crops = [*_names(sides, forth), *_names(sides, Pairs(back.second, back.first, back.value))]
    changed = [pair for pair in changed if pair not in set(exact)]
    crops = [pair for pair in dict.fromkeys(crops) if pair not in {*exact, *changed}]
    thresholds = (
        "equal pixels",
        f"{limits.hash_bits} of 64 bits, correlation {limits.picture_correlation:g}",
        f"{limits.crop_bits} of 64 bits, correlation {limits.crop_correlation:g}",
    )
    found = []
    for kind, pairs, text in zip(PICTURES, (exact, changed, crops), thresholds, strict=True):
        found.append(_of_pairs(kind, "error", pairs, sides, text, _DROP))
        same_things |= set(pairs)
    return found


def object_checks(sides: Sides, stimuli: Stimuli | None) -> list[Check]:
    """Stimuli of one object, by the column ``object`` of their table.

    They are no repeats, as their responses differ: nothing is added to the same things.
    """
    if stimuli is None or "object" not in stimuli.table:
        return [not_checked("other-view", "the table of stimuli has no column object")]
    of = {
        name: str(value)
        for name, value in zip(stimuli.ids, stimuli.table["object"], strict=True)
        if value == value and value is not None and str(value)  # NaN is not equal to itself
    }
    pairs = _equal_pairs(sides, of)
    return [
        _of_pairs(
            "other-view", "error", pairs, sides, "equal objects in the table", "split by object"
        )
    ]


def mesh_checks(
    sides: Sides,
    stimuli: Stimuli | None,
    meshes: Mapping[str, Any] | bool,
    limits: Thresholds,
    same_things: set[tuple[str, str]],
    progress: Progress,
) -> list[Check]:
    """Meshes that are equal, or equal up to place, turn, mirror, size and triangles.

    Points instead of a mesh are compared by their descriptor alone; their order is to be random.
    """
    kinds = ("exact-duplicate", "same-shape")
    load = _loader(meshes, stimuli, "mesh")
    if load is None:
        return [not_checked(kind, "the meshes were not asked for (meshes)") for kind in kinds]
    keys: dict[str, str] = {}
    signatures: dict[str, np.ndarray] = {}
    descriptors: dict[str, np.ndarray] = {}
    fewest = POINTS
    for name in progress.over(list(sides.each), "shapes compared"):
        keys[name], signature, descriptors[name], count = _shape(name, load(name))
        fewest = min(fewest, count)
        if signature is not None:
            signatures[name] = signature
    exact = _equal_pairs(sides, keys)
    moved = _near(sides, signatures, limits.mesh_signature)
    most = limits.shape_descriptor * float(np.sqrt(POINTS / fewest))
    proposed = _near(sides, descriptors, most)
    alike = [pair for pair in proposed if pair in set(moved) or _confirmed(load, pair, limits)]
    same = [pair for pair in dict.fromkeys([*moved, *alike]) if pair not in set(exact)]
    same_things |= set(exact)
    text = f"signature {limits.mesh_signature:g}, descriptor {most:.2g}"
    return [
        _of_pairs(kinds[0], "error", exact, sides, "equal vertices and faces", _DROP),
        _of_pairs(kinds[1], "error", same, sides, text, _DROP),
    ]


def feature_checks(
    sides: Sides, features: Mapping[str, np.ndarray] | None, limits: Thresholds
) -> list[Check]:
    """Feature vectors of nearly one direction, less the mean of the training stimuli."""
    kind = "similar-features"
    if features is None:
        return [not_checked(kind, "no feature vectors were given (features)")]
    known = Sides(*(tuple(n for n in side if n in features) for side in (sides.train, sides.test)))
    if len(known.train) < 2 or not known.test:
        return [not_checked(kind, "feature vectors are known of too few stimuli")]
    blocks = []
    for side in (known.train, known.test):
        rows = [np.asarray(features[name], np.float32).ravel() for name in side]
        for name, row in zip(side, rows, strict=True):
            if row.shape != rows[0].shape or not np.isfinite(row).all():
                raise DataError(
                    f"the features of stimulus {name!r} have shape {row.shape}, or are not finite; "
                    f"expected {rows[0].shape} finite numbers, as for {side[0]!r}"
                )
        blocks.append(np.stack(rows))
    if blocks[0].shape[1] != blocks[1].shape[1]:
        raise DataError(
            f"feature vectors have {blocks[0].shape[1]} numbers for training stimuli and "
            f"{blocks[1].shape[1]} for test stimuli; give vectors of one network"
        )
    pairs = cosine_pairs(*blocks, limits.cosine, centre=blocks[0].mean(axis=0))
    named = [pair for pair in _names(known, pairs) if pair[0] != pair[1]]
    text = f"cosine {limits.cosine:g} after centring"
    advice = "look at these pairs; leave out what is the same thing"
    return [_of_pairs(kind, "warning", named, known, text, advice)]


def cluster_checks(
    sides: Sides,
    stimuli: Stimuli | None,
    clusters: Mapping[str, str] | None,
    disjoint: bool,
) -> list[Check]:
    """Test stimuli whose cluster training has seen; a fact of most splits, hence only said."""
    kind = "cluster-overlap"
    of = dict(clusters or {})
    if clusters is None and stimuli is not None:
        of = {k: c for k, c in zip(stimuli.ids, stimuli.categories(), strict=True) if c}
    known = [name for name in sides.test if name in of]
    in_train = {of[name] for name in sides.train if name in of}
    if not known or not in_train:
        return [not_checked(kind, "neither clusters nor categories of the stimuli are known")]
    shared = [name for name in known if of[name] in in_train]
    if not shared:
        return [passed(kind, len(known), "equal clusters")]
    count = len({of[name] for name in shared})
    rate = equal_clusters_rate(len({of[name] for name in known}))
    return [
        Check(
            kind=kind,
            severity="error" if disjoint else "info",
            count=len(shared),
            of=len(known),
            examples=tuple(f"{name} ({of[name]})" for name in shared[:EXAMPLES]),
            threshold="equal clusters",
            advice=(
                f"report scores within clusters: to know which of {count} shared clusters is worth "
                f"up to {rate:.3f} on 2-way identification; or hold out whole clusters"
            ),
        )
    ]


# ----------------------------------------------------------------------------------------- parts


def _loader(
    given: Mapping[str, Any] | bool, stimuli: Stimuli | None, what: str
) -> Callable[[str], Any] | None:
    if given is True:
        if stimuli is None or getattr(stimuli, f"load_{what}") is None:
            return None
        return lambda name: getattr(stimuli[name], what)()
    if given is False:
        return None
    table: Mapping[str, Any] = given

    def find(name: str) -> Any:
        if name not in table:
            raise DataError(f"stimulus {name!r} has no {what} among the {len(table)} given")
        return table[name]

    return find


def _pixels(name: str, picture: Any) -> np.ndarray:
    pixels = np.asarray(picture)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or pixels.dtype.kind not in "uif":
        raise DataError(
            f"the picture of stimulus {name!r} has shape {pixels.shape} of {pixels.dtype}; "
            "expected (height, width) or (height, width, 3) from 0 to 255"
        )
    if not np.isfinite(pixels).all():
        raise DataError(f"the picture of stimulus {name!r} has values that are not finite")
    return np.ascontiguousarray(pixels)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.601; an alpha channel is left out."""
    values = pixels.astype(np.float64)
    if values.ndim == 2:
        return values
    return values[..., :3] @ [0.299, 0.587, 0.114] if values.shape[2] >= 3 else values[..., 0]


def _correlations(
    a: np.ndarray, b: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    parts = [np.zeros(0)]
    for start in range(0, len(first), 1024):
        rows = slice(start, start + 1024)
        parts.append(correlations(a[first[rows]], b[second[rows]]))
    return np.concatenate(parts)


def _shape(name: str, shape: Any) -> tuple[str, np.ndarray | None, np.ndarray, int]:
    """Hash, signature (None of points), descriptor and its number of points, of a mesh or points of
    its surface."""
    from neurodiff.geometry.mesh import sample_surface

    try:
        if not hasattr(shape, "faces"):
            points = np.asarray(shape, np.float64)
            if points.ndim != 2 or points.shape[1] != 3:
                raise ValueError(f"points of shape {points.shape}; expected (n, 3)")
            some = points[:POINTS]
            return _digest(points), None, shape_descriptor(some), len(some)
        vertices = np.asarray(shape.vertices, np.float64)
        faces = np.asarray(shape.faces, np.int64)
        key = item_seed(0, subject="", stimulus=name, stage="leakage")
        points = sample_surface(shape, POINTS, numpy_generator(key))
        digest = _digest(vertices, faces)
        return digest, mesh_signature(vertices, faces), shape_descriptor(points), POINTS
    except ValueError as error:
        raise DataError(
            f"the shape of stimulus {name!r} cannot be compared: {error}; mend it or leave it out"
        ) from None


def _confirmed(load: Callable[[str], Any], pair: tuple[str, str], limits: Thresholds) -> bool:
    """Whether two meshes are still alike by 16 times as many points, within half the difference:
    pairs that one draw of points put within it by chance are dropped. Given points stay as they
    are."""
    shapes = [load(name) for name in pair]
    if not all(hasattr(shape, "faces") for shape in shapes):
        return True
    return same_shape(*shapes, most=limits.shape_descriptor / 2, names=pair)


def same_shape(first: Any, second: Any, *, most: float, names: tuple[str, str] = ("", "")) -> bool:
    """Whether the descriptors of 320,000 points of each mesh differ by at most ``most``."""
    from neurodiff.geometry.mesh import sample_surface

    keys = [item_seed(1, subject="", stimulus=name, stage="leakage") for name in names]
    a, b = (
        shape_descriptor(sample_surface(mesh, 16 * POINTS, numpy_generator(key)))
        for mesh, key in zip((first, second), keys, strict=True)
    )
    return bool(np.abs(a - b).max() <= most)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _equal_pairs(sides: Sides, of: Mapping[str, str]) -> list[tuple[str, str]]:
    keys = [[of.get(name) for name in side] for side in (sides.train, sides.test)]
    return _names(sides, exact_pairs(*keys))


def _near(sides: Sides, of: Mapping[str, np.ndarray], most: float) -> list[tuple[str, str]]:
    known = Sides(*(tuple(n for n in side if n in of) for side in (sides.train, sides.test)))
    if not known.train or not known.test:
        return []
    blocks = [np.stack([of[name] for name in side]) for side in (known.train, known.test)]
    return _names(known, nearby_pairs(*blocks, most))


def _names(sides: Sides, pairs: Pairs) -> list[tuple[str, str]]:
    """Pairs of ids; an id that is in both is the matter of another check."""
    named = [
        (sides.train[i], sides.test[j])
        for i, j in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    ]
    return [pair for pair in named if pair[0] != pair[1]]


def _of_pairs(
    kind: str,
    severity: str,
    pairs: Iterable[tuple[str, str]],
    sides: Sides,
    threshold: str,
    advice: str,
) -> Check:
    """A check that counts the test stimuli of some pairs."""
    pairs = list(pairs)
    if not pairs:
        return passed(kind, len(sides.test), threshold)
    return Check(
        kind=kind,
        severity=severity,
        count=len({of_test for _, of_test in pairs}),
        of=len(sides.test),
        examples=tuple(f"{of_test} = {of_train}" for of_train, of_test in pairs[:EXAMPLES]),
        threshold=threshold,
        advice=advice,
    )
