"""Fréchet distance: two Gaussians in closed form, the published number, and its uncertainty."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from neurodiff.metrics.frechet import frechet_distance, frechet_interval

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics_fpd.json").read_text())


def quad(shape, w, phase):
    i = np.arange(math.prod(shape))
    return np.cos(w * ((7 * i * i + 3 * i) % 10007) + phase).reshape(shape)


def moments(n, mean, sd, seed=0):
    """n vectors whose mean and covariance are exactly ``mean`` and ``diag(sd^2)``."""
    x = np.random.default_rng(seed).standard_normal((n, len(sd)))
    x -= x.mean(axis=0)
    root = np.linalg.cholesky(np.linalg.inv(np.cov(x, rowvar=False)))
    return x @ root * sd + mean


def test_published_number():
    x, y = quad((80, 8), 0.37, 0.1), 1.2 * quad((90, 8), 0.53, 0.6) + 0.1
    golden = GOLDEN["metrics.fpd_frechet"]["outputs"]["fpd"]
    assert frechet_distance(x, y) == pytest.approx(golden, abs=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_two_gaussians_in_closed_form():
    """|difference of means|^2 + sum of (s - t)^2 for covariances with common axes."""
    a = moments(50, np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    b = moments(70, np.array([0.0, 3.0, 2.0]), np.array([2.0, 2.0, 1.0]), seed=1)
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 0 + 4, rel=1e-9)


def test_more_dimensions_than_vectors():
    """Coordinates that are zero in both sets add nothing, so the small case gives the number."""
    a = moments(6, np.zeros(2), np.array([1.0, 2.0]))
    b = moments(6, np.ones(2), np.array([3.0, 1.0]), seed=1)
    wide = [np.hstack([x, np.zeros((6, 40))]) for x in (a, b)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert "below 43" in frechet_interval(*wide).note


def test_interval_covers_the_choice_of_items():
    """Of 100 draws of a population about 95 intervals hold the population's distance."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        a, b = rng.standard_normal((200, 1)), 1.0 + rng.standard_normal((200, 1))
        found = frechet_interval(a, b)
        held += found.low <= 1.0 <= found.high
    assert 88 <= held <= 100
    assert found.n_items == 200
    assert found.method == "jackknife"


def test_two_items_have_no_interval():
    found = frechet_interval(np.eye(2), 2 * np.eye(2))
    assert np.isfinite(found.value)
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_refusals(without_shape_checks):
    with pytest.raises(ValueError, match="1 vectors"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="3 predictions for 4"):
        frechet_interval(np.zeros((3, 2)), np.zeros((4, 2)))
