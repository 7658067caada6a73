"""Views by ray casting: projections of boxes and balls known in closed form."""

import math

import numpy as np
import pytest
import trimesh

from neurodiff.geometry import views


def small_box(x: float, y: float, z: float) -> trimesh.Trimesh:
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    box.apply_translation((x, y, z))
    return box


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    """Mean row and column of a mask, -1 to 1 over the picture."""
    rows, columns = np.nonzero(mask)
    return tuple((index.mean() + 0.5) / mask.shape[0] * 2 - 1 for index in (rows, columns))


@pytest.mark.parametrize(
    ("place", "azimuth", "row", "column"),
    [
        ((0.3, 0, 0), 0, 0, 1),  # +x is right from +z
        ((0, 0.3, 0), 0, -1, 0),  # +y is the top
        ((0, 0, 0.3), 90, 0, -1),  # from +x, +z is left
        ((0.3, 0, 0), 180, 0, -1),  # from behind
    ],
)
def test_axes_land_where_the_convention_says(place, azimuth, row, column):
    mask = views.render_silhouettes(small_box(*place), size=101, azimuths=[azimuth], elevations=0)
    got = centre_of(mask[0])
    # A cube 0.3 off the axis at distance 2 appears at 0.3 / (2 tan(fov / 2)); its near face is
    # a little larger than its far one, hence the tolerance.
    offset = 0.3 / (2 * math.tan(math.radians(views.FOV / 2)))
    np.testing.assert_allclose(got, [row * offset, column * offset], atol=0.015)


def test_elevation_looks_down_from_above():
    mask = views.render_silhouettes(small_box(0, 0, 0.3), size=101, azimuths=[0], elevations=40)
    assert centre_of(mask[0])[0] > 0.1  # what is nearer moves down


def test_silhouette_of_a_ball_is_the_cone_that_touches_it():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    mask = views.render_silhouettes(ball, size=200)
    # Tangent cone: half angle asin(r / d).
    radius = math.tan(math.asin(0.4 / 2)) / math.tan(math.radians(views.FOV / 2))
    np.testing.assert_allclose(mask.mean(axis=(1, 2)), math.pi * radius**2 / 4, rtol=0.01)


def test_depth_of_a_facing_plate_is_exact_everywhere():
    plate = trimesh.creation.box((0.5, 0.5, 0.2))
    depth = views.render_depth(plate, size=40, azimuths=[0], elevations=0)[0]
    reach = math.sqrt(3) / 2
    nearness = (2 + reach - 1.9) / (2 * reach)  # planar, not radial: the same in the corners
    seen = depth > 0
    np.testing.assert_allclose(depth[seen], nearness, rtol=1e-6)
    side = 0.25 / 1.9 / math.tan(math.radians(views.FOV / 2))
    assert math.sqrt(seen.mean()) == pytest.approx(side, abs=1 / 40)


def test_depth_agrees_with_the_silhouette_and_the_picture():
    mesh = trimesh.creation.torus(0.3, 0.12)
    images, depth = views.render_views(mesh, size=48, depth=True)
    mask = views.render_silhouettes(mesh, size=48)
    np.testing.assert_array_equal(depth > 0, mask)
    np.testing.assert_array_equal((images < 255).all(axis=-1), mask)
    np.testing.assert_array_equal(depth, views.render_depth(mesh, size=48))
    assert depth.max() <= 1
    assert depth.dtype == np.float32


def test_published_views_hold_the_whole_cube():
    mask = views.render_silhouettes(trimesh.creation.box((1, 1, 1)), size=64)
    assert mask.shape == (6, 64, 64)
    border = np.ones((64, 64), bool)
    border[1:-1, 1:-1] = False
    assert not mask[:, border].any()


def test_culling_does_not_change_a_picture():
    """A second object in the corners widens the box of rays; the pixels of the first stay."""
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.2)
    corners = [small_box(*(0.45 * np.array(s))) for s in [(-1, 1, 0), (1, -1, 0)]]
    alone = views.render_views(ball, azimuths=[0], elevations=0)
    together = views.render_views(
        trimesh.util.concatenate([ball, *corners]), azimuths=[0], elevations=0
    )
    seen = views.render_silhouettes(ball, azimuths=[0], elevations=0)
    np.testing.assert_array_equal(alone[seen], together[seen])


def test_brightness_of_a_facing_plate_is_lamberts_law():
    plate = trimesh.creation.box((0.5, 0.5, 0.5))
    image = views.render_views(plate, size=21, azimuths=[0], elevations=0)[0]
    light = views.AMBIENT
    for direction, strength in views.LIGHTS:
        light += strength * direction[2] / math.sqrt(sum(c * c for c in direction))
    assert (image[10, 10] == round(255 * views.ALBEDO * light)).all()


def test_no_face_is_as_white_as_the_background():
    assert views.AMBIENT + sum(strength for _, strength in views.LIGHTS) <= 1
    assert views.ALBEDO < 1


def test_orientation_of_faces_does_not_matter():
    mesh = trimesh.creation.torus(0.3, 0.12)
    flipped = trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False)
    np.testing.assert_array_equal(views.render_views(mesh), views.render_views(flipped))


def test_lights_move_with_the_camera():
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    images = views.render_views(ball, size=32, azimuths=[0, 90, 180], elevations=0).astype(int)
    # The sphere of triangles is symmetric under these turns only up to its facets.
    assert np.abs(images[0] - images[1]).mean() < 2
    assert np.abs(images[0] - images[2]).mean() < 2


def test_the_same_call_gives_the_same_bytes():
    mesh = trimesh.creation.torus(0.3, 0.12)
    assert views.render_views(mesh).tobytes() == views.render_views(mesh.copy()).tobytes()


def test_colours_reach_the_right_faces():
    box = trimesh.creation.box((0.6, 0.6, 0.6))
    colors = np.where(box.face_normals[:, :1] > 0.5, [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    images = views.render_views(box, size=9, azimuths=[90, 0], elevations=0, face_colors=colors)
    assert images[0, 4, 4, 0] > 0
    assert (images[0, 4, 4, 1:] == 0).all()
    assert images[1, 4, 4, 2] > 0
    assert (images[1, 4, 4, :2] == 0).all()


def test_vertex_colours_are_interpolated():
    triangle = trimesh.Trimesh([[-0.4, -0.4, 0], [0.4, -0.4, 0], [0, 0.4, 0]], [[0, 1, 2]])
    colors = np.diag([240, 240, 240]).astype(np.uint8)
    # A ray through a vertex is hit or miss; through the centre of an edge's colours it is not:
    # the picture's centre is (0, 0), with weights 1/4, 1/4, 1/2.
    image = views.render_views(triangle, size=5, azimuths=[0], elevations=0, vertex_colors=colors)[
        0
    ]
    red, green, blue = image[2, 2].astype(int)
    assert red == green
    assert blue == pytest.approx(2 * red, abs=1)


def test_mesh_without_faces_is_background():
    empty = trimesh.Trimesh()
    assert (views.render_views(empty, size=8) == 255).all()
    assert (views.render_depth(empty, size=8) == 0).all()


def test_strip_is_one_picture_of_four():
    strip = views.view_strip(trimesh.creation.torus(0.3, 0.12), size=32)
    assert (strip.mode, strip.size) == ("RGB", (128, 32))
    panels = np.asarray(strip).reshape(32, 4, 32, 3)
    assert ((panels < 255).all(axis=-1).sum(axis=(0, 2)) > 50).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distance": 0.5}, "normalise the mesh"),
        ({"fov": 0.0}, "0 < fov < 180"),
        ({"azimuths": [0, 90], "elevations": [0.0, 1.0, 2.0]}, "one elevation for all"),
        ({"azimuths": [0], "elevations": 90.0}, "strictly between"),
        ({"face_colors": np.zeros((3, 3), np.uint8)}, "face_colors has shape"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        views.render_views(trimesh.creation.box((1, 1, 1)), **arguments)
