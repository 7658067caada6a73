"""Shapes brought into one frame before they are compared, and what the published code does.

``turned_chamfer`` asks how far two shapes are apart once the direction they face is left out: a
decoder that gets the object right and its heading wrong differs from one that gets neither.
``adjust_2024`` is the step of the published evaluation that looks like an alignment and is none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

GRID_STEP = 10.0  # degrees
GRID_POINTS = 512  # points that take part in the search over the grid
CANDIDATES = 3
REFINEMENTS = 14  # golden sections of a bracket of two grid steps: below 0.03 degrees
GOLDEN = (math.sqrt(5) - 1) / 2


class Turned(NamedTuple):
    """Distance after the best turn, and that turn in degrees (of the first set, about +y)."""

    distance: float
    angle: float


def turned_chamfer(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"]) -> Turned:
    """Smallest squared Chamfer distance over turns of ``a`` about the vertical axis (y).

    A grid of 10 degrees on 512 points, then a golden-section search with all points around the
    three best. No turn at all is always among the candidates, so the result is never above
    ``chamfer_distance(a, b)``. It is a minimum: a baseline needs the same treatment.

    Raises
    ------
    ValueError : a set is empty or not finite.
    """
    from scipy.spatial import cKDTree

    for name, points in (("first", a), ("second", b)):
        if len(points) == 0 or not np.isfinite(points).all():
            raise ValueError(f"the {name} point set is empty, or holds NaN or infinity")
    a, b = a.astype(np.float64), b.astype(np.float64)

    def chamfer_of(a: np.ndarray, b: np.ndarray):
        tree_a, tree_b = cKDTree(a), cKDTree(b)

        def distance(angle: float) -> float:  # turning b back spares a tree for each angle
            there = tree_b.query(a @ turn(angle).T)[0]
            back = tree_a.query(b @ turn(-angle).T)[0]
            return float((there**2).mean() + (back**2).mean())

        return distance

    rough, fine = chamfer_of(a[:GRID_POINTS], b[:GRID_POINTS]), chamfer_of(a, b)
    grid = np.arange(0.0, 360.0, GRID_STEP)
    order = np.argsort([rough(angle) for angle in grid], kind="stable")
    best = Turned(fine(0.0), 0.0)
    for start in grid[order[:CANDIDATES]]:
        found = _golden_section(fine, start - GRID_STEP, start + GRID_STEP)
        best = min(best, found)
    return Turned(best.distance, best.angle % 360.0)


def turn(angle: float | int) -> Float[np.ndarray, "3 3"]:
    """Rotation by ``angle`` degrees about +y: takes +z towards +x."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def adjust_2024(
    vertices: Float[np.ndarray, "vertices 3"], centre: Float[np.ndarray, " 3"]
) -> Float[np.ndarray, "vertices 3"]:
    """Centre a mesh and multiply it by its principal axes, as the published CD script does.

    With the axes as columns of ``E``, coordinates along them would be ``E^T v``; the script
    computes ``E v``, which is aligned with nothing, and leaves the true shape as it is. ``E`` may
    be a reflection. The signs of the axes depend on the linear algebra library there; here each
    axis has its largest entry positive, so that a number can be repeated.

    Parameters
    ----------
    vertices : of the reconstruction.
    centre : its centre of mass.
    """
    centred = vertices.astype(np.float64) - centre
    _, axes = np.linalg.eigh(np.cov(centred, rowvar=False))
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(3)]
    return centred @ (axes * np.sign(largest)).T


def _golden_section(function, low: float, high: float) -> Turned:
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(REFINEMENTS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
    return min(Turned(at_left, left), Turned(at_right, right))
