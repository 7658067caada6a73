"""What a shape keeps when it is moved, turned, mirrored and scaled.

References
----------
Osada et al. 2002, ACM Transactions on Graphics 21 (D1 and D2, distances of points of a surface).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def mesh_signature(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, " 69"]:
    """What a mesh keeps when it is moved, turned, mirrored, scaled and its lists are reordered.

    Numbers of vertices and faces (as logarithms), quantiles of the corners' distances from the
    area's centroid and of the edges' lengths, and the ordered spread along the principal axes, in
    units of the root mean square distance of the surface from its centroid. Equal to rounding for
    the same mesh; a mesh of other triangles needs `shape_descriptor`.

    Raises
    ------
    ValueError : no face, no area, or coordinates that are not finite.
    """
    corners = vertices.astype(np.float64)[faces]  # (f, 3, 3)
    centre, spread = _surface_moments(corners)
    scale = np.sqrt(np.trace(spread))
    levels = np.linspace(0, 1, 32)
    radii = np.linalg.norm(corners.reshape(-1, 3) - centre, axis=1) / scale
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).ravel() / scale
    axes = np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 0)) / scale
    sizes = np.log([len(np.unique(faces)), len(faces)])
    return np.concatenate([sizes, axes, np.quantile(radii, levels), np.quantile(edges, levels)])


def shape_descriptor(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " 67"]:
    """D1 and D2 of points drawn from a surface, invariant to place, turn, mirror and scale.

    Shares of the points within 32 distances from their centroid, and of the pairs of points within
    32 distances of each other, each with an edge of width 0.05, then the spread along the
    principal axes, ordered (3); in units of the root mean square distance from the centroid. The
    order of the points has to be random, as pairs are taken along it. Two draws of n points of
    one surface differ by about ``1.5 / sqrt(n)`` in the worst entry.

    Raises
    ------
    ValueError : fewer than 16 points, points that coincide or are not finite.
    """
    points = points.astype(np.float64)
    if len(points) < 16 or not np.isfinite(points).all():
        raise ValueError(f"{len(points)} points; expected at least 16, all finite")
    points = points - points.mean(axis=0)
    scale = np.sqrt(np.mean((points**2).sum(axis=1)))
    if not scale > 0:
        raise ValueError("all points coincide; they have no shape")
    points = points / scale
    pairs = np.concatenate([points - np.roll(points, shift, axis=0) for shift in (1, 2, 3, 5)])
    axes = np.sqrt(np.maximum(np.linalg.eigvalsh(points.T @ points / len(points)), 0))
    return np.concatenate([_shares_within(points, 2.5), _shares_within(pairs, 3.5), axes])


# ----------------------------------------------------------------------------------------- parts


def _shares_within(differences: np.ndarray, most: float) -> np.ndarray:
    """Share of vectors shorter than 32 lengths up to ``most``; logistic edges keep a length that
    many vectors have, as on a sphere, from being all or nothing."""
    lengths = np.sqrt(np.einsum("ij,ij->i", differences, differences))
    counts, edges = np.histogram(np.minimum(lengths, most), bins=500, range=(0, most))
    middles = (edges[1:] + edges[:-1]) / 2
    levels = np.linspace(0, most, 34)[1:-1]
    return (counts / len(lengths)) @ (1 / (1 + np.exp((middles[:, None] - levels) / 0.05)))


def _surface_moments(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid and covariance of a surface of triangles, by area, in closed form."""
    if len(corners) == 0 or not np.isfinite(corners).all():
        raise ValueError("a mesh without faces, or with coordinates that are not finite")
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1)
    if not area.sum() > 0:
        raise ValueError("the mesh has no area; it has no shape")
    weight = area / area.sum()
    centre = weight @ corners.mean(axis=1)
    local = corners - centre
    total = local.sum(axis=1)
    # integral of x x^T over a triangle = area / 12 (sum of corners' x x^T + total total^T)
    outer = np.einsum("fki,fkj->fij", local, local) + np.einsum("fi,fj->fij", total, total)
    return centre, np.einsum("f,fij->ij", weight, outer) / 12
