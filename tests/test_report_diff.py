"""The comparison of two runs: what counts, what does not, and the exit code."""

import copy
import json

import pytest

from neurodiff.analysis.benchmark_record import digest, record_of
from neurodiff.analysis.report_diff import diff_reports
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.run import Run

RECIPE = {"name": "tiny", "protocol": "neurodiff-1", "steps": 20, "size": {"width": 8}}
SCORES = (
    "key,condition,data,simulated,protocol,subject,stimulus,category,repeat,sample,CD,note\n"
    "k1,MinD-3D,made,True,neurodiff-1,s1,a,box,1,0,1.5,\n"
    "k2,MinD-3D,made,True,neurodiff-1,s1,b,box,1,0,2.5,\n"
    "k1,random training object,made,True,neurodiff-1,s1,a,box,1,0,3.5,\n"
    "k2,random training object,made,True,neurodiff-1,s1,b,box,1,0,4.0,\n"
)


def make(folder, scores=SCORES, seed=0, inputs=None, **recipe):
    run = Run.create(
        folder,
        RECIPE | recipe,
        inputs or {"data": "made", "recording": "ab12", "simulated": True},
        command=["neurodiff", "fit", "tiny"],
        seed=seed,
    )
    item = run.item("reconstruction", "s1", "a", 0, "x")
    with item.write_dir() as place:
        (place / "embedding.json").write_text("{}")
    stage = run.stage("bridge", {"steps": 20})
    stage.path("weights.safetensors").write_bytes(b"weights")
    stage.finish()
    run.scores_path.write_text(scores)
    return Run.open(folder)


def test_two_runs_of_one_kind_are_the_same_and_times_do_not_count(tmp_path):
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    b.info["command"] = ["neurodiff", "fit", "tiny", "--out", "elsewhere"]
    b.touch()
    found = diff_reports(tmp_path / "a", tmp_path / "b")
    assert found.same
    assert found.exit_code == 0
    assert found.compared > 30
    shown = set(found.table["what"])
    assert "command" in shown
    assert "~" in found.text()
    assert found.text().endswith("same: exit code 0")
    assert a.fingerprint == b.fingerprint


def test_each_kind_of_difference_is_named_with_its_part(tmp_path):
    make(tmp_path / "a")
    b = make(
        tmp_path / "b",
        scores=SCORES.replace("2.5", "2.9"),
        seed=1,
        inputs={"data": "made", "recording": "cd34", "simulated": True},
        steps=21,
    )
    b.stage("bridge", {"steps": 20}).path("weights.safetensors").write_bytes(b"others!")
    b.stage("bridge", {"steps": 20}).finish()
    b.info["versions"]["numpy"] = "0.0.1"
    b.touch()
    found = diff_reports(tmp_path / "a", tmp_path / "b")
    assert found.exit_code == 1
    counted = found.table[found.table["counts"]]
    names = set(zip(counted["part"], counted["what"], strict=True))
    assert {
        ("settings", "steps"),
        ("data", "inputs.recording"),
        ("weights", "bridge/weights.safetensors.sha256"),
        ("versions", "numpy"),
        ("seeds", "run seed"),
        ("scores", "made.MinD-3D.CD.mean"),
    } <= names
    row = counted[counted["what"] == "made.MinD-3D.CD.mean"].iloc[0]
    assert (row["a"], row["b"]) == pytest.approx((2.0, 2.2))
    assert row["difference"] == pytest.approx(0.2 / 2.2)


@pytest.mark.parametrize(("tolerance", "same"), [(0.0, False), (0.05, False), (0.1, True)])
def test_scores_within_the_tolerance_do_not_count(tmp_path, tolerance, same):
    make(tmp_path / "a")
    make(tmp_path / "b", scores=SCORES.replace("2.5", "2.9"))
    found = diff_reports(tmp_path / "a", tmp_path / "b", tolerance=tolerance)
    assert found.same is same
    assert "made.MinD-3D.CD.mean" in set(found.table["what"])


def test_reports_are_compared_by_their_records_or_by_their_numbers(tmp_path):
    record = record_of(make(tmp_path / "a"))
    other = copy.deepcopy(record)
    other["settings"]["steps"] = 7
    pages = []
    for name, one in (("x", record), ("y", other)):
        page = {"format": "neurodiff-report-1", "benchmark": {"records": {"a": one}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(page))
        pages.append(tmp_path / f"{name}.json")
    assert diff_reports(pages[0], tmp_path / "a").same  # a page against the run's folder
    assert diff_reports(*pages).table["what"].tolist() == ["steps"]
    for name, mean in (("p", 0.5), ("q", 0.6)):
        page = {"format": "neurodiff-report-1", "conditions": {"ours": {"CD": {"mean": mean}}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(page))
    found = diff_reports(tmp_path / "p.json", tmp_path / "q.json").table
    assert found["what"][found["counts"]].tolist() == ["ours.CD.mean"]
    with pytest.raises(UsageError, match="without records"):
        diff_reports(tmp_path / "p.json", tmp_path / "a")


def test_bad_input_is_answered_in_a_sentence(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(UsageError, match="tolerance"):
        diff_reports(tmp_path / "a", tmp_path / "a", tolerance=-1.0)
    with pytest.raises(MissingDataError, match="neither"):
        diff_reports(tmp_path / "a", tmp_path / "nothing")
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="no report"):
        diff_reports(tmp_path / "a", tmp_path / "other.json")
    (tmp_path / "two.json").write_text(
        json.dumps({"format": "neurodiff-report-1", "benchmark": {"records": {"a": {}, "b": {}}}})
    )
    with pytest.raises(DataError, match="2 runs"):
        diff_reports(tmp_path / "a", tmp_path / "two.json")


def test_a_digest_does_not_know_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
