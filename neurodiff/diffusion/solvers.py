"""Grids of levels, and the step from one level to the next.

A grid is a list of levels from noisy to clean.  A solver turns the state at one level and the mean
of x_0 that a denoiser gave there into the state at the next level.  It is told both levels.

The one line under all of DDIM: x_b = alpha_b D + sigma_b eps, with D the mean of x_0 and
eps = (x_a - alpha_a D) / sigma_a the noise that belongs to it; with ``eta`` above 0 a share of
that noise is exchanged for fresh noise.  Source: Song et al., "Denoising Diffusion Implicit
Models", ICLR 2021.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.diffusion.paths import CLEAN, Level, VariancePreserving


@runtime_checkable
class Solver(Protocol):
    """A step between two levels."""

    def noise_sd(self, a: Level, b: Level) -> float:
        """SD of the fresh noise that the step from ``a`` to ``b`` adds; 0 asks for none."""

    def step(self, x: Tensor, mean: Tensor, a: Level, b: Level, noise: Tensor | None) -> Tensor:
        """State at ``b`` from the state ``x`` and the mean of x_0 at ``a``."""


def noise_of(
    x: Float[Tensor, "*s"], mean: Float[Tensor, "*s"], level: Level
) -> Float[Tensor, "*s"]:
    """The noise that belongs to a mean of x_0: (x - alpha mean) / sigma."""
    return (x - level.alpha * mean) / level.sigma


@dataclass(frozen=True)
class DDIM:
    """The DDIM step; ``eta`` 0 is deterministic, 1 is the ancestral step of DDPM."""

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must lie between 0 and 1")

    def noise_sd(self, a: Level, b: Level) -> float:
        """SD of the fresh noise: eta times that of the posterior q(x_b | x_a, x_0)."""
        if self.eta == 0 or b.sigma == 0:
            return 0.0
        kept = (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2
        return self.eta * float(b.sigma) * math.sqrt(max(0.0, 1 - kept))

    def step(
        self,
        x: Float[Tensor, "*s"],
        mean: Float[Tensor, "*s"],
        a: Level,
        b: Level,
        noise: Float[Tensor, "*s"] | None = None,
    ) -> Float[Tensor, "*s"]:
        """State at ``b``; ``noise`` (unit variance) is used where :meth:`noise_sd` is above 0."""
        return _renoised(x, mean, a, b, self.noise_sd(a, b), noise)


@dataclass(frozen=True)
class BridgeDDIM2024:
    """The DDIM step of the published MinD-3D bridge (protocol ``mind3d-2024``).

    It takes the noise out at step t, and does the rest one row further down the table: the state
    that it hands to the network as step t' has the level of t' - 1, and the share of fresh noise
    is that between t - 1 and t' - 1.  On the cosine path of 100 steps the state is cleaner than
    the network is told: sigma is lower by 2 % at t = 40, 8 % at t = 10, 28 % at t = 2.  Kept for
    published weights; :class:`DDIM` is the consistent step.
    """

    path: VariancePreserving
    eta: float = 1.0

    def noise_sd(self, a: Level, b: Level) -> float:
        """SD of the fresh noise; 0 when the next step is 0 or clean data."""
        if b.t < 1:
            return 0.0
        return DDIM(self.eta).noise_sd(self._before(a), self._before(b))

    def step(
        self,
        x: Float[Tensor, "*s"],
        mean: Float[Tensor, "*s"],
        a: Level,
        b: Level,
        noise: Float[Tensor, "*s"] | None = None,
    ) -> Float[Tensor, "*s"]:
        """State that the network is told to be at ``b``; clean data when ``b`` is."""
        return _renoised(x, mean, a, self._before(b), self.noise_sd(a, b), noise)

    def _before(self, level: Level) -> Level:
        return CLEAN if level.t < 1 else self.path.level(int(level.t) - 1)


def _renoised(
    x: Tensor, mean: Tensor, a: Level, b: Level, fresh: float, noise: Tensor | None
) -> Tensor:
    """x_b = alpha_b mean + sqrt(sigma_b² - fresh²) eps + fresh noise."""
    if b.sigma == 0:
        return b.alpha * mean
    x_b = b.alpha * mean + math.sqrt(b.sigma**2 - fresh**2) * noise_of(x, mean, a)
    if fresh == 0:
        return x_b
    if noise is None:
        raise ValueError(f"the step from t={a.t:g} to t={b.t:g} adds noise, but none was given")
    return x_b + fresh * noise


def trailing(path: VariancePreserving, steps: int) -> list[Level]:
    """``steps`` levels evenly spaced in t, the first being the noisiest of the path, then clean.

    Examples
    --------
    >>> from neurodiff.diffusion.paths import cosine
    >>> [int(level.t) for level in trailing(cosine(100), 4)]
    [99, 74, 49, 24, -1]
    """
    if not 1 <= steps <= path.steps:
        raise ValueError(f"steps is {steps}; this path has 1 to {path.steps}")
    times = [round(path.steps * (1 - i / steps)) - 1 for i in range(steps)]
    return explicit(path, times)


def explicit(path: VariancePreserving, times: Sequence[int]) -> list[Level]:
    """The levels of falling ``times``, then clean data if it is not the last (-1)."""
    times = list(times)
    if not times or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"times must fall, got {times}")
    if times[-1] != -1:
        times.append(-1)
    return [path.level(t) for t in times]


def bridge_2024(path: VariancePreserving, points: int = 64) -> list[Level]:
    """The grid of the published MinD-3D bridge: ``points`` - 1 network calls, then clean data.

    Times are those of a line of ``points`` + 1 from -1 to T, without its end, cut to integers
    towards 0.  The first is not the noisiest step although sampling starts from pure noise.

    Examples
    --------
    >>> from neurodiff.diffusion.paths import cosine
    >>> [int(level.t) for level in bridge_2024(cosine(100), 8)]
    [87, 74, 62, 49, 36, 24, 11, -1]
    """
    line = torch.linspace(-1, path.steps, points + 1, dtype=torch.float64)[:-1]
    return explicit(path, [int(t) for t in line.flip(0)])
