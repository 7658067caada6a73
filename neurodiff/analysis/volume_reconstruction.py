"""Reconstruction of scans: by the model, by its autoencoder alone, and by those who know less.

Each condition is scored against the scan and against the autoencoder's picture of it, because no
way through the latents can be better than the autoencoder:

    autoencoder      the ceiling
    encoded          code, and the noise that the scan's own latent comes from
    semantic         code, and drawn noise: what the code alone knows
    training mean    the baseline without information about the scan
    another person   the chance of a table: a true scan, of somebody else

"encoded" near the ceiling says that the walk closes and nothing about the code: the noise carries
the whole latent. Read "semantic" for the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.volume_tables import (
    VolumeScoring,
    VolumeTable,
    checked,
    measured,
    names_of,
    other_person,
)
from neurodiff.core.errors import UsageError

CEILING, MEAN, OTHER = "autoencoder", "training mean", "another person"
CONDITIONS = ("condition", "steps", "target")


def reconstruction_table(
    pipe: Any,
    volumes: np.ndarray,
    scans: pd.DataFrame,
    *,
    masks: np.ndarray | None = None,
    mean: np.ndarray | None = None,
    steps: Sequence[int | None] = (None,),
    seed: int = 0,
    scoring: VolumeScoring | None = None,
) -> VolumeTable:
    """Scores of each scan in each condition against both targets.

    Parameters
    ----------
    pipe : an `LDAE`, or anything with its ``reconstruct``.
    volumes : float32 (n, 1, i, j, k) in 0..1, on the pipe's grid.
    scans : one row a volume with ``subject`` and ``scan``, as ``cohort.scans``.
    masks : (n, i, j, k) bool, of the brains; adds the scores inside.
    mean : (1, i, j, k), the mean of the training scans; None leaves that baseline out.
    steps : of the walks, each a line of its own; None is the model's default.
    seed : of the drawn noise.
    scoring : kernel 3 by default, as released.

    Returns
    -------
    Rows also tell ``seconds`` a scan, and ``calls`` of the U-Net a scan (0 for a pipe without).

    Raises
    ------
    UsageError : volumes, table and masks that do not belong together.
    DataError : NaN in a scan.
    """
    checked(volumes, scans, masks)
    scoring = scoring or VolumeScoring()
    metrics = scoring.metrics(volumes.shape[2:], masks)
    names, notes = names_of(scans), []
    with measured() as cost:
        ceiling = pipe.reconstruct(volumes, "autoencoder", scans=names)
    made: list[tuple[str, Any, np.ndarray, Any]] = [(CEILING, "", ceiling, cost)]
    for count in dict.fromkeys(steps):
        for how in ("encoded", "semantic"):
            with measured() as cost:
                found = pipe.reconstruct(volumes, how, scans=names, steps=count, seed=seed)
            made.append((how, "default" if count is None else str(count), found, cost))
    if mean is None:
        notes.append("no training mean was given, so the baseline without information is missing")
    elif mean.shape != volumes.shape[1:]:
        raise UsageError(f"the mean has shape {mean.shape}; the scans have {volumes.shape[1:]}")
    else:
        made.append((MEAN, "", np.broadcast_to(mean, volumes.shape), None))
    if scans["subject"].nunique() > 1:
        made.append((OTHER, "", volumes[other_person(scans["subject"].tolist())], None))
    else:
        notes.append("all scans are of one subject, so another person's scan is missing")
    parts = []
    for condition, count, found, cost in made:
        for target, truth in (("scan", volumes), (CEILING, ceiling)):
            if target == CEILING and condition == CEILING:
                continue  # 1 by definition
            part = scans[["subject", "scan"]].reset_index(drop=True)
            part = part.assign(condition=condition, steps=count, target=target)
            scores = {name: metric(found, truth) for name, metric in metrics.items()}
            part = part.assign(**scores)
            part["seconds"] = cost.seconds / len(volumes) if cost else np.nan
            part["calls"] = cost.calls / len(volumes) if cost else np.nan
            parts.append(part)
    directions = {name: metric.higher_is_better for name, metric in metrics.items()}
    return VolumeTable(
        pd.concat(parts, ignore_index=True),
        CONDITIONS,
        {**directions, "seconds": None, "calls": None},
        tuple(notes),
    )
