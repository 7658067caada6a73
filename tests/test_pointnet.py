"""The published point-cloud classifier: names, golden numbers, no influence of the batch."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from neurodiff.models.pointnet import PointNet, activations


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def case(recipe):
    return recipe.load("metrics_fpd")["metrics.pointnet"]


def test_names_and_size_are_the_published_ones(recipe, case):
    network = PointNet()
    assert recipe.manifest(network) == case["manifest"]["params"]
    assert sum(p.numel() for p in network.parameters()) == 1_607_190


def test_golden_numbers(recipe, case):
    network = recipe.fill(PointNet(), case["recipe"])
    i = np.arange(math.prod((3, 3, 40)))
    x = 0.5 * np.cos(0.37 * ((7 * i * i + 3 * i) % 10007) + 0.4).reshape(3, 3, 40)
    with torch.no_grad():
        logits, activation, transform = network(torch.from_numpy(x))
    assert activation.shape == (3, 1805)
    recipe.check(activation, case["outputs"]["activation"], 1e-9)
    recipe.check(transform, case["outputs"]["trans"], 1e-9)
    recipe.check(logits.log_softmax(0), case["outputs"]["log_softmax_dim0"], 1e-9)


def test_neither_the_batch_nor_the_order_of_points_changes_an_item():
    torch.manual_seed(0)
    network = PointNet(5).eval()
    clouds = np.random.default_rng(0).standard_normal((3, 64, 3)).astype(np.float32)
    together = activations(network, clouds)
    np.testing.assert_array_equal(activations(network, clouds[1:2])[0], together[1])
    np.testing.assert_allclose(activations(network, clouds[:, ::-1]), together, atol=1e-6)
    assert activations(network, clouds[:0]).shape == (0, 1797)


def test_batch_statistics_are_refused():
    with pytest.raises(ValueError, match="training mode"):
        activations(PointNet(2), np.zeros((1, 8, 3), np.float32))
