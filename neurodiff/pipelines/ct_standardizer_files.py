"""A standardizer as a folder: the mapping, a JSON a filter, settings and what each fit found."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from neurodiff.core.atomic import replaced_folder, write_json
from neurodiff.core.config import check
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import read_json
from neurodiff.pipelines.ct_mapping import CTMapping
from neurodiff.pipelines.ct_networks import FOLDER
from neurodiff.pipelines.ct_pairs import FitReport
from neurodiff.pipelines.ct_standardizer import CTStandardizer, plain_numbers
from neurodiff.pipelines.ct_support import StandardizerSettings

if TYPE_CHECKING:
    from typing import Any

_MAPPING, _SETTINGS = "mapping.yaml", "settings.json"


def save_pretrained(standardizer: CTStandardizer, folder: str | os.PathLike[str]) -> Path:
    """``mapping.yaml``, a JSON a filter, ``settings.json``, and networks where there are."""
    folder = Path(folder)
    if standardizer.mapping is None:
        raise UsageError("this standardizer holds no filter; fit it or load a mapping")
    standardizer.mapping.save(folder / _MAPPING)
    write_json(
        folder / _SETTINGS,
        {
            "settings": asdict(standardizer.settings),
            "fits": {name: plain_numbers(asdict(fit)) for name, fit in standardizer.fits.items()},
        },
    )
    networks = None if standardizer.folder is None else standardizer.folder / FOLDER
    if (
        networks is not None
        and networks.is_dir()
        and networks.resolve() != (folder / FOLDER).resolve()
    ):
        with replaced_folder(folder / FOLDER) as new:
            shutil.copytree(networks, new, dirs_exist_ok=True)
    return folder


def from_pretrained(folder: str | os.PathLike[str]) -> CTStandardizer:
    """Read what `save_pretrained` wrote."""
    folder = Path(folder)
    if not (folder / _MAPPING).is_file():
        raise MissingDataError(f"{folder} holds no {_MAPPING}; give a standardizer's folder")
    values = read_json(folder / _SETTINGS)
    try:
        fits = {
            name: FitReport(
                **{
                    **fit,
                    "coherence_limit": _or_infinity(fit["coherence_limit"]),
                    "warnings": tuple(fit["warnings"]),
                }
            )
            for name, fit in values["fits"].items()
        }
        settings = check(values["settings"], StandardizerSettings, where=str(folder))
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise DataError(f"{folder / _SETTINGS} is not what was saved: {error}") from None
    return CTStandardizer(CTMapping.load(folder / _MAPPING), settings, fits, folder)


def _or_infinity(value: Any) -> float:
    return float("inf") if value is None else float(value)
