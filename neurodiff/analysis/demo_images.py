"""Brain-Diffuser on simulated scenes: a subject, decoders, pictures, scores and a page.

    scenes -> networks trained on the training pictures -> subject recorded (3 repeats a scene)
    -> three ridge decoders -> held-out scenes decoded -> scored beside chance, no-brain baselines,
    retrieval and ceiling -> scenes of single areas -> bottleneck -> report.html

Every step is a stage or an item of the run folder: what is done is not done again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.demo_images_tables import answer_table, head_table, labels_of
from neurodiff.analysis.demo_steps import Clock, once
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run, fingerprint
from neurodiff.core.stimuli import Stimuli

if TYPE_CHECKING:
    from neurodiff.analysis.image_conditions import Conditions
    from neurodiff.analysis.roi_auc import RoiAuc
    from neurodiff.datasets.simulated.scenes import SceneSet
    from neurodiff.features.scene_judge import SceneJudge
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser, Features
    from neurodiff.pipelines.pictures import Picture

SINGLE, HARD = "one trial, not three", "hard case: noise ceiling 0.03"
RANKS = {"demo": (1, 2, 5, 10, 20, 50), "tiny": (1, 5)}
FEW = {"demo": 48, "tiny": 12}  # items of the bottleneck curve
ROI_SAMPLES = {"demo": 4, "tiny": 1}
PERMUTATIONS = {"demo": 1000, "tiny": 100}


@dataclass(frozen=True)
class Judge:
    """The judge of scenes as a feature extractor of `image_evaluation`."""

    judge: SceneJudge
    name: str = "scene judge"
    published: bool = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.judge.features(images)


@dataclass
class SceneOutcome:
    """All that the page is made from."""

    run: Run
    pipe: BrainDiffuser
    scenes: dict[str, SceneSet]
    stimuli: Stimuli
    judge: SceneJudge
    judged: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)
    areas: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)
    heads: pd.DataFrame = field(default_factory=pd.DataFrame)
    conditions: Conditions | None = None
    answers: pd.DataFrame = field(default_factory=pd.DataFrame)
    rois: dict[str, RoiAuc] = field(default_factory=dict)
    roi_pictures: dict[str, list[Picture]] = field(default_factory=dict)
    bottleneck: pd.DataFrame = field(default_factory=pd.DataFrame)


def run_image_demo(out: str | Path, seed: int, size: str) -> str:
    """Run or continue the demo in the folder ``out``; returns what to tell the user.

    Raises
    ------
    UsageError : a folder that holds something else.
    MissingDataError : the packaged encoders are not installed; tells how.
    """
    from neurodiff.core.config import dump, load
    from neurodiff.datasets.simulated.scene_opening import REPEATS, SCENE_SIZES
    from neurodiff.datasets.simulated.subject import DEFAULT_CEILING, HARD_CEILING
    from neurodiff.pipelines.brain_diffuser_networks import token_encoders
    from neurodiff.pipelines.brain_diffuser_settings import BrainDiffuserRecipe

    progress = Progress.to_stdout(every=15)
    recipe = load(f"brain_diffuser_{size}", BrainDiffuserRecipe, [])
    token_encoders(recipe.tokens)  # says what is missing before any work
    run = Run.create(
        out,
        dump(recipe),
        {
            "data": "simulated_scenes",
            "simulated": True,
            "scenes": asdict(SCENE_SIZES[size]),
            "repeats": REPEATS,
            "noise ceilings": [DEFAULT_CEILING, HARD_CEILING],
        },
        command=sys.argv,
        seed=seed,
    )

    def write(outcome: SceneOutcome) -> list[str]:
        from neurodiff.analysis.page_scenes import write_scene_page

        return write_scene_page(outcome, progress)

    return once(
        run,
        seed,
        progress,
        work=lambda: decode_scenes(run, recipe, size, seed, progress),
        write=write,
    )


def decode_scenes(run: Run, recipe: Any, size: str, seed: int, progress: Progress) -> SceneOutcome:
    """Everything up to the scores."""
    from neurodiff.analysis.image_run_scores import LOW, MEAN_FEATURES
    from neurodiff.datasets.simulated.scene_opening import (
        open_simulated_scenes,
        scenes_of,
        simulated_scene_stimuli,
    )
    from neurodiff.datasets.simulated.scene_subject import SceneFeatureSpace, plant_scene_subject
    from neurodiff.datasets.simulated.subject import DEFAULT_CEILING, HARD_CEILING
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser

    clock = Clock()
    scenes = scenes_of(size, seed, progress=progress)
    stimuli = simulated_scene_stimuli(size, seed)
    clock("scenes")
    recording, _ = open_simulated_scenes(size=size, seed=seed, progress=progress)
    train, test = recording.split()
    clock("recording")
    pipe = BrainDiffuser(recipe).fit(train, stimuli, seed=seed, run=run, progress=progress)
    pipe.save_pretrained(run.folder / "model")
    clock("networks and decoders")
    judge, judged = _judge(run, scenes, seed, progress)
    clock("judge")

    outcome = SceneOutcome(run, pipe, scenes, stimuli, judge, judged, clock.seconds)
    categories = tuple(dict.fromkeys(scene.category for scene in scenes["train"].scenes))
    space = SceneFeatureSpace(scenes["train"], categories)
    planted = plant_scene_subject(space(scenes["train"]), categories=categories, seed=seed)
    outcome.areas = planted.areas_table()

    hard = BrainDiffuser(recipe)
    hard.networks = pipe.networks
    recording, _ = open_simulated_scenes(
        size=size, seed=seed, ceiling=HARD_CEILING, progress=progress
    )
    hard_train, hard_test = recording.split()
    hard.fit_brain(hard_train, stimuli, seed=seed, run=run, progress=progress)
    clock("hard case")

    means = test.mean_repeats()
    ids = list(means.trials["stimulus"])
    features = outcome.features
    features["ours"] = pipe.predict_features(means)
    features[SINGLE] = pipe.predict_features(test.select("repeat == 1"))
    features[HARD] = hard.predict_features(hard_test.mean_repeats())
    features["true"] = pipe.true_features(stimuli, ids, seed=seed)
    features[MEAN_FEATURES] = _mean_features(pipe).take([0] * len(ids))
    outcome.heads = head_table(outcome, means, PERMUTATIONS[size] // 5, progress)
    clock("features")
    for name in ("ours", "true", MEAN_FEATURES, SINGLE, HARD):
        progress.say(f"pictures: {name}")
        outcome.pictures[name] = _pictures(outcome, name, features[name], ids, seed, progress)
    outcome.pictures[LOW] = [
        replace(one, image=one.init_image, init_image=None)
        for one in outcome.pictures["ours"]
        if one.init_image is not None
    ]
    clock("pictures")
    _score(outcome, ids, seed, PERMUTATIONS[size], progress)
    clock("scores")
    outcome.rois, outcome.roi_pictures = _roi_scenes(outcome, test, size, seed, progress)
    clock("scenes of areas")
    outcome.bottleneck = _bottleneck(outcome, means, ids, size, seed, progress)
    clock("bottleneck")
    progress.say(f"noise ceiling {DEFAULT_CEILING} a trial: scored")
    return outcome


def _judge(
    run: Run, scenes: dict[str, SceneSet], seed: int, progress: Progress
) -> tuple[SceneJudge, dict[str, float]]:
    """The judge, kept in the run, and how often it is right about true held-out scenes."""
    from neurodiff.core.safe_io import load_weights, save_safetensors
    from neurodiff.features.scene_judge import TRAINING, SceneJudge

    labels = labels_of(scenes["train"])
    identity = fingerprint({"labels": labels, "first": int(scenes["train"].images[:50].sum())})
    stage = run.stage("judge", asdict(TRAINING), [identity, str(seed)], 1)
    if stage.done:
        judge = SceneJudge({task: tuple(sorted(set(v))) for task, v in labels.items()})
        judge.load_state_dict(load_weights(stage.path("weights.safetensors")))
        judge.eval()
    else:
        progress.say("judge:")
        judge = SceneJudge.fit(scenes["train"].images, labels, seed=seed, progress=progress)
        save_safetensors(judge.state_dict(), stage.path("weights.safetensors"))
        stage.finish({"pictures": len(scenes["train"])})
    return judge, judge.accuracy(scenes["test"].images, labels_of(scenes["test"]))


def _mean_features(pipe: BrainDiffuser) -> Features:
    """What a brain at the mean of training predicts: the mean of the training features."""
    from neurodiff.pipelines.brain_diffuser import Features
    from neurodiff.pipelines.brain_diffuser_settings import HEADS

    nothing = np.zeros((1, pipe.heads[HEADS[0]].n_features_in_))
    return Features(**{h: pipe.heads[h].predict_raw(nothing).astype(np.float32) for h in HEADS})


def _pictures(
    outcome: SceneOutcome,
    name: str,
    features: Features,
    ids: Sequence[str],
    seed: int,
    progress: Progress,
) -> list[Picture]:
    """The pictures of one condition, as items of the run."""
    from neurodiff.analysis.image_items import make_items, read_item
    from neurodiff.pipelines.brain_diffuser_files import model_fingerprint

    run = outcome.run
    model = model_fingerprint(run.folder / "model")
    items, about = [], []
    for k, stimulus in enumerate(ids):
        rows = [np.ascontiguousarray(part[k]) for part in _parts(features)]
        values = fingerprint({"values": [float(np.float64(row).sum()) for row in rows]})
        settings = fingerprint({"model": model, "condition": name, "values": values, "version": 1})
        items.append(run.item(f"picture, {name}", "sim-01", stimulus, 0, settings))
        about.append(
            {
                "subject": "sim-01",
                "stimulus": stimulus,
                "repeat": 3,
                "averaged": True,
                "data": {"data": "simulated_scenes"},
                "simulated": True,
            }
        )
    run.plan(items)
    make_items(outcome.pipe, features, items, about, seed=seed, progress=progress)
    return [read_item(item.key, item.folder).picture for item in items]


def _parts(features: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return features.vdvae, features.text, features.vision


def _score(
    outcome: SceneOutcome, ids: list[str], seed: int, permutations: int, progress: Progress
) -> None:
    from neurodiff.analysis.image_conditions import image_conditions
    from neurodiff.analysis.image_run_scores import LOW, MEAN_FEATURES
    from neurodiff.analysis.image_scorer import ImageScorer

    train = [outcome.stimuli[name].image() for name in outcome.scenes["train"].ids]
    scorer = ImageScorer(
        outcome.stimuli,
        ids,
        networks=[Judge(outcome.judge)],
        train=train,
        seed=seed,
        permutations=permutations,
        progress=progress,
    )
    others = {
        LOW: ("strong baseline", outcome.pictures[LOW]),
        SINGLE: ("strong baseline", outcome.pictures[SINGLE]),
        HARD: ("strong baseline", outcome.pictures[HARD]),
        MEAN_FEATURES: ("no-brain baseline", outcome.pictures[MEAN_FEATURES]),
    }
    outcome.conditions = image_conditions(
        scorer, outcome.pictures["ours"], ceiling=outcome.pictures["true"], others=others
    )
    tables = [
        one.table.assign(condition=name) for name, one in outcome.conditions.evaluations.items()
    ]
    outcome.run.write_scores(pd.concat(tables, ignore_index=True))
    outcome.run.write_set_scores(outcome.conditions.table)
    outcome.answers = answer_table(outcome, ids)


def _roi_scenes(
    outcome: SceneOutcome, recording: Any, size: str, seed: int, progress: Progress
) -> tuple[dict[str, RoiAuc], dict[str, list[Picture]]]:
    """Scenes of tuned and of null areas, by our scaling and by the published one."""
    from neurodiff.analysis.roi_auc import null_areas, roi_auc
    from neurodiff.datasets.simulated.scene_subject import PREFERRED
    from neurodiff.pipelines.roi_scenes import roi_scenes

    known = {task: set(labels) for task, labels in outcome.judge.classes.items()}
    tuned = {a: p for a, p in PREFERRED.items() if p[1] in known[p[0]]}
    null = null_areas(outcome.areas)
    masks = {area: recording.rois[area] for area in (*tuned, *null)}
    found, shown = {}, {}
    for name, across in (("each area alone", False), ("as published: across the list", True)):
        progress.say(f"scenes of areas: {name}")
        scenes = roi_scenes(
            outcome.pipe,
            masks,
            samples=ROI_SAMPLES[size],
            seed=seed,
            across_rows=across,
            progress=progress,
        )
        found[name] = roi_auc(scenes, outcome.judge, tuned, null, seed=seed)
        shown = shown or scenes
    return found, shown


def _bottleneck(
    outcome: SceneOutcome, means: Any, ids: Sequence[str], size: str, seed: int, progress: Progress
) -> pd.DataFrame:
    """Identification by the judge where each head reads the brain through r numbers only."""
    from neurodiff.bridges.reduced_rank import bottleneck_predictions
    from neurodiff.metrics.dimension import bottleneck_curve
    from neurodiff.metrics.identification import feature_identification
    from neurodiff.pipelines.brain_diffuser import Features
    from neurodiff.pipelines.brain_diffuser_settings import HEADS
    from neurodiff.pipelines.pictures import as_array

    assert outcome.pipe.input is not None
    few = list(ids[: FEW[size]])
    X, ranks = outcome.pipe.input(means)[: len(few)], RANKS[size]
    parts: dict[int, dict[str, np.ndarray]] = {rank: {} for rank in ranks}
    for head in HEADS:
        bridge = outcome.pipe.heads[head]
        columns: dict[int, list[np.ndarray]] = {rank: [] for rank in ranks}
        for _, block in bottleneck_predictions(bridge, X, ranks):
            for rank in ranks:
                columns[rank].append(block[rank])
        for rank in ranks:
            flat = np.concatenate(columns[rank], axis=1).astype(np.float32)
            parts[rank][head] = flat.reshape(len(X), *bridge.targets_.item_shape)
    place = {name: k for k, name in enumerate(outcome.scenes["test"].ids)}
    truth = outcome.judge.features(outcome.scenes["test"].images[[place[name] for name in few]])
    full = max(ranks) + 1  # stands for "no bottleneck"

    def score(rank: int) -> np.ndarray:
        if rank == full:
            pictures = outcome.pictures["ours"][: len(few)]
        else:
            name = f"through {rank} numbers a head"
            pictures = _pictures(outcome, name, Features(**parts[rank]), few, seed, progress)
        told = outcome.judge.features(as_array([one.image for one in pictures]))
        return feature_identification(told, truth)

    return bottleneck_curve(score, ranks, full=full, seed=seed)
