"""Simulated objects: thousands of distinct solids with a category, a caption and known factors.

Every object is a union of primitives (:mod:`~.shapes`) whose sizes follow named shape factors drawn
uniformly from [0, 1]. Its seed is a hash of its own id, so object k of a category is the same
whatever else is made. Convention: y up, front towards +z, centred by its bounding box, longest side
1.0, so everything lies in the cube [-0.5, 0.5]^3.

Examples
--------
>>> chair = make_object("chair", 7, seed=0)
>>> chair.id, sorted(chair.factors)[:2]
('chair-0007', ['armrests', 'back_height'])
>>> bool(chair.occupancy(np.array([[0.7, 0.0, 0.0]]))[0])
False
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float16

from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.simulated.family import Family
from neurodiff.datasets.simulated.furniture_families import FURNITURE
from neurodiff.datasets.simulated.household_families import HOUSEHOLD
from neurodiff.datasets.simulated.outdoor_families import OUTDOOR, UNSEEN
from neurodiff.datasets.simulated.shapes import Part, normalised, union_distance, union_on_grid

if TYPE_CHECKING:
    import trimesh

    from neurodiff.core.progress import Progress

CATEGORIES: tuple[str, ...] = (*FURNITURE, *HOUSEHOLD, *OUTDOOR)
HELD_OUT_CATEGORIES: tuple[str, ...] = tuple(UNSEEN)

_FAMILIES: dict[str, Family] = {**FURNITURE, **HOUSEHOLD, **OUTDOOR, **UNSEEN}

QUERY_BOX = 1.1  # side of the cube that queries fill
GRID = 32  # voxels a side of ObjectArrays.grid
_SAMPLING_STEP = 1 / 40  # marching cubes for surface samples
_RESIDUAL = 3e-4  # distance to the surface that float16 near 0.5 could not show
_NOISE = (0.015, 0.05)  # standard deviations of queries around the surface
_SHIFT = 0.3137  # of a grid step: keeps flat faces off the grid's own planes


@dataclass(frozen=True)
class SimulatedObject:
    """One object; its factors decide its geometry and its caption completely.

    Parameters
    ----------
    id : category and number, ``chair-0007``.
    category : one of ``CATEGORIES`` or ``HELD_OUT_CATEGORIES``.
    factors : shape factors by name, each in [0, 1].
    caption : one phrase in words.
    """

    id: str
    category: str
    factors: dict[str, float]
    caption: str

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """The primitives of the union, in object coordinates."""
        return normalised(_FAMILIES[self.category].build(self.factors))

    @functools.cached_property
    def part_bounds(self) -> Float[np.ndarray, "parts 2 3"]:
        """Lowest and highest corner of each primitive."""
        return np.stack([part.bounds() for part in self.parts])

    def sdf(self, points: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, " points"]:
        """Signed distance, float32, negative inside; a lower bound of the depth inside."""
        return union_distance(self.parts, points)

    def occupancy(self, points: Float[np.ndarray, "points 3"]) -> Bool[np.ndarray, " points"]:
        """Whether each point lies inside."""
        distance = union_distance(self.parts, points, reach=1e-3, bounds=self.part_bounds)
        return distance < 0

    def occupancy_grid(self, resolution: int = GRID) -> Bool[np.ndarray, "i j k"]:
        """Occupancy at the voxel centres of the cube [-0.5, 0.5]^3; i, j, k follow x, y, z."""
        axis = (np.arange(resolution) + 0.5) / resolution - 0.5
        field = union_on_grid(self.parts, (axis,) * 3, reach=1e-3, bounds=self.part_bounds)
        return field < 0

    def mesh(self, resolution: int = 64) -> trimesh.Trimesh:
        """Watertight surface by marching cubes, ``resolution`` cells along the longest side."""
        import trimesh

        vertices, faces = _marching_cubes(self, 1.0 / resolution)
        return trimesh.Trimesh(vertices, faces, process=True)


@dataclass(frozen=True)
class ObjectArrays:
    """What a shape network is trained on; row n belongs to object n.

    ``surface`` : points on the surface, uniform by area. ``queries`` : points in and around the
    object, half of them uniform in a cube of side 1.1, half near the surface. ``occupied`` :
    whether each query, as rounded to float16, lies inside. ``grid`` : occupancy at the 32^3 voxel
    centres of the unit cube.
    """

    surface: Float16[np.ndarray, "objects surface 3"]
    queries: Float16[np.ndarray, "objects queries 3"]
    occupied: Bool[np.ndarray, "objects queries"]
    grid: Bool[np.ndarray, "objects 32 32 32"]

    def __len__(self) -> int:
        return len(self.surface)


def make_object(category: str, index: int, *, seed: int) -> SimulatedObject:
    """Object number ``index`` of a category.

    Raises
    ------
    UsageError : the category is unknown, or the index negative.
    """
    if category not in _FAMILIES:
        known = suggest(category, _FAMILIES)
        raise UsageError(
            f"there is no simulated category {category!r}; known: {', '.join(_FAMILIES)}.{known}"
        )
    if index < 0:
        raise UsageError(f"the object index is {index}; it counts from 0")
    name = f"{category}-{index:04d}"
    drawn = numpy_generator(
        item_seed(seed, subject="objects", stimulus=name, stage="shape factors")
    )
    names = _FAMILIES[category].factors
    return object_from_factors(
        category, dict(zip(names, drawn.random(len(names)).tolist(), strict=True)), name=name
    )


def object_from_factors(
    category: str, factors: dict[str, float], *, name: str = ""
) -> SimulatedObject:
    """The object with these shape factors; ``name`` is its id (the category where left out).

    Raises
    ------
    UsageError : a factor is missing, unknown or outside [0, 1].
    """
    family = _FAMILIES.get(category)
    if family is None or set(factors) != set(family.factors):
        wanted = family.factors if family else tuple(_FAMILIES)
        raise UsageError(f"{category} with factors {sorted(factors)}: known are {sorted(wanted)}")
    outside = {key: value for key, value in factors.items() if not 0 <= value <= 1}
    if outside:
        raise UsageError(f"{category}: factors must lie in [0, 1], got {outside}")
    return SimulatedObject(name or category, category, dict(factors), family.describe(factors))


def make_objects(
    per_category: int, *, seed: int, categories: Sequence[str] = CATEGORIES, start: int = 0
) -> list[SimulatedObject]:
    """Objects ``start`` to ``start + per_category - 1`` of each category, category by category."""
    numbers = range(start, start + per_category)
    return [make_object(name, k, seed=seed) for name in categories for k in numbers]


def factor_names(category: str) -> tuple[str, ...]:
    """Names of the shape factors of a category."""
    return _FAMILIES[category].factors


def training_arrays(
    objects: Sequence[SimulatedObject],
    *,
    n_surface: int = 2048,
    n_queries: int = 6144,
    seed: int,
    progress: Progress | None = None,
) -> ObjectArrays:
    """Surface points, labelled queries and an occupancy grid of each object.

    Each object's points depend on ``seed`` and its id only, not on the rest of the list.

    Parameters
    ----------
    n_surface, n_queries : points an object.
    progress : told how many objects are done.
    """
    count = len(objects)
    surface = np.zeros((count, n_surface, 3), np.float16)
    queries = np.zeros((count, n_queries, 3), np.float16)
    occupied = np.zeros((count, n_queries), bool)
    grid = np.zeros((count, GRID, GRID, GRID), bool)
    if progress is not None:
        progress.begin("objects")
    for k, item in enumerate(objects):
        drawn = numpy_generator(
            item_seed(seed, subject="objects", stimulus=item.id, stage="training points")
        )
        points = surface_points(item, n_surface, drawn)
        surface[k] = points
        queries[k] = _query_points(points, n_queries, drawn)
        occupied[k] = item.occupancy(queries[k].astype(np.float32))
        grid[k] = item.occupancy_grid()
        if progress is not None:
            progress.update(k + 1, count)
    return ObjectArrays(surface, queries, occupied, grid)


def surface_points(
    item: SimulatedObject, n: int, generator: np.random.Generator
) -> Float[np.ndarray, "n 3"]:
    """Points on the surface, uniform by area, as float32.

    They are drawn on a marching-cubes mesh and then moved along its normals to the zero of the
    signed distance, so the mesh's cut corners leave no offset.
    """
    vertices, faces = _marching_cubes(item, _SAMPLING_STEP)
    corner = vertices[faces[:, 0]]
    first, second = vertices[faces[:, 1]] - corner, vertices[faces[:, 2]] - corner
    normal = _cross(first, second)
    double_area = np.sqrt((normal**2).sum(axis=1))
    reached = np.cumsum(double_area, dtype=np.float64)
    face = np.searchsorted(reached, generator.random(n) * reached[-1], side="right")
    face = np.minimum(face, len(faces) - 1)
    u, v = generator.random((2, n, 1), np.float32)
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    points = corner[face] + u * first[face] + v * second[face]
    outward = normal[face] / np.maximum(double_area[face], 1e-20)[:, None]
    step = np.float32(_SAMPLING_STEP)
    for _ in range(2):
        distance = _near_distance(item, points)
        points = points - np.clip(distance, -step, step)[:, None] * outward
    # what was still off lies at edges, where the mesh's normal misleads by up to 45 degrees and a
    # step leaves up to 0.3 of the distance: Newton along the true gradient
    left = np.flatnonzero(np.abs(distance) > 3 * _RESIDUAL)
    for _ in range(3):
        if not len(left):
            break
        points[left], residual = _newton(item, points[left])
        left = left[residual > _RESIDUAL]
    return points


def stimuli(
    objects: Sequence[SimulatedObject], *, resolution: int = 64, cached: int = 64
) -> Stimuli:
    """The objects as lazily meshed stimuli, marked as simulated.

    Factors of other categories are missing (NaN) in the table. The last ``cached`` meshes are kept.
    """
    by_id = {item.id: item for item in objects}

    @functools.lru_cache(maxsize=cached)
    def load(name: str) -> Any:
        return by_id[name].mesh(resolution)

    load_mesh: Callable[[str], Any] = load
    rows = [
        {"id": item.id, "category": item.category, "caption": item.caption, **item.factors}
        for item in objects
    ]
    return Stimuli(pd.DataFrame(rows), load_mesh, None, simulated=True)


def _near_distance(
    item: SimulatedObject, points: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, " n"]:
    reach = _SAMPLING_STEP
    return union_distance(item.parts, points, reach=reach, bounds=item.part_bounds)


def _newton(
    item: SimulatedObject, points: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """One step towards the zero of the signed distance, and how far off the points were before.

    The gradient is a forward difference.
    """
    width = np.float32(1e-3)
    offsets = width * np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.float32)
    around = (points[None] + offsets[:, None]).reshape(-1, 3)
    values = _near_distance(item, around).reshape(4, -1)
    gradient = (values[1:] - values[0]).T / width
    steepness = np.maximum((gradient**2).sum(axis=1, keepdims=True), np.float32(0.1))
    move = values[0][:, None] * gradient / steepness
    return points - np.clip(move, -_SAMPLING_STEP, _SAMPLING_STEP), np.abs(values[0])


def _query_points(
    surface: Float[np.ndarray, "surface 3"], n: int, generator: np.random.Generator
) -> Float[np.ndarray, "n 3"]:
    near = n // 2
    uniform = (generator.random((n - near, 3), np.float32) - 0.5) * QUERY_BOX
    spread = np.where(np.arange(near) % 2 == 0, *_NOISE).astype(np.float32)
    start = surface[generator.integers(0, len(surface), near)]
    noisy = start + spread[:, None] * generator.standard_normal((near, 3), np.float32)
    return np.concatenate([uniform, np.clip(noisy, -QUERY_BOX / 2, QUERY_BOX / 2)])


def _marching_cubes(
    item: SimulatedObject, step: float
) -> tuple[Float[np.ndarray, "vertices 3"], np.ndarray]:
    """Vertices (float32) and outward faces at the zero of the signed distance."""
    from skimage.measure import marching_cubes

    low = item.part_bounds[:, 0].min(axis=0) - (1 + _SHIFT) * step
    high = item.part_bounds[:, 1].max(axis=0)
    axes = [a + step * np.arange(int((b - a) / step) + 3) for a, b in zip(low, high, strict=True)]
    field = union_on_grid(item.parts, axes, reach=1.8 * step, bounds=item.part_bounds)
    field[field == 0] = 1e-7  # a node on the surface itself would make faces without area
    vertices, faces, _, _ = marching_cubes(field, 0.0, gradient_direction="descent")
    return (vertices * np.float32(step) + low.astype(np.float32)).astype(np.float32), faces


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    columns = [(1, 2), (2, 0), (0, 1)]
    return np.stack([a[:, i] * b[:, j] - a[:, j] * b[:, i] for i, j in columns], axis=1)
