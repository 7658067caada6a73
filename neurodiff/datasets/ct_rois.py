"""Regions of interest on the slices of a series: NIfTI or NRRD, DICOM SEG, RTSTRUCT.

    masks = read_rois("nodule.dcm", series)       # {"Nodule": bool (slices, rows, columns)}

A mask drawn on other pixels is refused, unless ``resample=True`` asks for the nearest ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_geometry import LPS_TO_RAS
from neurodiff.datasets.ct_headers import first, number, numbers, quiet, read_header, text, value
from neurodiff.datasets.ct_series import CTSeries

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"

_WHOLE = 0.02  # pixels by which a place may miss a pixel's centre and still be that pixel


def read_rois(
    path: str | Path, series: CTSeries, *, resample: bool = False
) -> dict[str, np.ndarray]:
    """Masks of one file on the slices of a series.

    Parameters
    ----------
    path : NIfTI or NRRD (whole numbers, 0 is background; each other number is a region), or DICOM
        SEG or RTSTRUCT.
    series : as `read_series` gives it, also tilted or uneven.
    resample : take the nearest pixel of a mask on another grid, instead of refusing it. Contours of
        RTSTRUCT lie in space and are always filled on the slices' pixels.

    Returns
    -------
    Name -> bool (slices, rows, columns). Names are the labels of the file; ``"1"``, ``"2"`` ... for
    numbers, or the file's own name where there is a single one.

    Raises
    ------
    MissingDataError : no such file.
    DataError : another kind of file, a mask on another grid or in another frame of reference, one
        that does not meet the series, no region at all.
    """
    path = Path(path)
    if not path.exists():
        raise MissingDataError(f"{path} does not exist; check the path of the mask")
    if path.name.lower().endswith((".nii", ".nii.gz", ".nrrd")):
        masks = _from_volume(path, series, resample)
    else:
        dataset = read_header(path, pixels=True)
        kind = text(dataset, "SOPClassUID")
        if kind == SEGMENTATION:
            masks = _from_seg(dataset, path, series, resample)
        elif kind == STRUCTURES:
            masks = _from_contours(dataset, path, series)
        else:
            raise DataError(
                f"{path} is neither a DICOM SEG nor an RTSTRUCT (modality "
                f"{text(dataset, 'Modality')}); give one of them, NIfTI or NRRD"
            )
    if not masks:
        raise DataError(f"{path} holds no region; check that it is the right file")
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        raise DataError(
            f"the region {empty[0]!r} of {path} does not meet any pixel of the series; check that "
            "both are of one scan"
        )
    return masks


# ------------------------------------------------------------------------------- NIfTI, NRRD


def _from_volume(path: Path, series: CTSeries, resample: bool) -> dict[str, np.ndarray]:
    volume = Volume.open(path)
    labels = volume.data[0]
    if volume.channels != 1 or not np.array_equal(labels, np.rint(labels)):
        raise DataError(
            f"{path} holds values that are not whole numbers; expected a mask of labels"
        )
    found = _sampled(labels, volume.affine, series, resample, path)
    values = [int(v) for v in np.unique(labels) if v != 0]
    stem = path.name.split(".")[0]
    if len(values) == 1:
        return {stem: found == values[0]}
    return {str(v): found == v for v in values}


def _sampled(
    labels: np.ndarray, affine: np.ndarray, series: CTSeries, resample: bool, path: Path
) -> np.ndarray:
    """Labels at the pixels of each slice; refused where the grids differ, unless ``resample``."""
    n, rows, columns = series.hu.shape
    to_index = np.linalg.inv(affine)
    turn = to_index[:3, :3] @ LPS_TO_RAS
    across = turn @ series.stack.across * series.spacing[1]
    down = turn @ series.stack.down * series.spacing[0]
    starts = series.stack.origins @ turn.T + to_index[:3, 3]
    if not resample:
        steps = np.stack([across, down])
        limit = 2 * _WHOLE / max(rows, columns)
        same = np.abs(steps - np.rint(steps)).max() < limit and labels.size == n * rows * columns
        ends = starts[:, None] + np.stack([0 * across, across * (columns - 1) + down * (rows - 1)])
        inside = (np.rint(ends) >= 0).all() and (np.rint(ends) < np.array(labels.shape)).all()
        if not same or not inside or np.abs(ends - np.rint(ends)).max() > 2 * _WHOLE:
            raise DataError(
                f"{path} lies on another grid ({' x '.join(map(str, labels.shape))}) than the "
                f"series ({columns} x {rows} x {n}); draw it on the series, or pass resample=True "
                "for the nearest pixels"
            )
    out = np.zeros(series.hu.shape, labels.dtype)
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    for k in range(n):
        index = [
            np.rint(starts[k, axis] + down[axis] * row + across[axis] * column).astype(int)
            for axis in range(3)
        ]
        inside_ = np.ones((rows, columns), bool)
        for axis in range(3):
            inside_ &= (index[axis] >= 0) & (index[axis] < labels.shape[axis])
        clipped = [np.clip(index[axis], 0, labels.shape[axis] - 1) for axis in range(3)]
        out[k] = np.where(inside_, labels[tuple(clipped)], 0)
    return out


# ------------------------------------------------------------------------------- DICOM SEG


def _from_seg(dataset: Any, path: Path, series: CTSeries, resample: bool) -> dict[str, np.ndarray]:
    _same_frame(text(dataset, "FrameOfReferenceUID"), series, path)
    try:
        with quiet():
            frames = dataset.pixel_array
    except Exception as error:  # decoders raise what they happen to meet
        raise DataError(
            f"the pixels of {path} cannot be decoded ({type(error).__name__}); copy it again"
        ) from None
    frames = frames[None] if frames.ndim == 2 else frames
    limit = 1.0
    if text(dataset, "SegmentationType") == "FRACTIONAL":
        limit = (number(dataset, "MaximumFractionalValue") or 255) / 2
    names = {
        int(number(item, "SegmentNumber") or 0): text(item, "SegmentLabel") or "region"
        for item in value(dataset, "SegmentSequence", [])
    }
    groups = value(dataset, "PerFrameFunctionalGroupsSequence", [])
    shared = first(dataset, "SharedFunctionalGroupsSequence")
    if len(groups) != len(frames):
        raise DataError(
            f"{path} holds {len(frames)} frames and describes {len(groups)}; copy it again"
        )
    masks = {name: np.zeros(series.hu.shape, bool) for name in _distinct(names).values()}
    distinct = _distinct(names)
    by_uid = {s.sop_instance: k for k, s in enumerate(series.sources) if s.sop_instance}
    single = len({s.sop_instance for s in series.sources}) == len(series.sources)
    for image, group in zip(frames, groups, strict=True):
        segment = int(
            number(first(group, "SegmentIdentificationSequence"), "ReferencedSegmentNumber") or 0
        )
        if segment not in distinct:
            raise DataError(f"{path} has a frame of segment {segment}, which it does not describe")
        place = first(group, "PlanePositionSequence")
        position = numbers(place, "ImagePositionPatient")
        turned = first(group, "PlaneOrientationSequence") or first(
            shared, "PlaneOrientationSequence"
        )
        measures = first(group, "PixelMeasuresSequence") or first(shared, "PixelMeasuresSequence")
        source = first(first(group, "DerivationImageSequence"), "SourceImageSequence")
        orientation = numbers(turned, "ImageOrientationPatient")
        spacing = numbers(measures, "PixelSpacing")
        if len(position) != 3 or len(orientation) != 6 or len(spacing) != 2:
            raise DataError(f"{path} states no place for one of its frames; export it again")
        named = by_uid.get(text(source, "ReferencedSOPInstanceUID") or "") if single else None
        k = _slice_at(np.array(position), series, path, resample)
        if named is not None and named != k and not resample:
            raise DataError(
                f"{path} names one slice as the source of a frame and lies at another; export it "
                "again"
            )
        geometry = np.array(position), np.array(orientation), np.array(spacing)
        placed = _frame_on(image >= limit, geometry, series, k, resample, path)
        masks[distinct[segment]][k] |= placed
    return {name: mask for name, mask in masks.items() if mask.any()}


def _frame_on(
    image: np.ndarray,
    geometry: tuple[np.ndarray, np.ndarray, np.ndarray],
    series: CTSeries,
    k: int,
    resample: bool,
    path: Path,
) -> np.ndarray:
    """One frame on the pixels of slice ``k``."""
    position, orientation, spacing = geometry
    rows, columns = series.hu.shape[1:]
    stack = series.stack
    aside = stack.origins[k] - position
    turn = np.stack([orientation[3:] / spacing[0], orientation[:3] / spacing[1]])  # to (row, col)
    start = turn @ aside
    down = turn @ (stack.down * stack.spacing[0])
    across = turn @ (stack.across * stack.spacing[1])
    steps = np.stack([down, across])
    same = (
        image.shape == (rows, columns)
        and np.abs(steps - np.eye(2)).max() * max(rows, columns) < 4 * _WHOLE
        and np.abs(start).max() < 2 * _WHOLE
    )
    if same:
        return image
    if not resample:
        raise DataError(
            f"{path} lies on another grid ({image.shape[0]} x {image.shape[1]} pixels a slice), "
            f"not that of the series ({rows} x {columns}), or aside of it; draw it on it, or "
            "pass resample=True for the nearest pixels"
        )
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    at = [np.rint(start[a] + down[a] * row + across[a] * column).astype(int) for a in (0, 1)]
    inside = (at[0] >= 0) & (at[0] < image.shape[0]) & (at[1] >= 0) & (at[1] < image.shape[1])
    clipped = [np.clip(at[a], 0, image.shape[a] - 1) for a in (0, 1)]
    return inside & image[clipped[0], clipped[1]]


def _distinct(names: dict[int, str]) -> dict[int, str]:
    """Names made distinct by their number where two are alike."""
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {k: name if counts[name] == 1 else f"{name} {k}" for k, name in names.items()}


# ------------------------------------------------------------------------------- RTSTRUCT


def _from_contours(dataset: Any, path: Path, series: CTSeries) -> dict[str, np.ndarray]:
    """Contours filled on the slices that they lie on; a contour within another one is a hole."""
    names = {}
    for item in value(dataset, "StructureSetROISequence", []):
        _same_frame(text(item, "ReferencedFrameOfReferenceUID"), series, path)
        names[int(number(item, "ROINumber") or 0)] = text(item, "ROIName") or "region"
    distinct = _distinct(names)
    masks: dict[str, np.ndarray] = {}
    for item in value(dataset, "ROIContourSequence", []):
        name = distinct.get(int(number(item, "ReferencedROINumber") or 0))
        if name is None:
            raise DataError(
                f"{path} has contours of a region that it does not name; export it again"
            )
        for contour in value(item, "ContourSequence", []):
            if text(contour, "ContourGeometricType") not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                continue  # points and lines enclose nothing
            points = numbers(contour, "ContourData")
            if len(points) < 9 or len(points) % 3:
                raise DataError(
                    f"{path} has a contour of {len(points)} numbers; expected three or more points "
                    "of three: export it again"
                )
            mask = masks.setdefault(name, np.zeros(series.hu.shape, bool))
            _fill(mask, np.array(points).reshape(-1, 3), series, path)
    return masks


def _fill(mask: np.ndarray, points: np.ndarray, series: CTSeries, path: Path) -> None:
    """Turn over what one contour encloses (even-odd), on the slice that it lies on."""
    from skimage.draw import polygon

    heights = points @ series.stack.normal
    if np.ptp(heights) > 0.5 * (series.stack.step or 1.0) + 0.01:
        raise DataError(
            f"{path} has a contour that does not lie in a slice of the series (it spans "
            f"{np.ptp(heights):.3g} mm across them); draw it on this series"
        )
    k = _slice_at(points.mean(axis=0), series, path, resample=False)
    aside = points - series.stack.origins[k]
    rows = aside @ series.stack.down / series.spacing[0]
    columns = aside @ series.stack.across / series.spacing[1]
    inside = polygon(rows, columns, mask.shape[1:])
    mask[k][inside] ^= True


# ------------------------------------------------------------------------------- both


def _slice_at(point: np.ndarray, series: CTSeries, path: Path, resample: bool) -> int:
    """The slice whose plane holds an LPS point; to a tenth of the distance of slices."""
    heights = series.positions_mm
    height = float(point @ series.stack.normal)
    k = int(np.abs(heights - height).argmin())
    off = abs(float(heights[k]) - height)
    step = series.stack.step or series.facts.thickness_mm or 1.0
    if off > (0.5 if resample else 0.1) * step + 0.01:
        raise DataError(
            f"{path} lies {off:.3g} mm from the nearest slice of the series (step {step:.3g} mm)"
            "; draw it on this series, or check that both are of one scan"
        )
    return k


def _same_frame(uid: str | None, series: CTSeries, path: Path) -> None:
    own = series.sources[0].frame_of_reference
    if uid and own and uid != own:
        raise DataError(
            f"{path} lies in another frame of reference than the series; give the mask of this scan"
        )
