"""From files to a `CTSeries`: pixels, gaps, and what is unusual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurodiff.core.errors import DataError
from neurodiff.datasets.ct_geometry import AIR, Stack, missing_slices, order_along
from neurodiff.datasets.ct_headers import MULTI_FRAME, SeriesFacts, first
from neurodiff.datasets.ct_pixels import padding_of, stored_frames, to_hu
from neurodiff.datasets.ct_series import CTSeries, SliceSource
from neurodiff.datasets.ct_slices import (
    SAME_PLACE,
    Both,
    Header,
    choose,
    counted,
    files_of,
    read_headers,
)


def read_chosen(
    source: str | Path | Sequence[str | Path],
    series: str | int | None,
    missing: Literal["error", "interpolate", "split"],
) -> list[CTSeries]:
    """See `neurodiff.datasets.ct_series.read_series`; one series, or the runs of a split one."""
    paths, name = files_of(source)
    headers, left_out = read_headers(paths, sole=len(paths) == 1)
    if not headers:
        reasons = "; ".join(counted(left_out)) or "it is empty"
        raise DataError(f"{name} holds no CT slice ({reasons}); give the folder of a CT series")
    chosen, notes = choose(headers, series, name)
    notes += [f"left out: {reason}" for reason in counted(left_out)]
    return assemble(chosen, notes, name, missing)


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
            for a, b in pairwise(cuts)
        ]
    if gaps:
        hu, padding, stack, sources = _filled(hu, padding, stack, sources, gaps)
        total = sum(count for _, count in gaps)
        notes.append(f"{total} missing slices are interpolated from their neighbours")
    whole = slice(0, len(sources))
    return [_part(hu, padding, stack, facts, sources, notes, name, whole)]


def _pixels(
    headers: list[Header], normal: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, list[Header], list[str]]:
    """HU and padding of slices in order; identical slices at one place are kept once."""
    hu, padding = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0, 0), bool)
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
            frame = Both(
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
        if not len(hu):  # the declared size is believed once a file has held it
            hu = np.zeros((len(headers), *image.shape), np.float32)
            padding = np.zeros(hu.shape, bool)
        if kept and _apart(kept[-1], header, normal) < SAME_PLACE:
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
