"""MinD-3D end to end at its smallest size: batches, names, resume, and what a change refits."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.core.config import dump
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.simulated.study import StudySettings, make_study
from neurodiff.pipelines import mind3d_fitting
from neurodiff.pipelines.mind3d import MinD3D

pytestmark = pytest.mark.slow  # fits a tiny model

STAGES = ["tokenizer", "shape-decoder", "ridge", "bridge", "adapters"]
#: as few steps as every branch of the loops needs
SHORT = [
    "tokenizer.training.steps=12",
    "tokenizer.training.checkpoint_every=5",
    "tokenizer.reseed_every=2",
    "decoder.training.steps=12",
    "decoder.training.checkpoint_every=5",
    "decoder.adapters.steps=6",
    "decoder.adapters.checkpoint_every=4",
    "bridge.training.steps=6",
    "bridge.training.checkpoint_every=4",
]


@pytest.fixture(scope="module")
def study():
    size = StudySettings(
        train_per_category=8, test_per_category=2, unseen_per_category=0, n_categories=3
    )
    return make_study(size, seed=0, workers=1)


@pytest.fixture(scope="module")
def bank(study):
    return study.bank.select(study.ids("train"))


@pytest.fixture(scope="module")
def recording(study):
    return study.record("train")


@pytest.fixture(scope="module")
def heard(study):
    """Test trials: six objects twice."""
    return study.record("test", repeats=2)


def tiny(*overrides):
    return MinD3D.from_recipe("mind3d_tiny", [*SHORT, *overrides])


@pytest.fixture(scope="module")
def fitted(study, bank, recording):
    return tiny("bridge.training.learning_rate=0.01").fit(recording, study.stimuli, bank=bank)


def weights(pipe):
    return {
        **{f"shapes.{k}": v for k, v in pipe.shapes.state_dict().items()},
        **{f"networks.{k}": v for k, v in pipe.networks.state_dict().items()},
        "ridge": torch.from_numpy(np.append(pipe.ridge.coef_.ravel(), pipe.ridge.intercept_)),
    }


def assert_same_model(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --------------------------------------------------------------------------------- prediction


def test_a_trial_does_not_depend_on_its_batch_or_place(fitted, heard):
    whole = fitted.predict_embedding(heard)
    assert whole.shape == (12, 16)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 4, rtol=1e-5)  # sqrt(d)
    alone = fitted.predict_embedding(heard.select([7]))
    np.testing.assert_allclose(alone[0], whole[7], atol=1e-5)
    reverse = fitted.predict_embedding(heard.select(np.arange(12)[::-1]))
    np.testing.assert_allclose(reverse[::-1], whole, atol=1e-5)
    in_fives = fitted.predict_embedding(heard, batch=5)
    np.testing.assert_allclose(in_fives, whole, atol=1e-5)
    np.testing.assert_array_equal(
        fitted.codes_from_embedding(reverse[::-1].copy()), fitted.codes_from_embedding(whole)
    )
    assert np.abs(whole[1:] - whole[:-1]).max(axis=1).min() > 1e-3  # trials do differ


def test_global_random_state_neither_matters_nor_changes(fitted, heard):
    torch.manual_seed(1)
    one = fitted.predict_embedding(heard)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(one, fitted.predict_embedding(heard))
    MinD3D(fitted.recipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_and_seeds_differ(fitted, heard):
    one = fitted.predict_embedding(heard)
    assert np.abs(one - fitted.predict_embedding(heard, sample=1)).max() > 1e-3
    assert np.abs(one - fitted.predict_embedding(heard, seed=1)).max() > 1e-3
    np.testing.assert_array_equal(one, fitted.predict_embedding(heard, sample=0, seed=0))


def test_the_two_bridges(fitted, heard):
    ridge = fitted.predict_embedding(heard, bridge="ridge")
    wanted = fitted.ridge.predict(fitted.brain.betas(heard))
    wanted *= 4 / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(ridge, wanted, atol=1e-4)
    np.testing.assert_array_equal(
        ridge, fitted.predict_embedding(heard, bridge="ridge", sample=3, seed=5)
    )
    network = fitted.predict_embedding(heard)
    assert np.abs(network - ridge).max() > 1e-3
    # a bridge that has learned nothing is its anchor
    still = copy.deepcopy(fitted)
    torch.nn.init.zeros_(still.networks.prior_network.causal_transformer.project_out.weight)
    np.testing.assert_allclose(still.predict_embedding(heard), ridge, atol=1e-4)


def test_results_come_trial_by_trial(fitted, heard):
    few = heard.select([0, 7, 3])
    results = fitted.predict(few, samples=2)
    rows = few.trials
    assert [(r.stimulus, r.repeat, r.sample) for r in results] == [
        (rows.stimulus[i], rows["repeat"][i], k) for i in range(3) for k in range(2)
    ]
    assert {r.subject for r in results} == {"sim-01"}
    for k in range(2):
        embedding = fitted.predict_embedding(few, sample=k)
        np.testing.assert_array_equal([r.embedding for r in results[k::2]], embedding)
        np.testing.assert_array_equal(
            [r.codes for r in results[k::2]], fitted.codes_from_embedding(embedding)
        )
    assert results[0].codes.shape == (16,)
    assert all(np.abs(r.mesh.vertices).max(initial=0) <= 0.56 for r in results)


def test_meshes_are_the_level_of_the_occupancy(fitted, bank):
    codes = fitted.encode(bank)[:2]
    pipe = copy.deepcopy(fitted)
    last = pipe.shapes.vqvae_model.decoder.fc_out
    torch.nn.init.constant_(last.bias, 0.0)
    with torch.no_grad():  # logits around 0, so that something crosses
        planes = pipe.shapes.vqvae_model.planes_from_ids(torch.from_numpy(codes))
        points = torch.rand(2, 2000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
        last.bias -= pipe.shapes.vqvae_model.occupancy(planes, points).median()
    for k, mesh in enumerate(pipe.meshes(codes)):
        assert mesh.is_watertight
        assert mesh.volume > 0
        inner = mesh.vertices[np.abs(mesh.vertices).max(axis=1) < 0.5]
        with torch.no_grad():
            logits = pipe.shapes.vqvae_model.occupancy(
                planes[k : k + 1], torch.from_numpy(inner[None].astype(np.float32))
            )
            spread = pipe.shapes.vqvae_model.occupancy(planes, points).std()
        assert len(inner) > 20
        assert float(logits.abs().median()) < 0.02 * float(spread)


def test_sampled_codes_belong_to_the_trial(fitted, heard):
    hot = copy.deepcopy(fitted)
    recipe = tiny("decoder.temperature=1.0").recipe
    hot.recipe = recipe
    results = {(r.stimulus, r.repeat): r.codes for r in hot.predict(heard)}
    part = heard.select([9, 2])
    for r in hot.predict(part):
        np.testing.assert_array_equal(r.codes, results[r.stimulus, r.repeat])
    greedy = {(r.stimulus, r.repeat): r.codes for r in fitted.predict(part)}
    assert any((results[key] != codes).any() for key, codes in greedy.items())


def test_what_a_model_without_a_fit_answers(heard, bank):
    pipe = tiny()
    with pytest.raises(UsageError, match="not fitted yet"):
        pipe.predict(heard)
    with pytest.raises(UsageError, match="not fitted yet"):
        pipe.fit_brain(heard, bank)
    with pytest.raises(UsageError, match="not fitted yet"):
        pipe.encode(bank)
    with pytest.raises(UsageError, match="not fitted yet"):
        pipe.codes_from_embedding(np.zeros((1, 16), np.float32))
    with pytest.raises(UsageError, match="not fitted yet"):
        list(pipe.meshes(np.zeros((1, 16), np.int64)))
    with pytest.raises(UsageError, match="not fitted yet"):
        pipe.draw_embedding(["a"])


def test_other_vertices_and_unknown_stimuli(fitted, heard, bank, study):
    other = heard.roi("V1")
    with pytest.raises(UsageError, match="Use the same mask or vertices"):
        fitted.predict(other)
    strange = Recording(heard.data, heard.trials.assign(stimulus="cup"), heard.rois, heard.space)
    with pytest.raises(UsageError, match="no shape of stimulus 'cup'"):
        copy.deepcopy(fitted).fit_brain(strange, bank)
    with pytest.raises(UsageError, match="no stimulus 'cup'"):
        tiny().fit(strange, study.stimuli)


# ------------------------------------------------------------------------------------- names


def test_names_are_the_published_ones(fitted):
    """Prefixes of the released file, and inside them the names of the golden manifests."""
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)

    def published(file, case):
        return set(recipe.load(file)[case]["manifest"]["params"])

    def generic(names):
        """Without the numbers of repeated blocks, whose count is a matter of size."""
        return {".".join("#" if part.isdigit() else part for part in n.split(".")) for n in names}

    networks, shapes = fitted.networks, fitted.shapes
    assert {n.split(".")[0] for n in networks.state_dict()} == {
        "fmri_encoder",
        "fa_module",
        "prior_network",
    }
    assert {n.split(".")[0] for n in shapes.state_dict()} == {"transformer_model", "vqvae_model"}
    for module, file, case in (
        (networks.fmri_encoder, "mind3d_encoder", "mind3d.encoder"),
        (networks.fa_module, "mind3d_encoder", "mind3d.fa_module"),
        (networks.prior_network, "mind3d_prior", "mind3d.prior"),
        (shapes.transformer_model, "mind3d_ar_decoder", "mind3d.ar_decoder"),
        (shapes.vqvae_model, "mind3d_vqvae", "mind3d.vqvae"),
    ):
        own = generic(dict(module.named_parameters()))
        assert own <= generic(published(file, case)), case
        missing = generic(published(file, case)) - own
        # the point encoder's U-Net, which nothing reads, is left out in this recipe
        assert all(n.startswith("encoder.unet.") for n in missing), (case, missing)


# ---------------------------------------------------------------------------------- own data


def test_no_anchor_and_plain_vectors(bank):
    """The published graph, on betas without frames of features without a picture."""
    rng = np.random.default_rng(0)
    trials = pd.DataFrame({"stimulus": list(bank.ids)})
    own = Recording.from_arrays(rng.normal(size=(24, 150)), trials)
    pipe = tiny("bridge.anchor=none", "bridge.encoder.patch_size=8", "bridge.choose=fmri-cosine")
    pipe.fit_shapes(bank).fit_brain(own, bank)
    assert pipe.brain.image_size == 16
    predicted = pipe.predict_embedding(own)
    assert predicted.shape == (24, 16)
    assert np.isfinite(predicted).all()
    assert np.abs(predicted - pipe.predict_embedding(own, bridge="ridge")).max() > 0.1
    alone = pipe.predict_embedding(own.select([5]))
    np.testing.assert_allclose(alone[0], predicted[5], atol=1e-4)
    assert [gate["stage"] for gate in pipe.gates] == STAGES


def test_bank_is_made_of_the_shown_stimuli(study, recording):
    few = recording.select(np.arange(6))
    pipe = tiny(*[f"{k}.steps=1" for k in ("tokenizer.training", "decoder.training")])
    pipe.fit(few, study.stimuli)
    assert pipe.gates[0]["objects"] == 6
    unknown = Stimuli(pd.DataFrame({"id": list(few.trials.stimulus)}))
    from neurodiff.core.errors import MissingDataError

    with pytest.raises(MissingDataError, match="has no mesh"):
        tiny().fit(few, unknown)


def test_a_decoder_without_adapters(bank, recording):
    pipe = tiny("decoder.size.adapter_every=0").fit_shapes(bank).fit_brain(recording, bank)
    assert [gate["stage"] for gate in pipe.gates] == STAGES[:-1]


def test_a_second_recording_does_not_remember_the_first(fitted, bank, recording):
    again = copy.deepcopy(fitted).fit_brain(recording, bank)
    assert_same_model(again, fitted)
    assert [gate["stage"] for gate in again.gates] == STAGES


# ------------------------------------------------------------------------------------ resume


@pytest.fixture(scope="module")
def whole(bank, recording):
    """A fit without interruption and without a folder."""
    return tiny().fit_shapes(bank).fit_brain(recording, bank)


def new_run(folder, pipe=None):
    recipe = dump((pipe or tiny()).recipe)
    return Run.create(folder, recipe, {"data": "simulated"}, command="test", seed=0)


def fit_in(run, bank, recording, *overrides):
    pipe = tiny(*overrides)
    return pipe.fit_shapes(bank, run=run).fit_brain(recording, bank, run=run)


def forbid_training(monkeypatch):
    def train(*_, stage, **__):
        raise AssertionError(f"{stage} is trained again")

    monkeypatch.setattr(mind3d_fitting, "train", train)


def trained_stages(monkeypatch):
    names, train = [], mind3d_fitting.train

    def counted(*args, stage, **kwargs):
        names.append(stage)
        return train(*args, stage=stage, **kwargs)

    monkeypatch.setattr(mind3d_fitting, "train", counted)
    return names


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, bank, recording):
    folder = tmp_path_factory.mktemp("fits") / "run"
    pipe = fit_in(new_run(folder), bank, recording)
    return folder, pipe


def test_a_run_keeps_every_stage(run_folder, whole, bank, recording, monkeypatch):
    folder, first = run_folder
    assert_same_model(first, whole)  # keeping changes nothing
    status = Run.open(folder).status()
    kept = [name.rsplit("-", 1)[0].replace("_", "-") for name in status["stages"]]
    assert sorted(kept) == sorted(STAGES)
    assert all(status["stages"].values())
    assert not list(folder.rglob("checkpoint-*"))
    forbid_training(monkeypatch)
    second = fit_in(Run.open(folder), bank, recording)
    assert_same_model(second, first)
    assert [gate["stage"] for gate in second.gates] == STAGES
    assert len(list(folder.rglob("metrics.jsonl"))) == 4  # ridge has a closed form


@pytest.mark.parametrize("stage", ["tokenizer", "shape-decoder", "bridge", "adapters"])
def test_an_interrupted_fit_ends_in_the_same_weights(
    tmp_path, bank, recording, whole, monkeypatch, stage
):
    class Killed(Exception):
        pass

    train = mind3d_fitting.train
    steps = {"tokenizer": 7, "shape-decoder": 7, "bridge": 5, "adapters": 5}

    def dying(model, loss, *, stage, **kwargs):
        if stage != target:
            return train(model, loss, stage=stage, **kwargs)
        calls = iter(range(1000))

        def die(*args):
            if next(calls) == steps[stage]:
                raise Killed
            return loss(*args)

        return train(model, die, stage=stage, **kwargs)

    target = stage
    monkeypatch.setattr(mind3d_fitting, "train", dying)
    with pytest.raises(Killed):
        fit_in(new_run(tmp_path / "run"), bank, recording)
    monkeypatch.undo()
    assert len(list((tmp_path / "run").rglob("checkpoint-*"))) == 1
    names = trained_stages(monkeypatch)
    again = fit_in(Run.open(tmp_path / "run"), bank, recording)
    assert_same_model(again, whole)
    order = [s for s in STAGES if s != "ridge"]
    assert names == order[order.index(stage) :]  # what was done before is not done again


@pytest.mark.parametrize(
    ("change", "refitted"),
    [
        ("tokenizer.training.learning_rate=0.004", ["tokenizer", "shape-decoder", "adapters"]),
        ("decoder.training.learning_rate=0.002", ["shape-decoder", "adapters"]),
        ("decoder.adapters.learning_rate=0.002", ["adapters"]),
        ("bridge.training.learning_rate=0.002", ["bridge"]),
        ("bridge.candidates=2", []),
        ("bridge.choose=nearest-to-mean", []),
        ("decoder.temperature=0.5", []),
        ("mesh.resolution=16", []),
        ("embedding.whiten=0.4", ["shape-decoder", "bridge", "adapters"]),
    ],
)
def test_a_changed_setting_refits_what_depends_on_it(
    run_folder, bank, recording, monkeypatch, change, refitted
):
    names = trained_stages(monkeypatch)
    pipe = fit_in(Run.open(run_folder[0]), bank, recording, change)
    assert names == refitted
    names.clear()
    assert_same_model(fit_in(Run.open(run_folder[0]), bank, recording, change), pipe)
    assert names == []


def test_another_recording_keeps_the_shapes(run_folder, bank, study, monkeypatch):
    names = trained_stages(monkeypatch)
    other = study.record("train", subject=2)
    fit_in(Run.open(run_folder[0]), bank, other)
    assert names == ["bridge", "adapters"]


def test_a_broken_stage_is_fitted_again(run_folder, bank, recording, monkeypatch):
    folder, first = run_folder
    for path in folder.glob("stages/bridge-*/weights.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    names = trained_stages(monkeypatch)
    assert_same_model(fit_in(Run.open(folder), bank, recording), first)
    assert names == ["bridge"]


def test_predictions_are_saved_as_meshes(tmp_path, whole, recording):
    import trimesh

    from neurodiff.pipelines.mind3d import Reconstruction, Reconstructions

    ball = trimesh.creation.icosphere()
    code = np.zeros(1, np.int64)
    made = Reconstructions(
        [
            Reconstruction("sub-01", "a/b c", 1, 0, np.zeros(2, np.float32), code, ball),
            Reconstruction(
                "sub-01", "empty", 1, 0, np.zeros(2, np.float32), code, trimesh.Trimesh()
            ),
        ]
    )
    (path,) = made.save(tmp_path / "out")
    assert path.name == "sub-01_a-b-c_r1_s0.glb"
    again = trimesh.load_mesh(path)
    assert again.volume == pytest.approx(ball.volume, rel=1e-5)
    assert isinstance(whole.predict(recording.select(np.arange(2))), Reconstructions)
