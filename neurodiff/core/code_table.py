"""A table of codes: one row a scan, in one Parquet file that says which model made it.

::

    scan, subject, session, ...      what the cohort tells of a scan
    flags                            names of what is unusual about it, "" where nothing is
    source                           fingerprint of the scan that was encoded
    c000, c001, ...                  the code, float32

The metadata of the file hold the identity of the model and how scans were prepared.  A CSV of the
same columns is read and written as well; it has no place for metadata, so that its model is not
known and only the width of its codes can be checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.atomic import atomic_path, plain, write_csv
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_archives import check_parquet
from neurodiff.core.safe_io import read_csv, require_finite

FORMAT = "neurodiff codes 1"
_KEY = b"neurodiff"
_CODE = re.compile(r"c(\d{3,})")
_TEXT = ("scan", "subject", "flags", "source")
SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True, eq=False, kw_only=True)
class CodeTable:
    """Codes and what is known of their scans.

    Parameters
    ----------
    scans : one row a scan with ``scan`` (its id) and ``subject``; ``session`` (months), ``flags``,
        ``source`` and further columns may be there.
    codes : float32 (n, d), finite.
    about : ``model`` (identity, 64 hex digits), ``recipe``, ``protocol``, ``preparation``; empty
        where it is not known.

    Raises
    ------
    DataError : two scans with one id, NaN, or numbers of rows that differ.
    """

    scans: pd.DataFrame
    codes: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = self.scans.reset_index(drop=True)
        codes = np.asarray(self.codes, np.float32)
        if codes.ndim != 2 or len(codes) != len(table) or not codes.shape[1]:
            raise DataError(f"codes have shape {codes.shape} for {len(table)} scans; expected n, d")
        for name in ("scan", "subject"):
            if name not in table or table[name].isna().any():
                raise DataError(f"the table of codes has a scan without {name!r}; name each")
        for name in _TEXT:
            given = table[name] if name in table else pd.Series([""] * len(table), dtype=object)
            table[name] = pd.Series(["" if pd.isna(v) else str(v) for v in given], dtype=object)
        twice = table["scan"].duplicated()
        if twice.any():
            raise DataError(
                f"the table of codes has the scan {table['scan'][int(twice.argmax())]} twice; keep "
                "one of them"
            )
        require_finite(codes, "the table of codes")
        object.__setattr__(self, "scans", table)
        object.__setattr__(self, "codes", codes)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def width(self) -> int:
        """Numbers of a code."""
        return self.codes.shape[1]

    @property
    def model(self) -> str:
        """Identity of the model that made them; "" where the file does not say it."""
        return str(self.about.get("model") or "")

    def require_model(self, identity: str, width: int, where: str = "the table of codes") -> None:
        """Raise DataError where the codes are of another model or width."""
        if self.width != width:
            raise DataError(
                f"{where} has codes of {self.width} numbers and this model's have {width}; encode "
                "the scans with this model"
            )
        if self.model and self.model != identity:
            raise DataError(
                f"{where} was encoded by another model ({self.model[:10]}; this one is "
                f"{identity[:10]}); encode the scans with this model, or give that one"
            )

    def frame(self) -> pd.DataFrame:
        """Scans and codes side by side, as they are written."""
        columns = {f"c{k:03d}": self.codes[:, k] for k in range(self.width)}
        return pd.concat([self.scans, pd.DataFrame(columns)], axis=1)


def write_codes(path: str | Path, table: CodeTable) -> Path:
    """Write a table, whole or not at all; ``.parquet``, or ``.csv`` without what is known of the
    model.

    Raises
    ------
    UsageError : another ending.
    DataError : the disk is full.
    """
    path = checked_name(path)
    frame = table.frame()
    if path.suffix == ".csv":
        write_csv(path, frame)
        return path
    import pyarrow as pa
    import pyarrow.parquet as parquet

    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    record = {"format": FORMAT, **plain(table.about)}
    metadata = {**(arrow.schema.metadata or {}), _KEY: json.dumps(record).encode()}
    with atomic_path(path) as temporary:
        parquet.write_table(arrow.replace_schema_metadata(metadata), temporary)
    return path


def read_codes(path: str | Path) -> CodeTable:
    """Read what `write_codes` wrote, or a CSV with the columns scan, subject, c000, c001, ...

    Raises
    ------
    MissingDataError : no such file.
    UsageError : another ending.
    DataError : a damaged file, no codes, a gap in their columns, NaN, two scans with one id.
    """
    path = checked_name(path)
    about: dict[str, Any] = {}
    if path.suffix == ".csv":
        frame = read_csv(path, dtype={"scan": str, "subject": str})  # 007 stays 007
    else:
        frame, about = _read_parquet(path)
    found = {int(m[1]): name for name in frame for m in [_CODE.fullmatch(str(name))] if m}
    if not found:
        raise DataError(
            f"{path} has no columns c000, c001, ...; expected a table that `neurodiff encode` wrote"
        )
    lost = sorted(set(range(max(found) + 1)) - set(found))
    if lost:
        raise DataError(f"{path} has codes to c{max(found):03d} and lacks c{lost[0]:03d}")
    names = [found[k] for k in sorted(found)]
    try:
        codes = np.array(frame[names], np.float32)  # a copy: of one row it would be read-only
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} has a code that is no number ({error})") from None
    try:
        scans = frame.drop(columns=names)
        if "scan" not in scans and "subject" in scans:
            scans = scans.assign(scan=scans["subject"])
        return CodeTable(scans=scans, codes=codes, about=about)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def checked_name(path: str | Path) -> Path:
    """The path, which ends in one of `SUFFIXES`."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is no table of codes; its name ends in .parquet (or .csv)")
    return path


def _read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; write it with `neurodiff encode`")
    try:
        check_parquet(path)
        arrow = parquet.read_table(path)
        arrow.validate(full=True)  # text is decoded late, and may be none
        record = json.loads((arrow.schema.metadata or {}).get(_KEY, b"{}"))
        frame = arrow.to_pandas()
    except DataError:
        raise
    except Exception as error:  # broken bytes end in any of a dozen types inside pyarrow
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is damaged or no Parquet file ({first}); encode again") from None
    if not isinstance(record, dict) or record.get("format", FORMAT) != FORMAT:
        raise DataError(f"{path} has another format than {FORMAT!r}; encode the scans again")
    return frame, {k: v for k, v in record.items() if k != "format"}
