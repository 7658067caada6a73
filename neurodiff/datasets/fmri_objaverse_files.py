"""Files of fMRI-Objaverse: lists, captions, trials, textured stimuli; see ``fmri_objaverse``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_meshes import load_mesh as read_mesh
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.fmri_shape_files import (
    is_simulated,
    read_view,
    subject_folder,
    subjects_in,
)

LISTS = {"train": "train_list.txt", "test": "test_list.txt"}
CAPTIONS = "Object_caption_Cap3D.csv"
HELD_OUT = 20  # one object in 20 where a split is made by the hash of its name


@dataclass(frozen=True)
class Shown:
    """An object that was shown: ``group/uid`` is its place in Objaverse, as in ``000-107/1a2b``."""

    split: str
    category: str
    group: str
    uid: str

    @property
    def key(self) -> str:
        """``<group>/<id>``, as in the lists; the id alone where there are no groups."""
        return f"{self.group}/{self.uid}" if self.group else self.uid


@dataclass(frozen=True)
class Caption:
    """One row of the table of captions."""

    category: str
    key: str
    text: str


def list_path(root: Path, split: str) -> Path:
    """A list in the folder itself, or below ``annotations``."""
    inside = root / "annotations" / LISTS[split]
    return inside if inside.is_file() else root / LISTS[split]


def read_lists(root: Path) -> list[Shown]:
    """Objects of both lists; none may be in both.

    Raises
    ------
    MissingDataError : no folder, or no list.
    DataError : a list that is broken, an object in both, or no object at all.
    """
    _require_folder(root)
    found: dict[str, Shown] = {}
    for split in LISTS:
        path = list_path(root, split)
        for shown in read_list(path, split):
            first = found.setdefault(shown.uid, shown)
            if first.split != split:
                raise DataError(
                    f"{shown.key} is in the {first.split} and the {split} list of {path.parent}; "
                    "remove it from one of them"
                )
    if not found:
        raise DataError(f"the lists in {root} name no object; get them again")
    return list(found.values())


def read_list(path: Path, split: str) -> list[Shown]:
    """Two columns a line, ``category  000-107/<uid>.glb``; a category may hold spaces.

    Blank lines, Windows line ends and the suffixes ``.glb``, ``.npy`` or none are accepted.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingDataError(
            f"{path} is missing; put the lists of the published split there, or pass split='hash' "
            f"to hold one object in {HELD_OUT} out by the hash of its name"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; get it again") from None
    shown = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        parts = text.rsplit(None, 1)
        place = _place(parts[1]) if len(parts) == 2 else None
        if place is None:
            raise DataError(
                f"{path}, line {number} is {text!r}; expected two columns, <category> "
                "<000-000>/<uid>.glb"
            )
        shown.append(Shown(split, parts[0], *place))
    return list(dict.fromkeys(shown))


def read_captions(path: Path) -> dict[str, Caption]:
    """uid -> caption, of a table ``category,uid,caption`` whose captions hold bare commas.

    A line is split at its first two commas and no further.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : another header, or a line with fewer than three fields.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingDataError(f"{path} is missing; download it from the data set") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; download it again") from None
    header = [word.strip() for word in lines[0].split(",")] if lines else []
    if header != ["category", "uid", "caption"]:
        raise DataError(
            f"{path} begins with {(lines or [''])[0][:80]!r}; expected the header "
            "category,uid,caption: download it again"
        )
    captions: dict[str, Caption] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",", 2)]
        place = _place(fields[1]) if len(fields) == 3 else None
        if place is None:
            raise DataError(
                f"{path}, line {number} is {line[:80]!r}; expected category, 000-000/uid and a "
                "caption, with commas between them"
            )
        key = "/".join(part for part in place if part)
        captions.setdefault(place[1], Caption(fields[0], key, _unquoted(fields[2])))
    return captions


def split_by_hash(captions: Iterable[Caption]) -> list[Shown]:
    """Every captioned object, one in `HELD_OUT` as test: by its name alone, so that it stays."""
    shown = []
    for caption in captions:
        group, _, uid = caption.key.rpartition("/")
        number = int(hashlib.sha256(uid.encode()).hexdigest()[:8], 16)
        split = "test" if number % HELD_OUT == 0 else "train"
        shown.append(Shown(split, caption.category, group, uid))
    return shown


def npy_folder(root: Path, subject: int | str) -> Path:
    """``sub-0001/npy_data``, or ``sub-0001`` where that level was left out.

    Raises
    ------
    MissingDataError : no such subject, or no trials of it; names the subjects that are there.
    """
    _require_folder(root)
    own = root / subject_folder(subject)
    folder = own / "npy_data"
    if folder.is_dir():
        return folder
    if next(own.glob("*.npy"), None) is not None:
        return own
    there = subjects_in(root)
    raise MissingDataError(
        f"{folder} is not a folder; below {root} there is {', '.join(there) or 'no subject'}"
    )


def npy_path(folder: Path, shown: Shown) -> Path:
    """The trial of an object."""
    return folder / f"{shown.uid}.npy"


def mesh_path(root: Path, shown: Shown) -> Path | None:
    """``stimuli/<group>/<uid>.glb`` or ``stimuli/<uid>.glb``; also below ``glbs``."""
    places = [
        root / folder / inner / f"{shown.uid}.glb"
        for folder in ("stimuli", "glbs")
        for inner in dict.fromkeys((shown.group, "", shown.category))
    ]
    return next((place for place in places if place.is_file()), None)


def open_stimuli(root: Path, shown: Sequence[Shown], captions: dict[str, Caption]) -> Stimuli:
    """Categories and captions of the objects; textured meshes and pictures are read when asked."""
    by_uid = {one.uid: one for one in shown}
    table = pd.DataFrame(
        {
            "id": list(by_uid),
            "category": [one.category for one in by_uid.values()],
            "caption": [captions[uid].text if uid in captions else "" for uid in by_uid],
        }
    )

    def load_mesh(name: str) -> Any:
        one = by_uid[name]
        path = mesh_path(root, one)
        if path is None:
            raise MissingDataError(
                f"stimulus {name!r} has no mesh: there is no {root / 'stimuli' / one.group}/"
                f"{name}.glb; add it to score against it"
            )
        return read_textured(path)

    def load_image(name: str) -> Any:
        return read_view(root, name, name)

    return Stimuli(table, load_mesh, load_image, simulated=is_simulated(root))


def read_textured(path: Path) -> Any:
    """One mesh of a GLB file: its parts in place, their textures packed into one.

    Raises
    ------
    DataError : a file that is no GLB, or one without a face.
    """
    return read_mesh(path)


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder; give the root of fMRI-Objaverse")


def _place(text: str) -> tuple[str, str] | None:
    """Group and uid of ``000-107/<uid>.glb``; the group may be missing."""
    found = re.fullmatch(r"(?:([\w-]+)/)?([\w-]+?)(?:\.glb|\.npy)?", text)
    return None if found is None else (found[1] or "", found[2])


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text
