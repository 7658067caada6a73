"""Conditions of the MinD-3D demo: made, scored once, read back; and the judge of identification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.core.seeds import item_seed, numpy_generator, seeded_layers

if TYPE_CHECKING:
    from neurodiff.analysis.demo import Outcome
    from neurodiff.analysis.scoring import ScoredShapes
    from neurodiff.features.view_classifier import ViewClassifier
    from neurodiff.pipelines.mind3d import MinD3D


def fit_classifier(
    run: Run, train, test, seed: int, progress: Progress, *, steps: int = 300
) -> tuple[ViewClassifier, float]:
    """The judge of n-way identification; returns it and its accuracy on held-out true objects."""
    from neurodiff.core.training import TrainingSettings
    from neurodiff.core.training import train as fit
    from neurodiff.features.view_classifier import ViewClassifier
    from neurodiff.pipelines.stages import Stages

    names = tuple(dict.fromkeys(train.categories))
    labels = np.array([names.index(c) for c in train.categories])
    with seeded_layers(item_seed(seed, subject="", stimulus="", stage="classifier")):
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
class Bench:
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
