"""Multiresolution isosurface extraction: a field is asked only near its surface.

A coarse grid is evaluated, then every cell whose known corners (also those that finer neighbours
put on its faces) lie on both sides of the threshold is cut into eight, until the finest cells are
reached and no cell is left to cut.  What was never asked is filled from the nearest known value
before it along i, then j, then k, so that such points stay on the right side of the threshold
but carry coarse values.

Grid index to place: ``point = box * (index / (n - 1) - 0.5)`` with
``n = resolution0 * 2**upsampling_steps + 1``, axes i j k = x y z; the unit is the field's.

References
----------
Mescheder et al. 2019, Occupancy Networks, CVPR (the algorithm).  Lorensen and Cline 1987.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

if TYPE_CHECKING:
    import trimesh

OUTSIDE = -1e6  # value of the padding that closes a surface at the border of the box


def extract(
    field: Callable[[ndarray], ndarray],
    *,
    threshold: float,
    resolution0: int = 32,
    upsampling_steps: int = 2,
    box: float = 1.1,
    batch: int | None = None,
) -> tuple[Float[ndarray, "n n n"], list[int]]:
    """Values of ``field`` on a grid that is fine near the surface.

    Parameters
    ----------
    field : points (count, 3) float64 to values (count,); larger values are inside.
    threshold : level of the surface; a value equal to it counts as inside.
    resolution0 : cells along a side of the first grid.  upsampling_steps : times they are halved.
    box : side of the cube, centred at 0, in the unit of the points.
    batch : points given to ``field`` at once; None gives all of a round.

    Returns
    -------
    values (n, n, n) float64, and the number of points asked in each round.

    Raises
    ------
    ValueError : a size out of range, or the field returned another number of values or values
        that are not finite.

    Examples
    --------
    >>> values, queries = extract(
    ...     lambda p: 0.3 - np.linalg.norm(p, axis=1),
    ...     threshold=0.0, resolution0=8, upsampling_steps=1,
    ... )
    >>> values.shape, queries[0]
    ((17, 17, 17), 729)
    """
    if resolution0 < 1 or upsampling_steps < 0 or not box > 0:
        raise ValueError(
            f"resolution0 {resolution0} (>= 1), upsampling_steps {upsampling_steps} (>= 0) and "
            f"box {box} (> 0): one is out of range"
        )
    cells = resolution0 * 2**upsampling_steps
    values = np.full((cells + 1,) * 3, np.nan)
    # leaves[l]: which cells of side 2**(steps - l) are leaves of the octree at level l
    leaves = [np.ones((resolution0,) * 3, dtype=bool)]
    leaves += [
        np.zeros((resolution0 * 2**level,) * 3, dtype=bool)
        for level in range(1, upsampling_steps + 1)
    ]
    stride = 2**upsampling_steps
    wanted = np.zeros(values.shape, dtype=bool)
    wanted[::stride, ::stride, ::stride] = True
    queries: list[int] = []
    while True:
        index = np.argwhere(wanted)
        if not len(index):
            return _fill_forward(values), queries
        points = box * (index / cells - 0.5)
        values[wanted] = _ask(field, points, len(points) if batch is None else batch)
        queries.append(len(points))
        wanted = _cut(leaves, values, threshold) & np.isnan(values)


def grid_to_mesh(
    values: Float[ndarray, "i j k"], *, threshold: float, box: float = 1.1
) -> "trimesh.Trimesh":
    """Closed surface where ``values`` cross ``threshold``, by marching cubes.

    The grid is padded by one layer far outside; faces are oriented outwards (positive volume).  No
    vertex and no face where nothing crosses.

    Raises
    ------
    ValueError : the grid is not a cube of at least 2 points a side.
    """
    import trimesh
    from skimage.measure import marching_cubes

    if values.ndim != 3 or len(set(values.shape)) != 1 or values.shape[0] < 2:
        raise ValueError(f"values has shape {values.shape}; expected a cube (n, n, n), n >= 2")
    if not (values >= threshold).any():
        return trimesh.Trimesh()
    # the threshold is taken off in float64: marching_cubes works in float32, and must not move a
    # point to the other side
    padded = np.pad(np.asarray(values, dtype=np.float64), 1, constant_values=OUTSIDE) - threshold
    tiny = np.finfo(np.float32).tiny
    single = np.where(padded >= 0, np.maximum(padded, tiny), np.minimum(padded, -tiny))
    single = single.astype(np.float32)
    vertices, faces, _, _ = marching_cubes(single, 0.0, gradient_direction="ascent")
    vertices = _on_edges(padded, vertices.astype(np.float64))
    return trimesh.Trimesh(box * ((vertices - 1) / (len(values) - 1) - 0.5), faces, process=False)


def _on_edges(
    values: Float[ndarray, "n n n"], vertices: Float[ndarray, "count 3"]
) -> Float[ndarray, "count 3"]:
    """Move each vertex along its grid edge to where the float64 values are 0 by interpolation."""
    fraction = np.abs(vertices - np.rint(vertices))
    axis = np.eye(3, dtype=np.int64)[fraction.argmax(axis=1)]  # the one that is not a whole number
    low = np.where(axis == 1, np.floor(vertices), np.rint(vertices)).astype(np.int64)
    low = np.minimum(low, len(values) - 1 - axis)
    before, after = values[tuple(low.T)], values[tuple((low + axis).T)]
    crosses = (before >= 0) != (after >= 0)
    share = np.divide(before, before - after, out=np.zeros_like(before), where=crosses)
    return np.where(crosses[:, None], low + share[:, None] * axis, vertices)


def _ask(field: Callable[[ndarray], ndarray], points: ndarray, batch: int) -> ndarray:
    if batch < 1:
        raise ValueError(f"batch is {batch}; at least 1 point has to be asked at once")
    parts = []
    for start in range(0, len(points), batch):
        part = points[start : start + batch]
        answer = np.asarray(field(part), dtype=np.float64)
        if answer.shape != (len(part),):
            raise ValueError(
                f"the field returned shape {answer.shape} for {len(part)} points; expected "
                f"({len(part)},)"
            )
        parts.append(answer)
    answers = np.concatenate(parts)
    if not np.isfinite(answers).all():
        bad = int((~np.isfinite(answers)).sum())
        raise ValueError(f"the field returned {bad} values that are not finite")
    return answers


def _cut(leaves: list[ndarray], values: ndarray, threshold: float) -> Bool[ndarray, "n n n"]:
    """Cut every leaf that the surface crosses (in place); the points that the cuts need."""
    with np.errstate(invalid="ignore"):  # unknown points are on neither side
        inside, outside = values >= threshold, values < threshold
    needed = np.zeros(values.shape, dtype=bool)
    finest = len(leaves) - 1
    crossed = [
        leaf
        & _any_in_cells(inside, 2 ** (finest - level))
        & _any_in_cells(outside, 2 ** (finest - level))
        for level, leaf in enumerate(leaves[:-1])
    ]
    for level, cells in enumerate(crossed):
        half = 2 ** (finest - level - 1)
        leaves[level] &= ~cells
        children = cells.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        leaves[level + 1] |= children
        corners = np.zeros(tuple(side + 1 for side in children.shape), dtype=bool)
        for i in (0, 1):
            for j in (0, 1):
                for k in (0, 1):
                    a, b, c = children.shape
                    corners[i : i + a, j : j + b, k : k + c] |= children
        needed[::half, ::half, ::half] |= corners
    return needed


def _any_in_cells(points: Bool[ndarray, "n n n"], side: int) -> Bool[ndarray, "m m m"]:
    """Whether any grid point of each closed cell of ``side`` steps is marked."""
    for axis in range(3):
        moved = np.moveaxis(points, axis, 0)
        blocks = moved[:-1].reshape(-1, side, *moved.shape[1:]).any(axis=1)
        points = np.moveaxis(blocks | moved[side::side], 0, axis)
    return points


def _fill_forward(values: Float[ndarray, "n n n"]) -> Float[ndarray, "n n n"]:
    """Give unknown points the last known value before them along i, then j, then k."""
    for axis in range(3):
        moved = np.moveaxis(values, axis, 0)  # a view: filled in place
        for index in range(1, len(moved)):
            unknown = np.isnan(moved[index])
            moved[index][unknown] = moved[index - 1][unknown]
    return values
