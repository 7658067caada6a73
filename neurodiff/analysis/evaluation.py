"""Scores of decoded objects against what was shown: a table with one row an item.

The true mesh is centred, scaled to longest side 1 and made watertight where it is not; the
reconstruction is taken as it stands. What is computed, and how, is the protocol's: see `protocols`.
By ``neurodiff-1`` that is CD, F-score at 2 % of the longest side, IoU at the 32^3 voxel centres,
and ``within``, 2-way identification among shown objects of the same category by rendered views
(chance 0.5); with ``full`` also EMD, CD turned, the measures of six rendered views and FPD. A
stimulus without a mesh is listed as "no truth" and scored by nothing.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neurodiff.analysis.networks import find_networks
from neurodiff.analysis.protocol_scores import ProtocolScorer, empty_sets
from neurodiff.analysis.protocols import is_metric, protocol_of
from neurodiff.analysis.scoring import ScoredShapes, score
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.stimuli import Stimuli
from neurodiff.geometry.mesh import make_watertight, normalise_mesh
from neurodiff.metrics.statistics import bootstrap_interval

if TYPE_CHECKING:
    import trimesh

    from neurodiff.pipelines.mind3d import Reconstruction

NO_TRUTH = "no truth"
BY_GROUP = ("CD", "F@2%", "IoU", "within")  # of neurodiff-1: scored for many items at once


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Scores of a list of reconstructions.

    Attributes
    ----------
    table : one row an item: subject, stimulus, category, repeat, sample, the metrics, note. Items
        without a true mesh have NaN, and "no truth" in ``note``.
    protocol : by which the scores were made.
    sets : scores of a set of items as a whole (FPD): one row a metric and sample, with value, low,
        high (95 %, jackknife over items), n and note.
    notes : which networks were used, and what is not available and how to get it.
    """

    table: pd.DataFrame
    protocol: str
    sets: pd.DataFrame = field(default_factory=empty_sets)
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Names of the scored columns; a network that makes a column is in its name."""
        return [str(name) for name in self.table if is_metric(str(name))]

    @property
    def no_truth(self) -> list[str]:
        """Stimuli that could not be scored, because they have no mesh."""
        without = self.table["note"].str.startswith(NO_TRUTH)
        return list(dict.fromkeys(self.table["stimulus"][without]))

    def summary(self, *, seed: int = 0) -> pd.DataFrame:
        """Index metric; columns mean, median, low, high (95 % of the mean, bootstrap), n.

        Samples and repeats of a stimulus are averaged first, within a subject: ``n`` counts
        stimuli, and they are what is resampled.
        """
        rows = {}
        for name in self.metrics:
            known = self.table.dropna(subset=[name])
            values = known.groupby(["subject", "stimulus"], sort=False)[name].mean().to_numpy()
            low = high = float("nan")
            if len(values) >= 2:
                interval = bootstrap_interval(values, seed=seed)
                low, high = interval.low, interval.high
            mean, median = (
                (values.mean(), np.median(values)) if len(values) else (float("nan"),) * 2
            )
            rows[name] = {"mean": mean, "median": median, "low": low, "high": high}
            rows[name]["n"] = len(values)
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.rename_axis("metric").astype({"n": int})

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        missing = f", {len(self.no_truth)} stimuli without truth" if self.no_truth else ""
        return f"<Evaluation {len(self)} items, {self.protocol}{missing}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.summary().to_html(float_format='%.3f')}"


def evaluate(
    results: Sequence[Reconstruction],
    truth: Stimuli,
    protocol: str = "neurodiff-1",
    *,
    full: bool = False,
    seed: int = 0,
    weights: str | Path | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Score reconstructions, as ``MinD3D.predict`` returns them, against the stimuli's meshes.

    Parameters
    ----------
    results : any number of subjects, repeats and samples of each stimulus.
    truth : stimuli of these ids; those without a mesh are listed and not scored.
    protocol : ``"neurodiff-1"``, or ``"mind3d-2024"`` as released, its slips included.
    full : also what takes seconds an item or needs pretrained networks. A network whose weights
        are missing leaves its columns out; ``notes`` says so and how to get them.
    seed : of the points drawn on the surfaces, and of the draws of mind3d-2024.
    weights : folder of the networks' weights; None takes that of ``NEURODIFF_WEIGHTS``.

    Raises
    ------
    UsageError : nothing to score, an unknown protocol, or a stimulus that ``truth`` does not list.
    DataError : a mesh or a weight file that is there and broken.
    MissingDataError : the folder of weights that was named is not there.
    """
    rules = protocol_of(protocol)
    if len(results) == 0:
        raise UsageError("there is no reconstruction to score; give what predict returned")
    networks = find_networks(weights) if full else None
    scorer = ProtocolScorer(rules, networks, seed)
    meshes = true_meshes(truth, [item.stimulus for item in results])
    table = pd.DataFrame(
        {
            "subject": [item.subject for item in results],
            "stimulus": [item.stimulus for item in results],
            "category": [truth[item.stimulus].category for item in results],
            "repeat": [item.repeat for item in results],
            "sample": [item.sample for item in results],
        }
    )
    wanted = [*rules.quick, *(rules.full if full else ())]
    for name in scorer.names(wanted):
        table[name] = np.nan
    table["note"] = [
        "" if item.stimulus not in meshes else "empty mesh" if len(item.mesh.faces) == 0 else ""
        for item in results
    ]
    lacking = ~table["stimulus"].isin(list(meshes))
    table.loc[lacking, "note"] = f"{NO_TRUTH}: the stimulus has no mesh"
    scored = [k for k, without in enumerate(lacking) if not without]
    notes = tuple(networks.lines()) if networks is not None else ()
    if len(scored) == 0:
        return Evaluation(table, protocol, notes=notes)
    if rules.name == "neurodiff-1":
        _by_group(table, results, scored, meshes, seed, progress)
    sets = _one_by_one(table, results, scored, meshes, scorer, wanted, progress)
    return Evaluation(table, protocol, sets, notes)


def answer_ranks(table: pd.DataFrame) -> pd.Series:
    """Which answer to its stimulus each item is, from 0, by repeat.

    Answers of one rank are compared with each other. It is not the column repeat itself: of a mean
    over trials that is their number, and means of two and of three trials belong together.

    Parameters
    ----------
    table : columns subject, stimulus, repeat, sample.
    """
    keys = ["subject", "stimulus", "sample"]
    return table.sort_values("repeat", kind="stable").groupby(keys).cumcount().loc[table.index]


def _by_group(
    table: pd.DataFrame,
    results: Sequence[Reconstruction],
    scored: list[int],
    meshes: dict[str, trimesh.Trimesh],
    seed: int,
    progress: Progress,
) -> None:
    """Fill in CD, F-score, IoU and identification within the category."""
    names = list(meshes)
    # other points than those of the reconstructions: a shape against itself is not at 0 exactly
    known = ScoredShapes.of_meshes(
        meshes.values(), names, seed=seed + 1, progress=progress, label="true shapes"
    )
    found = ScoredShapes.of_meshes(
        [results[k].mesh for k in scored],
        [results[k].stimulus for k in scored],
        seed=seed,
        progress=progress,
        label="reconstructions",
    )
    place = {name: k for k, name in enumerate(names)}
    of_truth = np.array([place[results[k].stimulus] for k in scored])
    # one answer a stimulus at a time, so that no candidate of an identification is there twice
    ranked = table.iloc[scored].assign(answer=answer_ranks(table.iloc[scored]))
    for _, group in ranked.groupby(["subject", "answer", "sample"], sort=False):
        rows = group.index.to_numpy()
        at = np.searchsorted(scored, rows)
        part = score(
            found.take(at),
            known.take(of_truth[at]),
            ids=list(group["stimulus"]),
            categories=list(group["category"]),
        )
        for name in BY_GROUP:
            table.loc[rows, name] = part[name].to_numpy()


def _one_by_one(
    table: pd.DataFrame,
    results: Sequence[Reconstruction],
    scored: list[int],
    meshes: dict[str, trimesh.Trimesh],
    scorer: ProtocolScorer,
    wanted: list[str],
    progress: Progress,
) -> pd.DataFrame:
    """Fill in what compares an item with its own truth; returns the scores of sets."""
    group = BY_GROUP if scorer.protocol.name == "neurodiff-1" else ()
    metrics = [name for name in wanted if name not in group]
    if not metrics:
        return empty_sets()
    activations: dict[int, tuple] = {}
    by_stimulus = sorted(scored, key=lambda k: results[k].stimulus)  # one truth at a time in memory
    true, of_true = None, None
    for row in progress.over(by_stimulus, f"scores by {scorer.protocol.name}"):
        result = results[row]
        if true is None or true.name != result.stimulus:
            mesh = meshes[result.stimulus]
            true = scorer.true_shape(result.stimulus, mesh)
            of_true = scorer.activation(mesh, result.stimulus, "true") if "FPD" in metrics else None
        draw = result.sample + 1000 * result.repeat
        for name, value in scorer.item(result.mesh, true, metrics, draw).items():
            table.loc[row, name] = value
        if of_true is not None:
            activations[row] = (
                scorer.activation(result.mesh, result.stimulus, "predicted"),
                of_true,
            )
    rows = []
    if activations:
        for sample, part in table.loc[sorted(activations)].groupby("sample"):
            pairs = [activations[k] for k in part.index]
            found = scorer.fpd([a for a, _ in pairs], [b for _, b in pairs])
            if found is not None:
                rows.append(found | {"sample": int(sample)})
    return pd.DataFrame(rows, columns=empty_sets().columns) if rows else empty_sets()


def true_meshes(truth: Stimuli, wanted: Sequence[str]) -> dict[str, trimesh.Trimesh]:
    """The meshes there are, centred, longest side 1, watertight; by stimulus.

    Raises
    ------
    UsageError : ``truth`` does not list a stimulus.
    DataError : a mesh that is there and broken.
    """
    from neurodiff.core.errors import MissingDataError

    meshes = {}
    for name in dict.fromkeys(wanted):
        stimulus = truth[name]
        try:
            mesh = stimulus.mesh()
        except MissingDataError:
            continue
        if len(mesh.faces) == 0:
            raise DataError(f"the mesh of stimulus {name!r} has no faces; remove it or mend it")
        mesh = normalise_mesh(mesh)
        meshes[name] = mesh if mesh.is_watertight else normalise_mesh(make_watertight(mesh))
    return meshes
