"""The verbs ``evaluate`` and ``report`` for a run of an LDAE.

An evaluation takes minutes to hours, so that its page is written with it and kept in the run:
``report`` evaluates only where nothing is kept for this model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.ldae_fit import MODEL, SHARES
from neurodiff.core.atomic import atomic_write, write_json
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE

VERSION = 1
_PERCEPTUAL, _PUBLISHED = "perceptual", "published model"  # what a run remembers


def evaluate_cohort_run(run: Run, perceptual: Path | None = None) -> str:
    """Score the held-out people of a run; writes ``scores.csv`` and the run's page.

    perceptual : folder with the weights of an LPIPS (`ldae_losses.perceptual_network`), which the
        run remembers; without one, the page says that LPIPS is not available.

    Raises
    ------
    MissingDataError : no model yet, the scans are no longer where they were, or no LPIPS there.
    DataError : no scan can be prepared, or the cohort is another one than the model was fitted on.
    """
    if perceptual is not None:
        _remember_perceptual(run, perceptual)
    findings = _evaluated(run, Progress.to_stdout())
    return "\n".join([*findings, f"scores: {run.scores_path}", f"report: {run.report_path}"])


def evaluate_model(
    model: str | Path,
    out: str | Path,
    data: str | None,
    root: Path | None = None,
    *,
    perceptual: Path | None = None,
    seed: int = 0,
) -> str:
    """Score a model that no run holds, such as published weights, on all people of a cohort.

    ``out`` becomes a run of its own, so that ``evaluate`` and ``report`` know it afterwards. The
    baselines of training scans (the mean scan, PCA of the same scans) are left out: whom published
    weights were trained on is for the reader to know.

    Raises
    ------
    UsageError : no data set, or ``out`` holds another run.
    MissingDataError, DataError : as `ldae_scans.open_model` and `evaluate_cohort_run`.
    """
    from neurodiff.analysis.ldae_fit import open_cohort, require_files
    from neurodiff.analysis.ldae_scans import open_model
    from neurodiff.core.config import dump

    pipe = open_model(model)
    source, cohort = open_cohort(data, root)
    require_files(cohort)
    inputs = {
        "data": source.name,
        "cohort": cohort.fingerprint(),
        "model": pipe.identity,
        "simulated": bool(cohort.simulated),
    }
    run = Run.create(out, dump(pipe.recipe), inputs, command=sys.argv, seed=seed)
    run.info["data"] = source.plain()
    run.info["parts"] = {"test": cohort.subjects}
    run.info[_PUBLISHED] = str(Path(model).expanduser().resolve())
    run.touch()
    return evaluate_cohort_run(run, perceptual)


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
    needed = "test" if _PUBLISHED in run.info else "train"
    if source is None or not isinstance(people, dict) or needed not in people:
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


def _remember_perceptual(run: Run, folder: Path) -> None:
    """Read the network once, so that hours are not spent before its files are found broken."""
    from neurodiff.pipelines.ldae_losses import perceptual_network

    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise MissingDataError(f"{folder} is no folder; give the one that holds an LPIPS")
    perceptual_network(folder)
    run.info[_PERCEPTUAL] = str(folder.resolve())
    run.touch()


def _model_of(run: Run) -> LDAE:
    """The model in a run's folder, or the published one that it was made to evaluate."""
    from neurodiff.analysis.ldae_scans import open_model

    place = Path(run.info.get(_PUBLISHED) or run.folder / MODEL)
    pipe = open_model(place)
    if _PUBLISHED in run.info and pipe.identity != run.inputs.get("model"):
        raise DataError(
            f"{place} holds another model than when {run.folder} was made; name a new folder"
        )
    return pipe


def _evaluated(run: Run, progress: Progress) -> list[str]:
    """The findings; what was evaluated with this model and plan is not evaluated again."""
    from neurodiff.analysis.demo_ldae import demo_plan, scores_of
    from neurodiff.analysis.ldae_evaluation import EvaluationPlan, evaluate_ldae
    from neurodiff.analysis.page_ldae import gates_of, ldae_report

    pipe = _model_of(run)
    tiny = int(np.prod(pipe.size.grid)) <= 24 * 32 * 24  # a grid of tests
    plan: EvaluationPlan = demo_plan("tiny") if tiny else EvaluationPlan()
    plan = replace(plan, perceptual=run.info.get(_PERCEPTUAL))
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
        pipe, parts["test"], parts.get("train"), plan=plan, seed=run.seed, progress=progress
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
