"""Residual of DDIM inversion against its iterations, on trained networks.

    python benchmarks/inversion.py [--model demo/model] [--steps 16] [--items 16] [--seed 0]

Round trip: invert data to noise, sample again, compare: relative L2, median and largest over items.
0 iterations is the explicit inversion of published code. Calls: of the network, in one inversion.
The 3D network is trained in the run (or read from --keep); with --model, the feature bridge of a
finished demo inverts the embeddings of its held-out objects under their own recordings: to clean
data, and with the embedding taken as the state at the cleanest step (as published LDAE takes it).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from blob_volumes import trained

from neurodiff.diffusion.grids import trailing
from neurodiff.diffusion.inversion import invert
from neurodiff.diffusion.sampling import sample
from neurodiff.diffusion.solvers import DDIM

ITERATIONS = (0, 1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder written by save_pretrained")
    parser.add_argument("--train", type=int, default=520, help="updates of the 3D network")
    parser.add_argument("--keep", type=Path, help="file of its weights: read, or written if absent")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    if options.model is not None:
        denoiser, state, x0, path = bridge(options.model, options.items, options.seed)
        name = "feature bridge of the demo, float32"
        table(f"{name}, to clean data", denoiser, state, x0, trailing(path, options.steps))
        ended = [*trailing(path, options.steps)[:-1], path.level(0)]
        table(f"{name}, to its cleanest step", denoiser, state, x0, ended)
    model = trained(options.train, options.seed, options.keep)
    x0 = model.held_out[: options.items]
    state = model.denoiser.prepare(None)
    name = f"3D UNet of {options.train} updates"
    grid = trailing(model.path, options.steps)
    table(f"{name}, float32, to clean data", model.denoiser, state, x0, grid)
    ended = [*grid[:-1], model.path.level(0)]
    table(f"{name}, float32, to its cleanest step", model.denoiser, state, x0, ended)
    model.net.double()
    table(f"{name}, float64, to its cleanest step", model.denoiser, state, x0.double(), ended)


def table(name, denoiser, state, x0, grid) -> None:
    calls = 0

    def counted(x, level, state):
        nonlocal calls
        calls += 1
        return denoiser(x, level, state)

    print(f"\n{name}: {len(x0)} items, DDIM-{len(grid) - 1}")
    heads = ("iterations", "calls", "step residual", "round trip", "largest")
    print("{:>10} {:>6} {:>15} {:>11} {:>9}".format(*heads))
    for iterations in ITERATIONS:
        calls = 0
        back = invert(counted, x0, grid, state=state, iterations=iterations, tolerance=1e-15)
        spent = calls
        again = sample(denoiser, back.x, grid, DDIM(), state=state)
        off = (again - x0).flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1)
        worst = f"{float(back.residuals[:, -1].max()):.1e}" if iterations else "not solved"
        print(
            f"{iterations:>10} {spent:>6} {worst:>15} "
            f"{float(off.median()):>11.1e} {float(off.max()):>9.1e}"
        )


def bridge(folder: Path, items: int, seed: int):
    """The demo's bridge, its states for held-out recordings, and the embeddings to invert."""
    import numpy as np

    from neurodiff.bridges.prior import BridgeDenoiser
    from neurodiff.datasets.simulated.study import StudySettings, make_study
    from neurodiff.pipelines.brain_input import frames_at_test
    from neurodiff.pipelines.mind3d import MinD3D

    pipe = MinD3D.from_pretrained(folder)
    settings = StudySettings(train_per_category=1, test_per_category=2, unseen_per_category=1)
    study = make_study(settings, seed=seed)
    ids = study.ids("test")[:items]
    recording = study.record("test")
    rows = [list(recording.trials.stimulus).index(name) for name in ids]
    recording, brain = pipe.brain.accept(recording.select(rows)), pipe.brain
    frames = brain.standardised(recording.data[:])
    frames = frames[:, frames_at_test(frames.shape[1], pipe.recipe.bridge.frames)]
    maps = torch.from_numpy(frames.reshape(-1, frames.shape[-1]))
    anchor = torch.from_numpy(pipe.ridge.predict(brain.betas(recording)).astype(np.float32))
    x0 = torch.from_numpy(pipe.embedding(study.bank.select(ids).views)).float()
    denoiser = BridgeDenoiser(pipe.networks.prior_network)
    with torch.no_grad():
        tokens = pipe.networks.tokens(brain.patches(maps), pipe.recipe.bridge.frames)
        return denoiser, denoiser.prepare((tokens, anchor)), x0, pipe.path


if __name__ == "__main__":
    main()
