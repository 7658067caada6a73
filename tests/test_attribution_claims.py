"""A claim needs reliance and information of the region itself: words, rates and power."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.linear_model import Ridge

from neurodiff.analysis.attribution import attribute_rois
from neurodiff.analysis.attribution_calibration import (
    claim_rows,
    detection,
    planted_problem,
    run_methods,
)
from neurodiff.analysis.attribution_claims import (
    CANCELS,
    CARRIES,
    COLUMNS,
    MEANING,
    NOTHING,
    SHARED,
    claim_sentences,
    claims,
    why_no_claims,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.datasets.simulated.attribution_subjects import attribution_subject


def told(method, p, *, values=None, half=0.1, subject="a", stage="s"):
    """A result of these p, one a region."""
    values = values or dict.fromkeys(p, 0.2)
    rows = [
        {"subject": subject, "stage": stage, "roi": roi, "p": one, "value": values[roi],
         "low": values[roi] - half, "high": values[roi] + half}
        for roi, one in p.items()
    ]  # fmt: skip
    return SimpleNamespace(method=method, table=pd.DataFrame(rows))


RELIED = {"V1": 0.001, "V2": 0.001, "V3": 0.9, "V4": 0.8}
ALONE_P = {"V1": 0.001, "V2": 0.7, "V3": 0.001, "V4": 0.6}


def test_four_claims_from_two_questions():
    found = claims([told("leave_one_out:mean", RELIED), told("encoding", ALONE_P)])
    assert tuple(found) == COLUMNS
    assert dict(zip(found["roi"], found["claim"], strict=True)) == {
        "V1": CARRIES, "V2": CANCELS, "V3": SHARED, "V4": NOTHING,
    }  # fmt: skip
    assert found["p_both"].tolist() == [0.001, 0.7, 0.9, 0.8]
    assert (found["q_both"] >= found[["q_reliance", "q_alone"]].max(axis=1) - 1e-12).all()
    [said] = claim_sentences(found)
    assert "“carries” V1;" in said
    assert f"“{CANCELS}” V2;" in said
    assert said.endswith("“nothing shown” 1 of 4 regions.")


def test_the_weaker_answer_gives_the_strength():
    one = told("leave_one_out:mean", {"V1": 0.01}, values={"V1": 0.3}, half=0.1)
    other = told("encoding", {"V1": 0.01}, values={"V1": 0.3}, half=0.2)
    assert claims([one, other])["strength"].tolist() == pytest.approx([1.5])
    flat = told("encoding", {"V1": 1.0}, values={"V1": 0.0}, half=0.0)
    assert claims([one, flat])["strength"].tolist() == [0.0]


def test_methods_are_taken_by_their_order_and_never_by_their_p():
    results = [
        told("roi_only", dict.fromkeys(RELIED, 0.001)),
        told("leave_one_out:permuted", dict.fromkeys(RELIED, 0.001)),
        told("leave_one_out:mean", dict.fromkeys(RELIED, 0.9)),
        told("encoding", dict.fromkeys(RELIED, 0.8)),
    ]
    found = claims(results)
    assert set(found["reliance"]) == {"leave_one_out:mean"}
    assert set(found["alone"]) == {"encoding"}
    assert set(found["claim"]) == {NOTHING}
    asked = claims(results, reliance="leave_one_out:permuted", alone="roi_only")
    assert set(asked["claim"]) == {CARRIES}
    with pytest.raises(UsageError, match="no result of 'shapley'"):
        claims(results, alone="shapley")


def test_a_stage_that_encoding_did_not_see_is_judged_by_the_region_alone():
    results = [
        told("leave_one_out:mean", RELIED, stage="bridge"),
        told("encoding", ALONE_P, stage="other"),
        told("roi_only", ALONE_P, stage="bridge"),
    ]
    found = claims(results)
    assert set(found["alone"]) == {"roi_only"}
    assert len(found) == 4


def test_without_both_questions_there_is_no_claim_and_it_is_said_what_to_run():
    only = [told("leave_one_out:mean", RELIED)]
    assert claims(only).empty
    assert tuple(claims(only)) == COLUMNS
    assert "run encoding (or roi_only) beside" in why_no_claims(only)
    assert "run leave_one_out beside" in why_no_claims([told("encoding", ALONE_P)])
    assert why_no_claims([*only, told("encoding", ALONE_P)]) == ""
    assert claim_sentences(claims(only)) == []


def test_a_p_that_is_not_there_claims_nothing():
    found = claims(
        [told("leave_one_out:mean", RELIED), told("rsa", ALONE_P | {"V1": float("nan")})]
    ).set_index("roi")
    assert np.isnan(found.loc["V1", "p_both"])
    assert found.loc["V1", "claim"] == CANCELS  # it is relied on; the other was not answered


# ------------------------------------------------------------------------------ what is planted


def test_a_region_that_only_subtracts_noise_is_relied_on_and_carries_nothing():
    """The textbook case: one region is signal + noise, another the same noise alone."""
    rng = np.random.default_rng(0)
    n, d = 300, 4
    features, noise, other = rng.standard_normal((3, n, d))
    data = np.concatenate([features + noise, noise, other], axis=1)
    data += 0.2 * rng.standard_normal(data.shape)
    names = [f"object {k:03d}" for k in range(n)]
    split = np.where(np.arange(n) < 200, "train", "test")
    rois = {
        name: np.arange(3 * d) // d == k for k, name in enumerate(["signal", "noise", "silent"])
    }
    recording = Recording.from_arrays(
        data.astype(np.float32), pd.DataFrame({"stimulus": names, "split": split}), rois
    )
    found = attribute_rois(
        Ridge().fit(data[:200].astype(np.float32), features[:200]),
        recording,
        dict(zip(names, features, strict=True)),
        methods=["leave_one_out", "roi_only", "encoding"],
        draws=199,
        options={"leave_one_out": {"matched": 0}, "roi_only": {"matched": 0}},
    )
    said = found.claims.set_index("roi")
    assert said["claim"].to_dict() == {"signal": CARRIES, "noise": CANCELS, "silent": NOTHING}
    relied = found["leave_one_out"].table.set_index("roi")
    assert relied.loc["noise", "value"] > 0.1
    assert relied.loc["noise", "p"] == pytest.approx(1 / 200)


PAIRS = [("leave_one_out:permuted", "encoding"), ("leave_one_out:mean", "encoding")]


def claimed_of_neighbours(fwhm: float, subjects: int) -> pd.DataFrame:
    """Claims on two loaded areas and an empty one that touches both, and the p of leave-one-out."""
    parts = []
    for k in range(subjects):
        subject = attribution_subject(
            "neighbour", areas=["VVC", "VMV3", "PHA3"], seed=k, fwhm_mm=fwhm
        )
        problem = planted_problem(subject, train=100, test=100, draws=99)
        methods = ["leave_one_out:mean", "leave_one_out:permuted", "encoding"]
        results = run_methods(problem, methods, {"leave_one_out": {"matched": 0}})
        parts += [claim_rows(results, PAIRS), *(one.table for one in results[:2])]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("fwhm", [2.3, 6.0])
def test_an_empty_neighbour_is_claimed_at_most_at_the_stated_rate(fwhm):
    subjects = 10
    table = claimed_of_neighbours(fwhm, subjects)
    empty, loaded = table["roi"] == "VMV3", table["roi"].isin(["VVC", "PHA3"])
    for a, b in PAIRS:
        of = table["method"] == f"claim: {a} + {b}"
        most = binom.ppf(0.995, subjects, 0.05)
        assert (table.loc[of & empty, "p"] <= 0.05).sum() <= most
        assert (table.loc[of & empty, "claim"] == CARRIES).sum() <= most
        assert (table.loc[of & loaded, "claim"] == CARRIES).all()
    if fwhm == 6.0:  # what the claim is for: reliance alone finds the empty area too often
        relied = (table["method"] == "leave_one_out:permuted") & empty
        assert (table.loc[relied, "p"] <= 0.05).sum() > binom.ppf(0.95, subjects, 0.05)


def test_the_strength_of_claims_orders_areas_with_something_of_their_own():
    areas = ["V8", "V3CD", "LO2", "LO3", "V7", "V6A", "PHA2", "MT", "PIT", "V4t"]
    subject = attribution_subject("own", areas=areas)
    problem = planted_problem(subject, train=300, test=300, draws=99)
    results = run_methods(
        problem, ["leave_one_out:mean", "encoding"], {"leave_one_out": {"matched": 0}}
    )
    found = claims(results).set_index("roi")
    assert detection(found["strength"].to_dict(), subject.informative) >= 0.95
    carries = (found["claim"] == CARRIES).to_dict()
    assert sum(carries[a] for a, loaded in subject.informative.items() if loaded) >= 4
    assert sum(carries[a] for a, loaded in subject.informative.items() if not loaded) == 0


def test_every_claim_has_a_meaning():
    assert list(MEANING) == [CARRIES, SHARED, CANCELS, NOTHING]
