"""What ComBat is given, checked and as numbers: feature tables, batches, covariates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError, suggest


def feature_matrix(X: Any) -> tuple[np.ndarray, list[str] | None]:
    """Return features as float64 (n, features), and the names of a table's columns.

    Raises
    ------
    DataError : not two axes, no row, words instead of numbers, or numbers that are not finite.
    """
    names = [str(c) for c in X.columns] if isinstance(X, pd.DataFrame) else None
    try:
        values = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("a feature holds words; ComBat takes a table of numbers only") from None
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"the features have shape {values.shape}; give (rows, features)")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
    if bad.size:
        first = names[bad[0]] if names else f"number {bad[0]}"
        raise DataError(
            f"{bad.size} features hold NaN or infinity (the first: {first}); leave out those "
            "features or rows"
        )
    return values, names


def like_input(values: np.ndarray, X: Any) -> Any:
    """Give harmonized values the index and columns of a table, if one was given."""
    if isinstance(X, pd.DataFrame):
        return pd.DataFrame(values, index=X.index, columns=X.columns)
    return values


def batch_labels(batch: Any, n: int) -> np.ndarray:
    """Batches as text, one a row.

    Raises
    ------
    UsageError : another number of them.
    DataError : one is missing.
    """
    given = pd.Series(list(batch), dtype=object)
    if len(given) != n:
        raise UsageError(f"{len(given)} batches for {n} rows; name one each")
    if given.isna().any():
        raise DataError(
            f"row {int(given.isna().to_numpy().argmax())} has no batch; name the batch of each row"
        )
    return given.astype(str).to_numpy(dtype=str)


@dataclass(frozen=True)
class CovariateCode:
    """How covariates become numbers: column names, and the levels of those that hold words.

    Attributes
    ----------
    columns : names; numbers as text for an array.
    levels : for each column None (numbers) or its words, sorted; the first one is the base.
    """

    columns: list[str]
    levels: list[list[str] | None]

    @classmethod
    def learn(cls, covariates: Any, n: int) -> CovariateCode:
        """Take columns and levels from the training rows."""
        if covariates is None:
            return cls([], [])
        table = _table(covariates, n)
        levels = [None if _numeric(table[c]) else sorted(set(table[c].astype(str))) for c in table]
        return cls([str(c) for c in table.columns], levels)

    def matrix(self, covariates: Any, n: int) -> np.ndarray:
        """Return covariates as numbers (n, columns).

        Raises
        ------
        UsageError : covariates other than those of the fit.
        DataError : a word that the fit did not meet, or a missing value.
        """
        if covariates is None:
            if self.columns:
                raise UsageError(
                    f"this ComBat was fitted with covariates {', '.join(self.columns)}; give them"
                )
            return np.zeros((n, 0))
        table = _table(covariates, n)
        if [str(c) for c in table.columns] != self.columns:
            raise UsageError(
                f"the covariates are {', '.join(map(str, table.columns))}; the fit had "
                f"{', '.join(self.columns) or 'none'}"
            )
        blocks = []
        for at, (name, levels) in enumerate(zip(self.columns, self.levels, strict=True)):
            column = table.iloc[:, at]
            if levels is None:
                if not _numeric(column):
                    raise DataError(f"covariate {name} holds words; the fit had numbers")
                blocks.append(column.to_numpy(dtype=np.float64)[:, None])
                continue
            words = column.astype(str).to_numpy(dtype=str)
            unknown = sorted(set(words.tolist()) - set(levels))
            if unknown:
                raise DataError(
                    f"covariate {name} is {unknown[0]!r}, which the training did not have; it had "
                    f"{', '.join(levels)}.{suggest(unknown[0], levels)}"
                )
            blocks.append((words[:, None] == np.array(levels[1:])).astype(np.float64))
        return np.concatenate(blocks, axis=1)

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists."""
        return asdict(self)


def _table(covariates: Any, n: int) -> pd.DataFrame:
    table = covariates
    if not isinstance(table, pd.DataFrame):
        array = np.asarray(covariates)
        table = pd.DataFrame(array[:, None] if array.ndim == 1 else array)
    if len(table) != n:
        raise UsageError(f"{len(table)} rows of covariates for {n} rows of features")
    for name in table.columns:
        missing = table[name].isna().to_numpy()
        if _numeric(table[name]):
            missing = ~np.isfinite(table[name].to_numpy(dtype=np.float64))
        if missing.any():
            raise DataError(
                f"covariate {name} is missing in {int(missing.sum())} rows; leave those out"
            )
    return table


def _numeric(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))
