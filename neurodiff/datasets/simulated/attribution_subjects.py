"""Simulated subjects of which it is known which area carries what: the ruler of attribution.

Stimuli are points of a feature space of independent standard normal numbers, cut into blocks; an
area carries one block or nothing. Four designs:

    own       each informative area has a block of its own: what it loses nobody else gives
    shared    several areas carry the same block, each with its own read-out and noise; two areas
              have a block of their own, for comparison
    neighbour an empty area that touches two loaded ones, one that touches one, one that is far
    null      no area carries anything

A vertex of an informative area responds with ``a_v s(stimulus) . w_v``: w_v of length 1, smooth
along the cortex (so the signal has unit variance in law), and a_v from its single-trial noise
ceiling as in :mod:`~.subject`, whose defaults hold here too. The noise has the fitted smoothness,
common share and, where a trial has frames, autocorrelation; a trial without frames is its response
amplitude, with noise of the variance that a GLM's estimate has.

Everything is on the real fsLR-32k visual cortex, or on the part of it that the named areas fill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.spaces import SubSpace
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.simulated.noise import (
    MEASURED_COMMON_SHARE,
    MEASURED_FWHM_MM,
    MEASURED_LAG1,
    smoothing_kernel,
)
from neurodiff.datasets.simulated.patch_noise import PatchNoise
from neurodiff.datasets.simulated.subject import (
    DEFAULT_CEILING,
    N_FRAMES,
    TUNING_FWHM_MM,
    beta_variance,
    haemodynamic_response,
)
from neurodiff.datasets.surface import VISUAL_AREAS, FlatMapSpace, VisualCortex, load_visual_cortex

DESIGNS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        # every other area of the list, so that empty areas lie between loaded ones
        "own": {f"only {area}": (area,) for area in VISUAL_AREAS[::2]},
        "shared": {
            "contrast": ("V2", "V3", "V4"),
            "category": ("FFC", "PH", "TE2p", "VVC"),
            "only V3A": ("V3A",),
            "only IPS1": ("IPS1",),
        },
        "neighbour": {"only VVC": ("VVC",), "only PHA3": ("PHA3",)},
        "null": {},
    }
)
"""design -> block of features -> the areas that carry it; areas that are not named carry nothing"""

PATCHES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "own": VISUAL_AREAS,
        "shared": VISUAL_AREAS,
        "neighbour": ("VVC", "VMV3", "VMV2", "PHA3", "MT"),
        "null": ("V3CD", "LO1", "LO2", "LO3", "PIT", "V4t"),
    }
)
"""design -> the areas that it has unless others are named"""

TRIALS_A_RUN = 50
_GAIN_SPREAD = 0.6  # of the log signal-to-noise ratio over vertices, as in `subject.plant`


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionSubject:
    """A subject with its truth; vertices are those of ``areas``.

    Attributes
    ----------
    design : "own", "shared", "neighbour" or "null".
    areas : the areas that are there, each a region of interest.
    blocks : block of features -> columns of the feature space.
    carriers : block -> the areas that carry it.
    columns : which of the 8,921 visual vertices are there.
    readout : (features, vertices), response of each vertex to each feature; 0 in empty areas.
    noise : of one frame, unit variance.
    """

    design: str
    subject: int
    seed: int
    areas: tuple[str, ...]
    blocks: Mapping[str, slice]
    carriers: Mapping[str, tuple[str, ...]]
    columns: Int[np.ndarray, " vertices"]
    readout: Float[np.ndarray, "d vertices"] = field(repr=False)
    noise: PatchNoise = field(repr=False)

    @property
    def name(self) -> str:
        return f"sim-{self.design}-{self.subject:04d}"

    @property
    def n_features(self) -> int:
        """Dimensions of the feature space."""
        return len(self.readout)

    @cached_property
    def rois(self) -> dict[str, Bool[np.ndarray, " vertices"]]:
        """Area -> which of the vertices belong to it."""
        cortex = load_visual_cortex()
        return {area: cortex.areas[area][self.columns] for area in self.areas}

    @property
    def informative(self) -> dict[str, bool]:
        """Area -> whether it carries anything."""
        loaded = {area for areas in self.carriers.values() for area in areas}
        return {area: area in loaded for area in self.areas}

    @property
    def beta_noise(self) -> float:
        """Variance of the noise of a trial's response amplitude."""
        return beta_variance(self.noise.rho)

    @cached_property
    def truth(self) -> pd.DataFrame:
        """One row an area: carries ("unique", "shared" or "none"), block, with whom, vertices,
        median single-trial noise ceiling, and the informative areas that it touches."""
        cortex = load_visual_cortex()
        block_of = {area: block for block, areas in self.carriers.items() for area in areas}
        informative = self.informative
        power = np.square(self.readout).sum(axis=0)
        ceiling = power / (power + self.beta_noise)
        rows = []
        for area, mask in self.rois.items():
            block = block_of.get(area, "")
            others = [a for a in self.carriers.get(block, ()) if a != area]
            carries = "none" if not block else "shared" if others else "unique"
            touched = [a for a in self.areas if a != area and informative[a]]
            rows.append(
                {
                    "area": area,
                    "carries": carries,
                    "block": block,
                    "with": ", ".join(others),
                    "vertices": int(mask.sum()),
                    "noise ceiling": float(np.median(ceiling[mask])),
                    "next to": ", ".join(a for a in touched if _touch(cortex, area, a)),
                }
            )
        return pd.DataFrame(rows)

    def features(self, ids: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Features of the stimuli of these names; a name's are the same for every subject."""
        rows = np.zeros((len(ids), self.n_features), np.float32)
        for row, name in zip(rows, ids, strict=True):
            key = item_seed(self.seed, subject="everyone", stimulus=name, stage="features")
            row[:] = numpy_generator(key).standard_normal(self.n_features, np.float32)
        return rows

    def stimuli(self, ids: Sequence[str]) -> Stimuli:
        """The stimuli of these names; each feature is a factor."""
        names = [
            f"{block}:{k}" for block, at in self.blocks.items() for k in range(at.stop - at.start)
        ]
        table = pd.DataFrame(self.features(ids).astype(float), columns=names)
        table.insert(0, "id", list(ids))
        return Stimuli(table, simulated=True)

    def record(
        self, ids: Sequence[str], *, split: str, repeats: int = 1, frames: bool = False
    ) -> Recording:
        """Show each stimulus ``repeats`` times; a trial's noise depends on (subject, stimulus,
        repeat) only.

        Parameters
        ----------
        frames : ten frames a trial at TR 0.8 s instead of the response amplitude.

        Returns
        -------
        Recording of (trials, vertices) or (trials, 10, vertices), in units of the standard
        deviation of the noise of one frame; runs of 50 trials, those of another split have other
        numbers.

        Raises
        ------
        UsageError : nothing to record.
        """
        if len(ids) < 1 or repeats < 1:
            raise UsageError(f"{len(ids)} stimuli shown {repeats} times: nothing to record")
        signal = self.features(ids) @ self.readout
        shown = [(i, repeat) for repeat in range(repeats) for i in range(len(ids))]
        seeds = [
            item_seed(self.seed, subject=self.name, stimulus=ids[i], sample=repeat, stage="noise")
            for i, repeat in shown
        ]
        rows = [i for i, _ in shown]
        if frames:
            data = self.noise.draw(seeds, frames=N_FRAMES)
            data += haemodynamic_response()[:, None] * signal[rows][:, None]
        else:
            data = self.noise.draw(seeds)[:, 0]
            data *= np.float32(np.sqrt(self.beta_noise))
            data += signal[rows]
        first = {"train": 1, "test": 1001}.get(split, 2001)
        trials = pd.DataFrame(
            {
                "subject": self.name,
                "session": 1,
                "run": [first + k // TRIALS_A_RUN for k in range(len(rows))],
                "stimulus": [ids[i] for i in rows],
                "repeat": [repeat + 1 for _, repeat in shown],
                "split": split,
            }
        )
        space = FlatMapSpace()
        whole = len(self.columns) == space.n_features
        return Recording(
            data=data,
            trials=trials,
            rois=self.rois,
            space=space if whole else SubSpace(space, self.columns),
            unit="a.u.",
            simulated=True,
            name=f"simulated subject, {self.design} information",
        )

    def study(
        self, *, train: int = 1000, test: int = 300, repeats: int = 1, frames: bool = False
    ) -> tuple[Recording, Recording]:
        """Recordings of ``train`` and ``test`` stimuli, none in both; test stimuli ``repeats``
        times."""
        return (
            self.record(names("train", train), split="train", frames=frames),
            self.record(names("test", test), split="test", repeats=repeats, frames=frames),
        )


def names(split: str, count: int) -> list[str]:
    """Ids of the stimuli of a split: ``'train-0000'``, ..."""
    return [f"{split}-{k:04d}" for k in range(count)]


def attribution_subject(
    design: str = "own",
    *,
    areas: Sequence[str] | None = None,
    dimensions: int = 4,
    median_ceiling: float = DEFAULT_CEILING,
    subject: int = 1,
    seed: int = 0,
    fwhm_mm: float = MEASURED_FWHM_MM,
) -> AttributionSubject:
    """Draw a subject of a design.

    Parameters
    ----------
    design : "own", "shared", "neighbour" or "null"; see the head of this module.
    areas : those that are there, among the 31; blocks that none of them carries are left out. By
        default those of ``PATCHES``.
    dimensions : features a block, >= 1. A null subject has one block, which nothing carries.
    median_ceiling : median single-trial noise ceiling of the informative vertices, in (0, 1).
    fwhm_mm : smoothness of the noise, 0 to 8.

    Raises
    ------
    UsageError : an unknown design or area, an area twice, or a number outside its range.

    Examples
    --------
    >>> subject = attribution_subject("shared", areas=["FFC", "PH", "MT"])
    >>> subject.truth[["area", "carries", "with"]].to_string(index=False).splitlines()
    ['area carries with', ' FFC  shared   PH', '  PH  shared  FFC', '  MT    none     ']
    """
    if design not in DESIGNS:
        raise UsageError(f"there is no design {design!r}.{suggest(design, list(DESIGNS))}")
    present = tuple(PATCHES[design] if areas is None else areas)
    strange = [area for area in present if area not in VISUAL_AREAS]
    if strange or not present or len(set(present)) < len(present):
        told = f"no visual area {strange[0]!r}" if strange else f"areas are {present}"
        raise UsageError(f"{told}; name one or more of the 31 visual areas, each once")
    if dimensions < 1 or not 0 < median_ceiling < 1:
        raise UsageError(
            f"dimensions is {dimensions} and median_ceiling {median_ceiling}; expected at least 1 "
            "and a share between 0 and 1"
        )
    cortex = load_visual_cortex()
    columns = np.flatnonzero(np.any([cortex.areas[area] for area in present], axis=0))
    carriers = {
        block: kept
        for block, of in DESIGNS[design].items()
        if (kept := tuple(area for area in of if area in present))
    }
    names_of = list(carriers) or ["nobody's"]
    blocks = {name: slice(k * dimensions, (k + 1) * dimensions) for k, name in enumerate(names_of)}
    readout = np.zeros((len(blocks) * dimensions, len(columns)), np.float32)
    who = {"subject": f"{design} {subject}", "stage": "tuning"}
    for block, of in carriers.items():
        inside = np.any([cortex.areas[area] for area in of], axis=0)[columns]
        tuning = tuning_maps(item_seed(seed, stimulus=block, **who), dimensions)[:, columns]
        readout[blocks[block]] = np.where(inside, tuning, 0.0)
    carried = readout.any(axis=0)
    if carried.any():
        gain = _smooth_maps(item_seed(seed, stimulus="gain", **who), 1)[0, columns]
        snr = np.exp(_GAIN_SPREAD * gain)
        snr *= median_ceiling / (1 - median_ceiling) / np.median(snr[carried])
        readout *= np.sqrt(snr * beta_variance(MEASURED_LAG1)).astype(np.float32)
    return AttributionSubject(
        design=design,
        subject=subject,
        seed=seed,
        areas=present,
        blocks=blocks,
        carriers=carriers,
        columns=columns,
        readout=readout,
        noise=PatchNoise(
            columns=columns,
            fwhm_mm=fwhm_mm,
            rho=MEASURED_LAG1,
            common_share=MEASURED_COMMON_SHARE,
        ),
    )


def null_subjects(
    count: int,
    *,
    areas: Sequence[str] | None = None,
    dimensions: int = 4,
    seed: int = 0,
    first: int = 1,
) -> Iterator[AttributionSubject]:
    """``count`` subjects in whom no area carries anything, for calibration.

    They differ in noise; their stimuli are others too, since each has its own seed. On the default
    areas (648 vertices) a subject and 300 trials take some 30 ms.
    """
    like = attribution_subject("null", areas=areas, dimensions=dimensions, seed=seed)
    for number in range(first, first + count):
        own = item_seed(seed, subject="null", stimulus=number, stage="subject")
        yield AttributionSubject(**{**_parts(like), "subject": number, "seed": own})


def tuning_maps(seed: int, dimensions: int) -> Float[np.ndarray, "d 8921"]:
    """Smooth random read-outs, of length 1 at each vertex of the visual cortex."""
    maps = _smooth_maps(seed, dimensions)
    return (maps / np.linalg.norm(maps, axis=0)).astype(np.float32)


def _smooth_maps(seed: int, rows: int) -> np.ndarray:
    cortex = load_visual_cortex()
    kernel = smoothing_kernel(cortex, TUNING_FWHM_MM)
    return (kernel @ numpy_generator(seed).standard_normal((cortex.n_vertices, rows))).T


def _touch(cortex: VisualCortex, a: str, b: str) -> bool:
    """Whether an edge of the surface joins the two areas."""
    return bool(cortex.neighbours[np.flatnonzero(cortex.areas[a])][:, cortex.areas[b]].nnz)


def _parts(subject: AttributionSubject) -> dict:
    return {name: getattr(subject, name) for name in AttributionSubject.__dataclass_fields__}
