"""Features of objects that simulated areas are tuned to: contrast, shape and category."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from neurodiff.core.seeds import item_seed, numpy_generator


@dataclass(frozen=True)
class StimulusFeatures:
    """What the areas are tuned to; each array (stimuli, d), z-scored on the reference stimuli."""

    contrast: Float[np.ndarray, "stimuli 64"]
    shape: Float[np.ndarray, "stimuli d"]
    category: Float[np.ndarray, "stimuli 16"]

    def __len__(self) -> int:
        return len(self.contrast)


class FeatureSpace:
    """Stimulus features with their scale and shape axes fixed on reference stimuli.

    contrast : 8 x 8 map of local standard deviation in the rendered views, mean over views.
    shape : leading principal components of the 16^3 occupancy.
    category : a fixed random direction a category in 16 dimensions; also for categories that the
        reference does not hold, since an unseen kind of object excites these areas too.
    """

    N_SHAPE = 24

    def __init__(
        self,
        views: Shaped[np.ndarray, "n views h w"],
        grids: Shaped[np.ndarray, "n g g g"],
        categories: list[str],
    ):
        occupancy = _coarse(grids)
        self._mean = occupancy.mean(axis=0)
        _, _, axes = np.linalg.svd(_subset(occupancy - self._mean), full_matrices=False)
        self._axes = axes[: self.N_SHAPE].T
        raw = self._raw(views, grids, categories)
        self._scale = {name: (v.mean(axis=0), _spread(v)) for name, v in raw.items()}

    def __call__(self, views, grids, categories: list[str]) -> StimulusFeatures:
        raw = self._raw(views, grids, categories)
        return StimulusFeatures(
            **{
                name: ((v - self._scale[name][0]) / self._scale[name][1]).astype(np.float32)
                for name, v in raw.items()
            }
        )

    def _raw(self, views, grids, categories) -> dict[str, np.ndarray]:
        # the first axis of 4-colour renders is dropped by the caller: views are grey, 0..255
        n, k, height, width = views.shape
        blocks = views.reshape(n, k, 8, height // 8, 8, width // 8).astype(np.float32) / 255
        return {
            "contrast": blocks.std(axis=(3, 5)).mean(axis=1).reshape(n, 64),
            "shape": (_coarse(grids) - self._mean) @ self._axes,
            "category": np.stack([_direction(name) for name in categories]),
        }


def _direction(category: str) -> np.ndarray:
    key = item_seed(0, subject="", stimulus=category, stage="category direction")
    return numpy_generator(key).standard_normal(16)


def _coarse(grids: np.ndarray) -> np.ndarray:
    """(n, 32, 32, 32) occupancy -> (n, 4096) share of each 2^3 block that is filled."""
    n, g = grids.shape[:2]
    blocks = grids.reshape(n, g // 2, 2, g // 2, 2, g // 2, 2)
    return blocks.mean(axis=(2, 4, 6), dtype=np.float32).reshape(n, -1)


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each feature, at least a tenth of the typical one: a corner of the
    picture that no reference object reaches must not become huge when a new object does."""
    spread = values.std(axis=0)
    return np.maximum(spread, max(0.1 * np.sqrt(np.mean(spread**2)), 1e-6))


def _subset(rows: np.ndarray, most: int = 1000) -> np.ndarray:
    """Evenly spaced rows: 24 axes need no more, and the decomposition stays under a second."""
    return rows[:: max(1, len(rows) // most)]
