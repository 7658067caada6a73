"""Brains that differ smoothly from the MNI template and change at known places.

A brain is a map from its own millimetres to those of the template, ``u(x)``: a smooth random warp
(the person), then a local change of size around the lateral ventricles and each hippocampus (age
and disease). Tissue is the template's, looked up at ``u(x)``; volumes are integrals of the same
lookup on a grid of their own, so that the truth does not depend on the grid of a scan.

Local change of size: inside an ellipsoid, with ``r`` the distance from its centre in radii,
``u = c + (x - c) (1 - e (1 - r^2)^2)``. Positive ``e`` magnifies. For ``-1 < e < 1`` the map is
one to one (along a radius its slope is at least ``1 - e``, and ``1 - 0.8 |e|`` where ``e < 0``),
and outside the ellipsoid, so at the surface of the brain, nothing moves. It is applied twice,
which reaches further without folding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from neurodiff.core.errors import UsageError
from neurodiff.datasets.mni import BRAIN_HIGH, BRAIN_LOW, mni_maps

KNOTS = (6, 7, 6)  # of the smooth fields, over the box of the brain: 30 mm apart
VENTRICLE_BOX = ((-40.0, -62.0, -14.0), (40.0, 46.0, 42.0))
"""Where the lateral ventricles are looked for, mm."""


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """A place that changes its size: centre and radii in mm."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]


VENTRICLES = Ellipsoid(centre=(0.0, -12.0, 16.0), radii=(58.0, 80.0, 52.0))
HIPPOCAMPI = tuple(
    Ellipsoid(centre=(side * 27.0, -22.0, -14.0), radii=(15.0, 26.0, 14.0)) for side in (-1, 1)
)
HIPPOCAMPUS_RADII = (6.0, 17.0, 6.0)  # of the planted hippocampus itself


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Voxels of a scan: ``shape`` (i, j, k), isotropic ``spacing`` in mm, centre of the brain."""

    shape: tuple[int, int, int]
    spacing: float

    @classmethod
    def around_brain(cls, shape: Sequence[int]) -> Grid:
        """The finest grid of this shape that holds the brain with 3 mm to spare."""
        i, j, k = (int(n) for n in shape)
        extent = np.array(BRAIN_HIGH) - np.array(BRAIN_LOW) + 6.0
        return cls(shape=(i, j, k), spacing=float(np.round((extent / [i, j, k]).max(), 3)))

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        affine = np.diag([self.spacing] * 3 + [1.0])
        middle = (np.array(BRAIN_LOW) + np.array(BRAIN_HIGH)) / 2
        affine[:3, 3] = middle - self.spacing * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def axes(self) -> list[np.ndarray]:
        """Millimetres of the voxels along x, y and z."""
        start = self.affine[:3, 3]
        return [start[a] + self.spacing * np.arange(self.shape[a]) for a in range(3)]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One person: ``warp`` (3, *KNOTS) in mm, and the size of the head relative to the template."""

    warp: np.ndarray = field(default_factory=lambda: np.zeros((3, *KNOTS)))
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)


def draw_anatomy(rng: np.random.Generator, *, spread_mm: float = 2.5) -> Anatomy:
    """A person: knots of SD ``spread_mm`` cut at 2 SD, and axes that differ by 2 % (SD)."""
    warp = spread_mm * np.clip(rng.standard_normal((3, *KNOTS)), -2, 2)
    x, y, z = (float(s) for s in np.exp(0.02 * np.clip(rng.standard_normal(3), -2, 2)))
    return Anatomy(warp=warp, scale=(x, y, z))


def template_places(
    axes: Sequence[np.ndarray], anatomy: Anatomy, ventricles: float, hippocampi: float
) -> Float[np.ndarray, "3 i j k"]:
    """``u(x)`` in mm at the grid of three axes.

    Parameters
    ----------
    ventricles, hippocampi : ``e`` of the module's text, in (-1, 1).
    """
    places = smooth_field(anatomy.warp, axes)
    for a, axis in enumerate(axes):
        shape = [1, 1, 1]
        shape[a] = -1
        places[a] += (axis / anatomy.scale[a]).reshape(shape)
    _resize(places, VENTRICLES, ventricles)
    for place in HIPPOCAMPI:
        _resize(places, place, hippocampi)
    return places


def smooth_field(knots: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Cubic B-splines (n, i, j, k) over the brain's box from values at knots (n, *KNOTS)."""
    out = knots
    for a in (2, 1, 0):  # each contraction replaces one axis of knots by one of voxels
        weights = _spline_weights(axes[a], BRAIN_LOW[a], BRAIN_HIGH[a], KNOTS[a])
        out = np.moveaxis(np.tensordot(out, weights, axes=(a + 1, 1)), -1, a + 1)
    return np.ascontiguousarray(out)


def _spline_weights(axis: np.ndarray, low: float, high: float, n: int) -> np.ndarray:
    """(len(axis), n) cubic B-spline weights; outside the box the last value goes on."""
    t = np.clip((axis - low) / (high - low), 0, 1) * (n - 1)
    distance = np.abs(t[:, None] - np.arange(n)[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    return weights / weights.sum(axis=1, keepdims=True)


def _resize(places: np.ndarray, where: Ellipsoid, e: float) -> None:
    """Change of size in place, twice."""
    if e == 0:
        return
    if not -1 < e < 1:
        raise ValueError(f"a change of size of {e:g} folds the brain; expected -1 < e < 1")
    for _ in range(2):
        offset = [places[a] - where.centre[a] for a in range(3)]
        squared = sum((offset[a] / where.radii[a]) ** 2 for a in range(3))
        weight = np.clip(1 - squared, 0, None) ** 2 * e
        for a in range(3):
            places[a] -= weight * offset[a]


# ------------------------------------------------------------------------------------- tissue


@functools.lru_cache(maxsize=1)
def tissue_maps() -> dict[str, np.ndarray]:
    """Shares at 2 mm: ``gm``, ``wm``, ``csf``, ``ventricles``, ``hippocampi``, ``brain``; with
    ``affine``. Do not write into them.

    The ventricles are the largest connected fluid in their box; the hippocampi, which the
    template's tissue maps do not tell apart, are ellipsoids of grey matter planted where they lie.
    """
    from scipy import ndimage

    maps = mni_maps(2)
    affine, brain = maps["mask"].affine, maps["mask"].data[0]
    gm, wm = maps["gm"].data[0] * brain, maps["wm"].data[0] * brain
    total = np.maximum(gm + wm, 1.0)
    gm, wm = gm / total, wm / total
    csf = np.clip(brain - gm - wm, 0, 1)
    x = [affine[a, a] * np.arange(brain.shape[a]) + affine[a, 3] for a in range(3)]
    mesh = np.meshgrid(*x, indexing="ij")
    low, high = VENTRICLE_BOX
    box = np.all([(mesh[a] > low[a]) & (mesh[a] < high[a]) for a in range(3)], axis=0)
    parts, n = ndimage.label((csf > 0.5) & box)
    sizes = ndimage.sum_labels(np.ones_like(parts), parts, np.arange(1, n + 1))
    largest = parts == 1 + int(np.argmax(sizes))
    ventricles = csf * ndimage.binary_dilation(largest)
    planted = np.zeros_like(brain)
    for place in HIPPOCAMPI:
        r = sum(((mesh[a] - place.centre[a]) / HIPPOCAMPUS_RADII[a]) ** 2 for a in range(3))
        planted = np.maximum(planted, np.clip((1.25 - np.sqrt(r)) / 0.5, 0, 1).astype(np.float32))
    # a hippocampus is grey whatever the average of 152 people has there
    gm, wm, csf = np.maximum(gm, planted), wm * (1 - planted), csf * (1 - planted)
    ventricles = ventricles * (1 - planted)
    named = {"gm": gm, "wm": wm, "csf": csf, "ventricles": ventricles, "hippocampi": planted,
             "brain": brain}  # fmt: skip
    named = {name: np.ascontiguousarray(values, np.float32) for name, values in named.items()}
    return {**named, "affine": affine}


def lookup(name: str, places: np.ndarray, *, blur_mm: float = 0.0) -> np.ndarray:
    """A tissue map at template places (3, i, j, k) in mm; linear, 0 outside.

    ``blur_mm`` is the SD of a smoothing before the lookup: a coarse voxel is a mean.
    """
    from scipy.ndimage import map_coordinates

    affine = tissue_maps()["affine"]
    voxels = [(places[a] - affine[a, 3]) / affine[a, a] for a in range(3)]
    return map_coordinates(_blurred(name, round(blur_mm, 2)), voxels, order=1, cval=0.0)


@functools.lru_cache(maxsize=16)
def _blurred(name: str, blur_mm: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    values = tissue_maps()[name]
    return values if blur_mm <= 0 else gaussian_filter(values, blur_mm / 2.0)


# ------------------------------------------------------------------------------------ volumes

# Boxes that hold each region at its largest (e of 0.6), and the step of the integration, in mm.
_BOXES = {
    "ventricles": [((-56.0, -86.0, -36.0), (56.0, 66.0, 64.0), 4.0)],
    "hippocampi": [
        ((-52.0, -58.0, -38.0), (-4.0, 14.0, 12.0), 2.0),
        ((4.0, -58.0, -38.0), (52.0, 14.0, 12.0), 2.0),
    ],
    "brain": [((-96.0, -130.0, -96.0), (96.0, 98.0, 106.0), 5.0)],
}


def volume_ml(name: str, anatomy: Anatomy, ventricles: float, hippocampi: float) -> float:
    """Millilitres of the ventricles, both hippocampi or the brain, by integration over mm."""
    total = 0.0
    for low, high, step in _BOXES[name]:
        axes = [np.arange(low[a] + step / 2, high[a], step) for a in range(3)]
        places = template_places(axes, anatomy, ventricles, hippocampi)
        total += float(lookup(name, places, blur_mm=step / 2.355).sum()) * step**3 / 1000
    return total


@functools.lru_cache(maxsize=2)
def _sizes(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Log volume over the template's for a range of ``e``, ascending."""
    steps = np.linspace(-0.6, 0.6, 25)
    at = [
        volume_ml(name, Anatomy(), e, 0.0) if name == "ventricles"
        else volume_ml(name, Anatomy(), 0.0, e)
        for e in steps.tolist()
    ]  # fmt: skip
    return np.log(np.array(at) / at[12]), steps


def size_change(name: str, log_ratio: float) -> float:
    """``e`` that multiplies the template's volume by ``exp(log_ratio)``.

    Raises
    ------
    UsageError : further than ``e`` of 0.6 either way goes.
    """
    logs, steps = _sizes(name)
    if not logs[0] <= log_ratio <= logs[-1]:
        raise UsageError(
            f"the simulated {name} cannot have {np.exp(log_ratio):.2f} times the template's volume "
            f"but {np.exp(logs[0]):.2f} to {np.exp(logs[-1]):.2f}; ask for fewer months"
        )
    return float(np.interp(log_ratio, logs, steps))
