"""Bad input through the command line: one clear sentence on standard error, the right exit code."""

import errno
import os

import numpy as np
import pandas as pd
import pytest
import trimesh
from typer.testing import CliRunner

import neurodiff as nd
from neurodiff.cli import app
from neurodiff.core import atomic
from neurodiff.core.config import find_shared
from neurodiff.pipelines.mind3d_files import model_fingerprint

pytestmark = pytest.mark.slow  # fits a tiny model

USAGE, DATA = 2, 3
FEATURES = 12
QUICK = [
    part
    for setting in (
        "tokenizer.training.steps=4",
        "decoder.training.steps=3",
        "decoder.adapters.steps=2",
        "bridge.training.steps=2",
        "mesh.threshold=0.3",
    )
    for part in ("-s", setting)
]


def refused(code, *arguments, lines=1):
    """What is printed by a command that has to end with ``code``."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff")
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == lines
    return result.stderr


def write_mine(root):
    """12 boxes, one trial of 2 frames each; the last three test."""
    rng = np.random.default_rng(0)
    for name in ("betas", "stimuli"):
        (root / name).mkdir(parents=True)
    rows = []
    for k in range(12):
        sides = 0.3 + 0.7 * rng.random(3)
        trimesh.creation.box(sides).export(root / "stimuli" / f"box{k}.glb")
        trial = rng.standard_normal((2, FEATURES)) + np.tile(sides, 4)
        np.save(root / "betas" / f"{k}.npy", trial.astype(np.float32))
        rows.append((f"betas/{k}.npy", f"box{k}", "train" if k < 9 else "test"))
    table = pd.DataFrame(rows, columns=["path", "stimulus", "split"])
    table.to_csv(root / "manifest.csv", index=False)
    return root


@pytest.fixture
def mine(tmp_path):
    return write_mine(tmp_path / "mine")


@pytest.fixture(scope="session")
def run(session_tmp):
    """A run on such data, fitted with a handful of steps."""
    root = write_mine(session_tmp / "sound")
    arguments = fit(root, session_tmp / "sound_runs")
    result = CliRunner().invoke(app, arguments, prog_name="neurodiff")
    assert result.exit_code == 0, result.output
    return nd.Run.open(result.stdout.splitlines()[-1])


def fit(root, out, *more):
    settings = ["--data", "csv", "--root", root, "--out", out, *QUICK, *more]
    return [str(part) for part in ("fit", "mind3d_tiny", *settings)]


# ------------------------------------------------------------------------ folders and lists


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("csv", "is not a folder; give the folder of manifest.csv"),
        ("fmri_shape", "sub-0001/npy_data is not a folder"),
        ("fmri_shape_apac", "sub-0001/npy_data is not a folder"),
        ("fmri_objaverse", "is not a folder; give the root of fMRI-Objaverse"),
        ("fmri_shape_glmsingle", "is not a folder; give the root of the GLMsingle release"),
    ],
)
def test_missing_folder(tmp_path, data, sentence):
    where = ["--data", data, "--root", tmp_path / "absent", "--out", tmp_path / "runs"]
    text = refused(DATA, "fit", "mind3d_tiny", *where)
    assert sentence in text
    assert str(tmp_path / "absent") in text
    assert not (tmp_path / "runs").exists()


def test_missing_list(tmp_path, mine):
    (tmp_path / "empty" / "sub-0001" / "npy_data").mkdir(parents=True)
    where = ["--root", tmp_path / "empty", "--out", tmp_path / "runs"]
    text = refused(DATA, "fit", "mind3d_tiny", "--data", "fmri_shape", *where)
    assert "core_train_list.txt is missing; download" in text
    text = refused(DATA, "fit", "mind3d_tiny", "--data", "csv", *where)
    assert "manifest.csv does not exist" in text
    (mine / "betas" / "3.npy").unlink()
    text = refused(DATA, *fit(mine, tmp_path / "runs"))
    assert "1 of 12 files" in text
    assert "3.npy" in text


def test_subject_that_is_not_there(tmp_path):
    for number in (1, 6):
        (tmp_path / f"sub-{number:04d}" / "npy_data").mkdir(parents=True)
    for data in ("fmri_shape", "fmri_objaverse"):
        where = ["--data", data, "--root", tmp_path, "--subject", 10, "--out", tmp_path / "runs"]
        text = refused(DATA, "fit", "mind3d_tiny", *where)
        assert f"below {tmp_path} there is sub-0001, sub-0006" in text


def test_no_root_no_data_unknown_data(tmp_path):
    out = ["--out", tmp_path / "runs"]
    assert "no data set was named; add --data NAME" in refused(USAGE, "fit", "mind3d_tiny", *out)
    text = refused(USAGE, "fit", "mind3d_tiny", "--data", "csv", *out)
    assert "csv needs root" in text
    text = refused(USAGE, "fit", "mind3d_tiny", "--data", "fmri_shap", *out)
    assert "Did you mean 'fmri_shape'" in text


def test_what_is_no_run_or_no_model(tmp_path, run):
    for verb in ("reconstruct", "evaluate", "report"):
        assert "is not a run" in refused(DATA, verb, tmp_path)
    source = tmp_path / "a.npy"
    np.save(source, np.zeros((2, FEATURES), np.float32))
    text = refused(DATA, "reconstruct", source, tmp_path / "out", "--model", tmp_path)
    assert "is no fitted model" in text
    text = refused(DATA, "reconstruct", tmp_path / "b.npy", tmp_path, "--model", run.folder)
    assert "b.npy does not exist" in text


# ----------------------------------------------------------------------------------- arrays


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def of_text(path):
    np.save(path, np.full((2, FEATURES), "a"))


def of_objects(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def complex_numbers(path):
    np.save(path, np.zeros((2, FEATURES), np.complex64))


def of_another_shape(path):
    np.save(path, np.zeros((2, FEATURES + 1), np.float32))


def with_nan(path):
    values = np.load(path)
    values[1, 4] = np.nan
    np.save(path, values)


def with_infinity(path):
    values = np.load(path)
    values[0, 0] = np.inf
    np.save(path, values)


def no_npy(path):
    path.write_text("0.1, 0.2")


SPOILT = [
    (truncated, "truncated", DATA),
    (of_text, "array of numbers", DATA),
    (of_objects, "Python objects", DATA),
    (complex_numbers, "complex64; expected", DATA),
    (with_nan, "NaN or infinity", DATA),
    (with_infinity, "NaN or infinity", DATA),
    (no_npy, "5.npy", DATA),
]
BY_NAME = [spoil.__name__ for spoil, _, _ in SPOILT]


@pytest.mark.parametrize(("spoil", "words", "code"), SPOILT, ids=BY_NAME)
def test_spoilt_array_of_a_data_set(tmp_path, mine, spoil, words, code):
    spoil(mine / "betas" / "5.npy")
    text = refused(code, *fit(mine, tmp_path / "runs"))
    assert words in text
    assert "5.npy" in text or "box5" in text  # the file or its stimulus is named
    assert not (tmp_path / "runs").exists()


def test_array_of_another_shape_than_the_others(tmp_path, mine):
    of_another_shape(mine / "betas" / "5.npy")
    text = refused(DATA, *fit(mine, tmp_path / "runs"))
    assert "5.npy" in text
    assert str(FEATURES) in text


@pytest.mark.parametrize(
    ("spoil", "words", "code"),
    [*SPOILT, (of_another_shape, "13 features; this model was fitted on 12", USAGE)],
    ids=[*BY_NAME, "of_another_shape"],
)
def test_spoilt_array_given_to_a_model(tmp_path, run, spoil, words, code):
    path = tmp_path / "5.npy"
    np.save(path, np.zeros((2, FEATURES), np.float32))
    spoil(path)
    text = refused(code, "reconstruct", path, tmp_path / "out", "--model", run.folder)
    assert words in text
    assert "5.npy" in text
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_recordings(tmp_path, run):
    model = ["--model", run.folder]
    for name, words in (
        ("volume.nii.gz", "does not say which voxels"),
        ("thesis.docx", "is no file of recordings"),
    ):
        (tmp_path / name).write_bytes(b"x")
        assert words in refused(USAGE, "reconstruct", tmp_path / name, tmp_path / "out", *model)
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 1, FEATURES), np.float32))
    text = refused(USAGE, "reconstruct", tmp_path / "a.npy", tmp_path / "out", *model)
    assert "has shape (1, 1, 1, 12)" in text
    np.save(tmp_path / "b.npy", np.zeros((0, FEATURES), np.float32))
    text = refused(DATA, "reconstruct", tmp_path / "b.npy", tmp_path / "out", *model)
    assert "expected at least one trial" in text
    np.save(tmp_path / "c.npy", np.zeros((1, FEATURES), np.float32))
    text = refused(USAGE, "reconstruct", tmp_path / "c.npy", tmp_path / "out.obj", *model)
    assert "must be a folder, or a file that ends in .glb" in text


# ---------------------------------------------------------------------------- meshes and ROIs


def test_stimulus_without_mesh(tmp_path, mine):
    (mine / "stimuli" / "box4.glb").unlink()
    text = refused(DATA, *fit(mine, tmp_path / "runs"))
    assert "'box4' has no mesh" in text
    for path in (mine / "stimuli").iterdir():
        path.unlink()
    (mine / "stimuli").rmdir()
    text = refused(DATA, *fit(mine, tmp_path / "runs2"))
    assert "'box0' has no mesh" in text
    assert not (tmp_path / "runs2").exists()


def test_mesh_that_is_broken_or_has_no_face(tmp_path, mine):
    path = mine / "stimuli" / "box4.glb"
    path.write_bytes(path.read_bytes()[:40])
    assert "'box4'" in refused(DATA, *fit(mine, tmp_path / "runs"))
    path.unlink()
    path.with_suffix(".obj").write_text("v 0 0 0\nv 1 0 0\n")
    assert "'box4'" in refused(DATA, *fit(mine, tmp_path / "runs"))


def test_unknown_roi_suggests_near_ones():
    masks = {name: np.eye(3, dtype=bool)[k] for k, name in enumerate(("V1", "V3A", "FFC"))}
    recording = nd.Recording.from_arrays(np.ones((2, 3)), rois=masks)
    with pytest.raises(nd.NeurodiffError, match=r"no ROI 'FCC'.*Did you mean 'FFC'") as error:
        recording.roi("V1", "FCC")
    assert error.value.exit_code == USAGE
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("bridge.step=5", "bridge.step: unknown key. Did you mean 'steps'"),
        ("bridge.steps=many", "bridge.steps: 'many' (text) given; expected"),
        ("mesh=3", "mesh: 3 (a whole number) given"),
        ("bridge.anchor=rigde", "Did you mean 'ridge'"),
        ("tokenizer.training.steps=1.5", "tokenizer.training.steps: 1.5 (a number) given"),
    ],
)
def test_recipe_with_unknown_or_ill_typed_keys(tmp_path, mine, setting, words):
    arguments = fit(mine, tmp_path / "runs", "-s", setting)
    text = refused(USAGE, *arguments, lines=2)
    assert "has 1 problem:" in text
    assert words in text
    assert not (tmp_path / "runs").exists()


def test_recipe_file_with_several_problems_lists_them_all(tmp_path, mine):
    text = find_shared("pipelines", "mind3d_tiny").read_text()
    recipe = tmp_path / "own.yaml"
    recipe.write_text(text.replace("mesh: {", "mehs: {}\nmesh: {box: 2, ") + "\nembeding: 3\n")
    data = ["--data", "csv", "--root", mine, "--out", tmp_path / "runs"]
    text = refused(USAGE, "fit", recipe, *data, lines=4)
    assert "has 3 problems:" in text
    for words in ("mesh.box: unknown key", "Did you mean 'mesh'", "Did you mean 'embedding'"):
        assert words in text
    recipe.write_text("name: [1, 2")
    assert "is not valid YAML" in refused(USAGE, "fit", recipe, *data)
    assert "Did you mean 'mind3d_tiny'" in refused(USAGE, "fit", "mind3d_tinny", *data)


# ----------------------------------------------------------------------- vertices and splits


def test_model_fitted_on_other_vertices(tmp_path, run):
    other = tmp_path / "other"
    (other / "betas").mkdir(parents=True)
    np.save(other / "betas" / "a.npy", np.zeros((2, FEATURES - 3), np.float32))
    (other / "manifest.csv").write_text("path,stimulus\nbetas/a.npy,a\n")
    before = run.items_table()
    text = refused(USAGE, "reconstruct", run.folder, "--data", "csv", "--root", other)
    assert "has 9 features in space 'vector'; this model was fitted on 12" in text
    assert "fit a model on this recording" in text
    assert run.items_table().equals(before)


def test_real_flat_maps_do_not_fit_a_model_of_other_vertices(shared_data, run):
    where = ["--data", "fmri_shape", "--root", shared_data / "fmri_shape_demo"]
    text = refused(USAGE, "reconstruct", run.folder, *where)
    assert "65536 features in space 'flat256'; this model was fitted on 12" in text


def test_no_trials_to_learn_from_or_to_decode(tmp_path, mine):
    table = pd.read_csv(mine / "manifest.csv")
    table.assign(split="held out").to_csv(mine / "manifest.csv", index=False)
    text = refused(USAGE, *fit(mine, tmp_path / "runs"))
    assert "no split 'train' but held out" in text


# ---------------------------------------------------------------------------------- disk full


@pytest.mark.parametrize("writes", [0, 4, 14])
def test_disk_full_in_fit_and_on_once_there_is_room(tmp_path, mine, run, monkeypatch, writes):
    real, calls = atomic.os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    out = tmp_path / "runs"
    text = refused(DATA, *fit(mine, out))
    assert "disk full: " in text
    assert "start the same command again" in text
    assert len(calls) > writes
    assert not list(out.rglob(".tmp-*"))
    assert not list(out.glob("*/model"))
    monkeypatch.undo()
    result = CliRunner().invoke(app, fit(mine, out), prog_name="neurodiff")
    assert result.exit_code == 0, result.output
    [folder] = out.iterdir()
    assert folder.name == run.folder.name  # the same data, wherever they lie
    assert model_fingerprint(folder) == model_fingerprint(run.folder)


def test_disk_full_in_reconstruct(tmp_path, run, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = tmp_path / "a.npy"
    np.save(source, np.zeros((2, FEATURES), np.float32))
    monkeypatch.setattr(atomic.os, "fsync", full)
    text = refused(DATA, "reconstruct", source, tmp_path / "out", "--model", run.folder)
    assert "disk full: " in text
    assert not list(tmp_path.rglob("*.glb"))
    assert not list(tmp_path.rglob(".tmp-*"))
    assert "disk full: " in refused(DATA, "reconstruct", run.folder)
