"""U-Net on latents of CT slices, told the source's latent, the diffusion time and the pixel size.

The source's latent is concatenated to the noisy one (Saharia et al. 2022, Palette). Reconstruction
kernels are fixed in line pairs per centimetre while the network counts pixels, so the spacing is a
condition: the logarithms of rows' and columns' millimetres go with the time into every block.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.core.errors import UsageError
from neurodiff.models.ct_autoencoder import PixelNorm

_TYPICAL_MM = 0.7  # pixel of a chest scan; the spacing is told relative to it


@dataclass(frozen=True, kw_only=True)
class CTLatentUNetSize:
    """``widths`` of the levels, each half as fine as the one before, with ``blocks`` a level."""

    widths: tuple[int, ...] = (48, 96)
    blocks: int = 2
    condition: int = 96

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 2 or self.blocks < 1 or self.condition < 4:
            raise UsageError("a latent U-Net needs widths from 2, blocks from 1, condition from 4")


class CTLatentUNet(nn.Module):
    """``network(x, t, (source, spacing))``: what the head predicts, (n, channels, i, j).

    Sides must be multiples of ``2**(levels - 1)``.  Its output begins at zero.
    """

    def __init__(self, channels: int, size: CTLatentUNetSize) -> None:
        super().__init__()
        self.size, self.channels = size, channels
        wide, told = size.widths, size.condition
        self.embed = nn.Sequential(
            nn.Linear(32 + 2, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU()
        )
        self.first = nn.Conv2d(2 * channels, wide[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.ModuleList(_Block(w, w, told) for _ in range(size.blocks)) for w in wide
        )
        self.lower = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(wide)
        )
        self.raise_ = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(wide)
        )
        self.up = nn.ModuleList(
            nn.ModuleList(_Block(2 * w if k == 0 else w, w, told) for k in range(size.blocks))
            for w in wide[:-1]
        )
        self.last = nn.Conv2d(wide[0], channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "n c i j"], t: Float[Tensor, " n"], cond: tuple[Any, Any]
    ) -> Float[Tensor, "n c i j"]:
        """Apply the network; ``cond`` is (source latents like x, spacing (n, 2) in mm).

        Raises
        ------
        ValueError : sides that cannot be halved as often as there are levels.
        """
        source, spacing = cond
        step = 2 ** (len(self.size.widths) - 1)
        if x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"latents of {x.shape[2]} x {x.shape[3]}; give multiples of {step} a side"
            )
        told = self.embed(torch.cat([_waves(t), (spacing / _TYPICAL_MM).log()], 1).to(x.dtype))
        x = self.first(torch.cat([x, source], 1))
        kept = []
        for level, blocks in enumerate(self.down):
            if level:
                x = self.lower[level - 1](x)
            for block in blocks:
                x = block(x, told)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            x = torch.cat([self.raise_[level](x), kept[level]], 1)
            for block in self.up[level]:
                x = block(x, told)
        return self.last(F.silu(x))


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, told: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.tell = nn.Linear(told, 2 * channels_out)
        same = channels_in == channels_out
        self.past = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        gain, offset = self.tell(told)[:, :, None, None].chunk(2, 1)
        inner = self.norm(self.conv1(F.silu(self.norm(x)))) * (1 + gain) + offset
        return self.past(x) + self.conv2(F.silu(inner))


def _waves(t: Tensor, half: int = 16) -> Tensor:
    """(n, 32) sines and cosines of the time, wavelengths from 2 pi to 10,000."""
    rate = torch.exp(-math.log(1e4) * torch.arange(half, device=t.device) / half)
    angle = t.float()[:, None] * rate[None]
    return torch.cat([angle.sin(), angle.cos()], 1)
