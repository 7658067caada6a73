"""BIDS derivatives: names of files, and the description of the folder that holds them.

Source: BIDS 1.10, "Derivatives" (dataset_description.json with DatasetType, GeneratedBy and
SourceDatasets; entities in a fixed order; ``desc`` for what the standard has no word for).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurodiff.core.atomic import atomic_write, write_json
from neurodiff.core.errors import UsageError
from neurodiff.core.provenance import package_version

BIDS_VERSION = "1.10.0"
ENTITIES = ("sub", "ses", "task", "acq", "run", "hemi", "space", "den", "res", "stat", "desc")
"""In the order of the standard."""


def derivative_name(entities: Mapping[str, Any], suffix: str, extension: str) -> str:
    """``sub-01_ses-02_desc-codes_T1w.json``: entities in the order of the standard.

    Values lose what a BIDS label may not hold (letters and digits are left); one that loses all is
    refused, and so is an entity that the standard does not have.

    Examples
    --------
    >>> derivative_name({"desc": "ldae", "sub": "CN_01", "ses": None}, "T1w", ".nii.gz")
    'sub-CN01_desc-ldae_T1w.nii.gz'
    """
    if unknown := sorted(set(entities) - set(ENTITIES)):
        raise UsageError(f"BIDS names have no entity {unknown[0]!r}; use {', '.join(ENTITIES)}")
    parts = []
    for key in ENTITIES:
        value = entities.get(key)
        if value is None or value == "":
            continue
        parts.append(f"{key}-{label(value)}")
    return "_".join([*parts, suffix]) + extension


def label(value: Any) -> str:
    """Letters and digits of a value.

    Raises
    ------
    UsageError : none is left.
    """
    text = re.sub(r"[^A-Za-z0-9]", "", str(value))
    if not text:
        raise UsageError(f"{value!r} gives no BIDS label; name it with letters and digits")
    return text


def write_dataset_description(
    folder: Path,
    name: str,
    *,
    what: str,
    sources: Sequence[Mapping[str, str]] = (),
    ignored: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """``dataset_description.json``, and ``.bidsignore`` for files that the standard does not know.

    Parameters
    ----------
    what : one sentence on what was done.
    sources : each with ``URL`` or ``DOI``; no absolute path is written.
    parameters : such as seed and hash of the weights.
    """
    made: dict[str, Any] = {
        "Name": "neurodiff",
        "Version": package_version() or "unknown",
        "Description": what,
    }
    if parameters:
        made["Parameters"] = dict(parameters)
    content: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made],
    }
    if sources:
        content["SourceDatasets"] = [dict(source) for source in sources]
    write_json(folder / "dataset_description.json", content)
    if ignored:
        with atomic_write(folder / ".bidsignore") as file:
            file.write("".join(f"{line}\n" for line in ignored).encode())
    return folder / "dataset_description.json"
