"""Photon-limited images: the simulator's closed forms, the inverse, and the denoiser's promises."""

import numpy as np
import pytest

from neurodiff.core.errors import DataError, UsageError
from neurodiff.datasets.simulated.photons import hot_pixels, photon_images, photon_scenes
from neurodiff.pipelines.ct_photon import (
    PhotonDenoiser,
    anscombe_nlm,
    unbiased_inverse,
    without_hot,
)


@pytest.fixture(scope="module")
def pipe():
    return PhotonDenoiser.from_recipe("ct_photon_tiny").fit(seed=0)


def test_counts_are_poisson_of_signal_plus_dark():
    truth = np.full((4, 128, 128), 0.5, np.float32)
    made = photon_images(truth, 8.0, seed=3, dark=0.5, hot_share=0.01, hot_rate=50.0)
    normal = made.counts[:, ~made.hot]
    assert normal.mean() == pytest.approx(4.5, abs=0.03)
    assert normal.var() == pytest.approx(4.5, rel=0.03)
    assert made.counts[:, made.hot].mean() == pytest.approx(54, rel=0.03)
    assert made.hot.mean() == pytest.approx(0.01, abs=0.003)


def test_a_detector_keeps_its_hot_pixels_and_an_image_its_counts():
    scenes = photon_scenes(3, 32, seed=0)
    few = photon_images(scenes[:1], 8.0, seed=5)
    many = photon_images(scenes, 8.0, seed=5)
    assert np.array_equal(few.counts[0], many.counts[0])
    assert np.array_equal(few.hot, photon_images(scenes, 32.0, seed=5).hot)
    assert not np.array_equal(few.hot, hot_pixels((32, 32), 0.2, seed=6))
    assert scenes.min() >= 0
    assert scenes.max() <= 1
    assert scenes.std() > 0.05


@pytest.mark.parametrize("rate", [2.0, 5.0, 30.0])
def test_the_inverse_has_no_bias(rate):
    counts = np.random.default_rng(0).poisson(rate, 400_000)
    mean = (2 * np.sqrt(counts + 3 / 8)).mean()
    assert unbiased_inverse(mean) == pytest.approx(rate, rel=0.01)
    assert (mean / 2) ** 2 - 3 / 8 < rate - 0.1  # the plain inverse has


def test_non_local_means_helps_where_photons_are_many():
    scenes = photon_scenes(2, 48, seed=0)
    made = photon_images(scenes, 32.0, seed=1, dark=0.0, hot_share=0.0)
    error = np.mean((anscombe_nlm(made.counts, 32.0) - scenes) ** 2)
    assert error < 0.8 * np.mean((made.counts / 32.0 - scenes) ** 2)


def test_hot_pixels_take_their_neighbours_median():
    counts = np.full((1, 5, 5), 3, np.int32)
    counts[0, 2, 2], counts[0, 0, 0] = 90, 80
    hot = np.zeros((5, 5), bool)
    hot[2, 2] = hot[0, 0] = True
    assert (without_hot(counts, hot) == 3).all()
    assert counts[0, 2, 2] == 90  # the input stays
    with pytest.raises(DataError, match="hot has shape"):
        without_hot(counts, hot[:4])


@pytest.mark.parametrize("mode", ["practical", "paper", "unet", "nlm", "autoencoder"])
def test_an_image_is_the_same_alone_and_in_a_batch(pipe, mode):
    counts = photon_images(photon_scenes(3, 32, seed=9), 2.0, seed=9).counts
    together = pipe.apply(counts, 2.0, mode=mode)
    assert together.shape == counts.shape
    assert together.dtype == np.float32
    assert np.array_equal(pipe.apply(counts[1:2], 2.0, mode=mode)[0], together[1])
    assert np.array_equal(pipe.apply(counts[::-1], 2.0, mode=mode)[::-1], together)


def test_draws_differ_by_their_number_alone(pipe):
    counts = photon_images(photon_scenes(1, 32, seed=9), 8.0, seed=9).counts
    one, same, other = (pipe.apply(counts, 8.0, sample_number=n) for n in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-3)


def test_what_is_refused(pipe):
    counts = np.ones((1, 32, 32), np.int32)
    with pytest.raises(DataError, match="outside the 2 to 32"):
        pipe.apply(counts, 500.0)
    with pytest.raises(DataError, match="whole numbers"):
        pipe.apply(counts * 0.5, 8.0)
    with pytest.raises(DataError, match="whole numbers"):
        pipe.apply(-counts, 8.0)
    with pytest.raises(DataError, match="multiples of 16"):
        pipe.apply(counts[:, :30], 8.0)
    with pytest.raises(UsageError, match="not fitted"):
        PhotonDenoiser.from_recipe("ct_photon_demo").apply(counts, 8.0)
    with pytest.raises(DataError, match="0 to 1"):
        photon_images(2 * np.ones((1, 16, 16), np.float32), 8.0, seed=0)
    with pytest.raises(UsageError, match="no rates"):
        photon_images(np.ones((1, 16, 16), np.float32), 0.0, seed=0)
    with pytest.raises(UsageError, match="at least 16"):
        photon_scenes(1, 8, seed=0)
