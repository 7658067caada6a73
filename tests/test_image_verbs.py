"""The verbs on pictures: fit, reconstruct, evaluate, report, on a Brain-Diffuser of a few seconds.

What is decoded here is poor on purpose: these are tests of the chain, not of the decoder.
"""

import json
import shutil
from copy import copy as copy_of
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import neurodiff as nd
from neurodiff import BrainDiffuser, Run
from neurodiff.analysis import image_items, image_scorer
from neurodiff.analysis.image_conditions import CEILING, MEAN, OURS, RANDOM, SHUFFLED
from neurodiff.analysis.image_fit import network_identities
from neurodiff.analysis.image_items import (
    MEAN_TASK,
    TASK,
    TRUE_TASK,
    decode_pictures,
    stored_pictures,
)
from neurodiff.analysis.image_run_report import published_beside
from neurodiff.analysis.image_run_scores import LOW, MEAN_FEATURES, read_image_scores
from neurodiff.analysis.image_trials import reconstruct_betas
from neurodiff.analysis.sources import Source
from neurodiff.cli import app
from neurodiff.core.errors import UsageError
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.simulated.scene_opening import open_simulated_scenes
from neurodiff.pipelines.brain_diffuser_files import model_fingerprint

pytestmark = pytest.mark.slow  # fits a tiny model

QUICK = [
    f"-s{part}.training={{steps: 6, batch_size: 8, warmup: 1, checkpoint_every: 6}}"
    for part in ("low_level", "generator.autoencoder", "generator")
] + ["-s", "generator.steps=3"]
FIT = ["fit", "brain_diffuser_tiny", "--data", "simulated_scenes_tiny", *QUICK]


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_scorer, "PIXELS", 48)
        patch.setattr(image_scorer, "PERMUTATIONS", 20)
        patch.delenv("NEURODIFF_WEIGHTS", raising=False)
        yield


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A run that is fitted, and what the command printed."""
    printed = call(*FIT, "--out", tmp_path_factory.mktemp("fresh")).stdout
    return Run.open(printed.splitlines()[-1]), printed


@pytest.fixture(scope="module")
def decoded(fresh, tmp_path_factory):
    """A copy of it with its test trials decoded and scored."""
    folder = shutil.copytree(fresh[0].folder, tmp_path_factory.mktemp("decoded") / "run")
    call("reconstruct", folder)
    call("evaluate", folder)
    return Run.open(folder)


@pytest.fixture
def copy(fresh, tmp_path):
    return Run.open(shutil.copytree(fresh[0].folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def pipe(fresh):
    return BrainDiffuser.from_pretrained(fresh[0].folder / "model")


@pytest.fixture(scope="module")
def tested():
    """The test trials, and the stimuli."""
    recording, stimuli = open_simulated_scenes(size="tiny")
    return recording.select("split == 'test'"), stimuli


def contents(run, task=TASK):
    """Bytes of every file of every item of a task, without times and seconds."""
    table = run.items_table()
    return {
        f"{folder}/{name}": (run.folder / folder / name).read_bytes()
        for folder in table[table["task"] == task]["folder"]
        for name in (image_items.IMAGE, image_items.INIT, image_items.ABOUT)
    }


def forbid(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a picture was generated again")

    monkeypatch.setattr(BrainDiffuser, "generate", refuse)


# ------------------------------------------------------------------------------------------ fit


def test_fit_makes_a_run_with_a_model(fresh, pipe):
    run, printed = fresh
    assert run.folder.name.startswith("brain_diffuser_tiny-simulated_scenes_tiny-")
    assert run.recipe["pipeline"] == "brain-diffuser"
    assert run.recipe["generator"]["training"]["steps"] == 6
    assert run.inputs["simulated"] is True
    assert (run.inputs["trials"], run.inputs["features"]) == (288, 8921)
    assert len(run.info["trained on"]["stimuli"]) == 96
    assert len(run.status()["stages"]) == 7
    assert all(run.status()["stages"].values())
    assert "leave-one-out R2" in printed
    assert pipe.recipe.name == "brain_diffuser_tiny"


def test_a_second_fit_repeats_nothing(fresh, monkeypatch):
    before = model_fingerprint(fresh[0].folder)

    def refuse(*arguments, **options):
        raise AssertionError("something was fitted again")

    monkeypatch.setattr(BrainDiffuser, "fit", refuse)
    again = call(*FIT, "--out", fresh[0].folder.parent)
    assert again.stdout.splitlines()[-2:] == [
        "fitted before; the model is whole",
        str(fresh[0].folder),
    ]
    assert model_fingerprint(fresh[0].folder) == before


def test_a_fit_that_was_killed_trains_no_network_again(copy, fresh):
    folder = copy.folder.rename(copy.folder.parent / fresh[0].folder.name)
    weights = (folder / "model" / "vdvae" / "model.safetensors").read_bytes()
    factor = folder / "model" / "decoder" / "factor" / "mean.npy"
    factor.write_bytes(factor.read_bytes()[:-8])
    again = call(*FIT, "--out", folder.parent).stdout
    assert "the model that was there is fitted again" in again
    assert again.count("done before, loaded") == 4
    assert (folder / "model" / "vdvae" / "model.safetensors").read_bytes() == weights


def test_dry_run_counts_what_would_be_made_and_writes_nothing(pipe, tmp_path):
    text = call(*FIT, "--out", tmp_path / "runs", "--dry-run").stdout
    assert not (tmp_path / "runs").exists()
    assert "trials: 288 train, 72 test" in text
    assert "to reconstruct: 24 images (test)" in text
    assert f"({288 * 8921 * 4} bytes)" in text
    for head, bridge in pipe.heads.items():
        [line] = [line for line in text.splitlines() if line.strip().startswith(f"{head} ")]
        assert f" {bridge.targets_.shape[1]:,} targets" in line
    generator = pipe.networks.generator
    for module in (pipe.networks.vdvae, generator.unet, generator.vae):
        assert f" {sum(p.numel() for p in module.parameters()):,} parameters" in text
    assert text.splitlines()[-1] == "nothing was written (--dry-run)"


def test_dry_run_at_the_published_size_opens_no_network():
    arguments = ["fit", "brain_diffuser_official", "--data", "simulated_scenes_tiny", "--dry-run"]
    text = call(*arguments).stdout
    assert f" {91168 + (77 + 257) * 768:,} targets" in text
    assert f"({96 * 257 * 768 * 2} bytes)" in " ".join(text.split()) or "as float16" in text
    assert text.count("file not named yet") == 2
    assert "3 penalties" in text


def test_settings_and_options_that_do_not_fit(tmp_path):
    out = ["--out", tmp_path]
    place = ["--data", "simulated_scenes_tiny", *out]
    error = call("fit", "brain_diffuser_tiny", *place, "-s", "generator.stepps=3", code=2).stderr
    assert "generator.stepps: unknown key. Did you mean 'steps'?" in error
    for option in ("--targets", "--codes", "--weights", "--subjects", "--adapt-to", "--device"):
        error = call("fit", "brain_diffuser_tiny", *place, option, "1", code=2).stderr
        assert f"leave out {option}, which go with MinD-3D" in error
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\npipeline: brain-difuser\n")
    error = call("fit", recipe, *place, code=2).stderr
    assert "pipeline 'brain-difuser'" in error
    assert "Did you mean 'brain-diffuser'?" in error
    error = call("fit", "brain_diffuser_tiny", "--data", "simulated_tiny", *out, code=3).stderr
    assert "has no caption" in error or "10 frames a trial" in error
    assert not list(tmp_path.glob("brain*"))


def test_published_networks_are_asked_for_before_the_data_are_read(tmp_path, monkeypatch):
    fit = ["fit", "brain_diffuser_official", "--data", "nsd", "--root", tmp_path / "no_data"]
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    named = {"low_level.weights": here, "tokens.folder": here, "generator.folder": here}
    assert call(*fit, "--out", tmp_path, code=2).stderr.count("=PATH") == 3
    for key in named:
        rest = [f"-s{other}={path}" for other, path in named.items() if other != key]
        error = call(*fit, *rest, "--out", tmp_path, code=2).stderr
        assert error.count("\n") == 1
        assert f"{key} names none: give -s {key}=PATH" in error
        error = call(*fit, *rest, f"-s{key}={gone}", "--out", tmp_path, code=3).stderr
        assert f"{gone} does not exist; {key} names it" in error
    complete = [f"-s{key}={path}" for key, path in named.items()]
    devices = [f"{part}.device" for part in ("low_level", "tokens", "generator")]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    error = call(*fit, *complete, "--out", tmp_path, code=2).stderr
    assert f"{' and '.join(devices)} are cuda, and torch finds no such device" in error
    complete += [f"-s{key}=cpu" for key in devices]
    assert "no_data is not a folder" in call(*fit, *complete, "--out", tmp_path, code=3).stderr
    assert not list(tmp_path.glob("brain*"))


def test_other_networks_at_the_same_path_make_another_run(tmp_path):
    file, folder = tmp_path / "vdvae.th", tmp_path / "clip"
    file.write_bytes(b"one")
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "model").write_bytes(b"1234")
    names = [f"low_level.weights={file}", f"tokens.folder={folder}", f"generator.folder={folder}"]
    recipe = BrainDiffuser.from_recipe("brain_diffuser_official", names).recipe
    before = network_identities(recipe)
    assert set(before) == {"low_level.weights", "tokens.folder", "generator.folder"}
    assert network_identities(recipe) == before
    file.write_bytes(b"two")
    (folder / "text" / "model").write_bytes(b"12345")
    after = network_identities(recipe)
    assert all(after[key] != before[key] for key in before)
    assert network_identities(BrainDiffuser.from_recipe("brain_diffuser_tiny").recipe) == {}


# ---------------------------------------------------------------------------------- reconstruct


def test_test_pictures_become_items(decoded):
    table = decoded.items_table().query("task == @TASK")
    assert len(table) == 24
    assert set(table["status"]) == {"done"}
    stored = stored_pictures(decoded)
    assert all(one.averaged and one.simulated for one in stored)
    assert {one.picture.repeat for one in stored} == {3}
    assert {one.picture.image.size for one in stored} == {(64, 64)}
    assert all(one.picture.init_image.size == (64, 64) for one in stored)


def test_items_are_what_predict_gives(decoded, pipe, tested):
    recording, _ = tested
    few = recording.select(recording.trials["stimulus"].isin(["test-scene-00003"]).to_numpy())
    [picture] = pipe.predict(few)
    [one] = [one for one in stored_pictures(decoded) if one.picture.stimulus == "test-scene-00003"]
    difference = np.asarray(picture.image, int) - np.asarray(one.picture.image, int)
    assert np.abs(difference).max() <= 1  # another batch, so rounding alone


def test_means_stay_means_of_as_many_trials(copy, pipe, tested):
    """Of a data set that comes averaged, such as NSD's 37 sessions."""
    means = tested[0].mean_repeats().select([0, 1, 2])
    decode_pictures(copy, pipe, "model", means, Source.of("simulated_scenes_tiny", None, None))
    stored = stored_pictures(copy)
    assert [one.picture.repeat for one in stored] == [3, 3, 3]
    for one, picture in zip(stored, pipe.predict(means, seed=copy.seed), strict=True):
        assert one.picture.stimulus == picture.stimulus
        np.testing.assert_array_equal(one.picture.image, picture.image)


def test_a_second_reconstruct_and_evaluate_generate_nothing(decoded, monkeypatch):
    forbid(monkeypatch)
    assert (
        "24 of 24 items are decoded, 24 of them done" in call("reconstruct", decoded.folder).stdout
    )
    call("evaluate", decoded.folder)


def test_a_kill_loses_one_batch_and_nothing_else(copy, decoded, monkeypatch):
    generate = BrainDiffuser.generate

    def killed(self, *arguments, **options):
        if killed.left == 0:
            raise KeyboardInterrupt
        killed.left -= 1
        return generate(self, *arguments, **options)

    killed.left = 1
    monkeypatch.setattr(BrainDiffuser, "generate", killed)
    result = call("reconstruct", copy.folder, code=130)
    assert "run the same command again" in result.stderr
    assert copy.status()["done"] == 16
    monkeypatch.undo()
    assert "16 of them done before" in call("reconstruct", copy.folder).stdout
    assert contents(copy) == contents(decoded)


def test_a_trial_with_nan_fails_alone(copy, decoded, tested, monkeypatch):
    recording, stimuli = tested
    values = recording.array().copy()
    values[5, 100] = np.nan  # the first of three repeats of one picture
    broken = replace(recording, data=values)
    monkeypatch.setattr(Source, "open", lambda self, progress: (broken, stimuli))
    result = call("reconstruct", copy.folder, code=1)
    assert "1 of 24 items failed" in result.stderr
    assert "test-scene-00005" in result.stderr
    assert "NaN" in result.stderr
    table = copy.items_table()
    assert table["status"].value_counts().to_dict() == {"done": 23, "failed": 1}
    assert "NaN" in table[table["status"] == "failed"]["error"].item()
    monkeypatch.undo()
    call("reconstruct", copy.folder)
    done = set(copy.items_table().query("status == 'done'")["key"])
    assert done == set(decoded.items_table().query("task == @TASK")["key"])


def test_single_trials_are_other_items_and_scored_apart(copy, pipe, tested):
    recording, _ = tested
    few = recording.select(np.arange(recording.n_trials) % 24 < 3)  # 3 pictures, 3 repeats each
    source, model = Source("simulated_scenes_tiny"), model_fingerprint(copy.folder)
    for average, count in ((False, 9), (True, 3)):
        found = decode_pictures(copy, pipe, model, few, source, average=average)
        assert (found.items, found.before, found.done) == (count, 0, count)
    text = call("evaluate", copy.folder).stdout
    assert "simulated_scenes_tiny, simulated: 3 pictures" in text
    assert "simulated_scenes_tiny, single trials, simulated: 9 pictures" in text
    scores = copy.read_scores().query("condition == @OURS")
    assert scores.groupby("data").size().tolist() == [3, 9]


def test_statistics_of_the_test_set_make_every_trial_count(copy, pipe, tested):
    recording, _ = tested
    source, model = Source("simulated_scenes_tiny"), model_fingerprint(copy.folder)
    three = recording.select(np.arange(3))
    transductive = BrainDiffuser(
        replace(pipe.recipe, decoder=replace(pipe.recipe.decoder, standardise="test"))
    )
    transductive.networks, transductive.input = pipe.networks, pipe.input
    transductive.heads = pipe.heads
    counts = []
    for one in (pipe, transductive):
        decode_pictures(copy, one, model, three, source)
        counts.append(decode_pictures(copy, one, model, recording.select([0, 1]), source).before)
    assert counts == [2, 0]


def test_other_voxels_are_refused_before_any_item(copy, tmp_path):
    root = tmp_path / "other"
    root.mkdir()
    rows = []
    for k in range(3):
        np.save(root / f"{k}.npy", np.random.default_rng(k).normal(size=7).astype(np.float32))
        rows.append((f"{k}.npy", f"thing{k}", "test"))
    pd.DataFrame(rows, columns=["path", "stimulus", "split"]).to_csv(root / "manifest.csv")
    result = call("reconstruct", copy.folder, "--data", "csv", "--root", root, code=3)
    assert "has 7 voxels" in result.stderr
    assert "fitted on 8921 voxels of subject sim-01" in result.stderr
    assert copy.status()["items"] == 0


def test_a_file_of_one_or_several_trials(fresh, decoded, tested, tmp_path):
    betas = tested[0].mean_repeats().array()[:2]
    model = ["--model", fresh[0].folder]
    np.save(tmp_path / "two.npy", betas.astype(np.float64))
    text = call("reconstruct", tmp_path / "two.npy", tmp_path / "out", *model).stdout
    assert "voxels are taken as the 8921 of the mask of subject sim-01" in text
    table = pd.read_csv(tmp_path / "out" / "reconstructions.csv")
    assert list(table["stimulus"]) == ["two-000", "two-001"]
    for name in table["picture"]:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.size == (64, 64)
    np.save(tmp_path / "one.npy", betas[0])
    one = tmp_path / "one.png"
    model = ["--model", fresh[0].folder / "model"]
    assert call("reconstruct", tmp_path / "one.npy", one, *model).stdout.splitlines()[-1] == str(
        one
    )
    (tmp_path / "list.csv").write_text("path,stimulus\none.npy,a\none.npy,a\none.npy,b\n")
    call("reconstruct", tmp_path / "list.csv", tmp_path / "listed", *model)
    table = pd.read_csv(tmp_path / "listed" / "reconstructions.csv")
    assert table[["picture", "repeats"]].to_numpy().tolist() == [["a.png", 2], ["b.png", 1]]


@pytest.mark.parametrize(
    ("values", "sentence", "code"),
    [
        (np.zeros((2, 7)), "has 7 voxels; this model was fitted on 8921", 2),
        (np.zeros((2, 10, 8921)), "reads one number a trial and voxel", 2),
        (np.full((2, 8921), np.nan), "NaN", 3),
        (np.zeros((2, 8921)), "is one picture; name a folder", 2),
    ],
)
def test_files_that_do_not_fit(fresh, tmp_path, values, sentence, code):
    np.save(tmp_path / "in.npy", values.astype(np.float32))
    arguments = [tmp_path / "in.npy", tmp_path / "o.png", "--model", fresh[0].folder]
    assert sentence in call("reconstruct", *arguments, code=code).stderr
    assert not (tmp_path / "o.png").exists()


def test_a_file_for_a_model_of_several_people(pipe, tmp_path):
    several = copy_of(pipe)
    several.input = SimpleNamespace(subject="sim-01 and sim-02")
    with pytest.raises(UsageError, match=r"several people \(sim-01 and sim-02\)"):
        reconstruct_betas(tmp_path / "a.npy", tmp_path / "out", several)


def test_kinds_of_files_that_are_not_read(fresh, tmp_path):
    for name, sentence in (
        ("a.nii.gz", "does not say which voxels"),
        ("a.txt", "no file of betas"),
    ):
        (tmp_path / name).write_text("x")
        arguments = [tmp_path / name, tmp_path / "o", "--model", fresh[0].folder]
        assert sentence in call("reconstruct", *arguments, code=2).stderr
    arguments = [tmp_path / "none.npy", tmp_path / "o", "--model", fresh[0].folder]
    assert "does not exist" in call("reconstruct", *arguments, code=3).stderr
    error = call("reconstruct", *arguments, "--single-trials", code=2).stderr
    assert "--single-trials goes with a run folder" in error


# ----------------------------------------------------------------- evaluate and report


def test_scores_have_one_row_an_item_and_condition(decoded):
    scores = decoded.read_scores()
    assert not scores.duplicated(["key", "condition"]).any()
    names = {OURS, MEAN, RANDOM, SHUFFLED, LOW, MEAN_FEATURES, CEILING}
    assert set(scores["condition"]) == names
    ours = set(decoded.items_table().query("task == @TASK")["key"])
    for _, part in scores.groupby("condition"):
        assert set(part["key"]) == ours
    assert scores["PixCorr"].between(-1, 1).all()
    sets = decoded.read_set_scores()
    assert set(sets["condition"]) == names | {"chance"}
    assert (sets["n"] == 24).all()
    means = scores.groupby("condition")["PixCorr"].mean()
    told = sets[sets["metric"] == "PixCorr"].set_index("condition")["mean"]
    pd.testing.assert_series_equal(told[list(means.index)], means, check_names=False)


def test_anchors_are_what_they_say(decoded, pipe, tested):
    _, stimuli = tested
    low = {one.key: one.picture.init_image for one in stored_pictures(decoded)}
    assert len(low) == 24
    ceiling = {one.picture.stimulus: one.picture for one in stored_pictures(decoded, TRUE_TASK)}
    name = "test-scene-00007"
    true = pipe.true_features(stimuli, [name], seed=decoded.seed)
    [made] = pipe.generate(true, [("sim-01", name, 3)], seed=decoded.seed)
    difference = np.asarray(made.image, int) - np.asarray(ceiling[name].image, int)
    assert np.abs(difference).max() <= 1
    blind = [one.picture for one in stored_pictures(decoded, MEAN_TASK)]
    assert len(blind) == len(ceiling) == 24
    pixels = {one.image.tobytes() for one in blind}
    assert len(pixels) == 24  # each with its own noise


def test_a_broken_item_is_named(copy, tested, pipe):
    few = tested[0].select(np.arange(2))
    decode_pictures(copy, pipe, "hash", few, Source("simulated_scenes_tiny"))
    [first, _] = sorted(copy.folder.glob("items/??/*"))
    about = json.loads((first / image_items.ABOUT).read_text())
    text = json.dumps({**about, "sample": None})
    (first / image_items.ABOUT).write_text(text)
    seal = json.loads((first / "done.json").read_text())
    (first / "done.json").write_text(json.dumps(seal).replace(image_items.ABOUT, "gone.json"))
    assert len(stored_pictures(copy)) == 1  # its seal is broken: to be made again


def test_evaluate_by_protocols_and_what_is_refused(decoded, fresh, tmp_path):
    run = Run.open(shutil.copytree(decoded.folder, tmp_path / "again"))
    text = call("evaluate", run.folder, "--protocol", "mindeye-2023").stdout
    assert "24 pictures, by mindeye-2023" in text
    assert "split: core (sim-01)" in text
    assert "clusters are the 4 categories" in text
    assert set(run.read_scores()["protocol"]) == {"mindeye-2023"}
    call("report", run.folder, "--out", tmp_path / "p.html")
    numbers = json.loads((tmp_path / "p.json").read_text())
    assert any("the data are simulated" in note for note in numbers["notes"])
    assert "Published figures" not in [table["title"] for table in numbers["tables"]]
    error = call("report", run.folder, decoded.folder, "--out", tmp_path / "q.html", code=2).stderr
    assert "scores of two protocols do not go into one table" in error
    error = call("evaluate", run.folder, "--protocol", "mind3d-2024", code=2).stderr
    assert "no protocol 'mind3d-2024' for pictures" in error
    assert "--full is for objects" in call("evaluate", run.folder, "--full", code=2).stderr
    missing = call("evaluate", run.folder, "--weights", tmp_path / "none", code=3).stderr
    assert "is no folder" in missing
    for verb in (["evaluate"], ["report", "--out", tmp_path / "n.html"]):
        result = call(verb[0], fresh[0].folder, *verb[1:], code=3)
        assert "holds no picture; run `neurodiff reconstruct" in result.stderr


def test_report_shows_pictures_beside_what_was_shown(decoded, tmp_path):
    page = tmp_path / "page.html"
    assert call("report", decoded.folder, "--out", page).stdout.splitlines()[-1] == str(page)
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers == decoded.read_report_json()
    assert numbers["simulated"] is True
    assert [len(grid["items"]) for grid in numbers["grids"]] == [24, 4, 4, 4]
    scores = decoded.read_scores().query("condition == @OURS")
    ours = numbers["conditions"][OURS]["metrics"]["PixCorr"]
    assert ours["mean"] == pytest.approx(scores["PixCorr"].mean())
    assert numbers["conditions"][CEILING]["role"] == "ceiling"
    stages = {gate["stage"] for gate in numbers["gates"]}
    assert {"vdvae", "autoencoder", "generator", "decoder, text"} <= stages
    html = page.read_text()
    assert "imulated" in html
    assert html.count("data:image/") >= 24 * 4
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_report_of_two_runs_and_of_two_pipelines(decoded, tmp_path):
    other = shutil.copytree(decoded.folder, tmp_path / "other")
    call("report", decoded.folder, other, "--out", tmp_path / "two.html")
    numbers = json.loads((tmp_path / "two.json").read_text())
    label = "other, simulated_scenes_tiny"
    assert f"Scores of {label}" in [table["title"] for table in numbers["tables"]]
    assert sum(line.startswith(label) for line in numbers["headline"]) >= 2
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace("pipeline: brain-diffuser\n", ""))
    error = call("report", decoded.folder, other, "--out", tmp_path / "p.html", code=2).stderr
    assert "one page is about runs of one pipeline" in error
    result = call("report", decoded.folder, decoded.folder, "--out", tmp_path / "p.html", code=2)
    assert "each run once" in result.stderr


def test_evaluate_of_the_library_tells_pictures_from_meshes(decoded, tested):
    _, stimuli = tested
    pictures = [one.picture for one in stored_pictures(decoded)]
    found = nd.evaluate(pictures, stimuli, protocol="neurodiff-1")
    scores = decoded.read_scores().query("condition == @OURS").set_index("stimulus")
    np.testing.assert_allclose(
        found.table["PixCorr"], scores["PixCorr"][found.table["stimulus"]], rtol=1e-12
    )
    with pytest.raises(UsageError, match="for pictures"):
        nd.evaluate(pictures, stimuli, protocol="mind3d-2024")
    with pytest.raises(UsageError, match="full is for meshes"):
        nd.evaluate(pictures, stimuli, full=True)
    with pytest.raises(UsageError, match="something else"):
        nd.evaluate([pictures[0], "mesh"], stimuli)


def test_stimuli_without_a_picture_are_listed_and_not_scored(
    decoded, tested, tmp_path, monkeypatch
):
    run = Run.open(shutil.copytree(decoded.folder, tmp_path / "blind"))
    _, stimuli = tested
    lost = "test-scene-00004"

    def load(name):
        if name == lost:
            raise FileNotFoundError(name)
        return stimuli.load_image(name)

    monkeypatch.setattr(Source, "stimuli", lambda self: Stimuli(stimuli.table, None, load))
    text = call("evaluate", run.folder).stdout
    assert f"no truth (no picture) for 1 stimuli: {lost}" in text
    assert ", n 23 pictures" in text
    page = tmp_path / "page.html"
    call("report", run.folder, "--out", page)
    grids = json.loads(page.with_suffix(".json").read_text())["grids"]
    assert len(grids[0]["items"]) == 23
    monkeypatch.setattr(Source, "stimuli", lambda self: Stimuli(stimuli.table, None, None))
    text = call("evaluate", run.folder).stdout
    assert "no truth: none of these stimuli has a picture" in text
    assert set(run.read_scores()["condition"]) == {OURS}
    error = call("report", run.folder, "--out", tmp_path / "none.html", code=3).stderr
    assert "no item of these runs has a true picture" in error


def test_published_figures_stand_beside_comparable_scores_only(decoded):
    run = Run.open(decoded.folder)
    [group] = read_image_scores(run)
    real = replace(group, pictures=tuple(replace(p, simulated=False) for p in group.pictures))
    run.info["trained on"]["sessions"] = 37
    table, notes = published_beside(run, real, "brain-diffuser-2023")
    assert list(table.index) == [
        "Brain-Diffuser (37 sessions)",
        "simulated_scenes_tiny (37 sessions)",
    ]
    means = group.conditions.evaluations[OURS].table
    assert table["PixCorr"].iloc[1] == pytest.approx(means["PixCorr"].mean())
    assert table["SSIM"].iloc[1] == pytest.approx(means["SSIM columns"].mean())
    assert table["CLIP"].iloc[1] == "not computed"
    assert notes == []
    for changed, word in ((group, "simulated"), (real, "13 sessions")):
        run.info["trained on"]["sessions"] = 37 if changed is group else 13
        table, notes = published_beside(run, changed, "brain-diffuser-2023")
        assert table is None
        assert any(word in note for note in notes)


def test_an_evaluation_that_was_killed_makes_only_the_rest(copy, pipe, tested, monkeypatch):
    few = tested[0].select(np.arange(20))  # two batches of each anchor
    model, source = model_fingerprint(copy.folder), Source("simulated_scenes_tiny")
    decode_pictures(copy, pipe, model, few, source)
    generate, sizes = BrainDiffuser.generate, []

    def counted(self, features, *arguments, **options):
        if len(sizes) == 3:
            raise KeyboardInterrupt
        sizes.append(len(features))
        return generate(self, features, *arguments, **options)

    monkeypatch.setattr(BrainDiffuser, "generate", counted)
    call("evaluate", copy.folder, code=130)
    assert sizes == [16, 4, 16]
    sizes.clear()
    call("evaluate", copy.folder)
    assert sizes == [4]
    tasks = copy.items_table()["task"].value_counts().to_dict()
    assert tasks == {TASK: 20, MEAN_TASK: 20, TRUE_TASK: 20}
