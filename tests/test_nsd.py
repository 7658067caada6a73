"""NSD on small exact layouts: axis orders, scalings, splits, repeats, ROIs, pictures, captions."""

import gzip
import importlib.util
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.spaces import MaskSpace
from neurodiff.datasets.nsd import NSD, noise_ceiling
from neurodiff.datasets.nsd_betas import BetaFile, SessionTrials, average
from neurodiff.datasets.nsd_files import DIMENSIONS, SESSIONS, ranges, read_design
from neurodiff.datasets.nsd_rois import parse_ctab
from neurodiff.datasets.opening import open_dataset


def _load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layout = _load("nsd_layout")


def stored(mask, sessions=(1, 2)):
    """int16 (trials, features) by the plain route: a transposed volume under a boolean mask."""
    return np.concatenate([layout.betas(k).transpose(3, 0, 1, 2)[:, mask] for k in sessions])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound subject of two sessions as NIfTI, read only by the tests that use it."""
    root = tmp_path_factory.mktemp("nsd")
    return root, layout.write_nsd(root)


# ------------------------------------------------------------------- betas: axes and scalings (P14)


@pytest.mark.parametrize("kind", ["nifti", "hdf5"])
def test_volume_betas_in_the_order_of_the_mask(tmp_path, kind):
    mask = layout.write_nsd(tmp_path, kind=kind)
    recording, _ = open_dataset("nsd", root=tmp_path, subject=1, sessions=2)
    assert recording.data.shape == (1500, 20)
    assert recording.unit == "%"
    np.testing.assert_array_equal(recording.array(), np.float32(stored(mask)) / np.float32(300))
    for index in ([1400, 3, 3], slice(740, 760), -1, 0):
        np.testing.assert_array_equal(recording.data[index], recording.array()[index])
    assert recording.to_image(recording.data[5]).get_fdata()[mask] == pytest.approx(
        layout.betas(1)[mask][:, 5] / 300, rel=1e-6
    )


def test_hdf5_without_small_chunks_and_a_session_of_each_kind(tmp_path):
    mask = layout.write_nsd(tmp_path, sessions=(1,))
    layout.write_hdf5(tmp_path, 2, chunks=False)
    recording, _ = NSD.open(tmp_path, sessions=2)
    np.testing.assert_array_equal(recording.array(), np.float32(stored(mask)) / np.float32(300))


@pytest.mark.parametrize("kind", ["nifti", "hdf5", "whole hdf5", "surface"])
def test_files_larger_than_a_block(tmp_path, monkeypatch, kind):
    """1,000 bytes are 8 volumes or 35 surfaces: many blocks, the last one not full."""
    monkeypatch.setattr("neurodiff.datasets.nsd_betas._BLOCK_BYTES", 1000)
    mask, values = layout.mask_of() > 0, layout.betas(1)
    if kind == "surface":
        rng = np.random.default_rng(0)
        left, right = rng.normal(size=(2, layout.VERTICES, 750)).astype(np.float32)
        folder = layout.write_surface(tmp_path, 1, left, right)
        paths = tuple(folder / f"{side}.betas_session01.mgh" for side in ("lh", "rh"))
        masks = (np.arange(7) % 2 == 0, np.arange(7) > 4)
        expected = np.concatenate([left[masks[0]], right[masks[1]]]).T
    else:
        write = layout.write_nifti if kind == "nifti" else layout.write_hdf5
        options = {"chunks": False} if kind == "whole hdf5" else {}
        paths, masks = (write(tmp_path, 1, values, **options),), (mask,)
        expected = values.transpose(3, 0, 1, 2)[:, mask]
    read = BetaFile(paths, masks, 750).read()
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)


def test_an_untransposed_hdf5_file_is_refused(tmp_path):
    layout.write_nsd(tmp_path, kind="hdf5")
    layout.write_hdf5(tmp_path, 1, layout.betas(1).transpose())
    with pytest.raises(DataError, match=r"axes of MATLAB, not of the file.*\(750, 5, 4, 3\)"):
        NSD.open(tmp_path, sessions=2)


def test_surface_betas_are_in_percent_already(tmp_path):
    layout.write_design(tmp_path)
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(2, layout.VERTICES, 750)).astype(np.float32)
    layout.write_surface(tmp_path, 1, left, right)
    labels = tmp_path / "nsddata/freesurfer/fsaverage/label"
    inside = np.array([[0, 1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 1]])
    for side, values in zip(("lh", "rh"), inside, strict=True):
        layout.save_surface(labels / f"{side}.nsdgeneral.mgz", values)
        layout.save_surface(labels / f"{side}.prf-visualrois.mgz", np.arange(7) % 3)
    (labels / "prf-visualrois.mgz.ctab").write_text(layout.CTABS["prf-visualrois"])
    recording, _ = NSD.open(tmp_path, space="fsaverage", sessions=1)
    expected = np.concatenate([left[inside[0] > 0], right[inside[1] > 0]]).T
    np.testing.assert_array_equal(recording.array(), expected)
    assert recording.rois["V1v"].tolist() == [True, False, True, False, False, False]
    assert recording.rois["rh.V1d"].tolist() == [False, False, False, False, True, False]
    picture = recording.to_image(recording.data[0])
    assert picture.shape == (14,)
    assert np.isnan(picture).sum() == 8
    assert picture[[1, 7]].tolist() == recording.data[0][[0, 3]].tolist()
    means, _ = NSD.open(tmp_path, space="fsaverage", sessions=1, averaged=True)
    np.testing.assert_allclose(means.array(), recording.mean_repeats().array(), atol=1e-6)


def test_a_cache_that_is_too_small_changes_nothing(whole):
    root, mask = whole
    data = NSD.open(root, sessions=2)[0].data
    small = SessionTrials(data.files, cache_bytes=1)
    rows = [1499, 0, 800, 1]
    np.testing.assert_array_equal(small[rows], data[rows])
    assert len(small._cache) == 1
    copy = pickle.loads(pickle.dumps(small))  # noqa: S301  (our own bytes)
    assert len(copy._cache) == 0
    np.testing.assert_array_equal(copy[rows], np.float32(stored(mask)[rows]) / np.float32(300))


def test_a_recording_goes_to_another_process(whole):
    """Its data and ROIs are read there, from the same files."""
    recording, _ = NSD.open(whole[0], sessions=1)
    sent = pickle.loads(pickle.dumps(recording))  # noqa: S301  (our own bytes)
    assert sent.fingerprint() == recording.fingerprint()


# -------------------------------------------------------------------------------- the split (P14)


def _plainly(order, pictures, subject, sessions):
    """Pictures of the two sets in order of first presentation, written out as a dictionary."""
    train, test = {}, {}
    for trial in range(sessions * 750):
        m = order[trial]
        chosen = test if m <= 1000 else train
        chosen.setdefault(pictures[subject - 1, m - 1] - 1, []).append(trial)
    return train, test


@pytest.mark.parametrize("sessions", [37, 40])
def test_split_of_37_and_of_40_sessions(tmp_path, sessions):
    layout.write_design(tmp_path)
    order, pictures, _, _ = layout.design()
    shown, is_test = read_design(tmp_path).shown(5, range(1, sessions + 1))
    train, test = _plainly(order, pictures, 5, sessions)
    assert list(dict.fromkeys(shown[~is_test])) == list(train)
    assert list(dict.fromkeys(shown[is_test])) == list(test)
    assert len(set(shown)) == len(train) + len(test)
    if sessions == 40:
        assert (len(train), len(test)) == (9000, 1000)
        assert set(np.bincount(np.searchsorted(np.unique(shown), shown))) == {3}


def test_the_test_pictures_are_the_same_for_all_subjects(tmp_path):
    layout.write_design(tmp_path)
    design = read_design(tmp_path)
    sets = []
    for subject in (1, 8):
        shown, is_test = design.shown(subject, range(1, 41))
        sets.append(set(shown[is_test]))
    assert sets[0] == sets[1] == set(layout.design()[2] - 1)


def test_trials_and_repeats(whole):
    root, _ = whole
    order, pictures, _, _ = layout.design()
    recording, stimuli = NSD.open(root, sessions=2)
    trials = recording.trials
    expected = [f"nsd-{pictures[0, m - 1] - 1:05d}" for m in order[:1500]]
    assert trials["stimulus"].tolist() == expected
    assert stimuli.ids == list(dict.fromkeys(expected))
    assert trials["session"].tolist() == [1] * 750 + [2] * 750
    assert trials["run"].value_counts().sort_index().tolist() == [126, 124] * 6
    assert trials["repeat"].max() > 1
    later, _ = NSD.open(root, sessions=[2])
    assert later.trials["stimulus"].tolist() == expected[750:]
    assert later.trials["trial"].iloc[0] == 750
    np.testing.assert_array_equal(later.data[7], recording.data[757])


def test_averages_are_plain_means_in_order_of_first_presentation(whole):
    root, mask = whole
    order, pictures, _, _ = layout.design()
    train, test = _plainly(order, pictures, 1, 2)
    lazy = NSD.open(root, sessions=2)[0].mean_repeats()
    streamed, stimuli = NSD.open(root, sessions=2, averaged=True)
    values = stored(mask).astype(np.float64) / 300
    for recording in (lazy, streamed):
        for part, chosen in zip(recording.split(), (train, test), strict=True):
            assert part.trials["stimulus"].tolist() == [f"nsd-{k:05d}" for k in chosen]
            assert part.trials["repeat"].tolist() == [len(rows) for rows in chosen.values()]
            expected = np.stack([values[rows].mean(axis=0) for rows in chosen.values()])
            np.testing.assert_allclose(part.array(), expected, rtol=2e-6, atol=1e-7)
    assert set(streamed.trials["stimulus"]) == set(stimuli.ids)
    assert max(len(rows) for rows in train.values()) > 1


def test_numbers_in_the_design_are_counted_from_1(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    _, pictures, _, _ = layout.design()
    for change in ({"pictures": pictures - 1}, {"pictures": pictures + 73_000},
                   {"order": layout.design()[0] - 1}):  # fmt: skip
        layout.write_design(tmp_path, **change)
        with pytest.raises(DataError, match=r"expected 1 to (73000|10000): numbers .* from 1"):
            NSD.open(tmp_path, sessions=1)


# ------------------------------------------------------------------------------- ROIs, noise, text


def test_every_family_is_named_by_its_ctab(whole):
    root, mask = whole
    recording, _ = NSD.open(root, sessions=1)
    labels = layout.roi_folder(root)
    import nibabel

    prf = nibabel.load(labels / "prf-visualrois.nii.gz").get_fdata()[mask]
    kastner = nibabel.load(labels / "Kastner2015.nii.gz").get_fdata()[mask]
    left = np.zeros(layout.SHAPE, bool)
    left[:1] = True
    rois = recording.rois
    np.testing.assert_array_equal(rois["V2d"], prf == 4)
    np.testing.assert_array_equal(rois["V2"], (prf == 3) | (prf == 4))
    np.testing.assert_array_equal(rois["V4"], prf == 7)
    np.testing.assert_array_equal(rois["prf-visualrois"], prf > 0)
    np.testing.assert_array_equal(rois["Kastner2015/V1d"], kastner == 2)
    np.testing.assert_array_equal(rois["lh.V1v"], (prf == 1) & left[mask])
    np.testing.assert_array_equal(rois["rh.V1"], (prf >= 1) & (prf <= 2) & ~left[mask])
    assert "Unknown" not in rois
    assert recording.roi("V1", "V2").n_features == int(((prf >= 1) & (prf <= 4)).sum())
    with pytest.raises(UsageError, match=r"no ROI 'FFA'"):
        recording.roi("FFA")


def test_a_family_with_one_hemisphere(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    folder = layout.roi_folder(tmp_path)
    (folder / "rh.floc-faces.nii.gz").unlink()
    (folder / "floc-faces.nii.gz").unlink()
    (folder / "Kastner2015.nii.gz").unlink()
    rois = NSD.open(tmp_path, sessions=1)[0].rois
    assert "lh.OFA" in rois
    assert "OFA" not in rois
    both = rois["lh.Kastner2015/V1v"] | rois["rh.Kastner2015/V1v"]
    np.testing.assert_array_equal(rois["Kastner2015/V1v"], both)


def test_a_family_without_names_goes_by_number(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    (tmp_path / "nsddata/freesurfer/fsaverage/label/prf-visualrois.mgz.ctab").unlink()
    rois = NSD.open(tmp_path, sessions=1)[0].rois
    assert "V1v" not in rois
    assert rois["prf-visualrois/1"].sum() <= rois["prf-visualrois"].sum()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 Unknown\n1 V1v\n", {1: "V1v"}),
        ("# colours\n0 none 0 0 0 0\n2  FFA-1  255 0 0 0\n", {2: "FFA-1"}),
        ("1 a b\n", {1: "a b"}),
        ("1\n", "line 1 is '1'"),
        ("V1 1\n", "line 1 is 'V1 1'"),
        ("1 a\n1 b\n", "there twice"),
        ("1 a\n2 a\n", "there twice"),
    ],
)
def test_ctab_files(tmp_path, text, expected):
    path = tmp_path / "x.mgz.ctab"
    path.write_text(text)
    if isinstance(expected, dict):
        assert parse_ctab(path) == expected
    else:
        with pytest.raises(DataError, match=expected):
            parse_ctab(path)


def test_other_masks(whole, tmp_path):
    root, mask = whole
    assert NSD.open(root, sessions=1, mask="brainmask")[0].n_features == mask.size
    own = layout.save_volume(tmp_path / "own.nii.gz", mask.astype(np.uint8))
    for given in (own, str(own), MaskSpace(mask, layout.AFFINE)):
        recording, _ = NSD.open(root, sessions=1, mask=given)
        np.testing.assert_array_equal(recording.data[3], NSD.open(root, sessions=1)[0].data[3])
    with pytest.raises(MissingDataError, match=r"nsdgenral.nii.gz is missing.*'nsdgeneral'"):
        NSD.open(root, sessions=1, mask="nsdgenral")


def test_noise_ceiling(whole):
    root, mask = whole
    values = NSD.ncsnr(root)
    np.testing.assert_allclose(values, (np.arange(60).reshape(layout.SHAPE) / 30)[mask], rtol=1e-6)
    ceiling = noise_ceiling(values, 3)
    np.testing.assert_allclose(ceiling, values**2 / (values**2 + 1 / 3))
    # two pictures once and one twice: the mean noise variance is (1 + 1 + 1/2) / 3
    assert noise_ceiling(np.array([1.0]), [1, 1, 2])[0] == pytest.approx(1 / (1 + 2.5 / 3))
    with pytest.raises(UsageError, match="repeats"):
        noise_ceiling(values, 0)
    with pytest.raises(UsageError, match="not finite"):
        noise_ceiling(np.array([np.nan]), 1)
    with pytest.raises(MissingDataError, match=r"ncsnr.nii.gz does not exist"):
        NSD.ncsnr(root, version="betas_fithrf")


def test_pictures_and_captions_are_read_in_place(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    order, pictures, _, _ = layout.design()
    numbers = [int(pictures[0, m - 1]) - 1 for m in order[:2]]
    layout.write_pictures(tmp_path, numbers)
    layout.write_captions(tmp_path, {numbers[0]: ["a dog", "", "a hat "], numbers[1]: []})
    _, stimuli = open_dataset("nsd", root=tmp_path, sessions=1)
    names = [f"nsd-{number:05d}" for number in numbers]
    np.testing.assert_array_equal(np.asarray(stimuli[names[1]].image()), layout.picture(numbers[1]))
    assert stimuli.captions(names[0]) == ("a dog", "a hat")
    assert stimuli[names[0]].caption == "a dog"
    assert stimuli.captions(names[1]) == ()
    assert stimuli[names[0]].category == ""


def test_pictures_that_are_not_there(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    _, stimuli = NSD.open(tmp_path, sessions=1)
    with pytest.raises(MissingDataError, match=r"nsd_stimuli.hdf5 does not exist"):
        stimuli[stimuli.ids[0]].image()
    layout.write_pictures(tmp_path, count=10)
    with pytest.raises(DataError, match=r"picture \d+ is not in .* which has 10, counted from 0"):
        stimuli[stimuli.ids[0]].image()
    layout.write_captions(tmp_path, {}, count=10)
    with pytest.raises(DataError, match=r"picture \d+ is not in .*captions of 10"):
        NSD.open(tmp_path, sessions=1)


# ------------------------------------------------------------------------------------- bad input


def test_missing_sessions_are_named(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1, 2))
    with pytest.raises(MissingDataError, match=r"38 of 40 sessions of subj01 .*\(3 to 40\).*"
                       r"betas_session03.hdf5 or .*pass sessions=2"):  # fmt: skip
        NSD.open(tmp_path)
    with pytest.raises(MissingDataError, match=r"1 of 2 .*\(4\).*pass a list of the others"):
        NSD.open(tmp_path, sessions=[2, 4])
    with pytest.raises(MissingDataError, match=r"There is betas_fithrf_GLMdenoise_RR beside"):
        NSD.open(tmp_path, sessions=1, version="betas_fithrf")
    for bad in (41, 0, [1, 1], [], [0], ["1"]):
        with pytest.raises(UsageError, match="sessions is"):
            NSD.open(tmp_path, sessions=bad)
    with pytest.raises(UsageError, match="sessions 1 to 32"):
        NSD.open(tmp_path, "subj03", sessions=37)


def test_the_mask_of_another_subject(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    mask = layout.roi_folder(tmp_path) / "nsdgeneral.nii.gz"
    other = np.zeros(DIMENSIONS[2], np.int16)
    other[40:43, 50, 40] = 1
    layout.save_volume(mask, other)
    with pytest.raises(DataError, match=r"the volume of subj02; subj01 has \(81, 104, 83\)"):
        NSD.open(tmp_path, sessions=1)
    layout.save_volume(mask, np.ones((3, 4, 6), np.int16))
    with pytest.raises(
        DataError, match=r"\(3, 4, 5, 750\); the mask has \(3, 4, 6\).*same subject"
    ):
        NSD.open(tmp_path, sessions=1)
    layout.save_volume(mask, layout.mask_of(), np.diag([2.0, 2, 2, 1]))
    with pytest.raises(DataError, match="different affines"):
        NSD.open(tmp_path, sessions=1)
    inside = MaskSpace(layout.mask_of() > 0, layout.AFFINE)
    assert NSD.open(tmp_path, sessions=1, mask=inside)[0].n_features == 20
    layout.save_volume(mask, np.zeros(layout.SHAPE, np.int16))
    with pytest.raises(DataError, match="no voxel above 0"):
        NSD.open(tmp_path, sessions=1)


def test_betas_of_another_subject_are_named(tmp_path, monkeypatch):
    layout.write_nsd(tmp_path, sessions=(1,))
    monkeypatch.setitem(DIMENSIONS, 2, (2, 3, 2))
    layout.write_nifti(tmp_path, 1, np.zeros((2, 3, 2, 750), np.int16))
    with pytest.raises(DataError, match=r"\(2, 3, 2, 750\) \(that of subj02\); the mask"):
        NSD.open(tmp_path, sessions=1)
    layout.write_hdf5(tmp_path, 1, np.zeros((2, 2, 2, 750), np.int16))
    with pytest.raises(DataError, match=r"\(750, 2, 2, 2\); expected \(750, 5, 4, 3\)"):
        NSD.open(tmp_path, sessions=1)


def _cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def test_truncated_files(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    path = layout.write_nifti(tmp_path, 1)
    _cut(path)
    recording, _ = NSD.open(tmp_path, sessions=1)
    with pytest.raises(DataError, match=r"betas_session01.nii.gz is truncated"):
        recording.data[0]
    with pytest.raises(DataError, match="truncated"):
        NSD.open(tmp_path, sessions=1, averaged=True)
    _cut(layout.write_hdf5(tmp_path, 1))
    with pytest.raises(DataError, match="not a complete HDF5 file"):
        NSD.open(tmp_path, sessions=1)
    layout.betas_folder(tmp_path).joinpath("betas_session01.hdf5").write_text("<html>")
    with pytest.raises(DataError, match="not a complete HDF5 file"):
        NSD.open(tmp_path, sessions=1)


def test_a_flipped_byte_of_packed_betas_is_found(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    path = layout.write_nifti(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the checksum at the end
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"damaged.*CRC"):
        NSD.open(tmp_path, sessions=1)[0].data[0]


def test_other_types_and_lengths(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    layout.write_nifti(tmp_path, 1, layout.betas(1).astype(np.float32))
    with pytest.raises(DataError, match="holds float32; expected int16"):
        NSD.open(tmp_path, sessions=1)
    layout.write_nifti(tmp_path, 1, layout.betas(1, trials=749))
    with pytest.raises(DataError, match="has 749 trials; expected 750"):
        NSD.open(tmp_path, sessions=1)
    layout.write_hdf5(tmp_path, 1, layout.betas(1).astype(np.float64))
    with pytest.raises(DataError, match="hold float64; expected int16"):
        NSD.open(tmp_path, sessions=1)
    (layout.betas_folder(tmp_path) / "betas_session01.hdf5").unlink()
    layout.write_nifti(tmp_path, 1).write_bytes(b"no image at all")
    with pytest.raises(DataError, match="not a readable"):
        NSD.open(tmp_path, sessions=1)


def test_a_scaled_nifti_is_refused(tmp_path):
    import nibabel

    layout.write_nsd(tmp_path, sessions=(1,))
    image = nibabel.Nifti1Image(layout.betas(1), layout.AFFINE)
    image.header.set_slope_inter(0.5, 0)
    nibabel.save(image, layout.betas_folder(tmp_path) / "betas_session01.nii.gz")
    with pytest.raises(DataError, match="scaled by its header"):
        NSD.open(tmp_path, sessions=1)


def test_voxels_that_never_vary(tmp_path):
    mask = layout.write_nsd(tmp_path, sessions=())
    values = layout.betas(1)
    place = tuple(np.argwhere(mask)[3])
    values[place] = 7
    layout.write_nifti(tmp_path, 1, values)
    with pytest.raises(DataError, match=r"0 of 20 features hold NaN .* 1 never vary, first "
                       r"feature 3; pass unusable='drop'"):  # fmt: skip
        NSD.open(tmp_path, sessions=1, averaged=True)
    whole = NSD.open(tmp_path, sessions=1)[0].array()
    for averaged in (True, False):
        recording, _ = NSD.open(tmp_path, sessions=1, averaged=averaged, unusable="drop")
        assert recording.n_features == 19
        assert "1 of 20 features left out" in recording.name
        assert all(len(roi) == 19 for roi in recording.rois.values())
        assert recording.to_image(np.ones(19)).get_fdata()[place] == 0
    np.testing.assert_array_equal(recording.array(), np.delete(whole, 3, axis=1))
    layout.write_nifti(tmp_path, 1, np.zeros_like(values))
    with pytest.raises(DataError, match="no feature of the mask varies"):
        NSD.open(tmp_path, sessions=1, unusable="drop")


def test_broken_surfaces(tmp_path):
    layout.write_design(tmp_path)
    values = np.random.default_rng(3).normal(size=(7, 750)).astype(np.float32)
    folder = layout.write_surface(tmp_path, 1, values, values)
    path = folder / "lh.betas_session01.mgh"
    labels = tmp_path / "nsddata/freesurfer/fsaverage/label"
    for side in ("lh", "rh"):
        layout.save_surface(labels / f"{side}.nsdgeneral.mgz", np.ones(7))
    whole = path.read_bytes()
    path.write_bytes(whole[:9000])
    with pytest.raises(DataError, match="truncated or damaged"):
        NSD.open(tmp_path, space="fsaverage", sessions=1)[0].data[0]
    path.write_bytes(whole[:100])
    with pytest.raises(DataError, match="has 100 bytes; an MGH file has a header of 284"):
        NSD.open(tmp_path, space="fsaverage", sessions=1)
    path.write_bytes(b"no image" * 50)
    with pytest.raises(DataError, match="not a readable"):
        NSD.open(tmp_path, space="fsaverage", sessions=1)
    layout.save_surface(path, values[:5])
    with pytest.raises(DataError, match=r"\(5, 1, 1, 750\); the mask has \(7,\)"):
        NSD.open(tmp_path, space="fsaverage", sessions=1)
    # a header that claims more than any file holds
    huge = struct.pack(">7i", 1, 2**30, 2**30, 2**30, 1, 3, 0) + bytes(256)
    (labels / "lh.nsdgeneral.mgz").write_bytes(gzip.compress(huge))
    with pytest.raises(DataError, match="truncated"):
        NSD.open(tmp_path, space="fsaverage", sessions=1)
    (labels / "lh.nsdgeneral.mgz").unlink()
    with pytest.raises(MissingDataError, match=r"no lh.nsdgeneral.mgz"):
        NSD.open(tmp_path, space="fsaverage", sessions=1)


def test_vertices_that_were_not_measured(tmp_path):
    layout.write_design(tmp_path)
    left, right = np.random.default_rng(3).normal(size=(2, 7, 750)).astype(np.float32)
    right[2, 100:] = np.nan
    layout.write_surface(tmp_path, 1, left, right)
    labels = tmp_path / "nsddata/freesurfer/fsaverage/label"
    for side in ("lh", "rh"):
        layout.save_surface(labels / f"{side}.nsdgeneral.mgz", np.ones(7))
    recording, _ = NSD.open(tmp_path, space="fsaverage", sessions=1)
    assert np.isfinite(recording.data[:100]).all()
    with pytest.raises(DataError, match=r"NaN or infinity in 1 of 14 features.*unusable='drop'"):
        recording.data[100]
    with pytest.raises(DataError, match="1 of 14 features hold NaN"):
        NSD.open(tmp_path, space="fsaverage", sessions=1, averaged=True)
    kept, _ = NSD.open(tmp_path, space="fsaverage", sessions=1, unusable="drop")
    expected = np.delete(np.concatenate([left, right]), 9, axis=0).T
    np.testing.assert_array_equal(kept.array(), expected)


def test_a_broken_design(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    path = layout.write_design(tmp_path, sharedix=None, stimpattern=None)
    assert set(NSD.open(tmp_path, sessions=1)[0].trials["run"]) == {1}
    for change, words in (
        ({"order": np.full(30000, 1.5)}, None),
        ({"order": layout.design()[0][:700]}, "has 700 trials; session 1 ends at trial 750"),
        ({"pictures": layout.design()[1][:3]}, r"subjectim of shape \(3, 10000\)"),
    ):
        layout.write_design(tmp_path, **change)
        if words:
            with pytest.raises(DataError, match=words):
                NSD.open(tmp_path, sessions=1)
    layout.write_design(tmp_path, masterordering=np.full((1, 5), 1.5))
    with pytest.raises(DataError, match="expected whole numbers"):
        NSD.open(tmp_path, sessions=1)
    path.write_text("not MATLAB")
    with pytest.raises(DataError, match="not a readable MATLAB file"):
        NSD.open(tmp_path, sessions=1)
    path.unlink()
    with pytest.raises(MissingDataError, match=r"nsd_expdesign.mat does not exist"):
        NSD.open(tmp_path, sessions=1)


def test_broken_captions(tmp_path):
    layout.write_nsd(tmp_path, sessions=(1,))
    path = layout.write_captions(tmp_path, {})
    for array, words in (
        (np.array([["a", None]], dtype=object), "not a whole .npy file of text"),
        (np.zeros((3, 5)), r"holds float64 \(3, 5\); expected text"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DataError, match=words):
            NSD.open(tmp_path, sessions=1)


def test_wrong_options(whole):
    root, _ = whole
    for options, words in (
        ({"subject": 9}, "no NSD subject 9"),
        ({"space": "func2mm"}, "no space 'func2mm'"),
        ({"unusable": "keep"}, "unusable is 'keep'"),
    ):
        with pytest.raises(UsageError, match=words):
            NSD.open(root, **{"sessions": 1, **options})
    with pytest.raises(MissingDataError, match="not a folder"):
        NSD.open(root / "nowhere")
    with pytest.raises(MissingDataError, match=r"nsdgeneral.nii.gz is missing; there is no mask"):
        NSD.open(root, "subj02", sessions=1)


def test_small_parts():
    assert ranges([5, 1, 2, 3, 8]) == "1 to 3, 5, 8"
    assert sum(SESSIONS.values()) * 750 == 213_000  # the published number of trials
    assert len(set(DIMENSIONS.values())) == 8


def test_sums_of_many_trials_do_not_overflow(whole):
    root, mask = whole
    files = NSD.open(root, sessions=2)[0].data.files
    means = average(files, np.zeros(1500, int), 1).means
    expected = stored(mask).astype(np.float64).mean(axis=0) / 300
    np.testing.assert_allclose(means[0], expected, rtol=1e-6)
