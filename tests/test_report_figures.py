"""Figures: every number drawn is in the CSV beside it, and the same run gives the same bytes."""

import json

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.report_figures import KINDS, FigureSpec, write_figures
from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_csv

CONDITIONS = {"MinD-3D": 2.0, "random training object": 4.0, "ceiling: true features": 1.0}


def make(folder, seed=0, simulated=True, subject="s1"):
    inputs = {"data": "made", "simulated": simulated}
    run = Run.create(folder, {"name": "tiny"}, inputs, command="neurodiff fit", seed=seed)
    rng = np.random.default_rng(seed)
    parts = [
        pd.DataFrame(
            {
                "key": [f"k{k}" for k in range(12)],
                "condition": name,
                "data": "made",
                "protocol": "neurodiff-1",
                "subject": subject,
                "stimulus": [f"t{k:02d}" for k in range(12)],
                "repeat": 1,
                "sample": 0,
                "CD": mean + 0.1 * rng.normal(size=12),
                "IoU": 1 / mean,
            }
        )
        for name, mean in CONDITIONS.items()
    ]
    run.write_scores(pd.concat(parts))
    stage = run.stage("bridge", {})
    for step in (1, 2, 3):
        stage.log({"step": step, "loss": 1.0 / step})
    numbers = {
        "level": "noise",
        "rows": [
            {
                "level": x,
                "condition": "MinD-3D",
                "metric": "CD",
                "value": x,
                "low": x,
                "high": x + 1,
            }
            for x in (0.1, 0.2)
        ],
    }
    run.write_report_json({"curve": numbers})
    return Run.open(folder)


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run")


def test_each_figure_has_its_table_beside_it(run, tmp_path):
    other = make(tmp_path / "other", seed=1)
    (run.folder / "attribution").mkdir()
    table = {
        "method": "shapley",
        "metric": "CD",
        "roi": ["V1", "LO"],
        "value": [0.1, 0.2],
        "low": 0.0,
        "high": 0.3,
    }
    pd.DataFrame(table).to_csv(run.folder / "attribution" / "00-shapley.csv", index=False)
    other_table = run.folder / "attribution" / "00-shapley-items.csv"
    pd.DataFrame({"stimulus": ["a"], "roi": ["V1"], "value": [1.0]}).to_csv(other_table)
    paths = write_figures([run, other], tmp_path / "out")
    names = {path.name for path in paths}
    assert names == {f"{kind}.{end}" for kind in KINDS for end in ("svg", "csv")}
    scores = read_csv(tmp_path / "out" / "scores.csv")
    row = scores[(scores["run"] == "run") & (scores["condition"] == "MinD-3D")].iloc[0]
    expected = run.read_scores().groupby("condition")["CD"].mean()["MinD-3D"]
    assert row["mean"] == pytest.approx(expected)
    assert row["low"] < row["mean"] < row["high"]
    floors = read_csv(tmp_path / "out" / "floors.csv")
    assert floors["share"].iloc[0] == pytest.approx(2 / 3, abs=0.05)
    assert len(read_csv(tmp_path / "out" / "items.csv")) == 2 * 2 * 3 * 12
    assert read_csv(tmp_path / "out" / "training.csv")["value"].tolist()[:3] == [1.0, 0.5, 1 / 3]


def test_simulated_is_written_in_the_figure_and_only_there(run, tmp_path):
    real = make(tmp_path / "real", simulated=False)
    spec = [FigureSpec(kind="scores", title="Scores")]
    one = write_figures(run, tmp_path / "a", specs=spec)[0].read_text()
    other = write_figures(real, tmp_path / "b", specs=spec)[0].read_text()
    assert "(simulated)" in one
    assert "(simulated)" not in other


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_the_same_run_gives_the_same_bytes(run, tmp_path, format):
    spec = [FigureSpec(kind="items")]
    first = write_figures(run, tmp_path / "a", format, spec)[0].read_bytes()
    again = write_figures(run, tmp_path / "b", format, spec)[0].read_bytes()
    assert first == again
    assert first.startswith(b"%PDF" if format == "pdf" else b"<?xml")


def test_only_what_was_asked_for_is_drawn(run, tmp_path):
    spec = FigureSpec(kind="scores", file="cd", metrics=["CD"], conditions=["MinD-3D"])
    paths = write_figures(run.folder, tmp_path / "out", specs=[spec])
    assert [path.name for path in paths] == ["cd.svg", "cd.csv"]
    table = read_csv(paths[1])
    assert table[["metric", "condition"]].to_numpy().tolist() == [["CD", "MinD-3D"]]


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"kind": "score"}, UsageError, "Did you mean 'scores'"),
        ({"kind": "scores", "metrics": ["CDE"]}, UsageError, "no metric 'CDE'"),
        ({"kind": "scores", "conditions": ["x"]}, UsageError, "no condition 'x'"),
        ({"kind": "scores", "file": "../x"}, UsageError, "without folders"),
        ({"kind": "seeds"}, MissingDataError, "no numbers"),
    ],
)
def test_what_cannot_be_drawn_is_answered_in_a_sentence(run, tmp_path, changes, error, reason):
    with pytest.raises(error, match=reason):
        write_figures(run, tmp_path / "out", specs=[FigureSpec(**changes)])


def test_formats_and_bare_runs(run, tmp_path):
    with pytest.raises(UsageError, match="svg or pdf"):
        write_figures(run, tmp_path / "out", "png")
    bare = Run.create(tmp_path / "bare", {"name": "x"}, {}, command="neurodiff", seed=0)
    with pytest.raises(MissingDataError, match="evaluate"):
        write_figures(bare, tmp_path / "out")
    bare.stage("x", {}).path("metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2}) + "\n{")
    paths = write_figures(bare, tmp_path / "out")  # what training left is drawn
    assert {path.stem for path in paths} == {"training"}
