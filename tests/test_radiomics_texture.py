"""Texture families against plain loops over voxels, and against matrices counted by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from neurodiff.metrics import (
    radiomics_dependence,
    radiomics_glcm,
    radiomics_matrices,
    radiomics_ngtdm,
    radiomics_runs,
    radiomics_zones,
)


def levels_of(seed: int, shape=(5, 6, 7), highest: int = 4) -> np.ndarray:
    """Random grey levels with holes (0) in the region."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(1, highest + 1, size=shape)
    return np.where(generator.random(shape) < 0.25, 0, levels).astype(np.int32)


def inside(position, shape) -> bool:
    return all(0 <= p < n for p, n in zip(position, shape, strict=True))


@pytest.mark.parametrize("distance", [1, 2])
def test_pairs_are_those_of_a_loop(distance):
    levels = levels_of(0)
    counts = radiomics_glcm.pair_counts(levels, 4, radiomics_matrices.SPACE, distance)
    assert len(radiomics_matrices.SPACE) == 13
    for step, matrix in zip(radiomics_matrices.SPACE, counts, strict=True):
        expected = np.zeros((4, 4), dtype=int)
        for at in np.ndindex(levels.shape):
            to = tuple(a + distance * s for a, s in zip(at, step, strict=True))
            if inside(to, levels.shape) and levels[at] and levels[to]:
                expected[levels[at] - 1, levels[to] - 1] += 1
        assert np.array_equal(matrix, expected + expected.T)


def test_features_of_a_matrix_that_is_known():
    """A fair coin beside itself, and beside its opposite."""
    grey = np.array([1.0, 2.0])
    same = radiomics_glcm.matrix_features(np.eye(2), grey, 2)
    opposite = radiomics_glcm.matrix_features(1 - np.eye(2), grey, 2)
    assert same["corr"] == pytest.approx(1)
    assert opposite["corr"] == pytest.approx(-1)
    assert same["contrast"] == 0
    assert opposite["contrast"] == 1
    assert same["info_corr1"] == opposite["info_corr1"] == pytest.approx(-1)
    assert same["info_corr2"] == pytest.approx(math.sqrt(1 - math.exp(-2)))
    assert same["mcc"] == opposite["mcc"] == pytest.approx(1)
    independent = radiomics_glcm.matrix_features(np.ones((2, 2)), grey, 2)
    assert independent["corr"] == independent["info_corr2"] == pytest.approx(0, abs=1e-12)
    assert independent["mcc"] == pytest.approx(0, abs=1e-12)
    assert independent["joint_entr"] == 2
    assert independent["energy"] == 0.25


def test_levels_that_do_not_occur_change_nothing():
    counts = np.array([[4, 1, 0], [1, 2, 3], [0, 3, 6]])
    few = radiomics_glcm.matrix_features(counts, np.array([1.0, 4.0, 9.0]), 9)
    wide = np.zeros((9, 9), dtype=int)
    wide[np.ix_([0, 3, 8], [0, 3, 8])] = counts
    many = radiomics_glcm.matrix_features(wide, np.arange(1.0, 10.0), 9)
    assert many == pytest.approx(few)


def test_runs_are_those_of_a_walk():
    levels = levels_of(1, highest=2)
    found = radiomics_runs.directional_runs(levels, radiomics_matrices.SPACE)
    for step, (level, length) in zip(radiomics_matrices.SPACE, found, strict=True):
        expected = []
        for at in np.ndindex(levels.shape):
            before = tuple(a - s for a, s in zip(at, step, strict=True))
            starts = not inside(before, levels.shape) or levels[before] != levels[at]
            if not levels[at] or not starts:
                continue
            run, here = 0, at
            while inside(here, levels.shape) and levels[here] == levels[at]:
                run, here = run + 1, tuple(a + s for a, s in zip(here, step, strict=True))
            expected.append((int(levels[at]), run))
        got = sorted(zip(level.tolist(), length.tolist(), strict=True))
        assert got == sorted(expected)
        assert int(length.sum()) == int((levels > 0).sum())


@pytest.mark.parametrize("space", [True, False])
def test_zones_are_those_of_an_image_labeller(space):
    levels = levels_of(2, highest=3)
    steps = radiomics_matrices.SPACE if space else radiomics_matrices.PLANE
    label = radiomics_zones.label_zones(levels, steps)
    structure = np.ones((3, 3, 3))
    if not space:
        structure[[0, 2]] = 0
    zones = 0
    full = np.full(levels.shape, -1)
    full[levels > 0] = label
    for level in (1, 2, 3):
        expected, count = ndimage.label(levels == level, structure)
        zones += count
        for k in range(1, count + 1):
            own = np.unique(full[expected == k])
            assert len(own) == 1
            assert np.array_equal(full == own[0], expected == k)
    assert zones == label.max() + 1


def test_distance_to_the_edge_is_counted_in_steps_across_faces():
    mask = np.ones((5, 5, 5), dtype=bool)
    space = radiomics_zones.edge_distance(mask, space=True)
    assert space[2, 2, 2] == 3
    assert space[2, 2, 0] == 1
    assert space[1, 1, 1] == 2
    plane = radiomics_zones.edge_distance(mask, space=False)
    assert plane[0, 2, 2] == 3
    assert space[0, 2, 2] == 1
    mask[2, 2, 2] = False
    assert radiomics_zones.edge_distance(mask, space=True)[2, 2, 1] == 1
    # a diagonal neighbour outside is two steps away
    assert radiomics_zones.edge_distance(mask, space=True)[1, 1, 2] == 2


@pytest.mark.parametrize("space", [True, False])
def test_tone_differences_are_those_of_a_loop(space):
    levels = levels_of(3)
    counts, sums = radiomics_ngtdm.tone_sums(levels, space=space)
    expected_counts, expected = np.zeros(5), np.zeros(5)
    for at in np.ndindex(levels.shape):
        if not levels[at]:
            continue
        around = neighbours(levels, at, space)
        if around:
            expected_counts[levels[at]] += 1
            expected[levels[at]] += abs(levels[at] - np.mean(around))
    assert np.array_equal(counts, expected_counts)
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


@pytest.mark.parametrize("coarseness", [0, 1])
@pytest.mark.parametrize("space", [True, False])
def test_dependence_is_that_of_a_loop(space, coarseness):
    levels = levels_of(4)
    counts = radiomics_dependence.dependent_neighbours(levels, space=space, coarseness=coarseness)
    expected = [
        sum(abs(int(levels[at]) - n) <= coarseness for n in neighbours(levels, at, space))
        for at in np.ndindex(levels.shape)
        if levels[at]
    ]
    assert counts.tolist() == expected


def neighbours(levels, at, space) -> list[int]:
    """Levels of the voxels of the region about one."""
    found = []
    for step in itertools.product((-1, 0, 1), repeat=3):
        to = tuple(a + s for a, s in zip(at, step, strict=True))
        if step == (0, 0, 0) or (step[0] and not space) or not inside(to, levels.shape):
            continue
        if levels[to]:
            found.append(int(levels[to]))
    return found


def test_a_checkerboard_of_tones():
    """Every voxel of a 2 x 2 board of 1 and 2 sees two others of the other tone and one alike."""
    counts, sums = radiomics_ngtdm.tone_sums(np.array([[[1, 2], [2, 1]]]), space=False)
    assert counts.tolist() == [0, 2, 2]
    np.testing.assert_allclose(sums, [0, 4 / 3, 4 / 3])
    features = radiomics_ngtdm.tone_features(counts, sums)
    assert features["coarseness"] == pytest.approx(3 / 4)
    assert features["contrast"] == pytest.approx(1 / 2 / 2 * (8 / 3) / 4)
    assert features["busyness"] == pytest.approx((4 / 3) / 1)


def test_matrix_features_do_not_depend_on_how_entries_are_split():
    level, size = np.array([1, 1, 2, 5]), np.array([1, 3, 3, 900_000])
    once = radiomics_matrices.counted(np.repeat(level, [4, 2, 1, 3]), np.repeat(size, [4, 2, 1, 3]))
    assert [x.tolist() for x in once] == [level.tolist(), size.tolist(), [4, 2, 1, 3]]
    features = radiomics_matrices.size_features(*once, 10.0)
    assert features["percentage"] == 1.0
    assert features["level_non_uniformity"] == pytest.approx((36 + 1 + 9) / 10)
    assert features["size_non_uniformity"] == pytest.approx((16 + 9 + 9) / 10)


def test_an_average_takes_the_matrices_where_a_feature_is_defined():
    rows = [{"a": 1.0, "b": math.nan}, {"a": 3.0, "b": 5.0}, {"a": 5.0, "b": math.nan}]
    assert radiomics_matrices.averaged(rows) == {"a": 3.0, "b": 5.0}
    assert math.isnan(radiomics_matrices.averaged([{"a": math.nan}])["a"])
