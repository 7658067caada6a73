"""NSD-synthetic and NSD-Imagery on small exact layouts."""

import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import scipy.io

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.nsd_imagery import BETAS, LETTERS, TARGETS, NSDImagery, blocks
from neurodiff.datasets.nsd_synthetic import NSDSynthetic
from neurodiff.datasets.opening import check_dataset, open_dataset


def _load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layout = _load("nsd_layout")
SYNTHETIC = f"nsdsynthetic{layout.VERSION}"
IMAGERY = f"nsdimagery{layout.VERSION}"


def synthetic_order():
    """744 pictures in 8 runs of 93, of which ten follow themselves in each run."""
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(8):
        base = rng.permutation(284)[:83]
        again = np.sort(rng.choice(83, 10, replace=False))
        runs.append(np.insert(base, again + 1, base[again]))
    return np.concatenate(runs) + 1


@pytest.fixture
def synthetic(tmp_path):
    mask = layout.mask_of()
    layout.save_volume(layout.roi_folder(tmp_path) / "nsdgeneral.nii.gz", mask)
    layout.write_rois(tmp_path)
    path = tmp_path / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
    path.parent.mkdir(parents=True)
    scipy.io.savemat(path, {"masterordering": synthetic_order()[None]})
    values = layout.betas(1, trials=744)
    layout.write_hdf5(tmp_path, 0, values, name="betas_nsdsynthetic", version=SYNTHETIC)
    folder = tmp_path / "nsddata_stimuli/stimuli/nsdsynthetic"
    folder.mkdir(parents=True)
    for name, start, n in (("stimuli", 0, 220), ("colorstimuli_subj01", 220, 64)):
        with h5py.File(folder / f"nsdsynthetic_{name}.hdf5", "w") as file:
            file["imgBrick"] = np.stack([layout.picture(start + k, 3) for k in range(n)])
    return tmp_path, values, mask > 0


def test_synthetic_trials_and_tasks(synthetic):
    root, values, mask = synthetic
    recording, stimuli = open_dataset("nsd_synthetic", root=root, subject=1)
    expected = values.transpose(3, 0, 1, 2)[:, mask] / np.float32(300)
    np.testing.assert_array_equal(recording.array(), np.float32(expected))
    trials = recording.trials
    assert trials.groupby("run").size().tolist() == [93] * 8
    assert trials.groupby("run")["one_back"].sum().tolist() == [10] * 8
    assert trials.groupby("run")["task"].first().tolist() == ["fixation", "memory"] * 4
    assert set(trials["split"]) == {"test"}
    number = synthetic_order()[100] - 1
    assert trials["stimulus"][100].startswith(f"synthetic-{number:03d}")
    memory, _ = NSDSynthetic.open(root, task="memory")
    assert memory.n_trials == 372
    np.testing.assert_array_equal(memory.data[0], recording.data[93])
    assert recording.mean_repeats().n_trials == len(stimuli)
    assert "V1" in recording.rois
    assert (check_dataset("nsd_synthetic", root=root)["status"] == "ok").all()


def test_synthetic_pictures(synthetic):
    root, _, _ = synthetic
    _, stimuli = NSDSynthetic.open(root)
    own = next(name for name in stimuli.ids if name.endswith("subj01"))
    shared = next(name for name in stimuli.ids if not name.endswith("subj01"))
    for name in (own, shared):
        number = int(name.split("-")[1])
        assert (number >= 220) == (name == own)
        np.testing.assert_array_equal(np.asarray(stimuli[name].image()), layout.picture(number, 3))
    _, rooted = NSDSynthetic.open(root, square_root=True)
    value = layout.picture(int(shared.split("-")[1]), 3) / 255
    np.testing.assert_array_equal(
        np.asarray(rooted[shared].image()), (np.sqrt(value) * 255).astype(np.uint8)
    )
    (root / "nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_colorstimuli_subj01.hdf5").unlink()
    with pytest.raises(MissingDataError, match=r"colorstimuli_subj01.hdf5 does not exist"):
        stimuli[own].image()
    assert check_dataset("nsd_synthetic", root=root)["status"].tolist() == ["ok", "missing"]


def test_synthetic_bad_input(synthetic):
    root, values, _ = synthetic
    path = root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
    for order, words in (
        (synthetic_order()[:700], "has 700 trials; expected 744"),
        (synthetic_order() - 1, "pictures 0 to 28[34]; expected whole numbers from 1 to 284"),
    ):
        scipy.io.savemat(path, {"masterordering": order[None]})
        with pytest.raises(DataError, match=words):
            NSDSynthetic.open(root)
    scipy.io.savemat(path, {"masterordering": synthetic_order()[None]})
    with pytest.raises(UsageError, match="no task 'rest'"):
        NSDSynthetic.open(root, task="rest")
    with pytest.raises(MissingDataError, match=f"There is {SYNTHETIC} beside"):
        NSDSynthetic.open(root, version="betas_assumehrf")
    layout.write_hdf5(root, 0, values[..., :10], name="betas_nsdsynthetic", version=SYNTHETIC)
    with pytest.raises(DataError, match=r"expected \(744, 5, 4, 3\)"):
        NSDSynthetic.open(root)
    assert check_dataset("nsd_synthetic", root=root)["status"].tolist() == ["broken"]


# ---------------------------------------------------------------------------------- NSD-Imagery


def imagery_order(run):
    rng = np.random.default_rng(sum(map(ord, run)))
    return rng.permutation(list(LETTERS[run[3]]) * 8)


@pytest.fixture
def imagery(tmp_path):
    layout.save_volume(layout.roi_folder(tmp_path) / "nsdgeneral.nii.gz", layout.mask_of())
    values = layout.betas(2, trials=BETAS)
    layout.write_nifti(tmp_path, 0, values, name="betas_nsdimagery", version=IMAGERY)
    folder = tmp_path / "nsddata/bdata/nsdimagery"
    folder.mkdir(parents=True)
    for run in blocks():
        letters = imagery_order(run)
        table = pd.DataFrame({"TRIAL": range(1, 49), "CONDITION": letters, "CUE": letters[::-1]})
        table.sample(frac=1, random_state=1).to_csv(
            folder / f"nsdimagery_subj01_{run}.tsv", sep="\t", index=False
        )
    pictures = tmp_path / "nsddata/experiments/nsdimagery/rawtargetimages"
    for group in "AB":
        (pictures / f"set{group}").mkdir(parents=True)
        for letter in LETTERS[group]:
            begin = TARGETS.get(letter, "shared0999")
            image = PIL.Image.new("RGB", (2, 2), (ord(letter), 0, 0))
            image.save(pictures / f"set{group}" / f"{begin}_nsd00001.png")
    return tmp_path, values, layout.mask_of() > 0


def test_betas_of_each_run():
    found = blocks()
    assert sum(len(betas) for betas in found.values()) == BETAS
    assert (found["visA"][0], found["attA"][0], found["visB"][0]) == (0, 48, 192)
    assert [len(found[run]) for run in ("visC", "attC", "imgC_2")] == [48, 96, 48]
    assert found["imgC_2"][-1] == 719


def test_imagery_trials(imagery):
    root, values, mask = imagery
    stored = np.float32(values.transpose(3, 0, 1, 2)[:, mask] / np.float32(300))
    seen, stimuli = open_dataset("nsd_imagery", root=root, subject=1)
    expected = [f"imagery-{k}" for run in ("visA", "visB") for k in imagery_order(run)]
    assert seen.trials["stimulus"].tolist() == expected
    np.testing.assert_array_equal(seen.array(), stored[[*range(48), *range(192, 240)]])
    imagined, _ = NSDImagery.open(root, task="imagery", sets="A")
    np.testing.assert_array_equal(imagined.array(), stored[[*range(144, 192), *range(576, 624)]])
    averaged = imagined.mean_repeats()
    assert averaged.trials["repeat"].tolist() == [16] * 6
    first = averaged.trials["stimulus"][0]
    rows = imagined.trials["stimulus"].to_numpy() == first
    np.testing.assert_allclose(averaged.data[0], imagined.array()[rows].mean(axis=0), rtol=1e-5)
    assert stimuli["imagery-H"].category == "simple"
    assert stimuli["imagery-W"].category == "natural"
    assert set(seen.trials["split"]) == {"test"}


def test_imagery_pictures(imagery):
    root, _, _ = imagery
    _, stimuli = NSDImagery.open(root, sets="ABC")
    for letter in LETTERS["A"] + LETTERS["B"]:
        assert stimuli[f"imagery-{letter}"].image().getpixel((0, 0)) == (ord(letter), 0, 0)
    with pytest.raises(MissingDataError, match=r"S has 0 pictures.*concepts have none"):
        stimuli["imagery-S"].image()
    assert (check_dataset("nsd_imagery", root=root)["status"] == "ok").all()
    next(root.rglob("bar_045*")).unlink()
    with pytest.raises(MissingDataError, match=r"R has 0 pictures.*download rawtargetimages"):
        stimuli["imagery-R"].image()
    assert check_dataset("nsd_imagery", root=root)["status"].tolist() == ["ok", "missing"]


def test_imagery_bad_input(imagery):
    root, _, _ = imagery
    with pytest.raises(UsageError, match="no task 'attention'"):
        NSDImagery.open(root, task="attention")
    for sets in ("", "AX"):
        with pytest.raises(UsageError, match="some of the letters"):
            NSDImagery.open(root, sets=sets)
    path = root / "nsddata/bdata/nsdimagery/nsdimagery_subj01_visA.tsv"
    text = path.read_text()
    path.write_text(text.replace("\tH\t", "\tX\t"))
    with pytest.raises(DataError, match=r"condition 'X'; set A has H, R"):
        NSDImagery.open(root)
    path.write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(DataError, match="has 47 trials; expected each of 1 to 48"):
        NSDImagery.open(root)
    path.unlink()
    with pytest.raises(MissingDataError, match=r"visA.tsv does not exist"):
        NSDImagery.open(root)
    assert check_dataset("nsd_imagery", root=root)["status"].tolist() == ["missing"]
