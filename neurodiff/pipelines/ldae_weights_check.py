"""Keys of a file of LDAE, BrLP or MONAI beside those that its network needs.

The size is read from the shapes themselves, so that any size can be checked; a name is matched,
missing, unexpected, or there with another shape.  What no shape tells (groups of the norms, heads)
changes no name either: where the published number cannot be right, the table says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurodiff.core.errors import DataError, NeurodiffError
from neurodiff.models.ldae_autoencoder import autoencoder, autoencoder_size_of, current_names
from neurodiff.models.ldae_names import (
    WHAT,
    encoder_size_of,
    encoder_tensors,
    lightning_parts,
    part_of,
    unet_size_of,
)
from neurodiff.models.ldae_sizes import AutoencoderSize
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines.ldae_files import named_tensors, shapes_of

_MOST = 20  # names written out of each kind


def check_ldae_weights(path: str | Path, *, full: bool = False) -> tuple[str, str] | None:
    """The table of keys, and why the file cannot be used ("" where it can).

    Returns
    -------
    None where the names are of no network of LDAE, BrLP or MONAI's brain autoencoder.

    Raises
    ------
    MissingDataError, DataError : no such file, or a broken one.
    """
    tensors = named_tensors(path)
    part = part_of(tensors)
    if part is None:
        return None
    parts: Mapping[Any, dict[str, Tensor]] = {part: tensors}
    if part == "lightning":
        parts = lightning_parts(tensors)
    lines, problem = [f"{path}: {WHAT[part]}, {len(tensors):,} tensors"], ""
    for name, own in parts.items():
        text, bad = _compared(str(name), own, full)
        lines += text
        problem = problem or (f"{path} cannot be used as it is: {bad}" if bad else "")
        lines += [] if bad else _untold(str(name), own)
    if not problem:
        lines.append("all that is needed is there")
    return "\n".join(lines), problem


def _compared(part: str, tensors: dict[str, Tensor], full: bool) -> tuple[list[str], str]:
    """Lines about one network, and what forbids loading it."""
    try:
        if part == "autoencoder":
            tensors = current_names(tensors)
        if part == "encoder":
            tensors = encoder_tensors(tensors)
        wanted = shapes_of(_network(part, shapes_of(tensors)).state_dict())
    except NeurodiffError as error:
        return [f"{part}: {error}"], str(error)
    found = shapes_of(tensors)
    kinds = {
        "missing": [n for n in wanted if n not in found],
        "unexpected": [n for n in found if n not in wanted],
        "other shape": [n for n in wanted if n in found and found[n] != wanted[n]],
        "NaN": [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()],
    }
    matched = sum(found.get(name) == shape for name, shape in wanted.items())
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if kind != "NaN")
    lines = [f"{part}: {matched} matched, {counts}"]
    for kind, names in kinds.items():
        shown = names if full else names[:_MOST]
        lines += [f"  {kind:<12}{name}" for name in shown]
        if len(shown) < len(names):
            lines.append(f"  {kind:<12}and {len(names) - len(shown)} more")
    bad = [f"{len(n)} {kind} in the {part} ({n[0]})" for kind, n in kinds.items() if n]
    return lines, "; ".join(bad)


def _untold(part: str, tensors: dict[str, Tensor]) -> list[str]:
    """A line where the published numbers of groups or heads cannot be those of this file."""
    try:
        if part in ("unet", "decoder"):
            unet_size_of(shapes_of(tensors))
        elif part == "encoder":
            encoder_size_of(shapes_of(encoder_tensors(tensors)))
    except NeurodiffError as error:
        return [f"  note: {error}"]
    return []


def _network(part: str, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """The network of these shapes, without memory."""
    with torch.device("meta"):
        if part == "autoencoder":
            return autoencoder(_with_template(autoencoder_size_of(shapes), shapes))
        if part == "encoder":
            return SliceEncoder(encoder_size_of(shapes, heads=None))
        if part in ("unet", "decoder"):
            size = unet_size_of(shapes, groups=None)
            return ShiftUNet(size) if part == "decoder" else LatentUNet(size)
    raise DataError(f"{part} is no network of LDAE")


def _with_template(size: AutoencoderSize, shapes: dict[str, tuple[int, ...]]) -> AutoencoderSize:
    """An autoencoder of ours may hold a mean scan, whose channels tell the blocks of voxels."""
    held = shapes.get("template")
    if held is None or len(held) != 5 or size.image_channels % held[1]:
        return size
    patch = round((size.image_channels / held[1]) ** (1 / 3))
    i, j, k = held[2:]
    return replace(size, patch=patch, template=(i, j, k), image_channels=held[1])
