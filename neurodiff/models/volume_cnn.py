"""A small convolutional network from a volume to one number: what supervision alone achieves."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class VolumeCNNSize:
    """``widths`` of the stages; each halves the grid. ``groups`` of the norms divide them."""

    widths: tuple[int, ...] = (8, 16, 32, 64)
    groups: int = 4


class VolumeCNN(nn.Module):
    """Strided 3 x 3 x 3 convolutions, group norms, the mean over the grid, one line.

    Examples
    --------
    >>> import torch
    >>> network = VolumeCNN(VolumeCNNSize(widths=(4, 8)))
    >>> network(torch.zeros(2, 1, 8, 9, 8)).shape
    torch.Size([2])
    """

    def __init__(self, size: VolumeCNNSize) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in size.widths:
            layers += [
                nn.Conv3d(before, width, 3, stride=2, padding=1),
                nn.GroupNorm(size.groups, width),
                nn.SiLU(),
            ]
            before = width
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(before, 1)

    def forward(self, volumes: Float[Tensor, "n 1 i j k"]) -> Float[Tensor, " n"]:
        return self.head(self.stages(volumes).mean(dim=(2, 3, 4)))[:, 0]

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
