"""What attribution must say of a simulated subject: in closed form, by an oracle, and in words.

For a linear decoder x -> x W the score of infinitely many new trials needs no trial. With A the
read-out (features x vertices), C the noise covariance and M what a replacement leaves,

    cov(prediction_j, feature_j) = (A M W)_jj
    var(prediction_j)            = |(A M W)_j|^2 + (W' M C M W)_jj + what the replaced region adds

so the correlation with the truth, and what leaving a region out takes from it, are known exactly;
so is the correlation of a vertex with what a linear model of it predicts from the features.
Intervals are judged by how often they hold these numbers.

The oracle ranks areas by the evidence of the test trials for "this area carries its block with this
read-out" against "it carries nothing", the logarithm of the likelihood ratio, which no other
ranking can beat (Neyman & Pearson 1933). An empty area is asked with a read-out that it might have
had. The oracle needs no training trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed
from neurodiff.datasets.simulated.attribution_subjects import AttributionSubject, tuning_maps
from neurodiff.datasets.simulated.subject import DEFAULT_CEILING

REPLACEMENTS = ("mean", "permuted", "noise")

SENTENCES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "own": {
            "leave_one_out": (
                "finds the informative areas: what an area carries no other area can give, so its "
                "loss is felt"
            ),
            "roi_only": (
                "finds them too, each at the score of its own block alone, which is a small part "
                "of what all areas give together"
            ),
            "shapley": (
                "finds them: where nothing is shared, an area adds about the same to any set of "
                "others"
            ),
            "encoding": (
                "finds them: the responses of these areas follow the features, others do not"
            ),
        },
        "shared": {
            "leave_one_out": (
                "says little of areas that share: what one of them loses the others still give. A "
                "value near 0 means that an area is not needed, not that it carries nothing; only "
                "the areas with a block of their own stand out"
            ),
            "roi_only": (
                "says much of every informative area: each one alone gives the whole block that "
                "it shares. It cannot say that others give it as well"
            ),
            "shapley": (
                "divides what is shared between those that share it: each of the areas gets a part "
                "of what the block is worth, less the more of them there are"
            ),
            "encoding": (
                "says much of every informative area, whether or not another carries the same: it "
                "asks what drives an area, not whether the decoder needs it"
            ),
        },
        "neighbour": {
            "leave_one_out": (
                "should leave the empty areas at their null. Where noise is smooth, a decoder may "
                "use an empty neighbour to subtract the noise of a loaded area; then its loss is "
                "real, though the area carries nothing of the stimulus"
            ),
            "roi_only": "leaves the empty areas at chance: noise alone tells no stimulus",
            "shapley": "as leave-one-out, averaged over all sets of other areas",
            "encoding": (
                "leaves the empty areas at their null: features do not drive them, however smooth "
                "the noise"
            ),
        },
        "null": {
            "leave_one_out": "p below 0.05 in 5 % of the areas and subjects, no more",
            "roi_only": "p below 0.05 in 5 % of the areas and subjects, no more",
            "shapley": "p below 0.05 in 5 % of the areas and subjects, no more",
            "encoding": "p below 0.05 in 5 % of the areas and subjects, no more",
        },
    }
)
"""design -> method -> what it says of a subject of this design, and why"""


def expected_answers(subject: AttributionSubject) -> pd.DataFrame:
    """What each method is expected to say of each area, one row an area.

    Returns
    -------
    area, carries, with; then a column a method: "high", "low" (present, but a part of what the area
    carries) or "null".
    """
    answers = {
        "unique": ("high", "high", "high", "high"),
        "shared": ("low", "high", "low", "high"),
        "none": ("null", "null", "null", "null"),
    }
    methods = ("leave_one_out", "roi_only", "shapley", "encoding")
    table = subject.truth[["area", "carries", "with"]].copy()
    for k, method in enumerate(methods):
        table[method] = [answers[kind][k] for kind in table["carries"]]
    return table


def population_correlations(
    subject: AttributionSubject,
    weights: Float[np.ndarray, "vertices d"],
    *,
    without: Bool[np.ndarray, " vertices"] | None = None,
    replacement: str = "mean",
) -> Float[np.ndarray, " d"]:
    """Correlation of each decoded feature with the truth over infinitely many new trials.

    Parameters
    ----------
    weights : of a linear decoder of single-trial response amplitudes; an intercept changes nothing.
    without : the region that is replaced; None for no region.
    replacement : "mean", a constant; "permuted", the region's own values of other trials;
        "noise", noise of the region's variance and smoothness that is independent of the rest.

    Returns
    -------
    0 for a feature whose prediction does not vary.

    Raises
    ------
    UsageError : another replacement, or weights of another size.
    """
    if replacement not in REPLACEMENTS or weights.shape != subject.readout.shape[::-1]:
        raise UsageError(
            f"replacement is {replacement!r} and weights are {weights.shape}; expected one of "
            f"{', '.join(REPLACEMENTS)} and {subject.readout.shape[::-1]}"
        )
    removed = np.zeros(len(weights), bool) if without is None else without
    kept = np.where(removed[:, None], 0.0, weights.astype(float))
    signal = subject.readout.astype(float) @ kept
    variance = np.square(signal).sum(axis=0) + subject.beta_noise * subject.noise.variance_of(kept)
    if removed.any() and replacement != "mean":
        lost = np.where(removed[:, None], weights.astype(float), 0.0)
        variance += np.square(subject.readout.astype(float) @ lost).sum(axis=0)
        variance += subject.beta_noise * subject.noise.variance_of(lost)
    varies = variance > 0
    return np.where(varies, np.diagonal(signal) / np.sqrt(np.where(varies, variance, 1.0)), 0.0)


def population_encoding(
    subject: AttributionSubject, weights: Float[np.ndarray, "d vertices"]
) -> Float[np.ndarray, " vertices"]:
    """Correlation of each vertex's single trials with ``features @ weights``, over infinitely many
    new trials.

    Parameters
    ----------
    weights : of a linear model of the responses; an intercept changes nothing.

    Returns
    -------
    0 for a vertex whose prediction does not vary.

    Raises
    ------
    UsageError : weights of another size.
    """
    if weights.shape != subject.readout.shape:
        raise UsageError(f"weights are {weights.shape}; expected {subject.readout.shape}")
    readout = subject.readout.astype(float)
    total = np.square(readout).sum(axis=0) + subject.beta_noise
    length = np.linalg.norm(weights, axis=0)
    along = (readout * weights).sum(axis=0)
    return np.where(length > 0, along / np.sqrt(total) / np.where(length > 0, length, 1.0), 0.0)


def oracle_evidence(subject: AttributionSubject, recording: Recording) -> pd.Series:
    """Log likelihood ratio of each area: carries its read-out, against carries nothing.

    Parameters
    ----------
    recording : response amplitudes (trials, vertices) of the subject.

    Returns
    -------
    One number an area, in nats. Its mean is half its variance where the area carries something,
    and minus half of it where it does not. Empty areas are asked with a read-out of their own on
    one of the blocks that there are, of the median ceiling of the informative vertices (the default
    one where there are none).
    """
    features = subject.features(list(recording.trials["stimulus"])).astype(float)
    data = recording.array().astype(float)
    block_of = {area: block for block, areas in subject.carriers.items() for area in areas}
    power = np.square(subject.readout.astype(float)).sum(axis=0)
    loaded = power[power > 0]
    default = DEFAULT_CEILING / (1 - DEFAULT_CEILING) * subject.beta_noise
    amplitude = np.sqrt(np.median(loaded) if len(loaded) else default)
    blocks = list(subject.blocks.values())
    evidence = {}
    for k, (area, mask) in enumerate(subject.rois.items()):
        if area in block_of:
            readout = subject.readout[:, mask].astype(float)
        else:
            readout = np.zeros((subject.n_features, int(mask.sum())))
            key = item_seed(subject.seed, subject=subject.name, stimulus=area, stage="might be")
            at = blocks[k % len(blocks)]
            maps = tuning_maps(key, at.stop - at.start)[:, subject.columns[mask]]
            readout[at] = amplitude * maps
        mean = features @ readout
        filtered = np.linalg.solve(subject.beta_noise * subject.noise.covariance(mask), mean.T).T
        evidence[area] = float(np.sum(filtered * (data[:, mask] - mean / 2)))
    return pd.Series(evidence, name="log likelihood ratio")
