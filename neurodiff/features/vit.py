"""Vision transformer classifier with torchvision's parameter names: the published n-way judge.

MinD-3D's identification asks a ViT-H/14 (SWAG weights, 518 pixels, 633,470,440 parameters) for the
1,000 ImageNet classes. torchvision is not needed: the network is built here and its weight file
loads by name. On processors it takes about a TFLOP a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True, kw_only=True)
class VisionTransformerSize:
    """Sizes; the defaults are ViT-H/14 at 518 pixels."""

    image: int = 518
    patch: int = 14
    layers: int = 32
    heads: int = 16
    dim: int = 1280
    hidden: int = 5120
    classes: int = 1000


class VisionTransformer(nn.Module):
    """Normalised pictures (n, 3, image, image) -> logits.

    References
    ----------
    Dosovitskiy et al. 2021, ICLR; Singh et al. 2022, CVPR (SWAG).
    """

    def __init__(self, size: VisionTransformerSize | None = None) -> None:
        super().__init__()
        self.size = size = size or VisionTransformerSize()
        tokens = (size.image // size.patch) ** 2 + 1
        self.class_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.conv_proj = nn.Conv2d(3, size.dim, size.patch, size.patch)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, tokens, size.dim))
        self.encoder.layers = nn.Module()
        self.blocks = []  # a plain list: the parameters live below `encoder.layers`
        for k in range(size.layers):
            block = _Block(size)
            self.encoder.layers.add_module(f"encoder_layer_{k}", block)
            self.blocks.append(block)
        self.encoder.ln = nn.LayerNorm(size.dim, eps=1e-6)
        self.heads = nn.Module()
        self.heads.head = nn.Linear(size.dim, size.classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)  # (n, tokens - 1, dim)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        x = x + self.encoder.pos_embedding
        for block in self.blocks:
            x = block(x)
        return self.heads.head(self.encoder.ln(x)[:, 0])

    @torch.no_grad()
    def probabilities(self, views: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n classes"]:
        """Class probabilities of square RGB pictures, one picture at a time."""
        size = (self.size.image, self.size.image)
        mean, sd = (torch.tensor(v)[:, None, None] for v in (MEAN, SD))
        rows = []
        for view in views:
            x = torch.tensor(view).permute(2, 0, 1)[None].float() / 255
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
            rows.append(self((x - mean) / sd).softmax(-1))
        return torch.cat(rows).numpy()


class _Block(nn.Module):
    def __init__(self, size: VisionTransformerSize) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.dim, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(size.dim, size.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(size.dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(size.dim, size.hidden),
            nn.GELU(),
            nn.Identity(),  # a dropout there; it keeps the numbering of the weights
            nn.Linear(size.hidden, size.dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of older weight files (``mlp.linear_1``, ``mlp.linear_2``) as the current ones."""
    old = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}
    renamed = {}
    for name, value in weights.items():
        for before, after in old.items():
            name = name.replace(before, after)
        renamed[name] = value
    return renamed
