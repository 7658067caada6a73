"""Scores of the pictures of a run, and of the anchors beside them.

Beside those of `image_conditions` (mean and random training picture, another item's
reconstruction, nearest training picture) stand

    low-level picture alone        what the generator started from
    mean features, same generator  no brain: the mean of the training features, with each trial's
                                   noise
    ceiling: true features, same generator

The last two are generated, and kept as items of the run. A condition whose data are not there is
left out, and the progress says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.image_conditions import (
    CEILING,
    NO_BRAIN,
    OURS,
    Conditions,
    image_conditions,
)
from neurodiff.analysis.image_fit import MODEL
from neurodiff.analysis.image_items import (
    MEAN_TASK,
    TRUE_TASK,
    StoredPicture,
    anchor_items,
    groups_of,
    make_items,
    read_item,
    stimulus_hash,
    stored_pictures,
)
from neurodiff.analysis.image_networks import find_image_networks
from neurodiff.analysis.image_protocols import image_protocol_of
from neurodiff.analysis.image_scorer import ImageScorer
from neurodiff.analysis.image_scores import ImageEvaluation
from neurodiff.analysis.splits import COLUMNS, mark, trained_on
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Item, Run
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.pipelines.pictures import Picture

if TYPE_CHECKING:
    import PIL.Image

    from neurodiff.pipelines.brain_diffuser import BrainDiffuser, Features

LOW, MEAN_FEATURES = "low-level picture alone", "mean features, same generator"
MOST_TRAINING = 3000  # pictures held for baselines: more are drawn from
MOST_SIDE = 256  # pixels on a side of those pictures


@dataclass(frozen=True)
class GroupScores:
    """Scores of one group of items (see ``groups_of``). Without true pictures there are none."""

    label: str
    conditions: Conditions | None
    pictures: tuple[StoredPicture, ...]
    remarks: tuple[str, ...] = ()


@dataclass
class Anchors:
    """What is generated or drawn beside a run's pictures; the model is read when it is needed."""

    run: Run
    progress: Progress = SILENT
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def pipe(self) -> BrainDiffuser:
        """The fitted model, opened when it is first needed."""
        from neurodiff.pipelines.brain_diffuser import BrainDiffuser

        return BrainDiffuser.from_pretrained(self.run.folder / MODEL)

    @cached_property
    def model_hash(self) -> str:
        """Of what decides the model's predictions."""
        from neurodiff.pipelines.brain_diffuser_files import model_fingerprint

        return model_fingerprint(self.run.folder / MODEL)

    @cached_property
    def training(self) -> list[PIL.Image.Image]:
        """The training pictures, or a draw of them, at most 256 pixels on a side."""
        own, known = own_source(self.run), trained_on(self.run) or {}
        ids = list(known.get("stimuli") or [])
        if own is None or not ids:
            raise MissingDataError("the run does not say which pictures it was trained on")
        if len(ids) > MOST_TRAINING:
            key = item_seed(self.run.seed, subject="", stimulus="", stage="training pictures")
            rows = numpy_generator(key).permutation(len(ids))[:MOST_TRAINING]
            self.remarks.append(
                f"Training pictures of the baselines are {MOST_TRAINING} of {len(ids)}, drawn."
            )
            ids = [ids[k] for k in sorted(rows)]
        stimuli = own.stimuli()
        found = []
        for name in self.progress.over(ids, "training pictures"):
            image = stimuli[name].image().convert("RGB")
            if max(image.size) > MOST_SIDE:
                image.thumbnail((MOST_SIDE, MOST_SIDE))
            found.append(image)
        return found

    def ceiling(self, group: Sequence[StoredPicture], truth: Stimuli) -> list[Picture]:
        """What the generator makes of the true features; one picture a trial."""
        return self._generated(
            TRUE_TASK,
            group,
            lambda name: stimulus_hash(truth, name),
            lambda names: self.pipe.true_features(truth, names, seed=self.run.seed),
        )

    def mean_features(self, group: Sequence[StoredPicture]) -> list[Picture]:
        """What it makes of the mean of the training features; one picture a trial."""
        return self._generated(MEAN_TASK, group, lambda name: "", self._mean)

    def _mean(self, names: Sequence[str]) -> Features:
        from neurodiff.pipelines.brain_diffuser import Features
        from neurodiff.pipelines.brain_diffuser_settings import HEADS

        # a brain at the mean of training predicts the mean of the training features
        heads = self.pipe.heads
        nothing = heads[HEADS[0]].factor_.mean[None]
        one = Features(
            **{name: heads[name].predict_raw(nothing).astype(np.float32) for name in HEADS}
        )
        return one.take([0] * len(names))

    def _generated(
        self,
        task: str,
        group: Sequence[StoredPicture],
        identity: Callable[[str], str],
        features: Callable[[Sequence[str]], Features],
    ) -> list[Picture]:
        items, about = anchor_items(self.run, task, self.model_hash, group, identity)
        self.run.plan(items)
        if not all(item.done for item in items):
            self.progress.say(f"{task}: {len(items)} trials")
            block = 8 * max(1, self.pipe.recipe.generator.batch)
            for k in range(0, len(items), block):
                part, told = items[k : k + block], about[k : k + block]
                if not all(item.done for item in part):
                    names = [one["stimulus"] for one in told]
                    self._make(features(names), part, told)
        return [read_item(item.key, item.folder, init=False).picture for item in items]

    def _make(self, features: Features, items: list[Item], about: list[dict[str, Any]]) -> None:
        make_items(self.pipe, features, items, about, seed=self.run.seed, progress=self.progress)


def score_image_run(
    run: Run,
    *,
    protocol: str = "neurodiff-1",
    weights: str | Path | None = None,
    progress: Progress = SILENT,
) -> list[GroupScores]:
    """Score every decoded picture of a run beside its anchors; writes both tables of scores.

    ``scores.csv`` has one row an item and condition: key, condition, role, data, simulated,
    protocol, the columns of ``ImageEvaluation.table``, generalisation and trained_class. One row a
    trial and other condition has the key of the trial's first item. ``set_scores.csv`` has one row
    a condition and metric: those of ``Conditions.table``.

    Raises
    ------
    UsageError : no such protocol.
    MissingDataError : nothing is decoded yet, or the folder of weights is not there.
    """
    image_protocol_of(protocol)
    stored = stored_pictures(run)
    if not stored:
        raise MissingDataError(
            f"{run.folder} holds no picture; run `neurodiff reconstruct {run.folder}`"
        )
    networks = find_image_networks(weights, protocol)
    anchors = Anchors(run, progress)
    known = trained_on(run)
    found, parts, sets = [], [], []
    for label, group in groups_of(stored):
        progress.say(f"scores of {len(group)} pictures of {label}")
        truth = group[0].source.stimuli()
        pictures = [one.picture for one in group]
        train = _or_none(lambda: anchors.training, "the training pictures", anchors, progress)
        scorer = ImageScorer(
            truth,
            list(dict.fromkeys(one.stimulus for one in pictures)),
            protocol,
            networks=networks,
            train=train,
            seed=run.seed,
            progress=progress,
        )
        if scorer.place:
            conditions = _beside(scorer, group, truth, anchors)
            evaluations, table = conditions.evaluations, conditions.table
        else:
            conditions, table = None, pd.DataFrame()
            evaluations = {OURS: scorer.score(pictures)}
        roles = dict(zip(table["condition"], table["role"], strict=True)) if len(table) else {}
        for name, evaluation in evaluations.items():
            part = _keyed(evaluation, group, name)
            part["role"] = roles.get(name, "ours")
            part["data"], part["protocol"] = label, protocol
            part["simulated"] = any(one.simulated for one in group)
            parts.append(mark(part, known))
        sets.append(table.assign(data=label, protocol=protocol))
        found.append(GroupScores(label, conditions, tuple(group), tuple(anchors.remarks)))
    scores = pd.concat(parts, ignore_index=True)
    first = ["key", "condition", "role", "data", "simulated", "protocol"]
    rest = [name for name in scores if name not in (*first, *COLUMNS, "note")]
    run.write_scores(scores[[*first, *rest, "note", *COLUMNS]])
    run.write_set_scores(pd.concat(sets, ignore_index=True))
    run.info["networks"] = {name: {"sha256": value} for name, value in networks.hashes().items()}
    run.info["scores"] = {"protocol": protocol, "remarks": [*networks.lines(), *anchors.remarks]}
    run.touch()
    return found


def read_image_scores(run: Run) -> list[GroupScores] | None:
    """What `score_image_run` wrote, if it is there and holds every item; else None."""
    stored = stored_pictures(run)
    try:
        scores, sets = run.read_scores(), run.read_set_scores()
    except MissingDataError:
        return None
    if not {"key", "condition", "data", "protocol", "note"} <= set(scores) or not stored:
        return None
    if not {one.key for one in stored} <= set(scores["key"][scores["condition"] == OURS]):
        return None
    for table in (scores, sets):
        texts = [name for name in ("note", "base", "cluster", "category") if name in table]
        table[texts] = table[texts].astype(object).fillna("").astype(str)
    told = tuple((run.info.get("scores") or {}).get("remarks") or ())
    protocol = str(scores["protocol"].iloc[0])
    found = []
    for label, group in groups_of(stored):
        block = scores[scores["data"] == label]
        if not len(block):
            return None
        evaluations = {
            str(name): ImageEvaluation(part.reset_index(drop=True), protocol, told)
            for name, part in block.groupby("condition", sort=False)
        }
        table = sets[sets["data"] == label] if "data" in sets else sets
        table = table.drop(columns=["data", "protocol"], errors="ignore").reset_index(drop=True)
        conditions = Conditions(table, evaluations) if len(table) else None
        found.append(GroupScores(label, conditions, tuple(group), told))
    return found


def _beside(
    scorer: ImageScorer, group: Sequence[StoredPicture], truth: Stimuli, anchors: Anchors
) -> Conditions:
    pictures = [one.picture for one in group]
    known = [one for one in group if one.picture.stimulus in scorer.place]
    others: dict[str, tuple[str, Sequence[Picture]]] = {}
    low = [
        replace(one, image=one.init_image, init_image=None)
        for one in pictures
        if one.init_image is not None
    ]
    if low:
        others[LOW] = ("strong baseline", low)
    label, progress = group[0].source.label, anchors.progress
    mean = _or_none(
        lambda: anchors.mean_features(group), f"{MEAN_FEATURES!r} of {label}", anchors, progress
    )
    if mean:
        others[MEAN_FEATURES] = (NO_BRAIN, mean)
    ceiling = _or_none(
        lambda: anchors.ceiling(known, truth), f"{CEILING!r} of {label}", anchors, progress
    )
    return image_conditions(scorer, pictures, ceiling=ceiling, others=others)


def _or_none(
    make: Callable[[], Any], what: str, anchors: Anchors, progress: Progress
) -> Any | None:
    """What ``make`` makes, or None and a sentence."""
    try:
        return make()
    except (DataError, UsageError, NeurodiffError) as error:
        text = f"Not available: {what} ({error})."
        if text not in anchors.remarks:
            anchors.remarks.append(text)
            progress.say(text)
        return None


def _keyed(
    evaluation: ImageEvaluation, group: Sequence[StoredPicture], condition: str
) -> pd.DataFrame:
    """The scores with the items' keys; of another condition, that of the trial's first item."""
    names = ("subject", "stimulus", "repeat", "sample")
    keys: Mapping[tuple, str] = {
        tuple(getattr(one.picture, name) for name in names): one.key for one in group
    }
    table = evaluation.table.copy()
    table["key"] = [keys[key] for key in table[list(names)].itertuples(index=False, name=None)]
    table["condition"] = condition
    return table
