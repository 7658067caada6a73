"""From a scan to the grid of the model and back, by MONAI's transforms.

The published order: (orientation,) 1.5 mm by linear interpolation, centre crop or pad to 128 x 160
x 128 with the darkest value, each volume scaled to 0 and 1 by its own extremes. The published code
has no step of orientation and expects RAS; protocol ``ldae-2025`` leaves it out, the default turns
the axes first, which changes nothing for a scan in RAS.

What comes back from the model has lost `WHAT_IS_LOST`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.core.atomic import write_csv, write_json
from neurodiff.core.cohort import LEFT_OUT, Cohort
from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import read_json
from neurodiff.core.volume import Volume

_ROUNDING = 1e-3  # voxels of the grid
SMALLEST_MM = 100.0  # an adult brain is longer than this along each axis
WHAT_IS_LOST = (
    "detail finer than the model's voxels",
    "everything outside the model's field of view",
    "what a skull-stripping or bias correction before the model took away",
)


@dataclass(frozen=True, kw_only=True)
class BrainPreprocessing:
    """Settings of `prepare_scan`.

    Attributes
    ----------
    orientation : of the axes first, or None to leave them (``ldae-2025``).
    spacing : of the grid, mm, isotropic.
    shape : voxels (i, j, k) of the grid.
    intensity : ``"minmax"``, as published, or ``"percentile"``: 0 to the percentile ``upper``, cut
        above, so that one bright voxel does not darken a brain.
    upper : the percentile, above 50.
    """

    orientation: str | None = "RAS"
    spacing: float = 1.5
    shape: tuple[int, int, int] = (128, 160, 128)
    intensity: Literal["minmax", "percentile"] = "minmax"
    upper: float = 99.9

    def __post_init__(self) -> None:
        if not self.spacing > 0 or len(self.shape) != 3 or min(self.shape) < 1:
            raise UsageError(
                f"the grid has spacing {self.spacing} and shape {self.shape}; expected mm above 0 "
                "and three numbers from 1"
            )
        if self.intensity not in ("minmax", "percentile") or not 50 < self.upper <= 100:
            raise UsageError(
                f"intensity is {self.intensity!r} and upper {self.upper}; expected 'minmax' or "
                "'percentile', and a percentile above 50"
            )


LDAE_2025 = BrainPreprocessing(orientation=None)
"""The published settings."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """A scan on the model's grid, and what takes values back to the scan's own.

    Attributes
    ----------
    volume : float32 (1, i, j, k) from 0 to 1.
    affine, shape : of the scan.
    low, high : values of the scan that became 0 and 1.
    notes : what was cut off or padded.
    """

    volume: Volume
    affine: np.ndarray
    shape: tuple[int, int, int]
    low: float
    high: float
    notes: tuple[str, ...] = field(default=())

    def to_scan_space(self, values: Volume, *, intensities: bool = False) -> Volume:
        """A map on the model's grid (a decoded scan, a change map) at the scan's own voxels.

        Linear interpolation; 0 outside the model's field of view.

        Parameters
        ----------
        intensities : take 0 and 1 back to ``low`` and ``high``; for scans, not for differences.
        """
        from scipy.ndimage import affine_transform

        if values.shape != self.volume.shape:
            raise UsageError(
                f"the map has shape {values.shape}; the model's grid has {self.volume.shape}"
            )
        there = np.linalg.inv(values.affine) @ self.affine
        parts = [
            affine_transform(
                part, there[:3, :3], there[:3, 3], output_shape=self.shape, order=1, mode="nearest"
            )
            for part in values.data
        ]
        data = np.stack(parts).astype(np.float32) * _within(there, self.shape, values.shape)
        if intensities:
            data = data * np.float32(self.high - self.low) + np.float32(self.low)
        return Volume(data, self.affine, values.unit, values.name)


def prepare_scan(volume: Volume, settings: BrainPreprocessing | None = None) -> Prepared:
    """One scan on the model's grid.

    Raises
    ------
    DataError : several channels, a constant picture, or a volume too small to hold a brain.
    """
    import torch
    from monai.data import MetaTensor
    from monai.transforms import ResizeWithPadOrCrop, Spacing

    settings = settings or BrainPreprocessing()
    what = volume.name or "the volume"
    if volume.channels != 1:
        raise DataError(f"{what} has {volume.channels} channels; the model takes one")
    if min(volume.extent) < SMALLEST_MM:
        extent = " x ".join(f"{mm:.0f}" for mm in volume.extent)
        raise DataError(
            f"{what} covers {extent} mm, less than a brain ({SMALLEST_MM:.0f} mm along each axis); "
            "a scan of the whole brain is needed"
        )
    turned = volume if settings.orientation is None else volume.reoriented(settings.orientation)
    low, high = _window(turned.data, settings, what)
    image = MetaTensor(torch.from_numpy(turned.data.copy()), affine=torch.tensor(turned.affine))
    spaced = Spacing(pixdim=(settings.spacing,) * 3, mode="bilinear")(image)
    whole: Any = ResizeWithPadOrCrop(spatial_size=settings.shape, mode="minimum")(spaced)
    values = np.asarray(whole.numpy(), np.float32)
    if settings.intensity == "minmax":  # of the grid's own values, as published
        low, high = float(values.min()), float(values.max())
        if high == low:
            raise DataError(f"{what} is {low:g} everywhere in the model's field of view")
    values = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    affine = np.asarray(whole.meta["affine"], np.float64)
    return Prepared(
        volume=Volume(values, affine, "0 to 1", volume.name),
        affine=volume.affine,
        shape=volume.shape,
        low=low,
        high=high,
        notes=_notes(tuple(spaced.shape[1:]), settings),
    )


def _within(there: np.ndarray, shape: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray:
    """Which voxels of ``shape`` lie on ``grid``; one at its very edge may miss it by rounding."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = np.ones(shape, bool)
    for row, n in zip(there[:3], grid, strict=True):
        place = row[0] * i + row[1] * j + (row[2] * k + row[3])
        inside &= (place >= -_ROUNDING) & (place <= n - 1 + _ROUNDING)
    return inside


def _window(data: np.ndarray, settings: BrainPreprocessing, what: str) -> tuple[float, float]:
    low, high = float(data.min()), float(data.max())
    if settings.intensity == "percentile":
        high = float(np.percentile(data[data > low], settings.upper)) if high > low else high
    if high == low:
        raise DataError(f"{what} is {low:g} everywhere; there is no picture to scale")
    return low, high


def _notes(spaced: tuple[int, ...], settings: BrainPreprocessing) -> tuple[str, ...]:
    notes = []
    for letter, n, wanted in zip("ijk", spaced, settings.shape, strict=True):
        if n != wanted:
            what = "padded with the darkest value" if n < wanted else "cropped"
            notes.append(f"axis {letter} was {what} from {n} to {wanted} voxels")
    return tuple(notes)


def prepare_cohort(
    cohort: Cohort,
    out: str | Path,
    settings: BrainPreprocessing | None = None,
    *,
    steps: tuple[Any, ...] = (),
    progress: Progress = SILENT,
) -> Cohort:
    """Prepare every scan into a folder; one that fails is listed and the rest goes on.

    Writes ``<subject>/<scan>.nii.gz``, beside it ``<scan>.json`` (settings, window, notes, flags),
    ``scans.csv`` and ``failed.csv``. What is done with the same settings is not done again.

    Parameters
    ----------
    steps : functions of a volume that go first, such as `strip_skull` or `to_mni`.

    Returns
    -------
    The cohort of the prepared files (`discover` reads the folder again); ``left_out`` are those
    that failed.

    Raises
    ------
    DataError : no scan could be prepared; the first reason is named.
    """
    from neurodiff.datasets.brain_mri_flags import flag_names, flags_of

    settings = settings or BrainPreprocessing()
    out = Path(out)
    record = {**asdict(settings), "steps": [_name(step) for step in steps]}
    rows, failed = [], []
    for number, scan in enumerate(cohort.ids):
        row = cohort.row(number)
        path = out / row["subject"] / f"{scan}.nii.gz"
        beside = path.with_name(f"{scan}.json")
        try:
            source = _source(row)
            if not _is_done(path, beside, record, source):
                volume = cohort[number]
                for step in steps:
                    volume = step(volume)
                made = prepare_scan(volume, settings)
                made.volume.save(path)
                about = {
                    "settings": record, "source": source, "low": made.low, "high": made.high,
                    "notes": made.notes,
                    "flags": flag_names(flags_of(made.volume, stage="prepared")),
                }  # fmt: skip
                write_json(beside, about)
            flags = read_json(beside).get("flags", "")
            rows.append({**row, "path": str(path.relative_to(out)), "flags": flags})
        except NeurodiffError as error:
            failed.append((scan, row["path"], str(error)))
        progress.update(number + 1, len(cohort), f"{len(failed)} failed")
    lost = pd.DataFrame(failed, columns=list(LEFT_OUT))
    if not rows:
        raise DataError(f"none of {len(cohort)} scans could be prepared; first: {failed[0][2]}")
    table = pd.DataFrame(rows)
    write_csv(out / "scans.csv", table)
    write_csv(out / "failed.csv", lost)
    table["path"] = [str(out / path) for path in table["path"]]
    return Cohort(table, left_out=lost, notes=cohort.notes, name=cohort.name,
                  simulated=cohort.simulated)  # fmt: skip


def _source(row: pd.Series) -> str:
    """Path and size of the scan's file; a size that changed is another scan."""
    path = Path(row["path"])
    return f"{path} {path.stat().st_size}" if row["path"] and path.is_file() else str(row["path"])


def _is_done(path: Path, beside: Path, record: dict[str, Any], source: str) -> bool:
    if not path.is_file() or not beside.is_file():
        return False
    try:
        about = read_json(beside)
    except DataError:
        return False
    wanted = {**record, "shape": list(record["shape"])}
    return about.get("settings") == wanted and about.get("source") == source


def _name(step: Any) -> str:
    function = getattr(step, "func", step)
    options = getattr(step, "keywords", {})
    return f"{getattr(function, '__name__', type(step).__name__)} {options or ''}".strip()
