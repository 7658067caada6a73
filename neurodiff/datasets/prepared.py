"""Reader of what ``neurodiff prepare`` wrote; the layout is described in ``prepare``.

Beside the trials, stimuli are found as in the hub's layout: ``stimuli/<category>/<id>.obj`` (or
ply, glb, stl, off), or ``stimuli/<id>.obj``, and a table ``stimuli.csv`` with id, category and
caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.lazy import LazyFiles
from neurodiff.core.recording import Recording
from neurodiff.core.safe_archives import read_npz
from neurodiff.core.safe_io import read_csv, read_json, read_npy
from neurodiff.core.stimuli import MESH_SUFFIXES, Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.prepare import FORMAT, RECORD, ROIS, TRIALS, subject_label
from neurodiff.datasets.prepare_plan import FOLDERS
from neurodiff.datasets.surface import (
    IMAGE_SIZE,
    FlatImageSpace,
    FlatMapSpace,
    load_visual_cortex,
)

Values = Literal["pixels", "vertices"]


def open_prepared(
    root: str | Path,
    subject: int | str | None = None,
    *,
    values: Values | None = None,
) -> tuple[Recording, Stimuli]:
    """Recording and stimuli of prepared trials.

    Parameters
    ----------
    root : the folder that ``--out`` named.
    subject : 1, ``"0001"`` or ``"sub-0001"``; None is every subject.
    values : ``"vertices"``, 8,921, or ``"pixels"``, 65,536 of the flat map; by default vertices
        where they were kept, else pixels. Vertices are read from flat maps where only these are.

    Raises
    ------
    MissingDataError : no such folder, subject or trial.
    DataError : a broken table or record, subjects with other settings, a file of another shape.
    UsageError : pixels of trials that were kept as vertices only.
    """
    root = Path(root)
    labels = _subjects(root, subject)
    records = [_record(root / label) for label in labels]
    for label, record in zip(labels[1:], records[1:], strict=True):
        if record["settings"] != records[0]["settings"]:
            raise DataError(
                f"{labels[0]} and {label} in {root} were prepared with other settings; open one "
                "subject at a time"
            )
    settings = records[0]["settings"]
    kept = settings.get("keep")
    if values not in (None, "pixels", "vertices"):
        raise UsageError(f"values is {values!r}; expected 'pixels' or 'vertices'")
    if values is None:
        values = "pixels" if kept == "maps" else "vertices"
    if values == "pixels" and kept == "vertices":
        raise UsageError(
            f"{root} holds vertices only; run neurodiff prepare with --keep maps or both"
        )
    text = {name: str for name in ("path", "subject", "session", "stimulus", "folder", "category")}
    tables = [read_csv(root / label / TRIALS, columns=("path",), dtype=text) for label in labels]
    trials = pd.concat(tables, ignore_index=True)
    from_maps = kept != "vertices" and (values == "pixels" or kept == "maps")
    folder = FOLDERS["maps" if from_maps else "vertices"]
    paths = [root / _in_folder(path, folder) for path in trials["path"]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise MissingDataError(
            f"{len(missing)} of {len(paths)} trials are missing, first {missing[0]}; run the same "
            "neurodiff prepare again, which makes them"
        )
    data = LazyFiles(paths, lambda path: _read(path, from_maps, values == "vertices"))
    recording = Recording(
        data=data,
        trials=trials.drop(columns=["path"]),
        rois=_rois(root, labels, values),
        space=FlatMapSpace() if values == "vertices" else FlatImageSpace(),
        unit={"none": "a.u."}.get(settings["zscore"], f"z by {settings['zscore']}"),
        name=f"prepared {', '.join(labels)}",
    )
    return recording, _stimuli(root, trials)


def check_prepared(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """What of prepared trials is missing or broken; reads every file."""
    try:
        labels = _subjects(Path(root), subject)
    except NeurodiffError as error:
        return [Finding.missing("subjects", root, str(error), "run neurodiff prepare")]
    findings = []
    for label in labels:
        place = Path(root) / label
        try:
            recording, _ = open_prepared(root, label)
            for row in range(recording.n_trials):
                recording.data[row]
        except MissingDataError as error:
            findings.append(Finding.missing("trials", place, str(error), "prepare them again"))
        except NeurodiffError as error:
            findings.append(Finding.broken("trials", place, str(error), "prepare them again"))
        else:
            shape = " x ".join(map(str, recording.data.shape))
            findings.append(Finding.fine("trials", place, f"{shape} readable"))
    return findings


def _subjects(root: Path, subject: int | str | None) -> list[str]:
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the folder of neurodiff prepare")
    there = sorted(path.parent.name for path in root.glob(f"sub-*/{TRIALS}"))
    if not there:
        half = sorted(path.parent.name for path in root.glob(f"sub-*/{RECORD}"))
        what = f"{half[0]} was begun and is not complete" if half else "no prepared subject"
        raise MissingDataError(f"{root}: {what}; run neurodiff prepare (again)")
    if subject is None:
        return there
    label = subject_label(str(subject).removeprefix("sub-"))
    if label not in there:
        raise MissingDataError(f"{root} has no subject {subject!r}; there are {', '.join(there)}")
    return [label]


def _record(folder: Path) -> dict:
    record = read_json(folder / RECORD)
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict) or record.get("format") != FORMAT or "zscore" not in settings:
        raise DataError(f"{folder / RECORD} is no record of this version; prepare the trials again")
    return record


def _in_folder(path: str, folder: str) -> str:
    """A trial's path in the other kind of output."""
    parts = Path(path).parts
    if len(parts) != 4 or parts[1] not in FOLDERS.values() or ".." in parts:
        raise DataError(f"the table of trials names {path!r}; prepare the trials again")
    return str(Path(parts[0], folder, *parts[2:]))


def _read(path: Path, is_map: bool, as_vertices: bool) -> np.ndarray:
    if not is_map:
        return read_npy(path, dtype=np.float32, shape=(None, FlatMapSpace().n_features))
    maps = read_npy(path, dtype=np.float32, shape=(None, IMAGE_SIZE, IMAGE_SIZE))
    pixels = maps.reshape(len(maps), -1)
    return FlatImageSpace().to_vertices(pixels) if as_vertices else pixels


def _rois(root: Path, labels: list[str], values: str) -> dict[str, np.ndarray]:
    """The 31 areas, and those of one subject alone where one subject is opened."""
    cortex = load_visual_cortex()
    masks = dict(cortex.areas)
    path = root / labels[0] / ROIS
    if len(labels) == 1 and path.is_file():
        try:
            stored = read_npz(path, ["names", "masks"], text=True)
            own = dict(zip(stored["names"].tolist(), stored["masks"], strict=True))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} is broken ({error}); prepare the trials again") from None
        if any(mask.shape != (cortex.n_vertices,) or mask.dtype != bool for mask in own.values()):
            raise DataError(f"{path} holds other arrays than areas; prepare the trials again")
        masks |= own
    if values == "vertices":
        return masks
    shown = cortex.pixel_vertex.ravel()
    return {name: (shown >= 0) & mask[shown] for name, mask in masks.items()}


def _stimuli(root: Path, trials: pd.DataFrame) -> Stimuli:
    first = trials.drop_duplicates("stimulus")
    table = first[["stimulus", "category"]].rename(columns={"stimulus": "id"})
    listed = root / "stimuli.csv"
    if listed.is_file():
        table = read_csv(listed, columns=("id",), dtype={"id": str, "category": str})
        lost = sorted(set(first["stimulus"]) - set(table["id"]))
        if lost:
            raise DataError(f"{listed} has no row for {len(lost)} stimuli, first {lost[0]!r}")
    place = root / "stimuli"
    if not place.is_dir():
        return Stimuli(table)
    if "mesh" not in table:
        folders = dict(zip(first["stimulus"], first["folder"], strict=True))
        table = table.assign(mesh=[_mesh(place, folders.get(name), name) for name in table["id"]])
    return Stimuli.from_folder(place, table)


def _mesh(place: Path, folder: str | None, name: str) -> str | None:
    """Path of the mesh below ``stimuli``, in the folder of its category if it is there."""
    for suffix in MESH_SUFFIXES:
        if folder and (place / folder / f"{name}{suffix}").is_file():
            return f"{folder}/{name}{suffix}"
    return None
