"""Specifications of figures: what ships can be carried out, and what cannot is refused."""

import pytest

from neurodiff.analysis import figure_specs
from neurodiff.analysis.figure_specs import carry_out, read_specification, steps_of
from neurodiff.analysis.kinds import pipeline_of
from neurodiff.core.config import find_shared
from neurodiff.core.errors import UsageError
from neurodiff.core.run import Run
from neurodiff.datasets.opening import read_card

SHIPPED = sorted(path.stem for path in find_shared("analysis", "figures_tiny").parent.glob("fig*"))
GOOD = """
name: own
what: a test
make:
  - {recipe: mind3d_tiny, data: simulated_tiny, seeds: [0, 1], subjects: [null], samples: 2}
figures:
  - {kind: scores}
"""


def write(folder, text):
    path = folder / "own.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_names_recipes_and_data_that_there_are(name):
    spec = read_specification(name)
    assert spec.name == name
    for one in spec.make:
        assert find_shared("pipelines", one.recipe).is_file()
        assert pipeline_of(one.recipe) in ("mind3d", "brain-diffuser", "ldae")
        assert read_card(one.data).licence
    text = find_shared("analysis", name).read_text()
    assert f"neurodiff figures {name}" in text  # the one command


def test_there_is_a_specification_for_each_pipeline():
    kinds = {pipeline_of(one.recipe) for name in SHIPPED for one in read_specification(name).make}
    assert kinds == {"mind3d", "brain-diffuser", "ldae"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("kind: scores", "kind: scored"), "Did you mean 'scores'"),
        (("- {kind: scores}", "- {kind: scores}\n  - {kind: scores}"), "two figures"),
        (("  - {kind: scores}", "  []"), "no figure"),
        (("samples: 2", "sample: 2"), "Did you mean 'samples'"),
    ],
)
def test_a_broken_specification_is_refused(tmp_path, change, reason):
    with pytest.raises(UsageError, match=reason):
        read_specification(write(tmp_path, GOOD.replace(*change)))


def test_steps_are_told_before_they_are_taken(tmp_path):
    lines = steps_of(read_specification(write(tmp_path, GOOD)))
    assert lines == [
        "run: mind3d_tiny on simulated_tiny, seed 0",
        "run: mind3d_tiny on simulated_tiny, seed 1",
        "figure: scores (scores)",
    ]


def test_each_run_is_made_once_and_its_figures_are_drawn(tmp_path, monkeypatch):
    fitted, replayed = [], []

    def fit(pipeline, recipe, overrides, out, data, root, subject, seed):
        fitted.append((pipeline, recipe, data, seed))
        folder = out / f"{recipe}-{seed}"
        inputs = {"data": data, "subject": subject, "simulated": True}
        run = Run.create(folder, {"name": recipe}, inputs, command="neurodiff", seed=seed)
        run.info["data"] = {"data": data, "root": None, "subject": None}
        run.touch()
        return folder

    def replay(plan, folder, start):
        replayed.append(plan)
        lines = ["key,condition,data,protocol,subject,stimulus,repeat,sample,CD"]
        lines += [
            f"k{k}{s},MinD-3D,made,{plan['protocol']},s,t{k},1,{s},{k}"
            for k in range(3)
            for s in range(2)
        ]
        (start / "scores.csv").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(figure_specs, "fit_recipe", fit)
    monkeypatch.setattr(figure_specs, "replay", replay)
    spec = write(tmp_path, GOOD)
    paths = carry_out(spec, tmp_path / "out", format="pdf")
    assert [path.name for path in paths] == ["scores.pdf", "scores.csv"]
    assert len(replayed) == 2
    assert replayed[0]["decoded"][0]["samples"] == 2
    carry_out(spec, tmp_path / "out", format="svg")
    assert len(replayed) == 2  # scored already
    assert [one[-1] for one in fitted] == [0, 1, 0, 1]


def test_attribution_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(figure_specs, "_attributes", lambda: None)
    text = GOOD.replace("samples: 2", "attribute: {rois: [V1]}")
    with pytest.raises(UsageError, match="attribution"):
        carry_out(write(tmp_path, text), tmp_path / "out")
