"""Files of fMRI-Shape: lists, trials, stimuli; the layout is described in ``fmri_shape``."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import read_npy
from neurodiff.core.stimuli import MESH_SUFFIXES, Stimuli
from neurodiff.datasets.surface import IMAGE_SIZE

CORE_CLASSES = {
    "02691156": "airplane",
    "02828884": "bench",
    "02933112": "cabinet",
    "02958343": "car",
    "03001627": "chair",
    "03211117": "display",
    "03636649": "lamp",
    "03691459": "loudspeaker",
    "04090263": "rifle",
    "04256520": "sofa",
    "04379243": "table",
    "04401088": "telephone",
    "04530566": "watercraft",
}
"""The 13 ShapeNet classes of the core set; other classes are shown by their synset number."""

LISTS = {"train": "core_train_list.txt", "test": "core_test_list.txt"}
"""Split -> list of subjects 1 to 8; see `lists_of` for the others."""


@dataclass(frozen=True)
class Entry:
    """One line of a list: an object that was shown."""

    split: str
    synset: str
    model: str


def lists_of(subject: int | str) -> dict[str, str]:
    """Split -> list for a subject: 9 saw the test objects only, 11 to 13 saw 55 classes."""
    number = int(subject_folder(subject).removeprefix("sub-"))
    if number >= 11:
        return {"test": "apac_list.txt"}
    return {"test": LISTS["test"]} if number == 9 else LISTS


def subject_folder(subject: int | str) -> str:
    """``1``, ``"1"`` and ``"sub-0001"`` are ``"sub-0001"``."""
    digits = re.fullmatch(r"(?:sub-)?(\d{1,4})", str(subject))
    if digits is None:
        raise UsageError(f"subject is {subject!r}; give a number such as 1, or 'sub-0001'")
    return f"sub-{int(digits[1]):04d}"


def read_lists(root: Path, lists: dict[str, str]) -> list[Entry]:
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the root of fMRI-Shape")
    entries: dict[tuple[str, str], Entry] = {}
    for split, name in lists.items():
        for entry in read_list(root / "annotations" / name, split):
            first = entries.setdefault((entry.synset, entry.model), entry)
            if first.split != split:
                raise DataError(
                    f"{entry.synset}/{entry.model} is in the {first.split} and the {split} list of "
                    f"{root / 'annotations'}; remove it from one of them"
                )
    if not entries:
        raise DataError(f"the lists in {root / 'annotations'} name no trial; download them again")
    return list(entries.values())


def read_list(path: Path, split: str) -> list[Entry]:
    """Entries of a list; blank lines, a suffix ``.npy`` and Windows line ends are accepted."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingDataError(
            f"{path} is missing; download the folder annotations of the data set"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; download it again") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        text = line.strip().removesuffix(".npy")
        if not text:
            continue
        parts = re.fullmatch(r"(\w[\w-]*)/(\w[\w.-]*)", text)
        if parts is None:
            raise DataError(
                f"{path}, line {number} is {line.strip()!r}; expected <synset>/<model id>"
            )
        entries.append(Entry(split, parts[1], parts[2]))
    return list(dict.fromkeys(entries))


def npy_folder(root: Path, subject: int | str) -> Path:
    folder = root / subject_folder(subject) / "npy_data"
    if not folder.is_dir():
        there = sorted(path.name for path in root.glob("sub-*") if path.is_dir())
        raise MissingDataError(
            f"{folder} is not a folder; below {root} there is {', '.join(there) or 'no subject'}"
        )
    return folder


def npy_path(folder: Path, entry: Entry) -> Path:
    return folder / entry.synset / f"{entry.model}.npy"


def count_frames(path: Path) -> int:
    """Frames of a file by its header alone (which also finds truncated files)."""
    return len(read_trial(path, header_only=True))


def read_trial(path: Path, header_only: bool = False) -> np.ndarray:
    images = read_npy(
        path,
        dtype=np.float32,
        shape=(None, IMAGE_SIZE, IMAGE_SIZE),
        finite=not header_only,
        mmap=header_only,
    )
    if len(images) == 0:
        raise DataError(f"{path} has no frame; download it again")
    return images


def stimulus_ids(entries: list[Entry]) -> dict[Entry, str]:
    """Model ids; with the synset where two classes share a model."""
    uses = Counter(entry.model for entry in entries)
    return {
        entry: entry.model if uses[entry.model] == 1 else f"{entry.synset}-{entry.model}"
        for entry in entries
    }


def open_stimuli(root: Path, entries: list[Entry], ids: dict[Entry, str]) -> Stimuli:
    by_id = {ids[entry]: entry for entry in entries}
    categories = [CORE_CLASSES.get(entry.synset, entry.synset) for entry in by_id.values()]
    table = pd.DataFrame(
        {
            "id": list(by_id),
            "category": categories,
            "caption": [f"{'an' if c[0] in 'aeiou' else 'a'} {c}" for c in categories],
            "synset": [entry.synset for entry in by_id.values()],
        }
    )

    def load_mesh(name: str) -> Any:
        path = mesh_path(root, by_id[name])
        if path is None:
            entry = by_id[name]
            raise MissingDataError(
                f"stimulus {name!r} has no mesh: there is no {root / 'stimuli' / entry.synset}"
                f"/{entry.model} as .obj, .ply, .glb, .off or .stl; add it to score against it"
            )
        import trimesh

        mesh = trimesh.load_mesh(path)
        if len(mesh.faces) == 0:
            raise DataError(f"the mesh of stimulus {name!r}, {path}, has no face; replace it")
        return mesh

    def load_image(name: str) -> Any:
        import PIL.Image

        path = root / "stimulus_views" / f"{by_id[name].model}.png"
        if not path.is_file():
            raise MissingDataError(f"stimulus {name!r} has no picture: {path} is missing")
        with PIL.Image.open(path) as image:
            return image.convert("RGB")

    return Stimuli(table, load_mesh, load_image)


def mesh_path(root: Path, entry: Entry) -> Path | None:
    """``stimuli/<synset>/<id>.obj`` (or another suffix), or ShapeNet's folder of a model."""
    place = root / "stimuli" / entry.synset
    names = [f"{entry.model}{suffix}" for suffix in MESH_SUFFIXES]
    names += [f"{entry.model}/model.obj", f"{entry.model}/models/model_normalized.obj"]
    return next((place / name for name in names if (place / name).is_file()), None)
