"""The noise of `noise.smooth_noise` on some of the vertices, at the price of some of the vertices.

A thousand null subjects on a few areas need not make noise for the whole visual cortex: of the
smoothing kernel only the rows of the wanted vertices are taken, and of the white noise only the
vertices which those rows reach. The law of the noise is the same, its covariance in closed form:

    cov = (1 - c) K K' + c 1 1'        K the kernel's rows, c the share that all vertices have
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import numpy_generator
from neurodiff.datasets.simulated.noise import (
    MEASURED_COMMON_SHARE,
    MEASURED_FWHM_MM,
    MEASURED_LAG1,
    smoothing_kernel,
)
from neurodiff.datasets.surface import load_visual_cortex


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchNoise:
    """Unit-variance noise at ``columns``, smooth along the cortex and AR(1) along frames.

    Attributes
    ----------
    columns : which of the 8,921 visual vertices, ascending.
    fwhm_mm, rho, common_share : as in `noise.smooth_noise`.

    Raises
    ------
    UsageError : a number outside its range.
    """

    columns: Int[np.ndarray, " v"]
    fwhm_mm: float = MEASURED_FWHM_MM
    rho: float = MEASURED_LAG1
    common_share: float = MEASURED_COMMON_SHARE
    kernel: csr_array = field(init=False, repr=False)  # (v, white)

    def __post_init__(self) -> None:
        if not -1 < self.rho < 1 or not 0 <= self.common_share <= 1:
            raise UsageError(
                f"rho is {self.rho} and common_share {self.common_share}; expected an "
                "autocorrelation between -1 and 1 and a share from 0 to 1"
            )
        rows = csr_array(smoothing_kernel(load_visual_cortex(), self.fwhm_mm)[self.columns])
        reached = np.unique(rows.indices)
        object.__setattr__(self, "kernel", csr_array(rows[:, reached]))

    def draw(self, seeds: Sequence[int], *, frames: int = 1) -> Float[np.ndarray, "n frames v"]:
        """One trial a seed, float32; a trial's noise depends on its own seed only."""
        if frames < 1:
            raise UsageError(f"{frames} frames; noise has at least 1")
        n_white = self.kernel.shape[1]
        white = np.zeros((len(seeds), frames, n_white + 1), np.float32)
        for trial, seed in enumerate(seeds):
            white[trial] = numpy_generator(seed).standard_normal((frames, n_white + 1), np.float32)
        fresh = np.float32(np.sqrt(1 - self.rho**2))
        for frame in range(1, frames):
            white[:, frame] *= fresh
            white[:, frame] += np.float32(self.rho) * white[:, frame - 1]
        flat = white.reshape(-1, n_white + 1)
        own = (self.kernel @ flat[:, :-1].T).T * np.float32(np.sqrt(1 - self.common_share))
        own += np.float32(np.sqrt(self.common_share)) * flat[:, -1:]
        return np.ascontiguousarray(own).reshape(len(seeds), frames, -1)

    def covariance(self, chosen: np.ndarray | None = None) -> Float[np.ndarray, "w w"]:
        """Covariance of one frame between the vertices, or between those ``chosen`` of them."""
        rows = self.kernel if chosen is None else csr_array(self.kernel[np.flatnonzero(chosen)])
        return (1 - self.common_share) * (rows @ rows.T).toarray() + self.common_share

    def variance_of(self, weights: Float[np.ndarray, "v k"]) -> Float[np.ndarray, " k"]:
        """Variance of ``noise @ weights`` for one frame."""
        own = np.square(self.kernel.T @ weights).sum(axis=0)
        return (1 - self.common_share) * own + self.common_share * weights.sum(axis=0) ** 2
