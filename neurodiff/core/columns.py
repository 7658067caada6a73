"""A table of numbers that is read a block of columns at a time, from memory or from a ``.npy``.

A decoder's targets can outgrow memory (8,859 images x 197,376 features are 7 GB in float32) while
every closed form of ridge needs only a block of their columns. A file is read with plain reads,
not through a memory map, because mapped pages count as the process's memory.

Examples
--------
>>> source = open_columns(np.arange(12.0).reshape(2, 3, 2))
>>> source.shape, source.item_shape, source.block(4, 6).tolist()
((2, 6), (3, 2), [[4.0, 5.0], [10.0, 11.0]])
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_io import read_npy, sha256_of

_KINDS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class ColumnSource:
    """Rows of equal items, their numbers flattened in C order into columns.

    Attributes
    ----------
    rows : number of items.
    item_shape : shape of one item; ``()`` for a single number.
    dtype : type of the stored numbers.
    array : (rows, columns) in memory, or None.
    path, offset, fortran : the file, where its numbers begin (bytes), and whether its first axis
        runs fastest; None, 0, False for an array in memory.
    """

    rows: int
    item_shape: tuple[int, ...]
    dtype: np.dtype
    array: np.ndarray | None = None
    path: Path | None = None
    offset: int = 0
    fortran: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return self.rows, math.prod(self.item_shape)

    def slices(self, width: int) -> Iterator[slice]:
        """Consecutive slices of at most ``width`` columns that cover all of them."""
        if width < 1:
            raise UsageError(f"a block has {width} columns; give a whole number from 1")
        for start in range(0, self.shape[1], width):
            yield slice(start, min(start + width, self.shape[1]))

    def block(self, start: int, stop: int, dtype: Any = None) -> np.ndarray:
        """Columns ``start`` to ``stop`` as (rows, stop - start), in ``dtype`` (default: as stored).

        May be a view of the array in memory: do not write into it.

        Raises
        ------
        DataError : the file has become shorter since it was opened.
        """
        if not 0 <= start < stop <= self.shape[1]:
            raise UsageError(f"columns {start} to {stop} of {self.shape[1]} do not exist")
        if self.array is not None:
            found = self.array[:, start:stop]
        else:
            found = self._read(start, stop)
        return found.astype(np.dtype(dtype or self.dtype.newbyteorder("=")), copy=False)

    def take(self, columns: np.ndarray, dtype: Any = None) -> np.ndarray:
        """The named columns, ascending, as (rows, len(columns)); a copy."""
        if self.array is not None:
            found = self.array[:, columns]
        elif self.fortran:
            found = np.concatenate([self._read(int(c), int(c) + 1) for c in columns], axis=1)
        else:
            found = np.zeros((self.rows, len(columns)), self.dtype)
            row = np.zeros(self.shape[1], self.dtype)
            with open(self.path, "rb", buffering=0) as file:  # type: ignore[arg-type]
                for i in range(self.rows):
                    self._fill(file, i * row.nbytes, row)
                    found[i] = row[columns]
        return found.astype(np.dtype(dtype or self.dtype.newbyteorder("=")), copy=False)

    def sha256(self) -> str:
        """SHA-256 of the file, or of the numbers in memory; 64 hex digits."""
        if self.path is not None:
            return sha256_of(self.path)
        return hashlib.sha256(np.ascontiguousarray(self.array).data).hexdigest()

    def _read(self, start: int, stop: int) -> np.ndarray:
        size = self.dtype.itemsize
        with open(self.path, "rb", buffering=0) as file:  # type: ignore[arg-type]
            if self.fortran:
                out = np.zeros((stop - start, self.rows), self.dtype)
                self._fill(file, start * self.rows * size, out)
                return out.T
            out = np.zeros((self.rows, stop - start), self.dtype)
            for i in range(self.rows):
                self._fill(file, (i * self.shape[1] + start) * size, out[i])
            return out

    def _fill(self, file: Any, place: int, out: np.ndarray) -> None:
        view = out.reshape(-1).data.cast("B")
        file.seek(self.offset + place)
        while len(view):
            got = file.readinto(view)
            if not got:
                raise DataError(f"{self.path} has become shorter since it was opened; fit again")
            view = view[got:]


def open_columns(values: Any) -> ColumnSource:
    """Columns of an array, of a memory map, or of the ``.npy`` file of which the path is given.

    Parameters
    ----------
    values : (n,) or (n, ...) numbers, or a path to such a ``.npy`` of float16, float32 or float64.
        An array is kept by reference; a whole ``np.memmap`` is read from its file instead.

    Raises
    ------
    MissingDataError, DataError : no such file; not a complete ``.npy`` of real numbers.
    """
    if isinstance(values, ColumnSource):
        return values
    if isinstance(values, str | os.PathLike):
        path = Path(values)
        found = read_npy(path, dtype=_KINDS, finite=False, mmap=True)
        if found.ndim == 0 or found.size == 0:
            raise DataError(f"{path} has shape {found.shape}; expected one row an item")
        if isinstance(found, np.memmap):
            return _of_map(found, path)
        values = found
    if isinstance(values, np.memmap) and values.filename and isinstance(values.base, mmap.mmap):
        return _of_map(values, Path(values.filename))
    array = np.asarray(values)
    if array.ndim == 0:
        raise DataError(f"expected one row an item; got the single value {values!r}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"expected real numbers; got values of type {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    item = tuple(array.shape[1:])
    flat = array.reshape(len(array), math.prod(item))
    return ColumnSource(rows=len(array), item_shape=item, dtype=array.dtype, array=flat)


def _of_map(found: np.memmap, path: Path) -> ColumnSource:
    fortran = not found.flags.c_contiguous
    if fortran and found.ndim > 2:  # an item's own numbers are in Fortran order: no plain columns
        raise DataError(f"{path} is stored in Fortran order; save it again in C order")
    return ColumnSource(
        rows=len(found),
        item_shape=tuple(found.shape[1:]),
        dtype=found.dtype,
        path=path,
        offset=int(found.offset),
        fortran=fortran,
    )
