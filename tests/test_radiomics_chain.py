"""The IBSI chain: interpolation of known functions, re-segmentation, bins at their edges."""

import math

import numpy as np
import pytest

from neurodiff.core.errors import DataError, UsageError
from neurodiff.metrics.radiomics import RadiomicsSettings
from neurodiff.metrics.radiomics_chain import mask_box, prepare

ONE_MM = (1.0, 1.0, 1.0)


def chain(image, mask=None, spacing=ONE_MM, **settings):
    mask = np.ones(image.shape, dtype=bool) if mask is None else mask
    return prepare(image, mask, spacing, RadiomicsSettings(**settings), "ROI")


def ramp(shape, spacing):
    """A linear function of the position in mm about the centre: what any interpolator keeps."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return 100.0 + 3 * z - 2 * y + 0.5 * x


@pytest.mark.parametrize("interpolator", ["linear", "cubic"])
def test_interpolation_keeps_a_linear_function_at_its_place(interpolator):
    shape, spacing = (8, 24, 20), (3.0, 0.8, 0.9)
    image = ramp(shape, spacing)
    mask = np.zeros(shape, dtype=bool)
    mask[3:5, 10:14, 8:12] = True
    region = chain(image, mask, spacing, spacing_mm=1.0, interpolator=interpolator, bin_width=1.0)
    assert region.spacing == ONE_MM
    # centres aligned, ceil(n s) voxels: the region's own places follow from where its voxels are
    wide = (24, 20, 18)
    whole = ramp(wide, ONE_MM)
    inside = np.zeros(wide, dtype=bool)
    for z in range(24):
        for y in range(20):
            for x in range(18):
                at = [
                    (n - 1) / 2 + (i - (m - 1) / 2) / s
                    for n, i, m, s in zip(shape, (z, y, x), wide, spacing, strict=True)
                ]
                weight = 1.0
                for p, (low, high) in zip(at, ((3, 4), (10, 13), (8, 11)), strict=True):
                    weight *= max(0.0, min(1.0, min(p - low + 1, high + 1 - p)))
                inside[z, y, x] = weight >= 0.5 - 1e-9
    box = mask_box(inside)
    assert np.array_equal(region.morphological, inside[box])
    atol = 1e-9 if interpolator == "linear" else 0.05  # a spline bends at the image's edge
    np.testing.assert_allclose(region.values[region.intensity], whole[box][inside[box]], atol=atol)


def test_only_the_wanted_axes_are_interpolated():
    image = ramp((4, 10, 10), (5.0, 0.5, 0.5))
    region = chain(image, spacing=(5.0, 0.5, 0.5), spacing_mm=(None, 1.0, 1.0))
    assert region.spacing == (5.0, 1.0, 1.0)
    assert region.values.shape == (4, 5, 5)


def test_a_grid_of_the_same_spacing_is_the_image_itself():
    image = np.random.default_rng(0).normal(size=(5, 6, 7))
    region = chain(image, spacing_mm=1.0, interpolation="always")
    np.testing.assert_allclose(region.values, image, atol=1e-12)


def test_rounding_and_range_act_before_the_bins():
    image = np.array([[[-1200.4, -1000.6, -999.6, 0.4, 399.5, 400.6]]])
    region = chain(image, round_levels=True, resegment_range=(-1000, 400), bin_width=25.0)
    assert region.intensity.ravel().tolist() == [False, False, True, True, True, False]
    assert region.morphological.all()
    # bins from the range's lower end: -1000 -> 1, 0 -> 41, 400 -> 57
    assert region.levels.ravel().tolist() == [0, 0, 1, 41, 57, 0]
    assert region.bounds == (-1000, 400)


def test_outliers_are_those_of_the_region_itself():
    image = np.zeros((1, 1, 101))
    image[0, 0, 0] = 50.0
    region = chain(image, outlier_sd=3.0)
    assert int(region.intensity.sum()) == 100
    assert not region.intensity[0, 0, 0]


def test_bin_count_puts_the_highest_intensity_into_the_last_bin():
    region = chain(np.linspace(0.0, 10.0, 11)[None, None], bin_count=5)
    assert region.levels.ravel().tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]


@pytest.mark.parametrize(("origin", "levels"), [("lowest", [1, 1, 2]), ("multiple", [1, 2, 3])])
def test_bins_of_a_width_begin_where_they_are_told(origin, levels):
    region = chain(np.array([[[-30.0, -10.0, 0.0]]]), bin_width=25.0, bin_origin=origin)
    assert region.levels.ravel().tolist() == levels


def test_a_flat_region_is_one_bin():
    assert chain(np.full((2, 2, 2), 7.0), bin_count=32).bins == 1


def test_the_surroundings_of_the_peak_are_there_and_end_with_the_image():
    image = np.arange(8.0 * 40 * 40).reshape(8, 40, 40)
    mask = np.zeros(image.shape, dtype=bool)
    mask[1, 20, 20] = True
    region = chain(image, mask, (2.0, 1.0, 1.0))
    assert region.margin == (3, 6, 6)
    assert region.around.shape == (7, 13, 13)
    assert np.isnan(region.around[:2]).all()
    assert np.array_equal(region.around[2:], image[:5, 14:27, 14:27])


def test_a_region_that_the_coarse_grid_misses_is_named():
    image = np.zeros((9, 9, 9))
    mask = np.zeros(image.shape, dtype=bool)
    mask[2, 2, 2] = True
    with pytest.raises(DataError, match="nothing is left of ROI 'ROI' at a spacing of 8 x 8 x 8"):
        chain(image, mask, spacing_mm=8.0)


@pytest.mark.parametrize("wanted", [0.0, (1.0, 2.0), (1.0, -1.0, 1.0), math.nan])
def test_a_wanted_spacing_is_one_or_three_numbers(wanted):
    with pytest.raises(UsageError, match="spacing_mm"):
        chain(np.zeros((3, 3, 3)), spacing_mm=wanted)
