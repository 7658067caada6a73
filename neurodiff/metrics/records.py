"""What a number means: the record that every metric is shown with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score function together with what a reader must know to read its numbers.

    Attributes
    ----------
    name : short, unique in a table, as in "F-score@1%".
    unit : "" for plain shares and ratios; a factor such as "x1e-2" belongs here.
    higher_is_better : direction.
    chance : score of a guess that knows nothing; None where it depends on the data and has to be
        measured (a floor, for example the mean prediction).
    reference : publication that defines it.
    protocol : settings that change the number (points, scale, draws).
    function : ``(prediction, truth) -> (items,)``.

    Examples
    --------
    >>> error = Metric(
    ...     name="MAE",
    ...     unit="a.u.",
    ...     higher_is_better=False,
    ...     chance=None,
    ...     reference="none",
    ...     protocol="mean over features",
    ...     function=lambda a, b: np.abs(a - b).mean(axis=1),
    ... )
    >>> error(np.zeros((2, 3)), np.ones((2, 3)))
    array([1., 1.])
    >>> error.better(0.1, 0.2)
    True
    """

    name: str
    unit: str
    higher_is_better: bool
    chance: float | None
    reference: str
    protocol: str
    function: Callable[..., Any]

    def __call__(self, prediction: Any, truth: Any) -> np.ndarray:
        """Score each item; raises ValueError where the function does not give one value each."""
        values = np.asarray(self.function(prediction, truth), dtype=np.float64)
        if values.ndim != 1 or len(values) != len(truth):
            raise ValueError(
                f"{self.name} gave values of shape {values.shape} for {len(truth)} items; "
                "pass items along the first axis"
            )
        return values

    def better(self, a: float, b: float) -> bool:
        """Tell whether score ``a`` is strictly better than score ``b``."""
        return a > b if self.higher_is_better else a < b
