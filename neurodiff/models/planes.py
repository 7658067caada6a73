"""Features on three axis-aligned planes: pooling points into cells, sampling planes at points.

Three planes xz, xy, yz (in this order) of ``resolution`` x ``resolution`` cells span the box of
side ``1 + padding`` around 0.  The first axis of a plane's name runs along its width, the second
along its height, so a cell's number is ``first + resolution * second``.

Both directions of pooling and of bilinear sampling are sums of weighted rows, and so are their
derivatives.  :func:`sum_rows` does each as one ``embedding_bag`` on a list that is sorted once,
which is an order of magnitude faster on a CPU than ``scatter_reduce`` / ``index_add`` and than the
derivative of ``grid_sample``; the numbers are the same up to the order of the sums.

References
----------
Peng et al. 2020, Convolutional Occupancy Networks, ECCV.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PLANE_AXES = ((0, 2), (0, 1), (1, 2))  # xz, xy, yz
EDGE = 1e-5  # keeps the coordinate of a point on the upper border inside the last cell


def plane_coordinates(points: Float[Tensor, "n p 3"], padding: float) -> Float[Tensor, "n 3 p 2"]:
    """Place of each point on each plane, from 0 to 1; points outside of the box go to its border.

    Raises
    ------
    ValueError : a coordinate is not finite.
    """
    if not torch.isfinite(points).all():
        raise ValueError("points hold values that are not finite; remove these points first")
    unit = (points / (1 + padding + EDGE) + 0.5).clamp(min=0)
    # only what reaches the border moves, as published: a point just inside keeps its place
    unit = unit.masked_fill(unit >= 1, 1 - EDGE)
    return torch.stack([unit[..., list(axes)] for axes in PLANE_AXES], dim=1)


@dataclass(frozen=True)
class Rows:
    """A sparse matrix: row ``i`` sums ``weights[k] * x[index[k]]`` for k from ``offsets[i]`` on."""

    index: Int[Tensor, " entries"]
    offsets: Int[Tensor, " rows"]
    weights: Float[Tensor, " entries"] | None = None

    def of(self, x: Float[Tensor, "columns channels"]) -> Float[Tensor, "rows channels"]:
        """The product with ``x``; no derivative."""
        return F.embedding_bag(
            self.index, x, self.offsets, mode="sum", per_sample_weights=self.weights
        )


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Rows, transposed: Rows) -> Tensor:
        ctx.transposed = transposed
        return rows.of(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed.of(gradient.contiguous()), None, None


def sum_rows(
    x: Float[Tensor, "columns channels"], rows: Rows, transposed: Rows
) -> Float[Tensor, "rows channels"]:
    """``rows @ x``, whose derivative is ``transposed @ gradient`` (of first order only)."""
    return _SumRows.apply(x, rows, transposed)


class PlaneCells:
    """Which cell of each plane each point of a batch falls into.

    ``pool`` mixes the features of points that share a cell, ``to_planes`` writes the mean of each
    cell; both take features (n, p, channels).
    """

    def __init__(self, coordinates: Float[Tensor, "n 3 p 2"], resolution: int) -> None:
        n, _, p, _ = coordinates.shape
        self.shape, self.resolution = (n, p), resolution
        device, kind = coordinates.device, _index_type(max(n * p, 3 * n * resolution**2))
        ij = (coordinates * resolution).to(kind)
        first = torch.arange(3 * n, device=device, dtype=kind).view(n, 3, 1) * resolution**2
        cell = (ij[..., 0] + resolution * ij[..., 1] + first).transpose(1, 2)  # (n, p, 3)
        ordered, order = cell.reshape(-1).sort(stable=True)
        self.cells, inverse, counts = ordered.unique_consecutive(
            return_inverse=True, return_counts=True
        )
        self.counts = counts
        starts = (counts.cumsum(0) - counts).to(kind)
        point = order.div(3, rounding_mode="floor").to(kind)
        self._points_of_cell = Rows(point, starts)
        cells_of_point = torch.zeros_like(inverse)
        cells_of_point[order] = inverse
        every_third = torch.arange(0, 3 * n * p, 3, device=device, dtype=kind)
        self._cells_of_point = Rows(cells_of_point.to(kind), every_third)

    def pool(
        self, x: Float[Tensor, "n p channels"], how: str = "max"
    ) -> Float[Tensor, "n p channels"]:
        """For each point the sum over the planes of the ``max`` or ``mean`` within its cell."""
        if how == "max":
            pooled = _CellMax.apply(x.flatten(0, 1), self)
        elif how == "mean":
            pooled = self._mean(x)
        else:
            raise ValueError(f"pooling is {how!r}; known: 'max', 'mean'")
        return sum_rows(pooled, self._cells_of_point, self._points_of_cell).view_as(x)

    def to_planes(self, x: Float[Tensor, "n p channels"]) -> Float[Tensor, "n 3 channels r r"]:
        """Mean of the features in each cell, 0 where a cell is empty."""
        n, side = self.shape[0], self.resolution
        table = x.new_zeros(3 * n * side**2, x.shape[-1])
        table = table.index_copy(0, self.cells.long(), self._mean(x))
        return table.view(n, 3, side, side, -1).permute(0, 1, 4, 2, 3)

    def _mean(self, x: Tensor) -> Tensor:
        sums = sum_rows(x.flatten(0, 1), self._points_of_cell, self._cells_of_point)
        return sums / self.counts[:, None]


class _CellMax(torch.autograd.Function):
    """Largest feature of each occupied cell; tied points share the derivative evenly."""

    @staticmethod
    def forward(ctx, x: Tensor, cells: PlaneCells) -> Tensor:
        index, starts = cells._points_of_cell.index, cells._points_of_cell.offsets
        largest_first = cells.counts.argsort(descending=True, stable=True)
        counts, starts = cells.counts[largest_first], starts[largest_first]
        best = x.index_select(0, index[starts])
        # k-th points of all cells that have as many: these cells stand in front
        having = (len(counts) - torch.bincount(counts).cumsum(0)).tolist()
        for k in range(1, len(having)):
            if having[k] == 0:
                break
            front = best[: having[k]]
            torch.maximum(front, x.index_select(0, index[starts[: having[k]] + k]), out=front)
        result = torch.zeros_like(best).index_copy_(0, largest_first, best)
        ctx.save_for_backward(x, result)
        ctx.cells = cells
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        x, best = ctx.saved_tensors
        total = torch.zeros_like(x)
        for plane in ctx.cells._cells_of_point.index.view(-1, 3).unbind(1):
            is_best = (x == best.index_select(0, plane)).to(x.dtype)
            ties = torch.zeros_like(best).index_add_(0, plane.long(), is_best)
            share = gradient / ties.clamp_(min=1)
            total.addcmul_(is_best, share.index_select(0, plane))
        return total, None


def sample_planes(
    planes: Float[Tensor, "n 3 channels r r"],
    coordinates: Float[Tensor, "n 3 q 2"],
) -> Float[Tensor, "n q channels"]:
    """Sum over the planes of the bilinear interpolation at each place.

    Coordinate 0 is the centre of the first cell and 1 that of the last (as ``grid_sample`` with
    ``align_corners=True``; pooling, in contrast, cuts the same range into ``r`` equal cells: so
    the published code).  The derivative goes to ``planes`` only, unless ``coordinates`` need one;
    then ``grid_sample`` is used.
    """
    n, _, channels, side, _ = planes.shape
    if coordinates.requires_grad:
        grid = (2 * coordinates - 1).flatten(0, 1)[:, :, None]  # (3 n, q, 1, 2)
        sampled = F.grid_sample(
            planes.flatten(0, 1), grid, padding_mode="border", align_corners=True
        )
        return sampled.view(n, 3, channels, -1).sum(1).transpose(1, 2)
    table = planes.permute(0, 1, 3, 4, 2).reshape(-1, channels)  # free if channels lie last
    rows = _bilinear_rows(coordinates, side, table.dtype)
    transposed = _transpose(rows, len(table)) if _records(table) else rows
    return sum_rows(table, rows, transposed).view(n, -1, channels)


def _bilinear_rows(coordinates: Tensor, side: int, dtype: torch.dtype) -> Rows:
    """Twelve entries for each query: four corners on each of three planes."""
    n, _, q, _ = coordinates.shape
    kind = _index_type(max(3 * n * side**2, 12 * n * q))
    device = coordinates.device
    place = coordinates.to(dtype) * (side - 1)
    low = place.floor().clamp_(max=max(side - 2, 0))
    high_share = place - low
    share = torch.stack([1 - high_share, high_share], dim=-1)  # (n, 3, q, axis, corner)
    weights = share[..., 1, :, None] * share[..., 0, None, :]  # (n, 3, q, height, width)
    step = torch.arange(2, device=device, dtype=kind) * min(side - 1, 1)
    first = torch.arange(3 * n, device=device, dtype=kind).view(n, 3, 1) * side**2
    low = low.to(kind)
    corner = first + low[..., 0] + side * low[..., 1]
    index = corner[..., None, None] + (side * step[:, None] + step)  # (n, 3, q, 2, 2)
    offsets = torch.arange(0, 12 * n * q, 12, device=device, dtype=kind)
    return Rows(index.transpose(1, 2).reshape(-1), offsets, weights.transpose(1, 2).reshape(-1))


def _transpose(rows: Rows, columns: int) -> Rows:
    """The transposed matrix of one whose rows all have the same number of entries."""
    each = len(rows.index) // max(len(rows.offsets), 1)
    _, order = rows.index.sort(stable=True)
    counts = torch.bincount(rows.index, minlength=columns)
    offsets = (counts.cumsum(0) - counts).to(rows.index.dtype)
    index = order.div(max(each, 1), rounding_mode="floor").to(rows.index.dtype)
    weights = None if rows.weights is None else rows.weights.index_select(0, order)
    return Rows(index, offsets, weights)


def _records(table: Tensor) -> bool:
    return torch.is_grad_enabled() and table.requires_grad


def _index_type(largest: int) -> torch.dtype:
    return torch.int32 if largest < 2**31 else torch.int64
