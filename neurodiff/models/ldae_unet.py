"""LDAE's latent U-Net, and the shift of it that a semantic code asks for.

:class:`LatentUNet` predicts the noise of a latent.  It is the U-Net of Dhariwal and Nichol with
three axes, of which the published network halves only the last two.  :class:`ShiftUNet` has the
same network as a trunk, and a second decoder that reads the trunk's features and a semantic code:
its output corrects the score (PDAE's gradient estimator).  Parameters have the published names.

Sources: Lozupone et al. 2026, LDAE, section on the gradient estimator; Zhang et al. 2022, PDAE,
NeurIPS; Dhariwal and Nichol 2021, NeurIPS.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neurodiff.core.errors import UsageError
from neurodiff.models.ldae_sizes import Axes, LatentUNetSize, from_plain


class LatentUNet(nn.Module):
    """Latents and time to noise.

    ``checkpointing`` (off) computes blocks again in the backward pass, which saves their memory.
    The final convolutions of blocks and network start at zero, so a new network answers zero.

    Examples
    --------
    >>> net = LatentUNet(LatentUNetSize(width=32, multipliers=(1, 2), attention=(2,)))
    >>> net(torch.zeros(2, 3, 4, 6, 4), torch.tensor([0, 999])).shape
    torch.Size([2, 3, 4, 6, 4])
    """

    def __init__(self, size: LatentUNetSize | None = None) -> None:
        super().__init__()
        self.size = size = size or LatentUNetSize()
        self.checkpointing = False
        self.time_embed = nn.Sequential(
            nn.Linear(size.width, size.embedding),
            nn.SiLU(),
            nn.Linear(size.embedding, size.embedding),
        )
        first = nn.Sequential(nn.Conv3d(size.channels, size.width, 3, padding=1))
        self.input_blocks = nn.ModuleList([first, *_way_down(size)])
        self.middle_block = _middle(size)
        self.output_blocks = nn.ModuleList(_way_up(size))
        self.out = _out(size)

    @classmethod
    def from_sizes(cls, **sizes: Any) -> "LatentUNet":
        """A network from the values of a JSON file, such as a bundle's."""
        return cls(from_plain(LatentUNetSize, sizes))

    def forward(
        self, x: Float[Tensor, "n channels i j k"], t: Tensor
    ) -> Float[Tensor, "n channels i j k"]:
        """Noise in ``x``.

        Parameters
        ----------
        x : noisy latents; axes multiples of ``size.multiples``.
        t : (n,) steps of the path from 0, whole or broken.

        Raises
        ------
        UsageError : latents of other channels or of indivisible axes.
        """
        skips, time = self.down(x, t)
        return self.up(skips, time)

    def down(self, x: Tensor, t: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of the way down, the finest first, and the embedded time."""
        self._check(x)
        time = self.time_embed(sinusoids(t, self.size.width).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = self._run(block, x, time)
            skips.append(x)
        return skips, time

    def up(self, skips: list[Tensor], time: Tensor) -> Tensor:
        """Noise from what :meth:`down` gave."""
        return self._decode((self.middle_block, self.output_blocks, self.out), skips, time)

    def _decode(self, parts: Any, skips: list[Tensor], time: Tensor, *code: Tensor) -> Tensor:
        middle, blocks, out = parts
        h = self._run(middle, skips[-1], time, *code)
        for block, skip in zip(blocks, reversed(skips), strict=True):
            h = self._run(block, torch.cat([h, skip], dim=1), time, *code)
        return out(h)

    def _run(self, block: nn.Module, x: Tensor, *embedded: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(_through, block, x, *embedded, use_reentrant=False)
        return _through(block, x, *embedded)

    def _check(self, x: Tensor) -> None:
        size = self.size
        if x.ndim != 5 or x.shape[1] != size.channels:
            raise UsageError(
                f"latents have shape {tuple(x.shape)}; this network reads (items, "
                f"{size.channels}, i, j, k): give it latents of its own autoencoder"
            )
        if any(side < 1 or side % m for side, m in zip(x.shape[2:], size.multiples, strict=True)):
            raise UsageError(
                f"latents have axes {tuple(x.shape[2:])}; this network halves them and needs "
                f"multiples of {size.multiples}: pad the image before it is encoded"
            )


class ShiftUNet(LatentUNet):
    """A trunk that predicts noise, and a shift of its score that depends on a semantic code.

    Both decoders read the same features, so one call gives both and the way down is computed once.
    In training the trunk stays as stage 2 left it: :meth:`freeze_trunk`.
    """

    def __init__(self, size: LatentUNetSize | None = None) -> None:
        super().__init__(size)
        size = self.size
        self.frozen_trunk = False
        self.label_emb = nn.Linear(size.semantic, size.embedding)
        self.shift_middle_block = _middle(size, coded=True)
        self.shift_output_blocks = nn.ModuleList(_way_up(size, coded=True))
        self.shift_out = _out(size)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "n channels i j k"],
        t: Tensor,
        code: Float[Tensor, "n semantic"],
    ) -> tuple[Float[Tensor, "n channels i j k"], Float[Tensor, "n channels i j k"]]:
        """Noise in ``x`` without the code, and the shift G: with the code, noise is eps - sigma G.

        Raises
        ------
        UsageError : as `LatentUNet`, or codes of another length or number.
        """
        if code.ndim != 2 or code.shape != (len(x), self.size.semantic):
            raise UsageError(
                f"semantic codes have shape {tuple(code.shape)}; expected "
                f"({len(x)}, {self.size.semantic}), one for each latent"
            )
        skips, time = self.down(x, t)
        return self.up(skips, time), self.shift(skips, time, code)

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """The trunk alone, which knows of no code."""
        return super().forward(x, t)

    def shift(self, skips: list[Tensor], time: Tensor, code: Tensor) -> Tensor:
        """The shift G, from what :meth:`down` gave."""
        parts = (self.shift_middle_block, self.shift_output_blocks, self.shift_out)
        return self._decode(parts, skips, time, self.label_emb(code))

    def trunk(self) -> list[nn.Module]:
        """The modules of stage 2."""
        return [getattr(self, name) for name in TRUNK]

    def freeze_trunk(self) -> "ShiftUNet":
        """No gradients for the trunk, and none of its dropout, in training too."""
        self.frozen_trunk = True
        for module in self.trunk():
            module.requires_grad_(False).eval()
        return self

    def start_from(self, trunk: LatentUNet, *, shift_too: bool = False) -> "ShiftUNet":
        """Take over the weights of a trained trunk; the first shift stays zero.

        shift_too : the shift's blocks start as the trunk's, all but the last layer. At random, half
            of their layers start at zero and let no code through for hundreds of steps.
        """
        own = self.state_dict() | trunk.state_dict()
        if shift_too:
            last = "shift_out.2."
            for name in own:
                source = name.removeprefix("shift_")
                if name.startswith("shift_") and source in own and not name.startswith(last):
                    own[name] = own[source].clone()
        self.load_state_dict(own)
        return self

    @torch.no_grad()
    def even_codes(self, codes: Float[Tensor, "n semantic"]) -> "ShiftUNet":
        """Let the layer that reads codes see these as of mean 0 and SD 1, number by number.

        Its weights stay what they are in those units (Salimans and Kingma 2016, data-dependent
        start).
        """
        mean, sd = codes.mean(dim=0), codes.std(dim=0).clamp(min=1e-6)
        self.label_emb.weight.div_(sd)
        self.label_emb.bias.sub_(self.label_emb.weight @ mean)
        return self

    def train(self, mode: bool = True) -> "ShiftUNet":
        super().train(mode)
        if self.frozen_trunk:
            for module in self.trunk():
                module.eval()
        return self


#: Names of the parts that a :class:`ShiftUNet` has from stage 2.
TRUNK = ("time_embed", "input_blocks", "middle_block", "output_blocks", "out")


def sinusoids(t: Tensor, width: int, longest: float = 10_000.0) -> Float[Tensor, "n width"]:
    """Cosines, then sines, of ``t`` (n,) at frequencies from 1 to 1 / ``longest``; float32, as
    published, whatever the network computes in."""
    half = width // 2
    place = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(-math.log(longest) * place / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


# ------------------------------------------------------------------------------- blocks


class _Residual(nn.Module):
    """GN, SiLU, resize, convolution; GN scaled and moved by time and code, SiLU, convolution."""

    def __init__(
        self, inside: int, out: int, size: LatentUNetSize, *, resize: int = 0, coded: bool = False
    ) -> None:
        super().__init__()
        self.resize, self.stride = resize, size.stride
        self.in_layers = nn.Sequential(
            nn.GroupNorm(size.groups, inside), nn.SiLU(), nn.Conv3d(inside, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(size.embedding, 2 * out))
        if coded:
            self.emb_z_layers = nn.Sequential(nn.SiLU(), nn.Linear(size.embedding, 2 * out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(size.groups, out),
            nn.SiLU(),
            nn.Dropout(size.dropout),
            _zero(nn.Conv3d(out, out, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if inside == out else nn.Conv3d(inside, out, 1)

    def forward(self, x: Tensor, time: Tensor, code: Tensor | None = None) -> Tensor:
        norm, active, convolution = self.in_layers
        h = convolution(self._resized(active(norm(x))))
        norm, active, dropout, convolution = self.out_layers
        h = _modulated(norm(h), self.emb_layers(time))
        if code is not None:
            h = _modulated(h, self.emb_z_layers(code))
        return self.skip_connection(self._resized(x)) + convolution(dropout(active(h)))

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize < 0:
            return _averaged(x, self.stride)
        return F.interpolate(x, scale_factor=_floats(self.stride)) if self.resize else x


class _Attention(nn.Module):
    """Self-attention over all positions, with the scale on queries and keys alike."""

    def __init__(self, width: int, size: LatentUNetSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm = nn.GroupNorm(size.groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = _zero(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)  # (n, c, positions)
        n, width, length = flat.shape
        # heads lie outside of query, key and value, as in the first release of the U-Net
        parts = self.qkv(self.norm(flat)).reshape(n, self.heads, 3, width // self.heads, length)
        q, k, v = (part.mT for part in parts.unbind(2))  # (n, heads, positions, c / heads)
        h = F.scaled_dot_product_attention(q, k, v).mT.reshape(n, width, length)
        return x + self.proj_out(h).reshape(x.shape)


def _through(block: nn.Module, x: Tensor, time: Tensor, code: Tensor | None = None) -> Tensor:
    for layer in block:  # type: ignore[attr-defined]
        x = layer(x, time, code) if isinstance(layer, _Residual) else layer(x)
    return x


def _modulated(h: Tensor, embedded: Tensor) -> Tensor:
    scale, shift = embedded[:, :, None, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


def _averaged(x: Tensor, stride: Axes) -> Tensor:
    """Means of boxes; ``avg_pool3d`` is not there in half precision on a CPU."""
    i, j, k = stride
    boxes = x.unflatten(4, (-1, k)).unflatten(3, (-1, j)).unflatten(2, (-1, i))
    return boxes.mean(dim=(3, 5, 7))


def _levels(size: LatentUNetSize) -> list[tuple[int, bool]]:
    """Width of each level, and whether it has attention."""
    return [(m * size.width, 2**k in size.attention) for k, m in enumerate(size.multipliers)]


def _way_down(size: LatentUNetSize) -> list[nn.Sequential]:
    blocks, inside = [], size.width
    for level, (width, attends) in enumerate(_levels(size)):
        if level:
            blocks.append(nn.Sequential(_Residual(inside, inside, size, resize=-1)))
        for _ in range(size.blocks):
            layers: list[nn.Module] = [_Residual(inside, width, size)]
            layers += [_Attention(width, size)] if attends else []
            blocks.append(nn.Sequential(*layers))
            inside = width
    return blocks


def _skip_widths(size: LatentUNetSize) -> list[int]:
    """Widths of the features of the way down, the finest first."""
    widths = [size.width]
    for level, (width, _) in enumerate(_levels(size)):
        widths += ([widths[-1]] if level else []) + [width] * size.blocks
    return widths


def _middle(size: LatentUNetSize, *, coded: bool = False) -> nn.Sequential:
    width = _levels(size)[-1][0]
    first, last = (_Residual(width, width, size, coded=coded) for _ in range(2))
    return nn.Sequential(first, _Attention(width, size), last)


def _way_up(size: LatentUNetSize, *, coded: bool = False) -> list[nn.Sequential]:
    blocks, skips, levels = [], _skip_widths(size), _levels(size)
    inside = levels[-1][0]
    for level, (width, attends) in reversed(list(enumerate(levels))):
        for k in range(size.blocks + 1):
            layers: list[nn.Module] = [_Residual(inside + skips.pop(), width, size, coded=coded)]
            layers += [_Attention(width, size)] if attends else []
            if level and k == size.blocks:
                layers.append(_Residual(width, width, size, resize=1, coded=coded))
            blocks.append(nn.Sequential(*layers))
            inside = width
    return blocks


def _out(size: LatentUNetSize) -> nn.Sequential:
    last = _zero(nn.Conv3d(size.width, size.channels, 3, padding=1))
    return nn.Sequential(nn.GroupNorm(size.groups, size.width), nn.SiLU(), last)


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _floats(stride: Axes) -> list[float]:
    return [float(s) for s in stride]
