"""Shapes as arrays: primitives whose volume and surface are known."""

import numpy as np
import pandas as pd
import pytest
import trimesh

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.stimuli import Stimuli
from neurodiff.geometry.bank import bank_from_stimuli, grey_views, voxel_centres

MESHES = {
    "ball": lambda: trimesh.creation.icosphere(subdivisions=4, radius=3.0),
    "brick": lambda: trimesh.creation.box((4.0, 2.0, 1.0)).apply_translation((9.0, -5.0, 2.0)),
    "rod": lambda: trimesh.creation.cylinder(radius=0.2, height=1.0, sections=64),
}
#: after scaling to the longest side 1
VOLUME = {"ball": np.pi / 6, "brick": 0.5 * 0.25, "rod": np.pi * 0.04}


def stimuli_of(meshes):
    table = pd.DataFrame({"id": list(meshes), "category": [f"a {name}" for name in meshes]})
    return Stimuli(table, lambda name: meshes[name]())


@pytest.fixture(scope="module")
def bank():
    return bank_from_stimuli(stimuli_of(MESHES), seed=0)


def test_shapes_and_types(bank):
    assert bank.ids == ("ball", "brick", "rod")
    assert bank.categories == ("a ball", "a brick", "a rod")
    assert bank.surface.shape == (3, 2048, 3)
    assert bank.queries.shape == (3, 6144, 3)
    assert bank.occupied.shape == (3, 6144)
    assert bank.grid.shape == (3, 32, 32, 32)
    assert bank.views.shape == (3, 4, 64, 64)
    assert len(bank) == 3


@pytest.mark.parametrize("name", list(MESHES))
def test_volume_of_the_occupied_part_is_the_closed_form(bank, name):
    k = bank.ids.index(name)
    assert bank.grid[k].mean() == pytest.approx(VOLUME[name], rel=0.06)  # of 32^3 voxels
    uniform = bank.occupied[k, 3072:]  # drawn in the cube of side 1.1
    wanted = VOLUME[name] / 1.1**3
    assert uniform.mean() == pytest.approx(wanted, abs=4 * np.sqrt(wanted / 3072))


def test_points_of_a_ball_lie_where_they_should(bank):
    k = bank.ids.index("ball")
    radius = np.linalg.norm(bank.surface[k].astype(float), axis=1)
    np.testing.assert_allclose(radius, 0.5, atol=3e-3)
    distance = np.linalg.norm(bank.queries[k].astype(float), axis=1)
    clear = np.abs(distance - 0.5) > 3e-3
    np.testing.assert_array_equal(bank.occupied[k][clear], distance[clear] < 0.5)
    near = np.abs(distance[:3072] - 0.5)
    # the radial part of normal noise of SD 0.015 and 0.05 in equal shares: median |r| of 0.018
    assert np.median(near) == pytest.approx(0.0176, abs=0.004)
    centres = voxel_centres()
    inside = np.linalg.norm(centres, axis=1).reshape((32,) * 3)
    sure = np.abs(inside - 0.5) > 3e-3
    np.testing.assert_array_equal(bank.grid[k][sure], (inside < 0.5)[sure])


def test_queries_stay_in_the_cube(bank):
    assert np.abs(bank.queries.astype(float)).max() <= 0.5503  # float16 of 0.55
    assert np.abs(bank.surface.astype(float)).max() <= 0.5005


def test_brick_fills_its_axes(bank):
    k = bank.ids.index("brick")
    reach = np.abs(bank.surface[k].astype(float)).max(axis=0)
    np.testing.assert_allclose(reach, [0.5, 0.25, 0.125], atol=2e-3)
    occupied = np.argwhere(bank.grid[k])
    np.testing.assert_array_equal(occupied.max(0) - occupied.min(0) + 1, [32, 16, 8])


def test_voxel_centres_are_in_ij_order():
    centres = voxel_centres(4).reshape(4, 4, 4, 3)
    np.testing.assert_allclose(centres[3, 0, 1], [0.375, -0.375, -0.125])


def test_select_and_rows(bank):
    part = bank.select(["rod", "ball"])
    assert part.ids == ("rod", "ball")
    assert part.categories == ("a rod", "a ball")
    np.testing.assert_array_equal(part.grid, bank.grid[[2, 0]])
    np.testing.assert_array_equal(part.surface, bank.surface[[2, 0]])
    np.testing.assert_array_equal(bank.rows(["rod", "ball", "rod"]), [2, 0, 2])
    with pytest.raises(UsageError, match=r"no shape of stimulus 'cup' \(2 missing in all\)"):
        bank.select(["ball", "cup", "jug"])


def test_fingerprint_follows_the_arrays(bank):
    assert bank.fingerprint() == bank.select(list(bank.ids)).fingerprint()
    assert bank.fingerprint() != bank.select(["brick", "ball", "rod"]).fingerprint()
    changed = bank.select(list(bank.ids))
    changed.grid[1, 2, 3, 4] ^= True
    assert changed.fingerprint() != bank.fingerprint()


def test_an_objects_arrays_are_its_own(bank):
    """They depend on the seed and the id, not on the others."""
    alone = bank_from_stimuli(stimuli_of({"rod": MESHES["rod"]}), seed=0)
    assert alone.fingerprint() == bank.select(["rod"]).fingerprint()
    other = bank_from_stimuli(stimuli_of({"rod": MESHES["rod"]}), seed=1)
    assert not np.array_equal(other.surface, alone.surface)
    np.testing.assert_array_equal(other.grid, alone.grid)


def test_views_show_the_object_on_white(bank):
    for views in bank.views:
        assert (views[:, 0] == 255).all()  # the upper edge is free
        assert ((views < 250).mean(axis=(1, 2)) > 0.02).all()
    ball = bank.views[0]
    assert np.ptp((ball < 250).sum(axis=(1, 2))) <= 12  # a ball looks alike from all sides
    brick = grey_views(trimesh.creation.box((1.0, 0.5, 0.25)))
    np.testing.assert_allclose(brick.astype(float), bank.views[1], atol=1)


def test_an_open_mesh_is_closed():
    box = trimesh.creation.box((1.0, 1.0, 1.0))
    lidless = trimesh.Trimesh(box.vertices, box.faces[:-2])
    assert not lidless.is_watertight
    bank = bank_from_stimuli(stimuli_of({"crate": lambda: lidless}), seed=0)
    # a shell of some thickness, its walls at the sides of the unit cube, nothing between them
    assert 0.1 < bank.occupied[0, :3072].mean() < 0.9
    assert not bank.grid[0, 8:24, 8:24, 8:24].any()
    assert np.abs(bank.surface.astype(float)).max(axis=(0, 1)) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("bad", ["no faces", "a point", "not finite"])
def test_a_mesh_without_a_shape_names_its_stimulus(bad):
    ball = MESHES["ball"]()
    broken = {
        "no faces": lambda: trimesh.Trimesh(),
        "a point": lambda: trimesh.Trimesh(np.ones((3, 3)), [[0, 1, 2]], process=False),
        "not finite": lambda: trimesh.Trimesh(ball.vertices * np.nan, ball.faces, process=False),
    }
    with pytest.raises(DataError, match="'cup'"):
        bank_from_stimuli(stimuli_of({"rod": MESHES["rod"], "cup": broken[bad]}))


def test_missing_meshes_and_no_stimuli():
    with pytest.raises(MissingDataError, match="'cup' has no mesh"):
        bank_from_stimuli(Stimuli(pd.DataFrame({"id": ["cup"]})))
    with pytest.raises(UsageError, match="at least one"):
        bank_from_stimuli(Stimuli(pd.DataFrame({"id": []})))
