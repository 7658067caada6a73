"""What the verbs of the command line do: fit, reconstruct, evaluate, report.

Each function prints its progress and returns what the command line prints last: a path or a text.
An interrupted verb goes on where it stopped when it is called again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neurodiff.analysis.decoded_items import closing, recording_to_decode
from neurodiff.analysis.decoding import decode, own_source
from neurodiff.analysis.fit_steps import (
    folder_of_fit,
    gate_words,
    plan_text,
    recording_inputs,
    require_meshes,
    stimuli_hash,
)
from neurodiff.analysis.kinds import IMAGES, SCANS, pipeline_of_run
from neurodiff.analysis.leakage_run import LENIENT, Strictness, audit_before_fit, remember_audit
from neurodiff.analysis.run_scores import score_run, summary_text
from neurodiff.analysis.sources import Source, chosen_source, trials_of
from neurodiff.analysis.splits import categories_of, remember, trained_on
from neurodiff.core.config import dump, load
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.run import MODEL, Run

PUBLISHED_UNITS = ("fmri_shape", "fmri_objaverse")  # readers of z-scores of each first run


def fit(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    data: str | None,
    root: Path | None,
    subject: int | str | None,
    seed: int,
    dry_run: bool,
    *,
    leaks: Strictness = LENIENT,
) -> Path | str:
    """Fit a recipe to the training trials of a data set; returns the run's folder.

    What training shares with the other trials is said before the fit, see `leakage`.

    The run's folder is named after recipe, data and a fingerprint of both, so that the same
    command finds its run again and goes on. The fitted pipeline is in its folder ``model``.

    Raises
    ------
    UsageError : recipe, data set or one of their settings is not known.
    DataError : data missing or broken, a stimulus without mesh, disk full; a leak, where strict.
    """
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe

    progress = Progress.to_stdout()
    settings = load(recipe, MinD3DRecipe, list(overrides))
    source = Source.of(data, root, subject)
    recording, stimuli = source.open(progress)
    train = trials_of(recording, "train")
    shown = list(dict.fromkeys(train.trials["stimulus"]))
    require_meshes(stimuli, shown)
    if dry_run:
        return plan_text(settings, source, recording, train, shown)
    report = audit_before_fit(recording, stimuli, leaks, progress=progress)
    inputs = recording_inputs(
        source, subject, recording, train, stimuli=stimuli_hash(stimuli, shown)
    )
    plain = dump(settings)
    folder = folder_of_fit(out, settings.name, source.name, plain, inputs, seed)
    run = Run.create(folder, plain, inputs, command=sys.argv, seed=seed)
    run.info["data"] = source.plain()  # where to find it again; no part of the run's identity
    remember(run, train.trials["subject"].unique(), categories_of(stimuli, shown))
    remember_audit(run, report)
    run.touch()
    progress.say(f"run folder: {folder}")
    bank = source.bank(shown, progress)
    pipe = MinD3D(settings).fit(train, stimuli, bank=bank, seed=seed, run=run, progress=progress)
    pipe.save_pretrained(folder / MODEL)
    run.touch()
    for gate in pipe.gates:
        progress.say("  " + ", ".join(gate_words(gate)))
    return folder


def reconstruct_run(
    run: Path,
    data: str | None,
    root: Path | None,
    subject: int | str | None,
    samples: int | None,
) -> str:
    """Decode the test trials of a run's data set, or every trial of another one, into items.

    Raises
    ------
    UsageError : no test trials, or other vertices than the model's.
    DataError : no model, data missing or broken.
    NeurodiffError : some items failed (exit code 1); the others are done.
    """
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_files import model_fingerprint

    progress = Progress.to_stdout()
    opened = Run.open(run)
    pipe = MinD3D.from_pretrained(opened.folder / MODEL)
    own = own_source(opened)
    source, is_own = chosen_source(own, data, root, subject)
    foreign = own is None or own.reader not in PUBLISHED_UNITS
    if foreign and source.reader in PUBLISHED_UNITS:
        source = Source(source.data, source.root, source.subject, "trial")
        progress.say(
            "these recordings are in other units than the training data: each trial is brought to "
            "mean 0 and standard deviation 1 over visual cortex, and what comes out checks the "
            "plumbing, not the decoder"
        )
    recording = recording_to_decode(opened, source, progress, is_own=is_own, root=root)
    found = decode(
        opened,
        pipe,
        model_fingerprint(opened.folder / MODEL),
        recording,
        source,
        samples=samples or 1,
        progress=progress,
    )
    return closing(found, opened)


def reconstruct_file(source: Path, out: Path, model: Path) -> str:
    """Decode one file of recordings with a fitted model; see `new_trials` for what is read."""
    from neurodiff.analysis.new_trials import reconstruct_trials
    from neurodiff.pipelines.mind3d import MinD3D

    progress = Progress.to_stdout()
    return reconstruct_trials(source, out, MinD3D.from_pretrained(model), progress=progress)


def evaluate_run(
    run: Path, full: bool, protocol: str = "neurodiff-1", weights: Path | None = None
) -> str:
    """Score every item of a run that has a truth, and its baselines and ceiling beside it.

    Writes ``scores.csv``, with ``full`` also ``set_scores.csv``, and returns the summary.

    Raises
    ------
    UsageError : no such protocol.
    MissingDataError : nothing is decoded yet, or the folder of weights is not there.
    """
    from neurodiff.analysis.ceilings import ceilings_of_run

    opened = Run.open(run)
    scored = score_run(
        opened, full=full, protocol=protocol, weights=weights, progress=Progress.to_stdout()
    )
    summary = summary_text(scored.table, scored.sets, trained_on(opened))
    return "\n".join([summary, *ceilings_of_run(opened), *scored.notes])


def report_runs(runs: Sequence[Path], out: Path) -> Path:
    """One page about runs of `fit` and `reconstruct`; numbers beside it as JSON.

    Raises
    ------
    UsageError : runs of two pipelines, whose scores have nothing in common.
    """
    kinds = {pipeline_of_run(folder): folder for folder in runs}
    if len(kinds) > 1:
        text = " and ".join(f"{folder} of {name}" for name, folder in kinds.items())
        raise UsageError(f"one page is about runs of one pipeline: {text}; write two pages")
    opened = [Run.open(folder) for folder in runs]
    if IMAGES in kinds:
        from neurodiff.analysis.image_verbs import report_image_runs

        return report_image_runs(opened, out)
    if SCANS in kinds:
        from neurodiff.analysis.ldae_run import report_cohort_runs

        return report_cohort_runs(opened, out)
    from neurodiff.analysis.run_report import report_of

    return report_of(opened, out, Progress.to_stdout())
