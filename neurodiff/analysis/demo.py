"""The main job on the embedded default: a simulated subject, MinD-3D, scores and a page.

    objects -> shapes fitted -> subject recorded -> bridge fitted -> held-out trials decoded
    -> scored beside chance, no-brain baselines, strong baselines and ceilings -> report.html

Every step is a stage of the run folder: what is done is not done again.
"""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.demo_bench import Bench, fit_classifier
from neurodiff.analysis.demo_steps import Clock, once
from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.core.seeds import item_seed, numpy_generator

if TYPE_CHECKING:
    from neurodiff.datasets.simulated.study import Study, StudySettings
    from neurodiff.pipelines.mind3d import MinD3D

OURS, RIDGE = "MinD-3D", "ridge bridge, same chain"
CEILING, TOKENIZER = "ceiling: true features", "ceiling: tokenizer alone"
RANDOM, SAME = "random training object", "random object, same category"
MEAN_OF_CATEGORY, NEAREST = "category mean, decoded", "nearest training object"
NO_BRAIN, MEAN_OBJECT, SHUFFLED = "prior without brain", "mean object", "brain shuffled"
HARD = "hard case"

#: condition -> role on the page (figures.ROLES)
ROLES = {
    OURS: "ours",
    RIDGE: "strong baseline",
    NEAREST: "strong baseline",
    MEAN_OF_CATEGORY: "strong baseline",
    SAME: "strong baseline",
    RANDOM: "no-brain baseline",
    NO_BRAIN: "no-brain baseline",
    MEAN_OBJECT: "no-brain baseline",
    SHUFFLED: "chance",
    CEILING: "ceiling",
    TOKENIZER: "ceiling",
}
SIZES = ("demo", "tiny")
KINDS = ("mind3d", "brain-diffuser", "ldae", "ct", "attribution")


@dataclass
class Outcome:
    """All that the page is made from."""

    run: Run
    study: Study
    pipe: MinD3D
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, pd.DataFrame] = field(default_factory=dict)
    factors: dict[str, pd.DataFrame] = field(default_factory=dict)
    meshes: dict[str, dict[str, Any]] = field(default_factory=dict)  # condition -> id -> mesh
    gates: list[dict] = field(default_factory=list)
    cosines: dict[str, np.ndarray] = field(default_factory=dict)
    areas: pd.DataFrame = field(default_factory=pd.DataFrame)
    split_half: dict[str, float] = field(default_factory=dict)
    classifier_accuracy: float = float("nan")


def run_demo(
    kind: str | None = "mind3d", out: str | Path = "demo", seed: int = 0, size: str = "demo"
) -> str:
    """Run or continue the demo in the folder ``out``; returns what to tell the user.

    Raises
    ------
    UsageError : an unknown demo or size, or a folder that holds something else.
    """
    kind = kind or "mind3d"
    if kind not in KINDS:
        raise UsageError(
            f"there is no demo {kind!r} in this version; there are {', '.join(KINDS)}."
            f"{suggest(kind, KINDS)}"
        )
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}.{suggest(size, SIZES)}")
    # two threads on two shared cores: a thread that waits must sleep, or a third process on the
    # machine slows every step twentyfold (measured); read by the OpenMP runtime when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if kind == "brain-diffuser":
        from neurodiff.analysis.demo_images import run_image_demo

        return run_image_demo(out, seed, size)
    if kind == "ldae":
        from neurodiff.analysis.demo_ldae import run_ldae_demo

        return run_ldae_demo(out, seed, size)
    if kind == "ct":
        from neurodiff.analysis.ct_demo import run_ct_demo

        return run_ct_demo(out, seed, size)
    if kind == "attribution":
        from neurodiff.analysis.demo_attribution import run_attribution_demo

        return run_attribution_demo(out, seed, size)
    progress = Progress.to_stdout(every=15)

    from neurodiff.core.config import dump, load
    from neurodiff.datasets.simulated.subject import DEFAULT_CEILING, HARD_CEILING
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe

    recipe = load(f"mind3d_{size}", MinD3DRecipe, [])
    settings = study_settings(size)
    run = Run.create(
        out,
        dump(recipe),
        {
            "data": "simulated_objects",
            "simulated": True,
            "study": asdict(settings),
            "noise ceilings": [DEFAULT_CEILING, HARD_CEILING],
        },
        command=sys.argv,
        seed=seed,
    )

    def write(outcome: Outcome) -> list[str]:
        from neurodiff.analysis.page_mind3d import write_page

        return write_page(outcome, progress)

    return once(
        run,
        seed,
        progress,
        work=lambda: decode_simulated_subject(run, recipe, settings, seed, progress),
        write=write,
    )


def study_settings(size: str) -> StudySettings:
    """Objects of the simulated study at a size of `SIZES`."""
    from neurodiff.datasets.simulated.study import StudySettings

    if size == "tiny":
        return StudySettings(
            train_per_category=12, test_per_category=6, unseen_per_category=3, n_categories=4
        )
    return StudySettings()


def decode_simulated_subject(
    run: Run, recipe, settings: StudySettings, seed: int, progress: Progress
) -> Outcome:
    """Everything up to the scores."""
    import torch

    from neurodiff.analysis.scoring import FactorReader
    from neurodiff.datasets.simulated.study import factor_table, make_study
    from neurodiff.datasets.simulated.subject import HARD_CEILING
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_fitting import decoder_likelihood

    clock = Clock()
    progress.say("objects: simulated, with exact occupancy")
    study = make_study(settings, seed=seed, workers=2, progress=progress)
    train, test, unseen = (study.bank.select(study.ids(s)) for s in ("train", "test", "unseen"))
    clock("objects")

    pipe = MinD3D(recipe).fit_shapes(train, seed=seed, run=run, progress=progress)
    clock("shapes: tokenizer and decoder")
    classifier, accuracy = fit_classifier(run, train, test, seed, progress)
    clock("classifier")

    outcome = Outcome(run, study, pipe, clock.seconds, classifier_accuracy=accuracy)
    progress.say("subject: recorded at the default noise ceiling, then at the hard one")
    outcome.areas = study.subject(1).areas_table()
    recording = study.record("train", progress=progress)
    heard = study.record("test", repeats=2)
    outcome.split_half = _split_half(study, heard)
    single = heard.select("repeat == 1")
    clock("recording")
    pipe.fit_brain(recording, train, seed=seed, run=run, progress=progress)
    del recording
    # what `neurodiff reconstruct` takes for other recordings
    pipe.save_pretrained(run.folder / "model")
    clock("bridge")

    hard = copy.deepcopy(pipe)
    recording = study.record("train", ceiling=HARD_CEILING, progress=progress)
    hard_test = study.record("test", ceiling=HARD_CEILING)
    hard.fit_brain(recording, train, seed=seed, run=run, progress=progress, name="-hard")
    del recording
    clock("bridge, hard case")

    truth_embedding = pipe.embedding(test.views)
    mean_embedding = _renormed(pipe.embedding(train.views).mean(axis=0, keepdims=True))
    predictions = {
        OURS: pipe.predict_embedding(single, seed=seed),
        RIDGE: pipe.predict_embedding(single, seed=seed, bridge="ridge"),
        f"{OURS}, {HARD}": hard.predict_embedding(hard_test, seed=seed),
        f"{RIDGE}, {HARD}": hard.predict_embedding(hard_test, seed=seed, bridge="ridge"),
    }
    other = study.record("test", subject=2)
    predictions[f"{OURS}, held-out subject"] = pipe.predict_embedding(other, seed=seed)
    outcome.cosines = {name: _cosines(p, truth_embedding) for name, p in predictions.items()}
    outcome.cosines["mean of the training embeddings"] = _cosines(
        np.repeat(mean_embedding, len(test), 0), truth_embedding
    )
    strange = study.record("unseen")
    clock("prediction")

    readers = {
        category: FactorReader(
            train.grid[np.array(train.categories) == category],
            factor_table(
                [i for i, c in zip(train.ids, train.categories, strict=True) if c == category],
                study.stimuli,
            ).dropna(axis=1),
        )
        for category in dict.fromkeys(train.categories)
    }
    bench = Bench(outcome, classifier, readers, seed, progress)
    rng = numpy_generator(item_seed(seed, subject="", stimulus="", stage="baselines"))
    bench.true_objects(RANDOM, rng.integers(0, len(train), len(test)), train, test)
    same = [rng.choice(np.flatnonzero(np.array(train.categories) == c)) for c in test.categories]
    bench.true_objects(SAME, np.array(same), train, test)
    closest = (predictions[OURS] @ pipe.embedding(train.views).T).argmax(axis=1)
    bench.true_objects(NEAREST, closest, train, test)

    likelihood = decoder_likelihood(
        pipe.shapes.transformer_model,
        torch.from_numpy(pipe.encode(test)),
        torch.from_numpy(truth_embedding),
        use_adapters=False,
        of="held-out objects",
    )
    codes = pipe.codes_from_embedding
    bench.decoded(OURS, pipe, codes(predictions[OURS]), test, keep=True)
    bench.decoded(RIDGE, pipe, codes(predictions[RIDGE]), test, keep=True)
    bench.decoded(CEILING, pipe, codes(truth_embedding, use_adapters=False), test)
    bench.decoded(TOKENIZER, pipe, pipe.encode(test), test)
    bench.decoded(
        NO_BRAIN, pipe, codes(pipe.draw_embedding(test.ids, seed=seed), use_adapters=False), test
    )
    bench.shared(MEAN_OBJECT, pipe, mean_embedding, np.zeros(len(test), int), test)
    names = list(dict.fromkeys(train.categories))
    of_category = pipe.embedding(train.views)
    means = _renormed(
        np.stack([of_category[np.array(train.categories) == c].mean(axis=0) for c in names])
    )
    bench.shared(
        MEAN_OF_CATEGORY, pipe, means, np.array([names.index(c) for c in test.categories]), test
    )
    bench.shuffled(SHUFFLED, OURS, test)
    for name in (f"{OURS}, {HARD}", f"{RIDGE}, {HARD}"):
        bench.decoded(name, hard, hard.codes_from_embedding(predictions[name]), test)
    name = f"{OURS}, held-out subject"
    bench.decoded(name, pipe, codes(predictions[name]), test)
    bench.decoded(
        f"{OURS}, held-out categories", pipe, codes(pipe.predict_embedding(strange)), unseen
    )
    bench.decoded(
        "ceiling, held-out categories",
        pipe,
        codes(pipe.embedding(unseen.views), use_adapters=False),
        unseen,
    )
    draw = rng.integers(0, len(train), len(unseen))
    bench.true_objects(f"{RANDOM}, held-out categories", draw, train, unseen)
    clock("decoding and scoring")
    outcome.gates = [
        *pipe.gates,
        {"stage": "shape-decoder, held out", **likelihood},
        *(g for g in hard.gates if g["stage"].endswith("-hard")),
    ]
    run.write_scores(pd.concat([t.assign(condition=name) for name, t in outcome.scores.items()]))
    return outcome


def _split_half(study: Study, heard) -> dict[str, float]:
    """Reliability of the recorded trial betas, measured from the two repeats, beside the planted
    ceiling it must equal."""
    from neurodiff.datasets.simulated.subject import haemodynamic_response

    planted = study.subject(1)
    h = haemodynamic_response()
    first, second = (
        np.einsum("f,tfv->tv", h, heard.select(f"repeat == {r}").array()) for r in (1, 2)
    )
    first, second = (x - x.mean(axis=0) for x in (first, second))
    product = (first * second).sum(axis=0)
    r = product / np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    inside = planted.informative
    return {
        "planted ceiling of trial betas, median of informative vertices": float(
            np.median(planted.noise_ceiling()[inside])
        ),
        "correlation of repeats, median of informative vertices": float(np.median(r[inside])),
        "correlation of repeats, median of silent vertices": float(np.median(r[~inside])),
    }


def _renormed(x: np.ndarray) -> np.ndarray:
    scaled = x / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(x.shape[1])
    return scaled.astype(np.float32)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
