"""Searchlights on a surface and in a volume: neighbourhoods by hand, planted places, the null."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binom, spearmanr

from neurodiff.analysis.attribution_problem import COLUMNS
from neurodiff.analysis.neighbourhoods import balls, neighbourhoods, surface_discs
from neurodiff.analysis.searchlight import searchlight
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace, SubSpace, VectorSpace
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex
from neurodiff.metrics.encoding_scores import exchange_orders
from neurodiff.metrics.rdm import correlation_rdm
from neurodiff.metrics.searchlight_scores import pairing_null_sums, rsa_null


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


linear_problem = _load("encoding_subjects").linear_problem


def slab(**options):
    """A volume of 3 x (5 x 5) x 3 mm voxels: "first" in the left plane, then "second", empty."""
    affine = np.diag([12.0, 3.0, 3.0, 1.0])  # planes 12 mm apart: balls of 8 mm stay within one
    space = MaskSpace(np.ones((3, 5, 5), bool), affine)
    return linear_problem(vertices=25, space=space, **options)


def test_discs_follow_the_edges():
    """A path 0 - 1 - 2 - 3 with edges of 1, 2 and 4 mm."""
    lengths = np.zeros((4, 4))
    for a, b, mm in ((0, 1, 1.0), (1, 2, 2.0), (2, 3, 4.0)):
        lengths[a, b] = lengths[b, a] = mm
    near = surface_discs(csr_array(lengths), 3.0).toarray()
    expected = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(near, expected)
    some = surface_discs(csr_array(lengths), 3.0, np.array([3, 1])).toarray()
    np.testing.assert_array_equal(some, np.array(expected)[[3, 1]])


def test_balls_are_in_mm():
    mask = MaskSpace(np.ones((3, 3, 3), bool), np.diag([2.0, 3.0, 4.0, 1.0]))
    sizes = balls(mask, 3.0).sum(axis=1)
    assert sizes[13] == 5  # the middle: itself, two along i, two along j
    assert sizes.min() == 3


def test_neighbours_on_the_cortex():
    cortex = load_visual_cortex()
    columns = np.flatnonzero(cortex.area("V1"))[::3]
    near = neighbourhoods(SubSpace(FlatMapSpace(), columns), 6.0)
    assert near.shape == (len(columns), len(columns))
    assert (near != near.T).nnz == 0
    assert (near.diagonal() == 1).all()
    places = cortex.midthickness[columns]
    row, column = near.nonzero()
    assert np.linalg.norm(places[row] - places[column], axis=1).max() <= 6.0
    # nothing crosses between hemispheres, though the mid-line is near
    assert (cortex.hemisphere[columns][row] == cortex.hemisphere[columns][column]).all()


def test_the_score_is_spearman_of_the_two_tables():
    rng = np.random.default_rng(0)
    means, model = rng.standard_normal((12, 30)), correlation_rdm(rng.standard_normal((12, 5)))
    near = csr_array((rng.random((30, 30)) < 0.5).astype(np.float32))
    orders = exchange_orders(np.zeros(12), 20, 0)
    (null,), again = rsa_null(
        means,
        near,
        model[None],
        orders,
        rois=np.ones((1, 30), bool),
        least=3,
        weights=np.ones((1, 12)),
    )
    for centre in range(30):
        inside = near[[centre]].toarray()[0] > 0
        expected = spearmanr(correlation_rdm(means[:, inside]), model).statistic
        assert null.score[centre] == pytest.approx(expected)
    # a draw of every stimulus once is the score itself
    assert again[0, 0, 0] == pytest.approx(null.score.mean())
    assert (null.p_max() >= null.p - 1e-12).all()
    assert null.largest.shape == (20,)


def test_permuted_pairings_are_those_of_the_matrix():
    rates = np.random.default_rng(0).random((5, 5))
    orders = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    expected = [np.trace(rates[order]) / 5 for order in orders]
    np.testing.assert_allclose(pairing_null_sums(rates, orders), expected)


@pytest.mark.parametrize("score", ["rsa", "identification"])
def test_planted_planes_of_a_volume_are_found(score):
    problem = slab(draws=49, noise=0.5, n_train=60)
    result = searchlight(problem, score=score, least=5)
    assert list(result.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    table = result.table.set_index(["stage", "roi"])
    for stage in ("first", "second"):
        own = table.loc[(stage, stage)]
        assert own["p"] == own["p_max"] == 0.02
        assert own["share_significant"] > 0.9
        assert own["low"] < own["value"] < own["high"]
        for other in {"first", "second", "empty"} - {stage}:
            assert table.loc[(stage, other)]["p"] > 0.02
            assert table.loc[(stage, other)]["share_significant"] == 0
    chance = 0.0 if score == "rsa" else 0.5
    assert table.loc[("first", "empty")]["null_mean"] == pytest.approx(chance, abs=0.03)
    assert result.maps["sub-1/first/score"].shape == (75,)
    assert result.maps["size"].max() == 21


def test_a_patch_of_cortex_is_found_on_the_surface():
    """Signal in the back half of some vertices of V1, none in the front half."""
    cortex = load_visual_cortex()
    columns = np.flatnonzero(cortex.area("L_V1"))
    columns = columns[np.argsort(cortex.midthickness[columns, 1])][:240]  # from back to front
    problem = linear_problem(
        carries=("first", None), vertices=len(columns) // 2, noise=0.5, draws=49
    )
    data = problem.test.array()
    order = np.argsort(columns)
    space = SubSpace(FlatMapSpace(), columns[order])
    rois = {name: mask[order] for name, mask in problem.rois.items()}
    test = Recording.from_arrays(data[:, order], problem.test.trials, rois, space)
    result = searchlight(replace(problem, test=test, rois=rois), radius=6.0)
    table = result.table.set_index(["stage", "roi"])
    assert table.loc[("first", "first")]["p_max"] == 0.02
    share = neighbourhoods(space, 6.0) @ rois["first"].astype(float) / result.maps["size"]
    score = result.maps["sub-1/first/score"]
    known = np.isfinite(score)
    assert (share == 0).any()
    assert (share == 1).any()
    assert score[known & (share == 1)].min() > np.abs(score[known & (share == 0)]).max()
    assert table.loc[("second", "first")]["p"] > 0.02
    assert any("on the surface: 6 mm along the cortex" in note for note in result.notes)


def test_family_wise_error_of_empty_subjects():
    """40 subjects without a signal: any p_max <= 0.05 in about 5 % of them, within the bound."""
    space = MaskSpace(np.ones((3, 5, 5), bool), np.diag([12.0, 3.0, 3.0, 1.0]))
    called, points = 0, []
    for seed in range(40):
        problem = linear_problem(
            carries=(None,), vertices=75, space=space, n_test=12, draws=39, seed=seed
        )
        result = searchlight(problem, least=5)
        called += bool((result.maps["sub-1/first/p_max"] <= 0.05).any())
        points.append(result.table["p"].iloc[0] <= 0.05)
    assert called <= binom.ppf(0.999, 40, 0.05)
    assert sum(points) <= binom.ppf(0.999, 40, 0.05)


def test_small_neighbourhoods_are_left_out():
    result = searchlight(slab(draws=9), least=12)
    small = result.maps["size"] < 12
    assert small.any()
    np.testing.assert_array_equal(np.isnan(result.maps["sub-1/first/score"]), small)


def test_bad_input_is_one_sentence():
    problem = slab(draws=9)
    with pytest.raises(UsageError, match=r"the space 'mask' is a volume, so a searchlight on the"):
        searchlight(problem, kind="surface")
    with pytest.raises(UsageError, match="have no place on a surface or in a volume"):
        searchlight(linear_problem(draws=9))
    with pytest.raises(UsageError, match="pixels of the flat map, which distorts distances"):
        neighbourhoods(FlatImageSpace(), 5.0)
    with pytest.raises(UsageError, match="kind is 'sphere'"):
        neighbourhoods(FlatMapSpace(), 5.0, "sphere")
    with pytest.raises(UsageError, match=r"the radius is -1\.0"):
        neighbourhoods(VectorSpace(3), -1.0)
    with pytest.raises(UsageError, match="score is 'svm'"):
        searchlight(problem, score="svm")
    with pytest.raises(UsageError, match="no training trials"):
        searchlight(slab(draws=9, with_train=False), score="identification")
    with pytest.raises(DataError, match=r"no neighbourhood of 1 mm has 10 features"):
        searchlight(problem, radius=1.0)
    with pytest.raises(UsageError, match="sub-1 has 9 test stimuli"):
        searchlight(slab(draws=9, n_test=9))
