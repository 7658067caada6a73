"""Activation patterns: the textbook case of Haufe et al. (2014), their equation, and the null."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from neurodiff.analysis.attribution_problem import COLUMNS
from neurodiff.analysis.pattern_maps import patterns
from neurodiff.bridges.activation_patterns import (
    LatentDecoder,
    activation_patterns,
    leading_latents,
)
from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.core.errors import DataError, UsageError


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


linear_problem = _load("encoding_subjects").linear_problem


def rows(result):
    return result.table.set_index(["subject", "stage", "roi"])


def test_a_channel_of_noise_alone_has_a_weight_and_no_pattern():
    """x1 = s + n, x2 = n: the decoder is x1 - x2, weights (1, -1); the pattern is (1, 0)."""
    rng = np.random.default_rng(0)
    s, n = rng.standard_normal((2, 200))
    n -= s * (n @ s) / (s @ s)  # uncorrelated in the sample, so that the answer is exact
    s, n = s - s.mean(), n - n.mean()
    n -= s * (n @ s) / (s @ s)
    X = np.column_stack([s + n, n])
    decoder = LatentDecoder(X, alphas=[1e-9])
    alpha = decoder.choose(s[:, None])
    np.testing.assert_allclose(decoder.weights(s[:, None], alpha)[:, 0], [1, -1], atol=1e-6)
    found = activation_patterns(X, decoder.decoded(s[:, None], alpha))
    np.testing.assert_allclose(found[:, 0], [1, 0], atol=1e-6)


def test_it_is_equation_six():
    rng = np.random.default_rng(1)
    X, W = rng.standard_normal((50, 6)), rng.standard_normal((6, 2))
    expected = np.cov(X.T) @ W @ np.linalg.inv(np.cov((X @ W).T))
    np.testing.assert_allclose(activation_patterns(X, X @ W + 3.0), expected)


def test_patterns_of_all_sources_are_the_mixing():
    """As many sources as channels: the patterns of the inverse are the columns of the mixing."""
    rng = np.random.default_rng(2)
    mixing, sources = rng.standard_normal((4, 4)), rng.standard_normal((30, 4))
    np.testing.assert_allclose(activation_patterns(sources @ mixing.T, sources), mixing)


def test_the_decoder_is_the_bridges_ridge():
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((30, 50)), rng.standard_normal((30, 3))
    decoder = LatentDecoder(X)
    alpha = decoder.choose(Y)
    ridge = FactoredRidge(standardise="none").fit(X, Y)
    assert alpha == pytest.approx(ridge.alpha_)
    np.testing.assert_allclose(decoder.weights(Y, alpha).T, ridge.weights(0, 3)[0])
    np.testing.assert_allclose(decoder.decoded(Y, alpha) + Y.mean(0), ridge.predict_raw(X))


def test_latents_are_principal_components():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 8)) * np.arange(1, 9)
    latents, share = leading_latents(features, 5)
    assert latents.shape == (40, 3)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(latents.T @ latents / 40, np.eye(3), atol=1e-9)
    assert leading_latents(features, 1)[1] < 1


def test_regions_that_carry_a_stage_have_its_pattern():
    result = patterns(linear_problem(n_train=200, noise=1.0, subjects=2))
    assert tuple(result.table.columns) == COLUMNS
    table = rows(result)
    for subject in ("sub-1", "sub-2"):
        own = table.loc[(subject, "first", "first")]
        assert own["p"] == 0.01
        # four latents carry half the variance of each vertex: rms of their correlations
        assert own["value"] == pytest.approx(np.sqrt(0.5 / 4), abs=0.05)
        assert own["low"] < own["value"] < own["high"]
        assert own["value"] > 1.5 * own["null_high"]
        for other in ("second", "empty"):
            assert table.loc[(subject, "first", other)]["value"] < 0.6 * own["value"]
    size = result.maps["sub-1/first/pattern"]
    assert size[:20].mean() > 2 * size[20:].mean()
    assert result.maps["sub-1/first/pattern 4"].shape == (60,)


def test_empty_subjects_are_called_within_the_binomial_bound():
    p = [
        rows(patterns(linear_problem(carries=(None,), n_train=30, seed=seed, draws=39)))["p"].iloc[
            0
        ]
        for seed in range(60)
    ]
    assert (np.array(p) <= 0.05).sum() <= binom.ppf(0.999, 60, 0.05)
    assert (np.array(p) <= 0.5).sum() >= binom.ppf(0.001, 60, 0.5)


def test_the_unit_of_a_vertex_and_one_that_never_varies_change_nothing_else():
    problem = linear_problem(draws=9)
    data = problem.train.array().copy()
    data[:, 3] *= 50
    data[:, 59] = 1.0
    from neurodiff.core.recording import Recording

    changed = Recording.from_arrays(data, problem.train.trials, problem.rois)
    a, b = patterns(problem), patterns(replace(problem, train=changed))
    np.testing.assert_allclose(
        a.maps["sub-1/first/pattern"][:40], b.maps["sub-1/first/pattern"][:40], atol=0.05
    )
    assert np.isnan(b.maps["sub-1/first/pattern"][59])
    assert np.isfinite(b.table["value"]).all()


def test_without_training_trials_it_is_the_test_sets():
    result = patterns(linear_problem(with_train=False, n_test=100, draws=9))
    assert set(result.table["n_trials"]) == {100}
    assert any("over the test stimuli" in note for note in result.notes)


def test_bad_input_is_one_sentence():
    problem = linear_problem(draws=9)
    with pytest.raises(UsageError, match="0 components"):
        patterns(problem, components=0)
    with pytest.raises(DataError, match="ROI 'gone'"):
        patterns(replace(problem, rois={"gone": np.zeros(60, bool)}))
    with pytest.raises(DataError, match="combinations of each other"):
        activation_patterns(np.eye(4), np.ones((4, 2)))
    with pytest.raises(DataError, match="of the same trials"):
        activation_patterns(np.eye(4), np.ones((3, 1)))
    with pytest.raises(DataError, match="none of the 2 features varies"):
        LatentDecoder(np.ones((4, 2)))
    with pytest.raises(UsageError, match="no column 'shape'"):
        patterns(problem, groups="shape")
