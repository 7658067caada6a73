"""Recording: responses to stimuli, one row a trial, with the table of what was shown.

``data`` is float32 ``(trials, *frames, features)``: an array, a memory map, or any object with
``shape``, ``ndim``, ``len`` and indexing by integer, slice and integer array. Lazy data stays lazy
through ``select``, ``split``, ``roi`` and ``mean_repeats``; :meth:`Recording.array` reads it all.

Examples
--------
>>> betas = np.arange(12, dtype=np.float32).reshape(4, 3)
>>> trials = pd.DataFrame({"stimulus": ["cup", "cup", "lamp", "lamp"]})
>>> recording = Recording.from_arrays(betas, trials, {"V1": np.array([True, True, False])})
>>> recording.mean_repeats().roi("V1").array()
array([[1.5, 2.5],
       [7.5, 8.5]], dtype=float32)
"""

from __future__ import annotations

import hashlib
import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.lazy import (
    LazyMeans,
    LazyRows,
    in_memory,
    take_columns,
    take_rows,
)
from neurodiff.core.recording_checks import (
    checked_rois,
    filled_trials,
    listed,
    named,
    positions,
    stacked,
)
from neurodiff.core.recording_files import betas_of_images, trials_of_manifest
from neurodiff.core.safe_io import require_finite
from neurodiff.core.spaces import (
    MaskerSpace,
    MaskSpace,
    Space,
    SubSpace,
    VectorSpace,
)

__all__ = ["MaskSpace", "MaskerSpace", "Recording", "Space", "SubSpace", "VectorSpace"]

_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False, repr=False)
class Recording:
    """Responses ``data`` with their ``trials``, ``rois`` and ``space``.

    Parameters
    ----------
    data : float32 ``(trials, *frames, features)``; array, memory map or lazy reader.
    trials : one row a trial; missing columns are filled: subject ``"sub-01"``, session 1, run 1,
        stimulus the row's number, repeat counted from 1 within subject, stimulus and split, split
        ``"train"``. Subjects, stimuli and splits become text; further columns are kept.
    rois : name -> boolean ``(features,)``.
    space : how features map to a picture; without one, a :class:`VectorSpace`.
    unit : of ``data``, e.g. ``"%"`` or ``"z"``.
    simulated : whether the responses come from a simulation.

    Raises
    ------
    DataError : lengths that do not agree, a mask that is not boolean, an empty recording.
    """

    data: Any
    trials: pd.DataFrame
    rois: Mapping[str, np.ndarray]
    space: Any
    unit: str = "a.u."
    simulated: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        data = self.data
        if not all(hasattr(data, need) for need in ("shape", "ndim", "__len__", "__getitem__")):
            raise UsageError(f"data is {type(data).__name__}; give an array (trials, features)")
        if data.ndim < 2 or math.prod(data.shape) == 0:
            raise DataError(
                f"data has shape {tuple(data.shape)}; expected at least one trial, frame and "
                "feature: (trials, *frames, features)"
            )
        if isinstance(data, np.ndarray) and data.dtype != np.float32:
            raise UsageError(f"data is {data.dtype}; give float32, or use Recording.from_arrays")
        space = VectorSpace(data.shape[-1]) if self.space is None else self.space
        if space.n_features != data.shape[-1]:
            raise DataError(
                f"data has {data.shape[-1]} features; the space {space.name!r} has "
                f"{space.n_features}: give the space these data were sampled in"
            )
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "trials", filled_trials(self.trials, data.shape[0]))
        object.__setattr__(self, "rois", checked_rois(self.rois, data.shape[-1]))

    # ------------------------------------------------------------------------------ made from

    @classmethod
    def from_arrays(
        cls,
        betas: Any,
        trials: pd.DataFrame | None = None,
        rois: Mapping[str, Any] | None = None,
        space: Any = None,
        *,
        unit: str = "a.u.",
        simulated: bool = False,
        name: str = "",
        check_finite: bool = True,
    ) -> Recording:
        """From ``betas`` (trials, *frames, features) of any real type; float32 stays where it is.

        Raises
        ------
        DataError : NaN or infinity (unless ``check_finite`` is False), lengths that do not agree.
        """
        if isinstance(betas, Sequence):
            betas = stacked(betas)
        if isinstance(betas, np.ndarray) and betas.dtype != np.float32:
            if betas.dtype.kind not in "fiu":
                raise DataError(f"betas holds {betas.dtype}; expected real numbers")
            if isinstance(betas, np.memmap):
                betas = LazyRows(betas)
            else:
                betas = betas.astype(np.float32)
        table = pd.DataFrame(index=range(len(betas))) if trials is None else trials
        made = cls(betas, table, rois or {}, space, unit, simulated, name)
        if check_finite:
            for start, block in made._blocks():
                try:
                    require_finite(block, "betas")
                except DataError:
                    row = start + int(np.argwhere(~np.isfinite(block))[0][0])
                    raise DataError(
                        f"betas{named(name)} holds NaN or infinity, first in trial {row} (stimulus "
                        f"{made.trials.stimulus[row]!r}); drop these trials or features first"
                    ) from None
        return made

    @classmethod
    def from_masker(
        cls,
        masker: Any,
        images: Any,
        trials: pd.DataFrame | None = None,
        *,
        rois: Mapping[str, Any] | None = None,
        unit: str = "a.u.",
        name: str = "",
        check_finite: bool = True,
    ) -> Recording:
        """From images and a fitted nilearn masker; pictures go back through the masker.

        Parameters
        ----------
        masker : fitted; has ``transform`` and ``inverse_transform``.
        images : one 4-D image (a path or a nibabel image) whose volumes are the trials; or a list,
            one a trial, of 3-D images (betas) or 4-D images (frames); or an array that the masker
            already made, (trials, *frames, features).
        trials : one row a trial.

        Raises
        ------
        UsageError : the masker is not fitted.
        DataError : images of different shapes, and as `from_arrays`.
        """
        betas = betas_of_images(masker, images)
        space = MaskerSpace(masker, betas.shape[-1])
        return cls.from_arrays(
            betas, trials, rois, space, unit=unit, name=name, check_finite=check_finite
        )

    @classmethod
    def from_csv(
        cls,
        manifest: str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        *,
        mask: Any = None,
        rois: Mapping[str, Any] | None = None,
        space: Any = None,
        unit: str = "a.u.",
        name: str = "",
        check_finite: bool = True,
    ) -> Recording:
        """From a table with one file a trial, read when it is needed.

        Parameters
        ----------
        manifest : CSV with the columns path and stimulus, and if known subject, session, run,
            repeat, split. A file is ``.npy``, (features,) or (*frames, features), or NIfTI, 3-D or
            4-D with the frames last.
        root : folder of the paths; by default the manifest's.
        mask : NIfTI files need one, here or in a column mask: voxels above 0 are the features.

        Raises
        ------
        MissingDataError : the manifest, or a file that it names, is not there.
        DataError : no trial, shapes that differ, a broken file.
        """
        data, trials, inside = trials_of_manifest(manifest, root, mask)
        if inside is not None and space is None and data.shape[-1] == inside.n_features:
            space = inside
        return cls.from_arrays(
            data,
            trials,
            rois,
            space,
            unit=unit,
            name=name or Path(manifest).stem,
            check_finite=check_finite,
        )

    # ------------------------------------------------------------------------------- sizes

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return int(self.data.shape[0])

    @property
    def n_features(self) -> int:
        """Number of features (vertices or voxels)."""
        return int(self.data.shape[-1])

    @property
    def frames(self) -> tuple[int, ...]:
        """Shape of one trial without its features; ``()`` for one value a feature."""
        return tuple(int(length) for length in self.data.shape[1:-1])

    def __len__(self) -> int:
        return self.n_trials

    # ------------------------------------------------------------------------- new recordings

    def roi(self, *names: str) -> Recording:
        """Only the features inside any of the named ROIs."""
        if not names:
            raise UsageError(f"no ROI was named; there are {', '.join(self.rois) or 'none'}")
        mask = np.zeros(self.n_features, dtype=bool)
        for name in names:
            if name not in self.rois:
                raise UsageError(
                    f"there is no ROI {name!r} in this recording{named(self.name)}, which has "
                    f"{listed(self.rois)}.{suggest(name, self.rois)}"
                )
            mask |= self.rois[name]
        if not mask.any():
            raise DataError(f"ROI {' + '.join(names)} has no feature in this recording")
        return self.select_features(mask)

    def select_features(self, which: Any) -> Recording:
        """Only the features of a boolean mask (features,) or an array of distinct indices."""
        columns = positions(which, self.n_features, "features")
        if len(np.unique(columns)) != len(columns):
            raise UsageError("a feature was selected twice; give each index once")
        rois = {name: mask[columns] for name, mask in self.rois.items()}
        return replace(
            self,
            data=take_columns(self.data, columns),
            rois=rois,
            space=SubSpace(self.space, columns),
        )

    def select(self, which: Any) -> Recording:
        """Only some trials: a boolean mask, indices, a slice, or a query of the trials' columns.

        Examples
        --------
        ``recording.select("session == 2 and split == 'train'")``
        """
        if isinstance(which, str):
            try:
                chosen = self.trials.eval(which)
            except Exception as error:  # pandas raises what its parser and its columns raise
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise UsageError(
                    f"the query {which!r} does not fit the trials ({first}); columns are "
                    f"{', '.join(map(str, self.trials.columns))}"
                ) from None
            if not pd.api.types.is_bool_dtype(chosen) or len(chosen) != self.n_trials:
                raise UsageError(f"the query {which!r} is not yes or no for each trial")
            which = chosen
        rows = positions(which, self.n_trials, "trials")
        if len(rows) == 0:
            raise UsageError("the selection leaves no trial; check it against recording.trials")
        return replace(self, data=take_rows(self.data, rows), trials=self.trials.iloc[rows])

    def split(self, train: str = "train", test: str = "test") -> tuple[Recording, Recording]:
        """The trials of two splits, by their names in the column split."""
        there = list(dict.fromkeys(self.trials["split"]))
        for name in (train, test):
            if name not in there:
                raise UsageError(
                    f"there is no split {name!r} in this recording{named(self.name)}; it has "
                    f"{listed(there)}.{suggest(name, there)}"
                )
        in_split = self.trials["split"].to_numpy()
        return self.select(in_split == train), self.select(in_split == test)

    def mean_repeats(self) -> Recording:
        """Trials of the same subject, stimulus and split averaged, in order of first appearance.

        The column repeat becomes the number of trials in each mean; session and run are those of
        the first.
        """
        keys = self.trials[["subject", "stimulus", "split"]].itertuples(index=False, name=None)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, key in enumerate(keys):
            groups.setdefault(key, []).append(row)
        members = [np.asarray(rows) for rows in groups.values()]
        table = self.trials.iloc[[rows[0] for rows in members]].copy()
        table["repeat"] = [len(rows) for rows in members]
        means = LazyMeans(self.data, members)
        data = means[:] if in_memory(self.data) else means
        return replace(self, data=data, trials=table)

    # ------------------------------------------------------------------------------- out

    def array(self) -> np.ndarray:
        """All data in memory, float32 ``(trials, *frames, features)``."""
        if in_memory(self.data):
            return self.data
        return np.asarray(self.data[:], dtype=np.float32)

    def to_image(self, values: Any) -> Any:
        """Picture of one value a feature, through the space."""
        return self.space.to_image(values)

    def fingerprint(self) -> str:
        """SHA-256 of data, trials, ROIs, space and unit; the same for lazy and loaded data."""
        digest = hashlib.sha256()
        digest.update(f"recording-1 {tuple(map(int, self.data.shape))}".encode())
        for _, block in self._blocks():
            digest.update(np.ascontiguousarray(block, dtype="<f4").data)
        for column in self.trials.columns:
            values = [str(column), *map(str, self.trials[column].tolist())]
            digest.update("\x1f".join(values).encode() + b"\x1e")
        for name in sorted(self.rois):
            digest.update(name.encode() + b"\x1e" + np.packbits(self.rois[name]).tobytes())
        digest.update(f"{self.space.fingerprint()} {self.unit} {self.simulated}".encode())
        return digest.hexdigest()

    def _blocks(self) -> Any:
        """Pairs of first row and float32 block, of at most 64 MB."""
        row_bytes = 4 * math.prod(self.data.shape[1:])
        step = max(1, _BLOCK_BYTES // row_bytes)
        for start in range(0, self.n_trials, step):
            yield start, np.asarray(self.data[start : start + step], dtype=np.float32)

    def __repr__(self) -> str:
        return f"<Recording {', '.join(f'{key} {value}' for key, value in self._facts().items())}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for key, value in self._facts().items()
        )
        return f"<table><caption>Recording</caption>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        splits = self.trials["split"].value_counts(sort=False)
        subjects = list(dict.fromkeys(self.trials["subject"]))
        facts = {
            "name": repr(self.name) if self.name else "",
            "trials": f"{self.n_trials} ({', '.join(f'{n} {s}' for s, n in splits.items())})",
            "frames": " x ".join(map(str, self.frames)),
            "features": str(self.n_features),
            "stimuli": str(self.trials["stimulus"].nunique()),
            "subjects": listed(subjects, 3),
            "rois": listed(self.rois, 4) if self.rois else "",
            "space": self.space.name,
            "unit": self.unit,
            "simulated": "yes" if self.simulated else "",
        }
        return {key: value for key, value in facts.items() if value}
