"""Which condition explains the data: errors of a denoiser as scores.

For the exact denoiser, log p(x_0 | c) = constant - 1/2 integral of E|x_0 - D_c|² d SNR, so scores
are differences of log-likelihood (Guo et al. 2005, I-MMSE; Li et al. 2023, diffusion classifier;
Kong et al. 2023).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neurodiff.diffusion.paths import Level, add_noise
from neurodiff.diffusion.sampling import item_noise


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

    Trapezoids over ln SNR of levels in order; what lies outside them is missing.
    """
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
