"""Files of fMRI-Shape: lists, trials, stimuli; the layout is described in ``fmri_shape``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_images import open_picture
from neurodiff.core.safe_meshes import load_mesh as read_mesh
from neurodiff.core.stimuli import MESH_SUFFIXES, Stimuli

CLASSES = {
    "02691156": "airplane",
    "02747177": "trash bin",
    "02773838": "bag",
    "02801938": "basket",
    "02808440": "bathtub",
    "02818832": "bed",
    "02828884": "bench",
    "02843684": "birdhouse",
    "02871439": "bookshelf",
    "02876657": "bottle",
    "02880940": "bowl",
    "02924116": "bus",
    "02933112": "cabinet",
    "02942699": "camera",
    "02946921": "can",
    "02954340": "cap",
    "02958343": "car",
    "02992529": "cellphone",
    "03001627": "chair",
    "03046257": "clock",
    "03085013": "keyboard",
    "03207941": "dishwasher",
    "03211117": "display",
    "03261776": "earphone",
    "03325088": "faucet",
    "03337140": "file cabinet",
    "03467517": "guitar",
    "03513137": "helmet",
    "03593526": "jar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03691459": "loudspeaker",
    "03710193": "mailbox",
    "03759954": "microphone",
    "03761084": "microwave oven",
    "03790512": "motorcycle",
    "03797390": "mug",
    "03928116": "piano",
    "03938244": "pillow",
    "03948459": "pistol",
    "03991062": "flowerpot",
    "04004475": "printer",
    "04074963": "remote control",
    "04090263": "rifle",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04256520": "sofa",
    "04330267": "stove",
    "04379243": "table",
    "04401088": "telephone",
    "04460130": "tower",
    "04468005": "train",
    "04530566": "watercraft",
    "04554684": "washing machine",
}
"""The 55 classes of ShapeNetCore by WordNet synset; another synset is shown by its number."""

CORE_SYNSETS = (
    *("02691156", "02828884", "02933112", "02958343", "03001627", "03211117", "03636649"),
    *("03691459", "04090263", "04256520", "04379243", "04401088", "04530566"),
)
"""The 13 classes of the core set: the only ones that training sees."""

LISTS = {"train": "core_train_list.txt", "test": "core_test_list.txt"}
"""Split -> list of subjects 1 to 8; see `lists_of` for the others."""

SPLITS = ("core", "across-person", "across-person-across-class")

TESTED = {"across-person": (9,), "across-person-across-class": (11, 12, 13)}
"""Split across people -> subjects that it can be tested on; the first is the published one."""

MARK = "SIMULATED.txt"
"""A folder with this file was written by `simulated.release`: it is opened as simulated."""


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


def read_lists(root: Path, lists: Mapping[str, str]) -> list[Entry]:
    """Entries of the lists, by split; no object may be in two.

    Raises
    ------
    MissingDataError : no folder, or no list.
    DataError : a list that is broken, an object in two of them, or no trial at all.
    """
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
    """``sub-0001/npy_data`` as on the hub, or ``sub-0001`` where that level was left out.

    Raises
    ------
    MissingDataError : no such subject, or no trials of it; names the subjects that are there.
    """
    own = root / subject_folder(subject)
    folder = own / "npy_data"
    if folder.is_dir():
        return folder
    if next(own.glob("*/*.npy"), None) is not None:
        return own
    there = subjects_in(root)
    raise MissingDataError(
        f"{folder} is not a folder; below {root} there is {', '.join(there) or 'no subject'}"
    )


def is_simulated(root: Path) -> bool:
    """Whether the folder says that it was simulated."""
    return (root / MARK).is_file()


def subjects_in(root: Path) -> list[str]:
    """Folders ``sub-*``, sorted."""
    return sorted(path.name for path in root.glob("sub-*") if path.is_dir())


def npy_path(folder: Path, entry: Entry) -> Path:
    """The trial of an object."""
    return folder / entry.synset / f"{entry.model}.npy"


def stimulus_ids(entries: Sequence[Entry]) -> dict[Entry, str]:
    """Model ids; with the synset where two classes share a model."""
    uses = Counter(entry.model for entry in entries)
    return {
        entry: entry.model if uses[entry.model] == 1 else f"{entry.synset}-{entry.model}"
        for entry in entries
    }


def open_stimuli(root: Path, entries: Sequence[Entry], ids: Mapping[Entry, str]) -> Stimuli:
    """Categories and captions of the entries; meshes and pictures where they are there.

    fMRI-Shape has no captions of its own: "a lamp" is made of the class.
    """
    by_id = {ids[entry]: entry for entry in entries}
    categories = [CLASSES.get(entry.synset, entry.synset) for entry in by_id.values()]
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
        return read_mesh(path)

    def load_image(name: str) -> Any:
        return read_view(root, name, by_id[name].model)

    return Stimuli(table, load_mesh, load_image, simulated=is_simulated(root))


def read_view(root: Path, name: str, file: str) -> Any:
    """The picture ``stimulus_views/<file>.png`` of stimulus ``name``, RGB.

    Raises
    ------
    MissingDataError : there is none.
    """
    path = root / "stimulus_views" / f"{file}.png"
    if not path.is_file():
        raise MissingDataError(f"stimulus {name!r} has no picture: {path} is missing")
    return open_picture(path)


def mesh_path(root: Path, entry: Entry) -> Path | None:
    """``stimuli/<synset>/<id>.obj`` (or another suffix), or ShapeNet's folder of a model."""
    place = root / "stimuli" / entry.synset
    names = [f"{entry.model}{suffix}" for suffix in MESH_SUFFIXES]
    names += [f"{entry.model}/model.obj", f"{entry.model}/models/model_normalized.obj"]
    return next((place / name for name in names if (place / name).is_file()), None)
