"""CIFTI files on the fsLR-32k cortex: read a time series, write maps. nibabel only, no Workbench.

A ``*_space-fsLR_den-91k_bold.dtseries.nii`` of fMRIPrep is a matrix (frames, 91,282): 29,696 and
29,716 cortical vertices, then 31,870 subcortical voxels.  Anything else is refused before it is
read: its columns would be other places.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_images import load_image
from neurodiff.core.safe_io import require_finite
from neurodiff.datasets.surface import N_GRAYORDINATES, N_MESH, load_grayordinates

CORTEX = {"L": "CIFTI_STRUCTURE_CORTEX_LEFT", "R": "CIFTI_STRUCTURE_CORTEX_RIGHT"}
_BLOCK = 100  # frames read at a time: 37 MB


@dataclass(frozen=True)
class DenseSeries:
    """A time series whose header fits; values are read by `read`.

    Attributes
    ----------
    tr, start : seconds between frames, and time of the first frame after the start of the run.
    n_frames : frames in the file.
    """

    path: Path
    tr: float
    start: float
    n_frames: int
    _data: Any = field(repr=False)

    def read(self, columns: Int[np.ndarray, " some"]) -> Float[np.ndarray, "frames some"]:
        """The series of some grayordinates, float64.

        Raises
        ------
        DataError : the file is cut off, or holds NaN or infinity there.
        """
        out = np.zeros((self.n_frames, len(columns)))
        try:
            for first in range(0, self.n_frames, _BLOCK):
                out[first : first + _BLOCK] = np.asarray(self._data[first : first + _BLOCK])[
                    :, columns
                ]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self.path} is cut off ({_first(error)}); copy it again") from None
        require_finite(out, str(self.path))
        return out


def open_dtseries(path: str | os.PathLike[str]) -> DenseSeries:
    """The header of a dense time series on fsLR-32k with 91,282 grayordinates.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no CIFTI time series, another space, other grayordinates, a unit that is not time.
    """
    image, series, brain = open_cifti(path)
    if type(series).__name__ != "SeriesAxis" or str(series.unit).upper() != "SECOND":
        raise DataError(
            f"{path} is no time series in seconds (its first axis is "
            f"{type(series).__name__}); give a *_bold.dtseries.nii"
        )
    _require_91k(path, brain)
    return DenseSeries(
        Path(path), float(series.step), float(series.start), len(series), image.dataobj
    )


def open_cifti(path: str | os.PathLike[str]) -> tuple[Any, Any, Any]:
    """A nibabel CIFTI-2 image and its two axes, the second of places in the brain.

    Raises
    ------
    MissingDataError, DataError : no such file, or not CIFTI-2.
    """
    import nibabel

    path = Path(path)
    try:
        image = load_image(path)
    except MissingDataError:
        raise
    except DataError as error:
        raise DataError(f"{path} is not a readable CIFTI file: {error}") from None
    if not isinstance(image, nibabel.Cifti2Image):
        raise DataError(
            f"{path} is {type(image).__name__}, not CIFTI-2; run fMRIPrep with --cifti-output 91k "
            "and give its *_space-fsLR_den-91k_bold.dtseries.nii"
        )
    try:
        first, brain = (image.header.get_axis(k) for k in range(2))
    except Exception as error:
        raise DataError(f"{path} has a broken CIFTI header ({_first(error)})") from None
    if image.ndim != 2 or type(brain).__name__ != "BrainModelAxis":
        raise DataError(
            f"{path} maps {type(first).__name__} x {type(brain).__name__}; expected values of "
            "places in the brain"
        )
    return image, first, brain


def surface_vertices(path: str | os.PathLike[str], brain: Any) -> dict[str, tuple[Any, Any]]:
    """Hemisphere -> (columns of the file, vertices of the fsLR-32k mesh) of a CIFTI brain axis.

    Raises
    ------
    DataError : the surface is of another mesh.
    """
    found = {}
    for side, structure in CORTEX.items():
        columns = np.flatnonzero(brain.name == structure)
        if len(columns) == 0:
            continue
        mesh = int(brain.nvertices.get(structure, 0))
        if mesh != N_MESH:
            raise DataError(
                f"{path} is on a mesh of {mesh:,} vertices a hemisphere; expected fsLR-32k, "
                f"{N_MESH:,}: resample it, or run fMRIPrep with --cifti-output 91k"
            )
        found[side] = (columns, brain.vertex[columns])
    if not found:
        raise DataError(f"{path} has no cortical surface; expected fsLR-32k")
    return found


def save_dscalar(
    path: str | os.PathLike[str],
    maps: Float[np.ndarray, "maps cortex"],
    names: Sequence[str],
    places: Int[np.ndarray, " cortex"],
) -> Path:
    """Write maps as ``.dscalar.nii``, atomically; the file holds the given places only.

    Parameters
    ----------
    maps : one row a map.
    places : cortical grayordinate (0 to 59,411) of each column.
    """
    import nibabel
    from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ScalarAxis

    from neurodiff.core.atomic import atomic_path

    gray = load_grayordinates()
    n_left = len(gray.left)
    order = np.argsort(places, kind="stable")
    places, maps = np.asarray(places)[order], np.asarray(maps, np.float32)[:, order]
    is_left = places < n_left
    left = BrainModelAxis.from_surface(gray.left[places[is_left]], N_MESH, "CortexLeft")
    right = BrainModelAxis.from_surface(
        gray.right[places[~is_left] - n_left], N_MESH, "CortexRight"
    )
    parts = [axis for axis in (left, right) if len(axis)]
    brain = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    image = Cifti2Image(maps, (ScalarAxis(list(names)), brain))
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
    return Path(path)


def _require_91k(path: str | os.PathLike[str], brain: Any) -> None:
    if len(brain) != N_GRAYORDINATES:
        hint = "; it looks like --cifti-output 170k" if len(brain) == 170494 else ""
        raise DataError(
            f"{path} has {len(brain):,} grayordinates; expected {N_GRAYORDINATES:,} of "
            f"space-fsLR_den-91k{hint}: run fMRIPrep with --cifti-output 91k"
        )
    surfaces = surface_vertices(path, brain)
    gray = load_grayordinates()
    begin = 0
    for side, expected in (("L", gray.left), ("R", gray.right)):
        columns, vertices = surfaces.get(side, (np.zeros(0, int), np.zeros(0, int)))
        in_place = len(columns) == len(expected) and columns[0] == begin
        if not in_place or not np.array_equal(vertices, expected):
            raise DataError(
                f"{path} has {len(columns):,} vertices of hemisphere {side}, or in another order; "
                f"expected the {len(expected):,} of fsLR-32k without the medial wall, from column "
                f"{begin:,}"
            )
        begin += len(expected)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
