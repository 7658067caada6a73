"""Trunk and shift of LDAE as one denoiser, with one coefficient in training and in sampling.

``guidance.ScoreShift`` of the diffusion core takes two denoisers, so a trunk that both need would
run twice; :class:`ShiftDenoiser` is the same formula over one call of a `ShiftUNet`.

Sources: Zhang et al. 2022, PDAE, equations 9 to 11; Lozupone et al. 2026, LDAE, and its released
code (the coefficient of its training, which is another than that of its sampling).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurodiff.diffusion.guidance import ALWAYS
from neurodiff.diffusion.paths import Level, VariancePreserving

Coefficient = Callable[[Level], Any]


def one_coefficient(level: Level) -> Any:
    """Noise is eps - sigma G: G is then a correction of the score."""
    return level.sigma


def published_training_coefficient(path: VariancePreserving) -> Coefficient:
    """sqrt(a_t) (1 - abar_(t-1)) / sqrt(1 - abar_t), which the released code trains with.

    It is 0 at t = 0 and within 2 % of sigma from t = 100; for protocol "ldae-2025" only.  Levels
    have whole steps.
    """
    kept = path.alphas_cumprod
    before = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    table = ((kept / before).sqrt() * (1 - before) / (1 - kept).sqrt()).float().double()

    def coefficient(level: Level) -> Any:
        if not isinstance(level.sigma, Tensor):
            return float(table[int(level.t)])
        return table[level.t.cpu().long()].to(level.sigma).reshape(level.sigma.shape)

    return coefficient


@dataclass(frozen=True)
class ShiftDenoiser:
    """Mean of x_0 of a latent under its semantic code: (x - sigma (eps - scale c G)) / alpha.

    A :class:`~neurodiff.diffusion.sampling.Denoiser` whose condition is codes (n, semantic), or
    None for the trunk alone.  `Objective` with head ``EPS`` and ``snr_power()`` trains it as LDAE's
    stage 3.

    Parameters
    ----------
    network : `ShiftUNet`, or anything that is called alike and has ``noise``.
    scale : of the shift; 1 as trained.
    coefficient : c by level; :func:`one_coefficient` serves training and sampling.
    interval : smallest and largest sigma / alpha at which the shift acts; outside, only the trunk
        runs.
    dtype : of the network, where it is not that of the latents.
    """

    network: Any
    scale: float = 1.0
    coefficient: Coefficient = one_coefficient
    interval: tuple[float, float] = ALWAYS
    dtype: torch.dtype | None = None

    def prepare(self, cond: Tensor | None) -> Tensor | None:
        """The codes themselves: what depends on them alone is one small layer."""
        return cond

    def __call__(self, x: Tensor, level: Level, state: Tensor | None) -> Tensor:
        dtype = self.dtype or x.dtype
        told = torch.promote_types(x.dtype, torch.float32)
        t = torch.as_tensor(level.t, dtype=told, device=x.device).flatten().expand(len(x))
        if state is None or not self._acts(level):
            noise = self.network.noise(x.to(dtype), t).to(x.dtype)
        else:
            noise, shift = (
                part.to(x.dtype) for part in self.network(x.to(dtype), t, state.to(dtype))
            )
            noise = noise - self._amount(level) * shift
        return (x - level.sigma * noise) / level.alpha

    def _acts(self, level: Level) -> bool:
        """Whether the shift has to run; of a batch of levels, for any of its items."""
        if not isinstance(level.sigma, Tensor):
            return self.interval[0] <= level.ratio <= self.interval[1]
        return bool(self._inside(level).any())

    def _inside(self, level: Level) -> Tensor:
        ratio = level.sigma / level.alpha
        return (ratio >= self.interval[0]) & (ratio <= self.interval[1])

    def _amount(self, level: Level) -> Any:
        amount = self.scale * self.coefficient(level)
        return amount * self._inside(level) if isinstance(level.sigma, Tensor) else amount
