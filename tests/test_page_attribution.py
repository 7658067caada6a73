"""The page of an attribution: what methods say is on it, and nothing is asked from a network."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.attribution_maps import brain_maps
from neurodiff.analysis.attribution_words import (
    KINDS,
    disagreements,
    kind_of,
    listed,
    shared_worth,
    significant,
)
from neurodiff.analysis.figures import Axis
from neurodiff.analysis.page_attribution import (
    PageData,
    detection,
    findings,
    page_html,
    roi_strip,
    to_json,
    write_page,
)
from neurodiff.core.errors import UsageError


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load("attribution_results").made
ROIS = {name: np.eye(4, dtype=bool)[k] for k, name in enumerate(["A", "B", "C", "D"])}
TRUTH = pd.DataFrame({"area": list("ABCD"), "carries": ["unique", "shared", "nothing", "none"]})


def results():
    """A is told by all; B is there and not missed; C is missed and not there; D is nothing."""
    left_out = {"A": 0.3, "B": 0.01, "C": 0.2, "D": 0.0}
    alone = {"A": 0.4, "B": 0.3, "C": 0.01, "D": 0.02}
    return [
        made("leave_one_out:mean", left_out, ROIS, good=["A", "C"]),
        made("roi_only", alone, ROIS, good=["A", "B"]),
        made("shapley", alone, ROIS, good=["A", "B"], subjects=("sub-01", "sub-02", "sub-03")),
    ]


class Requests(HTMLParser):
    """What a browser would ask for, and whether every tag is closed."""

    def __init__(self):
        super().__init__()
        self.asked, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "img", "col", "br", "input", "line", "rect", "circle"):
            self.open.append(tag)
        for name, value in attributes:
            if name == "src" or (name == "href" and tag == "link"):
                self.asked.append(value or "")

    def handle_endtag(self, tag):
        if tag in ("line", "rect", "circle"):
            return
        assert self.open.pop() == tag


def parsed(text):
    parser = Requests()
    parser.feed(text)
    assert parser.open == []
    return parser


# ----------------------------------------------------------------------------------------- words


def test_every_method_is_asked_and_limited_in_words():
    for name, kind in KINDS.items():
        assert kind.asks.endswith("?"), name
        assert kind.silent.endswith(".")
    assert kind_of("roi_only:refit").name == "One region alone (refit)"
    assert kind_of("something_new").name == "something_new"


def test_disagreement_tells_redundancy_and_help_apart():
    redundant, helping = disagreements(results()[:2])
    assert "B is informative" in redundant
    assert "redundancy" in redundant
    assert "C is missed" in helping
    assert "cancel" in helping
    [shared] = shared_worth([results()[0], results()[2]])
    assert shared.startswith("sub-01, bridge: B has a Shapley value")


def test_methods_that_agree_give_no_sentence():
    one = made("leave_one_out:mean", {"A": 1.0, "B": 0.0}, ROIS, good=["A"])
    other = made("encoding", {"A": 1.0, "B": 0.0}, ROIS, good=["A"])
    assert disagreements([one, other]) == []


def test_without_q_the_p_counts():
    table = made("shapley", {"A": 1.0, "B": 0.0}, ROIS, good=["A"]).table.assign(q=np.nan)
    assert significant(table) == ["A"]


def test_lists_in_words():
    assert [listed(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "", "a", "a and b", "a, b and c",
    ]  # fmt: skip
    assert listed(list("abcdefghij")).endswith("h and 2 more")


# ------------------------------------------------------------------------------------- detection


def test_detection_counts_against_the_planted_truth():
    found = detection(PageData(results=results(), simulated=True, truth=TRUTH))
    left_out = found.iloc[0]
    assert left_out["auc"] == pytest.approx(3 / 4)  # A > C, A > D, B > D, B < C
    assert left_out["auc_own"] == 1.0
    assert (left_out["found"], left_out["false"]) == (1, 1)
    assert found.iloc[1]["auc"] == 1.0
    assert list(found["subject"]) == ["sub-01", "sub-01", "sub-01", "sub-02", "sub-03", "sub-01"]
    claimed = found.iloc[-1]  # only A is both missed and informative alone
    assert (claimed["method"], claimed["found"], claimed["false"]) == ("claims", 1, 0)
    assert detection(PageData(results=results(), simulated=True)).empty


# ------------------------------------------------------------------------------------------ page


def test_the_page_asks_for_nothing_and_holds_every_number():
    maps = brain_maps(results(), ROIS, 4)
    key = ("roi_only", "sub-01", "bridge", "importance")
    data = PageData(
        results=results(), simulated=True, truth=TRUTH, maps=maps, pictures={key: b"png"},
        facts={"metric": "correlation"}, links={"table": "attribution.tsv"},
    )  # fmt: skip
    text = page_html(data)
    assert all(asked.startswith("data:") for asked in parsed(text).asked)
    [numbers] = re.findall(r'id="attribution-data">(.*?)</script>', text, re.S)
    stored = json.loads(numbers)
    assert stored == json.loads(json.dumps(to_json(data)))
    assert stored["methods"]["roi_only"][0]["value"] == 0.4
    assert "Simulated" in text
    assert "Planted truth" in text
    for method in results():
        assert method.notes[0] in text


def test_a_page_of_real_data_does_not_say_simulated():
    text = page_html(PageData(results=results(), simulated=False))
    assert "simulated" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).replace(
        '"simulated": false', ""
    )
    assert "Planted truth" not in text
    assert "not available" in text  # ceilings


def test_hostile_names_are_text():
    name = '<script>alert("x")</script>'
    rois = {name: np.array([True, False]), "</script>": np.array([False, True])}
    result = made(name, {name: 1.0, "</script>": 0.5}, rois, good=[name])
    text = page_html(PageData(results=[result], simulated=False, title=name, notes=[name]))
    assert "<script>alert" not in text
    assert text.count("<script") == 1
    parsed(text)


def test_above_the_budget_pictures_are_files(tmp_path):
    key = ("roi_only", "sub-01", "bridge", "importance")
    picture = bytes(300_000)
    data = PageData(results=results(), simulated=True, pictures={key: picture})
    alone = write_page(data, tmp_path / "a" / "page.html")
    assert sorted(p.name for p in alone.parent.iterdir()) == ["page.html"]
    page = write_page(data, tmp_path / "b" / "page.html", budget_mb=0.2)
    assert page.stat().st_size < 2e5
    asked = [a for a in parsed(page.read_text()).asked if not a.startswith("data:")]
    assert asked == ["attribution_files/map-001.png"]
    assert (page.parent / asked[0]).read_bytes() == picture


def test_findings_name_the_highest():
    said = findings(PageData(results=results()[:1], simulated=True))
    assert said == [
        "Leave one region out, mean (sub-01, bridge): 2 of 4 regions at q ≤ 0.05, highest A and C."
    ]


def test_a_strip_shows_null_interval_and_each_subject():
    table = results()[2].table
    rows = table[table["roi"] == "A"]
    svg = str(roi_strip(rows, Axis(0.0, 1.0), label="A"))
    assert svg.count("<circle") == 3
    assert svg.count("<rect") == 1
    assert "sub-03: 0.420" in svg
    missing = str(roi_strip(rows.assign(value=np.nan, null_low=np.nan), Axis(0.0, 1.0)))
    assert "<circle" not in missing
    assert "<rect" not in missing


def test_no_result_is_refused():
    with pytest.raises(UsageError, match="no result"):
        page_html(PageData(results=[], simulated=False))
