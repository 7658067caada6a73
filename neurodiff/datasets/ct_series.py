"""A CT series: slices in HU, in order, each with its place.

    series = read_series("/data/scan_001")
    series.hu, series.facts.kernel, series.notes
    volume = series.volume()                  # orthogonal, for processing
    hu = series.back(processed)               # onto the original slices, for `write_series`

Slices are ordered along their normal by position, never by name or number. Duplicates, gaps, tilt
and uneven distances are found and said, never mended silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_geometry import (
    AIR,
    LPS_TO_RAS,
    Stack,
    from_grid,
    grid_of,
    onto_grid,
)
from neurodiff.datasets.ct_headers import SeriesFacts


@dataclass(frozen=True, kw_only=True)
class SliceSource:
    """Where one slice comes from.

    Attributes
    ----------
    path, frame : file as the user named it, and frame in it from 0.
    sop_instance, sop_class, series, study, frame_of_reference : identifiers; of the object itself,
        never of the patient.
    position : ImagePositionPatient, LPS mm.
    number, acquisition : InstanceNumber and AcquisitionNumber, for messages alone.
    padding_hu : HU that padding had in the file; None where there is none.
    thickness_mm : of this slice.
    interpolated : it is in no file, but between its neighbours.
    """

    path: str
    frame: int = 0
    sop_instance: str = ""
    sop_class: str = ""
    series: str = ""
    study: str = ""
    frame_of_reference: str = ""
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    number: int | None = None
    acquisition: int | None = None
    padding_hu: float | None = None
    thickness_mm: float | None = None
    interpolated: bool = False


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CTSeries:
    """Slices of one series.

    Parameters
    ----------
    hu : float32 (slices, rows, columns), in order along the normal.
    padding : bool like ``hu``: never measured; ``hu`` is -1024 there.
    stack : places of the slices.
    facts : how the series was made.
    sources : one record a slice.
    notes : what is unusual, a sentence each.
    name : the folder, for messages.
    """

    hu: np.ndarray
    padding: np.ndarray
    stack: Stack
    facts: SeriesFacts
    sources: tuple[SliceSource, ...]
    notes: tuple[str, ...] = ()
    name: str = ""

    @classmethod
    def from_array(
        cls,
        hu: np.ndarray,
        *,
        spacing: tuple[float, float],
        step: float = 1.0,
        padding: np.ndarray | None = None,
        facts: SeriesFacts | None = None,
        name: str = "",
    ) -> CTSeries:
        """Axial slices that are in no file, for example simulated ones.

        Parameters
        ----------
        hu : (slices, rows, columns).
        spacing : mm (down the rows, along the columns).
        step : mm from slice to slice.
        padding : bool like ``hu``; None is nowhere.
        facts : how they were made; slices and spacing are filled in.

        Raises
        ------
        UsageError : another shape, or lengths that are not above 0.
        """
        hu = np.asarray(hu)
        if hu.ndim != 3 or 0 in hu.shape or min(*spacing, step) <= 0:
            raise UsageError(
                f"hu has shape {hu.shape} and pixels of {spacing} x {step} mm; expected (slices, "
                "rows, columns) and lengths above 0"
            )
        origins = np.zeros((len(hu), 3))
        origins[:, 2] = step * np.arange(len(hu))
        down, across = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
        mask = np.zeros(hu.shape, bool) if padding is None else np.asarray(padding, bool)
        places = [(float(x), float(y), float(z)) for x, y, z in origins]
        return cls(
            hu=np.where(mask, np.float32(AIR), hu.astype(np.float32)),
            padding=mask,
            stack=Stack(origins, across, down, spacing),
            facts=replace(facts or SeriesFacts(), slices=len(hu), spacing_mm=spacing),
            sources=tuple(SliceSource(path="", position=place) for place in places),
            name=name,
        )

    @property
    def spacing(self) -> tuple[float, float]:
        """mm (down the rows, along the columns)."""
        return self.stack.spacing

    @property
    def positions_mm(self) -> np.ndarray:
        """(slices,) mm along the normal, growing."""
        return self.stack.heights

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) RAS mm of (column i, row j, slice k): sheared where tilted; of uneven slices the
        mean step, so that `position_of` is to be used there."""
        return self.stack.affine(self.facts.thickness_mm)

    @property
    def regular(self) -> bool:
        """Even distances and no tilt: ``hu`` is an orthogonal grid."""
        return self.stack.even and self.stack.straight

    def position_of(self, index: Any) -> np.ndarray:
        """RAS mm (n, 3) of points (slice, row, column); the slice is a whole number."""
        index = np.atleast_2d(np.asarray(index, float))
        origins = self.stack.origins[index[:, 0].astype(int)]
        down, across = self.stack.down * self.spacing[0], self.stack.across * self.spacing[1]
        return (origins + index[:, 1:2] * down + index[:, 2:3] * across) @ LPS_TO_RAS

    def index_of(self, points: Any) -> np.ndarray:
        """Nearest slice and place in it, float (n, 3) (slice, row, column), of RAS mm (n, 3).

        The slice is whole, row and column are not; points outside give places outside.
        """
        lps = np.atleast_2d(np.asarray(points, float)) @ LPS_TO_RAS
        heights = lps @ self.stack.normal
        nearest = np.abs(heights[:, None] - self.positions_mm[None]).argmin(axis=1)
        aside = lps - self.stack.origins[nearest]
        rows = aside @ self.stack.down / self.spacing[0]
        columns = aside @ self.stack.across / self.spacing[1]
        return np.stack([nearest.astype(float), rows, columns], 1)

    def hu_at(self, points: Any) -> np.ndarray:
        """HU (n,) of the pixel nearest to RAS mm (n, 3).

        Raises
        ------
        UsageError : a point outside the slices.
        """
        index = np.rint(self.index_of(points)).astype(int)
        if (index < 0).any() or (index >= np.array(self.hu.shape)).any():
            raise UsageError(f"a point lies outside the slices of {self.name or 'the series'}")
        return self.hu[tuple(index.T)]

    @cached_property
    def _grid(self) -> Any:
        return grid_of(self.stack, (self.hu.shape[1], self.hu.shape[2]))

    def volume(self) -> Volume:
        """HU (1, i, j, k) = (1, column, row, slice) on an orthogonal grid.

        Regular series are only transposed. Tilted and uneven ones are resampled, linearly, on a
        grid of the same pixels and the usual step that holds every slice; -1024 outside.
        """
        if self.regular:
            planes, affine = self.hu, self.affine
        else:
            planes = onto_grid(self.hu, self.stack, self._grid)
            affine = self._grid.affine(self.stack)
        data = np.ascontiguousarray(planes.transpose(2, 1, 0)[None], np.float32)
        return Volume(data, affine, "HU", self.name, self.notes)

    def back(self, volume: Volume, *, how: Literal["values", "change"] = "values") -> np.ndarray:
        """A processed `volume` on the original slices, float32 like ``hu``; padding is -1024.

        Parameters
        ----------
        volume : on the grid of `volume`.
        how : ``"values"`` interpolates the values (exact for regular series); ``"change"`` adds the
            interpolated change to the original slices, so that what was not changed stays exact
            (and noise finer than the grid stays as well).

        Raises
        ------
        DataError : a volume on another grid, or of several channels.
        """
        if how not in ("values", "change"):
            raise UsageError(f"how is {how!r}; expected 'values' or 'change'")
        n, rows, columns = self.hu.shape
        grid = (columns, rows, n)
        affine = self.affine
        if not self.regular:
            grid = (self._grid.columns, self._grid.rows, len(self._grid.planes))
            affine = self._grid.affine(self.stack)
        same = volume.channels == 1 and volume.shape == grid
        if not same or not np.allclose(volume.affine, affine, atol=1e-3):
            raise DataError(
                f"the volume to map back has {volume.channels} channels of {volume.shape} and the "
                f"grid of {self.name or 'the series'} is {grid}, or lies elsewhere; give a volume "
                "on the grid of series.volume()"
            )
        planes = volume.data[0].transpose(2, 1, 0)
        if self.regular:
            out = np.array(planes, np.float32)
        elif how == "values":
            out = from_grid(planes, self.stack, self._grid, (rows, columns))
        else:
            change = planes - onto_grid(self.hu, self.stack, self._grid)
            out = self.hu + from_grid(change, self.stack, self._grid, (rows, columns), fill=0.0)
        out[self.padding] = AIR
        return out

    def __repr__(self) -> str:
        facts = self.facts
        n, rows, columns = self.hu.shape
        scanner = " ".join(filter(None, (facts.vendor, facts.model))) or "unknown scanner"
        kernel = "\\".join(facts.kernel) or "kernel not stated"
        step = f"{self.stack.step:.3g}" if n > 1 else "single"
        shape = "" if self.regular else ", tilted" if not self.stack.straight else ", uneven"
        return (
            f"<CTSeries {n} slices of {rows} x {columns}, {self.spacing[0]:.3g} x "
            f"{self.spacing[1]:.3g} mm, step {step} mm{shape}, {scanner}, {kernel}>"
        )


def read_series(
    source: str | Path | Sequence[str | Path],
    *,
    series: str | int | None = None,
    missing: Literal["error", "interpolate", "split"] = "error",
) -> Any:
    """Read one series.

    Parameters
    ----------
    source : a folder (searched to its depth), a file, or files.
    series : which one, where there are several: its SeriesNumber, or the label that the error
        lists, or a SeriesInstanceUID.
    missing : what to do where slices are missing: stop, fill linearly (marked in ``sources``), or
        give the runs between the gaps.

    Returns
    -------
    `CTSeries`; with ``missing="split"`` a list of them.

    Raises
    ------
    MissingDataError : no such folder, or no DICOM in it.
    DataError : no CT; several patients or series; different slices at one place; missing slices;
        a zero PixelSpacing; files that are cut off, encrypted or of another unit.
    """
    from neurodiff.datasets.ct_reading import read_chosen

    if missing not in ("error", "interpolate", "split"):
        raise UsageError(f"missing is {missing!r}; expected 'error', 'interpolate' or 'split'")
    runs = read_chosen(source, series, missing)
    return runs if missing == "split" else runs[0]


def read_ct_volume(path: Path, unit: str = "HU", channels: bool = False) -> Volume:
    """The series of a folder or file on an orthogonal grid, in HU; what `Volume.open` calls.

    ``unit`` and ``channels`` belong to other formats and change nothing. Errors as `read_series`.
    """
    return read_series(path).volume()
