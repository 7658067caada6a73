"""Denoisers, the sampling loop, and what can be read from it.

Randomness belongs to the items of a batch: each item has its own generator, so an item does not
change when its batch does.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from neurodiff.diffusion.heads import Head
from neurodiff.diffusion.paths import Level

Noise = Callable[[int, Tensor], Tensor]
RUN: ContextVar[object] = ContextVar("run", default=None)  # the :func:`sample` that is going on


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


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network as a denoiser: ``network(x, t, cond)`` predicts what ``head`` says.

    ``t`` is a tensor of one number an item.  A network with ``prepare`` and ``step`` computes its
    condition once; any other is given the condition itself.  ``anchored``: the condition is a pair
    (cond, y), and x stands for x - gamma y (:func:`~neurodiff.diffusion.paths.anchored`).
    ``dtype`` is the network's, if it is not that of x: a trajectory belongs in float32 or float64
    even where the network runs in half precision.
    """

    network: Any
    head: Head
    anchored: bool = False
    dtype: torch.dtype | None = None

    def prepare(self, cond: Any) -> tuple[Any, Any]:
        cond, anchor = cond if self.anchored else (cond, None)
        return (self.network.prepare(cond) if hasattr(self.network, "prepare") else cond), anchor

    def __call__(self, x: Tensor, level: Level, state: tuple[Any, Any]) -> Tensor:
        cond, anchor = state
        if anchor is None and not (isinstance(level.gamma, float) and level.gamma == 0):
            raise ValueError("levels of an anchored path need NetworkDenoiser(anchored=True)")
        shown = x if anchor is None else x + level.gamma * anchor
        given, t = self.head.network_input(shown, level)
        t = torch.as_tensor(t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        step = getattr(self.network, "step", self.network)
        raw = step(given.to(self.dtype or x.dtype), t.flatten().expand(len(x)), cond).to(x.dtype)
        return self.head.x0(raw, x, level)


def item_noise(generators: Sequence[torch.Generator]) -> Noise:
    """Noise of one generator per item (row of the batch), drawn on the generators' device.

    The result is a function of (step, x) as :func:`sample` takes it; it draws float64, so that a
    run in float32 and one in float64 see the same noise.
    """

    def draw(step: int, x: Tensor) -> Tensor:
        if len(x) != len(generators):
            raise ValueError(f"{len(x)} items but {len(generators)} generators; give one each")
        rows = [
            torch.randn(x.shape[1:], generator=g, dtype=torch.float64, device=g.device)
            for g in generators
        ]
        return torch.stack(rows).to(x) if rows else x.clone()

    return draw


@torch.no_grad()
def sample(
    denoiser: Callable[[Tensor, Level, Any], Tensor],
    x: Tensor,
    grid: Sequence[Level],
    solver: Any,
    *,
    state: Any = None,
    noise: Noise | Sequence[torch.Generator] | None = None,
    callback: Callable[[int, Level, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Walk ``x`` along the grid.

    Parameters
    ----------
    denoiser : mean of x_0 from (x, level, state); a :class:`Denoiser` or a function.
    x : (items, ...) the state at ``grid[0]``: noise times its sigma, or data noised to that level.
    grid : levels from noisy to clean, at least two.
    solver : has the ``step`` that :mod:`neurodiff.diffusion.solvers` describes.
    state : what ``denoiser.prepare`` gave for the conditions of these items.
    noise : fresh noise of a step, a function of (index of the step, x) or one generator per item;
        asked only for steps that add noise.
    callback : called with (index of the call, its level, its x, the mean of x_0).

    Returns
    -------
    The state at the last level, in the dtype of ``x``.

    Raises
    ------
    ValueError : levels that do not fall, fewer than two of them, or a step that adds noise and none
        to draw from.
    """
    if len(grid) < 2 or any(a.ratio < b.ratio for a, b in pairwise(grid)):
        raise ValueError(f"a grid needs at least two levels that fall; it has {len(grid)}")
    draw = item_noise(noise) if noise is not None and not callable(noise) else noise
    calls, memory = 0, {}

    def denoise(at: Tensor, level: Level) -> Tensor:
        nonlocal calls
        mean = denoiser(at, level, state)
        if callback is not None:
            callback(calls, level, at, mean)
        calls += 1
        return mean

    token = RUN.set(object())
    try:
        for step, (a, b) in enumerate(pairwise(grid)):

            def fresh(step: int = step, like: Tensor = x) -> Tensor:
                if draw is None:
                    raise ValueError("this solver adds noise: give noise= a generator per item")
                return draw(step, like)

            x = solver.step(x, a, b, denoise, fresh, memory)
    finally:
        RUN.reset(token)
    return x


@torch.no_grad()
def posterior_mean(denoiser: Any, y: Tensor, level: Level, state: Any = None) -> Tensor:
    """E[x_0 | y] of a measurement y = x_0 + (sigma / alpha) noise, in one call.

    "Enter the path at the measured noise": ``level = path.at(noise SD)``.  At the noisiest level,
    with y = 0, it is the regression of x_0 on the condition alone.  No sample has a smaller mean
    squared error; a draw of :func:`posterior_samples` has twice its error.
    """
    return denoiser(level.alpha * y, level, state)


def posterior_samples(
    denoiser: Any, y: Tensor, grid: Sequence[Level], solver: Any, *, noise: Any, state: Any = None
) -> Tensor:
    """Draws from p(x_0 | y), y as in :func:`posterior_mean` at ``grid[0]``: (items, draws, ...).

    ``noise`` holds, for each draw, a generator an item.  The solver must add noise: a
    deterministic one gives the same point each time.  Few steps narrow the spread, except with
    analytic variance (:class:`~neurodiff.diffusion.solvers.Ancestral`).
    """
    x = grid[0].alpha * y
    return torch.stack([sample(denoiser, x, grid, solver, state=state, noise=n) for n in noise], 1)
