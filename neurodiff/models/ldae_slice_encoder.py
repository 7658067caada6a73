"""LDAE's semantic encoder: a ConvNeXt for each axial slice, attention over slices, one code.

Parameters have the published names, which are torchvision's inside the slice network.

Sources: Lozupone et al. 2026, LDAE (encoder of the semantic code), after Lozupone et al. 2025,
AXIAL; Liu et al. 2022, ConvNeXt, CVPR; Huang et al. 2016 (stochastic depth).
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neurodiff.core.errors import UsageError
from neurodiff.models.ldae_sizes import SliceEncoderSize, from_plain


class SliceEncoder(nn.Module):
    """Volumes to semantic codes.

    Parameters
    ----------
    size : published by default.

    ``slices_at_once`` (None: all) bounds the memory of a call; slices do not see each other in the
    slice network, so it changes no result.  ``checkpointing`` computes the slice network again in
    the backward pass.

    Examples
    --------
    >>> size = SliceEncoderSize(widths=(8, 16), depths=(1, 1), slices=6, heads=2)
    >>> SliceEncoder(size).eval()(torch.zeros(2, 1, 6, 16, 24)).shape
    torch.Size([2, 16])
    """

    def __init__(self, size: SliceEncoderSize | None = None) -> None:
        super().__init__()
        self.size = size = size or SliceEncoderSize()
        self.slices_at_once: int | None = None
        self.checkpointing = False
        self.backbone = _Backbone(size)
        self.positional_encoding = _Positions(size)
        self.query_projection = nn.Linear(size.code, size.code)
        self.key_projection = nn.Linear(size.code, size.code)
        self.value_projection = nn.Linear(size.code, size.code)
        self.soft_attention = _SoftAttention(size.code)
        self.cross_attention = nn.MultiheadAttention(
            size.code, size.heads, dropout=size.dropout, batch_first=True
        )
        self.layer_norm_after_attention = nn.LayerNorm(size.code)

    @classmethod
    def from_sizes(cls, **sizes: Any) -> "SliceEncoder":
        """A network from the values of a JSON file, such as a bundle's."""
        return cls(from_plain(SliceEncoderSize, sizes))

    def forward(self, volume: Float[Tensor, "n 1 axial i j"]) -> Float[Tensor, "n code"]:
        """Codes of volumes whose axial slices come first (:func:`slices_first`), values in [0, 1].

        Raises
        ------
        UsageError : more slices than the encoder has positions, slices smaller than it can halve,
            or more than one channel.
        """
        self._check(volume)
        n, axial = volume.shape[0], volume.shape[2]
        slices = volume.transpose(1, 2).flatten(0, 1)  # (n * axial, 1, i, j)
        at_once = self.slices_at_once or len(slices)
        tokens = torch.cat([self._tokens(part) for part in slices.split(at_once)])
        tokens = self.positional_encoding(tokens.reshape(n, axial, -1))
        query = self.query_projection(self.soft_attention(tokens))[:, None]  # (n, 1, code)
        keys, values = self.key_projection(tokens), self.value_projection(tokens)
        attended, _ = self.cross_attention(query, keys, values, need_weights=False)
        return self.layer_norm_after_attention(attended[:, 0])

    def slice_weights(self, volume: Tensor) -> Float[Tensor, "n axial"]:
        """How much each slice weighs in the query; sums to one."""
        self._check(volume)
        slices = volume.transpose(1, 2).flatten(0, 1)
        tokens = self.backbone(slices).reshape(len(volume), volume.shape[2], -1)
        return self.soft_attention.weights(self.positional_encoding(tokens))[..., 0]

    def _tokens(self, slices: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.backbone, slices, use_reentrant=False)
        return self.backbone(slices)

    def _check(self, volume: Tensor) -> None:
        size = self.size
        if volume.ndim != 5 or volume.shape[1] != 1:
            raise UsageError(
                f"volumes have shape {tuple(volume.shape)}; the slice encoder reads "
                "(items, 1, axial, i, j)"
            )
        if not 1 <= volume.shape[2] <= size.slices:
            raise UsageError(
                f"volumes have {volume.shape[2]} axial slices; this encoder has positions for 1 to "
                f"{size.slices}: crop them, or check the order of the axes (slices_first)"
            )
        if min(volume.shape[3:]) < size.smallest:
            raise UsageError(
                f"slices have {tuple(volume.shape[3:])} pixels; this encoder needs at least "
                f"{size.smallest} on each side"
            )


def slices_first(volume: Float[Tensor, "n c i j k"]) -> Float[Tensor, "n c k i j"]:
    """From the axes of an image (left-right, back-front, down-up) to those of the encoder.

    The autoencoder sees the image in its own axes, the slice encoder with axial slices in front.
    """
    return volume.permute(0, 1, 4, 2, 3)


class _Backbone(nn.Module):
    """One level of names around the slice network, as published."""

    def __init__(self, size: SliceEncoderSize) -> None:
        super().__init__()
        self.backbone = _ConvNeXt(size)

    def forward(self, slices: Tensor) -> Tensor:
        return self.backbone(slices)


class _ConvNeXt(nn.Module):
    """Slices (n, 1, i, j) to normalised features (n, code)."""

    def __init__(self, size: SliceEncoderSize) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inside, done, most = 1, 0, max(sum(size.depths) - 1, 1)
        for width, depth in zip(size.widths, size.depths, strict=True):
            if done == 0:
                parts.append(nn.Sequential(nn.Conv2d(inside, width, 4, 4), _ChannelNorm(width)))
            else:
                parts.append(nn.Sequential(_ChannelNorm(inside), nn.Conv2d(inside, width, 2, 2)))
            rates = [size.drop_path * (done + k) / most for k in range(depth)]
            parts.append(nn.Sequential(*(_Block(width, rate) for rate in rates)))
            inside, done = width, done + depth
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.LayerNorm(inside, eps=1e-6))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, slices: Tensor) -> Tensor:
        return self.classifier(self.features(slices).mean(dim=(2, 3)))


class _Block(nn.Module):
    """x + scale * (depthwise convolution, norm over channels, two-layer network)(x)."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        # names count the two changes of layout, which are modules in the published network
        self.block = nn.ModuleDict(
            {
                "0": nn.Conv2d(width, width, 7, padding=3, groups=width),
                "2": nn.LayerNorm(width, eps=1e-6),
                "3": nn.Linear(width, 4 * width),
                "5": nn.Linear(4 * width, width),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        h = block["2"](block["0"](x).permute(0, 2, 3, 1))  # (n, i, j, width)
        h = block["5"](F.gelu(block["3"](h))).permute(0, 3, 1, 2)
        h = self.layer_scale * h
        if self.training and self.rate:
            h = h * F.dropout(h.new_ones(len(h), 1, 1, 1), self.rate)
        return x + h


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a picture."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Positions(nn.Module):
    """Adds sine and cosine of the slice's number at falling frequencies (Vaswani et al. 2017)."""

    pe: Tensor

    def __init__(self, size: SliceEncoderSize) -> None:
        super().__init__()
        place = torch.arange(size.slices, dtype=torch.float32)[:, None]
        even = torch.arange(0, size.code, 2, dtype=torch.float32)
        angle = place * torch.exp(even * (-math.log(10_000.0) / size.code))
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
        self.register_buffer("pe", table[None])  # (1, slices, code)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(tokens + self.pe[:, : tokens.shape[1]].to(tokens.dtype))


class _SoftAttention(nn.Module):
    """Mean of tokens, weighted by a softmax of a learned score."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.linear = nn.Linear(code, 1)

    def weights(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens).softmax(dim=1)  # (n, axial, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.weights(tokens) * tokens).sum(dim=1)
