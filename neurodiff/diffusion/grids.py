"""Grids: lists of levels from noisy to clean.  All but :func:`by_strength` end with clean data."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from neurodiff.diffusion.paths import CLEAN, Level, Path, VariancePreserving


def trailing(path: Path, steps: int) -> list[Level]:
    """Evenly spaced in t (in u of a shifted flow), the first being the noisiest of the path.

    Examples
    --------
    >>> from neurodiff.diffusion.paths import cosine
    >>> [int(level.t) for level in trailing(cosine(100), 4)]
    [99, 74, 49, 24, -1]
    """
    most = getattr(path, "steps", math.inf)
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}; this path has 1 to {most}")
    return [path.share(1 - i / steps) for i in range(steps + 1)]


def leading(path: VariancePreserving, steps: int, offset: int = 1, last: int = -1) -> list[Level]:
    """Multiples of T // steps plus ``offset``, the grid of published latent diffusion: its first
    level is not the noisiest (Lin et al. 2024 tell what that costs).  ``last`` 0 ends at the
    cleanest step, as published (``set_alpha_to_one=False``), -1 at clean data."""
    stride = path.steps // steps if 0 < steps <= path.steps else 0
    if not stride:
        raise ValueError(f"steps is {steps}; this path has 1 to {path.steps}")
    times = [i * stride + offset for i in reversed(range(steps))]
    return [*explicit(path, times)[:-1], path.level(last)]


def explicit(path: VariancePreserving, times: Sequence[int]) -> list[Level]:
    """The levels of falling ``times``, then clean data if it is not the last (-1)."""
    times = list(times)
    if not times or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"times must fall, got {times}")
    return [path.level(t) for t in times + ([] if times[-1] == -1 else [-1])]


def karras(
    path: Path, steps: int, *, rho: float = 7.0, ends: Any = None, whole: bool = True
) -> list[Level]:
    """Ratios sigma / alpha whose rho-th roots are evenly spaced (EDM 2022, eq. 5).

    ``ends`` are the largest and the smallest ratio, by default the path's.  On a table of steps the
    nearest ones are taken (equal ones once), unless ``whole`` is False.
    """
    return _between(path, steps, ends, whole, lambda r: r ** (1 / rho), lambda root: root**rho)


def lu_lambda(path: Path, steps: int, *, ends: Any = None, whole: bool = True) -> list[Level]:
    """Levels evenly spaced in ln(alpha / sigma) (Lu et al. 2022); options of :func:`karras`."""
    return _between(path, steps, ends, whole, math.log, math.exp)


def _between(path, steps, ends, whole, there, back) -> list[Level]:
    first, last = (there(r) for r in ends or path.ends)
    ratios = [back(first + (last - first) * i / max(steps - 1, 1)) for i in range(steps)]
    return [*dict.fromkeys(path.at(ratio, whole) for ratio in ratios), CLEAN]


def by_strength(grid: Sequence[Level], strength: float) -> list[Level]:
    """The last int(strength * steps) steps: start there from data noised to the first level
    (SDEdit, Meng et al. 2022; 0.75 of 50 steps is 37)."""
    kept = int((len(grid) - 1) * strength)
    if not 1 <= kept < len(grid):
        raise ValueError(f"strength {strength} of {len(grid) - 1} steps leaves {kept}")
    return list(grid[-kept - 1 :])


def from_noise(path: Path, grid: Sequence[Level], ratio: float, whole: bool = True) -> list[Level]:
    """Enter at a known noise: the level of this sigma / alpha, then all cleaner levels of the grid.

    For an estimate of x_0 with error SD ``ratio`` (a ridge prediction, a noisy scan): start from
    alpha times the estimate, or noise it further.
    """
    start = path.at(ratio, whole)
    return [start, *(level for level in grid if level.ratio < start.ratio)]
