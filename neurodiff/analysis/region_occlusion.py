"""Which regions of a scan a semantic code reads: each is replaced, and the scan encoded again.

A region of an atlas is filled with something that says nothing of this person, and the change of
the code, and of what a probe reads in it (the logit of a diagnosis, an age), is compared with that
by compact blobs of as many voxels elsewhere in the brain:

    mean       the mean scan of training, in the region
    blurred    the scan itself, smoothed by a Gaussian
    inpainted  one value: the scan's mean in a shell around the region

An occluded scan is none that a scanner makes, and a code answers to the edge of the patch too;
the blobs have such edges as well, which is why they are the null and not zero.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_pairs import attribution_table, table_row
from neurodiff.analysis.attribution_problem import MethodResult
from neurodiff.analysis.attribution_statistics import Resampling
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import read_csv
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.volume import Volume

Replacement = Literal["mean", "blurred", "inpainted"]
Probe = Callable[[np.ndarray], np.ndarray]
BRAIN = 0.02  # of the full range, above which the mean of the scans is brain
_SHELL = 2  # voxels around a region
_AT_ONCE = 16  # scans


class Encoder(Protocol):
    """An LDAE, or anything that gives codes (n, d) of volumes (n, 1, i, j, k)."""

    def codes(self, volumes: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """How regions are replaced and compared.

    Parameters
    ----------
    replacement : "mean", "blurred" or "inpainted", see the module.
    matched : blobs of the size of each region, 1 or more; p is at least 1 / (1 + matched).
    blur : SD of the Gaussian, voxels.
    draws, confidence : of the bootstrap over people.
    seed : of blobs and bootstrap.
    """

    replacement: Replacement = "mean"
    matched: int = 20
    blur: float = 3.0
    draws: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replacement not in get_args(Replacement):
            raise UsageError(
                f"replacement is {self.replacement!r}; known are 'mean', 'blurred' and 'inpainted'"
            )
        if self.matched < 1 or self.draws < 1 or self.blur <= 0 or not 0 < self.confidence < 1:
            raise UsageError(
                f"matched is {self.matched}, draws {self.draws}, blur {self.blur} and confidence "
                f"{self.confidence}; give at least 1, 1, above 0, and between 0 and 1"
            )


def read_atlas(
    labels: str | os.PathLike[str],
    names: str | os.PathLike[str] | None = None,
    *,
    affine: np.ndarray,
    shape: tuple[int, int, int],
) -> dict[str, np.ndarray]:
    """Regions of a label image at a grid: name -> boolean (i, j, k), by the nearest voxel.

    Parameters
    ----------
    labels : NIfTI of whole numbers in the space of the scans; 0 is no region.
    names : CSV or TSV with the columns label (or index) and name; only its labels are taken.
        Without it, every label is named by its number.
    affine, shape : of the scans, (4, 4) to mm and (i, j, k).

    Raises
    ------
    MissingDataError : no such file.
    DataError : no whole numbers, a table without these columns or with a name twice, a region that
        has no voxel at this grid.
    """
    from scipy.ndimage import affine_transform

    volume = Volume.open(labels)
    if volume.channels != 1 or not np.array_equal(volume.data, np.round(volume.data)):
        raise DataError(f"{labels} holds no whole numbers; an atlas is one label a voxel")
    there = np.linalg.inv(volume.affine) @ np.asarray(affine, float)
    at = affine_transform(
        volume.data[0], there[:3, :3], there[:3, 3], output_shape=tuple(shape), order=0, cval=0.0
    )
    named = {str(int(k)): int(k) for k in np.unique(volume.data) if k > 0}
    if names is not None:
        named = _names(Path(names))
    found = {}
    for name, label in named.items():
        found[name] = at == label
        if not found[name].any():
            raise DataError(
                f"region {name!r} (label {label} of {labels}) has no voxel on the grid {shape}; "
                "leave it out of the names, or give an atlas in the space of the scans"
            )
    if not found:
        raise DataError(f"{labels} holds no label above 0")
    return found


def occlude_regions(
    pipe: Encoder,
    volumes: np.ndarray,
    scans: pd.DataFrame,
    atlas: Mapping[str, np.ndarray],
    *,
    probe: Mapping[str, Any] | None = None,
    mean: np.ndarray | None = None,
    how: Occlusion | None = None,
    progress: Progress = SILENT,
) -> MethodResult:
    """Change of code and probes by each region, over people.

    Parameters
    ----------
    pipe : gives codes (n, d); an `LDAE`.
    volumes : (n, 1, i, j, k) as the pipe takes them, 0..1, none of them of its training.
    scans : one row a volume, with the column subject; scans of a person are averaged.
    atlas : name -> boolean (i, j, k): `read_atlas`, or `probe_regions.template_regions`.
    probe : name -> function of codes to (n,), or a fitted probe: its ``decision_function`` (logit)
        or else its ``predict``.
    mean : (i, j, k) mean scan of training; replacement "mean" needs it.
    how : `Occlusion`; by default the mean scan and 20 blobs.

    Returns
    -------
    Stage "code": |change| as a share of the code's norm. Stage of a probe: |change| in its unit;
    column ``signed`` is the change that the region makes, intact less occluded. Subject is "all":
    intervals over people, whose own values are in ``items``. Maps are (i, j, k).

    Raises
    ------
    UsageError : no mean scan where one is needed, a probe that is none.
    DataError : shapes that do not fit, NaN, an empty region, fewer than 2 people, no room for the
        blobs of a region.

    Examples
    --------
    ``occlude_regions(pipe, volumes, cohort.scans, template_regions(affine, shape),
    probe={"AD against CN": logistic}, mean=train.mean(axis=(0, 1)))``
    """
    how = how or Occlusion()
    people = _checked(volumes, scans, atlas, mean, how)
    probes = {name: _answer(name, one) for name, one in (probe or {}).items()}
    brain = volumes.mean(axis=(0, 1)) > BRAIN
    fill = _Fill(volumes, mean, brain, how)
    full = np.asarray(pipe.codes(volumes), np.float64)
    size = np.maximum(np.linalg.norm(full, axis=1), 1e-12)
    said = {name: answer(full) for name, answer in probes.items()}

    def changes(mask: np.ndarray) -> dict[str, np.ndarray]:
        """stage -> (n,) change; of the code its length."""
        codes = np.concatenate(
            [
                np.asarray(pipe.codes(fill(slice(k, k + _AT_ONCE), mask)), np.float64)
                for k in range(0, len(volumes), _AT_ONCE)
            ]
        )
        moved = {"code": np.linalg.norm(full - codes, axis=1) / size}
        return moved | {name: said[name] - answer(codes) for name, answer in probes.items()}

    names = sorted(set(people))
    place = np.array([names.index(p) for p in people])
    resampling = Resampling(
        len(names), "all", draws=how.draws, seed=how.seed, confidence=how.confidence
    )
    rows, items, maps = [], [], {}
    for region, mask in progress.over(atlas.items(), "occluding regions", len(atlas)):
        own = changes(mask)
        blobs = matched_blobs(mask, brain, how.matched, seed=how.seed, name=region)
        nulls = [changes(blob) for blob in blobs]
        for stage, change in own.items():
            values, signed = _of_people(np.abs(change), place), _of_people(change, place)
            null = np.array([np.mean(_of_people(np.abs(one[stage]), place)) for one in nulls])
            rows.append(
                {
                    "method": f"region_occlusion:{how.replacement}",
                    "subject": "all",
                    "stage": stage,
                    "roi": region,
                    "metric": "change of the code" if stage == "code" else "change of the probe",
                    **table_row(resampling, values, null),
                    "n_trials": len(volumes),
                    "n_features": int(mask.sum()),
                    "unit": "share of its norm" if stage == "code" else "unit of the probe",
                    "signed": float(signed.mean()),
                    "n_people": len(names),
                }
            )
            items.append(
                pd.DataFrame(
                    {
                        "subject": names,
                        "stage": stage,
                        "roi": region,
                        "value": values,
                        "signed": signed,
                    }
                )
            )
            painted = maps.setdefault(stage, np.full(mask.shape, np.nan))
            painted[mask] = values.mean()
    return MethodResult(
        method=f"region_occlusion:{how.replacement}",
        table=attribution_table(rows),
        maps=maps,
        items=pd.concat(items, ignore_index=True),
        notes=_notes(how, len(volumes), len(names), atlas),
    )


def matched_blobs(
    mask: np.ndarray, brain: np.ndarray, count: int, *, seed: int, name: str
) -> list[np.ndarray]:
    """Compact sets of as many voxels as ``mask`` has, in the brain and outside the region.

    Each holds the voxels nearest to a voxel that is drawn; ``name`` of the region seeds it.

    Raises
    ------
    DataError : the brain has too few voxels outside the region.
    """
    free = np.argwhere(brain & ~mask)
    wanted = int(mask.sum())
    if len(free) <= wanted:
        raise DataError(
            f"region {name!r} has {wanted} voxels and the rest of the brain {len(free)}; there is "
            "no place for a blob of its size to compare it with"
        )
    blobs = []
    for k in range(count):
        key = item_seed(seed, subject="", stimulus=name, sample=k, stage="matched blob")
        centre = free[numpy_generator(key).integers(len(free))]
        near = np.argsort(((free - centre) ** 2).sum(axis=1), kind="stable")[:wanted]
        blob = np.zeros(mask.shape, bool)
        blob[tuple(free[near].T)] = True
        blobs.append(blob)
    return blobs


class _Fill:
    """Scans with one region replaced; the blurred scans are made once."""

    def __init__(
        self, volumes: np.ndarray, mean: np.ndarray | None, brain: np.ndarray, how: Occlusion
    ) -> None:
        from scipy.ndimage import gaussian_filter

        self.volumes, self.mean, self.brain, self.how = volumes, mean, brain, how
        self.blurred = volumes
        if how.replacement == "blurred":
            self.blurred = np.stack([gaussian_filter(v[0], how.blur)[None] for v in volumes])

    def __call__(self, which: slice, mask: np.ndarray) -> np.ndarray:
        from scipy.ndimage import binary_dilation

        out = self.volumes[which].copy()
        if self.mean is not None and self.how.replacement == "mean":
            out[:, 0, mask] = self.mean[mask]
        elif self.how.replacement == "blurred":
            out[:, 0, mask] = self.blurred[which][:, 0, mask]
        else:
            shell = binary_dilation(mask, iterations=_SHELL) & ~mask
            shell = shell & self.brain if (shell & self.brain).any() else shell
            out[:, 0, mask] = out[:, 0, shell].mean(axis=1, keepdims=True)
        return out


def _of_people(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.bincount(place, values) / np.bincount(place)


def _answer(name: str, probe: Any) -> Probe:
    function = getattr(probe, "decision_function", None) or getattr(probe, "predict", None) or probe
    if not callable(function):
        raise UsageError(
            f"the probe {name!r} is {type(probe).__name__}; give a fitted probe, or a function of "
            "codes (n, d) that gives (n,)"
        )

    def answer(codes: np.ndarray) -> np.ndarray:
        found = np.asarray(function(codes), np.float64)
        if found.shape != (len(codes),):
            raise DataError(
                f"the probe {name!r} gave {found.shape} for {len(codes)} codes; expected one "
                "number each: of several classes, give a function of the one asked about"
            )
        return found

    return answer


def _checked(
    volumes: np.ndarray,
    scans: pd.DataFrame,
    atlas: Mapping[str, np.ndarray],
    mean: np.ndarray | None,
    how: Occlusion,
) -> list[str]:
    """Names of the people, one a volume."""
    if volumes.ndim != 5 or volumes.shape[1] != 1 or not np.isfinite(volumes).all():
        raise DataError(f"volumes are {volumes.shape}; expected finite (n, 1, i, j, k)")
    if "subject" not in scans or len(scans) != len(volumes):
        raise DataError(
            f"the table of scans has {len(scans)} rows and the columns {', '.join(scans)}; "
            f"expected one row for each of {len(volumes)} volumes, with the column subject"
        )
    people = [str(p) for p in scans["subject"]]
    if len(set(people)) < 2:
        raise DataError("there is one person; an interval over people needs at least 2")
    grid = volumes.shape[2:]
    if not atlas:
        raise UsageError("the atlas has no region; give name -> boolean (i, j, k)")
    for name, mask in atlas.items():
        if mask.dtype != bool or mask.shape != grid:
            raise DataError(
                f"region {name!r} is {mask.dtype} of {mask.shape}; the scans are {grid}: give "
                "booleans on their grid (read_atlas brings a label image there)"
            )
        if not mask.any():
            raise DataError(f"region {name!r} has no voxel; leave it out")
    if how.replacement == "mean" and mean is None:
        raise UsageError(
            "the replacement is the mean scan of training, which was not given; give mean=, or "
            "replacement='blurred' or 'inpainted'"
        )
    if mean is not None and mean.shape != grid:
        raise DataError(f"the mean scan is {mean.shape}; the scans are {grid}")
    return people


def _names(path: Path) -> dict[str, int]:
    """name -> label."""
    table = read_csv(
        path, columns=("name",), dtype={"name": str}, separator="\t" if ".tsv" in path.name else ","
    )
    column = next((c for c in ("label", "index") if c in table), None)
    if column is None:
        raise DataError(f"{path} has no column label (or index) beside name")
    numbers = pd.to_numeric(table[column], errors="coerce")
    names = table["name"]
    if numbers.isna().any() or (numbers != numbers.round()).any() or names.isna().any():
        raise DataError(f"{path} has a row without a whole number and a name")
    if names.duplicated().any():
        raise DataError(f"{path} names {names[names.duplicated()].iloc[0]!r} twice")
    return {str(n): int(k) for n, k in zip(names, numbers, strict=True) if k > 0}


def _notes(
    how: Occlusion, scans: int, people: int, atlas: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    words = {
        "mean": "the mean scan of training",
        "blurred": f"the scan itself, smoothed by a Gaussian of {how.blur:g} voxels",
        "inpainted": f"the scan's mean in a shell of {_SHELL} voxels around it",
    }
    notes = [
        f"{scans} scans of {people} people; each region was replaced by {words[how.replacement]}. "
        "Scans of a person are averaged, intervals are over people.",
        f"Null: {how.matched} compact blobs of as many voxels in the brain outside the region; p "
        f"is one-sided, (1 + b) / (1 + B), at least {1 / (1 + how.matched):.3g}; q is "
        "Benjamini-Hochberg over the regions of a stage.",
        "An occluded scan is none that a scanner makes; a large change says that the code reads "
        "the region, not that a disease is in it.",
    ]
    count = np.sum(list(atlas.values()), axis=0)
    if count.max() > 1:
        notes.append(f"{int((count > 1).sum())} voxels lie in more than one region.")
    return tuple(notes)
