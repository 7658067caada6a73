"""Recipes of the linear mode: settings in a YAML file under ``pipelines/``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neurodiff.core.config import find_shared, load
from neurodiff.core.safe_io import read_yaml
from neurodiff.pipelines.ct_support import StandardizerSettings


@dataclass(frozen=True, kw_only=True)
class CTLinearRecipe:
    """A name and the settings of `CTStandardizer`."""

    name: str
    pipeline: Literal["ct-linear"] = "ct-linear"
    linear: StandardizerSettings = field(default_factory=StandardizerSettings)


def linear_settings(name: str) -> StandardizerSettings:
    """Settings of a recipe, by name or path.

    Examples
    --------
    >>> linear_settings("ct_linear").lock
    0.5
    """
    return load(name, CTLinearRecipe, []).linear


def pipeline_of(name: str) -> str:
    """Which pipeline a recipe is of, by its key ``pipeline``; empty where it has none."""
    values = read_yaml(find_shared("pipelines", name))
    return str(values.get("pipeline", "")) if isinstance(values, dict) else ""
