"""Everything that can be set in a Brain-Diffuser run; recipes in ``pipelines/`` fill it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neurodiff.core.errors import UsageError
from neurodiff.core.training import TrainingSettings
from neurodiff.models.vdvae_size import IMAGENET64, VDVAESize
from neurodiff.models.versatile_diffusion import PUBLISHED, DualUNetSize
from neurodiff.pipelines.generators import check_options

HEADS = ("vdvae", "text", "vision")
SENTENCE_WIDTH = 384  # of the packaged sentence encoder
CLIP_WIDTH = 768


@dataclass(frozen=True, kw_only=True)
class LowLevelSettings:
    """The VDVAE, whose first latents are decoded into the picture that the generator starts from.

    weights : file of the published network; None trains one of ``size`` by ``training``.
    latents : how many blocks' latents are decoded, coarse to fine.
    rate_weight : of the divergence in training; below 1, fine blocks stay alive in a short one.
    draw : targets are draws from the posterior (as published), or its means.
    pixels, temperature : of decoding; published are "sample" and 1.
    device : of the published network.
    """

    weights: str | None = None
    size: VDVAESize = IMAGENET64
    training: TrainingSettings | None = None
    rate_weight: float = 1.0
    latents: int = 31
    draw: bool = True
    pixels: Literal["sample", "mode"] = "sample"
    temperature: float = 1.0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """The encoders of captions and pictures.

    kind : "clip" (ViT-L/14, published), "packaged" (a sentence encoder and EfficientNet-Lite0 from
        packages) or "plain" (no weights).
    folder : of CLIP or Versatile Diffusion; for "packaged" of the packages, None where they are
        installed.
    text_tokens, grid, width : sizes of the small encoders; pictures have 1 + grid * grid tokens.
    device : of CLIP.
    """

    kind: Literal["clip", "packaged", "plain"] = "clip"
    folder: str | None = None
    text_tokens: int = 12
    grid: int = 3
    width: int = 128
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """A small ``AutoencoderKL`` over patches of pixels."""

    channels: tuple[int, ...] = (64,)
    latent_channels: int = 8
    patch: int = 4
    groups: int = 8
    training: TrainingSettings


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """The image-to-image latent diffusion.

    folder : of the published Versatile Diffusion; None trains a small one.
    unet, autoencoder, training : of the small one.
    side : of its pictures, in pixels; published 512.
    condition_dropout : share of training items whose condition is nothing.
    condition_noise : most noise on tokens in training, in units of each number's SD: decoded
        tokens are noisy, too.
    strength, guidance, mix, steps : of sampling; published 0.75, 7.5, 0.4 and 50.
    device, dtype : of the published network.
    """

    folder: str | None = None
    unet: DualUNetSize = PUBLISHED
    autoencoder: AutoencoderSettings | None = None
    training: TrainingSettings | None = None
    side: int = 512
    condition_dropout: float = 0.1
    condition_noise: float = 0.0
    strength: float = 0.75
    guidance: float = 7.5
    mix: float = 0.4
    steps: int = 50
    batch: int = 8
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class RidgeSettings:
    """One head. ``alphas`` are absolute, or in units of the kernel's mean eigenvalue; several are
    chosen from by leave-one-out."""

    alphas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    absolute: bool = False
    alpha_per: Literal["head", "target"] = "head"


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The three ridges. ``standardise``: by which statistics predictions regain their spread,
    "loo" of training, "test" as released. ``dtype`` of the streamed products, and of targets on
    disk."""

    vdvae: RidgeSettings = field(default_factory=RidgeSettings)
    text: RidgeSettings = field(default_factory=RidgeSettings)
    vision: RidgeSettings = field(default_factory=RidgeSettings)
    standardise: Literal["loo", "test", "none"] = "loo"
    dtype: Literal["float32", "float64"] = "float32"
    stored: Literal["float16", "float32"] = "float32"


@dataclass(frozen=True, kw_only=True)
class BrainDiffuserRecipe:
    """A whole run. ``protocol`` "brain-diffuser-2023" switches the released code's quirks on: the
    statistics of the test set, and the level to which the first picture is noised."""

    name: str
    pipeline: Literal["brain-diffuser"] = "brain-diffuser"
    protocol: Literal["neurodiff-1", "brain-diffuser-2023"] = "neurodiff-1"
    low_level: LowLevelSettings = field(default_factory=LowLevelSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)

    def __post_init__(self):
        if self.protocol == "brain-diffuser-2023" and self.decoder.standardise != "test":
            raise UsageError(
                "protocol brain-diffuser-2023 re-standardises by the test set; set "
                "decoder.standardise=test, or use protocol neurodiff-1"
            )
        if not 1 <= self.low_level.latents <= len(self.low_level.size.decoder_blocks):
            raise UsageError(
                f"low_level.latents is {self.low_level.latents}; this VDVAE has "
                f"{len(self.low_level.size.decoder_blocks)} blocks"
            )
        if not self.low_level.temperature >= 0:
            raise UsageError(
                f"low_level.temperature is {self.low_level.temperature}; give 0 or more"
            )
        for head in HEADS:
            alphas = getattr(self.decoder, head).alphas
            if not alphas or not all(0 < a < float("inf") for a in alphas):
                raise UsageError(
                    f"decoder.{head}.alphas is {list(alphas)}; give positive numbers, at least one"
                )
        _check_trainings(self)
        _check_generator(self.generator)
        if self.protocol == "brain-diffuser-2023" and self.generator.strength == 1:
            raise UsageError(
                "protocol brain-diffuser-2023 noises to the level before the first, and "
                "generator.strength 1 starts at the noisiest; lower it, or use neurodiff-1"
            )
        if self.generator.training is not None:
            _check_trained(self.generator, self.tokens)


def unnamed_networks(recipe: BrainDiffuserRecipe) -> list[str]:
    """Keys of published networks that the recipe neither trains nor names."""
    low, tokens, generator = recipe.low_level, recipe.tokens, recipe.generator
    lacking = {
        "low_level.weights": low.training is None and low.weights is None,
        "tokens.folder": tokens.kind == "clip" and tokens.folder is None,
        "generator.folder": generator.training is None and generator.folder is None,
    }
    return [key for key, lacks in lacking.items() if lacks]


def named_networks(recipe: BrainDiffuserRecipe) -> dict[str, str]:
    """Key -> path of each published network that the recipe reads."""
    low, tokens, generator = recipe.low_level, recipe.tokens, recipe.generator
    named = {
        "low_level.weights": low.weights if low.training is None else None,
        "tokens.folder": None if tokens.kind == "plain" else tokens.folder,
        "generator.folder": generator.folder if generator.training is None else None,
    }
    return {key: path for key, path in named.items() if path is not None}


def network_devices(recipe: BrainDiffuserRecipe) -> dict[str, str]:
    """Key -> device of each published network."""
    low, tokens, generator = recipe.low_level, recipe.tokens, recipe.generator
    devices = {
        "low_level.device": low.device if low.training is None else None,
        "tokens.device": tokens.device if tokens.kind == "clip" else None,
        "generator.device": generator.device if generator.training is None else None,
    }
    return {key: device for key, device in devices.items() if device is not None}


def _check_trainings(recipe: BrainDiffuserRecipe) -> None:
    """What would fail when the networks before it are trained."""
    autoencoder = recipe.generator.autoencoder
    for key, training in (
        ("low_level", recipe.low_level.training),
        ("generator.autoencoder", None if autoencoder is None else autoencoder.training),
        ("generator", recipe.generator.training),
    ):
        for name in ("steps", "batch_size", "learning_rate", "checkpoint_every", "accumulate"):
            value = 1 if training is None else getattr(training, name)
            if not value > 0:
                raise UsageError(f"{key}.training.{name} is {value}; give a positive number")


def _check_generator(settings: GeneratorSettings) -> None:
    """What would fail at the first picture, when all is trained."""
    try:
        check_options(
            strength=settings.strength,
            guidance=settings.guidance,
            mix=settings.mix,
            steps=settings.steps,
        )
    except UsageError as error:
        raise UsageError(f"generator.{error}") from None
    for key, value, fits in (
        ("batch", settings.batch, settings.batch >= 1),
        ("side", settings.side, settings.side >= 1),
        ("condition_dropout", settings.condition_dropout, 0 <= settings.condition_dropout <= 1),
        ("condition_noise", settings.condition_noise, settings.condition_noise >= 0),
    ):
        if not fits:
            wanted = "a share from 0 to 1" if key == "condition_dropout" else "a positive number"
            raise UsageError(f"generator.{key} is {value}; give {wanted}")


def _check_trained(settings: GeneratorSettings, tokens: TokenSettings) -> None:
    """A small generator's parts fit each other, its tokens and its pictures."""
    unet, vae = settings.unet, settings.autoencoder
    if vae is None:
        raise UsageError("a generator that is trained needs generator.autoencoder")
    widths = {
        "plain": (tokens.width, tokens.width),
        "packaged": (SENTENCE_WIDTH, tokens.width),
        "clip": (CLIP_WIDTH, CLIP_WIDTH),
    }[tokens.kind]
    if (unet.text_width, unet.image_width) != widths:
        raise UsageError(
            f"generator.unet reads tokens of {unet.text_width} (text_width) and "
            f"{unet.image_width} (image_width) numbers; tokens of kind {tokens.kind} have "
            f"{widths[0]} and {widths[1]}"
        )
    if unet.latent_channels != vae.latent_channels:
        raise UsageError(
            f"generator.unet.latent_channels is {unet.latent_channels} and that of "
            f"generator.autoencoder {vae.latent_channels}; give both the same"
        )
    if not vae.channels or any(width % vae.groups for width in vae.channels):
        raise UsageError(
            f"generator.autoencoder.channels are {list(vae.channels)}; give multiples of its "
            f"{vae.groups} groups"
        )
    multiple = vae.patch * 2 ** (len(vae.channels) + len(unet.channels) - 2)
    if settings.side % multiple:
        raise UsageError(
            f"generator.side is {settings.side}; patches and halvings of this generator need a "
            f"multiple of {multiple}"
        )
