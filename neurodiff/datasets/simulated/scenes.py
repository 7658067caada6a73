"""Simulated scenes: one coloured object before a background, with captions and known factors.

A scene is a simulated object (:mod:`~.objects`) seen from one side, in one of eight colours, in one
of eight places (:mod:`~.places`). Everything is drawn from a hash of the scene's own id, so scene k
is the same whatever else is made.

Examples
--------
>>> scene = make_scene(3, split="train", seed=0)
>>> scene.id, scene.captions[0].startswith("a ")
('train-scene-00003', True)
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.simulated.objects import CATEGORIES, SimulatedObject, object_from_factors
from neurodiff.datasets.simulated.objects import factor_names as factors_of
from neurodiff.datasets.simulated.places import PLACES, background

if TYPE_CHECKING:
    import PIL.Image

SIZE = 64  # pixels on a side
#: sRGB of the middle of each named colour
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 40),
    "orange": (238, 140, 32),
    "yellow": (238, 214, 56),
    "green": (48, 160, 62),
    "blue": (44, 92, 214),
    "purple": (140, 62, 186),
    "white": (240, 240, 240),
    "black": (52, 52, 56),
}
_ALBEDO = 204.0  # grey value of full light in `render_views`
_FINE = 96  # pixels on a side of the object's own render
_SIDES = ("on the left", "in the middle", "on the right")


@dataclass(frozen=True)
class Scene:
    """What a scene shows. ``x`` is the object's place across the picture, -1 (left) to 1 (right);
    ``scale`` its longest side as a share of the picture; ``azimuth`` in degrees."""

    id: str
    object: SimulatedObject
    colour: str
    place: str
    x: float
    scale: float
    azimuth: float
    captions: tuple[str, ...]

    @property
    def category(self) -> str:
        """Of its object."""
        return self.object.category


@dataclass(frozen=True)
class SceneSet:
    """Scenes with their pictures; ``masks`` are the pixels that show the object."""

    scenes: tuple[Scene, ...]
    images: UInt8[np.ndarray, "n 64 64 3"]
    masks: Bool[np.ndarray, "n 64 64"]

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def ids(self) -> list[str]:
        """Names of the scenes, in order."""
        return [scene.id for scene in self.scenes]

    def select(self, rows: Sequence[int] | np.ndarray) -> SceneSet:
        """The scenes of these rows, in this order."""
        rows = np.asarray(rows, int)
        return SceneSet(tuple(self.scenes[k] for k in rows), self.images[rows], self.masks[rows])

    def stimuli(self) -> Stimuli:
        """Pictures, captions and factors by id, marked as simulated."""
        return scene_stimuli(self)


def make_scene(
    index: int, *, split: str, seed: int, categories: Sequence[str] = CATEGORIES
) -> Scene:
    """Scene number ``index`` of a split; categories and places go round, all else is drawn.

    Raises
    ------
    UsageError : a negative index, or no category.
    """
    if index < 0 or not categories:
        raise UsageError(f"scene {index} of {len(categories)} categories: nothing to draw")
    name = f"{split}-scene-{index:05d}"
    rng = numpy_generator(item_seed(seed, subject="scenes", stimulus=name, stage="scene"))
    category = categories[index % len(categories)]
    names = factors_of(category)
    factors = dict(zip(names, rng.random(len(names)).tolist(), strict=True))
    item = object_from_factors(category, factors, name=f"{category} of {name}")
    colour = str(rng.choice(list(COLOURS)))
    place = str(rng.choice(list(PLACES)))
    x, scale = float(rng.uniform(-1, 1)), float(rng.uniform(0.55, 0.85))
    azimuth = float(rng.choice([-1, 1]) * rng.uniform(20, 60))  # photographs show fronts
    return Scene(name, item, colour, place, x, scale, azimuth, _captions(item, colour, place, x))


def make_scenes(
    n: int,
    *,
    split: str,
    seed: int,
    categories: Sequence[str] = CATEGORIES,
    workers: int = 1,
    progress: Progress = SILENT,
) -> SceneSet:
    """Scenes 0 to ``n - 1`` of a split with their pictures; ``workers`` change nothing.

    More than one worker are new processes: a script that asks for them needs the usual
    ``if __name__ == "__main__":``.

    Raises
    ------
    UsageError : no scene, or no worker.
    """
    if n < 1 or workers < 1:
        raise UsageError(f"{n} scenes and {workers} workers: nothing to simulate")
    scenes = [make_scene(k, split=split, seed=seed, categories=categories) for k in range(n)]
    jobs = [(scenes[k : k + 50], seed) for k in range(0, n, 50)]
    if workers > 1 and len(jobs) > 2:
        # spawned, not forked: the parent may hold threads of torch or open3d
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            parts = list(progress.over(pool.map(_drawn, jobs), f"{split} scenes", len(jobs)))
    else:
        parts = [_drawn(job) for job in progress.over(jobs, f"{split} scenes")]
    images, masks = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SceneSet(tuple(scenes), images, masks)


def scene_stimuli(scenes: SceneSet) -> Stimuli:
    """The scenes as stimuli: image, category, captions; factors x, scale and azimuth."""
    place = {scene.id: k for k, scene in enumerate(scenes.scenes)}

    def load(name: str) -> PIL.Image.Image:
        import PIL.Image

        return PIL.Image.fromarray(scenes.images[place[name]])

    return Stimuli(scene_table(scenes.scenes), None, load, simulated=True)


def scene_table(scenes: Sequence[Scene]) -> pd.DataFrame:
    """The table of `Stimuli`: id, category, captions, place, colour; x, scale and azimuth."""
    rows = [
        {
            "id": scene.id,
            "category": scene.category,
            "caption": scene.captions[0],
            "captions": scene.captions,
            "place": scene.place,
            "colour": scene.colour,
            "x": scene.x,
            "scale": scene.scale,
            "azimuth": scene.azimuth,
        }
        for scene in scenes
    ]
    return pd.DataFrame(rows)


def draw_scene(
    scene: Scene, *, seed: int
) -> tuple[UInt8[np.ndarray, "64 64 3"], Bool[np.ndarray, "64 64"]]:
    """The picture of a scene, and the pixels that mostly show its object."""
    import PIL.Image

    from neurodiff.geometry.views import render_views

    rng = numpy_generator(item_seed(seed, subject="scenes", stimulus=scene.id, stage="background"))
    behind, ground = background(scene.place, SIZE, rng)
    tint = np.clip(np.array(COLOURS[scene.colour]) + rng.uniform(-14, 14, 3), 0, 255)
    grey = render_views(
        scene.object.mesh(32), size=_FINE, azimuths=(scene.azimuth,), elevations=15.0
    )[0, ..., 0]
    seen = grey < 255
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    shade, alpha = grey[inside].astype(np.float32) / _ALBEDO, seen[inside].astype(np.float32)
    longest = max(shade.shape)
    height, width = (max(3, round(s / longest * scene.scale * SIZE)) for s in shade.shape)

    def scaled(values: np.ndarray) -> np.ndarray:
        picture = PIL.Image.fromarray(values.astype(np.float32), mode=None)
        return np.asarray(picture.resize((width, height), PIL.Image.Resampling.BOX))

    alpha = scaled(alpha)
    light = scaled(shade * seen[inside]) / np.maximum(alpha, 1e-3)
    # the object stands a little below the line where ground and back meet
    bottom = min(SIZE - 1, max(height, round(ground + 0.35 * (SIZE - ground) + 2)))
    left = round((SIZE - width) * (scene.x + 1) / 2)
    top = bottom - height
    canvas = behind.astype(np.float32)
    mask = np.zeros((SIZE, SIZE), bool)
    target = slice(top, bottom), slice(left, left + width)
    part = alpha[..., None]
    canvas[target] = (1 - part) * canvas[target] + part * light[..., None] * tint
    mask[target] = alpha > 0.5
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), mask


def silhouettes(scenes: SceneSet, side: int = 16) -> Float[np.ndarray, "n pixels"]:
    """Each object's outline cut out, centred and scaled to ``side`` pixels: shape without place."""
    import PIL.Image

    found = np.zeros((len(scenes), side, side), np.float32)
    for k, mask in enumerate(scenes.masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            continue
        cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
        height, width = (max(1, round(s / max(cut.shape) * side)) for s in cut.shape)
        small = np.asarray(
            PIL.Image.fromarray(cut).resize((width, height), PIL.Image.Resampling.BOX)
        )
        top, left = (side - height) // 2, (side - width) // 2
        found[k, top : top + height, left : left + width] = small
    return found.reshape(len(scenes), -1)


def _captions(item: SimulatedObject, colour: str, place: str, x: float) -> tuple[str, ...]:
    """Three captions, as three people would write them."""
    side = _SIDES[min(2, int((x + 1) / 2 * 3))]
    words = PLACES[place].words
    bare = item.caption.split(" ", 1)[1] if item.caption.startswith(("a ", "an ")) else item.caption
    article = "an" if colour[0] in "aeiou" else "a"
    return (
        f"{article} {colour} {item.category} {words}",
        f"{article} {colour} {bare}, {words}",
        f"{item.category} of {colour} colour {side}, {words}",
    )


def _drawn(job: tuple[list[Scene], int]) -> tuple[np.ndarray, np.ndarray]:
    scenes, seed = job
    pictures, masks = zip(*(draw_scene(scene, seed=seed) for scene in scenes), strict=True)
    return np.stack(pictures), np.stack(masks)
