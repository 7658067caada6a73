"""Published checkpoints of LDAE: which network a set of names is, of what size, in our names.

    file                                 network       names
    autoencoderkl.pth, BrLP, bundles     autoencoder   MONAI Generative's, or MONAI's
    decoder.pth                          shift U-Net   ours
    encoder.pth                          slice encoder ours, and the slice network a second time
    Lightning's *.ckpt                   several       behind a prefix each, also averaged weights

Everything here maps names to names; files are opened in :mod:`neurodiff.pipelines.ldae_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from neurodiff.core.errors import DataError
from neurodiff.models.ldae_autoencoder import Shape
from neurodiff.models.ldae_sizes import LatentUNetSize, SliceEncoderSize

Part = Literal["autoencoder", "unet", "decoder", "encoder"]
WHAT: dict[str, str] = {
    "autoencoder": "an autoencoder of LDAE, BrLP or MONAI",
    "unet": "the latent U-Net of LDAE's stage 2",
    "decoder": "the shift U-Net of LDAE's stage 3 (decoder.pth)",
    "encoder": "the semantic encoder of LDAE (encoder.pth)",
    "lightning": "a Lightning checkpoint of several networks",
}
#: Prefixes in a Lightning checkpoint, averaged weights first.
PREFIXES: dict[Part, tuple[str, ...]] = {
    "autoencoder": ("ema_vae.", "vae."),
    "unet": ("ema_unet.", "unet."),
    "encoder": ("ema_encoder.", "encoder."),
    "decoder": ("ema_decoder.", "decoder."),
}
_TWIN, _FEATURES = "slice_distributed.", "backbone.backbone.features."
_TABLE = "positional_encoding.pe"


def part_of(names: Mapping[str, object]) -> str | None:
    """Which network has these names: a key of :data:`WHAT`, or None for none that is known here."""
    if "quant_conv_mu.conv.weight" in names:
        return "autoencoder"
    if "label_emb.weight" in names and "shift_out.2.weight" in names:
        return "decoder"
    if "time_embed.0.weight" in names and "input_blocks.0.0.weight" in names:
        return "unet"
    if any(name.startswith(_FEATURES) for name in names):
        return "encoder"
    return "lightning" if _lightning_parts(names) else None


def lightning_parts(
    tensors: Mapping[str, Tensor], *, averaged: bool = True
) -> dict[Part, dict[str, Tensor]]:
    """Networks of a Lightning checkpoint, each under its own names.

    averaged : take the moving average of the weights where there is one, as the published files
        do; else the weights of the last step.

    Raises
    ------
    DataError : none of LDAE's networks is there.
    """
    found: dict[Part, dict[str, Tensor]] = {}
    for part, prefixes in _lightning_parts(tensors).items():
        prefix = prefixes[0] if averaged else prefixes[-1]
        found[part] = {
            name.removeprefix(prefix).removeprefix("module."): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    if not found:
        raise DataError(
            f"the checkpoint has no names that begin with {', '.join(_all_prefixes())}; it is of "
            "another model than LDAE"
        )
    return found


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the semantic encoder without the second copy of its slice network.

    Raises
    ------
    DataError : the copy differs from the original, so that it is not clear which one was trained.
    """
    kept = {name: t for name, t in tensors.items() if not name.startswith(_TWIN)}
    for name, t in tensors.items():
        twin = "backbone." + name.removeprefix(_TWIN + "module.").removeprefix("backbone.")
        if name.startswith(_TWIN) and not _same(t, kept.get(twin)):
            raise DataError(f"{name} is not equal to {twin}, of which it should be a copy")
    if _TABLE in kept:  # (slices, 1, code) or (1, slices, code): the same numbers in one order
        table = kept[_TABLE]
        kept[_TABLE] = table.reshape(1, -1, table.shape[-1])
    return kept


def from_imagenet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's ConvNeXt for the slice network, to start training from.

    The first convolution is summed over red, green and blue, which is what it makes of a grey
    picture; the classes are left out.
    """
    first = "features.0.0.weight"
    if first not in tensors or tensors[first].shape[1] != 3:
        raise DataError(f"expected the ConvNeXt of torchvision, with {first} of three channels")
    kept = {n: t for n, t in tensors.items() if not n.startswith("classifier.2.")}
    kept[first] = kept[first].sum(dim=1, keepdim=True)
    return {"backbone.backbone." + name: tensor for name, tensor in kept.items()}


def unet_size_of(
    shapes: Mapping[str, Shape], *, heads: int = 1, groups: int | None = 32
) -> LatentUNetSize:
    """Size of the U-Net with these shapes.

    Parameters
    ----------
    heads, groups : of which no shape tells, nor of the strides; the defaults are published. None
        takes 32 groups, or the largest number below that divides the width: good enough to compare
        names and shapes, and a guess where a network is to be run.

    Raises
    ------
    DataError : the shapes are of no possible U-Net, or not of this number of groups.
    """
    first = shapes.get("input_blocks.0.0.weight", ())
    blocks = _numbered(shapes, r"output_blocks\.(\d+)\.0\.in_layers\.2\.weight")
    if len(first) != 5 or not blocks:
        raise DataError("the weights lack input_blocks.0.0.weight in 3D, or output_blocks")
    ups = _numbered(shapes, r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight")
    each = (min(ups) if ups else max(blocks)) + 1  # blocks a level on the way up
    level_starts = range(0, len(blocks), each)
    if len(blocks) % each or len(ups) != len(level_starts) - 1:
        raise DataError(f"the weights have {len(blocks)} output blocks, no multiple of {each}")
    if groups is None:
        groups = _most(first[0], 32)
    elif first[0] % groups:
        raise DataError(
            f"the U-Net has a width of {first[0]}, which the published {groups} groups do not "
            "divide, and no file tells how many it was trained with: open the model's own folder, "
            "or give its size"
        )
    widths = [shapes[f"output_blocks.{k}.0.in_layers.2.weight"][0] for k in level_starts][::-1]
    attends = [f"output_blocks.{k}.1.qkv.weight" in shapes for k in level_starts][::-1]
    return LatentUNetSize(
        channels=first[1],
        width=first[0],
        multipliers=tuple(width // first[0] for width in widths),
        blocks=each - 1,
        attention=tuple(2**level for level, has in enumerate(attends) if has),
        heads=heads,
        groups=groups,
        semantic=shapes.get("label_emb.weight", (0, LatentUNetSize.semantic))[1],
    )


def encoder_size_of(shapes: Mapping[str, Shape], *, heads: int | None = 8) -> SliceEncoderSize:
    """Size of the semantic encoder with these shapes.

    heads : of which no shape tells; 8 are published. None takes 8, or the largest number below that
        divides the code: good enough to compare names and shapes, and a guess otherwise.

    Raises
    ------
    DataError : the shapes are of no possible encoder, or not of this number of heads.
    """
    scales = {
        match[1]: int(match[2])
        for match in (re.match(_FEATURES + r"(\d+)\.(\d+)\.layer_scale$", n) for n in shapes)
        if match
    }
    table = shapes.get(_TABLE)
    if not scales or table is None:
        raise DataError(f"the weights lack the slice network or {_TABLE}; save the encoder again")
    stages = sorted(scales, key=int)
    code = shapes[f"{_FEATURES}{stages[-1]}.0.layer_scale"][0]
    if heads is None:
        heads = _most(code, 8)
    elif code % heads:
        raise DataError(
            f"the encoder gives codes of {code} numbers, which the published {heads} heads do not "
            "divide, and no file tells how many it was trained with: open the model's own folder, "
            "or give its size"
        )
    last = {
        stage: max(_numbered(shapes, re.escape(_FEATURES + stage) + r"\.(\d+)\.layer_scale"))
        for stage in stages
    }
    return SliceEncoderSize(
        widths=tuple(shapes[f"{_FEATURES}{stage}.0.layer_scale"][0] for stage in stages),
        depths=tuple(last[stage] + 1 for stage in stages),
        slices=table[0] * table[1],
        heads=heads,
    )


def filled(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """A module on the meta device with these tensors, in float32 and in evaluation mode.

    Raises
    ------
    DataError : a name is missing or unknown, a shape is another one, or a value is not finite.
    """
    from neurodiff.models.weights import fill

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{where}: {name} holds NaN or infinity; download or train it again")
    fill(module, tensors, dtype=torch.float32, where=where)
    return module.eval()


def _most(width: int, limit: int) -> int:
    """The largest number up to ``limit`` that divides ``width``."""
    return next(n for n in range(limit, 0, -1) if width % n == 0)


def _numbered(shapes: Mapping[str, Shape], pattern: str) -> set[int]:
    found = (re.fullmatch(pattern, name) for name in shapes)
    return {int(match[1]) for match in found if match}


def _all_prefixes() -> list[str]:
    return [prefix for prefixes in PREFIXES.values() for prefix in prefixes]


def _lightning_parts(names: Mapping[str, object]) -> dict[Part, list[str]]:
    """Prefixes that occur, by network; a prefix counts only if its names are that network's."""
    found: dict[Part, list[str]] = {}
    for part, prefixes in PREFIXES.items():
        for prefix in prefixes:
            inner = {
                n.removeprefix(prefix).removeprefix("module."): 0
                for n in names
                if n.startswith(prefix)
            }
            if inner and part_of(inner) == part:
                found.setdefault(part, []).append(prefix)
    return found


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
