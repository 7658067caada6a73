"""One model for several people: ``neurodiff fit RECIPE --subjects 1,2,3 --adapt-to 4``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neurodiff.analysis.fit_steps import folder_of_fit, gate_words, require_meshes, stimuli_hash
from neurodiff.analysis.leakage_people import Person, audit_people_before_fit
from neurodiff.analysis.leakage_run import LENIENT, Strictness, remember_audit
from neurodiff.analysis.sources import Source, trials_of
from neurodiff.analysis.splits import categories_of, remember
from neurodiff.core.config import dump, load
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import MODEL, Run
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace


def fit_across(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    data: str | None,
    root: Path | None,
    subjects: Sequence[int | str],
    adapt_to: int | str | None,
    trials: int | None,
    seed: int,
    dry_run: bool,
    *,
    leaks: Strictness = LENIENT,
) -> Path | str:
    """Fit one model to the training trials of several people, and a new person's input layer.

    ``reconstruct`` on the run's folder then decodes the new person's test trials, and with
    ``--subject`` those of the others. What the training of anybody shares with the test trials of
    anybody is said before the fit, see `leakage_people`.

    Parameters
    ----------
    adapt_to : the new person; None for none.
    trials : of the new person, drawn by the seed among their training trials; None for all, 0 for
        the group's layer.

    Raises
    ------
    UsageError, DataError : as `verbs.fit`; somebody named twice, too many trials; a leak, where
        strict.
    """
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe
    from neurodiff.pipelines.mind3d_subjects import (
        adapt_subject,
        adaptation_trials,
        adapted_gate,
        fit_subjects,
        subject_of,
    )

    named = [str(one) for one in subjects]
    if len(named) < 2 or len(set(named)) < len(named):
        raise UsageError(f"--subjects {','.join(named)}: give two or more, each once")
    if adapt_to is not None and str(adapt_to) in named:
        raise UsageError(f"--adapt-to {adapt_to} is one of --subjects; adapt to somebody else")
    if trials is not None and adapt_to is None:
        raise UsageError("--trials counts trials of the new person; say who with --adapt-to")
    progress = Progress.to_stdout()
    settings = load(recipe, MinD3DRecipe, list(overrides))
    base = Source.of(data, root)
    everyone = [*subjects, *([] if adapt_to is None else [adapt_to])]
    opened: list[tuple[Source, Recording, Stimuli]] = []
    whole: list[Recording] = []
    for one in everyone:
        source = replace(base, subject=one)
        recording, stimuli = source.open(progress)
        whole.append(recording)
        train = _at_vertices(trials_of(recording, "train"))
        shown = list(dict.fromkeys(train.trials["stimulus"]))
        require_meshes(stimuli, shown)
        opened.append((source, train, stimuli))
    shared = opened[: len(named)]
    new = None
    if adapt_to is not None:
        train = opened[-1][1]
        n = train.n_trials if trials is None else trials
        new = subject_of(train), n, adaptation_trials(train, n, seed=seed)
    inputs = {
        "data": base.name,
        "subjects": named,
        "recordings": [train.fingerprint() for _, train, _ in shared],
        "trials": [train.n_trials for _, train, _ in shared],
        "adapt to": None if new is None else new[0],
        "adaptation trials": None if new is None else new[1],
        "adaptation recording": None if new is None or new[2] is None else new[2].fingerprint(),
        "stimuli": [
            stimuli_hash(stimuli, list(dict.fromkeys(train.trials["stimulus"])))
            for _, train, stimuli in shared
        ],
        "simulated": any(train.simulated for _, train, _ in shared),
    }
    if dry_run:
        who = "" if new is None else f"; {new[1]} trials of {new[0]} to adapt to"
        return (
            f"recipe {settings.name}, data {base.name}: one model of {len(shared)} subjects "
            f"({', '.join(str(train.n_trials) for _, train, _ in shared)} trials){who}\n"
            f"input layers: {len(opened)} x {settings.embedding.dim} x "
            f"{shared[0][1].n_features:,} weights\nnothing was written (--dry-run)"
        )
    people = [Person.of(recording) for recording in whole]
    if new is not None:  # of the new person only what is drawn is learned from
        drawn = set() if new[2] is None else set(_keys(new[2]))
        part = whole[-1].select([key in drawn for key in _keys(whole[-1])]) if drawn else None
        people[-1] = replace(people[-1], train=part)
    report = audit_people_before_fit(people, _everybodys(opened, whole), leaks, progress=progress)
    plain = dump(settings)
    name = f"{base.name}-{len(shared)}-subjects"
    folder = folder_of_fit(out, settings.name, name, plain, inputs, seed)
    run = Run.create(folder, plain, inputs, command=sys.argv, seed=seed)
    # what `reconstruct` decodes: the new person's test trials
    run.info["data"] = opened[-1 if new is not None else 0][0].plain()
    remember(
        run,
        [subject_of(train) for _, train, _ in shared],
        [name for _, train, stimuli in shared for name in _categories(train, stimuli)],
        None if new is None else {new[0]: new[1]},
    )
    remember_audit(run, report)
    run.touch()
    progress.say(f"run folder: {folder}")

    bank = _bank(opened, seed, progress)
    pipe = MinD3D(settings).fit_shapes(bank, seed=seed, run=run, progress=progress)
    recordings = [train for _, train, _ in shared]
    fit_subjects(pipe, recordings, bank, seed=seed, run=run, progress=progress)
    if new is not None:
        name, n, part = new
        adapt_subject(pipe, name, part, bank)
        pipe.gates.append(adapted_gate(pipe, name, n))
    pipe.save_pretrained(folder / MODEL)
    run.touch()
    for gate in pipe.gates:
        progress.say("  " + ", ".join(gate_words(gate)))
    return folder


def _at_vertices(recording: Recording) -> Recording:
    """Flat maps at the 8,921 vertices: a layer of 65,536 pixels has seven weights for each."""
    if not isinstance(recording.space, FlatImageSpace):
        return recording
    from neurodiff.pipelines.brain_input import in_space

    flat = FlatMapSpace()
    return in_space(recording, flat.fingerprint(), flat.n_features, flat.name)


def _categories(train: Recording, stimuli: Stimuli) -> list[str]:
    return categories_of(stimuli, list(dict.fromkeys(train.trials["stimulus"])))


def _bank(opened: list[tuple[Source, Recording, Stimuli]], seed: int, progress: Progress):
    """Shapes of every training stimulus of everybody; the new person's belong to none of them
    alone, and shapes are fitted without any brain."""
    from neurodiff.geometry.bank import bank_from_stimuli

    trains = [train for _, train, _ in opened]
    ids = list(dict.fromkeys(str(name) for train in trains for name in train.trials["stimulus"]))
    bank = opened[0][0].bank(ids, progress)
    if bank is not None:
        return bank
    shown = _everybodys(opened, trains)
    return bank_from_stimuli(shown.select(ids), seed=seed, progress=progress)


def _everybodys(
    opened: Sequence[tuple[Source, Recording, Stimuli]], recordings: Sequence[Recording]
) -> Stimuli:
    """The stimuli of these recordings as one table; each is read by its first viewer's loader."""
    import pandas as pd

    holder: dict[str, Stimuli] = {}
    for (_, _, stimuli), recording in zip(opened, recordings, strict=True):
        for name in recording.trials["stimulus"]:
            holder.setdefault(str(name), stimuli)
    first = opened[0][2]
    if all(stimuli is first or name in first for name, stimuli in holder.items()):
        return first.select(list(holder))
    tables = {id(s): s.table for s in holder.values()}
    table = pd.concat(tables.values()).drop_duplicates("id")
    every = list(holder.values())
    return Stimuli(
        table[table["id"].isin(list(holder))],
        (lambda name: holder[name][name].mesh()) if all(s.load_mesh for s in every) else None,
        (lambda name: holder[name][name].image()) if all(s.load_image for s in every) else None,
        first.simulated,
    )


def _keys(recording: Recording) -> list[tuple[str, str, int, str]]:
    """What names a trial within a person."""
    columns = ["session", "run", "repeat", "stimulus"]
    return list(recording.trials[columns].itertuples(index=False, name=None))
