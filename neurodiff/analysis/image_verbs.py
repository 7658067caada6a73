"""The verbs ``reconstruct``, ``evaluate`` and ``report`` for runs that decode pictures.

As those of `verbs`, which hands such runs on to here. An interrupted verb goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neurodiff.analysis.decoded_items import closing, recording_to_decode
from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.figures import is_number
from neurodiff.analysis.image_conditions import OURS
from neurodiff.analysis.image_fit import MODEL
from neurodiff.analysis.image_items import decode_pictures
from neurodiff.analysis.image_protocols import image_quantity
from neurodiff.analysis.image_run_scores import GroupScores, score_image_run
from neurodiff.analysis.page_images import score_table
from neurodiff.analysis.sources import chosen_source
from neurodiff.analysis.splits import describe, mark, trained_on
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run


def reconstruct_image_run(
    run: Path,
    data: str | None,
    root: Path | None,
    subject: int | str | None,
    samples: int | None,
    average: bool = True,
) -> str:
    """Decode the test trials of a run's data set, or every trial of another one, into items.

    ``average`` : the repeats of a picture are averaged first, as published.

    Raises
    ------
    UsageError : no test trials.
    DataError : no model, data missing or broken, other voxels than the model's.
    NeurodiffError : some items failed (exit code 1); the others are done.
    """
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser
    from neurodiff.pipelines.brain_diffuser_files import model_fingerprint

    progress = Progress.to_stdout()
    opened = Run.open(run)
    pipe = BrainDiffuser.from_pretrained(opened.folder / MODEL)
    source, is_own = chosen_source(own_source(opened), data, root, subject)
    recording = recording_to_decode(opened, source, progress, is_own=is_own, root=root)
    found = decode_pictures(
        opened,
        pipe,
        model_fingerprint(opened.folder / MODEL),
        recording,
        source,
        samples=samples or 1,
        average=average,
        progress=progress,
    )
    return closing(found, opened)


def reconstruct_image_file(source: Path, out: Path, model: Path) -> str:
    """Decode one file of betas with a fitted model; see `image_trials` for what is read."""
    from neurodiff.analysis.image_trials import reconstruct_betas
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser

    return reconstruct_betas(
        source, out, BrainDiffuser.from_pretrained(model), progress=Progress.to_stdout()
    )


def evaluate_image_run(run: Path, protocol: str, weights: Path | None) -> str:
    """Score every picture of a run and its anchors; see `image_run_scores` for what is written.

    Raises
    ------
    UsageError : no such protocol.
    MissingDataError : nothing is decoded yet, or the folder of weights is not there.
    """
    opened = Run.open(run)
    groups = score_image_run(
        opened, protocol=protocol, weights=weights, progress=Progress.to_stdout()
    )
    return summary_text(opened, groups, protocol)


def report_image_runs(runs: Sequence[Run], out: Path) -> Path:
    """One page about runs; numbers beside it as JSON."""
    from neurodiff.analysis.image_run_report import image_report_of

    return image_report_of(runs, out, Progress.to_stdout())


def summary_text(run: Run, groups: Sequence[GroupScores], protocol: str) -> str:
    """Mean, interval, chance and n of each metric, and the anchors, one block a group."""
    lines = []
    known = trained_on(run)
    for group in groups:
        simulated = ", simulated" if any(one.simulated for one in group.pictures) else ""
        lines.append(f"{group.label}{simulated}: {len(group.pictures)} pictures, by {protocol}")
        if group.conditions is None:
            lines.append("  no truth: none of these stimuli has a picture")
            continue
        ours = group.conditions.evaluations[OURS]
        lines += [f"  split: {line}" for line in split_lines(ours.table, known)]
        if ours.no_truth:
            few = ", ".join(ours.no_truth[:3]) + (" ..." if len(ours.no_truth) > 3 else "")
            lines.append(f"  no truth (no picture) for {len(ours.no_truth)} stimuli: {few}")
        table = group.conditions.table
        own = table[table["condition"] == OURS]
        width = max(len(name) for name in own["metric"])
        for row in own.to_dict("records"):
            up = "higher" if image_quantity(row["metric"]).higher_is_better else "lower"
            extra = [f"chance {row['chance']:.3f}"] if is_number(row["chance"]) else []
            extra += [f"p {row['p']:.4f}"] if is_number(row["p"]) else []
            more = f", {', '.join(extra)}" if extra else ""
            lines.append(
                f"  {row['metric']:<{width}} mean {row['mean']:.3f} [{row['low']:.3f}, "
                f"{row['high']:.3f}], n {int(row['n'])} pictures{more} ({up} is better)"
            )
        names = list(dict.fromkeys(table["condition"]))
        lines.append("  beside the same pictures, means of")
        lines += [f"    [{k}] {name}" for k, name in enumerate(names, start=1)]
        wide = table.pivot(index="metric", columns="condition", values="mean")
        wide = wide.loc[list(own["metric"]), names].round(3)
        wide.columns = [f"[{k}]" for k in range(1, len(names) + 1)]
        text = wide.to_string(na_rep="–", index_names=False)
        lines += [f"    {line}" for line in text.splitlines()]
        lines += [f"  {line}" for line in way_lines(group)]
    notes = [note for group in groups for note in group.remarks]
    for group in groups:
        if group.conditions is not None:
            notes += group.conditions.evaluations[OURS].notes
    return "\n".join([*lines, *dict.fromkeys(notes)])


def way_lines(group: GroupScores) -> list[str]:
    """How far from the best baseline without a brain to the ceiling, or why that is not known."""
    if group.conditions is None:
        return []
    table = group.conditions.table
    notes = table[table["condition"] == OURS].set_index("metric")["note"]
    lines = []
    for row in score_table(group.conditions).to_dict("records"):
        metric, note = row["metric"], str(notes[row["metric"]])
        if row["way"] != "–":
            floor = row["best without a brain"]
            told = f" ({note})" if note not in ("", "nan") else ""
            lines.append(f"{metric}: {row['way']} of the way from {floor} to the ceiling{told}")
        elif note:
            lines.append(f"{metric}: {note}, so there is no way to measure")
    return lines


def split_lines(table: object, known: object) -> list[str]:
    """How far the trials are from the training data, a line each split."""
    marked = mark(table, known)  # type: ignore[arg-type]
    found = []
    for split, rows in marked.groupby("generalisation", sort=False):
        people = list(np.unique(rows["subject"].to_numpy(str)))
        text = describe(str(split), people, known)  # type: ignore[arg-type]
        found += [text] if text else []
    return found
