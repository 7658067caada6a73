"""Views of a mesh by ray casting: shaded colour, silhouette and depth, without a display.

Camera: y is up; azimuth 0 looks at the object from +z, azimuth 90 from +x; a positive elevation
looks down from above. The image's row 0 is its top, +x of the camera points right. Pixels are
square, one ray through each pixel's centre. The object is expected in the shape convention
(centred, longest side 1); the camera must be outside of it.

The rays are built here rather than by Open3D's ``create_rays_pinhole``, whose pictures come out
turned by 180 degrees for ``up=+y``. Only pixels inside the projected bounding box are cast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float, UInt8

from neurodiff.geometry.mesh import import_open3d, raycasting_scene

if TYPE_CHECKING:
    from PIL.Image import Image
    from trimesh import Trimesh

# The six published views of MinD-3D (Gao et al. 2024, ECCV; its evaluation script), distance 2.
AZIMUTHS = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)  # degrees
ELEVATIONS = (20.0, -10.0, 20.0, -10.0, 20.0, -10.0)  # degrees
DISTANCE = 2.0
FOV = 50.0  # degrees, both ways; the unit cube fits into each of the six views

Angle = float | int

ALBEDO = 0.8
AMBIENT = 0.25
# Direction to the light in camera axes (right, up, towards the viewer), and its strength. The
# strengths and the ambient term sum to 1, so nothing is clipped and nothing is as white as the
# background.
LIGHTS = (((-0.45, 0.65, 0.60), 0.55), ((0.75, 0.10, 0.65), 0.20))


class _Hits(NamedTuple):
    """Pixels that see the object, of all views together."""

    pixel: np.ndarray  # (hits,) flat index into (views, size, size)
    view: np.ndarray  # (hits,)
    depth: np.ndarray  # (hits,) along the optical axis, unit of the mesh
    face: np.ndarray  # (hits,)
    uv: np.ndarray  # (hits, 2) weights of the face's second and third corner
    normal: np.ndarray  # (hits, 3) of the face, not oriented
    ray: np.ndarray  # (hits, 3) direction from the eye


@overload
def render_views(
    mesh: Trimesh, *, depth: Literal[False] = False, **options: Any
) -> UInt8[np.ndarray, "views size size 3"]: ...


@overload
def render_views(
    mesh: Trimesh, *, depth: Literal[True], **options: Any
) -> tuple[UInt8[np.ndarray, "views size size 3"], Float[np.ndarray, "views size size"]]: ...


def render_views(  # type: ignore[misc]  # the overloads abbreviate the options
    mesh: Trimesh,
    *,
    size: int = 64,
    azimuths: Sequence[Angle] = AZIMUTHS,
    elevations: Sequence[Angle] | Angle = ELEVATIONS,
    distance: float = DISTANCE,
    fov: float = FOV,
    face_colors: UInt8[np.ndarray, "faces 3"] | None = None,
    vertex_colors: UInt8[np.ndarray, "vertices 3"] | None = None,
    depth: bool = False,
) -> (
    UInt8[np.ndarray, "views size size 3"]
    | tuple[UInt8[np.ndarray, "views size size 3"], Float[np.ndarray, "views size size"]]
):
    """Render the mesh from several sides, shaded on white.

    Ambient light and two lights that move with the camera (Lambert), on flat faces seen from
    both sides, so that inconsistently oriented meshes look right. The same arguments give the
    same bytes.

    Parameters
    ----------
    mesh : in the shape convention; a mesh without faces gives white pictures.
    size : pixels on a side.
    azimuths, elevations : degrees, one each a view; a single elevation serves all views.
    distance : of the camera from the origin, in the mesh's unit.
    fov : full angle of view in degrees, horizontal and vertical.
    face_colors, vertex_colors : sRGB colours instead of the constant grey, at most one of them;
        vertex colours are interpolated.
    depth : also return the maps of ``render_depth``.

    Returns
    -------
    uint8 pictures, or ``(pictures, depth maps)`` with ``depth=True``.

    Raises
    ------
    ValueError : sizes, angles or colours do not fit, or the camera stands inside the mesh's
        bounding sphere.
    """
    if face_colors is not None and vertex_colors is not None:
        raise ValueError("give face_colors or vertex_colors, not both")
    for name, colors, n in (
        ("face_colors", face_colors, len(mesh.faces)),
        ("vertex_colors", vertex_colors, len(mesh.vertices)),
    ):
        if colors is not None and colors.shape != (n, 3):
            raise ValueError(f"{name} has shape {colors.shape}; this mesh needs ({n}, 3)")
    frames = _frames(azimuths, elevations)
    hits = _cast(mesh, frames, size, distance, fov)
    images = np.full((len(frames) * size * size, 3), 255, dtype=np.uint8)
    shade = _shade(hits, frames)  # (hits,)
    if face_colors is not None:
        albedo = face_colors[hits.face].astype(np.float32)
    elif vertex_colors is not None:
        corner = vertex_colors[np.asarray(mesh.faces)[hits.face]].astype(np.float32)
        u, v = hits.uv[:, :1], hits.uv[:, 1:]
        albedo = corner[:, 0] * (1.0 - u - v) + corner[:, 1] * u + corner[:, 2] * v
    else:
        albedo = np.float32(255.0 * ALBEDO)
    images[hits.pixel] = np.rint(shade[:, None] * albedo).astype(np.uint8)
    pictures = images.reshape(len(frames), size, size, 3)
    if not depth:
        return pictures
    return pictures, _depth_maps(hits, len(frames), size, distance)


def render_depth(
    mesh: Trimesh,
    *,
    size: int = 64,
    azimuths: Sequence[Angle] = AZIMUTHS,
    elevations: Sequence[Angle] | Angle = ELEVATIONS,
    distance: float = DISTANCE,
    fov: float = FOV,
) -> Float[np.ndarray, "views size size"]:
    """Render nearness maps: 0 is background, 1 is nearest, linear in between.

    A value is ``(far - z) / (far - near)`` with z along the optical axis and
    ``near, far = distance -+ sqrt(3)/2``, the planes that hold the convention's cube from every
    side. The scale is thus the same for all objects and views; seen surface is kept at
    1/255 or above, so that it never equals the background, also as an 8-bit picture.

    Parameters and errors are those of ``render_views``.

    Returns
    -------
    float32 maps.
    """
    frames = _frames(azimuths, elevations)
    return _depth_maps(_cast(mesh, frames, size, distance, fov), len(frames), size, distance)


def render_silhouettes(
    mesh: Trimesh,
    *,
    size: int = 64,
    azimuths: Sequence[Angle] = AZIMUTHS,
    elevations: Sequence[Angle] | Angle = ELEVATIONS,
    distance: float = DISTANCE,
    fov: float = FOV,
) -> Bool[np.ndarray, "views size size"]:
    """Render the pixels that see the object; parameters and errors as in ``render_views``."""
    frames = _frames(azimuths, elevations)
    masks = np.zeros(len(frames) * size * size, dtype=bool)
    masks[_cast(mesh, frames, size, distance, fov).pixel] = True
    return masks.reshape(len(frames), size, size)


def view_strip(
    mesh: Trimesh,
    *,
    size: int = 192,
    azimuths: Sequence[Angle] = (30.0, 120.0, 210.0, 300.0),
    elevations: Sequence[Angle] | Angle = 20.0,
    face_colors: UInt8[np.ndarray, "faces 3"] | None = None,
    vertex_colors: UInt8[np.ndarray, "vertices 3"] | None = None,
) -> Image:
    """Return the views side by side as one RGB picture, with smooth edges (2 x 2 rays a pixel).

    The picture is ``size`` high and ``size * len(azimuths)`` wide.
    """
    from PIL import Image as PILImage

    views = render_views(
        mesh,
        size=2 * size,
        azimuths=azimuths,
        elevations=elevations,
        face_colors=face_colors,
        vertex_colors=vertex_colors,
    )
    fine = views.reshape(len(azimuths), size, 2, size, 2, 3)
    coarse = np.rint(fine.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    return PILImage.fromarray(np.concatenate(list(coarse), axis=1))


def _frames(
    azimuths: Sequence[Angle], elevations: Sequence[Angle] | Angle
) -> Float[np.ndarray, "views 3 3"]:
    """Return each camera's axes as rows: right, up, backward (from the origin to the eye)."""
    azimuth = np.radians(np.asarray(azimuths, dtype=np.float64))
    elevation = np.radians(np.asarray(elevations, dtype=np.float64))
    if azimuth.ndim != 1 or azimuth.size == 0 or elevation.shape not in ((), azimuth.shape):
        raise ValueError(
            f"got {azimuth.size} azimuths and {elevation.size} elevations; "
            "give one elevation for all views, or one each"
        )
    if not (np.abs(elevation) < 0.5 * math.pi).all():
        raise ValueError("elevations must lie strictly between -90 and 90 degrees")
    elevation = np.broadcast_to(elevation, azimuth.shape)
    zero = np.zeros_like(azimuth)
    right = np.stack([np.cos(azimuth), zero, -np.sin(azimuth)], axis=-1)
    backward = np.stack(
        [
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
            np.cos(elevation) * np.cos(azimuth),
        ],
        axis=-1,
    )
    return np.stack([right, np.cross(backward, right), backward], axis=1)


def _cast(mesh: Trimesh, frames: np.ndarray, size: int, distance: float, fov: float) -> _Hits:
    """Cast one ray a pixel inside each view's projected bounding box."""
    if size < 1 or not 0 < fov < 180:
        raise ValueError(f"got size={size}, fov={fov}; size >= 1 and 0 < fov < 180 degrees")
    if len(mesh.faces) == 0:
        none, ids = np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
        return _Hits(ids, ids, none, ids, none.reshape(0, 2), *(none.reshape(0, 3),) * 2)
    vertices = np.asarray(mesh.vertices, dtype=np.float32)
    radius = math.sqrt(float((vertices**2).sum(axis=1).max()))
    if not radius < distance:
        raise ValueError(
            f"the mesh reaches {radius:.3g} from the origin and the camera stands at "
            f"{distance:.3g}; normalise the mesh or move the camera away"
        )
    tangent = math.tan(math.radians(fov) / 2)
    axes = frames.astype(np.float32)
    along = vertices @ axes.reshape(-1, 3).T  # (vertices, views * 3)
    along = along.reshape(len(vertices), len(axes), 3)
    scale = 1.0 / (tangent * (distance - along[..., 2]))
    across, upward = along[..., 0] * scale, along[..., 1] * scale  # -1 to 1 over the picture
    lower = np.stack([across.min(axis=0), -upward.max(axis=0)], axis=1)  # column, row
    upper = np.stack([across.max(axis=0), -upward.min(axis=0)], axis=1)
    first = np.clip(np.floor((lower + 1) * 0.5 * size).astype(int) - 1, 0, size)
    last = np.clip(np.ceil((upper + 1) * 0.5 * size).astype(int) + 1, 0, size)

    centres = (((np.arange(size) + 0.5) / size * 2 - 1) * tangent).astype(np.float32)
    blocks, pixels, views = [], [], []
    for view, (right, up, backward) in enumerate(axes):
        (left, top), (stop, bottom) = first[view], last[view]
        block = np.zeros((bottom - top, stop - left, 6), dtype=np.float32)
        block[..., :3] = distance * backward
        # Length 1 along the optical axis, so that the hit distance is the depth.
        block[..., 3:] = (
            centres[left:stop, None] * right - centres[top:bottom, None, None] * up - backward
        )
        blocks.append(block.reshape(-1, 6))
        rows, columns = np.arange(top, bottom), np.arange(left, stop)
        pixels.append(((view * size + rows[:, None]) * size + columns).ravel())
        views.append(np.full(len(pixels[-1]), view))
    rays = np.concatenate(blocks)
    answer = raycasting_scene(mesh).cast_rays(import_open3d().core.Tensor.from_numpy(rays))
    depth = answer["t_hit"].numpy()
    seen = np.nonzero(np.isfinite(depth))[0]
    return _Hits(
        np.concatenate(pixels)[seen],
        np.concatenate(views)[seen],
        depth[seen],
        answer["primitive_ids"].numpy()[seen].astype(np.int64),
        answer["primitive_uvs"].numpy()[seen],
        answer["primitive_normals"].numpy()[seen],
        rays[seen, 3:],
    )


def _shade(hits: _Hits, frames: np.ndarray) -> np.ndarray:
    """Return the light that each hit reflects, from AMBIENT to 1."""
    # Both sides of a face are lit: turn the normal against the ray.
    away = np.einsum("hc,hc->h", hits.normal, hits.ray) > 0
    normal = np.where(away[:, None], -hits.normal, hits.normal)
    shade = np.full(len(normal), AMBIENT, dtype=np.float32)
    for direction, strength in LIGHTS:
        unit = np.asarray(direction) / np.linalg.norm(direction)
        lights = (unit @ frames).astype(np.float32)  # (views, 3), from camera to world axes
        facing = np.einsum("hc,hc->h", normal, lights[hits.view])
        shade += np.float32(strength) * np.maximum(facing, np.float32(0))
    return shade


def _depth_maps(hits: _Hits, n_views: int, size: int, distance: float) -> np.ndarray:
    reach = math.sqrt(3.0) / 2  # half the diagonal of the unit cube
    maps = np.zeros(n_views * size * size, dtype=np.float32)
    nearness = (distance + reach - hits.depth) / (2 * reach)
    maps[hits.pixel] = np.clip(nearness, 1 / 255, 1.0)
    return maps.reshape(n_views, size, size)
