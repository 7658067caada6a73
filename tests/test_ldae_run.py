"""What ``evaluate`` hands to the evaluation: an LPIPS, and models that no run holds."""

import importlib.util
from pathlib import Path

import pytest
import torch

from neurodiff.analysis import ldae_evaluation, ldae_run
from neurodiff.analysis.ldae_run import evaluate_cohort_run, evaluate_model
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.run import Run
from neurodiff.features.squeezenet import SqueezeNetTrunk, published_shapes
from neurodiff.pipelines.ldae import LDAE


def _load(name):
    """A helper beside the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scans(session_tmp):
    return _load("ldae_cohort").write_scans(session_tmp / "evaluated-scans", people=3)


@pytest.fixture(scope="module")
def model(session_tmp):
    pipe = LDAE.from_recipe("ldae_tiny")
    pipe.fitted = True
    return pipe.save_pretrained(session_tmp / "evaluated-ldae")


@pytest.fixture(scope="module")
def perceptual(session_tmp):
    """The folder of an LPIPS as published, its numbers drawn."""
    folder = session_tmp / "lpips-folder"
    (folder / "lpips/weights/v0.1").mkdir(parents=True)
    tensors = {name: torch.zeros(shape) for name, shape in published_shapes().items()}
    torch.save(tensors, folder / "squeezenet1_1-b8a52dc0.pth")
    heads = {
        f"lin{k}.model.1.weight": torch.ones(1, width, 1, 1)
        for k, width in enumerate(SqueezeNetTrunk.widths)
    }
    torch.save(heads, folder / "lpips/weights/v0.1/squeeze.pth")
    return folder


class Reached(Exception):
    """The evaluation begins; nothing more is wanted of it here."""


@pytest.fixture
def asked(monkeypatch):
    """What the evaluation was called with."""
    calls = []

    def evaluate(*arguments, **options):
        calls.append((arguments, options))
        raise Reached

    monkeypatch.setattr(ldae_evaluation, "evaluate_ldae", evaluate)
    return calls


def test_a_published_model_is_evaluated_on_everybody(tmp_path, scans, model, asked):
    with pytest.raises(Reached):
        evaluate_model(model, tmp_path / "out", str(scans))
    (pipe, test, train), options = asked[0]
    assert pipe.identity == LDAE.from_pretrained(model).identity
    assert len(test.subjects) == 3
    assert train is None
    assert options["plan"].perceptual is None
    run = Run.open(tmp_path / "out")
    assert run.inputs["model"] == pipe.identity
    assert run.recipe["pipeline"] == "ldae"
    with pytest.raises(Reached):  # the verbs evaluate and report know the folder afterwards
        evaluate_cohort_run(run)
    assert len(asked[1][0][1].subjects) == 3


def test_the_folder_of_an_lpips_is_handed_on_and_remembered(
    tmp_path, scans, model, perceptual, asked
):
    with pytest.raises(Reached):
        evaluate_model(model, tmp_path / "out", str(scans), perceptual=perceptual)
    with pytest.raises(Reached):  # without naming it again, as `report` does
        evaluate_cohort_run(Run.open(tmp_path / "out"))
    assert [call[1]["plan"].perceptual for call in asked] == [str(perceptual.resolve())] * 2


def test_a_folder_without_an_lpips_is_told_before_the_work(tmp_path, scans, model, asked):
    run = tmp_path / "out"
    for folder, words in ((tmp_path / "none", "is no folder"), (tmp_path, "holds no LPIPS")):
        with pytest.raises(MissingDataError, match=words) as error:
            evaluate_model(model, run, str(scans), perceptual=folder)
        assert len(str(error.value).splitlines()) == 1
    assert not asked
    with pytest.raises(Reached):  # a wrong folder is not remembered
        evaluate_cohort_run(Run.open(run))
    assert asked[0][1]["plan"].perceptual is None


def test_another_model_in_the_same_place_is_refused(tmp_path, scans, asked):
    pipe = LDAE.from_recipe("ldae_tiny")
    pipe.fitted = True
    place = pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(Reached):
        evaluate_model(place, tmp_path / "out", str(scans))
    with torch.no_grad():
        next(pipe.networks.encoder.parameters()).add_(1.0)
    pipe._identity = None
    pipe.save_pretrained(place)
    with pytest.raises(UsageError, match="model"):
        evaluate_model(place, tmp_path / "out", str(scans))
    with pytest.raises(DataError, match="holds another model than when"):
        ldae_run._evaluated(Run.open(tmp_path / "out"), ldae_run.Progress.to_stdout())
