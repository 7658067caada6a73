"""Transport, turns and the published adjustment: closed forms."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from neurodiff.metrics.alignment import adjust_2024, turn, turned_chamfer
from neurodiff.metrics.meshes import chamfer_distance
from neurodiff.metrics.transport import earth_movers_distance


def test_a_permutation_costs_nothing_and_a_translation_its_length():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((400, 3))  # above the size at which prices are used
    assert earth_movers_distance(points, rng.permutation(points)) == 0
    shift = np.array([3.0, 0.0, 4.0])
    moved = rng.permutation(points) + shift
    assert earth_movers_distance(points, moved) == pytest.approx(5.0, abs=1e-9)


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_prices_leave_the_optimum_where_it_is(spread):
    """A bad set of prices may cost time, never exactness: compared with the plain solver."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((300, 3)), spread * rng.standard_normal((300, 3)) ** 3
    cost = cdist(a, b)
    exact = cost[linear_sum_assignment(cost)].mean()
    assert earth_movers_distance(a, b) == pytest.approx(exact, rel=1e-12)


def test_coinciding_points_have_no_scale():
    assert earth_movers_distance(np.zeros((300, 3)), np.zeros((300, 3))) == 0


def test_a_turn_about_the_vertical_axis_is_found():
    rng = np.random.default_rng(2)
    points = rng.uniform(-0.5, 0.5, (600, 3)) * [1.0, 0.5, 0.2] + [0.1, 0, 0.05]
    turned = points @ turn(-73.4).T
    found = turned_chamfer(turned, points)
    assert chamfer_distance(turned, points) > 0.02
    assert found.angle == pytest.approx(73.4, abs=0.05)
    assert found.distance < 1e-6
    assert found.distance <= turned_chamfer(points, turned).distance + 1e-6


def test_a_turn_is_a_rotation_that_takes_front_to_the_right():
    np.testing.assert_allclose(turn(90) @ [0, 0, 1], [1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(turn(31) @ [0, 1, 0], [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(turn(31) @ turn(31).T, np.eye(3), atol=1e-15)


def test_turning_never_makes_it_worse():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 40, 3))
    assert turned_chamfer(a, b).distance <= chamfer_distance(a, b)


def test_the_published_adjustment_is_no_alignment():
    """Along the principal axes the covariance is diagonal; what comes out is not."""
    rng = np.random.default_rng(4)
    body = rng.standard_normal((500, 3)) * [3.0, 2.0, 1.0]
    body = (body - body.mean(axis=0)) @ Rotation.from_euler("xyz", [40, 70, 20], True).as_matrix()
    first = adjust_2024(body, np.zeros(3))
    _, axes = np.linalg.eigh(np.cov(body, rowvar=False))
    aligned, spread = (np.cov(x, rowvar=False) for x in (body @ axes, first))
    assert np.abs(aligned - np.diag(np.diag(aligned))).max() < 1e-9
    assert np.abs(spread - np.diag(np.diag(spread))).max() > 0.5
    # an orthogonal map about the given centre: distances between points stay
    np.testing.assert_allclose(cdist(first[:9], first[:9]), cdist(body[:9], body[:9]), atol=1e-12)
    np.testing.assert_allclose(adjust_2024(body + 7, np.full(3, 7.0)), first, atol=1e-9)
