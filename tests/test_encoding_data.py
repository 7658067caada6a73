"""What the five methods read from a problem, and what all of their results have in common."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.attribution_problem import COLUMNS
from neurodiff.analysis.encoding_data import (
    deal_folds,
    exchange_blocks,
    finished,
    responses_of,
    subjects_of,
    thinned,
)
from neurodiff.analysis.encoding_features import shown_features, stimulus_ids
from neurodiff.analysis.encoding_maps import encoding_maps
from neurodiff.analysis.pattern_maps import patterns
from neurodiff.analysis.representational import rsa
from neurodiff.analysis.searchlight import searchlight
from neurodiff.analysis.variance_partition import variance_partition
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


linear_problem = _load("encoding_subjects").linear_problem


def test_repeats_and_frames_are_averaged():
    data = np.array([[[0.0], [2.0]], [[4.0], [4.0]], [[2.0], [4.0]]])
    trials = pd.DataFrame({"stimulus": ["a", "b", "a"], "run": [1, 1, 2], "subject": "x"})
    found = responses_of(Recording.from_arrays(data, trials), "x")
    assert found.ids == ["a", "b"]
    np.testing.assert_allclose(found.means, [[2.0], [4.0]])
    np.testing.assert_allclose(found.trials, [[1.0], [4.0], [3.0]])
    assert list(found.repeats) == [2, 1]
    assert list(found.runs) == ["1 / 1", "1 / 1", "1 / 2"]


def test_stimuli_of_the_same_runs_are_exchangeable():
    trials = pd.DataFrame(
        {"stimulus": list("abcdab"), "run": [1, 1, 1, 2, 2, 2], "kind": list("uuvvuu")}
    )
    responses = responses_of(Recording.from_arrays(np.eye(6), trials), "sub-01")
    blocks, said = exchange_blocks(responses, "runs")
    assert blocks[0] == blocks[1]
    assert len(set(blocks)) == 3
    assert "3 blocks of 4 stimuli; 2 have no partner" in said
    # none has four, so "auto" takes all and says so
    found, said = exchange_blocks(responses, "auto")
    assert len(set(found)) == 1
    assert "only 0 of 4 share their runs with 4 others" in said
    assert list(exchange_blocks(responses, "kind")[0]) == ["u", "u", "v", "v"]
    within = exchange_blocks(responses, "kind", np.array([0, 1, 0, 0]))[0]
    assert len(set(within)) == 3


def test_folds_keep_groups_whole_and_depend_on_the_seed():
    trials = pd.DataFrame({"stimulus": [f"{k}" for k in range(12)], "pair": np.arange(12) // 2})
    responses = responses_of(Recording.from_arrays(np.eye(12), trials), "sub-01")
    folds = deal_folds(responses, 3, 0, "sub-01", "pair")
    np.testing.assert_array_equal(folds[::2], folds[1::2])
    assert list(np.bincount(folds)) == [4, 4, 4]
    assert (folds != deal_folds(responses, 3, 1, "sub-01", "pair")).any()
    with pytest.raises(UsageError, match="7 folds of 6 groups"):
        deal_folds(responses, 7, 0, "sub-01", "pair")
    with pytest.raises(UsageError, match="no column 'colour'"):
        deal_folds(responses, 2, 0, "sub-01", "colour")


def test_thinning_keeps_the_same_stimuli_in_any_order():
    responses = [
        responses_of(
            Recording.from_arrays(np.eye(30), pd.DataFrame({"stimulus": [f"{k}" for k in order]})),
            "sub-01",
        )
        for order in (range(30), reversed(range(30)))
    ]
    a, b = (thinned(one, 12, 0, "sub-01")[0] for one in responses)
    assert a.ids == b.ids[::-1]
    assert len(a.ids) == 12
    np.testing.assert_array_equal(a.means[a.of], a.trials)


def test_a_subject_with_too_few_stimuli_or_no_training_is_named():
    problem = linear_problem(subjects=2)
    few = problem.test.trials["subject"].to_numpy() == "sub-1"
    few[np.flatnonzero(~few)[:5]] = True
    rows = np.flatnonzero(few)
    truth = {stage: values[rows] for stage, values in problem.truth.items()}
    cut = replace(problem, test=problem.test.select(rows), truth=truth)
    with pytest.raises(UsageError, match="sub-2 has 5 test stimuli"):
        subjects_of(cut)
    alone = replace(problem, train=problem.train.select("subject == 'sub-1'"))
    with pytest.raises(DataError, match="sub-2 has test trials and no training trial"):
        subjects_of(alone)
    short = replace(problem, train=problem.train.select("stimulus < 'train-15'"))
    with pytest.raises(UsageError, match="training stimuli; a regression needs at least 10"):
        subjects_of(short)


def test_features_follow_the_stimuli_whatever_their_rows():
    problem = linear_problem(repeats=2)
    order = np.random.default_rng(0).permutation(problem.test.n_trials)
    mixed = replace(
        problem,
        test=problem.test.select(order),
        truth={stage: values[order] for stage, values in problem.truth.items()},
    )
    responses = responses_of(mixed.test, "sub-1")
    found = shown_features(mixed, responses)["first"]
    by_id = problem.decoder.table["first"]
    np.testing.assert_allclose(found, np.stack([by_id[i] for i in responses.ids]))
    assert stimulus_ids(problem)[0] == "train-0"
    assert len(stimulus_ids(problem)) == 120


def test_notes_are_sentences_once():
    assert finished(["one", "two.", "one"]) == ("one.", "two.")


METHODS = (encoding_maps, patterns, rsa, searchlight, variance_partition)


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.__name__)
def test_results_have_the_columns_maps_and_notes_of_the_interface(method):
    space = MaskSpace(np.ones((3, 5, 4), bool), np.eye(4))
    problem = linear_problem(draws=9, space=space, subjects=2)
    result = method(problem)
    assert tuple(result.table.columns[: len(COLUMNS)]) == COLUMNS
    assert set(result.table["method"]) == {result.method}
    assert set(result.table["subject"]) == {"sub-1", "sub-2"}
    assert not result.table.duplicated(["subject", "stage", "roi"]).any()
    assert (result.table["q"].dropna() >= result.table["p"][result.table["q"].notna()] - 1e-9).all()
    for values in result.maps.values():
        assert values.shape == (60,)
    if result.items is not None:
        assert set(result.items) == {"subject", "stimulus", "roi", "stage", "value"}
    assert all(note.endswith(".") for note in result.notes)
    again = method(problem)
    pd.testing.assert_frame_equal(result.table, again.table)


@pytest.mark.parametrize("method", METHODS[:4], ids=lambda one: one.__name__)
def test_stages_may_be_chosen(method):
    space = MaskSpace(np.ones((3, 5, 4), bool), np.eye(4))
    problem = linear_problem(draws=9, space=space)
    result = method(problem, stages=("second",))
    assert set(result.table["stage"]) == {"second"}
    # what is drawn for one stage does not depend on which others are asked for
    whole = method(problem).table.query("stage == 'second'")
    columns = ["roi", "value", "low", "high", "p"]
    pd.testing.assert_frame_equal(
        result.table[columns].reset_index(drop=True), whole[columns].reset_index(drop=True)
    )
    with pytest.raises(UsageError, match="there is no stage 'third'; there are first, second"):
        method(problem, stages=("third",))
