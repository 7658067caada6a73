"""Haxby's slice, category by category and half by half: a regression test, not a finding.

One slice of one subject says nothing of the two hemispheres. The table shows whether the software
still does the same to real data: categories decoded from all voxels, and from one half of the mask
while the other is silent (its mean, 0 after the z-score of each run).
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeClassifier

from neurodiff.core.recording import Recording
from neurodiff.datasets.haxby import CATEGORIES, Haxby2001, block_means, leave_one_run_out

GOLDEN = Path(__file__).parent / "golden" / "haxby_attribution.json"
ALPHA = 1000.0  # of the known figure, 67 of 96


class RunwiseRidge:
    """Scores of the eight categories, each run's by a ridge that never saw the run."""

    name = "ridge"
    stages = ("category",)

    def __init__(self, blocks: Recording):
        self._models = {}
        for run in blocks.trials["run"].unique():
            train = (blocks.trials["run"] != run).to_numpy()
            model = RidgeClassifier(alpha=ALPHA)
            self._models[run] = model.fit(
                blocks.array()[train], blocks.trials["category"].to_numpy(str)[train]
            )

    def decode(self, data: np.ndarray, trials: pd.DataFrame) -> dict[str, np.ndarray]:
        scores = np.zeros((len(data), len(CATEGORIES)))
        runs = trials["run"].to_numpy()
        for run in np.unique(runs):
            scores[runs == run] = self._models[run].decision_function(data[runs == run])
        return {"category": scores}

    def truth(self, ids) -> dict[str, np.ndarray]:
        told = [name.rsplit(" ", 1)[0] for name in ids]
        return {"category": np.array([[float(c == t) for c in CATEGORIES] for t in told])}


@pytest.fixture(scope="module")
def blocks(shared_data):
    """96 block means, each a stimulus of its own, with the two halves of the mask as regions."""
    means = block_means(Haxby2001.open(shared_data / "haxby2001_slice")[0])
    places = np.argwhere(means.space.mask) @ means.space.affine[:3, :3].T
    left = places[:, 0] + means.space.affine[0, 3] < 0
    trials = means.trials.assign(
        category=means.trials["stimulus"],
        stimulus=[f"{s} {r}" for s, r in zip(means.trials.stimulus, means.trials.run, strict=True)],
    )
    return Recording.from_arrays(
        means.array(), trials, {"left": left, "right": ~left}, means.space, name=means.name
    )


def hits(scores: np.ndarray, trials: pd.DataFrame) -> dict[str, int]:
    """Blocks of each category whose own category scores highest."""
    named = np.array(CATEGORIES)[scores.argmax(axis=1)]
    right = pd.Series(named == trials["category"].to_numpy())
    return {c: int(n) for c, n in right.groupby(trials["category"].to_numpy()).sum().items()}


def table_of(blocks: Recording) -> dict[str, dict[str, int]]:
    decoder = RunwiseRidge(blocks)
    # with two halves, one alone is the same as the other silenced
    keeps = {"all": np.ones(blocks.n_features, bool)}
    keeps |= {f"{name} only": mask for name, mask in blocks.rois.items()}
    return {
        what: hits(
            decoder.decode(np.where(keep, blocks.array(), 0.0), blocks.trials)["category"],
            blocks.trials,
        )
        for what, keep in keeps.items()
    }


@pytest.mark.shared_data
def test_the_table_by_category_is_the_stored_one(blocks):
    found = table_of(blocks)
    assert sum(found["all"].values()) == 67  # the figure that is known for this slice
    assert found == json.loads(GOLDEN.read_text())["correct of 12"]


@pytest.mark.shared_data
def test_the_decoder_run_by_run_is_leave_one_run_out(blocks):
    trials = blocks.trials.assign(stimulus=blocks.trials["category"])
    plain = Recording.from_arrays(blocks.array(), trials.drop(columns="repeat"))
    decoded = leave_one_run_out(plain, lambda: RidgeClassifier(alpha=ALPHA)).table
    named = decoded["truth"] == decoded["predicted"]
    found = table_of(blocks)["all"]
    assert found == {c: int(n) for c, n in named.groupby(decoded["truth"]).sum().items()}
