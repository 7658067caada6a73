"""What else could tell a diagnosis: features that codes have to be compared with.

Functions of the volumes of a cohort, each a set of features for `evaluate_probes`.  What has to be
learned (principal components, the supervised network) is learned in the folds.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from neurodiff.analysis.probe_cnn import CNNSettings, cnn_features
from neurodiff.analysis.probe_folds import FoldFeatures
from neurodiff.analysis.probe_regions import label_volumes, regional_volumes
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, numpy_generator

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
BINS = 16
ORACLE = ("true_ventricles_ml", "true_hippocampi_ml", "true_brain_ml")
_BLOCK = 65_536  # voxels at a time


def probe_baselines(
    cohort: Cohort,
    volumes: np.ndarray,
    *,
    affine: np.ndarray,
    dimension: int,
    labels: np.ndarray | None = None,
    cnn: CNNSettings | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray | FoldFeatures]:
    """All baselines of a cohort, by the names that tables show.

    Parameters
    ----------
    cohort : its n scans; the true volumes of a simulated one become the oracle.
    volumes : (n, 1, i, j, k) on the model's grid, 0 to 1, 0 outside the brain.
    affine : (4, 4) of that grid.
    dimension : of the codes, which principal components and random projections share.
    labels : (n, i, j, k) label maps; without them tissue and regions are estimated from the scan.
    cnn : settings of the supervised network; None leaves it out.
    seed : of random projections and the network.

    Raises
    ------
    DataError : other numbers of scans, NaN, an empty volume, scans outside MNI space.
    UsageError : a dimension below 1.
    """
    checked = _checked(volumes)
    if len(checked) != len(cohort):
        raise DataError(f"{len(checked)} volumes for {len(cohort)} scans; give one for each")
    sets: dict[str, np.ndarray | FoldFeatures] = {
        f"PCA {dimension}": pca_features(checked, dimension),
        "regional volumes": (
            regional_volumes(checked, affine) if labels is None else label_volumes(labels, affine)
        ),
        "intensity statistics": intensity_statistics(checked),
        f"random projection {dimension}": random_projection(checked, dimension, seed=seed),
    }
    if cnn is not None:
        name, feature = cnn_features(checked, cnn, seed=seed)
        sets[name] = feature
    if all(column in cohort.scans for column in ORACLE):
        sets["true volumes (oracle)"] = oracle_volumes(cohort)
    return sets


def intensity_statistics(volumes: np.ndarray) -> Float[np.ndarray, "n numbers"]:
    """Mean, SD, `PERCENTILES` and a histogram of 16 bins from 0 to 1, of the values above 0.

    Raises
    ------
    DataError : a volume without a value above 0.
    """
    rows = []
    for number, volume in enumerate(_checked(volumes)):
        values = volume[volume > 0].astype(np.float64)
        if not len(values):
            raise DataError(f"scan {number} has no value above 0; is it empty?")
        shares = np.histogram(np.clip(values, 0, 1), BINS, (0.0, 1.0))[0] / len(values)
        rows.append([values.mean(), values.std(), *np.percentile(values, PERCENTILES), *shares])
    return np.array(rows)


class TrainingPCA:
    """Principal components of the training rows; no more than they can have."""

    def __init__(self, components: int) -> None:
        self.components = components

    def fit(self, values: np.ndarray, truth: np.ndarray | None = None) -> TrainingPCA:
        from sklearn.decomposition import PCA

        most = min(self.components, len(values) - 1, values.shape[1])
        self.pca = PCA(most, svd_solver="full").fit(values)
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        return self.pca.transform(values)


def pca_features(volumes: np.ndarray, components: int) -> FoldFeatures:
    """Principal components of the voxels of each fold's training scans.

    Scans are first turned into coordinates in the span of them all, which keeps every distance:
    components of the training rows there are those of their voxels, without a decomposition of all
    voxels in every fold.

    Raises
    ------
    UsageError : fewer than 1 component.
    """
    if components < 1:
        raise UsageError(f"{components} components; give at least 1")
    flat = _checked(volumes).reshape(len(volumes), -1)
    gram = np.zeros((len(flat), len(flat)))
    for start in range(0, flat.shape[1], _BLOCK):
        block = flat[:, start : start + _BLOCK].astype(np.float64)
        block -= block.mean(axis=0)  # a shift of all: distances stay
        gram += block @ block.T
    eigenvalues, vectors = np.linalg.eigh(gram)
    kept = eigenvalues > 1e-10 * max(float(eigenvalues[-1]), 1e-30)
    if not kept.any():
        raise DataError("all volumes are the same; there are no components")
    coordinates = vectors[:, kept] * np.sqrt(eigenvalues[kept])
    return FoldFeatures(values=coordinates, model=TrainingPCA(components))


def random_projection(
    volumes: np.ndarray, components: int, *, seed: int = 0
) -> Float[np.ndarray, "n components"]:
    """Projections onto random directions: distances survive, nothing is learned.

    Raises
    ------
    UsageError : fewer than 1 component.
    """
    if components < 1:
        raise UsageError(f"{components} components; give at least 1")
    flat = _checked(volumes).reshape(len(volumes), -1)
    out = np.zeros((len(flat), components))
    step = 4096
    for start in range(0, flat.shape[1], step):
        block = flat[:, start : start + step].astype(np.float64)
        key = item_seed(seed, subject="", stimulus=f"voxel {start}", stage="random projection")
        out += block @ numpy_generator(key).standard_normal((block.shape[1], components))
    return out / np.sqrt(components)


def oracle_volumes(cohort: Cohort) -> Float[np.ndarray, "n 4"]:
    """The true volumes of a simulated cohort: log ml, and of the ventricles over the hippocampi.

    Raises
    ------
    DataError : the cohort has none.
    """
    cohort.require(*ORACLE)
    logs = np.log(cohort.scans[list(ORACLE)].to_numpy(np.float64))
    return np.c_[logs, logs[:, 0] - logs[:, 1]]


def _checked(volumes: np.ndarray) -> np.ndarray:
    if volumes.ndim != 5 or volumes.shape[1] != 1 or volumes.dtype.kind != "f":
        raise DataError(
            f"volumes are {volumes.shape} of {volumes.dtype}; expected floats (n, 1, i, j, k)"
        )
    bad = np.array([not np.isfinite(volume).all() for volume in volumes])
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} volumes hold NaN or infinity, first number {int(bad.argmax())}; "
            "leave these scans out"
        )
    return volumes
