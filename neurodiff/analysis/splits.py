"""How far a decoded trial is from the training data: other objects, other people, other classes.

    core                          a person and classes of the training data, other objects
    across-person                 somebody else, classes of the training data
    across-class                  a person of the training data, classes that training lacks
    across-person-across-class    somebody else, and classes that training lacks

These are the published names: subjects 1 to 8 of fMRI-Shape on their test objects are core, subject
9 across-person, and subjects 11 to 13, who saw 55 classes, across-person-across-class. A set of
trials is called by its furthest class; its trials of known classes are marked, so that both parts
are reported. Somebody for whom an input layer was fitted is still "somebody else", and the number
of trials of that layer is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from neurodiff.core.run import Run
from neurodiff.core.stimuli import Stimuli

CORE, PERSON = "core", "across-person"
CLASS, BOTH = "across-class", "across-person-across-class"
SPLITS = (CORE, PERSON, CLASS, BOTH)
COLUMNS = ("generalisation", "trained_class")
"""Columns of the scores: one of `SPLITS` ("" where training is not known), and True or False."""


def remember(
    run: Run,
    subjects: Sequence[str],
    categories: Sequence[str],
    adapted: Mapping[str, int] | None = None,
) -> None:
    """Write into a run what it was trained on; no part of its identity.

    Parameters
    ----------
    subjects, categories : as in the training trials and their stimuli.
    adapted : people with an input layer of their own -> trials of it.
    """
    run.info["trained on"] = {
        "subjects": list(dict.fromkeys(map(str, subjects))),
        "categories": sorted({name for name in map(str, categories) if name}),
        "adapted": {str(name): int(n) for name, n in (adapted or {}).items()},
    }


def trained_on(run: Run) -> dict[str, Any] | None:
    """What `remember` wrote; None in a run of an earlier version."""
    found = run.info.get("trained on")
    wanted = ("subjects", "categories", "adapted")
    return found if isinstance(found, dict) and all(key in found for key in wanted) else None


def mark(table: pd.DataFrame, known: Mapping[str, Any] | None) -> pd.DataFrame:
    """The scores with `COLUMNS`; ``table`` has the columns subject and category.

    A set is one person's trials. Where no stimulus has a category, classes count as known.
    """
    table = table.copy()
    if known is None:
        table["generalisation"], table["trained_class"] = "", True
        return table
    classes = set(known["categories"])
    table["trained_class"] = [
        not classes or not str(name) or str(name) in classes for name in table["category"]
    ]
    names = {}
    for subject, part in table.groupby("subject", sort=False):
        person = str(subject) in known["subjects"]
        if part["trained_class"].all():
            names[subject] = CORE if person else PERSON
        else:
            names[subject] = CLASS if person else BOTH
    table["generalisation"] = [names[subject] for subject in table["subject"]]
    return table


def describe(split: str, subjects: Sequence[str], known: Mapping[str, Any] | None) -> str:
    """``"across-person (sub-0009; input layer of 20 trials)"``; "" where nothing is known."""
    if not split:
        return ""
    adapted = {} if known is None else known["adapted"]
    names = list(dict.fromkeys(map(str, subjects)))
    shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
    counts = sorted({adapted[name] for name in names if name in adapted})
    layer = f"; input layer of {', '.join(map(str, counts))} trials" if counts else ""
    return f"{split} ({shown}{layer})"


def class_lines(part: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """Means of trials of trained and of new classes, where a set holds both."""
    marked = part["trained_class"].astype(bool)
    if marked.all() or not marked.any():
        return []
    lines = []
    for name, rows in (("trained classes", part[marked]), ("new classes", part[~marked])):
        once = rows.groupby(["subject", "stimulus"], sort=False)[list(metrics)].mean()
        means = once.mean().dropna()
        scores = ", ".join(f"{metric} {mean:.3f}" for metric, mean in means.items()) or "no score"
        lines.append(f"{name}: {len(once)} stimuli, {scores}")
    return lines


def categories_of(stimuli: Stimuli, ids: Sequence[str]) -> list[str]:
    """Categories of some stimuli."""
    table = dict(zip(stimuli.ids, stimuli.categories(), strict=True))
    return [table[name] for name in ids]
