"""Scenes of single areas: does a tuned area's scene show what the area prefers?

    python benchmarks/roi_scenes.py [--recipe brain_diffuser_demo] [--train 1800] [--repeats 3]
        [--samples 4] [--gains own published] [--run DIR] [--seed 0] [--show FILE.png]

A simulated subject with a planted truth: eight areas prefer one object or one place, others carry
nothing. Fits Brain-Diffuser, makes scenes of every area and lets a judge, trained on the true
training scenes, tell them apart: area under the ROC curve of tuned above null areas, chance 0.5,
with a bootstrap over areas and samples. Variants: latents standardised by training statistics (an
area's scene depends on that area alone) and across the areas of the list (published); pattern
lengths of the training items, and the published numbers, which belong to another size. Beside them
the judge on true held-out scenes, which is what no decoder can pass. ``--run`` keeps what is
trained and goes on from it.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="brain_diffuser_demo")
    parser.add_argument("--train", type=int, default=1800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--gains", nargs="+", choices=("own", "published"), default=["own"])
    parser.add_argument("--run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show")
    options = parser.parse_args()

    from neurodiff.analysis.roi_auc import null_areas, roi_auc
    from neurodiff.core.config import dump
    from neurodiff.core.progress import Progress
    from neurodiff.core.run import Run
    from neurodiff.datasets.simulated.scene_subject import (
        PREFERRED,
        SceneFeatureSpace,
        plant_scene_subject,
        record_betas,
    )
    from neurodiff.datasets.simulated.scenes import make_scenes
    from neurodiff.features.scene_judge import SceneJudge
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser
    from neurodiff.pipelines.pictures import as_array, picture_sheet
    from neurodiff.pipelines.roi_scenes import Gains, roi_scenes

    progress, seed = Progress.to_stdout(every=30), options.seed
    train = make_scenes(options.train, split="train", seed=seed, progress=progress)
    test = make_scenes(200, split="test", seed=seed, progress=progress)

    def labels(scenes):
        return {f: [getattr(s, f) for s in scenes.scenes] for f in ("category", "place")}

    judge = SceneJudge.fit(train.images, labels(train), seed=seed, progress=progress)
    features = SceneFeatureSpace(train)(train)
    planted = plant_scene_subject(features, seed=seed)
    recording = record_betas(
        planted, features, train.ids, split="train", repeats=options.repeats, progress=progress
    )
    pipe = BrainDiffuser.from_recipe(options.recipe)
    run = None
    if options.run:
        inputs = {"scenes": options.train, "repeats": options.repeats}
        run = Run.create(options.run, dump(pipe.recipe), inputs, command=sys.argv, seed=seed)
    pipe.fit(recording, train.stimuli(), seed=seed, run=run, progress=progress)
    null = null_areas(planted.areas_table())
    masks = {area: recording.rois[area] for area in [*PREFERRED, *null]}
    print(
        f"\nsimulated; recipe {options.recipe}, {options.train} scenes x {options.repeats}, seed "
        f"{seed}, {options.samples} scenes an area, {len(null)} null areas"
    )
    told = judge.accuracy(test.images, labels(test))
    print(f"judge on 200 true held-out scenes: {told}")
    true = pipe.true_features(test.stimuli(), test.ids, seed=seed)
    made = pipe.generate(true, [("", name, 1) for name in test.ids], seed=seed, progress=progress)
    drawn = as_array([one.image for one in made])
    print(f"on pictures generated from their true features: {judge.accuracy(drawn, labels(test))}")
    print("AUC of what each area prefers, among true scenes and among those pictures:")
    for area, (family, what) in PREFERRED.items():
        true_of = np.array(labels(test)[family]) == what
        parts = (
            _auc(judge.score(images, family, what), true_of) for images in (test.images, drawn)
        )
        print(f"  {area:5} {what:10} " + " ".join(f"{part:.3f}" for part in parts))
    for kind in options.gains:
        gains = Gains() if kind == "published" else Gains.of(pipe)
        for across in (False, True):
            found = roi_scenes(
                pipe, masks, samples=options.samples, seed=seed, across_rows=across, gains=gains
            )
            how = "across the areas of the list" if across else "by training"
            print(f"\nlatents standardised {how}; {kind} gains {gains}")
            print(roi_auc(found, judge, PREFERRED, null, seed=seed))
            if options.show and not across and kind == "own":
                rows = [[one.image for one in found[area]] for area in masks]
                picture_sheet(*(list(row) for row in zip(*rows, strict=True))).save(options.show)


def _auc(score: np.ndarray, true: np.ndarray) -> float:
    difference = score[true][:, None] - score[~true][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


if __name__ == "__main__":
    main()
