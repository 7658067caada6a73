"""Haxby 2001: one subject looks at pictures of eight categories, in nilearn's layout.

::

    subj1/bold.nii.gz       (i, j, k, volumes), TR 2.5 s
    subj1/labels.txt        a header line, then label and run of each volume
    subj1/mask4_vt.nii.gz   voxels of ventral temporal cortex above 0

Twelve runs of 121 volumes; a run shows each category for one block of 9 volumes, with rest between.
``block_means`` makes one pattern a block, ``leave_one_run_out`` decodes the category from it.

References
----------
Haxby et al. 2001, Science 293, 2425.  Licence of the data: CC BY-SA 3.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace, open_image
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding

CATEGORIES = ("bottle", "cat", "chair", "face", "house", "scissors", "scrambledpix", "shoe")
RUN_VOLUMES = 121
FILES = ("bold.nii.gz", "labels.txt", "mask4_vt.nii.gz")

_CAPTIONS = {"scissors": "a pair of scissors", "scrambledpix": "a scrambled picture"}
_ALPHAS = (1.0, 10.0, 100.0, 1000.0)


class Haxby2001:
    """The doors to the data set; nothing is kept open."""

    @staticmethod
    def open(root: str | Path, subject: int = 1) -> tuple[Recording, Stimuli]:
        """Every volume as a trial: float32 ``(volumes, voxels)`` in scanner units.

        The trials' stimulus is the category or ``"rest"``; the last run is the split ``"test"``.
        `Recording.to_image` gives a NIfTI image.  The stimuli are the eight categories and rest;
        they have captions, but neither pictures nor meshes.

        Raises
        ------
        MissingDataError : a folder or file is not there.
        DataError : files that do not fit together, or values that are not finite.
        """
        bold, labels, mask = (_folder(root, subject) / name for name in FILES)
        space = MaskSpace.open(mask, name=f"Haxby 2001 subject {subject}, mask4_vt")
        table = _read_labels(labels)
        data = _read_volumes(bold, space)
        if len(data) != len(table):
            raise DataError(
                f"{bold} has {len(data)} volumes and {labels} has {len(table)} rows; they belong "
                "to different recordings: download both again"
            )
        trials = pd.DataFrame(
            {
                "subject": f"subj{subject}",
                "run": table["run"],
                "stimulus": table["label"],
                "split": np.where(table["run"] == table["run"].max(), "test", "train"),
            }
        )
        recording = Recording(
            data, trials, {"VT": np.ones(space.n_features, bool)}, space, "scanner units",
            name=f"Haxby 2001 subject {subject}",
        )  # fmt: skip
        return recording, stimuli_of(sorted(set(table["label"])))

    @staticmethod
    def check(root: str | Path, subject: int | None = None) -> list[Finding]:
        """Everything that is missing or broken, for one subject or all folders ``subj*``."""
        root = Path(root)
        if not root.is_dir():
            return [Finding.missing("folder", root, "there is no such folder", "give the data")]
        numbers = [subject] if subject is not None else _subjects(root)
        if not numbers:
            return [Finding.missing("subject", root, "no folder subj1 or so", "download a subject")]
        return [finding for number in numbers for finding in _check_subject(root, number)]


def stimuli_of(labels: list[str]) -> Stimuli:
    """One stimulus a category, with a caption; pictures and meshes do not come with the data."""
    captions = [
        _CAPTIONS.get(name, "nothing" if name == "rest" else f"a {name}") for name in labels
    ]
    return Stimuli(pd.DataFrame({"id": labels, "category": labels, "caption": captions}))


def standardise_runs(recording: Recording) -> Float[np.ndarray, "volumes voxels"]:
    """Linear detrend and z-score of each voxel over all volumes of each run, rest included.

    A voxel that does not vary within a run becomes 0 there.

    Raises
    ------
    UsageError : a run has fewer than 3 volumes.
    """
    data = recording.array().astype(np.float64)
    out = np.zeros(data.shape, np.float32)
    runs = recording.trials["run"].to_numpy()
    for run in np.unique(runs):
        rows = np.flatnonzero(runs == run)
        if len(rows) < 3:
            raise UsageError(f"run {run} has {len(rows)} volumes; a detrend needs at least 3")
        time = np.column_stack([np.ones(len(rows)), np.linspace(-1, 1, len(rows))])
        values = data[rows]
        residuals = values - time @ np.linalg.lstsq(time, values, rcond=None)[0]
        deviation = residuals.std(axis=0)
        varies = deviation > 1e-9 * np.abs(values).max(axis=0)
        out[rows] = np.where(varies, residuals / np.where(varies, deviation, 1.0), 0.0)
    return out


def block_rows(trials: pd.DataFrame) -> list[np.ndarray]:
    """Rows of each block: consecutive volumes of one run with the same category, rest left out."""
    stimulus, run = trials["stimulus"].to_numpy(), trials["run"].to_numpy()
    starts = np.flatnonzero((stimulus[1:] != stimulus[:-1]) | (run[1:] != run[:-1])) + 1
    return [
        rows for rows in np.split(np.arange(len(trials)), starts) if stimulus[rows[0]] != "rest"
    ]


def block_means(recording: Recording) -> Recording:
    """One pattern a block: the mean of its volumes after `standardise_runs`.

    Returns
    -------
    Recording of ``(blocks, voxels)`` with the trials' subject, run, category and split kept; 96
    blocks for a whole subject.

    Raises
    ------
    UsageError : the recording has frames, or no block.
    """
    if recording.frames:
        raise UsageError(f"volumes have shape (volumes, voxels), not {tuple(recording.data.shape)}")
    blocks = block_rows(recording.trials)
    if not blocks:
        raise UsageError("the recording has no block: every volume is rest")
    values = standardise_runs(recording)
    trials = recording.trials.iloc[[rows[0] for rows in blocks]].drop(columns="repeat")
    return Recording(
        np.stack([values[rows].mean(axis=0) for rows in blocks]),
        trials.assign(volumes=[len(rows) for rows in blocks]),
        recording.rois,
        recording.space,
        "z of run",
        recording.simulated,
        f"{recording.name}, block means".lstrip(", "),
    )


@dataclass(frozen=True)
class Decoding:
    """What `leave_one_run_out` returns: one row a pattern (run, truth, predicted)."""

    table: pd.DataFrame

    @property
    def correct(self) -> int:
        """Patterns whose category was told."""
        return int((self.table["truth"] == self.table["predicted"]).sum())

    @property
    def accuracy(self) -> float:
        """Share of patterns whose category was told."""
        return self.correct / len(self.table)

    @property
    def chance(self) -> float:
        """Accuracy of always naming one category, when all are equally frequent."""
        return 1 / self.table["truth"].nunique()


def leave_one_run_out(
    recording: Recording, make_classifier: Callable[[], Any] | None = None
) -> Decoding:
    """Category of each pattern, decoded by a classifier that never saw its run.

    Parameters
    ----------
    recording : patterns ``(trials, voxels)``, as of `block_means`.
    make_classifier : makes a new scikit-learn classifier for each run.  By default a ridge
        classifier whose alpha (1, 10, 100, 1000) is chosen on the training runs alone, by leaving
        out one of them at a time.

    Raises
    ------
    UsageError : fewer than 3 runs, or patterns with frames.
    """
    from sklearn.linear_model import RidgeClassifier

    if recording.frames:
        raise UsageError(f"patterns have shape (trials, voxels), not {recording.data.shape}")
    patterns = recording.array()
    truth = np.array(recording.trials["stimulus"].tolist())
    runs = recording.trials["run"].to_numpy()
    if len(np.unique(runs)) < 3:
        raise UsageError(f"there are {len(np.unique(runs))} runs; leaving one out needs 3 or more")
    predicted = np.full(len(truth), "", dtype=truth.dtype)
    for run in np.unique(runs):
        train, test = runs != run, runs == run
        if make_classifier is None:
            alpha = _best_alpha(patterns[train], truth[train], runs[train])
            classifier = RidgeClassifier(alpha=alpha)
        else:
            classifier = make_classifier()
        predicted[test] = classifier.fit(patterns[train], truth[train]).predict(patterns[test])
    return Decoding(pd.DataFrame({"run": runs, "truth": truth, "predicted": predicted}))


def _best_alpha(patterns: np.ndarray, truth: np.ndarray, runs: np.ndarray) -> float:
    """Alpha with most hits when one run at a time is left out; the larger one of equals."""
    names = np.unique(truth)
    targets = np.where(truth[:, None] == names, 1.0, -1.0)
    hits = np.zeros(len(_ALPHAS), int)
    for run in np.unique(runs):
        train, test = runs != run, runs == run
        scores = _ridge_scores(patterns[train], targets[train], patterns[test])
        hits += (names[scores.argmax(axis=2)] == truth[test]).sum(axis=1)
    return max(zip(hits, _ALPHAS, strict=True))[1]


def _ridge_scores(patterns: np.ndarray, targets: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Scores of a ridge classifier for every alpha, ``(alphas, patterns, categories)``.

    The same as scikit-learn's RidgeClassifier, with one factorisation for all alphas: in the dual
    form, scores = (x - mean) X' (X X' + alpha)^-1 Y + mean of Y.
    """
    centre, offset = patterns.mean(axis=0, dtype=float), targets.mean(axis=0)
    centred = patterns - centre
    values, vectors = np.linalg.eigh(centred @ centred.T)
    rotated = vectors.T @ (targets - offset)
    seen = (new - centre) @ centred.T @ vectors
    return np.stack([seen @ (rotated / (values + alpha)[:, None]) + offset for alpha in _ALPHAS])


def _folder(root: str | Path, subject: int) -> Path:
    folder = Path(root) / f"subj{subject}"
    if not folder.is_dir():
        there = ", ".join(f"subj{number}" for number in _subjects(Path(root)))
        raise MissingDataError(
            f"{folder} is not a folder; below {root} there is {there or 'no subject'}"
        )
    return folder


def _subjects(root: Path) -> list[int]:
    names = [path.name.removeprefix("subj") for path in root.glob("subj*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def _read_labels(path: Path) -> pd.DataFrame:
    """Label and run of each volume; runs are counted from 1."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingDataError(f"{path} is missing; download it with the other files") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; download it again") from None
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdigit():
            raise DataError(f"{path}, line {number} is {line!r}; expected a label and a run number")
        rows.append((words[0], int(words[1]) + 1))
    if not rows:
        raise DataError(f"{path} names no volume; download it again")
    table = pd.DataFrame(rows, columns=["label", "run"])
    unknown = sorted(set(table["label"]) - {*CATEGORIES, "rest"})
    if unknown:
        raise DataError(
            f"{path} has the label {unknown[0]!r}; expected rest or {', '.join(CATEGORIES)}"
        )
    return table


def _read_volumes(path: Path, space: MaskSpace) -> np.ndarray:
    """Values inside the mask, ``(volumes, voxels)``, read a run's length at a time."""
    image = open_image(path)
    if len(image.shape) != 4 or image.shape[:3] != space.mask.shape:
        raise DataError(
            f"{path} has shape {image.shape}; expected {(*space.mask.shape, 'volumes')} as in the "
            "mask"
        )
    if not np.allclose(image.affine, space.affine, atol=1e-3):
        raise DataError(f"{path} and its mask lie in different places; download both again")
    data = np.zeros((image.shape[3], space.n_features), np.float32)
    try:
        for start in range(0, len(data), RUN_VOLUMES):
            part = np.asarray(image.dataobj[..., start : start + RUN_VOLUMES], np.float32)
            data[start : start + RUN_VOLUMES] = part[space.mask].T
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); download it again") from None
    if not np.isfinite(data).all():
        volume, voxel = np.argwhere(~np.isfinite(data))[0]
        raise DataError(f"{path} is not finite in volume {volume}, voxel {voxel} of the mask")
    return data


def _check_subject(root: Path, number: int) -> list[Finding]:
    folder = root / f"subj{number}"
    absent = [name for name in FILES if not (folder / name).is_file()]
    if absent:
        return [
            Finding.missing("file", folder / name, "the file is missing", "download it again")
            for name in absent
        ]
    try:
        recording, _ = Haxby2001.open(root, number)
    except NeurodiffError as error:
        return [Finding.broken("subject", folder, str(error), "download its files again")]
    sizes = recording.trials.groupby("run").size()
    found = f"{recording.n_trials} volumes in {len(sizes)} runs, {recording.n_features} voxels"
    findings = [Finding.fine("subject", folder, found)]
    odd = sizes[sizes != RUN_VOLUMES]
    if len(odd):
        text = f"run {odd.index[0]} has {odd.iloc[0]} volumes instead of {RUN_VOLUMES}"
        findings.append(Finding.note("runs", folder / "labels.txt", text))
    still = int((recording.array().std(axis=0) == 0).sum())
    if still:
        findings.append(Finding.note("voxels", folder / "bold.nii.gz", f"{still} never change"))
    return findings
