"""A simulated study in the layout of a published release: the whole chain before any download.

The folder that is written has the layout, types and value statistics of the hub's releases and a
file ``SIMULATED.txt``, by which the readers mark what they open as simulated.  Values: each run has
an offset and a scale of its own, drawn from the range of the real trials (means 0.7 to 4.9,
standard deviations 2.2 to 4.9 within the visual cortex), as in the releases, whose z-scores are
those of the first run.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.atomic import atomic_write, write_npy
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.datasets.fmri_objaverse_files import CAPTIONS
from neurodiff.datasets.fmri_objaverse_files import LISTS as OBJAVERSE_LISTS
from neurodiff.datasets.fmri_shape_files import CORE_SYNSETS, LISTS, MARK, subject_folder
from neurodiff.datasets.simulated.objects import CATEGORIES, SimulatedObject
from neurodiff.datasets.simulated.study import Study
from neurodiff.datasets.surface import IMAGE_SIZE, load_visual_cortex

MEANS, DEVIATIONS = (0.7, 4.9), (2.2, 4.9)
MARK_TEXT = "Simulated by neurodiff: no brain was recorded, and no published object is here.\n"


def write_fmri_shape(
    study: Study,
    root: str | Path,
    *,
    subject: int = 1,
    train: int | None = None,
    test: int | None = None,
    frames: int = 10,
    resolution: int = 32,
    progress: Progress = SILENT,
) -> Path:
    """Trials, lists and meshes (``.ply``) in the layout of fMRI-Shape; returns ``root``.

    Parameters
    ----------
    train, test : objects of each split, spread over the categories; by default all there are.
    frames : frames of each trial, 1 to 10.
    resolution : cells of a mesh along its longest side.
    """
    root = Path(root)
    place = {
        name: f"{CORE_SYNSETS[CATEGORIES.index(category)]}/{name}"
        for name, category in zip(study.bank.ids, study.bank.categories, strict=True)
        if category in CATEGORIES
    }
    for split, count in (("train", train), ("test", test)):
        names = _chosen(study, split, count)
        _write_text(root / "annotations" / LISTS[split], "".join(f"{place[n]}\n" for n in names))
        own = root / subject_folder(subject) / "npy_data"
        files = {name: own / f"{place[name]}.npy" for name in names}
        _write_trials(study, split, subject, files, frames, progress)
        for name in progress.over(names, f"meshes, {split}"):
            mesh = _mesh(study, name, resolution)
            _write_mesh(root / "stimuli" / f"{place[name]}.ply", mesh)
    _write_text(root / MARK, MARK_TEXT)
    return root


def write_fmri_objaverse(
    study: Study,
    root: str | Path,
    *,
    subject: int = 1,
    train: int | None = None,
    test: int | None = None,
    frames: int = 8,
    resolution: int = 32,
    progress: Progress = SILENT,
) -> Path:
    """The same in the layout of fMRI-Objaverse: captions, and textured meshes (``.glb``)."""
    root = Path(root)
    captions = ["category,uid,caption"]
    for split, count in (("train", train), ("test", test)):
        names = _chosen(study, split, count)
        uids = {name: hashlib.sha256(name.encode()).hexdigest()[:32] for name in names}
        lines = []
        for name in names:
            shown = study.stimuli[name]
            lines.append(f"{shown.category}  000-107/{uids[name]}.glb\n")
            captions.append(f"{shown.category},000-107/{uids[name]},{shown.caption}")
        _write_text(root / OBJAVERSE_LISTS[split], "".join(lines))
        own = root / subject_folder(subject) / "npy_data"
        files = {name: own / f"{uids[name]}.npy" for name in names}
        _write_trials(study, split, subject, files, frames, progress)
        for name in progress.over(names, f"meshes, {split}"):
            mesh = _textured(_mesh(study, name, resolution), name)
            _write_mesh(root / "stimuli" / "000-107" / f"{uids[name]}.glb", mesh)
    _write_text(root / CAPTIONS, "\n".join(captions) + "\n")
    _write_text(root / MARK, MARK_TEXT)
    return root


def as_published(recording: Recording, trial: int, *, seed: int) -> np.ndarray:
    """One simulated trial as the hub has it: float32 ``(frames, 256, 256)``, 0 outside cortex."""
    row = recording.trials.iloc[trial]
    key = item_seed(
        seed, subject=str(row["subject"]), stimulus=f"run {row['run']}", stage="published units"
    )
    rng = numpy_generator(key)
    offset, scale = rng.uniform(*MEANS), rng.uniform(*DEVIATIONS)
    cortex = load_visual_cortex()
    values = offset + scale * recording.data[trial]  # (frames, vertices)
    pixels = (cortex.pixel_weights @ values.T).T.astype(np.float32)
    return np.ascontiguousarray(pixels).reshape(len(values), IMAGE_SIZE, IMAGE_SIZE)


def _write_trials(
    study: Study,
    split: str,
    subject: int,
    files: dict[str, Path],
    frames: int,
    progress: Progress,
) -> None:
    recording = study.record(split, subject=subject, progress=progress)
    if not 1 <= frames <= recording.frames[0]:
        raise UsageError(f"frames is {frames}; a simulated trial has 1 to {recording.frames[0]}")
    names = list(recording.trials["stimulus"])
    for trial in progress.over(range(len(names)), f"trials, {split}", len(names)):
        path = files.get(names[trial])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npy(path, as_published(recording, trial, seed=study.seed)[:frames])


def _chosen(study: Study, split: str, count: int | None) -> list[str]:
    """``count`` objects of a split, taken in turn from each category."""
    names = study.ids(split)
    wanted = len(names) if count is None else count
    if not 1 <= wanted <= len(names):
        raise UsageError(f"{wanted} {split} objects were asked for; the study has {len(names)}")
    kinds = dict(zip(study.bank.ids, study.bank.categories, strict=True))
    turn: Counter[str] = Counter()
    order = {}
    for name in names:
        order[name] = turn[kinds[name]]
        turn[kinds[name]] += 1
    kept = set(sorted(names, key=lambda name: order[name])[:wanted])
    return [name for name in names if name in kept]


def _mesh(study: Study, name: str, resolution: int) -> Any:
    shown = study.stimuli[name]
    return SimulatedObject(name, shown.category, shown.factors, shown.caption).mesh(resolution)


def _textured(mesh: Any, name: str) -> Any:
    """With a texture of two colours that depend on the name, laid on from above."""
    import PIL.Image
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    rng = numpy_generator(item_seed(0, subject="", stimulus=name, stage="texture"))
    pixels = rng.integers(0, 256, (1, 2, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    low, high = mesh.bounds
    uv = ((mesh.vertices - low) / np.maximum(high - low, 1e-6))[:, [0, 2]]
    material = PBRMaterial(baseColorTexture=PIL.Image.fromarray(pixels))
    mesh.visual = TextureVisuals(uv=uv, material=material)
    return mesh


def _write_mesh(path: Path, mesh: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(mesh.export(file_type=path.suffix[1:]))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())
