"""A new person on N trials: the shared model with a new input layer against a model of N trials.

    python benchmarks/adapt_subject.py [--recipe mind3d_small] [--shared 3] [--new 4 5]
        [--counts 0 5 10 30 100 300 480] [--individual 0.5] [--train-per-category 40] [--seed 0]

Simulated people with a planted truth look at the same objects; the share --individual of a person's
tuning is nobody else's. The shared model is fitted once on the first --shared people. For each new
person and each N: an input layer on N trials (everything else stays), and MinD-3D fitted on these
N trials alone, with the same shapes. Prints for network and ridge anchor the cosine to the true
embedding, 2-way identification among all and inside the category (chance 0.5), and CD, with what
needs no trial of anybody: a random training object, the prior without brain, the mean object, and
the ceiling.
"""

from __future__ import annotations

import argparse
import copy
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="mind3d_small")
    parser.add_argument("--shared", type=int, default=3)
    parser.add_argument("--new", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 5, 10, 30, 100, 300, 480])
    parser.add_argument("--individual", type=float, default=0.5)
    parser.add_argument("--ceiling", type=float, default=0.10)
    parser.add_argument("--train-per-category", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-meshes", action="store_true", help="no CD, and no shapes are fitted")
    options = parser.parse_args()

    from neurodiff.analysis.scoring import ScoredShapes, score
    from neurodiff.core.config import load
    from neurodiff.core.progress import Progress
    from neurodiff.core.seeds import numpy_generator
    from neurodiff.datasets.simulated.study import StudySettings, make_study
    from neurodiff.metrics.identification import feature_identification
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe
    from neurodiff.pipelines.mind3d_subjects import adapt_subject, adaptation_trials, fit_subjects

    progress, seed = Progress.to_stdout(every=30), options.seed
    skipped = ("tokenizer.training", "decoder.training", "decoder.adapters")
    short = [f"{part}.{key}" for part in skipped for key in ("steps=1", "warmup=0")]
    recipe = load(options.recipe, MinD3DRecipe, short if options.no_meshes else [])
    settings = StudySettings(train_per_category=options.train_per_category, unseen_per_category=1)
    study = make_study(settings, seed=seed, workers=2, progress=progress)
    train, test = (study.bank.select(study.ids(split)) for split in ("train", "test"))

    def hear(split: str, subject: int):
        how = {"ceiling": options.ceiling, "individual": options.individual}
        return study.record(split, subject=subject, **how)

    base = MinD3D(recipe).fit_shapes(train, seed=seed, progress=progress)
    shared = fit_subjects(
        copy.deepcopy(base),
        [hear("train", k) for k in range(1, options.shared + 1)],
        train,
        seed=seed,
        progress=progress,
    )
    target = base.embedding(test.views)
    truth = ScoredShapes.of_bank(test, test.ids)

    def measured(pipe: MinD3D, embedding: np.ndarray, *, brain: bool = True) -> dict[str, float]:
        lengths = np.linalg.norm(embedding, axis=1) * np.linalg.norm(target, axis=1)
        line = {"cosine": float(np.mean((embedding * target).sum(axis=1) / lengths))}
        kinds = list(test.categories)
        if np.ptp(embedding, axis=0).max() > 0:
            line["2-way"] = float(feature_identification(embedding, target).mean())
            within = feature_identification(embedding, target, categories=kinds, too_few="nan")
            line["within"] = float(np.nanmean(within))
        else:  # one answer for all tells nothing apart
            line |= {"2-way": 0.5, "within": 0.5}
        if not options.no_meshes:
            codes = pipe.codes_from_embedding(embedding, use_adapters=brain)
            shapes = ScoredShapes.of_meshes(pipe.meshes(codes), test.ids, seed=seed)
            line["CD"] = score(shapes, truth, ids=test.ids, categories=kinds)["CD"].mean()
        return line

    rows = []
    for subject in options.new:
        recording, heard = hear("train", subject), hear("test", subject)
        name = str(recording.trials["subject"].iloc[0])
        for n in options.counts:
            part = adaptation_trials(recording, min(n, recording.n_trials), seed=seed)
            models = {"shared, new layer": adapt_subject(copy.copy(shared), name, part, train)}
            if n >= 2:
                alone = copy.deepcopy(base)
                models["these trials alone"] = alone.fit_brain(part, train, seed=seed)
            for model, pipe in models.items():
                for bridge in ("network", "ridge"):
                    embedding = pipe.predict_embedding(heard, seed=seed, bridge=bridge)
                    line = {"subject": name, "trials": n, "model": model, "bridge": bridge}
                    rows.append(line | measured(pipe, embedding))
            layers = models["shared, new layer"].brain.layers
            progress.say(f"{name}, {n} trials: layer from {layers.layers[name].how}")
    of_train = base.embedding(train.views)
    mean = of_train.mean(axis=0, keepdims=True)
    mean *= np.sqrt(mean.shape[1]) / np.linalg.norm(mean)
    drawn = numpy_generator(seed).integers(0, len(train), len(test))
    beside = {
        "random training object": of_train[drawn],
        "prior without brain": shared.draw_embedding(test.ids, seed=seed),
        "mean object": np.repeat(mean, len(test), axis=0).astype(np.float32),
        "ceiling: true features": target,
    }
    print(
        f"\nsimulated; recipe {recipe.name}, seed {seed}, {options.shared} shared people of ",
        end="",
    )
    print(f"{len(train)} trials each, new people {options.new}, {len(test)} held-out objects;")
    print(f"individual share of tuning {options.individual}, noise ceiling {options.ceiling}")
    keys = ["trials", "model", "bridge"]
    table = pd.DataFrame(rows).drop(columns="subject").groupby(keys, sort=False).mean()
    print(table.round(3).to_string())
    spread = pd.DataFrame(rows).groupby(keys, sort=False)["cosine"].agg(np.ptp).max()
    print(f"largest difference in cosine between new people: {spread:.3f}")
    print("\nwithout any brain, and the ceiling:")
    others = {name: measured(base, one, brain=False) for name, one in beside.items()}
    print(pd.DataFrame.from_dict(others, orient="index").round(3).to_string())


if __name__ == "__main__":
    main()
