"""New betas through a fitted Brain-Diffuser: one file in, pictures out, no data set and no run.

What is read, for a model of N voxels:

    trial.npy     (N,): one trial
    trials.npy    (trials, N): several
    list.csv      columns path and stimulus, one file a row as `Recording.from_csv` reads it:
                  .npy (N,), or NIfTI with a column mask

Betas are in the units of the training betas. A bare array says nothing of its space: its voxels
are taken as the model's, in their order. NIfTI files name their voxels by their mask, which has to
be that of the training recording.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.new_files import (
    TABLE,
    ModelSpace,
    file_names,
    is_single,
    kind_of_file,
    numbers_of,
    recording_of,
)
from neurodiff.core.atomic import atomic_write
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording, VectorSpace
from neurodiff.core.safe_io import write_csv
from neurodiff.pipelines.pictures import png_bytes

if TYPE_CHECKING:
    from neurodiff.pipelines.brain_diffuser import BetaInput, BrainDiffuser


def reconstruct_betas(
    source: Path, out: Path, pipe: BrainDiffuser, *, progress: Progress = SILENT
) -> str:
    """Decode every trial of ``source`` and write the pictures.

    Parameters
    ----------
    source : see the module. Trials of one stimulus in a table are averaged.
    out : a folder (one ``<name>.png`` a trial and ``reconstructions.csv``), or, for one trial, a
        file that ends in ``.png``.

    Raises
    ------
    MissingDataError, DataError : the file is missing or broken, or its mask is another.
    UsageError : other voxels than the model's, several trials for one ``.png``, a kind of file
        that is not read.
    """
    from neurodiff.pipelines.brain_diffuser import BetaInput

    if pipe.input is None:
        raise UsageError("this model is not fitted to a brain; fit it to a recording first")
    if not isinstance(pipe.input, BetaInput):
        raise UsageError(
            f"this model is of several people ({pipe.input.subject}), and a file of betas does not "
            "say whose they are; give BrainDiffuser.predict a recording that names its subject"
        )
    recording, note = read_betas(source, pipe.input)
    if note:
        progress.say(note)
    recording = recording.mean_repeats()
    single = is_single(out, ".png", source, recording.n_trials, what="picture")
    pictures = pipe.predict(recording, average=False, progress=progress)
    names = file_names([one.stimulus for one in pictures])
    rows: list[dict[str, Any]] = []
    for name, one in zip(names, pictures, strict=True):
        path = out if single else out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(png_bytes(one.image))
        rows.append(
            {
                "subject": one.subject,
                "stimulus": one.stimulus,
                "repeats": one.repeat,
                "picture": path.name,
            }
        )
    if single:
        return str(out)
    write_csv(out / TABLE, pd.DataFrame(rows))
    return f"{len(rows)} trials decoded: {out / TABLE}"


def read_betas(source: Path, betas: BetaInput) -> tuple[Recording, str]:
    """The recording in a file, and a sentence on how it was taken ("" where nothing is to say)."""
    kind = kind_of_file(source)
    name = f"the mask of subject {betas.subject}"
    space = ModelSpace(name, len(betas.mean), betas.space)
    note = f"voxels are taken as the {space.n_features} of {space.name}, in their order"
    if kind.endswith(".csv"):
        recording = Recording.from_csv(source)
        if not isinstance(recording.space, VectorSpace):
            return recording, ""  # images with a mask know their voxels
        _require_voxels(source, recording.n_features, space)
        return replace(recording, space=space), note
    if not kind.endswith(".npy"):
        raise UsageError(
            f"{source} is no file of betas; give .npy (voxels,) or (trials, voxels), or a .csv "
            "with the columns path and stimulus"
        )
    values = numbers_of(source)
    if values.ndim > 2:
        raise UsageError(
            f"{source} has shape {values.shape}; Brain-Diffuser reads one number a trial and "
            "voxel: give (voxels,) or (trials, voxels), such as the betas of a GLM"
        )
    _require_voxels(source, values.shape[-1], space)
    values = np.atleast_2d(values).astype(np.float32, copy=False)
    return recording_of(source, values, space), note


def _require_voxels(source: Path, found: int, space: ModelSpace) -> None:
    if found != space.n_features:
        raise UsageError(
            f"{source} has {found} voxels; this model was fitted on {space.n_features} in "
            f"{space.name}. Use the same mask as in training, or fit a model on these betas"
        )
