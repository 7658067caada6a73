"""The published splits by their definition: who was trained on, and which classes."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.splits import class_lines, describe, mark, remember, trained_on
from neurodiff.core.run import Run

KNOWN = {
    "subjects": ["sub-0001"],
    "categories": ["chair", "lamp"],
    "adapted": {"sub-0004": 20},
}


def scores(subject, categories):
    n = len(categories)
    return pd.DataFrame(
        {
            "subject": subject,
            "stimulus": [f"s{k}" for k in range(n)],
            "category": categories,
            "CD": np.arange(n, dtype=float),
        }
    )


@pytest.mark.parametrize(
    ("subject", "categories", "split"),
    [
        ("sub-0001", ["chair", "lamp"], "core"),
        ("sub-0009", ["chair", "lamp"], "across-person"),
        ("sub-0001", ["mug", "mug"], "across-class"),
        ("sub-0011", ["chair", "mug"], "across-person-across-class"),
        ("sub-0009", ["", ""], "across-person"),  # nothing is known of the classes
    ],
)
def test_the_published_definitions(subject, categories, split):
    marked = mark(scores(subject, categories), KNOWN)
    assert set(marked["generalisation"]) == {split}
    assert marked["trained_class"].tolist() == [c in ("chair", "lamp", "") for c in categories]


def test_each_person_of_a_table_has_a_split():
    table = pd.concat([scores("sub-0001", ["lamp"]), scores("sub-0011", ["mug"])])
    marked = mark(table.reset_index(drop=True), KNOWN)
    assert marked["generalisation"].tolist() == ["core", "across-person-across-class"]


def test_a_run_of_an_earlier_version_says_nothing(tmp_path):
    run = Run.create(tmp_path / "run", {"name": "x"}, {"data": "x"}, command="test", seed=0)
    assert trained_on(run) is None
    assert set(mark(scores("a", ["chair"]), trained_on(run))["generalisation"]) == {""}
    assert describe("", ["a"], None) == ""


def test_a_run_remembers_what_it_was_trained_on(tmp_path):
    run = Run.create(tmp_path / "run", {"name": "x"}, {"data": "x"}, command="test", seed=0)
    before = run.fingerprint
    remember(run, ["sub-0001", "sub-0001"], ["lamp", "chair", "lamp", ""], {"sub-0004": 20})
    run.touch()
    found = Run.open(tmp_path / "run")
    assert trained_on(found) == KNOWN
    assert found.fingerprint == before


def test_classes_that_are_new_are_reported_apart():
    marked = mark(scores("sub-0011", ["chair", "mug", "lamp", "mug"]), KNOWN)
    assert class_lines(marked, ["CD"]) == [
        "trained classes: 2 stimuli, CD 1.000",  # 0 and 2
        "new classes: 2 stimuli, CD 2.000",  # 1 and 3
    ]
    assert class_lines(mark(scores("sub-0011", ["mug"]), KNOWN), ["CD"]) == []


def test_the_words_name_people_and_the_trials_of_their_layer():
    assert describe("core", ["sub-0001"] * 3, KNOWN) == "core (sub-0001)"
    assert describe("across-person", ["sub-0004"], KNOWN) == (
        "across-person (sub-0004; input layer of 20 trials)"
    )
