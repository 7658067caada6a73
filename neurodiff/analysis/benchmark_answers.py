"""What the benchmark report knows and no single run does, as answers for the checklists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from neurodiff.analysis.benchmark_data import Leaks
from neurodiff.analysis.benchmark_scores import FLOORS

STATISTICS = (
    "95 % intervals by bootstrap over stimuli (2,000 resamples, percentile), samples and repeats "
    "averaged first; paired tests by random signs, p = (1 + b) / (1 + B) with B = 9,999"
)
MULTIPLICITY = "Holm, and Benjamini and Hochberg's q, over all metrics and floors of a data set"


def found_answers(
    tidies: Mapping[str, pd.DataFrame],
    leaks: Mapping[str, Leaks],
    ceilings: Mapping[str, str],
    *,
    limits: Sequence[str],
    sources: Sequence[str],
    commands: Sequence[str],
) -> dict[str, str]:
    """Fact of `checklists.FACTS` -> answer; what is not known is absent or empty.

    Parameters
    ----------
    tidies : name of a run -> its scores (`tidy_scores`).
    ceilings : name of a run -> what is said of its noise ceilings.
    limits, sources, commands : sentences and lines that stand on the page.
    """
    checked = [f"{name}: {one.text}" for name, one in leaks.items() if len(one.table)]
    said = [f"{name}: {text}" for name, text in ceilings.items() if text]
    found = {
        "leaks": "; ".join(checked),
        "ceilings": "; ".join(said) or "table of noise ceilings",
        "limits": f"{len(limits)} stated on the page" if limits else "",
        "replay": "; ".join(line for line in commands if not line.startswith("#")),
    }
    parts = [table for table in tidies.values() if len(table)]
    if not parts:
        return found
    table = pd.concat(parts, ignore_index=True)
    roles = table.drop_duplicates("condition").set_index("condition")["role"]
    floors = [str(name) for name, role in roles.items() if role in FLOORS]
    people = [str(name) for name in table["subject"].unique() if name]
    return found | {
        "metrics": f"{', '.join(map(str, table['metric'].unique()))}; defined beside each panel",
        "statistics": STATISTICS,
        "multiplicity": MULTIPLICITY,
        "floors": ", ".join(floors),
        "results": "tables of scores with intervals, floors and ceiling",
        "sources": " ".join(sources) or "variance components over several runs",
        "failures": "the worst items by rank stand beside a fixed random draw",
        "internal": f"scored on held-out trials of {', '.join(map(str, table['data'].unique()))}",
        "truth": "the stimulus that was shown, or the scan itself",
        "subjects_shown": f"{len(people)} shown apart" if people else "",
        "subject_means": ", ".join(people),
        "generalisation": "by split, on top of the page" if people else "",
    }
