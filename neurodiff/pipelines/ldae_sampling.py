"""LDAE's sampling: a latent to the noise it comes from, and noise under a code to a latent.

The published grid has N + 1 steps from 0 to T - 1, and takes the state at step 0 for the clean
latent, both ways.  Ways to walk it, in calls of the network a step:

    encode  "ddim"   1       explicit, as published; off by the order of a step
            "exact"  1 + k   solves DDIM's own step, so DDIM on the same grid returns the latent
            "dpm"    1       DPM-Solver++ 2M run backwards: near the converged solution
    decode  "ddim"   1       the inverse of "exact"
            "dpm"    1       DPM-Solver++ 2M on steps even in ln(alpha / sigma)

Protocol "ldae-2025" clamps the mean of x_0 to [-1, 1] at every step, as the released code does: a
habit of pixels, where a third of a latent of unit SD lies outside.  "neurodiff-1" does not.

Sources: Lozupone et al. 2026, LDAE; Song et al. 2021, DDIM; Lu et al. 2022, DPM-Solver++; Pan et
al. 2023, AIDI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, torch_generator
from neurodiff.diffusion.grids import lu_lambda
from neurodiff.diffusion.guidance import Projected, clipped
from neurodiff.diffusion.inversion import invert
from neurodiff.diffusion.paths import Level, VariancePreserving, linear
from neurodiff.diffusion.sampling import item_noise, sample
from neurodiff.diffusion.solvers import DDIM, DPMSolver2M
from neurodiff.models.ldae_denoiser import (
    Coefficient,
    ShiftDenoiser,
    one_coefficient,
    published_training_coefficient,
)
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.pipelines.ldae_published_walk import (
    PublishedDDIM,
    published_path,
    published_times,
    walk,
)

Protocol = Literal["neurodiff-1", "ldae-2025"]
Encoding = Literal["ddim", "exact", "dpm"]
Decoding = Literal["ddim", "dpm"]
STAGE = "ldae noise"


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What is fixed for a set of weights.

    Parameters
    ----------
    protocol : "ldae-2025" clamps means to [-1, 1], encodes by explicit DDIM and trains with another
        coefficient than it samples with; "neurodiff-1" does none of this.
    train_steps, first_beta, last_beta : of the path, with evenly spaced betas.
    steps : of a walk, where a call does not say.
    iterations : most inner iterations of a step of the exact inversion.
    """

    protocol: Protocol = "neurodiff-1"
    train_steps: int = 1000
    first_beta: float = 1e-4
    last_beta: float = 0.02
    steps: int = 100
    iterations: int = 8

    def __post_init__(self) -> None:
        if self.protocol not in ("neurodiff-1", "ldae-2025"):
            raise UsageError(
                f"protocol is {self.protocol!r}; known are 'neurodiff-1' and 'ldae-2025'"
            )
        if self.iterations < 1:
            raise UsageError(f"iterations is {self.iterations}; expected at least 1")
        _check_steps(self.steps, self.train_steps)

    @property
    def limit(self) -> float | None:
        """Where the mean of x_0 is clamped; None for nowhere."""
        return 1.0 if self.protocol == "ldae-2025" else None

    @property
    def encoding(self) -> Encoding:
        """How latents are encoded, where a call does not say."""
        return "ddim" if self.protocol == "ldae-2025" else "exact"

    def path(self) -> VariancePreserving:
        """The path; under "ldae-2025" with tables rounded to float32."""
        make = published_path if self.protocol == "ldae-2025" else linear
        return make(self.train_steps, self.first_beta, self.last_beta)

    def training_coefficient(self) -> Coefficient:
        """What stage 3 multiplies the shift with (`ShiftDenoiser`)."""
        if self.protocol == "ldae-2025":
            return published_training_coefficient(self.path())
        return one_coefficient


@dataclass(frozen=True)
class Encoded:
    """Noise from which a latent comes.

    ``calls`` of the network, and the ``residual`` of the worst step and item, relative; None for
    the ways that solve nothing.
    """

    noise: Tensor
    calls: int
    residual: float | None = None


class LatentSampler:
    """Walks between latents, in units of the diffusion, and noise.

    The network is put into evaluation mode and stays on its device and in its type; the walk is in
    float32, or in float64 for latents in float64.

    Examples
    --------
    >>> from neurodiff.models.ldae_sizes import LatentUNetSize
    >>> size = LatentUNetSize(width=32, multipliers=(1,), attention=(), semantic=4)
    >>> sampler = LatentSampler(ShiftUNet(size), SamplingSettings(steps=4))
    >>> latents, codes = torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 4)
    >>> encoded = sampler.encode(latents, codes)
    >>> sampler.decode(codes, encoded.noise).shape
    torch.Size([1, 3, 2, 2, 2])
    """

    def __init__(self, network: ShiftUNet, settings: SamplingSettings | None = None) -> None:
        self.network, self.settings = network.eval(), settings or SamplingSettings()
        self.path = self.settings.path()

    def encode(
        self,
        latents: Tensor,
        codes: Tensor | None,
        *,
        steps: int | None = None,
        method: Encoding | None = None,
    ) -> Encoded:
        """Noise of latents (n, c, i, j, k) under their codes (n, semantic).

        ``codes`` None takes the trunk alone.

        Raises
        ------
        UsageError : an unknown way, steps out of range, shapes that the network does not read.
        DataError : NaN or infinity.
        """
        method = method or self.settings.encoding
        if method not in ("ddim", "exact", "dpm"):
            raise UsageError(f"method is {method!r}; known are 'ddim', 'exact' and 'dpm'")
        x, state = self._checked("latents", latents), self._codes(codes, len(latents))
        if method == "dpm":
            denoise, calls = _counted(self.denoiser())
            rising = self.grid(steps, "dpm")[::-1]
            return Encoded(walk(denoise, x, rising, DPMSolver2M(), state=state), calls())
        if method == "ddim" and self.settings.protocol == "ldae-2025":
            solver = self._published(steps)
            denoise, calls = _counted(self.denoiser(coefficient=solver.coefficient))
            return Encoded(walk(denoise, x, solver.levels, solver, state=state), calls())
        denoise, calls = _counted(self.denoiser())
        found = invert(
            denoise,
            x,
            self.grid(steps),
            state=state,
            iterations=self.settings.iterations if method == "exact" else 0,
        )
        worst = float(found.residuals[:, -1].max()) if method == "exact" else None
        return Encoded(found.x, calls(), worst)

    def decode(
        self,
        codes: Tensor | None,
        noise: Tensor,
        *,
        steps: int | None = None,
        solver: Decoding = "ddim",
        scale: float = 1.0,
        stop: float = 0.0,
    ) -> Tensor:
        """Latents from noise (n, c, i, j, k) under codes (n, semantic).

        Parameters
        ----------
        codes : None takes the trunk alone.
        noise : of :meth:`encode`, with its ``steps``; or drawn, see :func:`draw_noise`.
        solver : "ddim" undoes the ways "exact" and "ddim"; "dpm" needs fewer steps for noise that
            was drawn or encoded by "dpm".
        scale : of the shift.
        stop : share of the steps, at the clean end, without the shift (published for codes that a
            second diffusion drew: 0.3).

        Raises
        ------
        UsageError, DataError : as :meth:`encode`.
        """
        if solver not in ("ddim", "dpm"):
            raise UsageError(f"solver is {solver!r}; known are 'ddim' and 'dpm'")
        if not 0 <= stop <= 1:
            raise UsageError(f"stop is {stop}; expected a share of the steps from 0 to 1")
        x, state = self._checked("noise", noise), self._codes(codes, len(noise))
        if solver == "ddim" and self.settings.protocol == "ldae-2025":
            way: Any = self._published(steps)
            grid, coefficient = way.levels[::-1], way.coefficient
        else:
            way = DDIM() if solver == "ddim" else DPMSolver2M()
            grid, coefficient = self.grid(steps, solver), one_coefficient
        shifted = len(grid) - 1 - round(stop * (len(grid) - 1))
        lowest = grid[shifted - 1].ratio if shifted else math.inf
        denoiser = self.denoiser(scale=scale, lowest=lowest, coefficient=coefficient)
        return sample(denoiser, x, grid, way, state=state)

    def denoiser(
        self,
        *,
        scale: float = 1.0,
        lowest: float = 0.0,
        coefficient: Coefficient = one_coefficient,
    ) -> Any:
        """Mean of the clean latent, with this protocol's clamp.

        ``lowest`` sigma / alpha at which the shift acts; ``scale`` and ``coefficient`` as in
        `ShiftDenoiser`.
        """
        dtype = next(self.network.parameters()).dtype
        shifted = ShiftDenoiser(
            self.network, scale, coefficient=coefficient, interval=(lowest, math.inf), dtype=dtype
        )
        limit = self.settings.limit
        return shifted if limit is None else Projected(shifted, clipped(limit))

    def grid(self, steps: int | None = None, solver: Decoding = "ddim") -> list[Level]:
        """Levels from the noisiest to step 0, ``steps`` + 1 of them."""
        steps = self.settings.steps if steps is None else steps
        _check_steps(steps, self.path.steps)
        if solver == "dpm":
            return lu_lambda(self.path, steps + 1, whole=False)[:-1]
        return [self.path.level(t) for t in reversed(published_times(self.path.steps, steps))]

    def _published(self, steps: int | None) -> PublishedDDIM:
        steps = self.settings.steps if steps is None else steps
        _check_steps(steps, self.path.steps)
        times = published_times(self.path.steps, steps)
        return PublishedDDIM(self.path.alphas_cumprod, times)

    def _checked(self, name: str, x: Tensor) -> Tensor:
        """``x`` in the type of the walk; the network itself checks its shape."""
        check_finite(name, x)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def _codes(self, codes: Tensor | None, items: int) -> Tensor | None:
        if codes is None:
            return None
        if codes.ndim != 2 or len(codes) != items:
            raise UsageError(
                f"semantic codes have shape {tuple(codes.shape)}; expected ({items}, "
                f"{self.network.size.semantic}), one for each latent"
            )
        return self._checked("semantic codes", codes)


def check_finite(name: str, x: Tensor) -> None:
    """Raise DataError that names the first item of ``x`` (items, ...) with NaN or infinity."""
    finite = torch.isfinite(x).reshape(len(x), -1).all(1) if x.ndim else torch.isfinite(x)[None]
    if not bool(finite.all()):
        raise DataError(
            f"{name} hold NaN or infinity in item {int((~finite).nonzero()[0])}; make them again "
            "from a whole scan, or leave that one out"
        )


def scan_generator(seed: int, *, subject: object, scan: object, sample: int = 0) -> torch.Generator:
    """Generator of the noise of one scan: the same in any batch, order or shard."""
    return torch_generator(
        item_seed(seed, subject=subject, stimulus=scan, sample=sample, stage=STAGE)
    )


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Unit noise (n, *shape), float32, one generator an item."""
    return item_noise(generators)(0, torch.zeros(len(generators), *shape))


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Great circle between noises (n, ...), each item by itself; ``share`` 0 is the first.

    Between parallel or opposite items, where no circle is defined, the straight line.
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1) * b.norm(dim=1))[:, None].clamp(
        min=1e-30
    )
    angle = cosine.clamp(-1, 1).arccos()
    size = angle.sin()
    small = size < 1e-6
    size = torch.where(small, 1.0, size)
    from_a = torch.where(small, 1 - share, ((1 - share) * angle).sin() / size)
    from_b = torch.where(small, share, (share * angle).sin() / size)
    return (from_a * a + from_b * b).reshape(first.shape).to(first.dtype)


# ------------------------------------------------------------------------------- helpers


def _check_steps(steps: int, train_steps: int) -> None:
    if not 1 <= steps < train_steps:
        raise UsageError(f"steps is {steps}; a path of {train_steps} has 1 to {train_steps - 1}")


def _counted(denoiser: Any) -> tuple[Callable[..., Tensor], Callable[[], int]]:
    """The denoiser, and how often it was called since."""
    count = 0

    def counted(x: Tensor, level: Level, state: Any) -> Tensor:
        nonlocal count
        count += 1
        return denoiser(x, level, state)

    return counted, lambda: count
