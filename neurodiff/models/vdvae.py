"""Very deep variational autoencoder (VDVAE): pictures to a pyramid of Gaussian latents and back.

    images (n, s, s, 3), normalised -> encoder -> activations by resolution
    decoder: one block after the other, coarse to fine; block k draws z_k (n, zdim, r, r) from the
    posterior (encoding) or from the prior (generating), or is given it (`VDVAE.decode`)
    -> features (n, width, s, s) -> mixture of discretised logistics for each pixel

Parameter names are the published ones, so that the published weights load by name at any size.
The published ImageNet-64 network has 75 blocks; Brain-Diffuser keeps the latents of the first 31,
91,168 numbers. As published, latents are draws from the posterior; here each item has a generator
of its own (`neurodiff.core.seeds`), so its latents are the same in any batch.

References
----------
Child 2021, Very Deep VAEs Generalize Autoregressive Models, ICLR.
Ozcelik & VanRullen 2023, Scientific Reports 13 (Brain-Diffuser).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from neurodiff.core.errors import UsageError
from neurodiff.models.logistic_mixture import MARGIN, PER_COMPONENT, LogisticMixture, to_levels
from neurodiff.models.vdvae_size import IMAGENET64, Shape3, VDVAESize

#: Blocks whose latents Brain-Diffuser predicts: 91,168 numbers at the published size.
BRAIN_DIFFUSER_LATENTS = 31
_LARGEST_1X1 = 2  # up to this resolution the published blocks have no 3 x 3 convolutions

#: One generator for each item, or a single one from which a whole (training) batch is drawn.
Generators = Sequence[torch.Generator] | torch.Generator


@dataclass(frozen=True)
class EvidenceBound:
    """What training minimises, in nats per dimension; means over the batch.

    loss : distortion + ``rate_weight`` * rate.  distortion : negative log likelihood.  rate : sum
    of ``kl``.  kl : divergence of posterior from prior, block by block, in nats per item.
    """

    loss: Float[Tensor, ""]
    distortion: Float[Tensor, ""]
    rate: Float[Tensor, ""]
    kl: Float[Tensor, " blocks"]

    def terms(self) -> dict[str, Tensor]:
        """The scalars, as the training loop logs them."""
        return {"loss": self.loss, "distortion": self.distortion, "rate": self.rate}


class VDVAE(nn.Module):
    """The autoencoder (module docstring).

    Examples
    --------
    >>> small = VDVAESize(image_size=8, enc_blocks="8x1,8d2,4x1,4d4,1x1",
    ...                   dec_blocks="1x1,4m1,8m4", zdim=2, width=8, mixtures=2)
    >>> flatten_latents(VDVAE(small).encode(torch.zeros(3, 8, 8, 3), sample=False, count=2)).shape
    torch.Size([3, 34])
    """

    def __init__(self, size: VDVAESize | None = None) -> None:
        super().__init__()
        self.size = size = size or IMAGENET64
        self.encoder = _Encoder(size)
        self.decoder = _Decoder(size)

    def forward(
        self,
        images: Float[Tensor, "n s s 3"],
        targets: Float[Tensor, "n s s 3"],
        generators: Generators,
        *,
        rate_weight: float = 1.0,
    ) -> EvidenceBound:
        """The bound on the likelihood that training maximises.

        Parameters
        ----------
        images : normalised pictures.  targets : the same in [-1, 1]
        (`neurodiff.models.vdvae_pictures`).  rate_weight : factor of the rate, 1 for the bound
        itself; a smaller one keeps blocks alive in the first steps of a training.
        """
        _, kl, state = self._posterior(images, generators, None, 1.0)
        mixture = LogisticMixture.from_parameters(self.parameters_of(state))
        distortion = mixture.nats(targets).mean()
        per_block = kl.mean(dim=0)
        rate = per_block.sum() / images[0].numel()
        return EvidenceBound(distortion + rate_weight * rate, distortion, rate, per_block)

    def encode(
        self,
        images: Float[Tensor, "n s s 3"],
        generators: Generators | None = None,
        *,
        count: int | None = None,
        sample: bool = True,
        temperature: float = 1.0,
    ) -> list[Float[Tensor, "n zdim _ _"]]:
        """The first ``count`` latents (None: all), coarse to fine.

        Later blocks are not run: the first 31 of the published 75 cost a fraction of all.

        Parameters
        ----------
        images : normalised pictures.
        generators : one an item; not needed where nothing is drawn.
        sample : draw from the posterior, as published; else its means.
        temperature : factor of the posterior's standard deviations.

        Raises
        ------
        UsageError : pictures of another size, another number of generators, none where they are
            needed, or a count that there is not.
        """
        self.size.latent_shapes(count)
        return self._posterior(images, generators, count, temperature if sample else 0.0)[0]

    def latent_shapes(self, count: int | None = None) -> list[Shape3]:
        """(zdim, r, r) of the first ``count`` latents (None: all)."""
        return self.size.latent_shapes(count)

    def decode(
        self,
        latents: Sequence[Float[Tensor, "n zdim _ _"]],
        generators: Generators | None = None,
        *,
        temperature: float = 1.0,
        pixels: Literal["sample", "mode"] = "sample",
    ) -> UInt8[Tensor, "n s s 3"]:
        """Pictures of given latents; the remaining ones are drawn from the prior.

        Parameters
        ----------
        latents : of the first blocks, in order; none: pictures from the prior alone.
        generators : one an item, for the other latents and then for the pixels.
        temperature : factor of the prior's standard deviations in the blocks that are drawn.
        pixels : "sample" draws each pixel as published; "mode" takes the likeliest component's
            median and needs no chance.

        Raises
        ------
        UsageError : latents of other shapes, more than there are blocks, or generators that are
            missing or of another number.
        """
        mixture = LogisticMixture.from_parameters(
            self.parameters_of(self.features(latents, generators, temperature=temperature))
        )
        if pixels == "mode":
            return to_levels(mixture.mode())
        if pixels != "sample":
            raise UsageError(f"pixels is {pixels!r}; known: 'sample', 'mode'")
        choice = draw_uniform(mixture.logits, generators)
        return to_levels(mixture.sample(choice, draw_uniform(mixture.means[..., 0], generators)))

    def features(
        self,
        latents: Sequence[Float[Tensor, "n zdim _ _"]],
        generators: Generators | None = None,
        *,
        temperature: float = 1.0,
    ) -> Float[Tensor, "n width s s"]:
        """The state before the pixels' distribution; arguments as in `decode`."""
        n = self._items(latents, generators)
        states = self.decoder.start(n)
        for k, block in enumerate(self.decoder.dec_blocks):
            given = latents[k] if k < len(latents) else None
            block.generate(states, given, generators, temperature)
        return self.decoder.finish(states)

    def parameters_of(
        self, features: Float[Tensor, "n width s s"]
    ) -> Float[Tensor, "n s s parameters"]:
        """Parameters of the pixels' distribution (`neurodiff.models.logistic_mixture`)."""
        return self.decoder.out_net(features)

    def _posterior(
        self,
        images: Tensor,
        generators: Generators | None,
        count: int | None,
        temperature: float,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Latents, divergences (n, blocks), and the last state, which is the features only where
        all blocks were run."""
        side = self.size.image_size
        if images.shape[1:3] != (side, side):
            raise UsageError(
                f"pictures have {images.shape[1]} x {images.shape[2]} pixels; this VDVAE takes "
                f"{side} x {side}: resize them"
            )
        activations = self.encoder(images)
        states = self.decoder.start(len(images))
        latents, kl = [], []
        for block in self.decoder.dec_blocks[:count]:
            z, divergence = block(states, activations, generators, temperature)
            latents.append(z)
            kl.append(divergence)
        whole = len(latents) == len(self.decoder.dec_blocks)
        return (
            latents,
            torch.stack(kl, dim=1) if kl else images.new_zeros(len(images), 0),
            self.decoder.finish(states) if whole else images,
        )

    def _items(self, latents: Sequence[Tensor], generators: Generators | None) -> int:
        shapes = self.size.latent_shapes()
        if len(latents) > len(shapes):
            raise UsageError(f"{len(latents)} latents; this VDVAE has {len(shapes)}")
        for k, (z, shape) in enumerate(zip(latents, shapes, strict=False)):
            if tuple(z.shape[1:]) != shape or len(z) != len(latents[0]):
                raise UsageError(
                    f"latent {k} has shape {tuple(z.shape)}; expected {(len(latents[0]), *shape)}"
                )
        if latents:
            return len(latents[0])
        if generators is None or isinstance(generators, torch.Generator):
            raise UsageError("without latents give one generator for each picture to make")
        return len(generators)


def flatten_latents(latents: Sequence[Float[Tensor, "n zdim _ _"]]) -> Float[Tensor, "n total"]:
    """Each latent flattened (channels, rows, columns), one after the other in block order.

    Raises
    ------
    UsageError : there is none.
    """
    if not latents:
        raise UsageError("no latents to flatten")
    return torch.cat([z.flatten(1) for z in latents], dim=1)


def unflatten_latents(
    flat: Float[Tensor, "n total"], shapes: Sequence[Shape3]
) -> list[Float[Tensor, "n zdim _ _"]]:
    """The inverse of `flatten_latents`; ``shapes`` from `VDVAE.latent_shapes`.

    Raises
    ------
    UsageError : the shapes ask for another number of values.
    """
    lengths = [math.prod(shape) for shape in shapes]
    if flat.shape[1] != sum(lengths):
        raise UsageError(
            f"flat latents have {flat.shape[1]} values an item; {len(shapes)} blocks of this VDVAE "
            f"have {sum(lengths)}"
        )
    parts = flat.split(lengths, dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


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


# ------------------------------------------------------------------------------- the network


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


class _Encoder(nn.Module):
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


class _Decoder(nn.Module):
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
