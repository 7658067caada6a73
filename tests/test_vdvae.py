"""VDVAE: golden numbers, latent order, noise of its own for each item, likelihood, learning."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.models import vdvae_blocks, vdvae_pictures
from neurodiff.models.logistic_mixture import LogisticMixture, to_levels
from neurodiff.models.vdvae import (
    BRAIN_DIFFUSER_LATENTS,
    IMAGENET64,
    VDVAE,
    VDVAESize,
    flatten_latents,
    unflatten_latents,
)
from neurodiff.models.vdvae_weights import FILE, load_vdvae
from neurodiff.models.weights import load_encoder, load_mind3d

_SPEC = importlib.util.spec_from_file_location(
    "golden_recipe", Path(__file__).parent / "golden" / "recipe.py"
)
recipe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipe)

CASES = recipe.load("vdvae")
TINY = VDVAESize(
    image_size=8,
    enc_blocks="8x1,8d2,4x1,4d4,1x1",
    dec_blocks="1x1,4m1,4x1,8m4",
    zdim=2,
    width=8,
    mixtures=2,
)


class Golden:
    """One golden network with its inputs; noise as in its recipe."""

    def __init__(self, name: str, tolerance: float) -> None:
        self.case, self.tolerance = CASES[name], tolerance
        config = self.case["config"]
        self.size = VDVAESize(
            image_size=config["image_size"],
            enc_blocks=config["enc_blocks"],
            dec_blocks=config["dec_blocks"],
            zdim=config["zdim"],
            width=config["width"],
            bottleneck=config["bottleneck_multiple"],
            no_bias_above=config["no_bias_above"],
            mixtures=config["num_mixtures"],
        )
        self.model = recipe.fill(VDVAE(self.size), self.case["recipe"])
        self.out = self.case["outputs"]
        self.x = recipe.make(self.case["inputs"]["x"])
        self.target = recipe.make(self.case["inputs"]["target"]).clamp(-1, 1)
        self.count = len(self.out["offsets"]) - 1
        self.draws = 0

    def noise(self, like, generators):
        i = torch.arange(like.numel(), dtype=torch.float64)
        self.draws += 1
        return torch.sin(1.1 * i + self.draws - 1).reshape(like.shape)

    def manual(self):
        shapes = [(len(self.x), *shape) for shape in self.model.latent_shapes(self.count)]
        return [
            torch.sin(0.457 * torch.arange(math.prod(s), dtype=torch.float64) + 0.1 * k).reshape(s)
            for k, s in enumerate(shapes)
        ]

    def check(self, tensor, name):
        recipe.check(tensor, self.out[name], self.tolerance)


@pytest.fixture(
    scope="module",
    params=[("vdvae.small", 1e-9), ("vdvae.real_spec_w16", 1e-8)],
    ids=["small", "75"],
)
def golden(request):
    return Golden(*request.param)


@pytest.fixture
def injected(golden, monkeypatch):
    golden.draws = 0
    monkeypatch.setattr(vdvae_blocks, "draw_normal", golden.noise)
    return golden


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def tiny():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VDVAE(TINY)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def test_published_size_has_the_published_parameters_and_latents():
    with torch.device("meta"):
        model = VDVAE()
    assert sum(p.numel() for p in model.parameters()) == 125_005_860  # Child 2021, table 1: 125 M
    shapes = model.latent_shapes(BRAIN_DIFFUSER_LATENTS)
    sides = [side for _, side, _ in shapes]
    assert sides == [1] * 2 + [4] * 4 + [8] * 8 + [16] * 16 + [32]
    assert sum(math.prod(shape) for shape in shapes) == 91_168
    assert sum(math.prod(shape) for shape in model.latent_shapes()) == 1_451_040
    assert len(IMAGENET64.decoder_blocks) == 75


def test_names_and_shapes_are_the_published_ones(golden):
    assert recipe.manifest(golden.model) == golden.case["manifest"]["params"]
    shapes = [list(shape) for shape in golden.model.latent_shapes()]
    assert shapes == golden.out["latent_shapes"]


@torch.no_grad()
def test_encoder_and_posterior_equal_the_published_code(injected):
    for resolution, activation in injected.model.encoder(injected.x).items():
        injected.check(activation, f"enc_act_{resolution}")
    latents = injected.model.encode(injected.x)
    assert injected.draws == len(latents) == injected.out["n_draws"]
    for name in (key for key in injected.out if key.startswith("z_")):
        injected.check(latents[int(name[2:])], name)
    flat = flatten_latents(latents[: injected.count])
    assert flat.shape[1] == injected.out["flat_len"] == injected.out["offsets"][-1]
    injected.check(flat, f"flat_first{injected.count}")
    shapes = injected.model.latent_shapes(injected.count)
    for k, (z, start) in enumerate(zip(latents, injected.out["offsets"][:-1], strict=False)):
        assert torch.equal(flat[:, start : start + math.prod(shapes[k])], z.flatten(1))
    for back, z in zip(unflatten_latents(flat, shapes), latents, strict=False):
        assert torch.equal(back, z)


@torch.no_grad()
def test_bound_equals_the_published_code(injected):
    bound = injected.model(injected.x, injected.target, generators(0))
    wanted = injected.out["elbo"]
    got = {"elbo": bound.loss, "distortion": bound.distortion, "rate": bound.rate}
    assert {k: float(v) for k, v in got.items()} == pytest.approx(wanted, rel=1e-10)
    kl = bound.kl * len(injected.x)
    wanted = injected.out["kl_per_block_sum_first_last"]
    assert [float(kl[0]), float(kl[-1])] == pytest.approx([wanted[0], wanted[-1]], rel=1e-9)


@torch.no_grad()
def test_given_latents_and_prior_equal_the_published_code(injected):
    model, given = injected.model, injected.manual()
    features = model.features(given)
    injected.check(features, "manual_latents_px_z")
    assert injected.draws == injected.out["manual_prior_draws"]
    injected.draws = 0
    injected.check(model.features(given, temperature=0.8), "manual_latents_px_z_t0.8")
    injected.draws = 0
    injected.check(model.features([], generators(*range(len(injected.x)))), "uncond_px_z")
    parameters = model.parameters_of(features)
    injected.check(parameters, "dmol_params")
    mixture = LogisticMixture.from_parameters(parameters)
    assert mixture.nats(injected.target).tolist() == pytest.approx(
        injected.out["dmol_nll_target"], rel=1e-10
    )
    injected.check(mixture.mode(), "dmol_mode_u05")
    counts = torch.bincount(mixture.likeliest().flatten(), minlength=injected.size.mixtures)
    assert counts.tolist() == injected.out["dmol_argmax_counts"]

    def uniform(like, j):
        i = torch.arange(like.numel(), dtype=torch.float64)
        return (0.5 + 0.49 * torch.sin(0.77 * i + j)).reshape(like.shape)

    drawn = mixture.sample(uniform(mixture.logits, 0), uniform(mixture.means[..., 0], 1))
    injected.check(drawn, "dmol_sample_injected")
    injected.draws = 0
    levels = model.decode(given, pixels="mode")
    wanted = injected.out["dmol_mode_uint8"]
    assert list(levels.shape) == wanted["shape"]
    assert abs(int(levels.sum(dtype=torch.int64)) - wanted["sum"]) <= 1e-3 * levels.numel()
    ends = [*levels.flatten()[:8].tolist(), *levels.flatten()[-8:].tolist()]
    assert ends == wanted["first8"] + wanted["last8"]


@torch.no_grad()
def test_float32_stays_within_the_stated_distance(monkeypatch):
    case = Golden("vdvae.small", 1e-5)
    monkeypatch.setattr(vdvae_blocks, "draw_normal", lambda like, g: case.noise(like, g).to(like))
    model = case.model.float()
    case.check(flatten_latents(model.encode(case.x.float(), count=case.count)), "flat_first5")
    case.draws = 0
    given = [z.float() for z in case.manual()]
    case.check(model.features(given), "manual_latents_px_z")
    case.draws = 0
    levels = model.decode(given, pixels="mode").flatten()
    wanted = case.out["dmol_mode_uint8"]
    assert abs(int(levels.sum(dtype=torch.int64)) - wanted["sum"]) <= 1e-3 * levels.numel()


def test_an_items_noise_is_its_own_in_any_batch(tiny):
    x = torch.randn(3, 8, 8, 3, generator=generators(9)[0])
    whole = flatten_latents(tiny.encode(x, generators(1, 2, 3)))
    for k, seed in enumerate((1, 2, 3)):
        alone = flatten_latents(tiny.encode(x[k : k + 1], generators(seed)))
        torch.testing.assert_close(alone[0], whole[k], atol=1e-5, rtol=1e-5)
    turned = flatten_latents(tiny.encode(x.flip(0), generators(3, 2, 1)))
    torch.testing.assert_close(turned.flip(0), whole, atol=1e-5, rtol=1e-5)
    other = flatten_latents(tiny.encode(x, generators(1, 2, 4)))
    assert torch.equal(other[:2], whole[:2])
    assert not torch.equal(other[2], whole[2])


def test_first_latents_are_the_same_when_later_blocks_are_not_run(tiny):
    x = torch.randn(2, 8, 8, 3, generator=generators(9)[0])
    some, whole = (tiny.encode(x, generators(1, 2), count=count) for count in (2, None))
    assert len(some) == 2
    assert len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(some, whole, strict=False))


def test_mean_of_the_posterior_is_the_mean_of_its_draws(tiny):
    x = torch.randn(1, 8, 8, 3, generator=generators(9)[0])
    mean = tiny.encode(x, sample=False, count=1)[0][0]
    draws = tiny.encode(x.expand(4000, -1, -1, -1), generators(*range(4000)), count=1)[0]
    spread = draws.std(0)
    assert (abs(draws.mean(0) - mean) < 5 * spread / 4000**0.5).all()
    half = tiny.encode(
        x.expand(4000, -1, -1, -1), generators(*range(4000)), count=1, temperature=0.5
    )
    torch.testing.assert_close(half[0].std(0), spread / 2, rtol=1e-3, atol=0.0)


def test_decoding_repeats_under_a_seed_and_only_then(tiny):
    latents = tiny.encode(torch.zeros(2, 8, 8, 3), sample=False, count=2)
    first, again, other = (tiny.decode(latents, generators(*s)) for s in ((1, 2), (1, 2), (1, 5)))
    assert first.dtype == torch.uint8
    assert first.shape == (2, 8, 8, 3)
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(
        tiny.decode(latents, pixels="mode", temperature=0.0),
        tiny.decode(latents, generators(8, 9), pixels="mode", temperature=0.0),
    )
    assert tiny.decode([], generators(1, 2, 3)).shape == (3, 8, 8, 3)


def test_all_latents_given_are_all_that_decides(tiny):
    latents = tiny.encode(torch.zeros(2, 8, 8, 3), generators(1, 2))
    first, other = (tiny.decode(latents, g, pixels="mode") for g in (None, generators(5, 6)))
    assert torch.equal(first, other)


@pytest.mark.parametrize("colour", [0, 2])
def test_masses_of_a_colours_levels_sum_to_one(colour):
    """Summed over its 256 levels a colour drops out: its own parameters no longer count."""
    generator = generators(0)[0]
    pixels = torch.tensor([0.1, -0.4, 0.7], dtype=torch.float64).repeat(256, 1)
    pixels[:, colour] = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    shared = torch.randn(1, 1, 1, 30, generator=generator, dtype=torch.float64)
    one = LogisticMixture.from_parameters(shared.expand(256, -1, -1, -1))
    coefficients = one.coefficients * (colour == 2)  # red may be dropped where none depends on it
    sums = []
    for mean, log_scale in ((0.0, -3.0), (0.9, -1.0), (-2.0, 0.5)):
        means, log_scales = one.means.clone(), one.log_scales.clone()
        means[..., colour, :], log_scales[..., colour, :] = mean, log_scale
        changed = LogisticMixture(one.logits, means, log_scales, coefficients)
        sums.append(float((-3 * changed.nats(pixels[:, None, None])).exp().sum()))
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)


def test_mode_is_the_sample_at_one_half():
    parameters = torch.randn(2, 3, 3, 30, generator=generators(3)[0])
    one = LogisticMixture.from_parameters(parameters)
    half = one.sample(torch.full_like(one.logits, 0.5), torch.full_like(one.means[..., 0], 0.5))
    torch.testing.assert_close(one.mode(), half)


def test_levels_are_rounded_down_and_clipped():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    assert to_levels(pixels).tolist() == [0, 0, 127, 254, 255, 255]


def test_training_lowers_the_bound_and_reaches_every_parameter():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VDVAE(TINY)
    levels = np.random.default_rng(0).integers(0, 2, (8, 1, 1, 3)) * np.uint8(255)
    pixels = np.broadcast_to(levels, (8, 8, 8, 3)).astype(np.uint8)
    x, targets = vdvae_pictures.normalise(pixels), vdvae_pictures.to_targets(pixels)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    bounds = []
    for step in range(40):
        bound = model(x, targets, generators(step)[0])
        optimiser.zero_grad()
        bound.loss.backward()
        if step == 3:  # at step 0 the priors' last convolutions and the learned starts are zero
            dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert not dead
        optimiser.step()
        bounds.append(float(bound.loss.detach()))
    assert bounds[-1] < 0.5 * bounds[0]
    assert set(bound.terms()) == {"loss", "distortion", "rate"}
    with torch.no_grad():
        half = model(x, targets, generators(0)[0], rate_weight=0.5)
    assert float(half.loss) == pytest.approx(float(half.distortion + 0.5 * half.rate), rel=1e-6)


def test_pictures_are_normalised_as_published():
    black, white = (np.full((1, 2, 2, 3), v, np.uint8) for v in (0, 255))
    assert float(vdvae_pictures.normalise(black)[0, 0, 0, 0]) == pytest.approx(-1.6710807, abs=1e-6)
    assert float(vdvae_pictures.normalise(white)[0, 0, 0, 0]) == pytest.approx(2.0046464, abs=1e-6)
    assert vdvae_pictures.to_targets(white).unique().tolist() == [1.0]
    noise = np.random.default_rng(0).integers(0, 256, (425, 425, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    small = vdvae_pictures.to_pixels([picture])
    assert small.shape == (1, 64, 64, 3)
    assert np.array_equal(small[0], np.asarray(picture.resize((64, 64), Image.BILINEAR)))
    large = vdvae_pictures.enlarge(small)[0]
    assert large.size == (512, 512)
    assert np.array_equal(large, Image.fromarray(small[0]).resize((512, 512), resample=3))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), Image.new("L", (4, 4)), "a.png"])
def test_what_is_no_rgb_picture_is_refused(wrong, without_shape_checks):
    with pytest.raises(UsageError, match="picture 0 is"):
        vdvae_pictures.to_pixels([wrong])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"enc_blocks": "16x1"}, "has a block at 16"),
        ({"enc_blocks": "8x1,8d3"}, "divides them by 3"),
        ({"enc_blocks": "8x1,,4"}, "'' in"),
        ({"enc_blocks": "8y1"}, "'8y1'"),
        ({"dec_blocks": "2x1,8m2"}, "the encoder passes 1, 4, 8"),
        ({"dec_blocks": "1x1,4m1"}, "does not end at 8"),
        ({"dec_blocks": "4x1,8m1"}, "8m1"),
        ({"no_bias_above": 0}, "without a start"),
        ({"width": 3}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(change, says):
    settings = {"image_size": 8, "enc_blocks": TINY.enc_blocks, "dec_blocks": TINY.dec_blocks}
    with pytest.raises(UsageError, match=says):
        VDVAESize(**(settings | change))


def test_wrong_inputs_get_a_sentence(tiny):
    x = torch.zeros(2, 8, 8, 3)
    latents = tiny.encode(x, sample=False, count=2)
    with pytest.raises(UsageError, match="no generators for 2 items"):
        tiny.encode(x)
    with pytest.raises(UsageError, match="1 generators for 2 items"):
        tiny.encode(x, generators(1))
    with pytest.raises(UsageError, match="16 x 16 pixels; this VDVAE takes 8 x 8"):
        tiny.encode(torch.zeros(1, 16, 16, 3), generators(1))
    with pytest.raises(UsageError, match="9 latents asked for"):
        tiny.encode(x, count=9, sample=False)
    with pytest.raises(UsageError, match="no generators for 2 items"):
        tiny.decode(latents)
    with pytest.raises(UsageError, match="latent 1 has shape"):
        tiny.decode([latents[0], latents[0]], generators(1, 2))
    with pytest.raises(UsageError, match="5 latents"):
        tiny.decode([*latents, *latents, latents[0]], generators(1, 2))
    with pytest.raises(UsageError, match="one generator for each picture"):
        tiny.decode([])
    with pytest.raises(UsageError, match="known: 'sample', 'mode'"):
        _decode_oddly(tiny)
    with pytest.raises(UsageError, match="7 parameters a pixel"):
        LogisticMixture.from_parameters(torch.zeros(1, 1, 1, 7))
    with pytest.raises(UsageError, match="33 values"):
        unflatten_latents(torch.zeros(1, 33), tiny.latent_shapes(2))
    with pytest.raises(UsageError, match="no latents"):
        flatten_latents([])


def _decode_oddly(model):
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        model.decode(model.encode(torch.zeros(1, 8, 8, 3), sample=False), pixels="median")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


WIDTH_16 = VDVAESize(width=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The published blocks at width 16, as they come from parallel training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = VDVAE(WIDTH_16).state_dict()
    path = tmp_path_factory.mktemp("weights") / FILE
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, path)
    return path, weights


def test_published_file_loads_by_name(checkpoint):
    path, weights = checkpoint
    model = load_vdvae(path, any_size=True)
    assert model.size == WIDTH_16
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert not model.training
    with pytest.raises(DataError, match=r"another size.*width 16 \(published 512\)"):
        load_vdvae(path)


def test_weights_check_knows_the_vdvae(checkpoint):
    from neurodiff.analysis.published import check_weights, expected_table

    path, _ = checkpoint
    table, problem = check_weights(path, any_size=True)
    assert not problem
    assert "layout V (VDVAE of Brain-Diffuser), 2,482 tensors" in table
    assert "all that is needed is there" in table
    assert "width 16 (published 512)" in check_weights(path)[1]
    assert "125,005,860" in expected_table()


def test_broken_and_foreign_files_are_refused(checkpoint, tmp_path):
    _, weights = checkpoint
    lacking = dict(weights)
    del lacking["decoder.dec_blocks.40.z_proj.bias"]
    torch.save(lacking, tmp_path / "lacking.th")
    with pytest.raises(DataError, match=r"1 missing: decoder\.dec_blocks\.40\.z_proj\.bias"):
        load_vdvae(tmp_path / "lacking.th", any_size=True)
    other = dict(weights) | {"decoder.gain": torch.ones(1, 3, 1, 1)}
    torch.save(other, tmp_path / "other.th")
    with pytest.raises(DataError, match=r"other shape: decoder\.gain \(1, 3, 1, 1\)"):
        load_vdvae(tmp_path / "other.th", any_size=True)
    with pytest.raises(UsageError, match=r"layout V .*no part of MinD-3D"):
        load_mind3d(checkpoint[0])
    with pytest.raises(UsageError, match="no fMRI encoder"):
        load_encoder(checkpoint[0])
    torch.save({"feat.stn.conv1.weight": torch.zeros(64, 3, 1)}, tmp_path / "pointnet.pth")
    with pytest.raises(UsageError, match=r"layout F .*no VDVAE"):
        load_vdvae(tmp_path / "pointnet.pth")
    (tmp_path / "cut.th").write_bytes(checkpoint[0].read_bytes()[:5000])
    with pytest.raises(DataError, match="not a complete weights file"):
        load_vdvae(tmp_path / "cut.th")
    with pytest.raises(MissingDataError):
        load_vdvae(tmp_path / "none.th")
