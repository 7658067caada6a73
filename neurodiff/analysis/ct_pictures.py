"""Small pictures of CT slices for a page: windows, differences, crops without rescaling."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 112  # pixels of a picture on the page


def window(hu: np.ndarray, low: float, high: float) -> Image.Image:
    """Grey from ``low`` to ``high`` HU."""
    grey = np.clip((hu - low) / (high - low), 0, 1)
    return Image.fromarray((255 * grey).astype(np.uint8))


def difference(change: np.ndarray, reach: float) -> Image.Image:
    """Blue where HU fell, red where they rose, white where nothing changed; full at ``reach``."""
    share = np.clip(change / reach, -1, 1)
    colours = np.stack(
        [1 - np.maximum(-share, 0), 1 - np.abs(share), 1 - np.maximum(share, 0)], axis=-1
    )
    return Image.fromarray((255 * colours).astype(np.uint8))


def crop(hu: np.ndarray, wanted: np.ndarray) -> tuple[slice, slice]:
    """Where ``SIDE`` pixels hold most of ``wanted``, so that texture is seen pixel by pixel."""
    from scipy.ndimage import uniform_filter

    side = [min(SIDE, size) for size in hu.shape]
    density = uniform_filter(wanted.astype(np.float32), side, mode="constant")
    row, column = np.unravel_index(int(density.argmax()), density.shape)
    first = [
        int(np.clip(at - s // 2, 0, size - s))
        for at, s, size in zip((row, column), side, hu.shape, strict=True)
    ]
    return slice(first[0], first[0] + side[0]), slice(first[1], first[1] + side[1])


def before_after(
    before: np.ndarray, after: np.ndarray, reference: np.ndarray | None, padding: np.ndarray
) -> list[Image.Image | None]:
    """A slice (rows, columns): whole, then crops before, after, reference, change, what remains."""
    tissue = (after > -200) & (after < 200) & ~padding
    part = crop(after, tissue)
    reach = max(
        50.0,
        float(np.percentile(np.abs(after - before)[~padding], 99)) if (~padding).any() else 50.0,
    )
    left = None if reference is None else difference((after - reference)[part], reach)
    return [
        window(after, -1000, 400),
        window(before[part], -200, 200),
        window(after[part], -200, 200),
        None if reference is None else window(reference[part], -200, 200),
        difference((after - before)[part], reach),
        left,
    ]


NAMES = (
    "whole slice after, -1000 to 400 HU",
    "before, -200 to 200 HU",
    "after",
    "reference",
    "change (blue: lower)",
    "after minus reference",
)
