"""Noise with the statistics of real recordings, and how those statistics are measured.

The noise of a simulated subject is Gaussian, smooth along the cortex and autocorrelated in time as
AR(1).  Two numbers describe it: the lag-1 autocorrelation and the full width at half maximum (FWHM)
of the smoothness in millimetres; a third, the share of variance that all features have in common,
keeps the slow tail of real spatial correlations.  ``benchmarks/fit_noise.py`` measures all three on
residuals of real data with the functions of this module:

======================  =========================  ======  ========  ============
residuals               removed                    lag-1   FWHM      common share
======================  =========================  ======  ========  ============
fMRI-Shape, sub-0001    mean of trial and vertex   0.17    2.3 mm    0.04
Haxby 2001, subject 1   mean of block and voxel    0.21    3.8 mm    0.03
======================  =========================  ======  ========  ============

(TR 0.8 s and FWHM along the midthickness surface for fMRI-Shape; TR 2.5 s and FWHM between voxels
3.75 mm apart for Haxby.)  Noise here is in units of its own standard deviation.

References
----------
Forman et al. 1995, Magn. Reson. Med. 33, 636: FWHM from the variance of neighbours' differences;
Hagler et al. 2006, NeuroImage 33, 1093: the same along the edges of a surface mesh.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, diags_array, eye_array

from neurodiff.core.errors import UsageError
from neurodiff.datasets.surface import VisualCortex, edges_of

MEASURED_LAG1 = 0.17
"""Lag-1 autocorrelation at TR 0.8 s, measured on six trials of fMRI-Shape sub-0001 (10 frames
each; mean of each trial and vertex removed; corrected for the short series)."""

MEASURED_FWHM_MM = 2.3
"""Smoothness along the group-average midthickness surface (mean edge 1.63 mm), measured on the
same residuals after the common part of each frame was removed."""

MEASURED_COMMON_SHARE = 0.04
"""Share of the variance of the same residuals that all vertices of a frame have in common."""

MAX_FWHM_MM = 8.0
"""Above this the averages over neighbours reach so far that the kernel stops being sparse."""


def smooth_noise(
    shape: tuple[int, ...],
    cortex: VisualCortex,
    *,
    generator: np.random.Generator,
    fwhm_mm: float = MEASURED_FWHM_MM,
    rho: float = MEASURED_LAG1,
    common_share: float = MEASURED_COMMON_SHARE,
) -> Float[np.ndarray, "*shape vertices"]:
    """Unit-variance Gaussian noise on the cortex, smooth in space and AR(1) along frames.

    White noise is averaged with its mesh neighbours as often as the smoothness asks (the last time
    in part), scaled to variance 1 at each vertex in closed form, and made autocorrelated.

    Parameters
    ----------
    shape : ``(frames,)``, or ``(trials, frames)`` of independent trials.
    cortex : where the vertices lie.
    generator : source of randomness.
    fwhm_mm : smoothness as `fwhm_from_correlation` measures it between mesh neighbours, of the part
        that is not common; 0 for none.
    rho : lag-1 autocorrelation, above -1 and below 1.
    common_share : share of the variance that all vertices of a frame have in common, 0 to 1.

    Returns
    -------
    float32 ``(*shape, vertices)``; every value has mean 0 and variance 1.

    Raises
    ------
    UsageError : an argument outside its range.
    """
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise UsageError(f"noise has shape (frames,) or (trials, frames), got {shape}")
    if not -1 < rho < 1:
        raise UsageError(f"rho is {rho}; an autocorrelation lies between -1 and 1")
    if not 0 <= common_share <= 1:
        raise UsageError(f"common_share is {common_share}; a share lies between 0 and 1")
    trials, frames = (1, shape[0]) if len(shape) == 1 else shape
    kernel = smoothing_kernel(cortex, fwhm_mm)
    noise = np.zeros((trials, frames, cortex.n_vertices), np.float32)
    block = max(1, 400 // frames)  # 400 maps of 8,921 float32 at a time: 14 MB
    for start in range(0, trials, block):
        part = noise[start : start + block]
        white = generator.standard_normal((frames, cortex.n_vertices, len(part)), np.float32)
        _autocorrelate(white, rho)
        for frame in range(frames):
            part[:, frame] = (kernel @ white[frame]).T
        if common_share > 0:
            shared = generator.standard_normal((frames, len(part)), np.float32)
            _autocorrelate(shared, rho)
            part *= np.float32(np.sqrt(1 - common_share))
            part += np.float32(np.sqrt(common_share)) * shared.T[:, :, None]
    return noise.reshape(*shape, cortex.n_vertices)


def smoothing_kernel(cortex: VisualCortex, fwhm_mm: float) -> csr_array:
    """``(vertices, vertices)`` that makes white noise smooth; rows of length 1 keep variance 1.

    Raises
    ------
    UsageError : ``fwhm_mm`` is not between 0 and `MAX_FWHM_MM`.
    """
    if not 0 <= fwhm_mm <= MAX_FWHM_MM:
        raise UsageError(f"fwhm_mm is {fwhm_mm}; expected 0 to {MAX_FWHM_MM} mm")
    return _smoothing_kernel(cortex, float(fwhm_mm))


def lag1_autocorrelation(series: Float[np.ndarray, "*series frames"]) -> float:
    """Lag-1 autocorrelation of short series, pooled, corrected for the removal of their means.

    The raw ratio of lagged to squared residuals is biased downwards in short series (by about
    -1/n).  For an AR(1) process of n frames the expectations of both sums are known: the trace of
    the first off-diagonal, and of the diagonal, of M S M, with S the Toeplitz covariance and M the
    centring matrix.  The coefficient for which their ratio is the observed one is returned.

    Parameters
    ----------
    series : at least 3 frames along the last axis; constant series carry no weight.

    Returns
    -------
    A coefficient between -0.99 and 0.99 (the ends if the ratio lies outside what AR(1) can give).

    Raises
    ------
    UsageError : fewer than 3 frames, or nothing varies.
    """
    from scipy.optimize import brentq

    series = np.asarray(series, float)
    n_frames = series.shape[-1]
    if n_frames < 3:
        raise UsageError(f"lag-1 autocorrelation needs at least 3 frames, got {n_frames}")
    residuals = series - series.mean(axis=-1, keepdims=True)
    power = float((residuals**2).sum())
    if power == 0:
        raise UsageError("lag-1 autocorrelation is not defined: no series varies")
    ratio = float((residuals[..., 1:] * residuals[..., :-1]).sum()) / power
    low, high = -0.99, 0.99
    if ratio <= _expected_ratio(low, n_frames):
        return low
    if ratio >= _expected_ratio(high, n_frames):
        return high
    return float(brentq(lambda rho: _expected_ratio(rho, n_frames) - ratio, low, high))


def neighbour_correlation(
    residuals: Float[np.ndarray, "samples features"],
    pairs: tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"]],
) -> float:
    """Mean correlation of neighbouring features over samples whose means were removed.

    Parameters
    ----------
    residuals : a feature that is 0 in all samples is left out with its pairs.
    pairs : the two ends of each pair.

    Raises
    ------
    UsageError : no pair in which both features vary.
    """
    residuals = np.asarray(residuals, float)
    scale = np.sqrt((residuals**2).sum(axis=0))
    varies = scale > 0
    first, second = pairs
    keep = varies[first] & varies[second]
    if not keep.any():
        raise UsageError("no two neighbouring features both vary; nothing to correlate")
    unit = residuals / np.where(varies, scale, 1.0)
    return float(np.einsum("sp,sp->p", unit[:, first[keep]], unit[:, second[keep]]).mean())


def common_share(residuals: Float[np.ndarray, "samples features"]) -> float:
    """Share of the variance that all features have in common: variance of the features' mean.

    Features that are 0 in all samples are left out; the others count alike.
    """
    residuals = np.asarray(residuals, float)
    scale = np.sqrt((residuals**2).mean(axis=0))
    if not (scale > 0).any():
        raise UsageError("no feature varies; there is no variance to share")
    return float(np.mean((residuals[:, scale > 0] / scale[scale > 0]).mean(axis=1) ** 2))


def fwhm_from_correlation(correlation: float, distance_mm: float) -> float:
    """Smoothness in mm at which neighbours at ``distance_mm`` correlate by ``correlation``.

    FWHM = d sqrt(-2 ln 2 / ln r): white noise under a Gaussian kernel of standard deviation s has
    correlation r = exp(-d^2 / 4 s^2) at distance d, and FWHM = s sqrt(8 ln 2) (Forman 1995 with
    r = 1 - var(difference) / 2 var).

    Returns
    -------
    0 for a correlation of 0 or less.
    """
    if not (correlation < 1 and distance_mm > 0):
        raise UsageError(
            f"smoothness needs a correlation below 1 and a distance above 0 mm, got {correlation} "
            f"and {distance_mm}"
        )
    if correlation <= 0:
        return 0.0
    return float(distance_mm * np.sqrt(-2 * np.log(2) / np.log(correlation)))


def correlation_from_fwhm(fwhm_mm: float, distance_mm: float) -> float:
    """Inverse of `fwhm_from_correlation`; 0 for an FWHM of 0."""
    return float(np.exp(-2 * np.log(2) * (distance_mm / fwhm_mm) ** 2)) if fwhm_mm > 0 else 0.0


@lru_cache(maxsize=8)
def _smoothing_kernel(cortex: VisualCortex, fwhm_mm: float) -> csr_array:
    from scipy.optimize import brentq

    target = correlation_from_fwhm(fwhm_mm, float(cortex.edge_lengths().mean()))
    if target < 1e-4:
        return csr_array(eye_array(cortex.n_vertices, format="csr", dtype=np.float32))
    pairs = edges_of(cortex.neighbours)
    identity = csr_array(eye_array(cortex.n_vertices, format="csr"))
    graph = cortex.neighbours.astype(float) + identity
    average = csr_array(diags_array(1 / graph.sum(axis=1)) @ graph)

    before, after = identity, average
    while _kernel_correlation(_unit_rows(after), pairs) < target:
        before, after = after, csr_array(average @ after)

    def excess(share: float) -> float:
        return _kernel_correlation(_unit_rows((1 - share) * before + share * after), pairs) - target

    share = brentq(excess, 0.0, 1.0, xtol=1e-3)
    return _unit_rows((1 - share) * before + share * after).astype(np.float32)


def _unit_rows(kernel: csr_array) -> csr_array:
    """Rows of Euclidean length 1: white noise keeps variance 1."""
    return csr_array(diags_array(1 / np.sqrt(kernel.power(2).sum(axis=1))) @ kernel)


def _kernel_correlation(kernel: csr_array, pairs: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean correlation of neighbours in closed form: inner products of the kernel's rows."""
    return float(kernel[pairs[0]].multiply(kernel[pairs[1]]).sum() / len(pairs[0]))


def _autocorrelate(white: np.ndarray, rho: float) -> None:
    """Stationary AR(1) of unit variance along the first axis, in place."""
    fresh = np.float32(np.sqrt(1 - rho**2))
    for frame in range(1, len(white)):
        white[frame] *= fresh
        white[frame] += np.float32(rho) * white[frame - 1]


def _expected_ratio(rho: float, n_frames: int) -> float:
    """Expected lag-1 ratio of AR(1) residuals after the mean of ``n_frames`` was removed."""
    lags = np.abs(np.subtract.outer(np.arange(n_frames), np.arange(n_frames)))
    centring = np.eye(n_frames) - 1 / n_frames
    covariance = centring @ (rho ** lags.astype(float)) @ centring
    return float(np.trace(covariance, offset=1) / np.trace(covariance))
