"""What the scores of volumes mean: records whose names state the window."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from neurodiff.metrics.records import Metric
from neurodiff.metrics.volumes import (
    SIGMA,
    fitting_scales,
    mae,
    ms_ssim,
    mse,
    psnr,
    ssim,
)


def volume_metrics(
    shape: tuple[int, int, int],
    *,
    kernel: int = 3,
    sigma: float = SIGMA,
    masks: Bool[np.ndarray, "n i j k"] | None = None,
) -> dict[str, Metric]:
    """Records by name for volumes of one grid; each takes (prediction, truth) to one value a scan.

    Parameters
    ----------
    shape : (i, j, k), which decides how many scales MS-SSIM has.
    kernel, sigma : of SSIM's window, voxels.
    masks : of the brain, one for each scan that will be scored; adds "brain SSIM" and "brain MSE".

    Examples
    --------
    >>> list(volume_metrics((40, 48, 40)))
    ['SSIM k=3 s=1.5', 'MS-SSIM k=3 s=1.5 4 scales', 'MSE', 'MAE', 'PSNR']
    """
    window = f"k={kernel} s={sigma:g}"
    scales = fitting_scales(shape, kernel)
    wang = "Wang et al. 2004, IEEE TIP 13"
    found = [
        _record(
            f"SSIM {window}", wang, "3D Gaussian window inside the grid, range 1",
            lambda a, b: ssim(a, b, kernel=kernel, sigma=sigma),
        ),
        _record(
            f"MS-SSIM {window} {scales} scales", "Wang, Simoncelli & Bovik 2003",
            "as many of five scales as fit", lambda a, b: ms_ssim(a, b, kernel=kernel, sigma=sigma),
        ),
        _record("MSE", "none", "mean over the grid, background included", mse, higher=False),
        _record("MAE", "none", "mean over the grid, background included", mae, higher=False),
        _record("PSNR", "none", "range 1, background included", psnr, unit="dB"),
    ]  # fmt: skip
    if masks is not None:
        found += [
            _record(
                f"brain SSIM {window}", wang, "mean of the SSIM map inside the mask",
                lambda a, b: ssim(a, b, kernel=kernel, sigma=sigma, masks=masks),
            ),
            _record(
                "brain MSE", "none", "mean inside the mask",
                lambda a, b: masked_mse(a, b, masks), higher=False,
            ),
        ]  # fmt: skip
    return {metric.name: metric for metric in found}


def masked_mse(a: np.ndarray, b: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean squared difference inside each mask; NaN where a mask is empty."""
    values = np.full(len(a), np.nan)
    for item in range(len(a)):
        if masks[item].any():
            difference = a[item, 0][masks[item]].astype(np.float64) - b[item, 0][masks[item]]
            values[item] = (difference**2).mean()
    return values


def _record(name, reference, protocol, function, *, unit: str = "", higher: bool = True) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        higher_is_better=higher,
        chance=None,  # depends on the scans: another person's scan is the chance of a table
        reference=reference,
        protocol=protocol,
        function=function,
    )
