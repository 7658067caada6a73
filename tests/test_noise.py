"""Noise against closed forms: what is asked for is what comes out and what is measured."""

import numpy as np
import pytest

from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.noise import (
    MEASURED_FWHM_MM,
    MEASURED_LAG1,
    common_share,
    correlation_from_fwhm,
    fwhm_from_correlation,
    lag1_autocorrelation,
    neighbour_correlation,
    smooth_noise,
    smoothing_kernel,
)
from neurodiff.datasets.surface import edges_of, load_visual_cortex


@pytest.fixture(scope="module")
def cortex():
    return load_visual_cortex()


def draw(cortex, trials=40, seed=0, **options):
    return smooth_noise((trials, 10), cortex, generator=np.random.default_rng(seed), **options)


@pytest.mark.parametrize(("rho", "fwhm_mm"), [(0.6, 2.3), (-0.3, 4.0), (0.0, 0.0)])
def test_noise_has_the_autocorrelation_smoothness_and_variance_asked_for(cortex, rho, fwhm_mm):
    noise = draw(cortex, rho=rho, fwhm_mm=fwhm_mm, common_share=0.0)
    assert noise.dtype == np.float32
    assert noise.shape == (40, 10, 8921)
    assert lag1_autocorrelation(np.moveaxis(noise, 1, -1)) == pytest.approx(rho, abs=0.01)
    distance = float(cortex.edge_lengths().mean())
    measured = neighbour_correlation(noise.reshape(400, -1), edges_of(cortex.neighbours))
    assert measured == pytest.approx(correlation_from_fwhm(fwhm_mm, distance), abs=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.01)


def test_every_vertex_has_variance_one_in_closed_form(cortex):
    kernel = smoothing_kernel(cortex, MEASURED_FWHM_MM)
    np.testing.assert_allclose(kernel.power(2).sum(axis=1), 1, atol=1e-6)


def test_common_share_is_what_was_asked_for(cortex):
    flat = draw(cortex, trials=200, common_share=0.3, fwhm_mm=0.0).reshape(2000, -1)[:, ::20]
    # the mean of 447 independent features has itself 1/447 of their variance
    assert common_share(flat) == pytest.approx(0.3 + 0.7 / flat.shape[1], abs=0.02)


def test_noise_of_one_trial_and_seeds(cortex):
    one = smooth_noise((10,), cortex, generator=np.random.default_rng(5))
    again = smooth_noise((10,), cortex, generator=np.random.default_rng(5))
    assert one.shape == (10, 8921)
    np.testing.assert_array_equal(one, again)
    other = smooth_noise((10,), cortex, generator=np.random.default_rng(6))
    assert abs(np.corrcoef(one[0], other[0])[0, 1]) < 0.1


def test_short_series_are_corrected_for_the_removed_mean():
    rng = np.random.default_rng(0)
    series = np.zeros((100_000, 8))
    series[:, 0] = rng.normal(size=100_000)
    for frame in range(1, 8):
        series[:, frame] = 0.4 * series[:, frame - 1] + np.sqrt(1 - 0.16) * rng.normal(size=100_000)
    series += rng.normal(size=(100_000, 1)) * 3  # a mean of each series, to be removed
    centred = series - series.mean(axis=1, keepdims=True)
    raw = (centred[:, 1:] * centred[:, :-1]).sum() / (centred**2).sum()
    assert raw < 0.2  # so the correction has something to do
    assert lag1_autocorrelation(series) == pytest.approx(0.4, abs=0.01)


def test_white_noise_of_n_frames_has_the_textbook_bias():
    # For white noise the expected ratio is tr(M shift) / tr(M) = -(n-1)/n / (n-1) = -1/n.
    rng = np.random.default_rng(1)
    series = rng.normal(size=(50_000, 10))
    assert lag1_autocorrelation(series) == pytest.approx(0, abs=0.01)
    centred = series - series.mean(axis=1, keepdims=True)
    raw = (centred[:, 1:] * centred[:, :-1]).sum() / (centred**2).sum()
    assert raw == pytest.approx(-0.1, abs=0.01)


def test_fwhm_of_white_noise_under_a_gaussian_kernel():
    """sigma = 2 voxels of 3 mm has FWHM = 2 * 3 * sqrt(8 ln 2) = 14.13 mm."""
    from scipy.ndimage import gaussian_filter1d

    white = np.random.default_rng(2).normal(size=(200, 2000))
    smooth = gaussian_filter1d(white, 2.0, axis=1, mode="wrap")
    pairs = (np.arange(1999), np.arange(1, 2000))
    measured = fwhm_from_correlation(neighbour_correlation(smooth, pairs), 3.0)
    assert measured == pytest.approx(6 * np.sqrt(8 * np.log(2)), rel=0.02)


def test_fwhm_and_correlation_are_inverse():
    assert fwhm_from_correlation(correlation_from_fwhm(2.3, 1.6), 1.6) == pytest.approx(2.3)
    # half the FWHM apart: exp(-2 ln 2 / 4) = 2 ** -0.5
    assert correlation_from_fwhm(4.0, 2.0) == pytest.approx(2**-0.5)
    assert fwhm_from_correlation(-0.2, 1.0) == 0


@pytest.mark.parametrize(
    "options", [{"rho": 1.0}, {"fwhm_mm": -1.0}, {"common_share": 1.5}, {"fwhm_mm": 11.0}]
)
def test_impossible_statistics_are_refused(cortex, options):
    with pytest.raises(UsageError):
        draw(cortex, trials=1, **options)


def test_what_has_no_statistics_is_refused():
    with pytest.raises(UsageError, match="at least 3"):
        lag1_autocorrelation(np.zeros((4, 2)))
    with pytest.raises(UsageError, match="no series varies"):
        lag1_autocorrelation(np.ones((4, 10)))
    with pytest.raises(UsageError, match="nothing to correlate"):
        neighbour_correlation(np.zeros((5, 2)), (np.array([0]), np.array([1])))


@pytest.mark.shared_data
def test_constants_are_those_of_the_real_residuals(cortex, shared_data):
    from neurodiff.datasets.fmri_shape import FMRIShape

    recording, _ = FMRIShape.open(shared_data / "fmri_shape_demo", values="vertices")
    series = recording.array().astype(float)
    assert lag1_autocorrelation(np.moveaxis(series, 1, -1)) == pytest.approx(
        MEASURED_LAG1, abs=0.02
    )
    residuals = (series - series.mean(axis=1, keepdims=True)).reshape(60, -1)
    residuals -= residuals.mean(axis=1, keepdims=True)
    correlation = neighbour_correlation(residuals, edges_of(cortex.neighbours))
    fwhm = fwhm_from_correlation(correlation, float(cortex.edge_lengths().mean()))
    assert fwhm == pytest.approx(MEASURED_FWHM_MM, abs=0.15)
