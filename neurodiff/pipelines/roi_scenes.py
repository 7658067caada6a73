"""The scene that an area alone calls for: its decoded features, and pictures made of them.

A mask over the voxels (1 inside, 0 elsewhere) times the weights of the three decoders gives a
direction in each space of features and no length; `neurodiff.bridges.roi_patterns` has the
formulas. Text and vision tokens and the picture of the latents then go through the generator as
those of a trial do (Ozcelik & VanRullen 2023).

How long a pattern is made decides how much of the mean training scene is left in it. Published are
9 (text), 15 (vision), 50 and 80 (latents), numbers that belong to 77 x 768, 257 x 768 and 91,168
targets: tokens of about norm 1, so 9 and 15 are near sqrt(77) and sqrt(257), the length of a whole
item. At any other size they would let the pattern drown everything, or vanish; `Gains.of` then
takes the root mean square length of a training item in each head, and 50/80 of it for the latents'
first scaling.

By default the latents are standardised by training statistics, so that a scene depends on its own
area alone. ``across_rows=True`` is the published scaling across the areas of the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from neurodiff.bridges.roi_patterns import (
    LATENT_GAIN,
    LATENT_LENGTH,
    TEXT_GAIN,
    VISION_GAIN,
    roi_latents,
    roi_rows,
    roi_tokens,
)
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.pipelines.brain_diffuser import BrainDiffuser, Features
from neurodiff.pipelines.brain_diffuser_settings import HEADS
from neurodiff.pipelines.brain_diffuser_subjects import SharedInput
from neurodiff.pipelines.pictures import Picture

if TYPE_CHECKING:
    from neurodiff.bridges.factored_ridge import FactoredRidge

PUBLISHED_SHAPES = {"vdvae": (91168,), "text": (77, 768), "vision": (257, 768)}


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Lengths of patterns: ``text`` and ``vision`` of the tokens', ``latent`` of the latents'
    before they are standardised, ``length`` of the latents in the end."""

    text: float = TEXT_GAIN
    vision: float = VISION_GAIN
    latent: float = LATENT_GAIN
    length: float = LATENT_LENGTH

    @classmethod
    def of(cls, pipe: BrainDiffuser) -> Gains:
        """The published ones at the published size, and those of the training items elsewhere.

        Raises
        ------
        UsageError : heads without the statistics of training (standardise="none").
        """
        shapes = {head: tuple(pipe.heads[head].targets_.item_shape) for head in HEADS}
        if shapes == PUBLISHED_SHAPES:
            return cls()
        lengths = {head: item_length(pipe.heads[head], head) for head in HEADS}
        return cls(
            text=lengths["text"],
            vision=lengths["vision"],
            latent=lengths["vdvae"] * LATENT_GAIN / LATENT_LENGTH,
            length=lengths["vdvae"],
        )


def item_length(bridge: FactoredRidge, head: str) -> float:
    """Root mean square length of a training item of a head, from means and spreads alone."""
    known = bridge.statistics_
    if known.std is None:
        raise UsageError(
            f"the {head} head was fitted with standardise={bridge.standardise!r} and has not kept "
            "how long its training items are; name the gains, or fit it with standardise='loo'"
        )
    return float(np.sqrt(np.square(known.mean).sum() + np.square(known.std).sum()))


def roi_features(
    pipe: BrainDiffuser,
    rois: Mapping[str, Bool[np.ndarray, " voxels"]],
    *,
    across_rows: bool = False,
    gains: Gains | None = None,
    subject: str | None = None,
) -> Features:
    """Features that each area speaks for, one row an area in the order given.

    Parameters
    ----------
    rois : masks over the voxels of the fit by name, such as ``recording.rois``.
    across_rows : as published: latents standardised across the areas, so that each depends on all.
    gains : lengths of the patterns; None for `Gains.of`.
    subject : of a model of several people, whose input layer the areas are read through.

    Raises
    ------
    UsageError : not fitted, no area, no such subject, or heads without the statistics that are
        needed.
    DataError : a mask of another width or without a voxel; one area alone under ``across_rows``.
    """
    if not pipe.heads:
        raise UsageError("this pipeline is not fitted; call fit, or load one that was saved")
    gains = gains or Gains.of(pipe)
    rows = _rows(pipe, dict(rois), subject)
    found = {
        "text": roi_tokens(pipe.heads["text"], rows, gains.text),
        "vision": roi_tokens(pipe.heads["vision"], rows, gains.vision),
        "vdvae": roi_latents(
            pipe.heads["vdvae"],
            rows,
            across_rows=across_rows,
            gain=gains.latent,
            length=gains.length,
        ),
    }
    return Features(**{head: values.astype(np.float32) for head, values in found.items()})


def roi_scenes(
    pipe: BrainDiffuser,
    rois: Mapping[str, Bool[np.ndarray, " voxels"]],
    *,
    samples: int = 1,
    seed: int = 0,
    across_rows: bool = False,
    gains: Gains | None = None,
    subject: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, list[Picture]]:
    """Pictures of what each area calls for, ``samples`` of each, by the area's name.

    An area's noise depends on its name, the sample and the seed. The pictures' ``stimulus`` is
    "roi NAME", their subject that of the decoders.

    Raises
    ------
    UsageError, DataError : as `roi_features`, and fewer samples than one.
    """
    if samples < 1:
        raise UsageError(f"{samples} samples of each area: nothing to make; give 1 or more")
    features = roi_features(pipe, rois, across_rows=across_rows, gains=gains, subject=subject)
    who = subject or ("" if pipe.input is None else pipe.input.subject)
    keys = [(who, f"roi {name}", 1) for name in rois]
    found: dict[str, list[Picture]] = {name: [] for name in rois}
    for sample in range(samples):
        made = pipe.generate(features, keys, sample=sample, seed=seed, progress=progress)
        for name, picture in zip(rois, made, strict=True):
            found[name].append(picture)
    return found


def _rows(pipe: BrainDiffuser, rois: dict[str, np.ndarray], subject: str | None) -> np.ndarray:
    """Areas as rows over what the heads read: voxels, or the shared space of several people."""
    if not isinstance(pipe.input, SharedInput):
        return roi_rows(rois, pipe.heads["text"].factor_.features)
    layers = pipe.input.layers.layers
    if subject is None or subject not in layers:
        raise UsageError(
            f"this model has input layers of {', '.join(layers)}, and an area is one person's; "
            f"name one of them (subject={subject!r} was given)"
        )
    weights = layers[subject].weights
    return roi_rows(rois, weights.shape[1]) @ weights.T.astype(np.float64)
