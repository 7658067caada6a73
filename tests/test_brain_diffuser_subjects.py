"""Several people: the shared space in closed form, and what a new person's layer is worth."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import VectorSpace
from neurodiff.datasets.simulated.scene_subject import SceneFeatureSpace, plant_scene_subject
from neurodiff.datasets.simulated.scenes import make_scenes
from neurodiff.datasets.simulated.subject import beta_variance
from neurodiff.features.plain_tokens import PatchTokens, WordTokens
from neurodiff.metrics.identification import feature_identification
from neurodiff.models.vdvae import VDVAE
from neurodiff.pipelines.brain_diffuser import BrainDiffuser
from neurodiff.pipelines.brain_diffuser_files import _load_input, _save_input
from neurodiff.pipelines.brain_diffuser_networks import Networks
from neurodiff.pipelines.brain_diffuser_subjects import SharedInput, components_of

AREAS = ("V1", "V4", "LO2", "FFC", "VVC", "PH", "PHA1", "PHA2", "VMV1", "VMV3")


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(150, split="train", seed=0), make_scenes(40, split="test", seed=0)


@pytest.fixture(scope="module")
def hear(scenes):
    """(subject, rows) -> training and test responses of the areas that know, as recordings."""
    space = SceneFeatureSpace(scenes[0])
    features = [space(part) for part in scenes]

    def record(subject, rows=slice(None)):
        planted = plant_scene_subject(features[0], subject=subject, median_ceiling=0.3)
        keep = np.any([planted.cortex.area(area) for area in AREAS], axis=0)
        rng = np.random.default_rng(subject)
        found = []
        for part, f, split in zip(scenes, features, ("train", "test"), strict=True):
            signal = planted.signal(f)[:, keep]
            noise = np.sqrt(beta_variance(planted.rho)) * rng.standard_normal(signal.shape)
            table = pd.DataFrame({"subject": f"sim-{subject:02d}", "session": 1, "run": 1,
                                  "stimulus": part.ids, "repeat": 1, "split": split})  # fmt: skip
            data = (signal + noise).astype(np.float32)
            found.append(Recording(data, table, {}, VectorSpace(int(keep.sum())), "a.u."))
        return found[0].select(np.arange(len(scenes[0]))[rows]), found[1]

    return record


@pytest.fixture(scope="module")
def base(scenes):
    """Networks without training; the generator is not asked."""
    pipe = BrainDiffuser.from_recipe("brain_diffuser_tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vdvae = VDVAE(pipe.recipe.low_level.size).eval()
    stimuli = scenes[0].stimuli()
    patches = PatchTokens(grid=2, width=32).fit([stimuli[i].image() for i in stimuli.ids[:60]])
    pipe.networks = Networks(pipe.recipe, vdvae, WordTokens(width=32), patches, None)
    return pipe


@pytest.fixture(scope="module")
def group(base, hear, scenes):
    """Two people, who saw overlapping halves."""
    recordings = [hear(1, slice(0, 110))[0], hear(2, slice(40, 150))[0]]
    return copy.copy(base).fit_across(recordings, scenes[0].stimuli(), latents=40)


def decoded(pipe, test):
    found = pipe.predict_features(test)
    return found.text.reshape(len(found), -1), found.vision.reshape(len(found), -1)


@pytest.fixture(scope="module")
def truth(base, scenes):
    true = base.true_features(scenes[1].stimuli(), scenes[1].ids)
    return true.text.reshape(len(true), -1), true.vision.reshape(len(true), -1)


def quality(pipe, test, truth):
    """2-way identification, mean of the text and the vision head; chance is one half."""
    parts = zip(decoded(pipe, test), truth, strict=True)
    return float(np.mean([feature_identification(a, b).mean() for a, b in parts]))


def test_components_are_principal_components(group, base, scenes):
    """By a singular value decomposition of the features themselves."""
    ids = scenes[0].ids
    true = base.true_features(scenes[0].stimuli(), ids)
    parts = []
    for values in (true.vdvae, true.text, true.vision):
        y = values.reshape(len(ids), -1).astype(float)
        y -= y.mean(axis=0)
        parts.append(y / np.sqrt((y**2).sum() / len(ids)))
    u, s, _ = np.linalg.svd(np.concatenate(parts, axis=1), full_matrices=False)
    want = (u * s)[:, :40]
    found = components_of(group, scenes[0].stimuli(), ids)
    signs = np.sign((want * found).sum(axis=0))
    far = np.abs(found - want * signs).max(axis=0) / want.std(axis=0)
    assert far[:20].max() < 1e-3
    alone = components_of(group, scenes[0].stimuli(), ids[5:6])
    np.testing.assert_allclose(alone[0], found[5], atol=1e-4)


def test_several_people_are_decoded_by_one_model(group, hear, truth):
    for subject in (1, 2):
        assert quality(group, hear(subject)[1], truth) > 0.8
    names = [gate["subject"] for gate in group.gates if gate["stage"] == "input layer"]
    assert names == ["sim-01", "sim-02"]
    both = np.concatenate([decoded(group, hear(k)[1])[0] for k in (1, 2)])
    one = decoded(group, hear(1)[1])[0]
    np.testing.assert_allclose(both[:40], one, atol=1e-5)


def test_who_saw_the_same_stimulus_is_left_out_together(group):
    """70 of 150 stimuli were seen by both."""
    for head in group.heads.values():
        assert len(head.factor_.members) == 70
        assert {len(rows) for rows in head.factor_.members} == {2}
        assert head.factor_.trials == 220


@pytest.mark.parametrize("images", [10, 30, 100])
def test_a_new_person_needs_few_images(group, base, hear, scenes, truth, images):
    """The adapted model against one of these images alone, and both against chance."""
    train, test = hear(3)
    stimuli = scenes[0].stimuli()
    adapted = quality(copy.copy(group).adapt(train, stimuli, images=images), test, truth)
    rows = np.random.default_rng(0).permutation(150)[:images]
    alone = quality(copy.copy(base).fit_brain(train.select(np.sort(rows)), stimuli), test, truth)
    assert adapted > 0.6  # chance 0.5
    assert adapted > alone - (0.0 if images < 100 else 0.02)


def test_without_images_it_is_the_groups_layer(group, hear, scenes, truth):
    train, test = hear(3)
    pipe = copy.copy(group).adapt(train, scenes[0].stimuli(), images=0)
    layer = pipe.input.layers.layers["sim-03"]
    assert layer.how == "group"
    own = [pipe.input.layers.layers[f"sim-0{k}"].weights for k in (1, 2)]
    np.testing.assert_allclose(layer.weights, (own[0] + own[1]) / 2, rtol=1e-5)
    assert quality(pipe, test, truth) > 0.55
    # and the model that was adapted is another object's affair
    assert "sim-03" not in group.input.layers.layers


def test_other_vertices_get_a_layer_of_their_own(group, hear, scenes, truth):
    train, test = hear(3)
    keep = np.arange(0, train.n_features, 2)
    part, heard = (
        dataclasses.replace(one, data=one.array()[:, keep], space=VectorSpace(len(keep)))
        for one in (train, test)
    )
    pipe = copy.copy(group).adapt(part, scenes[0].stimuli())
    assert pipe.input.layers.layers["sim-03"].how == "own trials"
    assert quality(pipe, heard, truth) > 0.7


def test_the_input_there_and_back(group, hear, scenes, tmp_path):
    pipe = copy.copy(group).adapt(hear(3)[0], scenes[0].stimuli(), images=30)
    _save_input(pipe.input, tmp_path / "input")
    again = _load_input(tmp_path / "input")
    assert isinstance(again, SharedInput)
    for subject in (1, 3):
        test = hear(subject)[1]
        np.testing.assert_array_equal(again(test), pipe.input(test))
    pipe.input = again
    np.testing.assert_array_equal(
        components_of(pipe, scenes[0].stimuli(), scenes[0].ids[:3]),
        components_of(group, scenes[0].stimuli(), scenes[0].ids[:3]),
    )


def test_wrong_use_is_told(group, base, hear, scenes):
    stimuli = scenes[0].stimuli()
    one, other = hear(1)[0], hear(2)[0]
    for recordings in ([one], [one, one]):
        with pytest.raises(UsageError, match="give two or more, each once"):
            copy.copy(base).fit_across(recordings, stimuli)
    for latents in (0, 150):
        with pytest.raises(UsageError, match=f"{latents} latents of 150 training stimuli"):
            copy.copy(base).fit_across([one, other], stimuli, latents=latents)
    with pytest.raises(UsageError, match="somebody else"):
        copy.copy(group).adapt(one, stimuli, images=10)
    with pytest.raises(UsageError, match="there are 150 training trials"):
        copy.copy(group).adapt(hear(3)[0], stimuli, images=151)
    with pytest.raises(UsageError, match="fit it with fit_across"):
        copy.copy(base).fit_brain(one, stimuli).adapt(other, stimuli)
    with pytest.raises(UsageError, match="no input layer for subject 'sim-03'"):
        group.predict_features(hear(3)[1])
    frames = dataclasses.replace(one, data=one.array()[:, None].repeat(2, axis=1))
    broken = one.array().copy()
    broken[0, 0] = np.nan
    for wrong in (frames, dataclasses.replace(one, data=broken)):
        with pytest.raises(DataError, match=r"frames a trial|NaN"):
            copy.copy(base).fit_across([wrong, other], stimuli)
