"""Shapes as arrays: what the tokenizer, the embedding and the scores need of each object, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float16, UInt8

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.geometry.mesh import make_watertight, normalise_mesh, occupancy_of, sample_surface
from neurodiff.geometry.views import render_views

VIEW_SIZE = 64
GRID = 32


@dataclass(frozen=True)
class ShapeBank:
    """Objects in the unit cube [-0.5, 0.5]^3, y up.

    surface : points drawn uniformly by area
    queries, occupied : points of the cube of side 1.1 and whether they lie inside
    grid : occupancy at the 32^3 voxel centres of the unit cube
    views : grey renders from four sides, white background
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    surface: Float16[np.ndarray, "n points 3"]
    queries: Float16[np.ndarray, "n queries 3"]
    occupied: Bool[np.ndarray, "n queries"]
    grid: Bool[np.ndarray, "n g g g"]
    views: UInt8[np.ndarray, "n 4 h w"]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Positions of ``ids``; UsageError names the first that is not held."""
        place = {name: k for k, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in place]
        if missing:
            raise UsageError(f"no shape of stimulus {missing[0]!r} ({len(missing)} missing in all)")
        return np.array([place[name] for name in ids], np.int64)

    def fingerprint(self) -> str:
        """Hash of all arrays and names."""
        digest = hashlib.sha256(repr((self.ids, self.categories)).encode())
        for array in (self.surface, self.queries, self.occupied, self.grid, self.views):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def select(self, ids: Sequence[str]) -> ShapeBank:
        """The shapes of these ids, in this order."""
        k = self.rows(ids)
        return ShapeBank(
            tuple(ids),
            tuple(self.categories[i] for i in k),
            self.surface[k],
            self.queries[k],
            self.occupied[k],
            self.grid[k],
            self.views[k],
        )


def grey_views(mesh) -> UInt8[np.ndarray, "4 h w"]:
    """Four renders (azimuth 30, 120, 210, 300 deg, elevation 20 deg) as grey values."""
    images = render_views(
        mesh, size=VIEW_SIZE, azimuths=(30.0, 120.0, 210.0, 300.0), elevations=(20.0,) * 4
    )
    return images[..., 0]


def bank_from_stimuli(
    stimuli: Stimuli,
    *,
    seed: int = 0,
    n_surface: int = 2048,
    n_queries: int = 6144,
    progress: Progress = SILENT,
) -> ShapeBank:
    """Arrays of any meshes: each is centred, scaled, made watertight and sampled.

    Raises
    ------
    DataError : a stimulus has no mesh, or one without a shape (the message names it).
    """

    def arrays_of(name: str):
        try:
            return made(name)
        except DataError as error:
            if repr(name) in str(error):
                raise
            raise DataError(f"the mesh of stimulus {name!r} is of no use: {error}") from error

    def made(name: str):
        stimulus = stimuli[name]
        mesh = stimulus.mesh()
        if len(mesh.faces) == 0:
            raise DataError(f"the mesh of stimulus {name!r} has no faces; remove it or mend it")
        mesh = normalise_mesh(mesh)
        closed = mesh if mesh.is_watertight else normalise_mesh(make_watertight(mesh))
        rng = numpy_generator(item_seed(seed, subject="", stimulus=name, stage="shape arrays"))
        surface = sample_surface(closed, n_surface, rng).astype(np.float16)
        near = sample_surface(closed, n_queries // 2, rng)
        width = np.where(np.arange(len(near)) % 2, 0.05, 0.015)[:, None]
        near = np.clip(near + width * rng.standard_normal(near.shape), -0.55, 0.55)
        uniform = rng.uniform(-0.55, 0.55, (n_queries - len(near), 3))
        queries = np.concatenate([near, uniform]).astype(np.float16)
        occupied = occupancy_of(closed, queries.astype(np.float32))
        grid = occupancy_of(closed, voxel_centres()).reshape(GRID, GRID, GRID)
        return surface, queries, occupied, grid, grey_views(closed)

    return _collect(stimuli.ids, stimuli.categories(), arrays_of, progress)


def voxel_centres(n: int = GRID) -> np.ndarray:
    """(n^3, 3) float32 centres of the voxels of the unit cube, ij order."""
    line = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)


def _collect(
    ids: Sequence[str], categories: Sequence[str], arrays_of: Callable, progress: Progress
) -> ShapeBank:
    if len(ids) == 0:
        raise UsageError("no stimuli: a bank of shapes needs at least one")
    rows = [arrays_of(name) for name in progress.over(ids, "shapes to arrays")]
    surface, queries, occupied, grid, views = (
        np.stack(column) for column in zip(*rows, strict=True)
    )
    return ShapeBank(tuple(ids), tuple(categories), surface, queries, occupied, grid, views)
