"""The two published training stages of MinD-3D: what is learned and what is minimised.

    stage 1   encoder, aggregation, contrastive header, prior
              loss = contrastive(image features, header(class tokens)) + error of the prior's x0
    stage 2   the same without the header, and the adapters of a frozen shape decoder
              loss = cross-entropy of the codes + error of the prior's x0

Image features are those of CLIP ViT-B/32, averaged over rendered frames and not normalised; codes
are those of the shape tokenizer.  Both are inputs: neurodiff ships neither CLIP nor the published
shapes.  Rates, schedule and noise are the published ones (reference mind3d.md, section 2.2); what
training does otherwise than use is in ``neurodiff.pipelines.mind3d_protocol``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.core.training import TrainingSettings
from neurodiff.diffusion.paths import VariancePreserving, add_noise, cosine
from neurodiff.models.feature_aggregation import (
    ClipHeader,
    FeatureAggregation,
    contrastive_loss,
)
from neurodiff.models.feature_bridge import FeatureBridge
from neurodiff.models.fmri_encoder import FMRIEncoder
from neurodiff.models.published_sizes import MinD3DSizes
from neurodiff.models.shape_decoder import ShapeDecoder
from neurodiff.pipelines.mind3d_protocol import MinD3DProtocol, protocol_named

LOGIT_SCALE, LARGEST_SCALE = math.log(1 / 0.07), math.log(100)
DROP = 0.01  # dropout, attention dropout and stochastic depth of encoder and prior


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One published stage on stated hardware.

    stage : 1 or 2.  training : rates and steps; its ``learning_rate`` is that of the adapters in
    stage 2, and ``slow`` times it that of all that stage 1 trained.  condition_dropout : share of
    trials whose fMRI, and independently whose noisy embedding, the prior does not see.
    frozen_precision : number type in which the frozen shape decoder is held.
    gpus, gpu : what the dry run counts for.
    """

    name: str
    stage: Literal[1, 2]
    training: TrainingSettings
    protocol: Literal["mind3d-2024", "neurodiff-1"] = "mind3d-2024"
    sizes: MinD3DSizes = field(default_factory=MinD3DSizes)
    slow: float = 0.1
    condition_dropout: float = 0.2
    frozen_precision: Literal["float32", "bf16", "fp16"] = "bf16"
    gpus: int = 1
    gpu: str = "A100 80GB"
    items: int = 1300  # trials of one subject, for the epochs that the dry run tells
    augment: bool = True  # noise along random paths on the cortex, as published

    def __post_init__(self):
        how = self.training
        if self.gpus < 1 or how.batch_size % (self.gpus * how.accumulate):
            raise ValueError(
                f"batch_size {how.batch_size} cannot be shared by {self.gpus} cards x "
                f"{how.accumulate} parts"
            )


class StageNetworks(nn.Module):
    """The networks of a stage under their published names; ``forward`` gives the named losses.

    ``path`` is the diffusion path, the published cosine one if not given.
    """

    def __init__(self, recipe: StageRecipe, path: VariancePreserving | None = None):
        super().__init__()
        sizes, protocol = recipe.sizes, protocol_named(recipe.protocol)
        self.stage, self.frames = recipe.stage, sizes.frames
        self.protocol: MinD3DProtocol = protocol
        self.fmri_encoder = FMRIEncoder(sizes.encoder, drop=DROP, attn_drop=DROP, drop_path=DROP)
        self.fa_module = FeatureAggregation(
            sizes.encoder.pred_out,
            tokens=sizes.encoder.tokens,
            out_tokens=sizes.aggregated_tokens,
            width=sizes.bridge.dim,
        )
        self.prior_network = FeatureBridge(
            sizes.bridge, protocol=protocol.bridge, attn_drop=DROP, ff_drop=DROP
        )
        self.prior_network.null_fmri_encodings.requires_grad_(False)  # nothing reads it
        self.path = cosine(sizes.bridge.timesteps) if path is None else path
        if recipe.stage == 1:
            self.clip_header = ClipHeader(
                sizes.encoder.pred_out, frames=sizes.frames, width=sizes.bridge.dim
            )
            self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        else:
            self.shape_generator = nn.Module()
            self.shape_generator.transformer_model = decoder = ShapeDecoder(sizes.decoder)
            decoder.requires_grad_(False)
            for parameter in decoder.adapter_parameters():
                parameter.requires_grad_(True)

    def forward(
        self,
        maps: Float[Tensor, "trials frames h w"],
        image: Float[Tensor, "trials d"],
        codes: Int[Tensor, "trials codes"] | None,
        noise: StageNoise,
    ) -> dict[str, Tensor]:
        """Named terms; "loss" is minimised.

        Parameters
        ----------
        maps : the frames that are read, as they are stored.
        image : image features of any length.
        codes : of the shapes, in stage 2.
        """
        encoded = self.fmri_encoder.forward_all(maps.flatten(0, 1)[:, None])
        tokens = self.fa_module(encoded[:, 1:], self.frames)
        denoising, predicted = self.denoise(tokens, image, noise)
        if self.stage == 1:
            scale = self.logit_scale.clamp(0, LARGEST_SCALE).exp()
            header = self.clip_header(encoded[:, :1])
            normalise = self.protocol.name == "neurodiff-1"
            other = contrastive_loss(header, image, scale, normalise=normalise)
            return {"loss": denoising + other, "prior": denoising, "contrastive": other}
        assert codes is not None
        condition = self.protocol.condition_for(predicted, training=True)
        logits = self.shape_generator.transformer_model(codes, condition)
        other = F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())
        return {"loss": denoising + other, "prior": denoising, "codes": other}

    def denoise(
        self,
        tokens: Float[Tensor, "trials tokens d"],
        image: Float[Tensor, "trials d"],
        noise: StageNoise,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "trials d"]]:
        """Squared error of the one-step prediction, and the prediction at about length 1."""
        scale = math.sqrt(image.shape[-1])
        x0 = F.normalize(image, dim=-1) * scale
        x_t = add_noise(x0, noise.eps, self.path.levels(noise.t, like=x0))
        tokens = self.protocol.tokens_for(tokens, training=True)
        predicted = self.prior_network(
            x_t, noise.t, tokens, drop_fmri=noise.drop_fmri, drop_image=noise.drop_image
        )
        return F.mse_loss(predicted.float(), x0.float()), predicted / scale

    def rates(self, slow: float) -> tuple[list[nn.Parameter], list[float]]:
        """What is trained, and each one's factor of the learning rate."""
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        fast = [self.stage == 1 or n.startswith("shape_generator.") for n, _ in named]
        return [p for _, p in named], [1.0 if one else slow for one in fast]


@dataclass(frozen=True)
class StageNoise:
    """All that is drawn for a batch: steps, noise, and whose condition is hidden."""

    t: Int[Tensor, " trials"]
    eps: Float[Tensor, "trials d"]
    drop_fmri: Bool[Tensor, " trials"]
    drop_image: Bool[Tensor, " trials"]

    @classmethod
    def draw(
        cls, n: int, dim: int, steps: int, dropout: float, generator: torch.Generator
    ) -> StageNoise:
        t = torch.randint(steps, (n,), generator=generator)
        eps = torch.randn(n, dim, generator=generator)
        hidden = torch.rand(2, n, generator=generator) < dropout
        return cls(t, eps, hidden[0], hidden[1])

    def to(self, device: torch.device) -> StageNoise:
        return StageNoise(
            self.t.to(device),
            self.eps.to(device),
            self.drop_fmri.to(device),
            self.drop_image.to(device),
        )
