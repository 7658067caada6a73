"""What the tables of volumes share: scoring, rows, intervals over people, paired differences."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.metrics.records import Metric
from neurodiff.metrics.statistics import bootstrap_interval
from neurodiff.metrics.volume_records import volume_metrics
from neurodiff.metrics.volumes import SIGMA, lpips_25d

Regional = Callable[[np.ndarray], dict[str, float]]
BRAIN = 0.02  # of the full range, above which a voxel of a stripped scan is brain


@dataclass(frozen=True, kw_only=True)
class VolumeScoring:
    """How volumes are scored.

    Attributes
    ----------
    kernel, sigma : of SSIM's Gaussian window, voxels; released: 3 for reconstruction, 4 for
        interpolation.
    lpips : a network with ``distances`` and the name of its trunk, or None.
    mask : (i, j, k) bool, where changes are compared; None is the brain of each scan.
    regional : from a volume (i, j, k) to millilitres by region, such as a `RegionRuler`.
    """

    kernel: int = 3
    sigma: float = SIGMA
    lpips: tuple[Any, str] | None = None
    mask: np.ndarray | None = None
    regional: Regional | None = None

    def metrics(self, shape: Sequence[int], masks: np.ndarray | None = None) -> dict[str, Metric]:
        """Records by name; the names state window and trunk."""
        i, j, k = (int(n) for n in shape)
        found = volume_metrics((i, j, k), kernel=self.kernel, sigma=self.sigma, masks=masks)
        if self.lpips is not None:
            network, trunk = self.lpips
            name = f"LPIPS 2.5D {trunk}"
            found[name] = Metric(
                name=name,
                unit="",
                higher_is_better=False,
                chance=None,
                reference="Zhang et al. 2018, CVPR",
                protocol="all slices of three axes, mean along each, summed",
                function=lambda a, b: lpips_25d(a, b, network),
            )
        return found

    def regions(self, volumes: np.ndarray) -> pd.DataFrame:
        """Millilitres by region, one row a volume; no column without a ruler."""
        if self.regional is None:
            return pd.DataFrame(index=range(len(volumes)))
        return pd.DataFrame([self.regional(volume[0]) for volume in volumes])


@dataclass(frozen=True, eq=False, repr=False)
class VolumeTable:
    """Scores of scans, one row a scan (or triple) and condition.

    Attributes
    ----------
    table : ``subject``, the columns of ``conditions``, and the scores.
    conditions : columns that tell the lines of the summary apart.
    scores : column -> whether higher is better; None where neither is.
    notes : what was left out and why, and how to read it.
    """

    table: pd.DataFrame
    conditions: tuple[str, ...]
    scores: dict[str, bool | None]
    notes: tuple[str, ...] = ()

    def summary(self, *, seed: int = 0) -> pd.DataFrame:
        """One line a condition and score: mean, low, high, median, subjects, scans.

        A subject's scans are averaged first; people are what the bootstrap (95 %) resamples. With
        one subject there is no interval. Values that are NaN are left out and not counted; a line
        without any is not there.
        """
        lines = []
        for key, part in self.table.groupby(list(self.conditions), sort=False, dropna=False):
            named = dict(zip(self.conditions, key, strict=True))
            for score in self.scores:
                found = over_subjects(part, score, seed)
                if found["subjects"]:
                    lines.append({**named, "score": score, **found})
        columns = [*self.conditions, "score", "mean", "low", "high", "median", "subjects", "scans"]
        return pd.DataFrame(lines, columns=columns)

    def differences(
        self, column: str, one: str, other: str, *, on: Sequence[str], seed: int = 0
    ) -> pd.DataFrame:
        """``one`` minus ``other`` of a condition, paired; columns as `summary`, and ``verdict``.

        Parameters
        ----------
        column : of the condition, such as "method"; the remaining conditions stay apart.
        on : columns that, with the subject and the remaining conditions, name a pair.

        Returns
        -------
        ``verdict`` is "better", "worse" or "not told apart" (the interval holds 0), by the
        direction of the score.
        """
        known = list(dict.fromkeys(self.table[column]))
        for name in (one, other):
            if name not in known:
                raise UsageError(
                    f"there is no {column} {name!r}; there are {', '.join(map(str, known))}."
                    f"{suggest(name, known)}"
                )
        rest = [name for name in self.conditions if name != column]
        index = list(dict.fromkeys(["subject", *rest, *on]))
        names = [score for score, higher in self.scores.items() if higher is not None]
        parts = [
            self.table[self.table[column] == name].set_index(index)[names] for name in (one, other)
        ]
        gap = (parts[0] - parts[1]).reset_index()
        lines = []
        groups = gap.groupby(rest, sort=False, dropna=False) if rest else [((), gap)]
        for key, part in groups:
            named = dict(zip(rest, key, strict=True))
            for score in names:
                found = over_subjects(part, score, seed)
                if not found["subjects"]:
                    continue
                verdict = _verdict(found, bool(self.scores[score]))
                lines.append({**named, "score": score, **found, "verdict": verdict})
        return pd.DataFrame(lines)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        people = self.table["subject"].nunique()
        return f"<{type(self).__name__} {len(self)} rows of {people} subjects>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"{self.summary().to_html(float_format='%.4g')}{notes}"


def over_subjects(table: pd.DataFrame, score: str, seed: int = 0) -> dict[str, float]:
    """Mean over people of their mean score, its 95 % bootstrap interval, and the numbers."""
    kept = table[np.isfinite(table[score].astype(float))]
    values = kept.groupby("subject", sort=False)[score].mean().to_numpy(float)
    nan = float("nan")
    found = {"mean": nan, "low": nan, "high": nan, "median": nan}
    if len(values):
        found |= {"mean": float(values.mean()), "median": float(np.median(values))}
    if len(values) > 1:
        interval = bootstrap_interval(values, seed=seed)
        found |= {"low": interval.low, "high": interval.high}
    return found | {"subjects": len(values), "scans": len(kept)}


def checked(volumes: np.ndarray, scans: pd.DataFrame, masks: np.ndarray | None = None) -> None:
    """Raise where volumes, table and masks do not belong together."""
    if volumes.ndim != 5 or volumes.shape[1] != 1 or not len(volumes):
        raise UsageError(f"volumes have shape {volumes.shape}; expected (n, 1, i, j, k)")
    if len(scans) != len(volumes):
        raise UsageError(f"{len(volumes)} volumes for a table of {len(scans)} scans; give one each")
    absent = [name for name in ("subject", "scan") if name not in scans]
    if absent:
        raise UsageError(f"the table of scans has no column {absent[0]!r}; take cohort.scans")
    if masks is not None and masks.shape != (len(volumes), *volumes.shape[2:]):
        raise UsageError(
            f"masks have shape {masks.shape} for volumes {volumes.shape}; give (n, i, j, k) bool"
        )
    finite = np.isfinite(volumes).reshape(len(volumes), -1).all(1)
    if not finite.all():
        raise DataError(f"{scans['scan'].iloc[int(np.argmin(finite))]} holds NaN or infinity")


def names_of(scans: pd.DataFrame) -> list[tuple[str, str]]:
    """(subject, scan) of each row, which seed its noise."""
    return list(zip(scans["subject"].astype(str), scans["scan"].astype(str), strict=True))


def other_person(subjects: Sequence[str]) -> np.ndarray:
    """Row of the next scan, in the order of the table, that is of another subject."""
    names = np.asarray(subjects, dtype=str)
    if len(set(names.tolist())) < 2:
        raise UsageError("all scans are of one subject; another person's scan needs two")
    n = len(names)
    rows = [next((r + k) % n for k in range(1, n) if names[(r + k) % n] != names[r])
            for r in range(n)]  # fmt: skip
    return np.array(rows)


@dataclass
class Cost:
    """Seconds, and evaluations of the U-Net counted by items (a batch of 4 counts 4)."""

    seconds: float = 0.0
    calls: int = 0


@contextmanager
def measured() -> Iterator[Cost]:
    """Time what happens inside and count the U-Net's evaluations; the trunk alone counts too."""
    from torch.nn.modules.module import register_module_forward_hook

    from neurodiff.models.ldae_unet import LatentUNet

    cost = Cost()

    def count(module: Any, inputs: Any, _: Any) -> None:
        if isinstance(module, LatentUNet):
            cost.calls += len(inputs[0])

    hook = register_module_forward_hook(count)
    start = perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = perf_counter() - start
        hook.remove()


def _verdict(found: dict[str, float], higher: bool) -> str:
    low, high = found["low"], found["high"]
    if not (low > 0 or high < 0):
        return "not told apart"
    return "better" if (low > 0) == higher else "worse"
