"""Slices in and out of networks: scaled HU, training patches, overlapping patches at use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurodiff.core.errors import DataError
from neurodiff.core.radial_gain import apply_gain, check_slices, check_spacing
from neurodiff.pipelines.ct_diffusion_settings import HIGHEST, LOWEST, PatchSettings

#: HU that a difference of 1 in scaled values stands for
HALF_RANGE = (HIGHEST - LOWEST) / 2
_BODY = -700.0  # HU above which a pixel may be the middle of a training patch


@dataclass(frozen=True, kw_only=True, eq=False)
class SlicePairs:
    """The same slices in two kernels, of one scan.

    Attributes
    ----------
    source, target : (slices, rows, columns), HU.
    spacing : (row_mm, column_mm).
    padding : bool alike, True where nothing was measured; or None.
    """

    source: Any
    target: Any
    spacing: tuple[float, float]
    padding: Any = None

    def checked(self) -> SlicePairs:
        """With float32 arrays; DataError where they are no pairs."""
        source = check_slices(self.source, "the source")
        target = check_slices(self.target, "the target")
        if source.shape != target.shape:
            raise DataError(
                f"the source has shape {source.shape} and the target {target.shape}; pairs are the "
                "same slices on the same grid"
            )
        if self.padding is not None and np.shape(self.padding) != source.shape:
            raise DataError(f"padding has shape {np.shape(self.padding)}; expected {source.shape}")
        return SlicePairs(
            source=source,
            target=target,
            spacing=check_spacing(self.spacing),
            padding=self.padding,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSlice:
    """One slice at one spacing: scaled (rows, columns) and the places of its body."""

    source: np.ndarray
    target: np.ndarray
    linear: np.ndarray
    spacing: tuple[float, float]
    body: np.ndarray  # (places, 2) rows and columns


def scaled(hu: Any) -> np.ndarray:
    """HU on the line where -1024 is -1 and 3071 is 1; nothing is clipped."""
    return ((np.asarray(hu, np.float32) - LOWEST) / HALF_RANGE - 1).astype(np.float32)


def training_slices(
    scans: Sequence[SlicePairs], linear: Callable, settings: PatchSettings
) -> list[TrainingSlice]:
    """Every slice at every spacing of the settings; ``linear(hu, spacing, padding)`` filters it.

    Raises
    ------
    DataError : a slice smaller than a patch.
    """
    from scipy.signal import resample

    found = []
    for scan in scans:
        for factor in settings.spacing_factors:
            rows, columns = (max(1, round(n / factor)) for n in scan.source.shape[1:])
            if min(rows, columns) < settings.size:
                raise DataError(
                    f"slices of {scan.source.shape[1:]} pixels at {factor:g} times their spacing "
                    f"are smaller than a training patch of {settings.size}; choose smaller patches"
                )
            spacing = (
                scan.spacing[0] * scan.source.shape[1] / rows,
                scan.spacing[1] * scan.source.shape[2] / columns,
            )
            for k in range(len(scan.source)):
                padding = None if scan.padding is None else scan.padding[k : k + 1]
                filtered = linear(scan.source[k : k + 1], scan.spacing, padding)[0]
                # band-limited, so that a kernel stays what it is in lp/cm
                images = [
                    one if factor == 1 else resample(resample(one, rows, axis=0), columns, axis=1)
                    for one in (scan.source[k], scan.target[k], filtered)
                ]
                body = np.argwhere(images[1] > _BODY)
                if not len(body):
                    body = np.argwhere(np.ones(images[1].shape, bool))
                source, target, filtered = map(scaled, images)
                found.append(
                    TrainingSlice(
                        source=source, target=target, linear=filtered, spacing=spacing, body=body
                    )
                )
    return found


def draw_patches(
    slices: Sequence[TrainingSlice], rows: np.ndarray, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source, target, linear (n, 1, size, size) and spacing (n, 2), turned over at random."""
    stacks: list[list[np.ndarray]] = [[], [], []]
    spacing = []
    for row in rows:
        one = slices[int(row)]
        u = torch.randint(len(one.body), (1,), generator=generator).item()
        flips = torch.randint(2, (2,), generator=generator).tolist()
        corner = [
            int(np.clip(middle - size // 2, 0, side - size))
            for middle, side in zip(one.body[u], one.source.shape, strict=True)
        ]
        cut = np.s_[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
        for stack, image in zip(stacks, (one.source, one.target, one.linear), strict=True):
            patch = image[cut]
            patch = patch[::-1] if flips[0] else patch
            stack.append(patch[:, ::-1] if flips[1] else patch)
        spacing.append(one.spacing)
    source, target, linear = (
        torch.from_numpy(np.ascontiguousarray(np.stack(s)[:, None])) for s in stacks
    )
    return source, target, linear, torch.tensor(spacing, dtype=torch.float32)


def in_patches(
    function: Callable[..., Tensor], images: Sequence[Tensor], size: int, overlap: int, batch: int
) -> Tensor:
    """``function`` of overlapping patches of one item's images, blended linearly.

    Parameters
    ----------
    images : each (1, c, h, w), cut at the same places; ``function`` takes their patches
        (n, c, size, size) and gives patches (n, c', size, size).
    """
    height, width = images[0].shape[2:]
    if max(height, width) <= size:
        return function(*images)
    tops, lefts = _starts(height, size, overlap), _starts(width, size, overlap)
    places = [(top, left) for top in tops for left in lefts]
    ramp = torch.arange(1, size + 1, dtype=torch.float32)
    ramp = torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap + 1)
    total: Any = None
    weights = torch.zeros(1, 1, height, width)
    for first in range(0, len(places), batch):
        chunk = places[first : first + batch]
        cut = [
            torch.cat([image[:, :, t : t + size, u : u + size] for t, u in chunk])
            for image in images
        ]
        made = function(*cut)
        if total is None:
            total = made.new_zeros(1, made.shape[1], height, width)
        for patch, (top, left) in zip(made, chunk, strict=True):
            high, wide = patch.shape[1:]
            weight = ramp[:high, None] * ramp[None, :wide]
            total[0, :, top : top + high, left : left + wide] += patch * weight
            weights[0, 0, top : top + high, left : left + wide] += weight
    return total / weights


def padded(image: np.ndarray, multiple: int = 16) -> np.ndarray:
    """(rows, columns) mirrored at the lower and right edges up to a multiple."""
    widths = [(0, -side % multiple) for side in image.shape]
    return np.pad(image, widths, mode="symmetric") if any(w[1] for w in widths) else image


def locked(
    hu: np.ndarray,
    made: np.ndarray,
    spacing: tuple[float, float],
    padding: Any = None,
    below: Any = 0.5,
) -> np.ndarray:
    """``made`` with the band below ``below`` lp/cm and each slice's mean of ``hu``.

    Padding is that of ``hu``; 0 leaves the band and keeps the mean alone.
    """
    if padding is not None:
        made = np.where(padding, hu, made)
    if below > 0:
        frequency, gain = np.array([0, below, 1.2 * below]), np.array([1.0, 1.0, 0.0])
        made = made + apply_gain(hu - made, spacing, frequency, gain, padding=padding)
    made = np.array(made, dtype=np.float32)
    measured = np.ones(hu.shape, bool) if padding is None else ~np.asarray(padding)
    for one, kept, use in zip(made, hu, measured, strict=True):
        if use.any():
            one[use] += np.float32(np.mean((kept - one)[use], dtype=np.float64))
    return made


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]
