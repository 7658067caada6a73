"""Simulated objects: closed-form volumes, exact extents, factors that show, and independence."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated import shapes
from neurodiff.datasets.simulated.objects import (
    CATEGORIES,
    HELD_OUT_CATEGORIES,
    factor_names,
    make_object,
    make_objects,
    object_from_factors,
    stimuli,
    surface_points,
    training_arrays,
)

ALL = (*CATEGORIES, *HELD_OUT_CATEGORIES)


def _box_with_round_edges(a, b, c, r):
    """Steiner's formula: a core of sides a, b, c grown by r."""
    return (
        a * b * c
        + 2 * r * (a * b + b * c + c * a)
        + math.pi * r**2 * (a + b + c)
        + 4 / 3 * math.pi * r**3
    )


# every part fits into [-0.5, 0.5]^3
PRIMITIVES = {
    "box": (
        shapes.box((-0.3, 0.4), (-0.2, 0.3), (-0.4, 0.1), 0.1),
        _box_with_round_edges(0.5, 0.3, 0.3, 0.1),
    ),
    "cylinder": (shapes.cylinder((0.1, 0, 0), 0.3, 0.7, axis="x"), math.pi * 0.09 * 0.7),
    "cone": (
        shapes.cone((0, 0, 0.1), 0.4, 0.2, 0.6),
        math.pi / 3 * 0.6 * (0.16 + 0.08 + 0.04),
    ),
    "ellipsoid": (
        shapes.ellipsoid((0, 0.05, 0), (0.45, 0.3, 0.2)),
        4 / 3 * math.pi * 0.45 * 0.3 * 0.2,
    ),
    "torus": (shapes.torus((0, 0, 0), 0.3, 0.12), 2 * math.pi**2 * 0.3 * 0.12**2),
    "arc": (
        shapes.torus((0, 0, 0), 0.3, 0.12, angle=1.0),
        2.0 * math.pi * 0.3 * 0.12**2 + 4 / 3 * math.pi * 0.12**3,
    ),
    "capsule": (
        shapes.capsule((-0.2, -0.2, -0.1), (0.2, 0.2, 0.1), 0.15),
        math.pi * 0.15**2 * 0.6 + 4 / 3 * math.pi * 0.15**3,
    ),
    "prism": (
        shapes.prism([(-0.4, -0.3), (0.4, -0.3), (0.0, 0.4)], (-0.2, 0.3), axis="x"),
        0.5 * 0.8 * 0.7 * 0.5,
    ),
    # a ring of rectangular section: Pappus
    "lathe": (
        shapes.lathe([(0.2, -0.3), (0.4, -0.3), (0.4, 0.3), (0.2, 0.3)], thickness=0.2),
        math.pi * (0.16 - 0.04) * 0.6,
    ),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_primitive_has_its_closed_form_volume_and_bounds(name):
    part, volume = PRIMITIVES[name]
    n = 64
    cells = np.stack(np.meshgrid(*(np.arange(n),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    generator = np.random.default_rng(0)
    points = (cells + generator.random(cells.shape)) / n - 0.5
    inside = part.distance(*points.T.astype(np.float32)) < 0
    # one jittered point a cell: only the <= 6 n^2 * 2 cells at the surface are uncertain, each with
    # a standard deviation of at most half a cell, so four standard deviations are
    bound = 4 * 0.5 * math.sqrt(12 * n**2) / n**3
    assert abs(inside.mean() - volume) < bound
    low, high = part.bounds()
    hit = points[inside]
    assert (hit.min(axis=0) > low - 1e-6).all()
    assert (hit.max(axis=0) < high + 1e-6).all()
    assert np.abs(hit.min(axis=0) - low).max() < 0.03
    assert np.abs(hit.max(axis=0) - high).max() < 0.03


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_distance_has_slope_one_at_the_surface(name):
    """The nearest surface lies along the gradient at the stated distance."""
    part, _ = PRIMITIVES[name]
    points = np.random.default_rng(1).uniform(-0.6, 0.6, (4000, 3))
    distance = part.distance(*points.T)
    near = np.abs(distance) < 0.01
    points, distance = points[near], distance[near]
    h = 1e-5
    gradient = np.stack([part.distance(*(points + h * e).T) - distance for e in np.eye(3)]) / h
    slope = np.sqrt((gradient**2).sum(axis=0))
    assert len(slope) > 20
    assert np.quantile(np.abs(slope - 1), 0.97) < 0.08


def test_tilting_turns_right_handed_and_keeps_the_shape():
    part = shapes.box((0.2, 0.4), (-0.05, 0.05), (-0.1, 0.1))
    turned = shapes.tilted(part, math.pi / 2)
    np.testing.assert_allclose(turned.bounds(), [[-0.05, 0.2, -0.1], [0.05, 0.4, 0.1]], atol=1e-12)


def test_the_union_grid_the_cut_off_and_the_plain_distance_agree():
    item = make_object("train", 0, seed=3)
    axis = np.linspace(-0.55, 0.55, 23)
    grid = shapes.union_on_grid(item.parts, (axis,) * 3, reach=0.1)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    plain = item.sdf(points)
    np.testing.assert_array_equal(grid.ravel() < 0, plain < 0)
    np.testing.assert_allclose(grid.ravel(), np.minimum(plain, 0.1), atol=2e-6)
    cut = shapes.union_distance(item.parts, points, reach=0.1)
    np.testing.assert_allclose(cut, np.minimum(plain, 0.1), atol=2e-6)


@pytest.mark.parametrize("category", ALL)
def test_the_longest_side_is_one_and_nothing_leaves_the_cube(category):
    for item in make_objects(3, seed=0, categories=[category]):
        low, high = item.part_bounds[:, 0].min(axis=0), item.part_bounds[:, 1].max(axis=0)
        np.testing.assert_allclose(low, -high, atol=1e-9)
        assert abs((high - low).max() - 1) < 1e-9
        # and the distance agrees: solid just inside both faces, nothing just outside
        longest = int((high - low).argmax())
        line = np.linspace(-0.5, 0.5, 301)
        face = np.zeros((301**2, 3))
        others = [k for k in range(3) if k != longest]
        face[:, others[0]], face[:, others[1]] = (g.ravel() for g in np.meshgrid(line, line))
        for sign in (-1, 1):
            face[:, longest] = sign * (0.5 - 1e-3)
            assert item.occupancy(face).any()
            face[:, longest] = sign * (0.5 + 1e-3)
            assert not item.occupancy(face).any()


@pytest.mark.parametrize("category", ALL)
def test_a_mesh_is_watertight_and_encloses_the_occupied_volume(category):
    item = make_object(category, 1, seed=0)
    mesh = item.mesh()
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    low, high = item.part_bounds[:, 0].min(axis=0), item.part_bounds[:, 1].max(axis=0)
    n = 56
    cells = np.stack(np.meshgrid(*(np.arange(n),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    jitter = np.random.default_rng(0).random(cells.shape)
    share = item.occupancy(low + (cells + jitter) / n * (high - low)).mean()
    assert mesh.volume == pytest.approx(share * np.prod(high - low), rel=0.03)
    np.testing.assert_allclose(mesh.bounds, [low, high], atol=0.012)


@pytest.mark.parametrize("category", ALL)
def test_every_factor_shows_in_the_shape(category):
    middle = dict.fromkeys(factor_names(category), 0.5)
    assert 5 <= len(middle) <= 6
    for name in middle:
        a, b = (
            object_from_factors(category, {**middle, name: v}).occupancy_grid(48)
            for v in (0.0, 1.0)
        )
        assert (a & b).sum() / (a | b).sum() < 0.97, name


@pytest.mark.parametrize("category", ALL)
def test_no_part_is_too_thin_and_an_object_is_one_piece(category):
    names = factor_names(category)
    generator = np.random.default_rng(0)
    corners = [dict(zip(names, row, strict=True)) for row in generator.integers(0, 2, (5, 6)) * 1.0]
    items = make_objects(4, seed=5, categories=[category])
    items += [object_from_factors(category, factors) for factors in corners]
    axis = ((np.arange(72) + 0.5) / 72 - 0.5).astype(np.float32)
    axes = (axis[:, None, None], axis[None, :, None], axis[None, None, :])
    for item in items:
        assert min(part.thickness for part in item.parts) >= 0.07
        assert ndimage.label(item.occupancy_grid(48))[1] == 1, item.factors
        # eroded by 0.03 on both sides, something of every part is still there
        eroded = shapes.union_on_grid(item.parts, (axis,) * 3, reach=0.05) < -0.03
        for part in item.parts:
            assert (eroded & (part.distance(*axes) < 0)).any(), (item.factors, part)


def test_objects_depend_on_their_own_identity_only():
    one = make_object("chair", 7, seed=0)
    batch = make_objects(3, seed=0, categories=("boat", "chair"), start=6)
    assert [item.id for item in batch][3:] == ["chair-0006", "chair-0007", "chair-0008"]
    assert batch[4] == one
    assert make_object("chair", 7, seed=1).factors != one.factors
    assert all(0 <= value <= 1 for value in one.factors.values())


def test_categories_are_twelve_and_three_others():
    assert len(set(CATEGORIES)) == 12
    assert len(set(HELD_OUT_CATEGORIES)) == 3
    assert not set(CATEGORIES) & set(HELD_OUT_CATEGORIES)


@pytest.mark.parametrize("category", ALL)
def test_captions_name_the_category_and_read_as_english(category):
    captions = [item.caption for item in make_objects(40, seed=0, categories=[category])]
    for caption in captions:
        assert category in caption
        assert not re.search(r"  |\ba [aeiou]|\ban [^aeiou]| ,|^ | $|with$|and$", caption), caption
    assert len(set(captions)) > 20


def test_no_two_of_six_hundred_objects_are_the_same():
    grids = np.stack([item.occupancy_grid(20).ravel() for item in make_objects(50, seed=0)])
    counts = grids.sum(axis=1)
    weights = grids.astype(np.float32)
    both = (weights @ weights.T).astype(int)
    iou = both / (counts[:, None] + counts[None] - both)
    np.fill_diagonal(iou, 0)
    assert len(grids) == 600
    assert iou.max() < 0.999


def test_training_arrays_are_labelled_at_the_rounded_positions():
    items = make_objects(1, seed=0)
    arrays = training_arrays(items, n_surface=300, n_queries=501, seed=4)
    assert arrays.surface.shape == (12, 300, 3)
    assert arrays.queries.shape == (12, 501, 3)
    assert arrays.surface.dtype == arrays.queries.dtype == np.float16
    for k, item in enumerate(items):
        np.testing.assert_array_equal(
            arrays.occupied[k], item.sdf(arrays.queries[k].astype(np.float32)) < 0
        )
        np.testing.assert_array_equal(arrays.grid[k], item.occupancy_grid(32))
    uniform = arrays.queries[:, :251].astype(float)
    assert np.abs(uniform).max() <= 0.55
    # variance of a uniform in a side of 1.1, and of its own estimate over 12 * 251 * 3 values
    assert uniform.var() == pytest.approx(1.1**2 / 12, rel=0.04)
    alone = training_arrays(items[5:6], n_surface=300, n_queries=501, seed=4)
    for name in ("surface", "queries", "occupied", "grid"):
        np.testing.assert_array_equal(getattr(alone, name)[0], getattr(arrays, name)[5])
    other = training_arrays(items[5:6], n_surface=300, n_queries=501, seed=5)
    assert (other.queries != alone.queries).any()


def test_the_grid_is_indexed_x_y_z_from_the_low_corner():
    item = make_object("boat", 0, seed=0)
    grid = item.occupancy_grid(32)
    i, j, k = 20, 5, 14
    centre = np.array([[(i + 0.5) / 32 - 0.5, (j + 0.5) / 32 - 0.5, (k + 0.5) / 32 - 0.5]])
    assert grid[i, j, k] == item.occupancy(centre)[0]
    filled = np.argwhere(grid)
    centres = (filled + 0.5) / 32 - 0.5
    assert item.occupancy(centres).all()


@pytest.mark.parametrize("category", ALL)
def test_surface_points_lie_on_the_surface_without_offset(category):
    item = make_object(category, 2, seed=0)
    distance = item.sdf(surface_points(item, 1500, np.random.default_rng(0)))
    assert np.quantile(np.abs(distance), 0.99) < 5e-4
    assert np.abs(distance).max() < 5e-3
    assert abs(distance.mean()) < 5e-5


def test_surface_points_are_uniform_by_area():
    """A bottle's cap is a plain cylinder: its top holds its share of the whole surface."""
    item = object_from_factors("bottle", dict.fromkeys(factor_names("bottle"), 0.5))
    points = surface_points(item, 20000, np.random.default_rng(0))
    cap = item.parts[1]
    radius, half, round_edge = cap.sizes
    y = points[:, 1] - cap.centre[1]
    reach = np.hypot(points[:, 0], points[:, 2])
    top = ((y > half - 1e-3) & (reach < radius - round_edge)).sum()
    side = ((np.abs(y) < half - 2 * round_edge) & (reach > radius - 1e-3)).sum()
    areas = np.pi * (radius - round_edge) ** 2, 2 * np.pi * radius * 2 * (half - 2 * round_edge)
    share = areas[0] / sum(areas)
    bound = (
        4 * math.sqrt(share * (1 - share) / (top + side)) + 0.03
    )  # plus the mesh's own coarseness
    assert top / (top + side) == pytest.approx(share, abs=bound)


def test_stimuli_are_lazy_and_marked_as_simulated():
    items = [make_object("mug", 0, seed=0), make_object("lamp", 3, seed=0)]
    shown = stimuli(items, resolution=24)
    assert shown.simulated
    assert shown.ids == ["mug-0000", "lamp-0003"]
    assert shown.categories() == ["mug", "lamp"]
    assert shown["lamp-0003"].caption == items[1].caption
    known = {k: v for k, v in shown["mug-0000"].factors.items() if not math.isnan(v)}
    assert known == items[0].factors
    first = shown["mug-0000"].mesh()
    assert first.is_watertight
    assert shown["mug-0000"].mesh() is first


def test_wrong_requests_are_named():
    with pytest.raises(UsageError, match=r"no simulated category 'chiar'.*'chair'"):
        make_object("chiar", 0, seed=0)
    with pytest.raises(UsageError, match="counts from 0"):
        make_object("chair", -1, seed=0)
    full = dict.fromkeys(factor_names("chair"), 0.5)
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\]"):
        object_from_factors("chair", {**full, "armrests": 1.2})
    with pytest.raises(UsageError, match="known are"):
        object_from_factors("chair", {"armrests": 0.5})
    with pytest.raises(ValueError, match="cannot have edges"):
        shapes.box((0, 1), (0, 0.1), (0, 1), 0.2)


def test_objects_never_import_torch():
    code = (
        "import sys; from neurodiff.datasets.simulated import objects as o; "
        "o.training_arrays(o.make_objects(1, seed=0, categories=['car']), n_surface=8, "
        "n_queries=8, seed=0); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
