"""Which stimuli may change places under a null: one rule for every method of a page.

Responses of one run share its drifts, so that a stimulus may only be given the place of another
that was shown in the same runs equally often. Where nearly every stimulus has enough such partners
(`LEAST_PARTNERS`), the null stays within these blocks; a stimulus without a partner then keeps its
place, which makes the null wider and never narrower. Where most have none, as with repeats that are
scattered over sessions, all stimuli may change places, as if they had been dealt to runs at random.

References
----------
Winkler, Webster, Vidaurre, Nichols & Smith 2015, NeuroImage 123 (exchangeability blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurodiff.core.errors import UsageError

LEAST_PARTNERS = 4
"""Others of its block that a stimulus needs: of a block of b, 1 / b keep their place by chance."""
MOST_WITH_FEW = 0.2
"""Share of stimuli that may have fewer."""


class Exchange(NamedTuple):
    """blocks : (stimuli,) labels; None where all may change places. words : for the notes."""

    blocks: np.ndarray | None
    words: str


def run_sets(runs: Sequence[Any] | np.ndarray, of: np.ndarray, stimuli: int) -> list[str]:
    """The runs of each stimulus, a run as often as the stimulus was shown in it.

    Parameters
    ----------
    runs : (trials,) name of each trial's run. of : (trials,) number of its stimulus.

    Examples
    --------
    >>> run_sets(["1", "2", "1", "1"], np.array([0, 0, 1, 1]), 2)
    ['1 + 2', '1 + 1']
    """
    sets: list[list[str]] = [[] for _ in range(stimuli)]
    for row, run in zip(of, runs, strict=True):
        sets[row].append(str(run))
    return [" + ".join(sorted(shown)) for shown in sets]


def exchange_of(
    shown: Sequence[str],
    exchange: str = "auto",
    *,
    folds: np.ndarray | None = None,
    table: pd.DataFrame | None = None,
) -> Exchange:
    """The blocks of a null.

    Parameters
    ----------
    shown : the runs of each stimulus, of `run_sets`.
    exchange : "auto", the rule of this module; "runs" within the same runs, however few they have;
        "all" any two; or a column of ``table``: stimuli of the same value.
    folds : (stimuli,) of a cross-validation; nothing leaves its fold.
    table : one row a stimulus.

    Raises
    ------
    UsageError : "runs" where no two stimuli share them, no such column.
    """
    n = len(shown)
    if exchange == "all":
        return _named(folds, n, "whatever their runs")
    if exchange not in ("auto", "runs"):
        columns = [] if table is None else [str(name) for name in table]
        if exchange not in columns:
            raise UsageError(
                f"exchange is {exchange!r}; give 'auto', 'runs', 'all' or a column of the trials: "
                f"{', '.join(columns)}"
            )
        labels = _within(table[exchange].astype(str), folds)  # type: ignore[index]
        return Exchange(labels, exchange_words(labels, f"of the same {exchange}", folds))
    labels = _within(shown, folds)
    partners = _sizes(labels) - 1
    if exchange == "runs":
        if not (partners > 0).any():
            raise UsageError(
                f"no two of the {n} stimuli were shown in the same runs, so a null within runs has "
                "no permutation; give exchange='all' if stimuli were dealt to runs at random"
            )
        return Exchange(labels, exchange_words(labels, folds=folds))
    few = int((partners < LEAST_PARTNERS).sum())
    if few <= MOST_WITH_FEW * n:
        if len(set(labels)) == 1:
            return Exchange(None, exchange_words(None))
        return Exchange(labels, exchange_words(labels, folds=folds))
    return _named(
        folds,
        n,
        f"as if dealt to runs at random: only {n - few} of {n} share their runs with "
        f"{LEAST_PARTNERS} others",
    )


def exchange_words(
    blocks: np.ndarray | None,
    what: str = "shown in the same runs equally often",
    folds: np.ndarray | None = None,
) -> str:
    """How a null pairs, for the notes; ``what`` the stimuli of a block have in common."""
    if blocks is None or len(set(blocks)) == 1:
        return "stimuli are paired anew over the whole test set (repeats move together)"
    alone = int((_sizes(blocks) == 1).sum())
    within = "" if folds is None else " and of the same fold"
    return (
        f"stimuli are paired anew among those {what}{within} ({len(set(blocks))} blocks of "
        f"{len(blocks)} stimuli; {alone} have no partner)"
    )


def _named(folds: np.ndarray | None, n: int, why: str) -> Exchange:
    where = f"all {n} stimuli" if folds is None else "all stimuli of a fold"
    return Exchange(None if folds is None else np.asarray(folds), f"{where} are paired anew, {why}")


def _within(labels: Sequence[str] | pd.Series, folds: np.ndarray | None) -> np.ndarray:
    if folds is None:
        return np.array([str(label) for label in labels], dtype=object).astype(str)
    return np.array([f"{a} | {b}" for a, b in zip(labels, folds, strict=True)])


def _sizes(blocks: np.ndarray) -> np.ndarray:
    """How many stimuli the block of each has."""
    _, of, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    return counts[of]
