"""Editing scans along a direction of the codes: does the right thing move, and nothing else?

The published evaluation of edits shows pictures. Here, for each amount: millilitres by region of
the edited picture (slope and monotony), what happened outside the region, the probe's score of the
moved code and of the edited picture itself, and whether the edit can be taken back.

The probe's score of the moved code rises by construction; that of the picture, encoded anew, says
whether the decoder drew the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.volume_tables import (
    BRAIN,
    VolumeScoring,
    VolumeTable,
    checked,
    over_subjects,
)
from neurodiff.core.errors import UsageError
from neurodiff.metrics.volumes import mse, ssim

OUTSIDE_MSE, OUTSIDE_SSIM = "outside MSE", "outside SSIM"
CODE_SCORE, PICTURE_SCORE, BACK = "score of code", "score of picture", "back MSE"


@dataclass(frozen=True, eq=False, repr=False)
class ManipulationTable(VolumeTable):
    """Rows: scan and amount (and, where two models are compared, ``model``)."""

    def trends(self, *, seed: int = 0) -> pd.DataFrame:
        """How each measure follows the amount, scan by scan, over people.

        Returns
        -------
        One line a measure: ``slope`` (per unit of amount, least squares) with its 95 % interval
        over people, ``spearman`` (mean over people), ``monotone`` (share of scans whose measure
        only rises, or only falls), ``at zero`` (mean of the unedited), subjects, scans. A measure
        that does not move has Spearman 0 and is not monotone.
        """
        rest = [name for name in self.conditions if name != "amount"]
        measures = [*self.regions, CODE_SCORE, PICTURE_SCORE]
        lines = []
        groups = self.table.groupby(rest, sort=False) if rest else [((), self.table)]
        for key, part in groups:
            for measure in (m for m in measures if m in part):
                of_scans = pd.DataFrame(
                    [
                        {"subject": subject, **_trend(one["amount"], one[measure])}
                        for (subject, _), one in part.groupby(["subject", "scan"], sort=False)
                    ]
                )
                slope = over_subjects(of_scans, "slope", seed)
                lines.append(
                    {
                        **dict(zip(rest, key, strict=True)),
                        "measure": measure,
                        "slope": slope["mean"],
                        "low": slope["low"],
                        "high": slope["high"],
                        "spearman": over_subjects(of_scans, "spearman", seed)["mean"],
                        "monotone": float(of_scans["monotone"].mean()),
                        "at zero": over_subjects(of_scans, "at zero", seed)["mean"],
                        "subjects": slope["subjects"],
                        "scans": slope["scans"],
                    }
                )
        return pd.DataFrame(lines)

    @property
    def regions(self) -> list[str]:
        """Names of the measured regions."""
        return [name for name in self.scores if name.endswith("_ml")]


def manipulation_table(
    pipe: Any,
    volumes: np.ndarray,
    scans: pd.DataFrame,
    direction: Any,
    *,
    amounts: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    outside: np.ndarray | None = None,
    steps: int | None = None,
    scoring: VolumeScoring | None = None,
) -> ManipulationTable:
    """Edits of each scan by each amount, from the noise that its own latent comes from.

    Parameters
    ----------
    pipe : an `LDAE`, or anything with its latents, images, codes, noise, decode and move.
    volumes : float32 (n, 1, i, j, k) in 0..1, on the pipe's grid.
    scans : one row a volume, as ``cohort.scans``.
    direction : a `Direction`, or the name of one of the pipe's.
    amounts : as in ``pipe.move``; 0 is added, because everything is told against it.
    outside : (i, j, k) bool, where nothing should change; None is the whole brain.
    steps : of the walks, both ways.
    scoring : its ``regional`` measures, its kernel is of the SSIM outside (3 by default).

    Returns
    -------
    "outside MSE" and "outside SSIM" are against the unedited reconstruction. "back MSE": the
    edited picture encoded anew, moved back by the amount and decoded, against the unedited
    reconstruction; at 0 it is what encoding twice costs.

    Raises
    ------
    UsageError : no amount besides 0, or masks and volumes of different grids.
    DataError : NaN in a scan.
    """
    checked(volumes, scans)
    scoring = scoring or VolumeScoring()
    wanted = sorted({0.0, *(float(amount) for amount in amounts)})
    if len(wanted) < 2 or not np.isfinite(wanted).all():
        raise UsageError(f"the amounts are {tuple(amounts)}; give finite ones besides 0")
    if outside is not None and outside.shape != volumes.shape[2:]:
        raise UsageError(f"outside has shape {outside.shape}; the grid is {volumes.shape[2:]}")
    latents, codes = pipe.latents(volumes), pipe.codes(volumes)
    noise = pipe.noise(latents, codes, steps=steps)
    known = pipe.directions[direction] if isinstance(direction, str) and hasattr(
        pipe, "directions") and direction in pipe.directions else direction  # fmt: skip
    unedited = pipe.images(pipe.decode(codes, noise, steps=steps))
    masks = unedited[:, 0] > BRAIN
    if outside is not None:
        masks = masks & outside[None]
    parts = []
    for amount in wanted:
        moved = pipe.move(codes, direction, amount)
        edited = pipe.images(pipe.decode(moved, noise, steps=steps))
        part = scans[["subject", "scan"]].reset_index(drop=True).assign(amount=amount)
        part = pd.concat([part, scoring.regions(edited)], axis=1)
        again = pipe.codes(edited)
        if hasattr(known, "score"):
            part[CODE_SCORE] = np.asarray(known.score(moved), float).ravel()
            part[PICTURE_SCORE] = np.asarray(known.score(again), float).ravel()
        part[OUTSIDE_MSE] = [
            float(((edited[n, 0] - unedited[n, 0])[masks[n]].astype(float) ** 2).mean())
            for n in range(len(edited))
        ]
        part[OUTSIDE_SSIM] = ssim(
            edited, unedited, kernel=scoring.kernel, sigma=scoring.sigma, masks=masks
        )
        renoised = pipe.noise(pipe.latents(edited), again, steps=steps)
        back = pipe.images(pipe.decode(pipe.move(again, direction, -amount), renoised, steps=steps))
        part[BACK] = mse(back, unedited)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    directions = {OUTSIDE_MSE: False, OUTSIDE_SSIM: True, BACK: False}
    names = [n for n in table if n not in ("subject", "scan", "amount")]
    where = "inside the given mask" if outside is not None else "of the whole brain"
    return ManipulationTable(
        table,
        ("amount",),
        {str(name): directions.get(str(name)) for name in names},
        (f"outside scores are {where}; an amount of 1 is {_unit(pipe, direction)}",),
    )


def _unit(pipe: Any, direction: Any) -> str:
    told = getattr(pipe, "unit_of_moves", None)
    return told(direction) if told else "that of the pipe's move"


def _trend(amounts: pd.Series, values: pd.Series) -> dict[str, float | bool]:
    from scipy.stats import spearmanr

    x, y = amounts.to_numpy(float), values.to_numpy(float)
    order = x.argsort()
    x, y = x[order], y[order]
    steps = np.diff(y)
    moves = bool(np.ptp(y) > 0)
    return {
        "slope": float(np.polyfit(x, y, 1)[0]),
        "spearman": float(spearmanr(x, y).statistic) if moves else 0.0,
        "monotone": bool((steps > 0).all() or (steps < 0).all()),
        "at zero": float(y[np.flatnonzero(x == 0)[0]]),
    }
