"""Algonauts 2023 on small files, sound and broken."""

import os

import numpy as np
import PIL.Image
import pytest

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets.algonauts2023 import TRAINING, Algonauts2023
from neurodiff.datasets.opening import check_dataset, open_dataset

MASKS = {"lh": [0, 1, 1, 0, 1], "rh": [1, 0, 0, 0, 1]}  # 3 and 2 vertices
TRAIN = [13, 5, 70]  # numbers of the pictures in NSD, in the order of the rows


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "subj01"
    rng = np.random.default_rng(0)
    for split, numbers in (("train", TRAIN), ("test", [44, 2])):
        name = "training" if split == "train" else "test"
        images = folder / f"{name}_split/{name}_images"
        images.mkdir(parents=True)
        for row, number in enumerate(numbers, start=1):
            picture = PIL.Image.new("RGB", (4, 4), (number, 0, 0))
            picture.save(images / f"{split}-{row:04d}_nsd-{number:05d}.png")
    fmri = folder / "training_split/training_fmri"
    fmri.mkdir()
    rois = folder / "roi_masks"
    rois.mkdir()
    for side, mask in MASKS.items():
        n = sum(mask)
        np.save(fmri / f"{side}_training_fmri.npy", rng.normal(size=(3, n)).astype(np.float32))
        np.save(rois / f"{side}.all-vertices_fsaverage_space.npy", np.array(mask))
        for family in ("prf-visualrois", "floc-faces"):
            np.save(rois / f"{side}.{family}_challenge_space.npy", np.arange(n) % 3)
            names = {0: "Unknown", 1: f"{family[0]}A", 2: f"{family[0]}B"}
            np.save(rois / f"mapping_{family}.npy", names, allow_pickle=True)
    return tmp_path


def test_responses_rois_and_pictures(root):
    recording, stimuli = open_dataset("algonauts2023", root=root, subject=1)
    folder = root / "subj01/training_split/training_fmri"
    expected = np.hstack([np.load(folder / f"{side}_training_fmri.npy") for side in ("lh", "rh")])
    np.testing.assert_array_equal(recording.array(), expected)
    np.testing.assert_array_equal(recording.data[[2, 0]], expected[[2, 0]])
    assert recording.trials["stimulus"].tolist() == ["nsd-00013", "nsd-00005", "nsd-00070"]
    assert set(recording.trials["split"]) == {"train"}
    assert stimuli.ids == ["nsd-00013", "nsd-00005", "nsd-00070", "nsd-00044", "nsd-00002"]
    assert stimuli["nsd-00044"].image().getpixel((0, 0)) == (44, 0, 0)
    assert recording.rois["pA"].tolist() == [False, True, False, False, True]
    assert recording.rois["lh.fB"].tolist() == [False, False, True, False, False]
    assert recording.rois["rh.floc-faces"].tolist() == [False, False, False, False, True]
    picture = recording.to_image(recording.data[0])
    assert picture.shape == (10,)
    np.testing.assert_array_equal(picture[[1, 2, 4, 5, 9]], expected[0])


def test_test_responses_where_they_are_there(root):
    folder = root / "subj01/test_split/test_fmri"
    folder.mkdir()
    for side, mask in MASKS.items():
        np.save(folder / f"{side}_test_fmri.npy", np.full((2, sum(mask)), 7, np.float32))
    train, test = Algonauts2023.open(root)[0].split()
    assert test.trials["stimulus"].tolist() == ["nsd-00044", "nsd-00002"]
    assert (test.array() == 7).all()
    assert train.n_trials == 3
    np.save(folder / "lh_test_fmri.npy", np.zeros((2, 9), np.float32))
    with pytest.raises(DataError, match="expected the same"):
        Algonauts2023.open(root)


def test_check(root, monkeypatch):
    table = check_dataset("algonauts2023", root=root)
    assert table["status"].tolist() == ["ok", "broken", "missing"]
    assert table["found"].iloc[1] == "3 training pictures; the challenge states 9841"
    assert "streams" in table["found"].iloc[2]
    assert len(TRAINING) == 8


class Calls:
    def __reduce__(self):
        return os.system, ("true",)


def _npy(name, array):
    return lambda folder: np.save(folder / name, array, allow_pickle=True)


BROKEN = {
    "rows": (_npy("training_split/training_fmri/lh_training_fmri.npy", np.zeros((4, 3))),
             r"expected \(3, any\)"),
    "type": (_npy("training_split/training_fmri/lh_training_fmri.npy", np.zeros((3, 3), int)),
             "holds int64"),
    "vertices": (_npy("roi_masks/lh.all-vertices_fsaverage_space.npy", np.ones(5)),
                 "5 vertices and the responses 3"),
    "labels": (_npy("roi_masks/rh.floc-faces_challenge_space.npy", np.ones(4)),
               r"shape \(4,\)"),
    "hostile names": (_npy("roi_masks/mapping_floc-faces.npy", Calls()), "could run code"),
    "nan": (_npy("training_split/training_fmri/lh_training_fmri.npy", np.full((3, 3), np.nan)),
            "NaN"),
    "gap": (lambda f: next(f.glob("training_split/*/train-0002*")).unlink(), "no picture number 2"),
    "name": (lambda f: (f / "test_split/test_images/a.png").write_text("x"), "is not called test-"),
    "no pictures": (
        lambda f: [path.unlink() for path in f.glob("training_split/training_images/*")],
        "has no pictures",
    ),
    "no responses": (
        lambda f: (f / "training_split/training_fmri/rh_training_fmri.npy").unlink(),
        "does not exist",
    ),
}  # fmt: skip


def _everything(root):
    recording, _ = Algonauts2023.open(root)
    return recording.array(), dict(recording.rois)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(root, case):
    spoil, words = BROKEN[case]
    spoil(root / "subj01")
    with pytest.raises(DataError, match=words):
        _everything(root)
    assert check_dataset("algonauts2023", root=root)["status"].iloc[0] != "ok"


def test_missing_subject(root):
    with pytest.raises(MissingDataError, match="subj02 is not a folder"):
        Algonauts2023.open(root, 2)
