"""Which files of a folder are slices, and which slices are one series: headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.datasets.ct_headers import (
    MULTI_FRAME,
    first,
    header_facts,
    image_type,
    is_derived,
    number,
    numbers,
    read_header,
    text,
    value,
    why_not_a_slice,
)
from neurodiff.datasets.ct_series import SliceSource

DICOM_SUFFIXES = ("", ".dcm", ".ima", ".dicom")
SAME_PLACE = 0.01  # mm along the normal


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """One slice before its pixels are read; ``patient`` is compared and never shown."""

    source: SliceSource
    patient: str
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    kind: str
    derived: bool
    label: str
    moment: str
    facts: dict[str, Any]

    @property
    def group(self) -> tuple[Any, ...]:
        """What slices of one series have in common, whatever is measured."""
        return (self.source.series, self.source.frame_of_reference, self.shape, self.kind)

    @property
    def measured(self) -> tuple[float, ...]:
        """Orientation and spacing, alike within a series to 1e-3."""
        return (*self.orientation, *self.spacing)


def files_of(source: str | Path | Sequence[str | Path]) -> tuple[list[Path], str]:
    """The files, in order of their names, and a name for messages."""
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
        if not paths:
            raise UsageError("no file was given; give the folder of the series, or its files")
        return paths, f"the list of {len(paths)} files from {paths[0]}"
    root = Path(source).expanduser()
    if not root.exists():
        raise MissingDataError(f"{root} does not exist; give the folder of the series")
    if root.is_file():
        return [root], str(root)
    paths = sorted(
        path for path in root.rglob("*")
        if path.is_file()
        and path.suffix != ".json"
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )  # fmt: skip
    if not paths:
        raise MissingDataError(f"{root} holds no file; give the folder of the series")
    return paths, str(root)


def read_headers(paths: Iterable[Path], *, sole: bool = False) -> tuple[list[Header], list[str]]:
    """Headers of all slices, and the reason for each file that is none.

    A single file that cannot be read is an error; among several it is left out, unless it is
    plainly a damaged DICOM file, because a series without it would be silently shorter.
    """
    headers: list[Header] = []
    left_out: list[str] = []
    for path in paths:
        try:
            dataset = read_header(path)
        except DataError as error:
            other = "is no DICOM file" in str(error) or (
                path.suffix.lower() not in DICOM_SUFFIXES and "is empty" in str(error)
            )
            if sole or not other:
                raise
            left_out.append("no DICOM file")
            continue
        reason = why_not_a_slice(dataset)
        if reason is not None and "SOPClassUID" not in dataset and "Modality" not in dataset:
            raise DataError(
                f"{path} is DICOM without a kind of object and modality, so probably cut off; copy "
                "it again, or leave it out"
            )
        if reason is not None:
            left_out.append(reason)
            continue
        headers += slices_of(dataset, str(path))
    return headers, left_out


def choose(
    headers: list[Header], series: str | int | None, name: str
) -> tuple[list[Header], list[str]]:
    """The slices of one series; see `read_series` for what is refused."""
    parts = [part for group in _grouped(headers) for part in _phases(group)]
    labelled = _labelled(parts)
    notes: list[str] = []
    if series is not None:
        wanted = str(series)
        found = {
            label: part for label, part in labelled.items()
            if label == wanted or part[0].source.series == wanted or part[0].label == wanted
        }  # fmt: skip
        if not found:
            raise UsageError(
                f"{name} has no series {wanted!r}; there are {_listed(labelled)}."
                f"{suggest(wanted, labelled)}"
            )
        labelled = found
    elif len(labelled) > 1:
        originals = {k: part for k, part in labelled.items() if not part[0].derived}
        if originals and len(originals) < len(labelled):
            derived = {k: part for k, part in labelled.items() if part[0].derived}
            notes.append(f"left out: derived series {_listed(derived)}")
            labelled = originals
    _one_patient([header for part in labelled.values() for header in part], name)
    if len(labelled) > 1:
        raise DataError(
            f"{name} holds {len(labelled)} series, and one is read at a time: {_listed(labelled)}; "
            f"choose one, for example series={next(iter(labelled))!r}"
        )
    return next(iter(labelled.values())), notes


def slices_of(dataset: Any, path: str) -> list[Header]:
    """One header a slice; several for a multi-frame file."""
    if text(dataset, "SOPClassUID") not in MULTI_FRAME:
        return [_one(dataset, dataset, path, 0)]
    shared = first(dataset, "SharedFunctionalGroupsSequence")
    frames = list(value(dataset, "PerFrameFunctionalGroupsSequence", []))
    if not frames:
        raise DataError(f"{path} is multi-frame without functional groups; copy it again")
    return [_one(dataset, Both(frame, shared), path, k) for k, frame in enumerate(frames)]


class Both:
    """A frame's own groups, and the shared ones where it has none."""

    def __init__(self, own: Any, shared: Any) -> None:
        self.own, self.shared = own, shared

    def __getitem__(self, tag: Any) -> Any:
        if tag in self.own and self.own[tag].value:
            return self.own[tag]
        return self.shared[tag]


def _one(dataset: Any, frame: Any, path: str, k: int) -> Header:
    plane = first(frame, "PlanePositionSequence")
    turned = first(frame, "PlaneOrientationSequence")
    measures = first(frame, "PixelMeasuresSequence")
    content = first(frame, "FrameContentSequence")
    position = numbers(plane, "ImagePositionPatient") or numbers(dataset, "ImagePositionPatient")
    orientation = (
        numbers(turned, "ImageOrientationPatient") or numbers(dataset, "ImageOrientationPatient")
    )  # fmt: skip
    spacing = numbers(measures, "PixelSpacing") or numbers(dataset, "PixelSpacing")
    if len(position) != 3 or len(orientation) != 6:
        raise DataError(
            f"{path} states no position or orientation of its slice (ImagePositionPatient, "
            "ImageOrientationPatient); export it from the scanner again"
        )
    x, y = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(x @ y) > 0.01:
        raise DataError(
            f"{path} states the orientation {orientation}, which is no pair of perpendicular unit "
            "vectors; export it from the scanner again"
        )
    if len(spacing) != 2 or min(spacing) <= 0:
        shown = " x ".join(f"{v:g}" for v in spacing) or "nothing"
        raise DataError(
            f"{path} states the PixelSpacing {shown}; expected two lengths above 0 mm: export it "
            "from the scanner again"
        )
    series_number = text(dataset, "SeriesNumber") or "?"
    acquisition = number(content, "FrameAcquisitionNumber") or number(dataset, "AcquisitionNumber")
    instance = number(dataset, "InstanceNumber")
    facts = header_facts(dataset, frame)
    words = image_type(dataset)
    source = SliceSource(
        path=path,
        frame=k,
        sop_instance=text(dataset, "SOPInstanceUID") or "",
        sop_class=text(dataset, "SOPClassUID") or "",
        series=text(dataset, "SeriesInstanceUID") or "",
        study=text(dataset, "StudyInstanceUID") or "",
        frame_of_reference=text(dataset, "FrameOfReferenceUID") or "",
        position=(position[0], position[1], position[2]),
        number=None if instance is None else int(instance),
        acquisition=None if acquisition is None else int(acquisition),
        thickness_mm=facts["thickness_mm"],
    )
    return Header(
        source=source,
        patient=text(dataset, "PatientID") or text(dataset, "PatientName") or "",
        orientation=orientation,
        spacing=(spacing[0], spacing[1]),
        shape=(int(number(dataset, "Rows") or 0), int(number(dataset, "Columns") or 0)),
        kind=words[2] if len(words) > 2 else "",
        derived=is_derived(dataset),
        label=series_number,
        moment=text(content, "TemporalPositionIndex")
        or text(dataset, "TemporalPositionIdentifier")
        or text(dataset, "TemporalPositionIndex")
        or "",
        facts=facts,
    )


def _grouped(headers: list[Header]) -> list[list[Header]]:
    """Slices of one series, direction and spacing together, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[list[Header]]] = {}
    for header in headers:
        alike = groups.setdefault(header.group, [])
        for part in alike:
            if np.abs(np.subtract(part[0].measured, header.measured)).max() < 1e-3:
                part.append(header)
                break
        else:
            alike.append([header])
    return [part for alike in groups.values() for part in alike]


def _phases(group: list[Header]) -> list[list[Header]]:
    """A group whose places occur twice, split by acquisition or moment where that explains it."""
    x, y = np.array(group[0].orientation[:3]), np.array(group[0].orientation[3:])
    normal = np.cross(x, y)

    def twice(part: list[Header]) -> bool:
        heights = np.sort([np.array(h.source.position) @ normal for h in part])
        return bool((np.diff(heights) < SAME_PLACE).any())

    if not twice(group):
        return [group]
    keys = (lambda h: h.source.acquisition, lambda h: h.moment, lambda h: h.facts["kvp"])
    for key in keys:
        parts: dict[Any, list[Header]] = {}
        for header in group:
            parts.setdefault(key(header), []).append(header)
        if len(parts) > 1 and not any(twice(part) for part in parts.values()):
            return [parts[k] for k in sorted(parts, key=str)]
    return [group]


def _labelled(parts: list[list[Header]]) -> dict[str, list[Header]]:
    """Each part under its SeriesNumber; with .1, .2 ... where several have the same one."""
    parts = sorted(parts, key=lambda p: (_sortable(p[0].label), min(h.source.path for h in p)))
    counts: dict[str, int] = {}
    for part in parts:
        counts[part[0].label] = counts.get(part[0].label, 0) + 1
    seen: dict[str, int] = {}
    labelled = {}
    for part in parts:
        label = part[0].label
        seen[label] = seen.get(label, 0) + 1
        labelled[label if counts[label] == 1 else f"{label}.{seen[label]}"] = part
    return labelled


def _sortable(label: str) -> tuple[int, str]:
    return (int(label), "") if label.lstrip("-").isdigit() else (10**9, label)


def _listed(labelled: dict[str, list[Header]]) -> str:
    texts = []
    for label, part in list(labelled.items())[:8]:
        facts = part[0].facts
        kernel = "\\".join(facts["kernel"]) or "no kernel"
        thick = "" if facts["thickness_mm"] is None else f", {facts['thickness_mm']:g} mm"
        texts.append(f"{label} ({kernel}{thick}, {len(part)} slices)")
    rest = len(labelled) - len(texts)
    return ", ".join(texts) + (f" and {rest} more" if rest else "")


def _one_patient(headers: list[Header], name: str) -> None:
    counts: dict[str, int] = {}
    for header in headers:
        counts[header.patient] = counts.get(header.patient, 0) + 1
    if len(counts) > 1:
        shown = " and ".join(str(n) for n in sorted(counts.values(), reverse=True)[:4])
        raise DataError(
            f"{name} holds scans of {len(counts)} patients ({shown} slices); give the files of one"
        )


def counted(reasons: list[str]) -> list[str]:
    """Each reason once, with the number of files that have it."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return [
        f"{count} {'file' if count == 1 else 'files'}: {reason}" for reason, count in counts.items()
    ]
