"""The published augmentation of fMRI frames: noise along random paths on the cortex.

Of each frame, with a probability of 0.8, up to five self-avoiding paths of 100 to 300 pixels get
normal noise with the frame's own mean and spread (Gao et al. 2024, released code).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


def noise_along_paths(
    frames: Float[np.ndarray, "n h w"],
    mask: Bool[np.ndarray, "h w"],
    rng: np.random.Generator,
    *,
    share: float = 0.8,
    most_paths: int = 5,
    lengths: tuple[int, int] = (100, 300),
) -> Float[np.ndarray, "n h w"]:
    """A copy of ``frames`` with noise added where paths run; only pixels of ``mask`` change."""
    out, places = frames.copy(), np.argwhere(mask)
    for frame in out:
        if rng.random() >= share or not len(places):
            continue
        mean, spread = float(frame.mean()), float(frame.std())
        for _ in range(rng.integers(most_paths + 1)):
            path = _walk(mask, places, int(rng.integers(lengths[0], lengths[1] + 1)), rng)
            frame[tuple(path.T)] += rng.normal(mean, spread, len(path)).astype(frame.dtype)
    return out


def _walk(mask: np.ndarray, places: np.ndarray, length: int, rng: np.random.Generator):
    """A path of at most ``length`` neighbouring pixels of the mask; shorter where it is stuck."""
    here = tuple(int(x) for x in places[rng.integers(len(places))])
    path, seen = [here], {here}
    height, width = mask.shape
    while len(path) < length:
        steps = [(here[0] + a, here[1] + b) for a, b in MOVES]
        free = [
            s
            for s in steps
            if 0 <= s[0] < height and 0 <= s[1] < width and mask[s] and s not in seen
        ]
        if not free:
            break
        here = free[int(rng.integers(len(free)))]
        path.append(here)
        seen.add(here)
    return np.array(path)
