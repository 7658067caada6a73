"""What Brain-Diffuser reads: a number a trial and voxel, repeats averaged, z-scored by training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neurodiff.core.errors import DataError
from neurodiff.core.recording import Recording


@dataclass(frozen=True)
class BetaInput:
    """How a recording is read: one number a trial and voxel, z-scored by the training images."""

    mean: Float[np.ndarray, " voxels"]
    std: Float[np.ndarray, " voxels"]
    space: str
    subject: str

    @classmethod
    def fit(cls, recording: Recording) -> BetaInput:
        """From the training images, repeats averaged.

        Raises
        ------
        DataError : frames, NaN, or voxels that never vary (they have no z-score).
        """
        values = betas_of(recording)
        mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
        still = np.flatnonzero(std == 0)
        if len(still):
            raise DataError(
                f"{len(still)} of {len(std)} voxels never vary over the training images (first: "
                f"voxel {still[0]}); leave them out with recording.select_features(...)"
            )
        people = recording.trials["subject"].unique()
        return cls(mean, std, recording.space.fingerprint(), str(people[0]))

    def __call__(self, recording: Recording) -> Float[np.ndarray, "n voxels"]:
        """z-scores, float64.

        Raises
        ------
        DataError : another space or number of voxels, frames, or NaN.
        """
        if recording.n_features != len(self.mean) or recording.space.fingerprint() != self.space:
            raise DataError(
                f"this recording has {recording.n_features} voxels in the space "
                f"{recording.space.name!r}; the decoder was fitted on {len(self.mean)} voxels of "
                f"subject {self.subject}, in another mask or space: give that subject's data, or "
                "fit a decoder for this one"
            )
        return (betas_of(recording) - self.mean) / self.std


def averaged(recording: Recording) -> Recording:
    """Repeats averaged. What is averaged already stays as it is: the number of trials in a mean is
    part of what seeds its noise, and would be lost."""
    twice = recording.trials.duplicated(["subject", "stimulus", "split"]).any()
    return recording.mean_repeats() if twice else recording


def betas_of(recording: Recording) -> Float[np.ndarray, "n voxels"]:
    """A recording's data as float64, if it has one number a trial and voxel.

    Raises
    ------
    DataError : it has frames, or NaN.
    """
    if recording.frames:
        raise DataError(
            f"this recording has {recording.frames[0]} frames a trial; Brain-Diffuser reads one "
            "number a trial and voxel, such as the betas of a GLM"
        )
    values = recording.array().astype(np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        trial, voxel = np.argwhere(wrong)[0]
        raise DataError(
            f"{int(wrong.sum())} values are NaN or infinite (first: trial {trial}, voxel {voxel}); "
            "leave those voxels or trials out"
        )
    return values
