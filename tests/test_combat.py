"""ComBat: closed forms, properties of the shrinkage, and training apart from test."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from neurodiff.bridges.combat import ComBat
from neurodiff.core.errors import DataError, UsageError


def batches(seed: int = 0, sizes=(20, 30, 25), features: int = 40):
    """Normal features with a shift and a scale of their own in every batch."""
    generator = np.random.default_rng(seed)
    code = np.repeat(np.arange(len(sizes)), sizes)
    shift = generator.normal(size=(len(sizes), features)) * 2
    scale = generator.uniform(0.5, 2.0, size=(len(sizes), features))
    X = generator.normal(size=(len(code), features)) * scale[code] + shift[code]
    return 10.0 * X + 500.0, np.array(["GE", "Philips", "Siemens"])[code]


def means(X, batch):
    return np.stack([X[batch == b].mean(axis=0) for b in np.unique(batch)])


def variances(X, batch):
    return np.stack([X[batch == b].var(axis=0, ddof=1) for b in np.unique(batch)])


def test_without_shrinkage_batches_become_equal_in_closed_form():
    X, batch = batches()
    out = ComBat(empirical_bayes=False).fit_transform(X, batch)
    np.testing.assert_allclose(means(out, batch), np.tile(X.mean(axis=0), (3, 1)), rtol=1e-10)
    within = X - means(X, batch)[np.searchsorted(np.unique(batch), batch)]
    pooled = (within**2).mean(axis=0)
    np.testing.assert_allclose(variances(out, batch), np.tile(pooled, (3, 1)), rtol=1e-10)


def test_one_row_by_hand():
    X = np.array([[1.0, 10.0], [3.0, 30.0], [11.0, 10.0], [15.0, 50.0]])
    batch = ["a", "a", "b", "b"]
    out = ComBat(empirical_bayes=False).fit_transform(X, batch)
    # feature 1: grand mean 7.5, pooled variance (1 + 1 + 4 + 4) / 4 = 2.5; both rows of a batch
    # lie one sample deviation / sqrt(2) from its mean
    half = np.sqrt(2.5 / 2)
    np.testing.assert_allclose(out[:, 0], 7.5 + half * np.array([-1, 1, -1, 1]))


def test_shrinkage_pulls_shifts_and_scales_to_their_mean():
    X, batch = batches(sizes=(4, 5, 4))
    model = ComBat().fit(X, batch)
    for raw, starred in ((model.gamma_raw_, model.gamma_), (model.delta_raw_, model.delta_)):
        assert (starred.var(axis=1) < raw.var(axis=1)).all()
        middle = raw.mean(axis=1, keepdims=True)
        share = (np.sign(starred - middle) == np.sign(raw - middle)).mean()
        assert share > 0.8
    # more rows, less shrinkage
    Y, large = batches(sizes=(400, 500, 400))
    loose = ComBat().fit(Y, large)
    assert np.abs(loose.gamma_ - loose.gamma_raw_).max() < 0.02
    assert np.abs(model.gamma_ - model.gamma_raw_).max() > 0.1


def test_the_posterior_is_its_own_fixed_point():
    """Equation 3.1 of Johnson et al. holds at the answer."""
    X, batch = batches(sizes=(6, 8, 7))
    model = ComBat().fit(X, batch)
    z = (X - model.mean_) / model.sd_
    for i, name in enumerate(model.batches_):
        own = z[batch == name]
        n, g, d = len(own), model.gamma_[i], model.delta_[i]
        raw, spread = model.gamma_raw_[i], model.delta_raw_[i]
        tau2, m, s2 = raw.var(ddof=1), spread.mean(), spread.var(ddof=1)
        a, b = m**2 / s2 + 2, m**3 / s2 + m
        np.testing.assert_allclose(g, (n * tau2 * raw + d * raw.mean()) / (n * tau2 + d), rtol=1e-6)
        squares = ((own - g) ** 2).sum(axis=0)
        np.testing.assert_allclose(d, (b + squares / 2) / (n / 2 + a - 1), rtol=1e-6)


def test_the_reference_comes_back_bit_for_bit_and_sets_the_scale():
    X, batch = batches()
    model = ComBat(reference="Philips", empirical_bayes=False).fit(X, batch)
    out = model.transform(X, batch)
    own = batch == "Philips"
    assert np.array_equal(out[own], X[own])
    np.testing.assert_allclose(means(out, batch), np.tile(X[own].mean(axis=0), (3, 1)), rtol=1e-9)
    new = np.random.default_rng(9).normal(size=(4, 40))
    assert np.array_equal(model.transform(new, ["Philips"] * 4), new)


def test_test_rows_meet_only_what_was_learned_from_training():
    X, batch = batches()
    new, labels = batches(seed=5, sizes=(3, 3, 3))
    model = ComBat().fit(X, batch)
    together = model.transform(new, labels)
    for k in range(len(new)):
        alone = model.transform(new[k : k + 1], labels[k : k + 1])
        np.testing.assert_array_equal(alone[0], together[k])
    moved = np.concatenate([new, 1e6 + new])
    again = model.transform(moved, np.tile(labels, 2))
    np.testing.assert_array_equal(again[:9], together)


def test_covariates_are_kept_and_batches_are_not():
    generator = np.random.default_rng(3)
    n = 600
    batch = generator.choice(["a", "b"], size=n)
    disease = (generator.random(n) < np.where(batch == "a", 0.2, 0.8)).astype(float)
    age = generator.normal(60, 10, size=n)
    noise = generator.normal(size=(n, 6))
    truth = noise + 3 * disease[:, None] + 0.1 * (age[:, None] - 60)
    X = truth + 5.0 * (batch == "b")[:, None]
    covariates = pd.DataFrame({"age": age, "state": np.where(disease > 0, "ill", "well")})
    kept = ComBat().fit_transform(X, batch, covariates)
    lost = ComBat().fit_transform(X, batch)

    def effect(values):
        design = np.stack([np.ones(n), disease, age, batch == "b"], axis=1)
        return np.linalg.lstsq(design, values, rcond=None)[0]

    np.testing.assert_allclose(effect(kept)[1], 3, atol=0.2)
    np.testing.assert_allclose(effect(kept)[2], 0.1, atol=0.02)
    np.testing.assert_allclose(effect(kept)[3], 0, atol=0.2)  # of 5
    assert (np.abs(lost[disease > 0].mean(0) - lost[disease == 0].mean(0)) < 2.5).all()


def test_units_of_a_feature_do_not_matter():
    X, batch = batches()
    a = ComBat().fit_transform(X, batch)
    scale = np.geomspace(1e-6, 1e6, X.shape[1])
    b = ComBat().fit_transform(X * scale - 3, batch)
    np.testing.assert_allclose(b, a * scale - 3, rtol=1e-6)


def test_mean_only_takes_a_batch_of_one_row():
    X, batch = batches(sizes=(20, 30, 1))
    with pytest.raises(DataError, match="'Siemens' has 1 row"):
        ComBat().fit(X, batch)
    model = ComBat(mean_only=True).fit(X, batch)
    assert (model.delta_ == 1).all()
    out = ComBat(mean_only=True, empirical_bayes=False).fit_transform(X, batch)
    np.testing.assert_allclose(means(out, batch), np.tile(X.mean(axis=0), (3, 1)), rtol=1e-9)


def test_constant_features_are_refused_or_kept_as_they_are():
    X, batch = batches()
    X[:, 3] = 7.0
    X[batch == "GE", 8] = 0.1
    with pytest.raises(DataError, match=r"2 features have no variance in a batch \(number 3, num"):
        ComBat().fit(X, batch)
    with pytest.raises(DataError, match="f3, f8"):
        ComBat().fit(pd.DataFrame(X, columns=[f"f{i}" for i in range(40)]), batch)
    model = ComBat(constant="keep").fit(X, batch)
    assert model.constant_.tolist() == [3, 8]
    out = model.transform(X, batch)
    assert np.array_equal(out[:, [3, 8]], X[:, [3, 8]])
    others = np.setdiff1d(np.arange(40), [3, 8])
    np.testing.assert_allclose(
        out[:, others], ComBat().fit_transform(X[:, others], batch), rtol=1e-10
    )


def test_a_single_feature_has_nothing_to_share():
    X, batch = batches(features=1)
    with pytest.raises(DataError, match="at least 2"):
        ComBat().fit(X, batch)
    out = ComBat(empirical_bayes=False).fit_transform(X, batch)
    np.testing.assert_allclose(np.ptp(means(out, batch)), 0, atol=1e-9)


def test_equal_features_make_the_prior_a_point():
    X, batch = batches(features=1)
    model = ComBat().fit(np.repeat(X, 3, axis=1), batch)
    np.testing.assert_allclose(model.gamma_, model.gamma_raw_, rtol=1e-9)
    np.testing.assert_allclose(model.delta_, model.delta_raw_, rtol=1e-9)


def test_a_table_comes_back_as_a_table_with_its_names():
    X, batch = batches(features=3)
    table = pd.DataFrame(X, columns=["a", "b", "c"], index=[f"roi{i}" for i in range(len(X))])
    out = ComBat().fit_transform(table, batch)
    assert list(out.columns) == ["a", "b", "c"]
    assert out.index.equals(table.index)
    np.testing.assert_array_equal(out.to_numpy(), ComBat().fit_transform(X, batch))
    model = ComBat().fit(table, batch)
    with pytest.raises(UsageError, match="feature 'c' is not where"):
        model.transform(table[["c", "b", "a"]], batch)


def test_it_is_stored_as_plain_lists_and_clones():
    X, batch = batches()
    state = np.where(np.arange(len(X)) % 2, "ill", "well")
    model = ComBat(reference="GE").fit(X, batch, pd.DataFrame({"state": state}))
    stored = json.loads(json.dumps(model.as_dict()))
    again = ComBat.from_dict(stored)
    given = (X, batch, pd.DataFrame({"state": state}))
    np.testing.assert_array_equal(again.transform(*given), model.transform(*given))
    assert clone(model).get_params() == model.get_params()
    del stored["gamma_"]
    with pytest.raises(DataError, match="no stored ComBat"):
        ComBat.from_dict(stored)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"batch": ["GE"] * 75}, DataError, "at least 2 batches"),
        ({"batch": ["GE"] * 3}, UsageError, "3 batches for 75 rows"),
        ({"batch": [None, *["GE"] * 74]}, DataError, "row 0 has no batch"),
        ({"X": np.full((75, 3), np.nan)}, DataError, "3 features hold NaN"),
        ({"X": [["a"]] * 75}, DataError, "numbers only"),
        ({"X": np.zeros(75)}, DataError, r"give \(rows, features\)"),
        ({"covariates": np.repeat([0.0, 1.0, 2.0], [20, 30, 25])}, DataError, "determined by"),
        ({"covariates": np.full(75, np.nan)}, DataError, "missing in 75 rows"),
        ({"covariates": np.zeros(5)}, UsageError, "5 rows of covariates"),
    ],
)
def test_a_fit_refuses_what_it_cannot_use(given, error, match):
    X, batch = batches()
    with pytest.raises(error, match=match):
        ComBat().fit(**({"X": X, "batch": batch} | given))


def test_a_transform_refuses_what_the_fit_did_not_see():
    X, batch = batches()
    model = ComBat().fit(X, batch, pd.DataFrame({"sex": np.tile(["f", "m", "f"], 25)}))
    sex = pd.DataFrame({"sex": ["f"]})
    with pytest.raises(DataError, match="'Philip' was not in the training"):
        model.transform(X[:1], ["Philip"], sex)
    with pytest.raises(UsageError, match="fitted with covariates sex"):
        model.transform(X[:1], ["GE"])
    with pytest.raises(UsageError, match="3 features"):
        model.transform(X[:1, :3], ["GE"], sex)
    with pytest.raises(DataError, match="sex is 'x'"):
        model.transform(X[:1], ["GE"], pd.DataFrame({"sex": ["x"]}))
    with pytest.raises(UsageError, match="the covariates are age"):
        model.transform(X[:1], ["GE"], pd.DataFrame({"age": [3.0]}))
    with pytest.raises(UsageError, match="the reference is 'Ge'"):
        ComBat(reference="Ge").fit(X, batch)
    with pytest.raises(UsageError, match="'error' or 'keep'"):
        ComBat(constant="drop").fit(X, batch)


def test_mean_only_shrinks_by_the_weight_of_its_rows():
    """Known scale 1: the posterior mean of a normal shift in closed form."""
    X, batch = batches(sizes=(5, 8, 6))
    model = ComBat(mean_only=True).fit(X, batch)
    for raw, starred, n in zip(model.gamma_raw_, model.gamma_, (5, 8, 6), strict=True):
        tau2 = raw.var(ddof=1)
        expected = (n * tau2 * raw + raw.mean()) / (n * tau2 + 1)
        np.testing.assert_allclose(starred, expected, rtol=1e-12)
