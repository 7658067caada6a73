"""The leakage audit of a fit and of a run: before anything is fitted, and again on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.leakage import LeakageReport, audit
from neurodiff.analysis.leakage_strictness import LENIENT, Strictness
from neurodiff.core.errors import MissingDataError, NeurodiffError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run
from neurodiff.core.stimuli import Stimuli

KEY = "leakage"  # of run.json
TITLE = "What training shares with the test set"


def audit_before_fit(
    recording: Recording,
    stimuli: Stimuli,
    strictness: Strictness = LENIENT,
    *,
    shapes: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
) -> LeakageReport | None:
    """Hold the training trials of a recording against all its others, and say what was found.

    Parameters
    ----------
    recording : all splits; those that are not "train" count as test.
    shapes : id -> mesh or points where they are at hand; under ``strict`` those of the stimuli.
    preprocessing : as `audit`.

    Returns
    -------
    None where there is nothing but training trials; the progress says so.

    Raises
    ------
    DataError : under ``strict``, a finding that is not allowed (exit code 3).
    UsageError : ``allow`` names no check.
    """
    is_train = (recording.trials["split"] == "train").to_numpy()
    if is_train.all() or not is_train.any():
        progress.say("leakage: not checked: the recording has no other trials than those of a fit")
        return None
    pictures: bool = strictness.strict and stimuli.load_image is not None
    meshes: Any = shapes if shapes is not None else stimuli.load_mesh is not None
    report = audit(
        recording.select(is_train),
        recording.select(~is_train),
        stimuli,
        images=pictures,
        meshes=meshes if strictness.strict else False,
        preprocessing=preprocessing,
        progress=progress,
    )
    for line in report.lines():
        progress.say(line)
    report.raise_if_strict(strictness.strict, strictness.allow)
    return report


def remember_audit(run: Run, report: LeakageReport | None) -> None:
    """Write an audit into a run's ``run.json`` with its next touch; no part of its identity."""
    if report is not None:
        run.info[KEY] = report.to_json()


def audit_of_run(run: Run, progress: Progress = SILENT) -> LeakageReport:
    """The audit that was made when a run was fitted; made now for a run of an earlier version.

    Made now, it covers the trials and ids, not the pictures and meshes themselves.

    Raises
    ------
    MissingDataError : the run does not say what it was fitted on, or there are no test trials.
    DataError : the data are not where they were.
    """
    if KEY in run.info:
        return LeakageReport.from_json(run.info[KEY])
    source = own_source(run)
    if source is None:
        raise MissingDataError(f"{run.folder} does not say on which data it was fitted")
    recording, stimuli = source.open(progress)
    decoder = run.recipe.get("decoder")
    standardise = decoder.get("standardise") if isinstance(decoder, Mapping) else None
    report = audit_before_fit(
        recording, stimuli, preprocessing=stated_statistics(standardise), progress=progress
    )
    if report is None:
        raise MissingDataError(f"{source.label} holds no trials but those of training")
    return report


def stated_statistics(standardise: str | None) -> dict[str, str]:
    """What a recipe says of the statistics by which decoded features regain their spread."""
    return {"spread of decoded features": "test"} if standardise == "test" else {}


def leakage_table(run: Run, progress: Progress = SILENT) -> tuple[str, pd.DataFrame, str]:
    """(title, table, words) for the page of a run; without an audit the words say why."""
    try:
        report = audit_of_run(run, progress)
    except NeurodiffError as error:
        return TITLE, pd.DataFrame({"check": ["all"], "severity": ["not checked"]}), str(error)
    found = [*report.errors, *report.warnings]
    words = "Each check of the audit, also those that found nothing and those not made. "
    words += (
        "Scores of this run are to be read with: " + ", ".join(c.kind for c in found) + "."
        if found
        else "No check found test data in training."
    )
    return TITLE, report.table, words
