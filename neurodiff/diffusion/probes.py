"""What a denoiser knows: features of its layers at a level, and its error as a score.

For the exact denoiser, log p(x_0 | c) = constant - 1/2 integral of E|x_0 - D_c|² d SNR, so scores
are differences of log-likelihood (Guo et al. 2005, I-MMSE; Li et al. 2023, diffusion classifier;
Kong et al. 2023).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neurodiff.diffusion.paths import Level, add_noise
from neurodiff.diffusion.sampling import item_noise


@contextmanager
def tapped(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of named modules, as they are made: ``with tapped(net, ["middle"]) as seen: net(x)``,
    then ``seen["middle"]``.  Of a tuple, the first.

    Raises
    ------
    ValueError : a layer that the network has not; it names those that there are.
    """
    modules, seen = dict(network.named_modules()), {}
    if missing := [name for name in layers if name not in modules]:
        raise ValueError(f"no layers {missing}; the network has {[n for n in modules if n]}")

    def keeper(name: str) -> Callable[..., None]:
        return lambda _, __, out: seen.update({name: out if isinstance(out, Tensor) else out[0]})

    hooks = [modules[name].register_forward_hook(keeper(name)) for name in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def features(
    denoiser: Callable[[Tensor, Level, Any], Tensor],
    network: nn.Module,
    x0: Tensor,
    layers: Sequence[str],
    levels: Sequence[Level],
    generators: Sequence[torch.Generator],
    *,
    state: Any = None,
) -> dict[tuple[str, Any], Tensor]:
    """For linear probes: by (layer, t), the mean over positions of a layer's output, (n, channels).

    x0 (n, ...) is noised to each level by its own generator, the same noise at all levels.
    Xiang et al. 2023, DDAE (probes over layers and levels).
    """
    eps = item_noise(generators)(0, x0)
    found = {}
    for level in levels:
        with tapped(network, layers) as seen:
            denoiser(add_noise(x0, eps, level), level, state)
        found |= {(name, level.t): seen[name][..., None].flatten(2).mean(2) for name in layers}
    return found


@torch.no_grad()
def denoising_errors(
    denoiser: Callable[[Tensor, Level, Any], Tensor],
    x0: Tensor,
    states: Sequence[Any],
    levels: Sequence[Level],
    generators: Sequence[torch.Generator],
    *,
    pairs: int = 1,
) -> Tensor:
    """|x_0 - D|² of each item under each condition at each level: (items, conditions, levels).

    Mean over ``pairs`` of noise and its negative, drawn by each item's generator and shared by all
    conditions: what the noise does to all alike, and to first order at all, leaves the differences.
    """
    draw, errors = item_noise(generators), x0.new_zeros(len(x0), len(states), len(levels))
    for at, level in enumerate(levels):
        for pair in range(pairs):
            eps = draw(pair, x0)
            for signed in (eps, -eps):
                x = add_noise(x0, signed, level)
                for of, state in enumerate(states):
                    rest = (x0 - denoiser(x, level, state)).flatten(1)
                    errors[:, of, at] += rest.square().sum(1) / (2 * pairs)
    return errors


def log_likelihoods(errors: Tensor, levels: Sequence[Level]) -> Tensor:
    """log p(x_0 | c), up to a constant of the item, from errors: (items, conditions).

    Trapezoids over ln SNR of levels in order; what lies outside them is missing.  ValueError for
    clean data or pure noise among the levels.
    """
    if any(level.ratio in (0, math.inf) for level in levels):
        raise ValueError("levels need a finite SNR; leave out clean data and pure noise")
    snr = torch.tensor([level.log_snr for level in levels], dtype=errors.dtype)
    area = errors * snr.exp().to(errors) / 2
    return -torch.trapezoid(area, snr.to(errors), dim=-1).abs()


def posterior_variance(
    errors: Tensor, levels: Sequence[Level], dims: int
) -> Callable[[Level], Any]:
    """Mean Var[x_0 | x] of a dimension at each level, for
    :class:`~neurodiff.diffusion.solvers.Ancestral`: for the exact denoiser it is its mean squared
    error, here over items of data and their own condition."""
    table = dict(
        zip([level.t for level in levels], (errors.mean((0, 1)) / dims).tolist(), strict=True)
    )
    return lambda level: table[level.t]
