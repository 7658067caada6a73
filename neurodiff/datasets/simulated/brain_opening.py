"""The simulated brains as a data set that is opened by name, like a real one.

``open_dataset("simulated_brains")`` makes a cohort from a seed: nothing is on disk.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import UsageError, suggest
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.simulated.brain_anatomy import tissue_maps
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains
from neurodiff.datasets.simulated.opening import subject_number

BRAIN_SIZES = {
    "tiny": BrainSettings(subjects=24, months=(0.0, 12.0, 24.0), shape=(24, 32, 24), sites=2),
    "demo": BrainSettings(),
}


def open_simulated_brains(
    root: str | Path | None = None,
    subject: int | str | None = None,
    *,
    size: str = "demo",
    seed: int = 0,
    shape: tuple[int, int, int] | list[int] | None = None,
) -> Cohort:
    """The cohort, or the scans of one subject.

    Parameters
    ----------
    root : not used; there is nothing on disk.
    subject : number from 1, or a name; None is everybody.
    size : ``"tiny"`` (24 people, 3 visits, 24 x 32 x 24 voxels) or ``"demo"`` (160 people, 4
        visits, 40 x 48 x 40).
    seed : of people and noise.
    shape : another grid; the spacing follows, so that the brain fits.

    Raises
    ------
    UsageError : no such size or subject, or a grid of fewer than 8 voxels.
    """
    cohort = simulated_brains(size, seed, shape=shape).cohort()
    if subject is None:
        return cohort
    name = f"sim-{subject_number(subject):04d}"
    if name not in cohort.subjects:
        raise UsageError(f"there is no subject {subject!r}; there are {len(cohort.subjects)}")
    return cohort.select((cohort.scans["subject"] == name).to_numpy())


def simulated_brains(
    size: str = "demo",
    seed: int = 0,
    *,
    shape: tuple[int, int, int] | list[int] | None = None,
) -> SimulatedBrains:
    """The brains behind `open_simulated_brains`, with the truth at any month."""
    if size not in BRAIN_SIZES:
        raise UsageError(
            f"there is no size {size!r}; there are tiny and demo.{suggest(size, BRAIN_SIZES)}"
        )
    settings = BRAIN_SIZES[size]
    if shape is not None:
        if len(shape) != 3:
            raise UsageError(f"the grid is {shape}; expected three numbers")
        i, j, k = (int(n) for n in shape)
        settings = replace(settings, shape=(i, j, k))
    return SimulatedBrains(settings, seed=seed)


def check_simulated_brains(
    root: str | Path | None = None, subject: int | str | None = None
) -> list[Finding]:
    """What the simulation needs: the MNI templates of nilearn."""
    shape = " x ".join(map(str, tissue_maps()["brain"].shape))
    return [
        Finding.fine("template", "nilearn", f"MNI152 tissue at 2 mm, {shape} voxels"),
        Finding.fine("simulation", "made from a seed", "nothing on disk"),
    ]
