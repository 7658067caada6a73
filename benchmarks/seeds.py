"""Where the variance of a score comes from: training seeds, subjects, stimuli.

    python benchmarks/seeds.py [--recipe mind3d_small] [--seeds 3] [--subjects 2]

One study (same objects, same recordings) is decoded with every training seed and every subject;
the CD of each held-out object is split into random components (crossed design, method of
moments; neurodiff.metrics.statistics). Prints the components, and the standard error that a study
of the stated size has. Also the difference to the ridge bridge, whose training has no seed.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="mind3d_small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--train-per-category", type=int, default=100)
    options = parser.parse_args()

    from neurodiff.analysis.scoring import ScoredShapes, score
    from neurodiff.core.config import load
    from neurodiff.core.progress import Progress
    from neurodiff.datasets.simulated.study import StudySettings, make_study
    from neurodiff.metrics.statistics import (
        bootstrap_interval,
        crossed_values,
        standard_error,
        variance_components,
    )
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe

    progress = Progress.to_stdout(every=30)
    recipe = load(options.recipe, MinD3DRecipe, [])
    settings = StudySettings(train_per_category=options.train_per_category, unseen_per_category=1)
    study = make_study(settings, seed=0, workers=2, progress=progress)
    train, test = (study.bank.select(study.ids(split)) for split in ("train", "test"))
    truth = ScoredShapes.of_bank(test, test.ids)
    rows = []
    for seed in range(options.seeds):
        pipe = MinD3D(recipe).fit_shapes(train, seed=seed, progress=progress)
        for subject in range(1, options.subjects + 1):
            recording = study.record("train", subject=subject, progress=progress)
            pipe.fit_brain(recording, train, seed=seed, progress=progress)
            del recording
            heard = study.record("test", subject=subject)
            for bridge in ("network", "ridge"):
                codes = pipe.codes_from_embedding(
                    pipe.predict_embedding(heard, seed=seed, bridge=bridge)
                )
                shapes = ScoredShapes.of_meshes(pipe.meshes(codes), test.ids)
                table = score(shapes, truth, ids=test.ids, categories=test.categories)
                rows.append(table.assign(seed=seed, subject=subject, bridge=bridge))
    scores = pd.concat(rows)
    print(f"\nsimulated; recipe {recipe.name}; {options.seeds} training seeds, ", end="")
    print(f"{options.subjects} subjects, {len(test)} held-out objects; CD x 1e2")
    print(scores.groupby(["bridge", "seed", "subject"]).CD.agg(["mean", "median"]).round(3))
    levels = {"seed": options.seeds, "subject": options.subjects, "stimulus": len(test)}
    for bridge in ("network", "ridge"):
        values = crossed_values(scores[scores.bridge == bridge], "CD")
        parts = variance_components(values)
        total = sum(max(v, 0) for v in parts.values())
        print(f"\n{bridge}: mean CD {values.mean():.3f} +- {standard_error(parts, levels):.3f}")
        for name, value in parts.items():
            print(f"  variance of {name:<24} {value:8.4f}  {max(value, 0) / total:6.1%}")
    both = [crossed_values(scores[scores.bridge == b], "CD") for b in ("network", "ridge")]
    gap = bootstrap_interval(np.mean(both[1] - both[0], axis=(0, 1)))
    print(f"\nridge minus network, paired over objects: {gap.value:.3f}", end=" ")
    print(f"(95 % {gap.low:.3f} to {gap.high:.3f}); above 0 the network is closer")


if __name__ == "__main__":
    main()
