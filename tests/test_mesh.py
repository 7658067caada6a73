"""Grids to meshes and back: volumes and memberships known in closed form."""

import builtins

import numpy as np
import pytest
import trimesh

from neurodiff.core.errors import DataError
from neurodiff.geometry import mesh as meshes

RADIUS = 0.4


def ball(n: int, radius: float = RADIUS, centre: tuple = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Minus the signed distance of a ball on the grid."""
    return radius - np.linalg.norm(meshes.grid_points(n) - np.float32(centre), axis=-1)


def test_grid_is_in_ij_order_and_spans_the_box():
    nodes = meshes.grid_points(5, box=2.0)
    np.testing.assert_allclose(nodes[0, 2, 4], [-1.0, 0.0, 1.0])


def test_ball_has_the_volume_of_a_ball_and_outward_normals():
    mesh = meshes.occupancy_to_mesh(ball(48))
    assert mesh.is_watertight
    # Chords cut the sphere inside by about step^2 / radius: below 1% here; inverted faces give -.
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)
    np.testing.assert_allclose(mesh.bounds, [[-RADIUS] * 3, [RADIUS] * 3], atol=2e-3)


def test_axes_are_not_exchanged():
    mesh = meshes.occupancy_to_mesh(ball(32, 0.1, (0.3, 0.0, -0.2)))
    np.testing.assert_allclose(mesh.bounds.mean(axis=0), [0.3, 0.0, -0.2], atol=2e-3)


def test_level_moves_the_surface():
    field = ball(48)
    mesh = meshes.occupancy_to_mesh(field, level=0.1)
    np.testing.assert_allclose(mesh.bounds, [[-0.3] * 3, [0.3] * 3], atol=2e-3)
    shifted = meshes.occupancy_to_mesh(field - np.float32(0.1))
    np.testing.assert_allclose(mesh.vertices, shifted.vertices, atol=1e-6)


def test_full_grid_is_closed_at_its_border():
    n, box = 9, 2.0
    mesh = meshes.occupancy_to_mesh(np.ones((n, n, n), np.float32), box=box)
    assert mesh.is_watertight
    overhang = (mesh.extents - box) / (box / (n - 1)) / 2
    assert (overhang > 0).all()
    assert (overhang < 0.1).all()


def test_nothing_above_the_level_gives_an_empty_mesh():
    assert len(meshes.occupancy_to_mesh(np.full((6, 6, 6), -1.0)).faces) == 0


def test_largest_components_are_kept():
    field = np.maximum(ball(40, 0.2, (-0.25, 0, 0)), ball(40, 0.1, (0.3, 0, 0)))
    field = np.maximum(field, ball(40, 0.06, (0.3, 0.3, 0)))
    assert len(meshes.occupancy_to_mesh(field).split()) == 3
    two = meshes.occupancy_to_mesh(field, components=2)
    assert sorted(piece.bounds.mean(axis=0)[0] > 0 for piece in two.split()) == [False, True]
    one = meshes.occupancy_to_mesh(field, components=1)
    assert one.is_watertight
    assert one.volume == pytest.approx(4 / 3 * np.pi * 0.2**3, rel=0.03)


def test_field_with_nan_is_refused():
    field = ball(8)
    field[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        meshes.occupancy_to_mesh(field)


def test_normalised_mesh_fills_the_convention_without_touching_its_input():
    box = trimesh.creation.box((4, 2, 1))
    box.apply_translation((7, 8, 9))
    unit = meshes.normalise_mesh(box)
    np.testing.assert_allclose(unit.bounds, [[-0.5, -0.25, -0.125], [0.5, 0.25, 0.125]])
    np.testing.assert_allclose(box.bounds[0], [5, 7, 8.5])


def test_closed_solid_keeps_its_place_and_volume():
    box = trimesh.creation.box((2.0, 1.2, 0.8))
    box.apply_translation((5, -3, 1))
    closed = meshes.make_watertight(box, 32)
    assert closed.is_watertight
    assert closed.volume == pytest.approx(box.volume, rel=0.02)
    np.testing.assert_allclose(closed.bounds, box.bounds, atol=0.02)


def test_overlapping_solids_become_their_union():
    pair = trimesh.util.concatenate(
        [trimesh.creation.box((1, 0.5, 0.5)), trimesh.creation.box((0.5, 0.5, 1))]
    )
    pair.faces = pair.faces[:, ::-1]  # inside out, as found in the wild
    closed = meshes.make_watertight(pair, 40)
    assert closed.is_watertight
    assert closed.volume == pytest.approx(0.25 + 0.25 - 0.125, rel=0.04)


def test_open_sheet_becomes_a_plate_of_one_cell():
    sheet = trimesh.Trimesh(
        [[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], [[0, 1, 2], [0, 2, 3]]
    )
    closed = meshes.make_watertight(sheet, 32)
    assert closed.is_watertight
    step = (1 + 8 / 32) / 39
    assert closed.extents[2] == pytest.approx(step, rel=0.1)
    assert closed.volume == pytest.approx(step, rel=0.1)


def test_surface_samples_lie_on_the_surface_and_follow_the_area():
    box = trimesh.creation.box((1.0, 0.5, 0.25))
    points = meshes.sample_surface(box, 20_000, np.random.default_rng(0))
    on_face = np.isclose(np.abs(points), box.extents / 2)
    assert on_face.any(axis=1).all()
    shares = on_face.mean(axis=0)
    areas = np.array([0.5 * 0.25, 1.0 * 0.25, 1.0 * 0.5])
    # Standard error of a share is below 0.0036: five of them.
    np.testing.assert_allclose(shares, areas / areas.sum(), atol=0.018)
    # Uniform within a rectangle: mean square of a coordinate is side^2 / 12.
    top = points[on_face[:, 2]]
    assert (top[:, 0] ** 2).mean() == pytest.approx(1 / 12, rel=0.05)


def test_surface_samples_repeat_with_the_generator():
    box = trimesh.creation.box((1, 1, 1))
    a, b, c = (meshes.sample_surface(box, 50, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_occupancy_of_a_box_is_exact():
    box = trimesh.creation.box((0.8, 0.6, 0.4))
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 3))
    inside = meshes.occupancy_of(box, points)
    np.testing.assert_array_equal(inside, (np.abs(points) < [0.4, 0.3, 0.2]).all(axis=1))
    np.testing.assert_array_equal(inside, meshes.occupancy_of(box, points))


def test_occupancy_survives_rays_through_edges():
    box = trimesh.creation.box((1, 1, 1))
    grid = meshes.grid_points(9, box=0.8)  # many nodes on the diagonals of faces
    assert meshes.occupancy_of(box, grid).all()
    assert meshes.occupancy_of(box, grid).shape == (9, 9, 9)


def test_occupancy_of_an_open_mesh_is_refused():
    box = trimesh.creation.box((1, 1, 1))
    box.update_faces(np.arange(len(box.faces)) > 0)
    with pytest.raises(DataError, match=r"not watertight.*make_watertight"):
        meshes.occupancy_of(box, np.zeros((1, 3)))


@pytest.mark.parametrize("function", [meshes.normalise_mesh, meshes.make_watertight])
def test_empty_mesh_is_refused(function):
    with pytest.raises(DataError, match="no faces"):
        function(trimesh.Trimesh())


def test_missing_system_library_is_named(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name == "open3d":
            raise ImportError("libusb-1.0.so.0: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(DataError, match=r"apt-get install -y libusb-1\.0-0"):
        meshes.import_open3d()
