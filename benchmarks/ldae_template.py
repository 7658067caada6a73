"""Does a short training of the autoencoder draw the person, or the mean scan?

    python benchmarks/ldae_template.py [--people 200] [--steps 400] [--seed 0] [--threads 2]

Two autoencoders of `ldae_demo`, trained on the same simulated scans by the same steps: one reads
scans as published, one differences from the mean training scan (`AutoencoderSize.template`). On
people that neither has seen, beside the mean scan itself (no brain is read) and the scan (ceiling):

    L1, MSE      of the drawn scan, 0..1
    slope, r     of millilitres of ventricles measured in the drawn scan against those planted, over
                 scans; 1 and 1 are right, 0 is the mean scan's

Millilitres are read from differences by the regression of scans on the planted volume, one reading
for all rows.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from neurodiff.core.config import load
from neurodiff.core.training import train
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains
from neurodiff.models.ldae_autoencoder import autoencoder, encode, set_template
from neurodiff.pipelines.ldae_losses import AutoencoderLoss
from neurodiff.pipelines.ldae_settings import LDAERecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = load("ldae_demo", LDAERecipe, [])
    settings = BrainSettings(subjects=asked.people, shape=recipe.size.grid)
    seen = SimulatedBrains(settings, seed=asked.seed).cohort().array()
    others = SimulatedBrains(replace(settings, subjects=50), seed=asked.seed + 1).cohort()
    scans, planted = others.array(), others.scans["true_ventricles_ml"].to_numpy(float)
    read = reader(scans, planted)
    mean, sd = seen.mean(axis=0), float((seen - seen.mean(axis=0)).std())
    print(
        f"{len(seen)} scans of {asked.people} simulated people, {asked.steps} steps, seed "
        f"{asked.seed}; {len(scans)} scans of 50 others"
    )
    print(f"{'':26}{'L1':>8}{'MSE':>9}{'slope':>8}{'r':>7}{'CPU s':>8}")
    row("mean scan (no brain)", np.broadcast_to(mean, scans.shape), scans, planted, read, 0.0)
    for template in (None, recipe.size.grid):
        size = replace(recipe.size.autoencoder, template=template)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(asked.seed)
            network = autoencoder(size)
        if template is not None:
            set_template(network, torch.from_numpy(mean), sd)
        began = time.process_time()
        fit(network, seen, recipe, asked.steps, asked.seed)
        seconds = time.process_time() - began
        name = "scans, as published" if template is None else "differences from the mean"
        row(name, drawn(network.eval(), scans), scans, planted, read, seconds)
    row("scan itself (ceiling)", scans, scans, planted, read, 0.0)


def fit(network, scans: np.ndarray, recipe: LDAERecipe, steps: int, seed: int) -> None:
    stage = recipe.autoencoder
    settings = replace(stage.training, steps=steps, checkpoint_every=steps)

    def loss(module, rows, generator):
        return module(torch.from_numpy(scans[rows]), generator)

    model = AutoencoderLoss(network, stage)
    train(model, loss, n_items=len(scans), settings=settings, seed=seed, stage="template")


@torch.no_grad()
def drawn(network, scans: np.ndarray) -> np.ndarray:
    parts = [torch.from_numpy(part) for part in np.array_split(scans, -(-len(scans) // 16))]
    return np.concatenate([network.decode(encode(network, x)[0]).numpy() for x in parts])


def reader(scans: np.ndarray, planted: np.ndarray):
    """Millilitres of a scan, up to a constant: the regression of scans on those planted."""
    x, y = scans.reshape(len(scans), -1), planted - planted.mean()
    template = y @ (x - x.mean(axis=0)) / (y @ y)
    return lambda volumes: volumes.reshape(len(volumes), -1) @ template / (template @ template)


def row(name, volumes, scans, planted, read, seconds: float) -> None:
    ml = read(np.ascontiguousarray(volumes))
    moves = float(np.ptp(ml)) > 1e-6
    slope = float(np.polyfit(planted, ml, 1)[0]) if moves else 0.0
    r = float(np.corrcoef(planted, ml)[0, 1]) if moves else 0.0
    error = volumes - scans
    print(
        f"{name:26}{np.abs(error).mean():8.4f}{(error**2).mean():9.5f}{slope:8.2f}{r:7.2f}"
        f"{seconds:8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
