"""The sampling loop, and what it asks of a denoiser.

Randomness belongs to the items of a batch: each item has its own generator, so an item does not
change when its batch does.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.solvers import Solver

Noise = Callable[[int, Tensor], Tensor]


@runtime_checkable
class Denoiser(Protocol):
    """A network seen as the mean of x_0 given x at a level.

    ``prepare`` does, once for each condition, all that does not depend on x or on the level;
    what it returns goes unchanged into every call.
    """

    def prepare(self, cond: Any) -> Any:
        """State of a condition."""

    def __call__(self, x: Tensor, level: Level, state: Any) -> Tensor:
        """Mean of x_0, of the shape of ``x``."""


def item_noise(generators: Sequence[torch.Generator]) -> Noise:
    """Noise of one generator per item (row of the batch), drawn on the generators' device.

    The result is a function of (call, x) as :func:`sample` takes it; it draws float64, so that a
    run in float32 and one in float64 see the same noise.
    """

    def draw(call: int, x: Tensor) -> Tensor:
        if len(x) != len(generators):
            raise ValueError(f"{len(x)} items but {len(generators)} generators; give one each")
        rows = [
            torch.randn(x.shape[1:], generator=g, dtype=torch.float64, device=g.device)
            for g in generators
        ]
        return torch.stack(rows).to(x)

    return draw


@torch.no_grad()
def sample(
    denoiser: Callable[[Tensor, Level, Any], Tensor],
    x: Float[Tensor, "*batch"],
    grid: Sequence[Level],
    solver: Solver,
    *,
    state: Any = None,
    noise: Noise | Sequence[torch.Generator] | None = None,
    callback: Callable[[int, Level, Tensor, Tensor], None] | None = None,
) -> Float[Tensor, "*batch"]:
    """Walk ``x`` along the grid; one call of the denoiser a step.

    Parameters
    ----------
    denoiser : mean of x_0 from (x, level, state); a :class:`Denoiser` or a function.
    x : the state at ``grid[0]``: noise times its sigma, or data noised to that very level.
    grid : levels from noisy to clean, at least two.
    solver : the step.
    state : what ``denoiser.prepare`` gave for the conditions of these items.
    noise : fresh noise of a step, a function of (index of the call, x) or one generator per item;
        asked only for steps that add noise.
    callback : called with (index of the call, level, state before the step, mean of x_0).

    Returns
    -------
    The state at the last level, in the dtype of ``x``.
    """
    if len(grid) < 2:
        raise ValueError(f"a grid needs at least two levels, got {len(grid)}")
    if noise is not None and not callable(noise):
        noise = item_noise(noise)
    for call, (a, b) in enumerate(pairwise(grid)):
        mean = denoiser(x, a, state)
        if callback is not None:
            callback(call, a, x, mean)
        fresh = None
        if solver.noise_sd(a, b) > 0:
            if noise is None:
                raise ValueError("this solver adds noise: give noise= a generator per item")
            fresh = noise(call, x)
        x = solver.step(x, mean, a, b, fresh)
    return x
