"""Real objects for a simulated subject: modelled furniture instead of parametric families.

``objects.csv`` of a folder names its meshes (columns file, name, class).  The subject's responses
are simulated as for any other object; only the shapes are real, and most of their classes are none
that a model of the simulated study was trained on.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_io import read_csv
from neurodiff.core.stimuli import Stimuli

TABLE = "objects.csv"

SAME_CLASS = {"light": "lamp", "armchair": "chair", "desk": "table", "cup/glass": "mug"}
"""Class of the folder -> simulated category that means the same kind of object."""


def real_stimuli(root: str | Path, *, prefix: str = "real") -> Stimuli:
    """Meshes of a folder with ``objects.csv``; ids are ``real-000`` and so on.

    Raises
    ------
    MissingDataError : no such folder or table, or a mesh that it names is not there.
    DataError : a broken table, or a file that leads out of the folder.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise MissingDataError(f"{folder} is not a folder; give the folder of {TABLE} and meshes")
    text = {"file": str, "name": str, "class": str}
    table = read_csv(folder / TABLE, columns=list(text), dtype=text)
    missing = [name for name in table["file"] if not (folder / str(name)).is_file()]
    if missing:
        raise MissingDataError(
            f"{len(missing)} of {len(table)} meshes of {folder / TABLE} are missing, first "
            f"{missing[0]}"
        )
    if table["class"].isna().any():
        raise DataError(f"{folder / TABLE} has no class in some rows; add them")
    listed = pd.DataFrame(
        {
            "id": [f"{prefix}-{Path(name).stem}" for name in table["file"]],
            "category": [SAME_CLASS.get(name, name) for name in table["class"]],
            "caption": table["name"].fillna("").to_numpy(),
            "mesh": table["file"].to_numpy(),
        }
    )
    return Stimuli.from_folder(folder, listed)
