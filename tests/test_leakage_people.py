"""The audit of several people: a stimulus of one person's training and another's test is found."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neurodiff.analysis import across_subjects
from neurodiff.analysis.leakage_people import Person, audit_people, audit_people_before_fit
from neurodiff.analysis.leakage_strictness import KINDS, Strictness
from neurodiff.cli import app
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli


def person(name, train=("a", "b"), test=("c", "d"), *, vertices=20, seed=0, data=None):
    names = [*train, *test]
    table = pd.DataFrame(
        {
            "subject": name,
            "stimulus": names,
            "split": ["train"] * len(train) + ["test"] * len(test),
            "run": [1] * len(train) + [2] * len(test),
        }
    )
    if data is None:
        data = np.random.default_rng(seed).standard_normal((len(names), vertices))
    return Person.of(Recording.from_arrays(np.asarray(data, np.float32), table))


def found(report, kind):
    [check] = [one for one in report.checks if one.kind == kind]
    return check


def test_people_of_other_vertices_with_one_split_pass():
    report = audit_people([person("p1"), person("p2", vertices=30, seed=1)])
    assert [one.kind for one in report.checks] == list(KINDS)
    assert not report.errors
    assert not report.warnings
    assert found(report, "same-trial").severity == "passed"
    assert found(report, "same-trial").of == 4  # test rows of both


def test_a_stimulus_of_one_persons_training_in_anothers_test():
    leaking = person("p2", train=("c", "e"), test=("d", "f"), vertices=30, seed=1)
    report = audit_people([person("p1"), leaking])
    check = found(report, "same-stimulus")
    assert (check.severity, check.count, check.of) == ("error", 1, 3)
    assert check.examples == ("c (trains p2; tests p1)",)
    # apart, neither has anything to find
    for one in (person("p1"), leaking):
        assert not audit_people([one]).errors


def test_one_recording_under_two_names():
    rows = np.random.default_rng(3).standard_normal((4, 20))
    a = person("p1", data=rows)
    b = person("p2", train=("c", "d"), test=("a", "b"), data=rows[[2, 3, 0, 1]])
    report = audit_people([a, b])
    check = found(report, "same-trial")
    assert (check.severity, check.count) == ("error", 4)
    assert "is a training trial of p" in check.examples[0]
    assert "two names" in check.advice


def test_what_is_found_within_a_person_is_named_and_added_up():
    def copied(name, seed):
        rows = np.random.default_rng(seed).standard_normal((4, 20))
        rows[3] = rows[0]
        return person(name, data=rows)

    check = found(audit_people([copied("p1", 1), copied("p2", 2), person("p3")]), "same-trial")
    assert (check.count, check.of) == (2, 6)
    assert all("p1" in x or "p2" in x for x in check.examples)
    said = audit_people([person("p1"), person("p2", seed=1)], preprocessing={"z": "all"})
    statistics = found(said, "test-statistics")
    assert (statistics.severity, statistics.count) == ("error", 4)


def test_pictures_are_compared_between_people():
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 255, (64, 64), np.uint8) for name in "abcdef"}
    pictures["f"] = pictures["a"]
    stimuli = Stimuli(pd.DataFrame({"id": list("abcdef")}), load_image=pictures.__getitem__)
    people = [person("p1"), person("p2", train=("e",), test=("f",), seed=1)]
    strict = Strictness(strict=True)
    with pytest.raises(DataError, match=r"exact-duplicate, 1 of 3 \(f = a\)"):
        audit_people_before_fit(people, stimuli, strict)
    assert not audit_people_before_fit(people, stimuli).errors  # lenient: pictures are left alone
    allowed = Strictness(strict=True, allow=("exact-duplicate",))
    assert audit_people_before_fit(people, stimuli, allowed).errors


def test_a_new_persons_undrawn_trials_are_nobodys():
    new = person("p2", train=("c", "e"), test=("f",), seed=1)
    nobody = Person(name="p2", train=None, test=new.test)
    assert audit_people([person("p1"), new]).errors
    assert not audit_people([person("p1"), nobody]).errors
    no_test = Person(name="p1", train=person("p1").train, test=None)
    shown = Stimuli(pd.DataFrame({"id": list("ab")}))
    assert audit_people_before_fit([no_test], shown) is None


def test_the_command_line_hands_on_what_is_strict(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(across_subjects, "fit_across", lambda *a, **k: asked.update(k))
    words = ["fit", "mind3d_tiny", "--data", "simulated_tiny", "--subjects", "1,2", "--strict"]
    done = CliRunner().invoke(app, [*words, "--allow", "same-run", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert asked["leaks"] == Strictness(strict=True, allow=("same-run",))


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match="give each once"):
        audit_people([person("p1"), person("p1")])
    with pytest.raises(UsageError, match="has test trials"):
        audit_people([Person(name="p1", train=person("p1").train, test=None)])
    with pytest.raises(UsageError, match="give stimuli"):
        audit_people([person("p1")], images=True)
