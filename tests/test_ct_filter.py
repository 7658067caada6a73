"""Radial filters between kernels: what a closed form says of fit and application."""

import numpy as np
import pytest

from neurodiff.bridges.ct_filter import (
    RadialFilter,
    bin_edges,
    cross_spectra,
    filter_from_spectra,
    fit_filter,
    fitted_range,
    gaussian_filter,
)
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import (
    apply_gain,
    check_spacing,
    continue_into,
    nyquist,
    radial_frequency,
)


def noise(seed: int, shape: tuple[int, int, int] = (2, 96, 96), sd: float = 50.0) -> np.ndarray:
    return (sd * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def periodic(hu: np.ndarray, spacing: tuple[float, float], sigma_mm: float) -> np.ndarray:
    """The exact Gaussian blur of a periodic image, independent of the code under test."""
    rows = np.fft.fftfreq(hu.shape[1], spacing[0])[:, None]
    columns = np.fft.fftfreq(hu.shape[2], spacing[1])[None]
    gain = np.exp(-2 * (np.pi * sigma_mm) ** 2 * (rows**2 + columns**2))
    return np.fft.ifft2(np.fft.fft2(hu) * gain).real.astype(np.float32)


def gaussian(f: np.ndarray, sigma_mm: float) -> np.ndarray:
    return np.exp(-2 * (np.pi * sigma_mm * f / 10) ** 2)


@pytest.mark.parametrize("spacing", [(0.7, 0.7), (0.5, 0.9), (0.9, 0.5)])
def test_a_known_gaussian_is_found_in_lp_per_cm_on_any_pixels(spacing):
    source = noise(0, (3, 128, 128))
    found = fit_filter(source, periodic(source, spacing, 0.5), spacing, lock=0.0)
    f = np.linspace(0.3, nyquist(spacing), 15)
    assert np.abs(found.at(f) - gaussian(f, 0.5)).max() < 0.01
    assert found.at(0.0) == 1
    assert found.coherence.min() > 0.98  # H varies a little within a ring
    assert found.limit() == np.inf
    assert not found.sharpens()


def test_one_curve_serves_rows_and_columns_of_other_pixels():
    # the same continuous wave, sampled in squares and in oblong pixels, loses the same contrast
    soft = gaussian_filter(0.6, highest=20.0)
    for spacing in ((0.5, 0.5), (0.5, 0.8), (0.8, 0.5)):
        for axis, name in ((0, "rows"), (1, "columns")):
            at = np.arange(240) * spacing[axis]
            wave = np.cos(2 * np.pi * 0.3 * at)  # 3 lp/cm
            hu = np.broadcast_to(wave[:, None] if axis == 0 else wave[None], (240, 240))
            inner = np.s_[0, 60:180, 60:180]
            made = soft.apply(100 * hu[None].astype(np.float32), spacing)
            ratio = made[inner].std() / (100 * hu[60:180, 60:180]).std()
            assert ratio == pytest.approx(gaussian(3.0, 0.6), abs=4e-3), name


def test_mean_is_kept_and_the_locked_band_is_untouched():
    hu = noise(1) + 40
    strong = gaussian_filter(2.0, highest=20.0).locked(0.5)
    made = strong.apply(hu, (0.7, 0.7))
    assert abs(made.mean() - hu.mean()) < 0.3  # mirrored margins: not periodic, so not to the digit
    assert np.all(strong.at([0.0, 0.2, 0.5]) == 1)
    assert strong.at(0.6) == pytest.approx(gaussian(0.6, 2.0), abs=1e-3)
    # a slow wave below 0.5 lp/cm passes; the same wave at 3 lp/cm does not
    for lp_cm, kept in ((0.25, 1.0), (3.0, 0.0)):
        wave = np.cos(2 * np.pi * lp_cm / 10 * 0.7 * np.arange(400))
        image = np.broadcast_to(100 * wave[None], (400, 400))[None].astype(np.float32)
        inner = np.s_[0, 150:250, 150:250]
        passed = strong.apply(image, (0.7, 0.7))[inner]
        assert np.abs(passed - kept * image[inner]).max() < 0.5
    flat = np.full((1, 40, 50), -873.25, np.float32)
    assert np.array_equal(strong.apply(flat, (0.7, 0.7)), flat)


def test_a_smooth_hold_leaves_one_slowly_and_meets_the_fit():
    plain = gaussian_filter(2.0, highest=20.0)
    smooth = plain.locked(0.5, "smooth")
    assert smooth.at(0.0) == 1
    assert smooth.at(0.02) == pytest.approx(1, abs=1e-5)
    assert smooth.at(0.5) == pytest.approx(gaussian(0.5, 2.0), abs=1e-3)
    assert np.allclose(smooth.at([0.7, 3.0]), plain.at([0.7, 3.0]), atol=1e-12)
    # beside a strong edge the band's step in frequency rings for centimetres; this does not
    edge = np.where(np.arange(400) < 200, 0, 1500).astype(np.float32)
    image = np.broadcast_to(edge, (1, 40, 400))
    far = np.s_[0, 20, 20:170]  # 2 to 12 cm from the edge
    rings = [np.abs(one.apply(image, (0.7, 0.7))[far]).max() for one in (plain.locked(0.5), smooth)]
    assert rings[1] < 0.5 * rings[0]
    with pytest.raises(UsageError, match="'band' or 'smooth'"):
        plain.locked(0.5, "hard")  # type: ignore[arg-type]


def test_twice_is_the_composed_filter():
    soft = gaussian_filter(0.4, highest=20.0)
    hu = noise(2, (1, 160, 160))
    inner = np.s_[:, 40:-40, 40:-40]
    twice = soft.apply(soft.apply(hu, (0.7, 0.7)), (0.7, 0.7))
    once = soft.then(soft).apply(hu, (0.7, 0.7))
    wide = gaussian_filter(0.4 * np.sqrt(2), highest=20.0).apply(hu, (0.7, 0.7))
    assert np.abs(twice - once)[inner].max() < 0.02
    assert np.abs(twice - wide)[inner].max() < 0.1


def test_noise_passes_the_same_filter():
    # NPS ratio = H², and both estimates agree where the coherence is 1
    source = noise(3, (6, 128, 128))
    target = periodic(source, (0.7, 0.7), 0.5)
    edges = bin_edges([(0.7, 0.7)], 48)
    spectra = cross_spectra(source, target, (0.7, 0.7), edges=edges)
    f = spectra.weighted / np.maximum(spectra.source, 1e-12)
    ratio = spectra.target / spectra.source
    low = (f > 0.4) & (f < 6)
    assert np.abs(np.sqrt(ratio) - gaussian(f, 0.5))[low].max() < 0.02
    power = filter_from_spectra(spectra, estimate="power", lock=0.0)
    wiener = filter_from_spectra(spectra, lock=0.0)
    assert np.abs(power.at(f[low]) - wiener.at(f[low])).max() < 0.01


def test_coherence_and_error_tell_what_is_lost():
    source = noise(4, (8, 128, 128))
    # up to 4 lp/cm the target follows the source, beyond it has a noise of its own
    radius = radial_frequency((128, 128), (0.7, 0.7), half=False)
    own = np.fft.fft2(noise(5, (8, 128, 128)))
    target = np.where(radius < 4, np.fft.fft2(source), own)
    target = np.fft.ifft2(target).real.astype(np.float32)
    found = fit_filter(source, target, (0.7, 0.7))
    assert 3.6 < found.limit(0.5) < 4.4
    assert np.abs(found.at([1.0, 2.0, 3.0]) - 1).max() < 0.02
    assert np.abs(found.at([5.0, 6.0, 7.0])).max() < 0.1  # Wiener: what is unknown is not added
    power = fit_filter(source, target, (0.7, 0.7), estimate="power")
    assert np.abs(power.at([5.0, 6.0, 7.0]) - 1).max() < 0.1
    # the standard error covers what the next eight slices give
    other = fit_filter(noise(6, (8, 128, 128)), noise(7, (8, 128, 128)), (0.7, 0.7), lock=0.0)
    beyond = other.frequency > 1
    z = other.gain[beyond] / other.error[beyond]
    assert 0.6 < z.std() < 1.5


def test_spectra_of_several_series_add_up_to_those_of_all_slices():
    source, target = noise(8, (4, 64, 64)), noise(9, (4, 64, 64))
    edges = bin_edges([(0.7, 0.7)], 20)

    def of(part):
        return cross_spectra(source[part], target[part], (0.7, 0.7), edges=edges)

    together = filter_from_spectra(of(slice(0, 1)) + of(slice(1, 4)))
    assert np.allclose(together.gain, fit_filter(source, target, (0.7, 0.7), bins=20).gain)
    assert together.slices == 4
    with pytest.raises(UsageError, match="same edges"):
        of(slice(0, 1)) + cross_spectra(
            source, target, (0.7, 0.7), edges=bin_edges([(0.7, 0.7)], 21)
        )


def test_padding_comes_back_and_does_not_bleed():
    hu = noise(10, (2, 128, 128), 20.0)
    at = np.arange(128) - 63.5
    outside = np.broadcast_to(np.hypot(at[:, None], at[None]) > 60, hu.shape).copy()
    whole = gaussian_filter(0.8, highest=20.0).apply(hu + 40, (0.7, 0.7))
    hu = np.where(outside, -2048, hu + 40).astype(np.float32)
    made = gaussian_filter(0.8, highest=20.0).apply(hu, (0.7, 0.7), outside)
    assert np.all(made[outside] == -2048)
    # within the circle the result is as if there had been no padding, up to noise at its rim
    inner = ~outside
    assert np.abs(made - whole)[inner].max() < 20
    deep = np.broadcast_to(np.hypot(at[:, None], at[None]) < 54, hu.shape)
    assert np.abs(made - whole)[deep].max() < 0.2
    # filled with the padding value instead, the rim is off by hundreds
    naive = gaussian_filter(0.8, highest=20.0).apply(hu, (0.7, 0.7))
    assert np.abs(naive - whole)[inner].max() > 300
    smooth = continue_into(hu[0], outside[0])
    assert np.abs(smooth[outside[0]] - 40).max() < 20


def test_air_below_minus_1024_is_not_clipped():
    hu = noise(11, (1, 96, 96), 80.0) - 1000
    made = gaussian_filter(0.5, highest=20.0).apply(hu, (0.7, 0.7))
    assert abs(made.mean() - hu.mean()) < 1
    clipped = gaussian_filter(0.5, highest=20.0).apply(np.maximum(hu, -1024), (0.7, 0.7))
    assert clipped.mean() - hu.mean() > 10  # the bias that clipping would bring


def test_a_slice_does_not_depend_on_threads_or_neighbours():
    hu, soft = noise(12, (5, 80, 90)), gaussian_filter(0.5, highest=20.0)
    made = soft.apply(hu, (0.7, 0.7), workers=2)
    assert made.dtype == np.float32
    assert np.array_equal(made, soft.apply(hu, (0.7, 0.7), workers=1))
    assert np.array_equal(made[3:4], soft.apply(hu[3:4], (0.7, 0.7)))


def test_dictionary_round_trip():
    source = noise(13)
    found = fit_filter(source, periodic(source, (0.7, 0.7), 0.5), (0.7, 0.7))
    again = RadialFilter.from_dict(found.to_dict())
    assert np.array_equal(again.gain, found.gain)
    assert np.array_equal(again.coherence, found.coherence)
    assert again.slices == found.slices
    unmeasured = RadialFilter.from_gain([0.0, 5.0], [1.0, 0.5])
    assert unmeasured.to_dict()["coherence"] == [None, None]
    assert np.isnan(RadialFilter.from_dict(unmeasured.to_dict()).coherence).all()


def test_range_of_pixel_sizes():
    assert fitted_range((0.7, 0.7), [(0.68, 0.68)]) == ""
    assert fitted_range((0.7, 0.7), [(0.6, 0.6), (0.9, 0.9)]) == ""
    assert "outside the fitted 0.68 to 0.68 mm" in fitted_range((0.4, 0.4), [(0.68, 0.68)])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"frequency": [0, 1]}, "no filter"),
        ({"frequency": [0, 1], "gain": [1, "x"]}, "no filter"),
        ({"frequency": [0, 1, 1], "gain": [1, 1, 1]}, "ascend"),
        ({"frequency": [0, 1], "gain": [1, float("nan")]}, "finite"),
        ({"frequency": [0, 1], "gain": [1]}, "lengths"),
        ([1, 2], "no filter"),
    ],
)
def test_what_is_no_filter(values, sentence):
    with pytest.raises(DataError, match=sentence):
        RadialFilter.from_dict(values)


def test_bad_input_has_a_sentence():
    hu = noise(14)
    for spacing in ((0.0, 0.7), (-1.0, 1.0), (np.nan, 1.0), (0.7,), "ab"):
        with pytest.raises(DataError, match="spacing"):
            check_spacing(spacing)
    with pytest.raises(DataError, match="same slices on the same grid"):
        fit_filter(hu, hu[:1], (0.7, 0.7))
    with pytest.raises(DataError, match="uniform"):
        fit_filter(np.zeros_like(hu), hu, (0.7, 0.7))
    with pytest.raises(DataError, match="not finite"):
        fit_filter(np.where(hu > 100, np.nan, hu), hu, (0.7, 0.7))
    with pytest.raises(DataError, match="a single slice as"):
        apply_gain(hu[0], (0.7, 0.7), np.array([0.0, 1.0]), np.ones(2))
    with pytest.raises(DataError, match="boolean array"):
        gaussian_filter(0.5, highest=20.0).apply(hu, (0.7, 0.7), np.zeros((2, 3, 3), bool))
    with pytest.raises(DataError, match="too small"):
        fit_filter(hu[:, :8, :8], hu[:, :8, :8], (0.7, 0.7))
    with pytest.raises(UsageError, match="bins"):
        fit_filter(hu, hu, (0.7, 0.7), bins=2)
    with pytest.raises(UsageError, match="estimate"):
        fit_filter(hu, hu, (0.7, 0.7), estimate="median")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="workers"):
        gaussian_filter(0.5, highest=20.0).apply(hu, (0.7, 0.7), workers=0)
