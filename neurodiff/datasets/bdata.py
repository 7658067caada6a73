"""BData files (``.h5``) of the Kamitani laboratory, read with h5py alone.

::

    dataset  (samples, columns)          dataSet in older files
    metadata/key          (keys,) text   metaData in older files
    metadata/value        (keys, columns)   1 where the column belongs to the key; or a number; NaN
    metadata/description  (keys,) text
    vmap/<key>/<number>   text           optional: what a number in the column of the key stands for

Voxels and labels are columns of one table; the metadata tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, suggest
from neurodiff.core.safe_hdf5 import read_hdf5
from neurodiff.datasets.nsd_betas import opened_hdf5


@dataclass(frozen=True, eq=False)
class BData:
    """One file in memory, voxels as they are stored.

    Attributes
    ----------
    path : of the file.
    table : (samples, columns).
    metadata : key -> float64 (columns,).
    labels : key -> number -> text, of ``vmap``.
    """

    path: Path
    table: np.ndarray
    metadata: Mapping[str, np.ndarray]
    labels: Mapping[str, Mapping[float, str]]

    @classmethod
    def open(cls, path: str | Path) -> BData:
        """Read a file with old or new names.

        Raises
        ------
        MissingDataError : there is no such file.
        DataError : another file, or tables that do not fit together.
        """
        path = Path(path)
        with opened_hdf5(path) as file:
            try:
                return cls(path, *_contents(path, file))
            except DataError:
                raise
            except Exception as error:  # broken bytes end in any of a dozen types inside h5py
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise DataError(f"{path} is not a whole BData file ({first})") from None

    def columns(self, key: str) -> np.ndarray:
        """Boolean (columns,): where the metadata of ``key`` is 1.

        Raises
        ------
        DataError : no such key.
        """
        if key not in self.metadata:
            there = ", ".join(list(self.metadata)[:20])
            raise DataError(
                f"{self.path} has no metadata {key!r}; it has {there}.{suggest(key, self.metadata)}"
            )
        return self.metadata[key] == 1

    def select(self, key: str) -> np.ndarray:
        """The columns of ``key``: (samples, columns of the key)."""
        return self.table[:, self.columns(key)]

    def column(self, key: str) -> np.ndarray:
        """The one column of ``key``: (samples,).

        Raises
        ------
        DataError : no such key, or another number of columns.
        """
        values = self.select(key)
        if values.shape[1] != 1:
            raise DataError(f"{self.path} has {values.shape[1]} columns of {key}; expected 1")
        return values[:, 0]

    def names(self, key: str) -> list[str]:
        """What the numbers of ``key`` stand for, by ``vmap``.

        Raises
        ------
        DataError : a number without a name.
        """
        known = self.labels[key]
        numbers = self.column(key).tolist()
        for number in numbers:
            if number not in known:
                raise DataError(f"{self.path} has no name for {number:g} in vmap/{key}")
        return [known[number] for number in numbers]


def _contents(
    path: Path, file: Any
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, dict[float, str]]]:
    name = next((name for name in ("dataset", "dataSet") if name in file), None)
    group = next((name for name in ("metadata", "metaData") if name in file), None)
    if name is None or group is None:
        raise DataError(
            f"{path} holds {', '.join(file) or 'nothing'}; expected dataset and metadata, or "
            "dataSet and metaData: give a BData file"
        )
    table = read_hdf5(file[name], str(path))
    keys = [_text(value) for value in np.asarray(file[group]["key"]).reshape(-1)]
    values = np.asarray(file[group]["value"], dtype=np.float64)
    if table.ndim != 2 or table.dtype.kind not in "iuf":
        raise DataError(
            f"{path} has {name} {table.dtype} {table.shape}; expected a table of numbers"
        )
    if values.shape != (len(keys), table.shape[1]):
        raise DataError(
            f"{path} has {len(keys)} keys, metadata {values.shape} and {table.shape[1]} columns; "
            "expected one row a key and one column a column: download it again"
        )
    if len(set(keys)) != len(keys):
        raise DataError(f"{path} has a key of its metadata twice; download it again")
    labels = {
        key: {float(number): _text(np.asarray(text)[()]) for number, text in entries.items()}
        for key, entries in _groups(file.get("vmap"))
    }
    return table, dict(zip(keys, values, strict=True)), labels


def _groups(parent: Any) -> Iterator[tuple[str, Any]]:
    if parent is not None:
        yield from parent.items()


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.strip()
