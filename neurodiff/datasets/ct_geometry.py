"""Where slices lie: order along the normal, gaps, tilt, and resampling there and back.

Positions and directions are DICOM's (LPS, mm); affines are RAS, as everywhere in neurodiff.
Array axes are (slice, row, column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AIR = -1024.0
"""HU of what was never measured."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices in order along their normal.

    Parameters
    ----------
    origins : (n, 3) LPS mm of each slice's first pixel (centre).
    across, down : unit vectors along a row (to the next column) and down the rows.
    spacing : mm (down the rows, along the columns), as PixelSpacing has them.
    """

    origins: np.ndarray
    across: np.ndarray
    down: np.ndarray
    spacing: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.across, self.down)

    @property
    def heights(self) -> np.ndarray:
        """(n,) mm along the normal."""
        return self.origins @ self.normal

    @property
    def shifts(self) -> np.ndarray:
        """(n, 2) pixels (rows, columns) by which each slice lies aside of the first one."""
        aside = self.origins - self.origins[0]
        return np.stack([aside @ self.down, aside @ self.across], 1) / np.array(self.spacing)

    @property
    def step(self) -> float:
        """Usual distance of slices in mm: the (lower) median; 0 for a single slice."""
        gaps = np.sort(np.diff(self.heights))
        return float(gaps[(len(gaps) - 1) // 2]) if len(gaps) else 0.0

    @property
    def even(self) -> bool:
        """All distances alike, to 1 % and 0.01 mm."""
        gaps = np.diff(self.heights)
        return bool((np.abs(gaps - self.step) <= max(0.01, 0.01 * self.step)).all())

    @property
    def straight(self) -> bool:
        """The slices lie over each other, to a tenth of a pixel."""
        return bool(np.abs(self.shifts).max(initial=0.0) <= 0.1)

    @property
    def tilt(self) -> float:
        """Degrees between normal and way from slice to slice; see `SeriesFacts`."""
        if len(self.origins) < 2 or self.straight:
            return 0.0
        way = self.origins[-1] - self.origins[0]
        aside = np.array([way @ self.down, way @ self.across])
        length = float(np.linalg.norm(aside))
        sign = np.sign(aside[np.abs(aside).argmax()])
        return float(sign * np.degrees(np.arctan2(length, way @ self.normal)))

    def affine(self, thickness: float | None = None) -> np.ndarray:
        """(4, 4) RAS from (column, row, slice); sheared where tilted, mean step where uneven."""
        n = len(self.origins)
        if n > 1:
            step = (self.origins[-1] - self.origins[0]) / (n - 1)
        else:
            step = self.normal * (thickness or 1.0)
        affine = np.eye(4)
        columns = [self.across * self.spacing[1], self.down * self.spacing[0], step]
        affine[:3, :3] = LPS_TO_RAS @ np.stack(columns, 1)
        affine[:3, 3] = LPS_TO_RAS @ self.origins[0]
        return affine


def missing_slices(
    stack: Stack, thickness: Sequence[float | None] = ()
) -> list[tuple[int, int]] | None:
    """Gaps of a whole number of steps: (slice before, slices that are not there) each.

    Parameters
    ----------
    stack : the slices.
    thickness : of each slice in mm. Where it changes within a series, thicker slices are expected
        further apart in proportion, so that a change of thickness is no gap.

    Returns
    -------
    None where distances are uneven in another way (irregular spacing, where nothing is missing);
    a whole number counts to 5 % of a step.
    """
    if len(stack.origins) < 3 or stack.step <= 0:
        return []
    usual = np.full(len(stack.origins) - 1, stack.step)
    if len(thickness) == len(stack.origins) and len(set(thickness)) > 1 and all(thickness):
        thick = np.array(thickness, float)
        middle = np.sort(thick)[(len(thick) - 1) // 2]
        usual = usual * np.maximum(thick[:-1], thick[1:]) / middle
    ratios = np.diff(stack.heights) / usual
    whole = np.rint(ratios)
    if (np.abs(ratios - whole) > 0.05).any() or (whole < 1).any():
        return None
    return [(int(k), int(whole[k]) - 1) for k in np.flatnonzero(whole > 1)]


@dataclass(frozen=True)
class Grid:
    """An orthogonal grid that holds all slices of a stack.

    ``planes`` (mm along the normal, evenly spaced), ``rows`` and ``columns`` (how many), and
    ``start`` (rows, columns): place of the grid's first pixel in pixels of the first slice.
    """

    planes: tuple[float, ...]
    rows: int
    columns: int
    start: tuple[int, int]

    def affine(self, stack: Stack) -> np.ndarray:
        """(4, 4) RAS from (column, row, plane)."""
        step = self.planes[1] - self.planes[0] if len(self.planes) > 1 else 1.0
        down, across = stack.down * stack.spacing[0], stack.across * stack.spacing[1]
        affine = np.eye(4)
        affine[:3, :3] = LPS_TO_RAS @ np.stack([across, down, stack.normal * step], 1)
        origin = stack.origins[0] + down * self.start[0] + across * self.start[1]
        affine[:3, 3] = LPS_TO_RAS @ origin
        return affine


def grid_of(stack: Stack, shape: tuple[int, int]) -> Grid:
    """The smallest grid of the slices' own pixels and usual step that holds all of them."""
    heights, shifts = stack.heights, stack.shifts
    low = np.floor(shifts.min(axis=0) + 1e-6).astype(int)
    high = np.ceil(shifts.max(axis=0) - 1e-6).astype(int)
    step = stack.step or 1.0
    count = int(np.ceil((heights[-1] - heights[0]) / step - 1e-3)) + 1  # the last slice lies inside
    planes = tuple(float(heights[0] + step * k) for k in range(count))
    rows, columns = (int(n) for n in np.array(shape) + high - low)
    return Grid(planes, rows, columns, (int(low[0]), int(low[1])))


def onto_grid(hu: np.ndarray, stack: Stack, grid: Grid) -> np.ndarray:
    """Slices (n, rows, columns) -> float32 (planes, rows, columns); linear; `AIR` outside."""
    heights, shifts = stack.heights, stack.shifts
    out = np.full((len(grid.planes), grid.rows, grid.columns), AIR, np.float32)
    moved: dict[int, np.ndarray] = {}
    for number, height in enumerate(grid.planes):
        pairs = _neighbours(heights, height)
        moved = {k: plane for k, plane in moved.items() if k >= pairs[0][0]}
        for k, weight in pairs:
            if k not in moved:
                moved[k] = _placed(hu[k], shifts[k] - grid.start, (grid.rows, grid.columns))
            out[number] += weight * (moved[k] - AIR)
    return out


def from_grid(
    planes: np.ndarray, stack: Stack, grid: Grid, shape: tuple[int, int], fill: float = AIR
) -> np.ndarray:
    """Planes of a `Grid` -> float32 on the slices (n, rows, columns), linear in all directions."""
    heights, shifts = stack.heights, stack.shifts
    out = np.full((len(heights), *shape), fill, np.float32)
    places = np.array(grid.planes)
    for k, height in enumerate(heights):
        mixed = sum(
            weight * (planes[number] - fill) for number, weight in _neighbours(places, height)
        )
        out[k] += _placed(np.asarray(mixed), np.array(grid.start) - shifts[k], shape, 0.0)
    return out


def _neighbours(places: np.ndarray, height: float) -> list[tuple[int, float]]:
    """Which two of sorted places surround ``height``, with weights; the nearest one beyond."""
    if len(places) == 1 or height <= places[0]:
        return [(0, 1.0)]
    if height >= places[-1]:
        return [(len(places) - 1, 1.0)]
    after = int(np.searchsorted(places, height, side="right"))
    share = float((height - places[after - 1]) / (places[after] - places[after - 1]))
    pairs = [(after - 1, 1 - share), (after, share)]
    return [(k, weight) for k, weight in pairs if weight > 1e-9]


def _placed(
    image: np.ndarray, shift: np.ndarray, shape: tuple[int, int], fill: float = AIR
) -> np.ndarray:
    """``image`` moved by a shift in pixels (rows, columns) onto a canvas of ``shape``."""
    from scipy.ndimage import affine_transform

    whole = np.rint(shift)
    if np.abs(shift - whole).max() < 1e-3:
        return _pasted(image, int(whole[0]), int(whole[1]), shape, fill)
    return affine_transform(
        image.astype(np.float32), np.ones(2), offset=-shift, output_shape=shape, order=1,
        mode="constant", cval=fill,
    )  # fmt: skip


def _pasted(
    image: np.ndarray, row: int, column: int, shape: tuple[int, int], fill: float
) -> np.ndarray:
    canvas = np.full(shape, fill, np.float32)
    top, left = max(row, 0), max(column, 0)
    bottom = min(row + image.shape[0], shape[0])
    right = min(column + image.shape[1], shape[1])
    if bottom > top and right > left:
        canvas[top:bottom, left:right] = image[
            top - row : bottom - row, left - column : right - column
        ]
    return canvas


def order_along(origins: Sequence[np.ndarray], normal: np.ndarray) -> np.ndarray:
    """Numbers of the slices in order along their normal; equal places keep their order."""
    return np.argsort(np.asarray(origins) @ normal, kind="stable")
