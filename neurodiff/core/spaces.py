"""Spaces: how the features of a recording map back to something that can be looked at.

A space has ``name``, ``n_features``, ``fingerprint()`` and ``to_image(values)``. Those here need no
anatomy of their own; flat maps of the cortex are in ``neurodiff.datasets.surface``.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

from neurodiff.core.errors import DataError, UsageError


@runtime_checkable
class Space(Protocol):
    """What a recording asks of its space."""

    name: str

    @property
    def n_features(self) -> int: ...

    def fingerprint(self) -> str: ...

    def to_image(self, values: Any) -> Any: ...


class VectorSpace:
    """Features without a place: the picture of a map is the map itself."""

    fill = float("nan")

    def __init__(self, n: int, name: str = "vector") -> None:
        self.n_features = int(n)
        self.name = name

    def fingerprint(self) -> str:
        """Identity of the space, from its name and size."""
        return _digest(b"vector", self.name.encode(), str(self.n_features).encode())

    def to_image(self, values: Any) -> np.ndarray:
        """``values`` (n_features,) unchanged, after a check of the length."""
        return checked_values(values, self)

    def __repr__(self) -> str:
        return f"VectorSpace({self.n_features}, name={self.name!r})"


class MaskSpace:
    """Voxels inside a boolean mask ``(i, j, k)`` with an affine (4, 4) in mm.

    Features follow the C order of the mask, the order of ``volume[mask]``.
    """

    fill = 0.0

    def __init__(self, mask: Any, affine: Any, name: str = "mask") -> None:
        self.mask = np.ascontiguousarray(np.asarray(mask, dtype=bool))
        self.affine = np.asarray(affine, dtype=np.float64)
        if self.mask.ndim != 3 or self.affine.shape != (4, 4):
            raise DataError(
                f"the mask has shape {self.mask.shape} and its affine {self.affine.shape}; "
                "expected (i, j, k) and (4, 4)"
            )
        self.n_features = int(self.mask.sum())
        if self.n_features == 0:
            raise DataError("the mask has no voxel inside; give a mask with some voxels above 0")
        self.name = name

    @classmethod
    def open(cls, image: Any, name: str = "mask") -> MaskSpace:
        """From a NIfTI path or a nibabel image; voxels above 0 are inside."""
        loaded = open_image(image)
        return cls(np.asarray(loaded.dataobj) > 0, loaded.affine, name)

    def vectors(self, image: Any, where: str) -> np.ndarray:
        """Values of an image (i, j, k) or (i, j, k, frames) as float32 ``(*frames, features)``."""
        volume = np.asarray(image.dataobj, dtype=np.float32)
        if volume.shape[:3] != self.mask.shape or volume.ndim not in (3, 4):
            raise DataError(
                f"{where} has shape {volume.shape}; the mask has {self.mask.shape}: "
                "resample the image to the mask"
            )
        if not np.allclose(image.affine, self.affine, atol=1e-3):
            raise DataError(f"{where} and the mask have different affines; resample the image")
        return np.ascontiguousarray(volume[self.mask].T)

    def fingerprint(self) -> str:
        """Identity of the space, from the mask and the affine."""
        shape = str(self.mask.shape).encode()
        return _digest(b"mask", shape, np.packbits(self.mask).tobytes(), self.affine.tobytes())

    def to_image(self, values: Any) -> Any:
        """Nifti1Image (i, j, k) with ``values`` inside the mask and 0 outside."""
        import nibabel

        volume = np.zeros(self.mask.shape, dtype=np.float32)
        volume[self.mask] = checked_values(values, self)
        return nibabel.Nifti1Image(volume, self.affine)

    def __repr__(self) -> str:
        return f"MaskSpace({self.n_features} of {self.mask.shape} voxels, name={self.name!r})"


class MaskerSpace:
    """The space of a fitted nilearn masker; pictures are its ``inverse_transform``."""

    fill = 0.0

    def __init__(self, masker: Any, n: int, name: str = "masker") -> None:
        self.masker = masker
        self.n_features = int(n)
        self.name = name

    def fingerprint(self) -> str:
        """Identity of the space, from where the masker puts each feature."""
        image = self.to_image(np.arange(1, self.n_features + 1, dtype=np.float32))
        volume = np.ascontiguousarray(np.asarray(image.dataobj, dtype=np.float32))
        affine = np.asarray(image.affine, dtype=np.float64)
        return _digest(b"masker", str(volume.shape).encode(), volume.tobytes(), affine.tobytes())

    def to_image(self, values: Any) -> Any:
        """The masker's image (nibabel) of ``values`` (n_features,)."""
        return self.masker.inverse_transform(checked_values(values, self))

    def __repr__(self) -> str:
        return f"MaskerSpace({type(self.masker).__name__}, {self.n_features} features)"


class SubSpace:
    """Some features of another space; the rest of its picture is left blank."""

    def __init__(self, parent: Space, columns: Any) -> None:
        self.parent = parent
        self.columns = np.asarray(columns)
        self.n_features = len(self.columns)
        self.fill = getattr(parent, "fill", float("nan"))
        self.name = f"{parent.name} ({self.n_features} of {parent.n_features})"

    def fingerprint(self) -> str:
        """Identity of the space, from its parent and the features kept."""
        columns = self.columns.astype("<i8").tobytes()
        return _digest(b"part", self.parent.fingerprint().encode(), columns)

    def to_image(self, values: Any) -> Any:
        """Picture by the parent; features outside are NaN, or 0 in volumes."""
        full = np.full(self.parent.n_features, self.fill, dtype=np.float32)
        full[self.columns] = checked_values(values, self)
        return self.parent.to_image(full)

    def __repr__(self) -> str:
        return f"SubSpace({self.parent!r}, {self.n_features} features)"


def checked_values(values: Any, space: Space) -> np.ndarray:
    """``values`` as float32 (n_features,); UsageError where the length is another."""
    values = np.asarray(values, dtype=np.float32)
    if values.shape != (space.n_features,):
        raise UsageError(
            f"a map of shape {values.shape} was given; the space {space.name!r} has "
            f"{space.n_features} features: give one value for each"
        )
    return values


def open_image(image: Any) -> Any:
    """A nibabel image from a path or an image; DataError names a file that is not one."""
    if hasattr(image, "dataobj"):
        return image
    from neurodiff.core.safe_images import load_image

    return load_image(image)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(len(part)).encode() + b":" + part)
    return digest.hexdigest()
