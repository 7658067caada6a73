"""A simulated longitudinal cohort of brain scans whose truth is known.

Everything about a person follows from the seed and the person's number: anatomy, sex, age, disease
and its pace, site. A scan exists at any month, so that the truth of a missing visit is not another
noisy scan but the brain itself.

The volumes follow latent age and severity (log of millilitres; the slopes are chosen so that
ventricles grow by 2.5 % a year in health and 8.5 % in disease, and hippocampi shrink by 0.8 % and
4.5 %)::

    log ventricles  = -0.35 + 0.025 (age - 70) + 0.40 severity + N(0, 0.18)
    log hippocampus = -0.008 (age - 70) - 0.25 severity + N(0, 0.07)

relative to the template's 17 and 5.4 ml. These are the planted changes; a person's own anatomy and
the neighbouring change add to them, and the true volumes of the table are measured on the result.

Simulated results are about plumbing and method, never about brains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import UsageError
from neurodiff.core.scan_table import scan_id
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.volume import Volume
from neurodiff.datasets.simulated.brain_anatomy import (
    Anatomy,
    Grid,
    draw_anatomy,
    lookup,
    size_change,
    smooth_field,
    template_places,
    volume_ml,
)

DIAGNOSES = ("CN", "MCI", "AD")
VENTRICLES = (-0.35, 0.025, 0.40, 0.18)  # start, a year of age, a unit of severity, SD of people
HIPPOCAMPI = (0.0, -0.008, -0.25, 0.07)
CONVERSION = 0.62  # from this severity on a person with MCI is called AD at a visit
SEVERITY = {"CN": (0.0, 0.0), "MCI": (0.45, 0.08), "AD": (1.0, 0.15)}  # at first scan, a year
TISSUES = ("csf", "gm", "wm")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A scanner: levels of fluid, grey and white matter, blur (SD, mm) and noise (SD)."""

    name: str
    levels: tuple[float, float, float]
    blur_mm: float
    noise: float


SITES = (
    Site(name="A", levels=(0.22, 0.56, 0.80), blur_mm=0.6, noise=0.02),
    Site(name="B", levels=(0.28, 0.60, 0.78), blur_mm=1.0, noise=0.03),
    Site(name="C", levels=(0.18, 0.50, 0.82), blur_mm=0.8, noise=0.025),
)
CLEAN = Site(name="clean", levels=(0.22, 0.56, 0.80), blur_mm=0.0, noise=0.0)


@dataclass(frozen=True, kw_only=True)
class BrainSettings:
    """Sizes of a simulated cohort.

    Attributes
    ----------
    subjects : people.
    months : when each is scanned.
    shape : voxels of a scan; the spacing follows, so that the brain fits.
    shares : of CN, MCI and AD.
    sites : number of sites, 1 to 3.
    bias : SD of the logarithm of the bias field.
    missed : share of later visits that a person does not come to.
    """

    subjects: int = 160
    months: tuple[float, ...] = (0.0, 6.0, 12.0, 24.0)
    shape: tuple[int, int, int] = (40, 48, 40)
    shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    sites: int = 3
    bias: float = 0.08
    missed: float = 0.0

    def __post_init__(self) -> None:
        if self.subjects < 1 or not self.months or min(self.months) < 0:
            raise UsageError(
                f"{self.subjects} subjects at months {self.months}; give at least one of each"
            )
        if len(self.shape) != 3 or min(self.shape) < 8:
            raise UsageError(f"the grid is {self.shape}; expected three numbers of at least 8")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise UsageError(f"the shares of CN, MCI and AD are {self.shares}; they sum to 1")
        if not 1 <= self.sites <= len(SITES):
            raise UsageError(f"there are 1 to {len(SITES)} sites, not {self.sites}")
        if not 0 <= self.missed < 1 or self.bias < 0:
            raise UsageError(f"missed is {self.missed} and bias {self.bias}; expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Latent truth of one simulated subject.

    ``diagnosis`` and ``severity`` are those of month 0, ``pace`` is the growth of severity a year;
    ``ventricles`` and ``hippocampi`` are a person's own share of the log volumes.
    """

    name: str
    sex: str
    diagnosis: str
    age: float
    severity: float
    pace: float
    ventricles: float
    hippocampi: float
    site: int
    anatomy: Anatomy
    brain_ml: float

    def severity_at(self, months: float) -> float:
        return self.severity + self.pace * months / 12

    def diagnosis_at(self, months: float) -> str:
        """What is said at a visit: MCI becomes AD once the severity reaches `CONVERSION`."""
        if self.diagnosis == "MCI" and self.severity_at(months) >= CONVERSION:
            return "AD"
        return self.diagnosis

    def changes_at(self, months: float) -> tuple[float, float]:
        """Log of the ventricles' and hippocampi's volume over the template's."""
        age, severity = self.age + months / 12 - 70, self.severity_at(months)
        ventricles, hippocampi = (
            start + by_age * age + by_disease * severity
            for start, by_age, by_disease, _ in (VENTRICLES, HIPPOCAMPI)
        )
        return ventricles + self.ventricles, hippocampi + self.hippocampi

    def sizes_at(self, months: float) -> tuple[float, float]:
        """``e`` of the ventricles and of the hippocampi."""
        ventricles, hippocampi = self.changes_at(months)
        return size_change("ventricles", ventricles), size_change("hippocampi", hippocampi)


class SimulatedBrains:
    """People and their scans; nothing is kept but the people.

    Examples
    --------
    ``brains = SimulatedBrains(BrainSettings(subjects=4), seed=0)``;
    ``brains.scan("sim-0001", 6.0)`` is what a scanner saw and ``brains.truth("sim-0001", 6.0)``
    the brain behind it.
    """

    def __init__(self, settings: BrainSettings | None = None, *, seed: int = 0) -> None:
        self.settings = settings or BrainSettings()
        self.seed = int(seed)
        self.grid = Grid.around_brain(self.settings.shape)
        self.names = [f"sim-{number:04d}" for number in range(1, self.settings.subjects + 1)]
        # diagnoses are dealt, so that a small cohort has its shares of each
        edges = np.cumsum(self.settings.shares) * self.settings.subjects
        order = numpy_generator(self._seed("", "order")).permutation(self.settings.subjects)
        self._groups = np.searchsorted(edges - 0.5, order, side="left").clip(0, 2)
        self._people: dict[str, Person] = {}

    def person(self, name: str) -> Person:
        """The latent truth of a subject; UsageError where there is none of this name."""
        if name not in self._people:
            if name not in self.names:
                raise UsageError(
                    f"there is no simulated subject {name!r}; they are {self.names[0]} to "
                    f"{self.names[-1]}"
                )
            self._people[name] = self._draw(name)
        return self._people[name]

    def scan(self, name: str, months: float) -> Volume:
        """What the person's scanner saw: contrast, blur, bias field and noise of its own.

        float32 (1, i, j, k) from 0 to 1, background 0, unit "a.u.".
        """
        person = self.person(name)
        site = SITES[person.site]
        rng = numpy_generator(self._seed(name, f"scan {months:g}"))
        picture, brain = self._picture(person, months, site)
        knots = self.settings.bias * rng.standard_normal((1, 6, 7, 6))
        picture = picture * np.exp(smooth_field(knots, self.grid.axes)[0])
        noise = site.noise * rng.standard_normal(picture.shape)
        # the magnitude of a signal with noise in both channels, masked as a stripped scan is
        other = site.noise * rng.standard_normal(picture.shape)
        picture = np.hypot(picture + noise, other) * (brain > 0.5)
        return self._volume(picture, f"{name} at month {months:g}")

    def truth(self, name: str, months: float) -> Volume:
        """The brain itself at any month: no noise, no bias field, one contrast for all sites."""
        picture, brain = self._picture(self.person(name), months, CLEAN)
        return self._volume(picture * (brain > 0.5), f"{name} at month {months:g}, true")

    def region(self, name: str, months: float, region: str) -> Volume:
        """Shares (0 to 1) of ``"ventricles"``, ``"hippocampi"`` or ``"brain"`` in each voxel."""
        if region not in ("ventricles", "hippocampi", "brain"):
            raise UsageError(f"{region!r} is no region; there are ventricles, hippocampi and brain")
        person = self.person(name)
        places = template_places(self.grid.axes, person.anatomy, *person.sizes_at(months))
        values = lookup(region, places, blur_mm=self.grid.spacing / 2.355)
        return self._volume(values, f"{region} of {name} at month {months:g}")

    def volumes(self, name: str, months: float) -> dict[str, float]:
        """True millilitres of the ventricles, both hippocampi and the brain with its fluid."""
        person = self.person(name)
        ventricles, hippocampi = person.sizes_at(months)
        return {
            f"true_{region}_ml": volume_ml(region, person.anatomy, ventricles, hippocampi)
            for region in ("ventricles", "hippocampi")
        } | {"true_brain_ml": self.person(name).brain_ml}

    def cohort(self, *, keep: bool = False) -> Cohort:
        """The table of all scans; a scan is computed when it is asked for.

        keep : hold each scan once it was asked for (4 bytes a voxel); else it is computed again.

        Columns besides a cohort's own: true_severity, true_ventricles_ml, true_hippocampi_ml,
        true_brain_ml.
        """
        rows = []
        for name in self.names:
            person = self.person(name)
            for months in self._visits(name):
                rows.append(
                    {
                        "scan": scan_id(name, months),
                        "subject": name,
                        "session": months,
                        "age": round(person.age + months / 12, 2),
                        "sex": person.sex,
                        "diagnosis": person.diagnosis_at(months),
                        "site": SITES[person.site].name,
                        "scanner": f"simulated {SITES[person.site].name}",
                        "true_severity": person.severity_at(months),
                        **self.volumes(name, months),
                    }
                )
        shape = "x".join(map(str, self.grid.shape))
        scan = cache(self.scan) if keep else self.scan
        return Cohort(
            pd.DataFrame(rows),
            opener=lambda row: scan(row["subject"], float(row["session"])),
            notes=("simulated: about plumbing and method, never about brains",),
            name=f"simulated_brains {shape} seed {self.seed}",
            simulated=True,
        )

    # ------------------------------------------------------------------------------- parts

    def _visits(self, name: str) -> list[float]:
        rng = numpy_generator(self._seed(name, "visits"))
        first, *later = sorted(self.settings.months)
        comes = rng.random(len(later)) >= self.settings.missed
        return [first, *(months for months, there in zip(later, comes, strict=True) if there)]

    def _seed(self, name: str, stage: str) -> int:
        return item_seed(self.seed, subject=name, stimulus="", stage=f"simulated brains {stage}")

    def _draw(self, name: str) -> Person:
        rng = numpy_generator(self._seed(name, "person"))
        diagnosis = DIAGNOSES[int(self._groups[self.names.index(name)])]
        severity, pace = SEVERITY[diagnosis]
        anatomy = draw_anatomy(numpy_generator(self._seed(name, "anatomy")))
        spread = np.exp(0.15 * np.clip(rng.standard_normal(2), -2, 2))
        return Person(
            name=name,
            sex="F" if rng.random() < 0.5 else "M",
            diagnosis=diagnosis,
            age=round(float(rng.uniform(58, 86)), 2),
            severity=float(severity * spread[0]),
            pace=float(pace * spread[1]),
            ventricles=float(VENTRICLES[3] * np.clip(rng.standard_normal(), -2, 2)),
            hippocampi=float(HIPPOCAMPI[3] * np.clip(rng.standard_normal(), -2, 2)),
            site=int(rng.integers(self.settings.sites)),
            anatomy=anatomy,
            brain_ml=volume_ml("brain", anatomy, 0.0, 0.0),  # age does not move the surface
        )

    def _picture(self, person: Person, months: float, site: Site) -> tuple[np.ndarray, np.ndarray]:
        """Intensities (i, j, k) and the share of brain in each voxel."""
        places = template_places(self.grid.axes, person.anatomy, *person.sizes_at(months))
        # a voxel is a mean over itself; the scanner blurs it further
        blur = float(np.hypot(self.grid.spacing / 2.355, site.blur_mm))
        shares = {name: lookup(name, places, blur_mm=blur) for name in TISSUES}
        stacked = np.stack([shares[name] for name in TISSUES])
        return np.tensordot(np.array(site.levels), stacked, axes=1), stacked.sum(axis=0)

    def _volume(self, values: np.ndarray, name: str) -> Volume:
        data = np.clip(values, 0, 1).astype(np.float32)[None]
        return Volume(data, self.grid.affine, "a.u.", name)
