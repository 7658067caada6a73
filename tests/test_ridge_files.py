"""A saved ridge predicts the same, names its targets by hash, and refuses what has changed."""

import json

import numpy as np
import pytest

from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.kernel_factor import factorise
from neurodiff.core.errors import DataError, UsageError


@pytest.fixture(name="problem", params=[(20, 30), (30, 8)], ids=["dual", "primal"])
def _problem(request):
    n, p = request.param
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((n, p)), rng.standard_normal((n, 4, 3)) + 1.0
    return X, Y, rng.standard_normal((4, p))


@pytest.mark.parametrize("alphas", [[0.5], [0.5, 1.0, 2.0, 4.0]])
@pytest.mark.parametrize("alpha_per", ["head", "target"])
@pytest.mark.parametrize("standardise", ["loo", "test", "none"])
def test_a_saved_bridge_predicts_the_same(problem, tmp_path, alphas, alpha_per, standardise):
    X, Y, new = problem
    np.save(tmp_path / "y.npy", Y.astype(np.float16))
    options = {"alpha_per": alpha_per, "standardise": standardise}
    names = [0, 0, 0, *range(3, len(X))]
    model = FactoredRidge(alphas, **options).fit(X, tmp_path / "y.npy", groups=names)
    model.save(tmp_path / "bridge")
    again = FactoredRidge.load(tmp_path / "bridge")
    np.testing.assert_allclose(again.predict(new), model.predict(new), rtol=1e-9)
    np.testing.assert_allclose(again.loo(), model.loo(), rtol=1e-8)
    np.testing.assert_array_equal(again.alpha_, model.alpha_)
    assert again.get_params() == model.get_params()
    assert not (tmp_path / "bridge" / "targets.npy").exists()
    assert not (tmp_path / "bridge" / "weights.npy").exists()


def test_targets_in_memory_are_written_and_weights_on_request(problem, tmp_path):
    X, Y, new = problem
    model = FactoredRidge([0.5]).fit(X, Y)
    model.save(tmp_path / "b", weights=True)
    moved = (tmp_path / "b").rename(tmp_path / "elsewhere")
    again = FactoredRidge.load(moved)
    np.testing.assert_allclose(again.predict(new), model.predict(new), rtol=1e-9)
    coef, intercept = model.weights(0, 12)
    np.testing.assert_allclose(np.load(moved / "weights.npy"), coef)
    np.testing.assert_allclose(
        new @ coef.T + intercept, model.predict_raw(new).reshape(4, 12), atol=1e-9
    )


def test_heads_share_a_factor_on_disk(problem, tmp_path):
    X, Y, new = problem
    factor = factorise(X)
    for name, head in (("text", Y), ("vision", Y[:, 0])):
        model = FactoredRidge([0.5, 1.0, 2.0, 4.0]).fit(None, head, factor=factor)
        model.save(tmp_path / name, factor_folder=tmp_path / "factor")
    text = FactoredRidge.load(tmp_path / "text")
    vision = FactoredRidge.load(tmp_path / "vision", factor=text.factor_)
    assert vision.factor_.eigen[1] is text.factor_.eigen[1]
    assert vision.predict(new).shape == (4, 3)
    other = FactoredRidge([0.5]).fit(2 * X, Y)
    with pytest.raises(DataError, match="factor given is not that of"):
        FactoredRidge.load(tmp_path / "vision", factor=FactoredRidge([1.0]).fit(X + 1, Y).factor_)
    with pytest.raises(UsageError, match="other brain data"):
        other.save(tmp_path / "third", factor_folder=tmp_path / "factor")


def test_what_has_changed_is_refused(problem, tmp_path):
    X, Y, _ = problem
    np.save(tmp_path / "y.npy", Y)
    FactoredRidge([0.5]).fit(X, tmp_path / "y.npy").save(tmp_path / "b")
    np.save(tmp_path / "y.npy", Y + 1e-9)
    with pytest.raises(DataError, match="targets of the fit had"):
        FactoredRidge.load(tmp_path / "b")
    np.save(tmp_path / "y.npy", Y[:, :2])
    with pytest.raises(DataError, match="give the file it was fitted on"):
        FactoredRidge.load(tmp_path / "b")
    (tmp_path / "y.npy").unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        FactoredRidge.load(tmp_path / "b")
    np.save(tmp_path / "moved.npy", Y)
    assert FactoredRidge.load(tmp_path / "b", targets=tmp_path / "moved.npy").alpha_ > 0
    np.save(tmp_path / "b" / "factor" / "centred.npy", X)
    with pytest.raises(DataError, match="brain data of the fit had"):
        FactoredRidge.load(tmp_path / "b", targets=tmp_path / "moved.npy")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"class": "Ridge"}, "does not describe a FactoredRidge"),
        ({"version": 99}, "reads version 1"),
        ({"targets": None}, "lacks or garbles"),
        ({"settings": {"colour": 1}}, "lacks or garbles"),
    ],
)
def test_broken_notes_get_a_sentence(problem, tmp_path, change, sentence):
    X, Y, _ = problem
    FactoredRidge([0.5]).fit(X, Y).save(tmp_path)
    notes = json.loads((tmp_path / "bridge.json").read_text())
    (tmp_path / "bridge.json").write_text(json.dumps(notes | change))
    with pytest.raises(DataError, match=sentence):
        FactoredRidge.load(tmp_path)
