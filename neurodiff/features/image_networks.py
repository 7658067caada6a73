"""Networks that turn pictures into rows of features, for the scores of decoded pictures.

Anything with a ``name``, a ``published`` flag and a call from uint8 pictures to rows is a feature
extractor. Here are those that the published tables were made with, and the small stand-in that
can be installed. Their weights are given as modules: nothing is read or fetched here.

Every picture is brought to the network's size by Pillow's bilinear filter on uint8, without a
centre crop, then divided by 255 and normalised (the released scripts of Brain-Diffuser).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

BATCH = 16  # pictures at a time
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)


@runtime_checkable
class FeatureExtractor(Protocol):
    """What scoring asks of a network. ``published``: the published tables were made with it."""

    @property
    def name(self) -> str: ...

    @property
    def published(self) -> bool: ...

    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]: ...


@dataclass(frozen=True)
class ImageNetwork:
    """A network with the preprocessing that belongs to it.

    Parameters
    ----------
    name : in the heading of every column that it makes.
    published : whether the published tables were made with this network.
    read : normalised pictures (n, 3, size, size) to activations (n, ...).
    size : pixels on a side.
    normalise : mean and standard deviation of each channel, of values in 0..1.
    """

    name: str
    published: bool
    read: Callable[[Tensor], Tensor] = field(repr=False)
    size: int = 224
    normalise: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET

    @torch.no_grad()
    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """Features, float32; a picture's row does not depend on its neighbours.

        Raises
        ------
        ValueError : pictures are not uint8: floats would be normalised twice or not at all.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"{self.name} got pictures of {images.dtype} {images.shape}; expected uint8 "
                "(n, h, w, 3) in 0..255"
            )
        rows = []
        for start in range(0, len(images), BATCH):
            x = self.prepare(images[start : start + BATCH])
            rows.append(self.read(x).flatten(1).float().cpu().numpy())
        return np.concatenate(rows)

    def prepare(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 size size"]:
        """Resize and normalise."""
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in self.normalise)
        x = np.stack([_resized(image, self.size) for image in images])
        return (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - mean) / std


def efficientnet_lite0(network: Any) -> ImageNetwork:
    """The stand-in: 1,280 pooled activations of an ``EfficientNetLite0``."""
    return ImageNetwork("EfficientNet-Lite0", False, network.pooled, 224, LITE)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
