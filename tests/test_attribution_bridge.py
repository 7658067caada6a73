"""Conditions of MinD-3D that share what they read are those that are asked one by one."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from neurodiff.analysis.attribution import run_method
from neurodiff.analysis.attribution_bridge import LinearFront, PreparedMinD3D, TrialNoise
from neurodiff.analysis.attribution_conditions import Conditions
from neurodiff.analysis.attribution_decoders import decoder_for
from neurodiff.analysis.attribution_differentiable import affine_stages, mind3d_graph
from neurodiff.analysis.attribution_gradients import gradients, integrated_gradients
from neurodiff.core.errors import UsageError
from neurodiff.pipelines.mind3d_fitting import renormed


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_problem = _load("attribution_mind3d").tiny_problem
KINDS = ["one", "layers", "one of several"]


@pytest.fixture(scope="module", params=KINDS)
def problem(request):
    if request.param == "one":
        return tiny_problem()
    chosen = None if request.param == "layers" else ("sub-02",)
    return tiny_problem(("sub-01", "sub-02"), layered=True, test_people=chosen)


def asked_anew(problem, data):
    return problem.decoder.decode(np.ascontiguousarray(data), problem.test.trials)


@pytest.mark.parametrize("replacement", ["mean", "permuted", "noise"])
def test_conditions_are_those_asked_one_by_one(problem, replacement):
    conditions = Conditions(problem, ("anchor", "bridge"))
    for name, mask in problem.rois.items():
        data = conditions.data.copy()
        data[..., mask] = conditions.replaced(mask, replacement, name)
        expected = asked_anew(problem, data)
        alone = np.broadcast_to(conditions.mean, data.shape).copy()
        alone[..., mask] = conditions.data[..., mask]
        by_itself = asked_anew(problem, alone)
        for stage in ("anchor", "bridge"):
            found = conditions.without(stage, mask, replacement, name)
            np.testing.assert_allclose(found, expected[stage], atol=5e-5)
            np.testing.assert_allclose(conditions.only(stage, mask), by_itself[stage], atol=5e-5)
    whole = asked_anew(problem, conditions.data)
    silent = asked_anew(problem, np.broadcast_to(conditions.mean, conditions.data.shape))
    for stage in ("anchor", "bridge"):
        np.testing.assert_allclose(conditions.full(stage), whole[stage], atol=5e-5)
        np.testing.assert_allclose(conditions.base(stage), silent[stage], atol=5e-5)
    # networks say something of their own, so that equality above is about them too
    assert np.abs(renormed(torch.from_numpy(whole["anchor"])).numpy() - whole["bridge"]).max() > 0.1


def test_an_answer_serves_all_methods_and_is_never_asked_twice(problem, monkeypatch):
    fresh = tiny_problem()
    asked = []
    decode = PreparedMinD3D.decode

    def counted(self, mask=None, values=None):
        asked.append(None if mask is None else mask.tobytes())
        return decode(self, mask, values)

    monkeypatch.setattr(PreparedMinD3D, "decode", counted)
    run_method(fresh, "leave_one_out", matched=0)
    assert len(asked) == 1 + 4  # everything, and without each region
    run_method(fresh, "leave_one_out", matched=0)
    assert len(asked) == 1 + 4
    run_method(fresh, "shapley", stages=("bridge",))
    assert len(asked) == 16  # coalitions; regions are everything, so 5 of 16 are known


def test_the_graph_goes_through_each_subject_s_layer(problem):
    decoder = problem.decoder
    graph = mind3d_graph(decoder.pipe, seed=3, latent=decoder.latent)
    with torch.no_grad():
        found = graph(torch.from_numpy(problem.test.array()), problem.test.trials)
    expected = decoder.pipe.predict_embedding(problem.test, seed=3)
    assert np.allclose(renormed(found).numpy(), expected, atol=1e-4)


def test_gradients_are_those_of_differences(problem):
    """Along the change of a region, by central differences of what the decoder itself says."""
    decoder, test = problem.decoder, problem.test
    graph = mind3d_graph(decoder.pipe, latent=decoder.latent)
    data = torch.from_numpy(test.array()).double().float().requires_grad_()
    aim = torch.from_numpy(np.random.default_rng(2).standard_normal((len(data), 16))).float()
    (slope,) = torch.autograd.grad((graph(data, test.trials) * aim).sum(), data)
    step = torch.zeros_like(data)
    step[..., 16:32] = torch.from_numpy(
        np.random.default_rng(3).standard_normal((*data.shape[:2], 16))
    ).float()
    along = (slope * step).sum((1, 2))
    with torch.no_grad():
        up, down = (
            (graph(data + sign * 0.02 * step, test.trials) * aim).sum(1) for sign in (1, -1)
        )
    np.testing.assert_allclose(along.numpy(), ((up - down) / 0.04).numpy(), rtol=0.02, atol=0.05)


def test_integrated_gradients_of_several_subjects_are_complete(problem):
    found = integrated_gradients(problem, wrong=2)
    assert set(found.table["subject"]) == set(problem.subjects)
    assert found.table["incomplete"].max() <= 0.01
    anchor = found.table[found.table["stage"] == "anchor"]
    for _, part in anchor.groupby("subject"):
        value = part.set_index("roi")["value"]
        assert value["Q0"] > 3 * abs(value["Q3"])
    is_affine = affine_stages(problem.decoder)
    assert is_affine == (set() if len(problem.subjects) > 1 else {"anchor"})


def test_a_subject_is_attributed_alike_alone_and_beside_another():
    both = tiny_problem(("sub-01", "sub-02"), layered=True)
    alone = tiny_problem(("sub-01", "sub-02"), layered=True, test_people=("sub-02",))
    one, two = (
        gradients(p, stages=["anchor", "bridge"]).items.query("subject == 'sub-02'")
        .set_index(["stimulus", "roi", "stage"])["value"].sort_index()
        for p in (both, alone)
    )  # fmt: skip
    assert len(one) == 12 * 4 * 2
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def test_several_subjects_keep_their_features_and_regions():
    problem = tiny_problem(("sub-01", "sub-02"), layered=True)
    decoder, recording = decoder_for(problem.decoder.pipe, problem.test, problem.decoder.embeddings)
    assert recording.n_features == 64
    assert set(recording.rois) == {"Q0", "Q1", "Q2", "Q3"}
    assert not decoder.latent
    stranger = problem.test.select(np.arange(12))
    stranger.trials["subject"] = "sub-09"
    with pytest.raises(UsageError, match="no input layer for subject 'sub-09'"):
        decoder_for(problem.decoder.pipe, stranger, problem.decoder.embeddings)
    front = LinearFront(problem.decoder.pipe)
    with pytest.raises(UsageError, match="no input layer for subject 'sub-09'"):
        front(torch.zeros(1, 5, 64), ["sub-09"])
    with pytest.raises(UsageError, match="trials have 7 features"):
        front(torch.zeros(1, 5, 7), ["sub-01"])


def test_a_trial_s_noise_is_that_of_predict_and_is_drawn_once():
    problem = tiny_problem()
    noise, trials = TrialNoise(problem.decoder.pipe, 0), problem.test.trials
    first = noise.of(trials)
    assert first.shape[0] == 12
    assert torch.equal(noise.of(trials.iloc[[3, 1]]), first[[3, 1]])
    assert not torch.equal(TrialNoise(problem.decoder.pipe, 1).of(trials), first)


def test_what_is_too_large_to_keep_is_asked_anew(monkeypatch):
    from neurodiff.analysis import attribution_bridge

    kept, anew = tiny_problem(), tiny_problem()
    one = run_method(kept, "roi_only", matched=0).table
    monkeypatch.setattr(attribution_bridge, "_MOST_BYTES", 0)
    monkeypatch.setattr(attribution_bridge, "_MOST_NOISE", 0)
    two = run_method(anew, "roi_only", matched=0).table
    np.testing.assert_allclose(one["value"], two["value"], atol=1e-4)
