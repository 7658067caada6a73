"""The verbs from the command line: fit, reconstruct, evaluate, report, on a model of a few seconds.

What is decoded here is poor on purpose: these are tests of the chain, not of the decoder.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import trimesh
from typer.testing import CliRunner

from neurodiff import MinD3D, Run
from neurodiff.analysis import decoding, run_report
from neurodiff.cli import app
from neurodiff.core.training import train as real_train
from neurodiff.datasets.simulated.opening import open_simulated
from neurodiff.pipelines import mind3d_fitting
from neurodiff.pipelines.mind3d_files import model_fingerprint

pytestmark = pytest.mark.slow  # fits a tiny model

QUICK = ["-s", "tokenizer.training.steps=20", "-s", "mesh.threshold=0.15"]
FIT = ["fit", "mind3d_tiny", "--data", "simulated_tiny", *QUICK]


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="session")
def fresh(tiny_runs, session_tmp):
    """A run that is fitted, and what the command printed."""
    folder = tiny_runs(session_tmp / "runs")
    return Run.open(folder), (folder.parent / "printed.txt").read_text()


@pytest.fixture(scope="session")
def decoded(tiny_runs, session_tmp):
    """A copy of it with its test trials decoded and scored."""
    made = tiny_runs(session_tmp / "runs-decoded", decoded=True)
    return Run.open(made.rename(session_tmp / "decoded"))


@pytest.fixture
def copy(fresh, tmp_path):
    return Run.open(shutil.copytree(fresh[0].folder, tmp_path / "copy"))


def contents(run):
    """Bytes of every file of every item, without times and seconds."""
    paths = sorted(run.folder.glob("items/??/*/*"))
    return {
        path.relative_to(run.folder).as_posix(): path.read_bytes()
        for path in paths
        if path.name in (decoding.MESH, decoding.ABOUT)
    }


# ------------------------------------------------------------------------------------------ fit


def test_fit_makes_a_run_with_a_model(fresh):
    run, printed = fresh
    assert run.folder.name.startswith("mind3d_tiny-simulated_tiny-")
    assert run.recipe["tokenizer"]["training"]["steps"] == 20
    assert run.inputs["simulated"] is True
    assert run.inputs["trials"] == 48
    assert all(run.status()["stages"].values())
    assert "leave-one-out cosine" in printed
    assert MinD3D.from_pretrained(run.folder).recipe.name == "mind3d_tiny"
    assert not list(run.folder.parent.glob(".tmp-*"))


def test_a_second_fit_repeats_nothing_and_gives_the_same_model(copy, fresh):
    before = model_fingerprint(copy.folder)
    again = call(*FIT, "--out", fresh[0].folder.parent)
    assert again.stdout.splitlines()[-1] == str(fresh[0].folder)
    assert again.stdout.count("done before, loaded") == 5
    assert model_fingerprint(fresh[0].folder) == before


@pytest.mark.parametrize("stage", ["tokenizer", "bridge"])
def test_a_fit_that_was_killed_goes_on_to_the_same_model(copy, fresh, monkeypatch, stage):
    folder = copy.folder.parent / "runs" / fresh[0].folder.name
    shutil.copytree(copy.folder, folder)
    shutil.rmtree(folder / "model")
    names = {"tokenizer": ["*"], "bridge": ["bridge-*", "adapters-*"]}[stage]
    for path in [path for name in names for path in (folder / "stages").glob(name)]:
        shutil.rmtree(path)

    def killed(model, loss, **options):
        def stop(*arguments):
            if stop.left == 0:
                raise KeyboardInterrupt
            stop.left -= 1
            return loss(*arguments)

        stop.left = 15 if options["stage"] == stage else 10**9
        return real_train(model, stop, **options)

    monkeypatch.setattr(mind3d_fitting, "train", killed)
    result = call(*FIT, "--out", folder.parent, code=130)
    assert "run the same command again" in result.stderr
    assert not (folder / "model").exists()
    monkeypatch.undo()
    call(*FIT, "--out", folder.parent)
    assert model_fingerprint(folder) == model_fingerprint(fresh[0].folder)


def test_dry_run_counts_what_would_be_made_and_writes_nothing(fresh, tmp_path):
    text = call(*FIT, "--out", tmp_path / "runs", "--dry-run").stdout
    assert not (tmp_path / "runs").exists()
    pipe = MinD3D.from_pretrained(fresh[0].folder)
    for module in (pipe.shapes, pipe.networks):
        for name, part in module.named_children():
            n = sum(parameter.numel() for parameter in part.parameters())
            line = next(line for line in text.splitlines() if name in line)
            assert line.split()[-1] == f"{n:,}"
    assert f"{pipe.ridge.coef_.size + pipe.ridge.intercept_.size:,}" in text
    assert "trials: 48 train, 12 test" in text
    assert f"({48 * 10 * 8921 * 4} bytes)" in text
    assert text.splitlines()[-1] == "nothing was written (--dry-run)"


# ---------------------------------------------------------------------------------- reconstruct


def test_test_trials_become_items(decoded):
    table = decoded.items_table()
    assert len(table) == 12
    assert set(table["status"]) == {"done"}
    assert set(table["task"]) == {"reconstruction"}
    recording, _ = open_simulated(size="tiny")
    test = recording.select("split == 'test'")
    assert set(table["stimulus"]) == set(test.trials["stimulus"])
    expected = MinD3D.from_pretrained(decoded.folder).predict(test)
    stored = {one.result.stimulus: one.result for one in decoding.stored_results(decoded)}
    faces = 0
    for one in expected:
        found = stored[one.stimulus]
        np.testing.assert_allclose(found.embedding, one.embedding, rtol=1e-6)
        np.testing.assert_array_equal(found.codes, one.codes)
        assert len(found.mesh.faces) == len(one.mesh.faces)
        np.testing.assert_allclose(found.mesh.bounds, one.mesh.bounds, atol=1e-6)
        faces += len(one.mesh.faces)
    assert faces > 0


def test_a_second_call_repeats_nothing(decoded):
    seals = {path: path.stat().st_mtime_ns for path in decoded.folder.glob("items/??/*/done.json")}
    assert len(seals) == 12
    assert "12 of them done before" in call("reconstruct", decoded.folder).stdout
    assert seals == {path: path.stat().st_mtime_ns for path in seals}


def test_more_samples_and_another_subject_are_further_items(copy, decoded):
    shutil.copytree(decoded.folder / "items", copy.folder / "items")
    text = call("reconstruct", copy.folder, "--samples", "2").stdout
    assert "24 of 24 items are decoded, 12 of them done before" in text
    text = call("reconstruct", copy.folder, "--subject", "2").stdout
    assert "12 of 12 items are decoded in" in text
    assert set(copy.items_table()["subject"]) == {"sim-01", "sim-02"}
    assert len(copy.items_table()) == 36


def test_a_kill_while_decoding_then_resume_gives_the_same_bytes(copy, decoded, monkeypatch):
    write, count = decoding._write, []

    def killed(*arguments):
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(decoding, "_write", killed)
    call("reconstruct", copy.folder, code=130)
    assert copy.status()["done"] == 5
    assert copy.status()["pending"] == 7
    monkeypatch.undo()
    assert "5 of them done before" in call("reconstruct", copy.folder).stdout
    assert contents(copy) == contents(decoded)


def write_flat_maps(root, names, *, frames=3, broken=()):
    """A small data set in fMRI-Shape's layout."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    lines = "".join(f"02691156/{name}\n" for name in names)
    (root / "annotations" / "core_test_list.txt").write_text(lines)
    (root / "annotations" / "core_train_list.txt").write_text("")
    folder = root / "sub-0001" / "npy_data" / "02691156"
    folder.mkdir(parents=True)
    for name in names:
        maps = rng.standard_normal((frames, 256, 256)).astype(np.float32)
        if name in broken:
            maps[1, 100, 100] = np.nan
        np.save(folder / f"{name}.npy", maps)
    return folder


def test_a_trial_with_nan_fails_alone_and_is_done_once_mended(copy, tmp_path):
    folder = write_flat_maps(tmp_path / "maps", ["a", "b", "c"], broken=["b"])
    new = ["reconstruct", copy.folder, "--data", "fmri_shape", "--root", tmp_path / "maps"]
    result = call(*new, code=1)
    assert result.stderr.startswith("error: 1 of 3 items failed, first: ")
    assert "NaN" in result.stderr
    table = copy.items_table().set_index("stimulus")
    assert list(table["status"][["a", "b", "c"]]) == ["done", "failed", "done"]
    assert "NaN" in table["error"]["b"]
    maps = np.load(folder / "b.npy")
    np.save(folder / "b.npy", np.nan_to_num(maps))
    assert "3 of 3 items are decoded, 2 of them done before" in call(*new).stdout


def test_the_six_real_trials_pass_through_a_simulated_model(copy, shared_data, tmp_path):
    root = shared_data / "fmri_shape_demo"
    text = call("reconstruct", copy.folder, "--data", "fmri_shape", "--root", root).stdout
    assert "checks the plumbing" in text
    assert "6 of 6 items are decoded" in text
    assert "are empty" not in text
    stored = decoding.stored_results(copy)
    assert len(stored) == 6
    assert not any(one.simulated for one in stored)
    assert all(len(one.result.mesh.faces) > 0 for one in stored)
    text = call("evaluate", copy.folder).stdout
    assert "no truth (no mesh) for 6 stimuli" in text
    assert "CD" not in text
    page = tmp_path / "real.html"
    call("report", copy.folder, "--out", page)
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers["pairs"] == []
    assert len(numbers["plumbing"]) == 6
    assert all("plumbing check" in one["caption"] for one in numbers["plumbing"])
    assert all(one["truth"] is None for one in numbers["plumbing"])
    html = page.read_text()
    assert html.count('alt="stimulus picture: ') == 6
    assert html.count("data:image/") >= 12  # the picture that was shown, and the reconstruction
    assert "says nothing about decoding" in html


# ----------------------------------------------------------------- evaluate and report


def test_scores_have_one_row_an_item_and_condition(decoded):
    scores = decoded.read_scores()
    assert not scores.duplicated(["key", "condition"]).any()
    for _, part in scores.groupby("condition"):
        assert sorted(part["key"]) == sorted(decoded.items_table()["key"])
    assert scores["simulated"].all()
    assert ((scores["IoU"] >= 0) & (scores["IoU"] <= 1)).all()
    assert (scores["CD"] > 0).all()


def test_full_scores_add_emd_and_say_what_there_is_not(decoded, tmp_path):
    run = Run.open(shutil.copytree(decoded.folder, tmp_path / "full"))
    few = decoded.items_table().sort_values("stimulus")["key"][::4]  # every score is of one item
    for path in run.folder.glob("items/??/*"):
        if path.name not in set(few):
            shutil.rmtree(path)
    text = call("evaluate", run.folder, "--full").stdout
    assert "simulated_tiny, simulated: 3 items" in text
    for use in ("n-way", "LPIPS", "FPD"):
        assert f"{use} is not available: no weights" in text
    assert "--require-hashes" in text
    scores, quick = (one.read_scores().set_index(["key", "condition"]) for one in (run, decoded))
    assert len(scores) == len(quick) / 4
    pd.testing.assert_series_equal(scores["CD"], quick["CD"][scores.index])
    assert ((scores["EMD"] > 0) & (scores["EMD"] < 100)).all()


def test_evaluate_and_report_before_anything_is_decoded(fresh, tmp_path):
    for arguments in (["evaluate", fresh[0].folder], ["report", fresh[0].folder, "--out",
                                                      tmp_path / "p.html"]):  # fmt: skip
        result = call(*arguments, code=3)
        assert "holds no reconstruction; run `neurodiff reconstruct" in result.stderr
    assert not (tmp_path / "p.html").exists()


def test_report_shows_truth_beside_reconstruction_and_says_simulated(decoded, tmp_path):
    page = tmp_path / "page.html"
    assert call("report", decoded.folder, "--out", page).stdout.splitlines()[-1] == str(page)
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers["simulated"] is True
    assert numbers == decoded.read_report_json()
    assert len(numbers["pairs"]) == 12
    assert all(pair["truth"]["faces"] > 0 for pair in numbers["pairs"])
    scores = decoded.read_scores().query("condition == 'MinD-3D'").set_index("stimulus")
    for pair in numbers["pairs"]:
        assert pair["scores"]["CD"] == pytest.approx(scores["CD"][pair["stimulus"]])
    condition = numbers["conditions"]["MinD-3D"]
    assert condition["metrics"]["CD"]["mean"] == pytest.approx(scores["CD"].mean())
    assert {gate["stage"] for gate in numbers["gates"]} >= {"tokenizer", "ridge", "adapters"}
    html = page.read_text()
    assert "imulated" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_report_of_two_runs_names_each(decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "MOST_PAIRS", 7)
    other = shutil.copytree(decoded.folder, tmp_path / "other")
    call("report", decoded.folder, other, "--out", tmp_path / "two.html")
    numbers = json.loads((tmp_path / "two.json").read_text())
    assert list(numbers["conditions"]) == [
        "decoded, simulated_tiny", "other, simulated_tiny",
    ]  # fmt: skip
    drawn = [pair["why"] for pair in numbers["pairs"]]
    assert {why: drawn.count(why) for why in drawn} == {
        "fixed random draw": 2, "best": 4, "median": 4, "worst": 4,
    }  # fmt: skip
    result = call("report", other, other, "--out", tmp_path / "twice.html", code=2)
    assert "each run once" in result.stderr


# --------------------------------------------------------------- one file, no configuration


@pytest.fixture(scope="session")
def trials():
    return open_simulated(size="tiny")[0].select("split == 'test'").array()[:2]


def test_a_file_of_one_or_several_trials(fresh, trials, tmp_path):
    np.save(tmp_path / "one.npy", trials[1])
    np.save(tmp_path / "two.npy", trials.astype(np.float64))
    model = ["--model", fresh[0].folder / "model"]
    text = call("reconstruct", tmp_path / "two.npy", tmp_path / "out", *model).stdout
    assert "2 trials decoded" in text
    table = pd.read_csv(tmp_path / "out" / "reconstructions.csv")
    assert list(table["stimulus"]) == ["two-000", "two-001"]
    one = tmp_path / "one.glb"
    assert call("reconstruct", tmp_path / "one.npy", one, *model).stdout.splitlines()[-1] == str(
        one
    )
    mesh = trimesh.load_mesh(one)
    assert len(mesh.faces) > 0
    assert np.abs(mesh.bounds).max() <= 0.56
    call("reconstruct", tmp_path / "one.npy", tmp_path / "alone", "--model", fresh[0].folder)
    assert (tmp_path / "alone" / "one.glb").read_bytes() == one.read_bytes()
    result = call("reconstruct", tmp_path / "two.npy", one, *model, code=2)
    assert "holds 2 trials" in result.stderr


def test_a_file_of_flat_maps_and_a_manifest(fresh, trials, tmp_path):
    folder = write_flat_maps(tmp_path / "maps", ["a"])
    model = ["--model", fresh[0].folder]
    text = call("reconstruct", folder / "a.npy", tmp_path / "out", *model).stdout
    assert "brought to mean 0 and standard deviation 1" in text
    assert "1 trials decoded" in text
    np.save(tmp_path / "t.npy", trials[0])
    (tmp_path / "list.csv").write_text("path,stimulus\nt.npy,first cup\nt.npy,first/cup\n")
    call("reconstruct", tmp_path / "list.csv", tmp_path / "listed", *model)
    table = pd.read_csv(tmp_path / "listed" / "reconstructions.csv")
    assert list(table["mesh"]) == ["first_cup.glb", "first_cup-2.glb"]
    meshes = [trimesh.load_mesh(tmp_path / "listed" / name) for name in table["mesh"]]
    assert all(len(mesh.faces) for mesh in meshes)


# ------------------------------------------------------------------------------- own data


def write_own_data(root, *, n_features=30):
    """15 stimuli of trimesh primitives, two trials each; every fifth stimulus is a test one."""
    rng = np.random.default_rng(0)
    (root / "betas").mkdir(parents=True)
    (root / "stimuli").mkdir()
    mixing, rows = rng.standard_normal((4, n_features)), []
    for k in range(15):
        height, kind = 0.4 + 0.1 * k, k % 3
        mesh = [
            trimesh.creation.box((1, height, 0.5)),
            trimesh.creation.cylinder(radius=0.3, height=height),
            trimesh.creation.icosphere(subdivisions=2).apply_scale((1, height, 1)),
        ][kind]
        mesh.export(root / "stimuli" / f"object{k}.glb")
        latent = np.r_[height, np.eye(3)[kind]]
        for trial in range(2):
            name = f"betas/{k}-{trial}.npy"
            np.save(root / name, latent @ mixing + 0.1 * rng.standard_normal(n_features))
            kind_name = ("box", "rod", "ball")[kind]
            rows.append((name, f"object{k}", kind_name, "test" if k % 5 == 4 else "train"))
    table = pd.DataFrame(rows, columns=["path", "stimulus", "category", "split"])
    table.to_csv(root / "manifest.csv", index=False)
    return root


def test_own_recordings_and_own_meshes(tmp_path):
    root = write_own_data(tmp_path / "mine")
    own = ["--data", "csv", "--root", root]
    text = call("fit", "mind3d_tiny", *own, *QUICK, "--out", tmp_path / "runs").stdout
    run = Run.open(text.splitlines()[-1])
    assert run.inputs["simulated"] is False
    assert run.inputs["trials"] == 24
    assert "6 of 6 items are decoded" in call("reconstruct", run.folder).stdout
    elsewhere = root.rename(tmp_path / "moved")
    assert "6 of them done before" in call("reconstruct", run.folder, "--root", elsewhere).stdout
    new = shutil.copytree(elsewhere, tmp_path / "new")
    text = (new / "manifest.csv").read_text().splitlines()
    (new / "manifest.csv").write_text("\n".join(text[:4]))  # of the split "train"
    text = call("reconstruct", run.folder, "--data", "csv", "--root", new).stdout
    assert "3 of 3 items are decoded in" in text
    lines = call("evaluate", run.folder).stdout.splitlines()
    assert "csv (moved): 6 items, 0 with an empty mesh" in lines
    assert "csv (new): 3 items, 0 with an empty mesh" in lines
    cd = [line for line in lines if line.split()[0] == "CD"]
    assert [line.count("n 3 stimuli") + line.count("n 2 stimuli") for line in cd] == [1, 1]
    page = tmp_path / "own.html"
    call("report", run.folder, "--out", page)
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers["simulated"] is False
    assert len(numbers["pairs"]) == 9
    assert any("csv (new) was named with --data" in note for note in numbers["notes"])
    assert not any("csv (moved)" in note for note in numbers["notes"])
