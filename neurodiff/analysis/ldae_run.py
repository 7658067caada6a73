"""The verbs ``evaluate`` and ``report`` for a run of an LDAE.

An evaluation takes minutes to hours, so that its page is written with it and kept in the run:
``report`` evaluates only where nothing is kept for this model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.ldae_fit import MODEL, SHARES
from neurodiff.core.atomic import atomic_write, write_json
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run

VERSION = 1


def evaluate_cohort_run(run: Run) -> str:
    """Score the held-out people of a run; writes ``scores.csv`` and the run's page.

    Raises
    ------
    MissingDataError : no model yet, or the scans are no longer where they were.
    DataError : no scan can be prepared, or the cohort is another one than the model was fitted on.
    """
    findings = _evaluated(run, Progress.to_stdout())
    return "\n".join([*findings, f"scores: {run.scores_path}", f"report: {run.report_path}"])


def report_cohort_runs(runs: Sequence[Run], out: Path) -> Path:
    """The page of a run as a file, its numbers beside it as JSON.

    Raises
    ------
    UsageError : several runs, whose people and grids differ; errors as `evaluate_cohort_run`.
    """
    if len(runs) != 1:
        raise UsageError(
            f"a page of brain scans is about one run, and {len(runs)} were given: write one each"
        )
    run = runs[0]
    _evaluated(run, Progress.to_stdout())
    html = run.report_path.read_bytes()
    with atomic_write(out) as file:
        file.write(html)
    write_json(Path(out).with_suffix(".json"), run.read_report_json())
    return Path(out)


def parts_of_run(run: Run) -> dict[str, Cohort]:
    """The cohort of a run in the parts that its people were dealt into.

    Raises
    ------
    MissingDataError : the run does not say, or its scans are not there.
    DataError : a person of the run is no longer in the cohort.
    """
    from neurodiff.analysis.ldae_scans import open_scans

    source, people = own_source(run), run.info.get("parts")
    if source is None or not isinstance(people, dict) or "train" not in people:
        raise MissingDataError(
            f"{run.folder} does not say which people it was fitted on; fit again"
        )
    cohort = open_scans(source.data, source.root)
    there, parts = cohort.scans["subject"], {}
    for name, subjects in people.items():
        lost = sorted(set(subjects) - set(there))
        if lost:
            raise DataError(
                f"{len(lost)} people of the run's {name} are no longer in {source.label}, first "
                f"{lost[0]}; bring the scans back, or fit again"
            )
        parts[name] = cohort.select(np.flatnonzero(there.isin(subjects).to_numpy()))
    return {name: parts[name] for name in SHARES if name in parts}


def _evaluated(run: Run, progress: Progress) -> list[str]:
    """The findings; what was evaluated with this model and plan is not evaluated again."""
    from neurodiff.analysis.demo_ldae import demo_plan, scores_of
    from neurodiff.analysis.ldae_evaluation import EvaluationPlan, evaluate_ldae
    from neurodiff.analysis.page_ldae import gates_of, ldae_report
    from neurodiff.pipelines.ldae import LDAE

    pipe = LDAE.from_pretrained(run.folder / MODEL)
    tiny = int(np.prod(pipe.size.grid)) <= 24 * 32 * 24  # a grid of tests
    plan: EvaluationPlan = demo_plan("tiny") if tiny else EvaluationPlan()
    settings = {"plan": vars(plan), "seed": run.seed}
    stage = run.stage("evaluation", settings, [pipe.identity], version=VERSION)
    if stage.done and run.report_path.is_file() and run.scores_path.is_file():
        progress.say("evaluated before, nothing repeated")
        return list(stage.metrics.get("findings", []))
    parts = parts_of_run(run)
    if "test" not in parts:
        raise DataError(f"{run.folder} has no test people; name some 'test' in the column split")
    began = time.monotonic()
    found = evaluate_ldae(
        pipe, parts["test"], parts["train"], plan=plan, seed=run.seed, progress=progress
    )
    run.write_scores(scores_of(found))
    gates, findings = gates_of(found, pipe)
    simulated = bool(run.inputs.get("simulated"))
    seconds: dict[str, Any] = {"evaluation": time.monotonic() - began}
    report = ldae_report(
        run,
        pipe,
        found,
        title="LDAE: brain scans, codes, edits and missing visits",
        subtitle=_subtitle(parts, simulated),
        simulated=simulated,
        gates=gates,
        findings=findings,
        seconds=seconds,
        people={name: len(part.subjects) for name, part in parts.items()},
    )
    run.write_report_html(report.html())
    run.write_report_json(report.to_json())
    run.touch()
    stage.finish({"findings": findings, "seconds": seconds})
    return findings


def _subtitle(parts: dict[str, Cohort], simulated: bool) -> str:
    test = parts["test"]
    text = f"{len(test)} scans of {len(test.subjects)} people that the model was not trained on"
    return f"Simulated, about plumbing and method: {text}" if simulated else text
