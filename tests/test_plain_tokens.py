"""Tokens without weights: what they are in closed form, and that they are the same for ever."""

import numpy as np
import pytest
from PIL import Image

from neurodiff.core.errors import DataError, UsageError
from neurodiff.features.plain_tokens import PatchTokens, WordTokens


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def patches(pictures):
    return PatchTokens(grid=2, width=12).fit(pictures)


def test_words_have_fixed_directions():
    """Token k is word k's direction, divided by the length of the mean over words (token 0)."""
    words = WordTokens(tokens=5, width=16)
    found = words.text([["a red chair"], ["chair"], ["CHAIR!"]])
    assert found.shape == (3, *words.text_shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found[:, 0], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[1, 0], found[1, 1], rtol=1e-6)  # one word is its own mean
    np.testing.assert_array_equal(found[1], found[2])
    assert not found[0, 4:].any()
    assert not found[1, 2:].any()
    # the third word of the first caption points where the only word of the second does
    a, b = found[0, 3], found[1, 1]
    np.testing.assert_allclose(a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-6)
    # and the mean over words is token 0
    np.testing.assert_allclose(found[0, 1:4].mean(axis=0), found[0, 0], atol=1e-6)


def test_several_captions_are_averaged():
    words = WordTokens()
    both = words.text([["a lamp", "the blue lamp at night"]])
    each = words.text([["a lamp"], ["the blue lamp at night"]])
    np.testing.assert_allclose(both[0], each.mean(axis=0), atol=1e-6)


def test_long_captions_are_cut_and_the_empty_one_has_tokens():
    words = WordTokens(tokens=4, width=16)
    long = words.text([["one two three four five six"]])[0]
    assert np.abs(long).sum(axis=1).all()
    null = words.null_text()
    assert null.shape == (4, 16)
    assert np.linalg.norm(null[0]) == pytest.approx(1, rel=1e-6)
    assert np.isfinite(null).all()


def test_word_directions_are_nearly_orthogonal():
    """Directions are Gaussian: cosines have an SD of 1/sqrt(width)."""
    names = [f"word{k}" for k in range(40)]
    vectors = WordTokens(tokens=2, width=400).text([[name] for name in names])[:, 0]
    cosines = (vectors @ vectors.T)[np.triu_indices(40, 1)]
    assert np.abs(cosines).max() < 5 / 20
    assert cosines.std() == pytest.approx(1 / 20, rel=0.15)


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        ("a chair", "plain strings"),
        (["a chair"], "plain strings"),
        ([[]], "picture 0 has no caption"),
        ([["a"], [" "]], "a caption of picture 1 is empty"),
    ],
)
def test_captions_of_other_kinds_are_refused(captions, sentence):
    with pytest.raises(UsageError, match=sentence):
        WordTokens().text(captions)


def test_patches_are_projections_on_orthonormal_axes(patches, pictures):
    mean, axes = patches.arrays()["mean"], patches.arrays()["axes"]
    np.testing.assert_allclose(axes @ axes.T, np.eye(12), atol=1e-5)
    assert (axes[np.arange(12), np.abs(axes).argmax(axis=1)] > 0).all()  # the sign is fixed
    tokens = patches.vision(pictures)
    assert tokens.shape == (40, 5, 12)
    np.testing.assert_allclose(np.linalg.norm(tokens[:, 0], axis=1), 1, rtol=1e-5)
    # token 0 by hand: means of 4 x 4 pixels, rounded to whole grey values by the resizing
    small = pictures[:1].reshape(1, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(1, -1) / 127.5 - 1
    by_hand = (small - mean) @ axes.T
    by_hand /= np.linalg.norm(by_hand)
    np.testing.assert_allclose(tokens[0, 0], by_hand[0], atol=0.02)


def test_cells_are_row_by_row():
    """A bright quarter moves through tokens 1 to 4."""
    rng = np.random.default_rng(1)
    patches = PatchTokens(grid=2, width=3).fit(rng.integers(0, 256, (60, 16, 16, 3), np.uint8))
    # axes of which the first is the brightness
    flat = np.ones(192, np.float32) / np.sqrt(192)
    patches.with_arrays({"mean": np.zeros(192), "axes": np.stack([flat, flat, flat])})
    for cell, (rows, columns) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        image = np.zeros((1, 16, 16, 3), np.uint8)
        image[:, rows : rows + 8, columns : columns + 8] = 255
        brightness = patches.vision(image)[0, 1:, 0]
        assert brightness.argmax() == cell


def test_arrays_there_and_back(patches, pictures):
    other = PatchTokens(grid=2, width=12).with_arrays(patches.arrays())
    np.testing.assert_array_equal(other.vision(pictures[:3]), patches.vision(pictures[:3]))
    images = [Image.fromarray(one) for one in pictures[:3]]
    np.testing.assert_array_equal(patches.vision(images), patches.vision(pictures[:3]))
    alone = patches.vision(pictures[2:3])
    np.testing.assert_allclose(alone[0], patches.vision(pictures[:3])[2], atol=1e-6)
    assert patches.null_vision().shape == patches.vision_shape


def test_wrong_use_is_told(pictures):
    with pytest.raises(UsageError, match="no axes yet"):
        PatchTokens().vision(pictures)
    with pytest.raises(DataError, match="10 patches are too few for 12 axes"):
        PatchTokens(grid=2, width=12).fit(pictures[:2])
    with pytest.raises(UsageError, match="rescaled again"):
        PatchTokens(width=4).fit(pictures.astype(np.float32))
    with pytest.raises(UsageError, match="mode L"):
        PatchTokens(width=4).fit([Image.new("L", (8, 8))])
    for grid, width in ((0, 4), (2, 0), (2, 193)):
        with pytest.raises(UsageError, match="give 1 or more"):
            PatchTokens(grid=grid, width=width)
    for tokens, width in ((1, 8), (8, 1)):
        with pytest.raises(UsageError, match="at least 2 of each"):
            WordTokens(tokens=tokens, width=width)
