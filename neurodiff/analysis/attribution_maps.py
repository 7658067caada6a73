"""Maps of attribution: what each method says of each vertex or voxel, as arrays and as files.

A method gives values of regions (its table) and, where it can, of single vertices or voxels (its
maps). Both become `BrainMap`: a region's number is painted on every feature of the region, a map
stays as it is, and NaN marks places of which nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_files import (
    MapNames,
    has_place,
    write_description,
    write_map,
    write_sidecar,
)
from neurodiff.analysis.attribution_labels import write_labels
from neurodiff.analysis.attribution_words import kind_of
from neurodiff.core.atomic import atomic_write
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording

PAINTED = {"importance": "value", "q": "q"}
"""statistic in a file's name -> column of a method's table"""
SIGNED_UNITS = ("correlation", "coefficient", "weight")
PROBABILITIES = ("p", "q", "p_max")


class Result(Protocol):
    """What is read of a `MethodResult`."""

    method: str
    table: pd.DataFrame
    maps: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class BrainMap:
    """One statistic of one method, subject and stage over all features of a recording.

    Attributes
    ----------
    values : (features,) float32, NaN where nothing is said.
    statistic : "importance", "q", or the name of a method's own map, such as "r".
    painted : a region's number on each of its features, not one a vertex.
    threshold : smallest importance with q <= ``level`` among the regions, NaN where there is none
        or where it is not known.
    significant : the regions with q <= ``level``; some with smaller values may be among them, and
        some with larger ones not.
    """

    method: str
    subject: str
    stage: str
    statistic: str
    unit: str
    values: np.ndarray
    painted: bool
    threshold: float = float("nan")
    level: float = 0.05
    significant: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Method, stage, statistic and subject in words."""
        parts = (kind_of(self.method).name, self.stage, self.statistic, self.subject)
        return " · ".join(part for part in parts if part)

    @property
    def is_probability(self) -> bool:
        return self.statistic in PROBABILITIES


@dataclass(frozen=True, kw_only=True)
class WrittenMaps:
    """Files that `write_maps` made, and what could not be made."""

    folder: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def paint(
    values: Mapping[str, float], rois: Mapping[str, np.ndarray], n_features: int
) -> np.ndarray:
    """A number a region on each of its features, (n_features,) float32, NaN elsewhere.

    Where regions overlap the smaller one, which says more about the place, is on top.

    Raises
    ------
    UsageError : a value of a region without a mask, or a mask of another length.

    Examples
    --------
    >>> masks = {"whole": np.ones(4, bool), "part": np.array([True, False, False, False])}
    >>> paint({"part": 2.0, "whole": 1.0}, masks, 4)
    array([2., 1., 1., 1.], dtype=float32)
    """
    missing = [name for name in values if name not in rois]
    if missing:
        raise UsageError(
            f"there is no mask of {', '.join(map(str, missing[:5]))}; give the masks that the "
            "regions were scored with"
        )
    out = np.full(n_features, np.nan, np.float32)
    masks = {name: np.asarray(rois[name], bool) for name in values}
    for name in sorted(masks, key=lambda name: -int(masks[name].sum())):
        if masks[name].shape != (n_features,):
            raise UsageError(
                f"the mask of {name!r} has shape {masks[name].shape}; expected ({n_features},)"
            )
        out[masks[name]] = values[name]
    return out


def brain_maps(
    results: Iterable[Result],
    rois: Mapping[str, np.ndarray],
    n_features: int,
    *,
    level: float = 0.05,
) -> list[BrainMap]:
    """Every map of some methods: painted tables first, then the maps of single features.

    Parameters
    ----------
    rois : the masks of the regions in the tables.
    level : of q, for `BrainMap.threshold`.
    """
    made = []
    for result in results:
        # a row about all features together, beside the regions, is no place on the cortex
        whole = ~result.table["roi"].isin(list(rois)) & (result.table["n_features"] == n_features)
        table = result.table[~whole]
        for (subject, stage), rows in table.groupby(["subject", "stage"], sort=False):
            unit = str(rows["unit"].iloc[0])
            shared = {"method": result.method, "subject": str(subject), "stage": str(stage)}
            good = tuple(rows.loc[rows["q"].astype(float) <= level, "roi"].astype(str))
            for statistic, column in PAINTED.items():
                numbers = dict(zip(rows["roi"], rows[column].astype(float), strict=True))
                if not np.isfinite(list(numbers.values())).any():
                    continue
                made.append(
                    BrainMap(
                        **shared,
                        statistic=statistic,
                        unit=unit if statistic == "importance" else "q",
                        values=paint(numbers, rois, n_features),
                        painted=True,
                        threshold=least_significant(rows, level),
                        level=level,
                        significant=good,
                    )
                )
        painted = [m for m in made if m.method == result.method and m.painted]
        for key, values in result.maps.items():
            own = _own_map(result, key, values, n_features)
            # a method may paint its regions itself
            if not any(np.array_equal(own.values, m.values, equal_nan=True) for m in painted):
                made.append(own)
    return made


def least_significant(rows: pd.DataFrame, level: float) -> float:
    """The smallest value among regions with q <= level; NaN where there is none."""
    good = rows.loc[rows["q"].astype(float) <= level, "value"].astype(float)
    return float(good.min()) if len(good) else float("nan")


def _own_map(result: Result, key: str, values: Any, n_features: int) -> BrainMap:
    subject, stage, name = _key_parts(key, result.table)
    values = np.asarray(values, np.float32)
    if values.shape != (n_features,):
        raise UsageError(
            f"the map {key!r} of {result.method} has shape {values.shape}; expected "
            f"({n_features},), one value a feature of the recording"
        )
    unit = str(result.table["unit"].iloc[0]) if len(result.table) else ""
    unit = name if name in PROBABILITIES else unit
    return BrainMap(
        method=result.method,
        subject=subject,
        stage=stage,
        statistic=name,
        unit=unit,
        values=values,
        painted=False,
    )


def _key_parts(key: str, table: pd.DataFrame) -> tuple[str, str, str]:
    """Subject, stage and name of ``"subject/stage/name"``, ``"stage/name"`` or ``"name"``."""
    parts = key.split("/")
    subjects = list(dict.fromkeys(table["subject"].astype(str)))
    stages = set(table["stage"].astype(str))
    subject = subjects[0] if len(subjects) == 1 else ""
    if len(parts) > 1 and parts[0] in subjects:
        subject, *parts = parts
    stage = ""
    if len(parts) > 1 and parts[0] in stages:
        stage, *parts = parts
    return subject, stage, " ".join(parts)


def write_maps(
    attribution: Any,
    recording: Recording,
    folder: str | Path,
    *,
    rois: Mapping[str, np.ndarray] | None = None,
    task: str = "",
    space_label: str | None = None,
    sources: Sequence[Mapping[str, str]] = (),
    level: float = 0.05,
) -> WrittenMaps:
    """Write every map of an attribution as BIDS derivatives.

    Vertices of fsLR become one ``.dscalar.nii`` of both hemispheres, with subcortical voxels where
    the space has them, and a ``.func.gii`` a hemisphere; vertices of fsaverage a ``.func.gii`` a
    hemisphere, voxels a ``.nii.gz``; beside each its facts as JSON. Regions of a surface are a
    ``.label.gii`` a hemisphere. ``dataset_description.json`` and the table lie in the folder
    itself.

    Parameters
    ----------
    attribution : has ``results``, or is a sequence of results.
    recording : the test recording: its space, and its regions unless ``rois`` are given.
    task : what was done in the scanner, for the names; e.g. ``"objects"``.
    space_label : BIDS name of the space of voxels, e.g. ``"MNI152NLin2009cAsym"``; unknown, the
        names have no ``space``.
    sources : ``SourceDatasets`` of the description; never paths.

    Raises
    ------
    UsageError : masks or maps that do not fit the recording.
    DataError : the folder cannot be written to.
    """
    folder = Path(folder)
    results = list(getattr(attribution, "results", attribution))
    masks = recording.rois if rois is None else rois
    maps = brain_maps(results, masks, recording.n_features, level=level)
    files = [write_description(folder, simulated=recording.simulated, sources=sources)]
    files.append(_write_table(folder / "attribution.tsv", results))
    notes = []
    if not has_place(recording.space):
        notes.append(
            f"no maps were written: the features of the space {recording.space.name!r} have no "
            "place in a brain; the table has every number"
        )
        return WrittenMaps(folder=folder, files=tuple(files), notes=tuple(notes))
    by_method = {result.method: result for result in results}
    people = list(dict.fromkeys(one.subject for one in maps))
    for subject in people if masks else ():
        who = MapNames(subject=subject, task=task, statistic="", method="", stage="").participant
        files += write_labels(folder, masks, recording.space, participant=who, task=task)
    for one in maps:
        names = MapNames(
            subject=one.subject,
            task=task,
            statistic=one.statistic,
            method=one.method,
            stage=one.stage,
            space_label=space_label,
            painted=one.painted,
        )
        paths = write_map(folder, names, one.values, recording.space)
        facts = _facts(one, by_method[one.method], recording)
        files += paths + [write_sidecar(path, facts) for path in paths]
    return WrittenMaps(folder=folder, files=tuple(files), notes=tuple(notes))


def _facts(one: BrainMap, result: Result, recording: Recording) -> dict[str, Any]:
    rows = result.table
    if one.painted:
        mine = (rows["subject"].astype(str) == one.subject) & (
            rows["stage"].astype(str) == one.stage
        )
        rows = rows[mine]
    trials = sorted({int(n) for n in rows["n_trials"] if np.isfinite(n)})
    return {
        "Method": one.method,
        "Stage": one.stage or None,
        "Statistic": one.statistic,
        "Units": one.unit,
        "Metric": ", ".join(dict.fromkeys(rows["metric"].astype(str))),
        "Resolution": "value of a region on each of its features; where regions overlap, of the "
        "smaller one"
        if one.painted
        else "one value a feature",
        "MissingValues": "NaN where nothing is said",
        "NumberOfTrials": trials[0] if len(trials) == 1 else trials,
        "SmallestSignificant": one.threshold if np.isfinite(one.threshold) else None,
        "SignificanceLevel": one.level if one.painted else None,
        "SignificantRegions": list(one.significant) if one.painted else None,
        "Simulated": bool(recording.simulated),
        "Notes": list(result.notes),
    }


def _write_table(path: Path, results: Sequence[Result]) -> Path:
    tables = [result.table for result in results if len(result.table)]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    text = table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
    return path
