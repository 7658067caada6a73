"""Settings of the diffusion mode of CT standardization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neurodiff.core.errors import UsageError
from neurodiff.core.training import TrainingSettings
from neurodiff.models.ct_autoencoder import CTAutoencoderSize
from neurodiff.models.ct_latent_unet import CTLatentUNetSize

#: HU that scaled values -1 and 1 stand for; a line without window or clipping
LOWEST, HIGHEST = -1024.0, 3071.0


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """Squares that training draws and that large slices are cut into.

    size : pixels of a training patch.
    apply, overlap : pixels of a patch at use; neighbours share ``overlap``, blended linearly.
    batch : patches that go through a network at once, at use.
    spacing_factors : each training slice is also resampled to these multiples of its spacing.
    """

    size: int = 128
    apply: int = 272  # two of them with their overlap span 512
    overlap: int = 32
    batch: int = 4
    spacing_factors: tuple[float, ...] = (0.85, 1.0, 1.2)

    def __post_init__(self) -> None:
        sides = (self.size, self.apply)
        if min(sides) < 16 or any(s % 16 for s in sides) or not 0 <= self.overlap < self.apply:
            raise UsageError(
                f"patches of {self.size} and {self.apply} pixels that overlap by {self.overlap}; "
                "give multiples of 16 and less overlap than that"
            )
        if self.overlap % 16 or self.batch < 1 or not self.spacing_factors:
            raise UsageError(
                "overlap must be a multiple of 16, batch 1 or more, spacing_factors not empty"
            )
        if min(self.spacing_factors) <= 0.25 or max(self.spacing_factors) >= 4:
            raise UsageError("spacing_factors must lie between 0.25 and 4")


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """Diffusion of latents: one network of this size for each mode in ``train``.

    train : "paper" draws the standard latent, from noise; "practical" draws what the standard
        latent adds to that of the linear result, in SDs of that residual.
    path, times : "linear" has betas 1e-4 to 0.02 and wants 1000 times; "cosine" serves any number.
    warm_ratio : noise over signal at which practical mode starts from the linear result.
    steps : network calls of practical mode, at most 6.
    """

    size: CTLatentUNetSize = field(default_factory=CTLatentUNetSize)
    training: TrainingSettings
    train: tuple[Literal["practical", "paper"], ...] = ("practical", "paper")
    path: Literal["linear", "cosine"] = "linear"
    times: int = 1000
    head: Literal["v", "eps"] = "v"
    warm_ratio: float = 1.0
    steps: int = 6

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 6:
            raise UsageError(f"practical mode takes 1 to 6 steps, not {self.steps}")
        if not 0.02 <= self.warm_ratio <= 3:
            raise UsageError(f"warm_ratio is {self.warm_ratio:g}; a warm start lies at 0.02 to 3")
        if self.times < 10:
            raise UsageError(f"a path of {self.times} times is too short; give at least 10")


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """Round trip of the autoencoder on the target kernel, by agreement of radiomic features.

    least : mean CCC that stage 2 needs; region : pixels a side; regions : at most so many.
    """

    least: float = 0.98
    region: int = 32
    regions: int = 48


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """One-step regression, U-Net and GAN; empty ``train`` fits none."""

    train: tuple[Literal["one-step", "unet", "gan"], ...] = ()
    training: TrainingSettings
    depth: int = 3
    filters: int = 24
    l1: float = 100.0


@dataclass(frozen=True, kw_only=True)
class CTDiffusionRecipe:
    """A whole fit. ``lock`` is the band, lp/cm, below which the output is the input."""

    name: str
    pipeline: Literal["ct-diffusion"] = "ct-diffusion"
    autoencoder: CTAutoencoderSize = field(default_factory=CTAutoencoderSize)
    autoencoder_training: TrainingSettings
    diffusion: DiffusionSettings
    baselines: BaselineSettings
    patches: PatchSettings = field(default_factory=PatchSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    lock: float = 0.5
