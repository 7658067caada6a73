"""What a network predicts: noise, clean data or v, and the way from each to the mean of x_0.

All three say the same thing in other coordinates, so a sampler only ever sees the mean of x_0.
What differs is the weight that a squared error carries; :meth:`Head.weight` gives it.
Source: Ho et al. 2020; Salimans and Ho 2022 (v); the identities hold for any alpha and sigma > 0.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from neurodiff.diffusion.paths import Level


@dataclass(frozen=True)
class Head:
    """The prediction of a network at a level.

    ``kind`` is "eps" (the noise), "x0" (clean data) or "v" = alpha eps - sigma x_0.

    Examples
    --------
    >>> head = Head("x0")
    >>> head.weight(Level(3, 0.6, 0.8))
    1.0
    """

    kind: str

    def __post_init__(self):
        if self.kind not in ("eps", "x0", "v"):
            raise ValueError(f"a head predicts 'eps', 'x0' or 'v', not {self.kind!r}")

    def x0(self, raw: Float[Tensor, "*s"], x: Float[Tensor, "*s"], level: Level) -> Tensor:
        """Mean of x_0 from the network's output ``raw`` at ``x``."""
        a, s = level.alpha, level.sigma
        if self.kind == "x0":
            return raw
        if self.kind == "eps":
            return (x - s * raw) / a
        return (a * x - s * raw) / (a * a + s * s)

    def raw(self, x0: Float[Tensor, "*s"], x: Float[Tensor, "*s"], level: Level) -> Tensor:
        """The network output that means ``x0`` at ``x``; inverse of :meth:`x0`, sigma > 0."""
        a, s = level.alpha, level.sigma
        if self.kind == "x0":
            return x0
        if self.kind == "eps":
            return (x - a * x0) / s
        return (a * x - (a * a + s * s) * x0) / s

    def target(self, x0: Float[Tensor, "*s"], eps: Float[Tensor, "*s"], level: Level) -> Tensor:
        """What the network should have said for this data and this noise."""
        if self.kind == "x0":
            return x0
        if self.kind == "eps":
            return eps
        return level.alpha * eps - level.sigma * x0

    def weight(self, level: Level) -> float | Tensor:
        """Squared error of this prediction over squared error of x_0, at a level.

        Divide a loss by it to train as if on x_0, and multiply by another head's to train as that.
        """
        a, s = level.alpha, level.sigma
        if self.kind == "x0":
            return 1.0
        if self.kind == "eps":
            return (a / s) ** 2
        return ((a * a + s * s) / s) ** 2


EPS, X0, V = Head("eps"), Head("x0"), Head("v")
