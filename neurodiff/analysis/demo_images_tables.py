"""Tables of the scenes demo: what the judge tells of pictures, and each decoder before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.core.progress import Progress

if TYPE_CHECKING:
    from neurodiff.analysis.demo_images import SceneOutcome
    from neurodiff.datasets.simulated.scenes import SceneSet


def labels_of(scenes: SceneSet) -> dict[str, list[str]]:
    """What the judge tells of each scene: object, place and colour."""
    return {
        task: [getattr(scene, task) for scene in scenes.scenes]
        for task in ("category", "place", "colour")
    }


def answer_table(outcome: SceneOutcome, ids: Sequence[str]) -> pd.DataFrame:
    """How often the judge tells object, place and colour rightly from each condition's pictures."""
    from neurodiff.analysis.image_conditions import CEILING, OURS
    from neurodiff.pipelines.pictures import as_array

    place = {name: k for k, name in enumerate(outcome.scenes["test"].ids)}
    shown = outcome.scenes["test"].select([place[name] for name in ids])
    truth = labels_of(shown)
    names = {"ours": OURS, "true": CEILING}
    rows = [{"pictures": "true pictures", **outcome.judge.accuracy(shown.images, truth)}]
    for name, pictures in outcome.pictures.items():
        images = as_array([one.image for one in pictures])
        rows.append({"pictures": names.get(name, name), **outcome.judge.accuracy(images, truth)})
    counts = {task: len(labels) for task, labels in outcome.judge.classes.items()}
    rows.append({"pictures": "chance", **{task: 1 / n for task, n in counts.items()}})
    return pd.DataFrame(rows)


def head_table(
    outcome: SceneOutcome, means: Any, permutations: int, progress: Progress
) -> pd.DataFrame:
    """Feature-level decoding before any generator: each head's correlation over test items.

    Parameters
    ----------
    means : the test recording, repeats averaged.
    permutations : of the items, for the chance of each correlation.
    """
    from neurodiff.bridges.permutations import permutation_null
    from neurodiff.metrics.statistics import bootstrap_interval
    from neurodiff.pipelines.brain_diffuser_settings import HEADS

    assert outcome.pipe.input is not None
    X = outcome.pipe.input(means)
    rows = []
    for head in progress.over(HEADS, "permutations of the decoders"):
        bridge = outcome.pipe.heads[head]
        true = getattr(outcome.features["true"], head).reshape(len(X), -1)
        told = bridge.predict_raw(X).reshape(len(X), -1)
        varies = np.flatnonzero(true.std(axis=0) > 1e-6 * np.abs(true).max())
        r = _correlations(told[:, varies], true[:, varies])
        targets = bridge.targets_.take(varies, np.float32)
        null = permutation_null(
            bridge.hat(X), targets, true[:, varies], permutations=permutations
        ).mean(axis=-1)
        at = bootstrap_interval(r)
        rows.append(
            {
                "head": head,
                "targets": bridge.targets_.shape[1],
                "alpha": float(np.median(bridge.alpha_)),
                "leave-one-out R2": float(np.max(bridge.sketch_r2_)),
                "test correlation": at.value,
                "low": at.low,
                "high": at.high,
                "chance": float(null.mean()),
                "p": float((1 + (null >= r.mean()).sum()) / (1 + len(null))),
            }
        )
    return pd.DataFrame(rows)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return (a * b).sum(axis=0) / np.where(scale > 0, scale, np.inf)
