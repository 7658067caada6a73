"""Published weights in networks: MinD-3D, its fMRI encoder, and the PointNet that judges meshes.

Nothing is loaded in part: a name that is needed and absent, or a tensor of another shape, is an
error that says which. What a file is is told by `checkpoints`, whether it is whole by `key_report`;
their public names are here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from neurodiff.core.errors import DataError, UsageError
from neurodiff.models.checkpoints import LAYOUTS, Checkpoint, not_finite, open_checkpoint
from neurodiff.models.key_report import KeyReport, compare, is_counter, is_dead
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.models.published_sizes import (
    AGGREGATION,
    DECODER,
    ENCODER,
    PRIOR,
    PRIOR_TWIN,
    TOKENIZER,
    MinD3DSizes,
    expected_shapes,
    meta_modules,
)
from neurodiff.models.shape_decoder import ShapeDecoder

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "KeyReport",
    "Networks",
    "compare",
    "fill",
    "load_encoder",
    "load_mind3d",
    "load_pointnet",
    "not_finite",
    "open_checkpoint",
]


@dataclass(frozen=True)
class Networks:
    """MinD-3D with a checkpoint's weights; ``shapes`` is None for a stage 1, which holds none."""

    sizes: MinD3DSizes
    brain: BrainNetworks
    shapes: ShapeGenerator | None
    report: KeyReport


def load_mind3d(
    path: str | Path,
    *,
    any_size: bool = False,
    dtype: torch.dtype | None = torch.float32,
    decoder_dtype: torch.dtype | None = None,
    protocol: str = "mind3d-2024",
    encoder_heads: int = 16,
    decoder_heads: int = 16,
) -> Networks:
    """Networks with the weights of layout A or B, each tensor held once.

    Parameters
    ----------
    any_size : take sizes from the shapes; else other sizes than the published ones are refused.
    dtype : of encoder, aggregation, prior and tokenizer (335 M values); None leaves each tensor in
        the number type of the file, and where that is the wanted one the mapped file is not copied.
    decoder_dtype : of the shape decoder (3.7 G values); ``dtype`` if not given.
    protocol : of the prior's norms and softmax (see `FeatureBridge`).

    Raises
    ------
    MissingDataError, DataError : as `open_checkpoint`; a needed name is missing; another size.
    UsageError : the file is a checkpoint of another network.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.layout in ("D", "F", "V"):
        what = "no part of MinD-3D" if checkpoint.layout == "V" else "a part of the chain only"
        raise UsageError(
            f"{path} is layout {checkpoint.layout} ({LAYOUTS[checkpoint.layout]}), {what}; give a "
            "checkpoint of layout A or B"
        )
    report = compare(checkpoint, encoder_heads=encoder_heads, decoder_heads=decoder_heads)
    if report.broken:
        raise DataError(report.sentence())
    sizes = report.sizes
    assert isinstance(sizes, MinD3DSizes)
    if not any_size and sizes.differences():
        raise DataError(
            f"{path} is of another size than the published model: {sizes.summary()}. "
            "Give the published weights, or allow other sizes (any_size, --any-size)"
        )
    tensors = checkpoint.tensors
    prior = PRIOR if PRIOR + "learned_query" in tensors else PRIOR_TWIN
    with torch.device("meta"):
        brain = BrainNetworks(
            sizes.encoder,
            sizes.bridge,
            aggregated_tokens=sizes.aggregated_tokens,
            protocol=protocol,
        )
    for prefix, module in (
        (ENCODER, brain.fmri_encoder),
        (AGGREGATION, brain.fa_module),
        (prior, brain.prior_network),
    ):
        fill(module, _under(tensors, prefix), dtype=dtype, where=str(path))
    shapes = None
    if checkpoint.layout != "B stage 1":
        tokenizer = _under(tensors, TOKENIZER)
        unet = any(name.startswith("encoder.unet.") for name in tokenizer)
        with torch.device("meta"):
            shapes = ShapeGenerator(
                sizes.decoder, replace(sizes.tokenizer, unused_encoder_unet=unet)
            )
        decoder = _under(tensors, DECODER)
        kept = decoder.pop("z_value_dec.weight", None)
        if kept is not None:
            decoder.setdefault("emb.weight", kept)
        wanted = dtype if decoder_dtype is None else decoder_dtype
        fill(shapes.transformer_model, decoder, dtype=wanted, where=str(path))
        fill(shapes.vqvae_model, tokenizer, dtype=dtype, where=str(path))
        shapes.eval().requires_grad_(False)
    brain.eval().requires_grad_(False)
    return Networks(sizes, brain, shapes, report)


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    where: str = "the checkpoint",
) -> None:
    """Give a network on the meta device its weights, without a second copy of any.

    A tensor that has the wanted type already is taken as it is (mapped); the others are cast one by
    one.  Rotary frequencies stay float32: at position 700 they need it.  Dead parameters that are
    not there become zeros.

    Raises
    ------
    DataError : a name is missing or unknown, or a shape is another one.
    """
    own = module.state_dict()
    tied = "z_value_dec.weight" in own and "z_value_dec.weight" not in tensors
    ready: dict[str, Tensor] = {}
    for name, empty in own.items():
        if tied and name == "z_value_dec.weight":
            continue
        if name not in tensors:
            if not is_dead("." + name):
                raise DataError(f"{where} lacks {name!r}; it is no whole {type(module).__name__}")
            ready[name] = torch.zeros(empty.shape, dtype=dtype or torch.float32)
            continue
        value = tensors[name]
        if value.shape != empty.shape:
            raise DataError(
                f"{where}: {name} has shape {tuple(value.shape)}, and this "
                f"{type(module).__name__} needs {tuple(empty.shape)}: it is of another size"
            )
        wanted = torch.float32 if name.endswith("rotary_emb.freqs") else dtype
        floating = value.is_floating_point() and wanted is not None
        ready[name] = value.to(wanted) if floating else value
    strange = sorted(set(tensors) - set(own))
    if strange:
        raise DataError(
            f"{where} holds {strange[0]!r}, which {type(module).__name__} does not have; it is of "
            "another network"
        )
    if tied:
        ready["z_value_dec.weight"] = ready["emb.weight"]
    module.load_state_dict(ready, assign=True)
    if tied:
        assert isinstance(module, ShapeDecoder)
        module.tie_weights()  # one parameter, not two that share a tensor


def load_encoder(
    path: str | Path, *, heads: int = 16, dtype: torch.dtype | None = torch.float32
) -> nn.Module:
    """The fMRI encoder of any MinD-3D checkpoint (layouts A, B and D), of its own size.

    Raises
    ------
    MissingDataError, DataError, UsageError : as `load_mind3d`.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.layout in ("F", "V"):
        raise UsageError(f"{path} is a {LAYOUTS[checkpoint.layout]}; it has no fMRI encoder")
    report = compare(checkpoint, encoder_heads=heads)
    bad = [row for row in report.broken if row.name.startswith(ENCODER)]
    if bad:
        raise DataError(KeyReport(checkpoint, report.sizes, bad).sentence())
    assert isinstance(report.sizes, MinD3DSizes)
    encoder = meta_modules(report.sizes)[ENCODER]
    own = {name for name in expected_shapes(report.sizes) if name.startswith(ENCODER)}
    tensors = {name: t for name, t in checkpoint.tensors.items() if name in own}
    fill(encoder, _under(tensors, ENCODER), dtype=dtype, where=str(path))
    return encoder.eval()


def load_pointnet(path: str | Path, module: nn.Module) -> nn.Module:
    """Layout F into a network with the published names (``num_batches_tracked`` may be absent).

    Raises
    ------
    MissingDataError, DataError : broken, not layout F, or names and shapes that do not fit.
    """
    checkpoint = open_checkpoint(path)
    report = compare(checkpoint)
    if checkpoint.layout != "F":
        raise DataError(
            f"{path} is layout {checkpoint.layout} ({LAYOUTS[checkpoint.layout]}); expected the "
            "PointNet of the Frechet distance (layout F)"
        )
    if report.broken:
        raise DataError(report.sentence())
    own = module.state_dict()
    counters = {name: value for name, value in own.items() if is_counter(name)}
    fill(module, counters | checkpoint.tensors, dtype=torch.float32, where=str(path))
    return module.eval()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
