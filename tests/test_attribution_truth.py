"""Attribution methods against planted truths, small; the full bars are in benchmarks/.

Every bound is a binomial one or follows from the design; seeds are fixed, so that a test either
passes always or never.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from neurodiff.analysis.attribution_calibration import (
    calibration,
    detection,
    one_area_each,
    planted_problem,
    run_methods,
)
from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.attribution_subjects import attribution_subject, null_subjects

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


@pytest.mark.parametrize("method", ["encoding"])
def test_each_area_with_something_of_its_own_is_found(own, method):
    subject, problem = own
    (result,) = run_methods(problem, [method])
    assert detection(values_of(result), subject.informative) >= 0.95


def test_encoding_says_much_of_areas_that_share(shared):
    subject, problem = shared
    (result,) = run_methods(problem, ["encoding"])
    values = pd.Series(values_of(result)).groupby(subject.truth.set_index("area")["carries"]).mean()
    assert values["shared"] > 0.7 * values["unique"]
    assert abs(values["none"]) < 0.1 * values["unique"]


# ------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("method", ["encoding"])
def test_null_subjects_are_rejected_at_the_stated_rate(method):
    """60 subjects of two areas; counts inside the binomial bound of 99 %."""
    tables = []
    for subject in null_subjects(60, areas=["LO1", "LO2"], dimensions=2):
        problem = planted_problem(subject, train=40, test=60, draws=199)
        tables.append(run_methods(problem, [method])[0].table)
    table = pd.concat(tables).assign(true=0.0)
    found = calibration(one_area_each(table))
    assert found["n"].tolist() == [60, 60, 60]
    assert found["verdict"].tolist() == ["inside"] * 3


@pytest.mark.parametrize("method", ["encoding"])
def test_an_empty_area_next_to_a_loaded_one_is_not_found(method):
    """Noise smoother than measured (4 mm); VMV3 touches two loaded areas."""
    count, rejected, found = 40, 0, 0
    for k in range(count):
        subject = attribution_subject(
            "neighbour", areas=["VVC", "VMV3", "PHA3"], subject=k + 1, dimensions=2, fwhm_mm=4.0
        )
        problem = planted_problem(subject, train=60, test=80, draws=99)
        p = run_methods(problem, [method])[0].table.set_index("roi")["p"]
        rejected += p["VMV3"] <= 0.05
        found += p["VVC"] <= 0.05
    assert rejected <= binom.ppf(0.995, count, 0.05)
    assert found == count
