"""Steps from one level to the next.

``step(x, a, b, denoise, fresh, memory)`` gives the state at level b from x at level a.
``denoise(x, level)`` is the mean of x_0, ``fresh()`` unit noise, ``memory`` a dict of the run.

The line under all of them: x_b = alpha_b D + sigma_b eps, D the mean of x_0 and
eps = (x_a - alpha_a D) / sigma_a the noise that belongs to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neurodiff.diffusion.paths import Level, Path


def renoised(
    x: Tensor, mean: Tensor, a: Level, b: Level, sd: float = 0.0, fresh: Any = None
) -> Tensor:
    """alpha_b D + sqrt(sigma_b² - sd²) eps + sd fresh noise (Song et al. 2021, DDIM, eq. 12)."""
    if b.sigma == 0:
        return b.alpha * mean
    eps = (x - a.alpha * mean) / a.sigma
    x_b = b.alpha * mean + math.sqrt(b.sigma**2 - sd**2) * eps
    return x_b if sd == 0 else x_b + sd * fresh()


def ancestral_sd(a: Level, b: Level) -> float:
    """SD of q(x_b | x_a, x_0): the fresh noise of one ancestral step (DDPM, eq. 7)."""
    kept = (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2
    return float(b.sigma) * math.sqrt(max(0.0, 1 - kept))


@dataclass(frozen=True)
class DDIM:
    """Song et al. 2021; ``eta`` 0 is deterministic, 1 has the fresh noise of DDPM."""

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must lie between 0 and 1")

    def step(self, x, a, b, denoise, fresh, memory) -> Tensor:
        return renoised(x, denoise(x, a), a, b, self.eta * ancestral_sd(a, b), fresh)


@dataclass(frozen=True)
class Ancestral:
    """Draw from p(x_b | x_a), taken as Gaussian: mean that of q(x_b | x_a, x_0 = D) and variance

        ancestral_sd² + (d x_b / d x_0)² Var[x_0 | x_a],  d x_b / d x_0 = alpha_b - kept alpha_a,

    kept = (alpha_a / alpha_b) sigma_b² / sigma_a².  ``variance(level)`` is Var[x_0 | x_a], a number
    or a tensor that broadcasts against x (:func:`posterior_variance` estimates it).  Without, it is
    0: the "small" variance of DDPM, which narrows the spread when steps are few.  With it Gaussian
    data keep their spread for any number of steps.  Bao et al. 2022, Analytic-DPM, theorem 1.
    """

    variance: Callable[[Level], Any] | None = None

    def step(self, x, a, b, denoise, fresh, memory) -> Tensor:
        kept = a.alpha / b.alpha * b.sigma**2 / a.sigma**2
        slope = b.alpha - kept * a.alpha
        x_b = kept * x + slope * denoise(x, a)
        own = 0.0 if self.variance is None else self.variance(a)
        own = torch.as_tensor(own, dtype=x.dtype, device=x.device)
        spread = (ancestral_sd(a, b) ** 2 + slope**2 * own).sqrt()
        return x_b + spread * fresh() if (spread > 0).any() else x_b


@dataclass(frozen=True)
class EDMStep:
    """Karras et al. 2022, algorithm 2, on x / alpha and its noise r = sigma / alpha, for any path.

    ``order`` 1 is Euler (without churn: DDIM), 2 Heun, with two calls a step but for the last.
    ``churn`` > 0 first raises r to r (1 + min(churn / steps, sqrt(2) - 1)), for r inside
    ``between``, by noise of SD ``noise`` times what that takes; it needs the ``path`` and the
    number of ``steps``.
    """

    order: int = 2
    churn: float = 0.0
    between: tuple[float, float] = (0.0, math.inf)
    noise: float = 1.0
    path: Path | None = None
    steps: int = 1

    def __post_init__(self):
        if self.order not in (1, 2) or (self.churn and self.path is None):
            raise ValueError("EDMStep has order 1 or 2, and churn needs the path and its steps")

    def step(self, x, a, b, denoise, fresh, memory) -> Tensor:
        if not a.alpha:
            raise ValueError("EDMStep cannot start from pure noise; take a grid such as karras")
        z, r, r_b = x / a.alpha, a.ratio, b.ratio
        if self.churn and self.between[0] <= r <= self.between[1]:
            a = self.path.at(r * (1 + min(self.churn / self.steps, math.sqrt(2) - 1)), whole=False)
            z = z + math.sqrt(a.ratio**2 - r**2) * self.noise * fresh()
            r = a.ratio
        slope = (z - denoise(a.alpha * z, a)) / r
        z_b = z + (r_b - r) * slope
        if self.order == 2 and r_b > 0:
            slope_b = (z_b - denoise(b.alpha * z_b, b)) / r_b
            z_b = z + (r_b - r) * (slope + slope_b) / 2
        return b.alpha * z_b


@dataclass(frozen=True)
class DPMSolver2M:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: one call a step, second order.

    With lambda = ln(alpha / sigma), h = lambda_b - lambda_a and q = h_before / h:
    x_b = sigma_b / sigma_a x_a + (alpha_b - alpha_a sigma_b / sigma_a) D',
    D' = D + (D - D_before) / (2 q); the first step, and the one to clean data, take D' = D.
    """

    def step(self, x, a, b, denoise, fresh, memory) -> Tensor:
        mean = blend = denoise(x, a)
        if "mean" in memory and b.sigma > 0 and a.alpha > 0:
            h, h_before = (math.log(n.ratio / m.ratio) for n, m in [(a, b), (memory["level"], a)])
            blend = mean + (mean - memory["mean"]) * (h / (2 * h_before))
        memory.update(mean=mean, level=a)
        fall = b.sigma / a.sigma
        return fall * x + (b.alpha - a.alpha * fall) * blend
