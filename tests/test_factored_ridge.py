"""Streamed ridge against independent truths: scikit-learn, literal refits, its contract."""

import pickle

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.kernel_factor import factorise
from neurodiff.core.errors import DataError, UsageError


def limits(estimator):
    """Under "test" a prediction leans on the other test items: that is what the mode is."""
    if estimator.standardise != "test":
        return {}
    reason = "re-standardised with the statistics of the test items given together"
    return {"check_methods_subset_invariance": reason}


@parametrize_with_checks(
    [
        FactoredRidge(),
        FactoredRidge(standardise="none"),
        FactoredRidge(alpha_per="target", block=2),
        FactoredRidge(standardise="test"),
    ],
    expected_failed_checks=limits,
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


#: one penalty and few of them go by Cholesky factors, more by eigenvectors
GRIDS = [[40.0], [40.0, 41.0], [40.0, 41.0, 42.0, 43.0]]
SIZES = {"dual": (30, 80), "primal": (60, 12)}


@pytest.fixture(name="problem", params=list(SIZES))
def _problem(request):
    """X, tokens (n, 3, 2) with an offset, new rows."""
    n, p = SIZES[request.param]
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n, p)) + 2.0
    Y = X @ rng.standard_normal((p, 6)) + 5 * rng.standard_normal((n, 6)) - 7.0
    return X, Y.reshape(n, 3, 2), rng.standard_normal((5, p)) + 2.0


def literal_leave_out(X, Y, alpha, groups):
    """Each row predicted by scikit-learn's ridge of the rows of other groups."""
    out = np.zeros_like(Y)
    for name in np.unique(groups):
        held = groups == name
        out[held] = Ridge(alpha=alpha).fit(X[~held], Y[~held]).predict(X[held])
    return out


@pytest.mark.parametrize("alphas", GRIDS)
@pytest.mark.parametrize("alpha_per", ["head", "target"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_predictions_equal_scikit_learn(problem, alphas, alpha_per, dtype):
    X, Y, new = problem
    ours = FactoredRidge(
        alphas, absolute=True, standardise="none", alpha_per=alpha_per, dtype=dtype, block=4
    ).fit(X, Y)
    chosen = np.broadcast_to(ours.alpha_, 6)
    theirs = Ridge(alpha=chosen).fit(X, Y.reshape(len(Y), 6))
    tolerance = {"float64": 1e-11, "float32": 1e-5}[dtype]
    found = ours.predict(new)
    assert found.shape == (5, 3, 2)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.reshape(5, 6), theirs.predict(new), rtol=0, atol=50 * tolerance
    )
    coef, intercept = ours.weights(1, 5)
    np.testing.assert_allclose(coef, theirs.coef_[1:5], atol=tolerance)
    np.testing.assert_allclose(intercept, theirs.intercept_[1:5], rtol=10 * tolerance)
    masks = (new > 2.0).astype(float)
    products, bias = ours.patterns(masks)
    np.testing.assert_allclose(products, masks @ theirs.coef_.T, atol=50 * tolerance)
    np.testing.assert_allclose(bias, theirs.intercept_, rtol=10 * tolerance)


@pytest.mark.parametrize("alphas", GRIDS)
@pytest.mark.parametrize("alpha_per", ["head", "target"])
@pytest.mark.parametrize("repeats", [False, True])
def test_leave_out_equals_literal_refits(problem, alphas, alpha_per, repeats):
    """Single trials and whole groups; and the statistics, which are made without predictions."""
    X, Y, _ = problem
    names = np.arange(len(X))
    if repeats:
        names[:7] = [100, 101, 102, 100, 100, 101, 3]
    ours = FactoredRidge(alphas, absolute=True, alpha_per=alpha_per, block=4)
    ours.fit(X, Y, groups=names if repeats else None)
    flat = Y.reshape(len(Y), 6)
    chosen = np.broadcast_to(ours.alpha_, 6)
    expected = literal_leave_out(X, flat, chosen, names)
    found = ours.loo(standardise=False)
    np.testing.assert_allclose(found.reshape(-1, 6), expected, atol=1e-9)
    np.testing.assert_allclose(ours.statistics_.loo_mean, expected.mean(0), atol=1e-9)
    np.testing.assert_allclose(ours.statistics_.loo_std, expected.std(0), atol=1e-8)
    # the re-standardised ones have the targets' own mean and spread
    restored = ours.loo().reshape(-1, 6)
    np.testing.assert_allclose(restored.mean(0), flat.mean(0), atol=1e-9)
    np.testing.assert_allclose(restored.std(0), flat.std(0), atol=1e-8)


def test_the_penalty_has_the_least_leave_one_out_error(problem):
    X, Y, _ = problem
    flat = Y.reshape(len(Y), 6)
    alphas = [0.01, 0.1, 1.0, 10.0]
    per_head = FactoredRidge(alphas).fit(X, Y)
    per_target = FactoredRidge(alphas, alpha_per="target", block=4).fit(X, Y)
    errors = np.stack(
        [
            np.square(literal_leave_out(X, flat, a, np.arange(len(X))) - flat).sum(0)
            for a in per_head.alphas_
        ]
    )
    assert per_head.alpha_ == per_head.alphas_[errors.sum(1).argmin()]
    assert (per_target.alpha_ == per_head.alphas_[errors.argmin(0)]).all()
    centred = flat - flat.mean(0)
    np.testing.assert_allclose(
        per_head.sketch_r2_, 1 - errors.sum(1) / np.square(centred).sum(), atol=1e-9
    )


def test_relative_penalties_follow_the_scale_of_the_data(problem):
    X, Y, new = problem
    one = FactoredRidge([0.1, 1.0, 3.0]).fit(X, Y)
    thousand = FactoredRidge([0.1, 1.0, 3.0]).fit(1000 * X, Y)
    np.testing.assert_allclose(thousand.alpha_, 1e6 * one.alpha_)
    np.testing.assert_allclose(thousand.predict(1000 * new), one.predict(new))
    trace = np.square(X - X.mean(0)).sum()
    np.testing.assert_allclose(one.alphas_, np.array([0.1, 1.0, 3.0]) * trace / len(X))


@pytest.mark.parametrize("kind", ["path", "memmap", "float16", "fortran"])
def test_targets_on_disk_equal_targets_in_memory(problem, tmp_path, kind):
    X, Y, new = problem
    Y = Y.reshape(len(Y), 6) if kind == "fortran" else Y
    Y = Y.astype(np.float16) if kind == "float16" else Y
    path = tmp_path / "targets.npy"
    np.save(path, np.asfortranarray(Y) if kind == "fortran" else Y)
    given = np.load(path, mmap_mode="r") if kind == "memmap" else str(path)
    alphas = [0.1, 1.0]
    stored = FactoredRidge(alphas, block=4).fit(X, given)
    assert stored.targets_.array is None  # nothing was read whole
    whole = FactoredRidge(alphas, block=100).fit(X, Y)
    np.testing.assert_allclose(stored.predict(new), whole.predict(new), rtol=1e-9)


@pytest.mark.parametrize("offset", [1e-3, 1.0, 1e3])
def test_float32_bears_targets_far_from_zero(problem, offset):
    X, Y, new = problem
    far = (Y + offset * Y.std()).astype(np.float32)
    single = FactoredRidge([1.0], dtype="float32").fit(X, far).predict(new)
    double = FactoredRidge([1.0]).fit(X, far.astype(np.float64)).predict(new)
    assert np.abs(single - double).max() < 2e-6 * np.abs(far).max()


def test_one_trial_is_predicted_as_among_others(problem):
    X, Y, new = problem
    model = FactoredRidge([0.5, 1.0]).fit(X, Y)
    np.testing.assert_allclose(model.predict(new[2:3])[0], model.predict(new)[2])


def test_released_statistics_are_those_of_the_test_items(problem):
    X, Y, new = problem
    model = FactoredRidge([3.0], absolute=True, standardise="test").fit(X, Y)
    raw = Ridge(alpha=3.0).fit(X, Y.reshape(len(Y), 6)).predict(new).reshape(5, 3, 2)
    expected = (raw - raw.mean(0)) / raw.std(0) * Y.std(0) + Y.mean(0)
    np.testing.assert_allclose(model.predict(new), expected, rtol=1e-9)
    np.testing.assert_allclose(model.restandardise(model.predict_raw(new)), expected, rtol=1e-9)
    with pytest.raises(DataError, match="got 1 of them"):
        model.predict(new[:1])
    with pytest.raises(DataError, match="do not vary"):
        model.predict(new[[0, 0, 0]])


def test_heads_share_one_factor(problem):
    X, Y, new = problem
    factor = factorise(X)
    first = FactoredRidge([0.1, 1.0]).fit(None, Y, factor=factor)
    second = FactoredRidge([0.1, 1.0]).fit(X, Y[:, 0], factor=factor)
    assert first.factor_.eigen[1] is second.factor_.eigen[1]
    np.testing.assert_allclose(first.predict(new)[:, 0], second.predict(new), rtol=1e-9)
    grouped = FactoredRidge([0.1]).fit(None, Y, groups=[0, 0, *range(2, len(X))], factor=factor)
    assert grouped.factor_.eigen[1] is factor.eigen[1]
    with pytest.raises(DataError, match="other brain data"):
        FactoredRidge().fit(X + 1.0 + X, Y, factor=factor)
    with pytest.raises(DataError, match="factorise the same trials"):
        FactoredRidge().fit(X[1:], Y[1:], factor=factor)


def test_a_fitted_bridge_can_be_copied(problem):
    X, Y, new = problem
    model = FactoredRidge([1.0]).fit(X, Y)
    expected = model.predict(new)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_allclose(again.predict(new), expected)


def test_torch_gives_the_same_numbers(problem):
    X, Y, new = problem
    for alphas in ([1.0], [0.1, 1.0], [0.1, 0.3, 1.0, 3.0]):
        numpy, torch = (
            FactoredRidge(alphas, device=device).fit(X, Y) for device in ("cpu", "torch")
        )
        np.testing.assert_allclose(torch.predict(new), numpy.predict(new), rtol=1e-8)
        np.testing.assert_allclose(torch.dual(0, 3), numpy.dual(0, 3), atol=1e-9)
        np.testing.assert_allclose(torch.loo(), numpy.loo(), rtol=1e-8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alphas": [0.0]}, "must be positive"),
        ({"alphas": -1.0}, "must be positive"),
        ({"alphas": [np.nan]}, "must be positive"),
        ({"alphas": []}, "must be positive"),
        ({"alphas": "many"}, "must be positive"),
        ({"absolute": True}, "name the penalties"),
        ({"alpha_per": "voxel"}, "give 'head' or 'target'"),
        ({"standardise": "train"}, "give 'loo' or 'test' or 'none'"),
        ({"block": 0}, "whole number of columns"),
        ({"dtype": "float16"}, "'float64' or 'float32'"),
        ({"device": "abacus"}, "cannot be used here"),
        ({"device": "cuda:77"}, "cannot be used here"),
    ],
)
def test_wrong_options_get_a_sentence(problem, options, sentence):
    X, Y, _ = problem
    with pytest.raises(UsageError, match=sentence):
        FactoredRidge(**options).fit(X, Y)


@pytest.mark.parametrize("standardise", ["loo", "test", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha_per", ["head", "target"])
def test_a_constant_target_is_predicted_as_what_it_is(problem, standardise, dtype, alpha_per):
    """Dead outputs of an encoder: exact, and the other targets are what they are without it."""
    X, Y, new = problem
    flat = Y.copy()
    flat[:, 2, 0], flat[:, 0, 1] = 0.1, 0.0
    options = {"standardise": standardise, "dtype": dtype, "alpha_per": alpha_per}
    found, other = (
        FactoredRidge([1.0, 2.0] if alpha_per == "target" else [1.0], **options)
        .fit(X, y)
        .predict(new)
        for y in (flat, Y)
    )
    np.testing.assert_allclose(found[:, 2, 0], 0.1, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 0, 1], 0)
    found[:, 2, 0], found[:, 0, 1] = other[:, 2, 0], other[:, 0, 1]
    np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-6)


def test_wrong_data_gets_a_sentence(problem, tmp_path):
    X, Y, new = problem
    model = FactoredRidge([1.0])
    dead = X.copy()
    dead[:, [4, 7]] = 0.5
    with pytest.raises(DataError, match=r"2 of .* zero variance .* first number 4"):
        model.fit(dead, Y)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(dead == 0.5, np.nan, X), Y)
    with pytest.raises(DataError, match="vertices, first in number 4"):
        factorise(np.where(dead == 0.5, np.nan, X))
    holes = Y.copy()
    holes[3, 1, 1] = np.nan
    for mode in ("loo", "test", "none"):
        for alphas in ([1.0], [1.0, 2.0]):
            with pytest.raises(DataError, match="first in target 3"):
                FactoredRidge(alphas, standardise=mode).fit(X, holes)
    flat = Y.copy()
    flat[:, 2, 0] = 0.1
    flat[:] = 0.1
    for alpha_per in ("head", "target"):
        with pytest.raises(DataError, match="targets are constant over the training trials"):
            FactoredRidge([1.0, 2.0], alpha_per=alpha_per).fit(X, flat)
    with pytest.raises(DataError, match="one row of targets for each trial"):
        model.fit(X, Y[1:])
    with pytest.raises(UsageError, match="one name for each"):
        model.fit(X, Y, groups=[1, 2])
    with pytest.raises(UsageError, match="give the brain data or a factor"):
        model.fit(None, Y)
    with pytest.raises(FileNotFoundError):
        model.fit(X, tmp_path / "nothing.npy")
    model.fit(X, Y)
    with pytest.raises(ValueError, match="features"):
        model.predict(new[:, 1:])
    with pytest.raises(DataError, match="of the same mask"):
        factorise(X).hat(new[:, 1:], 1.0)
    with pytest.raises(DataError, match="fitted on 6"):
        model.restandardise(Y[:, :1])


def test_too_little_data_gets_a_sentence():
    with pytest.raises(DataError, match="at least 2 trials"):
        factorise(np.zeros((1, 5)))
    with pytest.raises(DataError, match="expected numbers"):
        factorise(np.zeros(5))
