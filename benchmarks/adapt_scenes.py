"""A new person on N images: the shared decoder with a new layer against a decoder of N images.

    python benchmarks/adapt_scenes.py [--recipe brain_diffuser_tiny] [--shared 3] [--new 4 5]
        [--counts 0 10 30 100 300] [--train 300] [--repeats 1] [--ceiling 0.10]
        [--individual 0.5] [--latents 128] [--seed 0]

Simulated people with a planted truth look at the same scenes; the share --individual of a person's
tuning is nobody else's. One decoder is fitted across the first --shared people. For each new person
and each N: an input layer on N images (everything else stays), a layer of these images without the
group's, and the three ridges fitted on these N images alone. Prints for the text and the vision
head the mean correlation with the true features over held-out scenes (chance 0) and 2-way
identification (chance 0.5); beside them the decoder of a new person's N images with the pairing of
images and responses drawn at random. Features only: no picture is generated.
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
    parser.add_argument("--recipe", default="brain_diffuser_tiny")
    parser.add_argument("--shared", type=int, default=3)
    parser.add_argument("--new", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 10, 30, 100, 300])
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ceiling", type=float, default=0.10)
    parser.add_argument("--individual", type=float, default=0.5)
    parser.add_argument("--latents", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from neurodiff.core.progress import Progress
    from neurodiff.core.recording import Recording
    from neurodiff.core.seeds import numpy_generator
    from neurodiff.datasets.simulated.scene_subject import (
        SceneFeatureSpace,
        plant_scene_subject,
        record_betas,
    )
    from neurodiff.datasets.simulated.scenes import make_scenes
    from neurodiff.metrics.identification import feature_identification
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser
    from neurodiff.pipelines.brain_diffuser_networks import Shown
    from neurodiff.pipelines.mind3d_subjects import adaptation_trials

    progress, seed = Progress.to_stdout(every=30), options.seed
    train = make_scenes(options.train, split="train", seed=seed, progress=progress)
    test = make_scenes(options.test, split="test", seed=seed, progress=progress)
    space = SceneFeatureSpace(train)
    features = {"train": (train, space(train)), "test": (test, space(test))}

    def hear(subject: int, split: str) -> Recording:
        planted = plant_scene_subject(
            features["train"][1],
            subject=subject,
            seed=seed,
            median_ceiling=options.ceiling,
            individual=options.individual,
        )
        part, values = features[split]
        repeats = options.repeats if split == "train" else 3
        recorded = record_betas(
            planted, values, part.ids, split=split, repeats=repeats, progress=progress
        )
        return recorded.mean_repeats()

    stimuli = train.stimuli()
    # no picture is generated, so generator and autoencoder are not trained
    short = [f"generator.{part}training.steps=1" for part in ("", "autoencoder.")]
    base = BrainDiffuser.from_recipe(options.recipe, short)
    base.fit_networks(Shown(stimuli, tuple(train.ids)), seed=seed, progress=progress)
    shared = copy.copy(base).fit_across(
        [hear(k, "train") for k in range(1, options.shared + 1)],
        stimuli,
        latents=options.latents,
        seed=seed,
        progress=progress,
    )
    true = base.true_features(test.stimuli(), test.ids, seed=seed)

    def measured(pipe: BrainDiffuser, heard: Recording) -> dict[str, float]:
        found, line = pipe.predict_features(heard), {}
        for head in ("text", "vision"):
            a, b = (getattr(one, head).reshape(len(heard.trials), -1) for one in (found, true))
            varies = (a.std(axis=0) > 1e-9) & (b.std(axis=0) > 1e-9)
            za, zb = ((v - v.mean(0)) / v.std(0) for v in (a[:, varies], b[:, varies]))
            line[f"{head} r"] = float((za * zb).mean())
            line[f"{head} 2-way"] = float(feature_identification(a, b).mean())
        return line

    rows = []
    for subject in options.new:
        recording, heard = hear(subject, "train"), hear(subject, "test")
        name = str(recording.trials["subject"].iloc[0])
        for n in options.counts:
            images = min(n, recording.n_trials)
            adapted = copy.copy(shared).adapt(recording, stimuli, images=images, seed=seed)
            models = {"shared, new layer": adapted}
            if n >= 2:
                part = adaptation_trials(recording, images, seed=seed)
                order = numpy_generator(seed).permutation(images)
                mixed = part.trials["stimulus"].to_numpy()[order]
                mixed = part.trials.assign(stimulus=mixed)
                unpaired = Recording(part.array(), mixed, {}, part.space, part.unit)
                models |= {
                    "shared, layer of these alone": copy.copy(shared).adapt(
                        recording, stimuli, images=images, group=False, seed=seed
                    ),
                    "these images alone": copy.copy(base).fit_brain(part, stimuli, seed=seed),
                    "these images, unpaired": copy.copy(base).fit_brain(
                        unpaired, stimuli, seed=seed
                    ),
                }
            for model, pipe in models.items():
                rows.append({"subject": name, "images": n, "model": model, **measured(pipe, heard)})
            layer = adapted.input.layers.layers[name]
            progress.say(f"{name}, {n} images: layer from {layer.how}")
    own = {f"sim-{k:02d}": measured(shared, hear(k, "test")) for k in range(1, options.shared + 1)}
    print(
        f"\nsimulated; recipe {options.recipe}, seed {seed}, {options.shared} shared people of "
        f"{len(train)} images x {options.repeats}, new people {options.new}, {len(test)} held-out "
        f"scenes x 3;\nindividual share of tuning {options.individual}, single-trial noise ceiling "
        f"{options.ceiling}, {options.latents} latents"
    )
    table = pd.DataFrame(rows)
    keys = ["images", "model"]
    print(table.drop(columns="subject").groupby(keys, sort=False).mean().round(3).to_string())
    if len(options.new) > 1:
        ours = table[table["model"] == "shared, new layer"]
        spread = ours.groupby("images")["vision 2-way"].agg(np.ptp).max()
        print(
            f"shared, new layer: largest difference between new people {spread:.3f} (vision 2-way)"
        )
    print("\nthe shared model's own people:")
    print(pd.DataFrame.from_dict(own, orient="index").round(3).to_string())


if __name__ == "__main__":
    main()
