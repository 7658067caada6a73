"""What stands in for a region, what is fitted anew, and mistakes that are told in a sentence."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge

from neurodiff.analysis.attribution import Attribution, attribute_rois, make_problem, run_method
from neurodiff.analysis.attribution_ablation import leave_one_out, roi_only
from neurodiff.analysis.attribution_conditions import Conditions
from neurodiff.analysis.attribution_decoders import RidgeDecoder
from neurodiff.analysis.attribution_statistics import Resampling, max_statistic_p
from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording

STIMULI, D, P = 24, 9, 8
NAMES = [f"object {k:02d}" for k in range(STIMULI)]
ROIS = {"front": np.arange(P) < 3, "back": np.arange(P) >= 3}


def recorded(repeats=1, subjects=("sub-01",), runs=1, split="test", seed=0):
    """Responses whose repeats lie in the same run: runs part the stimuli."""
    rng = np.random.default_rng(seed)
    rows = [
        {"subject": s, "stimulus": name, "run": 1 + k % runs, "session": 1, "split": split}
        for s in subjects
        for _ in range(repeats)
        for k, name in enumerate(NAMES)
    ]
    data = rng.standard_normal((len(rows), P)).astype(np.float32)
    return Recording.from_arrays(data, pd.DataFrame(rows), ROIS)


def features(names=NAMES, seed=1):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(D) for name in names}


def regression(recording, table):
    rows = np.stack([table[name] for name in recording.trials["stimulus"]])
    return Ridge().fit(recording.array(), rows)


@pytest.fixture(scope="module")
def known():
    """Training trials of 40 other objects, their features and a ridge."""
    rng = np.random.default_rng(3)
    names = [f"training {k:02d}" for k in range(40)]
    table = features([*NAMES, *names])
    mixing = rng.standard_normal((D, P))
    data = np.stack([table[n] @ mixing for n in names]) + rng.standard_normal((40, P)) + 2.0
    train = Recording.from_arrays(data.astype(np.float32), pd.DataFrame({"stimulus": names}), ROIS)
    return train, table, regression(train, table)


def conditions(recording, known, model=None, **options):
    train, table, ridge = known
    problem = make_problem(model or ridge, recording, table, train=train, draws=19, **options)
    return Conditions(problem, ("features",))


@pytest.mark.parametrize("runs", [1, 3])
def test_permuted_responses_are_those_of_one_other_stimulus_of_the_run(known, runs):
    made = conditions(recorded(3, ("sub-01", "sub-02"), runs), known)
    order = made._order("front")
    table = made.trials
    given = table.iloc[order].reset_index(drop=True)
    assert (given["stimulus"] != table["stimulus"]).all()
    assert (given["subject"] == table["subject"]).all()
    assert (given["run"] == table["run"]).all()
    donors = given.assign(taker=table["stimulus"]).groupby(["subject", "taker"])["stimulus"]
    assert (donors.nunique() == 1).all()
    assert sorted(order) == list(range(len(table)))


def test_permuted_repeats_count_as_one_stimulus(known):
    train, table, ridge = known
    once = recorded()
    twice = Recording.from_arrays(
        np.concatenate([once.array()] * 2),
        pd.concat([once.trials.drop(columns="repeat")] * 2, ignore_index=True),
        ROIS,
    )
    one, two = (
        leave_one_out(
            make_problem(ridge, r, table, train=train, draws=19), replacement="permuted", matched=3
        ).table
        for r in (once, twice)
    )
    for column in ("value", "low", "high", "p", "null_mean"):
        np.testing.assert_allclose(one[column], two[column], atol=1e-9)


def test_noise_belongs_to_its_trial_and_not_to_the_table(known):
    whole = recorded(2, ("sub-01", "sub-02"))
    kept = np.r_[5:20, 50:75][::-1]
    one = conditions(whole, known).replaced(ROIS["back"], "noise", "back")
    two = conditions(whole.select(kept), known).replaced(ROIS["back"], "noise", "back")
    np.testing.assert_allclose(two, one[kept], atol=1e-5)
    assert len(np.unique(one[:, 0])) == len(one)  # repeats have noise of their own


def test_noise_has_mean_and_covariance_of_training(known):
    made = conditions(recorded(150), known)
    drawn = made.replaced(ROIS["back"], "noise", "back").astype(float)
    seen = known[0].array()[:, ROIS["back"]].astype(float)
    spread = np.sqrt(np.diag(np.cov(seen.T)))
    error = (drawn.mean(axis=0) - seen.mean(axis=0)) / spread
    assert np.abs(error).max() < 5 / np.sqrt(len(drawn))
    scaled = (np.cov(drawn.T) - np.cov(seen.T)) / np.outer(spread, spread)
    assert np.abs(scaled).max() < 8 / np.sqrt(len(drawn))


def test_one_subject_s_noise_is_not_spread_by_the_distance_to_another(known):
    train, table, ridge = known
    far = Recording.from_arrays(
        np.concatenate([train.array(), train.array() + 100]),
        pd.concat([train.trials.assign(subject=s) for s in ("sub-01", "sub-02")]),
        ROIS,
    )
    both = recorded(1, ("sub-01", "sub-02"))
    made = Conditions(make_problem(ridge, both, table, train=far, draws=9), ("features",))
    drawn = made.replaced(ROIS["front"], "noise", "front")
    of_first = (made.trials["subject"] == "sub-01").to_numpy()
    assert np.abs(drawn[of_first]).max() < 30
    assert np.abs(drawn[~of_first] - 100).max() < 30


@pytest.mark.parametrize("standardise", ["none", "loo"])
def test_a_factored_ridge_of_one_s_own_is_added_up(known, standardise):
    train, table, _ = known
    rows = np.stack([table[n] for n in train.trials["stimulus"]])
    bridge = FactoredRidge(standardise=standardise).fit(train.array(), rows)
    made = conditions(recorded(), known, bridge)
    assert made.linear["features"] is not None
    data = made.data.copy()
    data[:, ROIS["front"]] = made.mean[ROIS["front"]]
    asked = bridge.predict(data)
    np.testing.assert_allclose(
        made.without("features", ROIS["front"], "mean", "front"), asked, atol=1e-5
    )


def test_a_model_with_a_link_is_not_taken_for_linear(known):
    train, table, _ = known
    counts = np.arange(train.n_trials) % 5
    model = PoissonRegressor().fit(train.array(), counts)
    decoder = RidgeDecoder(model, table)
    assert decoder.linear("features") is None
    assert RidgeDecoder(known[2], table).linear("features") is not None


def test_refit_is_the_ridge_of_that_region(known):
    train, table, ridge = known
    problem = make_problem(ridge, recorded(), table, train=train, draws=19)
    found = roi_only(problem, refit=True).table.set_index("roi")
    rows = np.stack([table[n] for n in train.trials["stimulus"]])
    of = ROIS["back"]
    model = MultiTargetRidge().fit(train.array()[:, of], rows, train.trials["stimulus"].to_numpy())
    truth = np.stack([table[n] for n in problem.test.trials["stimulus"]])
    sd = truth.std(axis=0)
    predicted = model.predict(problem.test.array()[:, of])
    p, t = ((v - v.mean(axis=0)) / sd for v in (predicted, truth))
    score = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, t, strict=True)])
    assert found.loc["back", "value"] == pytest.approx(score, abs=1e-6)


# ------------------------------------------------------------------------------- statistics


def test_an_interval_of_few_stimuli_is_as_wide_as_student_s():
    values = np.random.default_rng(0).standard_normal(12)
    low, high = Resampling(12, "a", draws=20000, seed=0, confidence=0.95).interval(values)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.06)


def test_the_max_statistic_keeps_false_regions_at_its_level():
    rng = np.random.default_rng(0)
    worst = []
    for _ in range(600):
        draws = rng.standard_normal((6, 100)) * np.array([1, 1, 1, 10, 0.1, 1])[:, None]
        worst.append(max_statistic_p(draws[:, 0], draws[:, 1:]).min())
    low, high = stats.binom.interval(0.999, 600, 0.05)
    assert low <= np.sum(np.array(worst) <= 0.05) <= high


def test_one_region_has_nothing_to_correct_for(known):
    train, table, ridge = known
    found = attribute_rois(
        ridge, recorded(), table, ["front"], methods=["leave_one_out"], draws=99, train=train
    )
    row = found.table.iloc[0]
    assert row["p_max"] == pytest.approx(row["p"]) == row["q"]
    assert any("one region" in note for note in found.notes)


# ------------------------------------------------------------------------------- bad input


def test_what_makes_every_number_doubtful_is_told(known):
    train, table, ridge = known
    found = attribute_rois(ridge, train, table, methods=["shapley"], draws=9)
    assert any("No trial is marked as test" in note for note in found.notes)
    found = attribute_rois(
        ridge, recorded(), table, methods=["shapley"], draws=9, train=recorded(split="train")
    )
    assert any("24 test stimuli were shown in training" in note for note in found.notes)
    assert "shown in training" in found._repr_html_()


def test_strange_methods_and_options_are_refused_before_anything_runs(known):
    _, table, ridge = known
    ask = lambda **how: attribute_rois(ridge, recorded(), table, draws=9, **how)  # noqa: E731
    with pytest.raises(UsageError, match=r"no method 'shaply'.*shapley"):
        ask(methods=["leave_one_out", "shaply"])
    with pytest.raises(UsageError, match="options are given for 'shapley', which is not run"):
        ask(methods=["roi_only"], options={"shapley": {"samples": 8}})
    with pytest.raises(UsageError, match=r"roi_only has no option 'match'.*matched"):
        ask(methods=["roi_only"], options={"roi_only": {"match": 8}})
    with pytest.raises(UsageError, match="no setting 'sed'"):
        ask(methods=["roi_only"], sed=3)
    assert ask(methods="roi_only").results[0].method == "roi_only"


def test_decoders_that_do_not_fit_say_so(known):
    train, table, ridge = known
    ask = lambda model, rows: run_method(  # noqa: E731
        make_problem(model, recorded(), rows, draws=9), "roi_only"
    )
    with pytest.raises(UsageError, match="does not know how their features are made"):
        ask(ridge, object())
    with pytest.raises(DataError, match="has 8 features and the regression was fitted on 5"):
        ask(Ridge().fit(train.array()[:, :5], train.array()[:, :D]), table)
    labels = LogisticRegression().fit(train.array(), ["a", "b"] * 20)
    with pytest.raises(UsageError, match="LogisticRegression predicts labels"):
        ask(labels, table)
    with pytest.raises(DataError, match="gives 9 features for 24 trials and the truth has 10"):
        ask(ridge, {name: np.r_[row, row[0]] for name, row in table.items()})
    with pytest.raises(DataError, match="stimuli have 8 and 9 features"):
        ask(ridge, {**table, NAMES[3]: table[NAMES[3]][:8]})

    class Broken(RidgeDecoder):
        def decode(self, data, trials):
            return {"features": np.full((len(data), D), np.nan)}

        def linear(self, stage):
            return None

    with pytest.raises(DataError, match="gives NaN or infinity, first in trial 0"):
        ask(Broken(ridge, table), table)


def test_stimuli_may_be_numbers(known):
    _, table, ridge = known
    test = recorded()
    test = Recording.from_arrays(
        test.array(), test.trials.assign(stimulus=np.arange(STIMULI)), ROIS
    )
    numbered = {k: table[name] for k, name in enumerate(NAMES)}
    assert np.isfinite(
        run_method(make_problem(ridge, test, numbered, draws=9), "roi_only").table["value"]
    ).all()


@pytest.mark.parametrize(
    "damage",
    [
        {"results": [{"method": "shapley"}]},
        {"results": [{"method": "x", "file": "../x", "maps": [], "items": False, "notes": []}]},
        {"results": None},
        {"facts": None},
    ],
)
def test_a_damaged_folder_is_told(known, tmp_path, damage):
    _, table, ridge = known
    found = attribute_rois(ridge, recorded(), table, methods=["shapley"], draws=9)
    index = found.save(tmp_path / "found") / "attribution.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **damage}))
    with pytest.raises(DataError, match="attribution"):
        Attribution.open(tmp_path / "found")


def test_maps_that_are_missing_are_told(known, tmp_path):
    _, table, ridge = known
    found = attribute_rois(ridge, recorded(), table, methods=["shapley"], draws=9)
    folder = found.save(tmp_path / "found")
    np.save(folder / "00-shapley.npy", np.zeros((1, P)))
    with pytest.raises(DataError, match="holds 1 maps"):
        Attribution.open(folder)
