"""Meshes from grids and back: marching cubes, watertight conversion, sampling, occupancy.

Every mesh is a ``trimesh.Trimesh``. The shape convention is y up, centred by the bounding box,
longest side 1, hence inside the cube [-0.5, 0.5]^3. Coordinates are unitless lengths of that
convention; where a function takes other meshes too, it says so.

Ray casting and distances come from Open3D's ``RaycastingScene``, which needs neither a display
nor a graphics driver, and accepts float32 coordinates only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from neurodiff.core.errors import DataError

if TYPE_CHECKING:
    from trimesh import Trimesh

BOX = 1.1  # side of the cube that an n x n x n grid spans; leaves a margin around unit shapes


def grid_points(n: int, *, box: float | int = BOX) -> Float[np.ndarray, "n n n 3"]:
    """Return the nodes ``box * linspace(-0.5, 0.5, n)`` on each axis, in ij order.

    Parameters
    ----------
    n : nodes on each side, >= 2.
    box : side of the cube, in the unit of the shape convention.

    Returns
    -------
    float32 coordinates; ``[i, j, k]`` is the node ``(x_i, y_j, z_k)``.
    """
    if n < 2:
        raise ValueError(f"a grid needs at least 2 nodes on a side; got n={n}")
    axis = (box * np.linspace(-0.5, 0.5, n)).astype(np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def occupancy_to_mesh(
    values: Float[np.ndarray, "n n n"],
    *,
    level: float | int = 0.0,
    box: float | int = BOX,
    components: int | None = None,
) -> Trimesh:
    """Extract the closed surface where a field on a grid crosses ``level``.

    Parameters
    ----------
    values : field on ``grid_points(n, box=box)``; inside is where it is **above** ``level``
        (occupancy logits with level 0, probabilities with level 0.5, minus a signed distance).
    level : value on the surface, in the field's unit.
    box : side of the cube that the grid spans.
    components : keep this many connected pieces, those of the largest absolute volume;
        None keeps all.

    Returns
    -------
    A watertight mesh with outward normals, or a mesh without faces where nothing is above the
    level. A shape that touches the border of the grid is closed there, less than a tenth of a
    cell outside.

    Raises
    ------
    ValueError : the field is not finite, the grid is no cube, or ``components`` is below 1.

    References
    ----------
    Lewiner et al. 2003, Journal of Graphics Tools 8(2), through scikit-image.
    """
    from skimage.measure import marching_cubes
    from trimesh import Trimesh

    if components is not None and components < 1:
        raise ValueError(f"components is {components}; give the number of pieces to keep, >= 1")
    if not np.isfinite(values).all():
        raise ValueError("the field holds NaN or infinity; check the network that predicted it")
    n = values.shape[0]
    offset = values.astype(np.float32) - np.float32(level)
    if n < 2 or not (offset > 0).any():
        return Trimesh(process=False)
    # Far below the level, so that the closing faces lie close to the border nodes.
    outside = -10.0 * float(np.abs(offset).max())
    padded = np.pad(offset, 1, constant_values=outside)
    vertices, faces, _, _ = marching_cubes(padded, level=0.0, gradient_direction="ascent")
    step = box / (n - 1)
    mesh = Trimesh((vertices - 1.0) * step - 0.5 * box, faces, process=False)
    return mesh if components is None else _largest_components(mesh, components)


def normalise_mesh(mesh: Trimesh) -> Trimesh:
    """Return a copy centred by its bounding box, scaled to a longest side of 1.

    Raises
    ------
    DataError : the mesh has no faces, or all its vertices coincide.
    """
    _require_faces(mesh)
    lower, upper = mesh.bounds
    side = float((upper - lower).max())
    if not np.isfinite(side) or side <= 0:
        raise DataError(f"the mesh has a longest side of {side}; it cannot be scaled to 1")
    result = mesh.copy()
    result.vertices = (np.asarray(mesh.vertices) - 0.5 * (lower + upper)) / side
    return result


def make_watertight(mesh: Trimesh, resolution: int = 64) -> Trimesh:
    """Rebuild the visible outside of any triangle soup as a closed mesh.

    Unsigned distance on a grid, flood fill of the outside from the border, marching cubes.
    Where the surface parts outside from an enclosed inside, the new surface lies on the old one;
    an open sheet with the outside on both of its sides becomes a plate of one cell's thickness,
    and solid parts thinner than about two cells may grow by up to one.
    Holes wider than about a cell let the outside in, so that a shell with such a hole becomes a
    plate as well. Cavities are filled.

    Parameters
    ----------
    mesh : any triangles, in any unit; need be neither closed nor consistently oriented.
    resolution : nodes along the longest side of the bounding box, >= 8.

    Returns
    -------
    A watertight mesh in the unit and place of ``mesh``.

    Raises
    ------
    DataError : the mesh has no faces or no extent.
    ValueError : ``resolution`` is below 8.
    """
    from scipy import ndimage

    if resolution < 8:
        raise ValueError(f"resolution is {resolution}; at least 8 nodes on a side are needed")
    _require_faces(mesh)
    lower, upper = mesh.bounds
    centre, side = 0.5 * (lower + upper), float((upper - lower).max())
    if not np.isfinite(side) or side <= 0:
        raise DataError(f"the mesh has a longest side of {side}; it has no inside")
    unit = mesh.copy()
    unit.vertices = (np.asarray(mesh.vertices) - centre) / side
    box = 1.0 + 8.0 / resolution  # about four free cells on each side
    n = resolution + 8
    nodes = grid_points(n, box=box)
    step = box / (n - 1)
    scene = raycasting_scene(unit)
    distance = scene.compute_distance(_tensor(nodes)).numpy()  # (n, n, n), unsigned

    # Half a cell: of two face neighbours on either side of a surface one is always nearer than
    # that, so the fill along faces cannot leak, and the shell is as thin as it can be.
    shell = 0.501 * step
    labels, _ = ndimage.label(distance > shell)
    outside = labels == labels[0, 0, 0]
    enclosed = (distance > shell) & ~outside

    field = np.where(outside, shell - distance, distance)
    band = np.nonzero((distance < 2.0 * step) & ~enclosed)
    points = nodes[band].astype(np.float64)  # (p, 3)
    nearest = scene.compute_closest_points(_tensor(points))["points"].numpy().astype(np.float64)
    away = points - nearest
    length = np.linalg.norm(away, axis=1, keepdims=True)
    away = np.divide(away, length, out=np.zeros_like(away), where=length > 0)
    # Look for the outside and the inside on both sides of the sheet nearest to the node. One
    # cell away is enough beside a face, two are needed along the diagonal of a corner; beside an
    # edge of the solid the inside begins a cell further along the face, hence the dilation.
    within = ndimage.binary_dilation(enclosed, np.ones((3, 3, 3)))
    own_outside, own_inside, opposite_inside = (np.zeros(len(points), bool) for _ in range(3))
    for reach in (1.0 * step, 1.5 * step, 2.0 * step):
        own, opposite = (_lookup(nearest + side_of * away, box, n) for side_of in (reach, -reach))
        own_outside |= outside[own]
        own_inside |= within[own]
        opposite_inside |= within[opposite]
    near = length[:, 0]
    value = np.where(own_outside & opposite_inside, -near, shell - near)
    value = np.where(own_inside & ~own_outside, near, value)
    # A node on the surface itself belongs to the inside: zero would give empty triangles.
    field[band] = np.where(np.abs(value) < 1e-4 * step, 1e-4 * step, value)
    result = occupancy_to_mesh(field, level=0.0, box=box)
    result.vertices = np.asarray(result.vertices) * side + centre
    return result


def sample_surface(
    mesh: Trimesh, n: int, generator: np.random.Generator
) -> Float[np.ndarray, "n 3"]:
    """Draw points uniformly by area from the surface.

    Parameters
    ----------
    mesh : any triangles with a positive area.
    n : points to draw, >= 1.
    generator : source of the draws; the same state gives the same points.

    Returns
    -------
    float64 coordinates in the unit of the mesh.

    Raises
    ------
    DataError : the mesh has no faces or no area.
    ValueError : ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; draw at least one point")
    _require_faces(mesh)
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)]  # (faces, 3, 3)
    origin, first, second = (
        corners[:, 0],
        corners[:, 1] - corners[:, 0],
        corners[:, 2] - corners[:, 0],
    )
    area = np.linalg.norm(np.cross(first, second), axis=1)
    total = np.cumsum(area)
    if not total[-1] > 0:
        raise DataError("the mesh has no surface area; points cannot be drawn from it")
    face = np.searchsorted(total, generator.random(n) * total[-1], side="right")
    face = np.minimum(face, len(total) - 1)
    weights = generator.random((n, 2))
    folded = weights.sum(axis=1) > 1.0  # the other half of the parallelogram
    weights[folded] = 1.0 - weights[folded]
    return origin[face] + weights[:, :1] * first[face] + weights[:, 1:] * second[face]


def occupancy_of(
    mesh: Trimesh, points: Float[np.ndarray, "*points 3"]
) -> Bool[np.ndarray, "*points"]:
    """Tell which points lie inside a watertight mesh, by counting crossings of three rays.

    Raises
    ------
    DataError : the mesh is not watertight, so that inside has no meaning
        (``make_watertight`` closes it).
    """
    _require_faces(mesh)
    if not mesh.is_watertight:
        raise DataError(
            f"the mesh ({len(mesh.faces)} faces) is not watertight, so inside is not defined; "
            "close it with neurodiff.geometry.mesh.make_watertight first"
        )
    scene = raycasting_scene(mesh)
    return scene.compute_occupancy(_tensor(points), nsamples=3).numpy() > 0.5


def raycasting_scene(mesh: Trimesh) -> Any:
    """Return an Open3D ``RaycastingScene`` that holds the mesh in float32."""
    open3d = import_open3d()
    scene = open3d.t.geometry.RaycastingScene()
    faces = np.ascontiguousarray(mesh.faces, dtype=np.uint32)
    scene.add_triangles(_tensor(np.asarray(mesh.vertices)), open3d.core.Tensor.from_numpy(faces))
    return scene


def import_open3d() -> Any:
    """Import Open3D, which is slow to load and needs one system library.

    Raises
    ------
    DataError : Open3D cannot be loaded; names the Debian package.
    """
    try:
        import open3d
    except ImportError as error:
        raise DataError(
            f"Open3D cannot be loaded ({error}); on Debian and Ubuntu install its system library "
            "with: apt-get install -y libusb-1.0-0"
        ) from error
    return open3d


def _tensor(array: np.ndarray) -> Any:
    open3d = import_open3d()
    return open3d.core.Tensor.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _lookup(points: np.ndarray, box: float, n: int) -> tuple[np.ndarray, ...]:
    """Return the indices of the grid nodes nearest to points (p, 3)."""
    index = np.rint((points / box + 0.5) * (n - 1)).astype(np.int64)
    return tuple(np.clip(index, 0, n - 1).T)


def _largest_components(mesh: Trimesh, count: int) -> Trimesh:
    """Keep the ``count`` face-connected pieces of the largest absolute volume."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from trimesh import Trimesh

    faces = np.asarray(mesh.faces)
    vertices = np.asarray(mesh.vertices)
    start, end = faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(start), bool), (start, end)), shape=(len(vertices),) * 2)
    n_pieces, piece_of_vertex = connected_components(graph, directed=False)
    piece = piece_of_vertex[faces[:, 0]]
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    volume = np.abs(np.bincount(piece, (a * np.cross(b, c)).sum(axis=1) / 6.0, minlength=n_pieces))
    kept = np.isin(piece, np.argsort(-volume, kind="stable")[:count])
    used, renumbered = np.unique(faces[kept], return_inverse=True)
    return Trimesh(vertices[used], renumbered.reshape(-1, 3), process=False)


def _require_faces(mesh: Trimesh) -> None:
    if len(mesh.faces) == 0:
        raise DataError("the mesh has no faces; its shape is empty")
