"""Gradients by region: closed forms of linear decoders, the axioms of integrated gradients."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom
from torch import nn

from neurodiff.analysis.attribution import Attribution, attribute_rois
from neurodiff.analysis.attribution_decoders import RidgeDecoder
from neurodiff.analysis.attribution_differentiable import mind3d_graph, pair_derivatives
from neurodiff.analysis.attribution_gradients import gradients, integrated_gradients
from neurodiff.analysis.attribution_pairs import Shown, null_of_others
from neurodiff.analysis.attribution_problem import COLUMNS, Problem
from neurodiff.analysis.attribution_statistics import Resampling
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.recording import Recording
from neurodiff.metrics.statistics import permutation_p
from neurodiff.pipelines.mind3d_fitting import renormed


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_problem = _load("attribution_mind3d").tiny_problem
N, P, D = 24, 12, 5
ROIS = {"A": slice(0, 4), "B": slice(4, 8), "C": slice(8, 12)}


def masks(features=P):
    out = {}
    for name, part in ROIS.items():
        out[name] = np.zeros(features, bool)
        out[name][part] = True
    return out


def recording(data, *, repeats=1, split="test", first=0):
    stimuli = [f"s{first + k // repeats:02d}" for k in range(len(data))]
    return Recording.from_arrays(
        data.astype(np.float32), pd.DataFrame({"stimulus": stimuli, "split": split})
    )


class Affine:
    """As scikit-learn's ridge after its fit."""

    def __init__(self, coef, intercept):
        self.coef_, self.intercept_ = coef, intercept

    def predict(self, X):
        return X @ self.coef_.T + self.intercept_


class Net:
    """A decoder of tensors; ``module`` maps (n, P) -> (n, D)."""

    name, stages = "net", ("features",)

    def __init__(self, module):
        self.module = module

    def tensors(self, data, trials):
        return {"features": self.module(data)}

    def decode(self, data, trials):
        with torch.no_grad():
            return {"features": self.module(torch.from_numpy(data)).numpy()}

    def truth(self, ids):
        raise AssertionError("the problem has the truth")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def linear(rng):
    """Truth read from A and B alone; C carries nothing and is not read."""
    coef = rng.standard_normal((D, P))
    coef[:, ROIS["C"]] = 0
    test, train = (recording(rng.standard_normal((n, P))) for n in (N, 40))
    truth = test.data @ coef.T + 1.0 + 0.1 * rng.standard_normal((N, D))
    features = dict(zip(test.trials["stimulus"], truth, strict=True))
    return Problem(
        decoder=RidgeDecoder(Affine(coef, np.ones(D)), features),
        test=test,
        train=train,
        truth={"features": truth},
        rois=masks(),
        draws=200,
    )


def with_decoder(problem, decoder, **other):
    facts = {k: getattr(problem, k) for k in ("test", "train", "truth", "rois", "draws", "seed")}
    return Problem(decoder=decoder, **{**facts, **other})


def tensors_of(linear):
    module = nn.Linear(P, D)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(linear.decoder.model.coef_))
        module.bias.fill_(1.0)
    return Net(module)


def smooth(seed=0, unread=()):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(P, 16), nn.GELU(), nn.Linear(16, D), nn.Tanh())
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
        module[0].weight[:, list(unread)] = 0
    return Net(module)


def values(result, column="value"):
    return result.table.set_index("roi")[column]


def test_a_linear_decoder_has_its_closed_form(linear):
    x, base = linear.test.data.astype(float), linear.train.data.mean(axis=0, dtype=float)
    truth = linear.truth["features"] - linear.truth["features"].mean(axis=0)
    aim = truth / (truth**2).sum(axis=1, keepdims=True)
    expected = ((x - base) * (aim @ linear.decoder.model.coef_)).mean(axis=0)
    for method in (gradients, integrated_gradients):
        found = method(linear)
        for name, part in ROIS.items():
            assert values(found)[name] == pytest.approx(expected[part].sum(), abs=1e-6)
        assert found.table["incomplete"].max() < 1e-9
        assert tuple(found.table.columns[: len(COLUMNS)]) == COLUMNS


def test_tensors_and_parts_of_regions_agree(linear):
    """Implementation invariance: two programs of one function, in both methods and scalars."""
    other = with_decoder(linear, tensors_of(linear))
    for scalar in ("projection", "similarity"):
        for method in (gradients, integrated_gradients):
            one, two = method(linear, scalar=scalar), method(other, scalar=scalar)
            assert np.allclose(values(one), values(two), atol=2e-3)
            assert values(one, "unit")["A"] == values(two, "unit")["A"]


def test_what_is_not_read_gets_exactly_nothing(linear):
    problem = with_decoder(linear, smooth(unread=range(8, 12)))
    for found in (gradients(linear), gradients(problem), integrated_gradients(problem)):
        row = found.table.set_index("roi").loc["C"]
        assert row["value"] == row["low"] == row["high"] == 0
        assert row["p"] == 1


def test_a_network_is_complete_to_one_percent(linear, capsys):
    problem = with_decoder(linear, smooth(), progress=Progress(sys.stdout))
    found = integrated_gradients(problem, steps=2, wrong=2)
    x = torch.from_numpy(linear.test.data)
    base = x.new_tensor(linear.train.data.mean(axis=0))
    truth = torch.from_numpy(linear.truth["features"]).float()
    truth = truth - truth.mean(dim=0)
    with torch.no_grad():
        change = problem.decoder.module(x) - problem.decoder.module(base[None])
    gain = ((change * truth).sum(1) / (truth**2).sum(1)).numpy()
    of_trials = found.items.groupby("stimulus")["value"].sum()[linear.test.trials["stimulus"]]
    assert np.abs(of_trials - gain).sum() <= 0.01 * np.abs(gain).sum()
    assert found.table["incomplete"].max() <= 0.01
    assert found.maps["integrated_gradients features"].sum() == pytest.approx(
        values(found).sum(), rel=1e-4
    )
    assert "complete to 1%" in capsys.readouterr().out


def test_an_integral_that_cannot_be_complete_says_so(linear):
    class Steps(nn.Module):  # its derivative is 0 wherever it has one
        def forward(self, x):
            return torch.round(x[:, :D]) + 0 * x[:, :D]

    found = integrated_gradients(with_decoder(linear, Net(Steps())), steps=300, wrong=2)
    assert any("NOT complete to 1%" in note for note in found.notes)
    assert found.table["incomplete"].min() > 0.9


def test_information_is_told_from_what_is_added_whatever_was_shown(rng):
    """B moves every trial alike and far; only A follows the stimulus."""
    x = rng.standard_normal((N, P)) * 0.3
    x[:, ROIS["B"]] = 5.0
    coef = rng.standard_normal((D, P))
    truth = x[:, ROIS["A"]] @ coef[:, ROIS["A"]].T
    train = recording(np.zeros((5, P)) + rng.standard_normal((5, P)) * 0.01)
    for decoder in (
        RidgeDecoder(Affine(coef, np.zeros(D)), {}),
        Net(nn.Linear(P, D, bias=False)),
    ):
        if isinstance(decoder, Net):
            decoder.module.weight.data.copy_(torch.from_numpy(coef))
        problem = Problem(
            decoder=decoder, test=recording(x), train=train, truth={"features": truth},
            rois=masks(), draws=400,
        )  # fmt: skip
        found = gradients(problem).table.set_index("roi")
        assert found.loc["A", "p"] < 0.01
        assert found.loc["A", "value"] == pytest.approx(1, abs=0.1)
        assert found.loc["B", "p"] > 0.05
        assert found.loc["A", "null_low"] < 0 < found.loc["A", "null_high"]


def test_repeats_count_once_and_order_does_not(rng, linear):
    data = np.repeat(linear.test.data, 2, axis=0)
    truth = np.repeat(linear.truth["features"], 2, axis=0)
    twice = with_decoder(
        linear, linear.decoder, test=recording(data, repeats=2), truth={"features": truth}
    )
    assert np.allclose(values(gradients(twice)), values(gradients(linear)))
    assert np.allclose(values(gradients(twice), "low"), values(gradients(linear), "low"))


def test_cosine_derivative_matches_differences(rng):
    y, t, step = (rng.standard_normal((4, D)) for _ in range(3))
    at = torch.from_numpy(y).requires_grad_()
    cosine = torch.cosine_similarity(at[:, None], torch.from_numpy(t)[None], dim=-1)
    for j in range(4):
        (slope,) = torch.autograd.grad(cosine[:, j].sum(), at, retain_graph=True)
        found = pair_derivatives(step, y, t, "similarity")[:, j]
        assert np.allclose(found, (slope.numpy() * step).sum(1))


def test_refusals(linear):
    class Opaque:
        name, stages = "opaque", ("features",)

        def decode(self, data, trials):
            raise AssertionError

        truth = decode

    with pytest.raises(UsageError, match="no gradients; use leave_one_out"):
        gradients(with_decoder(linear, Opaque()))
    with pytest.raises(UsageError, match="scalar is 'r2'"):
        gradients(linear, scalar="r2")
    with pytest.raises(UsageError, match="give train="):
        gradients(with_decoder(linear, linear.decoder, train=None))
    with pytest.raises(UsageError, match="no stage 'clip'"):
        gradients(linear, stages=["clip"])
    with pytest.raises(UsageError, match="steps is 0"):
        integrated_gradients(linear, steps=0)
    with pytest.raises(UsageError, match="at least 2 truths"):
        gradients(linear, wrong=1)
    elsewhere = recording(np.ones((4, P)))
    elsewhere.trials["subject"] = "sub-09"
    with pytest.raises(DataError, match="no training trial of subject 'sub-01'"):
        gradients(with_decoder(linear, linear.decoder, train=elsewhere))
    zero = with_decoder(linear, linear.decoder, train=None)
    assert "Baseline: zero" in " ".join(gradients(zero, baseline="zero").notes)


def test_no_picture_library_is_imported(linear):
    integrated_gradients(with_decoder(linear, smooth()), wrong=2)
    assert "torchvision" not in sys.modules


# ------------------------------------------------------------------------------------ MinD-3D


@pytest.fixture(scope="module")
def mind3d():
    """The tiny pipeline on 64 features and 5 frames, its networks at random weights."""
    return tiny_problem()


def test_the_graph_is_what_the_pipeline_predicts(mind3d):
    pipe, test = mind3d.decoder.pipe, mind3d.test
    for which in (np.arange(12), np.array([7, 3])):
        some = test.select(which)
        with torch.no_grad():
            found = mind3d_graph(pipe, seed=3)(torch.from_numpy(some.array()), some.trials)
        assert np.allclose(renormed(found).numpy(), pipe.predict_embedding(some, seed=3), atol=1e-4)
    assert pipe.networks.fmri_encoder.pred.weight.requires_grad


def test_mind3d_is_complete_to_one_percent(mind3d):
    found = integrated_gradients(mind3d, wrong=2)
    bridge = found.table[found.table["stage"] == "bridge"]
    assert bridge["incomplete"].max() <= 0.01
    anchor = found.table[found.table["stage"] == "anchor"].set_index("roi")["value"]
    assert anchor["Q0"] > 3 * abs(anchor["Q3"])
    assert set(found.maps) == {"integrated_gradients anchor", "integrated_gradients bridge"}


def test_the_encoder_of_mind3d_is_complete_to_one_percent(mind3d):
    pipe = mind3d.decoder.pipe

    class Encoder:
        name, stages = "encoder", ("tokens",)

        def tensors(self, data, trials):
            frames = (data[:, 1:4] - data.new_tensor(pipe.brain.mean)) / data.new_tensor(
                pipe.brain.std
            )
            tokens = pipe.networks.tokens(pipe.brain.patches(frames.flatten(0, 1)), 3)
            return {"tokens": tokens.mean(dim=1)}

    truth = np.random.default_rng(1).standard_normal((12, 16))
    found = integrated_gradients(
        with_decoder(mind3d, Encoder(), truth={"tokens": truth}), wrong=2, scalar="similarity"
    )
    assert found.table["incomplete"].max() <= 0.01


def test_a_trial_is_attributed_alike_in_any_company(mind3d):
    alone = with_decoder(
        mind3d, mind3d.decoder, test=mind3d.test.select(np.arange(12)[::-1].copy()),
        truth={k: v[::-1] for k, v in mind3d.truth.items()},
    )  # fmt: skip
    one, two = (
        gradients(p, stages=["bridge"]).items.set_index(["stimulus", "roi"])["value"].sort_index()
        for p in (mind3d, alone)
    )
    assert np.allclose(one, two, rtol=1e-3, atol=1e-6)


def test_one_call_saves_and_opens_what_gradients_found(linear, tmp_path):
    methods = ("gradient_x_input", "integrated_gradients")
    decoder = linear.decoder
    truth = linear.truth["features"]
    features = dict(zip(linear.test.trials["stimulus"], truth, strict=True))
    found = attribute_rois(
        decoder, linear.test, features, linear.rois, methods=methods, train=linear.train, draws=50
    )
    found.save(tmp_path / "attribution")
    again = Attribution.open(tmp_path / "attribution")
    assert set(again.table["method"]) == set(methods)
    assert "Baseline: the mean" in found._repr_html_()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_null_of_few_other_truths_rejects_as_often_as_it_says(count):
    """Own and other truths alike, 2,000 subjects: within the binomial bound of 0.05."""
    stimuli = tuple(f"s{k}" for k in range(30))
    shown = Shown(
        subject="sub-01", rows=np.arange(30), stimuli=stimuli, code=np.arange(30), truth={},
        centre={}, blocks=None, resampling=Resampling(30, "sub-01", draws=199, seed=0,
                                                      confidence=0.95),
    )  # fmt: skip
    rng = np.random.default_rng(count)
    p = []
    for _ in range(2000):
        own, wrong = rng.standard_normal(30), rng.standard_normal((30, count))
        p.append(permutation_p(float(own.mean()), null_of_others(shown, wrong)))
    low, high = binom.interval(0.99, 2000, 0.05)
    assert low <= np.sum(np.array(p) <= 0.05) <= high
