"""PointNet as the published shape evaluation uses it: classifier of point clouds, for its features.

Parameter names are those of the published checkpoint (``feat.stn.*``, ``feat.conv1..3``,
``fc1..3``, ``bn1``, ``bn2``), which holds 1,607,190 parameters at 13 classes. The Fréchet
point-cloud distance compares its ``activation``: 1024 + 512 + 256 + 13 = 1,805 numbers a cloud.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 13
POINTS = 2048


class SpatialTransformer(nn.Module):
    """Predicts a 3 x 3 matrix that the cloud is multiplied with; the identity is added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 64, 1), nn.Conv1d(64, 128, 1)
        self.conv3 = nn.Conv1d(128, 1024, 1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(1024, 512), nn.Linear(512, 256), nn.Linear(256, 9)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm1d(n) for n in (64, 128, 1024))
        self.bn4, self.bn5 = nn.BatchNorm1d(512), nn.BatchNorm1d(256)

    def forward(self, x: Float[Tensor, "b 3 points"]) -> Float[Tensor, "b 3 3"]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x))).amax(dim=2)
        x = F.relu(self.bn4(self.fc1(x)))
        x = F.relu(self.bn5(self.fc2(x)))
        identity = torch.eye(3, dtype=x.dtype, device=x.device)
        return self.fc3(x).view(-1, 3, 3) + identity


class PointFeatures(nn.Module):
    """Points -> one vector of 1,024 a cloud."""

    def __init__(self) -> None:
        super().__init__()
        self.stn = SpatialTransformer()
        self.conv1, self.conv2 = nn.Conv1d(3, 64, 1), nn.Conv1d(64, 128, 1)
        self.conv3 = nn.Conv1d(128, 1024, 1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm1d(n) for n in (64, 128, 1024))

    def forward(
        self, x: Float[Tensor, "b 3 points"]
    ) -> tuple[Float[Tensor, "b 1024"], Float[Tensor, "b 3 3"]]:
        transform = self.stn(x)
        x = (x.transpose(1, 2) @ transform).transpose(1, 2)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x)).amax(dim=2), transform


class PointNet(nn.Module):
    """Classifier of point clouds.

    References
    ----------
    Qi et al. 2017, CVPR. Used by Gao et al. 2024, ECCV (MinD-3D) for its point-cloud distance.
    """

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.feat = PointFeatures()
        self.fc1, self.fc2 = nn.Linear(1024, 512), nn.Linear(512, 256)
        self.fc3 = nn.Linear(256, classes)
        self.dropout = nn.Dropout(0.3)
        self.bn1, self.bn2 = nn.BatchNorm1d(512), nn.BatchNorm1d(256)

    def forward(
        self, x: Float[Tensor, "b 3 points"]
    ) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b features"], Float[Tensor, "b 3 3"]]:
        """Logits, activation (1024 + 512 + 256 + classes) and the matrix of the transformer.

        The published code ends in a ``log_softmax`` over the *batch* (``dim=0``); it is left to
        the caller, because no published number uses it.
        """
        feature, transform = self.feat(x)
        first = F.relu(self.bn1(self.fc1(feature)))
        second = F.relu(self.bn2(self.dropout(self.fc2(first))))
        logits = self.fc3(second)
        return logits, torch.cat([feature, first, second, logits], dim=1), transform


@torch.no_grad()
def activations(
    network: PointNet, clouds: Float[np.ndarray, "items points 3"]
) -> Float[np.ndarray, "items features"]:
    """Activation of each cloud, one at a time, so that a batch cannot change an item.

    Parameters
    ----------
    network : in ``eval`` mode; with batch statistics an item would depend on its neighbours.
    clouds : normalised (``metrics.meshes.normalise_points``).

    Raises
    ------
    ValueError : the network is in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call eval() first")
    dtype = network.fc1.weight.dtype
    points = torch.from_numpy(np.ascontiguousarray(clouds.transpose(0, 2, 1))).to(dtype)
    found = [network(cloud)[1] for cloud in points.split(1)]
    return torch.cat(found).numpy() if found else np.zeros((0, 1792 + network.fc3.out_features))
