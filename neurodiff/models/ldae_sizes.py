"""Sizes of LDAE's networks, and the presets ``BASE`` (published), ``S`` and ``TINY``.

Source: Lozupone et al. 2026, Latent Diffusion Autoencoders, Medical Image Analysis 108 (arXiv
2504.08635), and its released settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from neurodiff.core.errors import UsageError

Axes = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class LatentUNetSize:
    """Sizes of `LatentUNet` and `ShiftUNet`; the defaults are published.

    Parameters
    ----------
    channels : of the latents.
    width : of the finest level; a multiple of ``groups``.
    multipliers : width of each level over ``width``, the finest first.
    blocks : residual blocks a level on the way down, and one more on the way up.
    attention : halvings (1, 2, 4, ...) of the levels that have self-attention.
    heads : of every attention.
    dropout : inside residual blocks, in training.
    stride : by which axes i, j, k shrink from one level to the next.  The published network
        leaves the first (left to right) as it is; (2, 2, 2) costs a third less.
    semantic : numbers of the semantic code that the shift reads.
    groups : of every group normalisation.
    """

    channels: int = 3
    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 3)
    blocks: int = 2
    attention: tuple[int, ...] = (2, 4)
    heads: int = 1
    dropout: float = 0.1
    stride: Axes = (1, 2, 2)
    semantic: int = 768
    groups: int = 32

    def __post_init__(self) -> None:
        for name in ("channels", "width", "blocks", "heads", "semantic", "groups"):
            _at_least_one(name, getattr(self, name))
        if not self.multipliers or min(self.multipliers) < 1:
            raise UsageError(f"multipliers are {self.multipliers}; give one from 1 for each level")
        if self.width % self.groups or self.width % 2:
            raise UsageError(
                f"width is {self.width}; expected an even multiple of {self.groups} groups"
            )
        if any(m * self.width % self.heads for m in self.multipliers):
            raise UsageError(f"{self.heads} heads do not divide the widths of every level")
        if any(s not in (1, 2) for s in self.stride):
            raise UsageError(f"stride is {self.stride}; expected 1 or 2 for each axis")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}; expected a share from 0 to below 1")

    @property
    def embedding(self) -> int:
        """Numbers of the embedded time."""
        return 4 * self.width

    @property
    def multiples(self) -> Axes:
        """What the axes of a latent have to be multiples of."""
        i, j, k = (s ** (len(self.multipliers) - 1) for s in self.stride)
        return i, j, k


@dataclass(frozen=True, kw_only=True)
class SliceEncoderSize:
    """Sizes of `SliceEncoder`; the defaults are published (ConvNeXt-Small, 128 slices).

    Parameters
    ----------
    widths, depths : of the four stages of the slice network.
    slices : most slices of a volume.
    heads : of the attention over slices; they divide the last width.
    dropout : of positions and attention, in training.
    drop_path : share of images in which the last residual block is left out, in training; earlier
        blocks linearly less.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    slices: int = 128
    heads: int = 8
    dropout: float = 0.1
    drop_path: float = 0.4

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.depths):
            raise UsageError(f"widths {self.widths} and depths {self.depths}: give one a stage")
        for name in ("slices", "heads"):
            _at_least_one(name, getattr(self, name))
        if min(self.widths + self.depths) < 1 or self.code % 2 or self.code % self.heads:
            raise UsageError(
                f"widths {self.widths}, depths {self.depths}: give numbers from 1, the last width "
                f"an even multiple of {self.heads} heads"
            )

    @property
    def code(self) -> int:
        """Numbers of a semantic code."""
        return self.widths[-1]

    @property
    def smallest(self) -> int:
        """Pixels that each side of a slice needs at least."""
        return 4 * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSize:
    """Sizes of MONAI's ``AutoencoderKL`` without attention; the defaults are those of LDAE, BrLP
    and MONAI's brain bundle.

    Parameters
    ----------
    widths : of the levels, the finest first; multiples of ``groups``.
    blocks : residual blocks a level.
    latent_channels, image_channels : of the two ends.
    patch : voxels along each axis that become channels before the first convolution, and again
        after the last. Published 1; 4 makes training on a CPU ten times cheaper, because most of
        the work is at full resolution.
    template : axes (i, j, k) of a mean scan that the weights hold: the network reads and writes
        differences from it, in units of their SD. Published: none, and then a short training
        draws little but the mean scan (benchmarks/ldae_template.py).
    groups, eps : of every group normalisation.
    """

    widths: tuple[int, ...] = (64, 128, 128, 128)
    blocks: int = 2
    latent_channels: int = 3
    image_channels: int = 1
    patch: int = 1
    template: tuple[int, int, int] | None = None
    groups: int = 32
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("blocks", "latent_channels", "image_channels", "patch", "groups"):
            _at_least_one(name, getattr(self, name))
        if not self.widths or any(w < 1 or w % self.groups for w in self.widths):
            raise UsageError(f"widths {self.widths}: expected multiples of {self.groups} groups")
        for side in self.template or ():
            _at_least_one("a side of the template", side)

    @property
    def factor(self) -> int:
        """Voxels of the image along an axis for one of the latent."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def config(self) -> dict[str, Any]:
        """What MONAI's ``AutoencoderKL`` is built from; also what a bundle holds."""
        channels = self.image_channels * self.patch**3
        return {
            "spatial_dims": 3,
            "in_channels": channels,
            "out_channels": channels,
            "latent_channels": self.latent_channels,
            "channels": list(self.widths),
            "num_res_blocks": self.blocks,
            "norm_num_groups": self.groups,
            "norm_eps": self.eps,
            "attention_levels": [False] * len(self.widths),
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
        }


@dataclass(frozen=True, kw_only=True)
class LDAESize:
    """Sizes of the three networks, and of the image ``grid`` (i, j, k) that they are made for.

    Raises
    ------
    UsageError : networks that do not fit each other or the grid.
    """

    grid: Axes = (128, 160, 128)
    autoencoder: AutoencoderSize = field(default_factory=AutoencoderSize)
    unet: LatentUNetSize = field(default_factory=LatentUNetSize)
    encoder: SliceEncoderSize = field(default_factory=SliceEncoderSize)

    def __post_init__(self) -> None:
        if self.autoencoder.latent_channels != self.unet.channels:
            raise UsageError(
                f"the autoencoder has {self.autoencoder.latent_channels} latent channels and the "
                f"U-Net {self.unet.channels}; give both the same"
            )
        template = self.autoencoder.template
        if template is not None and template != self.grid:
            raise UsageError(
                f"the autoencoder's template is {template} and the grid {self.grid}; give both the "
                "same"
            )
        if self.encoder.code != self.unet.semantic:
            raise UsageError(
                f"the slice encoder gives {self.encoder.code} numbers and the shift reads "
                f"{self.unet.semantic}; give both the same"
            )
        wanted = [self.autoencoder.factor * m for m in self.unet.multiples]
        if any(side < 1 or side % m for side, m in zip(self.grid, wanted, strict=True)):
            raise UsageError(f"grid is {self.grid}; expected multiples of {tuple(wanted)}")
        if self.grid[2] > self.encoder.slices:
            raise UsageError(
                f"grid has {self.grid[2]} axial slices; this encoder reads {self.encoder.slices}"
            )

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """Channels and axes of a latent.

        Examples
        --------
        >>> BASE.latent
        (3, 16, 20, 16)
        """
        i, j, k = (side // self.autoencoder.factor for side in self.grid)
        return self.unet.channels, i, j, k


def from_plain(cls: type, values: Mapping[str, Any]) -> Any:
    """Sizes from the values of a JSON file, where a tuple is a list.

    Raises
    ------
    UsageError : a name that these sizes do not have, or a value that they refuse.
    """
    known = {f.name for f in fields(cls)}
    if strange := sorted(set(values) - known):
        raise UsageError(f"{cls.__name__} has no {strange[0]!r}; it has {', '.join(sorted(known))}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name} is {value}; expected at least 1")


#: The published networks.
BASE = LDAESize()
#: A sixteenth of the U-Net, ConvNeXt-Tiny, the published autoencoder.
S = LDAESize(
    unet=LatentUNetSize(width=64),
    encoder=SliceEncoderSize(depths=(3, 3, 9, 3), drop_path=0.1),
)
#: Trains on a CPU: 64 x 96 x 64 voxels of about 3 mm.
TINY = LDAESize(
    grid=(64, 96, 64),
    autoencoder=AutoencoderSize(widths=(16, 32, 32, 32), blocks=1, groups=16),
    unet=LatentUNetSize(width=32, multipliers=(1, 2), attention=(2,), semantic=128),
    encoder=SliceEncoderSize(
        widths=(16, 32, 64, 128), depths=(1, 1, 1, 1), slices=64, heads=4, drop_path=0.0
    ),
)
PRESETS = {"base": BASE, "s": S, "tiny": TINY}
