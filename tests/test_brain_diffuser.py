"""Brain-Diffuser from end to end on a few simulated scenes."""

import shutil
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from neurodiff.core.config import dump
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.core.spaces import VectorSpace
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.simulated.scene_subject import (
    SceneFeatureSpace,
    plant_scene_subject,
    record_betas,
)
from neurodiff.datasets.simulated.scenes import make_scenes
from neurodiff.pipelines.brain_diffuser import BrainDiffuser
from neurodiff.pipelines.brain_diffuser_files import model_fingerprint
from neurodiff.pipelines.brain_diffuser_settings import HEADS
from neurodiff.pipelines.pictures import picture_sheet
from neurodiff.pipelines.roi_scenes import roi_scenes

FASTER = (
    *(f"{part}.training.steps=2" for part in ("low_level", "generator", "generator.autoencoder")),
    *(f"{part}.training.batch_size=4" for part in ("low_level", "generator")),
    "generator.steps=3",
    "generator.batch=3",
)


def recipe_of(*overrides):
    return BrainDiffuser.from_recipe("brain_diffuser_tiny", [*FASTER, *overrides])


def pixels(pictures):
    return np.stack([np.asarray(one.image) for one in pictures])


def assert_same(some, others):
    """Equal but for rounding: products of arrays that lie elsewhere in memory may differ in it."""
    assert np.abs(pixels(some).astype(int) - pixels(others)).max() <= 1


@pytest.fixture(scope="module")
def world():
    """(training trials, test trials, stimuli of both), some hundred vertices of areas that know."""
    train = make_scenes(30, split="train", seed=0)
    test = make_scenes(5, split="test", seed=0)
    space = SceneFeatureSpace(train)
    planted = plant_scene_subject(space(train), median_ceiling=0.6)
    recordings = [
        record_betas(planted, space(part), part.ids, split=name, repeats=2).roi("V1", "FFC", "PHA1")
        for part, name in ((train, "train"), (test, "test"))
    ]
    return *recordings, train.stimuli(), test.stimuli()


@pytest.fixture(scope="module")
def pipe(world):
    return recipe_of().fit(world[0], world[2], seed=0)


@pytest.fixture(scope="module")
def pictures(pipe, world):
    return pipe.predict(world[1])


def test_one_picture_an_image(pictures, world, pipe):
    ids = list(dict.fromkeys(world[1].trials["stimulus"]))
    assert [one.stimulus for one in pictures] == ids
    assert {one.subject for one in pictures} == {"sim-01"}
    for one in pictures:
        assert one.image.size == one.init_image.size == (64, 64)
        assert one.image.mode == "RGB"
    assert len(np.unique(pixels(pictures), axis=0)) == len(ids)
    assert len(pipe.predict(world[1], average=False)) == world[1].n_trials
    twice = pipe.predict(world[1].select([0, 5]), samples=2)
    assert [one.sample for one in twice] == [0, 1]
    assert not np.array_equal(*pixels(twice))


def test_the_same_item_is_the_same_picture_in_any_company(pipe, world, pictures):
    """Alone, in another order and in other batches, up to the rounding of a batch."""
    means = world[1].mean_repeats()
    order = [4, 2, 0, 3, 1]
    other = pipe.predict(means.select(order))
    assert [one.stimulus for one in other] == [pictures[k].stimulus for k in order]
    far = np.abs(pixels(other).astype(int) - pixels(pictures)[order])
    assert far.max() <= 1
    alone = pipe.predict(means.select([2]))
    assert np.abs(pixels(alone).astype(int) - pixels(pictures)[2:3]).max() <= 1
    again = pipe.predict(world[1])
    np.testing.assert_array_equal(pixels(again), pixels(pictures))
    assert not np.array_equal(pixels(pipe.predict(world[1], seed=1)), pixels(pictures))


def test_pictures_on_one_sheet(pictures, tmp_path):
    sheet = picture_sheet([one.image for one in pictures], [pictures[0].init_image], gap=3)
    assert sheet.size == (5 * 67 - 3, 2 * 67 - 3)
    np.testing.assert_array_equal(np.asarray(sheet)[:64, 67:131], np.asarray(pictures[1].image))
    assert (np.asarray(sheet)[67:, 67:] == 255).all()
    with pytest.raises(ValueError, match="no picture to show"):
        picture_sheet([], [])
    paths = pictures.save(tmp_path)
    assert [path.suffix for path in paths] == [".png"] * 5
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(paths[2])), pixels(pictures)[2])
    assert pictures.show(1) is pictures[1].image


def test_a_second_fit_from_the_same_seed_is_the_same(pipe, world, pictures):
    again = recipe_of().fit(world[0], world[2], seed=0)
    assert_same(again.predict(world[1]), pictures)
    other = recipe_of().fit(world[0], world[2], seed=1)
    assert not np.array_equal(pixels(other.predict(world[1])), pixels(pictures))


def test_heads_are_ridge_in_closed_form(pipe, world):
    """Text head: z-scored betas, one linear solve, statistics of leave-one-out by a loop."""
    means = world[0].mean_repeats()
    x = means.array().astype(float)
    z = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    y = pipe.networks.text.text([world[2].captions(i) for i in means.trials["stimulus"]])
    y = y.reshape(len(y), -1).astype(float)
    head = pipe.heads["text"]

    def solved(rows, new):
        zc, yc = z[rows] - z[rows].mean(0), y[rows] - y[rows].mean(0)
        dual = np.linalg.solve(zc @ zc.T + head.alpha_ * np.eye(len(zc)), yc)
        return (new - z[rows].mean(0)) @ zc.T @ dual + y[rows].mean(0)

    every = np.arange(len(z))
    loo = np.concatenate([solved(every != k, z[k : k + 1]) for k in every])
    new = (world[1].mean_repeats().array() - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    raw = solved(every, new)
    varies = y.std(axis=0) > 0
    want = (raw - loo.mean(0)) / np.where(varies, loo.std(0), 1) * y.std(0) + y.mean(0)
    found = pipe.predict_features(world[1].mean_repeats()).text.reshape(len(new), -1)
    np.testing.assert_allclose(found[:, varies], want[:, varies], atol=2e-3)


def test_true_features_are_those_of_the_encoders(pipe, world):
    ids = world[3].ids[:2]
    true = pipe.true_features(world[3], ids)
    captions = [world[3].captions(i) for i in ids]
    np.testing.assert_array_equal(true.text, pipe.networks.text.text(captions))
    np.testing.assert_array_equal(
        true.vision, pipe.networks.vision.vision([world[3][i].image() for i in ids])
    )
    assert true.vdvae.shape == (2, *pipe.networks.shape_of("vdvae"))
    np.testing.assert_array_equal(true.take([1]).vdvae[0], true.vdvae[1])
    other = pipe.true_features(world[3], ids[::-1])
    np.testing.assert_allclose(other.vdvae[::-1], true.vdvae, atol=1e-5)


# ------------------------------------------------------------------------------ on disk


def test_a_saved_model_predicts_the_same(pipe, world, pictures, tmp_path):
    folder = pipe.save_pretrained(tmp_path / "model")
    again = BrainDiffuser.from_pretrained(folder)
    assert_same(again.predict(world[1]), pictures)
    assert again.recipe == pipe.recipe
    assert again.gates == pipe.gates
    shutil.move(folder, tmp_path / "elsewhere")
    moved = BrainDiffuser.from_pretrained(tmp_path / "elsewhere")
    assert_same(moved.predict(world[1]), pictures)
    assert model_fingerprint(pipe.save_pretrained(tmp_path / "twice")) == model_fingerprint(
        tmp_path / "elsewhere"
    )
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_model_of_several_people_there_and_back(pipe, world, tmp_path):
    train, test, stimuli, _ = world
    other = replace(train, trials=train.trials.assign(subject="sim-02"))
    shared = pipe_of(pipe).fit_across([train, other], stimuli, latents=12)
    pictures = shared.predict(test)
    again = BrainDiffuser.from_pretrained(shared.save_pretrained(tmp_path / "model"))
    assert_same(again.predict(test), pictures)
    masks = {area: test.rois[area] for area in ("FFC", "PHA1")}
    scenes = roi_scenes(again, masks, subject="sim-02")
    assert [one.subject for one in scenes["FFC"]] == ["sim-02"]
    with pytest.raises(UsageError, match=r"layers of sim-01, sim-02.*name one of them"):
        roi_scenes(again, masks)


@pytest.mark.parametrize(
    "file",
    ["brain_input/model.safetensors", "vdvae/model.safetensors", "decoder/text/statistics.npy"],
)
def test_changed_and_missing_files_are_told(pipe, tmp_path, file):
    folder = pipe.save_pretrained(tmp_path / "model")
    path = folder / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} is not the file that model_index.json lists"):
        BrainDiffuser.from_pretrained(folder)
    path.unlink()
    with pytest.raises(MissingDataError, match=f"{path.name} is missing"):
        BrainDiffuser.from_pretrained(folder)


def test_other_folders_are_no_model(pipe, tmp_path):
    with pytest.raises(MissingDataError, match=r"has no model_index\.json"):
        BrainDiffuser.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"format": "neurodiff-mind3d-1"}')
    with pytest.raises(DataError, match="is of another pipeline or version"):
        BrainDiffuser.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is no Brain-Diffuser model; name a new folder"):
        pipe.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="call fit before save_pretrained"):
        recipe_of().save_pretrained(tmp_path / "new")


class Lines(Progress):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def run_of(tmp_path):
    def make(pipe, name="run"):
        return Run.create(
            tmp_path / name, dump(pipe.recipe), {"data": "scenes"}, command="fit", seed=0
        )

    return make


def test_a_second_fit_repeats_no_stage(world, run_of, monkeypatch, pictures):
    first = recipe_of()
    first.fit(world[0], world[2], run=run_of(first))
    done = sorted(path.parent.name.rsplit("-", 1)[0]
                  for path in run_of(first).folder.rglob("done.json"))  # fmt: skip
    assert done == ["autoencoder", "generator", "targets_text", "targets_vdvae", "targets_vision",
                    "vdvae", "vision_axes"]  # fmt: skip
    assert_same(first.predict(world[1]), pictures)
    from neurodiff.pipelines import brain_diffuser_training as training
    from neurodiff.pipelines.brain_diffuser_networks import Networks

    def never(*args, **options):
        raise AssertionError("was done before")

    monkeypatch.setattr(training, "train", never)
    monkeypatch.setattr(Networks, "encode", never)
    told = Lines()
    second = recipe_of()
    second.fit(world[0], world[2], run=run_of(second), progress=told)
    assert sum("done before" in line for line in told.lines) == 4
    assert_same(second.predict(world[1]), pictures)
    assert [gate["stage"] for gate in second.gates] == [gate["stage"] for gate in first.gates]


def test_a_run_can_be_moved_and_its_targets_are_watched(world, run_of, tmp_path, pictures):
    pipe = recipe_of("decoder.stored=float16")
    run = run_of(pipe)
    pipe.fit(world[0], world[2], run=run)
    for head in HEADS:
        assert pipe.heads[head].targets_.path is not None
    stored = next(run.folder.glob("stages/targets_text-*/targets.npy"))
    assert np.load(stored, mmap_mode="r").dtype == np.float16
    # half precision moves no feature by more than its rounding
    features = pipe.predict_features(world[1].mean_repeats())
    pipe.save_pretrained(run.folder / "model")
    shutil.move(run.folder, tmp_path / "moved")
    again = BrainDiffuser.from_pretrained(tmp_path / "moved")
    np.testing.assert_array_equal(again.predict_features(world[1].mean_repeats()).text,
                                  features.text)  # fmt: skip
    moved = tmp_path / "moved" / stored.relative_to(run.folder)
    values = np.load(moved)
    values[0, 0, 0] += 1
    np.save(moved, values)
    with pytest.raises(DataError, match="SHA-256"):
        BrainDiffuser.from_pretrained(tmp_path / "moved")
    moved.unlink()
    with pytest.raises(MissingDataError, match=r"text decoder .* copy its whole run folder"):
        BrainDiffuser.from_pretrained(tmp_path / "moved")


def test_half_precision_targets_change_little(pipe, world, run_of):
    half = recipe_of("decoder.stored=float16")
    half.fit(world[0], world[2], run=run_of(half, "half"))
    means = world[1].mean_repeats()
    for head in ("text", "vision"):
        one, other = (getattr(p.predict_features(means), head) for p in (half, pipe))
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9999


# ------------------------------------------------------------------------------ wrong input


def test_one_trial_alone(world, pipe):
    """Under "loo" it is what it is among others; under "test" there is no spread to take."""
    means = world[1].mean_repeats()
    alone = pipe.predict_features(means.select([1]))
    for head in HEADS:
        np.testing.assert_allclose(
            getattr(alone, head)[0], getattr(pipe.predict_features(means), head)[1], atol=1e-3
        )
    other = recipe_of("decoder.standardise=test", "protocol=brain-diffuser-2023")
    other.networks = pipe.networks
    other.fit_brain(world[0], world[2])
    assert other.predict_features(means).text.shape[0] == 5
    with pytest.raises(DataError, match="takes mean and spread from the test trials and got 1"):
        other.predict_features(means.select([1]))


def test_wrong_recordings_are_told(world, pipe):
    train, test, stimuli, _ = world
    data = train.array().copy()
    both = train.trials.copy()
    both.loc[:3, "subject"] = "sim-02"
    with pytest.raises(DataError, match="of 2 subjects"):
        pipe_of(pipe).fit_brain(replace(train, trials=both), stimuli)
    frames = np.repeat(data[:, None], 10, axis=1)
    with pytest.raises(DataError, match="10 frames a trial"):
        pipe_of(pipe).fit_brain(replace(train, data=frames), stimuli)
    data[:, 7] = 1
    with pytest.raises(DataError, match=r"1 of \d+ voxels never vary .*voxel 7"):
        pipe_of(pipe).fit_brain(replace(train, data=data), stimuli)
    broken = test.array().copy()
    broken[2, 5] = np.nan
    with pytest.raises(DataError, match=r"1 values are NaN or infinite.*trial 2, voxel 5"):
        pipe.predict(replace(test, data=broken), average=False)
    with pytest.raises(DataError, match="in another mask or space"):
        pipe.predict(test.roi("V1"))
    with pytest.raises(DataError, match="in another mask or space"):
        pipe.predict(replace(test, space=VectorSpace(test.n_features)))


def pipe_of(fitted):
    """A pipeline with the networks of another, and no decoder."""
    new = recipe_of()
    new.networks = fitted.networks
    return new


def test_stimuli_without_picture_or_caption_are_told(world, pipe):
    train, _, stimuli, _ = world
    name = stimuli.ids[3]
    silent = stimuli.table.copy()
    silent["captions"] = [() if i == name else c for i, c in
                          zip(silent["id"], silent["captions"], strict=True)]  # fmt: skip
    silent.loc[silent["id"] == name, "caption"] = ""
    with pytest.raises(DataError, match=f"{name}' has no caption"):
        pipe_of(pipe).fit_brain(train, Stimuli(silent, None, stimuli.load_image))
    with pytest.raises(DataError, match="image"):
        pipe_of(pipe).fit_brain(train, Stimuli(stimuli.table, None, None))
    few = stimuli.table[stimuli.table["id"] != name]
    with pytest.raises(UsageError, match=f"there is no stimulus '{name}'"):
        pipe_of(pipe).fit_brain(train, Stimuli(few, None, stimuli.load_image))


def test_what_is_not_fitted_is_told(world):
    for call in (recipe_of().predict, recipe_of().predict_features):
        with pytest.raises(UsageError, match="not fitted"):
            call(world[1])
    with pytest.raises(UsageError, match="has no networks"):
        recipe_of().true_features(world[3], world[3].ids)


# ------------------------------------------------------------------------------ recipes


def test_the_published_recipe_has_the_quirks_on():
    recipe = BrainDiffuser.from_recipe("brain_diffuser_2023").recipe
    assert recipe.protocol == "brain-diffuser-2023"
    decoder = recipe.decoder
    assert decoder.standardise == "test"
    assert [getattr(decoder, head).alphas for head in HEADS] == [(5e4,), (1e5,), (6e4,)]
    assert all(getattr(decoder, head).absolute for head in HEADS)
    generator = recipe.generator
    assert (generator.strength, generator.guidance, generator.mix) == (0.75, 7.5, 0.4)
    assert (generator.steps, generator.side, recipe.low_level.latents) == (50, 512, 31)
    official = BrainDiffuser.from_recipe("brain_diffuser_official").recipe
    assert (official.protocol, official.decoder.standardise) == ("neurodiff-1", "loo")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((), r"tokens\.folder names no folder"),
        (("tokens.kind=plain", "tokens.width=32"), r"low_level\.weights names no file"),
    ],
)
def test_the_published_networks_have_to_be_named(world, overrides, sentence):
    pipe = BrainDiffuser.from_recipe("brain_diffuser_2023", list(overrides))
    with pytest.raises(UsageError, match=sentence):
        pipe.fit(world[0], world[2])


def test_named_files_that_are_not_there(world, tmp_path):
    gone = tmp_path / "gone.th"
    pipe = BrainDiffuser.from_recipe(
        "brain_diffuser_2023", ["tokens.kind=plain", f"low_level.weights={gone}"]
    )
    with pytest.raises(MissingDataError, match=r"gone\.th"):
        pipe.fit(world[0], world[2])
    pipe = BrainDiffuser.from_recipe("brain_diffuser_2023", [f"tokens.folder={tmp_path / 'clip'}"])
    with pytest.raises(MissingDataError, match="clip"):
        pipe.fit(world[0], world[2])
    pipe = recipe_of()
    pipe = BrainDiffuser(
        replace(pipe.recipe, generator=replace(pipe.recipe.generator, training=None))
    )
    with pytest.raises(UsageError, match=r"generator\.folder names no folder"):
        pipe.fit(world[0], world[2])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["protocol=brain-diffuser-2023"], "set decoder.standardise=test"),
        (["low_level.latents=5"], "this VDVAE has 4 blocks"),
        (["low_level.latents=0"], "this VDVAE has 4 blocks"),
        (["generator.autoencoder=null"], "needs generator.autoencoder"),
        (["decoder.standardize=loo"], "standardize"),
        (["decoder.text.alphas=[-1.0]"], r"decoder\.text\.alphas is \[-1\.0\]"),
        (["decoder.vdvae.alphas=[]"], r"decoder\.vdvae\.alphas is \[\]"),
        (["low_level.temperature=-1.0"], r"low_level\.temperature is -1"),
        (["low_level.training.steps=0"], r"low_level\.training: steps is 0"),
        (["generator.training.learning_rate=0.0"], "learning_rate is 0"),
        (["generator.autoencoder.training.batch_size=0"], "batch_size is 0"),
        (["generator.steps=0"], r"generator\.steps is 0"),
        (["generator.strength=2.0"], r"generator\.strength is 2"),
        (["generator.mix=1.5"], r"generator\.mix is 1\.5"),
        (["generator.batch=0"], r"generator\.batch is 0"),
        (["generator.condition_dropout=2.0"], r"generator\.condition_dropout is 2"),
        (["generator.side=60"], "need a multiple of 16"),
        (["generator.unet.latent_channels=8"], "give both the same"),
        (["generator.unet.groups=7"], "no multiple of 7 groups"),
        (["generator.autoencoder.groups=7"], "multiples of its 7 groups"),
        (["tokens.width=16"], "tokens of kind plain have 16 and 16"),
        (
            ["protocol=brain-diffuser-2023", "decoder.standardise=test", "generator.strength=1.0"],
            "starts at the noisiest",
        ),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(overrides, sentence):
    with pytest.raises(UsageError, match=sentence):
        recipe_of(*overrides)
