"""Checklists: every item has a number once, and is answered or left open, never guessed."""

import pytest

from neurodiff.analysis.benchmark_record import record_of
from neurodiff.analysis.checklists import (
    COLUMNS,
    FACTS,
    NAMES,
    UNKNOWN,
    facts_of,
    filled,
    read_checklist,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.run import Run

NUMBERS = {"checklist_claim": 44, "checklist_tripod_ai": 52, "checklist_cobidas": 43}
SETTINGS = {"name": "tiny", "bridge": {"training": {"steps": 7, "batch_size": 4}}}


@pytest.fixture
def record(tmp_path):
    inputs = {"data": "simulated_tiny", "features": 12, "recording": "ab", "simulated": True}
    run = Run.create(tmp_path / "run", SETTINGS, inputs, command="neurodiff fit", seed=3)
    return record_of(run)


@pytest.mark.parametrize("name", NAMES)
def test_each_checklist_has_its_items_and_is_called_an_aid(name):
    checklist = read_checklist(name)
    assert len(checklist.items) == NUMBERS[name]
    assert "not a certificate" in checklist.about
    assert "Version: " in checklist.about  # and how far its numbers can be relied on
    assert "before you submit" in checklist.about
    assert checklist.reference
    assert any(not item.fact for item in checklist.items)  # what no run can know


def test_numbers_are_those_of_the_publications():
    claim = [item.id for item in read_checklist("checklist_claim").items]
    assert claim == [str(k) for k in range(1, 45)]
    tripod = [item.id for item in read_checklist("checklist_tripod_ai").items]
    assert sorted({int(one.rstrip("abcdefg")) for one in tripod}) == list(range(1, 28))
    tables = {item.id[:3] for item in read_checklist("checklist_cobidas").items}
    assert tables == {f"D.{k}" for k in range(1, 8)}


def test_what_the_run_knows_is_filled_in_and_the_rest_is_left_open(record):
    facts = facts_of({"run": record})
    assert "run seed 3" in facts["seeds"]
    assert facts["training"] == "bridge 7 steps x 4"
    assert facts["subset"] == "12 features"
    assert "simulated" in facts["simulated"]
    assert "results" not in facts  # nothing was scored
    table = filled(read_checklist("checklist_claim"), facts)
    assert tuple(table.columns) == COLUMNS
    by = table.set_index("item")
    assert by.loc["44", "answer"] == UNKNOWN
    assert by.loc["37", "answer"] == UNKNOWN
    assert by.loc["25", "answer"] == "bridge 7 steps x 4"
    assert by.loc["25", "source"] == "run: settings of the training"
    assert set(by.loc[by["answer"] == UNKNOWN, "source"]) == {"authors"}
    assert by["source"].str.startswith("run: ").sum() == by["known"].sum()
    assert by["known"].sum() == (by["answer"] != UNKNOWN).sum()
    more = facts_of({"run": record}, {"results": "CD 1.5"})
    again = filled(read_checklist("checklist_claim"), more).set_index("item")
    assert again.loc["37", "answer"] == "CD 1.5"


def test_runs_that_agree_have_one_answer_and_others_one_each(record, tmp_path):
    other = Run.create(tmp_path / "b", SETTINGS, {"data": "x"}, command="neurodiff fit", seed=4)
    facts = facts_of({"a": record, "b": record_of(other)})
    assert facts["training"] == "bridge 7 steps x 4"
    assert facts["seeds"].startswith("a: run seed 3")
    assert "b: run seed 4" in facts["seeds"]


def test_a_broken_checklist_is_refused(tmp_path):
    head = "name: x\ntitle: x\nreference: x\nabout: x\nitems:\n"
    for text, reason in (
        ('  - {id: "1", section: a, topic: b}\n  - {id: "1", section: a, topic: c}\n', "twice"),
        ('  - {id: "1", section: a, topic: b, fact: moon}\n', "moon"),
        ("  - {id: 1, section: a, topic: b}\n", "items"),
    ):
        path = tmp_path / "x.yaml"
        path.write_text(head + text)
        with pytest.raises(UsageError, match=reason):
            read_checklist(str(path))
    assert len(FACTS) == len(set(FACTS))
