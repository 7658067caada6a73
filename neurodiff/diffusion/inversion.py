"""Back along a grid: from data to the noise that DDIM turns into them, and across two models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.solvers import renoised


@dataclass(frozen=True)
class Inverted:
    """``x`` at the noisiest level, and ``residuals`` (steps, iterations + 1), clean end first:
    |step(x_a) - x_b| / |x_b|, the largest of the batch; no columns if explicit."""

    x: Tensor
    residuals: Tensor


@torch.no_grad()
def invert(
    denoiser: Callable[[Tensor, Level, Any], Tensor],
    x0: Tensor,
    grid: Sequence[Level],
    *,
    state: Any = None,
    iterations: int = 30,
    tolerance: float | None = None,
    memory: int = 5,
) -> Inverted:
    """The state at ``grid[0]`` from which DDIM on ``grid`` arrives at ``x0`` (items, ...).

    ``iterations`` = 0 is the explicit inversion (Song et al. 2021; LDAE), one call a step: the mean
    of x_0 at the known state x_b serves for the way to x_a.  Its round trip is off by the order of
    a step.

    Otherwise each step then solves step(x_a) = x_b by x_a += alpha_a / alpha_b (x_b - step(x_a)),
    which contracts by 1 - ratio_b / ratio_a or better when data are log-concave, with Anderson
    mixing of the last ``memory`` iterates, each item by itself.  The iterate of the smallest
    residual is kept; ``tolerance``, by default 4 units of rounding, ends the iteration.
    Pan et al. 2023, AIDI; Walker and Ni 2011.

    The step to clean data asks for D(x_a) = x_0, which a trained network meets only as far as its
    means reach; LDAE's way is a grid that ends at the cleanest step, with the data as its state.
    """
    if len(grid) < 2:
        raise ValueError(f"a grid needs at least two levels, got {len(grid)}")
    tolerance = 4 * torch.finfo(x0.dtype).eps if tolerance is None else tolerance
    x, residuals = x0, []
    for b, a in pairwise(reversed(grid)):

        def step(x_a: Tensor, a: Level = a, b: Level = b) -> Tensor:
            return renoised(x_a, denoiser(x_a, a, state), a, b)

        if b.sigma:
            ahead = renoised(x, denoiser(x, b, state), b, a)
        else:  # x_0 = D(x_a), and D has slope 1 / alpha_a where the noise is small
            ahead = a.alpha * (2 * x - denoiser(a.alpha * x, a, state))
        if iterations:
            relax = a.alpha / b.alpha or a.sigma / b.sigma  # pure noise: D does not depend on x
            ahead, seen = _solve(step, x, ahead, relax, iterations, tolerance, memory)
            residuals.append(seen)
        x = ahead
    return Inverted(x, torch.tensor(residuals).reshape(len(grid) - 1, -1))


def _solve(step, target, x, relax, iterations, tolerance, memory) -> tuple[Tensor, list[float]]:
    """Anderson mixing on step(x) = target: the best iterate, and its residual after each call.

    An iterate that is worse than the best of its item is given up for a shorter, unmixed move from
    there, so a network that is no contraction does not throw an item out.
    """
    aim, seen, points, rests = target.flatten(1), [], [], []
    scale = aim.norm(dim=1, keepdim=True).clamp(min=1e-30)
    least, damp = torch.full_like(scale, torch.inf), torch.ones_like(scale)
    for _ in range(iterations + 1):
        at, rest = x.flatten(1), aim - step(x).flatten(1)
        error = rest.norm(dim=1, keepdim=True) / scale
        better = (error < least) | (len(seen) == 0)
        points = [*points, torch.where(better, at, points[-1] if points else at)][-memory - 1 :]
        rests = [*rests, torch.where(better, rest, rests[-1] if rests else rest)][-memory - 1 :]
        least, damp = torch.where(better, error, least), torch.where(better, 1.0, damp / 2)
        seen.append(float(least.max()))
        if seen[-1] <= tolerance:
            break
        move = relax * rests[-1]
        if memory and len(points) > 1:
            moved, fell = (torch.stack(of, 2).diff(dim=2) for of in (points, rests))
            gram = fell.mT @ fell
            ridge = torch.finfo(x.dtype).eps * gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
            gram = gram + (ridge + 1e-30) * torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
            share = torch.linalg.solve(gram, fell.mT @ rests[-1][..., None])
            mixed = move - ((moved + relax * fell) @ share)[..., 0]
            move = torch.where(better & mixed.isfinite(), mixed, damp * move)
        x = (points[-1] + move).reshape(x.shape)
    return points[-1].reshape(x.shape), seen + seen[-1:] * (iterations + 1 - len(seen))
