"""What a latent diffusion of CT slices is compared with: networks that answer in one step.

`OneStep` is the diffusion's own network, asked once for the standard latent. `PixelUNet` maps
pixels to pixels with skips; as the generator of a pix2pix it is trained against
`PatchDiscriminator` (Isola et al. 2017) by :func:`adversarial_terms`.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.models.ct_latent_unet import CTLatentUNet, CTLatentUNetSize
from neurodiff.models.unet2d import UNet2D


class OneStep(nn.Module):
    """Standard latent from the source's in one step: the source plus what `CTLatentUNet` says."""

    def __init__(self, channels: int, size: CTLatentUNetSize) -> None:
        super().__init__()
        self.network = CTLatentUNet(channels, size)

    def forward(
        self, source: Float[Tensor, "n c i j"], spacing: Float[Tensor, "n 2"]
    ) -> Float[Tensor, "n c i j"]:
        """Latents (n, c, i, j) of the standard kernel."""
        nothing = source.new_zeros(len(source))
        return source + self.network(torch.zeros_like(source), nothing, (source, spacing))


class PixelUNet(nn.Module):
    """Slices (n, 1, h, w) plus what a U-Net with skips says; the change begins small."""

    def __init__(self, depth: int = 3, filters: int = 24) -> None:
        super().__init__()
        self.network = UNet2D(3, 1, depth=depth, start_filters=filters)
        nn.init.normal_(self.network.conv_final.weight, std=1e-2)

    def forward(
        self, x: Float[Tensor, "n 1 h w"], spacing: Float[Tensor, "n 2"]
    ) -> Float[Tensor, "n 1 h w"]:
        """Slices of the standard kernel; ``spacing`` in mm is told as two even planes."""
        planes = spacing.log()[:, :, None, None].expand(-1, -1, *x.shape[2:]).to(x)
        # tissue near 0 and its noise near 0.5: scaled HU hold the whole range in -1 to 1
        return x + self.network(torch.cat([10 * (x + 0.5), planes], 1)) / 10


class PatchDiscriminator(nn.Module):
    """Scores (n, 1, i, j) of overlapping patches of (source, candidate): high is real."""

    def __init__(self, filters: int = 24) -> None:
        super().__init__()
        widths = [2, filters, 2 * filters, 4 * filters]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(
        self, source: Float[Tensor, "n 1 h w"], candidate: Float[Tensor, "n 1 h w"]
    ) -> Float[Tensor, "n 1 i j"]:
        """One score a patch."""
        return self.layers(torch.cat([source, candidate], 1))


class AdversarialPair(nn.Module):
    """A generator and its discriminator, trained by one optimiser on separate gradients."""

    def __init__(self, depth: int = 3, filters: int = 24) -> None:
        super().__init__()
        self.generator = PixelUNet(depth, filters)
        self.discriminator = PatchDiscriminator(filters)


def adversarial_terms(
    pair: AdversarialPair, source: Tensor, target: Tensor, spacing: Tensor, *, l1: float
) -> dict[str, Tensor]:
    """Terms of one step, least-squares GAN plus ``l1`` times the mean error.

    The generator's term passes a discriminator whose weights are held, and the discriminator's one
    sees a detached image, so that their sum has the gradients of the two games apart.
    """
    made = pair.generator(source, spacing)
    held = {name: p.detach() for name, p in pair.discriminator.named_parameters()}
    judged = torch.func.functional_call(pair.discriminator, held, (source, made))
    error = F.l1_loss(made, target)
    fool = ((judged - 1) ** 2).mean()
    real = pair.discriminator(source, target)
    fake = pair.discriminator(source, made.detach())
    judge = 0.5 * (((real - 1) ** 2).mean() + (fake**2).mean())
    return {"loss": l1 * error + fool + judge, "l1": error, "generator": fool, "judge": judge}
