"""Principal components of views against numpy's singular value decomposition."""

import numpy as np
import pytest

from neurodiff.features.view_embedding import ViewEmbedding


def views(n, seed=0, size=8):
    """Smooth pictures with a falling spectrum, so that components are told apart."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).normal(size=(12, 2 * size * size))
    scores = rng.normal(size=(n, 12)) * 0.7 ** np.arange(12)
    pixels = 128 + 12 * scores @ patterns
    return np.clip(pixels, 0, 255).reshape(n, 2, size, size).astype(np.uint8)


def halved(pictures):
    n, k, h, w = pictures.shape
    small = np.zeros((n, k, h // 2, w // 2))
    for i in (0, 1):
        for j in (0, 1):
            small += pictures[:, :, i::2, j::2] / 4
    return small.reshape(n, -1) / 255


def expected(reference, new, dim, whiten):
    """Scores by the definition, up to the sign of each component."""
    pixels = halved(reference)
    centred = pixels - pixels.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    spread = singular[:dim] / np.sqrt(len(pixels))
    scores = (halved(new) - pixels.mean(axis=0)) @ axes[:dim].T / spread**whiten
    return scores / np.linalg.norm(scores, axis=1, keepdims=True) * np.sqrt(dim)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [20, 60])  # fewer and more pictures than the 32 pixels
def test_components_are_those_of_the_definition(n, whiten):
    reference, new = views(n), views(7, seed=1)
    embedding = ViewEmbedding.fit(reference, 6, whiten=whiten)
    got, wanted = embedding(new), expected(reference, new, 6, whiten)
    sign = np.sign((got * wanted).sum(axis=0))
    np.testing.assert_allclose(got * sign, wanted, atol=2e-3)
    assert got.dtype == np.float32
    assert embedding.axes.shape == (32, 6)
    np.testing.assert_allclose(embedding.axes.T @ embedding.axes, np.eye(6), atol=1e-4)


def test_length_is_the_root_of_the_dimension():
    embedding = ViewEmbedding.fit(views(40), 9)
    np.testing.assert_allclose(np.linalg.norm(embedding(views(11, seed=2)), axis=1), 3, rtol=1e-5)


def test_whitening_makes_spreads_equal():
    reference = views(60)

    def spreads(whiten):
        e = ViewEmbedding.fit(reference, 5, whiten=whiten)
        raw = (halved(reference) - e.mean) @ e.axes / e.scale
        return raw.std(axis=0)

    np.testing.assert_allclose(spreads(1.0), 1, rtol=1e-3)
    np.testing.assert_allclose(spreads(0.5) ** 2, spreads(0.0), rtol=1e-3)
    assert spreads(0.0)[0] > 1.5 * spreads(0.0)[-1]


def test_components_that_few_objects_lack_are_zero():
    """Six objects have five components: the others must not be amplified rounding."""
    reference = views(6)
    embedding = ViewEmbedding.fit(reference, 16, whiten=1.0)
    got = embedding(views(4, seed=3))
    assert got.shape == (4, 16)
    assert (np.abs(got[:, :5]) > 1e-3).any(axis=0).all()
    assert not got[:, 5:].any()
    twins = ViewEmbedding.fit(np.repeat(views(3), 4, axis=0), 8)(views(4, seed=3))
    assert not twins[:, 2:].any()
    assert np.isfinite(twins).all()


def test_a_fit_does_not_depend_on_what_it_embeds_later():
    embedding = ViewEmbedding.fit(views(30), 6)
    new = views(9, seed=4)
    np.testing.assert_allclose(embedding(new)[3:5], embedding(new[3:5]), atol=1e-5)
