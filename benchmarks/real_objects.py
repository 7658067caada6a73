"""Real objects seen by a simulated subject: how far a decoder of simulated shapes reaches.

    python benchmarks/real_objects.py [--data FOLDER] [--model demo/model] [--recipe mind3d_small]
                                      [--limit N] [--seed 0]

FOLDER holds meshes and objects.csv (file, name, class), by default furniture_cc0 in the folder
that NEURODIFF_SHARED_DATA names. The decoder is trained on simulated objects of 12 categories (or
read from --model, a demo's; give its seed), then the same subject sees the real ones. Prints CD,
F-score, IoU, and 2-way identification among all and inside the class, beside a random training
object, the mean object, the training object nearest to the prediction, the ridge bridge and the
ceiling; then the same for classes that training had and had not, and for held-out simulated
objects.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared = os.environ.get("NEURODIFF_SHARED_DATA")
    parser.add_argument(
        "--data", type=Path, default=Path(shared) / "furniture_cc0" if shared else None
    )
    parser.add_argument("--model", type=Path, help="folder written by save_pretrained")
    parser.add_argument("--recipe", default="mind3d_small")
    parser.add_argument("--train-per-category", type=int)
    parser.add_argument("--limit", type=int, help="only the first N real objects")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data, or set NEURODIFF_SHARED_DATA")

    from neurodiff.analysis.scoring import ScoredShapes, score
    from neurodiff.core.config import load
    from neurodiff.core.progress import Progress
    from neurodiff.core.seeds import numpy_generator
    from neurodiff.datasets.simulated.real_objects import real_stimuli
    from neurodiff.datasets.simulated.study import StudySettings, make_study
    from neurodiff.geometry.bank import bank_from_stimuli
    from neurodiff.metrics.identification import feature_identification
    from neurodiff.metrics.statistics import bootstrap_interval
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe

    progress, seed = Progress.to_stdout(every=30), options.seed
    stimuli = real_stimuli(options.data)
    stimuli = stimuli.select(stimuli.ids[: options.limit])
    real = bank_from_stimuli(stimuli, seed=seed, n_queries=64, progress=progress)
    per_category = options.train_per_category or (250 if options.model else 60)
    settings = StudySettings(train_per_category=per_category, unseen_per_category=1)
    study = make_study(settings, seed=seed, workers=2, progress=progress)
    train, test = (study.bank.select(study.ids(split)) for split in ("train", "test"))
    if options.model:
        pipe = MinD3D.from_pretrained(options.model)
    else:
        recipe = load(options.recipe, MinD3DRecipe, [])
        pipe = MinD3D(recipe).fit_shapes(train, seed=seed, progress=progress)
        pipe.fit_brain(
            study.record("train", progress=progress), train, seed=seed, progress=progress
        )
    heard = {
        "real": (real, study.record_others(real, progress=progress)),
        "held-out simulated": (test, study.record("test")),
    }
    rng = numpy_generator(seed)
    known = np.isin(list(real.categories), list(train.categories))
    lines = []
    for name, (bank, recording) in heard.items():
        truth = ScoredShapes.of_bank(bank, bank.ids)
        target = pipe.embedding(bank.views)
        of_train = pipe.embedding(train.views)
        mean = of_train.mean(axis=0, keepdims=True)
        mean *= np.sqrt(mean.shape[1]) / np.linalg.norm(mean)
        ours = pipe.predict_embedding(recording, seed=seed)
        answers = {
            "random training object": of_train[rng.integers(0, len(train), len(bank))],
            "mean object": np.repeat(mean, len(bank), axis=0).astype(np.float32),
            "nearest training object": of_train[(ours @ of_train.T).argmax(axis=1)],
            "ridge bridge": pipe.predict_embedding(recording, seed=seed, bridge="ridge"),
            "MinD-3D": ours,
            "ceiling: true features": target,
        }
        for condition, embedding in answers.items():
            if condition in ("random training object", "nearest training object"):
                rows = [int(np.argmax(of_train @ one)) for one in embedding]
                shapes = ScoredShapes.of_bank(train, [train.ids[k] for k in rows])
            else:
                brain = condition in ("ridge bridge", "MinD-3D")
                codes = pipe.codes_from_embedding(embedding, use_adapters=brain)
                shapes = ScoredShapes.of_meshes(pipe.meshes(codes), bank.ids, seed=seed)
            table = score(shapes, truth, ids=bank.ids, categories=bank.categories)
            constant = np.ptp(embedding, axis=0).max() == 0
            table["2-way"] = 0.5 if constant else feature_identification(embedding, target)
            groups = {"all": np.ones(len(table), bool)}
            if name == "real":
                groups |= {"trained classes": known, "new classes": ~known}
            for group, rows in groups.items():
                if rows.sum() < 2:
                    continue
                part = table[rows]
                cd = bootstrap_interval(part["CD"].to_numpy(), seed=seed)
                lines.append(
                    {
                        "objects": name if name != "real" else f"real, {group}",
                        "condition": condition,
                        "n": int(rows.sum()),
                        "CD": f"{cd.value:.2f} ({cd.low:.2f}, {cd.high:.2f})",
                        "CD median": round(float(part["CD"].median()), 2),
                        "F@2%": round(float(part["F@2%"].mean()), 3),
                        "IoU": round(float(part["IoU"].mean()), 3),
                        "2-way": round(float(part["2-way"].mean()), 3),
                        "within": round(float(part["within"].mean()), 3),
                    }
                )
    print(f"\nsimulated subject, real objects; recipe {pipe.recipe.name}, seed {seed}; CD x 1e2")
    print(f"{len(real)} real objects, {int(known.sum())} of them of classes that training had;")
    print("2-way: predicted against true embeddings of this set, chance 0.5")
    table = pd.DataFrame(lines).sort_values("objects", kind="stable")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
