"""Everything that can be set in a MinD-3D run; recipes in ``pipelines/*.yaml`` fill these in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from neurodiff.core.training import TrainingSettings
from neurodiff.models.feature_bridge import FeatureBridgeSize
from neurodiff.models.fmri_encoder import FMRIEncoderSize
from neurodiff.models.shape_decoder import ShapeDecoderSize
from neurodiff.models.triplane_vq import TriplaneVQSize


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Target of the bridge, condition of the shape decoder."""

    kind: Literal["views"] = "views"
    dim: int = 64
    whiten: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Three-plane VQ autoencoder, trained on shapes alone."""

    size: TriplaneVQSize
    training: TrainingSettings
    n_points: int = 1024
    n_queries: int = 1024
    continuous: float = 0.15  # share of the steps before codes are quantised
    reseed_every: int = 10
    reseed_until: float = 0.7  # share of the steps after which the codebook is left in peace


@dataclass(frozen=True, kw_only=True)
class ShapeDecoderSettings:
    """Autoregressive decoder, trained on shapes alone; then its adapters on brain predictions."""

    size: ShapeDecoderSize
    training: TrainingSettings
    adapters: TrainingSettings
    condition_noise: float = 0.3  # most noise on the embedding in training, in units of its SD
    temperature: float = 0.0  # 0: greedy
    top_k: int = 250


@dataclass(frozen=True, kw_only=True)
class BridgeSettings:
    """From the recording to the embedding: encoder, aggregation, feature-bridge diffusion.

    anchor : "ridge" gives the bridge one more condition token, the ridge prediction (in training
        the exact leave-one-out one), and the network predicts what to add to it. "none" is the
        published graph.
    input_noise : SD of white noise added to standardised vertices in training.
    """

    encoder: FMRIEncoderSize
    network: FeatureBridgeSize
    training: TrainingSettings
    aggregated_tokens: int = 16
    frames: int = 6
    anchor: Literal["ridge", "none"] = "ridge"
    input_noise: float = 0.5
    condition_dropout: float = 0.1
    candidates: int = 8
    steps: int = 16
    eta: float = 1.0
    choose: Literal["mean", "nearest-to-mean", "fmri-cosine"] = "mean"

    def encoder_for(self, image_size: int) -> FMRIEncoderSize:
        """The encoder with the side of the picture that the recording's space gives."""
        return replace(self.encoder, image_size=image_size)


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """``resolution``: cells a side of the finest grid; ``threshold``: occupancy at the surface."""

    resolution: int = 48
    threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class MinD3DRecipe:
    """A whole run. ``protocol`` names the quirks of published code that are switched on (none)."""

    name: str
    protocol: Literal["neurodiff-1"] = "neurodiff-1"
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    tokenizer: TokenizerSettings
    decoder: ShapeDecoderSettings
    bridge: BridgeSettings
    mesh: MeshSettings = field(default_factory=MeshSettings)
