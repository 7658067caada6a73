"""What a network predicts, and the way from there to the mean of x_0 and back.

All heads say the same thing in other coordinates, so a sampler only ever sees the mean of x_0.
What differs is the weight that a squared error carries: :meth:`Head.weight`.
Sources: Ho et al. 2020 (eps); Salimans and Ho 2022 (v); Lipman et al. 2023 (flow, here
u = eps - x_0); Karras et al. 2022, eq. 7 and Table 1 (edm).  Any alpha, and sigma > 0.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neurodiff.diffusion.paths import Level, add_noise


@dataclass(frozen=True)
class Head:
    """``kind`` is "eps", "x0", "v" = alpha eps - sigma x_0, "flow" = eps - x_0, or "edm", which
    scales input and output for data of standard deviation ``sigma_data``.

    Examples
    --------
    >>> Head("x0").weight(Level(3, 0.6, 0.8))
    1.0
    """

    kind: str
    sigma_data: float = 0.5

    def __post_init__(self):
        if self.kind not in ("eps", "x0", "v", "flow", "edm"):
            raise ValueError(f"{self.kind!r} is no head: 'eps', 'x0', 'v', 'flow' or 'edm'")

    def x0(self, raw: Tensor, x: Tensor, level: Level) -> Tensor:
        """Mean of x_0 from the network's output ``raw`` at ``x``."""
        x_share, raw_share = self._shares(level)
        return raw if self.kind == "x0" else x_share * x + raw_share * raw

    def raw(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """The network output that means ``x0`` at ``x``; inverse of :meth:`x0`."""
        x_share, raw_share = self._shares(level)
        return x0 if self.kind == "x0" else (x0 - x_share * x) / raw_share

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What the network should have said for this data and this noise."""
        if self.kind == "eps":
            return eps
        return self.raw(x0, add_noise(x0, eps, level), level)

    def weight(self, level: Level) -> Any:
        """Squared error of this prediction over squared error of x_0, at a level."""
        return 1.0 / self._shares(level)[1] ** 2

    def network_input(self, x: Tensor, level: Level) -> tuple[Tensor, Any]:
        """What the network is given, and the time that it is told."""
        if self.kind != "edm":
            return x, level.t
        ratio = level.sigma / level.alpha
        scale = 1 / (level.alpha * (ratio**2 + self.sigma_data**2) ** 0.5)
        return scale * x, (ratio.log() if isinstance(ratio, Tensor) else math.log(ratio)) / 4

    def _shares(self, level: Level) -> tuple[Any, Any]:
        """x_0 = first x + second raw."""
        a, s = level.alpha, level.sigma
        if self.kind == "x0":
            return 0.0, 1.0
        if self.kind == "eps":
            return 1 / a, -s / a
        if self.kind == "v":
            return a / (a * a + s * s), -s / (a * a + s * s)
        if self.kind == "flow":
            return 1 / (a + s), -s / (a + s)
        power, d = (s / a) ** 2 + self.sigma_data**2, self.sigma_data
        return d * d / power / a, s / a * d / power**0.5


EPS, X0, V, FLOW = Head("eps"), Head("x0"), Head("v"), Head("flow")
