"""The GLMsingle release of fMRI-Shape on small files, sound and broken."""

import h5py
import numpy as np
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.fmri_shape_glmsingle import GLMsingleShape
from neurodiff.datasets.opening import check_dataset, open_dataset

CHAIR, LAMP = "03001627", "03636649"
# two training objects once, one test object twice, not in the order of the lists
SHOWN = [f"{CHAIR}/ccc", f"{CHAIR}/aaa", f"{LAMP}/bbb", f"{CHAIR}/ccc"]
VOX = np.array([[1, 5, 2], [2, 5, 4], [4, 5, 0], [3, 5, 6]], np.float32)


def write(root, number=1, vox=VOX, shown=SHOWN):
    path = root / "fmri" / f"sub-{number:04d}.hdf5"
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["vox"] = vox
        file["stimuli"] = np.array([f"./stimuli/{name}.mp4".encode() for name in shown])
    return path


@pytest.fixture
def root(tmp_path):
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "core_train_list.txt").write_text(f"{CHAIR}/aaa\n{LAMP}/bbb\n")
    (tmp_path / "splits" / "core_test_list.txt").write_text(f"{CHAIR}/ccc\n")
    write(tmp_path)
    return tmp_path


def problems(root):
    table = check_dataset("fmri_shape_glmsingle", root=root)
    return table[table["status"] != "ok"]


def test_trials_repeats_and_betas(root):
    recording, stimuli = open_dataset("fmri_shape_glmsingle", root=root, subject=1)
    assert recording.data.shape == (4, 3)
    np.testing.assert_array_equal(recording.array(), VOX)
    assert recording.trials["split"].tolist() == ["test", "train", "train", "test"]
    assert recording.trials["repeat"].tolist() == [1, 1, 1, 2]
    assert recording.unit == "beta"
    assert stimuli.ids == ["ccc", "aaa", "bbb"]
    assert stimuli.categories() == ["chair", "chair", "lamp"]
    assert len(problems(root)) == 0
    found = check_dataset("fmri_shape_glmsingle", root=root)["found"]
    assert found.iloc[0] == "4 trials of 3 voxels, 3 objects, 1 repeats"


def test_any_order_of_rows(root):
    data = GLMsingleShape.open(root)[0].data
    for index in ([3, 0], [2, 2, 1], slice(None, None, -2), np.array([0, 3]), -1):
        np.testing.assert_array_equal(data[index], VOX[index])
    assert data[[]].shape == (0, 3)


def test_z_scores_of_the_training_trials(root):
    """Training rows are (2, 5, 4) and (4, 5, 0): means 3, 5, 2 and deviations 1, 0, 2."""
    data = GLMsingleShape.open(root, zscore="train")[0].array()
    expected = [[-2, 0, 0], [-1, 0, 1], [1, 0, -1], [0, 0, 2]]
    np.testing.assert_allclose(data, expected, atol=1e-6)


def test_z_scores_of_all_own_trials(root):
    data = GLMsingleShape.open(root, zscore="self")[0].array().astype(float)
    np.testing.assert_allclose(data.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.std(axis=0), [1, 0, 1], atol=1e-6)


def test_repeats_are_averaged_on_request_after_the_z_score(root):
    recording, _ = GLMsingleShape.open(root, zscore="train", average_repeats=True)
    assert recording.trials["stimulus"].tolist() == ["ccc", "aaa", "bbb"]
    assert recording.trials["repeat"].tolist() == [2, 1, 1]
    np.testing.assert_allclose(recording.array()[0], [-1, 0, 1], atol=1e-6)


def test_a_subject_without_training_trials(root):
    write(root, 9, VOX[[0, 3]], [SHOWN[0], SHOWN[3]])
    recording, _ = GLMsingleShape.open(root, 9, zscore="self")
    assert set(recording.trials["split"]) == {"test"}
    with pytest.raises(UsageError, match=r"sub-0009 has no training trials.*zscore='self'"):
        GLMsingleShape.open(root, 9, zscore="train")
    with pytest.raises(UsageError, match="zscore is 'trian'"):
        GLMsingleShape.open(root, zscore="trian")


def test_lists_of_the_hub_and_names_of_the_release(root):
    (root / "splits").rename(root / "annotations")
    assert GLMsingleShape.open(root)[0].n_trials == 4
    write(root, 11, VOX[:1], ["02924116/ddd"])
    with pytest.raises(MissingDataError, match=r"apact_sub0011_list\.txt is missing"):
        GLMsingleShape.open(root, 11)
    (root / "annotations" / "apact_sub0011_list.txt").write_text("02924116/ddd\n")
    assert GLMsingleShape.open(root, 11)[1].categories() == ["bus"]


def test_missing_subject_and_folder(root):
    with pytest.raises(MissingDataError, match=r"sub-0010\.hdf5 is missing.*there is sub-0001"):
        GLMsingleShape.open(root, 10)
    with pytest.raises(MissingDataError, match="not a folder"):
        GLMsingleShape.open(root / "nowhere")


def _without(name):
    def spoil(path):
        with h5py.File(path, "a") as file:
            del file[name]

    return spoil


def _with(name, values):
    def spoil(path):
        with h5py.File(path, "a") as file:
            del file[name]
            file[name] = values

    return spoil


BROKEN = {
    "no vox": (_without("vox"), "no dataset 'vox' but stimuli"),
    "no stimuli": (_without("stimuli"), "no dataset 'stimuli' but vox"),
    "float64": (_with("vox", VOX.astype(float)), "vox of .* is float64"),
    "shape": (_with("vox", VOX[0]), r"\(3,\); expected float32 \(trials, voxels\)"),
    "lengths": (_with("vox", VOX[:2]), r"2 trials in vox and stimuli of shape \(4,\)"),
    "name": (_with("stimuli", np.array([b"a.mp4"] * 4)), "stimulus of trial 0 is 'a.mp4'"),
    "unlisted": (
        _with("stimuli", np.array([f"./stimuli/{LAMP}/zzz.mp4".encode()] * 4)),
        "which no list of this subject names",
    ),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:600]), "not a complete HDF5"),
    "text": (lambda path: path.write_text("<html>404</html>"), "not a complete HDF5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_when_opened_and_found_by_check(root, case):
    spoil, message = BROKEN[case]
    path = root / "fmri" / "sub-0001.hdf5"
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        GLMsingleShape.open(root)
    assert str(path) in str(caught.value)
    assert problems(root)["status"].tolist() == ["broken"]


def test_nan_is_found_by_check_and_when_the_trial_is_read(root):
    vox = VOX.copy()
    vox[2, 1] = np.nan
    write(root, vox=vox)
    recording, _ = GLMsingleShape.open(root)
    with pytest.raises(DataError, match="NaN"):
        recording.data[2]
    assert problems(root)["status"].tolist() == ["broken"]
