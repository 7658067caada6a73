"""Generic Object Decoding as BData, with old and new names."""

import h5py
import numpy as np
import PIL.Image
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets import god
from neurodiff.datasets.bdata import BData
from neurodiff.datasets.god import GOD, synset_picture
from neurodiff.datasets.opening import check_dataset, open_dataset

# two training pictures of one category, two test pictures of two others, one imagined
SHOWN = [1518878.005958, 1443537.022563, 1518878.010042, 1621127.019020, 1443537.022563, 1443537.0]
KINDS = [1, 2, 1, 2, 2, 3]
NAMES = ["n01518878_5958", "n01443537_22563", "n01518878_10042", "n01621127_19020",
         "n01443537_22563", "n01443537"]  # fmt: skip
VOXELS = np.arange(24.0).reshape(6, 4)
ROIS = {"VC": [1, 1, 0, 1], "V1": [1, 0, 0, 0], "FFA": [0, 0, 1, np.nan]}


def write(root, old=False, label="stimulus_id", voxels=VOXELS, kinds=KINDS, vmap=None, number=1):
    """Labels stand between voxels, so that columns have to be found by the metadata."""
    labels = [kinds, SHOWN, [1, 1, 2, 2, 2, 2]]
    table = np.column_stack([voxels[:, :2], *labels, voxels[:, 2:]]).astype(float)
    places = [0, 1, 5, 6]
    metadata = {"VoxelData": np.isin(np.arange(7), places).astype(float)}
    for name, inside in ROIS.items():
        metadata[f"ROI_{name}"] = np.full(7, np.nan)
        metadata[f"ROI_{name}"][places] = inside
    for column, name in zip((2, 3, 4), ("DataType", label, "Run"), strict=True):
        metadata[name] = np.where(np.arange(7) == column, 1.0, np.nan)
    path = root / f"Subject{number}.h5"
    with h5py.File(path, "w") as file:
        file["dataSet" if old else "dataset"] = table
        group = file.create_group("metaData" if old else "metadata")
        group["key"] = np.array([name.encode() for name in metadata])
        group["description"] = np.array([b"" for _ in metadata])
        group["value"] = np.stack(list(metadata.values()))
        for value, name in (vmap or {}).items():
            file[f"vmap/{label}/{value}"] = name
    return path


@pytest.mark.parametrize(("old", "label"), [(False, "stimulus_id"), (True, "Label")])
def test_old_and_new_names(tmp_path, old, label):
    write(tmp_path, old, label)
    recording, stimuli = open_dataset("god", root=tmp_path, subject=1)
    rows, columns = [0, 1, 2, 3, 4], [0, 1, 3]
    np.testing.assert_array_equal(recording.array(), VOXELS[np.ix_(rows, columns)])
    assert recording.trials["stimulus"].tolist() == NAMES[:5]
    assert recording.trials["split"].tolist() == ["train", "test", "train", "test", "test"]
    assert recording.trials["repeat"].tolist() == [1, 1, 1, 1, 2]
    assert recording.trials["run"].tolist() == [1, 1, 2, 2, 2]
    assert recording.rois["V1"].tolist() == [True, False, False]
    assert not recording.rois["FFA"].any()
    assert stimuli["n01443537_22563"].category == "n01443537"
    np.testing.assert_array_equal(
        recording.mean_repeats().split()[1].data[0], VOXELS[[1, 4]][:, columns].mean(axis=0)
    )


def test_labels_by_name(tmp_path):
    names = {str(value): f"{name}.JPEG" for value, name in zip(SHOWN, NAMES, strict=True)}
    write(tmp_path, label="stimulus_name", vmap=names)
    assert GOD.open(tmp_path)[0].trials["stimulus"].tolist() == NAMES[:5]
    del names[str(SHOWN[0])]
    write(tmp_path, label="stimulus_name", vmap=names)
    with pytest.raises(DataError, match=r"no name for 1.51888e\+06 in vmap/stimulus_name"):
        GOD.open(tmp_path)


def test_imagery_and_other_regions(tmp_path):
    write(tmp_path)
    recording, _ = GOD.open(tmp_path, "Subject1", imagery=True, roi="FFA")
    assert recording.trials["split"].tolist()[-1] == "imagery"
    assert recording.trials["stimulus"].tolist()[-1] == "n01443537"
    np.testing.assert_array_equal(recording.array(), VOXELS[:, [2]])
    with pytest.raises(UsageError, match="no region 'V9'; it has VC, V1, FFA"):
        GOD.open(tmp_path, roi="V9")


def test_pictures(tmp_path):
    write(tmp_path)
    _, stimuli = GOD.open(tmp_path)
    with pytest.raises(MissingDataError, match=r"n01518878_5958.JPEG is missing"):
        stimuli["n01518878_5958"].image()
    (tmp_path / "images/test").mkdir(parents=True)
    PIL.Image.new("L", (3, 3), 9).save(tmp_path / "images/test/n01443537_22563.JPEG")
    assert stimuli["n01443537_22563"].image().mode == "RGB"


def test_check(tmp_path, monkeypatch):
    write(tmp_path)
    table = check_dataset("god", root=tmp_path)
    assert table["status"].tolist() == ["ok", "broken", "ok"]
    assert table["found"].iloc[0] == "2 train, 3 test, 1 imagery trials of 3 voxels"
    assert table["found"].iloc[1].startswith("2 training trials and 2 tested pictures; expected")
    for name, value in (("TRAINING", 2), ("TESTED", 2), ("REPEATS", 1)):
        monkeypatch.setattr(god, name, value)
    write(tmp_path, kinds=[1, 2, 1, 2, 1, 3])
    assert "1 categories are in training and in test, first n01443537" in (
        check_dataset("god", root=tmp_path)["found"].tolist()
    )
    (tmp_path / "images").mkdir()
    table = check_dataset("god", root=tmp_path)
    assert table["found"].iloc[-1] == "4 of 4 pictures, first n01518878_5958"
    assert check_dataset("god", root=tmp_path, subject=3)["status"].tolist() == ["missing"]


def _changed(name, values=None):
    def spoil(path):
        with h5py.File(path, "a") as file:
            del file[name]
            if values is not None:
                file[name] = values

    return spoil


BROKEN = {
    "no dataset": (_changed("dataset"), "holds metadata; expected dataset and metadata"),
    "no keys": (_changed("metadata/key"), "not a whole BData file"),
    "short metadata": (_changed("metadata/value", np.zeros((7, 3))), r"metadata \(7, 3\) and 7"),
    "three axes": (_changed("dataset", np.zeros((2, 7, 1))), r"\(2, 7, 1\); expected a table"),
    "text": (_changed("dataset", np.array([[b"a"] * 7])), "expected a table of numbers"),
    "twice": (_changed("metadata/key", np.array([b"ROI_VC"] * 7)), "a key of its metadata twice"),
    "other keys": (
        _changed("metadata/key", np.array([b"ROI_VC", *(b"k%d" % k for k in range(6))])),
        "no metadata 'DataType'",
    ),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:900]), "not a complete HDF5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path, case):
    spoil, words = BROKEN[case]
    spoil(write(tmp_path))
    with pytest.raises(DataError, match=words):
        GOD.open(tmp_path)
    assert check_dataset("god", root=tmp_path)["status"].tolist() == ["broken"]


def test_values_that_are_not_finite_and_unknown_kinds(tmp_path):
    voxels = VOXELS.copy()
    voxels[1, 1] = np.nan
    write(tmp_path, voxels=voxels)
    with pytest.raises(DataError, match=r"VC of .* holds NaN"):
        GOD.open(tmp_path)
    write(tmp_path, kinds=[1, 2, 4, 2, 2, 3])
    with pytest.raises(DataError, match="trials of type 4"):
        GOD.open(tmp_path)
    write(tmp_path, label="shown")
    with pytest.raises(DataError, match="none of stimulus_name, stimulus_id, Label"):
        GOD.open(tmp_path)
    for number in (np.nan, -1.0):
        with pytest.raises(DataError, match="expected a number such as"):
            synset_picture(number)


def test_missing_files_and_subjects(tmp_path):
    write(tmp_path, number=2)
    with pytest.raises(MissingDataError, match=r"Subject1.h5 is missing.*Subject2.h5"):
        GOD.open(tmp_path, 1)
    with pytest.raises(UsageError, match="subjects are 1 to 5"):
        GOD.open(tmp_path, 6)
    with pytest.raises(MissingDataError, match="not a folder"):
        GOD.open(tmp_path / "none")
    data = BData.open(tmp_path / "Subject2.h5")
    both = BData(data.path, data.table, {"ROI_V1": np.array([1, 1, 0, 0, 0, 0, 0])}, {})
    with pytest.raises(DataError, match="2 columns of ROI_V1"):
        both.column("ROI_V1")
