"""Encoder-decoder of CT slices whose whole message passes the bottleneck: there are no skips.

With U-Net skips the source's sharp noise would reach the output around the bottleneck, and a
diffusion model there could not change texture. Each half is a linear map of blocks of
``factor x factor`` pixels plus a small convolutional network. The linear maps begin as the lowest
coefficients of the blocks' cosine transform and the networks at zero, so that training begins at a
transform code and improves on it; ``channels = factor**2`` begins lossless.

Networks normalise each pixel over its channels alone, so a patch with enough border gives what the
whole slice gives.

References
----------
Selim et al. 2023, DiffusionCT (arXiv 2301.08815), names a U-Net encoder-decoder and no sizes. The
shortcuts of space to channels are those of Chen et al. 2024, Deep compression autoencoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CTAutoencoderSize:
    """``factor`` pixels a side become one place of ``channels`` numbers.

    ``width`` channels and ``blocks`` residual blocks at the bottleneck's resolution, each half.
    """

    factor: int = 4
    channels: int = 12
    width: int = 64
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.factor not in (2, 4):
            raise UsageError(f"factor is {self.factor}; texture survives at 2 or 4")
        if not 1 <= self.channels <= self.factor**2:
            raise UsageError(
                f"{self.channels} latent channels of blocks of {self.factor**2} pixels; give 1 to "
                f"{self.factor**2}"
            )
        if self.width < 1 or self.blocks < 0:
            raise UsageError("width must be at least 1 and blocks at least 0")


class CTAutoencoder(nn.Module):
    """Slices (n, 1, h, w), scaled HU, to latents (n, channels, h / factor, w / factor) and back.

    ``shift`` and ``scale`` (channels,) bring latents to mean 0 and SD 1 for the diffusion; they are
    set after training (:meth:`normalise`), so that the two stages stay apart.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, size: CTAutoencoderSize) -> None:
        super().__init__()
        self.size = size
        pixels = size.factor**2
        basis = cosine_blocks(size.factor)[: size.channels]
        self.to_latent = nn.Conv2d(pixels, size.channels, 1)
        self.to_pixels = nn.Conv2d(size.channels, pixels, 1)
        with torch.no_grad():
            self.to_latent.weight.copy_(basis[:, :, None, None])
            self.to_pixels.weight.copy_(basis.T[:, :, None, None])
            nn.init.zeros_(self.to_latent.bias)
            nn.init.zeros_(self.to_pixels.bias)
        self.encoder = _half(pixels, size.channels, size)
        self.decoder = _half(size.channels, pixels, size)
        self.register_buffer("shift", torch.zeros(size.channels))
        self.register_buffer("scale", torch.ones(size.channels))

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
        """Round trip."""
        return self.decode(self.encode(x))

    def encode(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c i j"]:
        """Latents in the units of the diffusion.

        Raises
        ------
        ValueError : sides that are no multiples of ``factor``.
        """
        f = self.size.factor
        if x.shape[2] % f or x.shape[3] % f:
            raise ValueError(f"slices of {x.shape[2]} x {x.shape[3]} pixels; give multiples of {f}")
        blocks = F.pixel_unshuffle(x, f)
        z = self.to_latent(blocks) + self.encoder(blocks)
        return (z - self.shift[:, None, None]) / self.scale[:, None, None]

    def decode(self, z: Float[Tensor, "n c i j"]) -> Float[Tensor, "n 1 h w"]:
        """Slices from latents."""
        z = z * self.scale[:, None, None] + self.shift[:, None, None]
        return F.pixel_shuffle(self.to_pixels(z) + self.decoder(z), self.size.factor)

    @torch.no_grad()
    def normalise(self, x: Float[Tensor, "n 1 h w"]) -> None:
        """Set ``shift`` and ``scale`` from the latents of these slices."""
        z = self.encode(x) * self.scale[:, None, None] + self.shift[:, None, None]
        self.shift.copy_(z.mean((0, 2, 3)))
        self.scale.copy_(z.std((0, 2, 3)).clamp_min(1e-4))


def cosine_blocks(factor: int) -> Float[Tensor, "coefficients pixels"]:
    """Orthonormal cosine transform of blocks, lowest frequencies first; rows are coefficients.

    Examples
    --------
    >>> basis = cosine_blocks(4)
    >>> bool(torch.allclose(basis @ basis.T, torch.eye(16), atol=1e-6))
    True
    """
    at = torch.arange(factor, dtype=torch.float64)
    one = torch.cos(math.pi * (at[None] + 0.5) * at[:, None] / factor) * math.sqrt(2 / factor)
    one[0] /= math.sqrt(2)
    both = torch.einsum("ay,bx->abyx", one, one).reshape(factor**2, factor**2)
    radius = (at[:, None] ** 2 + at[None] ** 2).reshape(-1)
    return both[torch.argsort(radius, stable=True)].float()


class PixelNorm(nn.Module):
    """Root mean square over channels to 1, pixel by pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


def _half(channels_in: int, channels_out: int, size: CTAutoencoderSize) -> nn.Sequential:
    last = nn.Conv2d(size.width, channels_out, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    body = [_Block(size.width) for _ in range(size.blocks)]
    return nn.Sequential(nn.Conv2d(channels_in, size.width, 3, padding=1), *body, nn.SiLU(), last)
