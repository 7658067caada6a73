"""Attribution methods against planted truths, small; the full bars are in benchmarks/.

Every bound is a binomial one or follows from the design; seeds are fixed, so that a test either
passes always or never.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.linear_model import LinearRegression

from neurodiff.analysis.attribution import attribute_rois
from neurodiff.analysis.attribution_calibration import (
    calibration,
    detection,
    encoding_truth,
    one_area_each,
    planted_problem,
    run_methods,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.datasets.simulated.attribution_subjects import attribution_subject, null_subjects
from neurodiff.metrics.clusters import cluster_only_rate, equal_clusters_rate
from neurodiff.metrics.identification import feature_identification

OWN = ["V8", "V3CD", "LO2", "LO3", "V7", "V6A", "PHA2", "MT", "PIT", "V4t"]  # every other one
SHARED = ["FFC", "TE2p", "VVC", "V3A", "IPS1", "PIT", "PHA3", "MST"]


def values_of(result) -> dict[str, float]:
    return result.table.groupby("roi")["value"].mean().to_dict()


# ---------------------------------------------------------------------------------- the counting


def test_area_under_the_roc_curve_counts_pairs_and_ties():
    kinds = {"a": True, "b": True, "c": False, "d": False}
    assert detection({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, kinds) == 1.0
    assert detection({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, kinds) == 0.0
    assert detection(dict.fromkeys("abcd", 0.5), kinds) == 0.5
    assert detection({"a": 4.0, "b": 1.0, "c": 1.0, "d": 2.0}, kinds) == (1 + 1 + 0.5 + 0) / 4
    with pytest.raises(UsageError, match="'d' has no value"):
        detection({"a": 1.0, "b": 1.0, "c": 1.0, "d": float("nan")}, kinds)
    with pytest.raises(UsageError, match="2 informative and 0 empty"):
        detection({"a": 1.0, "b": 1.0}, {"a": True, "b": True})


def uniform(n: int, power: float = 1.0, width: float = 1.959964) -> pd.DataFrame:
    """p of n tests at evenly spaced quantiles, and intervals of normal estimates."""
    from scipy.stats import norm

    at = (np.arange(n) + 0.5) / n
    error = norm.ppf(at)
    return pd.DataFrame(
        {"method": "m", "p": at**power, "low": error - width, "high": error + width, "true": 0.0}
    )


def test_calibration_accepts_uniform_p_and_exact_intervals():
    found = calibration(uniform(1000)).set_index("what")
    assert found["count"].tolist() == [50, 10, 950]
    assert set(found["verdict"]) == {"inside"}
    low, high = binom.ppf([0.005, 0.995], 1000, 0.05)
    assert found.loc["p <= 0.05", ["low", "high"]].tolist() == [low, high]


def test_calibration_names_what_is_wrong():
    eager = calibration(uniform(1000, power=1.5)).set_index("what")["verdict"]
    shy = calibration(uniform(1000, power=0.5)).set_index("what")["verdict"]
    assert eager["p <= 0.05"] == "too many"
    assert shy["p <= 0.05"] == shy["p <= 0.01"] == "too few"
    narrow = calibration(uniform(1000, width=1.7)).set_index("what")["verdict"]
    assert narrow["95 % interval holds the truth"] == "too few"
    unknown = calibration(uniform(100).assign(true=np.nan))
    assert unknown["what"].tolist() == ["p <= 0.05", "p <= 0.01"]


def test_one_area_of_each_subject_goes_round():
    table = pd.DataFrame({"subject": np.repeat(["s1", "s2", "s3"], 2), "roi": ["V1", "V2"] * 3})
    assert one_area_each(table)["roi"].tolist() == ["V1", "V2", "V1"]


def test_unknown_methods_are_refused():
    (subject,) = null_subjects(1, areas=["LO1", "LO2"])
    problem = planted_problem(subject, train=20, test=12)
    with pytest.raises(UsageError, match="no method 'guess'"):
        run_methods(problem, ["guess"])


# ------------------------------------------------------------------------------ what is found


@pytest.fixture(scope="module")
def own():
    """300 test trials at the default signal-to-noise ratio, in ten small areas."""
    subject = attribution_subject("own", areas=OWN)
    return subject, planted_problem(subject, train=300, test=300, draws=20)


@pytest.fixture(scope="module")
def shared():
    subject = attribution_subject("shared", areas=SHARED)
    return subject, planted_problem(subject, train=300, test=300, draws=20)


def test_the_planted_decoder_decodes(own):
    subject, problem = own
    decoded = problem.decoder.decode(problem.test.array(), problem.test.trials)["features"]
    truth = problem.truth["features"]
    r = [np.corrcoef(decoded[:, j], truth[:, j])[0, 1] for j in range(subject.n_features)]
    assert min(r) > 0.25
    assert problem.decoder.weights.shape == (len(subject.columns), subject.n_features)
    again = problem.decoder.truth(list(problem.test.trials["stimulus"]))["features"]
    np.testing.assert_array_equal(again, truth)


METHODS = [
    "leave_one_out:mean",
    "leave_one_out:permuted",
    "leave_one_out:noise",
    "roi_only",
    "shapley",
    "encoding",
]
QUICK = {"leave_one_out": {"matched": 0}, "roi_only": {"matched": 0}}


@pytest.mark.parametrize("method", METHODS)
def test_each_area_with_something_of_its_own_is_found(own, method):
    subject, problem = own
    (result,) = run_methods(problem, [method], QUICK)
    assert detection(values_of(result), subject.informative) >= 0.95


def test_methods_disagree_about_areas_that_share_and_say_so(shared):
    """Leave-one-out says little, one area alone and encoding say much, Shapley divides."""
    subject, problem = shared
    methods = ["leave_one_out:mean", "roi_only:refit", "shapley", "encoding"]
    quick = QUICK | {"shapley": {"samples": 16}}
    by_kind = {}
    for method, result in zip(methods, run_methods(problem, methods, quick), strict=True):
        table = subject.truth.assign(value=subject.truth["area"].map(values_of(result)))
        means = table.groupby("carries")["value"].mean()
        by_kind[method] = means / means["unique"]
        assert by_kind[method]["none"] < 0.1
    said = {method: kinds["shared"] for method, kinds in by_kind.items()}
    assert said["leave_one_out:mean"] < 0.25
    assert said["roi_only:refit"] > 0.7
    assert said["encoding"] > 0.7
    assert said["leave_one_out:mean"] < said["shapley"] < said["roi_only:refit"]


def test_the_true_value_of_an_encoding_map_is_that_of_many_trials():
    subject = attribution_subject("own", areas=["LO2", "LO1", "MT"])
    problem = planted_problem(subject, train=80, test=4000, draws=20)
    true = encoding_truth(problem)
    found = values_of(run_methods(problem, ["encoding"])[0])
    assert true["LO2"] > 0.2
    assert true["LO1"] == true["MT"] == 0.0
    for area, value in found.items():  # a mean of correlations varies less than one correlation
        assert value == pytest.approx(true[area], abs=3 / np.sqrt(4000))
    again = planted_problem(subject, train=20, test=12, repeats=2)
    with pytest.raises(UsageError, match="one trial a test stimulus"):
        encoding_truth(again)


@pytest.mark.parametrize("clusters", [5, 10, 20])
def test_a_region_that_tells_the_cluster_alone_scores_what_a_cluster_is_worth(clusters):
    """1 - 1/(2K) on 2-way: others are told apart, the members of a cluster are a draw."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(clusters), 12)
    centres = rng.standard_normal((clusters, 50))
    truth = centres[codes] + 0.05 * rng.standard_normal((len(codes), 50))
    names = [f"item {k}" for k in range(len(codes))]
    responses = np.hstack([np.eye(clusters)[codes], rng.standard_normal((len(codes), 3))])
    model = LinearRegression().fit(responses, centres[codes])  # of the cluster, nothing else
    rois = {
        "tells": np.arange(clusters + 3) < clusters,
        "silent": np.arange(clusters + 3) >= clusters,
    }
    found = attribute_rois(
        model,
        Recording.from_arrays(responses, pd.DataFrame({"stimulus": names, "split": "test"})),
        dict(zip(names, truth, strict=True)),
        rois,
        "two_way",
        ["roi_only", "leave_one_out", "shapley"],
        draws=99,
        options={"roi_only": {"matched": 0}, "leave_one_out": {"matched": 0}},
    )
    expected = cluster_only_rate([str(code) for code in codes]).mean()
    assert expected == pytest.approx(equal_clusters_rate(clusters), abs=0.01)
    value = found.table.set_index(["method", "roi"])["value"]
    for method in ("roi_only", "leave_one_out:mean", "shapley"):
        assert value[method, "tells"] == pytest.approx(expected - 0.5, abs=1e-9)
        assert value[method, "silent"] == pytest.approx(0, abs=1e-9)
    decoded = np.round(model.predict(responses), 9)  # rows of a cluster are equal
    within = feature_identification(decoded, truth, categories=[str(c) for c in codes])
    assert within.mean() == pytest.approx(0.5, abs=1e-9)


# ------------------------------------------------------------------------------ calibration


@pytest.fixture(scope="module")
def of_nulls():
    """Method -> rows of 30 null subjects of two areas, one area each."""
    tables = {method: [] for method in METHODS}
    for subject in null_subjects(30, areas=["LO1", "LO2"]):
        problem = planted_problem(subject, train=30, test=100, draws=199)
        for method, result in zip(METHODS, run_methods(problem, METHODS, QUICK), strict=True):
            tables[method].append(result.table.assign(true=0.0))
    return {method: one_area_each(pd.concat(parts)) for method, parts in tables.items()}


@pytest.mark.parametrize("method", METHODS)
def test_null_subjects_are_rejected_at_the_stated_rate(of_nulls, method):
    found = calibration(of_nulls[method])
    assert found["n"].tolist() == [30, 30, 30]
    assert found["verdict"].tolist() == ["inside"] * 3


@pytest.fixture(scope="module")
def of_neighbours():
    """Method -> p (subjects, areas): noise smoother than measured, VMV3 touches both others."""
    tables = {method: [] for method in METHODS}
    for k in range(24):
        subject = attribution_subject(
            "neighbour", areas=["VVC", "VMV3", "PHA3"], seed=k, fwhm_mm=4.0
        )
        problem = planted_problem(subject, train=60, test=80, draws=99)
        for method, result in zip(METHODS, run_methods(problem, METHODS, QUICK), strict=True):
            tables[method].append(result.table.set_index("roi")["p"])
    return {method: pd.DataFrame(parts) for method, parts in tables.items()}


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_area_next_to_a_loaded_one_is_not_found(of_neighbours, method):
    p = of_neighbours[method]
    assert (p["VMV3"] <= 0.05).sum() <= binom.ppf(0.995, len(p), 0.05)
    assert (p[["VVC", "PHA3"]] <= 0.05).to_numpy().all()
