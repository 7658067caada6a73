"""The dual-guided U-Net of Versatile Diffusion: noise of a latent, from text and image tokens.

Residual blocks are those of the image U-Net, a ``UNet2DConditionModel`` of diffusers.  At each
place of a spatial transformer stand two, one that attends to image tokens (the image U-Net's own)
and one that attends to text tokens (the text U-Net's), and the hidden state h becomes

    h + (1 - mix) (T_image(h) - h) + mix (T_text(h) - h),

``mix`` being the share of the text, given with every call.  The dual block of diffusers takes
both conditions in one tensor, holds the share as state and does not run in current versions, so
this one is our own.  Parameters are named as in diffusers, with ``.vision`` and ``.text`` after the
place of a transformer; :mod:`neurodiff.models.versatile_diffusion_names` has the published names.

Sources: Xu et al. 2023, Versatile Diffusion, ICCV; Ozcelik and VanRullen 2023, Brain-Diffuser,
Scientific Reports 13 (the dual guidance; its ``mix_str`` 0.4 is our ``mix``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Known = dict[nn.Module, tuple[Tensor, Tensor]]  # cross-attention -> its keys and values


@dataclass(frozen=True, kw_only=True)
class DualUNetSize:
    """Sizes of :class:`DualGuidedUNet`; :data:`PUBLISHED` are those of the released weights.

    Parameters
    ----------
    channels : of the levels, the finest first; multiples of ``groups`` and of ``heads``.
    layers : residual blocks (with a transformer pair each) a level on the way down, and one more on
        the way up.
    heads : of every attention.
    text_width, image_width : numbers in a text token and in an image token.
    latent_channels : of the latents that are denoised.
    groups : of every group normalisation.
    attention : which levels have transformers; by default all but the coarsest.  The middle has.
    """

    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    heads: int = 4
    text_width: int = 384
    image_width: int = 128
    latent_channels: int = 4
    groups: int = 32
    attention: tuple[bool, ...] | None = None

    def __post_init__(self):
        if not self.channels or self.layers < 1:
            raise ValueError(
                f"channels {self.channels} and layers {self.layers}: give some of each"
            )
        for width in self.channels:
            if width % self.groups or width % self.heads:
                raise ValueError(
                    f"{width} channels are no multiple of {self.groups} groups and "
                    f"{self.heads} heads"
                )
        if self.attention is not None and len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention names {len(self.attention)} levels and channels {len(self.channels)}"
            )

    @property
    def levels_with_attention(self) -> tuple[bool, ...]:
        """Whether each level has transformers, the finest first."""
        return self.attention or (True,) * (len(self.channels) - 1) + (False,)

    def config(self) -> dict[str, Any]:
        """What diffusers' ``UNet2DConditionModel`` is built from (its ``attention_head_dim`` is a
        number of heads)."""
        has = self.levels_with_attention
        return {
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "attention_head_dim": self.heads,
            "cross_attention_dim": self.image_width,
            "norm_num_groups": self.groups,
            "down_block_types": tuple("CrossAttn" * own + "DownBlock2D" for own in has),
            "up_block_types": tuple("CrossAttn" * own + "UpBlock2D" for own in has[::-1]),
        }


PUBLISHED = DualUNetSize(
    channels=(320, 640, 1280, 1280), layers=2, heads=8, text_width=768, image_width=768
)


class Tokens(NamedTuple):
    """The two conditions of a call, as tokens (n, count, width) or as what was made of them."""

    text: Tensor | Known
    image: Tensor | Known
    mix: float


class DualGuidedUNet(nn.Module):
    """Latents, time and two sets of tokens to noise.

    Examples
    --------
    >>> import torch
    >>> net = DualGuidedUNet(DualUNetSize(text_width=6, image_width=5))
    >>> text, image = torch.zeros(2, 7, 6), torch.zeros(2, 3, 5)
    >>> net(torch.zeros(2, 4, 8, 8), torch.tensor([1, 721]), text, image, 0.4).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(self, size: DualUNetSize | None = None):
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.size = size or DualUNetSize()
        unet: Any = UNet2DConditionModel(**self.size.config())
        self.unet = unet
        for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
            places = getattr(block, "attentions", [])
            for i, vision in enumerate(places):
                text = type(vision)(
                    **{**vision.config, "cross_attention_dim": self.size.text_width}
                )
                places[i] = DualTransformer(vision, text)

    def forward(
        self,
        x: Float[Tensor, "n channels h w"],
        t: Tensor,
        text_tokens: Float[Tensor, "n texts text_width"],
        image_tokens: Float[Tensor, "n images image_width"],
        mix: float,
    ) -> Float[Tensor, "n channels h w"]:
        """Noise in ``x``.

        Parameters
        ----------
        x : latents, their sides multiples of 2 ** (levels - 1).
        t : step of the path, one for all or one an item.
        mix : share of the text, 0 to 1.

        Raises
        ------
        ValueError : tokens of another width, or ``mix`` outside of 0 to 1.
        """
        self._check(text_tokens, image_tokens, mix)
        return self._run(x, t, Tokens(text_tokens, image_tokens, mix))

    def prepare(self, cond: tuple[Tensor, Tensor, float]) -> Tokens:
        """Keys and values of (text tokens, image tokens, mix): they depend on neither x nor t.

        One row of tokens serves a batch of any length.
        """
        text, image, mix = cond
        self._check(text, image, mix)
        known: tuple[Known, Known] = {}, {}
        for pair in self.pairs():
            for transformer, tokens, store in zip(
                (pair.text, pair.vision), (text, image), known, strict=True
            ):
                for block in transformer.transformer_blocks:
                    store[block.attn2] = _keys_and_values(block.attn2, tokens)
        return Tokens(*known, mix)

    def step(self, x: Tensor, t: Tensor, prepared: Tokens) -> Tensor:
        """:meth:`forward` with what :meth:`prepare` made; the core's denoiser calls the two."""
        return self._run(x, t, prepared)

    def pairs(self) -> "list[DualTransformer]":
        """The transformer pairs, in the order of the modules."""
        return [module for module in self.modules() if isinstance(module, DualTransformer)]

    def _run(self, x: Tensor, t: Tensor, tokens: Tokens) -> Tensor:
        return self.unet(x, t, encoder_hidden_states=tokens, return_dict=False)[0]

    def _check(self, text: Tensor, image: Tensor, mix: float) -> None:
        if not 0 <= mix <= 1:
            raise ValueError(f"mix is {mix}; it is the share of the text, from 0 to 1")
        for name, tokens, width in (
            ("text", text, self.size.text_width),
            ("image", image, self.size.image_width),
        ):
            if tokens.ndim != 3 or tokens.shape[-1] != width:
                raise ValueError(
                    f"{name} tokens have the shape {tuple(tokens.shape)}; this network reads "
                    f"(n, count, {width})"
                )


class DualTransformer(nn.Module):
    """Two spatial transformers at one place of a U-Net, mixed; called as diffusers' blocks do."""

    def __init__(self, vision: Any, text: Any):
        super().__init__()
        self.vision, self.text = vision, text
        for transformer in (vision, text):
            for block in transformer.transformer_blocks:
                block.attn2.set_processor(_CrossAttention())

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tokens, **_: Any
    ) -> tuple[Tensor]:
        """The mixed hidden state (n, c, h, w), as a tuple of one."""
        h, (text, image, mix) = hidden_states, encoder_hidden_states
        out = h
        if mix < 1:  # a transformer with no share is not computed
            seen = self.vision(h, encoder_hidden_states=image, return_dict=False)[0]
            out = out + (1 - mix) * (seen - h)
        if mix > 0:
            read = self.text(h, encoder_hidden_states=text, return_dict=False)[0]
            out = out + mix * (read - h)
        return (out,)


@dataclass(frozen=True)
class KeyReport:
    """Names of two published U-Nets beside those of a network, under the network's names.

    ``left_out`` are those of the text U-Net that no transformer has (they generate text), under
    their own names.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]
    left_out: list[str]

    def sentence(self) -> str:
        """Why the weights are not of this network; "" where they are."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.other_shape,
        }
        told = [
            f"{len(names)} {kind}: {', '.join(names[:3])}{' ...' * (len(names) > 3)}"
            for kind, names in kinds.items()
            if names
        ]
        return "; ".join(told)


def named_states(
    image: Mapping[str, Any], text: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Weights of an image U-Net and a text U-Net (diffusers' names) under the names of
    :class:`DualGuidedUNet`, and the names of the text U-Net that are left out."""
    ready = {"unet." + _inside(name, "vision"): tensor for name, tensor in image.items()}
    attending = [name for name in text if ".attentions." in name]
    ready |= {"unet." + _inside(name, "text"): text[name] for name in attending}
    return ready, [name for name in text if ".attentions." not in name]


def compare_states(
    network: DualGuidedUNet, image: Mapping[str, Tensor], text: Mapping[str, Tensor]
) -> KeyReport:
    """What :func:`load_states` would find; nothing is loaded."""
    ready, left_out = named_states(image, text)
    own = network.state_dict()
    both = [name for name in own if name in ready]
    fits = {name: ready[name].shape == own[name].shape for name in both}
    return KeyReport(
        matched=[name for name in both if fits[name]],
        missing=[name for name in own if name not in ready],
        unexpected=[name for name in ready if name not in own],
        other_shape=[
            f"{name} {tuple(ready[name].shape)} instead of {tuple(own[name].shape)}"
            for name in both
            if not fits[name]
        ],
        left_out=left_out,
    )


def load_states(
    network: DualGuidedUNet, image: Mapping[str, Tensor], text: Mapping[str, Tensor]
) -> KeyReport:
    """Give a network the weights of a published pair of U-Nets, both under diffusers' names.

    Of the text U-Net only the transformers are used.  Tensors are taken as they are: a network on
    the meta device needs no second copy of any.

    Raises
    ------
    ValueError : names are missing or unknown, or tensors have other shapes.
    """
    report = compare_states(network, image, text)
    if problem := report.sentence():
        raise ValueError(f"these weights are not of this network: {problem}")
    network.load_state_dict(named_states(image, text)[0], assign=True)
    return report


class _CrossAttention:
    """Attention to tokens, or to the keys and values that were made of them before."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | Known,
        attention_mask: None = None,
        **_: Any,
    ) -> Tensor:
        if isinstance(encoder_hidden_states, dict):
            key, value = encoder_hidden_states[attn]
        else:
            key, value = _keys_and_values(attn, encoder_hidden_states)
        query = _by_head(attn, attn.to_q(hidden_states))
        rows = len(query)
        out = F.scaled_dot_product_attention(
            query, key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1)
        )
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return attn.to_out[1](out)


def _keys_and_values(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Each (n, heads, count, width of a head)."""
    return _by_head(attn, attn.to_k(tokens)), _by_head(attn, attn.to_v(tokens))


def _by_head(attn: Any, flat: Tensor) -> Tensor:
    return flat.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _inside(name: str, side: str) -> str:
    """``a.attentions.0.rest`` -> ``a.attentions.0.<side>.rest``; other names stay."""
    before, found, after = name.partition(".attentions.")
    if not found:
        return name
    place, rest = after.split(".", 1)
    return f"{before}.attentions.{place}.{side}.{rest}"
