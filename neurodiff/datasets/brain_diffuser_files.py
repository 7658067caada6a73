"""Files of the published Brain-Diffuser code, read and written under their names.

::

    processed_data/subj01/nsd_{train,test}_fmriavg_nsdgeneral_sub1.npy  (n, voxels), % x 300
    processed_data/subj01/nsd_{train,test}_stim_sub1.npy                (n, 425, 425, 3)
    processed_data/subj01/nsd_{train,test}_cap_sub1.npy                 (n, 5) text, '' = none
    extracted_features/subj01/nsd_vdvae_features_31l.npz                train_latents, test_latents
    extracted_features/subj01/nsd_{cliptext,clipvision}_{train,test}.npy  (n, 77 | 257, 768)
    predicted_features/subj01/nsd_vdvae_nsdgeneral_pred_sub1_31l_alpha50k.npy
    predicted_features/subj01/nsd_{cliptext,clipvision}_predtest_nsdgeneral.npy
    predicted_features/subj01/nsd_vdvae_nsdgeneral_roi_sub1_31l_alpha50k.npy, ..._roi_nsdgeneral.npy
    regression_weights/subj01/{vdvae,cliptext,clipvision}_regression_weights.pkl   weight, bias

``root`` is the folder of these four (``data`` of the published repository).  Arrays are memory
maps where the file allows it.  The number of a picture in NSD is not stored, so that stimuli are
called ``train-00000`` and so on, in order of first presentation.

References
----------
Ozcelik & VanRullen 2023, Scientific Reports 13:15666, and its code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.atomic import atomic_path, atomic_write, write_npy
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.lazy import LazyParts
from neurodiff.core.recording import Recording
from neurodiff.core.safe_io import read_npy, require_finite
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.npz import map_npz_member
from neurodiff.datasets.nsd_betas import PER_PERCENT
from neurodiff.datasets.nsd_files import subject_name, subject_number
from neurodiff.datasets.nsd_stimuli import mapped_text
from neurodiff.datasets.numpy_pickle import read_pickled_arrays

SPLITS = ("train", "test")
HEADS: dict[str, tuple[int, ...]] = {
    "vdvae": (91168,), "cliptext": (77, 768), "clipvision": (257, 768),
}  # fmt: skip
"""Heads and the shape of one item of each."""
CAPTIONS = 5
Prediction = Literal["test", "roi"]


# ------------------------------------------------------------------------------ names of the files


def prepared_path(root: str | Path, subject: int | str, split: str, kind: str) -> Path:
    """File of ``kind`` fmriavg_nsdgeneral, stim or cap."""
    number = subject_number(subject)
    return _folder(root, "processed_data", number) / f"nsd_{split}_{kind}_sub{number}.npy"


def features_path(root: str | Path, subject: int | str, head: str, split: str) -> Path:
    """File of the features of a head; that of vdvae holds both splits."""
    _require_head(head, split)
    name = "vdvae_features_31l.npz" if head == "vdvae" else f"{head}_{split}.npy"
    return _folder(root, "extracted_features", subject_number(subject)) / f"nsd_{name}"


def predictions_path(
    root: str | Path, subject: int | str, head: str, kind: Prediction = "test"
) -> Path:
    """File of the predictions of a head, of the test pictures or of regions of interest."""
    _require_head(head)
    if kind not in ("test", "roi"):
        raise UsageError(f"there are no predictions of {kind!r}; there are test and roi")
    number = subject_number(subject)
    name = f"{head}_{'predtest' if kind == 'test' else 'roi'}_nsdgeneral"
    if head == "vdvae":
        what = "pred" if kind == "test" else "roi"
        name = f"vdvae_nsdgeneral_{what}_sub{number}_31l_alpha50k"
    return _folder(root, "predicted_features", number) / f"nsd_{name}.npy"


def weights_path(root: str | Path, subject: int | str, head: str) -> Path:
    """File of the weights of a head."""
    _require_head(head)
    folder = _folder(root, "regression_weights", subject_number(subject))
    return folder / f"{head}_regression_weights.pkl"


def _folder(root: str | Path, kind: str, subject: int) -> Path:
    return Path(root) / kind / subject_name(subject)


def _require_head(head: str, split: str = "train") -> None:
    if head not in HEADS or split not in SPLITS:
        raise UsageError(
            f"there is no {head!r} {split!r}; heads are {', '.join(HEADS)}, splits train and test"
        )


# ------------------------------------------------------------------------- responses and pictures


class PreparedTrials(LazyParts):
    """Two memory maps of betas, one after the other: float32 ``(pictures, voxels)``, percent."""

    def __init__(self, paths: list[Path], arrays: list[np.ndarray]) -> None:
        self.paths, self.arrays = paths, arrays
        super().__init__(map(len, arrays), arrays[0].shape[1])

    def _read(self, part: int, rows: np.ndarray) -> np.ndarray:
        block = self.arrays[part][rows]
        require_finite(block, str(self.paths[part]))
        return block / PER_PERCENT


def open_prepared_npy(root: str | Path, subject: int | str = 1) -> tuple[Recording, Stimuli]:
    """Recording (pictures, voxels) in percent signal change, and stimuli with their captions.

    Raises
    ------
    MissingDataError : no betas of this subject.
    DataError : files of other types or shapes, or of lengths that differ.
    """
    paths = [prepared_path(root, subject, split, "fmriavg_nsdgeneral") for split in SPLITS]
    arrays = [
        read_npy(path, dtype=(np.floating,), shape=(None, None), finite=False, mmap=True)
        for path in paths
    ]
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise DataError(
            f"{paths[0]} has {arrays[0].shape[1]} voxels and {paths[1]} {arrays[1].shape[1]}; they "
            "are not of the same subject: make them again"
        )
    sizes = dict(zip(SPLITS, map(len, arrays), strict=True))
    ids = {split: [f"{split}-{row:05d}" for row in range(sizes[split])] for split in SPLITS}
    trials = pd.DataFrame(
        {
            "subject": subject_name(subject),
            "stimulus": [*ids["train"], *ids["test"]],
            "split": np.repeat(SPLITS, [sizes[split] for split in SPLITS]),
        }
    )
    name = f"Brain-Diffuser's files, {subject_name(subject)}"
    recording = Recording(PreparedTrials(paths, arrays), trials, {}, None, "%", False, name)
    return recording, _open_stimuli(root, subject, ids)


def _open_stimuli(root: str | Path, subject: int | str, ids: dict[str, list[str]]) -> Stimuli:
    table: dict[str, Any] = {"id": [*ids["train"], *ids["test"]]}
    files = {split: prepared_path(root, subject, split, "cap") for split in SPLITS}
    if all(path.is_file() for path in files.values()):
        texts = [text for split in SPLITS for text in read_captions(files[split], len(ids[split]))]
        table["captions"] = texts
        table["caption"] = [several[0] if several else "" for several in texts]
    bricks = {
        split: _mapped_pictures(path, len(ids[split]))
        for split in SPLITS
        if (path := prepared_path(root, subject, split, "stim")).is_file()
    }

    def load(name: str) -> Any:
        import PIL.Image

        split, row = name.split("-")
        if split not in bricks:
            path = prepared_path(root, subject, split, "stim")
            raise MissingDataError(f"{path} does not exist, so that {name} has no picture")
        return PIL.Image.fromarray(np.asarray(bricks[split][int(row)]).astype(np.uint8))

    return Stimuli(pd.DataFrame(table), None, load)


def _mapped_pictures(path: Path, count: int) -> np.ndarray:
    shape = (count, None, None, 3)
    return read_npy(path, dtype=(np.uint8, np.floating), shape=shape, finite=False, mmap=True)


def read_captions(path: Path, count: int) -> list[tuple[str, ...]]:
    """Captions of each picture without the empty ones.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no text, or of another number of pictures.
    """
    texts = mapped_text(path)
    if len(texts) != count:
        raise DataError(f"{path} has captions of {len(texts)} pictures; expected {count}")
    return [tuple(text for text in (str(value).strip() for value in row) if text) for row in texts]


def write_prepared_npy(
    root: str | Path, subject: int | str, recording: Recording, stimuli: Stimuli
) -> None:
    """Write the six files that the published scripts start from.

    Parameters
    ----------
    root : the folder that gets ``processed_data``.
    recording : averaged, in percent, with the splits train and test; betas are written times 300
        in float64, as the scripts expect them.
    stimuli : pictures are written as uint8, an eighth of the published float64, one at a time;
        captions beyond the fifth are left out.

    Raises
    ------
    UsageError : a recording with another unit, with frames or with repeats.
    DataError : pictures of different sizes.
    """
    if recording.unit != "%" or recording.frames:
        raise UsageError(
            f"the recording is in {recording.unit!r} with frames {recording.frames}; expected "
            "percent signal change without frames"
        )
    for split, part in zip(SPLITS, recording.split(), strict=True):
        ids = part.trials["stimulus"].tolist()
        if len(set(ids)) != len(ids):
            raise UsageError("a picture has several trials; average them with mean_repeats() first")
        _write_rows(
            prepared_path(root, subject, split, "fmriavg_nsdgeneral"),
            (part.n_trials, part.n_features),
            (part.data[row].astype(np.float64) * PER_PERCENT for row in range(part.n_trials)),
        )
        texts = [[*stimuli.captions(name)[:CAPTIONS], *[""] * CAPTIONS][:CAPTIONS] for name in ids]
        write_npy(prepared_path(root, subject, split, "cap"), np.array(texts, dtype=np.str_))
        _write_pictures(prepared_path(root, subject, split, "stim"), stimuli, ids)


def _write_pictures(path: Path, stimuli: Stimuli, ids: list[str]) -> None:
    shape = np.asarray(stimuli[ids[0]].image()).shape

    def pictures() -> Iterator[np.ndarray]:
        for name in ids:
            picture = np.asarray(stimuli[name].image())
            if picture.shape != shape:
                raise DataError(
                    f"the picture of {name} has shape {picture.shape}, that of {ids[0]} {shape}; "
                    "resize them to one size first"
                )
            yield picture

    _write_rows(path, (len(ids), *shape), pictures(), np.uint8)


def _write_rows(
    path: Path, shape: tuple[int, ...], rows: Iterable[np.ndarray], dtype: Any = np.float64
) -> None:
    """A ``.npy`` file of ``shape``, one row in memory at a time, whole or not at all."""
    described = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": described, "fortran_order": False, "shape": shape}
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            file.write(np.ascontiguousarray(row, dtype).tobytes())


# ----------------------------------------------------------------- features, predictions, weights


def read_features(root: str | Path, subject: int | str, head: str, split: str) -> np.ndarray:
    """Features (n, ...) of a head, mapped; float32 or float64 as they were saved.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : another type, or items of another shape than `HEADS` says.
    """
    path = features_path(root, subject, head, split)
    if head == "vdvae":
        return map_npz_member(path, f"{split}_latents", HEADS[head])
    return _mapped(path, head)


def write_features(root: str | Path, subject: int | str, head: str, train: Any, test: Any) -> None:
    """Write features under the published names; both splits, as vdvae has one file for both."""
    for split, array in (("train", train), ("test", test)):
        _require_items(head, array)
        if head != "vdvae":
            write_npy(features_path(root, subject, head, split), array)
    if head == "vdvae":
        with atomic_path(features_path(root, subject, head, "train")) as temporary:
            np.savez(temporary, train_latents=train, test_latents=test)


def read_predictions(
    root: str | Path, subject: int | str, head: str, kind: Prediction = "test"
) -> np.ndarray:
    """Predictions (test pictures or regions, ...) of a head, mapped."""
    return _mapped(predictions_path(root, subject, head, kind), head)


def write_predictions(
    root: str | Path, subject: int | str, head: str, array: Any, kind: Prediction = "test"
) -> None:
    """Write predictions under the published name."""
    _require_items(head, array)
    write_npy(predictions_path(root, subject, head, kind), array)


def read_weights(root: str | Path, subject: int | str, head: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights (*item, voxels) and bias (*item) of a head; the whole file is read into memory.

    The published file is a pickle; nothing of it is run.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : a pickle of something else, or arrays of other shapes.
    """
    path = weights_path(root, subject, head)
    found = read_pickled_arrays(path, ("weight", "bias"))
    weight, bias = found["weight"], found["bias"]
    if weight.shape[:-1] != HEADS[head] or bias.shape != HEADS[head]:
        raise DataError(
            f"{path} holds weight {weight.shape} and bias {bias.shape}; expected "
            f"{(*HEADS[head], 'voxels')} and {HEADS[head]}"
        )
    return weight, bias


def _mapped(path: Path, head: str) -> np.ndarray:
    shape = (None, *HEADS[head])
    return read_npy(path, dtype=(np.floating,), shape=shape, finite=False, mmap=True)


def _require_items(head: str, array: Any) -> None:
    _require_head(head)
    if array.shape[1:] != HEADS[head] or array.dtype.kind != "f":
        raise UsageError(
            f"{head} is {array.dtype} {array.shape}; expected real numbers (n, "
            f"{', '.join(map(str, HEADS[head]))})"
        )
