"""A diffusion autoencoder of voxels: LDAE's graph without an autoencoder below it.

The baseline of LDAE's throughput (benchmarks/ldae_throughput.py); it was trained for plumbing only,
and no figure here says how good its reconstructions could be.

A trunk predicts the noise of the volume itself, the slice encoder gives a semantic code, and a
second decoder shifts the score by it, as in LDAE.  Where
LDAE's autoencoder halves three times, the U-Net here has three more levels, so that its coarsest
features have about the places of LDAE's; widths are chosen so that the parameters are about as
many.  No weights and no sizes of the published voxel baseline are known: it is of the same class,
not the same network.

Sources: Preechakul et al. 2022, Diffusion Autoencoders, CVPR (levels of a network of pixels); Zhang
et al. 2022, PDAE; Lozupone et al. 2026, LDAE, which compares with such a network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.core.errors import UsageError
from neurodiff.models.ldae_sizes import BASE, TINY, Axes, LatentUNetSize, LDAESize, SliceEncoderSize
from neurodiff.models.ldae_slice_encoder import SliceEncoder, slices_first
from neurodiff.models.ldae_unet import ShiftUNet


@dataclass(frozen=True, kw_only=True)
class VoxelDAESize:
    """Sizes of both networks, and of the image ``grid`` (i, j, k) that they are made for.

    Raises
    ------
    UsageError : networks that do not fit each other or the grid, or a U-Net of several channels.
    """

    grid: Axes = (128, 160, 128)
    unet: LatentUNetSize = field(
        default_factory=lambda: LatentUNetSize(
            channels=1,
            width=64,
            multipliers=(1, 2, 2, 4, 8, 12),
            attention=(16, 32),
            stride=(2, 2, 2),
        )
    )
    encoder: SliceEncoderSize = field(default_factory=SliceEncoderSize)

    def __post_init__(self) -> None:
        if self.unet.channels != 1:
            raise UsageError(f"the U-Net has {self.unet.channels} channels; a volume has one")
        if self.encoder.code != self.unet.semantic:
            raise UsageError(
                f"the slice encoder gives {self.encoder.code} numbers and the shift reads "
                f"{self.unet.semantic}; give both the same"
            )
        multiples = self.unet.multiples
        if any(side < 1 or side % m for side, m in zip(self.grid, multiples, strict=True)):
            raise UsageError(f"grid is {self.grid}; expected multiples of {multiples}")
        if self.grid[2] > self.encoder.slices:
            raise UsageError(
                f"grid has {self.grid[2]} axial slices; this encoder reads {self.encoder.slices}"
            )


class VoxelDAENetworks(nn.Module):
    """``unet`` of voxels and ``encoder`` of codes.

    Called, it is the U-Net of volumes whose condition is the clean volume itself; so a denoiser on
    it trains the encoder through the code.

    Examples
    --------
    >>> nets = VoxelDAENetworks(SMALLEST).eval()
    >>> x = torch.zeros(1, 1, 8, 8, 8)
    >>> noise, shift = nets(x, torch.tensor([5]), x)
    >>> noise.shape, nets.codes(x).shape
    (torch.Size([1, 1, 8, 8, 8]), torch.Size([1, 16]))
    """

    def __init__(self, size: VoxelDAESize | None = None) -> None:
        super().__init__()
        self.size = size or VoxelDAESize()
        self.unet, self.encoder = ShiftUNet(self.size.unet), SliceEncoder(self.size.encoder)

    def forward(
        self, x: Float[Tensor, "n 1 i j k"], t: Tensor, volumes: Float[Tensor, "n 1 i j k"]
    ) -> tuple[Float[Tensor, "n 1 i j k"], Float[Tensor, "n 1 i j k"]]:
        """Noise in ``x`` and its shift under the code of ``volumes``, both of range [-1, 1]."""
        return self.unet(x, t, self.codes((volumes + 1) / 2))

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """The trunk alone."""
        return self.unet.noise(x, t)

    def codes(self, volumes: Float[Tensor, "n 1 i j k"]) -> Float[Tensor, "n code"]:
        """Semantic codes of volumes in [0, 1]."""
        return self.encoder(slices_first(volumes))


def same_graph(size: LDAESize) -> LatentUNetSize:
    """The very U-Net of latents, on one channel of voxels and without attention, whose cost grows
    with the square of the voxels: for counting, as nobody could run it."""
    return replace(size.unet, channels=1, attention=())


#: About the parameters of LDAE's ``BASE`` (859 beside 865 million), on its grid.
VOXEL_BASE = VoxelDAESize(grid=BASE.grid, encoder=BASE.encoder)
#: About the parameters of LDAE's ``TINY`` (4.6 beside 5.0 million), on its grid.
VOXEL_TINY = VoxelDAESize(
    grid=TINY.grid,
    unet=LatentUNetSize(
        channels=1,
        width=16,
        multipliers=(1, 1, 2, 2, 4),
        blocks=1,
        attention=(16,),
        stride=(2, 2, 2),
        semantic=TINY.encoder.code,
        groups=16,
    ),
    encoder=TINY.encoder,
)
#: For tests and examples: 8³ voxels.
SMALLEST = VoxelDAESize(
    grid=(8, 8, 8),
    unet=LatentUNetSize(
        channels=1,
        width=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(2,),
        stride=(2, 2, 2),
        semantic=16,
        groups=4,
    ),
    encoder=SliceEncoderSize(widths=(8, 16), depths=(1, 1), slices=8, heads=2, drop_path=0.0),
)
VOXEL_PRESETS = {"base": VOXEL_BASE, "tiny": VOXEL_TINY}


def meta_networks(size: VoxelDAESize) -> VoxelDAENetworks:
    """Networks without memory, for counting parameters and operations."""
    with torch.device("meta"):
        return VoxelDAENetworks(size).eval()
