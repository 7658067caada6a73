"""Scores of runs in one layout, paired tests, and the sources of uncertainty told apart."""

import json

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.benchmark_data import (
    counts_of,
    effective_dimension,
    plain_leaks,
    repeats_text,
)
from neurodiff.analysis.benchmark_scores import (
    ALL,
    TIDY,
    against_floors,
    holm,
    per_stimulus,
    quantity_of,
    score_rows,
    summary_numbers,
    tidy_scores,
)
from neurodiff.analysis.benchmark_uncertainty import (
    like_runs,
    means_by_source,
    sources_of_uncertainty,
    spread_of_samples,
)
from neurodiff.core.run import Run

OURS, FLOOR, CEILING = "MinD-3D", "random training object", "ceiling: true features"


def table_of(values, condition=OURS, subject="s1", sample=0):
    return pd.DataFrame(
        {
            "key": [f"k{k}" for k in range(len(values))],
            "condition": condition,
            "data": "made",
            "simulated": True,
            "protocol": "neurodiff-1",
            "subject": subject,
            "stimulus": [f"t{k:02d}" for k in range(len(values))],
            "category": "box",
            "repeat": 1,
            "sample": sample,
            "CD": values,
            "note": "",
        }
    )


def run_with(folder, table, seed=0, subject=None):
    inputs = {"data": "made", "subject": subject, "simulated": True}
    run = Run.create(folder, {"name": "tiny"}, inputs, command="neurodiff fit", seed=seed)
    run.write_scores(table)
    return run


def test_any_pipeline_has_one_layout(tmp_path):
    run = run_with(tmp_path / "a", table_of([1.0, 2.0]))
    tidy = tidy_scores(run)
    assert tuple(tidy.columns) == TIDY
    assert tidy["metric"].unique().tolist() == ["CD"]
    assert tidy["role"].unique().tolist() == ["ours"]
    assert summary_numbers(tidy) == {"made": {OURS: {"CD": {"mean": 1.5, "n": 2}}}}
    pictures = table_of([0.1, 0.2], condition="reconstruction").rename(columns={"CD": "PixCorr"})
    run.write_scores(pictures.assign(role="ours"))
    assert tidy_scores(run)["metric"].unique().tolist() == ["PixCorr"]
    run.scores_path.unlink()
    assert len(tidy_scores(run)) == 0
    assert summary_numbers(tidy_scores(run)) == {}


def test_people_are_the_unit_of_scans(tmp_path):
    run = run_with(tmp_path / "a", table_of([1.0]))
    scans = {"part": "reconstruction", "condition": "encoded", "subject": ["p", "p", "q"]}
    run.write_scores(pd.DataFrame(scans | {"scan": ["p1", "p2", "q1"], "MSE": [0.1, 0.3, 0.4]}))
    metric = {"name": "MSE", "higher_is_better": False}
    run.write_report_json({"metrics": [metric], "conditions": {"encoded": {"role": "ours"}}})
    assert quantity_of("MSE") is None
    assert quantity_of("MSE", run).higher_is_better is False
    once = per_stimulus(tidy_scores(run))
    assert dict(zip(once["stimulus"], once["value"], strict=True)) == pytest.approx(
        {"p": 0.2, "q": 0.4}
    )


def test_samples_are_averaged_before_stimuli_are_counted(tmp_path):
    tables = [table_of([1.0, 2.0]), table_of([3.0, 2.0], sample=1)]
    tables.append(table_of([5.0, 7.0], subject="s2"))
    rows = score_rows(tidy_scores(run_with(tmp_path / "a", pd.concat(tables))))
    by = rows.set_index("subject")
    assert by.loc["s1", ["mean", "n"]].tolist() == [2.0, 2]
    assert by.loc["s2", "mean"] == 6.0
    assert by.loc[ALL, ["mean", "n"]].tolist() == [4.0, 2]  # people averaged, not pooled
    assert (rows["low"] <= rows["mean"]).all()
    spread = spread_of_samples(tidy_scores(Run.open(tmp_path / "a")))
    expected = np.sqrt(np.mean([2.0, 0.0]))
    assert spread["SD over samples"].iloc[0] == pytest.approx(expected)


def test_a_floor_is_beaten_or_not_and_the_share_is_of_the_way(tmp_path):
    rng = np.random.default_rng(0)
    floor = 10 + rng.normal(size=40)
    parts = [table_of(floor - 4), table_of(floor, FLOOR), table_of(floor - 8, CEILING)]
    found = against_floors(tidy_scores(run_with(tmp_path / "a", pd.concat(parts))), {"CD": False})
    row = found.iloc[0]
    assert (row["floor"], row["n"]) == (FLOOR, 40)
    assert row["difference"] == pytest.approx(4.0)  # lower is better: a gain is positive
    assert row["share"] == pytest.approx(0.5)
    assert row["p"] == row["holm"] == row["q"] == pytest.approx(1e-4)
    worse = [table_of(floor + 1), table_of(floor, FLOOR), table_of(floor + 2, CEILING)]
    run = run_with(tmp_path / "b", pd.concat(worse))
    row = against_floors(tidy_scores(run), {"CD": False}).iloc[0]
    assert row["p"] == 1.0
    assert np.isnan(row["share"])
    assert "no better" in row["note"]


def test_the_paired_test_keeps_its_level():
    rng = np.random.default_rng(1)
    rejected = 0
    for k in range(400):
        rows = [
            dict(zip(TIDY, ("d", "p", name, role, "CD", "s", f"t{i}", 0, 1, v), strict=True))
            for name, role in ((OURS, "ours"), (FLOOR, "no-brain baseline"))
            for i, v in enumerate(rng.normal(size=8))
        ]
        found = against_floors(pd.DataFrame(rows), {"CD": True}, seed=k, flips=199)
        rejected += found["p"].iloc[0] <= 0.05
    assert 8 <= rejected <= 35  # 400 x 0.05 = 20, within the binomial 99.9 %


def test_holm_is_a_step_down_and_never_below_the_p():
    p = np.array([0.01, 0.01, 0.5, 0.02])
    assert holm(p).tolist() == [0.04, 0.04, 0.5, 0.04]
    assert (holm(p) >= p).all()
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_planted_sources_of_variance_are_found(tmp_path):
    rng = np.random.default_rng(3)
    seeds, people, stimuli = 6, 5, 60
    sizes = {"seed": 0.5, "subject": 2.0, "stimulus": 1.0, "residual": 0.3}
    of_seed = sizes["seed"] * rng.normal(size=seeds)
    of_person = sizes["subject"] * rng.normal(size=people)
    of_stimulus = sizes["stimulus"] * rng.normal(size=stimuli)
    runs = []
    for s in range(seeds):
        for p in range(people):
            noise = sizes["residual"] * rng.normal(size=stimuli)
            table = table_of(10 + of_seed[s] + of_person[p] + of_stimulus + noise, subject=f"p{p}")
            runs.append(run_with(tmp_path / f"{s}-{p}", table, seed=s, subject=p))
    table, notes = sources_of_uncertainty(runs)
    assert notes == []
    found = table.set_index("source")
    for name, planted in (("seed", of_seed), ("subject", of_person), ("stimulus", of_stimulus)):
        assert found.loc[name, "variance"] == pytest.approx(planted.var(ddof=1), rel=0.1)
    assert found.loc["residual", "SD"] == pytest.approx(0.3, rel=0.05)
    assert found.loc["seed:subject", "share"] < 0.01
    expected = of_seed.var(ddof=1) / 6 + of_person.var(ddof=1) / 5
    expected += of_stimulus.var(ddof=1) / 60
    error = found.loc["standard error of the mean", "variance"]
    assert error == pytest.approx(expected, rel=0.05)
    means = means_by_source(runs)
    assert len(means) == seeds * people
    assert len(like_runs(runs)) == 1


def test_what_cannot_be_told_apart_is_said(tmp_path):
    one = run_with(tmp_path / "a", table_of([1.0, 2.0, 3.0]))
    table, notes = sources_of_uncertainty([one])
    assert table["source"].tolist() == ["stimulus", "standard error of the mean"]
    assert table["variance"].tolist() == pytest.approx([1.0, 1 / 3])
    assert sum("one training seed" in note for note in notes) == 1
    assert sum("one subject" in note for note in notes) == 1
    other = run_with(tmp_path / "b", table_of([1.5, 2.5]), seed=1)
    _, notes = sources_of_uncertainty([one, other])
    assert any("1 stimuli are left out" in note for note in notes)
    hole = [
        one,
        run_with(tmp_path / "c", table_of([1.0, 2.0, 3.0], subject="s2"), seed=0, subject=2),
        run_with(tmp_path / "d", table_of([1.0, 2.0, 3.0]), seed=1),
    ]
    table, notes = sources_of_uncertainty(hole)
    assert len(table) == 0
    assert any("1 of 4 runs of seed x subject are missing" in note for note in notes)


def test_a_collapse_of_the_predictions_is_seen(tmp_path):
    run = run_with(tmp_path / "a", table_of([1.0, 2.0]))
    assert "items keep no features" in effective_dimension(run)
    corners = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    for name, answers in (("wide", corners), ("line", [[k, 2.0 * k] for k in range(4)])):
        run = run_with(tmp_path / name, table_of([1.0, 2.0]))
        for k, answer in enumerate(answers):
            with run.item("reconstruction", "s1", f"{k}", 0, "x").write_dir() as folder:
                (folder / "embedding.json").write_text(json.dumps({"embedding": answer}))
    assert "2.00 of at most 2, over 4 items" in effective_dimension(Run.open(tmp_path / "wide"))
    assert "1.00 of at most 2" in effective_dimension(Run.open(tmp_path / "line"))


def test_trials_are_counted_within_people():
    trials = pd.DataFrame(
        {
            "subject": ["a", "a", "a", "b"],
            "session": [1, 1, 2, 1],
            "run": [1, 1, 1, 1],
            "stimulus": ["x", "x", "y", "x"],
        }
    )
    counts = counts_of(trials)
    assert counts["sessions"] == 3
    assert counts["stimuli"] == 2
    assert counts["stimuli by repeats"] == {"1": 2, "2": 1}
    assert repeats_text(counts) == "2 x 1, 1 x 2"


def test_a_shared_stimulus_or_run_is_a_leak():
    train = pd.DataFrame({"subject": "a", "session": 1, "run": [1, 2], "stimulus": ["x", "y"]})
    test = pd.DataFrame({"subject": "a", "session": 1, "run": [2, 3], "stimulus": ["y", "z"]})
    table = plain_leaks(train, test).set_index("check")
    assert table.loc["stimulus in both", ["found", "of", "verdict"]].tolist() == [1, 2, "LEAK"]
    assert table.loc["run in both", "found"] == 1
    clean = plain_leaks(train, test[test["stimulus"] == "z"]).set_index("check")
    assert clean.loc["stimulus in both", "verdict"] == "none"
