"""Likeness of three-dimensional volumes: SSIM, MS-SSIM, MSE, MAE, PSNR and LPIPS, one value a scan.

Volumes are (n, 1, i, j, k) in 0..1.  A window of SSIM is part of its number: on one and the same
pair, kernels of 3, 4 and 11 voxels give .9454, .9469 and .9476, so that the records of
`volume_records` name theirs.  The released LDAE code reconstructs with 3 and interpolates with 4.

A background of zeros counts as perfectly drawn and lifts every number here; the masked scores are
means over the brain alone.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from neurodiff.core.errors import UsageError

Volumes = Float[np.ndarray, "n 1 i j k"]
Scores = Float[np.ndarray, " n"]

SIGMA = 1.5  # voxels, of the Gaussian window
C1, C2 = 0.01**2, 0.03**2  # for values in 0..1
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of MS-SSIM, finest first


def mse(a: Volumes, b: Volumes) -> Scores:
    """Mean squared difference of each pair.

    Examples
    --------
    >>> a = np.zeros((1, 1, 2, 2, 2))
    >>> mse(a, a + 0.5)
    array([0.25])
    """
    return ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3, 4))


def mae(a: Volumes, b: Volumes) -> Scores:
    """Mean absolute difference of each pair."""
    return np.abs(a.astype(np.float64) - b).mean(axis=(1, 2, 3, 4))


def psnr(a: Volumes, b: Volumes) -> Scores:
    """``-10 log10(MSE)`` in dB for values in 0..1; infinite for equal volumes."""
    error = mse(a, b)
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def ssim(
    a: Volumes,
    b: Volumes,
    *,
    kernel: int = 3,
    sigma: float = SIGMA,
    masks: Bool[np.ndarray, "_ _ _ _"] | None = None,
) -> Scores:
    """Structural similarity, mean over the windows that lie wholly inside the grid.

    Equal to MONAI's ``SSIMMetric(3, win_size=kernel, kernel_sigma=sigma)``, and at ``kernel`` 11
    to scikit-image's Gaussian SSIM without its edge.

    Parameters
    ----------
    kernel : voxels of the Gaussian window on a side.
    masks : mean over the windows whose centre lies in the mask (of an even kernel: whose lower
        middle voxel does).

    Returns
    -------
    From -1 to 1, 1 for equal volumes; variances are of the population.

    Raises
    ------
    UsageError : the kernel does not fit into the grid; a mask without a window.

    References
    ----------
    Wang et al. 2004, IEEE Transactions on Image Processing 13, eq. 13.
    """
    _check_kernel(a.shape[2:], kernel, sigma)
    if masks is not None and masks.shape != (len(a), *a.shape[2:]):
        raise UsageError(f"masks are {masks.shape} for volumes {a.shape}; give one for each")
    before = (kernel - 1) // 2
    values = np.zeros(len(a))
    for item in range(len(a)):  # one by one: the maps are float64 and several
        scores = ssim_map(a[item, 0], b[item, 0], kernel=kernel, sigma=sigma)[0]
        if masks is None:
            values[item] = scores.mean()
            continue
        inside = tuple(slice(before, before + size) for size in scores.shape)
        chosen = scores[masks[item][inside]]
        if not chosen.size:
            raise UsageError(f"the mask of item {item} holds no window of {kernel} voxels")
        values[item] = chosen.mean()
    return values


def ssim_map(
    a: Float[np.ndarray, "i j k"],
    b: Float[np.ndarray, "i j k"],
    *,
    kernel: int = 3,
    sigma: float = SIGMA,
) -> tuple[np.ndarray, np.ndarray]:
    """SSIM of each window, and its part of contrast and structure: each (i-K+1, j-K+1, k-K+1)."""
    _check_kernel(a.shape, kernel, sigma)
    weights = _gaussian(kernel, sigma)
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _windows(x, weights), _windows(y, weights)
    both = mean_x * mean_y
    variance = _windows(x * x + y * y, weights) - mean_x**2 - mean_y**2
    covariance = _windows(x * y, weights) - both
    contrast = (2 * covariance + C2) / (variance + C2)
    return (2 * both + C1) / (mean_x**2 + mean_y**2 + C1) * contrast, contrast


def fitting_scales(shape: tuple[int, ...], kernel: int) -> int:
    """How many of the five scales of MS-SSIM leave room for a window; 1 is SSIM itself."""
    scales = 1
    while scales < len(SCALES) and min(shape) // 2**scales >= kernel:
        scales += 1
    return scales


def ms_ssim(
    a: Volumes,
    b: Volumes,
    *,
    kernel: int = 3,
    sigma: float = SIGMA,
    scales: int | None = None,
) -> Scores:
    """Multi-scale SSIM: contrast at each halving of the grid, and all of SSIM at the last.

    Parameters
    ----------
    scales : 1 to 5; None takes as many as fit, at most 5. With fewer than 5 the published
        exponents of the finest ones are brought to the sum that they had, 1.0003: another number,
        so state it.

    Raises
    ------
    UsageError : the window does not fit at the coarsest scale.

    References
    ----------
    Wang, Simoncelli & Bovik 2003, Asilomar Conference on Signals.
    """
    fit = fitting_scales(a.shape[2:], kernel)
    scales = fit if scales is None else scales
    if not 1 <= scales <= fit:
        raise UsageError(
            f"MS-SSIM at {scales} scales with a window of {kernel} needs a larger grid than "
            f"{a.shape[2:]}; {fit} fit"
        )
    weights = np.array(SCALES[:scales])
    weights *= sum(SCALES) / weights.sum()
    values = np.ones(len(a))
    for item in range(len(a)):
        x, y = a[item, 0].astype(np.float64), b[item, 0].astype(np.float64)
        for scale, weight in enumerate(weights):
            scores, contrast = ssim_map(x, y, kernel=kernel, sigma=sigma)
            part = scores if scale == scales - 1 else contrast
            values[item] *= max(float(part.mean()), 0.0) ** weight
            x, y = _halved(x), _halved(y)
    return values


def lpips_25d(
    a: Volumes,
    b: Volumes,
    network: Any,
    *,
    protocol: Literal["neurodiff-1", "ldae-2025"] = "neurodiff-1",
    generator: np.random.Generator | None = None,
) -> Scores:
    """Perceptual distance of slices, mean along each axis, summed over the three axes.

    Parameters
    ----------
    network : has ``distances(pictures, pictures, values=)``, as `features.perceptual.LPIPS`; which
        trunk it has is part of the number. Slices are given as grey pictures in 256 levels.
    protocol : "neurodiff-1" takes every slice, brought to -1..1 as the network was made for.
        "ldae-2025" is as released: a random half of the slices, in 0..1 as they are.
    generator : of the random half.

    Raises
    ------
    UsageError : no generator for the random half, or an unknown protocol.

    References
    ----------
    Zhang et al. 2018, CVPR; Lozupone et al. 2026, LDAE (released evaluation).
    """
    if protocol not in ("neurodiff-1", "ldae-2025"):
        raise UsageError(f"protocol is {protocol!r}; known are 'neurodiff-1' and 'ldae-2025'")
    published = protocol == "ldae-2025"
    if published and generator is None:
        raise UsageError("a random half of the slices needs a generator; give one, or all slices")
    values = np.zeros(len(a))
    for item in range(len(a)):
        for axis in range(3):
            x, y = (np.moveaxis(v[item, 0], axis, 0) for v in (a, b))
            if published and generator is not None:
                half = generator.permutation(len(x))[: len(x) // 2]
                x, y = x[half], y[half]
            pictures = [_pictures(v) for v in (x, y)]
            scale = "0..1" if published else "-1..1"
            values[item] += network.distances(*pictures, values=scale).mean()
    return values


def difference_agreement(
    predicted: Volumes,
    true: Volumes,
    start: Volumes,
    masks: Bool[np.ndarray, "n i j k"] | None = None,
) -> tuple[Scores, Scores]:
    """Is the change since ``start`` the right one?  Correlation and slope of two difference images.

    Of ``predicted - start`` on ``true - start`` over the mask: the correlation says whether it is
    at the right places, the slope (least squares, with an intercept) how much of it there is. A
    prediction that repeats ``start`` has slope 0 and no correlation, which is counted as 0: it
    knows nothing of the change.

    Returns
    -------
    Correlation (-1 to 1) and slope (1 is right) of each item; NaN where nothing truly changed.
    """
    correlations, slopes = np.zeros(len(true)), np.zeros(len(true))
    for item in range(len(true)):
        where = np.ones(true.shape[2:], bool) if masks is None else masks[item]
        x = (true[item, 0].astype(np.float64) - start[item, 0])[where]
        y = (predicted[item, 0].astype(np.float64) - start[item, 0])[where]
        if not x.size or np.ptp(x) == 0:
            correlations[item] = slopes[item] = np.nan
            continue
        x, y = x - x.mean(), y - y.mean()
        slopes[item] = x @ y / (x @ x)
        size = np.sqrt((x @ x) * (y @ y))
        correlations[item] = x @ y / size if size > 0 else 0.0
    return correlations, slopes


# ------------------------------------------------------------------------------------- helpers


def _check_kernel(shape: tuple[int, ...], kernel: int, sigma: float) -> None:
    if not 1 <= kernel <= min(shape):
        raise UsageError(
            f"a window of {kernel} voxels does not fit into a grid of {tuple(shape)}; give a "
            f"kernel from 1 to {min(shape)}"
        )
    if not sigma > 0:
        raise UsageError(f"the window's sigma is {sigma}; give voxels above 0")


def _gaussian(kernel: int, sigma: float) -> np.ndarray:
    places = np.arange(kernel) - (kernel - 1) / 2
    weights = np.exp(-((places / sigma) ** 2) / 2)
    return weights / weights.sum()


def _windows(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means of the windows inside the grid: a sum of shifted copies along each axis."""
    for axis in range(3):
        size = x.shape[axis] - len(weights) + 1
        parts = (np.take(x, range(k, k + size), axis) * w for k, w in enumerate(weights))
        x = sum(parts)
    return x


def _halved(x: np.ndarray) -> np.ndarray:
    """Means of blocks of 2 x 2 x 2; a last odd slice is left out."""
    i, j, k = (size // 2 for size in x.shape)
    return x[: 2 * i, : 2 * j, : 2 * k].reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5))


def _pictures(slices: np.ndarray) -> np.ndarray:
    grey = np.rint(np.clip(slices, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=-1))
