"""MONAI's ``AutoencoderKL`` for brain volumes: built by size, its old names, decoding in slabs.

LDAE, BrLP and MONAI's brain bundle share one network.  Their files carry the names of MONAI
Generative, of which the convolutions after upsampling are called otherwise today.

:func:`decode_in_slabs` decodes one scan in a stated memory.  Convolutions run slab by slab along
the first axis, with a plane of their neighbours; group norms take their statistics over the whole
volume first, so the slabs leave no seam, and the residual path is written over what it came from.

Sources: Pinaya et al. 2022, Brain imaging generation with latent diffusion models; Rombach et al.
2022; Wu and He 2018 (group norm).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from neurodiff.core.errors import DataError, UsageError
from neurodiff.models.ldae_sizes import AutoencoderSize

Shape = tuple[int, ...]
#: Of a slab's input and output, how often they are there: normalised, padded, and in the layout of
#: the convolution. Measured on a CPU (benchmarks/ldae_decode.py), with planes of its neighbours.
_COPIES, _NEIGHBOURS = 3, 3
_OLD_UPSAMPLING = re.compile(r"^(decoder\.blocks\.\d+)\.conv\.conv\.(weight|bias)$")


def autoencoder(size: AutoencoderSize | None = None) -> Any:
    """A new ``AutoencoderKL`` of MONAI, with random weights."""
    from monai.networks.nets import AutoencoderKL

    size = size or AutoencoderSize()
    if size.patch == 1 and size.template is None:
        return AutoencoderKL(**size.config())
    network = _own_class()(**size.config())
    network.patch = size.patch
    if size.template is not None:
        network.register_buffer("template", torch.zeros(1, size.image_channels, *size.template))
        network.register_buffer("template_sd", torch.ones(()))
    return network


def entering(network: Any, x: Float[Tensor, "n c i j k"]) -> Tensor:
    """What the first convolution reads of volumes: differences from the template, in blocks.

    Raises
    ------
    UsageError : volumes of another grid than the template's.
    """
    template = template_of(network)
    if template is not None:
        if x.shape[2:] != template.shape[2:]:
            raise UsageError(
                f"volumes have axes {tuple(x.shape[2:])}; this autoencoder holds a mean scan of "
                f"{tuple(template.shape[2:])} and reads no other grid"
            )
        x = (x - template) / network.template_sd
    patch = patch_of(network)
    return x if patch == 1 else folded(x, patch)


def leaving(network: Any, y: Tensor) -> Float[Tensor, "n c i j k"]:
    """Volumes of what the last convolution wrote; the inverse of `entering`."""
    patch, template = patch_of(network), template_of(network)
    y = y if patch == 1 else unfolded(y, patch)
    if template is None:
        return y
    if y.shape[2:] != template.shape[2:]:
        raise UsageError(
            f"latents decode to axes {tuple(y.shape[2:])}; this autoencoder holds a mean scan of "
            f"{tuple(template.shape[2:])} and writes no other grid"
        )
    return y * network.template_sd + template


@torch.no_grad()
def set_template(network: Any, mean: Float[Tensor, "c i j k"], sd: float) -> None:
    """The mean scan and the SD of scans about it, into a network that was made for one.

    Raises
    ------
    UsageError : the network holds no template, or one of another shape.
    DataError : an SD that is not above 0: the scans are all the same.
    """
    template = template_of(network)
    if template is None or template.shape[1:] != mean.shape:
        held = None if template is None else tuple(template.shape[1:])
        raise UsageError(
            f"the mean scan is {tuple(mean.shape)}; this autoencoder has place for {held}: set "
            "size.autoencoder.template to the grid"
        )
    if not sd > 0:
        raise DataError("the training scans are all the same; there is no difference to learn")
    template.copy_(mean[None])
    network.template_sd.fill_(sd)


def folded(x: Float[Tensor, "n c i j k"], patch: int) -> Float[Tensor, "n d x y z"]:
    """Blocks of ``patch`` voxels along each axis as channels; nothing is lost.

    Examples
    --------
    >>> folded(torch.zeros(1, 1, 4, 8, 4), 2).shape
    torch.Size([1, 8, 2, 4, 2])
    """
    n, c, i, j, k = x.shape
    p = patch
    x = x.reshape(n, c, i // p, p, j // p, p, k // p, p)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * p**3, i // p, j // p, k // p)


def unfolded(x: Float[Tensor, "n d x y z"], patch: int) -> Float[Tensor, "n c i j k"]:
    """The inverse of `folded`."""
    n, d, i, j, k = x.shape
    p = patch
    x = x.reshape(n, d // p**3, p, p, p, i, j, k).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, d // p**3, i * p, j * p, k * p)


def patch_of(network: Any) -> int:
    """Voxels along an axis that this autoencoder reads as channels; 1 for MONAI's own."""
    return int(getattr(network, "patch", 1))


def template_of(network: Any) -> Tensor | None:
    """The mean scan (1, c, i, j, k) that this autoencoder holds; None for MONAI's own."""
    return getattr(network, "template", None)


def with_ends(size: AutoencoderSize, network: Any) -> AutoencoderSize:
    """A size told from shapes, with what they do not tell: blocks of voxels, and a template."""
    patch, template = patch_of(network), template_of(network)
    axes = None if template is None else tuple(template.shape[2:])
    channels = size.image_channels // patch**3
    return replace(size, patch=patch, template=axes, image_channels=channels)


@functools.cache
def _own_class() -> type:
    from monai.networks.nets import AutoencoderKL

    class EndedAutoencoderKL(AutoencoderKL):
        """MONAI's network with ends of its own, under the same names."""

        patch: int = 1

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().encode(entering(self, x))

        def decode(self, z: Tensor) -> Tensor:
            return leaving(self, super().decode(z))

    return EndedAutoencoderKL


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an autoencoder under today's names, from old or today's ones; none is copied."""
    return {_OLD_UPSAMPLING.sub(r"\1.postconv.conv.\2", n): t for n, t in tensors.items()}


def old_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of MONAI Generative, LDAE and BrLP; inverse of :func:`current_names`."""
    return {name.replace(".postconv.conv.", ".conv.conv."): t for name, t in tensors.items()}


def autoencoder_size_of(
    shapes: Mapping[str, Shape], *, groups: int | None = None, eps: float = 1e-6
) -> AutoencoderSize:
    """Size of the autoencoder with these tensors, under old or today's names.

    Parameters
    ----------
    groups : of the norms, of which no shape tells; by default 32, or the largest number up to 32
        that divides every width. Nor does one tell a patch from channels: it is taken for 1.

    Raises
    ------
    DataError : the shapes are of no autoencoder of this kind.
    """
    try:
        first, latent = shapes["encoder.blocks.0.conv.weight"], shapes["quant_conv_mu.conv.weight"]
    except KeyError as error:
        raise DataError(
            f"the weights lack {error.args[0]!r}; expected an autoencoder of LDAE, BrLP or MONAI"
        ) from None
    if any(".attn." in name or ".to_q." in name for name in shapes):
        raise DataError("the autoencoder has attention; only those without are supported here")
    widths, blocks, at = [first[0]], [0], 1
    while f"encoder.blocks.{at}.norm1.weight" in shapes or (
        f"encoder.blocks.{at}.conv.conv.weight" in shapes
    ):
        residual = shapes.get(f"encoder.blocks.{at}.conv1.conv.weight")
        if residual is None:  # a halving: the next level begins
            widths.append(widths[-1])
            blocks.append(0)
        else:
            widths[-1] = residual[0]
            blocks[-1] += 1
        at += 1
    ends = f"encoder.blocks.{at}.weight" in shapes  # the last norm: no block is missing
    if len(set(blocks)) != 1 or blocks[0] < 1 or len(first) != 5 or not ends:
        raise DataError(
            f"the weights have {blocks} residual blocks a level; expected the same number, in 3D"
        )
    if groups is None:
        groups = next(g for g in range(32, 0, -1) if all(w % g == 0 for w in widths))
    return AutoencoderSize(
        widths=tuple(widths),
        blocks=blocks[0],
        latent_channels=latent[0],
        image_channels=first[1],
        groups=groups,
        eps=eps,
    )


def check_latents(z: Tensor, channels: int) -> None:
    """Raise UsageError for latents of another shape than (n, ``channels``, i, j, k)."""
    if z.ndim != 5 or z.shape[1] != channels or min(z.shape) < 1:
        raise UsageError(
            f"latents have shape {tuple(z.shape)}; this autoencoder decodes (items, {channels}, "
            "i, j, k)"
        )


def encode(
    network: Any, volume: Float[Tensor, "n c i j k"]
) -> tuple[Float[Tensor, "n l x y z"], Float[Tensor, "n l x y z"]]:
    """Mean and log-variance of the latent, which MONAI clamps to -30 and 20.

    Raises
    ------
    UsageError : another number of channels, or axes that the network cannot halve.
    """
    size = autoencoder_size_of({name: tuple(t.shape) for name, t in network.state_dict().items()})
    patch = patch_of(network)
    channels, factor = size.image_channels // patch**3, size.factor * patch
    if volume.shape[1] != channels:
        raise UsageError(
            f"volumes have {volume.shape[1]} channels; this autoencoder encodes {channels}"
        )
    if any(side < 1 or side % factor for side in volume.shape[2:]):
        raise UsageError(
            f"volumes have axes {tuple(volume.shape[2:])}; this autoencoder needs multiples of "
            f"{factor}: pad or crop them to the grid of the model"
        )
    h = network.encoder(entering(network, volume))
    return network.quant_conv_mu(h), network.quant_conv_log_sigma(h).clamp(-30.0, 20.0)


# ------------------------------------------------------------------------------- slabs


@torch.no_grad()
def decode_in_slabs(
    network: Any, z: Float[Tensor, "n l x y z"], *, memory: float | None = None, planes: int = 4
) -> Float[Tensor, "n c i j k"]:
    """What ``network.decode(z)`` gives, to rounding, in less memory.

    Parameters
    ----------
    network : ``AutoencoderKL``; it is not changed.
    z : latents, not scaled.
    memory : bytes above the weights that the decoding may take; chooses ``planes``.
    planes : planes of a feature map that a convolution makes at once.

    Raises
    ------
    UsageError : latents of other channels, ``planes`` below 1, or a ``memory`` in which the volume
        cannot be decoded; it says how much is needed.
    """
    check_latents(z, network.latent_channels)
    if planes < 1:
        raise UsageError(f"planes is {planes}; expected at least 1")
    if memory is not None:
        planes = planes_within(network, tuple(z.shape), memory, bytes_each=z.element_size())
    from monai.networks.blocks import Convolution, Upsample
    from monai.networks.nets.autoencoderkl import AEKLResBlock

    x, pending = network.post_quant_conv(z), None
    for block in network.decoder.blocks:
        if isinstance(block, AEKLResBlock):
            x = _residual(x, block, planes)
        elif isinstance(block, torch.nn.GroupNorm):  # only the last: no activation after it
            pending = _normalised(x, block, planes)
        elif isinstance(block, Upsample) and hasattr(block, "postconv"):
            after: Any = block.postconv
            x = _upsampled(x, after.conv, planes)
        elif isinstance(block, Convolution):
            x = _convolved(x, block.conv, planes, pending)
            pending = None
        else:  # attention, at the coarsest level
            x = block(x)
    return leaving(network, x)


def decode_memory(network: Any, latent: Shape, *, planes: int = 4, bytes_each: int = 4) -> int:
    """Bytes that :func:`decode_in_slabs` needs above weights and latents; an upper estimate.

    latent : (n, l, x, y, z).
    """
    kept, plane = _memory(network, latent, bytes_each)
    return kept + plane * (planes + _NEIGHBOURS)


def planes_within(network: Any, latent: Shape, memory: float, *, bytes_each: int = 4) -> int:
    """Most planes of a slab with which decoding stays within ``memory`` bytes.

    Raises
    ------
    UsageError : not even one plane fits.
    """
    kept, plane = _memory(network, latent, bytes_each)
    planes = int((memory - kept) // plane) - _NEIGHBOURS
    if planes < 1:
        needed = kept + (1 + _NEIGHBOURS) * plane
        raise UsageError(
            f"decoding latents of shape {latent} takes at least {needed / 1e9:.3g} GB, and "
            f"{memory / 1e9:.3g} GB are allowed; allow more, decode in half precision or fewer "
            "items at once"
        )
    return min(planes, latent[2] * 2 ** (_levels(network) - 1))


def _levels(network: Any) -> int:
    return len(network.decoder.channels)


def _memory(network: Any, latent: Shape, bytes_each: int) -> tuple[int, int]:
    """Bytes of the feature maps held at once at the worst place, and of one plane's work there."""
    n, _, *sides = latent
    widths = list(reversed(network.decoder.channels))
    kept = plane = 0
    inside = widths[0]
    for level, width in enumerate(widths):
        voxels = n * bytes_each
        for side in sides:
            voxels *= side * 2**level
        if level:  # the coarser map is there until the finer one is whole
            kept = max(kept, voxels * inside + voxels * inside // 8)
        kept = max(kept, voxels * (inside + width))
        per_plane = voxels // (sides[0] * 2**level)
        plane = max(plane, per_plane * (inside + max(inside, width)) * _COPIES)
        inside = width
    return kept, plane


Prologue = Callable[[Tensor], Tensor]


def _residual(x: Tensor, block: Any, planes: int) -> Tensor:
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), written over x where the widths allow it."""
    outside, depth = block.out_channels, x.shape[2]
    first, shortcut = _activated(x, block.norm1, planes), block.nin_shortcut
    changes = not isinstance(shortcut, torch.nn.Identity)
    grows = outside > x.shape[1]
    h = x.new_zeros(len(x), outside, *x.shape[2:])
    kept = x.new_zeros(h.shape) if grows else x[:, :outside]
    before = x[:, :, :0]  # the plane below this slab, as it was before it was written over
    for a in range(0, depth, planes):
        b = min(a + planes, depth)
        given = torch.cat([before, x[:, :, a : min(b + 1, depth)]], dim=2)
        before = x[:, :, b - 1 : b].clone()
        h[:, :, a:b] = _slab(first(given), block.conv1.conv, a == 0, b == depth)
        if changes:
            kept[:, :, a:b] = shortcut(x[:, :, a:b])
    second = _activated(h, block.norm2, planes)
    for a in range(0, depth, planes):
        b = min(a + planes, depth)
        given = second(h[:, :, max(a - 1, 0) : b + 1])
        kept[:, :, a:b] += _slab(given, block.conv2.conv, a == 0, b == depth)
    return kept


def _upsampled(x: Tensor, convolution: Any, planes: int) -> Tensor:
    """Each voxel eight times, then a convolution, of which only a slab is ever there twice."""
    n, _, depth, *others = x.shape
    sides = (2 * depth, *(2 * side for side in others))
    out = x.new_zeros(n, convolution.out_channels, *sides)
    step = max(planes // 2, 1)
    for a in range(0, depth, step):
        b = min(a + step, depth)
        low, high = max(a - 1, 0), min(b + 1, depth)
        fine = F.interpolate(x[:, :, low:high], scale_factor=2.0)
        fine = fine[:, :, a - low : fine.shape[2] - (high - b)]  # one plane on either side
        out[:, :, 2 * a : 2 * b] = _slab(fine, convolution, a == 0, b == depth)
    return out


def _convolved(x: Tensor, convolution: Any, planes: int, before: Prologue | None) -> Tensor:
    out, depth = None, x.shape[2]
    for a in range(0, depth, planes):
        b = min(a + planes, depth)
        given = x[:, :, max(a - 1, 0) : b + 1]
        part = _slab(before(given) if before else given, convolution, a == 0, b == depth)
        if out is None:
            out = part.new_zeros(*part.shape[:2], *x.shape[2:])
        out[:, :, a:b] = part
    assert out is not None
    return out


def _slab(given: Tensor, convolution: Any, first: bool, last: bool) -> Tensor:
    """A 3 x 3 x 3 convolution of planes with one neighbour on either side, zeros at the ends."""
    padded = F.pad(given, (0, 0, 0, 0, int(first), int(last))) if first or last else given
    return F.conv3d(padded, convolution.weight, convolution.bias, padding=(0, 1, 1))


def _activated(x: Tensor, norm: Any, planes: int) -> Prologue:
    """Norm and SiLU of slabs of ``x``."""
    normalise = _normalised(x, norm, planes)
    return lambda slab: F.silu(normalise(slab), inplace=True)


def _normalised(x: Tensor, norm: Any, planes: int) -> Prologue:
    """The group norm of slabs of ``x``, with the mean and variance of the whole."""
    n, channels, depth = x.shape[:3]
    groups, count = norm.num_groups, 0
    mean, power = (torch.zeros(n, groups, dtype=torch.float64, device=x.device) for _ in range(2))
    for a in range(0, depth, planes):
        slab = x[:, :, a : a + planes].reshape(n, groups, -1).float()
        more = slab.shape[2]
        variance, centre = torch.var_mean(slab, dim=2, correction=0)
        far = centre.double() - mean
        power = power + variance.double() * more + far**2 * (count * more / (count + more))
        count += more
        mean = mean + far * (more / count)
    scale = (power / count + norm.eps).rsqrt().repeat_interleave(channels // groups, dim=1)
    scale = scale * norm.weight.double()
    shift = norm.bias.double() - mean.repeat_interleave(channels // groups, dim=1) * scale
    scale, shift = (v.to(x.dtype)[:, :, None, None, None] for v in (scale, shift))
    return lambda slab: torch.addcmul(shift, slab, scale)
