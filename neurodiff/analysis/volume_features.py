"""Features on which sets of volumes are compared, each with a name that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from neurodiff.core.errors import UsageError

VolumeFeatures = Callable[[np.ndarray], np.ndarray]


def pca_features(volumes: np.ndarray, components: int) -> tuple[str, VolumeFeatures]:
    """Scores on the first principal components of (training) volumes, in units of their SD.

    Raises
    ------
    UsageError : not between 1 and n - 1 components.
    """
    flat = volumes.reshape(len(volumes), -1).astype(np.float64)
    if not 1 <= components < len(flat):
        raise UsageError(
            f"{components} components of {len(flat)} volumes; give 1 to {len(flat) - 1}"
        )
    mean = flat.mean(axis=0)
    centred = flat - mean
    # by the small side: volumes have many more voxels than there are scans
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    axes = centred.T @ (vectors / np.sqrt(np.maximum(values, 1e-12)))  # (voxels, components)
    spread = np.sqrt(np.maximum(values, 1e-12) / (len(flat) - 1))

    def features(x: np.ndarray) -> np.ndarray:
        return (x.reshape(len(x), -1).astype(np.float64) - mean) @ axes / spread

    return f"PCA-{components} of {len(flat)} scans", features


def regional_features(regional: Callable[[np.ndarray], dict[str, float]]) -> VolumeFeatures:
    """Logarithms of millilitres by region, from a ruler."""

    def features(x: np.ndarray) -> np.ndarray:
        ml = [list(regional(volume[0]).values()) for volume in x]
        return np.log(np.maximum(np.array(ml, np.float64), 1e-3))

    return features


def block_means(blocks: int = 4) -> tuple[str, VolumeFeatures]:
    """Mean intensities of ``blocks`` ** 3 blocks of the grid."""
    if blocks < 1:
        raise UsageError(f"{blocks} blocks along an axis; give at least 1")

    def features(x: np.ndarray) -> np.ndarray:
        for axis in (2, 3, 4):
            if x.shape[axis] < blocks:
                raise UsageError(f"{blocks} blocks do not fit into a grid of {x.shape[2:]}")
            pieces = np.array_split(np.arange(x.shape[axis]), blocks)
            x = np.stack([x.take(p, axis).mean(axis=axis) for p in pieces], axis=axis)
        return x.reshape(len(x), -1).astype(np.float64)

    return f"means of {blocks}^3 blocks", features


def code_features(pipe: Any) -> VolumeFeatures:
    """Semantic codes by the model itself: it judges its own pictures, which flatters them."""
    return lambda x: np.asarray(pipe.codes(x.astype(np.float32)), np.float64)
