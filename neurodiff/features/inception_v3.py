"""Inception v3 with the parameter names of torchvision's published weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.features.image_networks import IMAGENET


class InceptionV3(nn.Module):
    """Pictures normalised for ImageNet (n, 3, h, w) -> logits of 1,000 classes.

    The published weights were trained on values in -1..1; the first step undoes ImageNet's
    normalisation and applies theirs (torchvision's ``transform_input``, on with its weights).
    The auxiliary classifier of training is held for its parameters and not used.

    References
    ----------
    Szegedy et al. 2016, CVPR (Rethinking the Inception Architecture).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b = _A(192, 32)
        self.Mixed_5c = _A(256, 64)
        self.Mixed_5d = _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(768, 128)
        self.Mixed_6c = _C(768, 160)
        self.Mixed_6d = _C(768, 160)
        self.Mixed_6e = _C(768, 192)
        self.AuxLogits = _Auxiliary(768, classes)
        self.Mixed_7a = _D(768)
        self.Mixed_7b = _E(1280)
        self.Mixed_7c = _E(2048)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.fc(self.pooled(x))

    def pooled(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """Activations averaged over the picture (``avgpool``); at least 75 px a side."""
        mean, std = (x.new_tensor(v)[:, None, None] for v in IMAGENET)
        x = (x * std + mean) * 2 - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))


class _Convolution(nn.Module):
    def __init__(
        self,
        width: int,
        out: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _A(nn.Module):
    """35 x 35."""

    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(width, 64, 1)
        self.branch5x5_1 = _Convolution(width, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(width, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(width, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_blurred(x))], 1)


class _B(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(width, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    """17 x 17, with 7 x 7 convolutions taken apart into rows and columns."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        row: dict = {"kernel": (1, 7), "padding": (0, 3)}
        column: dict = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = _Convolution(width, 192, 1)
        self.branch7x7_1 = _Convolution(width, inside, 1)
        self.branch7x7_2 = _Convolution(inside, inside, **row)
        self.branch7x7_3 = _Convolution(inside, 192, **column)
        self.branch7x7dbl_1 = _Convolution(width, inside, 1)
        self.branch7x7dbl_2 = _Convolution(inside, inside, **column)
        self.branch7x7dbl_3 = _Convolution(inside, inside, **row)
        self.branch7x7dbl_4 = _Convolution(inside, inside, **column)
        self.branch7x7dbl_5 = _Convolution(inside, 192, **row)
        self.branch_pool = _Convolution(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), seven, twice, self.branch_pool(_blurred(x))], 1)


class _D(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(width, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(width, 192, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    """8 x 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row: dict = {"kernel": (1, 3), "padding": (0, 1)}
        column: dict = {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = _Convolution(width, 320, 1)
        self.branch3x3_1 = _Convolution(width, 384, 1)
        self.branch3x3_2a = _Convolution(384, 384, **row)
        self.branch3x3_2b = _Convolution(384, 384, **column)
        self.branch3x3dbl_1 = _Convolution(width, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Convolution(384, 384, **row)
        self.branch3x3dbl_3b = _Convolution(384, 384, **column)
        self.branch_pool = _Convolution(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
            self.branch_pool(_blurred(x)),
        ]
        return torch.cat(parts, 1)


class _Auxiliary(nn.Module):
    """The second classifier of training: parameters only."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv0 = _Convolution(width, 128, 1)
        self.conv1 = _Convolution(128, 768, 5)
        self.fc = nn.Linear(768, classes)


def _blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1)
