"""Backgrounds of simulated scenes: eight places, each a few colours and one texture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from neurodiff.core.errors import UsageError, suggest

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """``back`` from top to horizon (two colours, blended), ``ground`` below it; ``words`` end a
    caption; ``texture`` changes (rows, columns, 3) float values in place."""

    words: str
    back: tuple[Colour, Colour]
    ground: tuple[Colour, Colour]
    texture: Callable[[np.ndarray, int, np.random.Generator], None]


def background(
    place: str, size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "size size 3"], int]:
    """A picture of a place and the row where its ground begins.

    Raises
    ------
    UsageError : no such place.
    """
    if place not in PLACES:
        raise UsageError(
            f"there is no place {place!r}; there are {', '.join(PLACES)}.{suggest(place, PLACES)}"
        )
    chosen = PLACES[place]
    horizon = int(size * rng.uniform(0.5, 0.65))
    canvas = np.zeros((size, size, 3), np.float32)
    canvas[:horizon] = _blend(chosen.back, horizon)
    canvas[horizon:] = _blend(chosen.ground, size - horizon)
    chosen.texture(canvas, horizon, rng)
    canvas *= rng.uniform(0.88, 1.12)  # weather
    canvas += rng.normal(0, 3, canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), horizon


def _blend(colours: tuple[Colour, Colour], rows: int) -> Float[np.ndarray, "rows 1 3"]:
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    first, last = (np.array(c, np.float32) for c in colours)
    return (1 - share) * first + share * last


def _clouds(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    size = canvas.shape[1]
    rows, columns = np.mgrid[:horizon, :size]
    for _ in range(3):
        row, column = rng.uniform(0, horizon * 0.6), rng.uniform(0, size)
        wide = rng.uniform(0.08, 0.2) * size
        blob = np.exp(-(((columns - column) / wide) ** 2) - ((rows - row) / (wide * 0.35)) ** 2)
        canvas[:horizon] += 60 * blob[..., None]


def _waves(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    size = len(canvas)
    shore = horizon + int((size - horizon) * rng.uniform(0.35, 0.55))
    rows = np.arange(horizon, shore)
    stripes = 14 * np.sin(rows * 1.7 + rng.uniform(0, 6))[:, None, None]
    canvas[horizon:shore] = np.array((36, 110, 160), np.float32) + stripes


def _dunes(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    size = canvas.shape[1]
    columns = np.arange(size)
    height = horizon - 5 - 4 * np.sin(columns / size * rng.uniform(5, 9) + rng.uniform(0, 6))
    rows = np.arange(len(canvas))[:, None]
    canvas[(rows >= height) & (rows < horizon)] = (198, 150, 92)


def _bricks(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    size, tall, wide = canvas.shape[1], 6, 12
    start = int(rng.integers(0, wide))
    for row in range(0, horizon, tall):
        canvas[row] = (206, 196, 186)
        shift = (row // tall % 2) * wide // 2 + start
        canvas[row : min(row + tall, horizon), (np.arange(shift, shift + size, wide) % size)] = (
            206,
            196,
            186,
        )


def _stripes(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    """Wallpaper, and boards on the floor."""
    size, period = canvas.shape[1], int(rng.integers(7, 11))
    canvas[:horizon, np.arange(size) % period < 2] -= 22
    canvas[horizon::4] -= 26


def _stars(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    rows = rng.integers(0, max(1, horizon - 4), 24)
    columns = rng.integers(0, canvas.shape[1], 24)
    canvas[rows, columns] = 230


def _trees(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    size = canvas.shape[1]
    for column in rng.integers(0, size, 9):
        width = int(rng.integers(2, 5))
        canvas[:horizon, column : column + width] = (72, 52, 34)
    rows = np.arange(horizon)[:, None, None]
    leaves = rng.random((horizon, size, 1)) < np.clip(0.8 - rows / max(horizon, 1), 0, 1)
    canvas[:horizon] = np.where(leaves, np.array((30, 84, 34), np.float32), canvas[:horizon])


def _peaks(canvas: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    size = canvas.shape[1]
    columns, rows = np.arange(size), np.arange(len(canvas))[:, None]
    for _ in range(2):
        top, centre = horizon * rng.uniform(0.25, 0.55), rng.uniform(0.1, 0.9) * size
        edge = top + np.abs(columns - centre) * rng.uniform(0.6, 1.1)
        canvas[(rows >= edge) & (rows < horizon)] = (128, 140, 168)
        canvas[(rows >= edge) & (rows < edge + 4) & (rows < horizon)] = (242, 246, 252)


PLACES: dict[str, Place] = {
    "meadow": Place(
        "on a meadow under a blue sky",
        ((96, 160, 230), (190, 220, 245)),
        ((96, 170, 70), (60, 130, 48)),
        _clouds,
    ),
    "beach": Place(
        "on the beach by the sea",
        ((120, 190, 240), (215, 235, 245)),
        ((222, 200, 150), (236, 216, 170)),
        _waves,
    ),
    "desert": Place(
        "in the desert",
        ((240, 180, 120), (250, 220, 170)),
        ((216, 168, 104), (190, 140, 84)),
        _dunes,
    ),
    "brick wall": Place(
        "in front of a brick wall",
        ((160, 72, 54), (150, 66, 50)),
        ((130, 130, 132), (100, 100, 104)),
        _bricks,
    ),
    "room": Place(
        "in a room with a wooden floor",
        ((228, 214, 180), (220, 204, 168)),
        ((150, 98, 56), (124, 78, 42)),
        _stripes,
    ),
    "night": Place(
        "outside at night",
        ((8, 10, 34), (30, 34, 74)),
        ((34, 36, 44), (18, 20, 26)),
        _stars,
    ),
    "forest": Place(
        "in a dark forest",
        ((70, 104, 70), (110, 140, 100)),
        ((72, 66, 40), (48, 46, 28)),
        _trees,
    ),
    "snow": Place(
        "in the snow before mountains",
        ((150, 186, 226), (206, 222, 240)),
        ((240, 244, 250), (214, 224, 238)),
        _peaks,
    ),
}
