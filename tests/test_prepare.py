"""From fMRIPrep to trials: tiny real CIFTI files whose answer is known in closed form."""

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ScalarAxis, SeriesAxis
from typer.testing import CliRunner

from neurodiff.cli import app
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets import prepare as prepare_module
from neurodiff.datasets.cifti import open_dtseries
from neurodiff.datasets.fmriprep import cleaned, find_runs, read_confounds
from neurodiff.datasets.opening import check_dataset, open_dataset
from neurodiff.datasets.prepare import prepare
from neurodiff.datasets.prepare_plan import PrepareSettings
from neurodiff.datasets.prepare_zscores import standardised
from neurodiff.datasets.surface import drawing_weights, load_grayordinates, load_visual_cortex

N = 91282
FRAMES = 30
TR = 0.8


def brain_axis(mesh=32492, left=None, voxels=31870):
    gray = load_grayordinates()
    inside = np.zeros((40, 40, 40), bool)
    inside.ravel()[:voxels] = True
    left = gray.left if left is None else left
    return (
        BrainModelAxis.from_surface(left, mesh, "CortexLeft")
        + BrainModelAxis.from_surface(gray.right, mesh, "CortexRight")
        + BrainModelAxis.from_mask(inside, "thalamus_left", np.eye(4))
    )


@pytest.fixture(scope="module")
def brain():
    return brain_axis()


def save_series(path, data, brain, *, tr=TR):
    path.parent.mkdir(parents=True, exist_ok=True)
    axis = SeriesAxis(0, tr, len(data))
    image = Cifti2Image(np.asarray(data, np.float32), (axis, brain))
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")
    nibabel.save(image, path)


def bold(root, subject="0001", run=1, ses=None):
    folder = root / f"sub-{subject}" / (f"ses-{ses}" if ses else "") / "func"
    session = f"_ses-{ses}" if ses else ""
    name = f"sub-{subject}{session}_task-shape_run-{run}_space-fsLR_den-91k_bold.dtseries.nii"
    return folder / name


def save_release_table(path, onsets, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(
        {
            "videoStartTime": onsets,
            "videoStopTime": np.asarray(onsets) + 4 * TR,
            "stim_path": [f"stimuli/03001627/{name}.mp4" for name in names],
        }
    )
    table.to_csv(path, index=False)


@pytest.fixture(scope="module")
def two_runs(session_tmp, brain):
    """Run 1 holds its frame's number everywhere, run 2 a hundred more: means 14.5 and 114.5."""
    root = session_tmp / "two-runs"
    for run in (1, 2):
        ramp = np.arange(FRAMES, dtype=np.float32) + 100 * (run - 1)
        save_series(bold(root, run=run), np.repeat(ramp[:, None], N, axis=1), brain)
    save_release_table(root / "beh" / "shape_1_1.csv", [0.0, 8.0], ["cup", "lamp"])
    save_release_table(root / "beh" / "shape_1_2.csv", [0.0, 8.1], ["sofa", "cup"])
    return root


def settings(**more):
    return PrepareSettings(**{"delay": 4.0, "tr": TR, "zscore": "none", **more})


def events_of(root):
    return str(root / "beh" / "shape_1_{run}.csv")


# ----------------------------------------------------------------------------- trials and maps


def test_a_series_of_frame_numbers_ends_in_the_right_trials(two_runs, tmp_path):
    made = prepare(two_runs, events_of(two_runs), tmp_path, settings(keep="both"))
    assert (made.trials, made.runs, made.before) == (4, 2, 0)
    # onset + 4 s over 0.8 s: 5; 15; 5; 12.1 / 0.8 = 15.125, so 16. Four frames of 0.8 s each.
    recording, stimuli = open_dataset("prepared", root=tmp_path)
    assert recording.data.shape == (4, 4, 8921)
    for row, first in enumerate([5, 15, 105, 116]):
        expected = np.repeat(np.arange(first, first + 4.0)[:, None], 8921, axis=1)
        np.testing.assert_array_equal(recording.data[row], expected)
    assert recording.trials["stimulus"].tolist() == ["cup", "lamp", "sofa", "cup"]
    assert recording.trials["repeat"].tolist() == [1, 1, 1, 2]
    assert recording.trials["run"].tolist() == [1, 1, 2, 2]
    assert stimuli["cup"].category == "03001627"
    pixels, _ = open_dataset("prepared", root=tmp_path, subject=1, values="pixels")
    mask = load_visual_cortex().mask.ravel()
    # a map that is 15 everywhere is 15 wherever no white paper is near, and 0 outside the mask
    first = pixels.data[1][0]
    assert not first[~mask].any()
    inside = np.asarray(drawing_weights().sum(axis=1)).ravel() > 1 - 1e-6
    assert inside.sum() == 31016
    np.testing.assert_allclose(first[inside], 15.0, rtol=1e-6)


def test_the_file_is_the_hubs(two_runs, tmp_path):
    prepare(two_runs, events_of(two_runs), tmp_path, settings(frames=10))
    path = tmp_path / "sub-0001" / "npy_data" / "03001627" / "lamp.npy"
    assert path.stat().st_size == 2621568  # published size of a trial of 10 frames
    values = np.load(path, allow_pickle=False)
    assert (values.shape, values.dtype) == ((10, 256, 256), np.float32)
    # without the 57 pixels that are 0 in all six published trials: 31,198 - 57
    assert (values != 0).any(axis=0).sum() == 31141


def test_the_reader_of_the_published_data_opens_it(two_runs, tmp_path):
    listed = tmp_path / "test.txt"
    listed.write_text("03001627/lamp\n")
    prepare(two_runs, events_of(two_runs), tmp_path / "out", settings(), test_list=listed)
    recording, stimuli = open_dataset("fmri_shape", root=tmp_path / "out", subject=1)
    assert recording.data.shape == (3, 4, 65536)
    split = dict(zip(recording.trials["stimulus"], recording.trials["split"], strict=True))
    assert split == {"cup": "train", "sofa": "train", "lamp": "test"}
    assert stimuli["lamp"].category == "chair"


def test_drawing_has_the_weights_of_the_visual_vertices_and_their_neighbours():
    cortex, whole = load_visual_cortex(), drawing_weights()
    assert whole.shape == (65536, 59412)
    assert abs(whole[:, cortex.grayordinates] - cortex.pixel_weights).max() == 0
    rows = np.asarray(whole.sum(axis=1)).ravel()
    assert not rows[~cortex.mask.ravel()].any()
    assert (rows[cortex.mask.ravel()] == 0).sum() == 57


# ------------------------------------------------------------------------------------ z-scores


def test_z_scores_of_a_run_have_mean_0_and_sd_1(two_runs, tmp_path):
    """A trial that is the whole run shows it: the frames of a ramp of 30."""
    save_release_table(tmp_path / "shape_1_1.csv", [0.0], ["cup"])
    save_release_table(tmp_path / "shape_1_2.csv", [0.0], ["lamp"])
    whole = settings(delay=0.0, frames=FRAMES, zscore="run", keep="vertices")
    prepare(two_runs, str(tmp_path / "shape_1_{run}.csv"), tmp_path / "out", whole)
    data = open_dataset("prepared", root=tmp_path / "out")[0].array()
    np.testing.assert_allclose(data.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(data.std(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("zscore", "mean", "deviation"),
    [
        # 0..29: mean 14.5, variance (30^2 - 1) / 12
        ("first-run", 14.5, np.sqrt(899 / 12)),
        # both runs, 50 below and above their common mean: variance grows by 50^2
        ("session", 64.5, np.sqrt(899 / 12 + 2500)),
    ],
)
def test_statistics_of_the_session_and_of_the_first_run(
    two_runs, tmp_path, zscore, mean, deviation
):
    how = settings(zscore=zscore, keep="vertices")
    prepare(two_runs, events_of(two_runs), tmp_path, how)
    data = open_dataset("prepared", root=tmp_path)[0].array()
    frames = np.array([5, 15, 105, 116])[:, None] + np.arange(4)
    expected = ((frames - mean) / deviation)[..., None]
    np.testing.assert_allclose(data, np.broadcast_to(expected, data.shape), rtol=1e-5, atol=1e-6)


def test_a_place_that_does_not_vary_becomes_zero():
    series = np.stack([np.full(8, 1e4), np.arange(8.0)], axis=1)
    out = standardised(series, series.mean(axis=0), series.std(axis=0))
    assert not out[:, 0].any()
    assert out[:, 1].std() == pytest.approx(1)


# ----------------------------------------------------------------------------------- confounds


def test_a_pure_confound_is_removed_and_the_rest_stays():
    rng = np.random.default_rng(0)
    motion = rng.standard_normal((60, 2))
    motion -= motion.mean(axis=0)
    signal = rng.standard_normal(60)
    basis = np.column_stack([np.ones(60), motion])
    signal -= basis @ np.linalg.lstsq(basis, signal, rcond=None)[0]  # orthogonal to the confounds
    series = np.stack([1000 + 3 * motion[:, 0] - motion[:, 1], 50 + signal + motion[:, 1]], axis=1)
    out = cleaned(series, motion, detrend=False, high_pass=None, tr=TR)
    np.testing.assert_allclose(out[:, 0], series[:, 0].mean(), atol=1e-9)
    np.testing.assert_allclose(out[:, 1], 50 + signal, atol=1e-9)


def test_a_linear_trend_and_a_slow_cosine_are_removed():
    ramp = 7 + 0.5 * np.arange(100.0)[:, None]
    np.testing.assert_allclose(
        cleaned(ramp, None, detrend=True, high_pass=None, tr=TR), ramp.mean(), atol=1e-9
    )
    # the first cosine of 100 frames has half a period in 80 s: 0.00625 Hz, below 0.01 Hz
    slow = 7 + np.cos(np.pi * (np.arange(100) + 0.5) / 100)[:, None]
    np.testing.assert_allclose(
        cleaned(slow, None, detrend=False, high_pass=0.01, tr=TR), slow.mean(), atol=1e-6
    )


def test_confounds_by_pattern_and_without_a_first_value(tmp_path):
    table = pd.DataFrame({"trans_x": [1.0, 2, 3], "trans_y": [0.0, 1, 5], "rot_x": [1.0, 0, 0]})
    table["trans_x_derivative1"] = ["n/a", 1.0, 3.0]
    path = tmp_path / "c.tsv"
    table.to_csv(path, sep="\t", index=False)
    found = read_confounds(path, ["trans_?", "trans_x_derivative1"], 3)
    np.testing.assert_array_equal(found, [[1, 0, 2], [2, 1, 1], [3, 5, 3]])
    with pytest.raises(UsageError, match=r"no confound 'rot_z'.*Did you mean 'rot_x'"):
        read_confounds(path, ["rot_z"], 3)
    with pytest.raises(DataError, match="3 rows, and the series 4 frames"):
        read_confounds(path, ["rot_x"], 4)


def test_confounds_beside_the_series_are_regressed_out(tmp_path, brain):
    motion = np.random.default_rng(1).standard_normal(FRAMES)
    series = np.repeat(200 + 5 * motion[:, None], N, axis=1)
    path = bold(tmp_path)
    save_series(path, series, brain)
    beside = path.with_name("sub-0001_task-shape_run-1_desc-confounds_timeseries.tsv")
    pd.DataFrame({"trans_x": motion}).to_csv(beside, sep="\t", index=False)
    save_release_table(tmp_path / "e.csv", [0.0], ["cup"])
    how = settings(confounds=("trans_*",), keep="vertices")
    prepare(tmp_path, str(tmp_path / "e.csv"), tmp_path / "out", how)
    data = open_dataset("prepared", root=tmp_path / "out")[0].array()
    np.testing.assert_allclose(data, series.astype(np.float32).mean(), rtol=1e-6)


# --------------------------------------------------------------------------- resume, provenance


def test_the_same_command_repeats_nothing_and_mends_what_is_missing(two_runs, tmp_path):
    prepare(two_runs, events_of(two_runs), tmp_path, settings())
    trials = sorted(tmp_path.rglob("*.npy"))
    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in trials}
    lost = tmp_path / "sub-0001" / "npy_data" / "03001627" / "sofa.npy"
    lost.unlink()
    again = prepare(two_runs, events_of(two_runs), tmp_path, settings())
    assert again.before == 1
    for path, (time, content) in written.items():
        assert path.read_bytes() == content
        of_run_1 = path.stem in ("lamp", "cup")
        assert (path.stat().st_mtime_ns == time) is of_run_1, path.name
    assert prepare(two_runs, events_of(two_runs), tmp_path, settings()).before == 2


def test_an_interruption_leaves_what_the_same_command_completes(two_runs, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    prepare(two_runs, events_of(two_runs), whole, settings())
    write, calls = prepare_module.write_npy, []

    def interrupted(path, array):
        calls.append(path)
        if len(calls) == 4:  # the second trial of the second run
            raise KeyboardInterrupt
        write(path, array)

    monkeypatch.setattr(prepare_module, "write_npy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(two_runs, events_of(two_runs), cut, settings())
    with pytest.raises(MissingDataError, match="sub-0001 was begun and is not complete"):
        open_dataset("prepared", root=cut)
    monkeypatch.setattr(prepare_module, "write_npy", write)
    assert prepare(two_runs, events_of(two_runs), cut, settings()).before == 1
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.npy"))
    assert files == sorted(path.relative_to(cut) for path in cut.rglob("*.npy"))
    for name in [*files, "sub-0001/trials.csv", "annotations/core_train_list.txt"]:
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_areas_of_the_person_come_with_the_trials(two_runs, tmp_path):
    """A label of the left V1, by a path with the subject's name."""
    cortex, gray = load_visual_cortex(), load_grayordinates()
    inside = np.zeros(32492, np.float32)
    v1 = cortex.area("L_V1")
    inside[gray.left[cortex.grayordinates[v1]]] = 1
    array = nibabel.gifti.GiftiDataArray(inside, intent="NIFTI_INTENT_SHAPE")
    image = nibabel.gifti.GiftiImage(darrays=[array])
    nibabel.save(image, tmp_path / "sub-0001_hemi-L_mine.shape.gii")
    pattern = str(tmp_path / "sub-{subject}_hemi-L_mine.shape.gii")
    out = tmp_path / "out"
    prepare(two_runs, events_of(two_runs), out, settings(keep="both"), rois=[pattern])
    vertices, _ = open_dataset("prepared", root=out, subject=1)
    np.testing.assert_array_equal(vertices.rois["mine"], v1)
    pixels, _ = open_dataset("prepared", root=out, subject=1, values="pixels")
    shown = cortex.pixel_vertex.ravel()
    np.testing.assert_array_equal(pixels.rois["mine"], (shown >= 0) & v1[shown])
    record = json.loads((out / "sub-0001" / "prepared.json").read_text())
    assert record["rois"]["names"] == ["mine"]
    with pytest.raises(MissingDataError, match=r"sub-0001_x\.gii does not exist"):
        prepare(
            two_runs,
            events_of(two_runs),
            out,
            settings(keep="both"),
            rois=[str(tmp_path / "sub-{subject}_x.gii")],
        )


def test_other_settings_are_refused_with_the_difference(two_runs, tmp_path):
    prepare(two_runs, events_of(two_runs), tmp_path, settings())
    with pytest.raises(UsageError, match=r"other delay \(there 4.0, now 4.8\)"):
        prepare(two_runs, events_of(two_runs), tmp_path, settings(delay=4.8))


def test_provenance_names_inputs_settings_and_versions(two_runs, tmp_path):
    prepare(two_runs, events_of(two_runs), tmp_path, settings())
    record = json.loads((tmp_path / "sub-0001" / "prepared.json").read_text())
    assert record["settings"]["delay"] == 4.0
    assert record["formula"] == "first frame = ceil((onset + delay - start) / TR - 1e-6)"
    names = [entry["file"] for entry in record["inputs"]]
    assert names[:2] == [bold(two_runs).name, "shape_1_1.csv"]
    assert len(names) == 4
    assert all(len(entry["sha256"]) == 64 and entry["bytes"] > 0 for entry in record["inputs"])
    assert record["versions"]["numpy"]
    assert str(two_runs) not in json.dumps(record)


def test_check_reads_every_trial(two_runs, tmp_path):
    prepare(two_runs, events_of(two_runs), tmp_path, settings())
    assert set(check_dataset("prepared", root=tmp_path)["status"]) == {"ok"}
    path = tmp_path / "sub-0001" / "npy_data" / "03001627" / "lamp.npy"
    path.write_bytes(path.read_bytes()[:-4])
    table = check_dataset("prepared", root=tmp_path)
    assert table["status"].tolist() == ["broken"]
    assert "lamp.npy" in table["found"][0]


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"voxels": 31869}, "91,281 grayordinates; expected 91,282"),
        ({"mesh": 40000}, "mesh of 40,000 vertices a hemisphere; expected fsLR-32k"),
        ({"flip": True}, "29,696 vertices of hemisphere L, or in another order"),
    ],
)
def test_other_spaces_and_counts_are_refused(tmp_path, changed, text):
    flip = changed.pop("flip", False)
    axis = brain_axis(**changed, **({"left": load_grayordinates().left[::-1]} if flip else {}))
    save_series(tmp_path / "x.dtseries.nii", np.zeros((1, len(axis))), axis)
    with pytest.raises(DataError, match=text):
        open_dtseries(tmp_path / "x.dtseries.nii")


def test_other_files_are_refused(tmp_path, brain):
    scalar = tmp_path / "x.dscalar.nii"
    nibabel.save(Cifti2Image(np.zeros((1, N), np.float32), (ScalarAxis(["a"]), brain)), scalar)
    with pytest.raises(DataError, match="no time series in seconds"):
        open_dtseries(scalar)
    volume = tmp_path / "v.dtseries.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), volume)
    with pytest.raises(DataError, match="not CIFTI-2; run fMRIPrep with --cifti-output 91k"):
        open_dtseries(volume)
    (tmp_path / "t.dtseries.nii").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a readable CIFTI file"):
        open_dtseries(tmp_path / "t.dtseries.nii")
    with pytest.raises(MissingDataError, match="does not exist"):
        open_dtseries(tmp_path / "none.dtseries.nii")


def test_a_cut_off_file_and_nan_are_named(tmp_path, brain):
    path = tmp_path / "a.dtseries.nii"
    data = np.zeros((2, N), np.float32)
    data[1, 5] = np.nan
    save_series(path, data, brain)
    with pytest.raises(DataError, match="NaN"):
        open_dtseries(path).read(np.arange(10))
    np.testing.assert_array_equal(open_dtseries(path).read(np.arange(3)), np.zeros((2, 3)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"a\.dtseries\.nii"):
        open_dtseries(path).read(np.arange(10))


def test_events_outside_the_run_name_line_frames_and_length(two_runs, tmp_path):
    save_release_table(tmp_path / "1.csv", [0.0, 18.4], ["cup", "lamp"])
    save_release_table(tmp_path / "2.csv", [0.0], ["sofa"])
    events = str(tmp_path / "{run}.csv")
    # 18.4 + 4 s is frame 28: 28, 29, 30, 31 of 30 frames, which are 24 s
    text = r"1\.csv, line 3: the trial at 18.4 s needs frames 28 to 31, .* has 0 to 29 \(24 s\)"
    with pytest.raises(DataError, match=text):
        prepare(two_runs, events, tmp_path / "out", settings())
    assert not (tmp_path / "out").exists()
    made = prepare(two_runs, events, tmp_path / "out", settings(drop_outside=True))
    assert (made.trials, made.outside) == (2, 1)


def test_a_tr_that_contradicts_header_or_sidecar(two_runs, tmp_path, brain):
    with pytest.raises(DataError, match=r"TR of 0\.8 s in its header, and --tr says 2 s"):
        prepare(two_runs, events_of(two_runs), tmp_path / "out", settings(tr=2.0))
    path = bold(tmp_path)
    save_series(path, np.zeros((2, N)), brain)
    path.with_name(path.name.split(".")[0] + ".json").write_text('{"RepetitionTime": 1.0}')
    with pytest.raises(DataError, match=r"RepetitionTime 1 s, and the header .* 0\.8 s"):
        prepare(tmp_path, "e.csv", tmp_path / "out", settings())


def test_subjects_and_tasks_that_do_not_exist(two_runs, tmp_path):
    assert [run.run for run in find_runs(two_runs, ["1"])["0001"]] == [1, 2]
    with pytest.raises(MissingDataError, match=r"no subject '7'; there are 0001"):
        find_runs(two_runs, ["7"])
    with pytest.raises(MissingDataError, match="no task 'rest'; there are shape"):
        find_runs(two_runs, task="rest")
    with pytest.raises(MissingDataError, match="run fMRIPrep with --cifti-output 91k"):
        find_runs(tmp_path)
    prepare(two_runs, events_of(two_runs), tmp_path, settings())
    with pytest.raises(MissingDataError, match="no subject 3; there are sub-0001"):
        open_dataset("prepared", root=tmp_path, subject=3)


def test_one_events_file_for_two_runs_needs_a_column_run(two_runs, tmp_path):
    save_release_table(tmp_path / "all.csv", [0.0, 0.0], ["cup", "lamp"])
    with pytest.raises(UsageError, match="would be the events of both"):
        prepare(two_runs, str(tmp_path / "all.csv"), tmp_path / "out", settings())
    table = pd.read_csv(tmp_path / "all.csv").assign(run=[1, 2])
    table.to_csv(tmp_path / "all.csv", index=False)
    prepare(two_runs, str(tmp_path / "all.csv"), tmp_path / "out", settings(keep="vertices"))
    data = open_dataset("prepared", root=tmp_path / "out")[0].array()
    assert data[:, 0, 0].tolist() == [5, 105]


def test_on_the_command_line(two_runs, tmp_path):
    common = ["prepare", "--fmriprep", str(two_runs), "--events", events_of(two_runs)]
    done = CliRunner().invoke(
        app, [*common, "--delay", "4", "--tr", "0.8", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "4 trials of 1 subject from 2 runs" in done.output
    no_delay = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "out")])
    assert no_delay.exit_code == 2
    assert "--delay" in no_delay.output
    wrong = CliRunner().invoke(
        app, [*common, "--delay", "4", "--tr", "2", "--out", str(tmp_path / "o2")]
    )
    assert wrong.exit_code == 3
    assert wrong.output.startswith("error: ")
