"""The three published regressions and the ROI synthesis: golden numbers, and their formulas."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from neurodiff.bridges import roi_patterns
from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.kernel_factor import factorise
from neurodiff.core.errors import DataError, UsageError

spec = importlib.util.spec_from_file_location(
    "golden_recipe", Path(__file__).parent / "golden" / "recipe.py"
)
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
GOLDEN = recipe.load("bd_regression_roi")["bd.regression_roi"]
HEADS = {
    "cliptext": ((5, 6), 0.1, 1e5),
    "clipvision": ((7, 6), 0.4, 6e4),
    "vdvae": ((90,), 0.7, 5e4),
}
FILES = {
    "cliptext": "nsd_cliptext_{}_nsdgeneral.npy",
    "clipvision": "nsd_clipvision_{}_nsdgeneral.npy",
}
GAINS = {"cliptext": roi_patterns.TEXT_GAIN, "clipvision": roi_patterns.VISION_GAIN}


def quad(shape, w, phase):
    """Q of the golden file."""
    i = np.arange(math.prod(shape))
    return np.cos(w * ((7 * i * i + 3 * i) % 10007) + phase).reshape(shape)


@pytest.fixture(name="study", scope="module")
def _study():
    """z-scored brain data (40 and 11 trials), features of each head, and 13 ROI rows."""
    betas = 300 * (1.3 * quad((51, 24), 0.37, 0.2) + 0.3)
    low = (betas / 300 - 0.3) @ quad((24, 5), 0.53, 0.5)
    features = {}
    for name, (shape, phase, _) in HEADS.items():
        count = math.prod(shape)
        signal = low @ quad((5, count), 0.71, phase) * 0.2
        noise = 0.5 * quad((51, count), 0.53, phase + 1)
        features[name] = (signal + noise + quad((count,), 0.71, phase + 2)).reshape(51, *shape)
    X = betas / 300
    X = (X - X[:40].mean(0)) / X[:40].std(0, ddof=1)
    masks = {str(r): quad((24,), 0.37, 0.3 * r) > 0.2 for r in range(13)}
    return X[:40], X[40:], features, roi_patterns.roi_rows(masks, 24)


def published(name, study, **options):
    X, _, features, _ = study
    alpha = HEADS[name][2]
    model = FactoredRidge(alpha, absolute=True, standardise="test", block=11, **options)
    return model.fit(X, features[name][:40])


@pytest.mark.parametrize("name", list(HEADS))
def test_golden_regressions(study, name):
    model = published(name, study)
    count = model.targets_.shape[1]
    weights, bias = model.weights(0, count)
    shape = HEADS[name][0]
    # weights of the token heads were stored in float32
    tolerance = 1e-9 if name == "vdvae" else 2e-6
    out = GOLDEN["outputs"]
    recipe.check(torch.tensor(weights.reshape(*shape, 24)), out[f"weight:{name}"], tolerance)
    recipe.check(torch.tensor(bias.reshape(shape)), out[f"bias:{name}"], tolerance)
    file = FILES.get(name, "nsd_vdvae_nsdgeneral_pred_sub1_31l_alpha50k.npy").format("predtest")
    predicted = torch.tensor(model.predict(study[1]))
    recipe.check(predicted, out[f"pred:{file}"], 1e-9)


@pytest.mark.parametrize("name", list(HEADS))
def test_golden_roi_features(study, name):
    model = published(name, study)
    rows = study[3]
    if name == "vdvae":
        found = roi_patterns.roi_latents(model, rows, across_rows=True)
    else:
        found = roi_patterns.roi_tokens(model, rows, GAINS[name])
    file = FILES.get(name, "nsd_vdvae_nsdgeneral_roi_sub1_31l_alpha50k.npy").format("roi")
    recipe.check(torch.tensor(found), GOLDEN["outputs"][f"pred:{file}"], 2e-5)


@pytest.mark.parametrize(("tokens", "alpha"), [(77, 1e5), (257, 6e4)])
def test_parity_with_a_ridge_for_each_token(tokens, alpha):
    """P1: one solve of the normal equations a token, as the released loop does, in NumPy."""
    rng = np.random.default_rng(0)
    X, new = rng.standard_normal((60, 90)), rng.standard_normal((9, 90))
    Y = rng.standard_normal((60, tokens, 4)) + rng.standard_normal((tokens, 4))
    model = FactoredRidge(alpha, absolute=True, standardise="test", block=100).fit(X, Y)
    found = model.predict(new)
    Xc = X - X.mean(0)
    normal = Xc.T @ Xc + alpha * np.eye(90)
    for token in range(tokens):
        y = Y[:, token]
        W = np.linalg.solve(normal, Xc.T @ (y - y.mean(0))).T
        b = y.mean(0) - X.mean(0) @ W.T
        raw = new @ W.T + b
        expected = (raw - raw.mean(0)) / raw.std(0) * y.std(0) + y.mean(0)
        np.testing.assert_allclose(found[:, token], expected, rtol=0, atol=1e-10)
        coef, intercept = model.weights(4 * token, 4 * token + 4)
        np.testing.assert_allclose(coef, W, rtol=0, atol=1e-9)
        np.testing.assert_allclose(intercept, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_parity_of_the_hat_form(dtype, tolerance):
    """P2, P3: a flat head; the hat form against weights, in both types of streaming."""
    rng = np.random.default_rng(1)
    X, new = rng.standard_normal((80, 200)), rng.standard_normal((9, 200))
    Y = rng.standard_normal((80, 333)).astype(np.float32)
    model = FactoredRidge(5e4, absolute=True, standardise="none", dtype=dtype).fit(X, Y)
    Xc, Yc = X - X.mean(0), Y - Y.mean(0, dtype=float)
    W = np.linalg.solve(Xc.T @ Xc + 5e4 * np.eye(200), Xc.T @ Yc)
    expected = (new - X.mean(0)) @ W + Y.mean(0, dtype=float)
    np.testing.assert_allclose(model.predict(new), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("alphas", [2.0, [2.0, 50.0], [2.0, 9.0, 30.0, 50.0]])
def test_parity_of_roi_formulas(alphas):
    """P13: the published formulas from primal weights, written out."""
    rng = np.random.default_rng(2)
    X, Y = rng.standard_normal((30, 50)), rng.standard_normal((30, 12)) + 3.0
    r = (rng.random((13, 50)) > 0.7).astype(float)
    model = FactoredRidge(alphas, absolute=True).fit(X, Y)
    W, b = model.weights(0, 12)
    p = r @ W.T
    p = p / (np.linalg.norm(p, axis=1)[:, None] + 1e-8)
    for gain in (9.0, 15.0):
        found = roi_patterns.roi_tokens(model, r, gain)
        np.testing.assert_allclose(found, gain * p + b, rtol=0, atol=1e-6)
    q = 50 * p + b
    z = (q - q.mean(0)) / q.std(0) * Y.std(0) + Y.mean(0)
    expected = 80 * z / np.linalg.norm(z, axis=1)[:, None]
    found = roi_patterns.roi_latents(model, r, across_rows=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_an_roi_does_not_depend_on_the_others_in_the_list(study):
    X, _, features, rows = study
    model = FactoredRidge([0.1, 1.0]).fit(X, features["vdvae"][:40])
    every = roi_patterns.roi_latents(model, rows)
    some = roi_patterns.roi_latents(model, rows[3:5])
    np.testing.assert_allclose(some, every[3:5], rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(every, axis=1), 80.0)
    listed = roi_patterns.roi_latents(model, rows, across_rows=True)
    fewer = roi_patterns.roi_latents(model, rows[3:6], across_rows=True)
    assert np.abs(fewer - listed[3:6]).max() > 1.0


def test_a_pattern_points_where_its_area_is_tuned():
    """Vertices 0-9 carry the target's first half, 10-19 its second, 20-29 nothing."""
    rng = np.random.default_rng(4)
    Y = rng.standard_normal((3000, 8))
    X = 0.5 * rng.standard_normal((3000, 30))
    X[:, :10] += Y[:, :4] @ rng.random((4, 10))
    X[:, 10:20] += Y[:, 4:] @ rng.random((4, 10))
    model = FactoredRidge([1e-2, 1e-1], standardise="none").fit(X, Y)
    raw = model.patterns(np.kron(np.eye(3), np.ones(10)))[0]
    assert raw[0, :4].mean() > 10 * np.abs(raw[0, 4:]).mean()
    assert raw[1, 4:].mean() > 10 * np.abs(raw[1, :4]).mean()
    assert np.abs(raw[2]).mean() < 0.2 * raw[0, :4].mean()


def test_bad_rois_get_a_sentence(study):
    X, _, features, rows = study
    model = FactoredRidge([1.0]).fit(X, features["vdvae"][:40])
    bare = FactoredRidge([1.0], standardise="none").fit(X, features["vdvae"][:40])
    with pytest.raises(DataError, match="ROI 'V4' is empty"):
        roi_patterns.roi_rows({"V1": rows[0] > 0, "V4": np.zeros(24, bool)}, 24)
    with pytest.raises(DataError, match="row 1 is empty"):
        roi_patterns.roi_tokens(model, np.stack([rows[0], 0 * rows[0]]), 9.0)
    with pytest.raises(DataError, match="expected a boolean mask over the 24"):
        roi_patterns.roi_rows({"V1": np.ones(23, bool)}, 24)
    with pytest.raises(DataError, match="expected a boolean mask"):
        roi_patterns.roi_rows({"V1": np.ones(24)}, 24)
    with pytest.raises(UsageError, match="at least one mask"):
        roi_patterns.roi_rows({}, 24)
    with pytest.raises(DataError, match="there is 1"):
        roi_patterns.roi_latents(model, rows[:1], across_rows=True)
    with pytest.raises(DataError, match="90 of 90 targets do not vary"):
        roi_patterns.roi_latents(model, rows[[0, 0]], across_rows=True)
    with pytest.raises(UsageError, match="fit it with standardise='loo'"):
        roi_patterns.roi_latents(bare, rows)


def test_heads_of_one_factor_equal_heads_alone(study):
    X, new, features, _ = study
    factor = factorise(X)
    for name, (_, _, alpha) in HEADS.items():
        shared = FactoredRidge([alpha], absolute=True).fit(None, features[name][:40], factor=factor)
        alone = FactoredRidge([alpha], absolute=True).fit(X, features[name][:40])
        np.testing.assert_allclose(shared.predict(new), alone.predict(new), rtol=1e-12)
