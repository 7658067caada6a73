"""One model for several people: input layers in closed form, and a new person on few trials."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neurodiff.cli import app
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.pipelines import subject_layers
from neurodiff.pipelines.mind3d_subjects import adaptation_trials, subject_of
from neurodiff.pipelines.subject_layers import (
    SubjectLayers,
    adapt_layer,
    fit_layer,
    joined,
    layers_from_state,
    layers_state,
    training_latents,
)

K, P, FRAMES = 3, 40, 4


def person(name, mixing, targets, *, noise=0.0, scale=1.0, offset=0.0, seed=0):
    """Frames that are the same linear image of the targets, with noise."""
    rng = np.random.default_rng(seed)
    clean = (targets @ mixing)[:, None, :] + noise * rng.standard_normal(
        (len(targets), FRAMES, mixing.shape[1])
    )
    trials = pd.DataFrame({"subject": name, "stimulus": [f"s{k}" for k in range(len(targets))]})
    return Recording.from_arrays((scale * clean + offset).astype(np.float32), trials)


@pytest.fixture
def world():
    rng = np.random.default_rng(1)
    targets = rng.standard_normal((60, K))
    common = rng.standard_normal((K, P))
    mixings = [common + 0.3 * rng.standard_normal((K, P)) for _ in range(4)]
    people = [
        person(f"p{k}", mixing, targets, noise=0.5, seed=k) for k, mixing in enumerate(mixings)
    ]
    return targets, people


def shared_layers(targets, people):
    fitted = {subject_of(one): fit_layer(one, targets)[0] for one in people}
    return SubjectLayers(fitted, tuple(fitted))


def test_without_noise_a_layer_returns_the_targets():
    rng = np.random.default_rng(0)
    targets, mixing = rng.standard_normal((50, K)), rng.standard_normal((K, P))
    recording = person("a", mixing, targets, scale=7.0, offset=1000.0)
    layer, left_out = fit_layer(recording, targets)
    latents = layer(recording.data)
    assert latents.shape == (50, FRAMES, K)
    np.testing.assert_allclose(latents.mean(axis=1), targets, atol=5e-3)
    np.testing.assert_allclose(left_out, targets, atol=1e-2)


def test_training_latents_have_the_left_out_mean_and_their_own_course(world):
    targets, people = world
    layer, left_out = fit_layer(people[0], targets)
    latents = training_latents(layer, people[0], left_out)
    np.testing.assert_allclose(latents.mean(axis=1), left_out, atol=1e-5)
    seen = layer(people[0].data[:])
    np.testing.assert_allclose(
        latents - latents.mean(axis=1, keepdims=True),
        seen - seen.mean(axis=1, keepdims=True),
        atol=1e-5,
    )
    # what is left out is honest: further from the targets than what was fitted
    assert ((left_out - targets) ** 2).sum() > ((seen.mean(axis=1) - targets) ** 2).sum()


def test_each_trial_goes_through_the_layer_of_its_subject(world):
    targets, people = world
    layers = shared_layers(targets, people[:3])
    both = Recording.from_arrays(
        np.concatenate([people[0].array()[:2], people[1].array()[:3]]),
        pd.concat([people[0].trials[:2], people[1].trials[:3]], ignore_index=True),
    )
    latent = layers.to_latent(both)
    assert latent.data.shape == (5, FRAMES, K)
    expected = [layers.layers["p0"](both.data[k : k + 1])[0] for k in (0, 1)]
    expected += [layers.layers["p1"](both.data[k : k + 1])[0] for k in (2, 3, 4)]
    np.testing.assert_allclose(latent.array(), expected, atol=1e-5)
    np.testing.assert_allclose(latent.data[[4, 0]], [expected[4], expected[0]], atol=1e-5)
    np.testing.assert_allclose(latent.data[3], expected[3], atol=1e-5)


def test_the_shared_space_does_not_depend_on_who_is_adapted(world):
    targets, people = world
    layers = shared_layers(targets, people[:3])
    more = layers.with_layer("p3", adapt_layer(layers, None))
    assert more.space().fingerprint() == layers.space().fingerprint()
    assert shared_layers(targets, people[:2]).space().fingerprint() != layers.space().fingerprint()
    with pytest.raises(UsageError, match="is one of the shared model's 3"):
        layers.with_layer("p1", more.layers["p3"])


def test_without_trials_the_layer_is_the_mean_of_the_group(world):
    targets, people = world
    layers = shared_layers(targets, people[:3])
    layer = adapt_layer(layers, None)
    assert (layer.how, layer.trials) == ("group", 0)
    mean = sum(layers.layers[f"p{k}"].weights for k in range(3)) / 3
    np.testing.assert_allclose(layer.weights, mean, rtol=1e-5)
    # one trial tells nothing of a mean: the same layer
    one = adapt_layer(layers, people[3].select([0]), targets[:1])
    np.testing.assert_array_equal(one.weights, layer.weights)


def test_few_trials_are_no_worse_than_none_and_many_reach_ones_own_layer(world):
    targets, people = world
    layers = shared_layers(targets, people[:3])
    rng = np.random.default_rng(7)
    new = rng.standard_normal((200, K))
    mixing = people[3].array().mean(axis=1).T @ np.linalg.pinv(targets.T)  # about the truth
    test = person("p3", mixing.T, new, noise=0.5, seed=9)

    def error(layer):
        return float(((layer(test.data[:]).mean(axis=1) - new) ** 2).mean())

    group = error(adapt_layer(layers, None))
    few = adapt_layer(layers, people[3].select(np.arange(6)), targets[:6])
    alone = adapt_layer(layers, people[3].select(np.arange(6)), targets[:6], group=False)
    many = adapt_layer(layers, people[3], targets)
    assert few.how == "group and own trials"
    assert error(few) < 1.2 * group
    assert error(few) < error(alone)
    assert error(many) < group
    assert error(many) < 1.1 * error(fit_layer(people[3], targets)[0])


def test_other_units_are_found_out(world):
    """The new person's scanner counts in thousands: the group's mean and SD are of no use."""
    targets, people = world
    layers = shared_layers(targets, people[:3])
    strange = Recording.from_arrays(1000 * people[2].array() + 5000, people[2].trials)
    layer = adapt_layer(layers, strange, targets)
    latent = layer(strange.data[:]).mean(axis=1)
    assert np.corrcoef(latent.ravel(), targets.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("shown", [list("abcdefgh"), list("aabbcdee")])
def test_left_out_residuals_of_a_correction_are_exact(monkeypatch, shown):
    """Against refits without each stimulus, at one penalty."""
    monkeypatch.setattr(subject_layers, "ALPHAS", (0.3,))
    rng = np.random.default_rng(2)
    x, rest = rng.standard_normal((8, 12)).astype(np.float32), rng.standard_normal((8, 2))
    weights, bias, left_out = subject_layers._correction(x, rest, shown)
    constant = np.trace(x.astype(float) @ x.T) / 8
    whole = np.column_stack([x, np.full(8, np.sqrt(constant))])
    alpha = 0.3 * np.linalg.eigvalsh(whole @ whole.T).mean()

    def fit(rows):
        a = whole[rows]
        return np.linalg.solve(a.T @ a + alpha * np.eye(13), a.T @ rest[rows])

    full = fit(np.arange(8))
    np.testing.assert_allclose(weights, full[:12].T, atol=1e-6)
    np.testing.assert_allclose(bias, full[12] * np.sqrt(constant), atol=1e-6)
    names = np.array(shown)
    for k in range(8):
        prediction = whole[k] @ fit(np.flatnonzero(names != names[k]))
        np.testing.assert_allclose(left_out[k], rest[k] - prediction, atol=1e-6)


def test_people_with_other_vertices_need_trials_of_their_own(world):
    targets, people = world
    layers = shared_layers(targets, people[:3])
    rng = np.random.default_rng(3)
    other = person("p9", rng.standard_normal((K, 55)), targets, noise=0.2)
    layer = adapt_layer(layers, other, targets)
    assert (layer.how, layer.weights.shape) == ("own trials", (K, 55))
    assert layers.with_layer("p9", layer).to_latent(other).data.shape == (60, FRAMES, K)
    mixed = SubjectLayers({**layers.layers, "p9": layer}, ("p0", "p9"))
    with pytest.raises(UsageError, match="different vertices have no mean layer"):
        adapt_layer(mixed, None)
    with pytest.raises(UsageError, match=r"has 55 features .* was fitted on 40"):
        layers.to_latent(Recording.from_arrays(other.array(), people[0].trials))


def test_a_person_without_a_layer_is_refused(world):
    targets, people = world
    layers = shared_layers(targets, people[:3])
    with pytest.raises(UsageError, match=r"no input layer for subject 'p3'; it has p0, p1, p2"):
        layers.to_latent(people[3])


def test_layers_survive_being_written(world):
    targets, people = world
    layers = shared_layers(targets, people[:2])
    facts, arrays = layers_state(layers.with_layer("p3", adapt_layer(layers, None)))
    back = layers_from_state(json.loads(json.dumps(facts)), arrays)
    assert back.shared == ("p0", "p1")
    assert back.layers["p3"].how == "group"
    assert back.space().fingerprint() == layers.space().fingerprint()
    arrays["p1.bias"] = arrays["p1.bias"][:2]
    with pytest.raises(DataError, match="do not fit together"):
        layers_from_state(facts, arrays)


def test_joined_people_keep_their_trials(world):
    targets, people = world
    layers = shared_layers(targets, people[:2])
    latents = [np.zeros((60, FRAMES, K), np.float32)] * 2
    together = joined(layers, people[:2], latents)
    assert together.trials["subject"].tolist() == ["p0"] * 60 + ["p1"] * 60
    with pytest.raises(UsageError, match="of 2 subjects"):
        subject_of(together)


def test_fewer_trials_are_among_more_and_depend_on_the_seed(world):
    _, people = world
    few, many = (set(adaptation_trials(people[0], n).trials["stimulus"]) for n in (5, 20))
    assert len(few) == 5
    assert few < many
    assert set(adaptation_trials(people[0], 5, seed=1).trials["stimulus"]) != few
    assert adaptation_trials(people[0], 0) is None
    with pytest.raises(UsageError, match="61 trials of p0 were asked for; there are 60"):
        adaptation_trials(people[0], 61)


# ------------------------------------------------------------------------- on the command line


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


FAST = [
    *("-s", "tokenizer.training.steps=12", "-s", "decoder.training.steps=6"),
    *("-s", "decoder.adapters.steps=2", "-s", "bridge.training.steps=3"),
]


@pytest.mark.slow
def test_fit_adapt_decode_and_resume(tmp_path):
    fit = ["fit", "mind3d_tiny", *FAST, "--data", "simulated_tiny", "--out", tmp_path]
    people = ["--subjects", "1,2", "--adapt-to", "3", "--trials", "12"]
    done = call(*fit, *people)
    assert done.exit_code == 0, done.output
    assert "subject sim-03, trials 12, from group and own trials" in done.output
    run = done.output.splitlines()[-1]
    again = call(*fit, *people)
    assert again.output.splitlines()[-1] == run
    assert "subject-layers: done before, loaded" in again.output
    assert "12 of 12 items are decoded" in call("reconstruct", run).output
    assert "12 of 12 items are decoded" in call("reconstruct", run, "--subject", 1).output
    refused = call("reconstruct", run, "--subject", 7)
    assert refused.exit_code == 2
    assert "no input layer for subject 'sim-07'" in refused.output
    text = call("evaluate", run).output
    assert "split: across-person (sim-03; input layer of 12 trials)" in text
    assert "split: core (sim-01)" in text
    other = call(*fit, "--subjects", "1,2", "--adapt-to", "3", "--trials", "0", "--dry-run")
    assert "0 trials of sim-03 to adapt to" in other.output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--subjects", "1"], "give two or more, each once"),
        (["--subjects", "1,1"], "give two or more, each once"),
        (["--subjects", "1,2", "--adapt-to", "2"], "is one of --subjects"),
        (["--subjects", "1,2", "--trials", "5"], "say who with --adapt-to"),
        (["--subjects", "1,2", "--subject", "3"], "--subject for one person, or --subjects"),
        (["--adapt-to", "4"], "go with --subjects"),
        (["--subjects", "1,zero"], "subject is 'zero'; simulated subjects are 1, 2, 3"),
    ],
)
def test_wrong_people_are_one_sentence(options, text, tmp_path):
    done = call("fit", "mind3d_tiny", "--data", "simulated_tiny", "--out", tmp_path, *options)
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].startswith("error: ")
    assert text in done.output
