"""Which pipeline a recipe, a run or a model is of: a key of the recipe says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurodiff.core.config import find_shared
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json, read_yaml

MIND3D, IMAGES, SCANS = "mind3d", "brain-diffuser", "ldae"
"""Pipelines that can be fitted; a recipe without the key ``pipeline`` is of the first."""


def pipeline_of(recipe: str) -> str:
    """By a recipe's name or path. One that cannot be read is left to its loader.

    Raises
    ------
    UsageError : it is of a pipeline that is not known.
    """
    try:
        values = read_yaml(find_shared("pipelines", recipe))
    except (DataError, UsageError):
        return MIND3D
    return _known(values.get("pipeline") if isinstance(values, dict) else None, recipe)


def pipeline_of_run(folder: Path) -> str:
    """By a run's folder. What is no run is left to the verb, which says so.

    Raises
    ------
    UsageError : it is of a pipeline that is not known.
    """
    try:
        recipe = Run.open(folder).recipe
    except DataError:
        return MIND3D
    return _known(recipe.get("pipeline"), str(folder))


def pipeline_of_model(folder: Path) -> str:
    """By the folder of a model, or of a run that has one."""
    from neurodiff.pipelines.brain_diffuser_files import is_model

    for place in (folder, folder / "model"):
        try:
            index = read_json(place / "model_index.json")
        except DataError:
            continue
        if isinstance(index, dict) and index.get("pipeline") == "LDAE":
            return SCANS
    try:
        return IMAGES if is_model(folder) or is_model(folder / "model") else MIND3D
    except DataError:
        return MIND3D


def _known(name: Any, where: str) -> str:
    if name is None:
        return MIND3D
    known = (MIND3D, IMAGES, SCANS)
    if name not in known:
        raise UsageError(
            f"{where} is of the pipeline {name!r}; there are {MIND3D}, {IMAGES} and {SCANS}."
            f"{suggest(name, known)}"
        )
    return str(name)
