"""Likeness of two pictures: PSNR and SSIM. Pictures are uint8 RGB on white, one view each."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

SSIM_SIZE = 425  # pixels on a side, to which pictures are brought before SSIM


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


def _grey(picture: np.ndarray) -> np.ndarray:
    """Luminance in 0..1 at 425 x 425, bilinear with antialiasing; (425, 425)."""
    from PIL import Image

    size = (SSIM_SIZE, SSIM_SIZE)
    coarse = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    weights = np.array([0.2125, 0.7154, 0.0721])  # of scikit-image's rgb2gray
    return np.asarray(coarse, dtype=np.float64) @ weights / 255
