"""Published names of Versatile Diffusion's parameters, from the names that diffusers gives them.

The released ``.pth`` holds the U-Nets under ``...diffusion_model.unet_image`` and ``.unet_text``
with one ``time_embed`` for both, and the autoencoder as in latent diffusion.  These functions tell
the published name of each of our parameters, so that such a file can be read, and so that our
networks can be compared with published ones that are made from names.

Source: the parameter names of the released checkpoints (reference ``vd.unet``, ``vd.autokl``).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from neurodiff.models.versatile_diffusion import DualUNetSize

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "unet_image.input_blocks.0.0",
    "conv_norm_out": "unet_image.out.0",
    "conv_out": "unet_image.out.2",
}
_AUTOENCODER = (  # in this order; diffusers -> published
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".up.\1.block.\2."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)


def published_unet_name(name: str, size: DualUNetSize) -> str:
    """Published name of a parameter of :class:`DualGuidedUNet`.

    Examples
    --------
    >>> size = DualUNetSize(channels=(32, 64), layers=1)
    >>> published_unet_name("unet.up_blocks.1.attentions.0.text.proj_in.weight", size)
    'unet_text.output_blocks.2.1.proj_in.weight'
    >>> published_unet_name("unet.down_blocks.0.downsamplers.0.conv.bias", size)
    'unet_image.input_blocks.2.0.op.bias'
    """
    name = name.removeprefix("unet.")
    for ours, published in _OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return published + name.removeprefix(ours)
    side, _, rest = name.partition("_block")  # "down", "mid" or "up"
    found = re.fullmatch(r"s?\.?(\d*)\.?([a-z]+)\.(\d+)\.(.*)", rest)
    if found is None:
        raise ValueError(f"{name!r} is no parameter of a dual-guided U-Net")
    kind, rest = found[2], found[4]
    level, place, blocks = int(found[1] or 0), int(found[3]), size.layers + 1
    if kind == "attentions":
        network, rest = rest.split(".", 1)
        tower = {"vision": "unet_image", "text": "unet_text"}[network]
    else:
        tower = "unet_image"
    if kind == "resnets":
        part, rest = rest.split(".", 1)
        rest = f"{_RESIDUAL[part]}.{rest}"
    if side == "mid":
        return f"{tower}.middle_block.{1 if kind == 'attentions' else 2 * place}.{rest}"
    slot = 1 if kind == "attentions" else 0
    if side == "down":
        if kind == "downsamplers":
            at, rest = (level + 1) * blocks, rest.replace("conv.", "op.")
        else:
            at = 1 + level * blocks + place
        return f"{tower}.input_blocks.{at}.{slot}.{rest}"
    if kind == "upsamplers":
        slot, place = 1 + size.levels_with_attention[::-1][level], blocks - 1
    return f"{tower}.output_blocks.{level * blocks + place}.{slot}.{rest}"


def published_autoencoder_name(name: str, levels: int) -> str:
    """Published name of a parameter of diffusers' ``AutoencoderKL`` of ``levels`` levels.

    Published decoders number their levels from the finest.

    Examples
    --------
    >>> published_autoencoder_name("decoder.up_blocks.0.resnets.1.conv_shortcut.bias", levels=4)
    'decoder.up.3.block.1.nin_shortcut.bias'
    """
    for ours, published in _AUTOENCODER:
        name = re.sub(ours, published, name)
    return re.sub(
        r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name
    )


def from_published(own: Mapping[str, Tensor], names: Mapping[str, str], tensors: Mapping) -> dict:
    """Published tensors under our names, 1 x 1 convolutions as matrices where ours are such.

    Parameters
    ----------
    own : our ``state_dict``.
    names : published name of each of ours.
    tensors : by published name, the prefix of the file taken off.

    Raises
    ------
    ValueError : published names that are missing, or tensors of another shape.
    """
    if missing := [names[name] for name in own if names[name] not in tensors]:
        raise ValueError(f"{len(missing)} published names are missing: {_listed(missing)}")
    ready: dict[str, Any] = {}
    for name, tensor in own.items():
        value = tensors[names[name]]
        if value.ndim == 4 and tensor.ndim == 2 and value.shape[2:] == (1, 1):
            value = value.flatten(1)
        if value.shape != tensor.shape:
            raise ValueError(
                f"{names[name]} has shape {tuple(value.shape)}; this network needs "
                f"{tuple(tensor.shape)}"
            )
        ready[name] = value
    return ready


def _listed(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:3]) + " ..." * (len(first) > 3)
