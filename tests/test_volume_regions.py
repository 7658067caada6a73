"""The ruler of regions measures what was planted, at any contrast."""

import numpy as np
import pytest

from neurodiff.analysis.volume_regions import RegionRuler, region_agreement
from neurodiff.core.errors import DataError, UsageError
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains


@pytest.fixture(scope="module")
def brains():
    return SimulatedBrains(BrainSettings(subjects=20, months=(0.0, 24.0)), seed=3)


@pytest.fixture(scope="module")
def ruler(brains):
    return RegionRuler(brains.grid.affine, brains.grid.shape)


@pytest.mark.parametrize("seed", [3, 7])  # the second has ventricles of 8 to 39 ml
def test_it_measures_the_planted_volumes(seed, ruler):
    cohort = SimulatedBrains(BrainSettings(subjects=20, months=(0.0, 24.0)), seed=seed).cohort()
    measured = [ruler(volume.data) for volume in cohort]
    true = {name: cohort.scans[f"true_{name}"].tolist() for name in ruler.regions}
    found = region_agreement(measured, true)
    assert found["ventricles_ml"] > 0.95
    assert found["brain_ml"] > 0.99
    assert found["hippocampi_ml"] > 0.7
    ventricles = np.array([one["ventricles_ml"] for one in measured])
    gap = np.abs(ventricles - cohort.scans["true_ventricles_ml"])
    assert gap.mean() < 0.12 * cohort.scans["true_ventricles_ml"].mean()


def test_growing_ventricles_grow_and_contrast_does_not_count(brains, ruler):
    name = next(n for n in brains.names if brains.person(n).diagnosis == "AD")
    scans = [brains.truth(name, months).data for months in (0.0, 12.0, 24.0)]
    ml = [ruler(scan) for scan in scans]
    assert np.all(np.diff([one["ventricles_ml"] for one in ml]) > 0)
    assert np.all(np.diff([one["hippocampi_ml"] for one in ml]) < 0)
    dim = ruler(0.7 * scans[0])
    for region in ("ventricles_ml", "hippocampi_ml"):
        assert dim[region] == pytest.approx(ml[0][region], rel=0.03)


def test_what_cannot_be_measured(brains, ruler):
    shape = brains.grid.shape
    with pytest.raises(DataError, match="empty where the brain lies"):
        ruler(np.zeros(shape))
    with pytest.raises(DataError, match="NaN"):
        ruler(np.full(shape, np.nan))
    with pytest.raises(DataError, match="this ruler is for"):
        ruler(np.zeros((4, 4, 4)))
    turned = brains.grid.affine.copy()
    turned[:2, :2] = [[0, -4], [4, 0]]
    with pytest.raises(UsageError, match="turned against MNI"):
        RegionRuler(turned, shape)
    far = brains.grid.affine.copy()
    far[:3, 3] += 1000
    with pytest.raises(UsageError, match="does not reach"):
        RegionRuler(far, shape)
