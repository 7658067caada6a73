"""Distances between shapes: Chamfer, F-score, volume IoU (earth mover's: `transport`).

Functions of point sets ``(points, 3)`` or, where said, of batches ``(items, points, 3)``; units
are those of the coordinates (the shape convention: longest side 1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from neurodiff.core.errors import DataError
from neurodiff.geometry.mesh import occupancy_of, sample_surface
from neurodiff.metrics.records import Metric

if TYPE_CHECKING:
    from trimesh import Trimesh

THRESHOLDS = {"f_score_1pct": 0.01, "f_score_2pct": 0.02, "f_score_5pct": 0.05}


def chamfer_distance(
    a: Float[np.ndarray, "*items n 3"], b: Float[np.ndarray, "*items m 3"], *, squared: bool = True
) -> Float[np.ndarray, "*items"] | float:
    """Two-sided sum of mean nearest-neighbour distances, a to b plus b to a.

    Parameters
    ----------
    a, b : point sets, or batches of them.
    squared : square the distances before the mean, as the published "CD" does (tables multiply
        it by 1e2); False gives lengths.

    Returns
    -------
    A float for two sets, one value an item for batches.

    Raises
    ------
    ValueError : a set is empty or not finite.

    References
    ----------
    Fan et al. 2017, CVPR. MinD-3D (Gao et al. 2024, ECCV) evaluates this with 2,048 points.

    Examples
    --------
    >>> chamfer_distance(np.zeros((1, 3)), np.array([[0.0, 0.0, 2.0]]))
    8.0
    """
    power = 2 if squared else 1

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        there, back = _nearest(a, b)
        return float((there**power).mean() + (back**power).mean())

    return _over_items(distance, a, b)


def f_score(
    a: Float[np.ndarray, "*items n 3"], b: Float[np.ndarray, "*items m 3"], threshold: float
) -> Float[np.ndarray, "*items"] | float:
    """Harmonic mean of precision and recall of points within ``threshold`` of the other set.

    Precision is the share of ``a`` (prediction) that has a point of ``b`` (truth) at a distance
    of at most ``threshold``, recall the reverse; 0 where both are 0. The authors advise 1% of the
    longest side. With few points sparse sampling lowers it: quote the score of two samples of
    the truth beside it.

    Raises
    ------
    ValueError : a set is empty or not finite, or the threshold is not positive.

    References
    ----------
    Tatarchenko et al. 2019, CVPR, section 5.
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; it is a distance and must be positive")

    def score(a: np.ndarray, b: np.ndarray) -> float:
        return _f_of(*_nearest(a, b), threshold)

    return _over_items(score, a, b)


def volume_iou(
    a: Bool[np.ndarray, "*items points"], b: Bool[np.ndarray, "*items points"]
) -> Float[np.ndarray, "*items"] | float:
    """Intersection over union of two occupancies of the same query points.

    Two empty shapes are equal and score 1.
    """
    both = (a & b).sum(axis=-1)
    either = (a | b).sum(axis=-1)
    iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return float(iou) if iou.ndim == 0 else iou


def normalise_points(points: Float[np.ndarray, "*items n 3"]) -> Float[np.ndarray, "*items n 3"]:
    """Centre on the mean and divide by twice the largest radius: into a sphere of radius 0.5.

    The normalisation of MinD-3D's Fréchet point-cloud distance and, in other scripts, of CD.

    Raises
    ------
    ValueError : all points of a set coincide.
    """
    centred = points - points.mean(axis=-2, keepdims=True)
    radius = np.linalg.norm(centred, axis=-1).max(axis=-1)
    if not (radius > 0).all():
        raise ValueError("all points of a set coincide; their radius is 0")
    return centred / (2 * radius[..., None, None])


def score_mesh_pair(
    predicted: Trimesh,
    truth: Trimesh,
    *,
    n_points: int = 2048,
    n_volume: int = 32**3,
    seed: int = 0,
) -> dict[str, float | str]:
    """Score one predicted mesh against the true one, both taken as they stand.

    Parameters
    ----------
    predicted, truth : in the same place and scale (``normalise_mesh`` both beforehand where the
        size shall not count).
    n_points : drawn from each surface, independently; a mesh against itself thus has a small
        positive ``cd``, which is the floor of the measure.
    n_volume : query points of the IoU, the cell centres of a regular grid over the joint bounding
        box; a cube number.
    seed : of the draws; the truth's points do not depend on the prediction.

    Returns
    -------
    ``cd`` (squared, two-sided sum), ``f_score_1pct``, ``f_score_2pct``, ``f_score_5pct``,
    ``iou``, and ``note``: why a value is missing or a convention, else "".
    A prediction without faces scores the worst: the ``cd`` of a single point at the origin, the
    rest 0. Where a mesh is not watertight ``iou`` is NaN and ``note`` says which.

    Raises
    ------
    DataError : the truth has no faces.
    ValueError : ``n_points`` or ``n_volume`` does not fit.
    """
    side = round(n_volume ** (1 / 3))
    if side < 1 or side**3 != n_volume:
        raise ValueError(f"n_volume is {n_volume}; give a cube number such as {max(side, 1) ** 3}")
    if len(truth.faces) == 0:
        raise DataError("the true mesh has no faces; there is nothing to compare with")
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)]
    true_points = sample_surface(truth, n_points, streams[0])
    if len(predicted.faces) == 0:
        scores: dict[str, float | str] = {
            "cd": float(chamfer_distance(np.zeros((1, 3)), true_points)),
            **dict.fromkeys(THRESHOLDS, 0.0),
            "iou": 0.0,
            "note": "the predicted mesh is empty; cd is that of a point at the origin",
        }
        return scores
    there, back = _nearest(sample_surface(predicted, n_points, streams[1]), true_points)
    scores = {"cd": float((there**2).mean() + (back**2).mean())}
    scores.update({name: _f_of(there, back, limit) for name, limit in THRESHOLDS.items()})
    open_ones = [
        name for name, mesh in (("predicted", predicted), ("true", truth)) if not mesh.is_watertight
    ]
    if open_ones:
        scores["iou"] = math.nan
        scores["note"] = f"no IoU: the {' and the '.join(open_ones)} mesh is not watertight"
        return scores
    lower = np.minimum(predicted.bounds[0], truth.bounds[0])
    upper = np.maximum(predicted.bounds[1], truth.bounds[1])
    centres = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1).reshape(-1, 3)
    queries = lower + grid * (upper - lower)
    scores["iou"] = float(
        volume_iou(occupancy_of(predicted, queries), occupancy_of(truth, queries))
    )
    scores["note"] = ""
    return scores


def _nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each point's distance to the other set: (n,) of a, (m,) of b."""
    from scipy.spatial import cKDTree

    _require_points(a, b)
    return cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]


def _f_of(there: np.ndarray, back: np.ndarray, threshold: float) -> float:
    precision, recall = float((there <= threshold).mean()), float((back <= threshold).mean())
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0


def _require_points(a: np.ndarray, b: np.ndarray) -> None:
    for name, points in (("first", a), ("second", b)):
        if len(points) == 0:
            raise ValueError(f"the {name} point set is empty; a distance needs at least one point")
        if not np.isfinite(points).all():
            raise ValueError(f"the {name} point set holds NaN or infinity")


def _over_items(function, a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
    """Apply a function of two point sets to each pair of a batch."""
    if a.ndim == 2:
        return function(a, b)
    shape = a.shape[:-2]
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True)
    return np.array([function(x, y) for x, y in pairs], dtype=np.float64).reshape(shape)


CHAMFER = Metric(
    name="CD",
    unit="side^2",
    higher_is_better=False,
    chance=None,
    reference="Fan et al. 2017, CVPR; Gao et al. 2024, ECCV (MinD-3D)",
    protocol="squared, sum of both directions, 2,048 surface points, shown x1e2",
    function=chamfer_distance,
)
F_SCORE_1PCT = Metric(
    name="F-score@1%",
    unit="",
    higher_is_better=True,
    chance=None,
    reference="Tatarchenko et al. 2019, CVPR",
    protocol="threshold 1% of the longest side, 2,048 surface points",
    function=lambda prediction, truth: f_score(prediction, truth, 0.01),
)
VOLUME_IOU = Metric(
    name="IoU",
    unit="",
    higher_is_better=True,
    chance=None,
    reference="Choy et al. 2016, ECCV (3D-R2N2)",
    protocol="boolean occupancies of shared query points",
    function=volume_iou,
)
