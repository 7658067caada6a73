"""Algonauts 2023: NSD as it was given to the challenge, on fsaverage vertices of visual cortex.

::

    subj01/training_split/training_fmri/{lh,rh}_training_fmri.npy    (pictures, vertices) float32
    subj01/training_split/training_images/train-0001_nsd-00013.png
    subj01/test_split/test_images/test-0001_nsd-00845.png            responses were never given out
    subj01/test_split/test_fmri/{lh,rh}_test_fmri.npy                if you have them
    subj01/roi_masks/{lh,rh}.<class>_challenge_space.npy             label of each vertex
    subj01/roi_masks/{lh,rh}.all-vertices_fsaverage_space.npy        (163842,) which these are
    subj01/roi_masks/mapping_<class>.npy                             number -> name, a pickle

Betas were standardised within each session and averaged over repeats, so that values are z and
have no repeats.  Pictures that were not seen in training follow NSD's last three sessions, not its
shared 1,000; the split here is that of the challenge.

References
----------
Gifford et al. 2023, arXiv 2301.03198; data of Allen et al. 2022.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.lazy import LazyMasks, LazyParts
from neurodiff.core.recording import Recording
from neurodiff.core.safe_images import open_picture
from neurodiff.core.safe_io import read_npy, require_finite
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.nsd_files import HEMISPHERES, subject_name
from neurodiff.datasets.nsd_rois import FsaverageSpace
from neurodiff.datasets.numpy_pickle import read_npy_dictionary

CLASSES = (
    "prf-visualrois", "floc-bodies", "floc-faces", "floc-places", "floc-words", "streams",
)  # fmt: skip
FOLDERS = {"train": "training_split/training", "test": "test_split/test"}
FILES = {"train": "training_fmri", "test": "test_fmri"}
TRAINING = (9841, 9841, 9082, 8779, 9841, 9082, 9841, 8779)
"""Training pictures of each subject, as the challenge states them."""
_PICTURE = re.compile(r"(train|test)-(\d+)_nsd-(\d{5})\.png")


class Algonauts2023:
    """The challenge's release; see `open`."""

    @classmethod
    def open(cls, root: str | Path, subject: int | str = 1) -> tuple[Recording, Stimuli]:
        """Recording (pictures, vertices) in z, left hemisphere first, and the pictures.

        The recording has the training pictures, and the test pictures where their responses are
        there.  The stimuli are all pictures, those without responses too.

        Parameters
        ----------
        root : folder with ``subj01`` and so on.
        subject : 1 to 8, or ``"subj01"``.

        Raises
        ------
        MissingDataError : no responses, or no pictures.
        DataError : files of other types or shapes, or of lengths that differ.
        """
        folder = Path(root) / subject_name(subject)
        if not folder.is_dir():
            raise MissingDataError(f"{folder} is not a folder; give the folder that holds subj01")
        pictures = {split: _pictures(folder, split) for split in FOLDERS}
        parts = {"train": _responses(folder, "train", len(pictures["train"]))}
        if (folder / f"{FOLDERS['test']}_fmri/lh_{FILES['test']}.npy").is_file():
            parts["test"] = _responses(folder, "test", len(pictures["test"]))
        widths = {split: [array.shape[1] for array in arrays] for split, arrays in parts.items()}
        if len({tuple(width) for width in widths.values()}) > 1:
            raise DataError(f"{folder} has responses of {widths} vertices; expected the same")
        width = widths["train"]
        ids = {split: list(found) for split, found in pictures.items()}
        trials = pd.DataFrame(
            {
                "subject": subject_name(subject),
                "stimulus": [name for split in parts for name in ids[split]],
                "split": np.repeat(list(parts), [len(ids[split]) for split in parts]),
            }
        )
        recording = Recording(
            data=TwoHemispheres(list(parts.values())),
            trials=trials,
            rois=open_rois(folder, width),
            space=_space(folder, width),
            unit="z of session",
            name=f"Algonauts 2023 {subject_name(subject)}",
        )
        files = {name: path for found in pictures.values() for name, path in found.items()}
        return recording, Stimuli(pd.DataFrame({"id": list(files)}), None, _loader(files))

    @classmethod
    def check(cls, root: str | Path, subject: int | str | None = None) -> list[Finding]:
        """What is missing or broken; reads every response."""
        return check_algonauts(root, subject)


class TwoHemispheres(LazyParts):
    """Responses of both hemispheres side by side, of one or two splits one after the other."""

    def __init__(self, parts: list[list[np.ndarray]]) -> None:
        self.parts = parts
        lengths = [len(arrays[0]) for arrays in parts]
        super().__init__(lengths, sum(array.shape[1] for array in parts[0]))

    def _read(self, part: int, rows: np.ndarray) -> np.ndarray:
        block = np.concatenate([array[rows] for array in self.parts[part]], axis=1)
        block = block.astype(np.float32, copy=False)
        require_finite(block, "responses of Algonauts 2023")
        return block


def open_rois(folder: Path, width: list[int]) -> Mapping[str, np.ndarray]:
    """ROIs by name: ``V1v``, ``lh.V1v``, ``prf-visualrois``, ...; as in the reader of NSD."""
    makers: dict[str, Callable[[], np.ndarray]] = {}
    for family in CLASSES:
        mapping = folder / "roi_masks" / f"mapping_{family}.npy"
        if not mapping.is_file():
            continue
        names = {int(k): str(v) for k, v in read_npy_dictionary(mapping).items() if int(k) > 0}
        for prefix, sides in (("", (0, 1)), ("lh.", (0,)), ("rh.", (1,))):
            makers[prefix + family] = partial(_roi, folder, family, width, sides, None)
            for number, name in names.items():
                makers[prefix + name] = partial(_roi, folder, family, width, sides, number)
    return LazyMasks(list(makers), partial(_made, makers))


def _made(makers: dict[str, Callable[[], np.ndarray]], name: str) -> np.ndarray:
    return makers[name]()


def _roi(
    folder: Path, family: str, width: list[int], sides: tuple[int, ...], label: int | None
) -> np.ndarray:
    """Vertices with this label, or any where it is None, of these hemispheres."""
    parts = []
    for number, side in enumerate(HEMISPHERES):
        labels = np.zeros(width[number])
        if number in sides:
            path = folder / "roi_masks" / f"{side}.{family}_challenge_space.npy"
            labels = read_npy(path, dtype=(np.number,), shape=(width[number],))
        parts.append(labels > 0 if label is None else labels == label)
    return np.concatenate(parts)


def _space(folder: Path, width: list[int]) -> FsaverageSpace | None:
    """The vertices on fsaverage; None, a space without places, where their file is not there."""
    masks = []
    for side, expected in zip(HEMISPHERES, width, strict=True):
        path = folder / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy"
        if not path.is_file():
            return None
        mask = read_npy(path, dtype=(np.number, np.bool_), shape=(None,)) > 0
        if mask.sum() != expected:
            raise DataError(
                f"{path} has {int(mask.sum())} vertices and the responses {expected}; they are not "
                "of the same subject"
            )
        masks.append(mask)
    return FsaverageSpace(masks[0], masks[1], "fsaverage, Algonauts 2023")


def _responses(folder: Path, split: str, count: int) -> list[np.ndarray]:
    paths = [folder / f"{FOLDERS[split]}_fmri/{side}_{FILES[split]}.npy" for side in HEMISPHERES]
    return [
        read_npy(path, dtype=(np.floating,), shape=(count, None), finite=False, mmap=True)
        for path in paths
    ]


def _pictures(folder: Path, split: str) -> dict[str, Path]:
    """Stimulus id -> file, in the order of the rows of the responses."""
    place = folder / f"{FOLDERS[split]}_images"
    numbered: dict[int, tuple[str, Path]] = {}
    for path in sorted(place.glob("*.png")):
        found = _PICTURE.fullmatch(path.name)
        if found is None or found[1] != split:
            raise DataError(f"{path} is not called {split}-0001_nsd-00013.png or so; rename it")
        numbered[int(found[2])] = (f"nsd-{found[3]}", path)
    if split == "train" and not numbered:
        raise MissingDataError(f"{place} has no pictures; download them, they name the rows")
    if sorted(numbered) != list(range(1, len(numbered) + 1)):
        gap = next(k for k in range(1, len(numbered) + 2) if k not in numbered)
        raise DataError(
            f"{place} has no picture number {gap} of {max(numbered)}; download it again"
        )
    pictures = {name: path for _, (name, path) in sorted(numbered.items())}
    if len(pictures) != len(numbered):
        raise DataError(f"{place} has the same picture of NSD under two numbers; download it again")
    return pictures


def _loader(files: dict[str, Path]) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        return open_picture(files[name])

    return load


def check_algonauts(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """What is missing or broken, for one subject or all folders ``subj0N``."""
    root = Path(root)
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    names = sorted(path.name for path in root.glob("subj0[1-8]")) if subject is None else [
        subject_name(subject)
    ]  # fmt: skip
    if not names:
        return [Finding.missing("subject", root, "no folder subj01 or so", "download a subject")]
    return [finding for name in names for finding in _check_one(root, name)]


def _check_one(root: Path, name: str) -> list[Finding]:
    folder = root / name
    try:
        recording, stimuli = Algonauts2023.open(root, name)
        for start in range(0, recording.n_trials, 256):
            recording.data[start : start + 256]
        rois = len([roi for roi in recording.rois if recording.rois[roi].any()])
    except MissingDataError as error:
        return [Finding.missing(name, folder, str(error), "download it again")]
    except DataError as error:
        return [Finding.broken(name, folder, str(error), "download it again")]
    sizes = recording.trials["split"].value_counts()
    findings = [
        Finding.fine(
            name, folder,
            f"{sizes['train']} + {sizes.get('test', 0)} pictures with responses of "
            f"{recording.n_features} vertices, {rois} ROIs that are not empty",
        )
    ]  # fmt: skip
    expected = TRAINING[int(name[-1]) - 1]
    if sizes["train"] != expected:
        text = f"{sizes['train']} training pictures; the challenge states {expected}"
        findings.append(Finding.broken(f"{name} pictures", folder, text, "download it again"))
    absent = [c for c in CLASSES if not (folder / f"roi_masks/mapping_{c}.npy").is_file()]
    if absent:
        text = f"no names of {', '.join(absent)}"
        findings.append(Finding.missing(f"{name} ROIs", folder, text, "download roi_masks"))
    if len(stimuli) == recording.n_trials and "test" not in sizes:
        text = "no test pictures"
        findings.append(Finding.missing(f"{name} test", folder, text, "download test_split"))
    return findings
