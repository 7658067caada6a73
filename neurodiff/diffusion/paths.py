"""Points of a diffusion path, and paths: x_t = alpha x_0 + gamma y + sigma eps.

Everything that samples or trains takes a :class:`Level`, never a bare step number, so no module
has to guess which "previous" step another one meant.  Tables are float64 whatever a network uses.

Sources: Ho et al. 2020 (variance preserving); Nichol and Dhariwal 2021 (cosine betas); Karras et
al. 2022, EDM (levels as the only interface); Lipman et al. 2023, Esser et al. 2024 (flow, shift);
Richter et al. 2023, SGMSE+ (paths anchored at a measurement y).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TABLE: Any = {"dtype": torch.float64, "device": "cpu"}  # whatever torch's default device is


@dataclass(frozen=True)
class Level:
    """One point of a path.  ``t`` is the number that the network is told; -1 is clean data.

    The fields are floats, or tensors that broadcast against a batch (:meth:`Path.levels`).
    """

    t: Any
    alpha: Any
    sigma: Any
    gamma: Any = 0.0

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise of x / alpha; infinite for pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """ln(alpha² / sigma²); infinite for clean data."""
        return -2 * math.log(self.ratio) if self.ratio else math.inf


CLEAN = Level(-1.0, 1.0, 0.0)


class Path:
    """What the paths share.  One gives ``coefficients(t)`` -> (alpha, sigma) in float64, levels
    ``at(ratio, whole)`` and by ``share(u)`` of the way from clean, the largest and the smallest
    ratio as ``ends``, and ``sample_t(n, generator)``, times for training."""

    gamma: Any = None  # of an anchored path: a function of the level

    def level(self, t: Any) -> Level:
        """The level of time ``t``, or clean data for -1."""
        if t == -1:
            return CLEAN
        alpha, sigma = map(float, self.coefficients(torch.tensor(t, **TABLE)))
        if not (alpha >= 0 and sigma > 0):
            raise ValueError(f"t = {t} is not on this path: alpha {alpha:g}, sigma {sigma:g}")
        return self._point(float(t), alpha, sigma)

    def levels(self, t: Tensor, *, like: Tensor) -> Level:
        """Levels of a batch, (n,) times: they broadcast against ``like`` (n, ...), in its dtype."""
        shape = (len(t),) + (1,) * (like.ndim - 1)
        alpha, sigma = (c.to(like).reshape(shape) for c in self.coefficients(t.cpu()))
        return self._point(t, alpha, sigma)

    def _point(self, t: Any, alpha: Any, sigma: Any) -> Level:
        level = Level(t, alpha, sigma)
        return level if self.gamma is None else replace(level, gamma=self.gamma(level))


class VariancePreserving(Path):
    """T steps with alpha² + sigma² = 1, from alpha² after each (T,), falling, inside (0, 1).

    Examples
    --------
    >>> path = cosine(100)
    >>> path.steps, round(path.level(0).alpha, 6), path.level(-1) == CLEAN
    (100, 0.999684, True)
    """

    def __init__(self, alphas_cumprod: Float[Tensor, " steps"]):
        table = alphas_cumprod.detach().to("cpu", torch.float64)
        if not len(table) or not (table.diff() < 0).all() or not 0 < table[-1] <= table[0] < 1:
            raise ValueError("alphas_cumprod must be a falling table of numbers between 0 and 1")
        self.alphas_cumprod, self.steps = table, len(table)
        self.alpha, self.sigma = table.sqrt(), (1 - table).sqrt()
        self.ends = self.level(self.steps - 1).ratio, self.level(0).ratio

    def rounded(self) -> "VariancePreserving":
        """This path from its table in float32, as published checkpoints hold it (moves a published
        loop of 63 calls by 1e-6)."""
        return VariancePreserving(self.alphas_cumprod.float())

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if type(t) is Tensor and ((t < 0) | (t != t.long())).any():  # a fake one has no values
            raise ValueError(f"steps are whole numbers from 0, got {t.tolist()}")
        return self.alpha[t.long()], self.sigma[t.long()]

    def level(self, t: Any) -> Level:
        """The level of step ``t``, 0 to T - 1, or clean data for -1."""
        if t != -1 and (t != int(t) or not 0 <= t < self.steps):
            raise ValueError(f"step {t} is not on this path; it has steps 0 to {self.steps - 1}")
        return super().level(int(t))

    def at(self, ratio: float, whole: bool = True) -> Level:
        """The step nearest to a noise ratio in its logarithm; or, if not ``whole``, that very
        ratio with a broken step number, for networks that can be told one."""
        table = (self.sigma / self.alpha).log()
        place = int(torch.searchsorted(table, math.log(ratio)).clamp(1, self.steps - 1))
        before, after = table[place - 1 : place + 1].tolist()
        t = min(max(place - 1 + (math.log(ratio) - before) / (after - before), 0.0), self.steps - 1)
        if whole:
            return self.level(round(t))
        alpha = 1 / math.sqrt(1 + ratio * ratio)
        return self._point(t, alpha, ratio * alpha)

    def share(self, u: float) -> Level:
        return self.level(max(round(self.steps * u) - 1, -1))

    def sample_t(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` steps drawn uniformly, for training."""
        return torch.randint(self.steps, (n,), generator=generator)


@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1, sigma = t; training draws ln sigma from N(mean, sd²) (EDM 2022, Table 1)."""

    ends: tuple[float, float] = (80.0, 0.002)
    mean: float = -1.2
    sd: float = 1.2

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def at(self, ratio: float, whole: bool = True) -> Level:
        return self.level(ratio)

    def share(self, u: float) -> Level:
        return self.level(self.ends[1] ** (1 - u) * self.ends[0] ** u) if u else CLEAN

    def sample_t(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return (self.mean + self.sd * torch.randn(n, generator=generator).double()).exp()


@dataclass(frozen=True)
class Flow(Path):
    """alpha = 1 - s, sigma = s = t / scale.  ``shift`` above 1 moves grids and training towards
    noise, s = shift u / (1 + (shift - 1) u) (Esser et al. 2024, eq. 23); in training u is even."""

    shift: float = 1.0
    scale: float = 1000.0
    ends: tuple[float, float] = (999.0, 0.001)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t.double() / self.scale, t.double() / self.scale

    def at(self, ratio: float, whole: bool = True) -> Level:
        return self.level(self.scale * ratio / (1 + ratio))

    def share(self, u: Any) -> Level:
        return self.level(self._shifted(u)) if u else CLEAN

    def sample_t(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        drawn = torch.rand(n, generator=generator, dtype=torch.float64)
        return self._shifted(1 - drawn)  # never 0: clean data have no noise to predict

    def _shifted(self, u: Any) -> Any:
        return self.scale * self.shift * u / (1 + (self.shift - 1) * u)


def one_minus_alpha(level: Level) -> Any:
    """The gamma that leads from x_0 to the anchor as alpha falls (SGMSE+)."""
    return 1 - level.alpha


def anchored(path: Path, gamma: Callable[[Level], Any] = one_minus_alpha) -> Path:
    """``path`` on its way to a measurement y of each item; ``gamma``, its share, is 0 when clean.

    A denoiser that was prepared with y works on x - gamma y, so every solver serves as it is: start
    from sigma times noise, and read x_0 at the end.
    """
    path = copy.copy(path)
    object.__setattr__(path, "gamma", gamma)  # paths are frozen otherwise
    return path


def add_noise(x0: Tensor, eps: Tensor, level: Level, anchor: Any = 0.0) -> Tensor:
    """alpha x_0 + gamma anchor + sigma eps."""
    x = level.alpha * x0 + level.sigma * eps
    return x if isinstance(level.gamma, float) and not level.gamma else x + level.gamma * anchor


def vp(betas: Float[Tensor, " steps"]) -> VariancePreserving:
    """Path of variances ``betas`` added at each step, inside (0, 1)."""
    betas = betas.detach().to("cpu", torch.float64)
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError("betas must lie between 0 and 1, both excluded")
    return VariancePreserving(torch.cumprod(1 - betas, 0))


def cosine_betas(
    steps: int, *, offset: float = 0.008, largest: float = 0.999
) -> Float[Tensor, " steps"]:
    """Betas whose product follows cos²((t / T + offset) / (1 + offset) * pi / 2), clipped."""
    place = torch.arange(steps + 1, **TABLE) / steps
    curve = torch.cos((place + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - curve[1:] / curve[:-1]).clamp(0, largest)


def cosine(steps: int) -> VariancePreserving:
    """The cosine path (:func:`cosine_betas`)."""
    return vp(cosine_betas(steps))


def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> VariancePreserving:
    """Evenly spaced betas (Ho et al. 2020; LDAE)."""
    return vp(torch.linspace(first, last, steps, **TABLE))


def scaled_linear(steps: int, first: float = 0.00085, last: float = 0.012) -> VariancePreserving:
    """Betas with evenly spaced roots (latent diffusion; Versatile Diffusion)."""
    return vp(torch.linspace(first**0.5, last**0.5, steps, **TABLE) ** 2)


def constant(steps: int, beta: float = 0.008) -> VariancePreserving:
    """One beta for all steps (the semantic prior of PDAE and LDAE)."""
    return vp(torch.full((steps,), beta, **TABLE))
