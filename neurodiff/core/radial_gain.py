"""A gain that depends on radial frequency alone, applied to slices of any pixel size.

Reconstruction kernels are fixed in line pairs per centimetre, not per pixel: a gain is a curve over
lp/cm, and the same curve serves every spacing, rows and columns apart. Shared by the fitted filters
and the simulator, which may not import each other.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError

#: mirrored pixels around a slice, so that its opposite edges do not meet in the transform
MARGIN = 32
_BLOCK = 16  # pixels a side of the squares whose means continue the image into its padding


def check_slices(hu: Any, what: str = "hu") -> np.ndarray:
    """``hu`` as float32 (slices, rows, columns); DataError where it is not that or not finite."""
    array = np.asarray(hu)
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise DataError(
            f"{what} has shape {array.shape} and type {array.dtype}; give numbers (slices, rows, "
            "columns), a single slice as hu[None]"
        )
    array = array.astype(np.float32, copy=False)
    # a sum is finite exactly where all its terms are, short of an overflow, and costs one pass
    if not np.isfinite(array.sum(dtype=np.float64)):
        raise DataError(f"{what} holds values that are not finite; mark them as padding at -1024")
    return array


def check_spacing(spacing: Any) -> tuple[float, float]:
    """(row_mm, column_mm) as floats; DataError where they are not two positive numbers."""
    try:
        row, column = (float(value) for value in spacing)
    except (TypeError, ValueError):
        raise DataError(f"spacing is {spacing!r}; give (row_mm, column_mm)") from None
    if not (0 < row < 100 and 0 < column < 100):
        raise DataError(
            f"the pixel spacing is {row:g} x {column:g} mm; frequencies in lp/cm need a positive "
            "one, so correct PixelSpacing first"
        )
    return row, column


def nyquist(spacing: tuple[float, float]) -> float:
    """Highest frequency, lp/cm, that both axes of a slice hold.

    Examples
    --------
    >>> nyquist((0.5, 1.0))
    5.0
    """
    return 5.0 / max(check_spacing(spacing))


def radial_frequency(
    shape: tuple[int, int], spacing: tuple[float, float], *, half: bool = True
) -> np.ndarray:
    """Radial frequency, lp/cm, of each coefficient of ``rfft2`` (``half``) or ``fft2``.

    Examples
    --------
    >>> radial_frequency((4, 4), (1.0, 0.5)).shape
    (4, 3)
    """
    row, column = check_spacing(spacing)
    across = np.fft.rfftfreq if half else np.fft.fftfreq
    # cycles per mm are tens of line pairs per cm
    return np.hypot(
        10 * np.fft.fftfreq(shape[0], row)[:, None], 10 * across(shape[1], column)[None]
    )


def apply_gain(
    hu: Any,
    spacing: tuple[float, float],
    frequency: np.ndarray,
    gain: np.ndarray,
    *,
    padding: np.ndarray | None = None,
    workers: int = 2,
) -> np.ndarray:
    """Slices whose transform is multiplied by ``gain``, linear between points, held outside.

    Parameters
    ----------
    hu : (slices, rows, columns), HU; nothing is clipped, so air below -1024 keeps its noise.
    spacing : (row_mm, column_mm).
    frequency, gain : (points,); lp/cm, ascending, and the factor there.
    padding : bool like ``hu``; True where nothing was measured (outside the reconstruction
        circle). It is filled by a smooth continuation for the transform and restored after it.
    workers : threads; the result does not depend on it.

    Returns
    -------
    float32 like ``hu``. A slice's result does not depend on the other slices.
    """
    hu = check_slices(hu)
    padding = _check_padding(padding, hu)
    if workers < 1:
        raise UsageError(f"workers is {workers}; give at least 1")
    margins = [min(MARGIN, size - 1) for size in hu.shape[1:]]
    shape = tuple(
        _fast_size(size + 2 * margin) for size, margin in zip(hu.shape[1:], margins, strict=True)
    )
    radius = radial_frequency(shape, spacing)
    multiplier = np.interp(radius, frequency, gain).astype(np.float32)
    result = np.zeros_like(hu)

    def filter_one(index: int) -> None:
        one = hu[index]
        outside = None if padding is None else padding[index]
        if outside is not None and outside.any():
            one = continue_into(one, outside)
        result[index] = _filtered(one, multiplier, shape, margins)
        if outside is not None:
            result[index][outside] = hu[index][outside]

    if workers == 1 or len(hu) == 1:
        for index in range(len(hu)):
            filter_one(index)
    else:
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(filter_one, range(len(hu))))
    return result


def continue_into(one: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """A slice (rows, columns) whose ``outside`` pixels continue the measured ones smoothly.

    Means of the measured pixels in squares of 16, the nearest such mean where a square has none,
    and linear between the squares' centres. A slice without any measured pixel stays as it is.
    """
    from scipy.ndimage import distance_transform_edt

    if outside.all() or not outside.any():
        return one
    rows, columns = one.shape
    high, wide = -(-rows // _BLOCK), -(-columns // _BLOCK)
    inside = np.zeros((high * _BLOCK, wide * _BLOCK), np.float32)
    inside[:rows, :columns] = ~outside
    values = np.zeros_like(inside)
    values[:rows, :columns] = np.where(outside, 0, one)
    count, total = (
        part.reshape(high, _BLOCK, wide, _BLOCK).sum(axis=(1, 3)) for part in (inside, values)
    )
    nearest = distance_transform_edt(count == 0, return_distances=False, return_indices=True)
    means = (total / np.maximum(count, 1))[tuple(nearest)]
    smooth = _between(high, rows) @ means @ _between(wide, columns).T
    return np.where(outside, smooth, one).astype(np.float32)


def _between(blocks: int, pixels: int) -> np.ndarray:
    """Weights (pixels, blocks) of linear interpolation between the centres of blocks."""
    places = np.clip((np.arange(pixels) + 0.5) / _BLOCK - 0.5, 0, blocks - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(blocks))).astype(np.float32)


def _filtered(
    one: np.ndarray, multiplier: np.ndarray, shape: tuple[int, int], margins: list[int]
) -> np.ndarray:
    from scipy.fft import irfft2, rfft2

    widths = [
        (margin, full - size - margin)
        for size, margin, full in zip(one.shape, margins, shape, strict=True)
    ]
    # about the slice's mean, in which float32 has more digits left for the texture
    mean = one.mean(dtype=np.float64).astype(np.float32)
    padded = np.pad(one - mean, widths, mode="reflect")
    back = irfft2(rfft2(padded, overwrite_x=True) * multiplier, s=shape, overwrite_x=True)
    (top, _), (left, _) = widths
    return back[top : top + one.shape[0], left : left + one.shape[1]] + mean * multiplier[0, 0]


def _fast_size(size: int) -> int:
    from scipy.fft import next_fast_len

    return int(next_fast_len(size, real=True))


def _check_padding(padding: Any, hu: np.ndarray) -> np.ndarray | None:
    if padding is None:
        return None
    padding = np.asarray(padding)
    if padding.dtype != bool or padding.shape != hu.shape:
        raise DataError(
            f"padding is {padding.dtype} {padding.shape}; expected a boolean array of the shape "
            f"of hu, {hu.shape}"
        )
    return padding if padding.any() else None
