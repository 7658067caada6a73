"""A closed-form image embedding of an object: principal components of its rendered views.

It takes the place of CLIP's image features in runs that must need no downloaded weights. Like
them it is a fixed function of pictures, scaled to norm sqrt(d) (the published bridge does the
same with CLIP vectors); unlike them it holds appearance and no learned semantics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class ViewEmbedding:
    """``fit`` on reference views, then call on any; (n, views, h, w) -> (n, d)."""

    mean: Float[np.ndarray, " pixels"]
    axes: Float[np.ndarray, "pixels d"]
    scale: Float[np.ndarray, " d"]

    @classmethod
    def fit(cls, views: UInt8[np.ndarray, "n k h w"], dim: int, *, whiten: float = 0.5):
        """Principal components of ``views``.

        ``whiten``: 0 keeps each component's own spread, 1 makes all spreads equal. n objects have
        at most n - 1 components; those that they lack are 0 for every object.
        """
        pixels = _pixels(views)
        mean = pixels.mean(axis=0)
        centred = pixels - mean
        # eigenvectors of the smaller of the two Gram matrices
        if len(pixels) <= centred.shape[1]:
            values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
            values, vectors = values[::-1][:dim], vectors[:, ::-1][:, :dim]
            axes = centred.T @ (vectors / np.sqrt(np.maximum(values, 1e-9)))
        else:
            values, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
            values, axes = values[::-1][:dim], axes[:, ::-1][:, :dim]
        there = values > 1e-6 * max(values[0], 1e-9)  # the rest is rounding
        axes, values = axes[:, there], values[there]
        scale = np.sqrt(values / len(pixels)) ** whiten
        missing = dim - len(scale)
        return cls(
            mean.astype(np.float32),
            np.pad(axes, ((0, 0), (0, missing))).astype(np.float32),
            np.pad(scale, (0, missing), constant_values=1.0).astype(np.float32),
        )

    def __call__(self, views: UInt8[np.ndarray, "n k h w"]) -> Float[np.ndarray, "n d"]:
        scores = (_pixels(views) - self.mean) @ self.axes / self.scale
        norm = np.linalg.norm(scores, axis=1, keepdims=True)
        return (scores / np.maximum(norm, 1e-9) * np.sqrt(scores.shape[1])).astype(np.float32)


def _pixels(views: np.ndarray) -> np.ndarray:
    """Halved in size (antialiased by averaging), as float32 in 0..1; (n, k * h/2 * w/2)."""
    n, k, h, w = views.shape
    halves = views.reshape(n, k, h // 2, 2, w // 2, 2).mean(axis=(3, 5), dtype=np.float32)
    return halves.reshape(n, -1) / 255
