"""Encoder and decoder of the VDVAE, block by block, and the noise that its blocks draw.

Parameter names are the published ones; the network around them is `neurodiff.models.vdvae`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurodiff.core.errors import UsageError
from neurodiff.models.logistic_mixture import MARGIN, PER_COMPONENT
from neurodiff.models.vdvae_size import VDVAESize

_LARGEST_1X1 = 2  # up to this resolution the published blocks have no 3 x 3 convolutions
#: One generator for each item, or a single one from which a whole (training) batch is drawn.
Generators = Sequence[torch.Generator] | torch.Generator


def draw_normal(like: Tensor, generators: Generators | None) -> Tensor:
    """Standard normal numbers, drawn on the CPU in float32 so that device and type change none.

    Raises
    ------
    UsageError : no generators, or another number than there are items.
    """
    return _draw(torch.randn, like, generators)


def draw_uniform(like: Tensor, generators: Generators | None) -> Tensor:
    """Numbers from 1e-5 to 1 - 1e-5; see `draw_normal`."""
    return _draw(torch.rand, like, generators) * (1 - 2 * MARGIN) + MARGIN


def _draw(function, like: Tensor, generators: Generators | None) -> Tensor:
    if isinstance(generators, torch.Generator):
        return function(like.shape, generator=generators).to(like)
    if generators is None or len(generators) != len(like):
        got = "no generators" if generators is None else f"{len(generators)} generators"
        raise UsageError(f"{got} for {len(like)} items; give one for each, seeded by the item")
    return torch.stack([function(like.shape[1:], generator=g) for g in generators]).to(like)


class _Block(nn.Module):
    """Four convolutions, each after a GELU; only the inner two look at neighbours."""

    def __init__(
        self, width: int, inner: int, out: int, *, resolution: int, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        side = 3 if resolution > _LARGEST_1X1 else 1
        self.c1 = _convolution(width, inner)
        self.c2 = _convolution(inner, inner, side)
        self.c3 = _convolution(inner, inner, side)
        self.c4 = _convolution(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in (self.c1, self.c2, self.c3, self.c4):
            y = convolution(F.gelu(y))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """Pictures (n, s, s, 3) to the activations that the decoder's posteriors look at."""

    def __init__(self, size: VDVAESize) -> None:
        super().__init__()
        self.plan = size.encoder_blocks
        self.in_conv = _convolution(3, size.width, 3)
        blocks = [
            _Block(size.width, size.inner, size.width, resolution=r, residual=True)
            for r, _ in self.plan
        ]
        for block in blocks:
            _shrink(block.c4, len(blocks))
        self.enc_blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """The last activation of each resolution (n, width, r, r), by resolution."""
        x = self.in_conv(images.permute(0, 3, 1, 2))
        activations = {x.shape[-1]: x}
        for block, (_, down) in zip(self.enc_blocks, self.plan, strict=True):
            x = block(x)
            if down:
                x = F.avg_pool2d(x, down)
            activations[x.shape[-1]] = x
        return activations


class _DecoderBlock(nn.Module):
    """One latent: ``states`` (the state of each resolution) is updated at its resolution."""

    def __init__(self, size: VDVAESize, resolution: int, mixed: int | None, blocks: int) -> None:
        super().__init__()
        self.resolution, self.mixed, self.zdim, self.width = (
            resolution,
            mixed,
            size.zdim,
            size.width,
        )
        width, inner = size.width, size.inner
        self.enc = _Block(2 * width, inner, 2 * size.zdim, resolution=resolution)
        self.prior = _Block(width, inner, 2 * size.zdim + width, resolution=resolution)
        self.z_proj = _convolution(size.zdim, width)
        self.resnet = _Block(width, inner, width, resolution=resolution, residual=True)
        nn.init.zeros_(self.prior.c4.weight)
        _shrink(self.z_proj, blocks)
        _shrink(self.resnet.c4, blocks)

    def forward(
        self,
        states: dict[int, Tensor],
        activations: dict[int, Tensor],
        generators: Generators | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """A draw from the posterior, and the posterior's divergence from the prior (n,)."""
        x = self._input(states)
        seen = torch.cat([x, activations[self.resolution]], dim=1)
        mean, log_sd = self.enc(seen).chunk(2, dim=1)
        prior_mean, prior_log_sd, x = self._prior(x)
        z = _normal(mean, log_sd, generators, temperature)
        variance = (2 * log_sd).exp() + (mean - prior_mean) ** 2
        kl = prior_log_sd - log_sd - 0.5 + 0.5 * variance * (-2 * prior_log_sd).exp()
        self._update(states, x, z)
        return z, kl.sum(dim=(1, 2, 3))

    def generate(
        self,
        states: dict[int, Tensor],
        given: Tensor | None,
        generators: Generators | None,
        temperature: float,
    ) -> None:
        """Go on with a given latent, or with a draw from the prior."""
        mean, log_sd, x = self._prior(self._input(states))
        z = _normal(mean, log_sd, generators, temperature) if given is None else given
        self._update(states, x, z)

    def _input(self, states: dict[int, Tensor]) -> Tensor:
        x = states.get(self.resolution)
        if self.mixed is not None:
            coarse = states[self.mixed]
            fine = F.interpolate(coarse, scale_factor=self.resolution // self.mixed)  # nearest
            return fine if x is None else x + fine
        if x is not None:
            return x
        like = next(iter(states.values()))
        return like.new_zeros(len(like), self.width, self.resolution, self.resolution)

    def _prior(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_sd, change = self.prior(x).split([self.zdim, self.zdim, self.width], dim=1)
        return mean, log_sd, x + change

    def _update(self, states: dict[int, Tensor], x: Tensor, z: Tensor) -> None:
        states[self.resolution] = self.resnet(x + self.z_proj(z))


class _Pixels(nn.Module):
    def __init__(self, size: VDVAESize) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(size.width, PER_COMPONENT * size.mixtures, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.out_conv(features).permute(0, 2, 3, 1)


class Decoder(nn.Module):
    """The blocks of the latents, coarse to fine, and the layers before the pixels."""

    def __init__(self, size: VDVAESize) -> None:
        super().__init__()
        self.image_size = size.image_size
        plan = size.decoder_blocks
        self.dec_blocks = nn.ModuleList(
            _DecoderBlock(size, resolution, mixed, len(plan)) for resolution, mixed in plan
        )
        learned = sorted({r for r, _ in plan if r <= size.no_bias_above})
        self.bias_xs = nn.ParameterList(torch.zeros(1, size.width, r, r) for r in learned)
        self.out_net = _Pixels(size)
        self.gain = nn.Parameter(torch.ones(1, size.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, size.width, 1, 1))

    def start(self, items: int) -> dict[int, Tensor]:
        """The learned first state of each resolution that has one."""
        return {b.shape[-1]: b.expand(items, -1, -1, -1) for b in self.bias_xs}

    def finish(self, states: dict[int, Tensor]) -> Tensor:
        """Features (n, width, s, s) for the pixels' distribution."""
        return states[self.image_size] * self.gain + self.bias


def _convolution(width: int, out: int, side: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(width, out, side, padding=side // 2)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _shrink(convolution: nn.Conv2d, blocks: int) -> None:
    """Published start: what each of many blocks adds is scaled so that their sum is not."""
    with torch.no_grad():
        convolution.weight.mul_(blocks**-0.5)


def _normal(
    mean: Tensor, log_sd: Tensor, generators: Generators | None, temperature: float
) -> Tensor:
    if temperature == 0:
        return mean
    return mean + log_sd.exp() * temperature * draw_normal(mean, generators)
