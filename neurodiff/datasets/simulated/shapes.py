"""Solid primitives as signed distances, and unions of them.

A :class:`Part` is one primitive with a pose. All lengths share the unit of the object (the unit
cube after :func:`normalised`), angles are radians, y points up. The distance of every primitive is
exact, except the ellipsoid's, which is exact on its axes and first order elsewhere (Taubin 1991);
its sign is exact too. The distance of a union is the smallest of its parts': exact outside and a
lower bound of the depth inside, so its sign is exact everywhere.

Distances are computed in float32. They take x, y, z that broadcast against one another, so the
same function serves scattered points ``(points,)`` and grids ``(i, 1, 1), (1, j, 1), (1, 1, k)``,
where most of the work then happens on small axes.

References
----------
Taubin 1991, IEEE PAMI 13(11): first-order distance to an implicit surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

Range = tuple[float, float]
Point = tuple[float, float, float]

_TINY = 1e-12


@dataclass(frozen=True)
class Part:
    """One primitive: its kind, its sizes, and where it stands.

    Parameters
    ----------
    kind : box, cylinder, ellipsoid, capsule, arc, prism or lathe.
    sizes : what the kind's distance function takes; made by the constructors of this module.
    centre : origin of the primitive's own axes.
    rotation : rows of the (3, 3) matrix that turns the primitive's own axes into the object's.
    thickness : smallest diameter of the material, the measure of what a coarse grid can still see.
    """

    kind: str
    sizes: tuple
    centre: Point
    thickness: float
    rotation: tuple[Point, Point, Point] | None = None

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Signed distance at broadcastable float32 coordinates; negative inside."""
        x, y, z = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        if self.rotation is not None:
            x, y, z = (_combined(row, (x, y, z)) for row in zip(*self.rotation, strict=True))
        return _DISTANCES[self.kind](x, y, z, *self.sizes)

    def bounds(self) -> Float[np.ndarray, "2 3"]:
        """Lowest and highest corner of the tight bounding box, in closed form."""
        rows = np.eye(3) if self.rotation is None else np.asarray(self.rotation)
        reach = _REACHES[self.kind]
        low = [c - reach(-row, *self.sizes) for c, row in zip(self.centre, rows, strict=True)]
        high = [c + reach(row, *self.sizes) for c, row in zip(self.centre, rows, strict=True)]
        return np.array([low, high])


# ---- constructors --------------------------------------------------------------------------


def box(x: Range, y: Range, z: Range, round: float = 0.0) -> Part:
    """Box between the given bounds, its edges rounded with radius ``round``."""
    spans = (x, y, z)
    half = tuple((high - low) / 2 for low, high in spans)
    if min(half) < round or min(half) <= 0:
        raise ValueError(f"box with half sizes {half} cannot have edges of radius {round}")
    centre = (sum(x) / 2, sum(y) / 2, sum(z) / 2)
    return Part("box", (*half, round), centre, 2 * min(half))


def cylinder(centre: Point, radius: float, height: float, axis: str = "y", round=0.0) -> Part:
    """Cylinder around one axis of the object, its rims rounded with radius ``round``."""
    sizes = (radius, height / 2, round)
    return Part("cylinder", sizes, centre, min(2 * radius, height), _AXES[axis])


def ellipsoid(centre: Point, radii: Point) -> Part:
    """Ellipsoid with the given half axes."""
    return Part("ellipsoid", radii, centre, 2 * min(radii))


def capsule(start: Point, end: Point, radius: float) -> Part:
    """All points within ``radius`` of the segment from ``start`` to ``end``."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    length = float(np.linalg.norm(b - a))
    middle = tuple(((a + b) / 2).tolist())
    rotation = _turn_y_to((b - a) / length) if length > 0 else None
    return Part("capsule", (length / 2, radius), middle, 2 * radius, rotation)


def torus(
    centre: Point, ring: float, tube: float, *, angle: float = math.pi, axis: str = "z"
) -> Part:
    """Ring of radius ``ring`` around ``axis``; ``angle`` below pi keeps the arc around +x only.

    The arc spans ``-angle`` to ``+angle`` and ends in half balls.
    """
    return Part("arc", (ring, tube, angle), centre, 2 * tube, _FLAT[axis])


def prism(
    outline: Sequence[tuple[float, float]],
    across: Range,
    *,
    axis: str = "z",
    corner: float = 0.0,
    thickness: float | None = None,
) -> Part:
    """Polygon extruded along an axis, its outline grown by ``corner`` with round corners.

    ``outline`` holds (x, y) for axis z, (x, z) for axis y and (z, y) for axis x. ``thickness``
    defaults to the extruded length: say it where the outline is narrower than that.
    """
    half = (across[1] - across[0]) / 2
    middle = (across[0] + across[1]) / 2
    centre = {"x": (middle, 0.0, 0.0), "y": (0.0, middle, 0.0), "z": (0.0, 0.0, middle)}[axis]
    points = tuple((float(a), float(b)) for a, b in outline)
    width = 2 * half if thickness is None else thickness
    return Part("prism", (points, corner, half), centre, width, _FLAT[axis])


def lathe(
    profile: Sequence[tuple[float, float]],
    *,
    centre: Point = (0.0, 0.0, 0.0),
    thickness: float,
    rotation: tuple[Point, Point, Point] | None = None,
) -> Part:
    """Solid of revolution around y; ``profile`` is a closed polygon of (radius, y), radius >= 0."""
    points = tuple((float(a), float(b)) for a, b in profile)
    return Part("lathe", (points,), centre, thickness, rotation)


def cone(centre: Point, bottom: float, top: float, height: float, axis: str = "y") -> Part:
    """Capped cone: radius ``bottom`` at the low end of ``axis``, ``top`` at the high end."""
    half = height / 2
    profile = [(0.0, -half), (bottom, -half), (top, half), (0.0, half)]
    return lathe(
        [p for k, p in enumerate(profile) if p != profile[k - 1]],
        centre=centre,
        thickness=min(2 * max(bottom, top), height),
        rotation=_AXES[axis],
    )


def tilted(part: Part, angle: float, pivot: Point = (0.0, 0.0, 0.0), axis: str = "z") -> Part:
    """The part turned by ``angle`` around ``axis`` through ``pivot`` (right-handed)."""
    k = "xyz".index(axis)
    i, j = (k + 1) % 3, (k + 2) % 3
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = math.cos(angle)
    turn[j, i] = math.sin(angle)
    turn[i, j] = -math.sin(angle)
    before = np.eye(3) if part.rotation is None else np.asarray(part.rotation)
    centre = turn @ (np.asarray(part.centre) - pivot) + pivot
    return replace(part, centre=tuple(centre.tolist()), rotation=_rows(turn @ before))


# ---- unions --------------------------------------------------------------------------------


def union_bounds(parts: Sequence[Part]) -> Float[np.ndarray, "2 3"]:
    """Tight bounding box of the union."""
    boxes = np.stack([part.bounds() for part in parts])
    return np.stack([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])


def normalised(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same union, centred by its bounding box, its longest side 1.0."""
    low, high = union_bounds(parts)
    scale = 1.0 / float((high - low).max())
    middle = (low + high) / 2
    return tuple(
        replace(
            part,
            sizes=_scaled_sizes(part, scale),
            centre=tuple(((np.asarray(part.centre) - middle) * scale).tolist()),
            thickness=part.thickness * scale,
        )
        for part in parts
    )


def union_distance(
    parts: Sequence[Part],
    points: Float[np.ndarray, "points 3"],
    *,
    reach: float = math.inf,
    bounds: Float[np.ndarray, "parts 2 3"] | None = None,
) -> Float[np.ndarray, " points"]:
    """Signed distance of the union, as float32, cut off above ``reach``.

    A finite ``reach`` is faster: a part is then only asked about points that can be nearer to it.
    """
    x, y, z = np.ascontiguousarray(points.astype(np.float32, copy=False).T)
    if math.isinf(reach):
        nearest = parts[0].distance(x, y, z)
        for part in parts[1:]:
            np.minimum(nearest, part.distance(x, y, z), out=nearest)
        return nearest
    nearest = np.full(len(points), reach, np.float32)
    boxes = np.stack([part.bounds() for part in parts]) if bounds is None else bounds
    for part, (low, high) in zip(parts, boxes, strict=True):
        (x0, y0, z0), (x1, y1, z1) = (low - reach).tolist(), (high + reach).tolist()
        near = np.flatnonzero((y > y0) & (y < y1) & (x > x0) & (x < x1) & (z > z0) & (z < z1))
        if len(near):
            found = part.distance(x[near], y[near], z[near])
            nearest[near] = np.minimum(nearest[near], found)
    return nearest


def union_on_grid(
    parts: Sequence[Part],
    axes: Sequence[Float[np.ndarray, " n"]],
    *,
    reach: float,
    bounds: Float[np.ndarray, "parts 2 3"] | None = None,
) -> Float[np.ndarray, "i j k"]:
    """:func:`union_distance` on the grid spanned by three increasing axes, cut off at ``reach``."""
    axes = [np.asarray(axis, np.float32) for axis in axes]
    nearest = np.full(tuple(len(axis) for axis in axes), reach, np.float32)
    boxes = np.stack([part.bounds() for part in parts]) if bounds is None else bounds
    for part, (low, high) in zip(parts, boxes, strict=True):
        block = tuple(
            slice(int(np.searchsorted(axis, a - reach)), int(np.searchsorted(axis, b + reach)))
            for axis, a, b in zip(axes, low, high, strict=True)
        )
        x, y, z = (axis[cut] for axis, cut in zip(axes, block, strict=True))
        if len(x) and len(y) and len(z):
            found = part.distance(x[:, None, None], y[None, :, None], z[None, None, :])
            np.minimum(nearest[block], found, out=nearest[block])
    return nearest


# ---- distances in the primitive's own axes --------------------------------------------------


def _corner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance to the quadrant a < 0, b < 0."""
    outside = np.sqrt(np.maximum(a, 0) ** 2 + np.maximum(b, 0) ** 2)
    return outside + np.minimum(np.maximum(a, b), 0)


def _box(x, y, z, a, b, c, round):
    x, y, z = np.abs(x) - (a - round), np.abs(y) - (b - round), np.abs(z) - (c - round)
    outside = np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2 + np.maximum(z, 0) ** 2
    return np.sqrt(outside) + np.minimum(np.maximum(np.maximum(x, y), z), 0) - round


def _cylinder(x, y, z, radius, half, round):
    return _corner(np.sqrt(x * x + z * z) - (radius - round), np.abs(y) - (half - round)) - round


def _ellipsoid(x, y, z, a, b, c):
    level = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
    # at the centre both vanish: their ratio stays within the half axes, so the smallest is a bound
    first_order = level * (level - 1) / np.maximum(slope, _TINY)
    return np.where(slope > 1e-6, first_order, -min(a, b, c)).astype(level.dtype, copy=False)


def _capsule(x, y, z, half, radius):
    return np.sqrt(x * x + np.maximum(np.abs(y) - half, 0) ** 2 + z * z) - radius


def _arc(x, y, z, ring, tube, angle):
    y = np.abs(y)
    cos, sin = math.cos(angle), math.sin(angle)
    along = (np.sqrt(x * x + y * y) - ring) ** 2
    end = (x - ring * cos) ** 2 + (y - ring * sin) ** 2
    return np.sqrt(np.where(sin * x - cos * y >= 0, along, end) + z * z) - tube


def _polygon(a: np.ndarray, b: np.ndarray, points, *, open_axis: bool = False) -> np.ndarray:
    """Distance to a simple polygon; edges on ``a = 0`` bound nothing where ``open_axis``."""
    nearest = np.float32(np.inf)
    inside: np.ndarray | bool = False
    for (a0, b0), (a1, b1) in zip(points, (*points[1:], points[0]), strict=True):
        da, db = a1 - a0, b1 - b0
        wa, wb = a - a0, b - b0
        if not (open_axis and a0 == a1 == 0.0):
            t = np.clip((wa * da + wb * db) / (da * da + db * db), 0, 1)
            nearest = np.minimum(nearest, (wa - da * t) ** 2 + (wb - db * t) ** 2)
        if db != 0.0:
            crosses = ((wb >= 0) != (b >= b1)) & (wa < wb * (da / db))
            inside = inside ^ crosses
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def _prism(x, y, z, points, corner, half):
    return _corner(_polygon(x, y, points) - corner, np.abs(z) - half)


def _lathe(x, y, z, points):
    return _polygon(np.sqrt(x * x + z * z), y, points, open_axis=True)


_DISTANCES: dict[str, Callable[..., np.ndarray]] = {
    "box": _box,
    "cylinder": _cylinder,
    "ellipsoid": _ellipsoid,
    "capsule": _capsule,
    "arc": _arc,
    "prism": _prism,
    "lathe": _lathe,
}


# ---- how far a primitive reaches along a unit direction of its own axes ---------------------


def _arc_reach(u, ring, tube, angle):
    if abs(math.atan2(u[1], u[0])) <= angle:
        return ring * math.hypot(u[0], u[1]) + tube
    return ring * (u[0] * math.cos(angle) + abs(u[1]) * math.sin(angle)) + tube


def _prism_reach(u, points, corner, half):
    flat = max(a * u[0] + b * u[1] for a, b in points)
    return flat + corner * math.hypot(u[0], u[1]) + half * abs(u[2])


_REACHES: dict[str, Callable[..., float]] = {
    "box": lambda u, a, b, c, r: (
        (a - r) * abs(u[0]) + (b - r) * abs(u[1]) + (c - r) * abs(u[2]) + r
    ),
    "cylinder": lambda u, radius, half, r: (
        (radius - r) * math.hypot(u[0], u[2]) + (half - r) * abs(u[1]) + r
    ),
    "ellipsoid": lambda u, a, b, c: math.hypot(a * u[0], b * u[1], c * u[2]),
    "capsule": lambda u, half, radius: half * abs(u[1]) + radius,
    "arc": _arc_reach,
    "prism": _prism_reach,
    "lathe": lambda u, points: max(a * math.hypot(u[0], u[2]) + b * u[1] for a, b in points),
}


# ---- poses ---------------------------------------------------------------------------------


def _rows(matrix: np.ndarray) -> tuple[Point, Point, Point]:
    first, second, third = ((float(a), float(b), float(c)) for a, b, c in matrix)
    return first, second, third


def _turn_y_to(direction: np.ndarray) -> tuple[Point, Point, Point]:
    """A rotation whose second column is ``direction`` (a unit vector)."""
    other = np.array([1.0, 0.0, 0.0]) if abs(direction[0]) < 0.9 else np.array([0.0, 0.0, 1.0])
    first = np.cross(direction, other)
    first /= np.linalg.norm(first)
    return _rows(np.stack([first, direction, np.cross(first, direction)], axis=1))


# own y becomes the named axis
_AXES: dict[str, tuple[Point, Point, Point] | None] = {
    "x": _rows(np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])),
    "y": None,
    "z": _rows(np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])),
}
# own z lies along the named axis, own (x, y) along (z, y), (x, z) or (x, y) of the object
_FLAT: dict[str, tuple[Point, Point, Point] | None] = {
    "x": _rows(np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])),
    "y": _rows(np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])),
    "z": None,
}


def _combined(weights: Sequence[float], axes: Sequence[np.ndarray]) -> np.ndarray:
    """Weighted sum that leaves out zero weights, so that axes of a grid stay small."""
    terms = [w * axis for w, axis in zip(weights, axes, strict=True) if w != 0.0]
    return sum(terms[1:], start=terms[0])


def _scaled_sizes(part: Part, scale: float) -> tuple:
    if part.kind == "arc":
        ring, tube, angle = part.sizes
        return (ring * scale, tube * scale, angle)
    if part.kind in ("prism", "lathe"):
        points, *lengths = part.sizes
        grown = tuple((a * scale, b * scale) for a, b in points)
        return (grown, *(length * scale for length in lengths))
    return tuple(size * scale for size in part.sizes)
