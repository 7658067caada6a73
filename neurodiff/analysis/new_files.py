"""One file of recordings in, one file a trial out: what objects and pictures share.

`new_trials` and `image_trials` say what of it each model reads and writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording, VectorSpace
from neurodiff.core.safe_io import read_npy

TABLE = "reconstructions.csv"


@dataclass(frozen=True)
class ModelSpace:
    """The space of a model's training recording, of which only the identity is known."""

    name: str
    n_features: int
    identity: str

    def fingerprint(self) -> str:
        """That of the training recording's space."""
        return self.identity

    def to_image(self, values: Any) -> np.ndarray:
        """As a vector: where the features lie is not known."""
        return VectorSpace(self.n_features).to_image(values)


def kind_of_file(source: Path) -> str:
    """The file's name in lower case, by whose end its kind is known.

    Raises
    ------
    MissingDataError : it is not there.
    UsageError : an image, which alone has no features.
    """
    kind = source.name.lower()
    if not source.exists():
        raise MissingDataError(f"{source} does not exist; check the path")
    if kind.endswith((".nii", ".nii.gz")):
        raise UsageError(
            f"{source} alone does not say which voxels are features; list it in a CSV with the "
            "columns path, stimulus and mask, and give that"
        )
    return kind


def numbers_of(source: Path) -> np.ndarray:
    """The array of a ``.npy`` file of one trial or more; DataError where it holds none."""
    values = read_npy(source, dtype=(np.floating, np.integer))
    if values.size == 0 or values.ndim == 0:
        raise DataError(f"{source} has shape {values.shape}; expected at least one trial")
    return values


def recording_of(source: Path, values: np.ndarray, space: Any) -> Recording:
    """Trials (n, *frames, features), named after the file, all of them to be decoded."""
    n, stem = len(values), source.stem
    names = [stem] if n == 1 else [f"{stem}-{k:03d}" for k in range(n)]
    trials = pd.DataFrame({"stimulus": names, "split": "test"})
    return Recording.from_arrays(values, trials, space=space, name=stem)


def is_single(out: Path, suffix: str, source: Path, n_trials: int, *, what: str) -> bool:
    """Whether ``out`` is the file of a single result, and not a folder for one a trial.

    Raises
    ------
    UsageError : it is another file, or there are several trials for it.
    """
    single = out.suffix.lower() == suffix
    if not single and (out.suffix or out.is_file()):
        raise UsageError(f"{out} must be a folder, or a file that ends in {suffix}")
    if single and n_trials != 1:
        raise UsageError(f"{source} holds {n_trials} trials and {out} is one {what}; name a folder")
    return single


def file_names(stimuli: Sequence[str]) -> list[str]:
    """Names that are safe for files and differ, in the order given."""
    seen: dict[str, int] = {}
    names = []
    for stimulus in stimuli:
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "_", stimulus).strip("._") or "trial"
        count = seen[slug] = seen.get(slug, 0) + 1
        names.append(slug if count == 1 else f"{slug}-{count}")
    return names
