"""What of the Natural Scenes Dataset is there, what is missing and what is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.nsd import ncsnr_paths, session_stem, trial_table
from neurodiff.datasets.nsd_betas import BetaFile, average, opened_hdf5
from neurodiff.datasets.nsd_files import (
    CAPTIONS,
    DESIGN,
    PICTURES,
    SESSIONS,
    SHARED,
    STIMULI,
    TRIALS,
    WITHHELD,
    Design,
    expected_names,
    label_folders,
    ranges,
    read_design,
    session_paths,
    subject_name,
    subject_number,
    volume_folder,
)
from neurodiff.datasets.nsd_rois import (
    PLAIN,
    Grid,
    families,
    label_sources,
    open_grid,
    read_map,
    read_names,
)
from neurodiff.datasets.nsd_stimuli import picture_brick, read_captions

GET = "download it from NSD (see the card nsd)"


def check_nsd(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """Findings about the files that subjects share, then about each subject.

    Every header is compared; values are read of one session a folder of betas, because a session
    takes seconds.  A subject of whom nothing is there is left out unless it is asked for.
    """
    root = Path(root)
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    findings, design = _check_shared(root)
    numbers = [subject_number(subject)] if subject is not None else subjects_in(root)
    if not numbers:
        text = "there is no subject in nsddata/ppdata or nsddata_betas/ppdata"
        findings.append(Finding.missing("subject", root, text, "download a subject"))
    for number in numbers:
        findings += _check_subject(root, number, design)
    return findings


def subjects_in(root: Path) -> list[int]:
    """Numbers of the subjects that have a folder."""
    there = {path.name for part in ("nsddata", "nsddata_betas")
             for path in (root / part / "ppdata").glob("subj0[1-8]")}  # fmt: skip
    return sorted(int(name[-2:]) for name in there)


# ---------------------------------------------------------------------------- shared by subjects


def _check_shared(root: Path) -> tuple[list[Finding], Design | None]:
    findings, design = [], None
    try:
        design = read_design(root)
        text = f"{len(design.order)} trials, {design.pictures.shape[1]} pictures a subject"
        findings.append(Finding.fine("design", root / DESIGN, text))
        shared = design.pictures[:, :SHARED]
        if (shared != shared[:1]).any():
            text = "the first 1,000 pictures differ between subjects, so that there is no test set"
            findings.append(Finding.broken("design", root / DESIGN, text, GET))
    except NeurodiffError as error:
        findings.append(_problem("design", root / DESIGN, error))
    path = root / STIMULI
    try:
        with opened_hdf5(path) as file:
            brick = picture_brick(path, file)
            text = f"{len(brick)} pictures of {' x '.join(map(str, brick.shape[1:3]))}"
            if len(brick) == PICTURES:
                findings.append(Finding.fine("pictures", path, text))
            else:
                text += f"; expected {PICTURES}"
                findings.append(Finding.broken("pictures", path, text, GET))
    except NeurodiffError as error:
        findings.append(_problem("pictures", path, error))
    path = root / CAPTIONS
    try:
        read_captions(path, [0, PICTURES - 1])
        findings.append(Finding.fine("captions", path, f"of {PICTURES} pictures"))
    except NeurodiffError as error:
        findings.append(
            _problem("captions", path, error, "get COCO_73k_annots_curated.npy, or go without text")
        )
    return findings, design


def _problem(what: str, where: Path, error: NeurodiffError, to_do: str = GET) -> Finding:
    make = Finding.missing if isinstance(error, MissingDataError) else Finding.broken
    return make(what, where, str(error), to_do)


# -------------------------------------------------------------------------------- of one subject


def _check_subject(root: Path, subject: int, design: Design | None) -> list[Finding]:
    name = subject_name(subject)
    findings: list[Finding] = []
    folders = sorted((root / "nsddata_betas/ppdata" / name).glob("*/betas_*"))
    if not [folder for folder in folders if folder.is_dir()]:
        where = root / "nsddata_betas/ppdata" / name
        findings.append(Finding.missing(f"{name} betas", where, "no folder of betas", GET))
    spaces = list(dict.fromkeys(folder.parent.name for folder in folders)) or ["func1pt8mm"]
    for space in spaces:
        grid = _check_mask(findings, root, subject, space)
        for folder in folders:
            if folder.parent.name == space and folder.is_dir():
                _check_betas(findings, root, subject, folder, grid, design)
        if grid is not None:
            _check_families(findings, root, subject, space, grid)
    return findings


def roi_place(root: Path, subject: int, space: str) -> Path:
    """Folder of masks and ROIs of a space."""
    if space == "fsaverage":
        return label_folders(root, subject)[-1]
    return volume_folder(root, subject, space) / "roi"


def _check_mask(findings: list[Finding], root: Path, subject: int, space: str) -> Grid | None:
    what, where = f"{subject_name(subject)} mask, {space}", roi_place(root, subject, space)
    try:
        grid = open_grid(root, subject, space, "nsdgeneral")
    except NeurodiffError as error:
        findings.append(_problem(what, where, error))
        return None
    kind = "vertices" if space == "fsaverage" else "voxels"
    findings.append(Finding.fine(what, where, f"nsdgeneral has {grid.space.n_features} {kind}"))
    return grid


def _check_betas(
    findings: list[Finding], root: Path, subject: int, folder: Path, grid: Grid | None,
    design: Design | None,
) -> None:  # fmt: skip
    space, version, most = folder.parent.name, folder.name, SESSIONS[subject]
    what, surface = f"{subject_name(subject)} {version}, {space}", space == "fsaverage"
    found = {k: session_paths(folder, session_stem(k), surface) for k in range(1, most + 1)}
    sound: list[tuple[int, BetaFile]] = []
    for number, paths in found.items():
        if paths is None or grid is None:
            continue
        file = BetaFile(paths, grid.masks, TRIALS, grid.affine)
        try:
            file.check()
        except NeurodiffError as error:
            findings.append(_problem(f"{what}, session {number}", paths[0], error))
        else:
            sound.append((number, file))
    _report_sessions(findings, what, folder, found, surface)
    if sound:
        _check_values(findings, what, *sound[0])
        if design is not None:
            findings.append(_split_sizes(what, folder, design, subject, [k for k, _ in sound]))
    _check_ncsnr(findings, root, subject, space, version, grid)


def _report_sessions(
    findings: list[Finding], what: str, folder: Path,
    found: dict[int, tuple[Path, ...] | None], surface: bool,
) -> None:  # fmt: skip
    most = len(found)
    there = [number for number, paths in found.items() if paths is not None]
    missing = [number for number in found if number not in there]
    text = f"sessions {ranges(there)} of {most}" if there else f"none of {most} sessions"
    first = most - WITHHELD
    if not missing:
        findings.append(Finding.fine(what, folder, text))
    elif there == list(range(1, first + 1)):
        note = f"{text}; open them with sessions={first}, the split before the last 3 were public"
        findings.append(Finding.note(what, folder, note))
    else:
        first_names = expected_names(session_stem(missing[0]), surface)
        text += f"; missing {ranges(missing)}, first {first_names}"
        findings.append(
            Finding.missing(what, folder, text, "download them, or name sessions when you open")
        )


def _check_values(findings: list[Finding], what: str, number: int, file: BetaFile) -> None:
    what = f"{what}, values of session {number}"
    try:
        found = average([file], np.zeros(file.trials, dtype=np.int64), 1)
    except DataError as error:
        findings.append(_problem(what, file.paths[0], error))
        return
    bad = found.missing | found.constant
    mean = float(found.means[0, ~bad].mean()) if not bad.all() else float("nan")
    text = f"mean {mean:.2f} % signal change"
    if bad.any():
        text = (
            f"{int(found.missing.sum())} of {len(bad)} features hold NaN, "
            f"{int(found.constant.sum())} never vary"
        )
        to_do = "open with unusable='drop', or take another mask"
        findings.append(Finding.broken(what, file.paths[0], text, to_do))
    else:
        findings.append(Finding.fine(what, file.paths[0], text))


def _split_sizes(
    what: str, folder: Path, design: Design, subject: int, sessions: list[int]
) -> Finding:
    try:
        table = trial_table(design, subject, sessions).drop_duplicates("stimulus")
    except DataError as error:
        return _problem(f"{what}, split", folder, error)
    sizes = table["split"].value_counts()
    text = f"{sizes.get('train', 0)} pictures to train on, {sizes.get('test', 0)} to test on"
    return Finding.fine(f"{what}, split", folder, text)


def _check_ncsnr(
    findings: list[Finding], root: Path, subject: int, space: str, version: str, grid: Grid | None
) -> None:
    paths = ncsnr_paths(root, subject, space, version)
    what = f"{subject_name(subject)} noise ceiling, {version}, {space}"
    missing = [path for path in paths if not path.is_file()]
    if missing:
        text = "no ncsnr, so that there is no noise ceiling"
        findings.append(Finding.missing(what, missing[0], text, GET))
    elif grid is not None:
        try:
            values = read_map(grid, paths)
        except DataError as error:
            findings.append(_problem(what, paths[0], error))
        else:
            text = f"median ncsnr {np.nanmedian(values):.2f} in the mask"
            findings.append(Finding.fine(what, paths[0], text))


def _check_families(
    findings: list[Finding], root: Path, subject: int, space: str, grid: Grid
) -> None:
    there = families(root, subject, space)
    what, where = f"{subject_name(subject)} ROIs, {space}", roi_place(root, subject, space)
    absent = [name for name in PLAIN if name not in there]
    if absent:
        text = f"no {', '.join(absent)}"
        findings.append(Finding.missing(what, where, text, "download the folder roi"))
    for family in there:
        try:
            names = read_names(root, subject, family)
            labels: set[int] = set()
            for left, right in label_sources(root, subject, space, family).values():
                values = grid.both(left, right, 0)
                labels |= {int(label) for label in np.unique(values) if label > 0}
        except DataError as error:
            findings.append(_problem(f"{what}, {family}", where, error))
            continue
        if names is None:
            text = f"{family}.mgz.ctab is not there; its {len(labels)} ROIs go by number"
            findings.append(Finding.note(f"{what}, {family}", where, text))
        elif labels - set(names):
            text = f"labels {ranges(labels - set(names))} have no name in {family}.mgz.ctab"
            findings.append(Finding.broken(f"{what}, {family}", where, text, GET))
        else:
            text = f"{len(labels)} of {len(names)} named regions are in the mask"
            findings.append(Finding.fine(f"{what}, {family}", where, text))
