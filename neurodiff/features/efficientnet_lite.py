"""EfficientNet-Lite0: a small ImageNet classifier, with the parameter names of its torch weights.

It judges rendered views in n-way identification where the published judge (ViT-H/14) is not at
hand. The weights are a file; nothing here fetches it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 224  # pixels on a side
CLASSES = 1000
STEM, HEAD = 32, 1280
# (repeats, kernel, stride, expansion, channels out), Tan & Le 2019 without squeeze-and-excitation
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Pictures (n, 3, 224, 224) of ``(value - 127) / 128`` -> logits of 1,000 ImageNet classes.

    References
    ----------
    Tan & Le 2019, ICML (EfficientNet); the Lite variants of its authors (no squeeze-and-excitation,
    ReLU6).
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = _norm(STEM)
        blocks, width = [], STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for k in range(repeats):
                blocks.append(_Block(width, out, kernel, stride if k == 0 else 1, expansion))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, HEAD, 1, bias=False)
        self._bn1 = _norm(HEAD)
        self._fc = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1000"]:
        return self._fc(self.pooled(x))

    def pooled(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        """Activations that the classifier reads, averaged over the picture."""
        return self.features(x).mean(dim=(2, 3))

    def features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280 r r"]:
        """Activations by place, 7 x 7 of a picture of 224 pixels, before they are averaged."""
        x = F.relu6(self._bn0(_same(self._conv_stem, x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))

    @torch.no_grad()
    def probabilities(self, views: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 1000"]:
        """Class probabilities of RGB pictures of any size, one picture at a time."""
        rows = []
        for view in views:
            x = torch.tensor(view).permute(2, 0, 1)[None].float()
            if x.shape[-2:] != (SIZE, SIZE):
                x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
            rows.append(self((x - 127) / 128).softmax(-1))
        return torch.cat(rows).numpy()


class _Block(nn.Module):
    """Inverted bottleneck."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = width * expansion
        self.expands, self.residual = expansion != 1, stride == 1 and width == out
        if self.expands:
            self._expand_conv = nn.Conv2d(width, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(_same(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Pad as TensorFlow's "same" does, where the weights come from: the odd pixel at the end."""
    (kernel, _), (stride, _) = convolution.kernel_size, convolution.stride
    pads = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return convolution(F.pad(x, pads))
