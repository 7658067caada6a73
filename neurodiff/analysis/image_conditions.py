"""A decoder of pictures beside its anchors: chance, no-brain baselines, retrieval and ceiling.

A *condition* is a way to answer "which picture was seen?". All are scored by the same functions on
the same items. What never sees the brain of the tested trial:

    mean training picture        one answer to all
    random training picture      drawn anew for each item
    random other reconstruction  the decoder's own answer to another picture of the same group

``nearest training picture`` answers with the training picture most like the reconstruction, by a
network's features: what a retrieval from the training set would show. The ceiling is what the same
generator makes of the true features. ``share`` tells how far a condition has come from the best
baseline without a brain (``base``) to the ceiling: (score - base) / (ceiling - base).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neurodiff.analysis.evaluation import answer_ranks
from neurodiff.analysis.figures import role_of
from neurodiff.analysis.image_protocols import image_quantity
from neurodiff.analysis.image_scorer import ImageScorer, alike, as_uint8
from neurodiff.analysis.image_scores import ImageEvaluation
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.statistics import way_to_ceiling

if TYPE_CHECKING:
    import PIL.Image

    from neurodiff.pipelines.pictures import Picture

OURS, CEILING, CHANCE = "reconstruction", "ceiling: true features, same generator", "chance"
MEAN, RANDOM = "mean training picture", "random training picture"
SHUFFLED, NEAREST = "random other reconstruction", "nearest training picture"
NO_BRAIN = "no-brain baseline"
COLUMNS = ("mean", "median", "low", "high", "n", "chance", "p", "reference")


@dataclass(frozen=True, eq=False)
class Conditions:
    """Scores of all conditions.

    Attributes
    ----------
    table : one row a condition and metric: condition, role (of the report), metric, mean, median,
        low, high, n, chance, p, reference, base, share, share_low, share_high, note.
    evaluations : condition -> its scores item by item.
    """

    table: pd.DataFrame
    evaluations: dict[str, ImageEvaluation]

    def wide(self) -> pd.DataFrame:
        """Index condition; column role, and one a metric of mean, median, low, high, n: the
        ``conditions`` of a report."""
        rows: dict[str, dict] = {}
        for row in self.table.to_dict("records"):
            cells = {name: row[name] for name in ("mean", "median", "low", "high", "n")}
            rows.setdefault(row["condition"], {"role": row["role"]})[row["metric"]] = cells
        return pd.DataFrame.from_dict(rows, orient="index")


def image_conditions(
    scorer: ImageScorer,
    pictures: Sequence[Picture],
    *,
    ceiling: Sequence[Picture] | None = None,
    others: Mapping[str, tuple[str, Sequence[Picture]]] | None = None,
    label: str = OURS,
) -> Conditions:
    """Score a decoder and its anchors.

    Parameters
    ----------
    scorer : the true pictures, the networks and, for the baselines, the training pictures.
    pictures : what the decoder answered.
    ceiling : what its generator makes of the true features; of the same stimuli.
    others : further conditions: name -> (a role of the report, pictures).
    label : name of the decoder's own condition.

    Raises
    ------
    UsageError : a name twice, an unknown role, or as ``ImageScorer.score``.
    """
    ways: dict[str, tuple[str, Sequence[Picture]]] = {label: ("ours", pictures)}
    made: dict[str, tuple[str, Sequence[Picture]]] = {**baselines(scorer, pictures)}
    if ceiling is not None and len(ceiling):
        made[CEILING] = ("ceiling", ceiling)
    for name, (role, answers) in [*made.items(), *(others or {}).items()]:
        if name in ways:
            raise UsageError(f"two conditions are called {name!r}; name them apart")
        try:
            ways[name] = (role_of(role).name, answers)
        except ValueError as error:
            raise UsageError(str(error)) from None
    found = {name: scorer.score(answers) for name, (_, answers) in ways.items()}
    rows = []
    for name, evaluation in found.items():
        summary = evaluation.summary(seed=scorer.seed)
        for metric, row in summary.iterrows():
            cells = {column: row.get(column) for column in COLUMNS}
            rows.append({"condition": name, "role": ways[name][0], "metric": metric, **cells})
    table = pd.DataFrame(rows)
    chance = table[(table["condition"] == label) & table["chance"].notna()].copy()
    chance = chance.assign(condition=CHANCE, role=CHANCE, mean=chance["chance"])
    chance[["median", "low", "high", "p", "reference"]] = np.nan
    table = pd.concat([table, chance], ignore_index=True).astype({"n": int})
    return Conditions(_with_shares(table, found, scorer.seed), found)


def baselines(
    scorer: ImageScorer, pictures: Sequence[Picture]
) -> dict[str, tuple[str, list[Picture]]]:
    """The anchors that can be made from the answers and the training pictures: name -> (role,
    pictures)."""
    made: dict[str, tuple[str, list[Picture]]] = {}
    train = scorer.train_pictures
    if train:
        mean = mean_picture(train)
        made[MEAN] = (NO_BRAIN, [replace(one, image=mean) for one in pictures])
        drawn = []
        for one in pictures:
            stage = f"{RANDOM}, repeat {one.repeat}"
            seed = item_seed(
                scorer.seed,
                subject=one.subject,
                stimulus=one.stimulus,
                sample=one.sample,
                stage=stage,
            )
            drawn.append(replace(one, image=train[numpy_generator(seed).integers(len(train))]))
        made[RANDOM] = (NO_BRAIN, drawn)
    swapped = _swapped(scorer.seed, pictures)
    if swapped:
        made[SHUFFLED] = (NO_BRAIN, swapped)
    if train and scorer.networks:
        judge = next(one for one in scorer.networks if one.name == scorer.judge)
        rows = scorer.rows(judge, [scorer.input_of(one.image) for one in pictures])
        nearest = alike(rows, scorer.train[judge.name], judge.name).argmax(axis=1)
        answers = [replace(one, image=train[k]) for one, k in zip(pictures, nearest, strict=True)]
        made[f"{NEAREST} [{judge.name}]"] = ("strong baseline", answers)
    return made


def mean_picture(pictures: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """The mean of pictures, at the size of the first."""
    from PIL import Image

    size = pictures[0].size
    total = np.zeros((size[1], size[0], 3))
    for one in pictures:
        same = one if one.size == size else one.resize(size, Image.Resampling.BILINEAR)
        total += as_uint8(same)
    return Image.fromarray(np.rint(total / len(pictures)).astype(np.uint8))


def _swapped(seed: int, pictures: Sequence[Picture]) -> list[Picture]:
    """Each item answered by the next of a random round through its group; not groups of one."""
    names = ("subject", "stimulus", "repeat", "sample")
    table = pd.DataFrame([[getattr(one, name) for name in names] for one in pictures])
    ranks = answer_ranks(table.set_axis(names, axis=1))
    groups: dict[tuple, list[Picture]] = {}
    for one, rank in zip(pictures, ranks, strict=True):
        groups.setdefault((one.subject, rank, one.sample), []).append(one)
    made = []
    for group in groups.values():
        if len(group) < 2:
            continue
        group = sorted(group, key=lambda one: one.stimulus)
        key = item_seed(seed, subject=group[0].subject, stimulus="", stage=SHUFFLED)
        order = numpy_generator(key).permutation(len(group))
        for k, other in zip(order, np.roll(order, 1), strict=True):
            made.append(replace(group[k], image=group[other].image))
    return made


def _with_shares(table: pd.DataFrame, found: dict[str, ImageEvaluation], seed: int) -> pd.DataFrame:
    """Add base, share, share_low, share_high and note, paired over the true pictures."""
    shares = []
    for row in table.to_dict("records"):
        cells: dict = {
            "base": "",
            "share": np.nan,
            "share_low": np.nan,
            "share_high": np.nan,
            "note": "",
        }
        same = table[table["metric"] == row["metric"]]
        floors = same[(same["role"] == NO_BRAIN) & same["mean"].notna()]
        shown = row["role"] in ("ours", "strong baseline") and CEILING in found
        if shown and len(floors):
            up = image_quantity(row["metric"]).higher_is_better
            best = floors["mean"].idxmax() if up else floors["mean"].idxmin()
            cells["base"] = str(floors.loc[best, "condition"])
            cells |= _share(found, row, cells["base"], up=up, seed=seed)
        shares.append(cells)
    return pd.concat([table, pd.DataFrame(shares)], axis=1)


def _share(found: dict, row: dict, base: str, *, up: bool, seed: int) -> dict:
    columns = [
        found[name].table.groupby("stimulus")[row["metric"]].mean()
        for name in (row["condition"], base, CEILING)
    ]
    values = pd.concat(columns, axis=1).dropna().to_numpy(np.float64)
    if len(values) < 2:
        return {"note": "fewer than 2 pictures are in all three conditions"}
    floor, best = values[:, 1].mean(), values[:, 2].mean()
    if (best <= floor) if up else (best >= floor):
        return {"note": f"the ceiling is no better than {base}"}
    way = way_to_ceiling(*values.T.copy(), seed=seed)
    if np.isnan(way.low):  # a ratio to a gap that may be nothing: it could be any number
        return {"note": way.note}
    return {"share": way.value, "share_low": way.low, "share_high": way.high, "note": way.note}
