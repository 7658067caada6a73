"""Everything that can be set in an LDAE run; recipes in ``pipelines/`` fill it in.

Defaults are those of protocol "neurodiff-1".  "ldae-2025" switches on what the released code does
and a reader of the paper would not expect: one frozen draw of each latent, a moving average after
every micro-batch, another coefficient of the shift in training than in sampling, means clamped to
[-1, 1], and a perceptual loss that is given [0, 1] where its network was made for [-1, 1].

Source: Lozupone et al. 2026, Latent Diffusion Autoencoders, Medical Image Analysis 108 (arXiv
2504.08635), and its released settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from neurodiff.core.errors import UsageError
from neurodiff.core.training import TrainingSettings
from neurodiff.models.ldae_sizes import LDAESize
from neurodiff.pipelines.brain_preprocessing import BrainPreprocessing
from neurodiff.pipelines.ldae_sampling import SamplingSettings


@dataclass(frozen=True, kw_only=True)
class AutoencoderStage:
    """Stage 1.

    Parameters
    ----------
    weights : file of a trained autoencoder (LDAE, BrLP, a bundle) that training starts from; None
        starts from random weights.
    training : of the generator; None takes the autoencoder as ``weights`` has it.
    l1, kl, perceptual, adversarial : weights of the loss; published 1, 1e-7, 1e-3 and 0.025. The
        divergence is summed over the latent's numbers, all else are means.
    perceptual_network : folder with the weights of an LPIPS, see `ldae_losses.perceptual_network`.
    perceptual_share : of the slices along each axis that the perceptual loss looks at.
    adversarial_from : step at which the discriminator comes in; published 0.
    discriminator_width, discriminator_layers, discriminator_rate : of MONAI's PatchDiscriminator
        and its Adam.
    check_every : steps between reconstructions of the validation scans, of which the best is kept.
    checkpointing : compute blocks again in the backward pass.
    """

    weights: str | None = None
    training: TrainingSettings | None = None
    l1: float = 1.0
    kl: float = 1e-7
    perceptual: float = 0.0
    adversarial: float = 0.0
    perceptual_network: str | None = None
    perceptual_share: float = 0.5
    adversarial_from: int = 0
    discriminator_width: int = 64
    discriminator_layers: int = 3
    discriminator_rate: float = 1e-4
    check_every: int = 200
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("l1", "kl", "perceptual", "adversarial"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; a weight is 0 or more")
        if not 0 < self.perceptual_share <= 1:
            raise UsageError(
                f"perceptual_share is {self.perceptual_share}; expected above 0 and at most 1"
            )
        for name in ("discriminator_width", "discriminator_layers", "check_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.adversarial_from < 0 or not self.discriminator_rate > 0:
            raise UsageError(
                f"adversarial_from is {self.adversarial_from} and discriminator_rate "
                f"{self.discriminator_rate}; expected 0 or more, and a positive number"
            )


@dataclass(frozen=True, kw_only=True)
class TrunkStage:
    """Stage 2: the U-Net that knows of no code.

    Parameters
    ----------
    training : of the U-Net; None leaves it untrained, which only a test wants.
    latent_scale : what latents are multiplied with; None: one over the SD of those of the training
        scans (published: 0.8730, that of one batch).
    centre : take the mean latent of the training scans away first. What all scans share is most of
        a latent's variance (0.997 of it in the simulated cohort), and a code can tell none of it;
        published: no.
    checkpointing : compute blocks again in the backward pass.
    """

    training: TrainingSettings | None = None
    latent_scale: float | None = None
    centre: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.latent_scale is not None and not self.latent_scale > 0:
            raise UsageError(f"latent_scale is {self.latent_scale}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class SemanticStage:
    """Stage 3: the encoder of semantic codes, and the shift that they ask for.

    Parameters
    ----------
    training : of both; None leaves them untrained.
    snr_power : of the weight SNR^power / (1 + SNR).
    layer_scale : what the residual blocks of a new slice encoder are multiplied with at first;
        ConvNeXt's 1e-6 is for long trainings, and a short one needs blocks that act from the start.
    read_out : a training in which the encoder alone learns to tell a scan's latent through one
        linear layer, which is then thrown away; it comes first. Published: none, and then a short
        training leaves codes that tell little: the loss of the diffusion hardly asks for them.
    encoder_rate : learning rate of the encoder over that of the shift. Adam steps by its rate
        however small a gradient is, and that of a code is small: at the full rate 200 steps lost
        what the read-out had found (R2 of the ventricles .74 to .40, simulated). Published: 1.
    from_trunk : the shift starts as the trunk's way up, but its last layer with zeros;
        published: at random, much of it at zero, where a short training gets no code through.
    even_start : the first layer that reads codes starts so that those of the training scans have
        mean 0 and SD 1 there; what an untrained encoder tells of scans is else a tenth of what it
        tells of all. Published: no.
    stored : type of the prepared volumes on disk.
    checkpointing : compute blocks again in the backward pass.
    """

    training: TrainingSettings | None = None
    snr_power: float = 0.1
    layer_scale: float = 1e-6
    read_out: TrainingSettings | None = None
    encoder_rate: float = 1.0
    from_trunk: bool = False
    even_start: bool = False
    stored: Literal["float16", "float32"] = "float16"
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class WalkSettings:
    """The path of the diffusion and the walks along it, see `SamplingSettings`."""

    steps: int = 100
    iterations: int = 8
    train_steps: int = 1000
    first_beta: float = 1e-4
    last_beta: float = 0.02


@dataclass(frozen=True, kw_only=True)
class LDAERecipe:
    """A whole run.

    Parameters
    ----------
    size : of the three networks and the grid.
    preparation : of a scan (orientation, spacing, intensity); None for scans that are already on
        the grid with values from 0 to 1, which is then checked. Its shape is the grid.
    card : the device that memory and hours are predicted for.
    """

    name: str
    pipeline: Literal["ldae"] = "ldae"
    protocol: Literal["neurodiff-1", "ldae-2025"] = "neurodiff-1"
    size: LDAESize = field(default_factory=LDAESize)
    preparation: BrainPreprocessing | None = None
    autoencoder: AutoencoderStage = field(default_factory=AutoencoderStage)
    trunk: TrunkStage = field(default_factory=TrunkStage)
    semantic: SemanticStage = field(default_factory=SemanticStage)
    sampling: WalkSettings = field(default_factory=WalkSettings)
    card: str = "RTX 4090"

    def __post_init__(self) -> None:
        if self.preparation is not None and tuple(self.preparation.shape) != self.size.grid:
            raise UsageError(
                f"preparation.shape is {tuple(self.preparation.shape)} and size.grid "
                f"{self.size.grid}; give both the same"
            )
        if self.size.autoencoder.image_channels != 1:
            raise UsageError(
                f"size.autoencoder.image_channels is {self.size.autoencoder.image_channels}; the "
                "semantic encoder reads one channel"
            )
        turns = self.preparation is not None and self.preparation.orientation is not None
        if self.protocol == "ldae-2025" and turns:
            raise UsageError(
                "protocol ldae-2025 leaves the axes of a scan as they are; set "
                "preparation.orientation=null, or use protocol neurodiff-1"
            )
        self.walks()
        for key in ("autoencoder", "trunk", "semantic"):
            training = getattr(self, key).training
            for name in ("steps", "batch_size", "learning_rate", "checkpoint_every", "accumulate"):
                value = 1 if training is None else getattr(training, name)
                if not value > 0:
                    raise UsageError(f"{key}.training.{name} is {value}; give a positive number")

    def walks(self) -> SamplingSettings:
        """Settings of the sampler under this protocol."""
        return SamplingSettings(protocol=self.protocol, **vars(self.sampling))

    @property
    def draws_once(self) -> bool:
        """Whether each latent is one frozen draw of its posterior, as published."""
        return self.protocol == "ldae-2025"

    def averaged(self, training: TrainingSettings) -> TrainingSettings:
        """How a stage's moving average decays after each optimiser step.

        The released code updates it after every micro-batch, between which the weights stay: the
        decay is then the power of their number.

        Examples
        --------
        >>> from neurodiff.core.training import TrainingSettings
        >>> old = LDAERecipe(name="x", protocol="ldae-2025")
        >>> told = TrainingSettings(steps=1, ema_decay=0.999, accumulate=4)
        >>> round(old.averaged(told).ema_decay, 6)
        0.996006
        """
        if self.protocol != "ldae-2025":
            return training
        return replace(training, ema_decay=training.ema_decay**training.accumulate)


def unnamed_networks(recipe: LDAERecipe) -> list[str]:
    """Keys of networks that the recipe neither trains nor names."""
    stage = recipe.autoencoder
    lacking = {
        "autoencoder.weights": stage.training is None and stage.weights is None,
        "autoencoder.perceptual_network": stage.training is not None
        and stage.perceptual > 0
        and stage.perceptual_network is None,
    }
    return [key for key, lacks in lacking.items() if lacks]


def named_networks(recipe: LDAERecipe) -> dict[str, str]:
    """Key -> path of each network that the recipe reads."""
    stage = recipe.autoencoder
    used = stage.training is not None and stage.perceptual > 0
    named = {
        "autoencoder.weights": stage.weights,
        "autoencoder.perceptual_network": stage.perceptual_network if used else None,
    }
    return {key: path for key, path in named.items() if path is not None}
