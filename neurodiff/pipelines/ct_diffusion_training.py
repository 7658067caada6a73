"""Training of the diffusion mode: autoencoder alone, then what works on its frozen latents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from neurodiff.bridges.ct_filter import RadialFilter, bin_edges, cross_spectra, filter_from_spectra
from neurodiff.core.training import TrainingSettings, train
from neurodiff.diffusion.heads import Head
from neurodiff.diffusion.objective import Objective
from neurodiff.diffusion.paths import VariancePreserving, cosine, linear
from neurodiff.diffusion.sampling import NetworkDenoiser
from neurodiff.models.ct_autoencoder import CTAutoencoder
from neurodiff.models.ct_baselines import AdversarialPair, OneStep, PixelUNet, adversarial_terms
from neurodiff.models.ct_latent_unet import CTLatentUNet
from neurodiff.pipelines.ct_diffusion_settings import CTDiffusionRecipe, DiffusionSettings
from neurodiff.pipelines.ct_patches import HALF_RANGE, SlicePairs, TrainingSlice, draw_patches

_UNIT = HALF_RANGE / 100  # losses of pixels count in 100 HU


def path_of(settings: DiffusionSettings) -> VariancePreserving:
    """The diffusion's path."""
    return cosine(settings.times) if settings.path == "cosine" else linear(settings.times)


def build(recipe: CTDiffusionRecipe) -> nn.ModuleDict:
    """All networks of a recipe, with fresh weights from torch's state."""
    channels, size = recipe.autoencoder.channels, recipe.diffusion.size
    networks: dict[str, nn.Module] = {"autoencoder": CTAutoencoder(recipe.autoencoder)}
    for mode in recipe.diffusion.train:
        networks[mode] = CTLatentUNet(channels, size)
    depth, filters = recipe.baselines.depth, recipe.baselines.filters
    for name in recipe.baselines.train:
        networks[name] = {
            "one-step": lambda: OneStep(channels, size),
            "unet": lambda: PixelUNet(depth, filters),
            "gan": lambda: AdversarialPair(depth, filters),
        }[name]()
    return nn.ModuleDict(networks)


def fit_network(
    name: str,
    networks: nn.ModuleDict,
    slices: Sequence[TrainingSlice],
    recipe: CTDiffusionRecipe,
    *,
    residual_scale: torch.Tensor,
    seed: int,
    **how: Any,
) -> None:
    """Train one network in place; ``how`` goes to :func:`neurodiff.core.training.train`.

    ``residual_scale`` (channels,) is filled by the autoencoder's stage: SDs of what the standard
    latents add to those of the linear result.
    """
    coder: Any = networks["autoencoder"]
    size = recipe.patches.size
    head = Head(recipe.diffusion.head)
    objective = Objective(path_of(recipe.diffusion), head)

    def loss(model: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict:
        source, target, filtered, spacing = draw_patches(slices, rows, size, generator)
        if name == "autoencoder":  # both kernels and the linear result pass it later
            images = torch.cat([source, target, filtered])
            return {"loss": _UNIT * F.l1_loss(model(images), images)}
        if name == "unet":
            return {"loss": _UNIT * F.l1_loss(model(source, spacing), target)}
        if name == "gan":
            weight = recipe.baselines.l1 * _UNIT / 20
            return adversarial_terms(model, source, target, spacing, l1=weight)
        with torch.no_grad():
            z_source, z_target = coder.encode(source), coder.encode(target)
            if name == "practical":
                z_target = (z_target - coder.encode(filtered)) / residual_scale[:, None, None]
        if name == "one-step":
            return {"loss": F.mse_loss(model(z_source, spacing), z_target)}
        return objective(
            NetworkDenoiser(model, head), z_target, (z_source, spacing), generator=generator
        )

    settings: TrainingSettings = (
        recipe.autoencoder_training
        if name == "autoencoder"
        else recipe.diffusion.training
        if name in ("practical", "paper")
        else recipe.baselines.training
    )
    model = networks[name]
    train(
        model,
        loss,
        n_items=len(slices),
        settings=settings,
        seed=seed,
        stage=f"ct {name}",
        parameters=[p for p in model.parameters() if p.requires_grad],
        **how,
    )
    if name == "autoencoder":
        measure_latents(coder, slices, size, residual_scale)


@torch.no_grad()
def measure_latents(
    coder: CTAutoencoder,
    slices: Sequence[TrainingSlice],
    size: int,
    residual_scale: torch.Tensor,
) -> None:
    """Set the latents' mean and SD and the SD of the residual from patches of a fixed seed."""
    rows = np.arange(max(16, len(slices))) % len(slices)
    _, target, filtered, _ = draw_patches(slices, rows, size, torch.Generator().manual_seed(0))
    coder.normalise(torch.cat([target, filtered]))
    gap = coder.encode(target) - coder.encode(filtered)
    residual_scale.copy_(gap.square().mean((0, 2, 3)).sqrt().clamp_min(1e-4))


def fit_linear(scans: Sequence[SlicePairs]) -> RadialFilter:
    """The radial filter of all scans together."""
    edges = bin_edges([scan.spacing for scan in scans])
    spectra = [
        cross_spectra(scan.source, scan.target, scan.spacing, edges=edges, padding=scan.padding)
        for scan in scans
    ]
    total = spectra[0]
    for more in spectra[1:]:
        total = total + more
    return filter_from_spectra(total)


def digest_of(scans: Sequence[SlicePairs]) -> str:
    """Hash of what a model is fitted to."""
    whole = hashlib.sha256()
    for scan in scans:
        for array in (scan.source, scan.target, scan.padding):
            whole.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        whole.update(repr((scan.source.shape, scan.spacing)).encode())
    return whole.hexdigest()
