"""What a `Recording` asks of its parts: the trials' table, areas, selections; and its sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.lazy import LazyMasks

TRIAL_COLUMNS = ("subject", "session", "run", "stimulus", "repeat", "split")


def filled_trials(table: pd.DataFrame, n_trials: int) -> pd.DataFrame:
    """The trials' table with every column of `TRIAL_COLUMNS`, filled as `Recording` says.

    Raises
    ------
    UsageError, DataError : no DataFrame; another number of rows; a gap in one of these columns.
    """
    if not isinstance(table, pd.DataFrame):
        raise UsageError(f"trials is {type(table).__name__}; give a pandas DataFrame")
    if len(table) != n_trials:
        raise DataError(
            f"the trials table has {len(table)} rows and data has {n_trials} trials; "
            "give one row for each trial, in the same order"
        )
    table = table.reset_index(drop=True).copy()
    defaults: dict[str, Any] = {"subject": "sub-01", "session": 1, "run": 1, "split": "train"}
    for column, value in defaults.items():
        if column not in table:
            table[column] = value
    if "stimulus" not in table:
        table["stimulus"] = [str(row) for row in range(n_trials)]
    for column in TRIAL_COLUMNS:
        if column in table and table[column].isna().any():
            row = int(np.flatnonzero(table[column].isna())[0])
            raise DataError(f"the trials table has no {column} in row {row}; fill the column")
    for column in ("subject", "stimulus", "split"):
        table[column] = pd.Series([str(value) for value in table[column]], dtype=object)
    if "repeat" not in table:
        table["repeat"] = table.groupby(["subject", "stimulus", "split"], sort=False).cumcount() + 1
    others = [column for column in table.columns if column not in TRIAL_COLUMNS]
    return table[[*TRIAL_COLUMNS, *others]]


def checked_rois(rois: Mapping[str, Any], n_features: int) -> Mapping[str, np.ndarray]:
    """Areas by name as boolean masks (features,); lazy ones as they are: a look would load them.

    Raises
    ------
    DataError : a mask of another type or length.
    """
    if isinstance(rois, LazyMasks):
        return rois
    checked: dict[str, np.ndarray] = {}
    for name, mask in rois.items():
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (n_features,):
            raise DataError(
                f"ROI {name!r} is {mask.dtype} {mask.shape}; expected bool ({n_features},): "
                "one yes or no for each feature"
            )
        checked[str(name)] = mask
    return checked


def positions(which: Any, length: int, axis: str) -> np.ndarray:
    """Integer positions of a mask, an index array or a slice along an axis of this length.

    Raises
    ------
    UsageError : another length, another type, or an index outside the axis.
    """
    if isinstance(which, slice):
        return np.arange(length)[which]
    chosen = np.atleast_1d(np.asarray(which))
    if chosen.size == 0:
        return np.zeros(0, dtype=np.int64)
    if chosen.dtype == bool:
        if chosen.shape != (length,):
            raise UsageError(f"a mask of shape {chosen.shape} was given for {length} {axis}")
        return np.flatnonzero(chosen)
    if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
        raise UsageError(
            f"{axis} are selected by a mask, by whole numbers or by a slice, not by "
            f"{chosen.dtype} of shape {chosen.shape}"
        )
    if chosen.min() < -length or chosen.max() >= length:
        raise UsageError(f"index {int(chosen.max())} is outside the {length} {axis}")
    return np.arange(length)[chosen]


def stacked(arrays: Sequence[Any]) -> np.ndarray:
    """Arrays of equal shape along a new first axis; DataError where shapes differ."""
    shapes = [np.shape(array) for array in arrays]
    if len(set(shapes)) != 1:
        raise DataError(f"trials have the shapes {sorted(set(shapes))}; all need the same shape")
    return np.stack([np.asarray(array) for array in arrays])


def named(name: str) -> str:
    """`` 'name'`` for the middle of a sentence; nothing where there is no name."""
    return f" {name!r}" if name else ""


def listed(names: Any, most: int = 12) -> str:
    """Names for a sentence: the first ``most``, and how many more there are."""
    names = [str(name) for name in names]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + rest) or "none"
