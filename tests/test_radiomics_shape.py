"""Shape and intensity families: bodies of known volume, sums over all pairs, known samples."""

import math

import numpy as np
import pytest

from neurodiff.metrics import (
    radiomics_histogram,
    radiomics_intensity,
    radiomics_morphology,
)
from neurodiff.metrics.radiomics import RadiomicsSettings
from neurodiff.metrics.radiomics_chain import prepare

ONE_MM = (1.0, 1.0, 1.0)


def region(image, mask=None, spacing=ONE_MM, **settings):
    mask = np.ones(image.shape, dtype=bool) if mask is None else mask
    return prepare(image, mask, spacing, RadiomicsSettings(**settings), "ROI")


def ball(radius: float, spacing=ONE_MM) -> np.ndarray:
    reach = [math.ceil(radius / s) + 1 for s in spacing]
    axes = [np.arange(-r, r + 1) * s for r, s in zip(reach, spacing, strict=True)]
    return sum(a**2 for a in np.meshgrid(*axes, indexing="ij")) <= radius**2


@pytest.mark.parametrize("spacing", [ONE_MM, (2.0, 1.0, 0.5)])
def test_a_ball_is_a_ball_whatever_its_voxels(spacing):
    mask = ball(15.0, spacing)
    image = np.random.default_rng(0).normal(size=mask.shape)
    shape = radiomics_morphology.morphology(region(image, mask, spacing))
    assert shape["morph_volume"] == pytest.approx(4 / 3 * math.pi * 15**3, rel=0.02)
    assert shape["morph_diam"] == pytest.approx(30, abs=max(spacing))
    assert shape["morph_pca_elongation"] == pytest.approx(1, abs=0.01)
    assert shape["morph_pca_flatness"] == pytest.approx(1, abs=0.01)
    assert 0.8 < shape["morph_sphericity"] < 1
    # the longest axis of a ball is 4 sqrt(r^2 / 5)
    assert shape["morph_pca_maj_axis"] == pytest.approx(4 * 15 / math.sqrt(5), rel=0.01)
    for name in ("slice", "row", "column"):
        assert shape[f"morph_diam_{name}"] == pytest.approx(30, abs=max(spacing))


def test_a_brick_has_its_box_its_hull_and_its_three_diameters():
    image = np.zeros((4, 6, 10))
    image[0, 0, 0] = 1.0
    shape = radiomics_morphology.morphology(region(image, spacing=(3.0, 2.0, 1.0)))
    assert shape["morph_vol_approx"] == 4 * 3 * 6 * 2 * 10
    assert shape["morph_voxels"] == 240
    # the mesh cuts the corners of the brick: it is its own hull, less than its box
    assert shape["morph_vol_dens_conv_hull"] == pytest.approx(1, rel=1e-6)
    assert shape["morph_area_dens_conv_hull"] == pytest.approx(1, rel=1e-6)
    assert 0.95 < shape["morph_vol_dens_aabb"] < 1
    # a face is as long as its voxels, its partner direction one voxel shorter at the ends
    assert shape["morph_diam_slice"] == pytest.approx(math.hypot(12, 9), rel=0.08)
    assert shape["morph_diam_column"] == pytest.approx(math.hypot(12, 10), rel=0.08)
    assert shape["morph_diam_row"] == pytest.approx(math.hypot(12, 12), rel=0.08)


def test_shape_turns_with_its_axes():
    generator = np.random.default_rng(1)
    mask = generator.random((4, 5, 6)) < 0.7
    image = generator.normal(size=mask.shape)
    a = radiomics_morphology.morphology(region(image, mask, (3.0, 2.0, 1.0)))
    b = radiomics_morphology.morphology(region(image.T, mask.T, (1.0, 2.0, 3.0)))
    assert a["morph_diam_slice"] == pytest.approx(b["morph_diam_row"], rel=1e-6)
    for name in ("morph_diam", "morph_pca_maj_axis", "morph_com", "morph_moran_i"):
        assert a[name] == pytest.approx(b[name], rel=1e-9)


def test_autocorrelation_is_the_sum_over_all_pairs():
    generator = np.random.default_rng(2)
    mask = generator.random((4, 5, 6)) < 0.6
    image = generator.normal(size=mask.shape) + 40
    spacing = (2.5, 1.0, 0.7)
    own = region(image, mask, spacing)
    x = own.values[own.intensity]
    at = np.argwhere(own.intensity) * np.array(spacing)
    with np.errstate(divide="ignore"):
        weight = 1 / np.linalg.norm(at[:, None] - at, axis=2)
    np.fill_diagonal(weight, 0)
    centred = x - x.mean()
    variance, n = (centred**2).sum(), len(x)
    moran = n / weight.sum() * (weight * np.outer(centred, centred)).sum() / variance
    squares = (weight * (x[:, None] - x) ** 2).sum()
    geary = (n - 1) / (2 * weight.sum()) * squares / variance
    got = radiomics_morphology.autocorrelation(own)
    np.testing.assert_allclose(got, (moran, geary), rtol=1e-10)


def test_the_area_of_an_ellipsoid_that_is_a_sphere():
    assert radiomics_morphology.ellipsoid_area(3.0, 3.0, 3.0) == pytest.approx(36 * math.pi)


def test_the_centre_of_mass_moves_with_the_weight():
    image = np.ones((1, 1, 5))
    image[0, 0, 4] = 6.0
    # weights 1 1 1 1 6 at 0..4: mean 3, against 2 of the shape
    shape = radiomics_morphology.morphology(region(image, spacing=(1.0, 1.0, 2.0)))
    assert shape["morph_com"] == pytest.approx(2.0)
    assert shape["morph_integ_int"] == pytest.approx(2 * shape["morph_volume"])


def test_statistics_of_a_normal_and_a_uniform_sample():
    quantiles = (np.arange(20001) + 0.5) / 20001
    even = radiomics_intensity.spread(quantiles)
    assert even["var"] == pytest.approx(1 / 12, rel=1e-4)
    assert even["kurt"] == pytest.approx(-1.2, abs=1e-3)
    assert even["skew"] == pytest.approx(0, abs=1e-9)
    assert even["mad"] == even["medad"] == pytest.approx(0.25, rel=1e-4)
    assert even["rmad"] == pytest.approx(0.2, rel=1e-3)
    assert even["qcod"] == pytest.approx(0.5, rel=1e-4)


def test_shifts_and_scales_act_on_statistics_as_they_should():
    x = np.random.default_rng(3).gamma(2.0, size=500)
    a, b = radiomics_intensity.spread(x), radiomics_intensity.spread(3 * x - 1000)
    for name in ("skew", "kurt"):
        assert a[name] == pytest.approx(b[name], rel=1e-9)
    for name in ("iqr", "range", "mad", "rmad", "medad"):
        assert 3 * a[name] == pytest.approx(b[name], rel=1e-9)
    assert b["median"] == pytest.approx(3 * a["median"] - 1000)


def test_the_local_peak_of_a_constant_is_it_even_at_the_edge_of_the_image():
    image = np.full((6, 9, 9), 55.0)
    peaks = radiomics_intensity.local_peaks(region(image))
    assert peaks == pytest.approx({"loc_peak_loc": 55.0, "loc_peak_glob": 55.0}, rel=1e-12)


def test_the_peak_of_one_bright_voxel_is_shared_by_its_sphere():
    image = np.zeros((21, 21, 21))
    image[10, 10, 10] = 1000.0
    mask = np.zeros(image.shape, dtype=bool)
    mask[10, 10, 9:12] = True
    peaks = radiomics_intensity.local_peaks(region(image, mask))
    voxels = ball(6.2035).sum()
    assert peaks["loc_peak_loc"] == pytest.approx(1000 / voxels, rel=1e-9)


def test_the_histogram_counts_levels_and_its_slope():
    image = np.repeat([1.0, 2.0, 4.0], [5, 1, 2])[None, None]
    found = radiomics_histogram.histogram(region(image, bin_width=None))
    assert found["ih_mode"] == 1
    assert found["ih_max_grad"] == 2
    assert found["ih_max_grad_g"] == 4
    assert found["ih_min_grad"] == -4
    assert found["ih_min_grad_g"] == 1
    p = np.array([5, 1, 2]) / 8
    assert found["ih_entropy"] == pytest.approx(-(p * np.log2(p)).sum())
    assert found["ih_uniformity"] == pytest.approx((p**2).sum())


def test_of_two_modes_the_one_nearer_to_the_mean_counts():
    image = np.repeat([1.0, 2.0, 3.0, 9.0], [3, 1, 3, 2])[None, None]
    assert radiomics_histogram.histogram(region(image, bin_width=None))["ih_mode"] == 3


def test_the_volume_histogram_of_a_ramp():
    image = np.arange(101.0)[None, None]
    found = radiomics_histogram.volume_histogram(region(image), 1.0)
    assert found["ivh_v10"] == pytest.approx(91 / 101)
    assert found["ivh_v90"] == pytest.approx(11 / 101)
    assert found["ivh_i10"] == 91
    assert found["ivh_i90"] == 11
    # the range of re-segmentation is the axis, whatever intensities are in it
    wide = radiomics_histogram.volume_histogram(region(image, resegment_range=(-100, 300)), 1.0)
    assert wide["ivh_v90"] == 0
    assert wide["ivh_v10"] == 1
