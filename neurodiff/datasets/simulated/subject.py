"""A simulated subject: responses of the real visual cortex to objects, with a planted truth.

Each of the 31 visual areas carries one stated family of stimulus features or nothing (``TUNING``),
on the real fsLR-32k vertices. What a decoder can find, where, and how much, is therefore known:

    x[trial, frame, v] = a_v * h(frame) * s_v(stimulus) + noise[trial, frame, v]

``s_v``: linear read-out of the area's features, unit variance over the reference stimuli, weights
smooth along the cortex, partly shared between subjects and partly individual.
``h``: haemodynamic response to 8 s of viewing at TR 0.8 s, 10 frames from 4 s after onset.
``noise``: unit variance, AR(1) in time and smooth in space as fitted to real residuals (noise.py).
``a_v``: set from the noise ceiling of the trial's response amplitude (the least-squares weight of
``h`` over the 10 volumes, what a GLM calls a single-trial beta), which holds in closed form; the
ceiling of one volume at the peak of the response (h = 1) is lower, since nothing is averaged:

    beta    a_v^2 / (a_v^2 + var_beta),   var_beta = h'Rh / (h'h)^2,   R[i,j] = rho^|i-j|
    volume  a_v^2 / (a_v^2 + 1)

The default is a median of 0.10 for the beta of a single trial (0.024 for its peak volume), the hard
case 0.03 (0.007).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.datasets.simulated.noise import (
    MEASURED_COMMON_SHARE,
    MEASURED_FWHM_MM,
    MEASURED_LAG1,
    smooth_noise,
    smoothing_kernel,
)
from neurodiff.datasets.simulated.stimulus_features import StimulusFeatures
from neurodiff.datasets.surface import FlatMapSpace, VisualCortex, load_visual_cortex

TR = 0.8
N_FRAMES = 10
ONSET_LAG = 4.0  # seconds between stimulus onset and the first frame of a trial
TRIALS_A_RUN = 49  # as in the released core runs (reference: about 49 rows a run)

#: which features an area carries; areas that are not named carry nothing
TUNING: dict[str, tuple[str, ...]] = {
    "contrast": ("V1", "V2", "V3", "V4", "V3A", "V3B", "V8"),
    "shape": ("LO1", "LO2", "LO3", "PIT", "V4t", "V3CD", "TE2p", "PH"),
    "category": ("FFC", "VVC", "PHA1", "PHA2", "PHA3", "VMV1", "VMV2", "VMV3"),
}
TUNING_FWHM_MM = 6.0  # tuning changes more slowly along the cortex than the noise does
DEFAULT_CEILING = 0.10
HARD_CEILING = 0.03
INDIVIDUAL = 0.5  # share of the tuning variance that other subjects do not have


@dataclass(frozen=True)
class PlantedSubject:
    """The truth of one simulated subject; vertices are those of ``cortex`` (8,921)."""

    subject: int
    seed: int
    cortex: VisualCortex
    weights: dict[str, Float[np.ndarray, "d vertices"]]  # zero outside the family's areas
    amplitude: Float[np.ndarray, " vertices"]
    rho: float = MEASURED_LAG1
    fwhm_mm: float = MEASURED_FWHM_MM
    tuning: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(TUNING))

    @property
    def name(self) -> str:
        """As recordings name the subject: ``"sim-01"``."""
        return f"sim-{self.subject:02d}"

    @property
    def informative(self) -> np.ndarray:
        """Vertices (vertices,) that carry something."""
        return self.amplitude > 0

    def noise_ceiling(self, repeats: int = 1) -> np.ndarray:
        """Share of the variance of a mean of ``repeats`` trial betas that the stimulus explains."""
        signal = self.amplitude**2
        return signal / (signal + beta_variance(self.rho) / repeats)

    def volume_ceiling(self, repeats: int = 1) -> np.ndarray:
        """The same share for one volume at the peak of the response."""
        signal = self.amplitude**2
        return signal / (signal + 1 / repeats)

    def signal(self, features: Any) -> Float[np.ndarray, "stimuli vertices"]:
        """Noise-free response amplitude of each stimulus."""
        total = sum(getattr(features, name) @ w for name, w in self.weights.items())
        return total * self.amplitude

    def noise(
        self, stimulus: str, repeat: int, frames: int
    ) -> Float[np.ndarray, "frames vertices"]:
        """Unit-variance noise of one trial, which depends on nothing but subject, stimulus and
        repeat (from 0)."""
        key = item_seed(
            self.seed, subject=self.name, stimulus=stimulus, sample=repeat, stage="noise"
        )
        return smooth_noise(
            (frames,),
            self.cortex,
            generator=numpy_generator(key),
            fwhm_mm=self.fwhm_mm,
            rho=self.rho,
            common_share=MEASURED_COMMON_SHARE,
        )

    def areas_table(self) -> pd.DataFrame:
        """One row an area: what was planted."""
        family_of: dict[str, str] = {}
        for family, areas in self.tuning.items():
            for area in areas:
                family_of[area] = ", ".join(filter(None, (family_of.get(area), family)))
        beta, volume = self.noise_ceiling(), self.volume_ceiling()
        rows = [
            {
                "area": area,
                "carries": family_of.get(area, "nothing"),
                "vertices": int(mask.sum()),
                "median noise ceiling, single trial": float(np.median(beta[mask])),
                "median noise ceiling, peak volume": float(np.median(volume[mask])),
            }
            for area, mask in self.cortex.areas.items()
            if not area.startswith(("L_", "R_"))
        ]
        return pd.DataFrame(rows)


def plant_subject(
    reference: StimulusFeatures,
    *,
    subject: int = 1,
    seed: int = 0,
    median_ceiling: float = DEFAULT_CEILING,
    individual: float = INDIVIDUAL,
    fwhm_mm: float = MEASURED_FWHM_MM,
    rho: float = MEASURED_LAG1,
) -> PlantedSubject:
    """Draw a subject's tuning.

    Parameters
    ----------
    reference : features of the stimuli over which a vertex's signal has unit variance.
    median_ceiling : median single-trial noise ceiling (of betas) of the informative vertices, in
        (0, 1).
    individual : share of the tuning variance that other subjects do not have, 0 to 1; in contrast
        areas, of where the receptive fields are displaced to.

    Raises
    ------
    UsageError : a share is outside its range, or there are fewer than two reference stimuli.
    """
    return plant(
        reference,
        _object_weights,
        tuning=TUNING,
        subject=subject,
        seed=seed,
        median_ceiling=median_ceiling,
        individual=individual,
        fwhm_mm=fwhm_mm,
        rho=rho,
    )


def plant(
    reference: Any,
    weights_of: Callable[[VisualCortex, str, int, Callable[[str, int], np.ndarray]], np.ndarray],
    *,
    tuning: Mapping[str, tuple[str, ...]],
    subject: int = 1,
    seed: int = 0,
    median_ceiling: float = DEFAULT_CEILING,
    individual: float = INDIVIDUAL,
    fwhm_mm: float = MEASURED_FWHM_MM,
    rho: float = MEASURED_LAG1,
) -> PlantedSubject:
    """A subject whose areas carry any families of features.

    Parameters
    ----------
    reference : has an array (stimuli, d) under the name of each family, and a length.
    weights_of : (cortex, family, d, draw) -> (d, vertices), scaled and masked here; ``draw(what,
        rows)`` gives smooth maps of unit variance, partly shared between subjects.
    tuning : family -> the areas that carry it.

    The others, and errors, are those of `plant_subject`.
    """
    if len(reference) < 2:
        raise UsageError(f"{len(reference)} reference stimuli; a signal's variance needs two")
    if not 0 < median_ceiling < 1:
        raise UsageError(f"median_ceiling is {median_ceiling}; it is a share between 0 and 1")
    if not 0 <= individual <= 1:
        raise UsageError(f"individual is {individual}; it is a share between 0 and 1")
    cortex = load_visual_cortex()
    kernel = smoothing_kernel(cortex, TUNING_FWHM_MM)

    def draw(what: str, rows: int, own: bool) -> np.ndarray:
        who = f"subject {subject}" if own else "everyone"
        key = item_seed(seed, subject=who, stimulus=what, stage="tuning")
        white = numpy_generator(key).standard_normal((cortex.n_vertices, rows))
        return (kernel @ white).T  # (rows, vertices), unit variance, smooth along the cortex

    def mixed(what: str, rows: int) -> np.ndarray:
        return np.sqrt(1 - individual) * draw(what, rows, own=False) + np.sqrt(individual) * draw(
            what, rows, own=True
        )

    weights, informative = {}, np.zeros(cortex.n_vertices, bool)
    for family, areas in tuning.items():
        inside = np.any([cortex.areas[area] for area in areas], axis=0)
        values = getattr(reference, family)
        w = np.where(inside, weights_of(cortex, family, values.shape[1], mixed), 0.0)
        spread = (values @ w).std(axis=0)
        weights[family] = (w / np.where(spread > 0, spread, 1.0)).astype(np.float32)
        informative |= inside
    # log-normal spread around the stated median, so the median holds exactly in distribution
    snr = median_ceiling / (1 - median_ceiling) * np.exp(0.6 * mixed("gain", 1)[0])
    inside_median = np.median(snr[informative])
    snr *= median_ceiling / (1 - median_ceiling) / inside_median
    amplitude = np.where(informative, np.sqrt(snr * beta_variance(rho)), 0.0)
    return PlantedSubject(
        subject, seed, cortex, weights, amplitude.astype(np.float32), rho, fwhm_mm, dict(tuning)
    )


def record(
    planted: PlantedSubject,
    features: StimulusFeatures,
    stimuli: list[str],
    *,
    split: str,
    repeats: int = 1,
    first_run: int = 1,
    progress: Progress = SILENT,
) -> Recording:
    """Show each stimulus ``repeats`` times; each trial's noise depends on (subject, stimulus,
    repeat) only, so other trials never change it.

    Returns
    -------
    Recording of (trials, 10 frames, 8,921 vertices), float32 on reading (kept as float16), in
    units of the noise's standard deviation, unit "a.u.".

    Raises
    ------
    UsageError : stimuli and features differ in number, or nothing to record.
    """
    if len(stimuli) != len(features):
        raise UsageError(f"{len(stimuli)} stimuli, but features of {len(features)}")
    if len(stimuli) < 1 or repeats < 1:
        raise UsageError(f"{len(stimuli)} stimuli shown {repeats} times: nothing to record")
    signal = planted.signal(features)
    response = haemodynamic_response()
    rows = [(i, repeat) for repeat in range(repeats) for i in range(len(stimuli))]
    data = np.zeros((len(rows), N_FRAMES, signal.shape[1]), np.float16)
    for trial, (i, repeat) in enumerate(progress.over(rows, f"recording {planted.name}")):
        noise = planted.noise(stimuli[i], repeat, N_FRAMES)
        data[trial] = response[:, None] * signal[i] + noise
    trials = pd.DataFrame(
        {
            "subject": planted.name,
            "session": 1,
            "run": [first_run + k // TRIALS_A_RUN for k in range(len(rows))],
            "stimulus": [stimuli[i] for i, _ in rows],
            "repeat": [repeat + 1 for _, repeat in rows],
            "split": split,
        }
    )
    return Recording(
        data=HalfPrecision(data),
        trials=trials,
        rois=dict(planted.cortex.areas),
        space=FlatMapSpace(),
        unit="a.u.",
        simulated=True,
        name=f"simulated subject {planted.subject}",
    )


class HalfPrecision:
    """Responses kept as float16 (noise of SD 1 is far coarser), read as float32."""

    def __init__(self, data: np.ndarray):
        self._data = data
        self.shape, self.ndim, self.dtype = data.shape, data.ndim, np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index) -> np.ndarray:
        return self._data[index].astype(np.float32)


def haemodynamic_response() -> Float[np.ndarray, " 10"]:
    """Response to 8 s of viewing at each frame of a trial; maximum 1.

    Double gamma (peak 6 s, undershoot 16 s, ratio 1/6: Glover 1999, NeuroImage 9) convolved with
    the stimulus.
    """
    from scipy.stats import gamma

    step = 0.05
    times = np.arange(0, 32, step)
    impulse = gamma.pdf(times, 6) - gamma.pdf(times, 16) / 6
    whole = np.convolve(impulse, np.ones(int(8 / step)))
    frames = whole[((ONSET_LAG + TR * np.arange(N_FRAMES)) / step).astype(int)]
    return (frames / frames.max()).astype(np.float32)


def beta_variance(rho: float) -> float:
    """Variance of the least-squares response amplitude of a trial of unit-variance AR(1) noise."""
    h = haemodynamic_response().astype(float)
    lags = np.abs(np.subtract.outer(np.arange(N_FRAMES), np.arange(N_FRAMES)))
    return float(h @ rho**lags @ h / (h @ h) ** 2)


def _object_weights(cortex: VisualCortex, family: str, d: int, draw: Callable) -> np.ndarray:
    if family == "contrast":
        return receptive_fields(cortex, TUNING[family], jitter=draw("receptive field", 2))
    return draw(family, d)


def receptive_fields(
    cortex: VisualCortex, areas: tuple[str, ...], *, jitter: np.ndarray
) -> np.ndarray:
    """(64, vertices) Gaussian fields on the 8 x 8 contrast map: each area maps the visual field
    once along its flat-map axes, displaced smoothly by up to about one cell a subject."""
    centres = np.zeros((2, cortex.flat.shape[0]))
    for area in areas:
        for side in ("L_", "R_"):
            mask = cortex.area(side + area)
            xy = cortex.flat[mask]
            low, high = xy.min(axis=0), xy.max(axis=0)
            centres[:, mask] = ((xy - low) / np.maximum(high - low, 1e-6) * 7).T
    centres = centres + 0.7 * jitter
    rows, columns = np.divmod(np.arange(64), 8)
    distance2 = (rows[:, None] - centres[0]) ** 2 + (columns[:, None] - centres[1]) ** 2
    return np.exp(-distance2 / (2 * 1.0**2))
