"""Scores over noise levels: the decoder and the ridge bridge in the same chain.

    python benchmarks/noise_curve.py [--model demo/model] [--levels 0.01 0.03 0.1 0.2 0.4]
                                     [--recipe mind3d_small] [--out FOLDER] [--seed 0]

With --model the shapes of a finished demo are taken (give its seed, and its number of objects if
that is not 250 a category); else those of the recipe are fitted, once. At each median single-trial
noise ceiling a subject is recorded and the bridge fitted. Prints one table: CD, its way from a
random object (and from one of the right category) to the ceiling, 2-way inside the category, cosine
to the true embedding. With --out the stages are kept and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="mind3d_small")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.2, 0.4])
    parser.add_argument("--model", type=Path, help="folder written by save_pretrained")
    parser.add_argument("--train-per-category", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from neurodiff.analysis.scoring import ScoredShapes, score
    from neurodiff.core.config import dump, load
    from neurodiff.core.progress import Progress
    from neurodiff.core.run import Run
    from neurodiff.core.seeds import numpy_generator
    from neurodiff.datasets.simulated.study import StudySettings, make_study
    from neurodiff.metrics.statistics import way_to_ceiling
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe

    progress, seed = Progress.to_stdout(every=30), options.seed
    per_category = options.train_per_category or (250 if options.model else 100)
    settings = StudySettings(train_per_category=per_category, unseen_per_category=1)
    fitted = MinD3D.from_pretrained(options.model) if options.model else None
    recipe = fitted.recipe if fitted else load(options.recipe, MinD3DRecipe, [])
    run = None
    if options.out is not None:
        inputs = {"study": asdict(settings)}
        run = Run.create(options.out, dump(recipe), inputs, command="noise_curve.py", seed=seed)
    study = make_study(settings, seed=seed, workers=2, progress=progress)
    train, test = (study.bank.select(study.ids(split)) for split in ("train", "test"))
    pipe = fitted or MinD3D(recipe).fit_shapes(train, seed=seed, run=run, progress=progress)
    truth = ScoredShapes.of_bank(test, test.ids)

    def scored(shapes: ScoredShapes) -> pd.DataFrame:
        return score(shapes, truth, ids=test.ids, categories=test.categories)

    def decoded(embedding: np.ndarray, use_adapters: bool = True) -> pd.DataFrame:
        codes = pipe.codes_from_embedding(embedding, use_adapters=use_adapters)
        return scored(ScoredShapes.of_meshes(pipe.meshes(codes), test.ids, seed=seed))

    target = pipe.embedding(test.views)
    ceiling = decoded(target, use_adapters=False)
    rng = numpy_generator(seed)
    same = [rng.choice(np.flatnonzero(np.array(train.categories) == c)) for c in test.categories]
    floors = {
        "random": rng.integers(0, len(train), len(test)),
        "same category": np.array(same),
    }
    floor = {
        name: scored(ScoredShapes.of_bank(train, [train.ids[k] for k in rows]))
        for name, rows in floors.items()
    }
    lines = []
    for level in options.levels:
        recording = study.record("train", ceiling=level, progress=progress)
        pipe.fit_brain(recording, train, seed=seed, run=run, progress=progress, name=f"-{level}")
        del recording
        heard = study.record("test", ceiling=level)
        for bridge in ("network", "ridge"):
            embedding = pipe.predict_embedding(heard, seed=seed, bridge=bridge)
            table = decoded(embedding)
            cosine = np.mean(np.sum(embedding * target, axis=1) / embedding.shape[1])
            line = {"ceiling": level, "bridge": bridge, "cosine": round(float(cosine), 3)}
            line |= {"CD": round(table.CD.mean(), 3), "CD median": round(table.CD.median(), 3)}
            for name, of_floor in floor.items():
                way = way_to_ceiling(
                    table.CD.to_numpy(), of_floor.CD.to_numpy(), ceiling.CD.to_numpy()
                )
                told = ceiling.CD.mean() < of_floor.CD.mean() and not np.isnan(way.low)
                line[f"way from {name}"] = (
                    f"{way.value:.2f} ({way.low:.2f}, {way.high:.2f})" if told else "not available"
                )
            line["within"] = round(table["within"].mean(), 3)
            lines.append(line)
    print(f"\nsimulated; recipe {recipe.name}, seed {seed}, {len(test)} held-out objects")
    print(
        f"ceiling CD {ceiling.CD.mean():.3f} (median {ceiling.CD.median():.3f}); floors:", end=" "
    )
    print(", ".join(f"{name} {table.CD.mean():.3f}" for name, table in floor.items()))
    print(pd.DataFrame(lines).to_string(index=False))


if __name__ == "__main__":
    main()
