"""fMRI-Shape: flat maps of the visual cortex while 3D objects turned for 8 seconds.

Layout of the hub (``Fudan-fMRI/fMRI-Shape``), below ``root``::

    annotations/core_train_list.txt, core_test_list.txt     <synset>/<model id>, one a line
    sub-0001/npy_data/<synset>/<model id>.npy                float32 (frames, 256, 256)
    stimulus_views/<model id>.png                            a picture of the object, if there
    stimuli/<synset>/<model id>.obj                          a mesh of the object, if there

Values are in the publisher's units: z-scores by the mean and standard deviation of each subject's
first run, so that most trials have another mean and spread; ``restandardise`` makes them
comparable.  A trial is 10 frames of TR 0.8 s; every number of frames from 1 is accepted.

References
----------
Gao et al. 2024, MinD-3D, ECCV (arXiv 2312.07485).  Licence of the data: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.fmri_shape_files import (
    count_frames,
    lists_of,
    npy_folder,
    npy_path,
    open_stimuli,
    read_lists,
    read_trial,
    stimulus_ids,
    subject_folder,
)
from neurodiff.datasets.surface import IMAGE_SIZE, FlatImageSpace, FlatMapSpace, load_visual_cortex

N_PIXELS = IMAGE_SIZE * IMAGE_SIZE

Restandardise = Literal["trial", "frame", "session"]


class FMRIShape:
    """Trials read when they are indexed: float32 ``(trials, frames, features)``.

    Made by `open`; ``data[3]``, ``data[2:5]`` and ``data[[0, 7]]`` read only the files they need.

    Parameters
    ----------
    paths : one npy file a trial, float32 (any frames, 256, 256).
    frames : frames to take, by number; by default all of the longest trial.  A shorter trial
        repeats its last frame, as the published inference does.
    restandardise : None keeps the publisher's values.  Otherwise visual cortex gets mean 0 and
        standard deviation 1: ``"trial"`` over all pixels and frames of a trial, ``"frame"`` over
        the pixels of each frame, ``"session"`` at each pixel over all frames of ``reference``
        (which reads these files once).  What does not vary becomes 0.
    values : ``"pixels"``, 65,536 of the flat map, or ``"vertices"``, 8,921.
    reference : trials that ``"session"`` takes mean and deviation from; by default all.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        frames: Iterable[int] | None = None,
        restandardise: Restandardise | None = None,
        values: Literal["pixels", "vertices"] = "pixels",
        reference: Sequence[int] | None = None,
    ) -> None:
        if restandardise not in (None, "trial", "frame", "session"):
            raise UsageError(
                f"restandardise is {restandardise!r}; expected None, 'trial', 'frame' or 'session'"
            )
        if values not in ("pixels", "vertices"):
            raise UsageError(f"values is {values!r}; expected 'pixels' or 'vertices'")
        self.paths = list(paths)
        self.n_frames = [count_frames(path) for path in self.paths]
        longest = max(self.n_frames, default=0)
        self.frames = np.arange(longest) if frames is None else np.asarray(list(frames), int)
        outside = self.frames[(self.frames < 0) | (self.frames >= longest)]
        if len(outside) or len(self.frames) == 0:
            raise UsageError(
                f"frames {self.frames.tolist()} were asked for; trials have frames 0 to "
                f"{longest - 1}"
            )
        self.restandardise = restandardise
        self.space = FlatMapSpace() if values == "vertices" else FlatImageSpace()
        self._reference = range(len(self.paths)) if reference is None else list(reference)
        self._session: tuple[np.ndarray, np.ndarray] | None = None
        self.shape = (len(self.paths), len(self.frames), self.space.n_features)

    @classmethod
    def open(
        cls,
        root: str | Path,
        subject: int | str = 1,
        *,
        frames: Iterable[int] | None = None,
        restandardise: Restandardise | None = None,
        values: Literal["pixels", "vertices"] = "pixels",
        allow_missing: bool = False,
    ) -> tuple[Recording, Stimuli]:
        """Recording and stimuli of one subject.

        Parameters
        ----------
        root : folder with ``annotations`` and ``sub-0001`` and so on.
        subject : 1, ``"1"`` or ``"sub-0001"``.
        frames, restandardise, values : see the class.
        allow_missing : leave trials without a file out; the number is in the recording's name.

        Raises
        ------
        MissingDataError : folder, lists or (unless ``allow_missing``) files that are not there.
        DataError : a list or the header of a file is broken.
        """
        root = Path(root)
        folder = npy_folder(root, subject)
        entries = read_lists(root, lists_of(subject))
        there = [entry for entry in entries if npy_path(folder, entry).is_file()]
        missing = len(entries) - len(there)
        if not there or (missing and not allow_missing):
            first = next(e for e in entries if not npy_path(folder, e).is_file())
            raise MissingDataError(
                f"{missing} of the {len(entries)} trials that the lists name have no file below "
                f"{folder}, first {npy_path(folder, first)}; download them"
                + (", or pass allow_missing=True to work on the others" if there else "")
            )
        ids = stimulus_ids(there)
        name = subject_folder(subject)
        trials = pd.DataFrame(
            {
                "subject": name,
                "stimulus": [ids[entry] for entry in there],
                "split": [entry.split for entry in there],
                "synset": [entry.synset for entry in there],
            }
        )
        training = [row for row, entry in enumerate(there) if entry.split == "train"]
        data = cls(
            [npy_path(folder, entry) for entry in there],
            frames=frames,
            restandardise=restandardise,
            values=values,
            reference=training or None,
        )
        recording = Recording(
            data=data,
            trials=trials,
            rois=_rois(values),
            space=data.space,
            unit="z of run 1" if restandardise is None else f"z by {restandardise}",
            name=f"fMRI-Shape {name}" + (f" ({missing} trials without a file)" if missing else ""),
        )
        return recording, open_stimuli(root, there, ids)

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

    def _trial(self, row: int) -> np.ndarray:
        """One trial, standardised, ``(frames, features)``."""
        images = self._images(row)
        if self.restandardise is not None:
            images = self._standardised(images)
        pixels = images.reshape(len(images), N_PIXELS)
        return FlatImageSpace().to_vertices(pixels) if self.shape[-1] != N_PIXELS else pixels

    def _images(self, row: int) -> np.ndarray:
        """The chosen frames of one file, ``(frames, 256, 256)``."""
        return read_trial(self.paths[row])[np.minimum(self.frames, self.n_frames[row] - 1)]

    def _standardised(self, images: np.ndarray) -> np.ndarray:
        mask = load_visual_cortex().mask
        inside = images[:, mask].astype(float)  # (frames, pixels)
        if self.restandardise == "session":
            mean, deviation = self._session_statistics()
        else:
            axis = None if self.restandardise == "trial" else 1
            mean, deviation = inside.mean(axis, keepdims=True), inside.std(axis, keepdims=True)
        varies = deviation > 1e-6
        out = np.zeros_like(images)
        out[:, mask] = np.where(varies, (inside - mean) / np.where(varies, deviation, 1.0), 0.0)
        return out

    def _session_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each cortical pixel over the reference trials."""
        if self._session is None:
            mask = load_visual_cortex().mask
            count, mean, squares = 0, np.zeros(int(mask.sum())), np.zeros(int(mask.sum()))
            for row in self._reference:
                for values in self._images(row)[:, mask].astype(float):  # Welford's update
                    count += 1
                    step = values - mean
                    mean += step / count
                    squares += step * (values - mean)
            self._session = mean, np.sqrt(squares / max(count, 1))
        return self._session


def _rois(values: str) -> dict[str, np.ndarray]:
    cortex = load_visual_cortex()
    if values == "vertices":
        return dict(cortex.areas)
    shown = cortex.pixel_vertex.ravel()
    return {name: (shown >= 0) & mask[shown] for name, mask in cortex.areas.items()}
