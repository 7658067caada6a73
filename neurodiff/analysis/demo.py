"""The main job on the embedded default: a simulated subject, MinD-3D, scores and a page.

    objects -> shapes fitted -> subject recorded -> bridge fitted -> held-out trials decoded
    -> scored beside chance, no-brain baselines, strong baselines and ceilings -> report.html

Every step is a stage of the run folder: what is done is not done again.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.core.seeds import item_seed, numpy_generator

if TYPE_CHECKING:
    from neurodiff.analysis.scoring import ScoredShapes
    from neurodiff.datasets.simulated.study import Study, StudySettings
    from neurodiff.features.view_classifier import ViewClassifier
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
    page = run.stage("report", {"seed": seed}, [run.fingerprint], version=1)
    if page.done and run.report_path.is_file():
        return f"done before, nothing repeated\n{_closing(run, page.metrics)}"
    progress.say(f"run folder: {run.folder} (interrupt at any time; the same command goes on)")
    outcome = decode_simulated_subject(run, recipe, settings, seed, progress)

    from neurodiff.analysis.page_mind3d import write_page

    began = time.monotonic()
    findings = write_page(outcome, progress)
    outcome.seconds["report"] = time.monotonic() - began
    run.touch()
    page.finish({"findings": findings, "seconds": outcome.seconds})
    return _closing(run, page.metrics)


def study_settings(size: str) -> StudySettings:
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
    bench = _Bench(outcome, classifier, readers, seed, progress)
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


def fit_classifier(
    run: Run, train, test, seed: int, progress: Progress, *, steps: int = 300
) -> tuple[ViewClassifier, float]:
    """The judge of n-way identification; returns it and its accuracy on held-out true objects."""
    import torch

    from neurodiff.core.training import TrainingSettings
    from neurodiff.core.training import train as fit
    from neurodiff.features.view_classifier import ViewClassifier
    from neurodiff.pipelines.stages import Stages

    names = tuple(dict.fromkeys(train.categories))
    labels = np.array([names.index(c) for c in train.categories])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(item_seed(seed, subject="", stimulus="", stage="classifier"))
        classifier = ViewClassifier(names)
    schedule = TrainingSettings(
        steps=min(steps, 4 * len(train)), batch_size=48, learning_rate=3e-3, warmup=10
    )

    def accuracy() -> float:
        guess = classifier.probabilities(test.views).argmax(axis=1)
        return float(np.mean([names[g] == c for g, c in zip(guess, test.categories, strict=True)]))

    def train_it(folder, log) -> dict:
        fit(
            classifier,
            lambda model, rows, generator: {
                "loss": model.loss(train.views[rows], labels[rows], generator)
            },
            n_items=len(train),
            settings=schedule,
            seed=seed,
            stage="classifier",
            folder=folder,
            log=log,
            progress=progress,
        )
        return {"accuracy on held-out true objects": accuracy()}

    stages = Stages(run, progress)
    stages.do(
        "classifier",
        settings=schedule,
        inputs=[train.fingerprint(), str(seed)],
        version=1,
        fit=train_it,
        state=classifier.state_dict,
        restore=classifier.load_state_dict,
    )
    classifier.eval()
    return classifier, stages.gates[0]["accuracy on held-out true objects"]


@dataclass
class _Bench:
    """Makes and scores conditions; a condition that was scored before is read back."""

    outcome: Outcome
    classifier: ViewClassifier
    readers: dict
    seed: int
    progress: Progress

    def true_objects(self, name: str, rows: np.ndarray, source, truth) -> None:
        """A baseline that answers with true training objects."""
        from neurodiff.analysis.scoring import ScoredShapes

        ids = [source.ids[k] for k in rows]
        self._score(name, ids, lambda: ScoredShapes.of_bank(source, ids), truth)

    def decoded(self, name: str, pipe: MinD3D, codes: np.ndarray, truth, *, keep=False) -> None:
        """Codes to meshes to scores; ``keep`` writes the meshes as items of the run."""
        from neurodiff.analysis.scoring import ScoredShapes

        def shapes() -> ScoredShapes:
            meshes = pipe.meshes(codes)
            if keep:
                meshes = self._kept(name, meshes, truth)
            return ScoredShapes.of_meshes(
                meshes, truth.ids, seed=self.seed, progress=self.progress, label=name
            )

        self._score(name, codes.tolist(), shapes, truth)
        if keep:
            if not all(item.done for item in self._items(name, truth)):
                for _ in self._kept(name, pipe.meshes(codes), truth):  # scored, then lost
                    pass
            self.outcome.meshes[name] = self._read(name, truth)

    def shared(self, name: str, pipe: MinD3D, embedding, which: np.ndarray, truth) -> None:
        """Few decoded shapes, each the answer for many items."""
        from neurodiff.analysis.scoring import ScoredShapes

        codes = pipe.codes_from_embedding(embedding, use_adapters=False)
        labels = [f"{name} {k}" for k in range(len(codes))]

        def shapes() -> ScoredShapes:
            return ScoredShapes.of_meshes(pipe.meshes(codes), labels, seed=self.seed).take(which)

        self._score(name, [codes.tolist(), which.tolist()], shapes, truth)

    def shuffled(self, name: str, source: str, truth) -> None:
        """The decoded objects dealt to other items: what the scores are when brains are mixed."""
        from neurodiff.analysis.scoring import ScoredShapes

        key = item_seed(self.seed, subject="", stimulus="", stage="shuffle")
        order = numpy_generator(key).permutation(len(truth))
        meshes = self.outcome.meshes[source]
        ids = [truth.ids[k] for k in order]
        self._score(
            name,
            ids,
            lambda: ScoredShapes.of_meshes((meshes[i] for i in ids), ids, seed=self.seed),
            truth,
        )

    def _score(self, name: str, identity: Any, shapes: Callable[[], ScoredShapes], truth) -> None:
        from neurodiff.analysis.scoring import ScoredShapes, factor_correlations, score
        from neurodiff.core.safe_io import read_csv, write_csv
        from neurodiff.datasets.simulated.study import factor_table

        outcome = self.outcome
        stage = outcome.run.stage(
            f"scores {name}", {"answers": identity}, [truth.fingerprint(), str(self.seed)], 1
        )
        if not stage.done:
            predicted = shapes()
            table = score(
                predicted,
                ScoredShapes.of_bank(truth, truth.ids),
                ids=truth.ids,
                categories=truth.categories,
                classifier=self.classifier
                if set(truth.categories) <= set(self.classifier.classes)
                else None,
            )
            write_csv(stage.path("scores.csv"), table)
            factors = factor_correlations(
                predicted,
                factor_table(truth.ids, outcome.study.stimuli),
                truth.categories,
                self.readers,
            )
            write_csv(stage.path("factors.csv"), factors)
            stage.finish({"items": len(table)})
        outcome.scores[name] = read_csv(stage.path("scores.csv"))
        if (stage.folder / "factors.csv").stat().st_size > 2:
            outcome.factors[name] = read_csv(stage.path("factors.csv"))
        mean = outcome.scores[name].mean(numeric_only=True)
        self.progress.say(
            f"  {name}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in mean.items())
        )

    def _kept(self, name: str, meshes, truth):
        for item, mesh in zip(self._items(name, truth), meshes, strict=True):
            if not item.done:
                with item.write_dir() as folder:
                    (folder / "mesh.ply").write_bytes(mesh.export(file_type="ply"))
            yield mesh

    def _read(self, name: str, truth) -> dict[str, Any]:
        import trimesh

        return {
            stimulus: trimesh.load_mesh(item.path("mesh.ply"), process=False)
            for stimulus, item in zip(truth.ids, self._items(name, truth), strict=True)
        }

    def _items(self, name: str, truth):
        run = self.outcome.run
        return [run.item(name, "sim-01", i, 0, run.fingerprint) for i in truth.ids]


class Clock:
    """Seconds of each part, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = now - self._last
        self._last = now


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


def _closing(run: Run, measured: dict) -> str:
    lines = [*measured.get("findings", []), f"report: {run.report_path}"]
    return "\n".join(lines)
