"""Images of single-photon detectors with known truth: Poisson counts, dark counts, hot pixels.

The second task of DiffusionCT is noise in images of single-photon avalanche diodes; its set-up was
not published in what could be read. Here a pixel counts Poisson events of rate photons x truth +
dark rate; a fixed share of pixels is hot, with a dark rate of its own that stays the same in every
image of a detector. Dead time, afterpulsing and crosstalk are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, numpy_generator


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotonImages:
    """Counts and what they come from.

    Attributes
    ----------
    counts : int32 (images, rows, columns).
    truth : float32 alike, 0 to 1.
    photons : expected counts at truth 1.
    dark : expected dark counts of a normal pixel.
    hot : bool (rows, columns); pixels of the detector with many dark counts.
    """

    counts: np.ndarray
    truth: np.ndarray
    photons: float
    dark: float
    hot: np.ndarray


def photon_scenes(count: int, size: int, *, seed: int) -> np.ndarray:
    """Scenes (count, size, size), float32 in 0 to 1: cells, filaments and spots on a background.

    Examples
    --------
    >>> scenes = photon_scenes(2, 32, seed=0)
    >>> scenes.shape, float(scenes.max()) <= 1
    ((2, 32, 32), True)
    """
    from scipy.ndimage import gaussian_filter

    if count < 1 or size < 16:
        raise UsageError(f"{count} scenes of {size} pixels; give 1 or more of at least 16 pixels")
    y, x = np.mgrid[:size, :size] / size
    scenes = np.zeros((count, size, size), np.float32)
    for index in range(count):
        rng = numpy_generator(item_seed(seed, subject="", stimulus=index, stage="photon scene"))
        image = np.full((size, size), rng.uniform(0.02, 0.1))
        for _ in range(rng.integers(2, 5)):  # cells with a nucleus
            cy, cx, a, b = *rng.uniform(0.1, 0.9, 2), *rng.uniform(0.08, 0.22, 2)
            radius = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2
            image += rng.uniform(0.15, 0.35) * (radius < 1) + rng.uniform(0.1, 0.3) * (radius < 0.2)
        for _ in range(rng.integers(3, 8)):  # filaments
            angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4), rng.uniform(-1, 1)
            along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
            away = (y - 0.5) * np.cos(angle) - (x - 0.5) * np.sin(angle) - offset
            image += rng.uniform(0.2, 0.5) * (np.abs(away - bend * along**2) < 0.6 / size + 0.004)
        spots = np.zeros((size, size))
        places = rng.integers(0, size, (2, 12))
        spots[places[0], places[1]] = rng.uniform(2, 6, 12)
        image += gaussian_filter(spots, 1.0)
        scenes[index] = np.clip(gaussian_filter(image, 0.6), 0, 1)
    return scenes


def hot_pixels(shape: tuple[int, int], share: float, *, seed: int) -> np.ndarray:
    """The hot pixels of a detector, bool (rows, columns)."""
    if not 0 <= share < 0.5:
        raise UsageError(f"a share of {share:g} hot pixels; give 0 up to 0.5")
    rng = numpy_generator(item_seed(seed, subject="", stimulus="", stage="hot pixels"))
    return rng.random(shape) < share


def photon_images(
    truth: np.ndarray,
    photons: float,
    *,
    seed: int,
    dark: float = 0.05,
    hot_share: float = 0.002,
    hot_rate: float = 20.0,
) -> PhotonImages:
    """Counts of scenes (images, rows, columns) in 0 to 1.

    ``dark`` and ``hot_rate`` are expected dark counts of a normal and of a hot pixel. The detector,
    that is its hot pixels, follows from ``seed``; an image's counts from the seed and its number.

    Raises
    ------
    DataError : scenes outside 0 to 1.
    UsageError : rates that are not positive.
    """
    truth = np.asarray(truth, np.float32)
    if truth.ndim != 3 or not np.isfinite(truth).all() or truth.min() < 0 or truth.max() > 1:
        raise DataError(f"scenes of shape {truth.shape} must be (images, rows, columns) in 0 to 1")
    if not photons > 0 or dark < 0 or hot_rate < 0:
        raise UsageError(f"{photons:g} photons, {dark:g} and {hot_rate:g} dark counts: no rates")
    hot = hot_pixels((truth.shape[1], truth.shape[2]), hot_share, seed=seed)
    base = np.where(hot, hot_rate, dark)
    counts = np.zeros(truth.shape, np.int32)
    for index, one in enumerate(truth):
        rng = numpy_generator(
            item_seed(seed, subject=f"{photons:g}", stimulus=index, stage="photon counts")
        )
        counts[index] = rng.poisson(photons * one.astype(np.float64) + base)
    return PhotonImages(
        counts=counts, truth=truth, photons=float(photons), dark=float(dark), hot=hot
    )
