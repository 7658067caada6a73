"""Where a `Recording` comes from: images through a masker, or a table with one file a trial."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.lazy import LazyFiles
from neurodiff.core.recording_checks import stacked
from neurodiff.core.safe_io import read_csv, read_npy
from neurodiff.core.spaces import MaskSpace, open_image


def betas_of_images(masker: Any, images: Any) -> np.ndarray:
    """Values (trials, *frames, features) of images; see `Recording.from_masker`.

    Raises
    ------
    UsageError : the masker is not fitted.
    DataError : images of different shapes.
    """
    fitted = getattr(masker, "__sklearn_is_fitted__", None)
    if not hasattr(masker, "inverse_transform") or (fitted is not None and not fitted()):
        raise UsageError(f"{type(masker).__name__} is not a fitted masker; call masker.fit() first")
    if isinstance(images, np.ndarray):
        return images
    if isinstance(images, list | tuple):
        return stacked([_transformed(masker, image) for image in images])
    betas = _transformed(masker, images)
    return betas[None] if betas.ndim == 1 else betas


def trials_of_manifest(
    manifest: str | os.PathLike[str], root: str | os.PathLike[str] | None, mask: Any
) -> tuple[LazyFiles, pd.DataFrame, MaskSpace | None]:
    """Data that is read on index, the trials' table, and the mask; see `Recording.from_csv`.

    Raises
    ------
    MissingDataError : the manifest, or a file that it names, is not there.
    DataError : no trial, or several masks.
    UsageError : images without a mask.
    """
    manifest = Path(manifest)
    text = {c: str for c in ("path", "subject", "stimulus", "split", "mask")}
    table = read_csv(manifest, columns=("path", "stimulus"), dtype=text)
    if len(table) == 0 or table["path"].isna().any():
        raise DataError(f"{manifest} needs at least one row, and a path in every row")
    folder = manifest.parent if root is None else Path(root)
    paths = [folder / path for path in table["path"]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise MissingDataError(
            f"{len(missing)} of {len(paths)} files of {manifest} are missing, first "
            f"{missing[0]}; paths are taken from {folder}: give root if they lie elsewhere"
        )
    if mask is None and "mask" in table:
        masks = sorted(set(table["mask"].dropna()))
        if len(masks) != 1 or table["mask"].isna().any():
            raise DataError(f"{manifest} names {len(masks)} masks; expected the same in all rows")
        mask = folder / masks[0]
    inside = None if mask is None else MaskSpace.open(mask)
    if inside is None and any(path.suffix != ".npy" for path in paths):
        raise UsageError(f"{manifest} lists images; give mask= to say which voxels are features")
    data = LazyFiles(paths, lambda path: _read_trial(path, inside))
    return data, table.drop(columns=[c for c in ("path", "mask") if c in table]), inside


def _transformed(masker: Any, image: Any) -> np.ndarray:
    """Float32 (features,) of a 3-D image, (volumes, features) of a 4-D one."""
    loaded = open_image(image)
    values = np.asarray(masker.transform(loaded), dtype=np.float32)
    return values.reshape(-1) if len(loaded.shape) == 3 else values


def _read_trial(path: Path, inside: MaskSpace | None) -> np.ndarray:
    """Float32 (*frames, features) of one file; NaN is found later, where the trial is known."""
    if path.suffix == ".npy":
        values = read_npy(path, dtype=(np.floating, np.integer), finite=False)
        if values.ndim == 0:
            raise DataError(f"{path} holds one number; expected (features,) or (frames, features)")
        return values.astype(np.float32, copy=False)
    if inside is None or not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path} is neither .npy nor NIfTI; convert it to one of them")
    return inside.vectors(open_image(path), str(path))
