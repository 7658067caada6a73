"""Multiresolution surface extraction: golden grid and mesh, closed forms, exact hits, errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from neurodiff.geometry.mise import extract, grid_to_mesh

CASE = json.loads((Path(__file__).parent / "golden" / "mind3d_mise.json").read_text())[
    "mind3d.mise_mesh"
]
GOLDEN = CASE["outputs"]


def golden_field(points):
    x, y, z = points.T
    bumps = 0.06 * np.sin(9 * x + 0.3) * np.cos(7 * y)
    return 0.33 - np.linalg.norm(points, axis=1) + bumps + 0.04 * z


def dense_grid(field, n, box):
    axis = box * (np.arange(n) / (n - 1) - 0.5)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return field(points).reshape(n, n, n)


@pytest.fixture(scope="module")
def golden_grid():
    config = CASE["config"]
    assert config["box"] == 1.1
    return extract(
        golden_field,
        threshold=config["threshold"],
        resolution0=config["resolution0"],
        upsampling_steps=config["upsampling_steps"],
    )


def test_grid_and_queries_equal_the_published_code(golden_grid):
    values, queries = golden_grid
    golden = GOLDEN["mise_grid"]
    assert queries == GOLDEN["mise_queries"]
    assert list(values.shape) == golden["shape"]
    assert int((values >= 0.1).sum()) == GOLDEN["n_inside"]
    flat = values.ravel()
    ours = {
        "mean": flat.mean(),
        "std": flat.std(ddof=1),
        "absmax": np.abs(flat).max(),
        "v0": flat[0],
        "v17": flat[17],
        "vlast": flat[-1],
        "proj": (flat * np.cos(0.7 * np.arange(flat.size))).mean(),
    }
    for key, value in ours.items():
        assert abs(value - golden[key]) <= 1e-9 * golden["absmax"], key


def test_every_point_is_on_its_true_side_and_exact_at_the_surface(golden_grid):
    values, queries = golden_grid
    dense = dense_grid(golden_field, len(values), 1.1)
    np.testing.assert_array_equal(values >= 0.1, dense >= 0.1)
    inside = dense >= 0.1
    for axis in range(3):  # both ends of every edge that the surface crosses were asked
        a, b = np.moveaxis(inside, axis, 0)[:-1], np.moveaxis(inside, axis, 0)[1:]
        off = np.moveaxis(np.abs(values - dense), axis, 0)
        crossed = a != b
        assert off[:-1][crossed].max() < 1e-12
        assert off[1:][crossed].max() < 1e-12
    assert sum(queries) < 0.1 * values.size + 729


def test_mesh_equals_the_published_one(golden_grid):
    # the published code holds its threshold in float32, which moves the surface by 1.5e-9
    mesh = grid_to_mesh(golden_grid[0], threshold=float(np.float32(0.1)))
    assert len(mesh.vertices) == GOLDEN["n_vertices"]
    assert len(mesh.faces) == GOLDEN["n_faces"]
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.bounds, GOLDEN["bounds"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mesh.vertices.mean(0), GOLDEN["vertex_mean"], rtol=0, atol=1e-12)
    assert mesh.area == pytest.approx(GOLDEN["area"], rel=1e-3)
    assert mesh.volume == pytest.approx(GOLDEN["signed_volume"], rel=1e-3)
    worst = np.abs(golden_field(mesh.vertices) - 0.1).max()
    assert worst == pytest.approx(GOLDEN["max_abs_field_at_vertices"], abs=1e-9)


def test_ball_has_its_volume_and_area():
    def ball(points):
        return 0.3 - np.linalg.norm(points, axis=1)

    values, _ = extract(ball, threshold=0.0, resolution0=16, upsampling_steps=1)
    mesh = grid_to_mesh(values, threshold=0.0)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01)
    assert mesh.area == pytest.approx(4 * np.pi * 0.3**2, rel=0.01)
    assert mesh.euler_number == 2


@pytest.mark.parametrize(
    ("norm", "threshold", "volume", "area"),
    [
        (lambda p: np.abs(p).max(axis=1), 0.25, 0.125, 1.5),  # cube on grid planes
        (lambda p: np.abs(p).sum(axis=1), 0.5, 1 / 6, np.sqrt(3)),  # octahedron on grid points
    ],
)
def test_values_equal_to_the_threshold_leave_the_mesh_closed(norm, threshold, volume, area):
    values, _ = extract(
        lambda p: -norm(p), threshold=-threshold, resolution0=8, upsampling_steps=1, box=1.0
    )
    mesh = grid_to_mesh(values, threshold=-threshold, box=1.0)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(volume, rel=1e-12)
    assert mesh.area == pytest.approx(area, rel=1e-12)


def test_noise_gives_closed_meshes():
    for seed in range(3):
        values = np.random.default_rng(seed).normal(size=(9, 9, 9))
        mesh = grid_to_mesh(values, threshold=0.1)
        assert mesh.is_watertight
        assert mesh.volume > 0


def test_batches_change_nothing_and_stay_small(golden_grid):
    sizes = []

    def field(points):
        sizes.append(len(points))
        return golden_field(points)

    values, queries = extract(field, threshold=0.1, resolution0=8, upsampling_steps=2, batch=500)
    np.testing.assert_array_equal(values, golden_grid[0])
    assert queries == golden_grid[1]
    assert max(sizes) == 500
    assert sum(sizes) == sum(queries)


def test_full_box_is_closed_and_empty_box_has_no_faces():
    full, queries = extract(lambda p: np.ones(len(p)), threshold=0.0, resolution0=4)
    assert queries == [125]
    mesh = grid_to_mesh(full, threshold=0.0)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1.1**3, rel=1e-5)
    assert len(grid_to_mesh(-full, threshold=0.0).faces) == 0


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"returned shape \(27, 1\) for 27 points"):
        extract(lambda p: p[:, :1], threshold=0.0, resolution0=2, upsampling_steps=0)
    with pytest.raises(ValueError, match="27 values that are not finite"):
        extract(lambda p: np.full(len(p), np.nan), threshold=0.0, resolution0=2)
    with pytest.raises(ValueError, match="resolution0 0"):
        extract(golden_field, threshold=0.0, resolution0=0)
    with pytest.raises(ValueError, match="batch is 0"):
        extract(golden_field, threshold=0.0, resolution0=2, batch=0)
    with pytest.raises(ValueError, match="expected a cube"):
        grid_to_mesh(np.zeros((3, 3, 4)), threshold=0.0)
