"""Searchlights of a category: nilearn's in a volume, the same scores on the same neighbourhoods."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_score

from neurodiff.analysis.category_searchlight import _design, category_searchlight
from neurodiff.analysis.encoding_data import responses_of
from neurodiff.analysis.neighbourhoods import neighbourhoods
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace, SubSpace
from neurodiff.datasets.surface import FlatMapSpace, load_visual_cortex


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


linear_problem = _load("encoding_subjects").linear_problem


def two_planes(space, vertices, **options):
    """Category "a" or "b" by the sign of a feature that only the region "first" carries."""
    problem = linear_problem(
        carries=("first", None), vertices=vertices, d=1, noise=0.3, space=space, draws=9, **options
    )
    sign = {i: "a" if v[0] > 0 else "b" for i, v in problem.decoder.table["first"].items()}

    def with_category(recording):
        trials = recording.trials.assign(category=recording.trials["stimulus"].map(sign))
        return replace(recording, trials=trials)

    train = None if problem.train is None else with_category(problem.train)
    return replace(problem, test=with_category(problem.test), train=train)


def volume(**options):
    affine = np.diag([12.0, 3.0, 3.0, 1.0])
    return two_planes(MaskSpace(np.ones((2, 3, 3), bool), affine), 9, **options)


def test_a_planted_plane_is_found_in_a_volume():
    result = category_searchlight(volume(), permutations=9)
    table = result.table.set_index("roi")
    assert table.loc["first", "value"] > 0.8
    assert table.loc["first", "p"] == 0.1
    assert table.loc["empty", "value"] == pytest.approx(0.5, abs=0.2)
    assert (result.maps["sub-1/category/p_max"][:9] == 0.1).all()
    assert (result.maps["sub-1/category/p_max"][9:] > 0.1).all()
    assert any("2 categories, chance 0.5" in note for note in result.notes)


def test_nilearns_scores_are_those_of_our_neighbourhoods():
    problem = volume(with_train=False)
    found = category_searchlight(problem).maps["sub-1/category/score"]
    responses = responses_of(problem.test, "sub-1")
    rows, labels, splits = _design(None, responses, "category", 5, problem, "sub-1")
    near = neighbourhoods(problem.test.space, 8.0)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    for k in range(18):
        inside = near.indices[near.indptr[k] : near.indptr[k + 1]]
        expected = cross_val_score(
            model, rows[:, inside], labels, cv=splits, scoring="balanced_accuracy"
        ).mean()
        # nilearn reads float32 images
        assert found[k] == pytest.approx(expected, abs=0.03)


def test_on_the_surface_and_without_permutations():
    columns = np.flatnonzero(load_visual_cortex().area("L_V1"))[:24]
    problem = two_planes(SubSpace(FlatMapSpace(), columns), 12)
    result = category_searchlight(problem, radius=4.0)
    assert result.table["p"].isna().all()
    assert np.isnan(result.maps["sub-1/category/p_max"]).all()
    assert any("on the surface, 4 mm" in note and "no p" in note for note in result.notes)
    assert result.table.set_index("roi").loc["first", "value"] > 0.8


def test_bad_input_is_one_sentence():
    problem = volume()
    with pytest.raises(UsageError, match="no column 'colour'"):
        category_searchlight(problem, "colour")
    with pytest.raises(UsageError, match="all stimuli of sub-1 are of one split"):
        category_searchlight(replace(problem, train=None), "split")
    with pytest.raises(UsageError, match="1 stimuli, fewer than the 5 folds"):
        category_searchlight(replace(problem, train=None), "stimulus")
    plain = Recording.from_arrays(problem.test.array(), problem.test.trials, problem.rois)
    with pytest.raises(UsageError, match="have no place"):
        category_searchlight(replace(problem, test=plain, train=None))
