"""Pooling into plane cells and sampling of planes, against torch's own slower operations."""

import pytest
import torch
import torch.nn.functional as F

from neurodiff.models.planes import PlaneCells, plane_coordinates, sample_planes

PADDING, SIDE = 0.1, 4


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(5)
    return torch.rand(2, 25, 3, generator=generator, dtype=torch.float64) * 1.3 - 0.65


def features(*shape, seed=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cell_numbers(points):
    """(3, n, p): the definition, one axis pair at a time."""
    unit = (points / (1 + PADDING + 1e-5) + 0.5).clamp(0, 1 - 1e-5)
    whole = (unit * SIDE).long()
    return torch.stack([whole[..., a] + SIDE * whole[..., b] for a, b in ((0, 2), (0, 1), (1, 2))])


def pooled_by_scatter(points, x, how):
    total = torch.zeros_like(x)
    for cells in cell_numbers(points):
        index = cells[..., None].expand_as(x)
        table = x.new_zeros(len(x), SIDE**2, x.shape[-1])
        table = table.scatter_reduce(1, index, x, how, include_self=False)
        total = total + table.gather(1, index)
    return total


@pytest.mark.parametrize(("how", "torch_name"), [("max", "amax"), ("mean", "mean")])
def test_pooling_and_its_derivative_equal_scatter_reduce(points, how, torch_name):
    points = torch.cat([points, points[:, :3]], dim=1)  # three points twice: ties
    x = features(2, 25, 3)
    x = torch.cat([x, x[:, :3]], dim=1).requires_grad_()
    weight = features(2, 28, 3, seed=7)
    cells = PlaneCells(plane_coordinates(points, PADDING), SIDE)
    ours, theirs = cells.pool(x, how), pooled_by_scatter(points, x, torch_name)
    torch.testing.assert_close(ours, theirs)
    (ours_slope,) = torch.autograd.grad((ours * weight).sum(), x)
    (their_slope,) = torch.autograd.grad((theirs * weight).sum(), x)
    torch.testing.assert_close(ours_slope, their_slope)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_derivatives_equal_finite_differences(points, how):
    points = points[:1, :6]
    cells = PlaneCells(plane_coordinates(points, PADDING), 2)
    x = features(1, 6, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cells.pool(x, how), x)
    assert torch.autograd.gradcheck(cells.to_planes, x)


def test_planes_hold_the_mean_of_each_cell(points):
    x = features(2, 25, 3)
    planes = PlaneCells(plane_coordinates(points, PADDING), SIDE).to_planes(x)
    expected = torch.zeros(2, 3, 3, SIDE, SIDE, dtype=torch.float64)
    numbers = cell_numbers(points)
    for item in range(2):
        for plane in range(3):
            for cell in range(SIDE**2):
                members = x[item][numbers[plane, item] == cell]
                if len(members):
                    expected[item, plane, :, cell // SIDE, cell % SIDE] = members.mean(0)
    torch.testing.assert_close(planes, expected)
    assert (expected == 0).any()


def test_all_points_in_one_cell_give_the_largest_and_the_mean():
    x = features(1, 300, 2)
    cells = PlaneCells(plane_coordinates(torch.full((1, 300, 3), 0.01), PADDING), SIDE)
    torch.testing.assert_close(cells.pool(x, "max"), 3 * x.amax(1, keepdim=True).expand_as(x))
    torch.testing.assert_close(cells.pool(x, "mean"), 3 * x.mean(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize("side", [1, 2, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sampling_and_its_derivative_equal_grid_sample(points, side, layout):
    planes = features(6, 3, side, side).contiguous(memory_format=layout).unflatten(0, (2, 3))
    planes.requires_grad_()
    places = plane_coordinates(points, PADDING)
    weight = features(2, 25, 3, seed=8)
    ours = sample_planes(planes, places)
    total = 0
    for plane in range(3):
        grid = 2 * places[:, plane, :, None] - 1
        sampled = F.grid_sample(
            planes[:, plane], grid, mode="bilinear", padding_mode="border", align_corners=True
        )
        total = total + sampled[..., 0].transpose(1, 2)
    torch.testing.assert_close(ours, total)
    (ours_slope,) = torch.autograd.grad((ours * weight).sum(), planes)
    (their_slope,) = torch.autograd.grad((total * weight).sum(), planes)
    torch.testing.assert_close(ours_slope, their_slope)


def test_queries_can_have_a_derivative(points):
    planes = features(2, 3, 2, 5, 5)
    places = plane_coordinates(points, PADDING)
    value = sample_planes(planes, places)
    moving = points.clone().requires_grad_()
    same = sample_planes(planes, plane_coordinates(moving, PADDING))
    torch.testing.assert_close(same, value)
    (slope,) = torch.autograd.grad(same.sum(), moving)
    assert slope.abs().sum() > 0


def test_linear_planes_are_sampled_exactly():
    ramp = torch.linspace(0, 1, 6, dtype=torch.float64)
    along = torch.stack([ramp.expand(6, 6), ramp[:, None].expand(6, 6)])  # width, height
    points = features(1, 10, 3).clamp(-0.5, 0.5)
    unit = points / (1 + PADDING + 1e-5) + 0.5
    sampled = sample_planes(along.expand(1, 3, 2, 6, 6), plane_coordinates(points, PADDING))
    x, y, z = unit.unbind(-1)  # planes xz, xy, yz
    torch.testing.assert_close(sampled[..., 0], x + x + y)
    torch.testing.assert_close(sampled[..., 1], z + y + z)


def test_points_outside_of_the_box_go_to_its_border():
    inside = plane_coordinates(torch.tensor([[[0.0, 0.0, 0.0]]]), PADDING)
    torch.testing.assert_close(inside, torch.full((1, 3, 1, 2), 0.5))
    outside = plane_coordinates(torch.tensor([[[9.0, -9.0, 0.0]]]), PADDING)
    assert outside[0, 1, 0].tolist() == pytest.approx([1 - 1e-5, 0.0])
    with pytest.raises(ValueError, match="not finite"):
        plane_coordinates(torch.tensor([[[float("nan"), 0.0, 0.0]]]), PADDING)
    cells = PlaneCells(inside, SIDE)
    with pytest.raises(ValueError, match="known: 'max', 'mean'"):
        cells.pool(torch.zeros(1, 1, 2), "median")
