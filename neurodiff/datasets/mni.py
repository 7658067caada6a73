"""The MNI brain that nilearn ships: T1, tissue and brain mask at any grid, read offline.

The template is the symmetric, skull-stripped average of 152 people (ICBM 2009a), 1 mm.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from neurodiff.core.volume import Volume

BRAIN_LOW, BRAIN_HIGH = (-73.0, -107.0, -73.0), (73.0, 73.0, 83.0)
"""Corners of the box around the template's brain, mm."""


@functools.lru_cache(maxsize=4)
def mni_maps(resolution: int = 2) -> dict[str, Volume]:
    """``t1`` (0 to 1), ``gm`` and ``wm`` (shares), and ``mask`` (0 or 1) at 1, 2 or 4 mm.

    Reading takes seconds at 1 mm; the maps are kept. Do not write into them.
    """
    from nilearn import datasets

    images: dict[str, Any] = {
        "t1": datasets.load_mni152_template(resolution=resolution),
        "gm": datasets.load_mni152_gm_template(resolution=resolution),
        "wm": datasets.load_mni152_wm_template(resolution=resolution),
        "mask": datasets.load_mni152_brain_mask(resolution=resolution),
    }
    maps = {}
    for name, image in images.items():
        values = np.clip(np.asarray(image.dataobj, np.float32), 0, 1)
        values.flags.writeable = False
        maps[name] = Volume(values[None], image.affine, "share", f"MNI152 {name}")
    return maps


def mni_grid(spacing: float = 1.0) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the usual MNI152 grid: 182 x 218 x 182 mm from (-90, -126, -72)."""
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = (-90.0, -126.0, -72.0)
    i, j, k = (round(n / spacing) for n in (182, 218, 182))
    return affine, (i, j, k)


def sampled(volume: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Linear interpolation of a volume's first channel at another grid; 0 outside.

    Parameters
    ----------
    affine, shape : of the grid, (4, 4) to mm in RAS and (i, j, k).

    Returns
    -------
    float32 (i, j, k)
    """
    from scipy.ndimage import affine_transform

    there = np.linalg.inv(volume.affine) @ affine
    return affine_transform(
        volume.data[0], there[:3, :3], there[:3, 3], output_shape=shape, order=1, cval=0.0
    )
