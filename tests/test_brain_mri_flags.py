"""Flags: each is raised by what it names, and by nothing else."""

import numpy as np
import pytest

from neurodiff.core.volume import Volume
from neurodiff.datasets.brain_mri_flags import flag_names, flags_of
from neurodiff.datasets.mni import mni_maps, sampled
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains


@pytest.fixture(scope="module")
def scan():
    return SimulatedBrains(BrainSettings(subjects=2, shape=(52, 64, 52)), seed=0).scan(
        "sim-0001", 0.0
    )


@pytest.fixture(scope="module")
def head(scan):
    """A brain with fluid, skull and scalp around it, and noise in the air."""
    from scipy.ndimage import binary_dilation, generate_binary_structure

    brain = scan.data[0] > 0
    ball = generate_binary_structure(3, 1)
    skull, scalp = binary_dilation(brain, ball, 2), binary_dilation(brain, ball, 5)
    rng = np.random.default_rng(0)
    data = np.where(brain, scan.data[0], np.where(skull, 0.1, np.where(scalp, 0.7, 0.0)))
    return scan.with_data(data + 0.01 * np.abs(rng.normal(size=data.shape)))


def names(volume, **options):
    return flag_names(flags_of(volume, **options))


def test_a_good_scan_has_no_flag(scan):
    assert names(scan) == ""
    assert names(scan, stage="prepared") == ""
    assert names(mni_maps(2)["t1"]) == ""


def test_a_head_is_not_skull_stripped(head, scan):
    assert "skull" in names(head)
    quiet = head.with_data(np.where(head.data > 0.05, head.data, 0))  # without noise in the air
    assert "skull" in names(quiet)
    assert "space" not in names(head)
    noise = 0.01 * np.random.default_rng(0).random(scan.data.shape)
    air = np.where(scan.data > 0, scan.data, noise)
    assert "skull" in names(scan.with_data(air))


@pytest.mark.parametrize("shift", [(0, 18, 0), (0, 0, -25), (30, 0, 0)])
def test_a_brain_elsewhere_is_not_in_mni_space(scan, head, shift):
    affine = scan.affine.copy()
    affine[:3, 3] += shift
    assert names(Volume(scan.data, affine)) == "space"
    assert "space" in names(Volume(head.data, affine))
    near = scan.affine.copy()
    near[:3, 3] += np.array(shift) / 10
    assert names(Volume(scan.data, near)) == ""


def test_another_contrast_is_not_t1(scan):
    # bright fluid as in T2: the outline is right, and the text says what may be wrong
    found = flags_of(scan.with_data(np.where(scan.data > 0, 1.05 - scan.data, 0)))
    assert [flag.name for flag in found] == ["space"]
    assert "or no T1-weighted image" in found[0].text


def test_wrong_axes_and_wrong_labels_of_axes(scan):
    turned = scan.reoriented("LPS")
    assert names(turned) == "orientation"
    lying = Volume(turned.data, scan.affine)  # the file claims RAS and is not
    assert "space" in names(lying)
    angle = np.deg2rad(25)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert "oblique" in names(Volume(scan.data, turn @ scan.affine))


def test_ranges(scan):
    assert names(scan.with_data(scan.data * 800)) == ""
    assert names(scan.with_data(scan.data * 800), stage="prepared") == "range"
    assert names(scan.with_data(scan.data * 0.2), stage="prepared") == "range"
    negative = scan.data.copy()
    negative[0, :3] = -0.5
    assert "range" in names(scan.with_data(negative))
    spike = scan.data.copy()
    spike[0, 20, 20, 20] = 50
    found = {flag.name: flag.text for flag in flags_of(scan.with_data(spike))}
    assert "darken the brain" in found["range"]
    assert names(scan.with_data(np.full_like(scan.data, 3.0))) == "constant"


def test_a_brain_that_is_cut_off(scan):
    half = Volume(np.ascontiguousarray(scan.data[:, :, :, :28]), scan.affine)
    found = [flag for flag in flags_of(half) if flag.name == "cut"]
    assert len(found) == 1
    assert "last slice of axis k" in found[0].text


def test_a_small_brain(scan):
    small = Volume(scan.data, np.diag([0.5, 0.5, 0.5, 1.0]) @ scan.affine)
    assert "size" in names(small)


def test_headers_that_leave_something_open(scan):
    noted = Volume(scan.data, scan.affine, notes=("the header states no orientation",))
    assert names(noted) == "header"


def test_the_template_at_any_grid():
    maps = mni_maps(2)
    same = sampled(maps["t1"], maps["t1"].affine, maps["t1"].shape)
    np.testing.assert_allclose(same, maps["t1"].data[0], atol=1e-6)
    moved = maps["t1"].affine.copy()
    moved[0, 3] += 2.0
    np.testing.assert_allclose(
        sampled(maps["t1"], moved, maps["t1"].shape)[:-1], maps["t1"].data[0, 1:], atol=1e-6
    )
