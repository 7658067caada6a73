"""Arrays that an LDAE is given, checked: shape, numbers that are finite, values in their range."""

from __future__ import annotations

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.models.ldae_sizes import LDAESize


def checked_volumes(volumes: np.ndarray, size: LDAESize) -> np.ndarray:
    """Volumes (n, 1, i, j, k) on the model's grid, finite and in [0, 1]."""
    volumes = np.asarray(volumes)
    if volumes.ndim != 5 or volumes.shape[1:] != (1, *size.grid):
        raise UsageError(
            f"volumes have shape {volumes.shape}; this model reads (n, 1, "
            f"{', '.join(map(str, size.grid))}): bring scans to its grid with prepare"
        )
    check_values(volumes, "volumes")
    return volumes


def checked_latents(name: str, values: np.ndarray, size: LDAESize) -> np.ndarray:
    """float32 latents, or noise, (n, c, i, j, k), finite."""
    values = np.asarray(values)
    if values.ndim != 5 or values.shape[1:] != size.latent:
        raise UsageError(
            f"{name} has shape {values.shape}; this model has (n, "
            f"{', '.join(map(str, size.latent))})"
        )
    check_finite(values, name)
    return values.astype(np.float32, copy=False)


def checked_codes(codes: np.ndarray, items: int | None, size: LDAESize) -> np.ndarray:
    """float32 codes (n, d), finite; ``items`` of them where it is a number."""
    codes = np.asarray(codes)
    wanted = size.encoder.code
    if codes.ndim != 2 or codes.shape[1] != wanted or items not in (None, len(codes)):
        raise UsageError(
            f"codes have shape {codes.shape}; this model has "
            f"({'n' if items is None else items}, {wanted}), one for each scan"
        )
    check_finite(codes, "codes")
    return codes.astype(np.float32, copy=False)


def check_finite(values: np.ndarray, name: str) -> None:
    for item, value in enumerate(values):
        if not np.isfinite(value).all():
            raise DataError(
                f"{name} hold NaN or infinity in item {item}; make them again from a whole scan, "
                "or leave that one out"
            )


def check_values(volumes: np.ndarray, name: str) -> None:
    check_finite(volumes, name)
    low, high = (float(f(volumes)) if volumes.size else 0.0 for f in (np.min, np.max))
    if low < -1e-3 or high > 1 + 1e-3:
        raise DataError(
            f"{name}: values from {low:.4g} to {high:.4g}, and the model reads 0 to 1: prepare the "
            "scans first"
        )
