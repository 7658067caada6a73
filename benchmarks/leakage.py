"""How many planted duplicates the leakage audit finds, of each kind, and how fast.

    OMP_NUM_THREADS=1 python benchmarks/leakage.py [--items 10000] [--scenes 1000] [--objects 400]

Half of the items are training, half test; ``--planted`` test items of each kind are made from
training items. Pairs are those at the thresholds of `neurodiff.analysis.leakage.Thresholds`.
Precision is the share of found pairs that were planted, recall the share of planted pairs that were
found; chance is the precision of a pair drawn at random. Seconds are CPU seconds of the process,
for the comparison of all pairs alone, and "describe" for hashes or descriptors of all items.

Textures are random pictures with a spectrum of 1/f, 128 pixels on a side; scenes and shapes are the
simulated ones (objects of 12 categories before 8 backgrounds), which are far more alike. Vectors
have 512 features in 40 clusters (cosine within a cluster about 0.5) on a common direction.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from scipy.spatial.transform import Rotation

from neurodiff.analysis.leakage import Thresholds, audit
from neurodiff.analysis.leakage_stimuli import same_shape
from neurodiff.core.recording import Recording
from neurodiff.datasets.simulated.objects import make_objects
from neurodiff.datasets.simulated.scenes import make_scenes
from neurodiff.geometry.mesh import sample_surface
from neurodiff.geometry.views import render_views
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

LIMITS = Thresholds()
HEAD = ("what", "kind", "planted", "precision", "recall", "chance", "compare s", "describe s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--studies", type=int, default=1_000)
    given = parser.parse_args()
    print(f"{HEAD[0]:<22}{HEAD[1]:<34}" + "".join(f"{name:>11}" for name in HEAD[2:]), flush=True)
    vectors(given.items // 2, given.planted)
    rng = np.random.default_rng(1)
    half = given.items // 2
    pictures("textures", [texture(rng) for _ in range(2 * half)], given.planted)
    scenes = make_scenes(given.scenes, split="train", seed=0).images
    pictures("scenes", list(grey(scenes)), min(given.planted, given.scenes // 4))
    shapes(given.objects, given.planted)
    statistics(given.studies)


def vectors(half: int, planted: int) -> None:
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((40, 512), np.float32)
    x = middles[rng.integers(0, 40, 2 * half)] + rng.standard_normal((2 * half, 512), np.float32)
    for noise in (0.1, 0.2, 0.3, 0.5):
        train, test = x[:half] + 4, x[half:] + 4
        first = rng.permutation(half)[:planted]
        spread = noise * np.sqrt(2) * rng.standard_normal((planted, 512), np.float32)
        test[:planted] = train[first] + spread
        row(
            f"{2 * half} vectors",
            f"noise of {noise:g} SD",
            set(zip(first.tolist(), range(planted), strict=True)),
            lambda: cosine_pairs(train, test, LIMITS.cosine, centre=train.mean(axis=0)),  # noqa: B023
            half * half,
        )


def pictures(what: str, some: Sequence[np.ndarray], planted: int) -> None:
    rng = np.random.default_rng(2)
    half = len(some) // 2
    train = some[:half]
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "exact": lambda x: x.copy(),
        "JPEG, quality 50": lambda x: jpeg(x, 50),
        "JPEG, quality 10": lambda x: jpeg(x, 10),
        "half the size": lambda x: resized(x, len(x) // 2),
        "crop, side 0.8 to 0.95": lambda x: crop(x, rng.uniform(0.8, 0.95), rng),
        "crop, side 0.6 to 0.8": lambda x: crop(x, rng.uniform(0.6, 0.8), rng),
        "crop, side 0.4 to 0.6": lambda x: crop(x, rng.uniform(0.4, 0.6), rng),
        "crop, JPEG 50": lambda x: jpeg(crop(x, rng.uniform(0.6, 0.95), rng), 50),
    }
    started = time.process_time()
    a, rest = thumbs(train), thumbs(some[half:])
    picture_hashes(a), picture_hashes(rest)
    describe = time.process_time() - started
    for kind, change in changes.items():
        first = rng.permutation(half)[:planted]
        made = [change(train[k]) for k in first]
        b = np.concatenate([thumbs(made), rest[planted:]])
        pairs = set(zip(first.tolist(), range(planted), strict=True))
        if kind == "exact":
            keys = [
                [one.tobytes() for one in side]
                for side in (train, [*made, *some[half + planted :]])
            ]
            find: Callable[[], Pairs] = lambda: exact_pairs(*keys)  # noqa: B023, E731
        elif kind.startswith("crop"):
            find = lambda: crop_pairs(  # noqa: E731
                a,
                b,  # noqa: B023
                most=LIMITS.crop_bits,
                least=LIMITS.crop_correlation,
            )
        else:
            find = lambda: recompressed(a, b)  # noqa: B023, E731
        row(f"{2 * half} {what}", kind, pairs, find, half * half, describe)


def shapes(count: int, planted: int) -> None:
    rng = np.random.default_rng(3)
    meshes = [one.mesh(48) for one in make_objects(-(-count // 12), seed=0)]
    order = rng.permutation(len(meshes))
    half = len(meshes) // 2
    train, rest = ([meshes[k] for k in part] for part in (order[:half], order[half:]))
    planted = min(planted, half // 2)
    first = rng.permutation(half)[:planted]
    pairs = set(zip(first.tolist(), range(planted), strict=True))
    made = [moved(train[k], rng) for k in first]
    test = [*made, *rest[planted:]]
    what = f"{len(train) + len(test)} shapes"
    started = time.process_time()
    a, b = (
        np.stack([mesh_signature(np.asarray(m.vertices), np.asarray(m.faces)) for m in side])
        for side in (train, test)
    )
    describe = time.process_time() - started
    size = half * len(test)
    kind = "turned, moved, scaled: signature"
    row(what, kind, pairs, lambda: nearby_pairs(a, b, LIMITS.mesh_signature), size, describe)
    finer = [moved(train[k].subdivide(), rng) for k in first]
    for kind, some in (("the same: descriptor", made), ("and other triangles: descriptor", finer)):
        started = time.process_time()
        c, d = (
            np.stack([shape_descriptor(sample_surface(m, 20_000, rng)) for m in side])
            for side in (train, [*some, *rest[planted:]])
        )
        describe = time.process_time() - started
        others = [*some, *rest[planted:]]
        row(what, kind, pairs, lambda: alike(c, d, train, others), size, describe)  # noqa: B023
    few = min(len(train), 150)
    own = [k for k in range(few)]
    for angle in (5.0, 15.0, 40.0):
        views = [views_of(m, (30.0, 30.0 + angle)) for m in train[:few]]
        e, f = (np.stack([v[k] for v in views]) for k in (0, 1))
        row(
            f"{few} shapes, pixels",
            f"other view, {angle:g} degrees",
            set(zip(own, own, strict=True)),
            lambda: cosine_pairs(e, f, LIMITS.cosine, centre=e.mean(axis=0)),  # noqa: B023
            few * few,
        )


def statistics(studies: int) -> None:
    """Normalisation over both sides, and over training alone (false alarms)."""
    counts = {"by training": 0, "by both": 0}
    started = time.process_time()
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((110, 32))
        for name, by in (("by training", x[:100]), ("by both", x)):
            z = ((x - by.mean(axis=0)) / by.std(axis=0)).astype(np.float32)
            sides = [
                Recording.from_arrays(
                    z[rows],
                    pd.DataFrame({"stimulus": np.arange(110)[rows].astype(str), "run": run}),
                )
                for run, rows in ((1, slice(0, 100)), (2, slice(100, 110)))
            ]
            counts[name] += any(c.kind == "test-statistics" for c in audit(*sides).errors)
    seconds = time.process_time() - started
    print(
        f"statistics: {studies} studies of 100 + 10 trials, 32 features: normalised by both "
        f"{counts['by both']} found, by training alone {counts['by training']} false alarms "
        f"({seconds:.0f} s)"
    )


def row(
    what: str,
    kind: str,
    planted: set[tuple[int, int]],
    find: Callable[[], Pairs],
    size: int,
    describe: float = 0.0,
) -> None:
    started = time.process_time()
    found = find()
    seconds = time.process_time() - started
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    right = len(pairs & planted)
    precision = f"{right / len(pairs):.3f}" if pairs else "none found"
    cells = [
        len(planted),
        precision,
        f"{right / len(planted):.3f}",
        f"{len(planted) / size:.0e}",
        f"{seconds:.1f}",
        f"{describe:.1f}" if describe else "",
    ]
    print(f"{what:<22}{kind:<34}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


# ----------------------------------------------------------------------------------------- parts


def recompressed(a: np.ndarray, b: np.ndarray) -> Pairs:
    near = hash_pairs(picture_hashes(a), picture_hashes(b), LIMITS.hash_bits)
    keep = ~is_flat(a)[near.first] & ~is_flat(b)[near.second]
    near = Pairs(*(part[keep] for part in near))
    alike = [
        correlations(a[i : i + 1], b[j : j + 1])[0] >= LIMITS.picture_correlation
        for i, j in zip(near.first, near.second, strict=True)
    ]
    return Pairs(*(part[np.array(alike, bool)] for part in near))


def alike(c: np.ndarray, d: np.ndarray, train: Sequence[Any], test: Sequence[Any]) -> Pairs:
    near = nearby_pairs(c, d, LIMITS.shape_descriptor)
    half = LIMITS.shape_descriptor / 2
    pairs = zip(near.first, near.second, strict=True)
    keep = [same_shape(train[i], test[j], most=half, names=("a", "b")) for i, j in pairs]
    return Pairs(*(part[np.array(keep, bool)] for part in near))


def texture(rng: np.random.Generator, side: int = 128) -> np.ndarray:
    waves = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / np.maximum(waves, 1)
    values = np.fft.irfft2(spectrum, s=(side, side))
    return np.clip(128 + 50 * values / values.std(), 0, 255).astype(np.uint8)


def grey(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float64) @ [0.299, 0.587, 0.114]).astype(np.uint8)


def thumbs(some: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([thumbnail(one.astype(np.float64)) for one in some])


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(
        PIL.Image.fromarray(picture).resize((side, side), PIL.Image.Resampling.BICUBIC)
    )


def crop(picture: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    side = round(share * len(picture))
    top, left = rng.integers(0, len(picture) - side + 1, 2)
    return picture[top : top + side, left : left + side]


def moved(mesh: Any, rng: np.random.Generator) -> Any:
    copy = mesh.copy()
    turn = Rotation.random(rng=rng).as_matrix()
    copy.vertices = rng.uniform(0.1, 10) * np.asarray(mesh.vertices) @ turn.T + rng.normal(size=3)
    return copy


def views_of(mesh: Any, azimuths: tuple[float, ...]) -> np.ndarray:
    views = render_views(mesh, size=32, azimuths=azimuths, elevations=20.0)
    return np.asarray(views, np.float32).reshape(len(azimuths), -1)


if __name__ == "__main__":
    main()
