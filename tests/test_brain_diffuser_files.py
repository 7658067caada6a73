"""The published code's files, there and back, and broken ones."""

import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets import brain_diffuser_files as files
from neurodiff.datasets.nsd import NSD
from neurodiff.datasets.opening import check_dataset, open_dataset


def _load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layout = _load("nsd_layout")
TRAIN, TEST, VOXELS = 4, 2, 3


@pytest.fixture
def root(tmp_path):
    """As the published preparation writes them, float64 pictures included."""
    folder = tmp_path / "processed_data/subj01"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", TRAIN), ("test", TEST)):
        np.save(folder / f"nsd_{split}_fmriavg_nsdgeneral_sub1.npy", rng.normal(size=(n, VOXELS)))
        stim = np.stack([layout.picture(k + n, 8) for k in range(n)]).astype(np.float64)
        np.save(folder / f"nsd_{split}_stim_sub1.npy", stim)
        caps = np.array([[f"{split} {k}", "again", "", "", ""] for k in range(n)])
        np.save(folder / f"nsd_{split}_cap_sub1.npy", caps)
    return tmp_path


def test_responses_pictures_and_captions(root):
    recording, stimuli = open_dataset("brain_diffuser_npy", root=root, subject=1)
    stored = [np.load(files.prepared_path(root, 1, split, "fmriavg_nsdgeneral"))
              for split in files.SPLITS]  # fmt: skip
    np.testing.assert_allclose(recording.array(), np.concatenate(stored) / 300, rtol=1e-6)
    assert recording.unit == "%"
    train, test = recording.split()
    assert train.trials["stimulus"].tolist() == [f"train-0000{k}" for k in range(4)]
    np.testing.assert_array_equal(test.data[[1, 0]], recording.data[[5, 4]])
    np.testing.assert_array_equal(recording.data[-1], recording.array()[-1])
    assert stimuli.captions("test-00001") == ("test 1", "again")
    picture = stimuli["train-00002"].image()
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), layout.picture(6, 8))
    assert (check_dataset("brain_diffuser_npy", root=root)["status"] == "ok").all()


def test_what_we_write_is_what_we_read(root, tmp_path):
    recording, stimuli = files.open_prepared_npy(root, 1)
    files.write_prepared_npy(tmp_path / "new", "subj07", recording, stimuli)
    again, same = files.open_prepared_npy(tmp_path / "new", 7)
    np.testing.assert_allclose(again.array(), recording.array(), rtol=1e-6)
    assert again.trials["stimulus"].tolist() == recording.trials["stimulus"].tolist()
    for name in stimuli.ids:
        assert same.captions(name) == stimuli.captions(name)
        assert same[name].image().tobytes() == stimuli[name].image().tobytes()
    stim = np.load(files.prepared_path(tmp_path / "new", 7, "test", "stim"))
    assert stim.dtype == np.uint8
    assert not list(tmp_path.rglob(".tmp-*"))


def test_pictures_of_different_sizes_leave_nothing_behind(root, tmp_path):
    recording, stimuli = files.open_prepared_npy(root, 1)
    sizes = iter([8, 8, 4])
    stimuli.load_image = lambda name: PIL.Image.new("RGB", (next(sizes), 8))
    with pytest.raises(DataError, match=r"train-00001 has shape \(8, 4, 3\)"):
        files.write_prepared_npy(tmp_path / "new", 1, recording, stimuli)
    assert not list((tmp_path / "new").rglob("*stim*"))
    for change in ({"unit": "z"}, {"data": recording.array()[:, None]}):
        with pytest.raises(UsageError, match="expected percent signal change without frames"):
            files.write_prepared_npy(tmp_path, 1, replace(recording, **change), stimuli)


def test_from_nsd_to_the_published_files(tmp_path):
    """The values that the published preparation would have saved: means of int16, not divided."""
    mask = layout.write_nsd(tmp_path, sessions=(1,))
    order, pictures, _, _ = layout.design()
    layout.write_pictures(tmp_path, set(pictures[0, order[:750] - 1] - 1))
    recording, stimuli = NSD.open(tmp_path, sessions=1, averaged=True)
    files.write_prepared_npy(tmp_path / "data", 1, recording, stimuli)
    rows = [t for t in range(750) if order[t] <= 1000 and order[t] == order[:750][order[:750]
            <= 1000][0]]  # fmt: skip
    expected = layout.betas(1)[mask][:, rows].mean(axis=1)
    saved = np.load(files.prepared_path(tmp_path / "data", 1, "test", "fmriavg_nsdgeneral"))
    assert saved.dtype == np.float64
    np.testing.assert_allclose(saved[0], expected, rtol=1e-6, atol=1e-4)
    with pytest.raises(UsageError, match="several trials; average them"):
        files.write_prepared_npy(tmp_path / "x", 1, NSD.open(tmp_path, sessions=1)[0], stimuli)


@pytest.fixture
def small(monkeypatch):
    """Heads of a size that a test can hold."""
    heads = {"vdvae": (5,), "cliptext": (2, 3), "clipvision": (4, 3)}
    monkeypatch.setattr(files, "HEADS", heads)
    return heads


def test_features_and_predictions_under_their_names(tmp_path, small):
    rng = np.random.default_rng(0)
    for head, item in small.items():
        train, test = (rng.normal(size=(n, *item)).astype(np.float32) for n in (TRAIN, TEST))
        files.write_features(tmp_path, 2, head, train, test)
        files.write_predictions(tmp_path, 2, head, test)
        for split, array in (("train", train), ("test", test)):
            found = files.read_features(tmp_path, 2, head, split)
            assert isinstance(found, np.memmap)
            np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(files.read_predictions(tmp_path, 2, head), test)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.np?"))
    assert names == [
        "extracted_features/subj02/nsd_cliptext_test.npy",
        "extracted_features/subj02/nsd_cliptext_train.npy",
        "extracted_features/subj02/nsd_clipvision_test.npy",
        "extracted_features/subj02/nsd_clipvision_train.npy",
        "extracted_features/subj02/nsd_vdvae_features_31l.npz",
        "predicted_features/subj02/nsd_cliptext_predtest_nsdgeneral.npy",
        "predicted_features/subj02/nsd_clipvision_predtest_nsdgeneral.npy",
        "predicted_features/subj02/nsd_vdvae_nsdgeneral_pred_sub2_31l_alpha50k.npy",
    ]


def test_predictions_of_regions_have_names_of_their_own(tmp_path, small):
    for head, item in small.items():
        array = np.ones((13, *item), np.float32)
        files.write_predictions(tmp_path, 1, head, array, kind="roi")
        np.testing.assert_array_equal(files.read_predictions(tmp_path, 1, head, "roi"), array)
    assert sorted(path.name for path in tmp_path.rglob("*.npy")) == [
        "nsd_cliptext_roi_nsdgeneral.npy",
        "nsd_clipvision_roi_nsdgeneral.npy",
        "nsd_vdvae_nsdgeneral_roi_sub1_31l_alpha50k.npy",
    ]
    with pytest.raises(UsageError, match="there are test and roi"):
        files.predictions_path(tmp_path, 1, "vdvae", "train")


def test_a_packed_archive_is_read_as_well(tmp_path, small):
    path = files.features_path(tmp_path, 1, "vdvae", "train")
    path.parent.mkdir(parents=True)
    array = np.arange(10.0).reshape(2, 5)
    np.savez_compressed(path, train_latents=array, test_latents=array[:1])
    np.testing.assert_array_equal(files.read_features(tmp_path, 1, "vdvae", "train"), array)
    np.savez(path, latents=array)
    with pytest.raises(DataError, match="no array 'test_latents'"):
        files.read_features(tmp_path, 1, "vdvae", "test")
    np.savez(path, train_latents=array[:, :4])
    with pytest.raises(DataError, match=r"\(2, 4\); expected real numbers \(n, 5\)"):
        files.read_features(tmp_path, 1, "vdvae", "train")
    np.savez(path, train_latents=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match="is not a whole"):
        files.read_features(tmp_path, 1, "vdvae", "train")
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DataError, match="is not a whole"):
        files.read_features(tmp_path, 1, "vdvae", "train")
    path.unlink()
    with pytest.raises(MissingDataError):
        files.read_features(tmp_path, 1, "vdvae", "train")


def test_weights(tmp_path, small):
    rng = np.random.default_rng(0)
    for head, item in small.items():
        path = files.weights_path(tmp_path, 1, head)
        path.parent.mkdir(parents=True, exist_ok=True)
        value = {"weight": rng.normal(size=(*item, VOXELS)), "bias": rng.normal(size=item)}
        path.write_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        weight, bias = files.read_weights(tmp_path, 1, head)
        np.testing.assert_array_equal(weight, value["weight"])
        np.testing.assert_array_equal(bias, value["bias"])
    path.write_bytes(pickle.dumps({"weight": value["weight"][:1], "bias": value["bias"]}))
    with pytest.raises(DataError, match=r"weight \(1, 3, 3\) and bias \(4, 3\)"):
        files.read_weights(tmp_path, 1, "clipvision")
    path.write_bytes(pickle.dumps({"weight": print, "bias": 0}))
    with pytest.raises(DataError, match="could run code"):
        files.read_weights(tmp_path, 1, "clipvision")


def test_published_sizes_and_wrong_arrays(tmp_path):
    assert files.HEADS == {"vdvae": (91168,), "cliptext": (77, 768), "clipvision": (257, 768)}
    with pytest.raises(UsageError, match=r"cliptext is float32 \(2, 78, 768\)"):
        files.write_predictions(tmp_path, 1, "cliptext", np.zeros((2, 78, 768), np.float32))
    with pytest.raises(UsageError, match="no 'clip' 'train'; heads are vdvae, cliptext"):
        files.read_predictions(tmp_path, 1, "clip")


def _replaced(split, kind, array):
    def spoil(root):
        np.save(files.prepared_path(root, 1, split, kind), array, allow_pickle=True)

    return spoil


BROKEN = {
    "voxels": (_replaced("test", "fmriavg_nsdgeneral", np.zeros((2, 4))), "not of the same"),
    "type": (_replaced("test", "fmriavg_nsdgeneral", np.zeros((2, 3), int)), "holds int64"),
    "dimensions": (_replaced("train", "fmriavg_nsdgeneral", np.zeros(3)), r"shape \(3,\)"),
    "captions": (_replaced("test", "cap", np.array([["a"] * 5])), "of 1 pictures; expected 2"),
    "objects": (_replaced("test", "cap", np.array([[None] * 5] * 2)), "not a whole .npy file"),
    "pictures": (_replaced("train", "stim", np.zeros((3, 8, 8, 3), np.uint8)), r"\(4, any"),
    "truncated": (
        lambda root: files.prepared_path(root, 1, "train", "stim").write_bytes(
            files.prepared_path(root, 1, "train", "stim").read_bytes()[:-9]
        ),
        "truncated",
    ),
    "missing": (
        lambda root: files.prepared_path(root, 1, "test", "fmriavg_nsdgeneral").unlink(),
        "does not exist",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(root, case):
    spoil, words = BROKEN[case]
    spoil(root)
    with pytest.raises(DataError, match=words):
        files.open_prepared_npy(root, 1)
    table = check_dataset("brain_diffuser_npy", root=root)
    assert (table["status"] != "ok").sum() == 1


def test_nan_is_found_when_it_is_read(root):
    values = np.zeros((4, 3))
    values[2, 1] = np.nan
    _replaced("train", "fmriavg_nsdgeneral", values)(root)
    recording, _ = files.open_prepared_npy(root, 1)
    recording.data[[0, 1, 3]]
    with pytest.raises(DataError, match="NaN"):
        recording.data[2]
    assert check_dataset("brain_diffuser_npy", root=root)["status"].tolist() == ["broken"]


def test_without_pictures_and_captions(root):
    for kind in ("stim", "cap"):
        files.prepared_path(root, 1, "test", kind).unlink()
    _, stimuli = files.open_prepared_npy(root, 1)
    assert stimuli.captions("train-00000") == ()
    stimuli["train-00000"].image()
    with pytest.raises(MissingDataError, match=r"nsd_test_stim_sub1.npy does not exist"):
        stimuli["test-00000"].image()
    table = check_dataset("brain_diffuser_npy", root=root)
    assert table.query("status == 'missing'")["what"].tolist() == [
        "subj01 pictures", "subj01 captions",
    ]  # fmt: skip


def test_check_of_features_and_predictions(root, small):
    test = np.zeros((TEST, 5), np.float32)
    files.write_features(root, 1, "vdvae", test, test)
    files.write_predictions(root, 1, "vdvae", test)
    table = check_dataset("brain_diffuser_npy", root=root)
    assert table["found"].tolist()[1:] == ["of 2 test pictures"] * 2
    np.save(files.predictions_path(root, 1, "vdvae"), np.zeros((2, 4)))
    assert check_dataset("brain_diffuser_npy", root=root)["status"].tolist()[-1] == "broken"
