"""What a denoiser is trained on, and what its error says about data.

The error is taken on the mean of x_0 and weighted as the network's head would weight it, so that a
guided or shifted denoiser trains with the very coefficients it samples with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurodiff.diffusion.heads import Head
from neurodiff.diffusion.paths import Level, Path
from neurodiff.diffusion.probes import tapped
from neurodiff.diffusion.sampling import Denoiser


@dataclass(frozen=True)
class Auxiliary:
    """A loss on the output of a layer: ``loss(features, target)`` -> (n,).  For alignment with a
    frozen encoder (REPA, Yu et al. 2025) it holds the projection, and ``target`` the features."""

    layer: str
    loss: Callable[[Tensor, Any], Tensor]
    weight: float = 1.0


def snr_power(power: float = 0.1) -> Callable[[Level], Any]:
    """SNR^power / (1 + SNR), for noise prediction: PDAE's and LDAE's weight (Zhang et al. 2022)."""

    def weight(level: Level) -> Any:
        snr = (level.alpha / level.sigma) ** 2
        return snr**power / (1 + snr)

    return weight


@dataclass(frozen=True)
class Objective:
    """weight(level) |prediction - target|², mean over dimensions, and auxiliary losses.

    Parameters
    ----------
    path, head : what the denoiser was built with.
    weight : of the head's own squared error: :func:`snr_power`, or one over the
        ``weight`` of the head, times that of another, to train as if on that one.
    density : (n, generator) -> times, by default the path's.
    network, auxiliaries : the module whose layers the auxiliary losses read.
    """

    path: Path
    head: Head
    weight: Callable[[Level], Any] = lambda level: 1.0
    density: Callable[[int, torch.Generator], Tensor] | None = None
    network: nn.Module | None = None
    auxiliaries: Sequence[Auxiliary] = ()

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Any = None,
        *,
        generator: torch.Generator,
        targets: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Named terms; "loss" is minimised, "denoising" and each layer are its parts.

        ``x0`` (n, ...), ``cond`` as the denoiser prepares it, ``targets`` of auxiliary losses by
        layer.
        """
        t = (self.density or self.path.sample_t)(len(x0), generator)
        level = self.path.levels(t, like=x0)
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        x = level.alpha * x0 + level.sigma * eps  # without the anchor: the denoiser knows it
        with tapped(self.network or nn.Module(), [a.layer for a in self.auxiliaries]) as seen:
            mean = denoiser(x, level, denoiser.prepare(cond))
        error = (self.weight(level) * self.head.weight(level) * (mean - x0) ** 2).mean()
        terms = {"loss": error, "denoising": error}
        for part in self.auxiliaries:
            value = part.loss(seen[part.layer], targets[part.layer] if targets else None).mean()
            terms[part.layer] = value
            terms["loss"] = terms["loss"] + part.weight * value
        return terms
