"""Maps by frame: a planted subject whose information lies in known frames."""

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.analysis.attribution_decoders import LinearStage
from neurodiff.analysis.attribution_frames import EVERYWHERE, HOW, frame_maps
from neurodiff.analysis.attribution_problem import COLUMNS, Problem
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.datasets.simulated.subject import haemodynamic_response

N, FRAMES, P, D = 60, 10, 12, 4
PEAK = int(np.argmax(haemodynamic_response()))


class FrameRidge:
    """A regression on a weighted mean over frames: weights (features, d), filter (frames,).

    ``form``: "linear" tells its parts; "tensors" its derivatives; "closed" only decodes.
    """

    name, stages = "frame ridge", ("features",)

    def __init__(self, weights, form, filter=None):
        self.weights = weights
        self.filter = haemodynamic_response() if filter is None else filter
        if form == "linear":
            self.linear = self._linear
        if form == "tensors":
            self.tensors = self._tensors

    def decode(self, data, trials):
        return {"features": np.einsum("ntf,t,fd->nd", data, self.filter, self.weights)}

    def truth(self, ids):
        raise AssertionError("the problem has the truth")

    def _tensors(self, data, trials):
        parts = torch.from_numpy(self.filter), torch.from_numpy(self.weights)
        return {"features": torch.einsum("ntf,t,fd->nd", data, *parts)}

    def _linear(self, stage):
        return LinearStage(
            read=lambda data: np.einsum("ntf,t->nf", np.asarray(data, float), self.filter),
            part=lambda rows: rows @ self.weights,
            constant=np.zeros(D),
        )


@pytest.fixture(scope="module")
def planted():
    """The stimulus drives "seeing" along the haemodynamic response; "other" is noise."""
    rng = np.random.default_rng(0)
    tuning = rng.standard_normal((D, 6))
    seeing = np.arange(P) < 6

    def record(n, first):
        features = rng.standard_normal((n, D))
        signal = (features @ tuning)[:, None] * haemodynamic_response()[:, None]
        data = 0.6 * rng.standard_normal((n, FRAMES, P))
        data[:, :, seeing] += signal
        names = [f"s{first + k}" for k in range(n)]
        return Recording.from_arrays(data.astype(np.float32), pd.DataFrame({"stimulus": names})), (
            features
        )

    train, hidden = record(400, 0)
    test, truth = record(N, 400)
    X = np.einsum("ntf,t->nf", train.data.astype(float), haemodynamic_response())
    weights = np.linalg.solve(X.T @ X + 20 * np.eye(P), X.T @ hidden)
    return {
        "weights": weights.astype(np.float32),
        "test": test,
        "train": train,
        "truth": {"features": truth},
        "rois": {"seeing": seeing, "other": ~seeing},
    }


def problem(planted, form, **other):
    facts = {k: planted[k] for k in ("test", "train", "truth", "rois")}
    decoder = FrameRidge(planted["weights"], form)
    return Problem(**{"decoder": decoder, "draws": 200, **facts, **other})


def curve(result, roi):
    rows = result.table[result.table["roi"] == roi].sort_values("frame")
    return rows.set_index("frame")


@pytest.mark.parametrize("how", HOW)
def test_the_peak_of_the_response_is_found(planted, how):
    found = frame_maps(problem(planted, "linear"), how=how)
    whole, seeing, other = (curve(found, roi) for roi in (EVERYWHERE, "seeing", "other"))
    assert list(found.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert whole["value"].idxmax() in (PEAK, PEAK + 1, PEAK + 2)  # frames from 1
    assert np.corrcoef(seeing["value"], haemodynamic_response())[0, 1] > 0.9
    assert (seeing.loc[[PEAK, PEAK + 1], "q"] < 0.05).all()
    assert np.abs(other["value"]).max() < 0.1 * seeing["value"].max()
    assert set(found.table["stage"]) == {f"features, frame {t}" for t in range(1, FRAMES + 1)}


@pytest.mark.parametrize("how", HOW)
def test_decoding_derivatives_and_parts_agree(planted, how):
    one = frame_maps(problem(planted, "linear"), how=how)
    two = frame_maps(problem(planted, "tensors" if how == "gradients" else "closed"), how=how)
    assert np.allclose(one.table["value"], two.table["value"], atol=1e-4)
    assert np.allclose(one.table["low"], two.table["low"], atol=1e-4)


def test_frames_of_a_linear_decoder_add_up(planted):
    leave, only = (frame_maps(problem(planted, "linear"), how=how) for how in ("leave_out", "only"))
    assert np.allclose(leave.table["value"], only.table["value"])  # no frame stands in for another
    of_regions = curve(leave, "seeing")["value"] + curve(leave, "other")["value"]
    assert np.allclose(of_regions, curve(leave, EVERYWHERE)["value"])
    name = f"frames:leave_out features frame {PEAK + 1}"
    assert leave.maps[name][0] == pytest.approx(curve(leave, "seeing")["value"][PEAK + 1])


def test_a_frame_that_is_not_read_gets_exactly_nothing(planted):
    late = haemodynamic_response()
    late[0] = 0
    for form, how in (("linear", "leave_out"), ("tensors", "gradients"), ("closed", "only")):
        found = frame_maps(
            problem(planted, form, decoder=FrameRidge(planted["weights"], form, late)),
            how=how,
            by_region=False,
        )
        first = found.table[found.table["frame"] == 1].iloc[0]
        assert first["value"] == 0
        assert first["p"] == 1
        assert len(found.table) == FRAMES
        assert not found.maps


def test_refusals(planted):
    flat = Recording.from_arrays(planted["test"].data.mean(axis=1), planted["test"].trials)
    with pytest.raises(UsageError, match=r"needs a recording \(trials, frames, features\)"):
        frame_maps(problem(planted, "linear", test=flat))
    with pytest.raises(UsageError, match="how is 'both'"):
        frame_maps(problem(planted, "linear"), how="both")
    with pytest.raises(UsageError, match="no gradients"):
        frame_maps(problem(planted, "closed"), how="gradients")
