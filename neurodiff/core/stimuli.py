"""Stimuli: what was shown, by id, loaded when it is asked for.

Examples
--------
>>> table = pd.DataFrame({"id": ["a", "b"], "category": ["cup", "lamp"], "height": [0.1, 0.4]})
>>> stimuli = Stimuli(table, None, None)
>>> stimuli["b"].category, stimuli["b"].factors
('lamp', {'height': 0.4})
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError, suggest
from neurodiff.core.safe_io import load_mesh, open_picture, read_csv

if TYPE_CHECKING:
    import PIL.Image
    import trimesh

MESH_SUFFIXES = (".glb", ".obj", ".ply", ".stl", ".off")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_RESERVED = ("id", "category", "caption", "captions", "mesh", "image", "simulated")


@dataclass(frozen=True)
class Stimulus:
    """One stimulus: ``id``, ``category``, ``caption`` and its continuous ``factors``."""

    id: str
    category: str
    caption: str
    factors: dict[str, float] = field(default_factory=dict)
    _mesh: Callable[[str], Any] | None = field(default=None, repr=False, compare=False)
    _image: Callable[[str], Any] | None = field(default=None, repr=False, compare=False)

    def mesh(self) -> trimesh.Trimesh:
        """The object's mesh.

        Raises
        ------
        DataError : there is none, or its file is broken; the id is named.
        """
        return _loaded(self.id, self._mesh, "mesh")

    def image(self) -> PIL.Image.Image:
        """The picture that was shown.

        Raises
        ------
        DataError : there is none, or its file is broken; the id is named.
        """
        return _loaded(self.id, self._image, "image")


class Stimuli:
    """Lazy sequence of :class:`Stimulus` by id.

    Parameters
    ----------
    table : columns id, and if known category, caption and captions (a tuple of several, where
        more than one is known); every further numeric column is a factor.
    load_mesh, load_image : functions of an id, or None where there are none.
    simulated : whether the stimuli were made by a simulation.

    Raises
    ------
    DataError : no id, an empty id, or an id that is there twice.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        load_mesh: Callable[[str], Any] | None = None,
        load_image: Callable[[str], Any] | None = None,
        simulated: bool = False,
    ) -> None:
        if "id" not in table:
            raise DataError(f"the stimulus table has no column id; it has {list(table.columns)}")
        table = table.reset_index(drop=True).copy()
        if table["id"].isna().any():
            raise DataError(
                f"the stimulus table has no id in row {int(table['id'].isna().argmax())}"
            )
        table["id"] = pd.Series([str(value) for value in table["id"]], dtype=object)
        twice = table["id"][table["id"].duplicated()]
        if len(twice):
            raise DataError(f"the stimulus id {twice.iloc[0]!r} is there twice; ids must differ")
        for column in ("category", "caption"):
            if column not in table:
                table[column] = ""
            values = table[column].where(table[column].notna(), "")
            table[column] = pd.Series([str(value) for value in values], dtype=object)
        self.table = table
        self.load_mesh = load_mesh
        self.load_image = load_image
        self.simulated = bool(simulated)
        self.factor_names = [
            str(column)
            for column in table.columns
            if column not in _RESERVED
            and pd.api.types.is_numeric_dtype(table[column])
            and not pd.api.types.is_bool_dtype(table[column])
        ]
        self._row = {name: row for row, name in enumerate(table["id"])}

    @classmethod
    def from_folder(
        cls,
        root: str | os.PathLike[str],
        table: pd.DataFrame | str | os.PathLike[str] | None = None,
        *,
        simulated: bool = False,
    ) -> Stimuli:
        """From a folder with ``<id>.glb`` (or obj, ply, stl, off) and ``<id>.png`` (or jpg, webp).

        Parameters
        ----------
        root : the folder.
        table : DataFrame or CSV; columns ``mesh`` and ``image`` may name files below ``root``.
            Without a table every file's stem is an id.

        Raises
        ------
        MissingDataError : there is no such folder.
        DataError : nothing to show in it, a path that leads out of it.
        """
        folder = Path(root)
        if not folder.is_dir():
            raise MissingDataError(f"{folder} is not a folder; give the folder of the stimuli")
        if table is None:
            known = (*MESH_SUFFIXES, *IMAGE_SUFFIXES)
            stems = sorted({p.stem for p in folder.iterdir() if p.suffix.lower() in known})
            if not stems:
                raise DataError(f"{folder} has no file that ends in {', '.join(known)}")
            table = pd.DataFrame({"id": stems})
        elif not isinstance(table, pd.DataFrame):
            table = read_csv(table, columns=("id",), dtype={"id": str, "category": str})
        listed: pd.DataFrame = table
        files = listed.astype({"id": str}).set_index("id")

        def find(name: str, column: str, suffixes: tuple[str, ...]) -> Path:
            stated = files[column].get(name) if column in files else None
            names = [f"{name}{suffix}" for suffix in suffixes]
            if isinstance(stated, str) and stated:
                names = [stated]
            for candidate in names:
                path = folder / candidate
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise DataError(f"stimulus {name!r}: {candidate} leads out of {folder}")
                if path.is_file():
                    return path
            raise MissingDataError(
                f"stimulus {name!r} has no {column}: {folder / names[0]} is missing"
            )

        return cls(
            listed,
            lambda name: _open_mesh(find(name, "mesh", MESH_SUFFIXES)),
            lambda name: _open_image(find(name, "image", IMAGE_SUFFIXES)),
            simulated,
        )

    @property
    def ids(self) -> list[str]:
        """All ids, in order."""
        return list(self._row)

    def categories(self) -> list[str]:
        """Category of each stimulus, aligned with ``ids``."""
        return list(self.table["category"])

    def captions(self, name: str) -> tuple[str, ...]:
        """Every caption of a stimulus that is not empty; none where none is known."""
        row = self.table.iloc[self._find(name)]
        several = row["captions"] if "captions" in self.table else (row["caption"],)
        return tuple(str(text) for text in several if str(text).strip())

    def select(self, ids: Iterable[str]) -> Stimuli:
        """Only the stimuli with these ids, in this order."""
        rows = [self._find(name) for name in ids]
        return Stimuli(self.table.iloc[rows], self.load_mesh, self.load_image, self.simulated)

    def __getitem__(self, name: str) -> Stimulus:
        row = self.table.iloc[self._find(name)]
        factors = {
            factor: float(row[factor])
            for factor in self.factor_names
            if not math.isnan(row[factor])  # factors of other categories
        }
        return Stimulus(
            row["id"], row["category"], row["caption"], factors, self.load_mesh, self.load_image
        )

    def __len__(self) -> int:
        return len(self._row)

    def __iter__(self) -> Iterator[Stimulus]:
        return (self[name] for name in self._row)

    def __contains__(self, name: object) -> bool:
        return str(name) in self._row

    def __repr__(self) -> str:
        kinds = len(set(self.table["category"]) - {""})
        label = ", simulated" if self.simulated else ""
        return f"<Stimuli {len(self)} ids, {kinds} categories{label}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.table.head(5).to_html(index=False)}"

    def _find(self, name: object) -> int:
        row = self._row.get(str(name))
        if row is None:
            raise UsageError(
                f"there is no stimulus {str(name)!r} among {len(self)}.{suggest(name, self._row)}"
            )
        return row


def _loaded(name: str, load: Callable[[str], Any] | None, what: str) -> Any:
    if load is None:
        raise MissingDataError(f"stimulus {name!r} has no {what}: none come with these stimuli")
    try:
        return load(name)
    except NeurodiffError as error:
        if f"stimulus {name!r}" in str(error) or not isinstance(error, DataError):
            raise
        raise type(error)(f"the {what} of stimulus {name!r} could not be read ({error})") from None
    except (OSError, ValueError, KeyError, IndexError) as error:
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        kind = MissingDataError if isinstance(error, FileNotFoundError) else DataError
        raise kind(f"the {what} of stimulus {name!r} could not be read ({first})") from error


def _open_mesh(path: Path) -> Any:
    return load_mesh(path)


def _open_image(path: Path) -> Any:
    return open_picture(path)
