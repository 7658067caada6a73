"""Recordings: validation, lazy selection, means, fingerprints, and each way to make one."""

import re

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import MaskSpace, Recording, VectorSpace


class Counted:
    """Lazy data that counts the rows read from it, and takes no other index than it should."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.ndim = array.ndim
        self.rows = 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        assert isinstance(index, int | slice | np.ndarray)
        found = self.array[index]
        self.rows += 1 if isinstance(index, int) else len(found)
        return found


@pytest.fixture
def betas():
    return np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)


@pytest.fixture
def trials():
    return pd.DataFrame(
        {
            "subject": ["a", "a", "a", "b", "a", "a"],
            "stimulus": [7, 3, 7, 7, 9, 9],
            "split": ["train", "train", "train", "train", "test", "test"],
            "block": [0, 0, 1, 1, 2, 2],
        },
        index=[5, 4, 3, 2, 1, 0],
    )


ROIS = {
    "V1": np.array([True, True, False, False, False]),
    "V2": np.array([False, True, False, False, True]),
    "none": np.zeros(5, bool),
}


def in_each_form(betas, tmp_path):
    """The same data in memory, as a memory map, as double precision, and behind a reader."""
    np.save(tmp_path / "f4.npy", betas)
    np.save(tmp_path / "f8.npy", betas.astype(np.float64))
    return {
        "array": betas,
        "memmap": np.load(tmp_path / "f4.npy", mmap_mode="r"),
        "memmap of doubles": np.load(tmp_path / "f8.npy", mmap_mode="r"),
        "reader": Counted(betas),
        "list": list(betas),
    }


# ---------------------------------------------------------------------------------- the table


def test_missing_columns_are_filled(betas):
    table = Recording.from_arrays(betas).trials
    assert list(table.columns) == ["subject", "session", "run", "stimulus", "repeat", "split"]
    assert table.iloc[3].tolist() == ["sub-01", 1, 1, "3", 1, "train"]


def test_repeats_are_counted_and_names_become_text(betas, trials):
    table = Recording.from_arrays(betas, trials).trials
    assert table["repeat"].tolist() == [1, 1, 2, 1, 1, 2]
    assert table["stimulus"].tolist() == ["7", "3", "7", "7", "9", "9"]
    assert table.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert table["block"].tolist() == [0, 0, 1, 1, 2, 2]
    assert trials["stimulus"].tolist() == [7, 3, 7, 7, 9, 9]  # the caller's table is left alone


# -------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trials": pd.DataFrame({"stimulus": ["a"]})}, "table has 1 rows and data has 6 trials"),
        ({"trials": pd.DataFrame({"stimulus": [1, 2, np.nan, 4, 5, 6]})}, "no stimulus in row 2"),
        ({"rois": {"V1": np.ones(4, bool)}}, r"ROI 'V1' is bool \(4,\); expected bool \(5,\)"),
        ({"rois": {"V1": np.ones(5)}}, "ROI 'V1' is float64"),
        ({"space": VectorSpace(4)}, "data has 5 features; the space 'vector' has 4"),
        ({"betas": np.zeros((6, 0), np.float32)}, "at least one trial"),
        ({"betas": np.zeros(6, np.float32)}, "at least one trial"),
        ({"betas": np.full((6, 5), "x")}, "expected real numbers"),
        ({"betas": [np.zeros(5), np.zeros(4)]}, "need the same shape"),
    ],
)
def test_arrays_that_do_not_agree(betas, change, sentence):
    with pytest.raises(DataError, match=sentence):
        Recording.from_arrays(**({"betas": betas} | change))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["array", "memmap", "memmap of doubles", "reader"])
def test_values_that_are_not_finite_are_found_in_blocks(
    betas, trials, tmp_path, monkeypatch, value, form
):
    monkeypatch.setattr("neurodiff.core.recording._BLOCK_BYTES", 2 * 40)  # two trials
    betas[4, 1, 2] = value
    data = in_each_form(betas, tmp_path)[form]
    with pytest.raises(DataError, match=r"first in trial 4 \(stimulus '9'\)"):
        Recording.from_arrays(data, trials)
    assert Recording.from_arrays(data, trials, check_finite=False).n_trials == 6


def test_wrong_types_are_named(betas):
    with pytest.raises(UsageError, match="data is float64; give float32"):
        Recording(betas.astype(np.float64), pd.DataFrame(index=range(6)), {}, None)
    with pytest.raises(UsageError, match="trials is dict"):
        Recording.from_arrays(betas, {"stimulus": list("abcdef")})
    with pytest.raises(UsageError, match="data is int"):
        Recording(3, pd.DataFrame(), {}, None)


# --------------------------------------------------------------------------------- selection


def test_roi_is_the_union_and_masks_follow(betas, trials):
    recording = Recording.from_arrays(betas, trials, ROIS)
    part = recording.roi("V1", "V2")
    np.testing.assert_array_equal(part.array(), betas[..., [0, 1, 4]])
    assert part.rois["V2"].tolist() == [False, True, True]
    np.testing.assert_array_equal(part.roi("V2").array(), betas[..., [1, 4]])
    assert part.frames == (2,)
    assert (part.n_trials, part.n_features) == (6, 3)


def test_roi_unknown_or_empty(betas):
    recording = Recording.from_arrays(betas, rois=ROIS, name="mine")
    sentence = "no ROI 'V1x' in this recording 'mine', which has V1, V2, none. Did you mean 'V1'"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        recording.roi("V1", "V1x")
    with pytest.raises(DataError, match="has no feature"):
        recording.roi("none")
    with pytest.raises(UsageError, match="no ROI was named"):
        recording.roi()


@pytest.mark.parametrize(
    ("which", "rows"),
    [
        ("subject == 'a' and split == 'train'", [0, 1, 2]),
        ("block > 0", [2, 3, 4, 5]),
        (np.array([True, False, False, False, True, False]), [0, 4]),
        ([3, 0, 3], [3, 0, 3]),
        ([-1], [5]),
        (2, [2]),
        (slice(1, 6, 2), [1, 3, 5]),
    ],
)
@pytest.mark.parametrize("form", ["array", "memmap", "memmap of doubles", "reader", "list"])
def test_select_rows_in_each_form(betas, trials, tmp_path, which, rows, form):
    data = in_each_form(betas, tmp_path)[form]
    part = Recording.from_arrays(data, trials, ROIS).select(which)
    np.testing.assert_array_equal(part.array(), betas[rows])
    assert part.array().dtype == np.float32
    assert part.trials["block"].tolist() == trials["block"].iloc[rows].tolist()
    assert part.trials.index.tolist() == list(range(len(rows)))


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ("colour == 1", "columns are subject, session, run, stimulus, repeat, split, block"),
        ("block + 1", "is not yes or no for each trial"),
        ("block ===", "does not fit"),
        (np.array([True, False]), "mask of shape"),
        ([6], "index 6 is outside the 6 trials"),
        ([-7], "outside the 6 trials"),
        ([0.5], "float64"),
        ([], "leaves no trial"),
        ("block > 9", "leaves no trial"),
    ],
)
def test_select_that_cannot_be(betas, trials, which, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        Recording.from_arrays(betas, trials).select(which)


def test_select_features_refuses_repeats_and_takes_masks(betas):
    recording = Recording.from_arrays(betas, rois=ROIS)
    mask = np.array([False, True, False, True, False])
    np.testing.assert_array_equal(recording.select_features(mask).array(), betas[..., mask])
    with pytest.raises(UsageError, match="twice"):
        recording.select_features([1, -4])


def test_split(betas, trials):
    train, test = Recording.from_arrays(betas, trials).split()
    assert (len(train), len(test)) == (4, 2)
    np.testing.assert_array_equal(test.array(), betas[4:])
    with pytest.raises(UsageError, match=r"no split 'tests'.*train, test.*Did you mean 'test'"):
        Recording.from_arrays(betas, trials).split(test="tests")


def test_lazy_data_is_only_read_where_it_is_used(betas, trials):
    reader = Counted(betas)
    recording = Recording.from_arrays(reader, trials, ROIS, check_finite=False)
    chain = recording.select("subject == 'a'").roi("V2").select([4, 0]).mean_repeats()
    assert reader.rows == 0
    np.testing.assert_array_equal(chain.data[0], betas[5][:, [1, 4]])
    assert reader.rows == 1
    np.testing.assert_array_equal(chain.array(), betas[[5, 0]][..., [1, 4]])
    assert reader.rows == 3


def test_lazy_features_of_features(betas):
    part = Recording.from_arrays(Counted(betas)).select_features([4, 2, 1]).select_features([2, 0])
    np.testing.assert_array_equal(part.array(), betas[..., [1, 4]])
    np.testing.assert_array_equal(part.to_image([5.0, 6.0]), [np.nan, 5.0, np.nan, np.nan, 6.0])


# --------------------------------------------------------------------------------- repeats


@pytest.mark.parametrize("form", ["array", "memmap", "reader"])
def test_mean_repeats_by_hand(betas, trials, tmp_path, form):
    data = in_each_form(betas, tmp_path)[form]
    mean = Recording.from_arrays(data, trials, ROIS).mean_repeats()
    double = betas.astype(np.float64)
    expected = np.stack(
        [(double[0] + double[2]) / 2, double[1], double[3], (double[4] + double[5]) / 2]
    )
    np.testing.assert_array_equal(mean.array(), expected.astype(np.float32))
    np.testing.assert_array_equal(mean.data[1:3], expected[1:3].astype(np.float32))
    np.testing.assert_array_equal(mean.data[-1], expected[-1].astype(np.float32))
    assert mean.trials["stimulus"].tolist() == ["7", "3", "7", "9"]
    assert mean.trials["subject"].tolist() == ["a", "a", "b", "a"]
    assert mean.trials["repeat"].tolist() == [2, 1, 1, 2]
    again = mean.mean_repeats()
    np.testing.assert_array_equal(again.array(), mean.array())


# ------------------------------------------------------------------------------- fingerprint


def test_fingerprint_is_of_content_not_of_form(betas, trials, tmp_path, monkeypatch):
    prints = {
        Recording.from_arrays(data, trials, ROIS, name=form).fingerprint()
        for form, data in in_each_form(betas, tmp_path).items()
    }
    monkeypatch.setattr("neurodiff.core.recording._BLOCK_BYTES", 1)
    prints.add(Recording.from_arrays(betas, trials, ROIS).fingerprint())
    prints.add(Recording.from_arrays(np.asfortranarray(betas), trials, ROIS).fingerprint())
    assert len(prints) == 1


def test_fingerprint_sees_every_part(betas, trials):
    changed = betas.copy()
    changed[5, 1, 4] += 1e-6
    parts = {
        "same": {},
        "data": {"betas": changed},
        "shape": {"betas": betas.transpose(0, 2, 1), "rois": {}},
        "trials": {"trials": trials.assign(block=[0, 0, 1, 1, 2, 3])},
        "rois": {"rois": ROIS | {"V1": ROIS["V2"]}},
        "names": {"rois": {"V9": ROIS["V1"]}},
        "space": {"space": VectorSpace(5, "flat")},
        "unit": {"unit": "z"},
        "simulated": {"simulated": True},
    }
    base = {"betas": betas, "trials": trials, "rois": ROIS}
    prints = [Recording.from_arrays(**(base | part)).fingerprint() for part in parts.values()]
    assert len(set(prints)) == len(parts)
    rows = Recording.from_arrays(**base)
    assert rows.select(slice(0, 3)).fingerprint() != rows.select(slice(3, 6)).fingerprint()


# ------------------------------------------------------------------------------------ pictures


def test_pictures_of_parts_keep_their_place(betas):
    recording = Recording.from_arrays(betas, rois=ROIS)
    part = recording.roi("V2").select_features([1])
    np.testing.assert_array_equal(part.to_image([7.0]), [np.nan] * 4 + [7.0])
    with pytest.raises(UsageError, match=r"shape \(2,\).*has 1 features"):
        part.to_image([1.0, 2.0])


def test_representation_is_short_and_escaped(betas, trials):
    recording = Recording.from_arrays(betas, trials, ROIS, name="<b>", unit="%", simulated=True)
    text, page = repr(recording), recording._repr_html_()
    for fact in ("6 (4 train, 2 test)", "features 5", "frames 2", "V1, V2, none", "simulated yes"):
        assert fact in text
    assert len(text) < 300
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


# ------------------------------------------------------------------------------- from files


def write_manifest(folder, table):
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def test_from_csv_reads_npy_on_demand(betas, trials, tmp_path):
    files = [f"t{i}.npy" for i in range(6)]
    for file, values in zip(files, betas, strict=True):
        np.save(tmp_path / file, values.astype(np.float64))
    manifest = write_manifest(
        tmp_path, trials.assign(path=files, stimulus=[f"00{i}" for i in "731799"])
    )
    recording = Recording.from_csv(manifest, rois=ROIS)
    np.testing.assert_array_equal(recording.array(), betas)
    np.testing.assert_array_equal(recording.select([4, 1]).data[1], betas[1])
    assert recording.trials["stimulus"].tolist()[:2] == ["007", "003"]
    assert "path" not in recording.trials
    arrays = Recording.from_arrays(betas, recording.trials, ROIS)
    assert recording.fingerprint() == arrays.fingerprint()
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    moved = elsewhere / "manifest.csv"
    moved.write_text(manifest.read_text())
    assert Recording.from_csv(moved, tmp_path).n_trials == 6
    with pytest.raises(MissingDataError, match=r"6 of 6 files .* missing, first .*t0\.npy"):
        Recording.from_csv(moved)


def test_from_csv_with_broken_files(betas, tmp_path):
    for i in range(3):
        np.save(tmp_path / f"t{i}.npy", betas[i])
    table = pd.DataFrame({"path": [f"t{i}.npy" for i in range(3)], "stimulus": list("abc")})
    manifest = write_manifest(tmp_path, table)
    np.save(tmp_path / "t2.npy", betas[2, :, :3])
    with pytest.raises(DataError, match=r"t2\.npy has shape \(2, 3\); the first trial"):
        Recording.from_csv(manifest)
    np.save(tmp_path / "t2.npy", np.full((2, 5), np.nan))
    with pytest.raises(DataError, match=r"first in trial 2 \(stimulus 'c'\)"):
        Recording.from_csv(manifest)
    (tmp_path / "t2.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"t2\.npy is not a complete"):
        Recording.from_csv(manifest)
    write_manifest(tmp_path, table.drop(columns="stimulus"))
    with pytest.raises(DataError, match="no column 'stimulus'"):
        Recording.from_csv(manifest)
    write_manifest(tmp_path, table.iloc[:0])
    with pytest.raises(DataError, match="at least one row"):
        Recording.from_csv(manifest)


def nifti(path, volume, affine=None):
    import nibabel

    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(volume.astype(np.float32), affine)
    if path is not None:
        nibabel.save(image, path)
    return image


def test_from_csv_with_images_and_a_mask(tmp_path):
    volumes = np.random.default_rng(1).normal(size=(2, 3, 4, 2, 5)).astype(np.float32)
    mask = np.zeros((3, 4, 2))
    mask[1, 2, 0] = mask[0, 0, 1] = mask[2, 3, 1] = 1
    nifti(tmp_path / "mask.nii.gz", mask)
    for i in range(2):
        nifti(tmp_path / f"v{i}.nii.gz", volumes[i])
    table = pd.DataFrame({"path": ["v0.nii.gz", "v1.nii.gz"], "stimulus": ["a", "b"]})
    with pytest.raises(UsageError, match="mask="):
        Recording.from_csv(write_manifest(tmp_path, table))
    recording = Recording.from_csv(write_manifest(tmp_path, table.assign(mask="mask.nii.gz")))
    expected = np.stack([[v[..., t][mask > 0] for t in range(5)] for v in volumes])
    np.testing.assert_allclose(recording.array(), expected, rtol=1e-6)
    values = np.array([1.0, 2.0, 3.0], np.float32)
    image = recording.to_image(values)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[mask > 0], values)
    assert np.count_nonzero(np.asarray(image.dataobj)) == 3
    part = recording.select_features([2]).to_image([9.0])
    assert np.asarray(part.dataobj)[2, 3, 1] == 9.0
    assert np.asarray(part.dataobj).sum() == 9.0
    nifti(tmp_path / "v1.nii.gz", volumes[1][:2])
    with pytest.raises(DataError, match="resample the image"):
        Recording.from_csv(tmp_path / "manifest.csv").array()
    (tmp_path / "v1.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable NIfTI"):
        Recording.from_csv(tmp_path / "manifest.csv")


def test_masks_without_a_voxel_or_a_place():
    with pytest.raises(DataError, match="no voxel inside"):
        MaskSpace(np.zeros((2, 2, 2)), np.eye(4))
    with pytest.raises(DataError, match=r"expected \(i, j, k\)"):
        MaskSpace(np.ones((2, 2)), np.eye(4))


# ------------------------------------------------------------------------------- from a masker


@pytest.fixture(scope="module")
def masker():
    from nilearn.maskers import NiftiMasker

    mask = np.zeros((3, 3, 3))
    mask[0, 1, 2] = mask[1, 1, 1] = mask[2, 0, 1] = mask[2, 2, 2] = 1
    return NiftiMasker(mask_img=nifti(None, mask), standardize=None, reports=False).fit()


def test_from_masker_takes_one_image_a_list_and_arrays(masker):
    inside = np.asarray(masker.mask_img_.dataobj) > 0
    volumes = np.random.default_rng(2).normal(size=(3, 3, 3, 6)).astype(np.float32)
    table = pd.DataFrame({"stimulus": list("aabbcc")})
    whole = Recording.from_masker(masker, nifti(None, volumes), table, unit="%")
    np.testing.assert_allclose(whole.array(), volumes[inside].T, rtol=1e-6)
    each = [nifti(None, volumes[..., t]) for t in range(6)]
    assert Recording.from_masker(masker, each, table, unit="%").fingerprint() == whole.fingerprint()
    done = Recording.from_masker(masker, whole.array(), table, unit="%")
    assert done.fingerprint() == whole.fingerprint()
    frames = [nifti(None, volumes[..., :3]), nifti(None, volumes[..., 3:])]
    assert Recording.from_masker(masker, frames, table.iloc[:2]).frames == (3,)
    assert whole.unit == "%"


def test_pictures_go_back_through_the_masker(masker):
    recording = Recording.from_masker(masker, np.ones((2, 4), np.float32))
    inside = np.asarray(masker.mask_img_.dataobj) > 0
    image = recording.to_image([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(np.asarray(image.dataobj)[inside], [1, 2, 3, 4])
    part = recording.select_features([3, 1]).to_image([8.0, 5.0])
    np.testing.assert_array_equal(np.asarray(part.dataobj)[inside], [0, 5, 0, 8])


def test_from_masker_refuses_what_is_not_fitted_or_does_not_match(masker):
    from nilearn.maskers import NiftiMasker

    with pytest.raises(UsageError, match="not a fitted masker"):
        Recording.from_masker(NiftiMasker(reports=False), np.ones((2, 4), np.float32))
    with pytest.raises(UsageError, match="not a fitted masker"):
        Recording.from_masker(object(), np.ones((2, 4), np.float32))
    with pytest.raises(DataError, match="table has 1 rows and data has 2 trials"):
        Recording.from_masker(
            masker, np.ones((2, 4), np.float32), pd.DataFrame({"stimulus": ["a"]})
        )
