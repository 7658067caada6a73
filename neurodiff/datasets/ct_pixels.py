"""Pixels of one DICOM file as HU, and which of them were never measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from neurodiff.core.errors import DataError
from neurodiff.core.safe_limits import require_budget, require_ratio
from neurodiff.datasets.ct_geometry import AIR
from neurodiff.datasets.ct_headers import first, number, quiet, read_header, text, value

# implicit, explicit, deflated and big endian: pixels as they are
_PLAIN = ("None", *(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2")))
_LARGEST = 2**31  # pixels of one file; a header that promises more is damaged


def stored_frames(path: str) -> tuple[Any, np.ndarray]:
    """Dataset and stored values (frames, rows, columns) of a file; every syntax is decoded.

    Raises
    ------
    DataError : no pixels, pixels that are cut off or cannot be decoded, colours.
    """
    dataset = read_header(path, pixels=True)
    rows, columns = (number(dataset, name) or 0 for name in ("Rows", "Columns"))
    frames = number(dataset, "NumberOfFrames") or 1
    if "PixelData" not in dataset:
        raise DataError(f"{path} has no pixels (a header alone, or cut off); copy it again")
    if min(rows, columns, frames) < 1 or rows * columns * frames > _LARGEST:
        raise DataError(
            f"{path} declares {frames:g} frames of {rows:g} x {columns:g} pixels, which cannot be; "
            "copy it again"
        )
    bits = number(dataset, "BitsAllocated") or 16
    wanted = int(rows * columns * frames * bits / 8)
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if str(syntax) not in _PLAIN:  # plain pixels are counted by the decoder
        require_ratio(str(path), wanted, len(value(dataset, "PixelData", b"")), start=2**40)
    require_budget(str(path), wanted, what="its pixels")
    try:
        with quiet():
            values = dataset.pixel_array
    except Exception as error:  # decoders raise what they happen to meet
        raise DataError(
            f"the pixels of {path} cannot be decoded ({_reason(dataset, error)}); copy it again"
        ) from None
    values = values[None] if values.ndim == 2 else values
    if values.shape != (int(frames), int(rows), int(columns)):
        raise DataError(f"{path} holds pixels of shape {values.shape}; expected grey CT slices")
    return dataset, values


def _reason(dataset: Any, error: Exception) -> str:
    with quiet():
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        there = len(value(dataset, "PixelData", b""))
    name = getattr(syntax, "name", None) or "unknown syntax"
    wanted = int(
        (number(dataset, "Rows") or 0) * (number(dataset, "Columns") or 0)
        * (number(dataset, "NumberOfFrames") or 1) * (number(dataset, "BitsAllocated") or 0) / 8
    )  # fmt: skip
    plain = name in ("Explicit VR Little Endian", "Implicit VR Little Endian")
    if plain and there < wanted:
        return f"{there} bytes of pixels where {wanted} are declared: cut off"
    return f"{name}, {type(error).__name__}"


def to_hu(stored: np.ndarray, dataset: Any, frame: Any, path: str) -> np.ndarray:
    """float32 HU of one slice: its own slope and intercept, or its lookup table.

    Parameters
    ----------
    stored : (rows, columns)
    frame : the frame's functional groups; the dataset itself where there are none.

    Raises
    ------
    DataError : no slope, a slope of zero, or values in another unit than HU.
    """
    lookup = value(dataset, "ModalityLUTSequence")
    if lookup:
        from pydicom.pixels import apply_modality_lut

        with quiet():
            return np.asarray(apply_modality_lut(stored, dataset), np.float32)
    slope, intercept, unit = rescale(dataset, frame)
    if slope is None or intercept is None:
        raise DataError(
            f"{path} has no RescaleSlope and RescaleIntercept, so that its values cannot become "
            "HU; export it from the scanner again"
        )
    if slope == 0:
        raise DataError(
            f"{path} has RescaleSlope 0, which makes every pixel alike; export it again"
        )
    if unit not in (None, "HU", "US", "UNSPECIFIED"):
        raise DataError(f"the values of {path} are {unit}, not HU; give a series in HU")
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def rescale(dataset: Any, frame: Any) -> tuple[float | None, float | None, str | None]:
    """Slope, intercept and their unit."""
    transform = first(frame, "PixelValueTransformationSequence")
    where = transform if "RescaleSlope" in transform else dataset
    unit = text(where, "RescaleType")
    return number(where, "RescaleSlope"), number(where, "RescaleIntercept"), unit


def padding_of(
    stored: np.ndarray, hu: np.ndarray, dataset: Any
) -> tuple[np.ndarray, float | None, str]:
    """Pixels that were never measured.

    Real air may lie below -1024 HU (a sharp kernel's noise) and is kept: only a declared padding
    value, or one value below -1024 HU that fills all four corners, counts, the latter as far as it
    is connected to a corner.

    Parameters
    ----------
    stored, hu : (rows, columns), as stored and in HU.

    Returns
    -------
    Mask like ``hu``; the HU that they had (None without any), to be put back on writing; and a
    note ("" where all is plain).
    """
    mask = np.zeros(stored.shape, bool)
    note = ""
    declared = _declared(dataset)
    if declared is not None:
        low, high = declared
        mask = (stored >= low) & (stored <= high)
        if mask.any() and float(hu[mask].max()) > -1000:
            inner = mask
            mask = _from_corners(mask)
            if (inner & ~mask).any():
                note = (
                    f"the declared padding is {float(hu[inner].max()):g} HU, a value that tissue "
                    "has; only what is connected to a corner counts as padding"
                )
    corners = hu[[0, 0, -1, -1], [0, -1, 0, -1]]
    if not mask.any() and corners[0] < AIR and (corners == corners[0]).all():
        mask = _from_corners(hu == corners[0])
    return mask, (float(hu[mask].min()) if mask.any() else None), note


def _declared(dataset: Any) -> tuple[float, float] | None:
    """Lowest and highest stored value that are padding, in the type of the pixels."""
    value_, limit = (
        number(dataset, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    if value_ is None:
        return None
    ends = [value_, value_ if limit is None else limit]
    bits = int(number(dataset, "BitsAllocated") or 16)
    if number(dataset, "PixelRepresentation") == 1:  # written as unsigned beside signed pixels
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    elif min(ends) < 0:
        ends = [end + 2**bits if end < 0 else end for end in ends]
    return min(ends), max(ends)


def _from_corners(mask: np.ndarray) -> np.ndarray:
    """The part of a mask that is connected to one of its corners."""
    from scipy.ndimage import label

    parts, _ = label(mask)
    wanted = {int(parts[row, column]) for row in (0, -1) for column in (0, -1)} - {0}
    return np.isin(parts, sorted(wanted))
