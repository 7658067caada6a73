"""Decoded pictures as items of a run: made once, kept whole, read back.

An item holds ``image.png``, ``init.png`` (the low-level picture that the generator started from)
and ``picture.json``: what was shown, where the trial comes from, and how it was made. Three tasks:

    picture                        of a trial's decoded features
    picture of mean features       no brain: of the mean training features, with the trial's noise
    picture of true features       the ceiling: of the features of what was shown

The key of the first covers the trial's values and the model, so that neither more trials nor other
ones change which items are done; where predictions are brought to scale by the statistics of the
test set, it covers every trial.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodiff.analysis.decoded_items import facts_of_trial, trial_hash, unreadable
from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.sources import Source
from neurodiff.core.errors import DataError, NeurodiffError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import Item, Run, fingerprint
from neurodiff.core.safe_images import open_picture
from neurodiff.core.safe_io import read_json, write_json
from neurodiff.core.stimuli import Stimuli
from neurodiff.pipelines.pictures import Picture, png_bytes

if TYPE_CHECKING:
    import PIL.Image

    from neurodiff.pipelines.brain_diffuser import BrainDiffuser, Features

TASK, MEAN_TASK, TRUE_TASK = "picture", "picture of mean features", "picture of true features"
VERSION = 1
IMAGE, INIT, ABOUT = "image.png", "init.png", "picture.json"
Key = tuple[str, str, int]  # subject, stimulus, repeat


@dataclass(frozen=True)
class DecodedPictures:
    """What `decode_pictures` did: counts, and the first sentence of each failure."""

    items: int
    before: int
    done: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        again = f", {self.before} of them done before" if self.before else ""
        return f"{self.done} of {self.items} items are decoded{again}"


@dataclass(frozen=True)
class StoredPicture:
    """An item read back. ``averaged``: the trial is a mean over repeats."""

    key: str
    picture: Picture
    source: Source
    averaged: bool
    simulated: bool


def decode_pictures(
    run: Run,
    pipe: BrainDiffuser,
    model_hash: str,
    recording: Recording,
    source: Source,
    *,
    samples: int = 1,
    average: bool = True,
    progress: Progress = SILENT,
) -> DecodedPictures:
    """Decode every trial ``samples`` times; items that are done are left alone.

    A trial that cannot be read, or that holds NaN, becomes a failed item, and the others go on.

    Parameters
    ----------
    average : the repeats of a stimulus are averaged first, as published.

    Raises
    ------
    DataError : the recording has other voxels than the model, or the disk is full.
    """
    from neurodiff.pipelines.brain_diffuser import averaged

    if average:
        recording = averaged(recording)
    progress.say("looking which items are done")
    hashes: dict[int, str] = {}
    unreadable: dict[int, str] = {}
    for trial in range(recording.n_trials):
        try:
            hashes[trial] = trial_hash(recording, trial)
        except DataError as error:
            unreadable[trial] = str(error)
    readable = list(hashes)
    if readable and pipe.input is not None:
        pipe.input(recording.select(readable[:1]))  # another mask is refused before any item
    together = fingerprint({"trials": list(hashes.values())})
    transductive = pipe.recipe.decoder.standardise == "test"
    items: dict[tuple[int, int], Item] = {}
    for trial in range(recording.n_trials):
        row = recording.trials.iloc[trial]
        settings = trial_settings(
            recording,
            trial,
            model_hash,
            values=hashes.get(trial, f"unreadable trial {trial}"),
            average=average,
            statistics=together if transductive else "",
        )
        for sample in range(samples):
            items[trial, sample] = run.item(TASK, row["subject"], row["stimulus"], sample, settings)
    run.plan(items.values())
    for trial, sentence in unreadable.items():
        for sample in range(samples):
            items[trial, sample].fail(sentence)
    pending = {key for key, item in items.items() if key[0] in hashes and not item.done}
    if pending:
        progress.say(f"features of {len(readable)} trials")
        features = pipe.predict_features(recording.select(readable))
        rows = [recording.trials.iloc[trial] for trial in readable]
        about = [about_trial(row, source, recording.simulated, average) for row in rows]
        for sample in range(samples):
            make_items(
                pipe,
                features,
                [items[trial, sample] for trial in readable],
                about,
                sample=sample,
                seed=run.seed,
                progress=progress,
            )
    run.touch()
    failed = samples * len(unreadable)
    return DecodedPictures(
        len(items),
        len(items) - len(pending) - failed,
        len(items) - failed,
        tuple(unreadable.values()),
    )


def trial_settings(
    recording: Recording,
    trial: int,
    model_hash: str,
    *,
    values: str,
    average: bool = True,
    statistics: str = "",
) -> str:
    """What an item's key covers beside its names: model, values of the trial (`trial_hash`), and
    ``statistics`` of every trial where they bring predictions to scale."""
    row = recording.trials.iloc[trial]
    return fingerprint(
        {
            "model": model_hash,
            "version": VERSION,
            "seen": [str(row[name]) for name in ("session", "run", "split", "repeat")],
            "averaged": average,
            "values": values,
            "statistics": statistics,
        }
    )


def make_items(
    pipe: BrainDiffuser,
    features: Features,
    items: Sequence[Item],
    about: Sequence[dict[str, Any]],
    *,
    sample: int = 0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> None:
    """Generate and write the items that are not done; row by row of ``features``."""
    block = max(1, pipe.recipe.generator.batch)  # also what a kill loses at most
    left = sum(not item.done for item in items)
    progress.begin("pictures")
    finished = 0
    for start in range(0, len(items), block):
        # batches are the same whatever is done before, and so are the bytes of their results
        rows = range(start, min(start + block, len(items)))
        todo = [k for k in rows if not items[k].done]
        if not todo:
            continue
        keys: list[Key] = [
            (about[k]["subject"], about[k]["stimulus"], int(about[k]["repeat"])) for k in rows
        ]
        found = pipe.generate(features.take(rows), keys, sample=sample, seed=seed)
        for k, picture in zip(rows, found, strict=True):
            if k in todo:
                _write(items[k], picture, about[k])
                finished += 1
                progress.update(finished, left)


def stored_pictures(run: Run, task: str = TASK) -> list[StoredPicture]:
    """All finished pictures of a task, ordered by data set, subject, stimulus, repeat, sample.

    Raises
    ------
    DataError : a file of a finished item is broken.
    """
    table = run.items_table()
    done = table[(table["status"] == "done") & (table["task"] == task)]
    found = [
        read_item(key, run.folder / where) for key, where in done[["key", "folder"]].to_numpy()
    ]
    own = own_source(run)
    if own is not None:  # its files may have moved since
        found = [
            replace(one, source=own)
            if one.source.data == own.data and not one.source.is_there
            else one
            for one in found
        ]
    return sorted(found, key=_order)


def groups_of(stored: Sequence[StoredPicture]) -> Iterator[tuple[str, list[StoredPicture]]]:
    """Groups that are scored together: of one data set, averaged or single trials; with a name."""
    for source, averaged in dict.fromkeys((one.source, one.averaged) for one in stored):
        name = source.label if averaged else f"{source.label}, single trials"
        yield name, [one for one in stored if (one.source, one.averaged) == (source, averaged)]


def read_item(key: str, folder: Path, *, init: bool = True) -> StoredPicture:
    """An item's files.

    Raises
    ------
    DataError : one of them is missing or broken.
    """
    about = read_json(folder / ABOUT)
    try:
        first = _opened(folder / INIT) if init and (folder / INIT).is_file() else None
        picture = Picture(
            str(about["subject"]),
            str(about["stimulus"]),
            int(about["repeat"]),
            int(about["sample"]),
            _opened(folder / IMAGE),
            first,
        )
        source = Source.from_plain(about["data"])
        return StoredPicture(key, picture, source, about["averaged"], bool(about["simulated"]))
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, NeurodiffError):
            raise
        raise unreadable(folder, error) from None


def anchor_items(
    run: Run,
    task: str,
    model_hash: str,
    stored: Sequence[StoredPicture],
    identity: Callable[[str], str],
) -> tuple[list[Item], list[dict[str, Any]]]:
    """Items of a condition that is generated, one a trial of ``stored``, and what they will say.

    ``identity`` : of a stimulus, what beside the model decides its picture.
    """
    once = {(p.subject, p.stimulus, p.repeat): one for one in stored for p in (one.picture,)}
    items, about = [], []
    for (subject, stimulus, repeat), one in once.items():
        settings = fingerprint(
            {
                "model": model_hash,
                "version": VERSION,
                "repeat": repeat,
                "identity": identity(stimulus),
            }
        )
        items.append(run.item(task, subject, stimulus, 0, settings))
        about.append(
            {
                "subject": subject,
                "stimulus": stimulus,
                "repeat": repeat,
                "averaged": one.averaged,
                "data": one.source.plain(),
                "simulated": one.simulated,
            }
        )
    return items, about


def stimulus_hash(stimuli: Stimuli, name: str) -> str:
    """SHA-256 of a stimulus's pixels and captions."""
    image = stimuli[name].image().convert("RGB")
    digest = hashlib.sha256(repr((image.size, stimuli.captions(name))).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def about_trial(row: Any, source: Source, simulated: bool, average: bool) -> dict[str, Any]:
    """What an item says of its trial: what was shown, and where it comes from."""
    return facts_of_trial(row, source, simulated, averaged=average)


def write_picture(folder: Path, picture: Picture, about: dict[str, Any]) -> None:
    """The files of an item, into an empty folder."""
    write_json(folder / ABOUT, {**about, "sample": picture.sample})
    (folder / IMAGE).write_bytes(png_bytes(picture.image))
    if picture.init_image is not None:
        (folder / INIT).write_bytes(png_bytes(picture.init_image))


def _write(item: Item, picture: Picture, about: dict[str, Any]) -> None:
    with item.write_dir({"repeat": int(about["repeat"])}) as folder:
        write_picture(folder, picture, about)


def _opened(path: Path) -> PIL.Image.Image:
    return open_picture(path)


def _order(one: StoredPicture) -> tuple:
    p = one.picture
    return one.source.label, not one.averaged, p.subject, p.stimulus, p.repeat, p.sample
