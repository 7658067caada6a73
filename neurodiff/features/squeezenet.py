"""The SqueezeNet 1.1 trunk of LPIPS, from torchvision's published weights.

LDAE's autoencoder is trained and scored with it.  The file holds 26 convolutions of 1,235,496
numbers, of which the trunk is 722,496; the classes above it are checked and left out.  LPIPS
compares features at seven depths: after the first convolution, and at the places 4, 7, 9, 10, 11
and 12 of the file's ``features``.

Sources: Iandola et al. 2016, SqueezeNet, arXiv 1602.07360, and its revision 1.1; Zhang et al. 2018,
CVPR.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.core.errors import DataError, UsageError
from neurodiff.features.perceptual import SCALE, SHIFT

# place among torchvision's `features` -> channels (in, squeezed, of each expansion)
FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}
POOLS = (3, 6, 9)  # a pooling comes before these
COMPARED = (4, 7, 9, 10, 11, 12)
SMALLEST = 17  # pixels on a side that leave one after three poolings
CLASSES = 1000


class SqueezeNetTrunk(nn.Module):
    """The convolutions of SqueezeNet 1.1 under torchvision's names; seven depths of features.

    Examples
    --------
    >>> trunk = SqueezeNetTrunk()
    >>> [tuple(f.shape[1:]) for f in trunk(torch.zeros(1, 3, 64, 64))][:3]
    [(64, 31, 31), (128, 15, 15), (256, 7, 7)]
    >>> sum(p.numel() for p in trunk.parameters())
    722496
    """

    name = "SqueezeNet"
    widths = (64, 128, 256, 384, 384, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"0": nn.Conv2d(3, 64, 3, stride=2)}
        layers |= {str(place): _Fire(*channels) for place, channels in FIRES.items()}
        self.features = nn.ModuleDict(layers)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], where: str) -> SqueezeNetTrunk:
        """From the file of torchvision, with or without its classes.

        Raises
        ------
        DataError : a name is missing or unknown, a shape is another one, a value is not finite.
        """
        trunk = cls()
        wanted = published_shapes()
        found = {name: tuple(t.shape) for name, t in tensors.items() if isinstance(t, Tensor)}
        classes = {name for name in wanted if name.startswith("classifier.")}
        bare = not classes & set(found)  # saved without the classes: nothing reads them
        missing = [n for n in wanted if n not in found and not (bare and n in classes)]
        strange = [n for n in tensors if n not in wanted]
        other = [n for n in wanted if n in found and found[n] != wanted[n]]
        said = [
            *(f"lacks {n!r}" for n in missing[:1]),
            *(f"holds {n!r}, which SqueezeNet 1.1 does not have" for n in strange[:1]),
            *(f"has {found[n]} in {n!r} where {wanted[n]} is needed" for n in other[:1]),
        ]
        if said:
            raise DataError(
                f"{where} {said[0]}; it is not the SqueezeNet 1.1 of torchvision (52 names): give "
                "squeezenet1_1-*.pth as published"
            )
        kept = {n: t.float() for n, t in tensors.items() if n not in classes}
        broken = [n for n, t in kept.items() if not bool(torch.isfinite(t).all())]
        if broken:
            raise DataError(f"{where}: {broken[0]} holds NaN or infinity; download it again")
        trunk.load_state_dict(kept)
        return trunk

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Pictures in -1..1.

        Raises
        ------
        UsageError : pictures of fewer than 17 pixels on a side, of which three poolings leave none.
        """
        if min(x.shape[2:]) < SMALLEST:
            raise UsageError(
                f"pictures have {tuple(x.shape[2:])} pixels; SqueezeNet needs at least {SMALLEST} "
                "on each side: use a larger grid, or leave the perceptual distance out"
            )
        shift, scale = (x.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x = F.relu(self.features["0"]((x - shift) / scale))
        found = [x]
        for place in FIRES:
            if place in POOLS:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = self.features[str(place)](x)
            if place in COMPARED:
                found.append(x)
        return found


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's file, classes included.

    Examples
    --------
    >>> import math
    >>> len(published_shapes()), sum(math.prod(s) for s in published_shapes().values())
    (52, 1235496)
    """
    own = {name: tuple(t.shape) for name, t in SqueezeNetTrunk().state_dict().items()}
    return own | {"classifier.1.weight": (CLASSES, 512, 1, 1), "classifier.1.bias": (CLASSES,)}


class _Fire(nn.Module):
    """A few channels out of many, and two expansions of them side by side."""

    def __init__(self, channels: int, squeezed: int, each: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, each, 1)
        self.expand3x3 = nn.Conv2d(squeezed, each, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)
