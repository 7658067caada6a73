"""Volumes of regions read from the scan itself, in millilitres.

From label maps where there are some.  Otherwise a plain estimate for skull-stripped scans in MNI
space: three tissues by their intensities in this scan (so that a scanner's contrast does not
matter), counted in regions of the template that are wide enough for any person's.  No truth of a
simulation is used.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from neurodiff.core.errors import DataError
from neurodiff.datasets.mni import mni_maps, sampled

REGION_NAMES = (
    "ventricles, fluid, left",
    "ventricles, fluid, right",
    "hippocampus, grey, left",
    "hippocampus, grey, right",
    "around hippocampus, fluid, left",
    "around hippocampus, fluid, right",
    "fluid",
    "grey matter",
    "white matter",
    "brain",
    "ventricles over brain",
    "hippocampi over brain",
)
# Talairach-like millimetres of the MNI space, wider than the structures
_VENTRICLE_BOX = ((-42.0, -65.0, -16.0), (42.0, 48.0, 44.0))
_HIPPOCAMPUS = ((27.0, -22.0, -14.0), (11.0, 22.0, 11.0))  # centre on the right, radii
_MARGIN_MM = 8.0  # by which the template's ventricles are widened


def regional_volumes(
    volumes: Float[np.ndarray, "n 1 i j k"], affine: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "n regions"]:
    """`REGION_NAMES` of each scan: ml, and two shares of the brain.

    Parameters
    ----------
    volumes : skull-stripped (0 outside the brain), in MNI space.
    affine : of all of them.

    Raises
    ------
    DataError : a scan without brain or of one intensity, or a grid that misses the template's
        ventricles or hippocampi.
    """
    shape = tuple(volumes.shape[2:])
    regions = template_regions(affine, shape)
    ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    rows = []
    for number, volume in enumerate(volumes[:, 0]):
        try:
            fluid, grey, white = tissue_shares(volume)
        except DataError as error:
            raise DataError(f"scan {number}: {error}") from None
        brain = float((volume > 0).sum()) * ml
        row = [
            *(float(fluid[regions[f"ventricles {s}"]].sum()) * ml for s in ("left", "right")),
            *(float(grey[regions[f"hippocampus {s}"]].sum()) * ml for s in ("left", "right")),
            *(float(fluid[regions[f"hippocampus {s}"]].sum()) * ml for s in ("left", "right")),
            *(float(tissue.sum()) * ml for tissue in (fluid, grey, white)),
            brain,
        ]
        rows.append([*row, (row[0] + row[1]) / brain, (row[2] + row[3]) / brain])
    return np.array(rows, np.float64)


def label_volumes(
    labels: np.ndarray, affine: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "n regions"]:
    """Millilitres of each label above 0 that any scan has, in order of the labels.

    Parameters
    ----------
    labels : whole numbers (n, i, j, k) or (n, 1, i, j, k), all on one grid.

    Raises
    ------
    DataError : no whole numbers, negative ones, or no label at all.
    """
    if labels.dtype.kind not in "iub" or labels.ndim not in (4, 5):
        raise DataError(
            f"label maps are {labels.shape} of {labels.dtype}; expected whole numbers (n, i, j, k)"
        )
    flat = labels.reshape(len(labels), -1)
    known = np.unique(flat)
    if known[0] < 0 or not (known > 0).any():
        raise DataError(f"label maps hold {known[0]} to {known[-1]}; expected 0 and labels above 0")
    ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return np.stack([(flat == label).sum(axis=1) * ml for label in known[known > 0]], axis=1)


def template_regions(
    affine: Float[np.ndarray, "4 4"], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Masks (i, j, k) at a grid: widened ventricles and hippocampi of the template, by side.

    Raises
    ------
    DataError : the grid does not hold them.
    """
    maps = mni_maps(2)
    place, brain = maps["mask"].affine, maps["mask"].data[0]
    fluid = np.clip(brain - maps["gm"].data[0] - maps["wm"].data[0], 0, 1)
    x, y, z = (place[a, a] * np.arange(brain.shape[a]) + place[a, 3] for a in range(3))
    mesh = np.meshgrid(x, y, z, indexing="ij")
    low, high = _VENTRICLE_BOX
    box = np.all([(mesh[a] > low[a]) & (mesh[a] < high[a]) for a in range(3)], axis=0)
    parts, count = ndimage.label((fluid > 0.5) & box)
    sizes = ndimage.sum_labels(np.ones_like(parts), parts, np.arange(1, count + 1))
    ventricles = parts == 1 + int(np.argmax(sizes))
    near = ndimage.distance_transform_edt(~ventricles) * abs(place[0, 0]) <= _MARGIN_MM
    (cx, cy, cz), radii = _HIPPOCAMPUS
    found = {}
    for side, sign in (("left", -1.0), ("right", 1.0)):
        centre = (sign * cx, cy, cz)
        r = sum(((mesh[a] - centre[a]) / radii[a]) ** 2 for a in range(3))
        half = sign * mesh[0] > 0
        found[f"hippocampus {side}"] = r <= 1
        found[f"ventricles {side}"] = near & half & (r > 1)
    i, j, k = (int(n) for n in shape)
    masks = {}
    for name, region in found.items():
        volume = type(maps["mask"])(region[None].astype(np.float32), place)
        masks[name] = sampled(volume, affine, (i, j, k)) > 0.5
        if not masks[name].any():
            raise DataError(
                f"no voxel of the grid {tuple(shape)} lies in the template's {name}; regional "
                "volumes need scans in MNI space: register them first (neurodiff prepare)"
            )
    return masks


def tissue_shares(volume: Float[np.ndarray, "i j k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fluid, grey and white matter in each voxel (0 to 1), from the intensities of a T1w scan.

    Three means of the values inside (above 0) are found by Lloyd's steps from the 10th, 50th and
    90th percentile; a voxel between two means is shared by them in proportion.

    Raises
    ------
    DataError : fewer than 3 different values inside.
    """
    inside = volume > 0
    values = np.sort(volume[inside].astype(np.float64))
    if len(values) < 3 or len(np.unique(values)) < 3:
        raise DataError("the volume has no brain: fewer than 3 different values above 0")
    means = np.percentile(values, [10, 50, 90])
    total = np.r_[0.0, np.cumsum(values)]
    for _ in range(100):
        cuts = np.searchsorted(values, [(means[0] + means[1]) / 2, (means[1] + means[2]) / 2])
        edges = np.array([0, *cuts, len(values)])
        counts = np.diff(edges)
        new = np.where(counts > 0, np.diff(total[edges]) / np.maximum(counts, 1), means)
        if np.allclose(new, means, atol=1e-7):
            break
        means = new
    dark, middle, bright = means
    fluid = np.clip((middle - volume) / max(middle - dark, 1e-6), 0, 1) * inside
    white = np.clip((volume - middle) / max(bright - middle, 1e-6), 0, 1) * inside
    return fluid, (1 - fluid - white) * inside, white
