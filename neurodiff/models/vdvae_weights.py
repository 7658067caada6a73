"""The published VDVAE checkpoint: its names and shapes, and its tensors in a network.

The file is ``imagenet64-iter-1600000-model-ema.th``, flat names of averaged weights. Width, latent
channels, inner width and mixtures are read off its shapes; the order of the blocks, of which no
shape tells, is taken as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from neurodiff.core.errors import DataError, UsageError
from neurodiff.models.vdvae import IMAGENET64, VDVAE, VDVAESize

FILE = "imagenet64-iter-1600000-model-ema.th"
#: Names that begin like these are of a VDVAE and of no other network here.
PARTS = ("encoder.enc_blocks.", "decoder.dec_blocks.")


def vdvae_size_of(shapes: Mapping[str, tuple[int, ...]]) -> VDVAESize:
    """Size of the network whose parameters have these shapes, published where none tells.

    Raises
    ------
    ValueError : the shapes are of no possible network.
    """

    def side(name: str, axis: int, published: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis else published

    width = side("encoder.in_conv.weight", 0, IMAGENET64.width)
    inner = side("encoder.enc_blocks.0.c1.weight", 0, int(width * IMAGENET64.bottleneck))
    parameters = side("decoder.out_net.out_conv.weight", 0, 10 * IMAGENET64.mixtures)
    return replace(
        IMAGENET64,
        width=width,
        bottleneck=inner / max(width, 1),
        zdim=side("decoder.dec_blocks.0.z_proj.weight", 1, IMAGENET64.zdim),
        mixtures=parameters // 10,
    )


def vdvae_shapes(size: VDVAESize = IMAGENET64) -> dict[str, tuple[int, ...]]:
    """Every name of a checkpoint of this size with its shape, without memory."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in VDVAE(size).state_dict().items()}


def vdvae_table() -> list[str]:
    """What the published file holds, for people."""
    shapes = vdvae_shapes()
    lines = [
        f"the released VDVAE of Brain-Diffuser (layout V, {FILE}) holds {len(shapes):,} names:"
    ]
    parts = [name.split(".")[0] for name in shapes]
    lines += [f"  {part:<28}{parts.count(part):>6}" for part in dict.fromkeys(parts)]
    with torch.device("meta"):
        count = sum(p.numel() for p in VDVAE().parameters())
    return [*lines, f"  {'parameters':<28}{count:>14,}"]


def load_vdvae(
    path: str | Path, *, any_size: bool = False, dtype: torch.dtype = torch.float32
) -> VDVAE:
    """The network with a checkpoint's weights, in ``eval`` mode and frozen, each tensor held once.

    Parameters
    ----------
    any_size : accept other widths than the published ones.

    Raises
    ------
    MissingDataError, DataError : no file, a broken one, a name that is missing, another size.
    UsageError : the file is a checkpoint of another network.
    """
    from neurodiff.models.weights import LAYOUTS, compare, fill, open_checkpoint

    checkpoint = open_checkpoint(path)
    if checkpoint.layout != "V":
        raise UsageError(
            f"{path} is layout {checkpoint.layout} ({LAYOUTS[checkpoint.layout]}), no VDVAE; give "
            f"{FILE}"
        )
    report = compare(checkpoint)
    if report.broken:
        raise DataError(report.sentence())
    size = report.sizes
    assert isinstance(size, VDVAESize)
    if not any_size and size.differences():
        raise DataError(
            f"{path} is of another size than the published model: {size.summary()}. "
            "Give the published weights, or allow other sizes (any_size, --any-size)"
        )
    own = vdvae_shapes(size)
    with torch.device("meta"):
        network = VDVAE(size)
    tensors = {name: t for name, t in checkpoint.tensors.items() if name in own}
    fill(network, tensors, dtype=dtype, where=str(path))
    return network.eval().requires_grad_(False)
