"""A small classifier of rendered views: the judge of n-way identification.

It shares nothing with the target embedding of the bridge (that one is a linear map of pixels,
this one a convolutional network trained on category labels), so identification by it is not
circular. Trained on training objects only.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F


class ViewClassifier(nn.Module):
    """Grey views (n, views, 64, 64) in 0..255 -> class probabilities, averaged over views."""

    def __init__(self, classes: tuple[str, ...], width: int = 16):
        super().__init__()
        self.classes = classes
        widths = [1, width, 2 * width, 4 * width, 4 * width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, b) for b in widths[1:])
        self.head = nn.Linear(4 * width, len(classes))

    def forward(self, images: Float[Tensor, "n h w"]) -> Float[Tensor, "n classes"]:
        """Logits of single views with values in 0..1 (white background is 1)."""
        x = 1 - images[:, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x)))
        return self.head(x.mean(dim=(2, 3)))

    def loss(
        self,
        views: UInt8[np.ndarray, "b k h w"],
        labels: Int[np.ndarray, " b"],
        generator: torch.Generator,
    ) -> Tensor:
        """Cross-entropy of two views an object, shifted by up to 4 pixels."""
        k = torch.randint(views.shape[1], (len(views), 2), generator=generator).numpy()
        chosen = np.take_along_axis(views, k[:, :, None, None], axis=1).reshape(
            -1, *views.shape[2:]
        )
        images = torch.from_numpy(chosen).float() / 255
        shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
        images = torch.roll(images, shift, dims=(1, 2))
        return F.cross_entropy(self(images), torch.from_numpy(labels).repeat_interleave(2))

    @torch.no_grad()
    def probabilities(self, views: UInt8[np.ndarray, "n k h w"]) -> Float[np.ndarray, "n classes"]:
        """Of each class, mean over an object's views."""
        n, k = views.shape[:2]
        images = torch.from_numpy(views.reshape(n * k, *views.shape[2:])).float() / 255
        logits = torch.cat([self(part) for part in images.split(512)])
        return logits.softmax(-1).reshape(n, k, -1).mean(1).numpy()
