"""Attribution of regions: sums that must hold, planted answers, what is refused."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from neurodiff.analysis.attribution import (
    METHODS,
    Attribution,
    attribute_rois,
    checked_methods,
    make_problem,
)
from neurodiff.analysis.attribution_ablation import leave_one_out, roi_only
from neurodiff.analysis.attribution_decoders import RidgeDecoder
from neurodiff.analysis.attribution_shapley import shapley, shapley_weights
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording

N, D, WIDTH = 60, 12, 4
REGIONS = ("left", "right", "twin", "silent")


class Rotated:
    """A decoder that tells no linear form: the same ridge, asked anew for every condition."""

    name, stages = "asked", ("features",)

    def __init__(self, inner):
        self.decode, self.truth = inner.decode, inner.truth


@pytest.fixture(scope="module")
def world():
    """left carries the first half of the features, right and twin the second, silent nothing."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2 * N, D))
    mixing = [rng.standard_normal((6, WIDTH)) for _ in range(2)]
    one, two = features[:, :6] @ mixing[0], features[:, 6:] @ mixing[1]
    parts = [one, two, two, np.zeros((2 * N, WIDTH))]
    data = np.concatenate([p + 0.2 * rng.standard_normal(p.shape) for p in parts], axis=1)
    names = [f"object {k:03d}" for k in range(2 * N)]
    table = pd.DataFrame({"stimulus": names, "split": ["train"] * N + ["test"] * N})
    rois = {name: np.arange(4 * WIDTH) // WIDTH == k for k, name in enumerate(REGIONS)}
    recording = Recording.from_arrays(data.astype(np.float32), table, rois)
    truth = dict(zip(names, features, strict=True))
    model = Ridge(alpha=1.0).fit(data[:N].astype(np.float32), features[:N])
    return recording, truth, model


@pytest.fixture
def problem(world):
    recording, truth, model = world
    return make_problem(model, recording, truth, draws=199)


def values(result):
    return result.table.set_index("roi")["value"]


def test_a_linear_decoder_gives_the_same_asked_or_added_up(world, problem):
    recording, truth, model = world
    asked = make_problem(Rotated(RidgeDecoder(model, truth)), recording, truth, draws=199)
    for ask in (
        lambda p: leave_one_out(p, matched=2),
        lambda p: leave_one_out(p, replacement="permuted", matched=2),
        lambda p: leave_one_out(p, replacement="noise", matched=2),
        lambda p: roi_only(p, matched=2),
        lambda p: shapley(p),
    ):
        one, other = ask(problem).table, ask(asked).table
        for column in ("value", "low", "high", "null_mean", "p"):
            np.testing.assert_allclose(one[column], other[column], atol=1e-4, err_msg=column)


def test_shapley_values_sum_to_what_all_regions_add(problem):
    found = shapley(problem)
    assert abs(values(found).sum() - found.table["total"].iloc[0]) < 1e-9
    items = found.items.groupby("stimulus")["value"].sum()
    assert abs(items.mean() - found.table["total"].iloc[0]) < 1e-9


def test_drawn_orders_sum_exactly_and_come_near_the_exact_values(problem):
    exact = shapley(problem)
    drawn = shapley(problem, exact_up_to=2, samples=400)
    assert abs(values(drawn).sum() - drawn.table["total"].iloc[0]) < 1e-9
    error = drawn.table["standard_error"].to_numpy()
    assert (error > 0).all()
    assert (np.abs(values(drawn) - values(exact)) < 5 * error + 1e-12).all()


@pytest.mark.parametrize("regions", [1, 2, 7])
def test_shapley_weights_are_those_of_all_orders(regions):
    from math import comb

    total = sum(comb(regions - 1, s) * w for s, w in enumerate(shapley_weights(regions)))
    assert total == pytest.approx(1.0)


def test_each_method_says_its_own_of_shared_information(problem):
    """What the twins carry is unique to neither, in each of them, and divided by Shapley."""
    unique = values(leave_one_out(problem, refit=True))
    assert unique["left"] > 5 * max(unique["right"], unique["twin"])
    assert unique["left"] > 0.2
    alone = values(roi_only(problem, refit=True))
    assert min(alone["left"], alone["right"], alone["twin"]) > 0.4
    assert abs(alone["silent"]) < 0.2
    divided = values(shapley(problem))
    assert divided["left"] > 1.5 * max(divided["right"], divided["twin"])
    assert min(divided["right"], divided["twin"]) > 3 * abs(divided["silent"])
    relied = values(leave_one_out(problem, matched=0))  # by the decoder that has both
    assert relied.drop("silent").min() > 20 * abs(relied["silent"])


def test_leave_one_out_is_the_score_with_the_region_at_its_mean(world, problem):
    recording, truth, model = world
    train, test = recording.split()
    found = leave_one_out(problem, matched=0).table.set_index("roi")
    x = test.array().copy()
    mask = recording.rois["left"]
    x[:, mask] = train.array()[:, mask].mean(axis=0)
    target = np.stack([truth[name] for name in test.trials["stimulus"]])
    sd = target.std(axis=0)

    def score(predicted):
        p, t = ((v - v.mean(axis=0)) / sd for v in (predicted, target))
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, t, strict=True)])

    lost = score(model.predict(test.array())) - score(model.predict(x))
    assert found.loc["left", "value"] == pytest.approx(lost, abs=1e-6)


def test_repeats_are_one_item(world):
    """Twice the same trials change no value, no interval and no p."""
    recording, truth, model = world
    test = recording.split()[1]
    twice = Recording.from_arrays(
        np.concatenate([test.array()] * 2),
        pd.concat([test.trials.drop(columns="repeat")] * 2, ignore_index=True),
        test.rois,
    )
    made = [
        leave_one_out(make_problem(model, r, truth, draws=99), matched=0).table
        for r in (test, twice)
    ]
    for column in ("value", "low", "high", "p"):
        np.testing.assert_allclose(made[0][column], made[1][column], atol=1e-9)
    assert (made[1]["n_trials"] == 2 * N).all()


def test_an_answer_does_not_depend_on_the_order_of_regions(world):
    recording, truth, model = world
    other = dict(reversed(list(recording.rois.items())))
    one = attribute_rois(model, recording, truth, None, methods=["leave_one_out"], draws=50)
    two = attribute_rois(model, recording, truth, other, methods=["leave_one_out"], draws=50)
    a, b = (t.table.set_index("roi").loc[list(REGIONS)] for t in (one, two))
    pd.testing.assert_frame_equal(a[["value", "low", "p", "null_mean"]],
                                  b[["value", "low", "p", "null_mean"]])  # fmt: skip


def test_subjects_are_shown_apart(world):
    recording, truth, model = world
    test = recording.split()[1]
    people = test.trials.assign(subject=["sub-01"] * 30 + ["sub-02"] * 30)
    both = Recording.from_arrays(test.array(), people, test.rois)
    table = attribute_rois(model, both, truth, methods=["leave_one_out"], draws=50).table
    assert sorted(set(table["subject"])) == ["sub-01", "sub-02"]
    assert len(table) == 2 * len(REGIONS)


def test_a_result_is_saved_and_opened(world, tmp_path):
    recording, truth, model = world
    found = attribute_rois(
        model, recording, truth, methods=["leave_one_out:noise", "shapley"], draws=50
    )
    again = Attribution.open(found.save(tmp_path / "found"))
    pd.testing.assert_frame_equal(again.table, found.table, check_dtype=False)
    maps = found["shapley"].maps
    for name, values in again["shapley"].maps.items():
        np.testing.assert_array_equal(values, maps[name])
    assert again["leave_one_out"].notes == found["leave_one_out"].notes
    assert "leave_one_out:noise" in found._repr_html_()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no attribution"):
        found.save(tmp_path / "other")


def test_every_method_that_is_named_is_there():
    import importlib

    for where in METHODS.values():
        module, _, function = where.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


# ------------------------------------------------------------------------------- bad input


def test_a_region_without_features_is_refused(world):
    recording, truth, model = world
    with pytest.raises(DataError, match=r"'empty' has no feature"):
        make_problem(model, recording, truth, {"empty": np.zeros(4 * WIDTH, bool)})
    with pytest.raises(DataError, match="expected booleans"):
        make_problem(model, recording, truth, {"short": np.ones(3, bool)})
    with pytest.raises(UsageError, match=r"no region 'lef'.*left"):
        make_problem(model, recording, truth, ["lef"])


def test_overlapping_regions_are_refused_where_values_would_be_counted_twice(world):
    recording, truth, model = world
    rois = {"a": np.arange(16) < 8, "b": np.arange(16) < 4}
    problem = make_problem(model, recording, truth, rois, draws=20)
    with pytest.raises(UsageError, match="1 pairs of regions overlap, first a and b"):
        shapley(problem)
    allowed = shapley(problem, allow_overlap=True)
    assert abs(values(allowed).sum() - allowed.table["total"].iloc[0]) < 1e-9
    assert any("overlap" in note for note in leave_one_out(problem, matched=0).notes)


def test_few_stimuli_a_strange_metric_and_a_missing_feature_are_refused(world):
    recording, truth, model = world
    few = recording.split()[1].select(np.arange(9))
    with pytest.raises(UsageError, match="9 test stimuli"):
        make_problem(model, few, truth)
    with pytest.raises(UsageError, match="ssim compares pictures"):
        make_problem(model, recording, truth, metric="ssim")
    with pytest.raises(UsageError, match="no score of decoded features"):
        make_problem(model, recording, truth, metric="corelation")
    with pytest.raises(DataError, match="have no features"):
        make_problem(model, recording, {})
    with pytest.raises(UsageError, match="no method 'shaply'"):
        attribute_rois(model, recording, truth, methods=["shaply"])
    with pytest.raises(UsageError, match="no variant 'zero'"):
        attribute_rois(model, recording, truth, methods=["leave_one_out:zero"])
    with pytest.raises(UsageError, match="give train="):
        roi_only(make_problem(model, recording.split()[1], truth), refit=True)


def test_methods_are_checked_together_and_each_is_run_once():
    asked = ["leave_one_out", "shapley", "leave_one_out:mean", "leave_one_out:noise", "shapley"]
    assert checked_methods(asked) == ("leave_one_out", "shapley", "leave_one_out:noise")
    with pytest.raises(UsageError, match="no method 'shaply'"):
        checked_methods(["leave_one_out", "shaply"])
    with pytest.raises(UsageError, match="no method was named"):
        checked_methods([])
