"""What the tables and names of brain MR data sets mean: sessions, diagnoses, sexes, numbers.

A word that is not known stays as it is; nothing is guessed from it.

Examples
--------
>>> [months_of(text) for text in ("ses-M006", "d0757", "bl", "m12", "01")]
[6.0, 24.9, 0.0, 12.0, nan]
>>> [diagnosis_of(text) for text in ("Dementia", "LMCI", "NC", "SMC")]
['AD', 'MCI', 'CN', 'SMC']
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

DAYS_PER_MONTH = 365.25 / 12

_DIAGNOSES = {
    "AD": ("ad", "dementia", "demented", "alzheimer", "alzheimers", "alzheimersdisease"),
    "MCI": ("mci", "emci", "lmci", "mildcognitiveimpairment"),
    "CN": ("cn", "nc", "hc", "nl", "normal", "control", "controls", "healthy", "healthycontrol",
           "nondemented", "cognitivelynormal"),
}  # fmt: skip
_DIAGNOSIS = {word: name for name, words in _DIAGNOSES.items() for word in words}
_SEX = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F"}
_BASELINE = ("bl", "baseline", "sc", "screening", "init", "scmri")


def months_of(session: Any) -> float:
    """Months of a session's label; NaN where it is a mere number of a visit or another word.

    ``M006`` and ``m6`` are months, ``d0757`` days, ``bl``, ``baseline`` and ``sc`` the start; the
    prefix ``ses-`` may be there. Days become months to one tenth.
    """
    text = str(session).strip().lower().removeprefix("ses-")
    if text in _BASELINE:
        return 0.0
    found = re.fullmatch(r"(m|d)0*(\d+)", text)
    if found is None:
        found = re.fullmatch(r"()(?:month|months)\s*0*(\d+)", text)
    if found is None:
        return float("nan")
    number = float(found.group(2))
    return round(number / DAYS_PER_MONTH, 1) if found.group(1) == "d" else number


def diagnosis_of(word: Any) -> str | None:
    """AD, MCI or CN for the words in use; another word as it is; None where it is missing."""
    text = text_of(word)
    if text is None:
        return None
    return _DIAGNOSIS.get(re.sub(r"[^a-z]", "", text.lower()), text)


def diagnosis_of_cdr(cdr: Any) -> str | None:
    """CN at a Clinical Dementia Rating of 0, AD above (as OASIS is mostly used); else None."""
    number = number_of(cdr)
    return None if number != number else "CN" if number == 0 else "AD"


def sex_of(word: Any) -> str | None:
    """M or F for the words in use; another word as it is; None where it is missing."""
    text = text_of(word)
    return None if text is None else _SEX.get(text.lower(), text)


def text_of(value: Any) -> str | None:
    """Text without blanks around it; None where it is missing or empty."""
    if value is None or value is pd.NA or value != value:
        return None
    text = str(value).strip()
    return None if text.lower() in ("", "n/a", "na", "nan", "none") else text


def number_of(value: Any) -> float:
    """A finite number, or NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return float("nan")
    return number if abs(number) < float("inf") else float("nan")


def column_of(table: Iterable[Any], names: Sequence[str]) -> str | None:
    """The first of ``names`` that is a column, whatever its case, blanks, ``-`` and ``_``.

    ``table`` is a DataFrame, a row as a dictionary, or the names themselves.
    """
    plain = {_plain(column): column for column in reversed(list(table))}
    return next((plain[_plain(name)] for name in names if _plain(name) in plain), None)


def values_of(table: pd.DataFrame, names: Sequence[str]) -> list[Any]:
    """Values of the first column there is; None in each row where there is none."""
    column = column_of(table, names)
    return [None] * len(table) if column is None else table[column].tolist()


def months_between(dates: Iterable[Any]) -> list[float]:
    """Months from the earliest date, to one tenth; NaN where a date is missing."""
    times = pd.to_datetime(pd.Series(list(dates), dtype=object), errors="coerce", format="mixed")
    days = (times - times.min()).dt.total_seconds() / 86400
    return [round(day / DAYS_PER_MONTH, 1) for day in days.tolist()]


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
