"""New recordings through a fitted model: one file in, meshes out, no data set and no run.

What is read, for a model of N features:

    trial.npy     (frames, N): one trial; (N,): one trial of one frame
    trials.npy    (trials, frames, N): several trials
    map.npy       (frames, 256, 256): one trial as a flat map of visual cortex (fMRI-Shape's
                  layout), for a model of its 65,536 pixels or of the 8,921 vertices;
                  (trials, frames, 256, 256): several
    list.csv      columns path and stimulus, one file a row as `Recording.from_csv` reads it:
                  .npy (N,) or (frames, N), or NIfTI with a column mask

A bare array says nothing of its space: its features are taken as the model's, in their order. NIfTI
files name their voxels by their mask, which has to be that of the training recording.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.decoding import brain_of, decoded, write_mesh
from neurodiff.analysis.new_files import (
    TABLE,
    ModelSpace,
    file_names,
    is_single,
    kind_of_file,
    numbers_of,
    recording_of,
)
from neurodiff.core.errors import NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording, VectorSpace
from neurodiff.core.safe_io import atomic_path, write_csv
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex

if TYPE_CHECKING:
    from neurodiff.pipelines.brain_input import BrainInput
    from neurodiff.pipelines.mind3d import MinD3D

SIDE = 256


def reconstruct_trials(
    source: Path, out: Path, pipe: MinD3D, *, progress: Progress = SILENT
) -> str:
    """Decode every trial of ``source`` and write the meshes.

    Parameters
    ----------
    source : see the module.
    out : a folder (one ``<name>.glb`` a trial and ``reconstructions.csv``), or, for one trial, a
        file that ends in ``.glb``.

    Raises
    ------
    MissingDataError, DataError : the file is missing or broken.
    UsageError : other features than the model's, several trials for one ``.glb``, a kind of file
        that is not read.
    NeurodiffError : ``out`` is a ``.glb`` and the decoder says that nothing is there.
    """
    recording, note = read_trials(source, brain_of(pipe))
    recording = brain_of(pipe).accept(recording)
    if note:
        progress.say(note)
    single = is_single(out, ".glb", source, recording.n_trials, what="mesh")
    names = file_names(list(recording.trials["stimulus"]))
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    results = decoded(pipe, recording)
    for name, result in progress.over(
        zip(names, results, strict=True), "decoding", recording.n_trials
    ):
        empty = len(result.mesh.faces) == 0
        path = out if single else out / f"{name}.glb"
        if empty and single:
            raise NeurodiffError(
                f"the decoder says that nothing is there for {source}: the mesh is empty, and "
                f"{out} was not written"
            )
        if empty:
            path.unlink(missing_ok=True)
        else:
            with atomic_path(path) as temporary:
                write_mesh(result.mesh, temporary)
        rows.append(
            {
                "subject": result.subject,
                "stimulus": result.stimulus,
                "repeat": result.repeat,
                "mesh": "" if empty else path.name,
                "faces": len(result.mesh.faces),
            }
        )
    spent = time.monotonic() - started
    if single:
        return str(out)
    write_csv(out / TABLE, pd.DataFrame(rows))
    empty_ones = sum(not row["mesh"] for row in rows)
    end = f", {empty_ones} of them empty" if empty_ones else ""
    return f"{len(rows)} trials decoded in {spent:.1f} s{end}: {out / TABLE}"


def read_trials(source: Path, brain: BrainInput) -> tuple[Recording, str]:
    """The recording in a file, and a sentence on how it was taken ("" where nothing is to say)."""
    kind = kind_of_file(source)
    if kind.endswith(".csv"):
        return _from_csv(source, brain)
    if kind.endswith(".npy"):
        return _from_npy(source, brain)
    raise UsageError(
        f"{source} is no file of recordings; give .npy (frames, features), (trials, frames, "
        "features) or (frames, 256, 256), or a .csv with the columns path and stimulus"
    )


def _from_csv(source: Path, brain: BrainInput) -> tuple[Recording, str]:
    recording = Recording.from_csv(source)
    if not isinstance(recording.space, VectorSpace):
        return recording, ""  # images with a mask know their voxels
    _require_features(source, recording.n_features, brain)
    note = f"features are taken as the {brain.n_features} of {brain.space_name!r}, in their order"
    return replace(recording, space=_space_of(brain)), note


def _from_npy(source: Path, brain: BrainInput) -> tuple[Recording, str]:
    values = numbers_of(source).astype(np.float32, copy=False)
    if values.ndim >= 3 and values.shape[-2:] == (SIDE, SIDE):
        return _flat_maps(source, values, brain)
    if values.ndim > 3:
        raise UsageError(
            f"{source} has shape {values.shape}; expected (frames, features), (trials, frames, "
            "features), or flat maps (frames, 256, 256)"
        )
    _require_features(source, values.shape[-1], brain)
    values = values.reshape((1,) * (3 - values.ndim) + values.shape)
    note = f"features are taken as the {brain.n_features} of {brain.space_name!r}, in their order"
    return recording_of(source, values, _space_of(brain)), note


def _flat_maps(source: Path, maps: np.ndarray, brain: BrainInput) -> tuple[Recording, str]:
    """Pixels; for a model of vertices each trial is standardised, as units will differ."""
    maps = maps if maps.ndim == 4 else maps[None]
    space, note = FlatImageSpace(), ""
    if brain.space_fingerprint == FlatMapSpace().fingerprint():
        mask = load_visual_cortex().mask
        inside = maps[:, :, mask].astype(np.float64)
        mean, spread = inside.mean((1, 2), keepdims=True), inside.std((1, 2), keepdims=True)
        maps = np.zeros_like(maps)
        maps[:, :, mask] = (inside - mean) / np.where(spread > 1e-6, spread, 1.0)
        note = (
            "flat maps are read at the model's vertices; each trial is brought to mean 0 and "
            "standard deviation 1 over visual cortex, as its units may be others than in training"
        )
    return recording_of(source, maps.reshape(*maps.shape[:2], SIDE * SIDE), space), note


def _space_of(brain: BrainInput) -> ModelSpace:
    return ModelSpace(brain.space_name, brain.n_features, brain.space_fingerprint)


def _require_features(source: Path, found: int, brain: BrainInput) -> None:
    if found != brain.n_features:
        raise UsageError(
            f"{source} has {found} features; this model was fitted on {brain.n_features} in "
            f"{brain.space_name!r}. Use the same mask or vertices as in training, or fit a model "
            "on these recordings"
        )
