"""Vector-quantised autoencoder of shapes on three planes (the shape tokenizer of MinD-3D).

points (n, p, 3) -> PointNet with local pooling -> planes (n, 3, hidden, r, r) in the order xz, xy,
yz -> one grid of codes (n, grid * grid), row-major -> planes -> occupancy logits at any point.
Points lie in the cube of side ``1 + padding`` around 0 (object in [-0.5, 0.5], y up).

Parameter names are the published ones, so that the published weights load by name at any size.
``encoder.unet`` is constructed in the published code and never used; ``unused_encoder_unet=False``
leaves it out.  Pooling by ``mean`` is an option of ours; the published network takes the ``max``.

References
----------
Gao et al. 2024, MinD-3D, ECCV.  Peng et al. 2020, Convolutional Occupancy Networks, ECCV.
van den Oord et al. 2017, Neural Discrete Representation Learning, NeurIPS.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from neurodiff.models.codebook import nearest_codes
from neurodiff.models.planes import PlaneCells, plane_coordinates, sample_planes
from neurodiff.models.unet2d import UNet2D


@dataclass(frozen=True, kw_only=True)
class TriplaneVQSize:
    """Sizes of a :class:`TriplaneVQ`; the defaults are the published ones.

    hidden : channels of a plane and of the point networks.  plane_resolution : cells along a side
    of a plane.  grid : codes along a side; ``plane_resolution / grid`` is a power of 2.  vocab,
    code_dim : codebook.  width : channels at the code grid.  unet_depth, start_filters : of the
    U-Nets.  blocks : residual blocks of the encoder and of the decoder.  padding : margin of the
    box.  pooling : of points that share a cell.  beta : weight of the commitment loss.
    """

    hidden: int = 32
    plane_resolution: int = 256
    grid: int = 32
    vocab: int = 8192
    code_dim: int = 4
    width: int = 512
    unet_depth: int = 4
    start_filters: int = 32
    blocks: int = 5
    padding: float = 0.1
    pooling: Literal["max", "mean"] = "max"
    beta: float = 0.4
    unused_encoder_unet: bool = True

    def __post_init__(self) -> None:
        ratio = self.plane_resolution / self.grid
        if ratio < 1 or not ratio.is_integer() or int(ratio) & (int(ratio) - 1):
            raise ValueError(
                f"plane_resolution {self.plane_resolution} must be grid {self.grid} times a "
                "power of 2"
            )
        if self.grid % 2 ** (self.unet_depth - 1):
            raise ValueError(
                f"a grid of {self.grid} cannot be halved {self.unet_depth - 1} times; "
                f"unet_depth {self.unet_depth} is too large"
            )
        if self.pooling not in ("max", "mean"):
            raise ValueError(f"pooling is {self.pooling!r}; known: 'max', 'mean'")

    @property
    def stages(self) -> int:
        """Halvings from the planes to the grid of codes."""
        return (self.plane_resolution // self.grid).bit_length() - 1

    @property
    def tokens(self) -> int:
        """Codes of one object."""
        return self.grid**2


class TriplaneVQ(nn.Module):
    """The autoencoder (module docstring); ``model(points, queries) -> (logits, loss, ids)``."""

    def __init__(self, size: TriplaneVQSize | None = None) -> None:
        super().__init__()
        self.size = size = TriplaneVQSize() if size is None else size
        self.encoder = _PointEncoder(size)
        self.quantizer = _PlaneQuantizer(size)
        self.decoder = _PointDecoder(size)
        self.apply(_initialise)

    def forward(
        self, points: Float[Tensor, "n p 3"], queries: Float[Tensor, "n q 3"]
    ) -> tuple[Float[Tensor, "n q"], Float[Tensor, ""], Int[Tensor, "n tokens"]]:
        """Occupancy logits at ``queries`` of the shapes sampled by ``points``, loss and codes."""
        ids, quantised, loss = self.quantise(self.encode_planes(points))
        return self.occupancy(self.planes_from_codes(quantised), queries), loss, ids

    def encode_planes(self, points: Float[Tensor, "n p 3"]) -> Float[Tensor, "n 3 hidden r r"]:
        """Features of a point cloud on the planes xz, xy, yz; 0 where no point falls.

        Raises
        ------
        ValueError : no points, or a coordinate is not finite.
        """
        if points.shape[1] == 0:
            raise ValueError("points is empty; an object needs at least one point")
        return self.encoder(points)

    def encode(self, planes: Float[Tensor, "n 3 hidden r r"]) -> Float[Tensor, "n tokens dim"]:
        """Vectors of the code grid before quantisation, row-major."""
        return self.quantizer.encode(planes)

    def quantise(
        self, planes: Float[Tensor, "n 3 hidden r r"]
    ) -> tuple[Int[Tensor, "n tokens"], Float[Tensor, "n tokens dim"], Float[Tensor, ""]]:
        """Codes of planes.

        Returns
        -------
        ids, the codebook's vectors (the derivative passes straight through to the planes), and
        the loss: mean squared distance that moves the codebook, plus ``beta`` times the one that
        moves the encoder.
        """
        z = self.encode(planes)
        codebook = self.quantizer.quantizer.embedding.weight
        ids = nearest_codes(z.detach(), codebook.detach())
        quantised = F.embedding(ids, codebook)
        loss = F.mse_loss(quantised, z.detach())
        loss = loss + self.size.beta * F.mse_loss(z, quantised.detach())
        return ids, z + (quantised - z).detach(), loss

    def planes_from_ids(self, ids: Int[Tensor, "n tokens"]) -> Float[Tensor, "n 3 hidden r r"]:
        """Decoded planes of codes.

        Raises
        ------
        ValueError : the number of codes is not grid * grid, or a code is not in the codebook.
        """
        if ids.shape[1] != self.size.tokens:
            raise ValueError(
                f"ids has {ids.shape[1]} codes an object; this network has {self.size.tokens} "
                f"({self.size.grid} x {self.size.grid})"
            )
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.size.vocab):
            raise ValueError(
                f"ids reach from {int(ids.min())} to {int(ids.max())}; the codebook has codes 0 "
                f"to {self.size.vocab - 1}"
            )
        return self.planes_from_codes(F.embedding(ids, self.quantizer.quantizer.embedding.weight))

    def planes_from_codes(
        self, codes: Float[Tensor, "n tokens dim"]
    ) -> Float[Tensor, "n 3 hidden r r"]:
        """Decoded planes of code vectors."""
        return self.quantizer.decode(codes)

    def occupancy(
        self, planes: Float[Tensor, "n 3 hidden r r"], queries: Float[Tensor, "n q 3"]
    ) -> Float[Tensor, "n q"]:
        """Logits of being inside at each query."""
        return self.decoder(planes, queries)


class _PointBlock(nn.Module):
    """Residual block of two layers; a linear shortcut where the widths differ."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.fc_0 = nn.Linear(width_in, width)
        self.fc_1 = nn.Linear(width, width)
        self.shortcut = nn.Linear(width_in, width, bias=False) if width_in != width else None
        nn.init.zeros_(self.fc_1.weight)

    def forward(self, x: Tensor) -> Tensor:
        change = self.fc_1(F.relu(self.fc_0(F.relu(x))))
        return change + (x if self.shortcut is None else self.shortcut(x))


class _PointEncoder(nn.Module):
    def __init__(self, size: TriplaneVQSize) -> None:
        super().__init__()
        self.size, hidden = size, size.hidden
        self.fc_pos = nn.Linear(3, 2 * hidden)
        self.blocks = nn.ModuleList(_PointBlock(2 * hidden, hidden) for _ in range(size.blocks))
        self.fc_c = nn.Linear(hidden, hidden)
        if size.unused_encoder_unet:
            self.unet = UNet2D(
                hidden, hidden, depth=size.unet_depth, start_filters=size.start_filters
            )

    def forward(self, points: Tensor) -> Tensor:
        coordinates = plane_coordinates(points, self.size.padding)
        cells = PlaneCells(coordinates, self.size.plane_resolution)
        x = self.blocks[0](self.fc_pos(points))  # (n, p, hidden)
        for block in self.blocks[1:]:
            x = block(torch.cat([x, cells.pool(x, self.size.pooling)], dim=2))
        return cells.to_planes(self.fc_c(x))


class _Codebook(nn.Module):
    def __init__(self, size: TriplaneVQSize) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocab, size.code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / size.vocab, 1 / size.vocab)


class _PlaneQuantizer(nn.Module):
    """Planes to the vectors of the code grid and back; the codebook lies between."""

    def __init__(self, size: TriplaneVQSize) -> None:
        super().__init__()
        self.size, hidden, width = size, size.hidden, size.width
        unet = {"depth": size.unet_depth, "start_filters": size.start_filters}
        three = 3 * hidden
        self.encode_3plane_reso32 = _convolutions(three, three, hidden, hidden)
        levels = [hidden * 2**stage for stage in range(size.stages + 1)]
        down: list[nn.Module] = []
        for before, after in itertools.pairwise(levels):
            down += [nn.Conv2d(before, after, 2, stride=2), nn.ReLU()]
        self.down = nn.Sequential(*down, nn.Conv2d(levels[-1], width, 1))
        self.project1 = nn.Linear(width, size.code_dim)
        self.quantizer = _Codebook(size)
        self.project2 = nn.Linear(size.code_dim, width)
        self.unet_after_quant = UNet2D(width, width, **unet)
        up: list[nn.Module] = []
        below = [width, *reversed(levels[1:-1]), hidden] if size.stages else [width]
        for before, after in itertools.pairwise(below):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.up = nn.Sequential(*up, nn.Conv2d(below[-1], hidden, 1))
        self.decode_3plane_reso256 = _convolutions(hidden, three, three, three)
        self.unet_2d = UNet2D(hidden, hidden, **unet)

    def encode(self, planes: Tensor) -> Tensor:
        x = _channels_last(planes.flatten(1, 2))  # (n, 3 hidden, r, r)
        x = self.down(self.encode_3plane_reso32(x))  # (n, width, grid, grid)
        return self.project1(x.flatten(2).transpose(1, 2))

    def decode(self, codes: Tensor) -> Tensor:
        grid = self.size.grid
        x = self.project2(codes).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)  # channels last
        x = self.up(self.unet_after_quant(x))
        x = self.decode_3plane_reso256(x)  # (n, 3 hidden, r, r)
        x = _channels_last(x.unflatten(1, (3, -1)).flatten(0, 1))  # planes as a batch
        return self.unet_2d(x).unflatten(0, (-1, 3))


class _PointDecoder(nn.Module):
    def __init__(self, size: TriplaneVQSize) -> None:
        super().__init__()
        self.size, hidden = size, size.hidden
        self.fc_p = nn.Linear(3, hidden)
        self.fc_c = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(size.blocks))
        self.blocks = nn.ModuleList(_PointBlock(hidden, hidden) for _ in range(size.blocks))
        self.fc_out = nn.Linear(hidden, 1)

    def forward(self, planes: Tensor, queries: Tensor) -> Tensor:
        features = sample_planes(planes, plane_coordinates(queries, self.size.padding))
        x = self.fc_p(queries)  # (n, q, hidden)
        for condition, block in zip(self.fc_c, self.blocks, strict=True):
            x = block(x + condition(features))
        return self.fc_out(F.relu(x))[..., 0]


def _channels_last(x: Tensor) -> Tensor:
    """The memory layout in which convolutions, and sampling after them, are fastest on a CPU."""
    return x.contiguous(memory_format=torch.channels_last)


def _initialise(module: nn.Module) -> None:
    """He's weights, zero biases: through the thirty-odd ReLU convolutions between points and
    occupancy the constructor's default shrinks the signal to nothing, and the codes stay unread."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def _convolutions(first: int, second: int, third: int, last: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU and a 1x1 one."""
    return nn.Sequential(
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(second, third, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(third, last, 1),
    )
