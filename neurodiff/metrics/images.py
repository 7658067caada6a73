"""Likeness of two pictures: PSNR, SSIM by both of its published definitions, pixel correlation.

Pictures are RGB, uint8; views of objects are on white. What brings two pictures to one size
changes every number below, so it is a function of its own (``square``) with a named rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

SSIM_SIZE = 425  # pixels on a side, to which pictures are brought before SSIM
SIGMA, RADIUS = 1.5, 5  # pixels, of the Gaussian windows
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants, for values in 0..1
GREY = np.array([0.2125, 0.7154, 0.0721])  # of scikit-image's rgb2gray
Resize = Literal["bicubic", "bilinear", "bilinear float"]


def on_white(picture: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Composite a picture with alpha on white."""
    alpha = picture[..., 3:].astype(np.float64) / 255
    mixed = picture[..., :3] * alpha + 255 * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)


def psnr(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> float:
    """Peak signal-to-noise ratio ``10 log10(255^2 / MSE)`` in dB; infinite for equal pictures.

    The white around the object counts: a small object scores higher than a large one at the same
    error, and a blank picture scores well against it. Read it beside the no-brain baseline.

    Examples
    --------
    >>> round(psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)), 4)
    13.9794
    """
    error = ((a.astype(np.float64) - b) ** 2).mean()
    return float(10 * np.log10(255.0**2 / error)) if error > 0 else float("inf")


def ssim(
    a: UInt8[np.ndarray, "h w 3"],
    b: UInt8[np.ndarray, "h w 3"],
    *,
    columns_as_channels: bool = False,
) -> float:
    """Structural similarity of the grey pictures at 425 x 425, Gaussian window of sigma 1.5.

    Parameters
    ----------
    columns_as_channels : the published call says ``multichannel=True`` of a grey picture, which
        scikit-image of its time read as "the columns are channels": the window then runs down
        each column alone. Current versions ignore the word. Differs by about 5e-4.

    Returns
    -------
    From -1 to 1, 1 for equal pictures; population covariance (``use_sample_covariance=False``).

    References
    ----------
    Wang et al. 2004, IEEE Transactions on Image Processing 13.
    """
    return grey_ssim(_grey(a), _grey(b), columns_as_channels=columns_as_channels)


def square(
    picture: Shaped[np.ndarray, "h w 3"], size: int = SSIM_SIZE, *, rule: Resize = "bilinear"
) -> Shaped[np.ndarray, "size size 3"]:
    """Bring a picture to ``size`` x ``size``; the aspect is not kept and nothing is cut off.

    Parameters
    ----------
    picture : uint8; by "bilinear float" also float32 in 0..1.
    rule : "bicubic" is Pillow's default, by which Brain-Diffuser brings its reconstructions to
        425 px; "bilinear" is the same on uint8; both low-pass before they shrink.
        "bilinear float" does not round to whole grey levels, as MindEye's resizing of tensors.

    Returns
    -------
    uint8 in 0..255, or, by "bilinear float", float32 in 0..1. A picture of that size is returned
    as it is (by "bilinear float", divided by 255).
    """
    from PIL import Image

    if rule == "bilinear float":
        light = picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture
        parts = [
            Image.fromarray(np.ascontiguousarray(light[..., k])).resize(
                (size, size), Image.Resampling.BILINEAR
            )
            for k in range(3)
        ]
        return np.stack([np.asarray(part) for part in parts], axis=2)
    if picture.shape[:2] == (size, size):
        return picture
    how = Image.Resampling.BICUBIC if rule == "bicubic" else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((size, size), how))


def grey(picture: Shaped[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Luminance of a picture in 0..1; uint8 is divided by 255, floats are taken as 0..1."""
    light = picture.astype(np.float64) @ GREY
    return light / 255 if picture.dtype == np.uint8 else light


def pixcorr(a: Shaped[np.ndarray, "h w 3"], b: Shaped[np.ndarray, "_ _ 3"]) -> float:
    """Pearson correlation over all pixels and channels of two pictures of one size, -1 to 1.

    Raises
    ------
    ValueError : the sizes differ, a value is not finite, or a picture is of one colour value
        (it has no correlation).

    References
    ----------
    Ozcelik & VanRullen 2023, Scientific Reports 13: at 425 px, 541,875 values.

    Examples
    --------
    >>> ramp = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> round(pixcorr(ramp, 200 - 3 * ramp), 12)
    -1.0
    """
    if a.shape != b.shape:
        raise ValueError(f"pictures of {a.shape} and {b.shape}; bring both to one size first")
    x, y = (v.astype(np.float64).ravel() for v in (a, b))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a picture holds NaN or infinity; a correlation needs numbers")
    for which, values in (("first", x), ("second", y)):
        if np.ptp(values) == 0:
            raise ValueError(f"the {which} picture is one value throughout; it has no correlation")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def grey_ssim(
    a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"], *, columns_as_channels: bool = False
) -> float:
    """``ssim`` of grey pictures with values in 0..1 as they are."""
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=1 if columns_as_channels else None,
    )
    return float(value)


@dataclass(frozen=True, eq=False)
class Windows:
    """A grey picture in 0..1 with its Gaussian means and variances.

    ``columns``: windows that run down each column of pixels, (h - 10, w); ``plane``: windows over
    the picture, (h - 10, w - 10). Windows that reach over the edge do not count. Each is (mean,
    squared mean + C1 / 2, variance + C2 / 2).
    """

    grey: np.ndarray
    columns: tuple[np.ndarray, np.ndarray, np.ndarray]
    plane: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, grey: Float[np.ndarray, "h w"]) -> Windows:
        """What SSIM needs of one picture, to be compared with any number of others.

        Raises
        ------
        ValueError : the picture is smaller than the window of 11 pixels.
        """
        if min(grey.shape) <= 2 * RADIUS:
            raise ValueError(f"a picture of {grey.shape} is smaller than SSIM's window of 11 px")
        mean, square = _down(grey), _down(grey * grey)
        return cls(grey, _moments(mean, square), _moments(_along(mean), _along(square)))


def both_ssim(a: Windows, b: Windows) -> tuple[float, float]:
    """``grey_ssim`` over the plane and by columns, at a quarter of the cost of two calls.

    A Gaussian window over the plane is one down the columns and then one along the rows, so the
    two definitions share their first half.
    """
    product = _down(a.grey * b.grey)
    return _ssim(a.plane, b.plane, _along(product)), _ssim(a.columns, b.columns, product)


def _down(x: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(x, SIGMA, 0, radius=RADIUS)[RADIUS:-RADIUS]


def _along(x: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(x, SIGMA, 1, radius=RADIUS)[:, RADIUS:-RADIUS]


def _moments(mean: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    squared = mean * mean
    return mean, squared + C1 / 2, square - squared + C2 / 2


def _ssim(a: tuple, b: tuple, product: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, in place: temporary arrays would take most of the time."""
    both = a[0] * b[0]
    above = product - both
    above *= 2
    above += C2
    both *= 2
    both += C1
    above *= both
    np.add(a[1], b[1], out=both)
    above /= both
    np.add(a[2], b[2], out=both)
    above /= both
    return float(above.mean())


def _grey(picture: np.ndarray) -> np.ndarray:
    """Luminance in 0..1 at 425 x 425, bilinear with antialiasing; (425, 425)."""
    from PIL import Image

    size = (SSIM_SIZE, SSIM_SIZE)
    coarse = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    return grey(np.asarray(coarse))
