"""Scores on lungs and lesions whose truth is known by construction."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from neurodiff.core.errors import DataError
from neurodiff.metrics.ct_scores import agatston, emphysema_index, perc15


def lung(share: float, *, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Tissue of -860 HU with a known share of emphysema at -980, within a chest of 40 HU."""
    hu = np.full((10, 40, 40), 40.0)
    mask = np.zeros(hu.shape, dtype=bool)
    mask[:, 5:35, 5:35] = True
    generator = np.random.default_rng(0)
    values = np.full(int(mask.sum()), -860.0)
    values[: round(share * values.size)] = -980.0
    hu[mask] = generator.permutation(values) + noise * generator.normal(size=values.size)
    return hu, mask


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_index_is_the_share_of_emphysema(share):
    assert emphysema_index(*lung(share)) == pytest.approx(100 * share)


def test_noise_makes_emphysema_as_the_normal_distribution_says():
    """What a sharp kernel does: 80 HU of noise alone."""
    hu, mask = lung(0.1, noise=80.0)
    expected = 0.1 * norm.cdf(30 / 80) + 0.9 * norm.cdf(-90 / 80)
    assert emphysema_index(hu, mask) == pytest.approx(100 * expected, abs=2)
    quiet, _ = lung(0.1, noise=5.0)
    assert emphysema_index(quiet, mask) == pytest.approx(10, abs=0.2)


def test_a_voxel_at_the_threshold_does_not_count():
    hu = np.array([-950.0, -950.1])
    assert emphysema_index(hu, np.ones(2, dtype=bool)) == 50


def test_the_percentile_of_a_known_distribution():
    hu, mask = lung(0.0, noise=30.0)
    assert perc15(hu, mask) == pytest.approx(-860 + 30 * norm.ppf(0.15), abs=1.5)
    assert perc15(np.arange(101.0), np.ones(101, dtype=bool)) == 15


def heart() -> tuple[np.ndarray, np.ndarray]:
    return np.full((3, 30, 30), 50.0), np.ones((3, 30, 30), dtype=bool)


@pytest.mark.parametrize(
    ("peak", "weight"), [(130, 1), (199, 1), (200, 2), (299, 2), (300, 3), (399, 3), (400, 4)]
)
def test_a_lesion_gives_its_area_times_the_weight_of_its_peak(peak, weight):
    hu, where = heart()
    hu[1, 5:9, 5:10] = 130.0
    hu[1, 6, 6] = peak
    found = agatston(hu, where, (3.0, 0.5, 0.6))
    assert found.score == pytest.approx(4 * 5 * 0.3 * weight)
    assert found.by_slice == pytest.approx((0.0, found.score, 0.0))
    assert found.lesions == 1
    assert found.volume_mm3 == pytest.approx(20 * 0.3 * 3)


def test_lesions_of_a_slice_have_their_own_peaks():
    hu, where = heart()
    hu[0, 2:6, 2:6] = 150.0
    hu[0, 20:24, 20:24] = 450.0
    assert agatston(hu, where, (3.0, 1.0, 1.0)).score == 16 * 1 + 16 * 4


def test_corners_join_and_small_areas_are_noise():
    hu, where = heart()
    hu[0, 2, 2] = hu[0, 3, 3] = 200.0
    joined = agatston(hu, where, (3.0, 0.7, 0.8))  # 2 x 0.56 mm^2
    assert joined.lesions == 1
    assert joined.score == pytest.approx(2 * 0.56 * 2)
    hu[0, 3, 3], hu[0, 3, 4] = 50.0, 200.0
    assert agatston(hu, where, (3.0, 0.7, 0.8)).score == 0


def test_a_lesion_counts_the_same_in_thin_slices():
    thick, where = heart()
    thick[1, 5:9, 5:9] = 350.0
    thin = np.repeat(thick, 3, axis=0)
    everywhere = np.repeat(where, 3, axis=0)
    one = agatston(thick, where, (3.0, 1.0, 1.0))
    three = agatston(thin, everywhere, (1.0, 1.0, 1.0))
    assert three.score == pytest.approx(one.score)
    assert three.volume_mm3 == pytest.approx(one.volume_mm3)
    assert agatston(thin, everywhere, (1.0, 1.0, 1.0), rescale=False).score == 3 * one.score


def test_bone_outside_the_region_does_not_count():
    hu, where = heart()
    hu[:, 25:] = 1000.0
    where[:, 25:] = False
    assert agatston(hu, where, (3.0, 1.0, 1.0)).score == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"where": np.ones((3, 30, 31), dtype=bool)}, "lies on a grid"),
        ({"where": np.zeros((3, 30, 30), dtype=bool)}, "is empty"),
        ({"where": np.ones((3, 30, 30))}, "give a bool array"),
        ({"spacing_mm": (3.0, 0.0, 1.0)}, "three numbers above 0"),
        ({"kvp": 100.0}, "100 kVp"),
        ({"threshold": 90.0}, "at least 130"),
        ({"hu": np.full((3, 30, 30), math.nan)}, "NaN"),
    ],
)
def test_a_score_is_refused_where_its_rules_do_not_hold(change, match):
    hu, where = heart()
    given = {"hu": hu, "where": where, "spacing_mm": (3.0, 1.0, 1.0)} | change
    with pytest.raises(DataError, match=match):
        agatston(**given)


def test_a_lung_on_another_grid_or_with_holes_is_refused():
    hu, mask = lung(0.1)
    for function in (emphysema_index, perc15):
        with pytest.raises(DataError, match="lies on a grid"):
            function(hu, mask[1:])
        with pytest.raises(DataError, match="is empty"):
            function(hu, np.zeros_like(mask))
        with pytest.raises(DataError, match="voxels of NaN"):
            function(np.where(mask, np.nan, hu), mask)
