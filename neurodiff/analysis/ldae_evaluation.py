"""All that is asked of a latent diffusion autoencoder, on people it was not trained on.

    codes            -> probes of diagnosis, age and sex, beside baselines, chance and an oracle
    scans            -> reconstruction, the clamp's effect, edits, generation
    three visits     -> the middle one filled in, beside copies and straight lines

Each part is a table that keeps single scans; `page_ldae` arranges them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.ldae_pictures import (
    edited_grid,
    filled_in_grid,
    reconstructed_grid,
)
from neurodiff.analysis.ldae_probes import ldae_probes
from neurodiff.analysis.report import PictureGrid
from neurodiff.analysis.volume_tables import VolumeScoring, VolumeTable
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed, numpy_generator

if TYPE_CHECKING:
    from neurodiff.analysis.probes import ProbeReport
    from neurodiff.pipelines.ldae import LDAE


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """How much is evaluated.

    Parameters
    ----------
    people : whose scans are walked (reconstruction, edits, filling in); None is everybody.
    edited : people whose first scan is edited, and clamped.
    amounts : of the edits.
    directions : names of the model's directions to edit along; those it lacks are left out.
    gaps : months of filling in.
    tasks : of the probes, by name; None is all that the cohort can answer. "conversion within N
        months" sets the months.
    folds, bootstrap : of the probes.
    cnn : train the supervised network, for the subjects of the first fold alone.
    generation : score sets of drawn scans.
    steps : of the walks; None is the model's.
    perceptual : folder with the weights of an LPIPS (`perceptual_network`); None leaves it out.
    """

    people: int | None = 16
    edited: int = 8
    amounts: tuple[float, ...] = (-2.0, -1.0, 1.0, 2.0)
    directions: tuple[str, ...] = ("AD", "age")
    gaps: tuple[float, ...] = (6.0, 12.0, 18.0, 24.0)
    tasks: tuple[str, ...] | None = None
    folds: int = 5
    bootstrap: int = 1000
    cnn: bool = False
    generation: bool = True
    steps: int | None = None
    perceptual: str | None = None

    def __post_init__(self) -> None:
        if (self.people is not None and self.people < 1) or self.edited < 1:
            raise UsageError(
                f"people is {self.people} and edited {self.edited}; give at least 1 of each"
            )


@dataclass(kw_only=True)
class LDAEEvaluation:
    """What `evaluate_ldae` found; a part is None where the cohort cannot answer it, and ``notes``
    say why."""

    scans: pd.DataFrame
    codes: np.ndarray
    probes: ProbeReport | None = None
    reconstruction: VolumeTable | None = None
    clamp: VolumeTable | None = None
    interpolation: Any = None
    editing: dict[str, Any] = field(default_factory=dict)
    generation: pd.DataFrame | None = None
    grids: list[PictureGrid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate_ldae(
    pipe: LDAE,
    test: Cohort,
    train: Cohort | None = None,
    *,
    plan: EvaluationPlan | None = None,
    seed: int = 0,
    truth: Callable[[str, float], np.ndarray] | None = None,
    progress: Progress = SILENT,
) -> LDAEEvaluation:
    """Probes, reconstruction, clamp, edits, filling in and generation.

    Parameters
    ----------
    test : scans of people that the model was not trained on.
    train : scans that it was trained on: for PCA of equal dimension, and the mean scan.
    truth : (subject, months) -> the brain itself (1, i, j, k), of simulated people.

    Raises
    ------
    DataError : no scan that can be prepared.
    """
    plan = plan or EvaluationPlan()
    rows, volumes, affine = prepared_volumes(pipe, test, progress)
    known = prepared_volumes(pipe, train, progress)[1] if train is not None else None
    codes = pipe.codes(volumes)
    found = LDAEEvaluation(scans=rows.scans, codes=codes)
    regional = _ruler(affine, pipe.size.grid, found.notes)
    scoring = VolumeScoring(regional=regional, lpips=_lpips(plan.perceptual, found.notes))
    ask = _Asked(found, progress)

    ask("probes", lambda: ldae_probes(rows, volumes, affine, codes, known, plan, seed, progress))
    some, at = chosen_people(rows, plan.people, seed)
    walked = volumes[at]
    mean = None if known is None else known.mean(axis=0)
    with pipe.keeping_noise():  # every part walks the same scans
        ask(
            "reconstruction", lambda: _reconstruction(pipe, some, walked, mean, plan, seed, scoring)
        )
        firsts = some.first_scans()
        first = np.array([some.ids.index(scan) for scan in firsts.ids])[: plan.edited]
        few = firsts.select(np.arange(len(first)))
        ask("clamp", lambda: _clamp(pipe, few, walked[first], plan, seed, scoring))
        for name in plan.directions:
            if name in pipe.directions:
                ask(f"edit {name}", lambda name=name: _edit(pipe, few, walked[first], name, plan,
                                                            scoring, regional))  # fmt: skip
            else:
                found.notes.append(f"no edit towards {name}: the model has no such direction")
        ask("interpolation", lambda: _fill_in(pipe, some, walked, plan, truth, scoring))
        if plan.generation:
            ask("generation", lambda: _generation(pipe, some, walked, plan, seed, regional))
        ask("pictures", lambda: _pictures(pipe, some, walked, plan, seed, truth))
    return found


def prepared_volumes(
    pipe: LDAE, cohort: Cohort, progress: Progress = SILENT
) -> tuple[Cohort, np.ndarray, np.ndarray]:
    """The scans that can be prepared, float32 (n, 1, i, j, k), and the affine of their grid.

    Raises
    ------
    DataError : none of them can be.
    """
    progress.begin("prepare")
    done, failed = cohort.each(lambda _, scan: pipe.prepare(scan), progress=progress)
    if not done:
        raise DataError(f"none of {len(cohort)} scans can be prepared; {failed['reason'].iloc[0]}")
    kept = cohort.select([name in done for name in cohort.ids])
    volumes = np.stack([done[name].data for name in kept.ids]).astype(np.float32)
    return kept, volumes, done[kept.ids[0]].affine


def chosen_people(
    cohort: Cohort, people: int | None, seed: int, stage: str = "people that are walked"
) -> tuple[Cohort, np.ndarray]:
    """All scans of a seeded draw of subjects, those with most scans first; and their rows."""
    names = sorted(cohort.subjects)
    if people is not None and people < len(names):
        drawn = item_seed(seed, subject="", stimulus="", stage=stage)
        order = [names[k] for k in numpy_generator(drawn).permutation(len(names))]
        count = cohort.scans["subject"].value_counts()
        names = sorted(order, key=lambda name: -min(int(count[name]), 3))[:people]
    at = np.flatnonzero(cohort.scans["subject"].isin(names).to_numpy())
    return cohort.select(at), at


@dataclass
class _Asked:
    """Runs one part, takes its time, and notes a cohort that cannot answer it."""

    found: LDAEEvaluation
    progress: Progress

    def __call__(self, part: str, make: Callable[[], Any]) -> None:
        self.progress.say(f"evaluation: {part}")
        began = time.monotonic()
        try:
            result = make()
        except (UsageError, DataError) as error:
            self.found.notes.append(f"{part}: {error}")
            return
        finally:
            self.found.seconds[part] = time.monotonic() - began
        if part.startswith("edit "):
            self.found.editing[part.removeprefix("edit ")] = result
        elif part == "pictures":
            self.found.grids = result
        else:
            setattr(self.found, part, result)


def _ruler(
    affine: np.ndarray, grid: Sequence[int], notes: list[str]
) -> Callable[[np.ndarray], dict[str, float]] | None:
    from neurodiff.analysis.volume_regions import RegionRuler

    try:
        return RegionRuler(affine, grid)
    except UsageError as error:
        notes.append(f"no volumes of regions were measured: {error}")
        return None


def _lpips(folder: str | None, notes: list[str]) -> tuple[Any, str] | None:
    from neurodiff.pipelines.ldae_losses import perceptual_network

    if folder is None:
        notes.append(
            "LPIPS is not available: no weights given (neurodiff evaluate RUN --weights DIR)"
        )
        return None
    network = perceptual_network(folder)
    return network, network.trunk.name


def _reconstruction(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    mean: np.ndarray | None,
    plan: EvaluationPlan,
    seed: int,
    scoring: VolumeScoring,
) -> VolumeTable:
    from neurodiff.analysis.volume_reconstruction import reconstruction_table
    from neurodiff.analysis.volume_tables import BRAIN

    masks = volumes[:, 0] > BRAIN
    return reconstruction_table(
        pipe, volumes, cohort.scans, masks=masks, mean=mean, steps=(plan.steps,), seed=seed,
        scoring=scoring,
    )  # fmt: skip


def _clamp(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    plan: EvaluationPlan,
    seed: int,
    scoring: VolumeScoring,
) -> VolumeTable:
    from neurodiff.analysis.volume_clamp import clamp_table

    plain, clamped = (under_protocol(pipe, name) for name in ("neurodiff-1", "ldae-2025"))
    return clamp_table(
        plain, clamped, volumes, cohort.scans, steps=(plan.steps,), seed=seed, scoring=scoring
    )


def under_protocol(pipe: LDAE, protocol: Any) -> LDAE:
    """The same weights under another protocol of sampling."""
    from neurodiff.pipelines.ldae import LDAE

    if pipe.protocol == protocol:
        return pipe
    preparation = pipe.recipe.preparation
    if preparation is not None and protocol == "ldae-2025":
        preparation = replace(preparation, orientation=None)
    other = LDAE(
        replace(pipe.recipe, protocol=protocol, preparation=preparation),
        replace(pipe.networks, protocol=protocol),
    )
    other.directions, other.at_once = pipe.directions, pipe.at_once
    return other


def _edit(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    name: str,
    plan: EvaluationPlan,
    scoring: VolumeScoring,
    regional: Any,
) -> Any:
    from neurodiff.analysis.volume_editing import manipulation_table

    outside = None
    if regional is not None:
        near = regional.near("ventricles", 8.0) | regional.near("hippocampi", 8.0)
        outside = ~near
    return manipulation_table(
        pipe, volumes, cohort.scans, name, amounts=plan.amounts, outside=outside,
        steps=plan.steps, scoring=scoring,
    )  # fmt: skip


def _fill_in(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    plan: EvaluationPlan,
    truth: Callable[[str, float], np.ndarray] | None,
    scoring: VolumeScoring,
) -> Any:
    from neurodiff.analysis.volume_interpolation import interpolation_table

    return interpolation_table(
        pipe, cohort, volumes, gaps=plan.gaps, steps=plan.steps, truth=truth,
        scoring=replace(scoring, kernel=4),
    )  # fmt: skip


def _generation(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    plan: EvaluationPlan,
    seed: int,
    regional: Any,
) -> pd.DataFrame:
    from neurodiff.analysis.volume_features import block_means, regional_features
    from neurodiff.analysis.volume_generation import generation_table

    name, means = block_means(3)
    features: Mapping[str, Any] = {name: means}
    if regional is not None:
        features = {"regional volumes (log ml)": regional_features(regional), **features}
    return generation_table(pipe, volumes, cohort.scans, features, steps=plan.steps, seed=seed)


def _pictures(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    plan: EvaluationPlan,
    seed: int,
    truth: Callable[[str, float], np.ndarray] | None,
) -> list[PictureGrid]:
    grids = [reconstructed_grid(pipe, cohort, volumes, steps=plan.steps, seed=seed)]
    for name in plan.directions:
        if name in pipe.directions:
            grids.append(
                edited_grid(pipe, cohort, volumes, name, max(plan.amounts), steps=plan.steps)
            )
    filled = filled_in_grid(pipe, cohort, volumes, steps=plan.steps, truth=truth)
    return [*grids, *([filled] if filled is not None else [])]
