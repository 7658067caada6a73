"""Your own recordings: a CSV table with one file a trial, and stimuli beside it.

::

    manifest.csv     path, stimulus, and if known subject, session, run, repeat, split, category
    betas/...        .npy (features,) or (frames, features), or NIfTI with a mask
    stimuli.csv      id, and if known category, caption and continuous factors; optional
    stimuli/         <id>.glb (or obj, ply, stl, off) and <id>.png (or jpg, webp); optional
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.safe_io import read_csv
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding

MANIFEST = "manifest.csv"


def open_manifest(
    root: str | Path,
    subject: int | str | None = None,
    *,
    manifest: str = MANIFEST,
    mask: str | None = None,
    unit: str = "a.u.",
    name: str = "",
    **options: Any,
) -> tuple[Recording, Stimuli]:
    """Recording and stimuli of a folder with a manifest.

    Parameters
    ----------
    root : the folder, or the manifest itself.
    subject : keep only this subject's trials; None keeps all.
    manifest : name of the table inside ``root``.
    mask : NIfTI mask, relative to the folder; needed where the files are NIfTI.
    unit, name, options : handed to `Recording.from_csv`.

    Raises
    ------
    MissingDataError : the table or a file that it names is not there.
    DataError : a broken file, or shapes that differ.
    UsageError : no trial of this subject.
    """
    table_path = _manifest_path(root, manifest)
    folder = table_path.parent
    inside = None if mask is None else folder / mask
    recording = Recording.from_csv(table_path, mask=inside, unit=unit, name=name, **options)
    if subject is not None:
        subjects = list(dict.fromkeys(recording.trials["subject"]))
        if str(subject) not in subjects:
            raise UsageError(
                f"{table_path} has no trial of subject {str(subject)!r}; "
                f"its subjects are {', '.join(subjects)}"
            )
        recording = recording.select((recording.trials["subject"] == str(subject)).to_numpy())
    return recording, _stimuli(folder, recording.trials)


def check_manifest(
    root: str | Path, subject: int | str | None = None, *, manifest: str = MANIFEST, **options: Any
) -> list[Finding]:
    """Everything that is missing or broken; reads every file.

    ``subject`` and ``options`` are those of `open_manifest`.
    """
    try:
        path = _manifest_path(root, manifest)
        columns = {"path": str, "stimulus": str}
        table = read_csv(path, columns=list(columns), dtype=columns)
    except MissingDataError as error:
        return [Finding.missing("manifest", root, str(error), "write the table, see datasets/")]
    except NeurodiffError as error:
        return [Finding.broken("manifest", root, str(error), "correct the table")]
    findings = [Finding.fine("manifest", path, f"{len(table)} trials")]
    absent = [name for name in table["path"].dropna() if not (path.parent / name).is_file()]
    findings += [
        Finding.missing("trial", path.parent / name, "named in the manifest", "add the file")
        for name in absent
    ]
    if absent:
        return findings
    try:
        recording, stimuli = open_manifest(root, subject, manifest=manifest, **options)
    except NeurodiffError as error:
        return [*findings, Finding.broken("trials", path.parent, str(error), "correct the file")]
    shape = " x ".join(map(str, recording.data.shape))
    findings.append(Finding.fine("trials", path.parent, f"{shape} readable"))
    return findings + _check_stimuli(path.parent, recording, stimuli)


def _check_stimuli(folder: Path, recording: Recording, stimuli: Stimuli) -> list[Finding]:
    place = folder / "stimuli"
    if stimuli.load_mesh is None:
        text = "no folder of stimuli: decoding works, scores against the true shape do not"
        return [Finding.note("stimuli", place, text)]
    findings = []
    shown = list(dict.fromkeys(recording.trials["stimulus"]))
    for name in shown:
        try:
            stimuli[name].mesh()
        except MissingDataError as error:
            findings.append(Finding.missing("stimulus", place, str(error), "add its mesh"))
        except NeurodiffError as error:
            findings.append(Finding.broken("stimulus", place, str(error), "replace it"))
    if len(findings) < len(shown):
        good = len(shown) - len(findings)
        findings.append(Finding.fine("stimuli", place, f"{good} with a mesh"))
    return findings


def _manifest_path(root: str | Path, manifest: str) -> Path:
    root = Path(root)
    if root.suffix == ".csv":
        return root
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the folder of {manifest}")
    return root / manifest


def _stimuli(folder: Path, trials: pd.DataFrame) -> Stimuli:
    """The stimuli of the trials, from stimuli.csv and stimuli/ where they are there."""
    listed = folder / "stimuli.csv"
    if listed.is_file():
        table = read_csv(listed, columns=("id",), dtype={"id": str, "category": str})
        missing = sorted(set(trials["stimulus"]) - set(table["id"]))
        if missing:
            raise DataError(
                f"{listed} has no row for {len(missing)} stimuli of the manifest, first "
                f"{missing[0]!r}; add them"
            )
    else:
        first = trials.drop_duplicates("stimulus")
        kept = [column for column in ("category", "caption") if column in first]
        table = first[["stimulus", *kept]].rename(columns={"stimulus": "id"})
    place = folder / "stimuli"
    return Stimuli.from_folder(place, table) if place.is_dir() else Stimuli(table)
