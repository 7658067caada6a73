"""Small linear subjects whose answer is known: each ROI carries one family of features or nothing.

A response is ``signal_v(stimulus) + noise``; the signal has unit variance in expectation, the noise
the given variance, so the ceiling of a mean of k trials is 1 / (1 + noise / k) and the correlation
of a perfect model its root.
"""

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import Problem
from neurodiff.core.recording import Recording


class KnownStages:
    """A decoder that knows the features of every stimulus and decodes nothing."""

    name = "known"

    def __init__(self, table):
        self.table, self.stages = table, tuple(table)

    def decode(self, data, trials):
        return self.truth(list(trials["stimulus"]))

    def truth(self, ids):
        return {stage: np.stack([rows[i] for i in ids]) for stage, rows in self.table.items()}


def linear_problem(
    *,
    carries=("first", "second", None),
    vertices=20,
    d=4,
    n_train=80,
    n_test=40,
    repeats=1,
    train_repeats=1,
    noise=1.0,
    subjects=1,
    runs=4,
    draws=99,
    seed=0,
    with_train=True,
    frames=0,
    space=None,
):
    """A problem with ROIs "first", "second", "empty" of ``vertices`` each, and stages alike."""
    rng = np.random.default_rng(seed)
    names = {f"train-{k}": "train" for k in range(n_train)}
    names |= {f"test-{k}": "test" for k in range(n_test)}
    stages = {s: {i: rng.standard_normal(d) for i in names} for s in ("first", "second")}
    data, tables = [], []
    for subject in range(subjects):
        weights = [rng.standard_normal((d, vertices)) for _ in carries]
        weights = [w / np.linalg.norm(w, axis=0) for w in weights]
        for split, times in (("train", train_repeats), ("test", repeats)):
            ids = [i for i, part in names.items() if part == split]
            signal = np.concatenate(
                [
                    np.zeros((len(ids), vertices))
                    if what is None
                    else np.stack([stages[what][i] for i in ids]) @ w
                    for what, w in zip(carries, weights, strict=True)
                ],
                axis=1,
            )
            for repeat in range(times):
                shape = signal.shape if not frames else (len(ids), frames, signal.shape[1])
                held = signal if not frames else np.repeat(signal[:, None], frames, axis=1)
                scale = np.sqrt(noise * max(frames, 1))  # the mean over frames has ``noise``
                data.append(held + scale * rng.standard_normal(shape))
                tables.append(
                    pd.DataFrame(
                        {
                            "subject": f"sub-{subject + 1}",
                            "session": repeat + 1,
                            "run": [f"{split}-{k * runs // len(ids)}" for k in range(len(ids))],
                            "stimulus": ids,
                            "repeat": repeat + 1,
                            "split": split,
                        }
                    )
                )
    labels = [what or "empty" for what in carries]
    rois = {
        name: np.repeat(np.arange(len(carries)) == k, vertices) for k, name in enumerate(labels)
    }
    recording = Recording.from_arrays(
        np.concatenate(data), pd.concat(tables, ignore_index=True), rois, space
    )
    train, test = recording.split()
    decoder = KnownStages(stages)
    return Problem(
        decoder=decoder,
        test=test,
        train=train if with_train else None,
        truth=decoder.truth(list(test.trials["stimulus"])),
        rois=rois,
        metric="r",
        seed=seed,
        draws=draws,
    )
