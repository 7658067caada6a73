"""The demo of pictures at its smallest size, its training cut short: a page, and nothing twice."""

import json
import shutil

import pandas as pd
import pytest

from neurodiff.analysis import demo_images, image_scorer
from neurodiff.analysis.image_conditions import CEILING, MEAN, OURS, RANDOM, SHUFFLED
from neurodiff.analysis.image_run_scores import LOW, MEAN_FEATURES
from neurodiff.core import config
from neurodiff.core.errors import UsageError
from neurodiff.features import scene_judge

pytestmark = pytest.mark.slow

SHORT = [
    f"{part}.training={{steps: 6, batch_size: 8, warmup: 1, checkpoint_every: 6}}"
    for part in ("low_level", "generator.autoencoder", "generator")
] + ["generator.steps=3"]


@pytest.fixture(scope="module", autouse=True)
def short():
    """Fewer steps of everything that trains, and small pictures for SSIM."""
    load, fit = config.load, scene_judge.SceneJudge.fit
    settings = scene_judge.TrainingSettings(steps=12, batch_size=24, learning_rate=5e-3, warmup=2)

    def loaded(name, kind, overrides, **options):
        extra = SHORT if str(name).startswith("brain_diffuser") else []
        return load(name, kind, [*overrides, *extra], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "load", loaded)
        patch.setattr(
            scene_judge.SceneJudge,
            "fit",
            classmethod(lambda cls, *a, **k: fit(*a, **k, settings=settings)),
        )
        patch.setattr(image_scorer, "PIXELS", 48)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    return folder, demo_images.run_image_demo(folder, 3, "tiny")


def test_the_page_has_every_condition_and_says_simulated(finished):
    folder, told = finished
    assert told.endswith(f"report: {folder / 'report.html'}")
    page = (folder / "report.html").read_text()
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["simulated"] is True
    assert "simulated" in page.lower()
    conditions = {demo_images.SINGLE, demo_images.HARD, LOW, MEAN_FEATURES, CEILING, OURS}
    for name in (*conditions, MEAN, RANDOM, SHUFFLED):
        assert name in page
    assert set(numbers["headline"]) == set(told.splitlines()[:-1])
    scores = pd.read_csv(folder / "scores.csv")
    counts = scores.groupby("condition")["stimulus"].nunique()
    assert (counts == 24).all()
    assert conditions <= set(counts.index)


def test_answers_that_know_nothing_are_at_chance(finished):
    """One answer to all is at chance exactly, and random ones are near it."""
    folder, _ = finished
    means = pd.read_csv(folder / "set_scores.csv").set_index(["condition", "metric"])["mean"]
    back = "2-way [scene judge]"
    assert means[MEAN, back] == pytest.approx(0.5)
    assert abs(means[RANDOM, back] - 0.5) < 0.25


def test_a_bar_is_met_only_where_the_way_can_be_measured(finished):
    numbers = json.loads((finished[0] / "report.json").read_text())
    sets = pd.read_csv(finished[0] / "set_scores.csv").set_index(["condition", "metric"])
    for gate in numbers["gates"]:
        prefix = "way from base to ceiling, "
        if gate["measure"].startswith(prefix):
            row = sets.loc[(OURS, gate["measure"].removeprefix(prefix))]
            measured = pd.notna(row["share_low"]) and pd.notna(row["share_high"])
            assert gate["passed"] == bool(measured and row["share"] >= gate["reference"])


def test_a_second_call_repeats_nothing(finished, monkeypatch):
    folder, told = finished

    def never(*_, **__):
        raise AssertionError("something was done again")

    monkeypatch.setattr(demo_images, "decode_scenes", never)
    again = demo_images.run_image_demo(folder, 3, "tiny")
    assert again == f"done before, nothing repeated\n{told}"


def test_a_run_that_was_killed_and_moved_trains_and_draws_nothing_again(
    finished, tmp_path, monkeypatch
):
    from neurodiff.pipelines import brain_diffuser_training
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser

    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "report.html").unlink()
    shutil.rmtree(next((folder / "stages").glob("report-*")))

    def never(*_, **__):
        raise AssertionError("something was trained or generated again")

    monkeypatch.setattr(brain_diffuser_training, "train", never)
    monkeypatch.setattr(scene_judge, "train", never)
    generate = BrainDiffuser.generate
    monkeypatch.setattr(
        BrainDiffuser,
        "generate",
        # scenes of areas are no items of the run
        lambda self, features, keys, **k: (
            generate(self, features, keys, **k)
            if all(stimulus.startswith("roi ") for _, stimulus, _ in keys)
            else never()
        ),
    )
    told = demo_images.run_image_demo(folder, 3, "tiny")
    assert told.splitlines()[:-1] == finished[1].splitlines()[:-1]
    for name in ("scores.csv", "set_scores.csv"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_folder_of_another_seed_is_refused(finished):
    with pytest.raises(UsageError):
        demo_images.run_image_demo(finished[0], 4, "tiny")
