"""Shape distances: lattices, spheres and boxes in closed form; published code as golden numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import trimesh

from neurodiff.core.errors import DataError
from neurodiff.metrics import meshes
from neurodiff.metrics.transport import earth_movers_distance

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics_meshes.json").read_text())


def quad(shape: tuple, w: float, phase: float) -> np.ndarray:
    """Q of the golden file."""
    i = np.arange(math.prod(shape))
    return np.cos(w * ((7 * i * i + 3 * i) % 10007) + phase).reshape(shape)


def lattice(n: int = 4) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n, dtype=float)] * 3), axis=-1).reshape(-1, 3)


def on_sphere(n: int, radius: float) -> np.ndarray:
    """Fibonacci points: nearly even."""
    k = np.arange(n) + 0.5
    polar, turn = np.arccos(1 - 2 * k / n), np.pi * (1 + 5**0.5) * k
    unit = [np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)]
    return radius * np.stack(unit, axis=-1)


def test_chamfer_of_a_translated_lattice():
    """A shift by less than half a cell makes each point's own copy its nearest."""
    points, shift = lattice(), np.array([0.3, -0.1, 0.2])
    length = np.linalg.norm(shift)
    assert meshes.chamfer_distance(points, points + shift) == pytest.approx(2 * length**2)
    got = meshes.chamfer_distance(points, points + shift, squared=False)
    assert got == pytest.approx(2 * length)


def test_chamfer_of_a_lattice_shifted_by_a_whole_cell():
    """Only the layer that left is alone: 1/n of the points at distance 1, both ways."""
    points = lattice(5)
    assert meshes.chamfer_distance(points, points + np.array([1.0, 0, 0])) == pytest.approx(2 / 5)


def test_chamfer_of_concentric_spheres():
    # 4,000 points leave gaps of about r sqrt(4 pi / 4000) = 0.02: their square over the squared
    # distance of 0.04 is below 1%.
    a, b = on_sphere(4000, 0.3), on_sphere(4000, 0.5)
    assert meshes.chamfer_distance(a, b) == pytest.approx(2 * 0.2**2, rel=0.01)


def test_chamfer_of_a_batch_is_each_items():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 20, 3)), rng.normal(size=(3, 30, 3))
    each = [meshes.chamfer_distance(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(meshes.chamfer_distance(a, b), each)
    np.testing.assert_array_equal(meshes.CHAMFER(a, b), each)


def test_distances_are_those_of_the_published_code():
    case = GOLDEN["metrics.cd_emd"]["outputs"]
    a, b = 0.5 * quad((128, 3), 0.37, 0.2), 0.45 * quad((150, 3), 0.53, 0.9)
    assert meshes.chamfer_distance(a, b) == pytest.approx(case["cd"], abs=1e-12)
    assert meshes.chamfer_distance(b, a) == pytest.approx(case["cd_swapped"], abs=1e-12)
    assert meshes.chamfer_distance(a, a) == case["cd_self"] == 0
    a_unit, b_unit = meshes.normalise_points(a), meshes.normalise_points(b)
    after = meshes.chamfer_distance(a_unit, b_unit)
    assert after == pytest.approx(case["cd_after_pc_norm"], abs=1e-12)
    stats = case["pc_norm_a"]
    assert np.abs(a_unit).max() == pytest.approx(stats["absmax"], abs=1e-12)
    projection = (a_unit.ravel() * np.cos(0.7 * np.arange(a_unit.size))).mean()
    assert projection == pytest.approx(stats["proj"], abs=1e-12)


def test_earth_movers_distance_is_that_of_the_published_code():
    case = GOLDEN["metrics.cd_emd"]["outputs"]
    a, b = 0.5 * quad((128, 3), 0.37, 0.2), 0.45 * quad((150, 3), 0.53, 0.9)
    assert earth_movers_distance(a, b) == pytest.approx(case["emd"], abs=1e-9)
    same_size = earth_movers_distance(a[:64], b[:64])
    assert same_size == pytest.approx(case["emd_same_size"], abs=1e-9)


def test_earth_movers_distance_of_a_translation_is_its_length():
    """The transport bound |mean difference| is reached, even where neighbours are elsewhere."""
    points, shift = lattice(3), np.array([1.0, 2.0, -2.0])
    assert earth_movers_distance(points, points + shift) == pytest.approx(3.0)


def test_earth_movers_distance_splits_mass():
    one, two = np.zeros((1, 3)), np.array([[1.0, 0, 0], [0, 3.0, 0]])
    assert earth_movers_distance(one, two) == pytest.approx(2.0)


def test_f_score_counts_both_directions():
    truth = np.array([[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0]])
    predicted = np.array([[0.0, 0.1, 0], [9.0, 0, 0]])
    precision, recall = 1 / 2, 1 / 4
    expected = 2 * precision * recall / (precision + recall)
    assert meshes.f_score(predicted, truth, 0.1) == pytest.approx(expected)
    assert meshes.f_score(predicted, truth, 0.09) == 0
    assert meshes.f_score(truth, truth, 1e-9) == 1


def test_volume_iou_counts_points():
    a = np.array([[True, True, False, False], [False] * 4, [True] * 4])
    b = np.array([[True, False, True, False], [False] * 4, [False] * 4])
    np.testing.assert_allclose(meshes.volume_iou(a, b), [1 / 3, 1, 0])
    assert meshes.volume_iou(a[0], b[0]) == pytest.approx(1 / 3)


def test_pair_of_shifted_boxes():
    truth = trimesh.creation.box((1.0, 0.5, 0.5))
    moved = truth.copy()
    moved.apply_translation((0.25, 0, 0))
    scores = meshes.score_mesh_pair(moved, truth, n_points=512)
    # Overlap 0.75 of 1.25 in length; the grid has 32 cells over 1.25.
    assert scores["iou"] == pytest.approx(0.75 / 1.25, abs=1 / 32)
    assert scores["note"] == ""
    assert 0 < scores["f_score_1pct"] < scores["f_score_2pct"] < scores["f_score_5pct"] < 1


def test_mesh_against_itself_is_at_the_floor_of_sampling():
    box = trimesh.creation.box((1, 1, 1))
    scores = meshes.score_mesh_pair(box, box)
    assert scores["iou"] == 1
    # For n uniform points on an area A the squared distance to the nearest has mean A / (pi n).
    assert scores["cd"] == pytest.approx(2 * 6 / (math.pi * 2048), rel=0.15)
    assert scores["f_score_5pct"] > 0.9
    assert scores == meshes.score_mesh_pair(box, box)
    assert scores != meshes.score_mesh_pair(box, box, seed=1)


def test_empty_prediction_scores_the_worst():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    scores = meshes.score_mesh_pair(trimesh.Trimesh(), ball)
    assert scores["cd"] == pytest.approx(0.5**2 * 2, rel=0.01)  # origin to the ball, both ways
    assert [scores[key] for key in (*meshes.THRESHOLDS, "iou")] == [0, 0, 0, 0]
    assert "empty" in scores["note"]


def test_open_mesh_has_no_iou_and_says_why():
    box = trimesh.creation.box((1, 1, 1))
    lid_off = box.copy()
    lid_off.update_faces(np.arange(len(box.faces)) > 1)
    scores = meshes.score_mesh_pair(box, lid_off, n_points=64)
    assert math.isnan(scores["iou"])
    assert scores["note"] == "no IoU: the true mesh is not watertight"
    assert scores["cd"] > 0


def test_bad_input_is_named():
    box, points = trimesh.creation.box((1, 1, 1)), np.zeros((2, 3))
    with pytest.raises(DataError, match="true mesh has no faces"):
        meshes.score_mesh_pair(box, trimesh.Trimesh())
    with pytest.raises(ValueError, match="cube number"):
        meshes.score_mesh_pair(box, box, n_volume=1000 + 1)
    with pytest.raises(ValueError, match="second point set is empty"):
        meshes.chamfer_distance(points, np.zeros((0, 3)))
    with pytest.raises(ValueError, match="first point set holds NaN"):
        meshes.f_score(points * np.nan, points, 0.1)
    with pytest.raises(ValueError, match="coincide"):
        meshes.normalise_points(points)


def test_record_refuses_a_function_without_one_value_an_item():
    with pytest.raises(ValueError, match="CD gave values of shape"):
        meshes.CHAMFER(np.zeros((4, 3)), np.ones((4, 3)))
    assert meshes.CHAMFER.better(0.1, 0.2)
    assert meshes.F_SCORE_1PCT.better(0.2, 0.1)
    assert not meshes.VOLUME_IOU.better(0.2, 0.2)
