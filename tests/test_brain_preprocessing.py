"""Preparing scans: the published numbers, the way back, registration, and cohorts that go on."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.datasets.brain_mri import discover
from neurodiff.datasets.mni import mni_maps, sampled
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains
from neurodiff.pipelines.affine_registration import register_to_mni, to_mni
from neurodiff.pipelines.brain_preprocessing import (
    LDAE_2025,
    BrainPreprocessing,
    prepare_cohort,
    prepare_scan,
)
from neurodiff.pipelines.brain_steps import correct_bias, register, strip_skull

SMALL = BrainPreprocessing(spacing=4.0, shape=(40, 48, 40))


@pytest.fixture(scope="module")
def brains():
    settings = BrainSettings(subjects=3, months=(0.0, 12.0), shape=(44, 54, 44))
    return SimulatedBrains(settings, seed=0)


@pytest.fixture(scope="module")
def scan(brains):
    return brains.scan("sim-0001", 0.0)


@pytest.mark.parametrize(
    ("shape", "spaced"),
    [((182, 218, 182), (122, 146, 122)), ((169, 208, 179), (113, 139, 120)),
     ((197, 233, 189), (132, 156, 126))],
)  # fmt: skip
def test_the_published_grid(shape, spaced):
    # sizes at 1.5 mm as measured with the published transforms; the last is cropped along i
    data = np.zeros((1, *shape), np.float32)
    data[0, 60:120, 60:150, 60:120] = np.linspace(50, 900, 60, dtype=np.float32)
    made = prepare_scan(Volume(data, np.eye(4)), LDAE_2025)
    assert made.volume.shape == (128, 160, 128)
    assert (made.volume.data.min(), made.volume.data.max()) == (0.0, 1.0)
    np.testing.assert_allclose(made.volume.spacing, 1.5)
    said = []
    for letter, n, want in zip("ijk", spaced, (128, 160, 128), strict=True):
        what = "padded with the darkest value" if n < want else "cropped"
        said.append(f"axis {letter} was {what} from {n} to {want} voxels")
    assert list(made.notes) == said


def test_the_published_transforms_give_the_same_numbers(scan):
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose, ResizeWithPadOrCrop, ScaleIntensity, Spacing

    published = Compose(
        [
            Spacing(pixdim=(4.0, 4.0, 4.0), mode="bilinear"),
            ResizeWithPadOrCrop(spatial_size=(40, 48, 40), mode="minimum"),
            ScaleIntensity(minv=0, maxv=1),
        ]
    )
    raw = scan.data * 812.5 - 3
    want = published(MetaTensor(torch.from_numpy(raw), affine=torch.tensor(scan.affine)))
    made = prepare_scan(scan.with_data(raw), SMALL)
    np.testing.assert_allclose(made.volume.data, want.numpy(), atol=1e-6)
    np.testing.assert_allclose(made.volume.affine, np.asarray(want.meta["affine"]))


def test_every_voxel_keeps_its_place(scan):
    made = prepare_scan(scan, SMALL)
    there = sampled(scan, made.volume.affine, made.volume.shape)
    inside = slice(4, -4)
    want = (there - made.low) / (made.high - made.low)
    difference = np.abs(made.volume.data[0] - want)[inside, inside, inside]
    assert difference.max() < 1e-3


def test_an_orientation_changes_nothing_but_the_axes(scan):
    made, turned = (prepare_scan(v, SMALL) for v in (scan, scan.reoriented("PIL")))
    np.testing.assert_allclose(made.volume.data, turned.volume.data, atol=1e-5)
    np.testing.assert_allclose(made.volume.affine, turned.volume.affine, atol=1e-6)
    published = prepare_scan(scan.reoriented("LPS"), LDAE_2025)
    assert published.volume.orientation == "LPS"  # the published code takes what it gets
    again = prepare_scan(scan, LDAE_2025)
    np.testing.assert_array_equal(
        again.volume.data, prepare_scan(scan, BrainPreprocessing()).volume.data
    )


def test_back_to_the_own_space(scan):
    own = scan.reoriented("LAS")
    made = prepare_scan(own.with_data(own.data * 700), SMALL)
    back = made.to_scan_space(made.volume, intensities=True)
    assert (back.shape, back.orientation) == (own.shape, "LAS")
    inside = own.data > 0.4
    error = np.abs(back.data - own.data * 700)[inside].mean() / 700
    assert error < 0.05  # what was lost is the detail of resampling twice
    with pytest.raises(UsageError, match="the model's grid has"):
        made.to_scan_space(own)


def test_one_bright_voxel_darkens_a_brain_only_as_published(scan):
    spike = scan.data.copy()
    spike[0, 22, 27, 22] = 40.0
    bright = scan.with_data(spike)
    robust = BrainPreprocessing(spacing=4.0, shape=(40, 48, 40), intensity="percentile")
    assert np.median(prepare_scan(bright, SMALL).volume.data[0][10:30, 10:30, 15:25]) < 0.1
    assert np.median(prepare_scan(bright, robust).volume.data[0][10:30, 10:30, 15:25]) > 0.4


def test_scans_that_cannot_be_prepared(scan):
    slab = Volume(np.ascontiguousarray(scan.data[..., :6]), scan.affine)
    with pytest.raises(DataError, match=r"covers .* mm, less than a brain"):
        prepare_scan(slab, SMALL)
    with pytest.raises(DataError, match="2 channels"):
        prepare_scan(Volume(np.concatenate([scan.data] * 2), scan.affine), SMALL)
    with pytest.raises(DataError, match="is 2 everywhere"):
        prepare_scan(scan.with_data(np.full_like(scan.data, 2.0)), SMALL)
    for wrong in ({"spacing": 0.0}, {"shape": (0, 1, 1)}, {"upper": 10.0}, {"intensity": "z"}):
        with pytest.raises(UsageError):
            BrainPreprocessing(**wrong)


def test_a_cohort_goes_on_and_resumes(tmp_path, brains, monkeypatch):
    raw = tmp_path / "raw"
    rows = []
    for number, name in enumerate(brains.names):
        path = brains.scan(name, 0.0).save(raw / f"{name}.nii.gz")
        rows.append((name, 0.0, str(path), 70.0 + number))
    (raw / "sim-0002.nii.gz").write_bytes((raw / "sim-0002.nii.gz").read_bytes()[:2000])
    cohort = Cohort(pd.DataFrame(rows, columns=["subject", "session", "path", "age"]))
    made = prepare_cohort(cohort, tmp_path / "out", SMALL)
    assert made.ids == ["sim-0001_M000", "sim-0003_M000"]
    assert made.left_out["scan"].tolist() == ["sim-0002_M000"]
    assert "damaged" in made.left_out["reason"][0]
    assert (tmp_path / "out/failed.csv").is_file()
    assert made.scans["flags"].tolist() == ["", ""]
    again = discover(tmp_path / "out")
    assert known_ages(again) == [70.0, 72.0]
    np.testing.assert_array_equal(again[0].data, made[0].data)

    opened = []
    monkeypatch.setattr(
        "neurodiff.pipelines.brain_preprocessing.prepare_scan",
        lambda volume, settings: opened.append(volume) or prepare_scan(volume, settings),
    )
    brains.scan("sim-0002", 0.0).save(raw / "sim-0002.nii.gz")
    assert len(prepare_cohort(cohort, tmp_path / "out", SMALL)) == 3
    assert len(opened) == 1  # the one that had failed
    finer = BrainPreprocessing(spacing=4.0, shape=(48, 48, 48))
    assert prepare_cohort(cohort, tmp_path / "out", finer)[0].shape == (48, 48, 48)
    assert len(opened) == 4
    with pytest.raises(DataError, match=r"none of 3 scans could be prepared; first: no way"):
        prepare_cohort(cohort, tmp_path / "no", SMALL, steps=(refuse,))


def known_ages(cohort):
    return cohort.scans["age"].tolist()


def refuse(volume):
    raise DataError("no way")


def test_registration_finds_a_planted_movement(scan):
    angles = np.deg2rad([12.0, -15.0, 8.0])
    (a, b, c), planted = angles, np.eye(4)
    planted[:3, :3] = (
        np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        @ np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
        @ np.diag([0.92, 1.08, 1.04])
    )
    planted[:3, 3] = (20, -25, 30)
    moved = Volume(scan.data, planted @ scan.affine)
    still, found = register_to_mni(scan), register_to_mni(moved)
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)]).T
    apart = ((found.to_mni @ planted - still.to_mni) @ corners)[:3]
    assert np.linalg.norm(apart, axis=0).max() < 1.0  # mm
    assert found.likeness == pytest.approx(still.likeness, abs=0.01)
    placed = register(moved, spacing=4.0)
    assert placed.shape == (46, 54, 46)
    template = sampled(mni_maps(2)["t1"], placed.affine, placed.shape)
    assert np.corrcoef(template.ravel(), placed.data.ravel())[0, 1] > 0.95


def test_a_registration_that_fails_says_so(scan):
    noise = np.random.default_rng(0).random(scan.data.shape).astype(np.float32)
    with pytest.raises(DataError, match="could not be registered to MNI"):
        to_mni(scan.with_data(np.where(noise > 0.5, noise, 0)))
    with pytest.raises(DataError, match="no brain that stands out"):
        to_mni(scan.with_data(np.zeros_like(scan.data)))


def test_skulls_are_stripped_by_a_mask_or_the_template(scan):
    brain = scan.data > 0
    head = scan.with_data(np.where(brain, scan.data, 0.7))
    mask = scan.with_data(brain.astype(np.float32))
    np.testing.assert_array_equal(
        strip_skull(head, method="mask", mask=mask).data, np.where(brain, scan.data, 0)
    )
    by_template = strip_skull(scan, method="mni")
    kept = ((by_template.data > 0) & brain).sum() / brain.sum()
    assert kept > 0.9
    affine = scan.affine.copy()
    affine[1, 3] += 40
    with pytest.raises(DataError, match="register it first"):
        strip_skull(Volume(scan.data, affine), method="mni")
    affine[1, 3] += 4000
    with pytest.raises(DataError, match="no voxel"):
        strip_skull(head, method="mask", mask=Volume(mask.data, affine))
    with pytest.raises(UsageError, match="needs a mask"):
        strip_skull(scan, method="mask")
    with pytest.raises(UsageError, match="no method 'bet'"):
        strip_skull(scan, method="bet")


def test_packages_that_are_not_installed_are_named(scan, monkeypatch):
    import sys

    for module in ("ants", "antspynet", "SimpleITK"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    for step, package in [
        (partial(correct_bias, method="ants"), "antspyx"),
        (partial(correct_bias, method="simpleitk"), "SimpleITK"),
        (partial(register, method="ants_syn"), "antspyx"),
        (partial(strip_skull, method="antspynet"), "antspynet"),
    ]:
        with pytest.raises(UsageError, match=f"needs the package {package}, which is not"):
            step(scan)
    for step in (correct_bias, register):
        with pytest.raises(UsageError, match="no method 'x'"):
            step(scan, method="x")


def test_what_ants_is_told_of_a_place(scan, monkeypatch):
    # a stand-in for the package: it keeps what it was given and returns it unchanged
    import sys
    from types import SimpleNamespace

    told = {}

    def from_numpy(values, *, origin, spacing, direction):
        told.update(origin=origin, spacing=spacing, direction=direction)
        return SimpleNamespace(numpy=lambda: values)

    stand_in = SimpleNamespace(from_numpy=from_numpy, n4_bias_field_correction=lambda image: image)
    monkeypatch.setitem(sys.modules, "ants", stand_in)
    turned = scan.reoriented("PIL")
    np.testing.assert_array_equal(correct_bias(turned).data, turned.data)
    voxel = np.array([3.0, 5.0, 7.0])
    lps = told["direction"] @ (voxel * told["spacing"]) + told["origin"]
    ras = (turned.affine @ [*voxel, 1])[:3]
    np.testing.assert_allclose(lps, ras * [-1, -1, 1])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "AIL"])
def test_a_map_comes_back_to_every_voxel_of_an_oblique_scan(codes):
    """On a grid of the scan's own voxels, so that nothing is interpolated, borders included."""
    turn = np.eye(4)
    c, s = np.cos(0.26), np.sin(0.26)
    turn[:2, :2], turn[:3, 3] = [[c, -s], [s, c]], [-77.6, -121.6, -72.6]
    values = np.random.default_rng(0).random((1, 24, 32, 24)).astype(np.float32)
    own = Volume(values, turn @ np.diag([6.75, 6.75, 6.75, 1.0])).reoriented(codes)
    made = prepare_scan(own, BrainPreprocessing(spacing=6.75, shape=(24, 32, 24)))
    back = made.to_scan_space(made.volume, intensities=True)
    np.testing.assert_allclose(back.data, own.data, atol=1e-4)
    np.testing.assert_array_equal(back.affine, own.affine)


def test_a_map_is_zero_outside_the_grid():
    own = Volume(np.ones((1, 40, 40, 40), np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    own.data[0, 20, 20, 20] = 0
    made = prepare_scan(own, BrainPreprocessing(spacing=4.0, shape=(20, 20, 20)))
    back = made.to_scan_space(made.volume.with_data(np.ones((1, 20, 20, 20), np.float32))).data[0]
    assert back.sum() == 20**3
    assert back[10:30, 10:30, 10:30].all()
