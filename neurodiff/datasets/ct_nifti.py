"""A processed CT series as NIfTI, with what was done in a JSON file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurodiff.core.atomic import atomic_path, write_json
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.provenance import now, package_version
from neurodiff.datasets.ct_identity import identity_of
from neurodiff.datasets.ct_series import CTSeries


def write_nifti(
    series: CTSeries,
    hu: np.ndarray,
    path: str | Path,
    *,
    mode: Literal["link", "deidentify"] = "link",
    provenance: Mapping[str, Any] | None = None,
    key: str | bytes | None = None,
) -> list[Path]:
    """Write slices as NIfTI in float32 HU, and ``<name>.json`` beside it.

    A tilted series keeps its pixels: its sheared affine stands in the sform (code 1, scanner),
    which a qform cannot hold (code 0). Otherwise both have code 1.

    Parameters
    ----------
    series : what was processed.
    hu : (slices, rows, columns) like ``series.hu``; padding is written as -1024.
    path : ends in ``.nii`` or ``.nii.gz``.
    mode, key : whether the JSON names the source slices by their own identifiers, or by new ones,
        as `write_series` has it.
    provenance : put into the JSON.

    Returns
    -------
    The two paths.

    Raises
    ------
    UsageError : another shape or suffix.
    DataError : slices that are unevenly spaced, which NIfTI cannot hold; NaN; a full disk.
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path} does not end in .nii or .nii.gz")
    if np.asarray(hu).shape != series.hu.shape:
        raise UsageError(f"hu has shape {np.asarray(hu).shape} and the series {series.hu.shape}")
    if not np.isfinite(hu).all():
        raise DataError("the values to write hold NaN or infinity; a pixel needs a number of HU")
    if not series.stack.even:
        raise DataError(
            f"the slices of {series.name or 'the series'} are unevenly spaced, which NIfTI cannot "
            "hold; write DICOM, or save series.volume() or the processed volume"
        )
    identity = identity_of(mode, key, "remove")
    values = np.where(series.padding, np.float32(-1024), np.asarray(hu, np.float32))
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), series.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(series.affine, code=1)
    image.set_qform(series.affine if series.stack.straight else None, code=int(series.regular))
    facts = series.facts
    about = {
        "unit": "HU",
        "software": f"neurodiff {package_version()}",
        "made": now(),
        "scanner": {"vendor": facts.vendor, "model": facts.model},
        "acquired_kernel": list(facts.kernel),
        "notes": [note for note in series.notes if not note.startswith("left out")],
        "sources": [
            None if source.interpolated else identity.uid(source.sop_instance)
            for source in series.sources
        ],
        "hu_change": _change(series, values),
        "provenance": dict(provenance or {}),
    }
    beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
    write_json(beside, about)
    return [path, beside]


def _change(series: CTSeries, values: np.ndarray) -> dict[str, float]:
    """Mean of before, after and their difference in HU, where something was measured."""
    measured = ~series.padding
    before, after = series.hu[measured], values[measured]
    return {
        "mean_before": float(before.mean(dtype=float)),
        "mean_after": float(after.mean(dtype=float)),
        "largest_change": float(np.abs(after - before).max(initial=0.0)),
    }
