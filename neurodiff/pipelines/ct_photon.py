"""Photon-limited images, the second task of DiffusionCT, with the networks of the first.

An autoencoder of clean scenes is trained alone; with it frozen a diffusion draws the clean latent
given that of the counts (Anscombe's root, scaled) and the photon level, which takes the place of
the pixel size. It is compared with non-local means on Anscombe-transformed counts and a U-Net.

References
----------
Anscombe 1948, Biometrika 35; Mäkitalo and Foi 2011, IEEE Trans. Image Processing 20 (the inverse
that is unbiased); Buades et al. 2005 (non-local means).
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from neurodiff.core import config
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed, seeded_layers, torch_generator
from neurodiff.core.training import TrainingSettings, train
from neurodiff.datasets.simulated.photons import photon_images, photon_scenes
from neurodiff.diffusion.grids import trailing
from neurodiff.diffusion.heads import Head
from neurodiff.diffusion.objective import Objective
from neurodiff.diffusion.paths import cosine
from neurodiff.diffusion.sampling import NetworkDenoiser, sample
from neurodiff.diffusion.solvers import DDIM, Ancestral
from neurodiff.models.ct_autoencoder import CTAutoencoder, CTAutoencoderSize
from neurodiff.models.ct_baselines import PixelUNet
from neurodiff.models.ct_latent_unet import CTLatentUNet, CTLatentUNetSize

PhotonMode = Literal["nlm", "unet", "practical", "paper", "autoencoder"]
_MULTIPLE = 16


@dataclass(frozen=True, kw_only=True)
class PhotonRecipe:
    """A whole fit.

    levels : expected counts at truth 1, trained together.
    scenes, side : training scenes and their pixels a side.
    steps : network calls of practical mode; paper mode takes all ``times``.
    """

    name: str
    pipeline: Literal["ct-photon"] = "ct-photon"
    levels: tuple[float, ...] = (2.0, 8.0, 32.0)
    scenes: int = 64
    side: int = 64
    dark: float = 0.05
    hot_share: float = 0.002
    autoencoder: CTAutoencoderSize = field(default_factory=CTAutoencoderSize)
    autoencoder_training: TrainingSettings
    size: CTLatentUNetSize = field(default_factory=CTLatentUNetSize)
    training: TrainingSettings
    unet_training: TrainingSettings
    depth: int = 3
    filters: int = 24
    times: int = 100
    steps: int = 6

    def __post_init__(self) -> None:
        if len(self.levels) < 1 or min(self.levels) <= 0 or self.side % _MULTIPLE:
            raise UsageError(
                f"levels {self.levels} must be positive and side {self.side} a multiple of 16"
            )


class PhotonDenoiser:
    """Fitted to simulated scenes, applied to counts of any detector of a known photon level."""

    def __init__(self, recipe: PhotonRecipe) -> None:
        self.recipe = recipe
        self.networks: Any = None

    @classmethod
    def from_recipe(cls, name: str | os.PathLike[str], overrides: Any = ()) -> PhotonDenoiser:
        """Unfitted, from a recipe's file or name."""
        return cls(config.load(name, PhotonRecipe, overrides))

    def fit(self, *, seed: int = 0, progress: Progress = SILENT) -> PhotonDenoiser:
        """Simulate scenes and counts, then train autoencoder, diffusion and U-Net in turn."""
        recipe = self.recipe
        truth = photon_scenes(recipe.scenes, recipe.side, seed=seed)
        clean = torch.from_numpy(2 * truth[:, None] - 1)
        seen, told = [], []
        for level in recipe.levels:
            made = photon_images(
                truth, level, seed=seed, dark=recipe.dark, hot_share=recipe.hot_share
            )
            seen.append(_stabilised(without_hot(made.counts, made.hot), level))
            told.append(torch.full((len(truth), 2), float(level)))
        noisy, levels = torch.cat(seen), torch.cat(told)
        target = clean.repeat(len(recipe.levels), 1, 1, 1)
        with seeded_layers(item_seed(seed, subject="", stimulus="", stage="photon networks")):
            self.networks = nn.ModuleDict(
                {
                    "autoencoder": CTAutoencoder(recipe.autoencoder),
                    "diffusion": CTLatentUNet(recipe.autoencoder.channels, recipe.size),
                    "unet": PixelUNet(recipe.depth, recipe.filters),
                }
            )
        coder, network, unet = (self.networks[k] for k in ("autoencoder", "diffusion", "unet"))
        objective, head = Objective(cosine(recipe.times), Head("v")), Head("v")

        def of_coder(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict:
            return {"loss": F.l1_loss(model(target[rows]), target[rows])}

        def of_diffusion(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict:
            with torch.no_grad():
                z, source = coder.encode(target[rows]), coder.encode(noisy[rows])
            return objective(
                NetworkDenoiser(model, head), z, (source, levels[rows]), generator=generator
            )

        def of_unet(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict:
            return {"loss": F.mse_loss(model(noisy[rows], levels[rows]), target[rows])}

        for name, model, loss, settings in (
            ("autoencoder", coder, of_coder, recipe.autoencoder_training),
            ("diffusion", network, of_diffusion, recipe.training),
            ("unet", unet, of_unet, recipe.unet_training),
        ):
            train(
                model,
                loss,
                n_items=len(target),
                settings=settings,
                seed=seed,
                stage=f"photon {name}",
                progress=progress,
            )
            if name == "autoencoder":
                coder.normalise(clean)
                coder.requires_grad_(False)
        self.networks.eval()
        return self

    @torch.no_grad()
    def apply(
        self,
        counts: np.ndarray,
        photons: float,
        *,
        mode: PhotonMode = "practical",
        hot: np.ndarray | None = None,
        dark: float = 0.0,
        seed: int = 0,
        sample_number: int = 0,
    ) -> np.ndarray:
        """Estimates of the scenes, float32 (images, rows, columns), not clipped.

        Parameters
        ----------
        counts : (images, rows, columns), whole numbers from 0; sides of a multiple of 16.
        photons : expected counts at truth 1; within the levels of training for the networks.
        hot : bool (rows, columns) from a dark frame; those pixels take their neighbours' median.
        dark : expected dark counts, subtracted by "nlm"; the networks learned theirs.

        Raises
        ------
        DataError : counts that are none, or a photon level outside training.
        UsageError : a network that was not fitted.
        """
        counts = _checked(counts)
        counts = counts if hot is None else without_hot(counts, hot)
        if mode == "nlm":
            return anscombe_nlm(counts, photons, dark=dark)
        if self.networks is None:
            raise UsageError("this PhotonDenoiser is not fitted yet: call fit")
        low, high = min(self.recipe.levels), max(self.recipe.levels)
        if not low / 1.5 <= photons <= high * 1.5:
            raise DataError(
                f"{photons:g} photons lie outside the {low:g} to {high:g} of training; train with "
                "that level"
            )
        if any(side % _MULTIPLE for side in counts.shape[1:]):
            raise DataError(f"images of {counts.shape[1:]} pixels; give multiples of {_MULTIPLE}")
        result = np.zeros(counts.shape, np.float32)
        for k, one in enumerate(counts):  # one by one: an image is the same in any batch
            made = self._one(one, photons, mode, seed, sample_number)
            result[k] = (made[0, 0].numpy() + 1) / 2
        return result

    def _one(self, one: np.ndarray, photons: float, mode: str, seed: int, number: int) -> Any:
        noisy, told = _stabilised(one[None], photons), torch.full((1, 2), float(photons))
        coder = self.networks["autoencoder"]
        if mode == "unet":
            return self.networks["unet"](noisy, told)
        if mode == "autoencoder":
            return coder(noisy)
        source, path = coder.encode(noisy), cosine(self.recipe.times)
        digest = hashlib.sha256(np.ascontiguousarray(one, np.int64).tobytes()).hexdigest()
        generator = torch_generator(
            item_seed(seed, subject="", stimulus=digest, sample=number, stage=f"photon {mode}")
        )
        paper = mode == "paper"
        grid = trailing(path, self.recipe.times if paper else self.recipe.steps)
        denoiser = NetworkDenoiser(self.networks["diffusion"], Head("v"))
        x = grid[0].sigma * torch.randn(source.shape, generator=generator)
        solver: Any = Ancestral() if paper else DDIM()
        state = denoiser.prepare((source, told))
        return coder.decode(sample(denoiser, x, grid, solver, state=state, noise=[generator]))


def anscombe_nlm(counts: np.ndarray, photons: float, *, dark: float = 0.0) -> np.ndarray:
    """Non-local means of Anscombe's roots, back by the unbiased inverse; float32 like the scenes.

    The roots have noise of SD 1 (for rates above about 4), which the filter is told.
    """
    from skimage.restoration import denoise_nl_means

    roots = 2 * np.sqrt(_checked(counts) + 3 / 8)
    smooth = np.stack(
        [
            denoise_nl_means(one, patch_size=5, patch_distance=8, h=0.8, sigma=1.0, fast_mode=True)
            for one in roots
        ]
    )
    return ((unbiased_inverse(smooth) - dark) / photons).astype(np.float32)


def unbiased_inverse(root: np.ndarray) -> np.ndarray:
    """Rate whose Anscombe root has the mean ``root``: Mäkitalo and Foi 2011, closed form.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(5.0, 200_000)
    >>> bool(abs(unbiased_inverse((2 * np.sqrt(counts + 3 / 8)).mean()) - 5) < 0.05)
    True
    """
    z = np.maximum(root, 2 * math.sqrt(3 / 8))
    a = math.sqrt(3 / 2)
    rate = z**2 / 4 + a / 4 / z - 11 / 8 / z**2 + 5 / 8 * a / z**3 - 1 / 8
    return np.maximum(rate, 0)


def without_hot(counts: np.ndarray, hot: np.ndarray) -> np.ndarray:
    """Counts whose hot pixels hold the median of the others among their 8 neighbours."""
    if np.shape(hot) != counts.shape[1:]:
        raise DataError(f"hot has shape {np.shape(hot)}; expected {counts.shape[1:]}")
    repaired = np.array(counts)
    rows, columns = counts.shape[1:]
    for r, c in np.argwhere(hot):
        near = np.s_[max(r - 1, 0) : min(r + 2, rows), max(c - 1, 0) : min(c + 2, columns)]
        good = ~np.asarray(hot)[near]
        if good.any():
            repaired[:, r, c] = np.floor(np.median(counts[:, near[0], near[1]][:, good], axis=1))
    return repaired


def _stabilised(counts: np.ndarray, photons: float) -> torch.Tensor:
    """(n, 1, rows, columns): roots of counts, -1 near none and 1 at the level."""
    roots = np.sqrt((counts + 3 / 8) / (photons + 3 / 8))
    return torch.from_numpy((2 * roots - 1).astype(np.float32)[:, None])


def _checked(counts: Any) -> np.ndarray:
    counts = np.asarray(counts)
    whole = counts.dtype.kind in "iu" or (
        counts.dtype.kind == "f" and bool((counts == np.floor(counts)).all())
    )
    if counts.ndim != 3 or not counts.size or not whole or counts.min() < 0:
        raise DataError(
            f"counts are {counts.dtype} {counts.shape}; give whole numbers from 0, (images, rows, "
            "columns)"
        )
    return counts
