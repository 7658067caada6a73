"""FMRIShape on a tiny copy of the hub's layout with traps, and on the six real trials."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.fmri_shape import FMRIShape
from neurodiff.datasets.fmri_shape_check import check_fmri_shape
from neurodiff.datasets.fmri_shape_files import CLASSES, CORE_SYNSETS
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex

CHAIR, LAMP = "03001627", "03636649"
TRAIN = [(CHAIR, "aaa"), (LAMP, "bbb")]
TEST = [(CHAIR, "ccc")]


def trial(seed, frames=3):
    """Noise with the publisher's kind of mean and spread, 0 outside the visual cortex."""
    rng = np.random.default_rng(seed)
    images = rng.normal(2, 3, (frames, 256, 256)).astype(np.float32)
    return images * load_visual_cortex().mask


def npy(root, synset, model):
    return root / "sub-0001" / "npy_data" / synset / f"{model}.npy"


@pytest.fixture
def root(tmp_path):
    """Lists with and without .npy, blank lines, Windows line ends; three trials."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "core_train_list.txt").write_bytes(
        f"{CHAIR}/aaa.npy\r\n\r\n{LAMP}/bbb\r\n".encode()
    )
    (tmp_path / "annotations" / "core_test_list.txt").write_text(f"\n{CHAIR}/ccc  \n\n")
    for seed, (synset, model) in enumerate(TRAIN + TEST):
        path = npy(tmp_path, synset, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, trial(seed))
    return tmp_path


def problems(root, subject=None):
    return [finding for finding in check_fmri_shape(root, subject) if finding.is_error]


def test_trials_splits_categories_and_values(root):
    recording, stimuli = FMRIShape.open(root, 1)
    assert recording.data.shape == (3, 3, 65536)
    assert recording.trials["stimulus"].tolist() == ["aaa", "bbb", "ccc"]
    assert recording.trials["split"].tolist() == ["train", "train", "test"]
    assert set(recording.trials["subject"]) == {"sub-0001"}
    assert stimuli.categories() == ["chair", "lamp", "chair"]
    assert stimuli["bbb"].caption == "a lamp"
    np.testing.assert_array_equal(recording.data[2], trial(2).reshape(3, -1))
    np.testing.assert_array_equal(recording.data[[2, 0]][1], recording.data[0])
    np.testing.assert_array_equal(recording.data[-2:][0], recording.data[1])
    assert recording.to_image(recording.data[0][0]).shape == (256, 256)
    assert problems(root) == []


def test_reading_is_lazy(root):
    recording, _ = FMRIShape.open(root)
    npy(root, CHAIR, "ccc").unlink()
    assert recording.data[0].shape == (3, 65536)
    with pytest.raises(MissingDataError, match="ccc"):
        recording.data[2]


def test_vertices_and_areas(root):
    pixels, _ = FMRIShape.open(root)
    vertices, _ = FMRIShape.open(root, values="vertices")
    assert isinstance(vertices.space, FlatMapSpace)
    assert vertices.data.shape == (3, 3, 8921)
    np.testing.assert_array_equal(vertices.data[1], FlatImageSpace().to_vertices(pixels.data[1]))
    assert vertices.roi("V1").n_features == load_visual_cortex().area("V1").sum()
    total = sum(mask.sum() for mask in pixels.rois.values())
    assert total == load_visual_cortex().mask.sum()


def test_frames_are_chosen_and_short_trials_repeat_their_last(root):
    np.save(npy(root, LAMP, "bbb"), trial(9, frames=1))
    recording, _ = FMRIShape.open(root, frames=[0, 2])
    assert recording.data.shape == (3, 2, 65536)
    np.testing.assert_array_equal(recording.data[0][1], trial(0)[2].ravel())
    np.testing.assert_array_equal(recording.data[1][1], trial(9, frames=1)[0].ravel())
    with pytest.raises(UsageError, match="frames 0 to 2"):
        FMRIShape.open(root, frames=[3])
    notes = [finding.found for finding in check_fmri_shape(root)]
    assert any("1 of 1 frames, 2 of 3 frames" in text for text in notes)


def test_a_short_trial_is_padded_as_asked(root):
    """The published inference puts the last frames behind a trial again, as many as are missing."""
    full, short = trial(0, frames=5), trial(9)
    np.save(npy(root, CHAIR, "aaa"), full)
    np.save(npy(root, LAMP, "bbb"), short)
    for pad, order in (("last", [0, 1, 2, 2, 2]), ("trailing", [0, 1, 2, 1, 2])):
        padded = FMRIShape.open(root, pad=pad)[0].data
        np.testing.assert_array_equal(padded[1], short[order].reshape(5, -1))
        np.testing.assert_array_equal(padded[0], full.reshape(5, -1))
    with pytest.raises(DataError, match=r"bbb\.npy has 3 frames and 5 are needed"):
        FMRIShape.open(root, pad="refuse")
    assert FMRIShape.open(root, pad="refuse", frames=[0, 2])[0].frames == (2,)
    with pytest.raises(UsageError, match="pad is 'zero'"):
        FMRIShape.open(root, pad="zero")


@pytest.mark.parametrize(("length", "order"), [(10, range(2, 8)), (5, [2, 3, 4, 2, 3, 4])])
def test_published_test_frames_by_name(root, length, order):
    """Frames 2 to 7; a shorter trial is padded to the eight frames that these need."""
    images = trial(3, frames=length)
    for synset, model in TRAIN + TEST:
        np.save(npy(root, synset, model), images)
    recording, _ = FMRIShape.open(root, frames="mind3d-2024", pad="trailing")
    np.testing.assert_array_equal(recording.data[0], images[list(order)].reshape(6, -1))
    with pytest.raises(UsageError, match=r"no frames 'mind3d'.*Did you mean 'mind3d-2024'"):
        FMRIShape.open(root, frames="mind3d")


def add_subject(root, number, listed, trials):
    for seed, (synset, model) in enumerate(trials):
        path = root / f"sub-{number:04d}" / "npy_data" / synset / f"{model}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, trial(100 * number + seed))
    if listed:
        names = "".join(f"{synset}/{model}\n" for synset, model in trials)
        (root / "annotations" / listed).write_text(names)


def test_splits_across_people_and_classes(root):
    add_subject(root, 9, None, TEST)
    add_subject(root, 11, "apac_list.txt", [("02924116", "ddd"), (CHAIR, "eee")])
    recording, _ = FMRIShape.open(root, 1, split="across-person")
    table = recording.trials[["subject", "stimulus", "split"]].to_numpy().tolist()
    assert table == [
        ["sub-0001", "aaa", "train"], ["sub-0001", "bbb", "train"], ["sub-0009", "ccc", "test"],
    ]  # fmt: skip
    np.testing.assert_array_equal(recording.data[2], trial(900).reshape(3, -1))
    recording, stimuli = FMRIShape.open(root, 1, split="across-person-across-class")
    assert recording.trials["subject"].tolist() == ["sub-0001"] * 2 + ["sub-0011"] * 2
    assert recording.trials["split"].tolist() == ["train"] * 2 + ["test"] * 2
    assert stimuli.categories() == ["chair", "lamp", "bus", "chair"]
    assert len(CLASSES) == 55
    assert len(set(CLASSES) - set(CORE_SYNSETS)) == 42


def test_session_statistics_are_those_of_each_subject(root):
    add_subject(root, 9, None, TEST)
    mask = load_visual_cortex().mask.ravel()
    recording, _ = FMRIShape.open(root, 1, split="across-person", restandardise="session")
    values = recording.array()[..., mask].astype(float)
    for rows in (slice(0, 2), slice(2, 3)):  # subject 9 has no training trials but its own
        own = values[rows].reshape(-1, values.shape[-1])
        np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(own.std(axis=0), 1, atol=1e-3)


def test_splits_that_do_not_go(root):
    with pytest.raises(MissingDataError, match=r"sub-0009.*there is sub-0001"):
        FMRIShape.open(root, 1, split="across-person")
    with pytest.raises(UsageError, match="Did you mean 'across-person'"):
        FMRIShape.open(root, 1, split="across-persons")
    with pytest.raises(UsageError, match="sub-0009 has no training trials"):
        FMRIShape.open(root, 9, split="across-person")
    with pytest.raises(UsageError, match=r"test_subject is 3.*subject 11 or 12 or 13"):
        FMRIShape.open(root, 1, split="across-person-across-class", test_subject=3)
    with pytest.raises(UsageError, match="goes with split"):
        FMRIShape.open(root, 1, test_subject=9)


def test_folders_without_the_level_npy_data(root):
    own = root / "sub-0001"
    for path in list((own / "npy_data").iterdir()):
        path.rename(own / path.name)
    (own / "npy_data").rmdir()
    assert FMRIShape.open(root)[0].n_trials == 3
    assert problems(root) == []


def test_check_counts_the_classes_and_knows_the_short_list(root):
    (table,) = [f.found for f in check_fmri_shape(root) if f.what == "categories"]
    assert table.splitlines() == [
        "2 categories of 3 objects; 1 have a single one",
        "chair     2  (1 train, 1 test)",
        "lamp      1  (1 train)",
    ]
    names = "".join(f"{CHAIR}/x{k}\n" for k in range(1297))
    (root / "annotations" / "core_train_list.txt").write_text(names)
    notes = [finding.found for finding in check_fmri_shape(root, 2)]
    assert any("1,297 of the 1,300" in text for text in notes)


def test_a_simulated_folder_is_opened_as_simulated(root):
    assert not FMRIShape.open(root)[0].simulated
    (root / "SIMULATED.txt").write_text("by the tests")
    recording, stimuli = FMRIShape.open(root)
    assert recording.simulated
    assert stimuli.simulated


def test_areas_are_made_when_they_are_asked_for(root, monkeypatch):
    from neurodiff.datasets import flat_trials

    with monkeypatch.context() as patch:
        patch.setattr(flat_trials, "load_visual_cortex", lambda: pytest.fail("built the cortex"))
        recording, _ = FMRIShape.open(root)
        train, _ = recording.split()
        assert list(train.rois)[:2] == ["V1", "V2"]
        assert train.data[0].shape == (3, 65536)
    cortex = load_visual_cortex()
    in_v1 = np.isin(cortex.pixel_vertex, np.flatnonzero(cortex.area("V1"))).ravel()
    np.testing.assert_array_equal(recording.rois["V1"], in_v1)


def sparse_release(root, count):
    """Whole files of 10 frames, a header each and then a hole, which take no disk."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (10, 256, 256)}
    models = [f"m{k:04d}" for k in range(count)]
    for split, names in (("train", models[:-4]), ("test", models[-4:])):
        path = root / "annotations" / f"core_{split}_list.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{CHAIR}/{name}\n" for name in names))
    for name in models:
        path = npy(root, CHAIR, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 4 * 10 * 256 * 256)


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel counts no reads here")
def test_opening_reads_headers_only(tmp_path):
    """At most a block of 8 kB a trial of 2.6 MB, and no memory that grows with the values."""
    count = 100
    sparse_release(tmp_path, count)
    FMRIShape.open(tmp_path)  # imports and lists of packages are read once
    before = bytes_read()
    recording, _ = FMRIShape.open(tmp_path)
    assert bytes_read() - before < 8192 * count + 65536
    tracemalloc.start()
    FMRIShape.open(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
    assert recording.data.shape == (count, 10, 65536)


def test_restandardised_values_have_mean_zero_and_deviation_one(root):
    mask = load_visual_cortex().mask.ravel()
    data = {
        how: FMRIShape.open(root, restandardise=how)[0].array()[..., mask].astype(float)
        for how in ("trial", "frame", "session")
    }
    np.testing.assert_allclose(data["trial"].mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data["trial"].std(axis=(1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(data["frame"].mean(axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(data["frame"].std(axis=2), 1, atol=1e-4)
    training = data["session"][:2].reshape(6, -1)  # statistics of the two training trials
    np.testing.assert_allclose(training.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(training.std(axis=0), 1, atol=1e-3)
    assert abs(data["session"][2].mean()) > 1e-5  # the test trial did not help to make them
    outside, _ = FMRIShape.open(root, restandardise="trial")
    assert not outside.data[0][:, ~mask].any()
    with pytest.raises(UsageError, match="'run'"):
        FMRIShape.open(root, restandardise="run")


def test_missing_trials_stop_or_are_counted(root):
    npy(root, LAMP, "bbb").unlink()
    with pytest.raises(MissingDataError, match=r"1 of the 3 trials .*bbb\.npy.*allow_missing"):
        FMRIShape.open(root)
    recording, stimuli = FMRIShape.open(root, allow_missing=True)
    assert recording.n_trials == 2
    assert "1 trials without a file" in recording.name
    assert stimuli.ids == ["aaa", "ccc"]
    assert [(finding.status, finding.what) for finding in problems(root)] == [("missing", "trial")]


def test_missing_folder_list_and_subject(root):
    with pytest.raises(MissingDataError, match="not a folder"):
        FMRIShape.open(root / "nowhere")
    with pytest.raises(MissingDataError, match=r"sub-0002.*there is sub-0001"):
        FMRIShape.open(root, 2)
    assert [finding.what for finding in problems(root, 2)] == ["sub-0002"]
    assert problems(root / "nowhere")[0].what == "folder"
    (root / "annotations" / "core_test_list.txt").unlink()
    with pytest.raises(MissingDataError, match="core_test_list"):
        FMRIShape.open(root)
    assert [finding.what for finding in problems(root)] == ["list"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("chair", "line 1 is 'chair'"), ("../../etc/passwd", "line 1"), (f"{CHAIR}/ccc", "remove it")],
)
def test_lists_that_are_wrong(root, line, message):
    (root / "annotations" / "core_train_list.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        FMRIShape.open(root)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _objects(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


BROKEN = {
    "truncated": (_truncate, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "float64": (lambda path: np.save(path, trial(0).astype(float)), "float64.*float32"),
    "shape": (lambda path: np.save(path, trial(0)[:, :128]), r"\(3, 128, 256\).*256, 256"),
    "no frame": (lambda path: np.save(path, trial(0)[:0]), "no frame"),
    "objects": (_objects, "objects"),
    "not npy": (lambda path: path.write_text("<html>404</html>"), "npy"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_when_opened_and_found_by_check(root, case):
    damage, message = BROKEN[case]
    path = npy(root, CHAIR, "aaa")
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        FMRIShape.open(root)
    assert str(path) in str(caught.value)
    (finding,) = problems(root)
    assert (finding.status, finding.where) == ("broken", str(path))


def test_nan_is_found_by_check_and_when_the_trial_is_read(root):
    images = trial(0)
    images[1, 128, 100] = np.nan
    np.save(npy(root, CHAIR, "aaa"), images)
    recording, _ = FMRIShape.open(root)
    with pytest.raises(DataError, match=r"NaN.*\(1, 128, 100\)"):
        recording.data[0]
    assert [finding.status for finding in problems(root)] == ["broken"]


def test_a_trial_without_values_in_cortex_is_broken(root):
    np.save(npy(root, CHAIR, "aaa"), np.zeros((3, 256, 256), np.float32))
    assert [finding.found for finding in problems(root)] == ["all cortex is 0"]


def test_stimuli_with_and_without_mesh(root):
    import trimesh

    _, stimuli = FMRIShape.open(root)
    with pytest.raises(DataError, match="stimulus 'aaa' has no mesh"):
        stimuli["aaa"].mesh()
    with pytest.raises(DataError, match="stimulus 'aaa' has no picture"):
        stimuli["aaa"].image()
    folder = root / "stimuli" / CHAIR
    (folder / "ccc" / "models").mkdir(parents=True)
    trimesh.creation.box().export(folder / "aaa.obj")
    trimesh.creation.box().export(folder / "ccc" / "models" / "model_normalized.obj")
    assert len(stimuli["aaa"].mesh().faces) == 12
    assert len(stimuli["ccc"].mesh().faces) == 12
    assert [finding.found for finding in problems(root)] == ["stimulus bbb has no mesh"]


def test_a_model_in_two_classes_and_a_class_beyond_the_core(root):
    (root / "annotations" / "core_test_list.txt").write_text("02747177/bbb\n")
    path = npy(root, "02747177", "bbb")
    path.parent.mkdir()
    np.save(path, trial(4))
    recording, stimuli = FMRIShape.open(root)
    assert recording.trials["stimulus"].tolist() == ["aaa", f"{LAMP}-bbb", "02747177-bbb"]
    assert stimuli["02747177-bbb"].category == "trash bin"
    (root / "annotations" / "core_test_list.txt").write_text("09999999/bbb\n")
    path.parent.rename(path.parent.with_name("09999999"))
    assert FMRIShape.open(root)[1]["09999999-bbb"].category == "09999999"


def test_subjects_by_number_and_by_name_and_their_own_lists(root):
    assert FMRIShape.open(root, "sub-0001")[0].n_trials == 3
    with pytest.raises(UsageError, match="subject is 'one'"):
        FMRIShape.open(root, "one")
    (root / "annotations" / "apac_list.txt").write_text(f"{LAMP}/ddd\n")
    path = root / "sub-0011" / "npy_data" / LAMP / "ddd.npy"
    path.parent.mkdir(parents=True)
    np.save(path, trial(5))
    recording, _ = FMRIShape.open(root, 11)
    assert recording.trials["split"].tolist() == ["test"]
    assert problems(root) == []


@pytest.mark.shared_data
def test_the_six_real_trials(shared_data):
    root = shared_data / "fmri_shape_demo"
    recording, stimuli = FMRIShape.open(root)
    assert recording.data.shape == (6, 10, 65536)
    assert set(recording.trials["split"]) == {"test"}
    assert sorted(stimuli.categories()) == [
        "airplane", "car", "lamp", "lamp", "loudspeaker", "telephone"]  # fmt: skip
    assert stimuli[stimuli.ids[0]].image().size == (1024, 1024)
    assert problems(root) == []
    assert any("restandardise" in finding.found for finding in check_fmri_shape(root))
    # published values are not near mean 0 and deviation 1: means 0.7 to 4.9 in the mask
    means = recording.array()[..., load_visual_cortex().mask.ravel()].mean(axis=(1, 2))
    assert (means > 0.7).all()
    assert (means < 4.9).all()
