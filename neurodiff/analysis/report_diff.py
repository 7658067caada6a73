"""What differs between two runs, or between two reports: settings, data, weights, versions, scores.

Numbers of scores may differ by a relative tolerance; everything else has to be equal. What differs
between any two runs (command, times, memory, the name of a folder) is listed and does not count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.analysis.benchmark_record import FORMAT, PARTS, record_in
from neurodiff.core.errors import UsageError
from neurodiff.core.run import Run

COLUMNS = ("part", "what", "a", "b", "difference", "counts")
INFORMATION = ("circumstances",)
_NAMES = ("identity.name",)
_SHORT = 72  # signs of a value in a line of text
ABSENT = "absent"


@dataclass(frozen=True, eq=False)
class ReportDiff:
    """What differs.

    Attributes
    ----------
    table : one row a difference, with the columns `COLUMNS`; ``difference`` is relative for
        numbers, and ``counts`` is False for information and for numbers within the tolerance.
    names : what was compared. tolerance : relative, of scores. compared : number of values.
    """

    table: pd.DataFrame
    names: tuple[str, str]
    tolerance: float
    compared: int

    @property
    def same(self) -> bool:
        """Whether nothing that counts differs."""
        return not bool(self.table["counts"].any())

    @property
    def exit_code(self) -> int:
        """0 where nothing that counts differs, else 1, as of ``diff``."""
        return 0 if self.same else 1

    def text(self) -> str:
        """The differences as lines, by part, and the verdict last."""
        lines = [f"a: {self.names[0]}", f"b: {self.names[1]}"]
        for part, rows in self.table.groupby("part", sort=False):
            lines.append(f"{part}:")
            for row in rows.to_dict("records"):
                more = row["difference"]
                note = "" if math.isnan(more) else f" (relative difference {more:.2g})"
                mark = " " if row["counts"] else "~"
                lines.append(f"  {mark} {row['what']}: {_cut(row['a'])} | {_cut(row['b'])}{note}")
        n = int(self.table["counts"].sum())
        lines.append(
            f"{self.compared} values compared, {n} differ (scores: relative tolerance "
            f"{self.tolerance:g}; lines with ~ do not count)"
        )
        lines.append("same: exit code 0" if self.same else "different: exit code 1")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "same": self.same,
            "tolerance": self.tolerance,
            "compared": self.compared,
            "rows": self.table.to_dict("records"),
        }


def diff_reports(
    a: str | Path | Run | Mapping[str, Any],
    b: str | Path | Run | Mapping[str, Any],
    *,
    tolerance: float = 1e-6,
) -> ReportDiff:
    """Compare two runs (folders), two reports (``.json``), or two records.

    Parameters
    ----------
    tolerance : relative difference of scores that does not count.

    Raises
    ------
    UsageError : a negative tolerance, or a run against a report that holds no record of one.
    MissingDataError : nothing to compare at a path. DataError : it cannot be read.
    """
    if not tolerance >= 0:
        raise UsageError(f"a tolerance of {tolerance} was given; give a number from 0, as 1e-6")
    left, right = _record(a), _record(b)
    if (left.get("format") == FORMAT) != (right.get("format") == FORMAT):
        raise UsageError(
            "a run and a page without records cannot be compared; give two run folders, or write "
            "the page with `neurodiff report benchmark`"
        )
    rows, compared = [], 0
    for part in PARTS:
        one, other = _flat(left.get(part)), _flat(right.get(part))
        for name in dict.fromkeys([*one, *other]):
            compared += 1
            found = _row(part, name, one.get(name, ABSENT), other.get(name, ABSENT), tolerance)
            rows += [found] if found is not None else []
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"counts": bool})
    return ReportDiff(table, (_name(left), _name(right)), float(tolerance), compared)


def _row(part: str, name: str, a: Any, b: Any, tolerance: float) -> dict[str, Any] | None:
    if a == b or (_is_nan(a) and _is_nan(b)):
        return None
    counts = part not in INFORMATION and f"{part}.{name}" not in _NAMES
    relative = float("nan")
    if _is_number(a) and _is_number(b):
        scale = max(abs(a), abs(b))
        relative = abs(a - b) / scale if scale else 0.0
        if part == "scores" and relative <= tolerance:
            counts = False
    return dict(zip(COLUMNS, (part, name, a, b, relative, counts), strict=True))


def _record(what: str | Path | Run | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(what, Mapping):
        return what
    return record_in(what.folder if isinstance(what, Run) else what)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values as one level of names. Files of weights go by their part and name."""
    if isinstance(value, Mapping):
        entries = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        entries = [(_label(one, k), one) for k, one in enumerate(value)]
    else:
        if isinstance(value, list):
            value = json.dumps(value)
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, one in entries:
        found |= _flat(one, f"{prefix}.{key}" if prefix else key)
    return found


def _label(row: Mapping[str, Any], k: int) -> str:
    """Stages are named with their hash, which is a value to compare and no name."""
    part, file = str(row.get("part", k)), str(row.get("file", ""))
    stem, _, tail = part.rpartition("-")
    is_hash = len(tail) == 10 and all(sign in "0123456789abcdef" for sign in tail)
    return f"{stem if is_hash else part}/{file}" if file else part


def _name(record: Mapping[str, Any]) -> str:
    return str((record.get("identity") or {}).get("name", "a record"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
