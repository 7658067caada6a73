"""Scores of shapes whose answers are known without running them."""

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh

from neurodiff.analysis.scoring import (
    FactorReader,
    ScoredShapes,
    factor_correlations,
    score,
)
from neurodiff.core.errors import UsageError
from neurodiff.features.view_classifier import ViewClassifier
from neurodiff.geometry.bank import bank_from_stimuli

NAMES = [f"{kind}-{k}" for kind in ("box", "rod") for k in range(4)]
CATEGORIES = [name.split("-")[0] for name in NAMES]


def mesh_of(name):
    kind, k = name.split("-")
    if kind == "box":
        return trimesh.creation.box((1.0, 0.25 + 0.2 * int(k), 0.5))
    return trimesh.creation.cylinder(radius=0.08 + 0.09 * int(k), height=1.0, sections=24)


@pytest.fixture(scope="module")
def truth():
    return ScoredShapes.of_meshes([mesh_of(name) for name in NAMES], NAMES, seed=1)


class ByArea:
    """A classifier of two classes that reads how much of the picture is dark."""

    classes = ("small", "large")

    def probabilities(self, views):
        dark = (views < 250).mean(axis=(1, 2, 3))
        large = 1 / (1 + np.exp(-60 * (dark - 0.09)))
        return np.stack([1 - large, large], axis=1).astype(np.float32)


def scored(predicted, truth, **options):
    return score(predicted, truth, ids=NAMES, categories=CATEGORIES, **options)


def test_truth_against_itself_is_perfect(truth):
    table = scored(truth, truth, classifier=ByArea())
    assert list(table["stimulus"]) == NAMES
    assert list(table["category"]) == CATEGORIES
    assert (table["CD"] == 0).all()
    for name in ("F@2%", "IoU", "2-way", "within"):
        assert (table[name] == 1).all(), name


def test_another_sample_of_the_truth_reaches_the_sampling_floor(truth):
    """N points on an area A: of the distance r to the nearest, P(> r) = exp(-N pi r^2 / A)."""
    again = ScoredShapes.of_meshes([mesh_of(name) for name in NAMES], NAMES, seed=2)
    table = scored(again, truth)
    area = np.array([mesh_of(name).area for name in NAMES])
    floor = 100 * 2 * area / (np.pi * 2048)  # both ways, x 1e2
    np.testing.assert_allclose(table["CD"], floor, rtol=0.15)
    assert (table["IoU"] == 1).all()
    np.testing.assert_allclose(table["F@2%"], 1 - np.exp(-2048 * np.pi * 0.02**2 / area), atol=0.04)
    assert (table["within"] == 1).all()


def test_a_shifted_cube_has_the_overlap_of_the_closed_form():
    cube = trimesh.creation.box((0.5, 0.5, 0.5))
    moved = cube.copy().apply_translation((0.125, 0.0, 0.0))  # four voxels of sixteen
    one, other = (ScoredShapes.of_meshes([m], ["cube"], seed=0) for m in (cube, moved))
    table = score(other, one, ids=["cube"], categories=["c"])
    assert table["IoU"][0] == pytest.approx(12 / 20)
    # the same draws, moved: no point is further than the shift from its twin
    assert 0 < table["CD"][0] <= 100 * 2 * 0.125**2
    far = cube.copy().apply_translation((10.0, 0.0, 0.0))
    gone = score(
        ScoredShapes(one.surface + np.float32([10, 0, 0]), one.grid ^ True, one.views),
        one,
        ids=["cube"],
        categories=["c"],
    )
    assert np.allclose(far.centroid, [10, 0, 0])
    assert gone["IoU"][0] == 0
    assert gone["F@2%"][0] == 0
    # nearest neighbours of two parallel faces 9.5 apart: between 9.5^2 and 10.5^2 plus the width
    assert 200 * 9.5**2 < gone["CD"][0] < 200 * (10.5**2 + 0.5)


def test_empty_meshes_get_the_worst_and_no_error(truth):
    empty = ScoredShapes.of_meshes([trimesh.Trimesh()] * len(NAMES), NAMES)
    table = scored(empty, truth, classifier=ByArea())
    assert (table["IoU"] == 0).all()
    assert (table["F@2%"] == 0).all()
    squared = (truth.surface.astype(float) ** 2).sum(axis=2)  # from the origin and back
    np.testing.assert_allclose(table["CD"], 100 * (squared.mean(1) + squared.min(1)), rtol=1e-4)
    assert (empty.views == 255).all()
    assert table.groupby("category")["within"].mean().tolist() == pytest.approx([0.5, 0.5])
    mixed = ScoredShapes.of_meshes([trimesh.Trimesh(), mesh_of("rod-1")], ["a", "b"])
    assert len(mixed) == 2
    assert len(mixed.take(np.array([1, 1, 0]))) == 3


def test_answers_swapped_within_a_category(truth):
    """Rods answered in reverse: the own truth is the least alike of the four."""
    order = np.array([0, 1, 2, 3, 7, 6, 5, 4])
    table = scored(truth.take(order), truth)
    assert (table["within"][:4] == 1).all()
    assert table["within"][4:].mean() < 0.5
    assert (table["IoU"][4:] < 0.8).all()


def test_category_of_one_item_has_no_within_score(truth):
    table = score(
        truth.take(np.array([0, 1, 4])),
        truth.take(np.array([0, 1, 4])),
        ids=NAMES[:3],
        categories=["box", "box", "rod"],
    )
    assert table["within"].isna().tolist() == [False, False, True]


def test_classes_are_those_of_the_true_picture(truth):
    """2-way of two classes is 1 where truth and answer fall into the same one."""
    classifier = ByArea()
    order = np.array([3, 2, 1, 0, 7, 6, 5, 4])
    table = scored(truth.take(order), truth, classifier=classifier)
    classes = classifier.probabilities(truth.views).argmax(1)
    assert 0 < classes.mean() < 1
    np.testing.assert_array_equal(table["2-way"], classes[order] == classes)


def test_columns_follow_the_number_of_classes(truth):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = ViewClassifier(("a", "b", "c", "d"), width=4)
    table = scored(truth, truth, classifier=classifier)
    assert {"2-way", "4-way"} <= set(table)
    assert (table["4-way"] == 1).all()
    assert "2-way" not in scored(truth, truth)


def test_scored_shapes_of_a_bank(truth):
    from neurodiff.core.stimuli import Stimuli

    stimuli = Stimuli(pd.DataFrame({"id": NAMES, "category": CATEGORIES}), mesh_of)
    bank = bank_from_stimuli(stimuli.select(NAMES[:3]), seed=0)
    shapes = ScoredShapes.of_bank(bank, [NAMES[2], NAMES[0]])
    np.testing.assert_array_equal(shapes.grid, truth.grid[[2, 0]])
    assert shapes.surface.dtype == np.float32
    np.testing.assert_allclose(
        shapes.views.astype(float), truth.views[[2, 0]].astype(float), atol=1
    )


@pytest.mark.parametrize("short", ["predicted", "ids", "categories"])
def test_numbers_that_differ_are_refused(truth, short):
    options = {"ids": NAMES, "categories": CATEGORIES}
    predicted = truth
    if short == "predicted":
        predicted = truth.take(np.arange(3))
    else:
        options[short] = options[short][:3]
    with pytest.raises(UsageError, match="one prediction an item"):
        score(predicted, truth, **options)


def test_nothing_to_score_is_refused():
    with pytest.raises(UsageError, match="no meshes"):
        ScoredShapes.of_meshes([], [])


# ----------------------------------------------------------------------------------- factors


def grids_of(factor):
    """Occupancy that grows linearly with the factor: a slab of that many voxels."""
    grids = np.zeros((len(factor), 32, 32, 32), bool)
    for grid, f in zip(grids, factor, strict=True):
        grid[:, : int(f), :] = True
    return grids


def shapes_of(grids):
    n = len(grids)
    return ScoredShapes(
        np.zeros((n, 4, 3), np.float32), grids, np.full((n, 4, 64, 64), 255, np.uint8)
    )


@pytest.fixture(scope="module")
def reader():
    rng = np.random.default_rng(0)
    thickness = 2 * rng.integers(1, 16, 60)
    factors = pd.DataFrame({"thickness": thickness / 32.0, "nothing": rng.random(60)})
    return FactorReader(grids_of(thickness), factors)


def test_a_linear_factor_is_read_off(reader):
    thickness = 2 * np.arange(1, 16)
    read = reader(grids_of(thickness))
    assert read.shape == (15, 2)
    np.testing.assert_allclose(read[:, 0], thickness / 32.0, atol=0.08)  # ridge shrinks a little
    assert np.corrcoef(read[:, 0], thickness)[0, 1] > 0.995


def test_correlation_of_factors(reader):
    rng = np.random.default_rng(1)
    thickness = 2 * rng.integers(1, 16, 40)
    true = pd.DataFrame({"thickness": thickness / 32.0, "nothing": rng.random(40)})
    kinds = ["slab"] * 40
    right = factor_correlations(shapes_of(grids_of(thickness)), true, kinds, {"slab": reader})
    assert right["factor"].tolist() == ["thickness", "nothing"]
    assert right["r"][0] > 0.99
    assert abs(right["r"][1]) < 0.5  # 3 SD of 40 items
    assert right["n"].tolist() == [40, 40]
    turned = factor_correlations(shapes_of(grids_of(32 - thickness)), true, kinds, {"slab": reader})
    assert turned["r"][0] == pytest.approx(-right["r"][0], abs=0.01)
    same = factor_correlations(shapes_of(grids_of([8] * 40)), true, kinds, {"slab": reader})
    assert (same["r"] == 0).all()  # a constant answer tells nothing


def test_factors_are_read_within_the_category_of_the_truth(reader):
    thickness = np.array([4, 8, 12, 16, 4, 8, 12, 16])
    kinds = ["slab", "ring"] * 4
    true = pd.DataFrame({"thickness": thickness / 32.0, "nothing": np.arange(8.0)})
    table = factor_correlations(
        shapes_of(grids_of(thickness)), true, kinds, {"slab": reader, "few": reader}
    )
    assert set(table["category"]) == {"slab"}  # of "few" there are fewer than three
    assert (table["n"] == 4).all()
