"""EfficientNet-B1 with the parameter names of torchvision's published weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

STEM, HEAD = 32, 1280
# (expansion, kernel, stride, channels out, blocks): B0's with 1.1 times the blocks, rounded up
STAGES = (
    (1, 3, 1, 16, 2),
    (6, 3, 2, 24, 3),
    (6, 5, 2, 40, 3),
    (6, 3, 2, 80, 4),
    (6, 5, 1, 112, 4),
    (6, 5, 2, 192, 5),
    (6, 3, 1, 320, 2),
)


class EfficientNetB1(nn.Module):
    """Normalised pictures (n, 3, h, w) -> logits of 1,000 ImageNet classes.

    For inference: the stochastic depth of training is left out, as it has no parameters.

    References
    ----------
    Tan & Le 2019, ICML (EfficientNet).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stages: list[nn.Module] = [_convolution(3, STEM, 3, 2)]
        width = STEM
        for expansion, kernel, stride, out, blocks in STAGES:
            stage = []
            for k in range(blocks):
                stage.append(_Block(width, out, kernel, stride if k == 0 else 1, expansion))
                width = out
            stages.append(nn.Sequential(*stage))
        stages.append(_convolution(width, HEAD, 1))
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD, classes))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.pooled(x))

    def pooled(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        """Activations averaged over the picture (``avgpool``)."""
        return self.features(x).mean(dim=(2, 3))


class _Block(nn.Module):
    """Inverted bottleneck with squeeze and excitation."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = width * expansion
        parts: list[nn.Module] = [_convolution(width, wide, 1)] if wide != width else []
        parts.append(_convolution(wide, wide, kernel, stride, groups=wide))
        parts.append(_Excitation(wide, max(1, width // 4)))
        parts.append(_convolution(wide, out, 1, active=False))
        self.block = nn.Sequential(*parts)
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + y if self.residual else y


class _Excitation(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc1(x.mean(dim=(2, 3), keepdim=True))
        return x * self.fc2(nn.functional.silu(scale)).sigmoid()


def _convolution(
    width: int, out: int, kernel: int, stride: int = 1, *, groups: int = 1, active: bool = True
) -> nn.Sequential:
    parts: list[nn.Module] = [
        nn.Conv2d(width, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*parts, *([nn.SiLU()] if active else []))
