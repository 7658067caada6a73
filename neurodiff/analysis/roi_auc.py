"""Does the scene of a tuned area show what the area prefers? On simulated subjects the answer is
known: areas with a planted preference against areas that carry nothing.

For an area and what it prefers, the score of each of its scenes (from a judge that knows nothing of
brains) is compared to that of every scene of every null area, for the same preference: the share of
pairs in which the tuned one is higher, ties one half. A judge that likes one label better gains
nothing by it, since both sides are scored for it. Chance is 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.statistics import Interval
from neurodiff.pipelines.pictures import Picture, as_array

if TYPE_CHECKING:
    from neurodiff.features.scene_judge import SceneJudge


@dataclass(frozen=True)
class RoiAuc:
    """``table`` : a row a tuned area; ``overall`` : mean over areas with its interval."""

    table: pd.DataFrame
    overall: Interval

    def __str__(self) -> str:
        at = self.overall
        head = (
            f"AUC {at.value:.3f} ({at.low:.3f} to {at.high:.3f}; {at.method}), chance 0.5, "
            f"{at.n_items} tuned areas"
        )
        return f"{head}\n{self.table.round(3).to_string(index=False)}"


def roi_auc(
    scenes: Mapping[str, Sequence[Picture]],
    judge: SceneJudge,
    preferred: Mapping[str, tuple[str, str]],
    null: Sequence[str],
    *,
    n: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> RoiAuc:
    """Area under the ROC curve of tuned areas above null areas.

    Parameters
    ----------
    scenes : pictures by area, as `roi_scenes` gives them.
    judge : trained on true scenes; its tasks are the families of ``preferred``.
    preferred : area -> (family, what it prefers), such as `scene_subject.PREFERRED`.
    null : areas that carry nothing.
    n, seed, confidence : of the bootstrap, in which tuned areas, null areas and the samples of
        each are drawn again.

    Raises
    ------
    UsageError : an area without scenes, fewer than two tuned or two null areas, or an area on both
        sides.
    """
    tuned = list(preferred)
    missing = [area for area in (*tuned, *null) if not scenes.get(area)]
    both = sorted(set(tuned) & set(null))
    if missing or both or len(tuned) < 2 or len(null) < 2:
        told = f"no scenes of {', '.join(missing[:5])}" if missing else f"{both} on both sides"
        if not (missing or both):
            told = f"{len(tuned)} tuned and {len(null)} null areas"
        raise UsageError(f"{told}; give scenes of two or more tuned and two or more null areas")
    grey = [as_array([one.image for one in scenes[area]]) for area in null]
    pairs, rows = [], []
    for area, (family, what) in preferred.items():
        images = as_array([one.image for one in scenes[area]])
        own = judge.score(images, family, what)
        other = [judge.score(part, family, what) for part in grey]
        pairs.append((own, other))
        probability = judge.probabilities(images)[family]
        named = [judge.classes[family][k] for k in probability.argmax(axis=1)]
        rows.append(
            {
                "area": area,
                "prefers": what,
                "AUC": _auc(own, np.concatenate(other)),
                "told as it": float(np.mean([label == what for label in named])),
                "null told as it": float(np.mean([_share(judge, p, family, what) for p in grey])),
                "scenes": len(own),
                "null scenes": sum(len(part) for part in grey),
            }
        )
    table = pd.DataFrame(rows)
    rng = numpy_generator(item_seed(seed, subject="", stimulus="", stage="roi auc"))
    drawn = np.array([_redrawn(pairs, rng) for _ in range(n)])
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    method = "bootstrap over areas and samples"
    overall = Interval(
        float(table["AUC"].mean()), float(low), float(high), len(tuned), confidence, method
    )
    return RoiAuc(table, overall)


def null_areas(areas: pd.DataFrame) -> list[str]:
    """The areas of `PlantedSubject.areas_table` that carry nothing."""
    return [str(area) for area in areas.loc[areas["carries"] == "nothing", "area"]]


def _auc(high: np.ndarray, low: np.ndarray) -> float:
    difference = high[:, None] - low[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _share(judge: Any, images: np.ndarray, family: str, what: str) -> float:
    best = judge.probabilities(images)[family].argmax(axis=1)
    return float(np.mean(best == judge.classes[family].index(what)))


def _redrawn(pairs: list[tuple[np.ndarray, list[np.ndarray]]], rng: np.random.Generator) -> float:
    """Mean over tuned areas drawn again; the null areas and their samples are the same for all."""
    n_null = len(pairs[0][1])
    null = [
        (k, rng.integers(0, len(pairs[0][1][k]), len(pairs[0][1][k])))
        for k in rng.integers(0, n_null, n_null)
    ]
    found = []
    for area in rng.integers(0, len(pairs), len(pairs)):
        own, other = pairs[area]
        own = own[rng.integers(0, len(own), len(own))]
        found.append(_auc(own, np.concatenate([other[k][rows] for k, rows in null])))
    return float(np.mean(found))
