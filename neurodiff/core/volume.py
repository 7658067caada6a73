"""Volume: one three-dimensional image with its place in space.

``data`` is float32 ``(channels, i, j, k)`` and ``affine`` (4, 4) takes voxel indices to millimetres
in RAS (x to the right, y to the front, z up), as in NIfTI.

Examples
--------
>>> volume = Volume(np.ones((1, 4, 5, 6), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
>>> volume.shape, volume.spacing, volume.orientation
((4, 5, 6), (2.0, 2.0, 2.0), 'RAS')
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.atomic import atomic_path
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_images import load_image
from neurodiff.core.safe_io import require_finite

_LARGEST = 2**31  # voxels; a header that promises more is damaged


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """An image with its affine.

    Parameters
    ----------
    data : float32 ``(channels, i, j, k)``.
    affine : (4, 4) from voxel indices to mm in RAS.
    unit : of a value, e.g. ``"a.u."`` or ``"HU"``.
    name : what it is called in messages, e.g. the path.
    notes : what the file leaves open, e.g. that it states no orientation.

    Raises
    ------
    DataError : another number of axes, an empty axis, an affine without a place.
    UsageError : data of another type.
    """

    data: np.ndarray
    affine: np.ndarray
    unit: str = "a.u."
    name: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        what = self.name or "the volume"
        if not isinstance(self.data, np.ndarray) or self.data.dtype != np.float32:
            kind = getattr(self.data, "dtype", type(self.data).__name__)
            raise UsageError(f"{what} is {kind}; a Volume takes a numpy array of float32")
        if self.data.ndim != 4 or 0 in self.data.shape:
            raise DataError(
                f"{what} has shape {self.data.shape}; expected (channels, i, j, k) without an "
                "empty axis"
            )
        object.__setattr__(self, "affine", checked_affine(self.affine, what))

    # ------------------------------------------------------------------------------ made from

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, unit: str = "a.u.", channels: bool = False
    ) -> Volume:
        """Read a file; a stored slope and intercept are applied.

        Parameters
        ----------
        path : NIfTI (``.nii``, ``.nii.gz``, or a pair), Analyze (``.hdr`` and ``.img``), MGH, NRRD,
            or a CT series: a ``.dcm`` file or the folder of the slices.
        unit : of a value; the formats do not say it (a CT series is in HU).
        channels : take the volumes of a 4D file as channels, instead of refusing it.

        Raises
        ------
        MissingDataError : no such file.
        DataError : another format, a damaged file, several volumes, colours or complex numbers, an
            affine without a place, NaN.
        """
        path = Path(path)
        return reader_of(path)(path, unit, channels)

    @classmethod
    def from_array(cls, values: Any, affine: Any, **about: Any) -> Volume:
        """From (i, j, k) or (channels, i, j, k) real numbers, which become float32."""
        values = np.asarray(values)
        if values.dtype.kind not in "fiub":
            raise DataError(f"the values are {values.dtype}; expected real numbers")
        values = values[None] if values.ndim == 3 else values
        return cls(np.ascontiguousarray(values, np.float32), affine, **about)

    @classmethod
    def from_image(
        cls, image: Any, *, unit: str = "a.u.", name: str = "", channels: bool = False
    ) -> Volume:
        """From a nibabel image; errors as `open`."""
        what = name or "the image"
        values = _values(image, what)
        while values.ndim > 3 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim == 4 and not channels:
            raise DataError(
                f"{what} is a 4D file of {values.shape[3]} volumes {values.shape[:3]}; expected "
                "one volume: keep one of them in a file of its own"
            )
        if values.ndim not in (3, 4):
            raise DataError(f"{what} has shape {values.shape}; expected (i, j, k)")
        data = values[None] if values.ndim == 3 else np.moveaxis(values, 3, 0)
        require_finite(data, what)
        affine = checked_affine(image.affine, what)
        return cls(np.ascontiguousarray(data), affine, unit, name, _notes(image))

    # ---------------------------------------------------------------------------------- facts

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.data.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(i, j, k)"""
        return (self.data.shape[1], self.data.shape[2], self.data.shape[3])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from one voxel to the next along each axis."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (x, y, z)

    @property
    def extent(self) -> tuple[float, float, float]:
        """Millimetres that each axis covers."""
        x, y, z = (s * n for s, n in zip(self.spacing, self.shape, strict=True))
        return (x, y, z)

    @property
    def voxel_ml(self) -> float:
        """Millilitres of one voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def orientation(self) -> str:
        """Nearest anatomical direction of each axis, e.g. ``"RAS"`` or ``"LPS"``."""
        import nibabel

        return "".join(nibabel.aff2axcodes(self.affine))

    @property
    def obliqueness(self) -> float:
        """Largest angle between an axis and its nearest anatomical direction, in degrees."""
        cosines = np.abs(self.affine[:3, :3] / np.array(self.spacing)).max(axis=0)
        return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())

    def fingerprint(self) -> str:
        """SHA-256 of values, affine and unit."""
        digest = hashlib.sha256(f"volume-1 {self.data.shape} {self.unit}".encode())
        digest.update(np.ascontiguousarray(self.affine, "<f8").data)
        digest.update(np.ascontiguousarray(self.data, "<f4").data)
        return digest.hexdigest()

    # ---------------------------------------------------------------------------------- made to

    def with_data(self, data: Any, *, unit: str | None = None) -> Volume:
        """Other values (i, j, k) or (channels, i, j, k) in the same place."""
        return Volume.from_array(
            data, self.affine, unit=unit or self.unit, name=self.name, notes=self.notes
        )

    def reoriented(self, codes: str = "RAS") -> Volume:
        """The same volume with axes swapped and flipped, so that they point along ``codes``.

        No value is interpolated; every voxel keeps its place in mm.
        """
        import nibabel.orientations as turns

        try:
            wanted = turns.axcodes2ornt(tuple(codes))
        except ValueError:
            wanted = np.full((3, 2), np.nan)
        if wanted.shape != (3, 2) or sorted(wanted[:, 0]) != [0.0, 1.0, 2.0]:
            raise UsageError(f"the orientation {codes!r} is no triple such as 'RAS' or 'LPS'")
        turn = turns.ornt_transform(turns.io_orientation(self.affine), wanted)
        data = np.stack([turns.apply_orientation(part, turn) for part in self.data])
        affine = self.affine @ turns.inv_ornt_aff(turn, self.shape)
        return Volume(np.ascontiguousarray(data), affine, self.unit, self.name, self.notes)

    def to_image(self) -> Any:
        """Nifti1Image (i, j, k), or (i, j, k, channels) where there are several."""
        import nibabel

        values = self.data[0] if self.channels == 1 else np.moveaxis(self.data, 0, 3)
        image = nibabel.Nifti1Image(values, self.affine)
        image.header.set_xyzt_units("mm")
        return image

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write NIfTI (``.nii`` or ``.nii.gz``), whole or not at all.

        Raises
        ------
        UsageError : another suffix.
        DataError : the disk is full, or the folder cannot be written to.
        """
        path = Path(path)
        if not path.name.endswith((".nii", ".nii.gz")):
            raise UsageError(
                f"{path} does not end in .nii or .nii.gz; volumes are written as NIfTI"
            )
        with atomic_path(path) as temporary:
            self.to_image().to_filename(temporary)
        return path

    def __repr__(self) -> str:
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing)
        channels = f"{self.channels} channels of " if self.channels > 1 else ""
        shape = " x ".join(map(str, self.shape))
        return f"<Volume {channels}{shape} voxels of {spacing} mm, {self.orientation}, {self.unit}>"


# ------------------------------------------------------------------------------------- reading


def reader_of(path: Path) -> Callable[[Path, str, bool], Volume]:
    """The function that reads this kind of file or folder, by its name.

    Raises
    ------
    MissingDataError : there is nothing of this name.
    DataError : a kind that is not read.
    """
    if not path.exists():
        raise MissingDataError(f"{path} does not exist; check the path")
    kinds = FOLDER_READERS if path.is_dir() else FILE_READERS
    for ending, reader in kinds.items():
        if path.name.lower().endswith(ending):
            return reader if callable(reader) else _named(reader)
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a file: {', '.join(FILE_READERS)}")
    raise DataError(
        f"{path} is not of a kind that is read ({', '.join(FILE_READERS)}); convert it to NIfTI, "
        "or give the folder where it is a DICOM series"
    )


def _named(place: str) -> Callable[[Path, str, bool], Volume]:
    """The reader behind ``"module:function"``, loaded when a file asks for it."""
    from importlib import import_module

    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def read_nibabel(path: Path, unit: str = "a.u.", channels: bool = False) -> Volume:
    """A volume of any format that nibabel reads; errors as `Volume.open`."""
    import nibabel

    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); copy or make it again")
    try:
        image = load_image(path)
        return Volume.from_image(image, unit=unit, name=str(path), channels=channels)
    except (DataError, UsageError):
        raise
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        TypeError,
        MemoryError,
        OverflowError,
        zlib.error,
    ) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is damaged or no image ({first[:160]}); copy it again") from None


Reader = Callable[[Path, str, bool], Volume]

FILE_READERS: dict[str, Reader | str] = {
    **{ending: read_nibabel for ending in (".nii.gz", ".nii", ".img", ".hdr", ".mgz", ".mgh")},
    ".nrrd": "neurodiff.datasets.nrrd:read_nrrd_volume",
    ".dcm": "neurodiff.datasets.ct_series:read_ct_volume",
}
"""Ending of a file's name -> reader, or its place as ``"module:function"``: readers of formats that
need a library of their own live in `neurodiff.datasets` and are loaded on first use."""

FOLDER_READERS: dict[str, Reader | str] = {"": "neurodiff.datasets.ct_series:read_ct_volume"}
"""Ending of a folder's name -> reader; ``""`` is any folder (a DICOM series)."""


def checked_affine(affine: Any, what: str = "the volume") -> np.ndarray:
    """``affine`` as float64 (4, 4).

    Raises
    ------
    DataError : another shape, numbers that are not finite, an axis of no length, axes in a plane.
    """
    found = np.array(affine, np.float64)
    if found.shape != (4, 4) or not np.isfinite(found).all():
        state = "numbers that are not finite" if found.shape == (4, 4) else f"shape {found.shape}"
        raise DataError(f"the affine of {what} has {state}; expected (4, 4) finite numbers in mm")
    if not np.allclose(found[3], [0, 0, 0, 1]):
        raise DataError(f"the last row of the affine of {what} is {found[3]}; expected 0 0 0 1")
    lengths = np.linalg.norm(found[:3, :3], axis=0)
    if not lengths.all() or abs(np.linalg.det(found[:3, :3])) < 1e-6 * lengths.prod():
        shown = "is all zeros" if not found[:3, :3].any() else "gives its voxels no volume"
        raise DataError(
            f"the affine of {what} {shown}, so that it has no place in space; write the file again "
            "with the affine of the original scan"
        )
    return found


def _values(image: Any, what: str) -> np.ndarray:
    stored = image.get_data_dtype()
    if stored.names or stored.kind not in "fiub":
        kind = "colours" if stored.names else f"values of type {stored}"
        raise DataError(f"{what} holds {kind}; expected one real number a voxel")
    shape = tuple(int(n) for n in image.shape)
    if not shape or 0 in shape or np.prod(shape, dtype=float) > _LARGEST:
        raise DataError(f"{what} declares the shape {shape}, which cannot be; copy it again")
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is reported as not finite
        return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))


def _notes(image: Any) -> tuple[str, ...]:
    header = image.header
    if hasattr(header, "get_sform") and hasattr(header, "get_qform"):
        if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
            return ("the header states no orientation (sform and qform code 0)",)
        if int(header["sform_code"]) > 0 and int(header["qform_code"]) > 0:
            try:
                both = header.get_sform(), header.get_qform()
            except Exception:  # a broken qform beside a good sform does not matter
                return ()
            if not np.allclose(*both, atol=0.5):
                return ("sform and qform of the header differ by more than 0.5 mm; sform counts",)
    elif type(image).__name__.startswith(("Spm", "Analyze")):
        return ("an Analyze file states no left and right; nibabel takes x from left to right",)
    return ()
