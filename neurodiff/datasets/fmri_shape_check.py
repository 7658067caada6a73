"""What is missing or broken in a copy of fMRI-Shape, without stopping at the first problem."""

from __future__ import annotations

from pathlib import Path

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.flat_trials_check import check_trials, count_table
from neurodiff.datasets.fmri_shape_files import (
    CLASSES,
    LISTS,
    Entry,
    lists_of,
    mesh_path,
    npy_folder,
    npy_path,
    read_list,
    subject_folder,
)

CODE_COPY = 1297
CODE_COPY_NOTE = (
    "1,297 of the 1,300 training objects: this is the code repository's copy, which lacks three "
    "telephones; the data set has the whole list"
)


def check_fmri_shape(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """Everything that is missing or broken, without stopping at the first; reads every file.

    Parameters
    ----------
    root : folder of the data set.
    subject : one subject, or None for all folders ``sub-*``.
    """
    root = Path(root)
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    folders = (
        [root / subject_folder(subject)]
        if subject is not None
        else sorted(path for path in root.glob("sub-*") if path.is_dir())
    )
    findings: list[Finding] = []
    if not folders:
        findings.append(
            Finding.missing("subject", root, "there is no folder sub-*", "download a subject")
        )
    wanted = [lists_of(folder.name) for folder in folders] or [LISTS]
    files = {name: split for lists in wanted for split, name in lists.items()}
    by_list: dict[str, list[Entry]] = {}
    for name, split in files.items():
        path = root / "annotations" / name
        try:
            by_list[name] = read_list(path, split)
        except MissingDataError:
            findings.append(
                Finding.missing("list", path, "the list is missing", "download annotations/")
            )
        except DataError as error:
            findings.append(Finding.broken("list", path, str(error), "download it again"))
        else:
            findings.append(Finding.fine("list", path, f"{len(by_list[name])} trials"))
            if name == LISTS["train"] and len(by_list[name]) == CODE_COPY:
                findings.append(Finding.note("list", path, CODE_COPY_NOTE))
    for folder in folders:
        entries = [e for name in lists_of(folder.name).values() for e in by_list.get(name, [])]
        try:
            place = npy_folder(root, folder.name)
        except MissingDataError as error:
            findings.append(
                Finding.missing(folder.name, folder, str(error), "download the subject")
            )
        else:
            findings += check_trials(place, {npy_path(place, e): e.split for e in entries})
    everything = list(dict.fromkeys(entry for found in by_list.values() for entry in found))
    if everything:
        classes = [CLASSES.get(entry.synset, entry.synset) for entry in everything]
        findings.append(
            count_table(root / "annotations", classes, [entry.split for entry in everything])
        )
        findings += _check_stimuli(root, everything)
    return findings


def _check_stimuli(root: Path, entries: list[Entry]) -> list[Finding]:
    findings = []
    without = [entry for entry in entries if mesh_path(root, entry) is None]
    folder = root / "stimuli"
    if not folder.is_dir():
        text = "no mesh of any stimulus: decoding works, scores against the true shape do not"
        findings.append(Finding.note("stimuli", folder, text))
    else:
        findings += [
            Finding.missing(
                "stimulus",
                folder / entry.synset / entry.model,
                f"stimulus {entry.model} has no mesh",
                "add it as .obj, .ply, .glb, .off or .stl, or score without it",
            )
            for entry in without
        ]
        if len(without) < len(entries):
            count = len(entries) - len(without)
            findings.append(Finding.fine("stimuli", folder, f"{count} with a mesh"))
    views = sum((root / "stimulus_views" / f"{entry.model}.png").is_file() for entry in entries)
    if views:
        findings.append(Finding.fine("pictures", root / "stimulus_views", f"{views} pictures"))
    return findings
