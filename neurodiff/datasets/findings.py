"""What a check of a data set found: one row for each thing, good or bad."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Finding:
    """One row.

    Attributes
    ----------
    what, where : the kind of thing, and its path.
    status : ok, missing or broken.
    found : what is there or what is wrong; begins with "note:" where something works and should
        still be known.
    what_to_do : empty where all is well.
    """

    what: str
    where: str
    status: Literal["ok", "missing", "broken"]
    found: str = ""
    what_to_do: str = ""

    @property
    def is_error(self) -> bool:
        """Whether something is missing or broken."""
        return self.status != "ok"

    @classmethod
    def fine(cls, what: str, where: str | Path, found: str) -> Finding:
        """All is well; ``found`` says what is there."""
        return cls(what, str(where), "ok", found)

    @classmethod
    def note(cls, what: str, where: str | Path, text: str) -> Finding:
        """It works, and should still be known."""
        return cls(what, str(where), "ok", f"note: {text}")

    @classmethod
    def missing(cls, what: str, where: str | Path, problem: str, what_to_do: str) -> Finding:
        """It is not there."""
        return cls(what, str(where), "missing", problem, what_to_do)

    @classmethod
    def broken(cls, what: str, where: str | Path, problem: str, what_to_do: str) -> Finding:
        """It is there, and cannot be read or contradicts the rest."""
        return cls(what, str(where), "broken", problem, what_to_do)


def as_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """DataFrame with the columns status, what, where, found, what_to_do."""
    import pandas as pd

    columns = ["status", "what", "where", "found", "what_to_do"]
    return pd.DataFrame([asdict(finding) for finding in findings], columns=columns)
