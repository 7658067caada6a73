"""The three stages: frozen trunk, moving average, kept caches, the same weights after a kill."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.core import training as loop
from neurodiff.core.cohort import Cohort
from neurodiff.core.config import dump
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.volume import Volume
from neurodiff.datasets.latent_cache import Latent, LatentCache
from neurodiff.diffusion.paths import linear
from neurodiff.models.ldae_autoencoder import autoencoder, encode
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.pipelines.ldae import LDAE, seeded
from neurodiff.pipelines.ldae_bundles import export_bundle
from neurodiff.pipelines.ldae_cost import plan_text, stage_costs
from neurodiff.pipelines.ldae_scans import Posteriors, encode_scans, prepared_scans
from neurodiff.pipelines.ldae_training import SemanticLoss, set_checkpointing

GRID = (8, 16, 8)
RECIPE = [
    "size={grid: [8, 16, 8], autoencoder: {widths: [8, 8], blocks: 1, groups: 4}, "
    "unet: {width: 8, multipliers: [1, 2], blocks: 1, attention: [2], dropout: 0.1, "
    "stride: [2, 2, 2], semantic: 8, groups: 4}, "
    "encoder: {widths: [8], depths: [1], slices: 8, heads: 2}}",
    "autoencoder.adversarial=0.025",
    "autoencoder.discriminator_width=4",
    "autoencoder.discriminator_layers=1",
    "autoencoder.adversarial_from=2",
    "autoencoder.check_every=2",
    *(
        f"{stage}.training={{steps: 5, batch_size: 4, accumulate: 2, warmup: 1, ema_decay: {ema}, "
        "checkpoint_every: 3, learning_rate: 0.01}"
        for stage, ema in (("autoencoder", 0.0), ("trunk", 0.8), ("semantic", 0.8))
    ),
    "sampling.steps=3",
]


class Killed(Exception):
    """Stands for whatever ends a process."""


def cohort(people=range(4), bad=()):
    rows = [
        {"subject": f"p{k}", "session": m, "age": 60.0 + k + m / 12, "sex": "FM"[k % 2],
         "diagnosis": ("AD", "CN")[k // 2 % 2]}
        for k in people for m in (0.0, 12.0)
    ]  # fmt: skip

    def opener(row):
        rng = np.random.default_rng([int(row["subject"][1:]), int(row["session"])])
        data = rng.random((1, *GRID)).astype(np.float32)
        if row["scan"] in bad:
            data[0, 0, 0, 0] = np.nan
        return Volume(data, np.eye(4), name=row["scan"])

    return Cohort(pd.DataFrame(rows), opener=opener, name="noise")


def fitted(run=None, validation=True, overrides=(), seed=3):
    pipe = LDAE.from_recipe("ldae_tiny", [*RECIPE, *overrides])
    other = cohort(range(4, 6)) if validation else None
    return pipe.fit(cohort(), other, seed=seed, run=run)


def run_in(folder, overrides=()):
    recipe = LDAE.from_recipe("ldae_tiny", [*RECIPE, *overrides]).recipe
    return Run.create(folder, dump(recipe), {"cohort": "noise"}, command="test", seed=3)


@pytest.fixture(scope="module")
def undisturbed():
    return fitted()


def test_fit_trains_all_three_and_says_what_it_measured(undisturbed):
    names = [gate["stage"] for gate in undisturbed.gates]
    wanted = ["scans", "validation-scans", "autoencoder", "latents", "trunk", "semantic"]
    assert names == wanted
    assert undisturbed.fitted
    fresh = LDAE.from_recipe("ldae_tiny", RECIPE)
    for part in ("autoencoder", "decoder", "encoder"):
        a, b = (getattr(p.networks, part).state_dict() for p in (undisturbed, fresh))
        assert any(not torch.equal(a[name], b[name]) for name in a)
    gate = undisturbed.gates[2]
    assert gate["step"] in (2, 4, 5)
    assert {"adversarial", "discriminator", "validation l1"} < set(gate)


def test_directions_of_what_the_cohort_tells(undisturbed):
    pytest.importorskip("neurodiff.pipelines.ldae_directions")
    assert list(undisturbed.directions) == ["AD", "sex", "age"]
    assert undisturbed.directions["age"].unit == "years"
    codes = undisturbed.codes(np.stack([volume.data for volume in cohort()]))
    score = undisturbed.directions["age"].score(codes)
    assert abs(score.mean() - 62) < 1  # noise tells no age
    moved = undisturbed.move(codes, "age", 1.0)
    assert (undisturbed.directions["age"].score(moved) > score).all()


@pytest.mark.parametrize("stage", ["autoencoder", "trunk", "semantic"])
def test_killed_in_a_stage_ends_in_the_same_weights(undisturbed, tmp_path, monkeypatch, stage):
    real = loop._save

    def dies(folder, step, *rest):
        real(folder, step, *rest)
        if stage in str(folder) and step == 3:
            raise Killed

    monkeypatch.setattr(loop, "_save", dies)
    with pytest.raises(Killed):
        fitted(run_in(tmp_path / "run"))
    monkeypatch.undo()
    steps = []
    real_rate = loop.learning_rate_at
    monkeypatch.setattr(
        loop, "learning_rate_at", lambda step, s: steps.append(step) or real_rate(step, s)
    )
    again = fitted(run_in(tmp_path / "run"))
    assert steps[0] == 3  # from the checkpoint, not from the beginning
    assert again.identity == undisturbed.identity
    steps.clear()
    assert fitted(run_in(tmp_path / "run")).identity == undisturbed.identity
    assert not steps  # all is there: nothing is trained


def test_same_seed_same_weights_another_seed_others(undisturbed):
    assert fitted(seed=4).identity != undisturbed.identity


def test_last_weights_without_validation_scans(undisturbed):
    assert "validation l1" not in fitted(validation=False).gates[1]


# ------------------------------------------------------------------------------- stage 3


def semantic():
    size = LDAE.from_recipe("ldae_tiny", RECIPE).size
    decoder = seeded(lambda: ShiftUNet(size.unet), 0, "decoder")
    for p in decoder.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    encoder = seeded(lambda: SliceEncoder(size.encoder), 0, "encoder")
    return size, encoder, decoder


def test_stage_3_leaves_the_trunk_alone():
    size, encoder, decoder = semantic()
    model = SemanticLoss(encoder, decoder, linear(1000)).train()
    assert not any(m.training for part in decoder.trunk() for m in part.modules())
    before = {n: t.clone() for n, t in decoder.state_dict().items()}
    volumes, latents = torch.rand(2, 1, *GRID), torch.randn(2, *size.latent)
    settings = loop.TrainingSettings(steps=3, batch_size=2, warmup=0, ema_decay=0.5)
    loop.train(
        model,
        lambda module, rows, generator: module(volumes, latents, generator),
        n_items=2, settings=settings, seed=0, stage="x",
    )  # fmt: skip
    shift = ("label_emb", "shift_")
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(shift), name
    assert all(p.grad is None for part in decoder.trunk() for p in part.parameters())


def test_weights_of_stage_3_are_those_of_the_published_loss():
    """lambda_t |eps - (eps_theta + c G)|², from the tables of the path."""
    size, encoder, decoder = semantic()
    model = SemanticLoss(encoder, decoder, linear(1000)).eval()
    volumes, z = torch.rand(2, 1, *GRID), torch.randn(2, *size.latent)
    path, generator = linear(1000), torch.Generator().manual_seed(5)
    t = path.sample_t(2, generator)
    eps = torch.randn(z.shape, generator=generator)
    alpha, sigma = (
        v[t.long()].float()[:, None, None, None, None] for v in (path.alpha, path.sigma)
    )
    codes = encoder(volumes.permute(0, 1, 4, 2, 3))
    noise, shift = decoder(alpha * z + sigma * eps, t.float(), codes)
    snr = (alpha / sigma) ** 2
    wanted = (snr**0.1 / (1 + snr) * (eps - noise + sigma * shift) ** 2).mean()
    told = model(volumes, z, torch.Generator().manual_seed(5))["loss"]
    torch.testing.assert_close(told, wanted, rtol=1e-4, atol=1e-6)


def test_checkpointing_changes_no_gradient_of_stage_3():
    found = []
    for on in (False, True):
        size, encoder, decoder = semantic()
        model = SemanticLoss(encoder, decoder, linear(1000)).eval()
        set_checkpointing(encoder, decoder, on)
        z = torch.ones(2, *size.latent)
        model(torch.ones(2, 1, *GRID), z, torch.Generator().manual_seed(1))["loss"].backward()
        found.append(encoder.query_projection.weight.grad.clone())
    torch.testing.assert_close(*found)
    assert found[0].abs().sum() > 0


# ------------------------------------------------------------------------------- caches


def small_autoencoder(seed=0):
    size = LDAE.from_recipe("ldae_tiny", RECIPE).size
    return seeded(lambda: autoencoder(size.autoencoder), seed, "autoencoder").eval(), size.latent


def prepared(folder, scans, **overrides):
    pipe = LDAE.from_recipe("ldae_tiny", [*RECIPE, *(f"{k}={v}" for k, v in overrides.items())])
    return prepared_scans(scans, pipe.prepare, pipe.recipe, folder)


def test_latents_are_cached_and_a_cache_of_another_autoencoder_is_refused(tmp_path):
    scans = prepared(tmp_path / "scans", cohort(), **{"semantic.stored": "float32"})
    net, shape = small_autoencoder()
    cache = encode_scans(net, scans, tmp_path / "cache", shape=shape)
    assert cache.ids == sorted(scans.cohort.ids)
    with torch.no_grad():
        mean, log_variance = encode(net, torch.from_numpy(scans.take([2])))
    kept = cache.read(scans.cohort.ids[2])
    assert np.array_equal(kept.mean, mean[0].numpy())
    assert np.array_equal(kept.log_variance, log_variance[0].numpy())
    other, _ = small_autoencoder(1)
    with pytest.raises(DataError, match="latents of another autoencoder"):
        encode_scans(other, scans, tmp_path / "cache", shape=shape)


def test_each_step_draws_anew_and_the_published_protocol_once(tmp_path):
    cache = LatentCache.open(tmp_path / "c", autoencoder="0" * 64, shape=(1, 2, 2, 2))
    rng = np.random.default_rng(0)
    mean = rng.random((1, 2, 2, 2)).astype(np.float32)
    for scan in "ab":
        log_variance = np.full_like(mean, -2.0)
        cache.write(scan, Latent(mean=mean, log_variance=log_variance, affine=np.eye(4)))
    rows = np.array([0, 1])
    fresh = Posteriors(cache, "ab", seed=1, draws_once=False)
    draws = torch.stack(
        [fresh.draw(rows, torch.Generator().manual_seed(s)) for s in range(2000)]
    ).double()
    torch.testing.assert_close(
        draws.mean(0), torch.from_numpy(np.stack([mean, mean])).double(), atol=0.05, rtol=0
    )
    assert float(draws.std(0).mean()) == pytest.approx(np.exp(-1), rel=0.02)
    once = Posteriors(cache, "ab", seed=1, draws_once=True)
    first, second = (once.draw(rows, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(first, second)
    assert np.array_equal(first[0].numpy(), cache.sample("a", seed=1))
    assert not torch.equal(first[0], first[1])  # each scan has a draw of its own


def test_scans_that_fail_are_listed_and_the_rest_goes_on(tmp_path):
    scans = prepared(tmp_path / "scans", cohort(bad=("p1_M000",)))
    assert len(scans) == 7
    assert "p1_M000" not in scans.cohort.ids
    assert scans.failed[0][0] == "p1_M000"
    assert "NaN" in scans.failed[0][1]
    wanted = cohort()["p2_M012"].data
    found = scans.take([scans.cohort.ids.index("p2_M012")])[0]
    np.testing.assert_allclose(found, wanted, atol=5e-4)  # float16 on disk
    with pytest.raises(DataError, match="none of 2 scans could be prepared; first: p1_M000"):
        prepared(tmp_path / "none", cohort([1], bad=("p1_M000", "p1_M012")))


def test_preparation_goes_on_where_it_stopped(tmp_path):
    pipe = LDAE.from_recipe("ldae_tiny", RECIPE)
    scans, seen = cohort(range(20)), []

    def dies(volume):
        seen.append(volume.name)
        if len(seen) == 20:
            raise Killed
        return pipe.prepare(volume)

    with pytest.raises(Killed):
        prepared_scans(scans, dies, pipe.recipe, tmp_path)
    seen[:] = ["again"] * 30
    again = prepared_scans(scans, dies, pipe.recipe, tmp_path)
    assert seen[30] == scans.ids[16]  # the last note of how far it came
    whole = prepared(tmp_path / "whole", scans)
    assert np.array_equal(again.take(range(40)), whole.take(range(40)))


# ------------------------------------------------------------------------------- protocols


def test_published_habits_are_on_under_their_protocol_only():
    new, old = (
        LDAE.from_recipe("ldae_tiny", [*RECIPE, f"protocol={p}"]).recipe
        for p in ("neurodiff-1", "ldae-2025")
    )
    assert (new.draws_once, old.draws_once) == (False, True)
    decays = [r.averaged(r.trunk.training).ema_decay for r in (new, old)]
    assert decays == pytest.approx([0.8, 0.8**2])  # once a step, once a micro-batch
    level = linear(1000).level(10.0)
    own, published = (r.walks().training_coefficient()(level) for r in (new, old))
    assert own == level.sigma
    assert 0 < published < 0.97 * own
    assert [r.walks().limit for r in (new, old)] == [None, 1.0]


# ------------------------------------------------------------------------------- refusals


def test_what_cannot_be_trained_is_told(tmp_path):
    pipe = LDAE.from_recipe("ldae_tiny", RECIPE)
    with pytest.raises(UsageError, match="1 subjects, first p3, are in training and validation"):
        pipe.fit(cohort(), cohort([3, 4]), seed=0)
    nothing = LDAE.from_recipe("ldae_tiny", [*RECIPE, "autoencoder.training=null"])
    with pytest.raises(UsageError, match=r"neither trains nor names autoencoder\.weights"):
        nothing.fit(cohort(), seed=0)
    other = seeded(lambda: autoencoder(LDAE.from_recipe("ldae_tiny").size.autoencoder), 0, "x")
    torch.save(other.state_dict(), tmp_path / "ae.pt")
    wrong = LDAE.from_recipe("ldae_tiny", [*RECIPE, f"autoencoder.weights={tmp_path / 'ae.pt'}"])
    with pytest.raises(UsageError, match="autoencoder of another size"):
        wrong.fit(cohort(), seed=0)


def test_a_given_autoencoder_is_taken_as_it_is(tmp_path):
    net, _ = small_autoencoder(7)
    torch.save(net.state_dict(), tmp_path / "ae.pt")
    pipe = fitted(
        validation=False,
        overrides=["autoencoder.training=null", f"autoencoder.weights={tmp_path / 'ae.pt'}"],
    )
    found = pipe.networks.autoencoder.state_dict()
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())
    assert [gate["stage"] for gate in pipe.gates] == ["scans", "latents", "trunk", "semantic"]


def test_plan_counts_parameters_operations_and_memory(monkeypatch):
    recipe = LDAE.from_recipe("ldae_tiny", RECIPE).recipe
    costs = stage_costs(recipe)
    size = recipe.size
    net, unet = autoencoder(size.autoencoder), ShiftUNet(size.unet)
    count = sum(p.numel() for p in net.parameters())
    assert costs["autoencoder"].trained == count
    trunk = sum(p.numel() for part in unet.trunk() for p in part.parameters())
    assert costs["trunk"].trained == trunk
    cost = costs["trunk"]
    assert (cost.weights, cost.gradients, cost.optimiser) == (4 * trunk, 4 * trunk, 8 * trunk)
    assert cost.average == cost.weights
    assert costs["semantic"].parameters - costs["semantic"].trained == trunk
    assert all(one.flop > 0 and one.activations > 0 for one in costs.values())
    monkeypatch.setattr("neurodiff.pipelines.ldae_cost.stage_costs", lambda _: costs)
    text = plan_text(recipe, cohort())
    assert "5 steps of 4 (2 parts of 2), 2.5 epochs" in text
    assert "fits into 24 GB" in text
    with pytest.raises(UsageError, match="Did you mean 'RTX 4090'"):
        plan_text(dataclasses.replace(recipe, card="RTX 409"))


# what a short training starts from
SHORT = [
    "trunk.centre=true",
    "semantic.from_trunk=true",
    "semantic.even_start=true",
    "semantic.read_out={steps: 7, batch_size: 4, warmup: 1, checkpoint_every: 3}",
]


def test_a_centred_model_has_centred_latents_and_decodes_them_to_the_same_scan(tmp_path):
    pipe = fitted(overrides=SHORT)
    train = cohort()
    volumes = np.stack([pipe.prepare(scan).data for scan in train])
    latents = pipe.latents(volumes)
    assert np.abs(latents.mean(axis=0)).max() < 1e-3 * np.abs(latents).max() + 1e-4
    plain = pipe.networks.autoencoder
    with torch.no_grad():
        x = torch.from_numpy(volumes)
        told = plain.decode(plain.encode(x)[0]).clamp(0, 1).numpy()
    np.testing.assert_allclose(pipe.images(latents), told, atol=1e-5)
    again = LDAE.from_pretrained(pipe.save_pretrained(tmp_path / "model"))
    assert again.identity == pipe.identity
    np.testing.assert_array_equal(again.latents(volumes), latents)
    with pytest.raises(UsageError, match="centred"):
        export_bundle(pipe.networks, tmp_path / "bundle")


def test_killed_after_the_read_out_ends_in_the_same_weights(tmp_path, monkeypatch):
    save = loop._save

    def dying(folder, step, *rest):
        save(folder, step, *rest)
        if "semantic" in str(folder) and folder.name != "read-out":
            raise Killed

    monkeypatch.setattr(loop, "_save", dying)
    with pytest.raises(Killed):
        fitted(run_in(tmp_path / "run", SHORT), overrides=SHORT)
    monkeypatch.setattr(loop, "_save", save)
    resumed = fitted(run_in(tmp_path / "run", SHORT), overrides=SHORT)
    assert resumed.identity == fitted(overrides=SHORT).identity
    assert not list((tmp_path / "run").rglob("read-out"))
