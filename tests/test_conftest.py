"""The checks that conftest promises are really on: they would else pass by being absent."""

import importlib
import sys

import jaxtyping
import numpy as np
import pytest

PROBE = """
import numpy as np
from jaxtyping import Float

def add(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]):
    return a + b
"""


@pytest.fixture(name="add")
def _add(tmp_path, monkeypatch):
    """A function of two arrays in a module that is imported as one of ``neurodiff.metrics``."""
    (tmp_path / "shape_probe.py").write_text(PROBE, encoding="utf-8")
    metrics = importlib.import_module("neurodiff.metrics")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    name = "neurodiff.metrics.shape_probe"
    importlib.invalidate_caches()
    yield importlib.import_module(name).add
    sys.modules.pop(name)


def test_shapes_are_checked(add):
    np.testing.assert_array_equal(add(np.ones(3), np.ones(3)), [2.0, 2.0, 2.0])
    with pytest.raises(jaxtyping.TypeCheckError, match="add"):
        add(np.ones(3), np.ones(1))  # numpy alone would broadcast this


def test_shape_checks_can_be_switched_off(add, without_shape_checks):
    np.testing.assert_array_equal(add(np.ones(3), np.ones(1)), [2.0, 2.0, 2.0])


def test_torch_uses_one_thread():
    torch = pytest.importorskip("torch")
    assert torch.get_num_threads() == 1
