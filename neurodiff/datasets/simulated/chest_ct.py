"""A digital chest in HU whose truth is known: lungs with emphysema, and coronary calcium.

Everything follows from the seed. The volume holds no noise and no blur; what a scanner makes of it
is simulated in :mod:`neurodiff.datasets.simulated.scanners`. Parenchyma lies above -900 HU and
emphysema below -955 HU, so that the share below -950 HU is the share that was planted, voxel by
voxel.

Simulated results are about method, never about patients.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator

AIR, FAT, TISSUE, BLOOD, BONE, MARROW = -1000.0, -100.0, 40.0, 55.0, 500.0, 180.0
PARENCHYMA, EMPHYSEMA = -860.0, -980.0
#: HU from which calcium counts, and the weight of a lesion of each class of Agatston et al. 1990
CALCIUM, WEIGHTS = 130.0, ((400.0, 4.0), (300.0, 3.0), (200.0, 2.0), (130.0, 1.0))
_FIELD_MM = 350.0


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedLung:
    """A chest without noise.

    Attributes
    ----------
    hu : float32 (slices, rows, columns).
    spacing : (row_mm, column_mm).
    thickness_mm : distance of slices, which touch.
    lung : bool like ``hu``; both lungs without their vessels.
    emphysema : bool like ``hu``; the planted part of the lungs.
    heart : bool like ``hu``; where calcium counts.
    padding : bool like ``hu``; outside the reconstruction circle, -1024 there.
    truth : low_attenuation_share (of lung voxels below -950 HU, 0 to 1), percentile_15 (HU of the
        lung voxels), agatston (area in mm² times weight, times thickness over 3 mm), calcium_mm3.
    seed : what it was drawn from.
    """

    hu: np.ndarray
    spacing: tuple[float, float]
    thickness_mm: float
    lung: np.ndarray
    emphysema: np.ndarray
    heart: np.ndarray
    padding: np.ndarray
    truth: dict[str, float] = field(default_factory=dict)
    seed: int = 0


def simulated_lung(
    seed: int,
    *,
    slices: int = 16,
    size: int = 256,
    thickness_mm: float = 1.0,
    share: float | None = None,
    plaques: int = 3,
) -> SimulatedLung:
    """Draw a chest.

    Parameters
    ----------
    seed : of the anatomy.
    slices, size : slices, and pixels a side; the field of view is 350 mm at any size.
    thickness_mm : of a slice.
    share : of the lungs that is emphysema, 0 to 0.6; drawn between 0.02 and 0.35 where None.
    plaques : calcified cylinders in the heart.

    Examples
    --------
    >>> lung = simulated_lung(0, slices=4, size=64, share=0.2)
    >>> round(lung.truth["low_attenuation_share"], 2)
    0.2
    """
    if slices < 1 or size < 48 or not 0 < thickness_mm <= 20:
        raise UsageError(
            f"{slices} slices of {size} pixels and {thickness_mm:g} mm; give at least one slice of "
            "48 pixels, up to 20 mm thick"
        )
    if share is not None and not 0 <= share <= 0.6:
        raise UsageError(f"the share of emphysema is {share:g}; give 0 to 0.6")
    rng = numpy_generator(item_seed(seed, subject="", stimulus="", stage="simulated lung"))
    share = float(rng.uniform(0.02, 0.35)) if share is None else float(share)
    pixel = _FIELD_MM / size
    at = (np.arange(size) + 0.5) * pixel - _FIELD_MM / 2
    y, x = at[:, None], at[None]
    z = (np.arange(slices) - (slices - 1) / 2) * thickness_mm
    scale = float(rng.uniform(0.94, 1.04))

    body = _ellipse(x, y, 0, 0, 155 * scale, 105 * scale)
    inner = _ellipse(x, y, 0, 0, 143 * scale, 93 * scale)
    hu = np.full((slices, size, size), AIR, np.float32)
    hu[:, body] = FAT
    hu[:, inner] = TISSUE
    _bones(hu, x, y, scale)
    heart = np.broadcast_to(_ellipse(x, y, 18, -18, 40, 36), hu.shape) & inner
    lungs = np.zeros(hu.shape, bool)
    for side in (-1, 1):
        centre = float(rng.uniform(70, 74)) * side
        for index, height in enumerate(z):
            # lungs are a little narrower away from the middle slice
            grown = 1 - 0.0008 * abs(height)
            lungs[index] |= _ellipse(x, y, centre, 2, 54 * grown * scale, 78 * grown * scale)
    lungs &= inner & ~heart & (hu == TISSUE)  # and not the ribs
    # correlated over 6 mm, clipped well inside the gap between parenchyma and emphysema
    texture = np.clip(15 * _smooth_noise(rng, hu.shape, (thickness_mm, pixel, pixel), 6.0), -40, 40)
    hu[lungs] = (PARENCHYMA + texture)[lungs]
    vessels = np.zeros(hu.shape, bool)
    for _ in range(70):
        vessels |= _vessel(rng, x, y, z)
    vessels &= lungs
    lung = lungs & ~vessels
    blobs = _smooth_noise(rng, hu.shape, (thickness_mm, pixel, pixel), 8.0)
    emphysema = np.zeros(hu.shape, bool)
    count = round(share * int(lung.sum()))
    if count:
        emphysema[lung] = _highest(blobs[lung], count)
    low = np.clip(7 * _smooth_noise(rng, hu.shape, (thickness_mm, pixel, pixel), 2.0), -20, 20)
    hu[emphysema] = (EMPHYSEMA + low)[emphysema]
    hu[vessels] = TISSUE
    hu[heart] = BLOOD
    calcium = np.zeros(hu.shape, np.float32)
    for angle in rng.permutation(12)[:plaques] * (np.pi / 6):
        centre = 18 + 26 * np.cos(angle), -18 + 22 * np.sin(angle)
        radius, level = float(rng.uniform(2.5, 4.5)), float(rng.choice([250.0, 350.0, 450.0]))
        first = int(rng.integers(0, max(slices - 3, 0) + 1))
        spot = _ellipse(x, y, *centre, radius, radius)
        calcium[first : first + int(rng.integers(3, 7)), spot] = level
    calcium[~heart] = 0
    hu[calcium > 0] = calcium[calcium > 0]
    padding = np.broadcast_to(np.hypot(x, y) > _FIELD_MM / 2, hu.shape).copy()
    hu[padding] = -1024
    return SimulatedLung(
        hu=hu,
        spacing=(pixel, pixel),
        thickness_mm=float(thickness_mm),
        lung=lung,
        emphysema=emphysema,
        heart=heart.copy(),
        padding=padding,
        truth=_truth(hu, lung, calcium, pixel, thickness_mm),
        seed=int(seed),
    )


def _truth(
    hu: np.ndarray, lung: np.ndarray, calcium: np.ndarray, pixel: float, thickness: float
) -> dict[str, float]:
    weights = np.zeros(calcium.shape)
    for level, weight in reversed(WEIGHTS):
        weights[calcium >= level] = weight
    return {
        "low_attenuation_share": float((hu[lung] < -950).mean()),
        "percentile_15": float(np.percentile(hu[lung], 15)),
        # plaques are uniform and apart, so a lesion's peak is the level of each of its pixels
        "agatston": float(weights.sum() * pixel**2 * thickness / 3),
        "calcium_mm3": float((calcium >= CALCIUM).sum() * pixel**2 * thickness),
    }


def _bones(hu: np.ndarray, x: np.ndarray, y: np.ndarray, scale: float) -> None:
    spine = _ellipse(x, y, 0, 62 * scale, 20, 18)
    hu[:, spine] = BONE
    hu[:, _ellipse(x, y, 0, 62 * scale, 17, 15)] = MARROW
    hu[:, _ellipse(x, y, 0, 84 * scale, 9, 7)] = BONE
    hu[:, _ellipse(x, y, 0, -86 * scale, 16, 5)] = BONE
    for angle in np.deg2rad([-150, -115, -65, -30, 25, 155]):
        place = 134 * scale * np.cos(angle), 84 * scale * np.sin(angle)
        hu[:, _ellipse(x, y, *place, 8, 5)] = BONE


def _ellipse(
    x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float
) -> np.ndarray:
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1


def _vessel(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A tube of 0.8 to 3 mm that leans through the slices; (slices, rows, columns)."""
    side = rng.choice([-1, 1])
    place = side * rng.uniform(30, 110), rng.uniform(-60, 65)
    lean = rng.uniform(-0.6, 0.6, 2)
    radius = 0.8 + 2.2 * rng.random() ** 3
    cx, cy = (place[i] + lean[i] * z[:, None, None] for i in (0, 1))
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...], scale_mm: float
) -> np.ndarray:
    """A Gaussian field of SD 1 whose values hang together over ``scale_mm``."""
    from scipy.ndimage import gaussian_filter

    rough = rng.standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(rough, [scale_mm / 2 / side for side in spacing], mode="wrap")
    return smooth / smooth.std()


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` largest values as a boolean array, ties by position."""
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind="stable")[:count]] = True
    return chosen
