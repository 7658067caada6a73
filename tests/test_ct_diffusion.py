"""Diffusion mode of CT standardization: what must hold whatever the weights are."""

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.run import Run
from neurodiff.models.ct_autoencoder import CTAutoencoder, CTAutoencoderSize, cosine_blocks
from neurodiff.models.ct_baselines import AdversarialPair, adversarial_terms
from neurodiff.models.ct_latent_unet import CTLatentUNet, CTLatentUNetSize
from neurodiff.pipelines.ct_diffusion import CTDiffusion, SlicePairs
from neurodiff.pipelines.ct_diffusion_settings import DiffusionSettings, PatchSettings
from neurodiff.pipelines.ct_gate import round_trip_agreement, tissue_squares
from neurodiff.pipelines.ct_patches import in_patches, scaled, training_slices

SPACING = (0.7, 0.7)
MODES = ("practical", "paper", "one-step", "unet", "gan", "autoencoder", "linear")


def pairs(slices=3, side=64):
    rng = np.random.default_rng(0)
    sharp = rng.normal(0, 60, (slices, side, side)).astype(np.float32)
    sharp += np.linspace(-80, 120, side, dtype=np.float32)
    return SlicePairs(source=sharp, target=gaussian_filter(sharp, (0, 0.8, 0.8)), spacing=SPACING)


@pytest.fixture(scope="module")
def pipe():
    return CTDiffusion.from_recipe("ct_diffusion_tiny").fit([pairs()], seed=1)


def apply(pipe, hu, **how):
    return pipe.apply(hu, SPACING, despite_gate=True, **how).hu


# --------------------------------------------------------------------------------------- networks


def test_lossless_at_the_start_with_as_many_channels_as_pixels():
    torch.manual_seed(0)
    coder = CTAutoencoder(CTAutoencoderSize(factor=2, channels=4, width=4, blocks=1))
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(coder(x), x, atol=1e-5)
    coder.normalise(x)
    z = coder.encode(x)
    assert z.shape == (2, 4, 4, 4)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-5)
    assert torch.allclose(coder(x), x, atol=1e-5)  # normalising moves nothing


def test_fewer_channels_keep_the_lowest_frequencies():
    coder = CTAutoencoder(CTAutoencoderSize(factor=4, channels=1, width=4, blocks=0))
    x = torch.randn(1, 1, 8, 8)
    means = torch.nn.functional.avg_pool2d(x, 4)
    assert torch.allclose(
        coder(x), means.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-5
    )
    assert torch.allclose(cosine_blocks(4)[0], torch.full((16,), 0.25))


def test_the_bottleneck_is_all_the_decoder_sees():
    torch.manual_seed(0)
    coder = CTAutoencoder(CTAutoencoderSize(factor=4, channels=3, width=8, blocks=1))
    for p in coder.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(1, 1, 16, 16)
    z = coder.encode(x)
    assert z.numel() == 3 * 16
    assert torch.equal(coder(x), coder.decode(z))


@pytest.mark.parametrize("bad", [{"factor": 8}, {"channels": 17}, {"channels": 0}, {"width": 0}])
def test_sizes_that_cannot_be(bad):
    with pytest.raises(UsageError, match=r"give|texture|at least"):
        CTAutoencoderSize(**bad)


def test_the_network_listens_to_source_time_and_spacing():
    torch.manual_seed(0)
    network = CTLatentUNet(4, CTLatentUNetSize(widths=(8, 16), blocks=1, condition=8))
    torch.nn.init.normal_(network.last.weight, std=0.1)
    x, source = torch.randn(2, 1, 4, 8, 8)
    t, spacing = torch.tensor([3.0]), torch.tensor([[0.7, 0.7]])
    base = network(x, t, (source, spacing))
    for other in (
        network(x, t + 5, (source, spacing)),
        network(x, t, (source + 1, spacing)),
        network(x, t, (source, spacing * 1.2)),
    ):
        assert not torch.allclose(base, other, atol=1e-4)
    with pytest.raises(ValueError, match=r"multiples of 2"):
        network(x[:, :, :7], t, (source[:, :, :7], spacing))


def test_the_two_games_have_their_own_gradients():
    torch.manual_seed(0)
    pair = AdversarialPair(2, 4)
    source, target, spacing = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.ones(2, 2)
    terms = adversarial_terms(pair, source, target, spacing, l1=1.0)
    judge = list(pair.discriminator.parameters())
    made = list(pair.generator.parameters())
    whole = torch.autograd.grad(terms["loss"], judge + made, retain_graph=True)
    own = torch.autograd.grad(terms["judge"], judge, retain_graph=True)
    for a, b in zip(whole, own, strict=False):
        assert torch.allclose(a, b)  # fooling the judge does not move the judge
    with pytest.raises(RuntimeError):
        torch.autograd.grad(terms["judge"], made)


# ---------------------------------------------------------------------------------------- patches


def test_patches_blend_to_the_whole():
    x = torch.randn(1, 2, 40, 56)
    made = in_patches(lambda a, b: a + b, [x, 2 * x], 16, 8, 3)
    assert torch.allclose(made, 3 * x, atol=1e-5)


def test_patches_of_a_network_agree_with_the_whole_slice_away_from_borders():
    torch.manual_seed(0)
    coder = CTAutoencoder(CTAutoencoderSize(factor=4, channels=4, width=4, blocks=0))
    torch.nn.init.normal_(coder.decoder[-1].weight, std=0.1)
    z = torch.randn(1, 4, 32, 32)
    patch = coder.decode(z[:, :, 8:24, 8:24])[:, :, 16:-16, 16:-16]
    assert torch.allclose(patch, coder.decode(z)[:, :, 48:80, 48:80], atol=1e-5)


def test_resampling_keeps_a_kernel_in_line_pairs():
    """A wave of 0.5 lp/cm stays one at another spacing."""
    columns = np.arange(64) * 0.7 / 10
    period = 64 * 0.7 / 10 / 2  # two whole waves in the slice
    wave = np.tile(100 * np.sin(2 * np.pi * columns / period), (1, 64, 1)).astype(np.float32)
    scan = SlicePairs(source=wave, target=wave, spacing=SPACING).checked()
    settings = PatchSettings(size=32, apply=48, overlap=16, spacing_factors=(1.25,))
    one = training_slices([scan], lambda hu, s, p: hu, settings)[0]
    assert one.spacing[1] == pytest.approx(0.7 * 64 / 51)
    at = np.arange(51) * one.spacing[1] / 10
    assert np.allclose(one.source[0], scaled(100 * np.sin(2 * np.pi * at / period)), atol=1e-5)


def test_scaling_is_a_line_without_clipping():
    assert np.allclose(scaled(np.array([-1024.0, 3071.0, 1023.5])), [-1, 1, 0])
    assert scaled(np.array([-1400.0]))[0] < -1


# ---------------------------------------------------------------------------------------- pipeline


def test_with_the_diffusion_an_identity_the_output_is_the_autoencoding(pipe, monkeypatch):
    hu = pairs().source
    monkeypatch.setattr(
        pipe, "denoiser", lambda mode, told: lambda x, level, source: source, raising=True
    )
    assert np.allclose(
        apply(pipe, hu, mode="paper"), apply(pipe, hu, mode="autoencoder"), atol=0.05
    )


def test_without_a_residual_practical_mode_is_the_linear_result(pipe, monkeypatch):
    hu = pairs().source
    monkeypatch.setattr(pipe, "denoiser", lambda *_: lambda x, level, state: torch.zeros_like(x))
    made = apply(pipe, hu, mode="practical")
    # but for the mean of a slice, which the lock restores and the mirrored filter moves a little
    assert np.abs(made - apply(pipe, hu, mode="linear")).max() < 1.0


@pytest.mark.parametrize("mode", ["practical", "paper", "gan"])
def test_a_slice_is_the_same_alone_in_a_batch_and_in_another_order(pipe, mode):
    hu = pairs().source
    together = apply(pipe, hu, mode=mode)
    assert np.array_equal(apply(pipe, hu[1:2], mode=mode)[0], together[1])
    assert np.array_equal(apply(pipe, hu[::-1], mode=mode)[::-1], together)


def test_seeds_and_scans_draw_other_noise(pipe):
    hu = pairs().source[:1]
    base = apply(pipe, hu)
    assert not np.allclose(base, apply(pipe, hu, seed=1), atol=0.01)
    assert not np.allclose(base, apply(pipe, hu, scan="other"), atol=0.01)
    assert np.array_equal(base, apply(pipe, hu))


@pytest.mark.parametrize("mode", MODES)
def test_mean_hu_of_a_slice_stays(pipe, mode):
    hu = pairs().source - 300
    report = pipe.apply(hu, SPACING, mode=mode, despite_gate=True).report
    assert np.abs(report["mean_change_hu"]).max() < (0.5 if mode != "linear" else 1.0)


def test_slow_structure_is_the_inputs(pipe, monkeypatch):
    """Even a network that answers nonsense leaves the band below 0.5 lp/cm."""
    rng = np.random.default_rng(1)
    hu = gaussian_filter(rng.normal(0, 5000, (1, 128, 128)), (0, 16, 16)).astype(np.float32)
    monkeypatch.setattr(pipe, "denoiser", lambda *_: lambda x, level, state: 3 * torch.ones_like(x))
    made = apply(pipe, hu, mode="paper")
    slow = [gaussian_filter(one, (0, 20, 20))[:, 24:-24, 24:-24] for one in (made, hu)]
    assert np.abs(slow[0] - slow[1]).max() < 0.1 * np.abs(slow[1]).max()


def test_padding_stays_and_odd_sizes_are_served(pipe):
    hu = pairs(1, 80).source[:, :75, :77]
    padding = np.zeros(hu.shape, bool)
    padding[:, :5] = True
    hu[padding] = -1024
    made = apply(pipe, hu, padding=padding)
    assert made.shape == hu.shape
    assert made.dtype == np.float32
    assert np.array_equal(made[padding], hu[padding])
    assert abs(float((made - hu)[~padding].mean())) < 0.5


def test_saved_and_loaded_it_gives_the_same(pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path / "model")
    hu = pairs().source[:1]
    again = CTDiffusion.from_pretrained(folder)
    for mode in MODES:
        assert np.array_equal(apply(pipe, hu, mode=mode), apply(again, hu, mode=mode)), mode
    assert again.gate == pipe.gate
    assert again.recipe == pipe.recipe

    (folder / "practical.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="is not the file"):
        CTDiffusion.from_pretrained(folder)
    (folder / "practical.safetensors").unlink()
    with pytest.raises(MissingDataError, match="missing"):
        CTDiffusion.from_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    del index["filter"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="incomplete"):
        CTDiffusion.from_pretrained(folder)
    with pytest.raises(MissingDataError):
        CTDiffusion.from_pretrained(tmp_path / "nothing")


def test_a_finished_run_is_recalled(tmp_path):
    recipe = {"baselines.train": [], "diffusion.train": ["practical"]}
    first = CTDiffusion.from_recipe("ct_diffusion_tiny", recipe)
    run = Run.create(tmp_path / "run", {"name": "x"}, {"data": "x"}, command="test", seed=0)
    first.fit([pairs()], run=run)
    second = CTDiffusion.from_recipe("ct_diffusion_tiny", recipe).fit(
        [pairs()], run=Run.open(tmp_path / "run")
    )
    hu = pairs().source[:1]
    assert np.array_equal(apply(first, hu), apply(second, hu))
    assert [part["stage"] for part in second.gates] == ["autoencoder", "practical"]


# --------------------------------------------------------------------------------------- refusals


def test_fewer_than_two_pairs_are_refused():
    with pytest.raises(DataError, match="1 slice pairs are too few"):
        CTDiffusion.from_recipe("ct_diffusion_tiny").fit([pairs(1)])
    with pytest.raises(DataError, match="0 slice pairs"):
        CTDiffusion.from_recipe("ct_diffusion_tiny").fit([])


def test_arrays_that_are_no_pairs_are_refused():
    good = pairs()
    with pytest.raises(DataError, match="same slices"):
        SlicePairs(source=good.source, target=good.target[:2], spacing=SPACING).checked()
    with pytest.raises(DataError, match="finite"):
        SlicePairs(source=good.source * np.nan, target=good.target, spacing=SPACING).checked()
    with pytest.raises(DataError, match="spacing"):
        SlicePairs(source=good.source, target=good.target, spacing=(0.0, 0.7)).checked()
    with pytest.raises(DataError, match="smaller than a training patch"):
        CTDiffusion.from_recipe("ct_diffusion_tiny").fit([pairs(2, 24)])


def test_a_spacing_outside_training_is_refused_or_warned(pipe):
    hu = pairs().source[:1]
    with pytest.raises(DataError, match=r"outside the 0\.7 to"):
        pipe.apply(hu, (0.4, 0.4), despite_gate=True)
    done = pipe.apply(hu, (0.4, 0.4), despite_gate=True, extrapolate=True)
    assert any("outside" in said for said in done.report["warnings"])
    inside = pipe.apply(hu, (0.75, 0.75), despite_gate=True)
    assert not any("outside" in said for said in inside.report["warnings"])


def test_a_failed_gate_refuses_what_needs_the_latents(pipe, monkeypatch):
    hu = pairs().source[:1]
    monkeypatch.setattr(pipe, "gate", {"ccc": 0.5, "least": 0.98, "passed": False})
    with pytest.raises(DataError, match=r"CCC on the target kernel is 0\.500"):
        pipe.apply(hu, SPACING)
    done = pipe.apply(hu, SPACING, despite_gate=True)
    assert any("0.500" in said for said in done.report["warnings"])
    pipe.apply(hu, SPACING, mode="unet")  # needs no latents


def test_the_gate_knows_a_round_trip_from_a_blur():
    from neurodiff.pipelines.ct_diffusion_settings import GateSettings

    hu, settings = pairs().source, GateSettings(region=16, regions=9)
    assert round_trip_agreement([(hu, hu, SPACING)], settings)["ccc"] == pytest.approx(1)
    blurred = gaussian_filter(hu, (0, 1, 1))
    assert not round_trip_agreement([(hu, blurred, SPACING)], settings)["passed"]
    air = np.full_like(hu, -1000)
    assert tissue_squares(air, 16) == []
    assert round_trip_agreement([(air, air, SPACING)], settings)["ccc"] is None


def test_modes_and_settings_that_are_not_there(pipe):
    hu = pairs().source[:1]
    with pytest.raises(UsageError, match="not fitted yet"):
        CTDiffusion.from_recipe("ct_diffusion_tiny").apply(hu, SPACING)
    few = CTDiffusion.from_recipe("ct_diffusion_tiny", ["diffusion.train=[practical]"])
    assert few.recipe.diffusion.train == ("practical",)
    with pytest.raises(DataError, match="finite"):
        apply(pipe, hu * np.nan)
    with pytest.raises(UsageError, match="1 to 6 steps"):
        CTDiffusion.from_recipe("ct_diffusion_tiny", ["diffusion.steps=7"])
    with pytest.raises(UsageError, match="multiples of 16"):
        PatchSettings(size=33)
    with pytest.raises(UsageError, match="unknown key"):
        CTDiffusion.from_recipe("ct_diffusion_tiny", ["diffusion.stepz=3"])


def test_every_recipe_reads():
    for name in ("tiny", "demo", "2023"):
        recipe = CTDiffusion.from_recipe(f"ct_diffusion_{name}").recipe
        assert isinstance(recipe.diffusion, DiffusionSettings)
