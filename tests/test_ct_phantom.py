"""Filters from phantoms and slice thickness, against closed forms."""

import numpy as np
import pytest

from neurodiff.bridges.ct_filter import fit_filter, gaussian_filter
from neurodiff.bridges.ct_phantom import (
    Transfer,
    filter_from_noise,
    filter_from_transfer,
    match_noise,
    noise_spectrum,
    rod_transfer,
    uniform_regions,
)
from neurodiff.bridges.ct_profile import ONE_TO_FIVE, fit_taps, thicken
from neurodiff.core.errors import DataError, UsageError


def rod(
    spacing: tuple[float, float], sigma_mm: float, seed: int | None = None, oval: float = 1.0
) -> np.ndarray:
    """A rod of 12 mm and 500 HU, off the pixel grid, blurred; (slices, 200, 200)."""
    fine = (np.arange(200 * 6) + 0.5) / 6 - 0.5
    far = np.hypot((fine[:, None] - 99.3) * spacing[0] / oval, (fine[None] - 100.6) * spacing[1])
    image = 500 * (far < 12).reshape(200, 6, 200, 6).mean(axis=(1, 3)).astype(np.float32)
    sharp = np.repeat(image[None], 1 if seed is None else 8, axis=0)
    if seed is not None:
        sharp = sharp + 20 * np.random.default_rng(seed).standard_normal(sharp.shape)
    return gaussian_filter(sigma_mm, highest=30.0).apply(sharp.astype(np.float32), spacing)


@pytest.mark.parametrize("spacing", [(0.4, 0.4), (0.4, 0.55)])
def test_a_rod_gives_the_transfer_function_of_its_blur(spacing):
    found = rod_transfer(rod(spacing, 0.6), (100.0, 100.0), 12.0, spacing)
    f = np.array([0.5, 1, 2, 3, 4, 5])
    known = np.exp(-2 * (np.pi * 0.6 * f / 10) ** 2)
    assert np.abs(found.at(f) - known).max() < 0.012
    half = 10 / (np.pi * 0.6) * np.sqrt(np.log(2) / 2)
    assert found.falls_to(0.5) == pytest.approx(half, rel=0.02)
    assert found.at(0.0) == 1


def test_a_rod_that_leans_is_oval_and_not_blurred():
    found = rod_transfer(rod((0.4, 0.4), 0.6, oval=1.06), (100.0, 100.0), 12.0, (0.4, 0.4))
    f = np.array([0.5, 1, 2, 3, 4])
    known = np.exp(-2 * (np.pi * 0.6 * f / 10) ** 2)
    assert np.abs(found.at(f) - known).max() < 0.03  # as a circle it would be off by 0.15


@pytest.mark.shared_data
def test_rods_and_pairs_of_real_scans_agree(shared_data):
    from neurodiff.datasets.ct_series import read_series

    sharp, soft = (read_series(shared_data / "ct" / f"philips_{name}_1mm") for name in ("ya", "ub"))
    chosen = slice(8, 13)  # the rod in the middle stands in all of them
    rods = [
        rod_transfer(series.hu[chosen], (239.6, 248.9), 9.93, series.spacing)
        for series in (sharp, soft)
    ]
    assert rods[0].falls_to(0.5) > rods[1].falls_to(0.5)
    by_rods = filter_from_transfer(*rods)
    by_pairs = fit_filter(sharp.hu[::4], soft.hu[::4], sharp.spacing)
    f = np.arange(1.0, 6.0)
    assert np.abs(by_rods.at(f) - by_pairs.at(f)).max() < 0.06


def test_ratio_of_two_rods_is_the_filter_between_them():
    spacing = (0.4, 0.4)
    sharp, soft = (
        rod_transfer(rod(spacing, sigma, seed=seed), (100.0, 100.0), 12.0, spacing)
        for sigma, seed in ((0.35, 1), (0.7, 2))
    )
    found = filter_from_transfer(sharp, soft)
    f = np.array([1.0, 2, 3, 4])
    known = np.exp(-2 * (np.pi * f / 10) ** 2 * (0.7**2 - 0.35**2))
    assert np.abs(found.at(f) - known).max() < 0.04
    assert np.all(found.at([0.0, 0.3, 0.5]) == 1)
    # sharpening stops where the soft rod's transfer falls below the floor, and goes back to 1
    back = filter_from_transfer(soft, sharp)
    reach = soft.falls_to(0.1)
    assert back.limit() >= reach * 0.95
    assert back.limit() < reach * 1.2
    assert back.at(reach * 1.3) == 1
    assert back.at(3.0) == pytest.approx(1 / known[2], rel=0.1)


def test_noise_spectrum_has_its_variance_and_shape():
    rng = np.random.default_rng(3)
    white = (25 * rng.standard_normal((40, 64, 64))).astype(np.float32)
    found = noise_spectrum(white, [(0, 0), (32, 32)], (0.5, 0.8))
    assert np.sqrt(found.variance) == pytest.approx(25, rel=0.02)
    # white noise: power is variance times pixel area at every frequency
    high = (found.frequency > 1.0) & (found.count > 20)
    assert np.abs(found.power[high] / (625 * 0.5 * 0.8) - 1).max() < 0.15
    assert found.regions == 80


def test_root_of_two_noise_spectra_is_the_filter():
    rng = np.random.default_rng(4)
    spacing = (0.6, 0.6)
    sharp, other = ((80 * rng.standard_normal((40, 96, 96))).astype(np.float32) for _ in range(2))
    soft = gaussian_filter(0.45, highest=30.0)
    squares = [(0, 0), (0, 64), (32, 32), (64, 0), (64, 64)]
    source = noise_spectrum(sharp, squares, spacing)
    # scans that are no pair: another noise behind the softer kernel
    target = noise_spectrum(soft.apply(other, spacing), squares, spacing)
    found = filter_from_noise(source, target)
    f = np.array([0.7, 1, 2, 3, 4, 5, 6])
    assert np.abs(found.at(f) - soft.at(f)).max() < 0.03
    assert source.filtered_sd(soft) == pytest.approx(np.sqrt(target.variance), rel=0.03)


def test_strength_follows_from_the_noise_of_the_target():
    rng = np.random.default_rng(5)
    sharp = (80 * rng.standard_normal((30, 96, 96))).astype(np.float32)
    source = noise_spectrum(sharp, [(0, 0), (32, 32), (64, 64)], (0.6, 0.6))
    shape = gaussian_filter(0.3, highest=30.0)
    wanted = shape.then(shape)  # the square of the gain
    found = match_noise(shape, source, source.filtered_sd(wanted))
    f = np.array([1.0, 2, 4, 6])
    assert np.abs(found.at(f) - wanted.at(f)).max() < 2e-3
    with pytest.raises(DataError, match="cannot be brought"):
        match_noise(shape, source, 100.0)


def test_uniform_regions_avoid_structure():
    rng = np.random.default_rng(6)
    hu = (10 * rng.standard_normal((2, 128, 128))).astype(np.float32)
    hu[:, :, :64] -= 800  # lung-like
    hu[:, 50:60, 90:100] += 300  # a rod
    found = uniform_regions(hu, count=3)
    assert found
    for row, column in found:
        assert column >= 56
        assert row >= 60 or row + 32 <= 50 or column >= 100
    with pytest.raises(DataError, match="give the regions"):
        uniform_regions(hu - 2000)
    with pytest.raises(UsageError, match="multiple of 8"):
        uniform_regions(hu, size=20)


def test_bad_phantoms_have_a_sentence():
    image = rod((0.4, 0.4), 0.6)
    with pytest.raises(DataError, match="does not stand out"):
        rod_transfer(np.zeros((1, 200, 200), np.float32), (100.0, 100.0), 12.0, (0.4, 0.4))
    with pytest.raises(DataError, match="needs"):
        rod_transfer(image, (100.0, 100.0), 40.0, (0.4, 0.4))
    with pytest.raises(UsageError, match="below two pixels"):
        rod_transfer(image, (100.0, 100.0), 0.5, (0.4, 0.4))
    with pytest.raises(DataError, match="leaves the slice"):
        noise_spectrum(image, [(190, 0)], (0.4, 0.4))
    with pytest.raises(DataError, match="no noise"):
        noise_spectrum(np.zeros((1, 64, 64), np.float32), [(0, 0)], (0.4, 0.4))
    blind = Transfer(frequency=np.array([0.0, 5, 10]), value=np.array([1.0, 0.05, 0.01]))
    with pytest.raises(DataError, match="nothing can be fitted"):
        filter_from_transfer(blind, blind)


@pytest.mark.parametrize("symmetric", [True, False])
def test_taps_are_recovered_from_simulated_thick_slices(symmetric):
    rng = np.random.default_rng(7)
    thin = (50 * rng.standard_normal((40, 24, 24))).astype(np.float32)
    taps = ONE_TO_FIVE if symmetric else np.array([0.05, 0.1, 0.3, 0.25, 0.15, 0.1, 0.05])
    centres = np.arange(4, 36, 5)
    thick, _ = thicken(thin, taps, centres)
    found = fit_taps(thin, thick, centres, symmetric=symmetric)
    assert np.abs(found - taps).max() < 1e-5
    assert found.sum() == pytest.approx(1)
    # a noise of 5 HU in the thick slices moves the weights by thousandths
    noisy = thick + 5 * rng.standard_normal(thick.shape).astype(np.float32)
    assert np.abs(fit_taps(thin, noisy, centres, symmetric=symmetric) - taps).max() < 0.01


def test_thick_slices_keep_the_mean_and_pass_padding_on():
    thin = np.full((9, 4, 4), 37.0, np.float32)
    padding = np.zeros(thin.shape, bool)
    padding[4, 0, 0] = True
    thick, outside = thicken(thin, ONE_TO_FIVE, np.arange(9), padding=padding)
    assert np.allclose(thick, 37)  # at the ends as well, where weights are missing
    assert outside[4, 0, 0]
    assert outside[1, 0, 0]  # slice 4 counts for slice 1
    assert not outside[0].any()


def test_bad_taps_have_a_sentence():
    thin = np.zeros((9, 4, 4), np.float32)
    with pytest.raises(UsageError, match="odd"):
        fit_taps(thin, thin[:2], [3, 5], taps=4)
    with pytest.raises(DataError, match="two are needed"):
        fit_taps(thin, thin[:2], [0, 8])
    with pytest.raises(DataError, match="do not differ enough"):
        fit_taps(thin, thin[:2], [3, 5])
    with pytest.raises(DataError, match="one grid"):
        fit_taps(thin, thin[:2, :2], [3, 5])
    with pytest.raises(UsageError, match="sum to 1"):
        thicken(thin, [1.0, 1.0, 1.0], [3])
    with pytest.raises(DataError, match="outside the 9"):
        thicken(thin, ONE_TO_FIVE, [9])
