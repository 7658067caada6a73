"""From files to a `CTSeries`: which belong together, in which order, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.datasets.ct_geometry import AIR, Stack, missing_slices, order_along
from neurodiff.datasets.ct_headers import (
    MULTI_FRAME,
    SeriesFacts,
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
from neurodiff.datasets.ct_pixels import padding_of, stored_frames, to_hu
from neurodiff.datasets.ct_series import CTSeries, SliceSource

_SAME_PLACE = 0.01  # mm along the normal


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
        turned = tuple(round(v, 3) + 0.0 for v in self.orientation)
        spacing = tuple(round(v, 4) for v in self.spacing)
        place = self.source.frame_of_reference
        return (self.source.series, place, turned, self.shape, spacing, self.kind)


def read_chosen(
    source: str | Path | Sequence[str | Path],
    series: str | int | None,
    missing: Literal["error", "interpolate", "split"],
) -> list[CTSeries]:
    """See `neurodiff.datasets.ct_series.read_series`; one series, or the runs of a split one."""
    paths, name = files_of(source)
    headers, left_out = read_headers(paths, sole=len(paths) == 1)
    if not headers:
        reasons = "; ".join(_counted(left_out)) or "it is empty"
        raise DataError(f"{name} holds no CT slice ({reasons}); give the folder of a CT series")
    chosen, notes = choose(headers, series, name)
    notes += [f"left out: {reason}" for reason in _counted(left_out)]
    return assemble(chosen, notes, name, missing)


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
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
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
            if sole or "is no DICOM file" not in str(error):
                raise
            left_out.append("no DICOM file")
            continue
        reason = why_not_a_slice(dataset)
        if reason is not None:
            left_out.append(reason)
            continue
        headers += _slices(dataset, str(path))
    return headers, left_out


def choose(
    headers: list[Header], series: str | int | None, name: str
) -> tuple[list[Header], list[str]]:
    """The slices of one series; see `read_series` for what is refused."""
    groups: dict[tuple[Any, ...], list[Header]] = {}
    for header in headers:
        groups.setdefault(header.group, []).append(header)
    parts = [part for group in groups.values() for part in _phases(group)]
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


def assemble(headers: list[Header], notes: list[str], name: str, missing: str) -> list[CTSeries]:
    """Slices with their pixels, in order, as one series or as the runs between gaps."""
    model = headers[0]
    across, down = np.array(model.orientation[:3]), np.array(model.orientation[3:])
    across, down = across / np.linalg.norm(across), down / np.linalg.norm(down)
    normal = np.cross(across, down)
    order = order_along([np.array(h.source.position) for h in headers], normal)
    headers = [headers[k] for k in order]
    hu, padding, headers, more = _pixels(headers, normal, name)
    notes += more
    stack = _stack(headers, across, down)
    sources = [header.source for header in headers]
    gaps = missing_slices(stack, [source.thickness_mm for source in sources])
    if gaps and missing == "error":
        before, count = gaps[0]
        total = sum(number_ for _, number_ in gaps)
        raise DataError(
            f"{name} lacks {total} {'slice' if total == 1 else 'slices'} in {len(gaps)} "
            f"{'place' if len(gaps) == 1 else 'places'}, first {count} after "
            f"{Path(sources[before].path).name} (slice {before + 1} of {len(sources)}, step "
            f"{stack.step:.3g} mm); copy them again, or pass missing='interpolate' or 'split'"
        )
    facts = _facts(headers, stack)
    notes += _observations(headers, stack, gaps, facts)
    if gaps and missing == "split":
        cuts = [0, *(before + 1 for before, _ in gaps), len(sources)]
        return [
            _part(hu, padding, stack, facts, sources, notes, name, slice(a, b))
            for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]
    if gaps:
        hu, padding, stack, sources = _filled(hu, padding, stack, sources, gaps)
        total = sum(count for _, count in gaps)
        notes.append(f"{total} missing slices are interpolated from their neighbours")
    whole = slice(0, len(sources))
    return [_part(hu, padding, stack, facts, sources, notes, name, whole)]


# ------------------------------------------------------------------------------- headers


def _slices(dataset: Any, path: str) -> list[Header]:
    """One header a slice; several for a multi-frame file."""
    frames: list[Any] = [dataset]
    shared = dataset
    if text(dataset, "SOPClassUID") in MULTI_FRAME:
        shared = first(dataset, "SharedFunctionalGroupsSequence")
        frames = list(value(dataset, "PerFrameFunctionalGroupsSequence", []))
        if not frames:
            raise DataError(f"{path} is multi-frame without functional groups; copy it again")
    return [_one(dataset, _Both(frame, shared), path, k) for k, frame in enumerate(frames)]


class _Both:
    """A frame's own groups, and the shared ones where it has none."""

    def __init__(self, own: Any, shared: Any) -> None:
        self.own, self.shared = own, shared

    def get(self, keyword: str, default: Any = None) -> Any:
        return self.own.get(keyword, None) or self.shared.get(keyword, default)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.own or keyword in self.shared


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


def _phases(group: list[Header]) -> list[list[Header]]:
    """A group whose places occur twice, split by acquisition or moment where that explains it."""
    x, y = np.array(group[0].orientation[:3]), np.array(group[0].orientation[3:])
    normal = np.cross(x, y)

    def twice(part: list[Header]) -> bool:
        heights = np.sort([np.array(h.source.position) @ normal for h in part])
        return bool((np.diff(heights) < _SAME_PLACE).any())

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


def _counted(reasons: list[str]) -> list[str]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return [
        f"{count} {'file' if count == 1 else 'files'}: {reason}" for reason, count in counts.items()
    ]


# ------------------------------------------------------------------------------- pixels


def _pixels(
    headers: list[Header], normal: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, list[Header], list[str]]:
    """HU and padding of slices in order; identical slices at one place are kept once."""
    rows, columns = headers[0].shape
    hu = np.zeros((len(headers), rows, columns), np.float32)
    padding = np.zeros(hu.shape, bool)
    kept: list[Header] = []
    notes: list[str] = []
    clashes: list[str] = []
    doubles = 0
    read: dict[str, tuple[Any, np.ndarray]] = {}
    for header in headers:
        path = header.source.path
        if path not in read:
            # slices of one multi-frame file share what was read; other files are let go
            read = {path: stored_frames(path)}
        dataset, stored = read[path]
        frame = dataset
        if header.source.sop_class in MULTI_FRAME:
            frame = _Both(
                dataset.PerFrameFunctionalGroupsSequence[header.source.frame],
                first(dataset, "SharedFunctionalGroupsSequence"),
            )
        if header.source.frame >= len(stored):
            raise DataError(f"{path} describes more frames than it holds; copy it again")
        image = to_hu(stored[header.source.frame], dataset, frame, path)
        mask, before, note = padding_of(stored[header.source.frame], image, dataset)
        if note and note not in notes:
            notes.append(note)
        image[mask] = AIR
        if kept and _apart(kept[-1], header, normal) < _SAME_PLACE:
            if np.array_equal(hu[len(kept) - 1], image):
                doubles += 1
            else:
                clashes.append(f"{Path(kept[-1].source.path).name} and {Path(path).name}")
            continue
        hu[len(kept)], padding[len(kept)] = image, mask
        kept.append(replace(header, source=replace(header.source, padding_hu=before)))
    if clashes:
        raise DataError(
            f"{name} has different slices at one place: {', '.join(clashes[:5])}"
            f"{f' and {len(clashes) - 5} more' if len(clashes) > 5 else ''}; they belong to two "
            "series or phases: give the files of one"
        )
    if doubles:
        notes.append(f"{doubles} slices are there twice, alike; one of each is kept")
    return hu[: len(kept)], padding[: len(kept)], kept, notes


def _apart(a: Header, b: Header, normal: np.ndarray) -> float:
    return float(abs((np.array(b.source.position) - np.array(a.source.position)) @ normal))


def _stack(headers: list[Header], across: np.ndarray, down: np.ndarray) -> Stack:
    origins = np.array([header.source.position for header in headers], float)
    return Stack(origins, across, down, headers[0].spacing)


def _facts(headers: list[Header], stack: Stack) -> SeriesFacts:
    """Those of the middle slice; mAs is the mean over slices."""
    middle = headers[len(headers) // 2].facts
    known = {key: item for key, item in middle.items() if key != "tilt_header"}
    for key in ("mas", "ctdivol"):
        found = [h.facts[key] for h in headers if h.facts[key] is not None]
        known[key] = float(np.mean(found)) if found else None
    return SeriesFacts(
        **known,
        spacing_mm=stack.spacing,
        slices=len(headers),
        tilt_degrees=round(stack.tilt, 3),
    )


def _observations(
    headers: list[Header], stack: Stack, gaps: list[tuple[int, int]] | None, facts: SeriesFacts
) -> list[str]:
    notes = []
    if not facts.kernel:
        notes.append("the header names no ConvolutionKernel")
    distances = np.diff(stack.heights)
    if not gaps and not stack.even:
        notes.append(
            f"slices are unevenly spaced, {distances.min():.3g} to {distances.max():.3g} mm, "
            f"usually {stack.step:.3g} mm; volume() resamples them"
        )
    if not stack.straight:
        notes.append(
            f"the gantry was tilted by {abs(stack.tilt):.1f} degrees; volume() resamples the slices"
        )
    stated = headers[0].facts["tilt_header"]
    if stated is not None and abs(abs(stated) - abs(stack.tilt)) > 0.5 and len(headers) > 1:
        notes.append(
            f"the header states a tilt of {stated:g} degrees and the positions show "
            f"{stack.tilt:.1f}; the positions count"
        )
    thick = sorted({h.facts["thickness_mm"] for h in headers} - {None})
    if len(thick) > 1:
        notes.append(f"slices are {', '.join(f'{t:g}' for t in thick)} mm thick")
    kernels = {h.facts["kernel"] for h in headers}
    if len(kernels) > 1:
        notes.append(f"slices name {len(kernels)} different kernels; that of the middle one counts")
    if facts.derived:
        notes.append("the series is derived from another one")
    if facts.lossy:
        notes.append("the pixels were compressed with loss")
    if facts.burned_in:
        notes.append("the header says that text is burned into the pixels")
    return notes


def _filled(
    hu: np.ndarray,
    padding: np.ndarray,
    stack: Stack,
    sources: list[SliceSource],
    gaps: list[tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray, Stack, list[SliceSource]]:
    """With linear mixtures in the gaps; a pixel is padding where a neighbour is."""
    missing = dict(gaps)
    images, masks, origins, records = [], [], [], []
    for k, source in enumerate(sources):
        images.append(hu[k])
        masks.append(padding[k])
        origins.append(stack.origins[k])
        records.append(source)
        for number_ in range(1, missing.get(k, 0) + 1):
            share = number_ / (missing[k] + 1)
            images.append((1 - share) * hu[k] + share * hu[k + 1])
            masks.append(padding[k] | padding[k + 1])
            images[-1][masks[-1]] = AIR
            place = (1 - share) * stack.origins[k] + share * stack.origins[k + 1]
            origins.append(place)
            x, y, z = (float(v) for v in place)
            records.append(
                replace(
                    source, path="", sop_instance="", number=None, position=(x, y, z),
                    interpolated=True,
                )
            )  # fmt: skip
    filled = Stack(np.stack(origins), stack.across, stack.down, stack.spacing)
    return np.stack(images).astype(np.float32), np.stack(masks), filled, records


def _part(
    hu: np.ndarray, padding: np.ndarray, stack: Stack, facts: SeriesFacts,
    sources: list[SliceSource], notes: list[str], name: str, which: slice,
) -> CTSeries:  # fmt: skip
    part = Stack(stack.origins[which], stack.across, stack.down, stack.spacing)
    return CTSeries(
        hu=hu[which],
        padding=padding[which],
        stack=part,
        facts=replace(facts, slices=len(part.origins)),
        sources=tuple(sources[which]),
        notes=tuple(dict.fromkeys(notes)),
        name=name,
    )
