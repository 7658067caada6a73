"""Trials published as flat maps, one ``.npy`` file each, read when they are indexed.

What fMRI-Shape and fMRI-Objaverse have in common: float32 ``(frames, 256, 256)`` a trial, 0 outside
the visual cortex, any number of frames from 1, values in the publisher's units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.lazy import LazyMasks
from neurodiff.core.safe_io import read_npy
from neurodiff.datasets.surface import (
    IMAGE_SIZE,
    VISUAL_AREAS,
    FlatImageSpace,
    FlatMapSpace,
    load_visual_cortex,
)

N_PIXELS = IMAGE_SIZE * IMAGE_SIZE

Restandardise = Literal["trial", "frame", "session"]
Pad = Literal["last", "trailing", "refuse"]
Values = Literal["pixels", "vertices"]


class FlatMapTrials:
    """float32 ``(trials, frames, features)``; ``data[3]``, ``data[2:5]`` and ``data[[0, 7]]`` read
    only the frames of the files that they need.

    Opening reads the header of each file and nothing else.

    Parameters
    ----------
    paths : one npy file a trial, float32 (any frames, 256, 256).
    frames : frames to take, by number, or a name in ``named_frames``; by default all of the
        longest trial.
    named_frames : name -> frames; a trial that is shorter than these is padded.
    pad : what stands in for a frame that a shorter trial lacks: ``"last"`` its last frame;
        ``"trailing"`` as many of its last frames as are missing, once more and in order, as the
        published inference does; ``"refuse"`` an error that names the trial.
    restandardise : None keeps the publisher's values.  Otherwise visual cortex gets mean 0 and
        standard deviation 1: ``"trial"`` over all pixels and frames of a trial, ``"frame"`` over
        the pixels of each frame, ``"session"`` at each pixel over all frames of the subject's
        reference trials (which reads these files once).  What does not vary becomes 0.
    values : ``"pixels"``, 65,536 of the flat map, or ``"vertices"``, 8,921.
    reference : trials that ``"session"`` takes mean and deviation from; a subject that has none
        among them, or no list given, goes by all of its trials.
    subjects : whose each trial is; by default all of one subject.

    Raises
    ------
    UsageError : an option with a value that it does not have, frames outside the trials.
    DataError : a file that is broken or of another shape, or too short where ``pad`` refuses.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        frames: Iterable[int] | str | None = None,
        named_frames: Mapping[str, Iterable[int]] | None = None,
        pad: Pad = "last",
        restandardise: Restandardise | None = None,
        values: Values = "pixels",
        reference: Sequence[int] | None = None,
        subjects: Sequence[str] | None = None,
    ) -> None:
        if restandardise is not None:
            _require("restandardise", restandardise, (None, *get_args(Restandardise)))
        _require("values", values, get_args(Values))
        _require("pad", pad, get_args(Pad))
        self.paths = list(paths)
        self.n_frames = [count_frames(path) for path in self.paths]
        self.longest = max(self.n_frames, default=0)
        self.frames = self._chosen(frames, named_frames or {})
        self.pad = pad
        if pad == "refuse":
            self._require_frames()
        self.restandardise = restandardise
        self.space = FlatMapSpace() if values == "vertices" else FlatImageSpace()
        self._subjects = [""] * len(self.paths) if subjects is None else list(subjects)
        self._reference = [] if reference is None else list(reference)
        self._session: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.shape = (len(self.paths), len(self.frames), self.space.n_features)

    @property
    def unit(self) -> str:
        """z-scores, by which statistics."""
        return "z of run 1" if self.restandardise is None else f"z by {self.restandardise}"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, int | np.integer):
            return self._trial(range(len(self))[index])
        if isinstance(index, slice):
            rows = range(len(self))[index]
        else:
            rows = np.arange(len(self))[np.asarray(index)]
        out = np.zeros((len(rows), *self.shape[1:]), np.float32)
        for place, row in enumerate(rows):
            out[place] = self._trial(int(row))
        return out

    def _chosen(
        self, frames: Iterable[int] | str | None, named: Mapping[str, Iterable[int]]
    ) -> np.ndarray:
        if frames is None:
            return np.arange(self.longest)
        if isinstance(frames, str):
            if frames not in named:
                raise UsageError(
                    f"there are no frames {frames!r}; give numbers, or one of "
                    f"{', '.join(map(repr, named)) or 'no name'}.{suggest(frames, named)}"
                )
            chosen = np.asarray(list(named[frames]), int)
            self.longest = max(self.longest, int(chosen.max()) + 1)
            return chosen
        chosen = np.asarray(list(frames), int)
        if len(chosen) == 0 or ((chosen < 0) | (chosen >= self.longest)).any():
            raise UsageError(
                f"frames {chosen.tolist()} were asked for; trials have frames 0 to "
                f"{self.longest - 1}"
            )
        return chosen

    def _require_frames(self) -> None:
        needed = int(self.frames.max()) + 1
        for path, there in zip(self.paths, self.n_frames, strict=True):
            if there < needed:
                raise DataError(
                    f"{path} has {there} frames and {needed} are needed; take frames that every "
                    "trial has, or pad='last' or 'trailing'"
                )

    def _trial(self, row: int) -> np.ndarray:
        """One trial, standardised, ``(frames, features)``."""
        images = self._images(row)
        if self.restandardise is not None:
            images = self._standardised(row, images)
        pixels = images.reshape(len(images), N_PIXELS)
        return FlatImageSpace().to_vertices(pixels) if self.shape[-1] != N_PIXELS else pixels

    def _images(self, row: int) -> np.ndarray:
        """The chosen frames of one file, ``(frames, 256, 256)``."""
        path = self.paths[row]
        source = padded_frames(self.frames, self.n_frames[row], self.longest, self.pad)
        images = np.asarray(read_flat_maps(path, mmap=True)[source], dtype=np.float32)
        if not np.isfinite(images).all():
            read_flat_maps(path)  # raises, and says where in the file
        return images

    def _standardised(self, row: int, images: np.ndarray) -> np.ndarray:
        mask = load_visual_cortex().mask
        inside = images[:, mask].astype(float)  # (frames, pixels)
        if self.restandardise == "session":
            mean, deviation = self._session_statistics(self._subjects[row])
        else:
            axis = None if self.restandardise == "trial" else 1
            mean, deviation = inside.mean(axis, keepdims=True), inside.std(axis, keepdims=True)
        varies = deviation > 1e-6
        out = np.zeros_like(images)
        out[:, mask] = np.where(varies, (inside - mean) / np.where(varies, deviation, 1.0), 0.0)
        return out

    def _session_statistics(self, subject: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each cortical pixel over a subject's reference trials."""
        if subject not in self._session:
            own = [row for row, who in enumerate(self._subjects) if who == subject]
            rows = [row for row in self._reference if self._subjects[row] == subject] or own
            mask = load_visual_cortex().mask
            count, mean, squares = 0, np.zeros(int(mask.sum())), np.zeros(int(mask.sum()))
            for row in rows:
                for values in self._images(row)[:, mask].astype(float):  # Welford's update
                    count += 1
                    step = values - mean
                    mean += step / count
                    squares += step * (values - mean)
            self._session[subject] = mean, np.sqrt(squares / max(count, 1))
        return self._session[subject]


def padded_frames(frames: np.ndarray, there: int, longest: int, pad: Pad) -> np.ndarray:
    """Which of the ``there`` frames of a trial stand at ``frames`` of one of ``longest`` frames.

    Examples
    --------
    >>> padded_frames(np.arange(6), 4, 6, "last").tolist()
    [0, 1, 2, 3, 3, 3]
    >>> padded_frames(np.arange(6), 4, 6, "trailing").tolist()
    [0, 1, 2, 3, 2, 3]
    """
    if pad == "trailing":
        again = min(max(longest - there, 1), there)
        repeated = there - again + (frames - there) % again
        return np.where(frames < there, frames, repeated)
    return np.minimum(frames, there - 1)


def count_frames(path: Path) -> int:
    """Frames of a file by its header alone (which also finds truncated files)."""
    return len(read_flat_maps(path, mmap=True))


def read_flat_maps(path: Path, *, mmap: bool = False) -> np.ndarray:
    """``(frames, 256, 256)`` of a file; as a memory map its values are neither read nor checked.

    Raises
    ------
    DataError : missing, broken or empty file, another type or shape, NaN (unless ``mmap``).
    """
    images = read_npy(
        path,
        dtype=np.float32,
        shape=(None, IMAGE_SIZE, IMAGE_SIZE),
        finite=not mmap,
        mmap=mmap,
    )
    if len(images) == 0:
        raise DataError(f"{path} has no frame; download it again")
    return images


def area_masks(values: Values) -> LazyMasks:
    """The 31 areas as ROIs; the cortex is built when the first of them is asked for."""

    def load(name: str) -> np.ndarray:
        cortex = load_visual_cortex()
        if values == "vertices":
            return cortex.areas[name]
        shown = cortex.pixel_vertex.ravel()
        return (shown >= 0) & cortex.areas[name][shown]

    return LazyMasks(VISUAL_AREAS, load)


def _require(option: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        *most, last = map(repr, known)
        raise UsageError(f"{option} is {value!r}; expected {', '.join(most)} or {last}")
