"""Denoisers made from denoisers: classifier-free guidance.

Guidance acts on the mean of x_0.  At a fixed x and level, noise, v and score are affine in that
mean with one coefficient, so the same weight means the same thing for each of them.
Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.sampling import Denoiser


@dataclass(frozen=True)
class ClassifierFree:
    """unconditional + w (conditional - unconditional).

    Parameters
    ----------
    denoiser : gives both means, from two states.
    w : 1 is the plain conditional denoiser (and costs one call), 0 the unconditional one.
    null : makes the condition that stands for "nothing known" from a condition; not called for
        ``w`` = 1.
    """

    denoiser: Denoiser
    w: float
    null: Callable[[Any], Any]

    def prepare(self, cond: Any) -> tuple[Any, Any]:
        """States of the condition and of its null."""
        known = self.denoiser.prepare(cond)
        return known, None if self.w == 1 else self.denoiser.prepare(self.null(cond))

    def __call__(
        self, x: Float[Tensor, "*s"], level: Level, state: tuple[Any, Any]
    ) -> Float[Tensor, "*s"]:
        """The guided mean of x_0."""
        known, unknown = state
        mean = self.denoiser(x, level, known)
        if self.w == 1:
            return mean
        base = self.denoiser(x, level, unknown)
        return base + self.w * (mean - base)
