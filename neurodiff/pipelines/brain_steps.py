"""Optional steps before the grid: brain extraction, bias correction and registration.

They use what is installed. A package that is not there is named in one sentence; nothing is
installed or downloaded, and no other method is taken in its place.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.datasets.brain_mri_flags import background_of, flags_of
from neurodiff.datasets.mni import mni_grid, mni_maps, sampled

PACKAGES = {"ants": "antspyx", "antspynet": "antspynet", "dipy": "dipy", "SimpleITK": "SimpleITK"}
"""Module -> the package that has it."""


def strip_skull(
    volume: Volume, *, method: Literal["mask", "mni", "antspynet"], mask: Volume | None = None
) -> Volume:
    """The brain alone; the rest becomes the background's value.

    Parameters
    ----------
    method : ``"mask"``, by a mask of one's own (above 0.5 is brain), at any grid in the same space;
        ``"mni"``, by the brain of the MNI template, for scans that are in MNI space already;
        ``"antspynet"``, as the published code, whose weights have to be in its cache.
    mask : with ``"mask"``.

    Raises
    ------
    UsageError : an unknown method, no mask, or a package that is not installed.
    DataError : a mask that misses the scan, or a scan that is not in MNI space.
    """
    if method == "antspynet":
        inside = _antspynet_mask(volume)
    elif method == "mni":
        outside = [flag for flag in flags_of(volume) if flag.name == "space"]
        if outside:
            raise DataError(f"{volume.name or 'the scan'}: {outside[0].text}; register it first")
        inside = sampled(mni_maps(2)["mask"], volume.affine, volume.shape) > 0.5
    elif method == "mask":
        if mask is None:
            raise UsageError("method 'mask' needs a mask, a Volume that is above 0.5 in the brain")
        inside = sampled(mask, volume.affine, volume.shape) > 0.5
    else:
        raise UsageError(f"there is no method {method!r}; there are mask, mni and antspynet")
    if not inside.any():
        raise DataError(
            f"the mask has no voxel in {volume.name or 'the scan'}; they lie in different places"
        )
    background = min(0.0, background_of(volume.data[0]))
    return volume.with_data(np.where(inside[None], volume.data, np.float32(background)))


def correct_bias(volume: Volume, *, method: Literal["ants", "simpleitk"] = "ants") -> Volume:
    """N4 correction of the bias field, as the published code does first.

    Raises
    ------
    UsageError : an unknown method, or a package that is not installed.
    """
    if method == "ants":
        ants = _package("ants", "bias correction")
        corrected = ants.n4_bias_field_correction(_to_ants(ants, volume))
        return volume.with_data(corrected.numpy())
    if method == "simpleitk":
        sitk = _package("SimpleITK", "bias correction")
        image = sitk.GetImageFromArray(volume.data[0])  # N4 needs no place in space
        image.SetSpacing([float(mm) for mm in volume.spacing[::-1]])
        corrected = sitk.N4BiasFieldCorrection(image, sitk.OtsuThreshold(image, 0, 1, 200))
        return volume.with_data(sitk.GetArrayFromImage(corrected))
    raise UsageError(f"there is no method {method!r}; there are ants and simpleitk")


def register(
    volume: Volume, *, method: Literal["torch", "ants", "ants_syn"] = "torch", spacing: float = 1.0
) -> Volume:
    """A scan in MNI space on the usual grid.

    Parameters
    ----------
    method : ``"torch"`` (affine, needs nothing), ``"ants"`` (affine) or ``"ants_syn"``
        (non-linear, as published: it removes part of the atrophy and makes the visits of a person
        more alike than they are).
    spacing : of the result, mm.

    Raises
    ------
    UsageError : an unknown method, or a package that is not installed.
    DataError : a registration that failed.
    """
    if method == "torch":
        from neurodiff.pipelines.affine_registration import to_mni

        return to_mni(volume, spacing=spacing)
    if method not in ("ants", "ants_syn"):
        raise UsageError(f"there is no method {method!r}; there are torch, ants and ants_syn")
    ants = _package("ants", "registration")
    kind = "Affine" if method == "ants" else "SyN"
    template = mni_maps(1)["t1"]
    affine, shape = mni_grid(spacing)
    fixed = Volume(sampled(template, affine, shape)[None], affine)
    moved = ants.registration(
        fixed=_to_ants(ants, fixed), moving=_to_ants(ants, volume), type_of_transform=kind
    )["warpedmovout"]
    return Volume.from_array(moved.numpy(), affine, unit=volume.unit, name=volume.name)


def _package(module: str, what: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"{what} by {module} needs the package {PACKAGES[module]}, which is not installed"
        ) from None


def _to_ants(ants: Any, volume: Volume) -> Any:
    """ANTs' image: places in LPS, so that x and y change their signs."""
    flip = np.diag([-1.0, -1.0, 1.0])
    affine = flip @ volume.affine[:3]
    return ants.from_numpy(
        volume.data[0],
        origin=affine[:, 3].tolist(),
        spacing=list(volume.spacing),
        direction=affine[:, :3] / np.array(volume.spacing),
    )


def _antspynet_mask(volume: Volume) -> np.ndarray:
    antspynet = _package("antspynet", "brain extraction")
    ants = _package("ants", "brain extraction")
    cache = Path.home() / ".keras" / "ANTsXNet"
    if not any(cache.glob("brainExtraction*")):
        raise MissingDataError(
            f"the weights of antspynet's brain extraction are not in {cache}, and nothing is "
            "downloaded here; call antspynet.brain_extraction once on a machine with a network"
        )
    share = antspynet.brain_extraction(_to_ants(ants, volume), modality="t1")
    return np.asarray(share.numpy()) > 0.5
