"""Filling in a missing visit: the middle of three scans of a person from the two others.

Most of a scan does not change in two years, so that likeness alone rewards whoever copies the
nearest scan. Beside SSIM and MSE the table therefore has scores of the change itself: the
difference image from the nearest scan to the middle one, predicted against true, and millilitres
by region. A method's own picture of the nearest scan is where its change starts, so that what its
autoencoder blurs is not taken for change.

    nearest copy        the nearer of the two scans
    voxel lerp          a weighted mean of the two scans
    latent lerp         the same of the autoencoder's latents
    code + noise slerp  codes on the line, noises on the great circle (LDAE)
    code, first noise   codes on the line, the noise of the first scan

Targets: the scan, the autoencoder's picture of it (as published), and, of simulated people, the
brain itself. A scan's noise is in the scan and in its neighbours' difference, which favours methods
that repeat it; the brain itself has none, so prefer that target where it exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.volume_tables import BRAIN, VolumeScoring, VolumeTable, checked
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError
from neurodiff.metrics.volumes import difference_agreement

COPY, VOXEL, LATENT = "nearest copy", "voxel lerp", "latent lerp"
OURS, ONE_NOISE = "code + noise slerp", "code, first noise"
METHODS = (COPY, VOXEL, LATENT, OURS, ONE_NOISE)
CORRELATION, SLOPE = "change correlation", "change slope"
VERDICTS = (
    ("better", "beats copying the nearest scan in"),
    ("worse", "does worse than the copy in"),
    ("not told apart", "is not told from the copy in"),
)
_NEAR = "near scan, first noise"
NEAR = 3.0  # months, by which a gap may differ from the one that it is counted under
Truth = Callable[[str, float], np.ndarray]


@dataclass(frozen=True, eq=False, repr=False)
class InterpolationTable(VolumeTable):
    """Rows: triple, method, target; a triple is in it once by each meaning of "gap"."""

    def against_copy(self, method: str = OURS, *, seed: int = 0) -> pd.DataFrame:
        """``method`` minus the nearest copy, paired by triple, with intervals over people."""
        on = ("first", "middle", "last")
        return self.differences("method", method, COPY, on=on, seed=seed)

    def sentence(self, method: str = OURS, *, seed: int = 0) -> str:
        """Where ``method`` beats the nearest copy and where it does not, in words."""
        found = self.against_copy(method, seed=seed)
        found = found[(found["definition"] == "gap") & (found["score"] != SLOPE)]
        months = sorted(set(found["months"]))
        lines = []
        for target, of_target in found.groupby("target", sort=False):
            clauses = []
            for verdict, says in VERDICTS:
                part = of_target[of_target["verdict"] == verdict]
                places = [
                    f"{score}{_at(sorted(set(where)), months)}"
                    for score, where in part.groupby("score", sort=False)["months"]
                ]
                if places:
                    clauses.append(f"{says} {', '.join(places)}")
            lines.append(f"Against the {target}, {method} {'; '.join(clauses)}.")
        return " ".join(lines) or f"{method} was compared with no copy."


def _at(where: Sequence[float], months: Sequence[float]) -> str:
    """``at 6 and 12 months``, or nothing where it is at all of them."""
    if list(where) == list(months):
        return ""
    return f" at {' and '.join(f'{m:g}' for m in where)} months"


def interpolation_table(
    pipe: Any,
    cohort: Cohort,
    volumes: np.ndarray,
    *,
    gaps: Sequence[float] = (6.0, 12.0, 18.0, 24.0),
    steps: int | None = None,
    truth: Truth | None = None,
    scoring: VolumeScoring | None = None,
) -> InterpolationTable:
    """Scores of every triple of `Cohort.triples` by each method, against each target.

    Parameters
    ----------
    pipe : an `LDAE`, or anything with its latents, images, codes, noise, decode and between.
    volumes : float32 (n, 1, i, j, k), one for each row of the cohort, on the pipe's grid.
    gaps : months; a triple counts under the one within 3 months of it, by both published meanings:
        "gap" from the first to the last scan, and "reach" from the middle to the nearer end.
    steps : of the walks, both ways.
    truth : (subject, months) -> the noise-free brain (1, i, j, k), of simulated people.
    scoring : kernel 4 by default, as released; its mask is where changes are compared.

    Returns
    -------
    Scores besides likeness: "change correlation"; "change slope" (1 is right, 0 no change), which
    has no direction of better, but "slope error" = |slope - 1| has; "error <region>", absolute ml
    against the target by one ruler; "planted error <region>", against the table's true_<region>,
    which depends on no target and stands with "scan".

    Raises
    ------
    UsageError : no subject with three scans, or none near one of ``gaps``.
    DataError : NaN in a scan.
    """
    checked(volumes, cohort.scans)
    scoring = scoring or VolumeScoring(kernel=4)
    triples = cohort.triples()
    if not len(triples):
        raise UsageError("no subject has three scans at three times; there is nothing to fill in")
    months = {how: _nearest(triples[how].to_numpy(float), gaps) for how in ("gap", "reach")}
    kept = np.isfinite(months["gap"]) | np.isfinite(months["reach"])
    if not kept.any():
        raise UsageError(
            f"no triple is within {NEAR:g} months of {tuple(gaps)}; gaps are "
            f"{', '.join(f'{g:g}' for g in sorted(set(triples['gap'])))}"
        )
    triples = triples[kept].reset_index(drop=True)
    months = {how: values[kept] for how, values in months.items()}
    seen = _Seen(pipe, cohort, volumes, triples, steps, truth)
    parts = []
    for number in range(len(triples)):
        row = triples.iloc[number]
        rows = _scored(seen, number, row, scoring)
        for how in ("gap", "reach"):
            if np.isfinite(months[how][number]):
                parts.append(rows.assign(definition=how, months=float(months[how][number])))
    table = pd.concat(parts, ignore_index=True)
    return InterpolationTable(
        table, ("definition", "months", "method", "target"), _directions(table, scoring, volumes),
        (f"{len(triples)} triples of {triples['subject'].nunique()} subjects",
         "a change that is not there has correlation 0: the nearest copy knows none"),
    )  # fmt: skip


class _Seen:
    """Scans of the triples, through the model once each."""

    def __init__(
        self,
        pipe: Any,
        cohort: Cohort,
        volumes: np.ndarray,
        triples: pd.DataFrame,
        steps: int | None,
        truth: Truth | None,
    ) -> None:
        self.pipe, self.steps, self.truth = pipe, steps, truth
        self.ids = list(dict.fromkeys(triples[["first", "middle", "last"]].to_numpy().ravel()))
        self.at = {scan: place for place, scan in enumerate(self.ids)}
        rows = [cohort.ids.index(scan) for scan in self.ids]
        self.rows = cohort.scans.iloc[rows].reset_index(drop=True)
        self.volumes = volumes[rows]
        self.latents = pipe.latents(self.volumes)
        self.ceiling = pipe.images(self.latents)
        self.codes = pipe.codes(self.volumes)
        self.noise = pipe.noise(self.latents, self.codes, steps=steps)
        self.encoded = pipe.images(pipe.decode(self.codes, self.noise, steps=steps))
        self.walked = self._walked(triples)

    def _walked(self, triples: pd.DataFrame) -> list[dict[str, np.ndarray]]:
        """Latents (1, c, i, j, k) of each triple by the methods that walk, all in one batch."""
        codes, noises, names = [], [], []
        for number in range(len(triples)):
            row = triples.iloc[number]
            a, b = (self.at[row[name]] for name in ("first", "last"))
            near = a if row["t"] <= 0.5 else b
            code, noise = self.pipe.between(
                self.codes[[a]], self.codes[[b]], self.noise[[a]], self.noise[[b]], float(row["t"])
            )
            asked = {OURS: (code, noise), ONE_NOISE: (code, self.noise[[a]])}
            if near != a:  # the first scan under its own noise is there already
                asked[_NEAR] = (self.codes[[near]], self.noise[[a]])
            names += [(number, name) for name in asked]
            codes += [pair[0] for pair in asked.values()]
            noises += [pair[1] for pair in asked.values()]
        latents = self.pipe.decode(np.concatenate(codes), np.concatenate(noises), steps=self.steps)
        found: list[dict[str, np.ndarray]] = [{} for _ in range(len(triples))]
        for place, (number, name) in enumerate(names):
            found[number][name] = latents[[place]]
        return found

    def predictions(
        self, number: int, first: int, last: int, t: float
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Method -> its picture of the middle, and of the nearer scan; each (1, 1, i, j, k)."""
        near = first if t <= 0.5 else last
        a, b, n = ([place] for place in (first, last, near))
        mixed = (1 - t) * self.latents[a] + t * self.latents[b]
        walked = {name: self.pipe.images(z) for name, z in self.walked[number].items()}
        return {
            COPY: (self.volumes[n], self.volumes[n]),
            VOXEL: ((1 - t) * self.volumes[a] + t * self.volumes[b], self.volumes[n]),
            LATENT: (self.pipe.images(mixed.astype(np.float32)), self.ceiling[n]),
            OURS: (walked[OURS], self.encoded[n]),
            ONE_NOISE: (walked[ONE_NOISE], walked.get(_NEAR, self.encoded[n])),
        }

    def targets(self, middle: int, near: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Target -> what it is of the middle and of the nearer scan."""
        m, n = [middle], [near]
        found = {
            "scan": (self.volumes[m], self.volumes[n]),
            "autoencoded": (self.ceiling[m], self.ceiling[n]),
        }
        if self.truth is not None:
            found["truth"] = (self._true(middle), self._true(near))
        return found

    def _true(self, place: int) -> np.ndarray:
        row = self.rows.iloc[place]
        assert self.truth is not None
        found = np.asarray(self.truth(str(row["subject"]), float(row["session"])), np.float32)
        if found.shape != self.volumes.shape[1:]:
            raise DataError(
                f"the truth of {row['scan']} has shape {found.shape}; the scans have "
                f"{self.volumes.shape[1:]}"
            )
        return found[None]


def _scored(seen: _Seen, number: int, row: pd.Series, scoring: VolumeScoring) -> pd.DataFrame:
    """One row a method and target of one triple."""
    first, middle, last = (seen.at[row[name]] for name in ("first", "middle", "last"))
    t = float(row["t"])
    near = first if t <= 0.5 else last
    mask = scoring.mask if scoring.mask is not None else seen.volumes[middle, 0] > BRAIN
    metrics = _chosen(scoring, seen.volumes)
    targets = seen.targets(middle, near)
    of_targets = {name: scoring.regions(pair[0]) for name, pair in targets.items()}
    lines = []
    for method, (found, own) in seen.predictions(number, first, last, t).items():
        regions = scoring.regions(found)
        for target, (true, start) in targets.items():
            line = {name: row[name] for name in ("subject", "first", "middle", "last", "t")}
            line |= {"gap": row["gap"], "reach": row["reach"], "method": method, "target": target}
            line |= {name: float(m(found, true)[0]) for name, m in metrics.items()}
            correlation, slope = difference_agreement(found - own, true - start,
                                                      np.zeros_like(true), mask[None])  # fmt: skip
            line |= {CORRELATION: float(correlation[0]), SLOPE: float(slope[0])}
            line["slope error"] = abs(float(slope[0]) - 1)
            for name in regions:
                ml = float(regions[name].iloc[0])
                line[name] = ml
                line[f"error {name}"] = abs(ml - float(of_targets[target][name].iloc[0]))
                planted = f"true_{name}"
                if planted in seen.rows and target == "scan":  # it depends on no target
                    line[f"planted error {name}"] = abs(ml - float(seen.rows[planted].iloc[middle]))
            lines.append(line)
    return pd.DataFrame(lines)


def _chosen(scoring: VolumeScoring, volumes: np.ndarray) -> dict[str, Any]:
    """SSIM, MSE and, where there is a network, LPIPS."""
    found = scoring.metrics(volumes.shape[2:])
    return {name: m for name, m in found.items() if name.startswith(("SSIM", "MSE", "LPIPS"))}


def _directions(
    table: pd.DataFrame, scoring: VolumeScoring, volumes: np.ndarray
) -> dict[str, bool | None]:
    found: dict[str, bool | None] = {
        name: metric.higher_is_better for name, metric in _chosen(scoring, volumes).items()
    }
    found |= {CORRELATION: True, SLOPE: None, "slope error": False}
    errors = [str(name) for name in table if str(name).startswith(("error ", "planted error "))]
    return found | dict.fromkeys(errors, False)


def _nearest(values: np.ndarray, gaps: Sequence[float]) -> np.ndarray:
    """The gap within `NEAR` months of each value, or NaN."""
    if not len(gaps):
        raise UsageError("there is no gap; give months such as (6, 12, 18, 24)")
    steps = np.asarray(gaps, float)
    place = np.abs(values[:, None] - steps[None]).argmin(axis=1)
    return np.where(np.abs(values - steps[place]) <= NEAR, steps[place], np.nan)
