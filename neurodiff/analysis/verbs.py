"""What the verbs of the command line do: fit, reconstruct, evaluate, report.

Each function prints its progress and returns what the command line prints last: a path or a text.
An interrupted verb goes on where it stopped when it is called again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from neurodiff.analysis.decoding import by_source, decode, own_source, stored_results
from neurodiff.analysis.kinds import IMAGES, SCANS, pipeline_of_run
from neurodiff.analysis.leakage_run import LENIENT, Strictness, audit_before_fit, remember_audit
from neurodiff.analysis.sources import Source, chosen_source, trials_of
from neurodiff.analysis.splits import (
    COLUMNS,
    categories_of,
    class_lines,
    describe,
    mark,
    remember,
    trained_on,
)
from neurodiff.core.config import dump, load
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run, fingerprint
from neurodiff.core.stimuli import Stimuli

if TYPE_CHECKING:
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe

MODEL = "model"
PUBLISHED_UNITS = ("fmri_shape", "fmri_objaverse")  # readers of z-scores of each first run
SET_COLUMNS = ["data", "protocol", "condition", "metric", "value", "low", "high", "n", "note"]


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
    _require_meshes(stimuli, shown)
    if dry_run:
        return _plan(settings, source, recording, train, shown)
    report = audit_before_fit(recording, stimuli, leaks, progress=progress)
    inputs = {
        "data": source.name,
        "subject": subject,
        "recording": train.fingerprint(),
        "trials": train.n_trials,
        "features": train.n_features,
        "space": train.space.fingerprint(),
        "stimuli": _hash_of(stimuli, shown),
        "simulated": bool(recording.simulated),
    }
    plain = dump(settings)
    key = fingerprint({"recipe": plain, "inputs": inputs, "seed": seed})
    folder = out / Run.folder_name(settings.name, source.name, key)
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
        progress.say("  " + ", ".join(_words(gate)))
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
    recording, _ = source.open(progress)
    if is_own:
        recording = trials_of(recording, "test")
        if root is not None:
            opened.info["data"] = {**opened.info["data"], "root": source.root}
    found = decode(
        opened,
        pipe,
        model_fingerprint(opened.folder / MODEL),
        recording,
        source,
        samples=samples or 1,
        progress=progress,
    )
    if found.failures:
        raise NeurodiffError(
            f"{found.items - found.done} of {found.items} items failed, first: "
            f"{found.failures[0]}; the others are done: mend the data and start the same command "
            "again"
        )
    return f"{found} in {opened.folder / 'items'}"


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


class RunScores(NamedTuple):
    """Scores of items and conditions, scores of whole sets, and what is to be known of networks."""

    table: pd.DataFrame
    sets: pd.DataFrame
    notes: tuple[str, ...]


def score_run(
    opened: Run,
    *,
    full: bool,
    progress: Progress,
    protocol: str = "neurodiff-1",
    weights: Path | None = None,
) -> RunScores:
    """Scores of every decoded item of a run, which are also written to its folder.

    Columns: key, condition, data, simulated, protocol, and those of `Evaluation.table`. The
    reconstructions are the condition ``MinD-3D``; one row a trial and other condition has the key
    of the trial's first item. Conditions that cannot be made are left out, and the progress says
    why.
    """
    from neurodiff.analysis.demo import OURS
    from neurodiff.analysis.evaluation import NO_TRUTH, evaluate
    from neurodiff.analysis.neighbours import Neighbours
    from neurodiff.analysis.networks import find_networks
    from neurodiff.analysis.protocols import protocol_of

    protocol_of(protocol)
    stored = stored_results(opened)
    if not stored:
        raise MissingDataError(
            f"{opened.folder} holds no reconstruction; run `neurodiff reconstruct {opened.folder}`"
        )
    networks = find_networks(weights) if full else None
    beside = Neighbours(opened, opened.folder / MODEL, progress)
    known_people = trained_on(opened)
    parts, sets = [], []
    for source, group in by_source(stored):
        results = [one.result for one in group]
        own = evaluate(
            results, source.stimuli(), protocol, full=full, weights=weights, progress=progress
        )
        scored = own.table
        columns = ["key", "condition", "data", "simulated", "protocol", *scored.columns]
        scored["key"] = [one.key for one in group]
        scored["condition"] = OURS
        known = ~scored["note"].str.startswith(NO_TRUTH)
        trials = ["subject", "stimulus", "repeat"]
        once = scored[known].drop_duplicates(trials)
        tables = [scored]
        rows = [{"condition": _sample_name(OURS, r)} | r for r in own.sets.to_dict("records")]
        if len(once):
            others = beside.scores(
                source,
                [results[k] for k in once.index],
                full=full,
                protocol=protocol,
                weights=weights,
            )
            rows += beside.sets
            if len(others):
                tables.append(others.merge(once[[*trials, "key"]], on=trials, how="left"))
        for row in rows:
            row.pop("sample", None)
            sets.append({"data": source.label, "protocol": protocol} | row)
        for part in tables:
            part["data"] = source.label
            part["simulated"] = any(one.simulated for one in group)
            part["protocol"] = protocol
            parts.append(mark(part, known_people)[[*columns, *COLUMNS]])
    table = pd.concat(parts, ignore_index=True)
    of_sets = pd.DataFrame(sets, columns=SET_COLUMNS)
    opened.write_scores(table)
    opened.write_set_scores(of_sets)
    opened.info["networks"] = (
        {use: {"name": one.name, "sha256": one.hashes()} for use, one in networks.found.items()}
        if networks is not None
        else {}
    )
    opened.touch()
    return RunScores(table, of_sets, tuple(networks.lines()) if networks is not None else ())


def _sample_name(condition: str, row: dict[str, Any]) -> str:
    """Each sample of a trial makes a set of its own."""
    return f"{condition}, sample {row['sample'] + 1}" if row["sample"] else condition


def summary_text(
    table: pd.DataFrame,
    sets: pd.DataFrame | None = None,
    trained: Mapping[str, Any] | None = None,
) -> str:
    """Mean, median and interval of each metric, one block a data set, as plain text.

    Below it stand the other conditions, the ways from the floors to the ceiling, and the scores
    of whole sets. A network that makes a column is in the column's name. A block is one data set
    and one of the splits core, across-person, across-class and across-person-across-class;
    ``trained`` is what the run was trained on.
    """
    from neurodiff.analysis.demo import OURS
    from neurodiff.analysis.evaluation import Evaluation
    from neurodiff.analysis.neighbours import (
        condition_rows,
        findings,
        mean_table,
        protocol_in,
        remarks,
        set_table,
    )
    from neurodiff.analysis.protocols import quantity

    lines = []
    for (data, _), block in table.groupby(["data", "generalisation"], sort=False):
        part = block[block["condition"] == OURS]
        protocol = protocol_in(part)
        scored = Evaluation(part.reset_index(drop=True), protocol)
        label = ", simulated" if part["simulated"].all() else ""
        by = f", by {protocol}" if protocol != "neurodiff-1" else ""
        empty = int((part["note"] == "empty mesh").sum())
        [split] = set(part["generalisation"])
        how = describe(split, part["subject"], trained)
        lines.append(f"{data}{label}: {len(part)} items, {empty} with an empty mesh{by}")
        lines += [f"  split: {how}"] if how else []
        summary = scored.summary()
        width = max([7, *(len(str(name)) for name in summary.index)])
        if (summary["n"] > 0).any():
            for name, row in summary.iterrows():
                if row["n"] == 0:
                    lines.append(
                        f"  {name:<{width}} not available: no item that it can be asked of"
                    )
                    continue
                what = quantity(str(name))
                better = "higher" if what.higher_is_better else "lower"
                chance = f", chance {what.chance:g}" if what.chance is not None else ""
                lines.append(
                    f"  {name:<{width}} mean {row['mean']:.3f} [{row['low']:.3f}, "
                    f"{row['high']:.3f}], median {row['median']:.3f}, n {int(row['n'])} stimuli"
                    f"{f', {what.unit}' if what.unit else ''}{chance} ({better} is better)"
                )
        lines += [f"  {line}" for line in class_lines(part, scored.metrics)]
        if scored.no_truth:
            names = ", ".join(scored.no_truth[:3]) + (" ..." if len(scored.no_truth) > 3 else "")
            lines.append(f"  no truth (no mesh) for {len(scored.no_truth)} stimuli: {names}")
        if len(part) < len(block):
            lines.append("  beside the same trials, means with 95 % intervals over stimuli:")
            text = mean_table(condition_rows(block)).rename_axis(columns="condition").to_string()
            lines += [f"    {line}" for line in text.splitlines()]
            lines += [f"  {line}" for line in [*findings(block), *remarks(block)]]
        own = sets[sets["data"] == data] if sets is not None else pd.DataFrame()
        if len(own):
            lines.append("  of all items together, with a 95 % interval (jackknife over items):")
            lines += [f"    {line}" for line in set_table(own).to_string().splitlines()]
            lines += [f"  {name}: {note}" for name, note in set_remarks(own)]
    return "\n".join(lines)


def set_remarks(sets: pd.DataFrame) -> list[tuple[str, str]]:
    """What is to be known of scores of whole sets: unit, direction, and rank; one a metric."""
    from neurodiff.analysis.protocols import quantity

    found: dict[str, str] = {}
    for row in sets.to_dict("records"):
        what = quantity(row["metric"])
        better = "higher" if what.higher_is_better else "lower"
        note = f"; {row['note']}" if row["note"] else ""
        found.setdefault(row["metric"], f"{what.unit}, {better} is better{note}")
    return list(found.items())


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


# ----------------------------------------------------------------------------------- helpers


def _require_meshes(stimuli: Stimuli, shown: list[str]) -> None:
    """Complain before any work; meshes are read later, one by one."""
    for name in shown:
        if name not in stimuli:
            raise DataError(
                f"stimulus {name!r} of the recording is not among the {len(stimuli)} stimuli; add "
                "it to their table"
            )
    if stimuli.load_mesh is None:
        raise MissingDataError(
            f"stimulus {shown[0]!r} has no mesh, and none come with these stimuli: fitting shapes "
            "needs a mesh of every training stimulus, such as stimuli/<id>.glb"
        )


def _hash_of(stimuli: Stimuli, ids: list[str]) -> str:
    table = stimuli.select(ids).table[["id", "category"]]
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def _plan(
    settings: MinD3DRecipe,
    source: Source,
    recording: Recording,
    train: Recording,
    shown: list[str],
) -> str:
    """What a fit would do: sizes, trials, bytes; nothing is written."""
    import torch

    from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
    from neurodiff.pipelines.brain_input import BrainInput

    encoder = settings.bridge.encoder
    first = train.select([0])  # the patches depend on the space, not on the values
    brain = BrainInput.fit(first, patch_size=encoder.patch_size, image_size=encoder.image_size)
    with torch.device("meta"):
        shapes = ShapeGenerator(settings.decoder.size, settings.tokenizer.size)
        networks = BrainNetworks(
            settings.bridge.encoder_for(brain.image_size),
            settings.bridge.network,
            patches=torch.from_numpy(brain.kept),
            aggregated_tokens=settings.bridge.aggregated_tokens,
        )
    parts: dict[str, Any] = {
        "vqvae_model (tokenizer)": shapes.vqvae_model,
        "transformer_model (shape decoder)": shapes.transformer_model,
        **dict(networks.named_children()),
    }
    counts = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in parts.items()
    }
    counts["ridge"] = (train.n_features + 1) * settings.embedding.dim
    steps = {
        "tokenizer": settings.tokenizer.training,
        "shape decoder": settings.decoder.training,
        "bridge": settings.bridge.training,
        "adapters": settings.decoder.adapters,
    }
    splits = recording.trials["split"].value_counts(sort=False)
    size = 4 * float(np.prod(train.data.shape))
    total = sum(counts.values())
    label = ", simulated" if recording.simulated else ""
    return "\n".join(
        [
            f"recipe {settings.name}, data {source.name}{label}",
            f"trials: {', '.join(f'{n} {name}' for name, n in splits.items())}",
            f"a trial: {' x '.join(map(str, train.data.shape[1:]))} values (frames x features)",
            f"training stimuli: {len(shown)}",
            f"training data: {size / 1e6:.1f} MB ({size:.0f} bytes) as float32",
            "parameters:",
            *(f"  {name:<34} {n:>13,}" for name, n in counts.items()),
            f"  {'all':<34} {total:>13,} ({4 * total} bytes as float32)",
            "steps x batch:",
            *(f"  {name:<34} {one.steps:>6} x {one.batch_size}" for name, one in steps.items()),
            "nothing was written (--dry-run)",
        ]
    )


def _words(gate: dict[str, Any]) -> list[str]:
    return [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in gate.items()
    ]
