"""What is missing or broken in a copy of fMRI-Shape, without stopping at the first problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.fmri_shape_files import (
    LISTS,
    Entry,
    lists_of,
    mesh_path,
    npy_path,
    read_list,
    read_trial,
    subject_folder,
)
from neurodiff.datasets.surface import load_visual_cortex


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
    for folder in folders:
        entries = [e for name in lists_of(folder.name).values() for e in by_list.get(name, [])]
        findings += _check_subject(folder / "npy_data", entries)
    everything = list(dict.fromkeys(entry for found in by_list.values() for entry in found))
    if everything:
        findings += _check_stimuli(root, everything)
    return findings


def _check_subject(folder: Path, entries: list[Entry]) -> list[Finding]:
    name = folder.parent.name
    if not folder.is_dir():
        return [Finding.missing(name, folder, "there is no such folder", "download the subject")]
    findings: list[Finding] = []
    lengths: dict[int, int] = {}
    means: list[float] = []
    outside = 0
    mask = load_visual_cortex().mask
    for entry in entries:
        path = npy_path(folder, entry)
        try:
            images = read_trial(path)
        except MissingDataError:
            findings.append(
                Finding.missing(
                    "trial", path, f"named in the {entry.split} list", "download this file"
                )
            )
        except DataError as error:
            findings.append(Finding.broken("trial", path, str(error), "download this file again"))
        else:
            lengths[len(images)] = lengths.get(len(images), 0) + 1
            outside += bool(images[:, ~mask].any())
            means.append(float(images[:, mask].mean()))
            if not images[:, mask].any():
                findings.append(
                    Finding.broken("trial", path, "all cortex is 0", "download this file again")
                )
    text = ", ".join(f"{count} of {length} frames" for length, count in sorted(lengths.items()))
    findings.append(Finding.fine("trials", folder, f"{sum(lengths.values())} readable ({text})"))
    if len(lengths) > 1:
        findings.append(
            Finding.note("trials", folder, f"{text}; shorter trials repeat their last frame")
        )
    if means and max(np.abs(means)) > 0.5:
        text = (
            f"means of trials lie between {min(means):.1f} and {max(means):.1f}, not near 0, as "
            "published; restandardise='trial' evens them out"
        )
        findings.append(Finding.note("trials", folder, text))
    if outside:
        findings.append(
            Finding.note("trials", folder, f"{outside} have values outside the visual cortex")
        )
    unlisted = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.npy")}
    unlisted -= {f"{entry.synset}/{entry.model}.npy" for entry in entries}
    if unlisted:
        findings.append(
            Finding.note(
                "trials", folder, f"{len(unlisted)} files are in no list, first {min(unlisted)}"
            )
        )
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
