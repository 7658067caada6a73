"""Probes of an autoencoder's codes, beside what else tells a diagnosis or an age."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.core.cohort import Cohort
from neurodiff.core.progress import Progress

if TYPE_CHECKING:
    from neurodiff.analysis.ldae_evaluation import EvaluationPlan
    from neurodiff.analysis.probes import ProbeReport

OURS, TRAINING_PCA = "semantic codes", "PCA of the training scans"


def ldae_probes(
    cohort: Cohort,
    volumes: np.ndarray,
    affine: np.ndarray,
    codes: np.ndarray,
    known: np.ndarray | None,
    plan: EvaluationPlan,
    seed: int,
    progress: Progress,
) -> ProbeReport:
    """Probes of the codes beside PCA of the training scans and `probe_baselines`.

    Parameters
    ----------
    cohort, volumes : the held-out scans, float32 (n, 1, i, j, k), and the affine of their grid.
    codes : (n, d) of them.
    known : scans that the model was trained on, of the same shape; None leaves their PCA out.
    """
    from neurodiff.analysis.probe_baselines import probe_baselines
    from neurodiff.analysis.probe_cnn import CNNSettings
    from neurodiff.analysis.probes import evaluate_probes

    features: dict[str, Any] = {OURS: codes}
    if known is not None:
        name, values = same_training_pca(known, volumes, codes.shape[1], seed=seed)
        features[name] = values
    features |= probe_baselines(
        cohort,
        volumes,
        affine=affine,
        dimension=codes.shape[1],
        cnn=CNNSettings() if plan.cnn else None,
        seed=seed,
    )
    return evaluate_probes(
        features,
        cohort.scans,
        tasks=None if plan.tasks is None else chosen_tasks(plan.tasks),
        folds=plan.folds,
        bootstrap=plan.bootstrap,
        seed=seed,
        progress=progress,
    )


def chosen_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of the probes by name, conversion with its own months."""
    from neurodiff.analysis.probe_tasks import probe_tasks

    found: list[Any] = []
    for name in names:
        months = re.fullmatch(r"conversion within (\d+) months", name)
        within = {"within": float(months[1])} if months else {}
        found += probe_tasks([name], **within)
    return found


def same_training_pca(
    known: np.ndarray, volumes: np.ndarray, dimension: int, *, seed: int = 0
) -> tuple[str, np.ndarray]:
    """Components of the scans that the model was trained on, at most as many as a code's numbers.

    The codes' true rival: it has seen the same scans and is as wide.
    """
    from sklearn.decomposition import PCA

    count = min(dimension, len(known) - 1)
    pca = PCA(count, svd_solver="randomized", random_state=seed)
    pca.fit(known.reshape(len(known), -1))
    values = pca.transform(volumes.reshape(len(volumes), -1))
    return f"{TRAINING_PCA}, {count} numbers", values.astype(np.float64)
