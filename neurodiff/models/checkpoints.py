"""Published checkpoints as files: which one a file is, and its tensors by their published names.

A file is recognised by its names, never by its file name.

    layout  what                                 container
    A       released MinD-3D                     flat names
    B       own training, stage 1 or stage 2     {"epoch_it", "it", "model": names}
    D       encoder pre-training                 {"model": "module.transformer.<name>"}
    F       PointNet of the Frechet distance     {"model_state_dict": names}
    V       VDVAE of Brain-Diffuser              flat names

Tensors stay where the file is mapped until something reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from neurodiff.core.errors import DataError
from neurodiff.core.safe_io import load_weights
from neurodiff.models.published_sizes import (
    AGGREGATION,
    ENCODER,
    HEADER,
    PRIOR,
    PRIOR_TWIN,
    SCHEDULE,
    Shape,
)
from neurodiff.models.vdvae_weights import PARTS as VDVAE_PARTS

Layout = Literal["A", "B stage 1", "B stage 2", "D", "F", "V"]
LAYOUTS: dict[str, str] = {
    "A": "released MinD-3D",
    "B stage 1": "training, stage 1",
    "B stage 2": "training, stage 2",
    "D": "encoder pre-training",
    "F": "PointNet of the Frechet distance",
    "V": "VDVAE of Brain-Diffuser",
}
MIND3D_PARTS = (ENCODER, AGGREGATION, PRIOR, PRIOR_TWIN, "shape_generator.", HEADER)


@dataclass(frozen=True)
class Checkpoint:
    """A recognised file. ``tensors`` have the published names, wrappers taken off."""

    path: Path
    layout: Layout
    tensors: dict[str, Tensor]
    facts: dict[str, int] = field(default_factory=dict)  # epoch and iteration, where it says so

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor by its published name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> list[str]:
        """Number types that occur, the most frequent first."""
        names = [str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()]
        return sorted(set(names), key=names.count, reverse=True)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Map a file and recognise its layout.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : broken, truncated, a pickle of something else, or no layout that is known here.
    """
    path = Path(path)
    whole = load_weights(path)
    facts = {
        name: int(whole[name])
        for name in ("epoch_it", "it", "epoch")
        if isinstance(whole.get(name), int | float)
    }
    inner, container = _unwrapped(whole)
    tensors = {
        name.removeprefix("module."): value
        for name, value in inner.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise DataError(f"{path} holds no named tensors; expected a published checkpoint")
    layout = _layout(path, tensors, container)
    if layout == "D":
        tensors = {_encoder_name(name): tensor for name, tensor in tensors.items()}
    return Checkpoint(path, layout, tensors, facts)


def _unwrapped(whole: Mapping[str, object]) -> tuple[Mapping[str, object], str]:
    """The names, and the key under which they lie ("" for a flat file)."""
    for key in ("model_state_dict", "model", "state_dict"):
        value = whole.get(key)
        if isinstance(value, Mapping):
            return value, key
    return whole, ""


def _layout(path: Path, tensors: Mapping[str, Tensor], container: str) -> Layout:
    def any_of(*starts: str) -> bool:
        return any(name.startswith(starts) for name in tensors)

    if any_of("unet.base_model.") or any_of("i_logit_scale", "t_logit_scale"):
        raise DataError(
            f"{path} is a checkpoint of MinD-3D++ (layout C); this version decodes with MinD-3D "
            "only: give its released weights"
        )
    if any_of("lrm_generator."):
        raise DataError(
            f"{path} is a checkpoint of InstantMesh (layout E), no network of MinD-3D; give the "
            "released MinD-3D weights"
        )
    if any_of("feat.stn.", "feat.conv1."):
        return "F"
    if any_of(*VDVAE_PARTS):
        return "V"
    if any_of("transformer.") and all(name.startswith("transformer.") for name in tensors):
        return "D"
    if any_of(*MIND3D_PARTS):
        if any_of(HEADER) and not any_of("shape_generator."):
            return "B stage 1"
        return "B stage 2" if container == "model" else "A"
    first = ", ".join(sorted(tensors)[:3])
    raise DataError(
        f"{path} holds tensors, but of no network that neurodiff knows (first names: {first}); "
        "expected names that begin with fmri_encoder, prior_network or shape_generator (MinD-3D), "
        "module.transformer (encoder pre-training), feat.stn (PointNet) or encoder.enc_blocks "
        "(VDVAE)"
    )


def _encoder_name(name: str) -> str:
    return ENCODER + name.removeprefix("transformer.")


def not_finite(checkpoint: Checkpoint) -> list[str]:
    """Names of tensors that hold NaN or infinity (reads the whole file once).

    Schedule tables are left out: some overflow in half precision, and none is used.
    """
    return [
        name
        for name, tensor in checkpoint.tensors.items()
        if tensor.is_floating_point()
        and not name.startswith(SCHEDULE)
        and not bool(torch.isfinite(tensor).all())
    ]
