"""Noise that was walked to is not walked to again, and is the same noise."""

import numpy as np
import pytest

from neurodiff.pipelines.ldae import LDAE
from neurodiff.pipelines.ldae_kept import KeptWalks


@pytest.fixture(scope="module")
def pipe():
    return LDAE.from_recipe("ldae_tiny")


@pytest.fixture
def walked(pipe, monkeypatch):
    """How many items went through the walk."""
    items = []
    encode = pipe.sampler.encode
    monkeypatch.setattr(
        pipe.sampler, "encode", lambda z, y, **how: items.append(len(z)) or encode(z, y, **how)
    )
    return items


def test_kept_noise_is_the_noise(pipe, walked):
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((3, *pipe.size.latent), np.float32)
    codes = rng.standard_normal((3, pipe.size.encoder.code), np.float32)
    plain = pipe.noise(latents, codes, steps=2)
    assert sum(walked) == 3
    with pipe.keeping_noise():
        first = pipe.noise(latents[:2], codes[:2], steps=2)
        again = pipe.noise(latents[::-1], codes[::-1], steps=2)
        assert sum(walked) == 6  # the third item alone was new
        pipe.noise(latents[:1], codes[1:2], steps=2)  # another code
        pipe.noise(latents[:1], codes[:1], steps=3)  # other steps
        pipe.noise(latents[:1], codes[:1], steps=2, method="ddim")
        assert sum(walked) == 9
    np.testing.assert_array_equal(first, plain[:2])
    np.testing.assert_array_equal(again, plain[::-1])
    pipe.noise(latents, codes, steps=2)
    assert sum(walked) == 12  # nothing is kept outside


def test_other_shapes_and_types_are_other_items():
    kept = KeptWalks()
    rows = np.arange(4, dtype=np.float32)
    kept(lambda x: x, rows.reshape(1, 4))
    asked = []
    for other in (rows.reshape(1, 2, 2), rows.view(np.int32).reshape(1, 4)):
        kept(lambda x: asked.append(x) or x, other)
    assert len(asked) == 2
