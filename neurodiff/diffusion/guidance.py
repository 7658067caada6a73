"""Denoisers made from denoisers: guidance, mixtures, shifts and projections.

All act on the mean of x_0.  At a fixed x and level, noise, v, flow and score are affine in that
mean with one coefficient, so a weight means the same thing for each of them, in training and in
sampling.  Sources: Ho and Salimans 2022 (classifier-free); Kynkäänniemi et al. 2024 (interval);
Zhang et al. 2022, PDAE (shift of the score).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.sampling import Denoiser

ALWAYS = (0.0, math.inf)  # noise ratios sigma / alpha within which guidance acts, both included


def _acts(level: Level, interval: tuple[float, float]) -> Any:
    """Whether guidance acts at a level; of a batch of levels, a tensor of that."""
    ratio = level.sigma / level.alpha if isinstance(level.alpha, Tensor) else level.ratio
    return (ratio >= interval[0]) & (ratio <= interval[1])


@dataclass(frozen=True)
class ClassifierFree:
    """unconditional + w (conditional - unconditional), inside an interval of noise ratios.

    Parameters
    ----------
    denoiser : gives both means, from two states.
    w : 1 is the plain conditional denoiser (and costs one call), 0 the unconditional one.
    null : makes the condition that stands for "nothing known" from a condition; not called for
        ``w`` = 1.
    interval : smallest and largest sigma / alpha at which ``w`` acts; outside, it is 1.
    """

    denoiser: Denoiser
    w: float
    null: Callable[[Any], Any]
    interval: tuple[float, float] = ALWAYS

    def prepare(self, cond: Any) -> tuple[Any, Any]:
        """States of the condition and of its null."""
        known = self.denoiser.prepare(cond)
        return known, None if self.w == 1 else self.denoiser.prepare(self.null(cond))

    def __call__(self, x: Tensor, level: Level, state: tuple[Any, Any]) -> Tensor:
        """The guided mean of x_0."""
        known, unknown = state
        mean = self.denoiser(x, level, known)
        acts = _acts(level, self.interval)
        if self.w == 1 or acts is False:
            return mean
        base = self.denoiser(x, level, unknown)
        return mean + acts * (self.w - 1) * (mean - base)


@dataclass(frozen=True)
class Mix:
    """(1 - share) first + share second: two denoisers, or one with two conditions."""

    first: Denoiser
    second: Denoiser
    share: float

    def prepare(self, cond: tuple[Any, Any]) -> tuple[Any, Any]:
        """States of a pair of conditions."""
        return self.first.prepare(cond[0]), self.second.prepare(cond[1])

    def __call__(self, x: Tensor, level: Level, state: tuple[Any, Any]) -> Tensor:
        mean = self.first(x, level, state[0])
        return mean + self.share * (self.second(x, level, state[1]) - mean)


@dataclass(frozen=True)
class ScoreShift:
    """score + scale * shift: the mean of x_0 moves by scale sigma² / alpha shift.

    ``shift`` is a second :class:`Denoiser`-like object whose call gives a correction of the score,
    of the shape of x (PDAE's and LDAE's gradient estimator: noise eps - sigma shift).  This one
    coefficient serves training and sampling; the published training uses another (reference
    ldae.md, 2.4), within 2 % of it for t >= 100.  ``interval`` as in :class:`ClassifierFree`.
    """

    denoiser: Denoiser
    shift: Any
    scale: float = 1.0
    interval: tuple[float, float] = ALWAYS

    def prepare(self, cond: tuple[Any, Any]) -> tuple[Any, Any]:
        """States of the condition of the denoiser and of that of the shift."""
        return self.denoiser.prepare(cond[0]), self.shift.prepare(cond[1])

    def __call__(self, x: Tensor, level: Level, state: tuple[Any, Any]) -> Tensor:
        mean = self.denoiser(x, level, state[0])
        acts = _acts(level, self.interval)
        if acts is False:
            return mean
        moved = acts * self.scale * level.sigma**2 / level.alpha
        return mean + moved * self.shift(x, level, state[1])


@dataclass(frozen=True)
class Projected:
    """The mean of x_0 put onto a set by ``project``, such as :func:`clipped` or :func:`of_norm`.

    Off unless asked for: it keeps pixels in range, but it biases latents and makes
    inversion inexact.
    """

    denoiser: Denoiser
    project: Callable[[Tensor], Tensor]

    def prepare(self, cond: Any) -> Any:
        return self.denoiser.prepare(cond)

    def __call__(self, x: Tensor, level: Level, state: Any) -> Tensor:
        return self.project(self.denoiser(x, level, state))


def clipped(limit: float) -> Callable[[Tensor], Tensor]:
    """Clip to +-``limit``."""
    return lambda mean: mean.clamp(-limit, limit)


def of_norm(radius: float) -> Callable[[Tensor], Tensor]:
    """Scale each item to the length ``radius`` (embeddings of sqrt(dim))."""
    return lambda mean: radius * normalize(mean.flatten(1), dim=1).reshape(mean.shape)
