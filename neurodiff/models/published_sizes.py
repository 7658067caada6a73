"""Names, shapes and sizes of the published MinD-3D checkpoint (reference mind3d.md, section 6.1).

``expected_shapes`` lists what a checkpoint of given sizes holds, ``sizes_of`` reads the sizes off
the shapes of one.  Two numbers leave no trace in any shape: the heads of the encoder and of the
shape decoder (both 16 as published); and what is left out of the file, such as the box's margin,
is taken as published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from neurodiff.diffusion.paths import cosine_betas
from neurodiff.models.feature_aggregation import ClipHeader, FeatureAggregation
from neurodiff.models.feature_bridge import FeatureBridge, FeatureBridgeSize
from neurodiff.models.fmri_encoder import FMRIEncoder, FMRIEncoderSize
from neurodiff.models.mind3d import ShapeGenerator
from neurodiff.models.shape_decoder import ShapeDecoderSize
from neurodiff.models.triplane_vq import TriplaneVQSize

Shape = tuple[int, ...]

PRIOR, PRIOR_TWIN = "prior_network.", "diffusion_prior.net."
SCHEDULE = "diffusion_prior.noise_scheduler."
ENCODER, AGGREGATION, HEADER = "fmri_encoder.", "fa_module.", "clip_header."
DECODER, TOKENIZER = "shape_generator.transformer_model.", "shape_generator.vqvae_model."
TIED = DECODER + "z_value_dec.weight"  # is DECODER + "emb.weight"
LOGIT_SCALE = "logit_scale"


@dataclass(frozen=True, kw_only=True)
class MinD3DSizes:
    """Sizes of all networks of MinD-3D; the defaults are the published ones."""

    encoder: FMRIEncoderSize = field(default_factory=FMRIEncoderSize)
    aggregated_tokens: int = 128
    bridge: FeatureBridgeSize = field(default_factory=FeatureBridgeSize)
    decoder: ShapeDecoderSize = field(default_factory=ShapeDecoderSize)
    tokenizer: TriplaneVQSize = field(default_factory=TriplaneVQSize)
    frames: int = 6

    def differences(self) -> list[str]:
        """What is not of the published size, one sentence each; heads are no part of it."""
        found, published = [], MinD3DSizes()
        for part in fields(self):
            ours, theirs = getattr(self, part.name), getattr(published, part.name)
            if isinstance(ours, int):
                pairs = [(part.name, ours, theirs)]
            else:
                pairs = [
                    (f"{part.name} {one.name}", getattr(ours, one.name), getattr(theirs, one.name))
                    for one in fields(ours)
                    if one.name not in ("num_heads", "unused_encoder_unet")
                ]
            found += [f"{name} {a} (published {b})" for name, a, b in pairs if a != b]
        return found

    def summary(self, most: int = 4) -> str:
        """The first ``most`` of :meth:`differences` in one line."""
        found = self.differences()
        more = f"; and {len(found) - most} more" if len(found) > most else ""
        return "; ".join(found[:most]) + more


def meta_modules(sizes: MinD3DSizes, *, stage1: bool = False) -> dict[str, nn.Module]:
    """Prefix -> network on the meta device: shapes without memory."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            ENCODER: FMRIEncoder(sizes.encoder),
            AGGREGATION: FeatureAggregation(
                sizes.encoder.pred_out,
                tokens=sizes.encoder.tokens,
                out_tokens=sizes.aggregated_tokens,
                width=sizes.bridge.dim,
            ),
            PRIOR: FeatureBridge(sizes.bridge),
        }
        if stage1:
            parts[HEADER] = ClipHeader(
                sizes.encoder.pred_out, frames=sizes.frames, width=sizes.bridge.dim
            )
        else:
            parts["shape_generator."] = ShapeGenerator(sizes.decoder, sizes.tokenizer)
    return parts


def expected_shapes(sizes: MinD3DSizes, *, stage1: bool = False) -> dict[str, Shape]:
    """Every name of a published checkpoint of these sizes, with its shape.

    The prior occurs twice, under ``prior_network`` and ``diffusion_prior.net``, and the tied
    matrix of the shape decoder under both of its names, as in the released file: 1,226 names.
    """
    shapes: dict[str, Shape] = {}
    for prefix, module in meta_modules(sizes, stage1=stage1).items():
        for name, tensor in module.state_dict().items():
            shapes[prefix + name] = tuple(tensor.shape)
            if prefix == PRIOR:
                shapes[PRIOR_TWIN + name] = tuple(tensor.shape)
    steps = (sizes.bridge.timesteps,)
    shapes |= {SCHEDULE + name: steps for name in schedule_tables(steps[0])}
    if stage1:
        shapes[LOGIT_SCALE] = ()
    return shapes


def schedule_tables(steps: int) -> dict[str, Tensor]:
    """The 13 tables that a published checkpoint keeps of its diffusion path, float32.

    Made in float64 and then rounded, as there.  ``p2_loss_weight`` is 1 everywhere: its exponent
    is 0 in the published settings.
    """
    betas = cosine_betas(steps)
    alphas = 1 - betas
    product = alphas.cumprod(0)
    before = torch.cat([product.new_ones(1), product[:-1]])
    variance = betas * (1 - before) / (1 - product)
    tables = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": product.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - product).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - product).log(),
        "sqrt_recip_alphas_cumprod": (1 / product).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / product - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - product),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - product),
        "p2_loss_weight": torch.ones_like(betas),
    }
    return {name: table.float() for name, table in tables.items()}


def sizes_of(
    shapes: Mapping[str, Shape], *, encoder_heads: int = 16, decoder_heads: int = 16
) -> MinD3DSizes:
    """Sizes of the networks whose parameters have these shapes; published where a name is absent.

    Raises
    ------
    ValueError : the shapes contradict every size (a width that no head count divides, a position
        table that is no square of patches).
    """
    prior = PRIOR if PRIOR + "learned_query" in shapes else PRIOR_TWIN
    return MinD3DSizes(
        encoder=_encoder(shapes, encoder_heads),
        aggregated_tokens=_side(shapes, AGGREGATION + "fc1.weight", 0, 128),
        bridge=_bridge(shapes, prior),
        decoder=_decoder(shapes, decoder_heads),
        tokenizer=_tokenizer(shapes),
        frames=_frames(shapes),
    )


def _side(shapes: Mapping[str, Shape], name: str, axis: int, published: int) -> int:
    """Length of one axis of a tensor, if it is there and has that axis."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else published


def _count(shapes: Mapping[str, Shape], pattern: str, published: int) -> int:
    """One more than the largest number that stands where ``pattern`` has its group."""
    found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(found) + 1 if found else published


def _encoder(shapes: Mapping[str, Shape], heads: int) -> FMRIEncoderSize:
    published = FMRIEncoderSize()
    patch = _side(shapes, ENCODER + "patch_embed.proj.weight", 2, published.patch_size)
    positions = _side(shapes, ENCODER + "pos_embed", 1, published.tokens + 1)
    grid = math.isqrt(max(positions - 1, 1))
    if grid**2 != positions - 1:
        raise ValueError(
            f"{ENCODER}pos_embed has {positions} rows; expected one and a square number of patches"
        )
    width = _side(shapes, ENCODER + "cls_token", 2, published.embed_dim)
    inner = _side(shapes, ENCODER + "blocks.0.mlp.fc1.weight", 0, 4 * width)
    return FMRIEncoderSize(
        image_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=_count(shapes, re.escape(ENCODER) + r"blocks\.(\d+)\.", published.depth),
        num_heads=heads,
        mlp_ratio=inner / width,
        pred_out=_side(shapes, ENCODER + "pred.weight", 0, published.pred_out),
    )


def _bridge(shapes: Mapping[str, Shape], prior: str) -> FeatureBridgeSize:
    published = FeatureBridgeSize()
    first = prior + "causal_transformer.layers.0."
    dim = _side(shapes, prior + "learned_query", 0, published.dim)
    head = _side(shapes, first + "0.null_kv", 1, published.dim_head)
    inner = _side(shapes, first + "0.to_q.weight", 0, published.heads * head)
    bias = prior + "causal_transformer.rel_pos_bias.relative_attention_bias.weight"
    pattern = re.escape(prior) + r"causal_transformer\.layers\.(\d+)\."
    return FeatureBridgeSize(
        dim=dim,
        depth=_count(shapes, pattern, published.depth),
        heads=max(inner // head, 1),
        dim_head=head,
        ff_mult=max(_side(shapes, first + "1.5.weight", 1, published.ff_mult * dim) // dim, 1),
        timesteps=_side(shapes, prior + "to_time_embeds.0.weight", 0, published.timesteps),
        rotary_dim=2 * _side(shapes, first + "0.rotary_emb.freqs", 0, published.rotary_dim // 2),
        bias_buckets=_side(shapes, bias, 0, published.bias_buckets),
        null_tokens=_side(shapes, prior + "null_fmri_encodings", 1, published.null_tokens),
    )


def _decoder(shapes: Mapping[str, Shape], heads: int) -> ShapeDecoderSize:
    published = ShapeDecoderSize()
    width = _side(shapes, DECODER + "emb.weight", 1, published.width)
    rows = _side(shapes, DECODER + "pos_emb.weight", 0, published.positions)
    inner = _side(
        shapes,
        DECODER + "blocks.0.adapter.x_fc1.weight",
        0,
        int(width * published.adapter_ratio),
    )
    return ShapeDecoderSize(
        vocab=_side(shapes, DECODER + "emb.weight", 0, published.vocab),
        width=width,
        heads=heads,
        layers=_count(shapes, re.escape(DECODER) + r"blocks\.(\d+)\.", published.layers),
        positions=rows,
        condition=_side(shapes, DECODER + "clip_project.weight", 1, published.condition),
        sequence=math.isqrt(max(rows - 1, 1)) ** 2,  # 1,027 positions serve 32 x 32 codes
        adapter_every=_adapter_every(shapes, published.adapter_every),
        adapter_ratio=inner / width,
    )


def _adapter_every(shapes: Mapping[str, Shape], published: int) -> int:
    pattern = re.escape(DECODER) + r"blocks\.(\d+)\.(adapter)?"
    found = [match for name in shapes if (match := re.match(pattern, name))]
    blocks = sorted({int(match[1]) for match in found if match[2]})
    if not found:
        return published
    if not blocks:
        return 0
    return blocks[1] - blocks[0] if len(blocks) > 1 else max(int(match[1]) for match in found) + 1


def _tokenizer(shapes: Mapping[str, Shape]) -> TriplaneVQSize:
    published = TriplaneVQSize()
    quantizer = TOKENIZER + "quantizer."
    halved = [
        name for name in shapes if re.fullmatch(re.escape(quantizer) + r"down\.\d+\.weight", name)
    ]
    stages = len(halved) - 1 if halved else published.stages
    rows = _side(shapes, DECODER + "pos_emb.weight", 0, ShapeDecoderSize().positions)
    grid = math.isqrt(max(rows - 1, 1))
    unet = quantizer + "unet_2d.down_convs."
    return TriplaneVQSize(
        hidden=_side(shapes, TOKENIZER + "decoder.fc_p.weight", 0, published.hidden),
        plane_resolution=grid * 2**stages,
        grid=grid,
        vocab=_side(shapes, quantizer + "quantizer.embedding.weight", 0, published.vocab),
        code_dim=_side(shapes, quantizer + "quantizer.embedding.weight", 1, published.code_dim),
        width=_side(shapes, quantizer + "project2.weight", 0, published.width),
        unet_depth=_count(shapes, re.escape(unet) + r"(\d+)\.", published.unet_depth),
        start_filters=_side(shapes, unet + "0.conv1.weight", 0, published.start_filters),
        blocks=_count(shapes, re.escape(TOKENIZER) + r"decoder\.blocks\.(\d+)\.", published.blocks),
    )


def _frames(shapes: Mapping[str, Shape]) -> int:
    joined = _side(shapes, HEADER + "fc1.weight", 1, 0)
    return joined // _side(shapes, HEADER + "ln1.weight", 0, 2048) if joined else 6
