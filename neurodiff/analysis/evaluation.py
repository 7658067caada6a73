"""Scores of decoded objects against what was shown: a table with one row an item.

Protocol ``neurodiff-1``: the true mesh is centred, scaled to longest side 1 and made watertight
where it is not; the reconstruction is taken as it stands. CD is squared, two-sided, 2,048 points,
x 1e2; F-score at 2 % of the longest side; IoU at the 32^3 voxel centres; ``within`` is 2-way
identification among shown objects of the same category by rendered views (chance 0.5). A stimulus
without a mesh is listed as "no truth" and scored by nothing.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neurodiff.analysis.scoring import ScoredShapes, score
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.geometry.mesh import make_watertight, normalise_mesh, sample_surface
from neurodiff.metrics.transport import earth_movers_distance
from neurodiff.metrics.statistics import bootstrap_interval

if TYPE_CHECKING:
    import trimesh

    from neurodiff.pipelines.mind3d import Reconstruction

PROTOCOLS = ("neurodiff-1",)
METRICS = {"CD": "side^2 x 1e2", "F@2%": "", "IoU": "", "within": ""}
HIGHER_IS_BETTER = {"CD": False, "F@2%": True, "IoU": True, "within": True, "EMD": False}
NO_TRUTH = "no truth"
EMD_POINTS = 512


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Scores of a list of reconstructions.

    Attributes
    ----------
    table : one row an item: subject, stimulus, category, repeat, sample, the metrics, note. Items
        without a true mesh have NaN, and "no truth" in ``note``.
    protocol : by which the scores were made.
    """

    table: pd.DataFrame
    protocol: str

    @property
    def metrics(self) -> list[str]:
        """Names of the scored columns."""
        return [name for name in (*METRICS, "EMD") if name in self.table]

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
    progress: Progress = SILENT,
) -> Evaluation:
    """Score reconstructions, as ``MinD3D.predict`` returns them, against the stimuli's meshes.

    Parameters
    ----------
    results : any number of subjects, repeats and samples of each stimulus.
    truth : stimuli of these ids; those without a mesh are listed and not scored.
    protocol : ``"neurodiff-1"``.
    full : also EMD, exact, on 512 points a side (a fraction of a second an item).
    seed : of the points drawn on the surfaces.

    Raises
    ------
    UsageError : nothing to score, an unknown protocol, or a stimulus that ``truth`` does not list.
    DataError : a mesh that is there and broken.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(
            f"there is no protocol {protocol!r} for shapes; there is {', '.join(PROTOCOLS)}."
            f"{suggest(protocol, PROTOCOLS)}"
        )
    if len(results) == 0:
        raise UsageError("there is no reconstruction to score; give what predict returned")
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
    for name in METRICS:
        table[name] = np.nan
    table["note"] = [
        "" if item.stimulus not in meshes else "empty mesh" if len(item.mesh.faces) == 0 else ""
        for item in results
    ]
    lacking = ~table["stimulus"].isin(list(meshes))
    table.loc[lacking, "note"] = f"{NO_TRUTH}: the stimulus has no mesh"
    scored = [k for k, without in enumerate(lacking) if not without]
    if len(scored) == 0:
        return Evaluation(_with_emd(table, full), protocol)
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
    for _, group in table.iloc[scored].groupby(["subject", "repeat", "sample"], sort=False):
        rows = group.index.to_numpy()
        at = np.searchsorted(scored, rows)
        part = score(
            found.take(at),
            known.take(of_truth[at]),
            ids=list(group["stimulus"]),
            categories=list(group["category"]),
        )
        for name in METRICS:
            table.loc[rows, name] = part[name].to_numpy()
    table = _with_emd(table, full)
    if full:
        for row in progress.over(scored, "EMD"):
            result = results[row]
            true = meshes[result.stimulus]
            table.loc[row, "EMD"] = _emd(result.mesh, true, result.stimulus, seed)
    return Evaluation(table, protocol)


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


def _with_emd(table: pd.DataFrame, full: bool) -> pd.DataFrame:
    if full:
        table.insert(table.columns.get_loc("note"), "EMD", np.nan)
    return table


def _emd(predicted: trimesh.Trimesh, true: trimesh.Trimesh, name: str, seed: int) -> float:
    """Earth mover's distance x 1e2 of two draws of points; an empty mesh is a point at 0."""
    draws = []
    for which, mesh in (("predicted", predicted), ("true", true)):
        key = item_seed(seed, subject=which, stimulus=name, stage="emd")
        rng = numpy_generator(key)
        empty = len(mesh.faces) == 0
        draws.append(np.zeros((EMD_POINTS, 3)) if empty else sample_surface(mesh, EMD_POINTS, rng))
    return 100 * earth_movers_distance(*draws)
