"""The walk of LDAE's released code, digit for digit: protocol "ldae-2025".

Its tables are float32, each rounded by itself, and those of a walk of N steps are derived from the
rounded ones in float32 arithmetic.  At step 0 the noise that is divided by is thereby off by 5e-5,
and a state that was encoded carries it on; :mod:`neurodiff.diffusion` knows one alpha and one sigma
a level, in float64, and cannot say that.  Apart from rounding, both walk the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurodiff.diffusion.paths import Level, VariancePreserving, linear


def published_path(steps: int, first: float, last: float) -> VariancePreserving:
    """The linear path with alpha and sigma rounded to float32 after they were computed."""
    path = linear(steps, first, last)
    path.alpha, path.sigma = path.alpha.float().double(), path.sigma.float().double()
    return path


def published_times(train_steps: int, steps: int) -> list[int]:
    """The N + 1 steps of a walk, rising: floors of an even grid from 0 to the last."""
    return [int(t) for t in np.linspace(0, train_steps - 1, steps + 1).astype(int)]


class PublishedDDIM:
    """A solver of the diffusion core whose levels and steps are the released code's.

    Parameters
    ----------
    alphas_cumprod : (T,) of the path, float64.
    times : steps of the walk, rising.

    ``levels``, rising as ``times``, are what a denoiser has to be asked with, and
    :meth:`coefficient` is what it has to multiply the shift with.
    """

    def __init__(self, alphas_cumprod: Tensor, times: Sequence[int]) -> None:
        one = np.float32(1)
        kept = alphas_cumprod.numpy().astype(np.float32)[list(times)]
        before = np.concatenate([[one], kept[:-1]]).astype(np.float32)
        kept = np.cumprod(one - (one - kept / before))  # through the betas of the walk
        recip, noise = np.sqrt(one / kept), np.sqrt(one / kept - one)
        self.levels = [
            Level(float(t), 1 / float(r), float(m) / float(r))
            for t, r, m in zip(times, recip, noise, strict=True)
        ]
        pairs = zip(np.sqrt(kept), np.sqrt(one - kept), strict=True)
        self.aims = {float(t): (float(a), float(s)) for t, (a, s) in zip(times, pairs, strict=True)}

    def coefficient(self, level: Level) -> float:
        """sqrt(1 - abar) of the level's step."""
        return self.aims[level.t][1]

    def step(self, x: Tensor, a: Level, b: Level, denoise: Any, fresh: Any, memory: Any) -> Tensor:
        """alpha_b D + sigma_b eps, either way along the grid."""
        mean = denoise(x, a)
        alpha, sigma = self.aims[b.t]
        return alpha * mean + sigma * (x - a.alpha * mean) / a.sigma


def walk(
    denoise: Any, x: Tensor, levels: Sequence[Level], solver: Any, *, state: Any = None
) -> Tensor:
    """``x`` along levels in the order given, also from clean to noisy, which `sample` refuses."""
    memory: dict[str, Any] = {}
    with torch.no_grad():
        for a, b in pairwise(levels):
            x = solver.step(x, a, b, lambda at, level: denoise(at, level, state), None, memory)
    return x
