"""Probes: solved to the end, chosen without leaks, honest about nothing, intervals that cover."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
)
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodiff.analysis.probe_evaluation import shuffled
from neurodiff.analysis.probe_folds import FoldFeatures, covariate_columns, cross_predicted
from neurodiff.analysis.probe_intervals import Samples, interval, samples, scored
from neurodiff.analysis.probe_lines import probe_lines
from neurodiff.analysis.probe_tasks import EVERY, FIRST, MEAN, probe_tasks, task_scans
from neurodiff.analysis.probes import evaluate_probes
from neurodiff.analysis.protocols import published_table, read_card
from neurodiff.bridges.probes import LogisticProbe, RidgeProbe, group_folds
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.scan_table import checked_scans
from neurodiff.metrics.probe_scores import class_scores, number_scores


@parametrize_with_checks([RidgeProbe(), LogisticProbe()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def cohort(people=40, visits=3, seed=0, sites=2):
    """People with a few scans; odd ones have AD; ages follow from the person."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(people):
        age = rng.uniform(60, 85)
        for visit in range(visits):
            rows.append(
                {
                    "subject": f"p{number:03d}",
                    "session": 12.0 * visit,
                    "age": age + visit,
                    "sex": "FM"[int(rng.random() < 0.5)] if visit == 0 else rows[-1]["sex"],
                    "diagnosis": ("CN", "AD")[number % 2],
                    "site": f"site{number // 2 % sites}",
                }
            )
    return checked_scans(pd.DataFrame(rows))


# ------------------------------------------------------------------------------- the probes


@pytest.mark.parametrize(("n", "d"), [(60, 5), (30, 80), (300, 200)])
def test_both_probes_end_where_scikit_learns_do(n, d):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + 3
    z = StandardScaler().fit_transform(x)
    y = z[:, 0] + rng.normal(size=n)
    ours = RidgeProbe([0.3]).fit(x, y)
    theirs = Ridge(alpha=0.3 * d).fit(z, y)
    assert np.allclose(ours.predict(x), theirs.predict(z), atol=1e-9)
    assert np.allclose(ours.coef_ @ x.T + ours.intercept_, ours.predict(x))
    ours = LogisticProbe([0.01]).fit(x, y > 0)
    theirs = LogisticRegression(C=1 / (0.01 * d), tol=1e-10, max_iter=5000).fit(z, y > 0)
    assert np.allclose(ours.standard_coef_, theirs.coef_[0], atol=1e-5)
    assert np.allclose(ours.decision_function(x), theirs.decision_function(z), atol=1e-4)


def test_separable_classes_and_a_constant_column_have_a_finite_end():
    x = np.c_[np.r_[np.zeros(10), np.ones(10)], np.full(20, 7.0)]
    probe = LogisticProbe([1e-3]).fit(x, x[:, 0] > 0.5)
    assert np.isfinite(probe.coef_).all()
    assert probe.coef_[1] == 0
    assert probe.score(x, x[:, 0] > 0.5) == 1
    flat = LogisticProbe().fit(np.ones((10, 2)), np.arange(10) < 3)
    assert np.allclose(flat.predict_proba(np.ones((1, 2)))[0, 1], 0.3)


def test_free_columns_are_not_penalised_and_the_rest_follow_the_closed_form():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 8))
    x[:, 2] = x[:, 0] - x[:, 1]  # of the free ones, one that says nothing new
    z = StandardScaler().fit_transform(x)
    y = x @ rng.normal(size=8) + rng.normal(size=50)
    strong = RidgeProbe([1e9], free=3).fit(x, y)
    least = np.linalg.lstsq(np.c_[np.ones(50), x[:, :2]], y, rcond=None)[0]
    assert np.allclose(strong.predict(x), np.c_[np.ones(50), x[:, :2]] @ least, atol=1e-5)
    some = RidgeProbe([0.4], free=3).fit(x, y)
    shrink = np.diag([0.0] * 3 + [0.4 * 5] * 5)
    wanted = np.linalg.pinv(z.T @ z + shrink) @ z.T @ (y - y.mean())
    assert np.allclose(some.predict(x), z @ wanted + y.mean(), atol=1e-8)
    logistic = LogisticProbe([1e9], free=2).fit(x, y > 0)
    alone = LogisticRegression(C=1 / 0.02, tol=1e-10).fit(z[:, :2], y > 0)
    assert np.allclose(logistic.decision_function(x), alone.decision_function(z[:, :2]), atol=1e-4)
    with pytest.raises(ValueError, match="free is 9"):
        RidgeProbe(free=9).fit(x, y)


def test_the_penalty_is_chosen_on_other_people():
    """Features name the person; on people left out they say nothing: the strongest penalty wins."""
    rng = np.random.default_rng(2)
    person = np.repeat(np.arange(20), 6)
    x = rng.normal(size=(20, 40))[person] + 0.01 * rng.normal(size=(120, 40))
    y = rng.normal(size=20)[person]
    assert RidgeProbe().fit(x, y).penalty_ <= 0.1  # other scans of the person give it away
    assert RidgeProbe().fit(x, y, person).penalty_ >= 10
    label = rng.permutation(np.arange(20) % 2)[person]
    assert LogisticProbe().fit(x, label).penalty_ <= 0.1
    assert LogisticProbe().fit(x, label, person).penalty_ >= 10


def test_groups_stay_whole_whatever_the_order_of_rows():
    groups = np.repeat([f"s{i}" for i in range(23)], 3)
    strata = np.repeat(np.arange(23) % 2, 3)
    folds = group_folds(groups, strata, 5, seed=3)
    for name in np.unique(groups):
        assert len(set(folds[groups == name])) == 1
    for label in (0, 1):
        counts = np.bincount(folds[strata == label], minlength=5) // 3
        assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(69)
    assert np.array_equal(group_folds(groups[order], strata[order], 5, seed=3), folds[order])
    assert not np.array_equal(group_folds(groups, strata, 5, seed=4), folds)
    with pytest.raises(ValueError, match="24 folds of 23"):
        group_folds(groups, strata, 24, seed=0)


# ------------------------------------------------------------------------------- scores


def test_weighted_scores_are_those_of_copied_items():
    rng = np.random.default_rng(3)
    truth = rng.random(40) < 0.4
    p = np.round(np.clip(0.4 * truth + rng.random(40) * 0.7, 0, 1), 1)  # with ties
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    ours = class_scores(truth, p, weights)
    for row, copies in enumerate(weights.astype(int)):
        t, q = np.repeat(truth, copies), np.repeat(p, copies)
        called = q > 0.5
        wanted = {
            "AUC": roc_auc_score(t, q),
            "accuracy": (t == called).mean(),
            "balanced accuracy": balanced_accuracy_score(t, called),
            "sensitivity": recall_score(t, called),
            "specificity": recall_score(~t, ~called),
            "precision": precision_score(t, called),
            "F1": f1_score(t, called),
            "average precision": average_precision_score(t, q),
            "Brier": brier_score_loss(t, q),
        }
        assert set(wanted) == set(ours)
        for name, value in wanted.items():
            assert ours[name][row] == pytest.approx(value, abs=1e-12), name
    y = rng.normal(70, 8, 40)
    guess = y + rng.normal(0, 4, 40)
    ours = number_scores(y, guess, weights)
    for row, copies in enumerate(weights.astype(int)):
        t, q = np.repeat(y, copies), np.repeat(guess, copies)
        assert ours["MAE"][row] == pytest.approx(np.abs(t - q).mean())
        assert ours["RMSE"][row] == pytest.approx(np.sqrt(((t - q) ** 2).mean()))
        assert ours["R2"][row] == pytest.approx(r2_score(t, q))
        assert ours["r"][row] == pytest.approx(np.corrcoef(t, q)[0, 1])


def test_scores_that_do_not_exist_are_nan():
    none = class_scores(np.zeros(3, bool), np.array([0.1, 0.2, 0.3]), np.ones((1, 3)))
    assert np.isnan([none[k][0] for k in ("AUC", "sensitivity", "precision")]).all()
    assert none["specificity"][0] == 1
    mean = number_scores(np.array([1.0, 2, 3]), np.full(3, 2.0), np.ones((1, 3)))
    assert mean["R2"][0] == pytest.approx(0)
    assert np.isnan(mean["r"][0])


def test_intervals_cover_the_truth_as_often_as_they_say():
    """AUC of two normals a distance apart is Phi(distance / sqrt 2)."""
    rng = np.random.default_rng(4)
    trials, covered, narrow = 120, 0, 0
    truth_auc = 0.7602  # Phi(1 / sqrt 2)
    for trial in range(trials):
        label = np.repeat(np.arange(60) % 2 == 0, 3)
        person = np.repeat([f"{i}" for i in range(60)], 3).astype(object)
        latent = np.repeat(label[::3] + rng.normal(size=60), 3)  # three scans say the same
        these = Samples(kind="class", truth=label, scores=latent[None], subjects=person)
        low, high = interval(scored(these, bootstrap=200, seed=trial).resampled["AUC"])
        covered += low <= truth_auc <= high
        alone = Samples(
            kind="class",
            truth=label,
            scores=latent[None],
            subjects=np.arange(180).astype(str).astype(object),
        )
        low, high = interval(scored(alone, bootstrap=200, seed=trial).resampled["AUC"])
        narrow += low <= truth_auc <= high
    assert binom.cdf(covered, trials, 0.95) > 0.001  # percentile intervals run a little short
    assert narrow < covered - 10  # scans as if they were people: too sure


# ------------------------------------------------------------------------------- leaks


def test_no_subject_is_on_both_sides_and_only_training_rows_are_fitted():
    scans = cohort()
    seen = []

    class Spy:
        def fit(self, values, truth):
            seen.append(set(values[:, 0].astype(int)))
            return self

        def transform(self, values):
            seen[-1] = (
                (seen[-1], set(values[:, 0].astype(int)))
                if (not isinstance(seen[-1], tuple))
                else (*seen[-1], set(values[:, 0].astype(int)))
            )
            return values[:, 1:]

    person = pd.factorize(scans["subject"])[0]
    values = np.c_[person, np.random.default_rng(0).normal(size=(len(scans), 2))]
    spied = FoldFeatures(values=values, model=Spy())
    report = evaluate_probes({"spied": spied}, scans, tasks=["AD vs CN"], bootstrap=10)
    assert len(seen) >= 5
    for fitted, known, unknown in seen:
        assert fitted == known
        assert not fitted & unknown
    folds = report.predictions.query("design == 'features' and folds == 'subjects'")
    assert (folds.groupby("subject")["fold"].nunique() == 1).all()
    assert sorted(folds["scan"]) == sorted(scans["scan"])


def test_an_extreme_value_in_a_test_fold_moves_no_other_prediction():
    data = task_scans(probe_tasks(["AD vs CN"])[0], cohort())
    x = np.random.default_rng(5).normal(size=(len(data), 3))
    fold = group_folds(data.subjects, data.strata, 4, seed=0)
    loud = x.copy()
    first = data.subjects == data.subjects[fold == 0][0]
    loud[first] *= 1e6
    for design in ("features", "adjusted", "covariates + features"):
        plain = cross_predicted(x, data, fold, design=design)
        other = cross_predicted(loud, data, fold, design=design)
        same = (fold == 0) & ~first
        assert np.array_equal(plain[same], other[same]), design
        assert not np.allclose(plain[first], other[first]), design


def test_a_feature_that_names_the_person_is_chance_on_other_people():
    scans = cohort(people=60, sites=1)
    person = pd.factorize(scans["subject"])[0]
    names = np.eye(60)[person]
    label = np.random.default_rng(6).permutation(np.arange(60) % 2)[person]
    scans = scans.assign(diagnosis=np.array(["CN", "AD"])[label])
    report = evaluate_probes({"names": names}, scans, tasks=["AD vs CN"], bootstrap=200)
    rows = report.table.query("design == 'features' and metric == 'AUC'")
    assert ((rows["low"] <= 0.5) & (rows["value"] < 0.65)).all()
    inside = LogisticProbe([0.001]).fit(names, label).score(names, label)
    assert inside == 1  # though a probe that has seen them knows all of them


def test_shuffled_labels_and_constants_are_at_chance():
    scans = cohort(people=80, visits=2)
    x = np.random.default_rng(7).normal(size=(len(scans), 4))
    x[:, 0] += 2 * (scans["diagnosis"] == "AD")
    x[:, 1] += scans["age"] / 4
    report = evaluate_probes({"codes": x}, scans, tasks=["AD vs CN", "age"], bootstrap=100)
    value = report.value
    assert value("AD vs CN", "codes", "AUC") > 0.85
    assert abs(value("AD vs CN", "codes, shuffled labels", "AUC") - 0.5) < 0.12
    assert value("AD vs CN", "majority class", "AUC") == 0.5
    assert value("age", "codes", "R2") > 0.5
    assert value("age", "codes, shuffled labels", "R2") < 0.1
    assert value("age", "mean", "R2", per=EVERY) == pytest.approx(0)
    gain = report.differences.query("task == 'AD vs CN' and metric == 'AUC' and per == @FIRST")
    assert (gain["b"] == "age, sex, site").all()
    assert (gain["low"] > 0).all()


def test_a_shuffle_gives_all_scans_of_a_person_one_others_answer():
    data = task_scans(probe_tasks(["age"])[0], cohort())
    other = shuffled(data, seed=0)
    assert sorted(other[data.first]) == pytest.approx(sorted(data.truth[data.first]))
    first = dict(zip(data.subjects[data.first], other[data.first], strict=True))
    own = dict(zip(data.subjects[data.first], data.truth[data.first], strict=True))
    steps = [other[i] - first[s] - data.truth[i] + own[s] for i, s in enumerate(data.subjects)]
    assert np.allclose(steps, 0)


# ------------------------------------------------------------------------------- adjustment, sites


def test_what_only_age_and_site_explain_is_gone_once_adjusted():
    rng = np.random.default_rng(8)
    scans = cohort(people=80, visits=2)
    ill = rng.random(80) < 1 / (1 + np.exp(-(scans["age"].to_numpy()[::2] - 72) / 2))
    site = np.where(rng.random(80) < 0.2 + 0.6 * ill, "X", "Y")
    scans = scans.assign(diagnosis=np.repeat(np.where(ill, "AD", "CN"), 2), site=np.repeat(site, 2))
    age, at = scans["age"].to_numpy(), (scans["site"] == "X").to_numpy(float)
    x = np.c_[age + rng.normal(size=160), at + 0.1 * rng.normal(size=160)]
    report = evaluate_probes({"codes": x}, scans, tasks=["AD vs CN"], bootstrap=200)
    assert report.value("AD vs CN", "codes", "AUC", design="features") > 0.8
    adjusted = report.table.query("design == 'adjusted' and metric == 'AUC' and per == @FIRST")
    assert adjusted["low"].item() < 0.5
    gain = report.differences.query("metric == 'AUC' and per == @FIRST")
    assert gain["low"].item() <= 0
    assert gain["value"].item() < 0.03


def test_a_site_is_predicted_from_other_sites_and_other_people():
    scans = cohort(people=30, visits=2, sites=3)
    scans.loc[1, "site"] = "site2"  # the first person moves to another site
    data = task_scans(probe_tasks(["AD vs CN"])[0], scans)
    x = np.random.default_rng(9).normal(size=(len(scans), 2))
    report = evaluate_probes({"codes": x}, scans, tasks=["AD vs CN"], bootstrap=0)
    rows = report.predictions.query("folds == 'sites'")
    assert len(rows) == len(scans)
    assert any("several sites" in note for note in report.notes)
    moved = x.copy()
    moved[0] = 1e3  # its scan at site 0 may not move what is predicted at its site 2
    fold = np.unique(data.sites, return_inverse=True)[1]
    same = (fold == 2) & (data.subjects != "p000")
    assert np.array_equal(
        cross_predicted(x, data, fold)[same], cross_predicted(moved, data, fold)[same]
    )


def test_many_sites_are_left_out_several_at_a_time_and_whole():
    scans = cohort(people=60, visits=1, sites=15)
    x = np.random.default_rng(9).normal(size=(len(scans), 2))
    report = evaluate_probes({"codes": x}, scans, tasks=["AD vs CN"], bootstrap=0)
    rows = report.predictions.query("folds == 'sites'").merge(scans[["scan", "site"]], on="scan")
    assert rows["fold"].nunique() == 10
    assert (rows.groupby("site")["fold"].nunique() == 1).all()
    assert any("15 sites" in note for note in report.notes)


def test_a_site_that_training_never_saw_is_the_mean_of_the_others():
    train = pd.DataFrame({"age": [60.0, 80.0], "site": ["a", "b"]})
    test = pd.DataFrame({"age": [90.0, 70.0], "site": ["b", "new"]})
    known, unknown = covariate_columns(train, test)
    assert np.allclose(known, [[-1, 0], [1, 1]])
    assert np.allclose(unknown, [[2, 1], [0, 0.5]])


# ------------------------------------------------------------------------------- tasks


def test_conversion_takes_first_scans_of_those_who_were_followed():
    rows = []
    for number in range(24):
        last = 48.0 if number < 20 else 12.0
        for month in (0.0, 12.0, last) if last > 12 else (0.0, 12.0):
            ill = number % 2 == 0 and month >= 12
            rows.append(
                {"subject": f"m{number}", "session": month, "diagnosis": "AD" if ill else "MCI"}
            )
    scans = checked_scans(pd.DataFrame(rows))
    data = task_scans(probe_tasks(["conversion within 36 months"])[0], scans)
    assert len(data) == 22  # two of the last four did not change and were not followed
    assert data.truth.sum() == 12
    assert scans["session"].iloc[data.rows].eq(0).all()
    assert "2 of 24 subjects" in data.notes[0]
    year = probe_tasks(within=12.0)
    assert "conversion within 12 months" in [task.name for task in year]


def test_samples_are_scans_first_scans_or_means_and_named():
    data = task_scans(probe_tasks(["age"])[0], cohort(people=5))
    scores = np.arange(15.0)[None]
    assert len(samples(data, scores, EVERY).truth) == 15
    assert samples(data, scores, FIRST).scores[0].tolist() == [0, 3, 6, 9, 12]
    means = samples(data, scores, MEAN)
    assert means.scores[0].tolist() == [1, 4, 7, 10, 13]
    assert np.allclose(means.truth, samples(data, scores, FIRST).truth + 1)


def test_under_the_published_protocol_cn_is_positive_and_every_scan_a_sample():
    scans = cohort()
    x = np.random.default_rng(1).normal(size=(len(scans), 3))
    x[:, 0] += scans["diagnosis"] == "AD"
    tasks = probe_tasks(protocol="ldae-2025")
    theirs = evaluate_probes({"codes": x}, scans, tasks=tasks, bootstrap=0)
    ours = evaluate_probes({"codes": x}, scans, tasks=["AD vs CN"], bootstrap=0)
    assert set(theirs.table["per"]) == {EVERY}
    assert set(theirs.table["design"]) == {"features", "chance"}
    assert theirs.value("AD vs CN", "codes", "sensitivity") == pytest.approx(
        ours.value("AD vs CN", "codes", "specificity", per=EVERY)
    )
    assert theirs.value("AD vs CN", "codes", "AUC") == pytest.approx(
        ours.value("AD vs CN", "codes", "AUC", per=EVERY)
    )


def test_the_card_gives_published_numbers_and_says_whose_precision_it_is():
    card = read_card("ldae-2025")
    table = published_table(card)
    assert table.loc["LDAE", "AUC"] == 0.8948
    assert table.loc["LDAE", "age MAE"] == 4.16
    assert "CN" in card.metrics["precision"].settings
    # what the card derives follows from what it quotes: N_AD / N_CN and AD sensitivity
    for method, share in (("LDAE", 0.556), ("voxel DAE", 0.705 - 0.149), ("supervised", 0.676)):
        row = table.loc[method]
        recall, precision, accuracy = row["recall"], row["precision"], row["accuracy"]
        false = recall * (1 / precision - 1)  # AD called CN, for each scan of CN
        ratio = (recall - accuracy - false + 0.0) / (accuracy - 1.0)
        assert ratio == pytest.approx(share, abs=0.004)
        assert 1 - false / ratio == pytest.approx(row["AD sensitivity"], abs=0.004)
        assert (recall + 1 - false / ratio) / 2 == pytest.approx(
            row["balanced accuracy"], abs=0.003
        )


# ------------------------------------------------------------------------------- the report


def test_the_order_of_scans_changes_nothing_and_a_seed_repeats():
    scans = cohort(people=20, visits=2)
    x = np.random.default_rng(2).normal(size=(40, 3))
    order = np.random.default_rng(3).permutation(40)
    a = evaluate_probes({"x": x}, scans, tasks=["AD vs CN"], bootstrap=20, repeats=2)
    b = evaluate_probes(
        {"x": x[order]}, scans.iloc[order], tasks=["AD vs CN"], bootstrap=20, repeats=2
    )
    numbers = ["value", "low", "high"]
    assert np.allclose(a.table[numbers], b.table[numbers], equal_nan=True)
    assert set(a.predictions["repeat"]) == {0, 1}
    c = evaluate_probes({"x": x}, scans, tasks=["AD vs CN"], bootstrap=20, seed=1)
    assert not np.allclose(a.table["low"], c.table["low"])


def test_a_set_predicted_for_one_fold_is_compared_on_the_same_scans():
    scans = cohort(people=20, visits=2)

    class Guess:
        def fit(self, values, truth, groups):
            self.mean = values[truth].mean()
            return self

        def scores(self, values):
            return 1 / (1 + np.exp(-values[:, 0]))

    x = np.random.default_rng(2).normal(size=(40, 1))
    guess = FoldFeatures(values=x, model=Guess(), first_fold_only=True)
    report = evaluate_probes({"x": x, "guess": guess}, scans, tasks=["AD vs CN"], bootstrap=20)
    rows = report.differences.query("b == 'guess' and metric == 'AUC' and per == @EVERY")
    assert rows["subjects"].item() == 4
    assert rows["scans"].item() == 8
    assert any("guess (features, subjects) predicts 8 of 40 scans" in n for n in report.notes)


def test_lines_state_the_positive_class_the_numbers_and_one_block_a_task():
    scans = cohort(people=20, visits=2)
    x = np.random.default_rng(2).normal(size=(40, 3))
    report = evaluate_probes({"codes": x, "PCA": x[:, :1]}, scans, bootstrap=20)
    text = "\n".join(probe_lines(report))
    assert text.count("### ") == len(report.tasks) == 3
    assert "AD is positive" in text
    assert "20 scans of 20 subjects" in text
    assert "| codes |" in text
    assert "majority class" in text
    assert "age, sex, site alone" in text
    assert any("MCI vs CN" in note for note in report.notes)
    assert "left out: MCI vs CN" in text


def test_bad_input_gets_a_sentence():
    scans = cohort(people=10, visits=1)
    x = np.zeros((10, 2))
    with pytest.raises(UsageError, match="no features"):
        evaluate_probes({}, scans)
    with pytest.raises(DataError, match="10 scans"):
        evaluate_probes({"x": x[:9]}, scans)
    bad = x.copy()
    bad[3, 0] = np.nan
    with pytest.raises(DataError, match="first p003"):
        evaluate_probes({"x": bad}, scans)
    with pytest.raises(UsageError, match="AD vs CN"):
        evaluate_probes({"x": x}, scans, tasks=["AD versus CN"])
    with pytest.raises(UsageError, match="folds is 1"):
        evaluate_probes({"x": x}, scans, folds=1)
    with pytest.raises(DataError, match="0 subjects are AD"):
        evaluate_probes({"x": x}, scans.assign(diagnosis="CN"), tasks=["AD vs CN"])
    with pytest.raises(DataError, match="no question"):
        evaluate_probes({"x": x}, scans[["subject", "session"]])
    with pytest.raises(UsageError, match="protocol"):
        probe_tasks(protocol="ldae")
    some = scans.copy()
    some.loc[2, "age"] = np.nan
    report = evaluate_probes({"x": x}, some, tasks=["age", "AD vs CN"], bootstrap=0)
    assert any("1 of 10 scans have no age" in note for note in report.notes)
    assert any("1 scans lack one of age" in note for note in report.notes)
