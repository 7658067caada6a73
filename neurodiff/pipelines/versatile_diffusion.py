"""Pictures by Versatile Diffusion: an own loop over the dual-guided U-Net.

An initial picture is encoded, noised to the level where the last ``strength`` of the steps begins,
and denoised by DDIM under classifier-free guidance of both conditions at once.  The same class
drives the published weights (512 pixels) and a small network that trains on a CPU.

Source: Ozcelik and VanRullen 2023, Brain-Diffuser, stage 2; its released code differs from the
texts in one place, which the protocol "brain-diffuser-2023" keeps (:class:`Settings`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from neurodiff.core.errors import UsageError
from neurodiff.diffusion.grids import by_strength, leading
from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.latents import Latents
from neurodiff.diffusion.paths import Level, VariancePreserving, add_noise, scaled_linear
from neurodiff.diffusion.sampling import NetworkDenoiser, item_noise, sample
from neurodiff.diffusion.solvers import DDIM
from neurodiff.models.versatile_diffusion import DualGuidedUNet
from neurodiff.pipelines.generators import (
    check_options,
    check_request,
    null_tokens,
    pictures,
    pixels,
)

if TYPE_CHECKING:
    import PIL.Image

Protocol = Literal["neurodiff-1", "brain-diffuser-2023"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is fixed for a set of weights.

    Parameters
    ----------
    train_steps, first_beta, last_beta : of the path, with evenly spaced roots of the betas.
    latent_scale : latents are the autoencoder's times this.
    encode : "sample" draws from the autoencoder's posterior, as published, "mode" takes its mean.
    protocol : "brain-diffuser-2023" noises the initial latent to the level *before* the first one
        that is denoised (steps 741 and 721 of 50 at strength 0.75), so the network is told a
        little less noise than there is.  "neurodiff-1" uses one level (721) for both.
    batch : pictures that go through the network at once.
    patch : squares of this many pixels become channels before the autoencoder and pixels after it;
        1 as published. A small autoencoder without fine levels is several times faster.
    """

    train_steps: int = 1000
    first_beta: float = 0.00085
    last_beta: float = 0.012
    latent_scale: float = 0.18215
    encode: Literal["sample", "mode"] = "sample"
    protocol: Protocol = "neurodiff-1"
    batch: int = 8
    patch: int = 1

    def __post_init__(self):
        if self.protocol not in ("neurodiff-1", "brain-diffuser-2023"):
            raise UsageError(
                f"protocol is {self.protocol!r}; known are 'neurodiff-1' and 'brain-diffuser-2023'"
            )
        if self.encode not in ("sample", "mode"):
            raise UsageError(f"encode is {self.encode!r}; it is 'sample' or 'mode'")
        for name in ("batch", "patch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least 1")

    def path(self) -> VariancePreserving:
        """The path, from a table in float32 as the published samplers hold it."""
        return scaled_linear(self.train_steps, self.first_beta, self.last_beta).rounded()


class VersatileDiffusionGenerator:
    """A :class:`~neurodiff.pipelines.generators.Generator` over a dual-guided U-Net.

    Parameters
    ----------
    unet : :class:`DualGuidedUNet`, trained to predict noise.
    vae : ``AutoencoderKL`` of diffusers.
    null_text_tokens, null_image_tokens : (count, width) or (1, count, width), what stands for "no
        condition": published, the tokens of the empty caption and of a mid-grey picture, encoded
        and normalised like any other.  Their count is the count that this generator reads.
    settings : of the weights.

    The networks are put into evaluation mode, and stay on their device and in their type.  The
    trajectory is float32 even for a network in half precision (float64 for one in float64).

    Raises
    ------
    UsageError : null tokens of another width than the network's.
    """

    def __init__(
        self,
        unet: DualGuidedUNet,
        vae: Any,
        *,
        null_text_tokens: Any,
        null_image_tokens: Any,
        settings: Settings | None = None,
    ):
        self.unet, self.vae, self.settings = unet.eval(), vae.eval(), settings or Settings()
        self.path = self.settings.path()
        size = unet.size
        self.null_text = null_tokens("text", null_text_tokens, size.text_width)
        self.null_image = null_tokens("image", null_image_tokens, size.image_width)

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> VersatileDiffusionGenerator:
        """The published weights, from a local folder of diffusers: see
        :func:`neurodiff.pipelines.versatile_diffusion_files.from_folder`."""
        from neurodiff.pipelines.versatile_diffusion_files import from_folder

        return from_folder(folder, **options)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write networks, null tokens and settings: JSON and safetensors, a sub-folder each."""
        from neurodiff.pipelines.versatile_diffusion_files import save_pretrained

        return save_pretrained(self, folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu"
    ) -> VersatileDiffusionGenerator:
        """What :meth:`save_pretrained` wrote.

        Raises
        ------
        MissingDataError, DataError : no such folder, or a file of it is missing or changed.
        """
        from neurodiff.pipelines.versatile_diffusion_files import from_pretrained

        return from_pretrained(folder).to(device)

    @property
    def multiple(self) -> int:
        """Sides of pictures are multiples of it: pixels a latent times the U-Net's halvings."""
        halvings = len(self.vae.config.block_out_channels) + len(self.unet.size.channels) - 2
        return self.settings.patch * 2**halvings

    def to(self, device: str | torch.device) -> VersatileDiffusionGenerator:
        """Move the networks; returns itself."""
        self.unet.to(device)
        self.vae.to(device)
        return self

    def generate(
        self,
        init_images: Sequence[PIL.Image.Image],
        text_tokens: Any,
        image_tokens: Any,
        *,
        strength: float = 0.75,
        guidance: float = 7.5,
        mix: float = 0.4,
        steps: int = 50,
        seed: Sequence[int],
    ) -> list[PIL.Image.Image]:
        """One picture an initial picture; the defaults are the published numbers.

        A picture's generator draws the posterior of its latent first, then the noise.

        Raises
        ------
        UsageError, DataError : see :mod:`neurodiff.pipelines.generators`.
        """
        check_options(strength=strength, guidance=guidance, mix=mix, steps=steps)
        noised, grid = self.levels(steps=int(steps), strength=float(strength))
        request = check_request(
            init_images,
            text_tokens,
            image_tokens,
            seed,
            text_shape=self.null_text.shape[1:],
            image_shape=self.null_image.shape[1:],
            multiple=self.multiple,
        )
        done: list[PIL.Image.Image] = []
        for first in range(0, len(request), self.settings.batch):
            rows = slice(first, first + self.settings.batch)
            generators = request.generators[rows]
            z = self.encode(request.images[rows], generators)
            x = add_noise(z, item_noise(generators)(0, z), noised)
            cond = request.text[rows], request.image[rows], float(mix)
            done += self.decode(self.denoise(x, grid, cond, guidance=guidance))
        return done

    def levels(self, *, steps: int, strength: float) -> tuple[Level, list[Level]]:
        """The level that noise is added to, and the grid that is denoised.

        Raises
        ------
        UsageError : more steps than the path has, or the published protocol at strength 1, where
            there is no level before the first.
        """
        if steps > self.path.steps:
            raise UsageError(f"steps is {steps}; this path has {self.path.steps}")
        whole = leading(self.path, steps, last=0)
        grid = by_strength(whole, strength)
        if self.settings.protocol == "neurodiff-1":
            return grid[0], grid
        before = len(whole) - len(grid) - 1
        if before < 0:
            raise UsageError(
                f"strength {strength} of {steps} steps starts at the noisiest level; protocol "
                "'brain-diffuser-2023' noises to the one before: lower the strength, or use "
                "'neurodiff-1'"
            )
        return whole[before], grid

    @torch.no_grad()
    def encode(
        self, images: Sequence[PIL.Image.Image], generators: Sequence[torch.Generator]
    ) -> Tensor:
        """RGB pictures to latents (n, c, h, w) in the units of the path."""
        z = self._latents(generators).encode(pixels(images).to(self._of(self.vae)))
        return z.to(self._of(self.unet).device)

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        grid: Sequence[Level],
        cond: tuple[Tensor, Tensor, float],
        *,
        guidance: float,
    ) -> Tensor:
        """Latents at ``grid[0]`` to latents at its end.  ``cond`` is (text tokens, image tokens,
        share of the text)."""
        like, mix = self._of(self.unet), cond[2]

        def null(_: Any) -> tuple[Tensor, Tensor, float]:
            return self.null_text.to(like), self.null_image.to(like), mix

        network = NetworkDenoiser(self.unet, EPS, dtype=like.dtype)
        guided = ClassifierFree(network, float(guidance), null)
        state = guided.prepare((cond[0].to(like), cond[1].to(like), mix))
        return sample(guided, x, grid, DDIM(), state=state)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[PIL.Image.Image]:
        """Latents in the units of the path to RGB pictures.

        Raises
        ------
        DataError : NaN or infinity came out.
        """
        return pictures(self._latents().decode(latents))

    @property
    def _trajectory(self) -> torch.dtype:
        return torch.promote_types(self._of(self.unet).dtype, torch.float32)

    def _latents(self, generators: Sequence[torch.Generator] = ()) -> Latents:
        """The autoencoder in the units of the path."""

        def posterior(x: Tensor) -> Tensor:
            found = self.vae.encode(pixel_unshuffle(x, self.settings.patch)).latent_dist
            mean, std = found.mean.to(self._trajectory), found.std.to(self._trajectory)
            if self.settings.encode == "mode":
                return mean
            return mean + std * item_noise(generators)(0, mean)

        def decoder(z: Tensor) -> Tensor:
            patches = self.vae.decode(z.to(self._of(self.vae))).sample
            return pixel_shuffle(patches, self.settings.patch)

        return Latents(posterior, decoder, std=1 / self.settings.latent_scale)

    @staticmethod
    def _of(network: nn.Module) -> Tensor:
        """A tensor of the type and on the device of a network."""
        return next(network.parameters())
