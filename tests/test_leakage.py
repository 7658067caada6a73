"""The audit finds each planted leak, and nothing in a clean split."""

import io

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from neurodiff.analysis.leakage import KINDS, LeakageReport, Thresholds, audit
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli


def recorded(stimuli, seed, *, run=1, features=40, data=None, **columns):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"stimulus": stimuli, "run": run, **columns})
    if data is None:
        data = rng.standard_normal((len(stimuli), features))
    return Recording.from_arrays(np.asarray(data, np.float32), table)


def clean(n_train=30, n_test=10, **options):
    train = recorded([f"a{k}" for k in range(n_train)], 0, run=1, **options)
    return train, recorded([f"b{k}" for k in range(n_test)], 1, run=2, **options)


def check(report, kind):
    [one] = [c for c in report.checks if c.kind == kind]
    return one


def test_a_clean_split_has_no_finding_and_every_check_a_row():
    report = audit(*clean())
    assert list(report.table["check"]) == list(KINDS)
    assert set(report.table["severity"]) == {"passed", "not checked"}
    assert report.errors == report.warnings == ()
    report.raise_if_strict()
    assert report.lines()[0].startswith("leakage: 5 checks found nothing; not checked: exact-dup")


def test_the_same_stimulus_whoever_saw_it():
    train = recorded(["a", "b"], 0, subject="one", run=1)
    test = recorded(["b", "c"], 1, subject="two", run=2)
    found = check(audit(train, test), "same-stimulus")
    assert (found.severity, found.count, found.of, found.examples) == ("error", 1, 2, ("b",))


def test_equal_numbers_under_another_name():
    train, test = clean()
    copied = np.concatenate([train.array()[3:5], test.array()])
    test = recorded([f"b{k}" for k in range(12)], 1, run=2, data=copied)
    found = check(audit(train, test), "same-trial")
    assert (found.severity, found.count, found.of) == ("error", 2, 12)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_mean_of_trials_of_the_other_side(swapped):
    single = recorded(["a", "a", "a", "b", "b"], 0, run=1)
    mean = single.array()[:3].mean(axis=0, keepdims=True)
    fresh = recorded(["b"], 5).array()
    means = recorded(["a", "b"], 1, run=2, data=np.concatenate([mean, fresh]))
    sides = (means, single) if swapped else (single, means)
    found = check(audit(*sides), "averaged-repeats")
    assert found.severity == "error"
    assert found.count == (3 if swapped else 1)
    assert found.examples[0].startswith("a (")


@pytest.mark.parametrize("level", [0.0, 10_000.0])
def test_fresh_repeats_of_a_stimulus_are_no_mean(level):
    """Nor are raw signals, whose level alone has nearly all the energy."""
    sides = [
        recorded(names, 0, run=run, data=recorded(names, run).array() + level)
        for run, names in ((1, ["a"] * 6), (2, ["a"] * 2))
    ]
    assert check(audit(*sides), "averaged-repeats").severity == "passed"


def test_runs_on_both_sides_warn_and_unknown_runs_are_not_judged():
    train, _ = clean()
    shared = recorded([f"b{k}" for k in range(10)], 1, run=[1] * 5 + [2] * 5)
    found = check(audit(train, shared), "same-run")
    assert (found.severity, found.count, found.of) == ("warning", 1, 2)
    assert found.examples == ("sub-01, session 1, run 1",)
    unknown = recorded([f"b{k}" for k in range(10)], 1, run=1)
    assert check(audit(train, unknown), "same-run").severity == "not checked"


def normalised(data, by):
    return (data - by.mean(axis=0)) / by.std(axis=0)


def test_normalisation_over_both_is_found_and_over_training_is_not():
    train, test = (one.array() * 3 + 100 for one in clean(200, 20))
    names = [[f"{side}{k}" for k in range(n)] for side, n in (("a", 200), ("b", 20))]
    for by, severity in ((np.concatenate([train, test]), "error"), (train, "passed")):
        sides = [
            recorded(names[k], 0, run=k, data=normalised(one, by))
            for k, one in enumerate((train, test))
        ]
        found = check(audit(*sides), "test-statistics")
        assert found.severity == severity
    both = np.concatenate([train, test])
    sides = [
        recorded(names[k], 0, run=k, data=one - both.mean(axis=0))
        for k, one in enumerate((train, test))
    ]
    found = check(audit(*sides), "test-statistics")
    assert found.examples == ("mean 0 over training and test together",)
    assert found.count == found.of == 20


def test_normalisation_by_session_with_the_test_trials_in_it():
    rng = np.random.default_rng(0)
    session = np.repeat([1, 2, 3], 60)
    data = rng.standard_normal((180, 40)) + session[:, None]
    for number in (1, 2, 3):
        rows = session == number
        data[rows] = normalised(data[rows], data[rows])
    is_test = np.arange(180) % 6 == 0
    whole = recorded([f"s{k}" for k in range(180)], 0, session=session, data=data)
    found = check(audit(whole.select(~is_test), whole.select(is_test)), "test-statistics")
    assert found.severity == "error"
    assert "together" in found.examples[0]
    assert found.count == 30


@pytest.mark.parametrize(
    ("source", "severity"),
    [("train", "passed"), ("all", "error"), (["a1", "b2", "b3"], "error"), (["a1"], "passed")],
)
def test_what_is_said_of_the_preprocessing(source, severity):
    found = check(audit(*clean(), preprocessing={"PCA": source}), "test-statistics")
    assert found.severity == severity
    if source == ["a1", "b2", "b3"]:
        assert (found.count, found.examples) == (2, ("PCA: over b2, b3",))
    with pytest.raises(UsageError, match="said to be over 'some'"):
        audit(*clean(), preprocessing={"PCA": "some"})


def test_no_false_alarm_of_statistics_in_random_studies():
    """Training normalised by itself, 40 studies: the closed form says never."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        train, test = rng.standard_normal((50, 20)), rng.standard_normal((5, 20))
        sides = [
            recorded([f"{side}{k}" for k in range(len(one))], 0, run=run, data=one)
            for run, (side, one) in enumerate(
                (("a", normalised(train, train)), ("b", normalised(test, train)))
            )
        ]
        assert check(audit(*sides), "test-statistics").severity == "passed"


def picture(seed, side=96):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    total = sum(gaussian_filter(rng.standard_normal((side, side)), s) * s for s in (2, 5, 14))
    return np.clip(128 + 60 * total / total.std(), 0, 255).astype(np.uint8)


def test_pictures_are_told_apart_by_how_they_are_the_same():
    train, test = clean(12, 8)
    images = {f"a{k}": picture(k) for k in range(12)} | {f"b{k}": picture(50 + k) for k in range(8)}
    images["b0"] = images["a0"].copy()
    file = io.BytesIO()
    PIL.Image.fromarray(images["a1"]).save(file, "JPEG", quality=30)
    images["b1"] = PIL.Image.open(file)
    images["b2"] = images["a2"][5:77, 11:83]
    images["a3"] = images["b3"][20:90, 4:74]  # training holds the crop
    report = audit(train, test, images=images)
    found = {kind: check(report, kind) for kind in ("exact-duplicate", "recompressed", "crop")}
    assert found["exact-duplicate"].examples == ("b0 = a0",)
    assert found["recompressed"].examples == ("b1 = a1",)
    assert set(found["crop"].examples) == {"b2 = a2", "b3 = a3"}
    with pytest.raises(DataError, match=r"exact-duplicate, 1 of 8 \(b0 = a0\), and also recomp"):
        report.raise_if_strict()
    report.raise_if_strict(False)
    report.raise_if_strict(allow=["exact-duplicate", "recompressed", "crop"])
    with pytest.raises(UsageError, match="Did you mean 'crop'"):
        report.raise_if_strict(allow=["crops"])


def test_a_mean_of_trials_of_the_same_picture_under_another_id():
    train, _ = clean()
    table = train.trials.assign(stimulus=["a0", "a0", *train.trials["stimulus"][2:]])
    train = Recording.from_arrays(train.array(), table)
    test = recorded(["z"], 1, run=2, data=train.array()[:2].mean(axis=0, keepdims=True))
    images = {name: picture(k) for k, name in enumerate([*train.trials["stimulus"], "z"])}
    assert check(audit(train, test, images=images), "averaged-repeats").severity == "passed"
    images["z"] = images["a0"]
    assert check(audit(train, test, images=images), "averaged-repeats").severity == "error"


def test_meshes_up_to_similarity_and_triangles():
    import trimesh

    train, test = clean(3, 3)
    box = trimesh.creation.box([1, 2, 3])
    knot = trimesh.creation.torus(1.0, 0.2, major_sections=20, minor_sections=20)
    scaled = knot.copy()
    scaled.apply_transform(trimesh.transformations.rotation_matrix(1.0, [1, 2, 3]))
    scaled.apply_scale(7.0)
    finer = trimesh.creation.torus(1.0, 0.2, major_sections=50, minor_sections=40)
    shapes = {"a0": box, "a1": knot, "a2": trimesh.creation.icosphere(2)}
    shapes |= {"b0": scaled, "b1": finer, "b2": box.copy()}
    report = audit(train, test, meshes=shapes)
    assert check(report, "exact-duplicate").examples == ("b2 = a0",)
    assert set(check(report, "same-shape").examples) == {"b0 = a1", "b1 = a1"}
    shapes["b1"] = trimesh.Trimesh()
    with pytest.raises(DataError, match="shape of stimulus 'b1' cannot be compared"):
        audit(train, test, meshes=shapes)


def test_features_objects_and_clusters():
    train, test = clean()
    rng = np.random.default_rng(0)
    names = [*train.trials["stimulus"], *test.trials["stimulus"]]
    features = {name: rng.standard_normal(64) + 5 for name in names}
    features["b4"] = features["a7"] + 0.1 * rng.standard_normal(64)
    table = pd.DataFrame({"id": names, "category": ["cup", "lamp"] * 20})
    table["object"] = [None, *(f"object {k}" for k in range(1, 40))]
    table.loc[35, "object"] = "object 3"  # b5
    stimuli = Stimuli(table)
    report = audit(train, test, stimuli, features=features)
    assert check(report, "similar-features").examples == ("b4 = a7",)
    assert check(report, "similar-features").severity == "warning"
    assert check(report, "other-view").examples == ("b5 = a3",)
    found = check(report, "cluster-overlap")
    assert (found.severity, found.count) == ("info", 10)
    assert "0.750" in found.advice  # 1 - 1/(2K) of two clusters
    assert check(audit(train, test, stimuli, disjoint=True), "cluster-overlap").severity == "error"
    apart = {name: name[0] for name in names}
    assert check(audit(train, test, clusters=apart), "cluster-overlap").severity == "passed"


def test_hostile_input_is_named():
    train, test = clean()
    names = [*train.trials["stimulus"], *test.trials["stimulus"]]
    with pytest.raises(UsageError, match="give stimuli"):
        audit(train, test, images=True)
    with pytest.raises(DataError, match="stimulus 'a0' has no image among the 0 given"):
        audit(train, test, images={})
    with pytest.raises(DataError, match=r"picture of stimulus 'a0' has shape \(3,\)"):
        audit(train, test, images=dict.fromkeys(names, np.zeros(3)))
    features = {name: np.ones(4) for name in names} | {"b3": np.array([1, np.nan, 0, 0])}
    with pytest.raises(DataError, match="features of stimulus 'b3'"):
        audit(train, test, features=features)
    with pytest.raises(UsageError, match="expected -1 to 1"):
        Thresholds(cosine=1.5)
    wider = recorded(["b"], 1, run=2, features=41)
    assert check(audit(train, wider), "same-trial").severity == "not checked"


def test_a_report_survives_json():
    train, _ = clean()
    report = audit(train, train)
    again = LeakageReport.from_json(report.to_json())
    assert again == report
    with pytest.raises(DataError, match="no leakage audit"):
        LeakageReport.from_json({"format": "other"})
    with pytest.raises(DataError, match="check that is none"):
        LeakageReport.from_json({"format": report.to_json()["format"], "checks": [{"kind": 1}]})
