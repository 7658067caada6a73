"""LDAE: brain scans to semantic codes and noise, and back, by a diffusion in latents.

    scan -> autoencoder -> latent --- exact DDIM under the code ---> noise
    scan -> slice encoder -> semantic code
    code, noise -- DDIM or DPM++2M --> latent -> autoencoder -> scan

Every array that goes in or comes out is NumPy; an item's result does not depend on what else is in
the batch.  Protocol "ldae-2025" has the released code's habits on, see `ldae_settings`.

Source: Lozupone et al. 2026, Latent Diffusion Autoencoders, Medical Image Analysis 108 (arXiv
2504.08635); Zhang et al. 2022, PDAE, NeurIPS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from neurodiff.core.config import load
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.volume import Volume
from neurodiff.models.ldae_autoencoder import encode
from neurodiff.models.ldae_sizes import LDAESize
from neurodiff.pipelines.brain_preprocessing import BrainPreprocessing, prepare_scan
from neurodiff.pipelines.ldae_arrays import (
    check_values,
    checked_codes,
    checked_latents,
    checked_volumes,
)
from neurodiff.pipelines.ldae_files import LDAENetworks
from neurodiff.pipelines.ldae_kept import KeptWalks
from neurodiff.pipelines.ldae_networks import recipe_of, untrained
from neurodiff.pipelines.ldae_networks import seeded as seeded  # read from here too
from neurodiff.pipelines.ldae_sampling import (
    Decoding,
    Encoding,
    LatentSampler,
    draw_noise,
    scan_generator,
    slerp,
)
from neurodiff.pipelines.ldae_settings import LDAERecipe

if TYPE_CHECKING:
    from neurodiff.core.cohort import Cohort
    from neurodiff.core.run import Run

How = Literal["autoencoder", "encoded", "semantic"]
_WHOLE = 2**27  # numbers of the widest feature map up to which a volume is decoded in one piece


class LDAE:
    """A latent diffusion autoencoder at any size.

    ``directions`` are what `move` knows by name. ``at_once`` (1) items go through a network
    together; with more of them results differ in rounding from those of an item alone.

    Examples
    --------
    >>> pipe = LDAE.from_recipe("ldae_tiny")
    >>> pipe.codes(np.zeros((2, 1, 24, 32, 24), np.float32)).shape
    (2, 16)
    """

    def __init__(self, recipe: LDAERecipe, networks: LDAENetworks | None = None) -> None:
        self.recipe = recipe
        self.fitted = networks is not None
        self.directions: dict[str, Any] = {}
        self.gates: list[dict[str, Any]] = []
        self.at_once = 1
        self._set(networks or untrained(recipe))

    # ---------------------------------------------------------------------------- made from

    @classmethod
    def from_recipe(cls, name: str | Path, overrides: Sequence[str] = ()) -> LDAE:
        """By the name or path of a recipe; ``overrides`` as ``key=value``. Not trained yet."""
        return cls(load(name, LDAERecipe, list(overrides)))

    @classmethod
    def from_networks(
        cls,
        networks: LDAENetworks,
        *,
        grid: tuple[int, int, int] = (128, 160, 128),
        preparation: BrainPreprocessing | None = None,
        name: str = "networks",
    ) -> LDAE:
        """Of networks that are there, such as those of a bundle.

        Parameters
        ----------
        grid : (i, j, k) of the scans; weights do not say it.
        preparation : of a scan; by default the published one on this grid.

        Raises
        ------
        UsageError : a network or the scale of the latents is missing, or they do not fit.
        """
        recipe = recipe_of(networks, grid=grid, preparation=preparation, name=name)
        return cls(recipe, networks)

    @classmethod
    def from_published(cls, folder: str | os.PathLike[str]) -> LDAE:
        """The published weights, protocol "ldae-2025", with the released direction if it is there.

        Raises
        ------
        DataError : as `ldae_opening.open_published`; also where only an autoencoder is there.
        """
        from neurodiff.pipelines.ldae_opening import open_published

        found = open_published(folder)
        if not isinstance(found, cls):
            raise DataError(f"{folder} holds an autoencoder alone; expected all of LDAE's networks")
        return found

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> LDAE:
        """What `save_pretrained` wrote, or the folder of a run; errors as `ldae_saving`."""
        from neurodiff.pipelines.ldae_saving import from_pretrained

        return from_pretrained(folder)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write recipe, networks and directions to a folder; errors as `ldae_saving`."""
        from neurodiff.pipelines.ldae_saving import save_pretrained

        return save_pretrained(self, folder)

    def fit(
        self,
        train: Cohort,
        validation: Cohort | None = None,
        *,
        seed: int = 0,
        run: Run | None = None,
        progress: Progress = SILENT,
    ) -> LDAE:
        """The three stages, then directions of what the cohort tells; returns self.

        Parameters
        ----------
        train : scans of any kind that the recipe's preparation takes.
        validation : scans of other people, by which the autoencoder is chosen.
        run : folder in which finished stages are kept; a second call goes on.

        Raises
        ------
        UsageError : a network that the recipe neither trains nor names, a subject in both cohorts.
        DataError : scans that cannot be prepared, a loss that is not finite, a full disk.
        """
        from neurodiff.pipelines.ldae_training import fit_ldae

        return fit_ldae(self, train, validation, seed=seed, run=run, progress=progress)

    # -------------------------------------------------------------------------------- facts

    @property
    def size(self) -> LDAESize:
        return self.recipe.size

    @property
    def protocol(self) -> str:
        return self.recipe.protocol

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.recipe.size.grid

    @property
    def preparation(self) -> BrainPreprocessing | None:
        return self.recipe.preparation

    @property
    def code_width(self) -> int:
        """Numbers of a code."""
        return self.recipe.size.encoder.code

    @property
    def device(self) -> torch.device:
        return next(self.networks.decoder.parameters()).device

    @property
    def identity(self) -> str:
        """SHA-256 of all weights and of the scale of the latents, 64 hex digits."""
        if self._identity is None:
            from neurodiff.datasets.latent_cache import hash_of_weights

            networks = self.networks
            parts = {n: getattr(networks, n) for n in ("autoencoder", "decoder", "encoder")}
            named = {f"{p}.{k}": t for p, m in parts.items() for k, t in m.state_dict().items()}
            named["latent_scale"] = np.float64(networks.latent_scale)
            if networks.latent_mean is not None:
                named["latent_mean"] = networks.latent_mean
            self._identity = hash_of_weights(named)
        return self._identity

    def to(self, device: str | torch.device) -> LDAE:
        """Move the networks; returns self."""
        for network in (self.networks.autoencoder, self.networks.decoder, self.networks.encoder):
            network.to(device)
        return self

    # -------------------------------------------------------------------------------- scans

    def prepare(self, volume: Volume) -> Volume:
        """A scan on the model's grid, with values from 0 to 1.

        Raises
        ------
        DataError : a scan that cannot be prepared (`prepare_scan`), or, where the recipe has no
            preparation, one that is not on the grid or has other values.
        """
        if self.recipe.preparation is not None:
            return prepare_scan(volume, self.recipe.preparation).volume
        what = volume.name or "the volume"
        if volume.channels != 1 or volume.shape != self.size.grid:
            raise DataError(
                f"{what} has {volume.channels} channels of {volume.shape} voxels; this model reads "
                f"one of {self.size.grid} and its recipe prepares nothing: bring the scan to that "
                "grid first"
            )
        check_values(volume.data[None], what)
        if volume.data.min() == volume.data.max():
            raise DataError(
                f"{what} is {volume.data.min():g} everywhere; there is no picture in it"
            )
        return volume

    def latents(self, volumes: np.ndarray) -> np.ndarray:
        """Means of the latents (n, c, i, j, k) of volumes (n, 1, i, j, k), times their scale.

        Raises
        ------
        UsageError : volumes of another shape than the model's grid.
        DataError : NaN, or values outside [0, 1].
        """
        scale = self._scale()

        def one(x: Tensor) -> Tensor:
            return (encode(self.networks.autoencoder, x)[0] - self._centre(x)) * scale

        return self._each(one, self._volumes(volumes))

    def images(self, latents: np.ndarray, *, memory: float | None = None) -> np.ndarray:
        """Volumes (n, 1, i, j, k) of latents, cut to [0, 1].

        memory : bytes that decoding may take above the weights; then, and for large grids, in
            slabs (`decode_in_slabs`).
        """
        slabs = self.networks.latents(memory=memory)
        widest = self.size.autoencoder.widths[0] * int(np.prod(self.size.grid))

        def one(z: Tensor) -> Tensor:
            if memory is None and widest <= _WHOLE:
                z = z / self._scale() + self._centre(z)
                return self.networks.autoencoder.decode(z).clamp(0, 1)
            return slabs.decode(z).clamp(0, 1)

        return self._each(one, self._latents("latents", latents))

    def codes(self, volumes: np.ndarray) -> np.ndarray:
        """Semantic codes (n, d) of volumes (n, 1, i, j, k); errors as `latents`."""
        return self._each(self.networks.codes, self._volumes(volumes))

    # ------------------------------------------------------------------------------ the walk

    def noise(
        self,
        latents: np.ndarray,
        codes: np.ndarray,
        *,
        steps: int | None = None,
        method: Encoding | None = None,
    ) -> np.ndarray:
        """The noise from which latents come under their codes, see `LatentSampler.encode`."""
        sampler = self.sampler

        def one(z: Tensor, y: Tensor) -> Tensor:
            return sampler.encode(z, y, steps=steps, method=method).noise

        z = self._latents("latents", latents)
        y = self._codes(codes, len(z))
        if self._kept is None or not len(z):
            return self._each(one, z, y)
        return self._kept(lambda *rows: self._each(one, *rows), z, y, how=(steps, method))

    @contextmanager
    def keeping_noise(self) -> Iterator[None]:
        """Within it, the noise of a latent and code that was asked for is not walked to again.

        Holds one array of the latent's size an item. Not for a model whose weights change.
        """
        before, self._kept = self._kept, self._kept or KeptWalks()
        try:
            yield
        finally:
            self._kept = before

    def decode(
        self,
        codes: np.ndarray,
        noise: np.ndarray,
        *,
        steps: int | None = None,
        solver: Decoding | None = None,
        scale: float = 1.0,
    ) -> np.ndarray:
        """Latents from noise under codes, see `LatentSampler.decode`."""
        sampler = self.sampler

        def one(n: Tensor, y: Tensor) -> Tensor:
            return sampler.decode(y, n, steps=steps, solver=solver or "ddim", scale=scale)

        n = self._latents("noise", noise)
        return self._each(one, n, self._codes(codes, len(n)))

    def draw(
        self, scans: Sequence[tuple[object, object]], *, seed: int = 0, sample: int = 0
    ) -> np.ndarray:
        """Unit noise for (subject, scan) pairs; a scan's own in any batch and order."""
        generators = [scan_generator(seed, subject=s, scan=c, sample=sample) for s, c in scans]
        if not generators:
            return np.zeros((0, *self.size.latent), np.float32)
        return draw_noise(generators, self.size.latent).numpy()

    def reconstruct(
        self,
        volumes: np.ndarray,
        how: How = "encoded",
        *,
        scans: Sequence[tuple[object, object]] | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Volumes through the model and back.

        Parameters
        ----------
        how : "autoencoder" (the ceiling), "encoded" (code, and the noise that the scan's latent
            comes from), or "semantic" (code, and noise that is drawn).
        scans : (subject, scan) of each volume, which seed the noise that is drawn.
        steps : of a walk; by default the recipe's.

        Raises
        ------
        UsageError : an unknown way, or "semantic" without the names of the scans.
        """
        if how not in ("autoencoder", "encoded", "semantic"):
            raise UsageError(f"how is {how!r}; known are 'autoencoder', 'encoded' and 'semantic'")
        if how == "semantic":
            if scans is None or len(scans) != len(volumes):
                raise UsageError(
                    f"{len(volumes)} volumes and {'no' if scans is None else len(scans)} names; "
                    "give scans=[(subject, scan), ...], which seed the noise of each"
                )
            codes = self.codes(volumes)
            noise = self.draw(scans, seed=seed)
            return self.images(self.decode(codes, noise, steps=steps))
        latents = self.latents(volumes)
        if how == "encoded":
            codes = self.codes(volumes)
            noise = self.noise(latents, codes, steps=steps)
            latents = self.decode(codes, noise, steps=steps)
        return self.images(latents)

    # ------------------------------------------------------------------------------- changes

    def move(self, codes: np.ndarray, direction: Any, amount: float) -> np.ndarray:
        """Codes moved along a direction, given by name or as a `Direction`.

        An amount of 1 is one SD of the direction's score, along its pattern (`Direction.move`).
        Under "ldae-2025", and for a direction without pattern, as published: the z-scored code plus
        amount * sqrt(d) * w / |w|, and back.

        Raises
        ------
        UsageError : no direction of this name.
        """
        codes = self._codes(codes, None)
        direction = self._direction(direction)
        how = {"how": "pattern"} if self._along_pattern(direction) else {}
        return np.asarray(direction.move(codes, amount, **how), np.float32)

    def unit_of_moves(self, direction: Any) -> str:
        """What an amount of 1 is in `move`, in words."""
        if self._along_pattern(self._direction(direction)):
            return "one SD of the score in the training scans, along the pattern of the direction"
        return "sqrt(d) * w / |w| of the z-scored code, as published"

    def _direction(self, direction: Any) -> Any:
        if not isinstance(direction, str):
            return direction
        if direction not in self.directions:
            raise UsageError(
                f"this model has no direction {direction!r}; it has "
                f"{', '.join(self.directions) or 'none'}: fit it on a cohort that tells it."
                f"{suggest(direction, self.directions)}"
            )
        return self.directions[direction]

    def _along_pattern(self, direction: Any) -> bool:
        return self.protocol != "ldae-2025" and getattr(direction, "pattern", None) is not None

    def between(
        self,
        codes_a: np.ndarray,
        codes_b: np.ndarray,
        noise_a: np.ndarray,
        noise_b: np.ndarray,
        t: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes on the line and noises on the great circle between two scans; t 0 is the first.

        Raises
        ------
        UsageError : ``t`` outside [0, 1], or arrays of different lengths.
        """
        if not 0 <= t <= 1:
            raise UsageError(f"t is {t}; expected a place between the two scans, from 0 to 1")
        a, b = self._latents("noise", noise_a), self._latents("noise", noise_b)
        if len(a) != len(b):
            raise UsageError(f"{len(a)} and {len(b)} noises; give the two ends of each pair")
        y_a, y_b = self._codes(codes_a, len(a)), self._codes(codes_b, len(a))
        codes = torch.lerp(torch.from_numpy(y_a), torch.from_numpy(y_b), float(t))
        circle = slerp(torch.from_numpy(a), torch.from_numpy(b), float(t))
        return codes.numpy(), circle.numpy()

    # ------------------------------------------------------------------------------- parts

    @property
    def sampler(self) -> LatentSampler:
        """The walks, in tensors."""
        return self._sampler

    def _set(self, networks: LDAENetworks) -> None:
        for network in (networks.autoencoder, networks.decoder, networks.encoder):
            network.eval().requires_grad_(False)
        self.networks = networks
        self._sampler = LatentSampler(networks.decoder, self.recipe.walks())
        self._identity: str | None = None
        self._kept: KeptWalks | None = None

    def _scale(self) -> float:
        assert self.networks.latent_scale is not None
        return self.networks.latent_scale

    def _centre(self, like: Tensor) -> Any:
        """What is taken from a latent of the autoencoder before its scale."""
        mean = self.networks.latent_mean
        return 0.0 if mean is None else mean.to(like)

    def _volumes(self, volumes: np.ndarray) -> np.ndarray:
        return checked_volumes(volumes, self.size)

    def _latents(self, name: str, values: np.ndarray) -> np.ndarray:
        return checked_latents(name, values, self.size)

    def _codes(self, codes: np.ndarray, items: int | None) -> np.ndarray:
        return checked_codes(codes, items, self.size)

    @torch.no_grad()
    def _each(self, do: Callable[..., Tensor], *arrays: np.ndarray) -> np.ndarray:
        """``do`` of ``at_once`` items at a time, on the networks' device; float32."""
        if not len(arrays[0]):
            raise UsageError("there is no item; give at least one")
        out = []
        for start in range(0, len(arrays[0]), self.at_once):
            parts = [
                torch.from_numpy(np.ascontiguousarray(a[start : start + self.at_once], np.float32))
                for a in arrays
            ]
            found = do(*(part.to(self.device) for part in parts))
            out.append(found.float().cpu().numpy())
        return np.concatenate(out)

    def __repr__(self) -> str:
        grid = " x ".join(map(str, self.size.grid))
        state = "" if self.fitted else ", not fitted"
        return f"<LDAE {self.recipe.name}, {grid} voxels, codes of {self.size.encoder.code}{state}>"


def with_networks(pipe: LDAE, networks: LDAENetworks) -> LDAE:
    """``pipe`` itself, with these networks in it and its protocol on them."""
    pipe._set(replace(networks, protocol=pipe.recipe.protocol))
    pipe.fitted = True
    return pipe
