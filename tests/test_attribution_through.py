"""What drawing loses without a region, against other pairings of drawn and shown."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from neurodiff.analysis.attribution_problem import COLUMNS, Problem
from neurodiff.analysis.attribution_through import reconstruction_loss
from neurodiff.core.recording import Recording

ROIS = {"tells": np.arange(7) < 3, "upholds": np.arange(7) == 3, "silent": np.arange(7) > 3}


class Painter:
    """Draws the first three responses; every picture is spoilt alike where the fourth is silent."""

    name, stages, compared = "painter", ("features",), "likeness"

    def __init__(self, truths):
        self.truths, self.asked = truths, []

    def decode(self, data, trials):
        return {"features": np.asarray(data, float)[:, :3]}

    def truth(self, ids):
        return {"features": np.stack([self.truths[i] for i in ids])}

    def draw(self, data, trials):
        spoilt = np.abs(data[:, 3]) < 0.5
        return [np.append(row[:3], spoil) for row, spoil in zip(data, spoilt, strict=True)]

    def compare(self, drawn, ids):
        self.asked.append(list(ids))
        return np.array(
            [y[:3] @ self.truths[i] - y[3] for y, i in zip(drawn, ids, strict=True)]
        )  # fmt: skip


def painted(seed=0, n=24, signal=1.0, runs=1):
    rng = np.random.default_rng(seed)
    names = [f"object {k:02d}" for k in range(n)]
    truths = {name: rng.standard_normal(3) for name in names}
    shown = np.stack([truths[name] for name in names])
    data = np.concatenate(
        [signal * shown + rng.standard_normal((n, 3)), np.sign(rng.standard_normal((n, 1))),
         rng.standard_normal((n, 3))],
        axis=1,
    )  # fmt: skip
    data[: n // 2, 3], data[n // 2 :, 3] = 1.0, -1.0  # the mean is silence
    table = pd.DataFrame({"subject": "a", "stimulus": names, "run": np.arange(n) * runs // n})
    recording = Recording.from_arrays(data.astype(np.float32), table, ROIS)
    decoder = Painter(truths)
    return Problem(
        decoder=decoder, test=recording, truth=decoder.truth(names), rois=ROIS, draws=199
    )


def test_what_is_lost_whatever_was_shown_is_no_information():
    problem = painted()
    found = reconstruction_loss(problem, trials=24)
    assert tuple(found.table) == COLUMNS
    table = found.table.set_index("roi")
    assert table.loc["tells", "p"] == pytest.approx(1 / 200)
    # drawing is worse by 1 in every trial without it, and as much so for all other objects
    assert table.loc["upholds", "value"] == pytest.approx(1.0)
    assert table.loc["upholds", "low"] > 0.9
    assert table.loc["upholds", "null_mean"] == pytest.approx(1.0)
    assert table.loc["upholds", "p"] == 1.0
    assert table.loc["silent", "value"] == pytest.approx(0.0)
    assert any("paired anew within 3 random blocks of these 24," in note for note in found.notes)
    assert len(found.items) == 3 * 24


def test_values_are_those_of_the_objects_that_were_shown():
    problem = painted()
    found = reconstruction_loss(problem, trials=12)
    items = found.items[found.items["roi"] == "tells"].set_index("stimulus")["value"]
    data = problem.test.array().astype(float)
    mean = data[:, :3].mean(axis=0)
    for k, name in enumerate(problem.test.trials["stimulus"]):
        if name in items.index:
            assert items[name] == pytest.approx((data[k, :3] - mean) @ problem.decoder.truths[name])


def test_pairs_that_the_null_cannot_make_are_not_compared():
    problem = painted(runs=2)
    found = reconstruction_loss(problem, trials=24)
    asked = sum(len(ids) for ids in problem.decoder.asked)
    assert asked == 4 * 24 * 6  # the whole and three regions; two runs of twelve, halved
    assert any("4 random blocks of these 24, each within one of 2 sets" in n for n in found.notes)
    assert found.table.set_index("roi").loc["tells", "p"] <= 0.01


def test_a_decoder_of_nothing_is_called_at_the_stated_rate():
    n = 40
    p = [
        reconstruction_loss(painted(seed, 20, signal=0.0), trials=20).table["p"].to_numpy()[:2]
        for seed in range(1, n + 1)
    ]
    tells, upholds = np.array(p).T
    assert binom.ppf(0.001, n, 0.5) <= (tells <= 0.5).sum() <= binom.ppf(0.999, n, 0.5)
    assert (tells <= 0.05).sum() <= binom.ppf(0.999, n, 0.05)
    assert (upholds > 0.99).all()
