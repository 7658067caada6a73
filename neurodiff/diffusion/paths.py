"""Points of a diffusion path, and paths that are given as a table of steps.

A path mixes data and noise: x_t = alpha_t x_0 + sigma_t eps.  A :class:`Level` is one point of it.
Everything that samples or trains takes levels, never bare step numbers, so that no module has to
guess which "previous" step another one meant.  Tables are float64 whatever the network computes in.

Sources: Ho et al. 2020 (variance preserving path); Nichol and Dhariwal 2021 (cosine betas);
Karras et al. 2022 (levels as the only interface between network and solver).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One point of a path: x = alpha x_0 + sigma eps.

    The fields are floats, or tensors that broadcast against a batch (see
    :meth:`VariancePreserving.levels`), as training needs.  ``t`` is the number that the network is
    told, a step of the table; -1 is clean data.
    """

    t: float | int | Tensor
    alpha: float | int | Tensor
    sigma: float | int | Tensor

    @property
    def log_snr(self) -> float:
        """ln(alpha² / sigma²); infinite for clean data."""
        if self.sigma == 0:
            return math.inf
        return 2 * (math.log(self.alpha) - math.log(self.sigma)) if self.alpha else -math.inf


CLEAN = Level(-1.0, 1.0, 0.0)


class VariancePreserving:
    """Path of T steps with alpha² + sigma² = 1.

    Parameters
    ----------
    alphas_cumprod : alpha² after each step, (T,), float64, falling, inside (0, 1).

    Attributes
    ----------
    alpha, sigma : (T,) float64.

    Examples
    --------
    >>> path = cosine(100)
    >>> path.steps, round(path.level(0).alpha, 6), path.level(-1) == CLEAN
    (100, 0.999684, True)
    """

    def __init__(self, alphas_cumprod: Float[Tensor, " steps"]):
        table = alphas_cumprod.detach().to("cpu", torch.float64)
        if len(table) == 0 or not (table[1:] < table[:-1]).all() or not 0 < table[-1] <= table[0]:
            raise ValueError("alphas_cumprod must be a falling table of positive numbers")
        if table[0] >= 1:
            raise ValueError(f"alphas_cumprod starts at {float(table[0])}; it must be below 1")
        self.alphas_cumprod = table
        self.alpha, self.sigma = table.sqrt(), (1 - table).sqrt()

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def rounded(self) -> "VariancePreserving":
        """This path with its table rounded to float32, as published checkpoints hold it.

        A published loop of 63 calls moves by 1e-6 of its result; the table stays float64 in type.
        """
        return VariancePreserving(self.alphas_cumprod.float())

    def level(self, t: int) -> Level:
        """The level of step ``t``, 0 to T - 1, or clean data for -1."""
        if t == -1:
            return CLEAN
        if t != int(t) or not 0 <= t < self.steps:
            raise ValueError(f"step {t} is not on this path; it has steps 0 to {self.steps - 1}")
        return Level(float(t), float(self.alpha[int(t)]), float(self.sigma[int(t)]))

    def levels(self, t: Int[Tensor, " n"], *, like: Tensor) -> Level:
        """Levels of a batch: alpha and sigma broadcast against ``like`` (n, ...), in its dtype."""
        shape = (len(t),) + (1,) * (like.ndim - 1)
        index = t.cpu()
        return Level(
            t,
            self.alpha[index].to(like).reshape(shape),
            self.sigma[index].to(like).reshape(shape),
        )

    def sample_t(self, n: int, generator: torch.Generator | None = None) -> Int[Tensor, " n"]:
        """``n`` steps drawn uniformly, for training."""
        return torch.randint(self.steps, (n,), generator=generator)


def add_noise(x0: Float[Tensor, "*s"], eps: Float[Tensor, "*s"], level: Level) -> Tensor:
    """x = alpha x_0 + sigma eps."""
    return level.alpha * x0 + level.sigma * eps


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
    place = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((place + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - curve[1:] / curve[:-1]).clamp(0, largest)


def cosine(steps: int) -> VariancePreserving:
    """The cosine path (:func:`cosine_betas`)."""
    return vp(cosine_betas(steps))


def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> VariancePreserving:
    """The path of evenly spaced betas."""
    return vp(torch.linspace(first, last, steps, dtype=torch.float64))
