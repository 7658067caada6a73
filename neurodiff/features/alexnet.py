"""AlexNet as torchvision defines it, with the parameter names of its published weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

# place in `features` of the activations that are compared: ReLU after the second and fifth layer
SECOND, FIFTH = 4, 11


class AlexNet(nn.Module):
    """Normalised pictures (n, 3, h, w) -> logits of 1,000 ImageNet classes.

    References
    ----------
    Krizhevsky 2014, arXiv 1404.5997 ("one weird trick"), which torchvision follows.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))

    def activations(self, x: Float[Tensor, "n 3 h w"], last: int) -> Float[Tensor, "n c h2 w2"]:
        """What ``features[last]`` returns: (n, 192, 27, 27) of ``SECOND`` and (n, 256, 13, 13) of
        ``FIFTH`` at 224 px."""
        return self.features[: last + 1](x)
