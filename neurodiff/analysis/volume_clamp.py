"""What the published clamp does: the same weights with and without it.

The released code cuts the mean of x_0 to [-1, 1] at every step, in latents of unit SD, of which a
third lies outside. Encoding then pushes into the noise what the clamp cuts off, so that the round
trip still closes while the noise is no longer a unit Gaussian; decoding from drawn noise cannot
reach beyond the clamp. The first flatters "encoded", the second caps "semantic".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.volume_editing import ManipulationTable, manipulation_table
from neurodiff.analysis.volume_tables import VolumeScoring, VolumeTable, checked, names_of
from neurodiff.core.errors import UsageError
from neurodiff.metrics.volumes import difference_agreement

PLAIN, CLAMPED = "no clamp", "clamp"
TRIP = "round trip latent MSE"


def clamp_table(
    plain: Any,
    clamped: Any,
    volumes: np.ndarray,
    scans: pd.DataFrame,
    *,
    steps: Sequence[int | None] = (None,),
    seed: int = 0,
    scoring: VolumeScoring | None = None,
) -> VolumeTable:
    """Noise, round trip and reconstructions of two pipes that share their weights.

    Parameters
    ----------
    plain, clamped : pipes of protocol "neurodiff-1" and "ldae-2025".
    volumes, scans, steps, scoring : as in `reconstruction_table`.
    seed : of the drawn noise, the same for both.

    Returns
    -------
    One row a scan, model and number of steps: "noise std" and "noise max" (of absolute values) of
    the encoded noise, unit Gaussian where all is well; "round trip latent MSE" (encoded and decoded
    again, against the latent); "trip spread" and "semantic spread", the SD of that latent and of
    the one from the code alone over the SD of the scan's; "semantic slope", the contrast of the
    code's picture against the autoencoder's (1 is right); and each metric as "encoded <metric>"
    and "semantic <metric>" against the autoencoder's picture.

    Raises
    ------
    UsageError : pipes of different weights; volumes that do not fit.
    """
    checked(volumes, scans)
    _same_weights(plain, clamped)
    scoring = scoring or VolumeScoring()
    metrics = scoring.metrics(volumes.shape[2:])
    names, parts = names_of(scans), []
    latents, codes = plain.latents(volumes), plain.codes(volumes)
    ceiling, drawn = plain.images(latents), plain.draw(names, seed=seed)
    scores: dict[str, bool | None] = {"noise std": None, "noise max": None, TRIP: False,
              "trip spread": None, "semantic spread": None, "semantic slope": None}  # fmt: skip
    for count in dict.fromkeys(steps):
        for model, pipe in ((PLAIN, plain), (CLAMPED, clamped)):
            noise = pipe.noise(latents, codes, steps=count)
            back = pipe.decode(codes, noise, steps=count)
            semantic = pipe.decode(codes, drawn, steps=count)
            pictures = {"encoded": pipe.images(back), "semantic": pipe.images(semantic)}
            part = scans[["subject", "scan"]].reset_index(drop=True)
            part = part.assign(
                model=model,
                steps="default" if count is None else str(count),
                **{
                    "noise std": _each(noise, np.std),
                    "noise max": _each(np.abs(noise), np.max),
                    TRIP: _each((back - latents).astype(np.float64) ** 2, np.mean),
                    "trip spread": _each(back, np.std) / _each(latents, np.std),
                    "semantic spread": _each(semantic, np.std) / _each(latents, np.std),
                    "semantic slope": difference_agreement(
                        pictures["semantic"], ceiling, np.zeros_like(ceiling)
                    )[1],
                },
            )
            for how, found in pictures.items():
                for name, metric in metrics.items():
                    part[f"{how} {name}"] = metric(found, ceiling)
                    scores[f"{how} {name}"] = metric.higher_is_better
            parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    return VolumeTable(table, ("model", "steps"), scores, ("both models share their weights",))


def clamped_edits(
    plain: Any,
    clamped: Any,
    volumes: np.ndarray,
    scans: pd.DataFrame,
    direction: Any,
    **options: Any,
) -> ManipulationTable:
    """`manipulation_table` of both pipes, with the column ``model``; ``options`` are its own."""
    _same_weights(plain, clamped)
    found = [
        (name, manipulation_table(pipe, volumes, scans, direction, **options))
        for name, pipe in ((PLAIN, plain), (CLAMPED, clamped))
    ]
    table = pd.concat([t.table.assign(model=name) for name, t in found], ignore_index=True)
    return ManipulationTable(table, ("model", "amount"), found[0][1].scores, found[0][1].notes)


def _same_weights(plain: Any, clamped: Any) -> None:
    hashes = [getattr(pipe, "identity", None) for pipe in (plain, clamped)]
    if hashes[0] != hashes[1]:
        raise UsageError(
            "the two pipes have different weights; the clamp is told apart only on the same ones"
        )


def _each(values: np.ndarray, statistic: Any) -> np.ndarray:
    return np.array([float(statistic(value)) for value in values])
