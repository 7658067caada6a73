"""Attribution asks the pipelines what they say themselves: linear forms, spaces, frames."""

import numpy as np
import pytest

from neurodiff.analysis.attribution import attribute_rois, make_problem, run_method
from neurodiff.analysis.attribution_ablation import Conditions
from neurodiff.analysis.attribution_decoders import decoder_for
from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.scene_subject import (
    SceneFeatureSpace,
    plant_scene_subject,
    record_betas,
)
from neurodiff.datasets.simulated.scenes import make_scenes
from neurodiff.datasets.simulated.study import StudySettings, make_study
from neurodiff.pipelines.brain_diffuser import BrainDiffuser
from neurodiff.pipelines.mind3d import MinD3D

pytestmark = pytest.mark.slow  # fits tiny models

SHORT = [
    "tokenizer.training.steps=4",
    "decoder.training.steps=4",
    "decoder.adapters.steps=2",
    "bridge.training.steps=4",
    "bridge.training.learning_rate=0.01",
]


FASTER = [
    *(f"{part}.training.steps=2" for part in ("low_level", "generator", "generator.autoencoder")),
    *(f"{part}.training.batch_size=4" for part in ("low_level", "generator")),
    "generator.steps=3",
    "generator.batch=3",
]


@pytest.fixture(scope="module")
def objects():
    """A tiny MinD-3D, test trials of 12 objects, their shapes."""
    size = StudySettings(
        train_per_category=8, test_per_category=4, unseen_per_category=0, n_categories=3
    )
    study = make_study(size, seed=0, workers=1)
    train, test = study.record("train"), study.record("test", repeats=1)
    bank = study.bank.select(study.ids("train"))
    pipe = MinD3D.from_recipe("mind3d_tiny", SHORT).fit(train, study.stimuli, bank=bank)
    return pipe, train, test, study.bank.select(study.ids("test"))


def test_mind3d_anchor_is_a_sum_over_vertices(objects):
    pipe, train, test, bank = objects
    problem = make_problem(pipe, test, bank, ["V1", "LO1"], train=train, draws=20)
    conditions = Conditions(problem, ("anchor", "bridge"))
    assert conditions.linear["bridge"] is None
    for name in ("V1", "LO1"):
        mask = np.asarray(problem.rois[name])
        data = conditions.data.copy()
        data[..., mask] = conditions.mean[..., mask]
        asked = problem.decoder.decode(data, problem.test.trials)
        added = conditions.without("anchor", mask, "mean", name)
        np.testing.assert_allclose(added, asked["anchor"], atol=2e-4)
        np.testing.assert_allclose(
            conditions.without("bridge", mask, "mean", name), asked["bridge"], atol=1e-5
        )
    base = problem.decoder.decode(
        np.repeat(conditions.mean[None], test.n_trials, axis=0), problem.test.trials
    )
    np.testing.assert_allclose(conditions.base("anchor"), base["anchor"], atol=2e-4)


def test_mind3d_is_asked_stage_by_stage(objects):
    pipe, train, test, bank = objects
    found = attribute_rois(
        pipe, test, bank, ["V1", "LO1"], methods=["leave_one_out", "shapley"], train=train,
        draws=20, options={"leave_one_out": {"matched": 2}},
    )  # fmt: skip
    table = found.table
    assert set(table.loc[table["method"] == "leave_one_out:mean", "stage"]) == {"anchor", "bridge"}
    assert set(table.loc[table["method"] == "shapley", "stage"]) == {"anchor"}
    assert (table["n_features"] == table["roi"].map(lambda n: int(test.rois[n].sum()))).all()
    assert found.facts["simulated"] is True


def test_a_pipeline_that_is_not_fitted_says_so(objects):
    _, _, test, bank = objects
    with pytest.raises(UsageError, match="not fitted"):
        decoder_for(MinD3D.from_recipe("mind3d_tiny"), test, bank)
    with pytest.raises(UsageError, match="no pipeline that attribution knows"):
        decoder_for(object(), test, bank)


@pytest.fixture(scope="module")
def scenes():
    train, test = make_scenes(30, split="train", seed=0), make_scenes(12, split="test", seed=0)
    space = SceneFeatureSpace(train)
    planted = plant_scene_subject(space(train), median_ceiling=0.6)
    recordings = [
        record_betas(planted, space(part), part.ids, split=name, repeats=2).roi("V1", "FFC", "PHA1")
        for part, name in ((train, "train"), (test, "test"))
    ]
    pipe = BrainDiffuser.from_recipe("brain_diffuser_tiny", FASTER).fit(
        recordings[0], train.stimuli(), seed=0
    )
    return pipe, *recordings, test.stimuli()


def test_brain_diffuser_heads_are_sums_over_voxels(scenes):
    pipe, train, test, stimuli = scenes
    problem = make_problem(pipe, test, stimuli, train=train, draws=20)
    conditions = Conditions(problem, problem.decoder.stages)
    mask = np.asarray(problem.rois["V1"])
    data = conditions.data.copy()
    data[:, mask] = conditions.mean[mask]
    asked = problem.decoder.decode(data, problem.test.trials)
    for stage in problem.decoder.stages:
        line = conditions.linear[stage]
        assert line is not None
        added = conditions.without(stage, mask, "mean", "V1")
        scale = float(np.abs(asked[stage]).max())
        np.testing.assert_allclose(added, asked[stage], atol=2e-4 * scale)
        rows = np.asarray(line.read(conditions.data[:3]), float)
        np.testing.assert_allclose(  # with weights held, and without
            line.of(rows, mask), line.part(np.where(mask, rows, 0.0)), atol=1e-4 * scale
        )


def test_without_a_region_other_pictures_and_meshes_are_drawn(objects, scenes):
    """With the same noise, so that the same data are drawn the same."""
    pipe, train, test, _ = objects
    study = make_study(
        StudySettings(
            train_per_category=8, test_per_category=4, unseen_per_category=0, n_categories=3
        ),
        seed=0,
        workers=1,
    )
    problem = make_problem(pipe, test, study.stimuli, ["V1", "LO1"], train=train, draws=50)
    found = run_method(problem, "reconstruction:noise", trials=10)
    assert list(found.table["roi"]) == ["V1", "LO1"]
    assert (found.table["n_trials"] == 10).all()
    assert found.items["value"].abs().max() <= 4
    pipe, train, test, stimuli = scenes
    problem = make_problem(pipe, test, stimuli, ["V1"], train=train, draws=50)
    found = run_method(problem, "reconstruction", trials=10)
    assert np.isfinite(found.table["value"]).all()
    assert found.table["unit"].tolist() == ["PixCorr"]
    drawn = problem.decoder.draw(problem.test.array()[:2], problem.test.trials.iloc[:2])
    again = problem.decoder.draw(problem.test.array()[:2], problem.test.trials.iloc[:2])
    assert np.array_equal(np.asarray(drawn[1]), np.asarray(again[1]))
    with pytest.raises(UsageError, match="need 10"):
        run_method(problem, "reconstruction", trials=3)
