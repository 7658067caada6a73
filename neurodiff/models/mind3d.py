"""The MinD-3D networks under their published names, at any size.

``state_dict`` keys: ``fmri_encoder.*``, ``fa_module.*``, ``prior_network.*``,
``shape_generator.transformer_model.*``, ``shape_generator.vqvae_model.*`` (reference mind3d.md,
section 6.1, layout A; the released file holds the prior twice, as ``diffusion_prior.net.*`` too).
"""

from __future__ import annotations

import torch
from torch import nn

from neurodiff.models.feature_aggregation import FeatureAggregation
from neurodiff.models.feature_bridge import FeatureBridge, FeatureBridgeSize
from neurodiff.models.fmri_encoder import FMRIEncoder, FMRIEncoderSize
from neurodiff.models.shape_decoder import ShapeDecoder, ShapeDecoderSize
from neurodiff.models.triplane_vq import TriplaneVQ, TriplaneVQSize


class ShapeGenerator(nn.Module):
    """Embedding -> codes -> planes -> occupancy."""

    def __init__(self, decoder: ShapeDecoderSize, tokenizer: TriplaneVQSize):
        super().__init__()
        self.transformer_model = ShapeDecoder(decoder)
        self.vqvae_model = TriplaneVQ(tokenizer)


class BrainNetworks(nn.Module):
    """Recording -> condition tokens -> embedding.

    ``patches`` are the encoder's kept positions; ``None`` keeps all, as published.  ``protocol`` is
    that of the bridge's norms and softmax.
    """

    def __init__(
        self,
        encoder: FMRIEncoderSize,
        bridge: FeatureBridgeSize,
        *,
        patches: torch.Tensor | None = None,
        aggregated_tokens: int = 128,
        protocol: str = "neurodiff-1",
    ):
        super().__init__()
        self.fmri_encoder = FMRIEncoder(encoder, patches=patches)
        self.fa_module = FeatureAggregation(
            encoder.pred_out,
            tokens=self.fmri_encoder.tokens,
            out_tokens=aggregated_tokens,
            width=bridge.dim,
        )
        self.prior_network = FeatureBridge(bridge, protocol=protocol)

    def tokens(self, pixels: torch.Tensor, frames: int) -> torch.Tensor:
        """(trials * frames, kept patches, pixels) -> (trials, frames * aggregated, dim)."""
        return self.tokens_of_embedded(self.fmri_encoder.embed_patches(pixels), frames)

    def tokens_of_embedded(self, embedded: torch.Tensor, frames: int) -> torch.Tensor:
        """As :meth:`tokens`, from embedded patches (trials * frames, kept patches, width)."""
        return self.fa_module(self.fmri_encoder.forward_embedded(embedded)[:, 1:], frames)
