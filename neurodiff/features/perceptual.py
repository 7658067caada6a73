"""LPIPS: how far two pictures are apart in the eyes of a pretrained network.

Published ones have an AlexNet trunk (pictures) or a SqueezeNet trunk (`squeezenet`, brain scans);
heads weigh the squared differences of unit-length features at five or seven depths. Where neither's
weights are at hand, a VGG16 trunk that was fine-tuned for edges (HED) can stand in with the heads
for VGG: another number under another name, monotone in blur and noise, and comparable with no
published LPIPS.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.core.errors import DataError

# of the published metric, for pictures in -1..1 (red, green, blue)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red; the input of the VGG trunk
# place among torchvision's `features` -> (in, out, kernel, stride, padding); pools before 3 and 6
ALEXNET = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
VGG16 = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512,) * 4)


class AlexNetTrunk(nn.Module):
    """The five convolutions of AlexNet under torchvision's names; features after each ReLU."""

    name = "AlexNet"
    widths = (64, 192, 384, 256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {str(k): nn.Conv2d(a, b, n, s, p) for k, (a, b, n, s, p) in ALEXNET.items()}
        )

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Pictures in -1..1."""
        shift, scale = (x.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        x = (x - shift) / scale
        found = []
        for name, convolution in self.features.items():
            if name in ("3", "6"):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(convolution(x))
            found.append(x)
        return found


class VGG16Trunk(nn.Module):
    """The thirteen convolutions of VGG16; features before each pooling and at the end."""

    name = "VGG-HED, a stand-in"
    widths = (64, 128, 256, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(w))
            for w in VGG16
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> VGG16Trunk:
        """From the layers of the edge detector, ``block1/layers/conv2d_1/vars/0`` (h, w, in, out).

        Raises
        ------
        DataError : a layer is missing or has another shape.
        """
        trunk = cls()
        for b, block in enumerate(trunk.blocks, start=1):
            for k, convolution in enumerate(block):
                place = f"block{b}/layers/conv2d{f'_{k}' if k else ''}/vars"
                for part, parameter in enumerate((convolution.weight, convolution.bias)):
                    name = f"{place}/{part}"
                    value = np.asarray(arrays[name]) if name in arrays else np.zeros(0)
                    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
                    if value.shape != tuple(parameter.shape):
                        raise DataError(
                            f"layer {name} of the VGG16 trunk has shape {value.shape}; expected "
                            f"{tuple(parameter.shape)}: this is another file"
                        )
                    parameter.data = torch.tensor(value, dtype=torch.float32)
        return trunk

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Pictures in -1..1."""
        x = (x.flip(1) + 1) * 127.5 - x.new_tensor(CAFFE_MEAN)[:, None, None]
        found = []
        for b, block in enumerate(self.blocks):
            if b:
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            for convolution in block:
                x = F.relu(convolution(x))
            found.append(x)
        return found


class LPIPS(nn.Module):
    """Learned perceptual distance of pictures, by a trunk and a head for each of its depths.

    Parameters
    ----------
    trunk : an ``AlexNetTrunk``, ``SqueezeNetTrunk`` or ``VGG16Trunk``: features of ``widths``
        channels, and a ``name``, which is part of the number.
    heads : ``lin0.model.1.weight``, ``lin1.model.1.weight``, ..., one a depth, each (1, channels,
        1, 1), not negative.
    size : pictures are brought to this many pixels on a side; None leaves them as they are.

    References
    ----------
    Zhang et al. 2018, CVPR.
    """

    def __init__(
        self,
        trunk: Any,
        heads: Mapping[str, Tensor],
        *,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.size = trunk, size
        more = f"lin{len(trunk.widths)}.model.1.weight"
        if more in heads:
            raise DataError(
                f"there is a head {more}, and this trunk has {len(trunk.widths)} depths: take the "
                "heads of the same trunk"
            )
        for k, width in enumerate(trunk.widths):
            head = heads.get(f"lin{k}.model.1.weight")
            if head is None or tuple(head.shape) != (1, width, 1, 1):
                raise DataError(
                    f"head lin{k}.model.1.weight is "
                    f"{'missing' if head is None else tuple(head.shape)}; this trunk needs "
                    f"(1, {width}, 1, 1): take the heads of the same trunk"
                )
            self.register_buffer(f"head{k}", head.detach().float().clone())
        self.eval()

    @torch.no_grad()
    def distances(
        self,
        a: UInt8[np.ndarray, "n h w 3"],
        b: UInt8[np.ndarray, "n h w 3"],
        *,
        values: Literal["-1..1", "0..1"] = "-1..1",
    ) -> Float[np.ndarray, " n"]:
        """Distance of each pair, one pair at a time.

        Parameters
        ----------
        values : "-1..1" is what the network was made for. The published evaluation of MinD-3D
            hands it pictures in "0..1" without rescaling, which halves the contrast and makes
            everything brighter.
        """
        found = []
        for x, y in zip(a, b, strict=True):
            pair = torch.from_numpy(np.stack([x, y])).permute(0, 3, 1, 2).float() / 255
            if self.size is not None and pair.shape[-1] != self.size:
                size = (self.size, self.size)
                pair = F.interpolate(pair, size, mode="bilinear", antialias=True)
            features = self.trunk(pair if values == "0..1" else 2 * pair - 1)
            total = 0.0
            for k, feature in enumerate(features):
                unit = feature / (feature.square().sum(1, keepdim=True).sqrt() + 1e-10)
                difference = (unit[:1] - unit[1:]).square()
                total += float((difference * getattr(self, f"head{k}")).sum(1).mean())
            found.append(total)
        return np.array(found, dtype=np.float64)
