"""Scores of reconstructed shapes: one row an item and condition.

A *condition* is a way to answer "which shape was seen?": the decoder, a baseline that never saw
the brain, or a ceiling. All are scored by the same functions on the same held-out items.

    CD          two-sided squared Chamfer distance, 2,048 points a side, unit cube, x 1e2
    F@2%        F-score at 2 % of the longest side
    IoU         of the volumes, at the 32^3 voxel centres of the unit cube
    2-way, n-way  a classifier of rendered views trained apart from the target embedding; class =
                its answer to the true object; exact expectation over the distractors
    within      2-way among held-out objects of the same category, by correlation of rendered
                views: what is left once the category is known (chance 0.5)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.features.view_classifier import ViewClassifier
from neurodiff.geometry.bank import GRID, VIEW_SIZE, ShapeBank, grey_views, voxel_centres
from neurodiff.geometry.mesh import occupancy_of, sample_surface
from neurodiff.metrics.identification import classifier_n_way, feature_identification
from neurodiff.metrics.meshes import chamfer_distance, f_score, volume_iou

N_POINTS = 2048


@dataclass(frozen=True)
class ScoredShapes:
    """What scoring needs of shapes, whether they were decoded or are true ones."""

    surface: Float[np.ndarray, "n points 3"]
    grid: Bool[np.ndarray, "n g g g"]
    views: UInt8[np.ndarray, "n 4 h w"]

    @classmethod
    def of_bank(cls, bank: ShapeBank, ids: Sequence[str]) -> ScoredShapes:
        """Shapes of a bank by their ids, in this order."""
        k = bank.rows(ids)
        return cls(bank.surface[k].astype(np.float32), bank.grid[k], bank.views[k])

    @classmethod
    def of_meshes(
        cls,
        meshes: Iterable,
        names: Sequence[str],
        *,
        seed: int = 0,
        progress: Progress = SILENT,
        label: str = "shapes to arrays",
    ) -> ScoredShapes:
        """Sampled, voxelised and rendered. An empty mesh is a point at the origin."""
        if len(names) == 0:
            raise UsageError("no meshes to score")
        rows = []
        for mesh, name in progress.over(zip(meshes, names, strict=True), label, len(names)):
            if len(mesh.faces) == 0:
                rows.append(
                    (
                        np.zeros((N_POINTS, 3), np.float32),
                        np.zeros((GRID,) * 3, bool),
                        np.full((4, VIEW_SIZE, VIEW_SIZE), 255, np.uint8),
                    )
                )
                continue
            rng = numpy_generator(item_seed(seed, subject="", stimulus=name, stage="scoring"))
            rows.append(
                (
                    sample_surface(mesh, N_POINTS, rng).astype(np.float32),
                    occupancy_of(mesh, voxel_centres()).reshape((GRID,) * 3),
                    grey_views(mesh),
                )
            )
        surface, grid, views = (np.stack(column) for column in zip(*rows, strict=True))
        return cls(surface, grid, views)

    def take(self, rows: np.ndarray) -> ScoredShapes:
        """The shapes of these rows, in this order."""
        return ScoredShapes(self.surface[rows], self.grid[rows], self.views[rows])

    def __len__(self) -> int:
        return len(self.surface)


def score(
    predicted: ScoredShapes,
    truth: ScoredShapes,
    *,
    ids: Sequence[str],
    categories: Sequence[str],
    classifier: ViewClassifier | None = None,
) -> pd.DataFrame:
    """One row an item: id, category and the scores of the module's table.

    Raises
    ------
    UsageError : predictions and truths differ in number.
    """
    if not len(predicted) == len(truth) == len(ids) == len(categories):
        raise UsageError(
            f"{len(predicted)} predictions for {len(truth)} truths and {len(ids)} ids; score one "
            "prediction an item"
        )
    table = pd.DataFrame({"stimulus": list(ids), "category": list(categories)})
    pairs = list(zip(predicted.surface, truth.surface, strict=True))
    table["CD"] = [100 * chamfer_distance(a, b) for a, b in pairs]
    table["F@2%"] = [f_score(a, b, 0.02) for a, b in pairs]
    n = len(ids)
    table["IoU"] = volume_iou(predicted.grid.reshape(n, -1), truth.grid.reshape(n, -1))
    if classifier is not None:
        guessed = classifier.probabilities(predicted.views)
        true = classifier.probabilities(truth.views)
        table["2-way"] = classifier_n_way(guessed, true, 2)
        ways = len(classifier.classes)
        table[f"{ways}-way"] = classifier_n_way(guessed, true, ways)
    table["within"] = feature_identification(
        _pixels(predicted.views),
        _pixels(truth.views),
        2,
        categories=list(categories),
        too_few="nan",
    )
    return table


def factor_correlations(
    predicted: ScoredShapes,
    truth_factors: pd.DataFrame,
    categories: Sequence[str],
    readers: dict[str, FactorReader],
) -> pd.DataFrame:
    """Held-out correlation of each planted shape factor; rows (category, factor).

    The factors of a predicted shape are read off its voxels by a linear reader that was fitted on
    true training shapes of the category of the *truth*: a shape of another category scores what
    it scores.
    """
    rows = []
    categories = np.asarray(categories)
    for category, reader in readers.items():
        chosen = np.flatnonzero(categories == category)
        if len(chosen) < 3:
            continue
        read = reader(predicted.grid[chosen])
        for k, factor in enumerate(reader.names):
            true = truth_factors[factor].to_numpy()[chosen]
            spread = read[:, k].std() * true.std()
            r = np.mean((read[:, k] - read[:, k].mean()) * (true - true.mean()))
            r = 0.0 if spread < 1e-12 else r / spread  # a constant answer tells nothing
            rows.append({"category": category, "factor": factor, "r": float(r), "n": len(chosen)})
    return pd.DataFrame(rows)


class FactorReader:
    """Linear reader of a category's shape factors from 16^3 occupancy."""

    def __init__(self, grids: np.ndarray, factors: pd.DataFrame):
        from neurodiff.bridges.ridge import MultiTargetRidge

        self.names = list(factors.columns)
        self._ridge = MultiTargetRidge().fit(_coarse(grids), factors.to_numpy(float))

    def __call__(self, grids: np.ndarray) -> Float[np.ndarray, "n factors"]:
        return self._ridge.predict(_coarse(grids)).reshape(len(grids), -1)


def _coarse(grids: np.ndarray) -> np.ndarray:
    n, g = grids.shape[:2]
    blocks = grids.reshape(n, g // 2, 2, g // 2, 2, g // 2, 2)
    return blocks.mean(axis=(2, 4, 6), dtype=np.float64).reshape(n, -1)


def _pixels(views: np.ndarray) -> np.ndarray:
    """Halved views as rows; a blank picture gets one dark pixel, so that its correlation exists."""
    n, k, h, w = views.shape
    rows = views.reshape(n, k, h // 2, 2, w // 2, 2).mean(axis=(3, 5), dtype=np.float32)
    rows = rows.reshape(n, -1)
    blank = np.ptp(rows, axis=1) == 0
    rows[blank, 0] -= 1
    return rows
