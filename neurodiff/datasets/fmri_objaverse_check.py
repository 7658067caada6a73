"""What is missing or broken in a copy of fMRI-Objaverse, without stopping at the first problem."""

from __future__ import annotations

from pathlib import Path

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.flat_trials_check import check_trials, count_table
from neurodiff.datasets.fmri_objaverse_files import (
    CAPTIONS,
    LISTS,
    Caption,
    Shown,
    list_path,
    mesh_path,
    npy_folder,
    npy_path,
    read_captions,
    read_list,
    split_by_hash,
)
from neurodiff.datasets.fmri_shape_files import subject_folder, subjects_in


def check_fmri_objaverse(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """Everything that is missing or broken; reads every trial, and looks for every mesh.

    Parameters
    ----------
    root : folder of the data set.
    subject : one subject, or None for all folders ``sub-*``.
    """
    root = Path(root)
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    names = subjects_in(root) if subject is None else [subject_folder(subject)]
    findings: list[Finding] = []
    if not names:
        findings.append(
            Finding.missing("subject", root, "there is no folder sub-*", "download a subject")
        )
    captions = _captions(root, findings)
    objects = _lists(root, captions, findings)
    for name in names:
        try:
            folder = npy_folder(root, name)
        except MissingDataError as error:
            findings.append(Finding.missing(name, root / name, str(error), "download the subject"))
        else:
            findings += check_trials(folder, {npy_path(folder, one): one.split for one in objects})
    if objects:
        findings.append(
            count_table(root, [one.category for one in objects], [one.split for one in objects])
        )
        findings += _check_captions(root / CAPTIONS, objects, captions)
        findings += _check_meshes(root, objects)
    return findings


def _captions(root: Path, findings: list[Finding]) -> dict[str, Caption]:
    path = root / CAPTIONS
    try:
        captions = read_captions(path)
    except MissingDataError as error:
        findings.append(Finding.missing("captions", path, str(error), "download the table"))
    except DataError as error:
        findings.append(Finding.broken("captions", path, str(error), "download it again"))
    else:
        findings.append(Finding.fine("captions", path, f"{len(captions)} captions"))
        return captions
    return {}


def _lists(root: Path, captions: dict[str, Caption], findings: list[Finding]) -> list[Shown]:
    """Objects of the lists; where there is no list at all, those that have captions."""
    if captions and not any(list_path(root, split).is_file() for split in LISTS):
        text = (
            f"there is no {' or '.join(LISTS.values())}: open with split='hash', which is no "
            "published split"
        )
        findings.append(Finding.note("list", root, text))
        return split_by_hash(captions.values())
    objects: dict[str, Shown] = {}
    for split in LISTS:
        path = list_path(root, split)
        try:
            found = read_list(path, split)
        except MissingDataError as error:
            findings.append(Finding.missing("list", path, str(error), "add the list"))
            continue
        except DataError as error:
            findings.append(Finding.broken("list", path, str(error), "get it again"))
            continue
        findings.append(Finding.fine("list", path, f"{len(found)} objects"))
        both = [one for one in found if objects.get(one.uid, one).split != split]
        if both:
            text = f"{len(both)} objects are in both lists, first {both[0].key}"
            findings.append(Finding.broken("list", path, text, "remove them from one list"))
        for one in found:
            objects.setdefault(one.uid, one)
    return list(objects.values())


def _check_captions(
    path: Path, objects: list[Shown], captions: dict[str, Caption]
) -> list[Finding]:
    if not captions:
        return []
    findings = []
    without = [one for one in objects if one.uid not in captions]
    if without:
        text = f"{len(without)} of {len(objects)} objects have no caption, first {without[0].key}"
        findings.append(Finding.note("captions", path, text))
    other = [o for o in objects if o.uid in captions and captions[o.uid].category != o.category]
    if other:
        text = (
            f"{len(other)} objects have another category than in the list, which counts, first "
            f"{other[0].key}: {captions[other[0].uid].category!r}, not {other[0].category!r}"
        )
        findings.append(Finding.note("captions", path, text))
    return findings


def _check_meshes(root: Path, objects: list[Shown]) -> list[Finding]:
    folder = root / "stimuli"
    without = [one for one in objects if mesh_path(root, one) is None]
    if len(without) == len(objects):
        text = "no mesh of any stimulus: decoding works, scores against the true shape do not"
        return [Finding.note("stimuli", folder, text)]
    findings = [Finding.fine("stimuli", folder, f"{len(objects) - len(without)} with a mesh")]
    return findings + [
        Finding.missing(
            "stimulus",
            folder / one.group / f"{one.uid}.glb",
            f"stimulus {one.uid} has no mesh",
            "add it as .glb, or score without it",
        )
        for one in without
    ]
