"""Pictures into and out of a VDVAE: the published resizing and normalisation, by name.

PIL pictures of any size -> `to_pixels` (bilinear, s x s) -> uint8
uint8 -> `normalise` -> the encoder;  uint8 -> `to_targets` -> the training's likelihood
decoded uint8 -> `enlarge` (bicubic, 512 x 512) -> PIL pictures for the generator
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from neurodiff.core.errors import UsageError

#: Mean and spread of ImageNet's pixels at 64 x 64, of the published network.
MEAN, SPREAD = 115.92961967, 69.37404
INIT_SIZE = 512


def to_pixels(images: Sequence[Image.Image], size: int = 64) -> UInt8[np.ndarray, "n size size 3"]:
    """RGB pictures resized to a square, bilinear with antialiasing as PIL does it.

    Raises
    ------
    UsageError : an item is no PIL picture in RGB.
    """
    pixels = np.zeros((len(images), size, size, 3), np.uint8)
    for k, image in enumerate(images):
        _require_rgb(image, k)
        pixels[k] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return pixels


def normalise(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n h w 3"]:
    """``(pixels - 115.92961967) / 69.37404``, float32: what the encoder takes."""
    return (torch.tensor(pixels).float() - MEAN) / SPREAD


def to_targets(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n h w 3"]:
    """``pixels / 127.5 - 1``, float32: what the mixture's likelihood takes."""
    return torch.tensor(pixels).float() / 127.5 - 1


def enlarge(
    pixels: UInt8[np.ndarray, "n h w 3"] | UInt8[Tensor, "n h w 3"], size: int = INIT_SIZE
) -> list[Image.Image]:
    """Decoded pictures at the generator's size, bicubic."""
    return [
        Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)
        for one in np.asarray(pixels)
    ]


def _require_rgb(image: object, position: int) -> None:
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"picture {position} is a {type(image).__name__}; expected a PIL picture "
            "(PIL.Image.fromarray of uint8 values 0 to 255)"
        )
    if image.mode != "RGB":
        raise UsageError(f"picture {position} is in mode {image.mode}; use .convert('RGB')")
