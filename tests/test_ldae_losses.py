"""Losses of LDAE's autoencoder against closed forms, and an adversary that keeps to itself."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.features.perceptual import LPIPS
from neurodiff.models.ldae_autoencoder import autoencoder
from neurodiff.models.ldae_sizes import AutoencoderSize
from neurodiff.pipelines.ldae import seeded
from neurodiff.pipelines.ldae_losses import (
    Adversary,
    AutoencoderLoss,
    SlicePerceptualLoss,
    kl_divergence,
    least_squares,
    perceptual_network,
    reconstructed,
)
from neurodiff.pipelines.ldae_settings import AutoencoderStage

SIZE = AutoencoderSize(widths=(8, 8), blocks=1, groups=4)
SMALL = {"discriminator_width": 4, "discriminator_layers": 1}


def volumes(n=2, seed=0):
    return torch.rand(n, 1, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


def network():
    return seeded(lambda: autoencoder(SIZE), 0, "autoencoder")


class Pixels(nn.Module):
    """A trunk whose features are the picture itself, and its square."""

    widths = (3, 3)

    def forward(self, x):
        return [x, x**2]


def lpips():
    heads = {f"lin{k}.model.1.weight": torch.ones(1, 3, 1, 1) * (k + 1) for k in range(2)}
    return LPIPS(Pixels(), heads)


def test_divergence_is_torch_s_summed_over_a_latent():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(3, 2, 4, 4, 4, generator=generator) for _ in range(2))
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    exact = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), exact.sum() / 3)
    assert kl_divergence(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2)) == 0


def test_published_loss_is_the_weighted_sum_of_its_terms():
    stage = AutoencoderStage(
        l1=1.0, kl=1e-7, perceptual=1e-3, adversarial=0.025, perceptual_share=1.0, **SMALL
    )
    adversary = Adversary(stage, seed=0, batch_size=2)
    perceptual = SlicePerceptualLoss(lpips(), share=1.0)
    net, x = network(), volumes()
    loss = AutoencoderLoss(net, stage, adversary=adversary, perceptual=perceptual)
    terms = loss(x, torch.Generator().manual_seed(1))
    y, mean, log_variance = reconstructed(net, x, torch.Generator().manual_seed(1))
    logits = Adversary(stage, seed=0, batch_size=2).network(y)[-1]
    distance = perceptual(x, y, torch.Generator().manual_seed(2))
    wanted = (
        (x - y).abs().mean()
        + 1e-7 * kl_divergence(mean, log_variance)
        + 1e-3 * distance
        + 0.025 * ((logits - 1) ** 2).mean()
    )
    torch.testing.assert_close(terms["loss"], wanted)
    assert {"l1", "kl", "perceptual", "adversarial", "discriminator"} < set(terms)


def test_discriminator_gets_half_of_both_errors_and_the_generator_gives_it_nothing():
    stage = AutoencoderStage(adversarial=0.5, **SMALL)
    x, y = volumes(2, 1), volumes(2, 2).requires_grad_()
    adversary = Adversary(stage, seed=0, batch_size=4)
    adversary.generator_loss(y).backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None for p in adversary.network.parameters())
    twin = Adversary(stage, seed=0, batch_size=4)
    twin.generator_loss(y.detach())  # batch norm sees the same calls
    told = adversary.collect(x, y)
    real, fake = (twin.network(v)[-1] for v in (x, y.detach()))
    wanted = 0.5 * (least_squares(real, 1.0) + least_squares(fake, 0.0))
    torch.testing.assert_close(told, wanted.detach())
    (0.5 * wanted * 2 / 4).backward()  # its weight, and the share of the batch
    for mine, other in zip(adversary.network.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_adversary_waits_for_its_step_and_comes_back_from_its_state():
    stage = AutoencoderStage(adversarial=0.025, adversarial_from=2, **SMALL)
    adversary = Adversary(stage, seed=0, batch_size=2)
    loss = AutoencoderLoss(network(), stage, adversary=adversary)
    before = [p.clone() for p in adversary.network.parameters()]
    for step in range(3):
        terms = loss(volumes(), torch.Generator().manual_seed(step))
        assert ("adversarial" in terms) == (step == 2)
        adversary.step(1.0)
    after = adversary.network.parameters()
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    other = Adversary(stage, seed=5, batch_size=2)
    other.load_state_dict(copy.deepcopy(adversary.state_dict()))  # as a file would
    assert other.steps == 3
    for one in (adversary, other):
        one.collect(volumes(2, 3), volumes(2, 4))
        one.step(1.0)
    for a, b in zip(adversary.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_perceptual_distance_has_its_closed_form():
    """On constant grey slices the features are unit vectors alike: no distance at all; on slices
    whose colours differ by sign only, |p - q|² is 4 and the mean over voxels stays 4."""
    loss = SlicePerceptualLoss(lpips(), share=1.0)
    generator = torch.Generator().manual_seed(0)
    dark, light = torch.full((1, 1, 4, 4, 4), 0.25), torch.full((1, 1, 4, 4, 4), 0.75)
    # -0.5 and 0.5 in -1..1: opposite unit vectors at the first depth, the same at the second
    assert float(loss(dark, light, generator)) == pytest.approx(3 * 4.0, rel=1e-5)
    assert float(loss(dark, dark, generator)) == 0
    published = SlicePerceptualLoss(lpips(), share=1.0, values="0..1")
    assert float(published(dark, light, generator)) == pytest.approx(0.0, abs=1e-6)


def test_perceptual_distance_has_a_gradient_and_chooses_slices_by_its_generator():
    loss = SlicePerceptualLoss(lpips(), share=0.5)
    x, y = volumes(1, 1), volumes(1, 2).requires_grad_()
    values = [float(loss(x, y, torch.Generator().manual_seed(s)).detach()) for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    loss(x, y, torch.Generator().manual_seed(0)).backward()
    assert torch.isfinite(y.grad).all()
    assert y.grad.abs().sum() > 0


def test_checkpointing_changes_neither_loss_nor_gradient():
    found = []
    for on in (False, True):
        net = network()
        terms = AutoencoderLoss(net, AutoencoderStage(checkpointing=on))(
            volumes(), torch.Generator().manual_seed(0)
        )
        terms["loss"].backward()
        found.append((terms["loss"].item(), net.encoder.blocks[0].conv.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_folder_without_weights_is_told(tmp_path):
    with pytest.raises(MissingDataError, match="holds no LPIPS"):
        perceptual_network(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": -1.0}, "kl is -1.0"),
        ({"l1": math.nan}, "l1 is nan"),
        ({"perceptual_share": 0.0}, "perceptual_share is 0.0"),
        ({"adversarial_from": -1}, "adversarial_from is -1"),
        ({"check_every": 0}, "check_every is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        AutoencoderStage(**options)


def test_alexnet_weights_from_a_folder(tmp_path):
    from neurodiff.features.perceptual import AlexNetTrunk

    trunk = seeded(AlexNetTrunk, 0, "alexnet")
    torch.save(trunk.state_dict(), tmp_path / "alexnet-0.pth")
    heads = {f"lin{k}.model.1.weight": torch.ones(1, w, 1, 1) for k, w in enumerate(trunk.widths)}
    (tmp_path / "lpips/weights/v0.1").mkdir(parents=True)
    torch.save(heads, tmp_path / "lpips/weights/v0.1/alex.pth")
    found = perceptual_network(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    assert found.distances(picture, picture)[0] == 0
    x = torch.rand(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    loss = SlicePerceptualLoss(found, share=0.05)
    assert float(loss(x, 1 - x, torch.Generator().manual_seed(0))) > 0
