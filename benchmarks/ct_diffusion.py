"""Diffusion mode of CT standardization beside the linear filter and one-step networks.

    python benchmarks/ct_diffusion.py [--data ../shared/data/ct] [--recipe ct_diffusion_demo]
        [--direction soften|sharpen|both] [--test 1] [--train slice|simulated] [--seed 0]
        [--set KEY=VALUE ...]
    python benchmarks/ct_diffusion.py --speed [--slices 32]

Toshiba FC51 and FC13, one chest phantom, 2 slices: everything is fitted on one slice (its upper
and lower half are the two pairs) and tested on the other (``--test``). "soften", FC51 to FC13, can
be recovered; "sharpen", FC13 to FC51, cannot. One training, one test slice, one seed: no intervals.
Regions: squares of 32 x 32 pixels of which half is above -300 HU in FC13; features as pyradiomics
names them (bins of 25 HU, in plane). RMSE where FC13 is above -900 HU. "autoencoder ceiling" is the
round trip of the true target. Seconds are of the one test slice on as many threads as torch has.

``--train simulated`` fits on four simulated chests instead, each in a random kernel change from
which the Toshiba pair was left out: nothing of that pair is seen in training.

``--speed`` times practical mode on ``--slices`` slices of 512 x 512 with untrained networks.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="../shared/data/ct", type=Path)
    parser.add_argument("--recipe", default="ct_diffusion_demo")
    parser.add_argument("--direction", default="both", choices=("soften", "sharpen", "both"))
    parser.add_argument("--test", default=1, type=int, choices=(0, 1))
    parser.add_argument("--train", default="slice", choices=("slice", "simulated"))
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--set", default=[], nargs="*", dest="overrides")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--slices", default=32, type=int)
    options = parser.parse_args()
    if options.speed:
        speed(options)
        return
    from neurodiff.datasets.ct_series import read_series

    sharp, soft = (read_series(options.data / f"toshiba_{k}") for k in ("fc51", "fc13"))
    for direction in ("soften", "sharpen"):
        if options.direction in (direction, "both"):
            source, target = (sharp, soft) if direction == "soften" else (soft, sharp)
            compare(direction, source, target, soft, options)


def compare(direction: str, source: Any, target: Any, soft: Any, options: Any) -> None:
    """Fit on one slice, print one line a method for the other."""
    from neurodiff.core.progress import Progress
    from neurodiff.pipelines.ct_diffusion import CTDiffusion, SlicePairs
    from neurodiff.pipelines.ct_gate import texture_features, tissue_squares

    test, spacing = options.test, source.spacing
    padding = source.padding | target.padding
    half = source.hu.shape[1] // 2
    rows = (slice(0, half), slice(half, 2 * half))
    learned = 1 - test
    pairs = (
        simulated(direction, options.seed)
        if options.train == "simulated"
        else [
            SlicePairs(
                source=source.hu[learned : learned + 1, part],
                target=target.hu[learned : learned + 1, part],
                spacing=spacing,
                padding=padding[learned : learned + 1, part],
            )
            for part in rows
        ]
    )
    pipe = CTDiffusion.from_recipe(options.recipe, options.overrides)
    pipe.fit(pairs, seed=options.seed, progress=Progress.to_stdout(every=60))
    one = np.s_[test : test + 1]
    hu, truth, outside = source.hu[one], target.hu[one], padding[one]
    body = (soft.hu[one] > -900) & ~outside
    places = tissue_squares(soft.hu[one], 32, outside)
    wanted = texture_features(truth, places, 32, spacing)
    print(
        f"\n{direction}: {source.facts.kernel} -> {target.facts.kernel}, fitted on "
        f"{'simulated chests' if options.train == 'simulated' else f'slice {learned}'}, tested on "
        f"slice {test}, {len(places)} regions, seed {options.seed}, gate {pipe.gate}"
    )
    for part in pipe.gates:
        print(
            f"  trained {part['stage']}: {part['parameters']} parameters, "
            f"{part['cpu_seconds']:.0f} CPU s"
        )
    line("raw", hu, truth, body, places, wanted, spacing, 0.0)
    for mode in ("linear", *pipe.networks):
        began = time.perf_counter()
        given, name = (truth, "autoencoder ceiling") if mode == "autoencoder" else (hu, mode)
        done = pipe.apply(
            given, spacing, mode=mode, padding=outside, seed=options.seed, despite_gate=True
        )
        seconds = time.perf_counter() - began
        line(name, done.hu, truth, body, places, wanted, spacing, seconds)
        if mode == "practical":
            draws = [
                pipe.apply(hu, spacing, mode=mode, padding=outside, seed=s, despite_gate=True).hu
                for s in range(options.seed, options.seed + 4)
            ]
            mean = np.mean(draws, axis=0)
            line("practical, mean of 4", mean, truth, body, places, wanted, spacing, 4 * seconds)
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


def simulated(direction: str, seed: int) -> list:
    """Four slices of simulated chests, sharp and soft, the Toshiba pair left out."""
    from neurodiff.datasets.simulated.scanners import (
        draw_kernel_change,
        simulated_lung,
        simulated_scan,
    )
    from neurodiff.pipelines.ct_diffusion import SlicePairs

    pairs = []
    for number in range(4):
        lung = simulated_lung(seed + number, slices=1, size=512)
        change = draw_kernel_change(seed + number, leave_out=("toshiba_fc51_fc13",))
        made = simulated_scan(lung, {"sharp": None, "soft": change}, seed=seed + number)
        a, b = ("sharp", "soft") if direction == "soften" else ("soft", "sharp")
        pairs.append(
            SlicePairs(source=made[a], target=made[b], spacing=lung.spacing, padding=lung.padding)
        )
    return pairs


def line(
    name: str, made: Any, truth: Any, body: Any, places: Any, wanted: Any, spacing: Any, s: float
) -> None:
    """RMSE in the body, SD ratio of its residual texture, and CCC by class."""
    from neurodiff.metrics.agreement import agreement_table
    from neurodiff.pipelines.ct_gate import texture_features

    rmse = float(np.sqrt(np.square((made - truth)[body]).mean()))
    found = agreement_table(
        texture_features(made, places, 32, spacing),
        wanted,
        np.zeros(len(places), int),
        subjects=np.zeros(len(places), int),
        phantom=np.ones(len(places), bool),
        bootstrap=(1, 0.95, 0),
        class_of=lambda feature: feature.split("_")[0],
    )
    table = found.classes.set_index("feature_class")
    whole = table.loc["all"]
    classes = " ".join(f"{kind} {row.ccc:.3f}" for kind, row in table.iterrows() if kind != "all")
    print(
        f"  {name:22} RMSE {rmse:6.1f} HU   CCC {whole.ccc:.3f}   {int(whole.above_085):2} of "
        f"{int(whole.features)} at 0.85   {classes}   {s:.1f} s",
        flush=True,
    )


def speed(options: Any) -> None:
    """Time of practical mode; weights do not matter for it."""
    import torch

    from neurodiff.bridges.ct_filter import gaussian_filter
    from neurodiff.pipelines.ct_diffusion import CTDiffusion
    from neurodiff.pipelines.ct_diffusion_training import build

    pipe = CTDiffusion.from_recipe(options.recipe, options.overrides)
    torch.manual_seed(options.seed)
    pipe.networks = build(pipe.recipe).eval()
    pipe.filter, pipe.spacing_range = gaussian_filter(0.5, highest=20.0), (0.5, 1.0)
    hu = np.random.default_rng(0).normal(0, 60, (options.slices, 512, 512)).astype(np.float32)
    began, cpu = time.perf_counter(), time.process_time()
    pipe.apply(hu, (0.7, 0.7), despite_gate=True)
    print(
        f"{options.slices} slices of 512 x 512, {pipe.recipe.diffusion.steps} steps, "
        f"f = {pipe.recipe.autoencoder.factor}, {torch.get_num_threads()} threads: "
        f"{time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} CPU s, peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"
    )


if __name__ == "__main__":
    main()
