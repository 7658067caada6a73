"""Data of recordings that is read, or computed, when it is indexed.

Every class has ``shape``, ``ndim``, ``dtype`` (float32), ``len`` and indexing along the first axis
by integer, slice, or integer array, as a recording asks of its data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError


class LazyRows:
    """Some rows and columns of lazy data, read on index as float32."""

    def __init__(self, base: Any, rows: Any = None, columns: Any = None) -> None:
        self.base = base
        self.rows = np.arange(len(base)) if rows is None else rows
        self.columns = columns
        width = base.shape[-1] if columns is None else len(columns)
        self.shape = (len(self.rows), *base.shape[1:-1], width)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        chosen = self.rows[index]
        block = np.asarray(self.base[int(chosen) if np.ndim(chosen) == 0 else chosen])
        if self.columns is not None:
            block = block[..., self.columns]
        return np.asarray(block, dtype=np.float32)


class LazyMeans:
    """Means of groups of rows, computed on index; sums are in float64."""

    def __init__(self, base: Any, groups: list[np.ndarray]) -> None:
        self.base = base
        self.groups = groups
        self.shape = (len(groups), *base.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        chosen = np.arange(len(self.groups))[index]
        if np.ndim(chosen) == 0:
            return self._mean(int(chosen))
        out = np.zeros((len(chosen), *self.shape[1:]), dtype=np.float32)
        for row, group in enumerate(chosen):
            out[row] = self._mean(int(group))
        return out

    def _mean(self, group: int) -> np.ndarray:
        trials = np.asarray(self.base[self.groups[group]], dtype=np.float64)
        return trials.mean(axis=0).astype(np.float32)


class LazyFiles:
    """One file a trial, read on index."""

    def __init__(self, paths: list[Path], read: Callable[[Path], np.ndarray]) -> None:
        self.paths = paths
        self.read = read
        self.shape = (len(paths), *read(paths[0]).shape)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        chosen = np.arange(len(self.paths))[index]
        if np.ndim(chosen) == 0:
            return self._one(int(chosen))
        out = np.zeros((len(chosen), *self.shape[1:]), dtype=np.float32)
        for row, number in enumerate(chosen):
            out[row] = self._one(int(number))
        return out

    def _one(self, number: int) -> np.ndarray:
        values = self.read(self.paths[number])
        if values.shape != self.shape[1:]:
            raise DataError(
                f"{self.paths[number]} has shape {values.shape}; the first trial, "
                f"{self.paths[0]}, has {self.shape[1:]}: all trials need the same shape"
            )
        return values


class LazyParts(ABC):
    """Trials (trials, features) of several parts one after the other, such as files of sessions."""

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, lengths: Iterable[int], n_features: int) -> None:
        self._starts = np.cumsum([0, *lengths])
        self.shape = (int(self._starts[-1]), n_features)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        flat = np.atleast_1d(rows)
        out = np.zeros((len(flat), self.shape[1]), np.float32)
        part = np.searchsorted(self._starts, flat, side="right") - 1
        for number in np.unique(part):
            here = part == number
            out[here] = self._read(int(number), flat[here] - self._starts[number])
        return out[0] if np.ndim(rows) == 0 else out

    @abstractmethod
    def _read(self, part: int, rows: np.ndarray) -> np.ndarray:
        """Some rows of a part as float32, checked."""


class LazyMasks(Mapping[str, np.ndarray]):
    """ROIs whose names are known and whose masks are made when they are asked for.

    Building a cortex takes longer than opening a recording on it.
    """

    def __init__(self, names: Sequence[str], load: Callable[[str], np.ndarray]) -> None:
        self._load = load
        self._masks: dict[str, np.ndarray | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> np.ndarray:
        mask = self._masks[name]
        if mask is None:
            mask = self._masks[name] = self._load(name)
        return mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)


def in_memory(data: Any) -> bool:
    """Whether ``data`` is an ordinary array, so that laziness saves nothing."""
    return isinstance(data, np.ndarray) and not isinstance(data, np.memmap)


def take_rows(data: Any, rows: np.ndarray) -> Any:
    """Some trials of ``data``; lazy data stays lazy."""
    if in_memory(data):
        return data[rows]
    if isinstance(data, LazyRows):
        return LazyRows(data.base, data.rows[rows], data.columns)
    return LazyRows(data, rows)


def take_columns(data: Any, columns: np.ndarray) -> Any:
    """Some features of ``data``; lazy data stays lazy."""
    if in_memory(data):
        return np.ascontiguousarray(data[..., columns])
    if isinstance(data, LazyRows):
        inner = columns if data.columns is None else data.columns[columns]
        return LazyRows(data.base, data.rows, inner)
    return LazyRows(data, None, columns)
