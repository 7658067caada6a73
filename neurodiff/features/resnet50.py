"""ResNet-50 with torchvision's parameter names, which SwAV's published weights carry too."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# (blocks, channels inside, stride) of the four stages
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
WIDEN = 4  # channels out, in channels inside


class ResNet50(nn.Module):
    """Normalised pictures (n, 3, h, w) -> logits, or without ``classes`` the pooled activations.

    References
    ----------
    He et al. 2016, CVPR, with the stride in the 3 x 3 convolution, as torchvision has it; Caron et
    al. 2020, NeurIPS (SwAV), whose network has no classifier.
    """

    def __init__(self, classes: int | None = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for k, (blocks, inside, stride) in enumerate(STAGES, start=1):
            stage = [_Bottleneck(width, inside, stride)]
            width = inside * WIDEN
            stage += [_Bottleneck(width, inside, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{k}", nn.Sequential(*stage))
        if classes is not None:
            self.fc = nn.Linear(width, classes)
        self.classifies = classes is not None

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        pooled = self.pooled(x)
        return self.fc(pooled) if self.classifies else pooled

    def pooled(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """Activations averaged over the picture (``avgpool``)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for k in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{k}")(x)
        return x.mean(dim=(2, 3))


class _Bottleneck(nn.Module):
    def __init__(self, width: int, inside: int, stride: int) -> None:
        super().__init__()
        out = inside * WIDEN
        self.conv1 = nn.Conv2d(width, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or width != out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))
