"""An autoencoder without diffusion and semantic encoder, as a model whose code is the latent.

That is what the published files of BrLP and MONAI's brain bundle hold.  A scan becomes the means of
its latent (3 x 16 x 20 x 16 = 15,360 numbers at the published size), and comes back from them.
There is nothing that an edit could move along, and no noise.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.models.ldae_autoencoder import autoencoder_size_of, encode
from neurodiff.pipelines.brain_preprocessing import BrainPreprocessing, prepare_scan
from neurodiff.pipelines.ldae_arrays import check_finite, check_values
from neurodiff.pipelines.ldae_files import LDAENetworks, shapes_of

PUBLISHED_GRID = (128, 160, 128)


class AutoencoderAlone:
    """What `neurodiff encode` and `decode` need of a model, from an autoencoder.

    Parameters
    ----------
    network : MONAI's ``AutoencoderKL`` of one channel.
    grid : (i, j, k) of the scans, which weights do not say; multiples of the halvings.
    preparation : of a scan; by default 1.5 mm on this grid, as LDAE and BrLP prepare theirs.

    Raises
    ------
    UsageError : a grid that the network cannot halve, or a network of several channels.
    """

    fitted = True
    protocol = "autoencoder"

    def __init__(
        self,
        network: Any,
        *,
        grid: tuple[int, int, int] = PUBLISHED_GRID,
        preparation: BrainPreprocessing | None = None,
        name: str = "autoencoder",
    ) -> None:
        size = autoencoder_size_of(shapes_of(network.state_dict()))
        if size.image_channels != 1:
            raise UsageError(f"{name} reads {size.image_channels} channels; a brain scan has one")
        if any(side < 1 or side % size.factor for side in grid):
            raise UsageError(f"grid is {grid}; {name} needs multiples of {size.factor}")
        self.networks = LDAENetworks(network.eval().requires_grad_(False), latent_scale=1.0)
        self.grid, self.name = grid, name
        self.preparation = preparation or BrainPreprocessing(shape=grid)
        i, j, k = (side // size.factor for side in grid)
        self.latent = (size.latent_channels, i, j, k)
        self._identity: str | None = None

    @property
    def code_width(self) -> int:
        """Numbers of a latent."""
        return prod(self.latent)

    @property
    def identity(self) -> str:
        """SHA-256 of the weights, 64 hex digits."""
        if self._identity is None:
            from neurodiff.datasets.latent_cache import hash_of_weights

            self._identity = hash_of_weights(self.networks.autoencoder.state_dict())
        return self._identity

    def to(self, device: str | torch.device) -> AutoencoderAlone:
        """Move the network; returns self."""
        self.networks.autoencoder.to(device)
        return self

    def prepare(self, volume: Volume) -> Volume:
        """A scan on the grid, from 0 to 1; errors as `prepare_scan`."""
        return prepare_scan(volume, self.preparation).volume

    @torch.no_grad()
    def codes(self, volumes: np.ndarray) -> np.ndarray:
        """Means of latents as rows (n, c * i * j * k), float32, unscaled, of volumes (n, 1, ...).

        Raises
        ------
        UsageError : volumes of another shape than the grid.
        DataError : NaN, or values outside [0, 1].
        """
        volumes = np.asarray(volumes)
        if volumes.ndim != 5 or volumes.shape[1:] != (1, *self.grid):
            raise UsageError(
                f"volumes have shape {volumes.shape}; {self.name} is set to read (n, 1, "
                f"{', '.join(map(str, self.grid))})"
            )
        check_values(volumes, "volumes")
        network = self.networks.autoencoder
        rows = [encode(network, self._tensor(v[None]))[0].flatten(1) for v in volumes]
        return torch.cat(rows).float().cpu().numpy()

    def images(self, codes: np.ndarray) -> np.ndarray:
        """Volumes (n, 1, i, j, k) of latents as rows, cut to [0, 1].

        Raises
        ------
        DataError : rows of another length, NaN.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.code_width:
            raise DataError(
                f"latents have shape {codes.shape}; {self.name} has (n, {self.code_width})"
            )
        check_finite(codes, "latents")
        latents = self.networks.latents()
        made = [latents.decode(self._tensor(row.reshape(1, *self.latent))) for row in codes]
        return torch.cat(made).clamp(0, 1).float().cpu().numpy()

    def _tensor(self, values: np.ndarray) -> Tensor:
        device = next(self.networks.autoencoder.parameters()).device
        return torch.from_numpy(np.array(values, np.float32, order="C")).to(device)

    def __repr__(self) -> str:
        grid = " x ".join(map(str, self.grid))
        return f"<AutoencoderAlone {self.name}, {grid} voxels, latents of {self.code_width}>"
