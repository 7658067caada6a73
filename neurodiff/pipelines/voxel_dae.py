"""A diffusion autoencoder of voxels: the baseline of LDAE's throughput.

The same walks and losses without latents.  It was never trained to quality in this project, so that
its scores are no comparison of methods.

    scan -> slice encoder -> semantic code
    scan --- the walks of `ldae_sampling`, on voxels ---> noise;  code, noise -> scan

It has the methods of `LDAE` that the evaluation uses, so both fill the same tables.  Where LDAE has
latents it has voxels from -1 to 1, and its "autoencoder" is the scan itself.

Sources: Preechakul et al. 2022, Diffusion Autoencoders, CVPR; Zhang et al. 2022, PDAE, NeurIPS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from neurodiff.core.atomic import replaced_folder, save_safetensors, write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import load_weights, read_json
from neurodiff.core.seeds import item_seed, seeded_layers
from neurodiff.core.training import TrainingSettings, train
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.objective import Objective, snr_power
from neurodiff.models.ldae_denoiser import ShiftDenoiser
from neurodiff.models.ldae_names import filled
from neurodiff.models.ldae_sizes import LatentUNetSize, SliceEncoderSize, from_plain
from neurodiff.models.voxel_dae import VOXEL_PRESETS, VoxelDAENetworks, VoxelDAESize
from neurodiff.pipelines.ldae_sampling import (
    Decoding,
    Encoding,
    LatentSampler,
    SamplingSettings,
    check_finite,
    draw_noise,
    scan_generator,
    slerp,
)

How = Literal["autoencoder", "encoded", "semantic"]
FORMAT = "neurodiff-voxel-dae-1"
INDEX, WEIGHTS = "model_index.json", "model.safetensors"
STAGE = "voxel dae weights"


class VoxelDAE:
    """A voxel diffusion autoencoder at any size; a new one answers noise with zero.

    Volumes are float32 (n, 1, i, j, k) from 0 to 1 on the model's grid; "latents" are 2 v - 1.
    Items go through the networks one by one, so none depends on its batch.

    Examples
    --------
    >>> from neurodiff.models.voxel_dae import SMALLEST
    >>> pipe = VoxelDAE(SMALLEST, sampling=SamplingSettings(steps=2))
    >>> pipe.codes(np.zeros((2, 1, 8, 8, 8), np.float32)).shape
    (2, 16)
    """

    def __init__(
        self,
        size: VoxelDAESize,
        networks: VoxelDAENetworks | None = None,
        *,
        sampling: SamplingSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.size = size
        self.sampling = sampling or SamplingSettings()
        self.fitted = networks is not None
        if networks is None:
            with seeded_layers(item_seed(seed, subject="", stimulus="", stage=STAGE)):
                networks = VoxelDAENetworks(size)
        self.networks = networks.eval().requires_grad_(False)
        self.sampler = LatentSampler(self.networks.unet, self.sampling)

    @classmethod
    def from_preset(cls, name: str, *, seed: int = 0) -> VoxelDAE:
        """A new model of size "base" or "tiny"."""
        if name not in VOXEL_PRESETS:
            raise UsageError(f"there is no size {name!r}; known are {', '.join(VOXEL_PRESETS)}")
        return cls(VOXEL_PRESETS[name], seed=seed)

    @property
    def protocol(self) -> str:
        return self.sampling.protocol

    @property
    def device(self) -> torch.device:
        return next(self.networks.parameters()).device

    def to(self, device: str | torch.device) -> VoxelDAE:
        """Move the networks; returns self."""
        self.networks.to(device)
        return self

    # ------------------------------------------------------------------------------ training

    def fit(
        self,
        volumes: np.ndarray,
        *,
        trunk: TrainingSettings,
        semantic: TrainingSettings,
        seed: int = 0,
        folder: Path | None = None,
        log: Callable[[dict], None] | None = None,
        progress: Progress = SILENT,
    ) -> VoxelDAE:
        """LDAE's stages 2 and 3 on voxels: the trunk, then the shift with the slice encoder.

        Parameters
        ----------
        volumes : (n, 1, i, j, k) from 0 to 1, or a memory map of them: a batch is read at a time.
        folder : for checkpoints of a run that may be killed, one sub-folder a stage.

        Raises
        ------
        UsageError, DataError : volumes of another grid, NaN, values outside [0, 1]; as `train`.
        """
        volumes = self._shaped(volumes)
        stages = (("trunk", trunk, self.trunk_loss), ("semantic", semantic, self.semantic_loss))
        for name, settings, loss in stages:
            self.networks.requires_grad_(True)
            unet = self.networks.unet
            unet.frozen_trunk = False
            if name == "semantic":
                unet.freeze_trunk()
                chosen = [p for p in self.networks.parameters() if p.requires_grad]
            else:
                chosen = [p for m in unet.trunk() for p in m.parameters()]
            train(
                self.networks,
                loss(volumes),
                n_items=len(volumes),
                settings=settings,
                seed=seed,
                stage=f"voxel dae, {name}",
                folder=None if folder is None else Path(folder) / name,
                log=log,
                progress=progress,
                parameters=chosen,
            )
        self.networks.eval().requires_grad_(False)
        self.fitted = True
        return self

    def trunk_loss(self, volumes: np.ndarray) -> Callable[[Any, np.ndarray, torch.Generator], dict]:
        """Loss of stage 2 for `train`: squared error of the noise."""
        objective = Objective(self.sampler.path, EPS)

        def loss(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
            return objective(ShiftDenoiser(model), self._batch(volumes, rows), generator=generator)

        return loss

    def semantic_loss(
        self, volumes: np.ndarray
    ) -> Callable[[Any, np.ndarray, torch.Generator], dict]:
        """Loss of stage 3 for `train`: that of the shifted noise, times SNR^0.1 / (1 + SNR)."""
        objective = Objective(self.sampler.path, EPS, weight=snr_power())
        coefficient = self.sampling.training_coefficient()

        def loss(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
            x = self._batch(volumes, rows)
            # the condition is the clean volume: the networks make the code of it
            denoiser = ShiftDenoiser(model, coefficient=coefficient)
            return objective(denoiser, x, x, generator=generator)

        return loss

    # ------------------------------------------------------------------------- LDAE's methods

    def latents(self, volumes: np.ndarray) -> np.ndarray:
        """Voxels from -1 to 1."""
        return (2 * self._volumes(volumes) - 1).astype(np.float32)

    def images(self, latents: np.ndarray, *, memory: float | None = None) -> np.ndarray:
        """Volumes cut to [0, 1]; ``memory`` is `LDAE`'s and changes nothing."""
        return np.clip((self._states("latents", latents) + 1) / 2, 0, 1).astype(np.float32)

    def codes(self, volumes: np.ndarray) -> np.ndarray:
        """Semantic codes (n, d)."""
        return self._each(self.networks.codes, self._volumes(volumes), (self.size.encoder.code,))

    def noise(
        self,
        latents: np.ndarray,
        codes: np.ndarray,
        *,
        steps: int | None = None,
        method: Encoding | None = None,
    ) -> np.ndarray:
        """Noise of voxels under their codes (`LatentSampler.encode`)."""

        def one(x: Tensor, y: Tensor) -> Tensor:
            return self.sampler.encode(x, y, steps=steps, method=method).noise

        x = self._states("latents", latents)
        return self._each(one, x, x.shape[1:], self._codes(codes, len(x)))

    def decode(
        self,
        codes: np.ndarray,
        noise: np.ndarray,
        *,
        steps: int | None = None,
        solver: Decoding = "ddim",
        scale: float = 1.0,
    ) -> np.ndarray:
        """Voxels from noise under codes (`LatentSampler.decode`)."""

        def one(x: Tensor, y: Tensor) -> Tensor:
            return self.sampler.decode(y, x, steps=steps, solver=solver, scale=scale)

        x = self._states("noise", noise)
        return self._each(one, x, x.shape[1:], self._codes(codes, len(x)))

    def draw(
        self, scans: Sequence[tuple[object, object]], *, seed: int = 0, sample: int = 0
    ) -> np.ndarray:
        """Unit noise for (subject, scan) pairs; a scan's own in any batch and order."""
        made = [scan_generator(seed, subject=s, scan=c, sample=sample) for s, c in scans]
        if not made:
            return np.zeros((0, 1, *self.size.grid), np.float32)
        return draw_noise(made, (1, *self.size.grid)).numpy()

    def reconstruct(
        self,
        volumes: np.ndarray,
        how: How = "encoded",
        *,
        scans: Sequence[tuple[object, object]] | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Volumes from their codes and "encoded" noise, or ("semantic") noise drawn for ``scans``.

        "autoencoder" gives the volumes back: there is none, so the ceiling is the scan itself.
        """
        if how not in ("autoencoder", "encoded", "semantic"):
            raise UsageError(f"how is {how!r}; known are 'autoencoder', 'encoded' and 'semantic'")
        volumes = self._volumes(volumes)
        if how == "autoencoder":
            return volumes.copy()
        codes = self.codes(volumes)
        if how == "encoded":
            noise = self.noise(self.latents(volumes), codes, steps=steps)
        elif scans is None or len(scans) != len(volumes):
            raise UsageError(
                "noise is drawn for a scan by its name: give scans, (subject, scan) for each volume"
            )
        else:
            noise = self.draw(scans, seed=seed)
        return self.images(self.decode(codes, noise, steps=steps))

    def between(
        self,
        codes_a: np.ndarray,
        codes_b: np.ndarray,
        noise_a: np.ndarray,
        noise_b: np.ndarray,
        t: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes on the straight line and noise on the great circle, ``t`` of the way."""
        noise = slerp(torch.from_numpy(noise_a), torch.from_numpy(noise_b), t).numpy()
        return ((1 - t) * codes_a + t * codes_b).astype(np.float32), noise

    # --------------------------------------------------------------------------------- files

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Sizes as JSON and weights as safetensors; a model that was there is replaced.

        Raises
        ------
        UsageError : the folder holds something else.
        """
        target = Path(folder)
        if target.is_file() or (
            target.is_dir() and any(target.iterdir()) and not (target / INDEX).is_file()
        ):
            raise UsageError(f"{target} exists and is no model; name a new folder")
        with replaced_folder(target) as new:
            save_safetensors(self.networks.state_dict(), new / WEIGHTS)
            write_json(
                new / INDEX,
                {
                    "format": FORMAT,
                    "pipeline": "VoxelDAE",
                    "size": asdict(self.size),
                    "sampling": asdict(self.sampling),
                    "fitted": self.fitted,
                },
            )
        return target

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> VoxelDAE:
        """What :meth:`save_pretrained` wrote.

        Raises
        ------
        MissingDataError : no such folder or file.
        DataError : another format, or weights of other sizes.
        """
        place = Path(folder)
        if not (place / INDEX).is_file():
            raise MissingDataError(f"{place} holds no {INDEX}; name a folder of save_pretrained")
        index = read_json(place / INDEX)
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise DataError(f"{place / INDEX} is not of format {FORMAT}; name a voxel model")
        try:
            size = VoxelDAESize(
                grid=tuple(index["size"]["grid"]),
                unet=from_plain(LatentUNetSize, index["size"]["unet"]),
                encoder=from_plain(SliceEncoderSize, index["size"]["encoder"]),
            )
            sampling = SamplingSettings(**index["sampling"])
        except (UsageError, KeyError, TypeError) as error:
            raise DataError(f"{place / INDEX} describes no voxel model: {error}") from None
        path = place / WEIGHTS
        networks = filled(VoxelDAENetworks(size), load_weights(path), str(path))
        pipe = cls(size, networks, sampling=sampling)
        pipe.fitted = bool(index.get("fitted"))
        return pipe

    # ------------------------------------------------------------------------------- helpers

    def _batch(self, volumes: np.ndarray, rows: np.ndarray) -> Tensor:
        """Rows of volumes, as voxels from -1 to 1 on the device."""
        return torch.from_numpy(self.latents(volumes[rows])).to(self.device)

    @torch.no_grad()
    def _each(self, run: Callable[..., Tensor], x: np.ndarray, shape: Any, *more: Any) -> Any:
        out = np.zeros((len(x), *shape), np.float32)
        for row in range(len(x)):
            given = (torch.from_numpy(a[row : row + 1]).to(self.device) for a in (x, *more))
            out[row] = run(*given)[0].float().cpu().numpy()
        return out

    def _shaped(self, volumes: np.ndarray, what: str = "volumes") -> np.ndarray:
        expected = (1, *self.size.grid)
        if volumes.ndim != 5 or volumes.shape[1:] != expected:
            raise UsageError(
                f"{what} have shape {volumes.shape}; this model reads (n, "
                f"{', '.join(map(str, expected))}): prepare the scans for its grid"
            )
        return volumes

    def _states(self, what: str, x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(self._shaped(x, what), np.float32)
        check_finite(what, torch.from_numpy(x))
        return x

    def _volumes(self, volumes: np.ndarray) -> np.ndarray:
        volumes = self._states("volumes", volumes)
        if volumes.size and (volumes.min() < -1e-4 or volumes.max() > 1 + 1e-4):
            raise DataError(
                f"volumes have values from {volumes.min():.3g} to {volumes.max():.3g}; expected 0 "
                "to 1: scale each scan to that range"
            )
        return volumes

    def _codes(self, codes: np.ndarray, items: int) -> np.ndarray:
        expected = (items, self.size.encoder.code)
        if codes.shape != expected:
            raise UsageError(f"semantic codes have shape {codes.shape}; expected {expected}")
        codes = np.ascontiguousarray(codes, np.float32)
        check_finite("semantic codes", torch.from_numpy(codes))
        return codes
