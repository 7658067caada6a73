"""What went into a run: fingerprints, counts, the histogram of repeats, the split and its leaks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.kinds import SCANS, pipeline_of_run
from neurodiff.analysis.splits import trained_on
from neurodiff.core.errors import NeurodiffError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.opening import read_card
from neurodiff.metrics.dimension import participation_ratio

NOT_AVAILABLE, LEAK = "not available", "LEAK"
_INPUTS = ("networks", "weights")  # these are weights, and stand there


Opened = tuple[Recording, Stimuli]


def open_run_data(run: Run, progress: Progress = SILENT) -> Opened | str:
    """The recording that a run was fitted on with its stimuli, or why it cannot be had."""
    source = own_source(run)
    if source is None:
        return "the run does not say where its data are"
    if pipeline_of_run(run.folder) == SCANS:
        return "scans are counted by people and visits, on the page of the run"
    try:
        return source.open(progress)
    except NeurodiffError as error:
        return str(error)


def data_facts(run: Run, opened: Opened | str | None = None) -> dict[str, Any]:
    """Inputs as recorded, what the card of the data set says, and counts by split.

    Parameters
    ----------
    opened : of `open_run_data`; the recording is counted and checked against the recorded
        fingerprint. None: the data are left alone.
    """
    facts: dict[str, Any] = {
        "inputs": {k: v for k, v in run.inputs.items() if k not in _INPUTS},
        "trained on": _brief(trained_on(run) or {}),
        **_of_card(run),
    }
    if opened is None:
        return facts
    if isinstance(opened, str):
        return facts | {"counts": f"{NOT_AVAILABLE}: {opened}"}
    recording, _ = opened
    facts["unit"] = recording.unit
    facts["space"] = str(getattr(recording.space, "name", ""))
    facts["shape of a trial"] = " x ".join(map(str, recording.data.shape[1:]))
    facts["regions"] = len(recording.rois)
    facts["counts"] = {
        str(split): counts_of(part) for split, part in recording.trials.groupby("split", sort=False)
    }
    stated = run.inputs.get("recording")
    if stated is not None and "train" in set(recording.trials["split"]):
        train = recording.select((recording.trials["split"] == "train").to_numpy())
        same = train.fingerprint() == stated
        facts["training data as they were"] = "yes" if same else "NO: other values than at the fit"
    return facts


def counts_of(trials: pd.DataFrame) -> dict[str, Any]:
    """Subjects, sessions, runs, trials, stimuli, and how many stimuli have how many repeats.

    Sessions and runs are counted within subjects, repeats within subject and stimulus.

    Examples
    --------
    >>> table = pd.DataFrame({"subject": "a", "session": 1, "run": 1, "stimulus": list("xyx")})
    >>> counts_of(table)["stimuli by repeats"]
    {'1': 1, '2': 1}
    """
    repeats = trials.groupby(["subject", "stimulus"], sort=False).size()
    histogram = repeats.value_counts().sort_index()
    return {
        "subjects": int(trials["subject"].nunique()),
        "sessions": len(trials[["subject", "session"]].drop_duplicates()),
        "runs": len(trials[["subject", "session", "run"]].drop_duplicates()),
        "trials": len(trials),
        "stimuli": int(trials["stimulus"].nunique()),
        "stimuli by repeats": {str(k): int(v) for k, v in histogram.items()},
    }


class Leaks(NamedTuple):
    """Whether the test is in the training.

    ``table`` has one row a check (empty where nothing could be checked), ``note`` says how it was
    asked, and ``errors`` are the sentences that ``--strict`` stops at.
    """

    table: pd.DataFrame
    note: str
    errors: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One sentence."""
        if not len(self.table):
            return self.note
        return f"LEAK: {'; '.join(self.errors)}" if self.errors else "No leak was found"


def leaks_of(
    opened: Opened | str,
    preprocessing: Mapping[str, str] | None = None,
    kept: Mapping[str, Any] | None = None,
) -> Leaks:
    """What of the test is in the training, by the audit of `neurodiff.analysis.leakage`.

    ``preprocessing`` says of which trials a step's statistics are, as the audit takes it.

    Where the audit cannot be had, by the checks that a table of trials can answer: same stimulus,
    same run, same person. Where there is no recording, as for a cohort of scans, ``kept`` is the
    audit that the run remembers of its fit.
    """
    if isinstance(opened, str) and kept is not None:
        report = importlib.import_module("neurodiff.analysis.leakage").LeakageReport.from_json(kept)
        note = "By the audit that was made before the model was fitted."
        return Leaks(report.table, note, tuple(map(_said, report.errors)))
    if isinstance(opened, str):
        return Leaks(pd.DataFrame(), f"Not checked: {opened}.")
    recording, stimuli = opened
    splits = recording.trials["split"]
    if not {"train", "test"} <= set(splits):
        there = ", ".join(dict.fromkeys(splits))
        return Leaks(pd.DataFrame(), f"Not checked: splits are {there}.")
    train = recording.select((splits == "train").to_numpy())
    test = recording.select((splits == "test").to_numpy())
    try:
        audit = importlib.import_module("neurodiff.analysis.leakage").audit
        report = audit(train, test, stimuli, preprocessing=preprocessing)
    except ModuleNotFoundError:
        note = "By the table of trials alone: pictures and shapes were not compared."
    except NeurodiffError as error:
        note = f"By the table of trials alone, since the audit stopped: {error}"
    else:
        errors = tuple(map(_said, report.errors))
        return Leaks(report.table, "By the audit of `neurodiff.analysis.leakage`.", errors)
    table = plain_leaks(train.trials, test.trials)
    bad = table[table["verdict"] == LEAK]
    errors = tuple(
        f"{n} of {of} {what}" for what, n, of in bad[["check", "found", "of"]].to_numpy()
    )
    return Leaks(table, note, errors)


def leaks_of_run(run: Run, opened: Opened | str, progress: Progress = SILENT) -> Leaks:
    """As `leaks_of`, with what the fit found: checks that are not made here, such as those of
    pictures and meshes, are taken from the audit before the fit. Scans are read and compared; a
    model of several people has the audit of all of them.
    """
    if pipeline_of_run(run.folder) == SCANS:
        return _leaks_of_scans(run, progress)
    made = _made_before(run)
    if made is not None and "subjects" in run.inputs:
        return made
    found = leaks_of(opened, statistics_of(run) or None)
    if made is None:
        return found
    if not len(found.table):
        return Leaks(made.table, f"{found.note} {made.note}", made.errors)
    if list(found.table.columns) != list(made.table.columns):
        return found
    rows = found.table.set_index("check")
    before = made.table.set_index("check")
    lost = [name for name in rows.index if rows.loc[name, "severity"] == "not checked"]
    lost = [name for name in lost if name in before.index]
    lost = [name for name in lost if before.loc[name, "severity"] != "not checked"]
    if not lost:
        return found
    rows.loc[lost] = before.loc[lost]
    more = [e for e in made.errors if any(e.endswith(f": {name}") for name in lost)]
    note = f"{found.note} {', '.join(lost)}: as found before the fit."
    return Leaks(rows.reset_index(), note, (*found.errors, *more))


def noise_ceilings(opened: Opened | str) -> tuple[pd.DataFrame, str]:
    """Noise ceilings of the recording as a table, or "not available" and why."""
    if isinstance(opened, str):
        return pd.DataFrame(), f"noise ceilings: {NOT_AVAILABLE}: {opened}"
    module = importlib.import_module("neurodiff.analysis.ceilings")
    if not hasattr(module, "ceilings"):
        return pd.DataFrame(), module.ceiling_text(opened[0])
    try:
        table = module.ceilings(opened[0])
    except NeurodiffError as error:
        return pd.DataFrame(), f"noise ceilings: {NOT_AVAILABLE}: {error}"
    reasons = list(dict.fromkeys(table["note"].astype(str)))
    if table["median"].isna().all() and len(reasons) == 1:  # one sentence says it of all regions
        return pd.DataFrame(), f"noise ceilings of all {len(table)} regions: {reasons[0]}"
    return table, ""


def statistics_of(run: Run) -> dict[str, str]:
    """Steps of a recipe that use statistics -> "train" or "test", as far as the recipe says."""
    decoder = run.recipe.get("decoder")
    known = decoder.get("standardise") if isinstance(decoder, dict) else None
    return {} if known is None else {"predictions": "test" if known == "test" else "train"}


def plain_leaks(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Checks of two tables of trials: check, found, of, verdict, examples."""
    rows = []

    def add(check: str, test_names: pd.Series, train_names: pd.Series, verdict: str) -> None:
        unique = list(dict.fromkeys(test_names))
        shared = [name for name in unique if name in set(train_names)]
        rows.append(
            {
                "check": check,
                "found": len(shared),
                "of": len(unique),
                "verdict": verdict if shared else "none",
                "examples": ", ".join(map(str, shared[:3])),
            }
        )

    add("stimulus in both", test["stimulus"], train["stimulus"], LEAK)
    names = [
        part["subject"].astype(str) + [f" {s}/{r}" for s, r in part[["session", "run"]].to_numpy()]
        for part in (test, train)
    ]
    add("run in both", names[0], names[1], "correlated noise")
    add("person in both", test["subject"], train["subject"], "stated: within people")
    return pd.DataFrame(rows)


def effective_dimension(run: Run) -> str:
    """Participation ratio of the predicted embeddings, where the items keep them; else why not.

    A decoder whose answers collapsed has few dimensions, whatever its scores.
    """
    found = [
        read_json(path).get("embedding")
        for path in sorted((run.folder / "items").glob("??/*/embedding.json"))
    ]
    found = [one for one in found if isinstance(one, list) and one]
    if len(found) < 2 or len({len(one) for one in found}) > 1:
        return f"effective dimension of the predictions: {NOT_AVAILABLE}: items keep no features"
    values = np.asarray(found, np.float64)
    try:
        ratio = participation_ratio(values)
    except ValueError as error:
        return f"effective dimension of the predictions: {NOT_AVAILABLE}: {error}"
    return (
        f"effective dimension of the predictions (participation ratio): {ratio:.2f} of at most "
        f"{min(len(values) - 1, values.shape[1])}, over {len(values)} items"
    )


def repeats_text(counts: dict[str, Any]) -> str:
    """``"96 x 3, 4 x 2"``: stimuli by their number of repeats, most frequent first."""
    histogram = counts.get("stimuli by repeats") or {}
    ordered = sorted(histogram.items(), key=lambda item: -item[1])
    return ", ".join(f"{n} x {times}" for times, n in ordered) or NOT_AVAILABLE


def _made_before(run: Run) -> Leaks | None:
    """The audit before the fit, as the run keeps it."""
    from neurodiff.analysis.leakage import LeakageReport
    from neurodiff.analysis.leakage_run import KEY

    if KEY not in run.info:
        return None
    report = LeakageReport.from_json(run.info[KEY])
    errors = tuple(map(_said, report.errors))
    return Leaks(report.table, "By the audit before the fit.", errors)


def _leaks_of_scans(run: Run, progress: Progress) -> Leaks:
    from neurodiff.analysis.ldae_run import parts_of_run
    from neurodiff.analysis.leakage_scans import audit_scans

    try:
        report = audit_scans(parts_of_run(run), scans=True, progress=progress)
    except NeurodiffError as error:
        made = _made_before(run)
        why = f"The scans were not compared: {error}."
        return Leaks(pd.DataFrame(), why) if made is None else made._replace(note=why)
    errors = tuple(map(_said, report.errors))
    return Leaks(report.table, "By the audit of `neurodiff.analysis.leakage_scans`.", errors)


def _said(error: Any) -> str:
    """A check of the audit that found something, in words."""
    if isinstance(error, str):
        return error
    return f"{error.count} of {error.of}: {error.kind}"


def _of_card(run: Run) -> dict[str, Any]:
    source = own_source(run)
    name = source.data if source is not None else str(run.inputs.get("data") or "")
    try:
        card = read_card(name)
    except NeurodiffError:
        return {"licence": "not recorded", "citation": "not recorded"}
    return {
        name: str(getattr(card, name)).strip()
        for name in ("what", "licence", "citation", "units", "splits")
        if getattr(card, name, None)
    }


def _brief(known: dict[str, Any]) -> dict[str, Any]:
    """Long lists as their length."""
    return {
        key: f"{len(value)} of them" if isinstance(value, list) and len(value) > 60 else value
        for key, value in known.items()
    }
