"""Simulated brains: the truth is planted, can be measured back, and is the same in any order."""

import time

import numpy as np
import pytest

from neurodiff.core.errors import UsageError
from neurodiff.datasets.brain_mri_flags import flags_of
from neurodiff.datasets.opening import check_dataset, open_dataset
from neurodiff.datasets.simulated.brain_anatomy import (
    Anatomy,
    Grid,
    draw_anatomy,
    size_change,
    smooth_field,
    template_places,
    volume_ml,
)
from neurodiff.datasets.simulated.brain_opening import simulated_brains
from neurodiff.datasets.simulated.brains import (
    CONVERSION,
    HIPPOCAMPI,
    SEVERITY,
    SITES,
    VENTRICLES,
    BrainSettings,
    SimulatedBrains,
)

SMALL = BrainSettings(subjects=30, months=(0.0, 12.0), shape=(40, 48, 40))


@pytest.fixture(scope="module")
def brains():
    return SimulatedBrains(SMALL, seed=0)


@pytest.fixture(scope="module")
def cohort(brains):
    return brains.cohort()


def test_a_scan_belongs_to_its_person_and_month(brains, cohort):
    again = SimulatedBrains(SMALL, seed=0)
    late = again.scan("sim-0007", 12.0)  # asked for first, and alone
    np.testing.assert_array_equal(late.data, brains.scan("sim-0007", 12.0).data)
    np.testing.assert_array_equal(late.data, cohort["sim-0007_M012"].data)
    other = SimulatedBrains(SMALL, seed=1).scan("sim-0007", 12.0)
    assert not np.array_equal(late.data, other.data)
    assert late.data.shape == (1, 40, 48, 40)
    assert 0.0 == late.data.min() < late.data.max() <= 1.0


def test_a_kept_scan_is_made_once(brains, cohort):
    kept = brains.cohort(keep=True)
    assert kept["sim-0007_M012"] is kept["sim-0007_M012"]
    assert cohort["sim-0007_M012"] is not cohort["sim-0007_M012"]
    np.testing.assert_array_equal(kept["sim-0007_M012"].data, cohort["sim-0007_M012"].data)


def test_the_map_never_folds():
    grid = Grid.around_brain((40, 48, 40))
    rng = np.random.default_rng(0)
    for e, h in ((0.6, -0.6), (-0.6, 0.6), (0.4, -0.3)):
        places = template_places(grid.axes, draw_anatomy(rng), e, h)
        slopes = np.stack([np.stack(np.gradient(p, grid.spacing)) for p in places])
        assert np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))).min() > 0


def test_the_surface_does_not_move_when_the_ventricles_grow():
    grid = Grid.around_brain((40, 48, 40))
    still, grown = (template_places(grid.axes, Anatomy(), e, 0.0) for e in (0.0, 0.5))
    moved = np.abs(grown - still).max(axis=0)
    assert moved.max() > 5
    top = np.argmin(np.abs(grid.axes[2] - 72.0))
    assert moved[:, :, top].max() == 0


def test_planted_changes_are_measured_back():
    for name, log_ratio in (("ventricles", 0.7), ("ventricles", -0.4), ("hippocampi", -0.3)):
        e = size_change(name, log_ratio)
        sizes = (e, 0.0) if name == "ventricles" else (0.0, e)
        ratio = volume_ml(name, Anatomy(), *sizes) / volume_ml(name, Anatomy(), 0.0, 0.0)
        assert np.log(ratio) == pytest.approx(log_ratio, abs=0.01)
    with pytest.raises(UsageError, match="fewer months"):
        size_change("ventricles", 2.0)


def test_true_volumes_do_not_depend_on_the_grid(brains):
    fine = SimulatedBrains(BrainSettings(subjects=30, shape=(72, 88, 72)), seed=0)
    truth = brains.volumes("sim-0003", 12.0)
    assert fine.volumes("sim-0003", 12.0) == truth
    for region in ("ventricles", "hippocampi"):
        shares = fine.region("sim-0003", 12.0, region)
        measured = float(shares.data.sum()) * shares.voxel_ml
        assert measured == pytest.approx(truth[f"true_{region}_ml"], rel=0.03)


def test_volumes_follow_age_and_disease(cohort):
    scans = cohort.scans
    first = scans[scans["session"] == 0].set_index("subject")
    last = scans[scans["session"] == 12].set_index("subject")
    growth = np.log(last["true_ventricles_ml"] / first["true_ventricles_ml"])
    loss = np.log(last["true_hippocampi_ml"] / first["true_hippocampi_ml"])
    kind = first["diagnosis"]
    assert (growth > 0).all()
    assert growth[kind == "AD"].mean() == pytest.approx(0.085, abs=0.025)
    assert growth[kind == "CN"].mean() == pytest.approx(0.025, abs=0.01)
    assert loss[kind == "AD"].mean() < loss[kind == "CN"].mean() < 0
    means = first.groupby("diagnosis")["true_hippocampi_ml"].mean()
    assert means["AD"] < means["MCI"] < means["CN"]
    assert kind.value_counts().to_dict() == {"CN": 12, "MCI": 9, "AD": 9}  # 0.4, 0.3, 0.3


def test_the_picture_shows_the_change_and_the_noise_hides_some_of_it(brains):
    name = next(n for n in brains.names if brains.person(n).diagnosis == "AD")
    before, after = (brains.truth(name, months).data[0] for months in (0.0, 24.0))
    ventricles = brains.region(name, 24.0, "ventricles").data[0] > 0.3
    change = after - before
    assert change[ventricles].mean() < -0.02  # darker where fluid came
    surface = brains.grid.axes[2] > 72
    assert np.abs(change[:, :, surface]).max() == 0
    noise = brains.scan(name, 0.0).data[0] - before
    assert noise[before > 0].std() > 0.01
    halfway = brains.truth(name, 12.0).data[0]
    assert np.abs(halfway - before).sum() < np.abs(change).sum()


def test_sites_have_contrasts_of_their_own(brains):
    means = {}
    for name in brains.names:
        data = brains.scan(name, 0.0).data
        means.setdefault(brains.person(name).site, []).append(float(np.percentile(data, 95)))
    assert set(means) == set(range(len(SITES)))
    centres = [np.mean(values) for _, values in sorted(means.items())]
    assert max(centres) - min(centres) > 0.01


def test_smooth_fields_reproduce_constants():
    grid = Grid.around_brain((12, 14, 12))
    field = smooth_field(np.full((1, 6, 7, 6), 2.5), grid.axes)
    np.testing.assert_allclose(field, 2.5)


def test_scans_pass_the_checks_and_are_fast(brains):
    assert flags_of(brains.scan("sim-0001", 0.0), stage="prepared") == []
    start = time.perf_counter()
    for name in brains.names[1:6]:
        brains.scan(name, 0.0)
    assert (time.perf_counter() - start) / 5 < 0.3


def test_by_name_and_settings_that_cannot_be():
    cohort = open_dataset("simulated_brains_tiny")
    assert cohort.simulated
    assert len(cohort) == 72
    assert cohort[0].shape == (24, 32, 24)
    one = open_dataset("simulated_brains", subject=2, size="tiny", shape=[16, 16, 16])
    assert one.subjects == ["sim-0002"]
    assert one[0].shape == (16, 16, 16)
    assert (check_dataset("simulated_brains")["status"] == "ok").all()
    with pytest.raises(UsageError, match=r"no size 'tinny'"):
        open_dataset("simulated_brains", size="tinny")
    with pytest.raises(UsageError, match="no subject 99"):
        open_dataset("simulated_brains", subject=99, size="tiny")
    with pytest.raises(UsageError, match="no simulated subject"):
        simulated_brains("tiny").scan("sub-01", 0.0)
    for wrong in ({"subjects": 0}, {"shape": (4, 4, 4)}, {"shares": (1.0, 1.0, 0.0)}, {"sites": 9},
                  {"missed": 1.0}):  # fmt: skip
        with pytest.raises(UsageError):
            BrainSettings(**wrong)


def test_a_pipeline_of_recordings_refuses_a_cohort():
    from neurodiff.analysis.sources import Source

    source = Source.of("simulated_brains_tiny")
    for ask in (source.open, source.stimuli):
        with pytest.raises(UsageError, match="is a cohort of volumes"):
            ask()


def test_no_person_outgrows_the_map():
    # the most that a person can have, two years after the oldest first scan
    severity = (SEVERITY["AD"][0] + 2 * SEVERITY["AD"][1]) * np.exp(0.3)
    start, by_age, by_disease, spread = VENTRICLES
    most = start + by_age * 18 + by_disease * severity + 2 * spread
    assert size_change("ventricles", float(most)) < 0.6
    start, by_age, by_disease, spread = HIPPOCAMPI
    least = start + by_age * 18 + by_disease * severity - 2 * spread
    assert size_change("hippocampi", float(least)) > -0.6


def test_some_convert_and_nobody_at_the_first_visit():
    settings = BrainSettings(subjects=60, months=(0.0, 24.0, 36.0), shape=(8, 8, 8))
    cohort = SimulatedBrains(settings).cohort()
    assert (cohort.first_scans().scans["diagnosis"] == "MCI").sum() == 18  # 0.3 of 60
    converts = cohort.conversions(36.0)
    assert len(converts) == 18
    assert 0 < converts.sum() < 18
    severity = cohort.scans.set_index("scan")["true_severity"]
    assert all((severity[f"{name}_M036"] >= CONVERSION) == went for name, went in converts.items())


def test_missed_visits_leave_the_first():
    brains = SimulatedBrains(
        BrainSettings(subjects=20, months=(0.0, 6.0, 12.0), shape=(8, 8, 8), missed=0.5)
    )
    table = brains.cohort().scans
    assert set(table[table["session"] == 0]["subject"]) == set(brains.names)
    assert 20 < len(table) < 60
