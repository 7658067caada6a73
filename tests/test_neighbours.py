"""What stands beside the scores of a run: the right answers for the right trials, or a sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trimesh
from typer.testing import CliRunner

from neurodiff import Run
from neurodiff.analysis import neighbours
from neurodiff.analysis.decoding import own_source, stored_results
from neurodiff.analysis.demo import CEILING, MEAN_OBJECT, OURS, RANDOM, RIDGE, ROLES, SAME
from neurodiff.analysis.evaluation import true_meshes
from neurodiff.analysis.neighbours import NEIGHBOURS, Neighbours, findings, way
from neurodiff.analysis.verbs import MODEL
from neurodiff.cli import app
from neurodiff.core.progress import SILENT
from neurodiff.geometry.bank import grey_views

pytestmark = pytest.mark.slow  # fits a tiny model

QUICK = ["-s", "tokenizer.training.steps=20", "-s", "mesh.threshold=0.15"]
KINDS = ("box", "rod", "ball")


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff")
    assert result.exit_code == 0, result.output
    return result.stdout


def write_data(root):
    """15 objects of three kinds, one trial each, two of the three test objects'."""
    rng = np.random.default_rng(0)
    (root / "stimuli").mkdir(parents=True)
    mixing, rows = rng.standard_normal((4, 30)), []
    for k in range(15):
        height, kind = 0.4 + 0.1 * k, k % 3
        mesh = [
            trimesh.creation.box((1, height, 0.5)),
            trimesh.creation.cylinder(radius=0.3, height=height),
            trimesh.creation.icosphere(subdivisions=2).apply_scale((1, height, 1)),
        ][kind]
        mesh.export(root / "stimuli" / f"object{k}.glb")
        split = "test" if k % 5 == 4 else "train"
        for trial in range(2 if split == "test" else 1):
            latent = np.r_[height, np.eye(3)[kind]]
            np.save(root / f"{k}-{trial}.npy", latent @ mixing + 0.1 * rng.standard_normal(30))
            rows.append((f"{k}-{trial}.npy", f"object{k}", KINDS[kind], split))
    table = pd.DataFrame(rows, columns=["path", "stimulus", "category", "split"])
    table.to_csv(root / "manifest.csv", index=False)
    return root


@pytest.fixture(scope="session")
def scored(session_tmp):
    """A run that is fitted, decoded and evaluated, and what evaluate printed."""
    root = write_data(session_tmp / "neighbours-data")
    arguments = ["--data", "csv", "--root", root, *QUICK, "--out", session_tmp / "neighbours"]
    folder = call("fit", "mind3d_tiny", *arguments).splitlines()[-1]
    call("reconstruct", folder)
    text = call("evaluate", folder)
    return Run.open(folder), text


@pytest.fixture
def copy(scored, tmp_path):
    """The run and its data where they can be changed."""
    run = Run.open(shutil.copytree(scored[0].folder, tmp_path / "run"))
    source = own_source(run)
    data = shutil.copytree(source.root, tmp_path / "data")
    call("reconstruct", run.folder, "--root", data)
    return Run.open(run.folder), data


def test_each_condition_answers_for_each_trial(scored):
    table = scored[0].read_scores()
    assert set(table["condition"]) == {OURS, *NEIGHBOURS}
    assert not table.duplicated(["key", "condition"]).any()
    trials = ["key", "data", "subject", "stimulus", "category", "repeat"]
    ours = table[table["condition"] == OURS][trials].sort_values("key").to_numpy().tolist()
    assert len(ours) == 6
    for name in NEIGHBOURS:
        part = table[table["condition"] == name]
        assert part[trials].sort_values("key").to_numpy().tolist() == ours
        assert part[["CD", "F@2%", "IoU"]].notna().all(axis=None)


class Chain:
    """In the place of a fitted pipeline: what it is asked for is what comes out as a shape."""

    def embedding(self, views):
        return np.c_[views.mean(axis=(1, 2, 3)), views.std(axis=(1, 2, 3))].astype(np.float32)

    def predict_embedding(self, recording, *, seed, bridge):
        assert bridge == "ridge"
        return recording.array().reshape(recording.n_trials, -1)[:, -2:]

    def codes_from_embedding(self, embedding, *, use_adapters=True):
        return np.c_[embedding, np.full(len(embedding), use_adapters)]

    def meshes(self, codes):
        yield from codes


def test_what_goes_through_the_chain_for_which_trial(scored):
    run, _ = scored
    beside = Neighbours(run, run.folder / MODEL)
    beside._pipe = chain = Chain()
    source = own_source(run)
    trials = [one.result for one in stored_results(run)][::-1]
    data = Path(source.root).expanduser()
    ridge = beside._ridge(RIDGE, source, trials)
    ceiling = beside._ceiling(CEILING, source, trials)
    mean = beside._mean_object(MEAN_OBJECT, source, trials)
    _, stimuli = source.open()
    embeddings = {
        name: chain.embedding(grey_views(mesh)[None])[0]
        for name, mesh in true_meshes(stimuli, [f"object{k}" for k in range(15)]).items()
    }
    middle = np.mean([e for n, e in embeddings.items() if int(n[6:]) % 5 != 4], axis=0)
    middle *= np.sqrt(2) / np.linalg.norm(middle)
    for k, trial in enumerate(trials):
        values = np.load(data / f"{trial.stimulus[6:]}-{trial.repeat - 1}.npy")
        np.testing.assert_allclose(ridge[k], [*values[-2:], True], rtol=1e-5)
        np.testing.assert_allclose(ceiling[k], [*embeddings[trial.stimulus], False], rtol=1e-5)
        np.testing.assert_allclose(mean[k], [*middle, False], rtol=1e-5)
    assert len({tuple(one) for one in ridge.values()}) == 6
    assert len({tuple(one) for one in ceiling.values()}) == 3


def test_drawn_objects_are_training_objects_of_the_right_kind(scored):
    run, _ = scored
    beside = Neighbours(run, run.folder / MODEL)
    trials = [one.result for one in stored_results(run)]
    source = own_source(run)
    faces = {"box": [12], "rod": range(13, 320), "ball": [320]}
    same = beside._objects(SAME, source, trials)
    kinds = {f"object{k}": KINDS[k % 3] for k in range(15)}
    for k, trial in enumerate(trials):
        assert len(same[k].faces) in faces[kinds[trial.stimulus]]
    again = Neighbours(run, run.folder / MODEL)._objects(RANDOM, source, trials[:2])
    for k, mesh in again.items():  # seeded, and no matter what else is asked
        np.testing.assert_array_equal(
            mesh.vertices, beside._objects(RANDOM, source, trials)[k].vertices
        )


def test_the_text_and_the_page_show_them(scored, tmp_path):
    run, text = scored
    for name in NEIGHBOURS:
        assert any(line.strip().startswith(name) for line in text.splitlines())
    for line in findings(run.read_scores()):
        assert line in text
    call("report", run.folder, "--out", tmp_path / "page.html")
    numbers = json.loads((tmp_path / "page.json").read_text())
    assert {k: v["role"] for k, v in numbers["conditions"].items()} == {
        name: ROLES[name] for name in (OURS, *NEIGHBOURS)
    }
    table = run.read_scores()
    for name in NEIGHBOURS:
        mean = table[table["condition"] == name].groupby("stimulus")["CD"].mean().mean()
        assert numbers["conditions"][name]["metrics"]["CD"]["mean"] == pytest.approx(mean)
    assert not any("no baselines" in note for note in numbers["notes"])


def test_without_a_training_split_the_rest_is_scored_and_said(copy, tmp_path):
    run, data = copy
    lines = (data / "manifest.csv").read_text().splitlines()
    kept = [line for line in lines if not line.endswith(",train")]
    (data / "manifest.csv").write_text("\n".join(kept))
    text = call("evaluate", run.folder)
    assert text.count("has no trials of the split 'train'") == 3  # two draws and the mean
    table = run.read_scores()
    assert set(table["condition"]) == {OURS, RIDGE, CEILING}
    assert "way from" not in text
    shutil.rmtree(run.folder / MODEL)
    text = call("evaluate", run.folder)
    assert set(run.read_scores()["condition"]) == {OURS}
    assert text.count("is not available for") == 5
    call("report", run.folder, "--out", tmp_path / "page.html")
    assert "no baselines or ceiling beside them" in (tmp_path / "page.json").read_text()


def test_a_mean_of_some_objects_says_so(scored, monkeypatch):
    run, _ = scored
    monkeypatch.setattr(neighbours, "MOST_FOR_MEAN", 5)
    beside = Neighbours(run, run.folder / MODEL, SILENT)
    table = beside.scores(own_source(run), [stored_results(run)[0].result])
    assert len(set(beside._for_mean)) == 5
    assert neighbours.remarks(table) == [
        f"{MEAN_OBJECT}: mean of 5 of 12 training objects, drawn by a seed."
    ]


def scores_of(**values):
    rows = [
        {"condition": name, "subject": "s", "stimulus": k, "CD": cd}
        for name, column in values.items()
        for k, cd in enumerate(column)
    ]
    return pd.DataFrame(rows)


def test_way_in_closed_form():
    table = scores_of(**{OURS: [4.0, 5, 6], RANDOM: [10.0, 11, 12], CEILING: [2.0, 3, 4]})
    found = way(table, OURS, RANDOM)  # 6 of 8, for each stimulus alike
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    # samples and repeats of a stimulus are averaged first
    twice = pd.concat([table, scores_of(**{OURS: [8.0]})])
    assert way(twice, OURS, RANDOM).value == pytest.approx((11 - (6 + 5 + 6) / 3) / 8)
    assert findings(table) == [
        "way from random training object to the ceiling in mean CD: 75% [75%, 75%]"
    ]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({OURS: [4.0, 5], RANDOM: [1.0, 1], CEILING: [2.0, 3]}, "no better than the floor"),
        ({OURS: [4.0, 5], RANDOM: [2.0, 3], CEILING: [2.0, 3]}, "no better than the floor"),
        ({OURS: [4.0], RANDOM: [9.0], CEILING: [2.0]}, "at least 2 stimuli"),
    ],
)
def test_no_way_is_not_available_with_its_reason(values, why):
    table = scores_of(**values)
    assert np.isnan(way(table, OURS, RANDOM).value)
    [line] = findings(table)
    assert "not available (" in line
    assert why in line
