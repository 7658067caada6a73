"""LDAE's U-Net, shift U-Net and slice encoder: golden numbers, freezing, sizes, wrong input."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from neurodiff.core.errors import UsageError
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.objective import Objective, snr_power
from neurodiff.diffusion.paths import linear
from neurodiff.models.ldae_denoiser import ShiftDenoiser, published_training_coefficient
from neurodiff.models.ldae_sizes import (
    BASE,
    PRESETS,
    TINY,
    AutoencoderSize,
    LatentUNetSize,
    LDAESize,
    S,
    SliceEncoderSize,
)
from neurodiff.models.ldae_slice_encoder import SliceEncoder, slices_first
from neurodiff.models.ldae_unet import TRUNK, LatentUNet, ShiftUNet, sinusoids

_SPEC = importlib.util.spec_from_file_location(
    "golden_recipe", Path(__file__).parent / "golden" / "recipe.py"
)
recipe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipe)

CASES = recipe.load("ldae")
UNETS, ENCODER = CASES["ldae.unets"], CASES["ldae.encoder"]
GOLDEN_SIZE = LatentUNetSize(width=32, semantic=16)
SMALL = LatentUNetSize(width=32, multipliers=(1, 2), blocks=1, attention=(2,), semantic=6)
SLICES = SliceEncoderSize(widths=(8, 16), depths=(1, 2), slices=6, heads=2)
LOST = published_training_coefficient(linear(1000))


def randomised(module, seed=0):
    """Weights none of which is zero, so that nothing is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def shift_unet():
    return recipe.fill(ShiftUNet(GOLDEN_SIZE), UNETS["recipe"])


@pytest.fixture(scope="module")
def given():
    inputs = UNETS["inputs"]
    made = {name: recipe.make(inputs[name]) for name in ("z", "y", "noise")}
    return made | {"t": torch.tensor(inputs["t"])}


@pytest.fixture
def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(ShiftUNet(SMALL))


def test_names_and_shapes_are_the_published_ones(shift_unet):
    assert recipe.manifest(shift_unet) == UNETS["manifest"]["params"]
    with torch.device("meta"):
        assert recipe.manifest(SliceEncoder()) == ENCODER["manifest"]["params"]


@pytest.mark.parametrize(
    ("preset", "unet", "shift", "encoder"),
    [
        (BASE, 486_927_363, 865_339_142, 53_588_065),  # counted in the released code
        (S, 30_500_000, 54_300_000, 32_000_000),
        (TINY, 2_800_000, 5_100_000, 348_000),
    ],
    ids=list(PRESETS),
)
def test_presets_have_the_published_numbers_of_parameters(preset, unet, shift, encoder):
    with torch.device("meta"):
        made = LatentUNet(preset.unet), ShiftUNet(preset.unet), SliceEncoder(preset.encoder)
    counts = [sum(p.numel() for p in net.parameters()) for net in made]
    slack = 0 if preset is BASE else 0.1
    for count, expected in zip(counts, (unet, shift, encoder), strict=True):
        assert abs(count - expected) <= slack * expected, counts


def test_what_trains_in_stage_three_is_the_published_share():
    with torch.device("meta"):
        network = ShiftUNet().freeze_trunk()
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trainable == 378_411_779


@torch.no_grad()
def test_noise_and_shift_equal_the_published_code(shift_unet, given):
    noise, shift = shift_unet(given["z"], given["t"], given["y"])
    recipe.check(noise, UNETS["outputs"]["shift_eps"], 1e-9)
    recipe.check(shift, UNETS["outputs"]["shift_grad"], 1e-9)
    unet = recipe.fill(LatentUNet(GOLDEN_SIZE), UNETS["recipe"])
    recipe.check(unet(given["z"], given["t"]), UNETS["outputs"]["unet"], 1e-9)
    assert torch.equal(shift_unet.noise(given["z"], given["t"]), noise)


@torch.no_grad()
def test_float32_is_near_the_published_numbers(given):
    network = recipe.fill(ShiftUNet(GOLDEN_SIZE), UNETS["recipe"]).float()
    noise, shift = network(given["z"].float(), given["t"], given["y"].float())
    recipe.check(noise, UNETS["outputs"]["shift_eps"], 2e-4)
    recipe.check(shift, UNETS["outputs"]["shift_grad"], 2e-4)


@torch.no_grad()
def test_losses_equal_the_published_code(shift_unet, given):
    """Published tables: computed in float64, then each rounded to float32."""
    out, path, z = UNETS["outputs"], linear(1000), given["z"]
    exact = path.levels(given["t"], like=z)
    weight = snr_power()(exact).float().double()
    assert weight.flatten().tolist() == out["weight_at_t"]
    coefficient = LOST(exact)
    assert (-coefficient).flatten().tolist() == out["shift_coef_at_t"]
    x = exact.alpha.float().double() * z + exact.sigma.float().double() * given["noise"]
    recipe.check(x, out["q_sample"], 1e-9)
    noise, shift = shift_unet(x, given["t"], given["y"])
    error = (given["noise"] - (noise - coefficient * shift)) ** 2
    assert float((weight * error).mean()) == pytest.approx(out["stage3_loss"], rel=1e-9)
    error = (given["noise"] - noise) ** 2
    assert float(error.mean()) == pytest.approx(out["stage2_loss"], rel=1e-9)


def test_the_objective_of_the_core_is_the_published_loss(shift_unet, given, monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *a, **k: given["noise"])
    for coefficient, cond, weight, golden in (
        (LOST, given["y"], snr_power(), "stage3_loss"),
        (LOST, None, lambda level: 1.0, "stage2_loss"),
    ):
        objective = Objective(linear(1000), EPS, weight, density=lambda n, g: given["t"])
        denoiser = ShiftDenoiser(shift_unet, coefficient=coefficient)
        with torch.no_grad():
            terms = objective(denoiser, given["z"], cond, generator=torch.Generator())
        assert float(terms["loss"]) == pytest.approx(UNETS["outputs"][golden], rel=1e-6)


@torch.no_grad()
def test_codes_equal_the_published_code():
    encoder = recipe.fill(SliceEncoder(), ENCODER["recipe"])
    x = recipe.make(ENCODER["inputs"]["x"])
    recipe.check(encoder(x), ENCODER["outputs"]["encoder_float64"], 1e-8)
    recipe.check(encoder.float()(x.float()), ENCODER["outputs"]["encoder_float32"], 2e-4)


def test_only_the_chosen_axes_are_halved(small):
    skips, _ = small.down(torch.zeros(1, 3, 4, 6, 8), torch.tensor([3]))
    assert [tuple(s.shape[2:]) for s in skips] == [(4, 6, 8)] * 2 + [(4, 3, 4)] * 2
    cube = LatentUNet(
        LatentUNetSize(
            width=32, multipliers=(1, 1), blocks=1, attention=(), stride=(2, 2, 2), semantic=6
        )
    )
    assert cube.size.multiples == (2, 2, 2)
    skips, _ = cube.down(torch.zeros(1, 3, 4, 6, 8), torch.tensor([3]))
    assert tuple(skips[-1].shape[2:]) == (2, 3, 4)


def test_a_new_network_answers_zero_and_its_first_step_moves_it():
    network = LatentUNet(SMALL)
    x, t = torch.randn(1, 3, 2, 4, 4), torch.tensor([10])
    assert not network(x, t).any()
    (network(x, t) - 1).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.out[2].weight.grad.abs().sum() > 0


def test_the_frozen_trunk_keeps_still_while_the_shift_learns():
    network = randomised(ShiftUNet(SMALL)).freeze_trunk().train()
    before = {name: p.clone() for name, p in network.named_parameters()}
    x, t, code = torch.randn(2, 3, 2, 4, 4), torch.tensor([10, 500]), torch.randn(2, 6)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    noise, shift = network(x, t, code)
    assert not noise.requires_grad
    assert torch.equal(noise, network(x, t, code)[0])  # no dropout in the trunk
    shift.square().mean().backward()
    optimiser.step()
    for name, p in network.named_parameters():
        assert (p.grad is None) == name.startswith(TRUNK), name
        assert torch.equal(p, before[name]) or not name.startswith(TRUNK), name
    assert not torch.equal(network(x, t, code)[1], shift)


def test_start_from_a_trunk_gives_its_noise_and_no_shift():
    trunk = randomised(LatentUNet(SMALL))
    network = ShiftUNet(SMALL).start_from(trunk).eval()
    x, t = torch.randn(1, 3, 2, 4, 4), torch.tensor([10])
    noise, shift = network(x, t, torch.randn(1, 6))
    assert torch.equal(noise, trunk(x, t))
    assert not shift.any()


def test_stages_two_and_three_learn_a_batch():
    """Both by the core's objective: the trunk first, then the shift on the frozen trunk."""
    generator = torch.Generator().manual_seed(0)
    code = torch.eye(4, 6)
    x = code[:, :3, None, None, None] * torch.ones(4, 3, 2, 4, 4)  # the code says which scan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ShiftUNet(replace(SMALL, dropout=0.0))

    def trained(cond, weight):
        chosen = [p for p in network.parameters() if p.requires_grad]
        optimiser, losses = torch.optim.Adam(chosen, 2e-3), []
        objective = Objective(linear(1000), EPS, weight)
        for _ in range(40):
            loss = objective(ShiftDenoiser(network), x, cond, generator=generator)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        return sum(losses[:5]), sum(losses[-5:])

    first, last = trained(None, lambda level: 1.0)
    assert last < 0.6 * first
    network.freeze_trunk()
    first, last = trained(code, snr_power())
    assert last < 0.8 * first


def test_checkpointing_changes_no_gradient():
    def gradients(on):
        network = randomised(ShiftUNet(SMALL))
        network.checkpointing = on
        noise, shift = network(torch.ones(1, 3, 2, 4, 4), torch.tensor([10]), torch.ones(1, 6))
        (noise + shift).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = gradients(False)
        torch.manual_seed(0)
        assert torch.equal(gradients(True), plain)


def test_items_of_a_batch_do_not_meet(small):
    x, t, code = torch.randn(3, 3, 2, 4, 4), torch.tensor([1, 30, 900]), torch.randn(3, 6)
    whole = small(x, t, code)
    for i in range(3):
        alone = small(x[i : i + 1], t[i : i + 1], code[i : i + 1])
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-4, atol=1e-5)


def test_heads_split_the_width():
    one, two = (
        LatentUNet(LatentUNetSize(width=32, multipliers=(1,), attention=(1,), heads=h))
        for h in (1, 2)
    )
    two.load_state_dict(randomised(one).state_dict())
    x, t = torch.randn(1, 3, 2, 2, 2), torch.tensor([5])
    assert not torch.allclose(one(x, t), two.eval()(x, t))


def test_sinusoids_are_cosines_then_sines_of_falling_frequencies():
    table = sinusoids(torch.tensor([0, 3]), 4)
    assert table[0].tolist() == [1, 1, 0, 0]
    expected = torch.tensor([3.0, 3.0 / 100]).cos()
    torch.testing.assert_close(table[1, :2], expected)


# ------------------------------------------------------------------------------- slices


def test_slices_do_not_see_each_other_and_chunks_change_nothing():
    encoder = randomised(SliceEncoder(SLICES))
    volume = torch.rand(2, 1, 5, 16, 24)
    whole = encoder(volume)
    encoder.slices_at_once = 3
    torch.testing.assert_close(encoder(volume), whole, rtol=1e-4, atol=1e-5)
    weights = encoder.slice_weights(volume)
    assert weights.shape == (2, 5)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_the_order_of_slices_matters():
    encoder = randomised(SliceEncoder(SLICES))
    volume = torch.rand(1, 1, 5, 16, 24)
    assert not torch.allclose(encoder(volume), encoder(volume.flip(2)), atol=1e-4)


def test_slices_first_moves_the_axial_axis_to_the_front():
    image = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    assert torch.equal(slices_first(image)[0, 0, 1], image[0, 0, :, :, 1])


def test_every_parameter_of_the_encoder_learns_in_training():
    encoder = SliceEncoder(SLICES).train()
    encoder(torch.rand(2, 1, 4, 16, 16))[:, :3].sum().backward()
    silent = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert not silent


# ------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 3, 4, 5, 4), "axes (4, 5, 4)"),
        ((1, 3, 4, 4, 2), None),
        ((1, 4, 4, 4, 4), "items, 3, i, j, k"),
        ((1, 3, 4, 0, 4), "axes (4, 0, 4)"),
    ],
)
def test_indivisible_latents_are_refused(small, shape, sentence):
    x, t = torch.zeros(shape), torch.tensor([1])
    if sentence is None:
        assert small.noise(x, t).shape == x.shape
        return
    with pytest.raises(UsageError, match="latents") as caught:
        small.noise(x, t)
    assert sentence in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_the_published_network_refuses_what_its_skips_could_not_join(shift_unet):
    with pytest.raises(UsageError, match=r"multiples of \(1, 4, 4\)"):
        shift_unet.noise(torch.zeros(1, 3, 8, 10, 8).double(), torch.tensor([1]))


def test_codes_of_another_length_or_number_are_refused(small, without_shape_checks):
    x, t = torch.zeros(2, 3, 2, 4, 4), torch.tensor([1, 2])
    for code in (torch.zeros(2, 7), torch.zeros(1, 6)):
        with pytest.raises(UsageError, match=r"expected \(2, 6\)"):
            small(x, t, code)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((1, 1, 7, 16, 16), "7 axial"), ((1, 1, 4, 7, 16), "7, 16"), ((1, 1, 0, 16, 16), "0 axial")],
)
def test_volumes_of_other_sizes_are_refused(shape, sentence):
    with pytest.raises(UsageError, match=sentence):
        SliceEncoder(SLICES)(torch.zeros(shape))


def test_two_channels_are_refused(without_shape_checks):
    with pytest.raises(UsageError, match="items, 1, axial"):
        SliceEncoder(SLICES)(torch.zeros(1, 2, 4, 16, 16))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LatentUNetSize(width=48),
        lambda: LatentUNetSize(multipliers=()),
        lambda: LatentUNetSize(blocks=0),
        lambda: LatentUNetSize(stride=(1, 3, 2)),
        lambda: LatentUNetSize(heads=3),
        lambda: LatentUNetSize(dropout=1.0),
        lambda: SliceEncoderSize(depths=(1, 1)),
        lambda: SliceEncoderSize(heads=7),
        lambda: AutoencoderSize(widths=(20,)),
        lambda: LDAESize(grid=(128, 160, 120)),
        lambda: LDAESize(grid=(128, 160, 256)),
        lambda: LDAESize(unet=LatentUNetSize(semantic=5)),
        lambda: LDAESize(unet=LatentUNetSize(channels=4)),
    ],
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(UsageError):
        make()
