"""Small U-Net on feature planes, with the published parameter names (MinD-3D's plane networks).

Level ``l`` has ``start_filters * 2**l`` channels: two 3x3 convolutions with ReLU, then 2x2 max
pooling; on the way up a 2x2 transposed convolution, concatenation with the level's features (the
upsampled ones first) and again two convolutions; a 1x1 convolution ends it.  Height and width must
be multiples of ``2**(depth - 1)``.

References
----------
Ronneberger et al. 2015, U-Net, MICCAI.  Peng et al. 2020, Convolutional Occupancy Networks, ECCV.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class UNet2D(nn.Module):
    """Planes (n, channels_in, h, w) to planes (n, channels_out, h, w)."""

    def __init__(
        self, channels_in: int, channels_out: int, *, depth: int, start_filters: int
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}; a U-Net has at least 1 level")
        self.depth = depth
        widths = [start_filters * 2**level for level in range(depth)]
        self.down_convs = nn.ModuleList(
            _Down(before, width)
            for before, width in zip([channels_in, *widths[:-1]], widths, strict=True)
        )
        self.up_convs = nn.ModuleList(_Up(width, width // 2) for width in reversed(widths[1:]))
        self.conv_final = nn.Conv2d(start_filters, channels_out, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n out h w"]:
        """Apply the network.

        Raises
        ------
        ValueError : the sides of the planes cannot be halved ``depth - 1`` times.
        """
        step = 2 ** (self.depth - 1)
        if x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"planes of {x.shape[2]} x {x.shape[3]} cannot be halved {self.depth - 1} times; "
                f"give sides that are multiples of {step}, or a U-Net of smaller depth"
            )
        skipped = []
        for level, down in enumerate(self.down_convs):
            if level:
                x = F.max_pool2d(x, 2)
            x = down(x)
            skipped.append(x)
        for level, up in enumerate(self.up_convs):
            x = up(x, skipped[-2 - level])
        return self.conv_final(x)


class _Down(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class _Up(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
        self.conv1 = nn.Conv2d(2 * channels_out, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        x = torch.cat([self.upconv(x), skipped], dim=1)
        return F.relu(self.conv2(F.relu(self.conv1(x))))
