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
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from neurodiff.core.errors import UsageError
from neurodiff.models.logistic_mixture import LogisticMixture, to_levels
from neurodiff.models.vdvae_blocks import Decoder, Encoder, Generators, draw_uniform
from neurodiff.models.vdvae_size import IMAGENET64, Shape3, VDVAESize

#: Blocks whose latents Brain-Diffuser predicts: 91,168 numbers at the published size.
BRAIN_DIFFUSER_LATENTS = 31


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
        self.encoder = Encoder(size)
        self.decoder = Decoder(size)

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
