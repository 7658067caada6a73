"""Training of the small networks of a Brain-Diffuser run on the training pictures alone.

    pictures -> VDVAE                                   evidence bound
    pictures -> axes of the vision tokens
    pictures -> autoencoder -> scale of the latents     absolute and squared error, slight KL
    latents, tokens -> dual-guided U-Net                noise prediction, some without condition

Published networks are loaded instead, one by one, where the recipe names files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import read_npy
from neurodiff.core.seeds import item_seed, seeded_layers
from neurodiff.core.training import train
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.objective import Objective
from neurodiff.diffusion.sampling import NetworkDenoiser
from neurodiff.models.vdvae import VDVAE
from neurodiff.models.vdvae_pictures import normalise, to_targets
from neurodiff.models.versatile_diffusion import DualGuidedUNet
from neurodiff.pipelines.brain_diffuser_networks import (
    Networks,
    Shown,
    published_generator,
    published_vdvae,
    token_encoders,
)
from neurodiff.pipelines.brain_diffuser_settings import (
    AutoencoderSettings,
    BrainDiffuserRecipe,
    GeneratorSettings,
)
from neurodiff.pipelines.brain_diffuser_targets import make_targets
from neurodiff.pipelines.stages import Stages
from neurodiff.pipelines.versatile_diffusion import Settings, VersatileDiffusionGenerator

VERSION = 1
_KL = 1e-4  # weight of the autoencoder's divergence, a latent number; keeps latents bounded


def fit_networks(
    recipe: BrainDiffuserRecipe,
    shown: Shown,
    *,
    seed: int,
    stages: Stages,
    identity: str,
    progress: Progress = SILENT,
) -> Networks:
    """Train or load every network.

    Parameters
    ----------
    shown : the training stimuli.
    stages : of the run, where what is trained is kept.
    identity : hash of the training stimuli.

    Raises
    ------
    UsageError, MissingDataError, DataError : weights that are not named, not there or broken.
    """
    text, vision = token_encoders(recipe.tokens)
    inputs = [identity, str(seed)]
    vdvae = _vdvae(recipe, shown, seed, stages, inputs, progress)
    if hasattr(vision, "fit"):
        stages.do(
            "vision-axes",
            settings=recipe.tokens,
            inputs=inputs,
            version=VERSION,
            fit=lambda folder, log: _fit_axes(vision, shown),
            state=lambda: {k: torch.tensor(v) for k, v in vision.arrays().items()},
            restore=lambda state: vision.with_arrays({k: v.numpy() for k, v in state.items()}),
        )
    if recipe.generator.training is None:
        generator = published_generator(recipe, text, vision)
        return Networks(recipe, vdvae, text, vision, generator)
    generator = _generator(recipe, shown, (vdvae, text, vision), seed, stages, inputs, progress)
    return Networks(recipe, vdvae, text, vision, generator)


def _fit_axes(vision: Any, shown: Shown) -> dict[str, Any]:
    most = 600  # axes of some hundred directions need no more pictures
    step = max(1, len(shown) // most)
    chosen = Shown(shown.stimuli, shown.ids[::step])
    vision.fit(chosen.images())
    return {"pictures": len(chosen)}


def _vdvae(
    recipe: BrainDiffuserRecipe,
    shown: Shown,
    seed: int,
    stages: Stages,
    inputs: list[str],
    progress: Progress,
) -> VDVAE:
    settings = recipe.low_level
    if settings.training is None:
        return published_vdvae(settings)
    model = seeded(lambda: VDVAE(settings.size), seed, "vdvae")
    schedule = settings.training

    def fit(folder: Any, log: Any) -> dict[str, float]:
        pixels = shown.pixels(settings.size.image_size)
        last: dict[str, float] = {}

        def loss(network: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict:
            part = pixels[rows]
            bound = network(
                normalise(part), to_targets(part), generator, rate_weight=settings.rate_weight
            )
            last.update({name: float(value.detach()) for name, value in bound.terms().items()})
            return bound.terms()

        train(
            model,
            loss,
            n_items=len(pixels),
            settings=schedule,
            seed=seed,
            stage="vdvae",
            folder=folder,
            log=log,
            progress=progress,
        )
        return {f"{name}, nats per dimension": value for name, value in last.items()}

    stages.do(
        "vdvae",
        settings={
            "size": str(settings.size),
            "training": str(schedule),
            "rate_weight": settings.rate_weight,
        },
        inputs=inputs,
        version=VERSION,
        fit=fit,
        state=model.state_dict,
        restore=model.load_state_dict,
    )
    return model.eval()


def _generator(
    recipe: BrainDiffuserRecipe,
    shown: Shown,
    networks: tuple[VDVAE, Any, Any],
    seed: int,
    stages: Stages,
    inputs: list[str],
    progress: Progress,
) -> VersatileDiffusionGenerator:
    settings = recipe.generator
    autoencoder, training = settings.autoencoder, settings.training
    assert autoencoder is not None
    assert training is not None
    vae = seeded(lambda: small_autoencoder(autoencoder, settings.side), seed, "autoencoder")
    scale = nn.Parameter(torch.ones(()), requires_grad=False)
    patches = None

    def pictures() -> torch.Tensor:
        nonlocal patches
        if patches is None:
            values = torch.from_numpy(shown.pixels(settings.side)).permute(0, 3, 1, 2)
            patches = pixel_unshuffle(values, autoencoder.patch)
        return patches

    def fit_vae(folder: Any, log: Any) -> dict[str, float]:
        found = _fit_autoencoder(vae, pictures(), autoencoder, seed, folder, log, progress)
        scale.data = 1 / _encoded(vae, pictures()).std()
        return found

    def restore_vae(state: dict[str, torch.Tensor]) -> None:
        scale.data = state.pop("latent_scale")
        vae.load_state_dict(state)

    first = stages.do(
        "autoencoder",
        settings={"autoencoder": str(autoencoder), "side": settings.side},
        inputs=inputs,
        version=VERSION,
        fit=fit_vae,
        state=lambda: {**vae.state_dict(), "latent_scale": scale.data},
        restore=restore_vae,
    )
    vdvae, text, vision = networks
    unet = seeded(lambda: DualGuidedUNet(settings.unet), seed, "generator")
    null = torch.tensor(text.null_text()), torch.tensor(vision.null_vision())

    def fit_unet(folder: Any, log: Any) -> dict[str, float]:
        latents = _encoded(vae, pictures()) * scale
        encoders_only = Networks(recipe, vdvae, text, vision, None)
        tokens = [
            make_targets(encoders_only, head, shown, seed=seed, run=stages.run, progress=progress)
            for head in ("text", "vision")
        ]
        words, views = (
            torch.from_numpy(read_npy(part) if isinstance(part, Path) else part).float()
            for part in tokens
        )
        return _fit_unet(unet, latents, (words, views), null, settings, seed, folder, log, progress)

    stages.do(
        "generator",
        settings={"generator": str(settings), "tokens": str(recipe.tokens)},
        inputs=[*inputs, first],
        version=VERSION,
        fit=fit_unet,
        state=unet.state_dict,
        restore=unet.load_state_dict,
    )
    return VersatileDiffusionGenerator(
        unet,
        vae,
        null_text_tokens=null[0],
        null_image_tokens=null[1],
        settings=Settings(
            latent_scale=float(scale),
            protocol=recipe.protocol,
            batch=settings.batch,
            patch=autoencoder.patch,
        ),
    )


def small_autoencoder(settings: AutoencoderSettings, side: int) -> Any:
    """An ``AutoencoderKL`` of diffusers over patches of pixels."""
    from diffusers import AutoencoderKL

    channels, levels = 3 * settings.patch**2, len(settings.channels)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.groups,
        sample_size=side // settings.patch,
        mid_block_add_attention=False,
    )


def _fit_autoencoder(
    vae: Any,
    patches: torch.Tensor,
    settings: AutoencoderSettings,
    seed: int,
    folder: Any,
    log: Any,
    progress: Progress,
) -> dict[str, float]:
    def loss(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict:
        x = patches[rows].float() / 127.5 - 1
        posterior = model.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        z = posterior.mean + posterior.std * noise
        error = model.decode(z).sample - x
        kl = posterior.kl().mean() / z[0].numel()
        total = error.abs().mean() + error.square().mean() + _KL * kl
        return {"loss": total, "absolute error": error.abs().mean(), "kl": kl}

    train(
        vae,
        loss,
        n_items=len(patches),
        settings=settings.training,
        seed=seed,
        stage="autoencoder",
        folder=folder,
        log=log,
        progress=progress,
    )
    vae.eval()
    few = patches[:: max(1, len(patches) // 200)].float() / 127.5 - 1
    with torch.no_grad():
        error = vae.decode(vae.encode(few).latent_dist.mean).sample - few
    shown = pixel_shuffle(error, settings.patch).abs().mean() * 127.5
    return {"absolute error, of 255": float(shown)}


def _fit_unet(
    unet: DualGuidedUNet,
    latents: torch.Tensor,
    tokens: tuple[torch.Tensor, torch.Tensor],
    null: tuple[torch.Tensor, torch.Tensor],
    settings: GeneratorSettings,
    seed: int,
    folder: Any,
    log: Any,
    progress: Progress,
) -> dict[str, float]:
    assert settings.training is not None
    objective = Objective(Settings().path(), EPS)
    spread = [part.std(dim=0) for part in tokens]
    last: dict[str, float] = {}

    def loss(model: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict:
        n = len(rows)
        drop = torch.rand(n, 1, 1, generator=generator) < settings.condition_dropout
        level = settings.condition_noise * torch.rand(n, 1, 1, generator=generator)
        given = []
        for part, nothing, sd in zip(tokens, null, spread, strict=True):
            chosen = part[rows]
            noise = torch.randn(chosen.shape, generator=generator)
            given.append(torch.where(drop, nothing, chosen + level * sd * noise))
        # mostly at the share that is sampled with; at times alone, so that each can lead
        kind = float(torch.rand((), generator=generator))
        mix = settings.mix if kind < 0.7 else float(kind < 0.85)
        terms = objective(
            NetworkDenoiser(model, EPS), latents[rows], (*given, mix), generator=generator
        )
        last["denoising error"] = float(terms["denoising"].detach())
        return terms

    train(
        unet,
        loss,
        n_items=len(latents),
        settings=settings.training,
        seed=seed,
        stage="generator",
        folder=folder,
        log=log,
        progress=progress,
    )
    return last


@torch.no_grad()
def _encoded(vae: Any, patches: torch.Tensor, *, block: int = 64) -> torch.Tensor:
    parts = [
        vae.encode(patches[k : k + block].float() / 127.5 - 1).latent_dist.mean
        for k in range(0, len(patches), block)
    ]
    return torch.cat(parts)


def seeded(make: Any, seed: int, stage: str) -> Any:
    """A network whose first weights depend on the run's seed alone."""
    with seeded_layers(item_seed(seed, subject="", stimulus="", stage=stage)):
        return make()
