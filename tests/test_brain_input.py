"""How the networks read a recording: standardised vertices, squares of the flat map, frames."""

import numpy as np
import pytest
import torch

from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex
from neurodiff.pipelines.brain_input import BrainInput, frames_at_test


def recording_of(data, space=None):
    return Recording.from_arrays(np.asarray(data, np.float32), space=space)


def vectors(n_features=23, trials=70, frames=3, seed=0):
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.1, 30, n_features), rng.normal(0, 100, n_features)
    return (rng.normal(size=(trials, frames, n_features)) * scale + offset).astype(np.float32)


def fitted(data, *, patch_size=2, image_size=256, space=None):
    return BrainInput.fit(recording_of(data, space), patch_size=patch_size, image_size=image_size)


# ---------------------------------------------------------------------------- standardisation


def test_mean_and_deviation_over_trials_and_frames():
    data = vectors()
    brain = fitted(data)
    flat = data.reshape(-1, data.shape[-1]).astype(float)
    np.testing.assert_allclose(brain.mean, flat.mean(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(brain.std, flat.std(axis=0), rtol=1e-5)
    z = brain.standardised(data)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axis=(0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(axis=(0, 1)), 1, atol=1e-3)
    np.testing.assert_allclose(brain.betas(recording_of(data)), z.mean(axis=1), atol=1e-5)


def test_betas_without_frames_are_trials_of_one_frame():
    data = vectors(frames=1)[:, 0]
    brain = fitted(data)
    assert brain.standardised(data).shape == (70, 1, 23)
    np.testing.assert_allclose(
        brain.betas(recording_of(data)), (data - data.mean(0)) / data.std(0), atol=1e-3
    )
    with pytest.raises(UsageError, match=r"\(frames, features\)"):
        fitted(np.zeros((4, 2, 2, 5)) + np.arange(5))


@pytest.mark.parametrize("value", [0.0, 10_000.1, -3e6, 1e-12])
def test_a_constant_vertex_reads_as_zero(value):
    data = vectors()
    data[..., 4] = value
    brain = fitted(data)
    assert not brain.standardised(data)[..., 4].any()
    other = data.copy()
    other[..., 4] += 7.0  # even where a new recording differs there
    assert not brain.standardised(other)[..., 4].any()
    assert np.isfinite(brain.standardised(other)).all()
    assert (brain.standardised(data)[..., 5] != 0).any()


def test_small_units_are_no_constants():
    data = vectors() * np.float32(1e-9)  # volts, say
    z = fitted(data).standardised(data)
    np.testing.assert_allclose(z.std(axis=(0, 1)), 1, atol=1e-2)


# ------------------------------------------------------------------------------------ patches


def test_vectors_are_dealt_into_squares():
    brain = fitted(vectors(23))
    assert brain.patch_index.shape == (6, 4)  # 24 places for 23 vertices
    assert brain.image_size == 6  # a grid of 3 x 3 squares of side 2 holds them
    np.testing.assert_array_equal(brain.kept, np.arange(6))
    maps = torch.arange(1.0, 24.0).repeat(2, 1)
    got = brain.patches(maps)
    assert got.shape == (2, 6, 4)
    assert torch.equal(got[0].flatten(), torch.cat([torch.arange(1.0, 24.0), torch.zeros(1)]))


def test_pixels_of_the_flat_map_are_cut_into_its_squares():
    """168 of the 256 squares of 16 x 16 pixels touch the published mask."""
    pictures = np.random.default_rng(0).normal(size=(2, 1, 65536)).astype(np.float32)
    brain = fitted(pictures, patch_size=16, space=FlatImageSpace())
    assert len(brain.kept) == 168
    mask = load_visual_cortex().mask
    picture = torch.from_numpy(pictures[0].reshape(256, 256) * mask)
    squares = picture.reshape(16, 16, 16, 16).transpose(1, 2).reshape(256, 256)
    got = brain.patches(torch.from_numpy(pictures[0]))
    assert torch.equal(got[0], squares[brain.kept])


@pytest.fixture(scope="module")
def flat():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 2, 8921)).astype(np.float32)


@pytest.mark.parametrize("patch", [16, 64])
def test_squares_of_the_flat_map_show_its_pixels(flat, patch):
    brain = fitted(flat, patch_size=patch, space=FlatMapSpace())
    maps = flat[:, 0] + 5  # no value is 0 by chance
    pictures = FlatMapSpace().to_image(maps)  # (3, 256, 256)
    side = 256 // patch
    got = brain.patches(torch.from_numpy(maps)).numpy()
    whole = np.zeros((3, side * side, patch * patch), np.float32)
    whole[:, brain.kept] = got
    for row in range(side):
        for column in range(side):
            square = pictures[:, row * patch :, column * patch :][:, :patch, :patch]
            np.testing.assert_array_equal(whole[:, row * side + column], square.reshape(3, -1))
    assert len(brain.kept) < side * side or patch == 64
    assert (got != 0).any(axis=2).all()  # no kept square is outside the cortex
    assert brain.image_size == 256


def test_flat_map_of_another_size_is_refused(flat):
    with pytest.raises(UsageError, match="image_size is 128"):
        fitted(flat, patch_size=16, image_size=128, space=FlatMapSpace())
    with pytest.raises(UsageError, match="must divide it"):
        fitted(flat, patch_size=48, space=FlatMapSpace())


# ------------------------------------------------------------------------- other recordings


def test_other_vertices_are_refused():
    brain = fitted(vectors(23))
    same = recording_of(vectors(23, seed=1))
    assert brain.accept(same) is same
    with pytest.raises(UsageError, match=r"24 features .*fitted on 23 .*Use the same mask"):
        brain.accept(recording_of(vectors(24)))


def test_as_many_but_other_vertices_are_refused(flat):
    brain = fitted(flat, patch_size=64, space=FlatMapSpace())
    with pytest.raises(UsageError, match="Use the same mask"):
        brain.accept(recording_of(flat))  # 8,921 numbers that are no vertices


def test_published_flat_maps_are_read_at_the_vertices(flat):
    brain = fitted(flat, patch_size=64, space=FlatMapSpace())
    cortex = load_visual_cortex()
    pictures = (cortex.pixel_weights @ flat.reshape(6, -1).T).T.reshape(3, 2, -1)
    pixels = recording_of(pictures, FlatImageSpace())
    read = brain.accept(pixels)
    assert read.data.shape == (3, 2, 8921)
    assert isinstance(read.space, FlatMapSpace)
    np.testing.assert_array_equal(read.trials, pixels.trials)
    np.testing.assert_array_equal(
        read.data[[2, 0]], FlatImageSpace().to_vertices(pictures[[2, 0]].astype(np.float32))
    )
    assert read.data[1].shape == (2, 8921)
    # a vertex that has a pixel of its own comes back as it was
    alone = np.zeros(8921, bool)
    entries = cortex.pixel_weights.tocoo()
    alone[entries.col[entries.data == 1]] = True
    assert alone.sum() > 4000
    np.testing.assert_allclose(read.array()[..., alone], flat[..., alone], atol=1e-5)
    assert read.roi("V1").n_features == cortex.area("V1").sum()
    assert np.isfinite(brain.betas(read)).all()


# ------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("available", "wanted", "frames"),
    [
        (10, 6, [2, 3, 4, 5, 6, 7]),  # as published
        (8, 6, [2, 3, 4, 5, 6, 7]),
        (7, 6, [1, 2, 3, 4, 5, 6]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (3, 6, [0, 1, 2, 2, 2, 2]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_frames_at_test(available, wanted, frames):
    assert frames_at_test(available, wanted).tolist() == frames
