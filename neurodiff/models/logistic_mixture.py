"""Mixture of discretised logistics over the 256 values of RGB pixels (PixelCNN++'s output).

The parameters of a pixel, 10 a component, lie in the last axis as the published networks give
them: ``k`` logits of the components, then for each of the colours red, green and blue ``k`` means,
``k`` logarithms of scales and ``k`` coefficients. Green's mean depends on red, blue's on both.
Pixels are in [-1, 1], where one grey level is 2 / 255.

References
----------
Salimans et al. 2017, PixelCNN++, ICLR, section 2.1-2.2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from neurodiff.core.errors import UsageError

PER_COMPONENT = 10  # one logit, and a mean, a scale and a coefficient for each colour
LEAST_LOG_SCALE = -7.0
#: Uniform numbers stay this far from 0 and 1, where their logarithms end.
MARGIN = 1e-5
_HALF_LEVEL = 1 / 255
_LEAST_MASS = 1e-5  # below, the density at the pixel stands in for the mass of its level


@dataclass(frozen=True)
class LogisticMixture:
    """Parameters of each pixel taken apart; ``k`` components, colours in the order red, green,
    blue."""

    logits: Float[Tensor, "n h w k"]
    means: Float[Tensor, "n h w 3 k"]
    log_scales: Float[Tensor, "n h w 3 k"]
    coefficients: Float[Tensor, "n h w 3 k"]

    @classmethod
    def from_parameters(cls, parameters: Float[Tensor, "n h w c"]) -> "LogisticMixture":
        """The mixture whose parameters a network put out.

        Raises
        ------
        UsageError : the last axis is no multiple of 10.
        """
        *place, channels = parameters.shape
        if channels == 0 or channels % PER_COMPONENT:
            raise UsageError(
                f"the mixture has {channels} parameters a pixel; expected {PER_COMPONENT} for "
                "each component"
            )
        k = channels // PER_COMPONENT
        rest = parameters[..., k:].reshape(*place, 3, 3 * k)
        return cls(
            parameters[..., :k],
            rest[..., :k],
            rest[..., k : 2 * k].clamp(min=LEAST_LOG_SCALE),
            rest[..., 2 * k :].tanh(),
        )

    def nats(self, pixels: Float[Tensor, "n h w 3"]) -> Float[Tensor, " n"]:
        """Negative log likelihood of pictures in nats per dimension (pixel and colour).

        Parameters
        ----------
        pixels : in [-1, 1]; -1 and 1 take the whole tail beyond them.
        """
        x = pixels[..., None]  # (n, h, w, 3, 1)
        red, green = x[..., 0, :], x[..., 1, :]
        a = self.coefficients
        means = torch.stack(
            [
                self.means[..., 0, :],
                self.means[..., 1, :] + a[..., 0, :] * red,
                self.means[..., 2, :] + a[..., 1, :] * red + a[..., 2, :] * green,
            ],
            dim=-2,
        )
        rate = (-self.log_scales).exp()
        middle = rate * (x - means)
        above, below = middle + rate * _HALF_LEVEL, middle - rate * _HALF_LEVEL
        mass = above.sigmoid() - below.sigmoid()
        density = middle - self.log_scales - 2 * F.softplus(middle)
        narrow = density - torch.log(torch.tensor(127.5, dtype=x.dtype))
        inside = torch.where(mass > _LEAST_MASS, mass.clamp(min=1e-12).log(), narrow)
        log_mass = torch.where(
            x < -0.999,
            above - F.softplus(above),
            torch.where(x > 0.999, -F.softplus(below), inside),
        )
        joint = log_mass.sum(dim=-2) + self.logits.log_softmax(dim=-1)  # (n, h, w, k)
        return -joint.logsumexp(dim=-1).sum(dim=(1, 2)) / pixels[0].numel()

    def sample(
        self, choice: Float[Tensor, "n h w k"], value: Float[Tensor, "n h w 3"]
    ) -> Float[Tensor, "n h w 3"]:
        """Pixels in [-1, 1] from numbers in (0, 1): ``choice`` picks the components (Gumbel's
        way), ``value`` is the quantile of each colour in its logistic."""
        picked = (self.logits - (-choice.log()).log()).argmax(dim=-1)
        return self._values(picked, value.log() - (-value).log1p())

    def mode(self) -> Float[Tensor, "n h w 3"]:
        """Pixels in [-1, 1] without chance: the likeliest component's median, which is what
        `sample` gives where every number is 1/2."""
        picked = self.likeliest()
        return self._values(picked, self.means.new_zeros((*picked.shape, 3)))

    def likeliest(self) -> Int[Tensor, "n h w"]:
        """Number of the likeliest component of each pixel."""
        return self.logits.argmax(dim=-1)

    def _values(self, picked: Tensor, standard: Tensor) -> Tensor:
        """Colours of the picked components at a place of the standard logistic, one after the
        other, each clipped before the next one sees it."""
        index = picked[..., None, None].expand(*picked.shape, 3, 1)
        mean, log_scale, a = (
            table.gather(-1, index)[..., 0]
            for table in (self.means, self.log_scales, self.coefficients)
        )  # (n, h, w, 3) each
        free = mean + log_scale.exp() * standard
        red = free[..., 0].clamp(-1, 1)
        green = (free[..., 1] + a[..., 0] * red).clamp(-1, 1)
        blue = (free[..., 2] + a[..., 1] * red + a[..., 2] * green).clamp(-1, 1)
        return torch.stack([red, green, blue], dim=-1)


def to_levels(pixels: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """[-1, 1] -> 0 to 255, rounded down as in the published code."""
    return ((pixels + 1) * 127.5).clamp(0, 255).to(torch.uint8)
