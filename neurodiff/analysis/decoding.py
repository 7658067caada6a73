"""Trials of a recording as items of a run: decoded once, kept whole, read back.

An item holds ``mesh.glb`` (left out where the decoder says that nothing is there) and
``embedding.json``: what was shown, where the trial comes from, the predicted embedding and codes.
Its key covers the trial's values and the model, so that neither more trials nor other ones change
which items are done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis.decoded_items import facts_of_trial, trial_hash, unreadable
from neurodiff.analysis.sources import Source
from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import Item, Run, fingerprint
from neurodiff.core.safe_io import read_json, write_json

if TYPE_CHECKING:
    import trimesh

    from neurodiff.pipelines.brain_input import BrainInput
    from neurodiff.pipelines.mind3d import MinD3D, Reconstruction

TASK = "reconstruction"
VERSION = 1
BATCH = 16  # trials decoded together; also what a kill loses at most
MESH, ABOUT = "mesh.glb", "embedding.json"


@dataclass(frozen=True)
class Decoded:
    """What `decode` did: counts, and the first sentence of each failure."""

    items: int
    before: int
    done: int
    empty: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        again = f", {self.before} of them done before" if self.before else ""
        empty = f"; {self.empty} are empty (the decoder says that nothing is there)"
        return f"{self.done} of {self.items} items are decoded{again}{empty if self.empty else ''}"


def decode(
    run: Run,
    pipe: MinD3D,
    model_hash: str,
    recording: Recording,
    source: Source,
    *,
    samples: int = 1,
    progress: Progress = SILENT,
) -> Decoded:
    """Decode every trial ``samples`` times; items that are done are left alone.

    A trial that cannot be read, or that holds NaN, becomes a failed item, and the others go on.

    Raises
    ------
    UsageError : the recording has other vertices than the model.
    DataError : the disk is full.
    """
    recording = brain_of(pipe).accept(recording)
    progress.say("looking which items are done")
    items: dict[tuple[int, int], Item] = {}
    unreadable: dict[int, str] = {}
    for trial in range(recording.n_trials):
        row = recording.trials.iloc[trial]
        try:
            settings = trial_settings(recording, trial, model_hash)
        except DataError as error:
            settings = trial_settings(recording, trial, model_hash, readable=False)
            unreadable[trial] = str(error)
        for sample in range(samples):
            items[trial, sample] = run.item(TASK, row["subject"], row["stimulus"], sample, settings)
    run.plan(items.values())
    for trial, sentence in unreadable.items():
        for sample in range(samples):
            items[trial, sample].fail(sentence)
    pending = {key for key, item in items.items() if key[0] not in unreadable and not item.done}
    readable = [trial for trial in range(recording.n_trials) if trial not in unreadable]
    progress.begin("decoding")
    finished = 0
    for sample in range(samples):
        for start in range(0, len(readable), BATCH):
            # batches are the same whatever is done before, and so are the bytes of their results
            part = readable[start : start + BATCH]
            if not any((trial, sample) in pending for trial in part):
                continue
            results = decoded(pipe, recording.select(part), sample=sample, seed=run.seed)
            for trial, result in zip(part, results, strict=True):
                if (trial, sample) in pending:
                    row = recording.trials.iloc[trial]
                    _write(items[trial, sample], result, row, source, recording.simulated)
                    finished += 1
                    progress.update(finished, len(pending))
    run.touch()
    done = [item for key, item in items.items() if key[0] not in unreadable]
    empty = sum(not (item.folder / MESH).is_file() for item in done)
    before = len(items) - len(pending) - samples * len(unreadable)
    return Decoded(len(items), before, len(done), empty, tuple(unreadable.values()))


def trial_settings(
    recording: Recording, trial: int, model_hash: str, *, readable: bool = True
) -> str:
    """What an item's key covers beside its names: the model, and the trial's values.

    Raises
    ------
    DataError : the trial cannot be read, or holds NaN; not asked for without ``readable``.
    """
    row = recording.trials.iloc[trial]
    values = trial_hash(recording, trial) if readable else f"unreadable trial {trial}"
    identity = {
        "model": model_hash,
        "version": VERSION,
        "seen": [str(row[name]) for name in ("session", "run", "split", "repeat")],
        "values": values,
    }
    return fingerprint(identity)


def brain_of(pipe: MinD3D) -> BrainInput:
    """How the model reads recordings; UsageError where only its shapes are fitted."""
    if pipe.brain is None:
        raise UsageError("this model is fitted to shapes alone; fit it to a recording first")
    return pipe.brain


def decoded(
    pipe: MinD3D, recording: Recording, *, sample: int = 0, seed: int = 0
) -> Iterator[Reconstruction]:
    """One sample of each trial, mesh by mesh."""
    from neurodiff.pipelines.mind3d import Reconstruction

    embedding = pipe.predict_embedding(recording, sample=sample, seed=seed)
    codes = pipe.codes_from_embedding(embedding)
    for i, mesh in enumerate(pipe.meshes(codes)):
        row = recording.trials.iloc[i]
        who = str(row["subject"]), str(row["stimulus"]), int(row["repeat"])
        yield Reconstruction(*who, sample, embedding[i], codes[i], mesh)


@dataclass(frozen=True)
class Stored:
    """An item read back: the reconstruction, and which data set its trial is of."""

    key: str
    result: Reconstruction
    source: Source
    simulated: bool


def stored_results(run: Run) -> list[Stored]:
    """All finished reconstructions of a run, ordered by data set, subject, stimulus, repeat.

    Raises
    ------
    DataError : a file of a finished item is broken.
    """
    table = run.items_table()
    done = table[(table["status"] == "done") & (table["task"] == TASK)]
    found = [_read(key, run.folder / folder) for key, folder in done[["key", "folder"]].to_numpy()]
    own = own_source(run)
    if own is not None:  # its files may have moved since
        found = [
            replace(one, source=own)
            if one.source.data == own.data and not one.source.is_there
            else one
            for one in found
        ]
    return sorted(
        found,
        key=lambda one: (
            one.source.label,
            one.result.subject,
            one.result.stimulus,
            one.result.repeat,
            one.result.sample,
        ),
    )


def own_source(run: Run) -> Source | None:
    """The data set that a run was fitted on; None where the run does not say."""
    stored = run.info.get("data")
    return Source.from_plain(stored) if isinstance(stored, dict) and stored.get("data") else None


def by_source(stored: list[Stored]) -> Iterator[tuple[Source, list[Stored]]]:
    """Groups of one data set each."""
    for source in dict.fromkeys(one.source for one in stored):
        yield source, [one for one in stored if one.source == source]


def write_mesh(mesh: trimesh.Trimesh, path: Path) -> None:
    """A mesh with faces as binary glTF."""
    with open(path, "wb") as file:
        mesh.export(file, file_type="glb")


def write_result(
    folder: Path, result: Reconstruction, row: Any, source: Source, simulated: bool
) -> None:
    """The files of an item, into an empty folder."""
    about = {
        **facts_of_trial(row, source, simulated, sample=result.sample),
        "faces": len(result.mesh.faces),
        "codes": result.codes,
        "embedding": result.embedding,
    }
    write_json(folder / ABOUT, about)
    if len(result.mesh.faces):
        write_mesh(result.mesh, folder / MESH)


def _write(item: Item, result: Reconstruction, row: Any, source: Source, simulated: bool) -> None:
    with item.write_dir({"repeat": int(row["repeat"])}) as folder:
        write_result(folder, result, row, source, simulated)


def _read(key: str, folder: Path) -> Stored:
    import trimesh

    from neurodiff.pipelines.mind3d import Reconstruction

    about = read_json(folder / ABOUT)
    try:
        mesh = trimesh.Trimesh()
        if about["faces"]:
            mesh = trimesh.load_mesh(folder / MESH)
        result = Reconstruction(
            str(about["subject"]),
            str(about["stimulus"]),
            int(about["repeat"]),
            int(about["sample"]),
            np.asarray(about["embedding"], np.float32),
            np.asarray(about["codes"], np.int64),
            mesh,
        )
        return Stored(key, result, Source.from_plain(about["data"]), bool(about["simulated"]))
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, NeurodiffError):
            raise
        raise unreadable(folder, error) from None
