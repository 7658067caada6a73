"""Recording -> what the networks read: standardised betas for ridge, patches for the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex

if TYPE_CHECKING:
    from neurodiff.pipelines.subject_layers import SubjectLayers


@dataclass(frozen=True)
class BrainInput:
    """Fixed on the training recording; refuses recordings of other vertices.

    patch_index : (patches, pixels) vertex shown at each pixel, ``n_features`` where none is. On
        the flat map these are the p x p squares that touch cortex, in row-major order; features
        without a picture are dealt into squares in their own order.
    kept : positions of these patches in the square grid of the encoder.
    layers : of a model of several subjects, whose features are then those of the shared space.
    """

    space_name: str
    space_fingerprint: str
    n_features: int
    patch_size: int
    image_size: int
    mean: Float[np.ndarray, " features"]
    std: Float[np.ndarray, " features"]
    patch_index: Int[np.ndarray, "patches pixels"]
    kept: Int[np.ndarray, " patches"]
    layers: SubjectLayers | None = None

    @classmethod
    def fit(cls, recording: Recording, *, patch_size: int, image_size: int) -> BrainInput:
        """Mean and SD of each vertex over trials and frames; the patches of its space."""
        mean, std = feature_statistics(recording)
        index, kept, side = _patches(recording, patch_size, image_size)
        return cls(
            recording.space.name,
            recording.space.fingerprint(),
            recording.n_features,
            patch_size,
            side,
            mean,
            std,
            index,
            kept,
        )

    def accept(self, recording: Recording) -> Recording:
        """The recording in this model's vertices.

        A 256 x 256 flat-map recording (fMRI-Shape's layout) is read at this model's vertices. A
        model of several subjects reads a recording through the input layers of its subjects.

        Raises
        ------
        UsageError : other vertices, or a subject without an input layer.
        """
        if recording.space.fingerprint() == self.space_fingerprint:
            return recording
        if self.layers is not None:
            return self.layers.to_latent(recording)
        return in_space(recording, self.space_fingerprint, self.n_features, self.space_name)

    def standardised(self, data: Float[np.ndarray, "trials ..."]) -> np.ndarray:
        """(trials, frames, features), z-scored by the training recording."""
        return (as_frames(data) - self.mean) / self.std

    def betas(self, recording: Recording) -> Float[np.ndarray, "trials features"]:
        """Mean over the frames of each trial: the response estimate that ridge reads."""
        out = np.zeros((recording.n_trials, self.n_features), np.float32)
        for start in range(0, recording.n_trials, 64):
            block = self.standardised(recording.data[start : start + 64])
            out[start : start + len(block)] = block.mean(axis=1)
        return out

    def patches(self, maps: Float[Tensor, "n features"]) -> Float[Tensor, "n patches pixels"]:
        """Standardised maps -> pixels of each kept patch; 0 outside cortex."""
        padded = F.pad(maps, (0, 1))
        index = torch.from_numpy(self.patch_index).to(maps.device)
        return padded[:, index.flatten()].unflatten(1, index.shape)


def in_space(recording: Recording, fingerprint: str, n_features: int, name: str) -> Recording:
    """The recording, if it is in this space; flat maps are read at the 8,921 vertices.

    Raises
    ------
    UsageError : other vertices.
    """
    space = recording.space
    if space.fingerprint() == fingerprint:
        return recording
    flat = FlatMapSpace()
    if isinstance(space, FlatImageSpace) and flat.fingerprint() == fingerprint:
        return Recording(
            data=_AtVertices(recording.data, space, n_features),
            trials=recording.trials,
            rois=dict(load_visual_cortex().areas),
            space=flat,
            unit=recording.unit,
            simulated=recording.simulated,
            name=recording.name,
        )
    raise UsageError(
        f"the recording has {recording.n_features} features in space {space.name!r}; this "
        f"model was fitted on {n_features} in {name!r}. Use the same mask or "
        "vertices as in training, or fit a model on this recording"
    )


def feature_statistics(
    recording: Recording,
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """Mean and SD of each feature over trials and frames; the SD of a constant one is infinite."""
    # sums of differences from one frame: those of a constant vertex are exactly 0
    origin = as_frames(recording.data[:1])[0, 0].astype(np.float64)
    total = np.zeros(recording.n_features)
    square = np.zeros(recording.n_features)
    count = 0
    for start in range(0, recording.n_trials, 64):
        block = as_frames(recording.data[start : start + 64]).astype(np.float64) - origin
        total += block.sum(axis=(0, 1))
        square += (block**2).sum(axis=(0, 1))
        count += block.shape[0] * block.shape[1]
    shift = total / count
    std = np.sqrt(np.maximum(square / count - shift**2, 0))
    mean = origin + shift
    # a vertex that is constant, to the precision of float32, tells nothing: it reads as zero
    std[std <= 1e-6 * np.abs(mean)] = np.inf
    return mean.astype(np.float32), std.astype(np.float32)


def frames_at_test(n_available: int, n_wanted: int) -> np.ndarray:
    """Frames read at test time: 2..7 of 10 as published; the last one repeated in short trials."""
    first = min(2, max(0, n_available - n_wanted))
    return np.minimum(np.arange(first, first + n_wanted), n_available - 1)


class _AtVertices:
    """Trials read as pixels of the flat map and handed on as vertices."""

    def __init__(self, data, space: FlatImageSpace, n_features: int):
        self._data, self._space = data, space
        self.shape = (*data.shape[:-1], n_features)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index) -> np.ndarray:
        return np.asarray(self._space.to_vertices(self._data[index]), np.float32)


def as_frames(data: np.ndarray) -> np.ndarray:
    """Betas without frames are trials of one frame."""
    if data.ndim not in (2, 3):
        raise UsageError(
            f"trials have shape {data.shape[1:]}; this model reads (features,) or "
            "(frames, features)"
        )
    return data[:, None, :] if data.ndim == 2 else data


def _patches(recording: Recording, patch: int, image: int) -> tuple[np.ndarray, np.ndarray, int]:
    n = recording.n_features
    if not isinstance(recording.space, FlatMapSpace | FlatImageSpace):
        n_patches = -(-n // patch**2)
        side = int(np.ceil(np.sqrt(n_patches)))
        index = np.full(n_patches * patch**2, n, np.int64)
        index[:n] = np.arange(n)
        return index.reshape(n_patches, -1), np.arange(n_patches), side * patch
    pixel_vertex = load_visual_cortex().pixel_vertex
    if isinstance(recording.space, FlatImageSpace):  # each pixel is a feature of its own
        shown = np.arange(n).reshape(pixel_vertex.shape)
    else:
        shown = pixel_vertex
    picture = np.where(pixel_vertex < 0, n, shown)
    if picture.shape != (image, image) or image % patch:
        raise UsageError(
            f"the flat map has {picture.shape} pixels; the recipe's image_size is {image} and "
            f"patch_size {patch} (which must divide it)"
        )
    side = image // patch
    squares = picture.reshape(side, patch, side, patch).transpose(0, 2, 1, 3)
    squares = squares.reshape(side * side, patch * patch)
    kept = np.flatnonzero((squares < n).any(axis=1))
    return squares[kept].astype(np.int64), kept, image
