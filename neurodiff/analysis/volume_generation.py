"""Drawn scans as a set: how far from real ones, beside how far real ones are from each other.

Distances of sets depend on n, so that every set here has the size of the same half of the people:
the other half is the reference.

    real (floor)     the held-out half itself: the distance that a perfect model has at this n
    autoencoded      what the autoencoder alone costs
    semantic         codes of the held-out people with drawn noise
    drawn codes      codes from a Gaussian fitted to those of the reference, with drawn noise

The numbers are no published FID: the features are those that the caller states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.volume_features import VolumeFeatures
from neurodiff.analysis.volume_tables import checked, names_of
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.volume_sets import frechet_with_note, mmd

FLOOR = "real (floor)"


def generation_table(
    pipe: Any,
    volumes: np.ndarray,
    scans: pd.DataFrame,
    features: Mapping[str, VolumeFeatures],
    *,
    steps: int | None = None,
    seed: int = 0,
    permutations: int = 500,
) -> pd.DataFrame:
    """Fréchet distance and MMD of sets of volumes to real ones, by each feature.

    Parameters
    ----------
    pipe : an `LDAE`, or anything with its codes, draw, decode, images and reconstruct.
    volumes, scans : real scans and their table, at least 4 people; split in halves by people.
    features : name -> function of volumes (n, 1, i, j, k) to (n, d), see `volume_features`.
    seed : of the halves, the drawn noise and codes, and the permutations.
    permutations : of MMD's test.

    Returns
    -------
    Columns features, set, n, reference_n, frechet, frechet_note, mmd, mmd_p, bandwidth. All MMD of
    one feature share the kernel's bandwidth, the median distance among the real scans. ``mmd_p``
    takes scans as exchangeable; several scans of a person make it too small.

    Raises
    ------
    UsageError : fewer than 4 people, no feature, or features that are not (n, d).
    """
    checked(volumes, scans)
    if not features:
        raise UsageError("there is no feature; a distance of sets needs one with a name")
    here, there = _halves(scans, seed)
    reference, held = volumes[there], volumes[here]
    names = [name for name, chosen in zip(names_of(scans), here, strict=True) if chosen]
    noise = pipe.draw(names, seed=seed, sample=1)  # sample 0 is that of the reconstructions
    codes = _drawn_codes(pipe.codes(reference), names, seed)
    sets = {
        FLOOR: held,
        "autoencoded": pipe.reconstruct(held, "autoencoder", scans=names),
        "semantic": pipe.images(pipe.decode(pipe.codes(held), noise, steps=steps)),
        "drawn codes": pipe.images(pipe.decode(codes, noise, steps=steps)),
    }
    rows = []
    for name, function in features.items():
        real = _features(function, reference, name)
        width = _bandwidth(np.concatenate([real, _features(function, held, name)]))
        for which, found in sets.items():
            values = _features(function, found, name)
            distance, note = frechet_with_note(values, real)
            gap = mmd(values, real, bandwidth=width, permutations=permutations, seed=seed)
            rows.append({"features": name, "set": which, "n": len(values),
                         "reference_n": len(real), "frechet": distance, "frechet_note": note,
                         "mmd": gap.value, "mmd_p": gap.p, "bandwidth": width})  # fmt: skip
    return pd.DataFrame(rows)


def _halves(scans: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one half of the people and of the other."""
    people = sorted(scans["subject"].astype(str).unique())
    if len(people) < 4:
        raise UsageError(f"there are {len(people)} people; two halves to compare need at least 4")
    rng = numpy_generator(item_seed(seed, subject="", stimulus="", stage="generation halves"))
    half = set(rng.permutation(people)[: len(people) // 2].tolist())
    here = scans["subject"].astype(str).isin(half).to_numpy()
    return here, ~here


def _drawn_codes(codes: np.ndarray, names: list[tuple[str, str]], seed: int) -> np.ndarray:
    """Codes with the mean and covariance of others: Gaussian weights of centred codes.

    ``mean + sum_i g_i (code_i - mean) / sqrt(n - 1)`` has exactly their covariance, of any rank.
    """
    mean = codes.mean(axis=0, dtype=np.float64)
    centred = (codes - mean) / np.sqrt(len(codes) - 1)
    drawn = []
    for subject, scan in names:
        one = item_seed(seed, subject=subject, stimulus=scan, stage="drawn codes")
        drawn.append(mean + numpy_generator(one).standard_normal(len(codes)) @ centred)
    return np.array(drawn, np.float32)


def _features(function: VolumeFeatures, volumes: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(function(volumes), np.float64)
    if values.ndim != 2 or len(values) != len(volumes):
        raise UsageError(
            f"the features {name!r} have shape {values.shape} for {len(volumes)} volumes; expected "
            "(n, d)"
        )
    return values


def _bandwidth(values: np.ndarray) -> float:
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(values)))
