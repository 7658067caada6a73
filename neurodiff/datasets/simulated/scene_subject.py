"""A simulated subject who sees scenes: single-trial betas with a planted truth.

As :mod:`~.subject`, with the features of scenes, and one number a trial and vertex, as a GLM gives
it: the trial's response amplitude, with noise of the variance that such an estimate has.

    light     retinotopic: luminance, red-green and blue-yellow of an 8 x 8 map
    shape     leading principal components of the object's outline
    category  which object; four areas prefer one category each (``PREFERRED``)
    place     which background; four areas prefer one each

An area that prefers something answers more to it than to anything else, at every vertex, and is
the planted counterpart of a face or place area; areas that are not named carry nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.datasets.simulated.objects import CATEGORIES
from neurodiff.datasets.simulated.places import PLACES
from neurodiff.datasets.simulated.scenes import SceneSet, silhouettes
from neurodiff.datasets.simulated.subject import (
    DEFAULT_CEILING,
    INDIVIDUAL,
    HalfPrecision,
    PlantedSubject,
    beta_variance,
    plant,
    receptive_fields,
)
from neurodiff.datasets.surface import FlatMapSpace, VisualCortex

SCENE_TUNING: dict[str, tuple[str, ...]] = {
    "light": ("V1", "V2", "V3", "V4", "V3A", "V3B", "V8"),
    "shape": ("LO1", "LO2", "LO3", "PIT", "V4t", "V3CD"),
    "category": ("TE2p", "PH", "FFC", "VVC", "LO2", "PIT"),
    "place": ("PHA1", "PHA2", "PHA3", "VMV1", "VMV2", "VMV3"),
}
#: area -> (family, what it prefers)
PREFERRED: dict[str, tuple[str, str]] = {
    "FFC": ("category", "bottle"),
    "VVC": ("category", "car"),
    "PH": ("category", "chair"),
    "TE2p": ("category", "lamp"),
    "PHA1": ("place", "beach"),
    "PHA2": ("place", "night"),
    "VMV1": ("place", "brick wall"),
    "VMV3": ("place", "snow"),
}
_SHARED_TASTE = 0.35  # weight of the other, mixed tuning of an area that prefers something
TRIALS_A_RUN = 62  # as in NSD: 750 trials in 12 runs
N_SHAPE = 24


@dataclass(frozen=True)
class SceneFeatures:
    """What the areas are tuned to; each array (scenes, d), z-scored on the reference scenes."""

    light: Float[np.ndarray, "scenes 192"]
    shape: Float[np.ndarray, "scenes d"]
    category: Float[np.ndarray, "scenes c"]
    place: Float[np.ndarray, "scenes p"]

    def __len__(self) -> int:
        return len(self.light)

    def select(self, rows: Sequence[int] | np.ndarray) -> SceneFeatures:
        """The features of these scenes."""
        return SceneFeatures(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class SceneFeatureSpace:
    """Scene features with their scale and shape axes fixed on reference scenes.

    Parameters
    ----------
    reference : at least two scenes.
    categories : columns of the category features; a scene of another category is all zeros there.
    """

    def __init__(self, reference: SceneSet, categories: Sequence[str] = CATEGORIES):
        if len(reference) < 2:
            raise UsageError(f"{len(reference)} reference scenes; a scale needs two")
        self.categories = tuple(categories)
        outlines = silhouettes(reference)
        self._mean = outlines.mean(axis=0)
        _, _, axes = np.linalg.svd(outlines - self._mean, full_matrices=False)
        self._axes = axes[:N_SHAPE].T
        self._scale = {
            name: (values.mean(axis=0), np.maximum(values.std(axis=0), 1e-3))
            for name, values in self._raw(reference).items()
        }

    def __call__(self, scenes: SceneSet) -> SceneFeatures:
        return SceneFeatures(
            **{
                name: ((v - self._scale[name][0]) / self._scale[name][1]).astype(np.float32)
                for name, v in self._raw(scenes).items()
            }
        )

    def _raw(self, scenes: SceneSet) -> dict[str, np.ndarray]:
        one_hot = [[float(s.category == c) for c in self.categories] for s in scenes.scenes]
        places = [[float(s.place == p) for p in PLACES] for s in scenes.scenes]
        return {
            "light": opponent_maps(scenes.images).reshape(len(scenes), -1),
            "shape": (silhouettes(scenes) - self._mean) @ self._axes,
            "category": np.array(one_hot),
            "place": np.array(places),
        }


def opponent_maps(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 3 8 8"]:
    """Luminance, red-green and blue-yellow (0..1 sRGB values), averaged in 8 x 8 fields."""
    n, height, width, _ = images.shape
    fine = images.reshape(n, 8, height // 8, 8, width // 8, 3).mean(axis=(2, 4)) / 255
    red, green, blue = np.moveaxis(fine, -1, 0)
    maps = (0.3 * red + 0.59 * green + 0.11 * blue, red - green, blue - 0.5 * (red + green))
    return np.stack(maps, axis=1).astype(np.float32)


def plant_scene_subject(
    reference: SceneFeatures,
    *,
    categories: Sequence[str] = CATEGORIES,
    subject: int = 1,
    seed: int = 0,
    median_ceiling: float = DEFAULT_CEILING,
    individual: float = INDIVIDUAL,
) -> PlantedSubject:
    """Draw a subject's tuning; parameters and errors as `subject.plant_subject`.

    ``median_ceiling`` : median noise ceiling of single-trial betas of the informative vertices.
    """
    columns = {"category": tuple(categories), "place": tuple(PLACES)}

    def weights(cortex: VisualCortex, family: str, d: int, draw: Callable) -> np.ndarray:
        if family == "light":
            fields_ = receptive_fields(
                cortex, SCENE_TUNING["light"], jitter=draw("receptive field", 2)
            )
            colour = draw("colour preference", 3) * np.array([[1.0], [0.7], [0.7]])
            return (colour[:, None] * fields_).reshape(d, -1)
        taste = draw(family, d)
        for area, (of, what) in PREFERRED.items():
            if of != family or what not in columns[family]:
                continue
            inside = cortex.areas[area]
            taste[:, inside] *= _SHARED_TASTE
            gain = 1 + 0.2 * draw(f"gain of {area}", 1)[0, inside]
            taste[columns[family].index(what), inside] += 3 * np.maximum(gain, 0.2)
        return taste

    return plant(
        reference,
        weights,
        tuning=SCENE_TUNING,
        subject=subject,
        seed=seed,
        median_ceiling=median_ceiling,
        individual=individual,
    )


def record_betas(
    planted: PlantedSubject,
    features: SceneFeatures,
    stimuli: Sequence[str],
    *,
    split: str,
    repeats: int = 1,
    first_session: int = 1,
    progress: Progress = SILENT,
) -> Recording:
    """Show each scene ``repeats`` times; each trial's noise depends on (subject, scene, repeat).

    Returns
    -------
    Recording of (trials, 8,921 vertices), float32 on reading (kept as float16), in units of the
    standard deviation of the noise of one volume, unit "a.u.".

    Raises
    ------
    UsageError : names and features do not belong together, or nothing to record.
    """
    if len(stimuli) != len(features):
        raise UsageError(f"{len(stimuli)} scenes, but features of {len(features)}")
    if len(stimuli) < 1 or repeats < 1:
        raise UsageError(f"{len(stimuli)} scenes shown {repeats} times: nothing to record")
    signal = planted.signal(features)
    spread = np.sqrt(beta_variance(planted.rho))
    rows = [(i, repeat) for repeat in range(repeats) for i in range(len(stimuli))]
    data = np.zeros((len(rows), signal.shape[1]), np.float16)
    for trial, (i, repeat) in enumerate(progress.over(rows, f"recording {planted.name}")):
        data[trial] = signal[i] + spread * planted.noise(stimuli[i], repeat, 1)[0]
    trials = pd.DataFrame(
        {
            "subject": planted.name,
            "session": [first_session + k // 750 for k in range(len(rows))],
            "run": [1 + k % 750 // TRIALS_A_RUN for k in range(len(rows))],
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
        name=f"simulated subject {planted.subject}, scenes",
    )
