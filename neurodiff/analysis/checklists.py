"""Reporting checklists (CLAIM, TRIPOD+AI, COBIDAS) filled in from what runs know.

The files ``analysis/checklist_*.yaml`` say what each item asks, in our own words, and which fact of
`facts_of` answers it. What no run can know is left open. This is an aid for authors, not a
certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from neurodiff.analysis.benchmark_data import repeats_text
from neurodiff.core.config import load
from neurodiff.core.errors import UsageError

NAMES = ("checklist_cobidas", "checklist_claim", "checklist_tripod_ai")
UNKNOWN = "to be filled in by the authors"
AUTHORS = "authors"
COLUMNS = ("item", "section", "asks", "answer", "source", "known")


@dataclass(frozen=True, kw_only=True)
class ChecklistItem:
    """One item: its number in the checklist, what it asks, and the fact that answers it."""

    id: str
    section: str
    topic: str
    fact: str = ""


@dataclass(frozen=True, kw_only=True)
class Checklist:
    """A file in ``analysis/``."""

    name: str
    title: str
    reference: str
    about: str
    items: list[ChecklistItem]


def read_checklist(name: str) -> Checklist:
    """A checklist by name or path.

    Raises
    ------
    UsageError : no such file, a wrong key, a number that comes twice, or a fact that there is not.
    """
    found = load(name, Checklist, kind="analysis")
    ids = [item.id for item in found.items]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise UsageError(f"checklist {found.name!r} has item {twice[0]} twice")
    unknown = sorted({item.fact for item in found.items} - set(FACTS) - {""})
    if unknown:
        raise UsageError(
            f"checklist {found.name!r} names the fact {unknown[0]!r}; there are {', '.join(FACTS)}"
        )
    return found


def filled(checklist: Checklist, facts: Mapping[str, str]) -> pd.DataFrame:
    """The items with their answers, in the columns `COLUMNS`.

    ``source`` is what of the run answers, "run: ...", or "authors", also where the run could know
    and does not.
    """
    rows = []
    for item in checklist.items:
        answer = facts.get(item.fact, "")
        source = f"run: {FACTS[item.fact]}" if answer else AUTHORS
        rows.append((item.id, item.section, item.topic, answer or UNKNOWN, source, bool(answer)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


FACTS = {
    "attribution": "whether regions were attributed",
    "ceilings": "noise ceilings",
    "code": "version of the code",
    "cost": "time and memory",
    "data": "data sets and their citations",
    "excluded": "items that failed",
    "external": "data sets other than that of the training",
    "failures": "the worst items",
    "fingerprints": "hashes of the data",
    "floors": "chance and floors",
    "flow": "trials from the table to the scores",
    "generalisation": "training against test",
    "hardware": "platform, device, threads",
    "internal": "what was evaluated on what",
    "leaks": "checks of the split",
    "limits": "limits that the page states",
    "metrics": "metrics with their definitions",
    "missing": "how missing values are answered",
    "model": "pipeline and recipe",
    "multiplicity": "corrections for several tests",
    "preprocessing": "units of the data",
    "replay": "commands",
    "results": "the method's scores",
    "seeds": "seeds and the rule",
    "selection": "how the final model was taken",
    "sessions": "sessions and runs",
    "sharing": "terms of the data and the code",
    "simulated": "whether the data are simulated",
    "sizes": "counts of each split",
    "software": "versions",
    "sources": "training seeds, subjects and stimuli apart",
    "space": "space of the analysis",
    "split": "the split's rule",
    "statistics": "intervals and tests",
    "stimuli": "stimuli and repeats",
    "subject_means": "each subject's mean",
    "subjects": "people",
    "subjects_shown": "whether each subject is shown",
    "subset": "features that enter",
    "test_size": "size of the test set",
    "training": "settings of the training",
    "truth": "what counts as the truth",
    "weights": "weights and their hashes",
}
"""Every fact that an item may name, with what it is about."""


def facts_of(
    records: Mapping[str, Mapping[str, Any]], found: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Answers from the records of runs.

    Parameters
    ----------
    records : name of the run -> `record_of`.
    found : answers that the page knows better than a record: ceilings, leaks, metrics, sources...
    """
    facts: dict[str, str] = {}
    for maker in (_data_facts, _model_facts, _result_facts):
        facts |= _together({name: maker(record) for name, record in records.items()})
    return {name: text for name, text in {**facts, **(found or {})}.items() if text}


def _together(answers: Mapping[str, dict[str, str]]) -> dict[str, str]:
    """One answer where all runs agree, else each with the run's name."""
    names = dict.fromkeys(key for one in answers.values() for key in one)
    found = {}
    for key in names:
        given = {run: one.get(key, "") for run, one in answers.items()}
        if len(set(given.values())) == 1:
            found[key] = next(iter(given.values()))
        else:
            found[key] = "; ".join(f"{run}: {text}" for run, text in given.items() if text)
    return found


def _data_facts(record: Mapping[str, Any]) -> dict[str, str]:
    data = record["data"]
    counts = data.get("counts")
    counts = counts if isinstance(counts, Mapping) else {}
    inputs, trained = data.get("inputs") or {}, data.get("trained on") or {}
    per_split = [f"{split}: {_count_words(one)}" for split, one in counts.items()]
    failed = record["items"]["failed"]
    sources = list(record["scores"])
    others = [name for name in sources if not name.startswith(str(inputs.get("data")))]
    test = counts.get("test", {})
    people = trained.get("subjects")
    return {
        "data": _sentence(inputs.get("data"), data.get("what"), data.get("citation")),
        "simulated": "all data are simulated: a check of the method, no finding about people"
        if record["identity"]["simulated"]
        else "",
        "preprocessing": _known(data.get("units")),
        "space": _known(data.get("space")),
        "split": _known(data.get("splits")),
        "subset": f"{inputs['features']} features" if inputs.get("features") else "",
        "sizes": "; ".join(per_split),
        "test_size": _count_words(test) if test else "",
        "subjects": _listed(people) if isinstance(people, list) else str(people or ""),
        "stimuli": "; ".join(
            f"{split}: {one['stimuli']} stimuli, repeats {repeats_text(dict(one))}"
            for split, one in counts.items()
        ),
        "sessions": "; ".join(
            f"{split}: {one['sessions']} sessions, {one['runs']} runs"
            for split, one in counts.items()
        ),
        "fingerprints": _sentence(
            f"training trials SHA-256 {inputs['recording']}" if inputs.get("recording") else "",
            f"stimuli SHA-256 {inputs['stimuli']}" if inputs.get("stimuli") else "",
        ),
        "sharing": f"data: {data['licence']}" if _known(data.get("licence")) else "",
        "excluded": f"{len(failed)} items failed: {'; '.join(failed[:3])}"
        if failed
        else "no item failed",
        "missing": "a trial with NaN or infinity is refused and listed as failed, never filled in",
        "external": f"scored on {', '.join(others)} as well" if others else "",
    }


def _model_facts(record: Mapping[str, Any]) -> dict[str, str]:
    who, around = record["identity"], record["environment"]
    versions = {k: v for k, v in record["versions"].items() if v}
    circumstances = record["circumstances"]
    weights = record["weights"]
    changed = who["changed since the commit"]
    return {
        "model": f"pipeline {who['pipeline']}, recipe {who['recipe']} (SHA-256 "
        f"{who['recipe sha256'][:16]}), every setting on the page",
        "training": _training(record["settings"]),
        "selection": "the last state of each stage; no test score enters",
        "software": f"neurodiff {who['neurodiff']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "code": f"neurodiff {who['neurodiff']}, commit {who['commit']}"
        + (", with changes" if changed == "yes" else ""),
        "hardware": _sentence(
            around["platform"], f"device {around['device']}", _threads(around["threads"])
        ),
        "seeds": f"run seed {record['seeds']['run seed']}; an item's: {record['seeds']['rule']}",
        "cost": f"{circumstances['wall time, s']} s, {circumstances['peak memory, MB']} MB",
        "weights": f"{len(weights)} files with their SHA-256 on the page" if weights else "",
    }


def _result_facts(record: Mapping[str, Any]) -> dict[str, str]:
    done = sum(one.get("done", 0) for one in record["items"]["counts"].values())
    scored = {
        data: next(iter(next(iter(table.values())).values()))["n"]
        for data, table in record["scores"].items()
        if table and next(iter(table.values()))
    }
    flow = [f"{done} items finished"] + [f"{n} stimuli scored of {d}" for d, n in scored.items()]
    return {"flow": ", ".join(flow) if done or scored else ""}


def _training(settings: Mapping[str, Any], prefix: str = "") -> str:
    """Steps, batches and rates of every part of a recipe that trains."""
    found = []
    for name, value in settings.items():
        if not isinstance(value, Mapping):
            continue
        if {"steps", "batch_size"} <= set(value):
            rate = f", rate {value['learning_rate']:g}" if "learning_rate" in value else ""
            part = f"{prefix}{name}".removesuffix(".training")
            found.append(f"{part} {value['steps']} steps x {value['batch_size']}{rate}")
        else:
            inner = _training(value, f"{prefix}{name}.")
            found += [inner] if inner else []
    return "; ".join(found)


def _count_words(counts: Mapping[str, Any]) -> str:
    names = ("subjects", "sessions", "trials", "stimuli")
    return ", ".join(f"{counts[name]} {name}" for name in names if name in counts)


def _threads(threads: Any) -> str:
    if not isinstance(threads, Mapping):
        return ""
    return ", ".join(f"{name} {count}" for name, count in threads.items())


def _known(value: Any) -> str:
    text = str(value or "").strip()
    return "" if text in ("not recorded", "None") else " ".join(text.split())


def _listed(names: Sequence[str], most: int = 12) -> str:
    return f"{len(names)}: {', '.join(names[:most])}{' ...' if len(names) > most else ''}"


def _sentence(*parts: Any) -> str:
    return ". ".join(text.rstrip(".") for text in map(_known, parts) if text)
