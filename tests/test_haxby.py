"""Haxby 2001 in nilearn's layout: a tiny copy made here, and the real slice where it is present."""

import nibabel
import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.datasets import haxby
from neurodiff.datasets.haxby import (
    Haxby2001,
    block_means,
    block_rows,
    leave_one_run_out,
    standardise_runs,
)


def write_subject(root, *, runs=4, labels=None, signal=4.0, bold=None):
    """2 x 3 x 2 voxels, 8 of them in the mask; face and house blocks of 3 volumes, rest between."""
    folder = root / "subj1"
    folder.mkdir(parents=True)
    order = ["rest", "rest", "face", "face", "face", "rest", "rest", "house", "house", "house"]
    rng = np.random.default_rng(0)
    volumes = rng.normal(100, 1, (2, 3, 2, 10 * runs))
    volumes += np.linspace(0, 5, 10 * runs)  # drift
    for number, label in enumerate(order * runs):
        if label != "rest":
            volumes[0 if label == "face" else 1, ..., number] += signal
    mask = np.ones((2, 3, 2))
    mask[0, 0] = mask[1, 2] = 0
    affine = np.diag([3.0, 3.0, 4.0, 1.0])
    values = volumes if bold is None else bold(volumes)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), folder / "bold.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), folder / "mask4_vt.nii.gz")
    lines = [f"{label} {run}" for run in range(runs) for label in order]
    text = "\n".join(["labels chunks", *lines]) if labels is None else labels
    (folder / "labels.txt").write_text(text + "\n")
    return root


def test_volumes_labels_and_space(tmp_path):
    recording, stimuli = Haxby2001.open(write_subject(tmp_path))
    assert recording.data.shape == (40, 8)
    assert recording.trials["run"].tolist()[9:11] == [1, 2]
    assert set(recording.trials.query("run == 4")["split"]) == {"test"}
    assert stimuli.ids == ["face", "house", "rest"]
    assert stimuli["face"].caption == "a face"
    with pytest.raises(DataError, match="'face' has no mesh"):
        stimuli["face"].mesh()
    image = recording.to_image(np.arange(1, 9))
    assert image.shape == (2, 3, 2)
    np.testing.assert_array_equal(image.get_fdata()[0, 1], [1, 2])
    assert not image.get_fdata()[0, 0].any()


def test_each_run_is_detrended_and_standardised_over_all_its_volumes(tmp_path):
    recording, _ = Haxby2001.open(write_subject(tmp_path))
    values = standardise_runs(recording)
    runs = recording.trials["run"].to_numpy()
    for run in range(1, 5):
        part = values[runs == run].astype(float)
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(part.std(axis=0), 1, atol=1e-5)
        np.testing.assert_allclose(np.arange(10.0) @ part, 0, atol=1e-4)  # no trend is left


def test_a_voxel_that_never_varies_becomes_zero(tmp_path):
    def still(volumes):
        volumes[0, 1, 0] = 7.0
        return volumes

    recording, _ = Haxby2001.open(write_subject(tmp_path, bold=still))
    values = standardise_runs(recording)
    assert not values[:, 0].any()
    assert values[:, 1:].std() == pytest.approx(1, abs=1e-3)
    found = [finding.found for finding in Haxby2001.check(tmp_path)]
    assert any("1 never change" in text for text in found)


def test_blocks_end_with_their_category_and_with_their_run(tmp_path):
    recording, _ = Haxby2001.open(write_subject(tmp_path))
    blocks = block_rows(recording.trials)
    assert [rows.tolist() for rows in blocks[:3]] == [[2, 3, 4], [7, 8, 9], [12, 13, 14]]
    touching = recording.trials.assign(stimulus="face", run=np.arange(40) // 20)
    assert [len(rows) for rows in block_rows(touching)] == [20, 20]


def test_block_means_average_standardised_volumes_and_decode_a_strong_signal(tmp_path):
    recording, _ = Haxby2001.open(write_subject(tmp_path, signal=8.0))
    means = block_means(recording)
    assert means.data.shape == (8, 8)
    np.testing.assert_allclose(means.data[0], standardise_runs(recording)[2:5].mean(0), rtol=1e-6)
    assert means.trials["stimulus"].tolist() == ["face", "house"] * 4
    decoding = leave_one_run_out(means)
    assert decoding.correct == 8
    assert decoding.chance == 0.5


def test_a_classifier_never_sees_the_run_that_it_is_tested_on():
    """Each run's patterns carry a mark of the run; the classifier reports which marks it met."""
    met = []

    class Recorder:
        def fit(self, patterns, truth):
            self.seen = set(patterns[:, 0])
            return self

        def predict(self, patterns):
            met.append((self.seen, set(patterns[:, 0])))
            return np.array(["face"] * len(patterns))

    marks = np.repeat(np.arange(3, dtype=np.float32), 2)[:, None]
    trials = pd.DataFrame({"run": marks[:, 0].astype(int), "stimulus": ["face", "house"] * 3})
    decoding = leave_one_run_out(Recording.from_arrays(marks, trials), Recorder)
    assert decoding.accuracy == 0.5
    assert [sorted(test) for _, test in met] == [[0], [1], [2]]
    assert all(not seen & test and len(seen) == 2 for seen, test in met)


def test_scores_for_all_alphas_are_those_of_scikit_learn():
    from sklearn.linear_model import RidgeClassifier

    rng = np.random.default_rng(3)
    patterns, new = rng.normal(size=(20, 30)), rng.normal(size=(5, 30))
    truth = np.tile(np.arange(4), 5)
    scores = haxby._ridge_scores(patterns, np.where(truth[:, None] == np.arange(4), 1.0, -1.0), new)
    for alpha, ours in zip(haxby._ALPHAS, scores, strict=True):
        theirs = RidgeClassifier(alpha=alpha).fit(patterns, truth).decision_function(new)
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.shared_data
def test_real_slice_gives_the_known_67_of_96(shared_data):
    from sklearn.linear_model import RidgeClassifier

    recording, _ = Haxby2001.open(shared_data / "haxby2001_slice")
    assert recording.data.shape == (1452, 530)
    means = block_means(recording)
    assert means.data.shape == (96, 530)
    assert leave_one_run_out(means, lambda: RidgeClassifier(alpha=1000)).correct == 67


@pytest.mark.shared_data
def test_our_default_does_better_on_the_real_slice(shared_data):
    recording, _ = Haxby2001.open(shared_data / "haxby2001_slice")
    assert leave_one_run_out(block_means(recording)).correct == 80


@pytest.mark.shared_data
def test_shuffled_labels_decode_at_chance(shared_data):
    from sklearn.linear_model import RidgeClassifier

    means = block_means(Haxby2001.open(shared_data / "haxby2001_slice")[0])
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(5):
        trials = means.trials.copy()
        trials["stimulus"] = np.concatenate(
            [rng.permutation(part) for part in trials["stimulus"].to_numpy().reshape(12, 8)]
        )
        shuffled = Recording.from_arrays(means.data, trials)
        hits.append(leave_one_run_out(shuffled, lambda: RidgeClassifier(alpha=1000)).correct)
    assert np.mean(hits) / 96 == pytest.approx(1 / 8, abs=0.06)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(MissingDataError, match="subj1 is not a folder"):
        Haxby2001.open(tmp_path)
    root = write_subject(tmp_path / "a")
    bold = root / "subj1" / "bold.nii.gz"
    bold.write_bytes(bold.read_bytes()[: bold.stat().st_size // 2])
    with pytest.raises(DataError, match=r"bold\.nii\.gz"):
        Haxby2001.open(root)
    assert [finding.status for finding in Haxby2001.check(root)] == ["broken"]
    bold.unlink()
    with pytest.raises(MissingDataError, match=r"bold\.nii\.gz"):
        Haxby2001.open(root)
    assert [finding.status for finding in Haxby2001.check(root)] == ["missing"]
    assert Haxby2001.check(tmp_path / "nowhere")[0].status == "missing"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("labels chunks\nrest 0\nface 0", "40 volumes and .* 2 rows"),
        ("labels chunks\nrest 0\ndog 0", "'dog'.*face"),
        ("labels chunks\nrest zero", "line 2 is 'rest zero'"),
        ("labels chunks", "names no volume"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    root = write_subject(tmp_path, labels=labels)
    with pytest.raises(DataError, match=message):
        Haxby2001.open(root)


def test_values_that_are_not_finite_are_refused(tmp_path):
    def hole(volumes):
        volumes[0, 1, 0, 3] = np.nan
        return volumes

    with pytest.raises(DataError, match="volume 3, voxel 0"):
        Haxby2001.open(write_subject(tmp_path, bold=hole))


def test_wrong_recordings_are_refused():
    frames = Recording.from_arrays(np.zeros((4, 2, 3), np.float32))
    with pytest.raises(UsageError, match="volumes have shape"):
        block_means(frames)
    two_runs = Recording.from_arrays(np.ones((4, 3), np.float32))
    with pytest.raises(UsageError, match="3 or more"):
        leave_one_run_out(two_runs)
