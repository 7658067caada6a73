"""Betas of the Natural Scenes Dataset: only the voxels of a mask, without reading whole volumes.

Three kinds of file hold the same numbers:

- NIfTI ``(X, Y, Z, trials)`` int16, percent signal change times 300;
- HDF5, dataset ``betas``, int16 times 300; MATLAB wrote ``(X, Y, Z, trials)``, so that h5py finds
  ``(trials, Z, Y, X)`` and the mask has to be transposed;
- MGH ``(vertices, 1, 1, trials)`` float32, a hemisphere each, already in percent.

Features are in the order of ``volume[mask]``, the left hemisphere before the right.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.lazy import LazyParts
from neurodiff.core.safe_hdf5 import open_hdf5
from neurodiff.core.safe_images import load_image
from neurodiff.datasets.mgh import OFFSET, mgh_header, opened
from neurodiff.datasets.nsd_files import DIMENSIONS, subject_name

PER_PERCENT = 300.0  # what one percent is in the files of type int16
_BLOCK_BYTES = 48 * 2**20


@dataclass(frozen=True, eq=False)
class BetaFile:
    """The betas of one session: where they are and which voxels are read.

    Attributes
    ----------
    paths : one file of a volume, or the two hemispheres.
    masks : boolean, one for each path: (X, Y, Z) or (vertices,).
    trials : how many the session has.
    affine : of the mask, compared with that of NIfTI files; None compares nothing.
    """

    paths: tuple[Path, ...]
    masks: tuple[np.ndarray, ...]
    trials: int
    affine: np.ndarray | None = None

    @property
    def n_features(self) -> int:
        """Voxels or vertices that are kept."""
        return sum(int(mask.sum()) for mask in self.masks)

    def restricted(self, keep: np.ndarray) -> BetaFile:
        """Only some of the features: boolean (features,)."""
        masks, start = [], 0
        for mask in self.masks:
            part = mask.copy()
            part[mask] = keep[start : start + int(mask.sum())]
            start += int(mask.sum())
            masks.append(part)
        return replace(self, masks=tuple(masks))

    def check(self) -> None:
        """Compare the headers with masks and trials; reads no values.

        Raises
        ------
        MissingDataError : a file that is not there.
        DataError : broken, or of another type, shape or affine.
        """
        for path, mask in zip(self.paths, self.masks, strict=True):
            if path.suffix == ".hdf5":
                with opened_hdf5(path) as file:
                    _hdf5_betas(path, file, mask, self.trials)
            else:
                _header(path, mask, self.trials, self.affine)

    def read(self) -> np.ndarray:
        """Values in the mask as they are stored, int16 or float32 ``(trials, features)``.

        Raises
        ------
        MissingDataError, DataError : as `check`, and a truncated file.
        """
        parts = []
        for path, mask in zip(self.paths, self.masks, strict=True):
            if path.suffix == ".hdf5":
                parts.append(_read_hdf5(path, mask, self.trials))
            else:
                parts.append(_read_image(path, mask, self.trials, self.affine))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def percent(stored: np.ndarray) -> np.ndarray:
    """Stored values as float32 in percent signal change: int16 are divided by 300."""
    if stored.dtype == np.int16:
        return (stored / np.float32(PER_PERCENT)).astype(np.float32, copy=False)
    return stored.astype(np.float32, copy=False)


class SessionTrials(LazyParts):
    """Trials of several sessions, float32 ``(trials, features)`` in percent, read on index.

    A file holds a whole session and cannot be read by the trial, so that sessions are kept as they
    are stored, up to ``cache_bytes``; 40 sessions of 15,724 voxels are 0.94 GB.
    """

    def __init__(self, files: list[BetaFile], cache_bytes: int = 3 * 2**29) -> None:
        self.files = files
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_bytes = cache_bytes
        super().__init__([file.trials for file in files], files[0].n_features)

    def _read(self, part: int, rows: np.ndarray) -> np.ndarray:
        block = percent(self._stored(part)[rows])
        _require_numbers(self.files[part], block)
        return block

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def _stored(self, number: int) -> np.ndarray:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        block = self.files[number].read()
        self._cache[number] = block
        while len(self._cache) > 1 and self._kept() > self._cache_bytes:
            self._cache.popitem(last=False)
        return block

    def _kept(self) -> int:
        return sum(block.nbytes for block in self._cache.values())


@dataclass(frozen=True, eq=False)
class Averages:
    """What `average` returns.

    Attributes
    ----------
    means : float32 (groups, features), percent.
    counts : trials in each mean.
    missing, constant : boolean (features,): NaN in some trial; the same value in every trial.
    """

    means: np.ndarray
    counts: np.ndarray
    missing: np.ndarray
    constant: np.ndarray


def average(files: list[BetaFile], group: np.ndarray, n_groups: int) -> Averages:
    """Plain mean of the trials of each group, one session in memory at a time.

    Parameters
    ----------
    files : sessions in order.
    group : (trials,) int from 0; the group of each trial.
    n_groups : every group has at least one trial.

    Notes
    -----
    Sums of int16 are whole numbers, so that their means do not depend on the order of trials; they
    are turned into float32 in the memory of the sums.
    """
    n_features = files[0].n_features
    counts = np.bincount(group, minlength=n_groups)
    missing, varies = np.zeros(n_features, bool), np.zeros(n_features, bool)
    sums, first, start = None, None, 0
    for file in files:
        block = file.read()
        if sums is None:
            kind = np.int32 if block.dtype == np.int16 else np.float32
            sums, first = np.zeros((n_groups, n_features), kind), block[0].copy()
        if block.dtype.kind == "f":
            missing |= np.isnan(block).any(axis=0) | np.isinf(block).any(axis=0)
        for trial, row in enumerate(block):
            varies |= row != first
            sums[group[start + trial]] += row
        start += file.trials
    assert sums is not None
    scale = counts * (PER_PERCENT if sums.dtype == np.int32 else 1.0)
    means = sums.view(np.float32)
    for row in range(0, n_groups, 256):
        part = slice(row, row + 256)
        means[part] = sums[part] / scale[part, None]
    return Averages(means, counts, missing, ~varies & ~missing)


def _require_numbers(file: BetaFile, block: np.ndarray) -> None:
    bad = ~np.isfinite(block).all(axis=0)
    if bad.any():
        raise DataError(
            f"{file.paths[0]} holds NaN or infinity in {int(bad.sum())} of {len(bad)} features of "
            "the mask, where the session was not measured everywhere; open with unusable='drop' to "
            "leave these features out"
        )


# ---------------------------------------------------------------------------- NIfTI and MGH files


def _header(
    path: Path, mask: np.ndarray, trials: int, affine: np.ndarray | None
) -> tuple[np.dtype, int]:
    """Type of the values and where they begin, after a comparison with mask and trials."""
    surface = mask.ndim == 1
    if surface:
        shape, dtype = mgh_header(path)
        offset = OFFSET
    else:
        image = _opened_nifti(path)
        shape, dtype = tuple(image.shape), np.dtype(image.get_data_dtype())
        offset = int(image.dataobj.offset)
    expected = (*mask.shape, 1, 1) if surface else mask.shape
    if shape[:-1] != expected:
        raise DataError(
            f"{path} has shape {shape}{_owner(shape[:-1])}; the mask has {mask.shape}"
            f"{_owner(mask.shape)}: use betas and mask of the same subject and space"
        )
    if shape[-1] != trials:
        raise DataError(f"{path} has {shape[-1]} trials; expected {trials}: download it again")
    wanted, unit = (np.float32, "percent") if surface else (np.int16, "percent times 300")
    if dtype.newbyteorder("=") != np.dtype(wanted):
        raise DataError(
            f"{path} holds {dtype}; expected {np.dtype(wanted)} ({unit}): give the published file"
        )
    if not surface:
        _require_plain(path, image, affine)
    return dtype, offset


def _opened_nifti(path: Path) -> Any:
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; download it")
    return load_image(path, whole=False)  # trials are read block by block


def _require_plain(path: Path, image: Any, affine: np.ndarray | None) -> None:
    slope, inter = image.dataobj.slope, image.dataobj.inter
    if (slope, inter) != (1.0, 0.0):
        raise DataError(
            f"{path} is scaled by its header ({slope}, {inter}); betas of NSD are not: give the "
            "published file"
        )
    if affine is not None and not np.allclose(image.affine, affine, atol=1e-3):
        raise DataError(
            f"{path} and the mask have different affines; use the mask of this subject and space, "
            "or, where you know that they are one grid, MaskSpace(mask, affine of the betas)"
        )


def _owner(shape: tuple[int, ...]) -> str:
    """`` (that of subj02)`` where a subject has a volume of this shape."""
    owners = [number for number, size in DIMENSIONS.items() if tuple(shape) == size]
    return f" (that of {subject_name(owners[0])})" if owners else ""


def _read_image(path: Path, mask: np.ndarray, trials: int, affine: np.ndarray | None) -> np.ndarray:
    """Trials lie one behind the other in these files; each block is masked as it is unpacked."""
    dtype, offset = _header(path, mask, trials, affine)
    volume = mask.size
    inside = _flat(mask)
    out = np.zeros((trials, len(inside)), dtype.newbyteorder("="))
    step = max(1, _BLOCK_BYTES // (volume * dtype.itemsize))
    with opened(path) as file:
        for start, data in _blocks(path, file, offset, volume * dtype.itemsize, trials, step):
            block = np.frombuffer(data, dtype).reshape(-1, volume)
            out[start : start + len(block)] = block[:, inside]
    return out


def _blocks(
    path: Path, file: Any, offset: int, volume: int, trials: int, step: int
) -> Iterator[tuple[int, bytes]]:
    """First trial and bytes of ``step`` trials, then one byte more, which verifies a checksum."""
    try:
        file.seek(offset)
        for start in range(0, trials, step):
            size = min(step, trials - start) * volume
            data = file.read(size)
            if len(data) < size:
                raise EOFError(f"trial {start + len(data) // volume} of {trials} is not whole")
            yield start, data
        file.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again") from None


def _flat(mask: np.ndarray) -> np.ndarray:
    """Place in the file, first axis fastest, of each feature, in the order of ``volume[mask]``."""
    return np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F")


# ------------------------------------------------------------------------------------- HDF5 files


def opened_hdf5(path: Path) -> Any:
    """The file, open for reading; errors name it."""
    return open_hdf5(path)


def _hdf5_betas(path: Path, file: Any, mask: np.ndarray, trials: int) -> Any:
    betas = file.get("betas")
    if betas is None or not hasattr(betas, "shape"):
        there = ", ".join(file) or "nothing"
        raise DataError(f"{path} has no dataset 'betas' but {there}; download it again")
    expected = (trials, *mask.shape[::-1])
    if betas.shape != expected:
        swapped = " (the axes of MATLAB, not of the file)" if betas.shape == expected[::-1] else ""
        raise DataError(
            f"betas of {path} have shape {betas.shape}{swapped}; expected {expected}, trials and "
            f"the transposed mask{_owner(mask.shape)}: use betas and mask of the same subject"
        )
    if betas.dtype.newbyteorder("=") != np.dtype(np.int16):
        raise DataError(
            f"betas of {path} hold {betas.dtype}; expected int16 (percent times 300): give the "
            "published file"
        )
    return betas


def _read_hdf5(path: Path, mask: np.ndarray, trials: int) -> np.ndarray:
    with opened_hdf5(path) as file:
        betas = _hdf5_betas(path, file, mask, trials)
        out = np.zeros((trials, int(mask.sum())), np.int16)
        try:
            if betas.chunks is not None and math.prod(betas.chunks[1:]) * 8 < mask.size:
                _by_rows(betas, mask, out)
            else:
                _by_trials(betas, mask, out)
        except OSError as error:
            first = (str(error).splitlines() or [""])[0]
            raise DataError(f"{path} is damaged ({first}); download it again") from None
    return out


def _by_rows(betas: Any, mask: np.ndarray, out: np.ndarray) -> None:
    """Small chunks, as published, one voxel with all its trials: only rows with mask are read."""
    i, j, k = np.nonzero(mask)
    row = k * mask.shape[1] + j
    order = np.argsort(row, kind="stable")  # within a row, i ascends already
    for columns in np.split(order, np.flatnonzero(np.diff(row[order])) + 1):
        first, last = int(i[columns[0]]), int(i[columns[-1]])
        block = betas[:, int(k[columns[0]]), int(j[columns[0]]), first : last + 1]
        out[:, columns] = block[:, i[columns] - first]


def _by_trials(betas: Any, mask: np.ndarray, out: np.ndarray) -> None:
    """Large chunks, or none: blocks of whole trials."""
    inside, volume = _flat(mask), mask.size
    step = max(1, _BLOCK_BYTES // (2 * volume))
    for start in range(0, len(out), step):
        block = betas[start : start + step]
        out[start : start + len(block)] = block.reshape(len(block), volume)[:, inside]
