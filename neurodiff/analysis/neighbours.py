"""What stands beside the scores of a run: baselines, a strong linear decoder and the ceiling.

All answer for the trials that the run decoded, and are scored by the functions that score the
reconstructions (`evaluate`):

    random training object          no brain: another object of the run's training split, drawn
    random object, same category    the same, where the category of the stimulus is known
    mean object                     the mean of the training embeddings, decoded
    ridge bridge, same chain        the linear anchor in the network's place
    ceiling: true features          the embedding of the true object, decoded without adapters

None of them depends on a sample of the decoder: there is one answer a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.demo import CEILING, MEAN_OBJECT, OURS, RANDOM, RIDGE, ROLES, SAME
from neurodiff.analysis.evaluation import Evaluation, evaluate, true_meshes
from neurodiff.analysis.sources import Source
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.geometry.bank import grey_views
from neurodiff.metrics.statistics import Interval, way_to_ceiling

if TYPE_CHECKING:
    import trimesh

    from neurodiff.pipelines.mind3d import MinD3D, Reconstruction

NEIGHBOURS = (RIDGE, SAME, RANDOM, MEAN_OBJECT, CEILING)
MOST_FOR_MEAN = 200  # training objects whose meshes are rendered for the mean embedding

Answers = dict[int, "trimesh.Trimesh"]  # position of the trial -> the condition's answer


@dataclass
class Neighbours:
    """Answers of the other conditions, from a run's fitted model and its own training data.

    Model and data are read when they are first needed. A condition whose data or model are not
    there is left out, and ``progress`` says why in one sentence.
    """

    run: Run
    model: Path
    progress: Progress = SILENT
    sets: list[dict[str, Any]] = field(default_factory=list)

    def scores(
        self,
        source: Source,
        trials: Sequence[Reconstruction],
        *,
        full: bool = False,
        protocol: str = "neurodiff-1",
        weights: str | Path | None = None,
    ) -> pd.DataFrame:
        """One row a trial and condition: condition, and the columns of `Evaluation.table`.

        Scores of whole sets (FPD) are left in ``sets``, with the condition.

        Parameters
        ----------
        source : the data set of the trials.
        trials : reconstructions whose stimuli have meshes, one a trial.
        """
        makers = {
            RIDGE: self._ridge,
            SAME: self._objects,
            RANDOM: self._objects,
            MEAN_OBJECT: self._mean_object,
            CEILING: self._ceiling,
        }
        self.progress.say(f"baselines and ceiling for {len(trials)} trials of {source.label}")
        answers: list[tuple[str, Answers]] = []
        for name in NEIGHBOURS:
            try:
                answers.append((name, makers[name](name, source, trials)))
            except NeurodiffError as error:
                self.progress.say(f"{name!r} is not available for {source.label}: {error}")
        # the place of the sample keeps conditions apart: an identification is among one's answers
        items = [
            replace(trials[k], sample=c, mesh=mesh)
            for c, (_, given) in enumerate(answers)
            for k, mesh in given.items()
        ]
        if not items:
            return pd.DataFrame()
        scored = evaluate(
            items,
            self._stimuli(source),
            protocol,
            full=full,
            weights=weights,
            progress=self.progress,
        )
        table = scored.table
        self.sets = [
            {"condition": answers[row["sample"]][0]}
            | {k: v for k, v in row.items() if k != "sample"}
            for row in scored.sets.to_dict("records")
        ]
        table.insert(0, "condition", [answers[c][0] for c in table["sample"]])
        table["sample"] = 0
        few = len(self._for_mean) if MEAN_OBJECT in set(table["condition"]) else 0
        if few and few < len(self._training[1]):
            of = f"mean of {few} of {len(self._training[1])} training objects, drawn by a seed"
            rows = table["condition"] == MEAN_OBJECT
            table.loc[rows, "note"] = [f"{n}; {of}" if n else of for n in table["note"][rows]]
        return table

    # ------------------------------------------------------------------ what is read once

    @cached_property
    def _pipe(self) -> MinD3D:
        from neurodiff.pipelines.mind3d import MinD3D

        return MinD3D.from_pretrained(self.model)

    @cached_property
    def _opened(self) -> dict[Source, tuple[Recording, Stimuli]]:
        return {}

    def _open(self, source: Source) -> tuple[Recording, Stimuli]:
        if source not in self._opened:
            self._opened[source] = source.open(self.progress)
        return self._opened[source]

    def _stimuli(self, source: Source) -> Stimuli:
        return self._opened[source][1] if source in self._opened else source.stimuli()

    @cached_property
    def _training(self) -> tuple[Source, list[str], Stimuli]:
        """The run's own data set, the stimuli of its training split, and all its stimuli."""
        own = own_source(self.run)
        if own is None:
            raise MissingDataError("the run does not say which data set it was fitted on")
        recording, stimuli = self._open(own)
        shown = recording.trials["stimulus"][recording.trials["split"] == "train"]
        if len(shown) == 0:
            raise MissingDataError(f"{own.label} has no trials of the split 'train'")
        if stimuli.load_mesh is None:
            raise MissingDataError(f"the stimuli of {own.label} have no meshes")
        return own, list(dict.fromkeys(shown)), stimuli

    @cached_property
    def _for_mean(self) -> list[str]:
        """The training objects behind the mean embedding: all where their views are at hand."""
        own, ids, _ = self._training
        if len(ids) <= MOST_FOR_MEAN or own.bank(ids[:1], self.progress) is not None:
            return ids
        key = item_seed(self.run.seed, subject="", stimulus="", stage=MEAN_OBJECT)
        drawn = numpy_generator(key).permutation(len(ids))[:MOST_FOR_MEAN]
        return [ids[k] for k in np.sort(drawn)]

    # ------------------------------------------------------------------------ the conditions

    def _objects(self, name: str, source: Source, trials: Sequence[Reconstruction]) -> Answers:
        """True training objects, drawn for each trial among those that it did not show."""
        _, ids, stimuli = self._training
        known = dict(zip(stimuli.ids, stimuli.categories(), strict=True))
        truth = self._stimuli(source)
        drawn: dict[int, str] = {}
        for k, trial in enumerate(trials):
            pool = [i for i in ids if i != trial.stimulus]
            if name == SAME:
                category = truth[trial.stimulus].category
                pool = [i for i in pool if category and known[i] == category]
            if pool:
                key = item_seed(
                    self.run.seed,
                    subject=trial.subject,
                    stimulus=trial.stimulus,
                    sample=trial.repeat,
                    stage=name,
                )
                drawn[k] = pool[int(numpy_generator(key).integers(len(pool)))]
        if not drawn:
            raise MissingDataError(
                "no training object has the category of a decoded trial"
                if name == SAME
                else "there is no other training object"
            )
        meshes = true_meshes(stimuli, list(drawn.values()))
        return {k: meshes[i] for k, i in drawn.items() if i in meshes}

    def _mean_object(self, name: str, source: Source, trials: Sequence[Reconstruction]) -> Answers:
        own, _, stimuli = self._training
        views = self._views(own, stimuli, self._for_mean)
        mean = self._embedding(views).mean(axis=0, keepdims=True)
        mean *= np.sqrt(mean.shape[1]) / np.linalg.norm(mean)
        codes = self._pipe.codes_from_embedding(mean.astype(np.float32), use_adapters=False)
        [mesh] = self._pipe.meshes(codes)
        return dict.fromkeys(range(len(trials)), mesh)

    def _ridge(self, name: str, source: Source, trials: Sequence[Reconstruction]) -> Answers:
        """The same recordings through the ridge anchor; a trial is found by what it shows."""
        recording, _ = self._open(source)
        table = recording.trials[["subject", "stimulus", "repeat"]]
        rows: dict[tuple[str, str, int], list[int]] = {}
        for row, (who, what, again) in enumerate(table.itertuples(index=False, name=None)):
            rows.setdefault((str(who), str(what), int(again)), []).append(row)
        found = [rows.get((t.subject, t.stimulus, t.repeat), []) for t in trials]
        if any(len(one) != 1 for one in found):
            lost = next(t for t, one in zip(trials, found, strict=True) if len(one) != 1)
            raise DataError(
                f"subject, stimulus and repeat do not name one trial of the recording (stimulus "
                f"{lost.stimulus!r}, repeat {lost.repeat})"
            )
        part = recording.select([row for [row] in found])
        embedding = self._pipe.predict_embedding(part, seed=self.run.seed, bridge="ridge")
        codes = self._pipe.codes_from_embedding(embedding)
        return dict(enumerate(self._pipe.meshes(codes)))

    def _ceiling(self, name: str, source: Source, trials: Sequence[Reconstruction]) -> Answers:
        shown = list(dict.fromkeys(trial.stimulus for trial in trials))
        embedding = self._embedding(self._views(source, self._stimuli(source), shown))
        codes = self._pipe.codes_from_embedding(embedding, use_adapters=False)
        meshes = dict(zip(shown, self._pipe.meshes(codes), strict=True))
        return {k: meshes[trial.stimulus] for k, trial in enumerate(trials)}

    def _embedding(self, views: np.ndarray) -> np.ndarray:
        embedding = self._pipe.embedding
        if embedding is None:
            raise MissingDataError(f"the model in {self.model} has no embedding of shapes")
        return embedding(views)

    def _views(self, source: Source, stimuli: Stimuli, ids: list[str]) -> np.ndarray:
        """Rendered views as `fit` makes them."""
        bank = source.bank(ids, self.progress)
        if bank is not None:
            return bank.views
        meshes = true_meshes(stimuli, ids)
        missing = [name for name in ids if name not in meshes]
        if missing:
            raise MissingDataError(f"stimulus {missing[0]!r} has no mesh")
        return np.stack([grey_views(meshes[n]) for n in self.progress.over(ids, "views")])


# ------------------------------------------------------------------------------- reading scores


def way(scores: pd.DataFrame, name: str, floor: str) -> Interval:
    """Way of a condition from a floor to the ceiling in mean CD, with its interval over stimuli.

    NaN, with the reason in ``note``, where a condition is missing, the ceiling is no better than
    the floor, or there are fewer than 2 stimuli.
    """
    columns = {}
    for one in (name, floor, CEILING):
        part = scores[scores["condition"] == one].dropna(subset=["CD"])
        columns[one] = part.groupby(["subject", "stimulus"], sort=False)["CD"].mean()
    cd = pd.DataFrame(columns).dropna()
    ours, worst, best = (cd[one].to_numpy(float) for one in (name, floor, CEILING))
    nan = float("nan")
    nothing = Interval(nan, nan, nan, len(cd), 0.95, "percentile")
    missing = [one for one, values in columns.items() if len(values) == 0]
    if missing:
        return replace(nothing, note=f"there is no {missing[0]!r}")
    if len(cd) < 2:
        return replace(nothing, note="an interval needs at least 2 stimuli")
    if best.mean() >= worst.mean():
        return replace(nothing, note="the ceiling is no better than the floor")
    return way_to_ceiling(ours, worst, best)


def findings(scores: pd.DataFrame) -> list[str]:
    """The ways from each floor that there is to the ceiling, one sentence each."""
    there = set(scores["condition"])
    if CEILING not in there:
        return []
    lines = []
    for floor in (RANDOM, SAME):
        if floor in there:
            ridge = f"; {RIDGE}: {_share(way(scores, RIDGE, floor))}" if RIDGE in there else ""
            share = _share(way(scores, OURS, floor))
            lines.append(f"way from {floor} to the ceiling in mean CD: {share}{ridge}")
    return lines


def condition_rows(scores: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Condition -> role, and of each metric mean, median, low, high, n over stimuli."""
    rows = {}
    for name in (OURS, *NEIGHBOURS):
        part = scores[scores["condition"] == name].reset_index(drop=True)
        if len(part):
            summary = Evaluation(part, protocol_in(part)).summary()
            rows[name] = {"role": ROLES[name]} | {m: r.to_dict() for m, r in summary.iterrows()}
    return rows


def protocol_in(scores: pd.DataFrame) -> str:
    """The protocol of a table of scores; tables of before there were two have no such column."""
    return str(scores["protocol"].iloc[0]) if "protocol" in scores else "neurodiff-1"


def set_table(sets: pd.DataFrame) -> pd.DataFrame:
    """Scores of whole sets as words for reading: index condition, one column a metric."""

    def words(row: dict[str, Any]) -> str:
        if not np.isfinite(row["value"]):
            return "not available"
        known = np.isfinite(row["low"])
        bounds = f" [{row['low']:.3f}, {row['high']:.3f}]" if known else ""
        return f"{row['value']:.3f}{bounds} (n {row['n']})"

    cells: dict[str, dict[str, str]] = {}
    for row in sets.to_dict("records"):
        cells.setdefault(row["condition"], {})[row["metric"]] = words(row)
    table = pd.DataFrame.from_dict(cells, orient="index").fillna("not available")
    return table.rename_axis(columns="condition")


def mean_table(rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """`condition_rows` as words for reading: mean [95 % interval]."""

    def words(cell: dict[str, float]) -> str:
        if not cell["n"]:
            return "not available"
        bounds = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if np.isfinite(cell["low"]) else ""
        return f"{cell['mean']:.3f}{bounds}"

    table = {
        name: {m: words(c) for m, c in row.items() if m != "role"} for name, row in rows.items()
    }
    return pd.DataFrame.from_dict(table, orient="index").fillna("not available")


def remarks(scores: pd.DataFrame) -> list[str]:
    """What is to be known of a condition."""
    notes = scores["note"][scores["condition"] == MEAN_OBJECT].astype(str)
    return [f"{MEAN_OBJECT}: {n.split('; ')[-1]}." for n in notes if "training objects" in n][:1]


def _share(found: Interval) -> str:
    if np.isnan(found.value):
        return f"not available ({found.note})"
    if np.isnan(found.low):
        return f"{found.value:.0%} ({found.note})"
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"
