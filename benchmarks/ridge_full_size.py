"""Time and memory of the three decoders of one subject of NSD at full size, targets on disk.

Run: ``.venv/bin/python benchmarks/ridge_full_size.py --dir DIR [--threads 2] [--seed 0]``

8,859 training trials x 15,724 vertices, 982 test trials; VDVAE (91,168 targets), CLIP-Text
(77 x 768) and CLIP-Vision (257 x 768), synthetic, as float16 ``.npy`` in DIR (6.2 GB, made first
and removed at the end). One process then factorises once and, for each head, chooses among three
penalties by leave-one-out, takes the leave-one-out statistics of all targets, and predicts the
test trials re-standardised with them. Last, 1,000 permutations of one 768-target token.

The bars are 8 minutes on 2 cores and 6 GB of memory for the three heads, and 1 minute for the
permutations. CPU seconds are of all threads; on a machine that does other work the wall seconds
say little. ``--shrink K`` divides every size by K, to try the script.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

N, P, TEST = 8859, 15724, 982
HEADS = {"VDVAE": (91168,), "CLIP-Text": (77, 768), "CLIP-Vision": (257, 768)}
#: published penalties are 5e4, 1e5 and 6e4
ALPHAS = [2e4, 6e4, 1.8e5]
SIGNAL = 50


def prepare(folder: Path, seed: int, shrink: int) -> None:
    """Brain data, float32, and each head: a linear signal of 50 vertices, noise, an offset."""
    rng = np.random.default_rng(seed)
    n, test = N // shrink, TEST // shrink
    X = rng.standard_normal((n + test, P // shrink), dtype=np.float32)
    np.save(folder / "X.npy", X[:n])
    np.save(folder / "new.npy", X[n:])
    pool = rng.standard_normal(2**24, dtype=np.float32)
    for name, item in HEADS.items():
        item = (max(2, item[0] // shrink), *item[1:])
        count = int(np.prod(item))
        mixing = rng.standard_normal((SIGNAL, count), dtype=np.float32) / 7
        with open(folder / f"{name}.npy", "xb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (n, *item)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, n, 64):
                rows = X[start : min(start + 64, n), :SIGNAL] @ mixing + 0.5
                for row in rows:  # a stretch of the pool of noise, from a random place
                    row += pool[(at := rng.integers(len(pool) - count)) : at + count]
                file.write(rows.astype(np.float16).tobytes())


class Clock:
    """Prints wall and CPU seconds of each step and the process's peak memory so far."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        self.first = self.wall, self.cpu
        print(f"{'step':44}{'wall s':>9}{'CPU s':>9}{'peak GB':>9}", flush=True)

    def lap(self, step: str) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.line(step, wall - self.wall, cpu - self.cpu)
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def total(self, step: str) -> None:
        self.line(step, time.perf_counter() - self.first[0], time.process_time() - self.first[1])

    @staticmethod
    def line(step: str, wall: float, cpu: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{step:44}{wall:9.1f}{cpu:9.1f}{peak:9.2f}", flush=True)


def measure(folder: Path, seed: int, shrink: int, device: str) -> None:
    from neurodiff.bridges.factored_ridge import FactoredRidge
    from neurodiff.bridges.kernel_factor import factorise
    from neurodiff.bridges.permutations import permutation_null

    clock = Clock()
    X, new = np.load(folder / "X.npy"), np.load(folder / "new.npy")
    factor = factorise(X, dtype=np.float32, device=device)
    clock.lap("read and centre X")
    del X
    factor.kernel  # noqa: B018
    clock.lap("kernel")
    notes = {}
    for name in HEADS:
        head = FactoredRidge(
            [a / shrink for a in ALPHAS], absolute=True, dtype="float32", seed=seed
        )
        head.fit(None, folder / f"{name}.npy", factor=factor)
        clock.lap(f"{name}: penalty, leave-one-out statistics")
        squares = [np.square(part).sum() for _, part in head.predict_blocks(new)]
        clock.lap(f"{name}: {len(new)} test predictions")
        notes[name] = {
            "alpha": head.alpha_,
            "sketch_r2": np.round(head.sketch_r2_, 4).tolist(),
            "rms": float(np.sqrt(sum(squares) / len(new) / head.targets_.shape[1])),
        }
    clock.total("three heads, in all")
    hat = head.hat(new)
    token = head.targets_.block(0, 768, np.float32)
    truth = np.random.default_rng(seed).standard_normal((len(new), 768)).astype(np.float32)
    clock.lap("hat matrix of one head")
    null = permutation_null(hat, token, truth, permutations=1000, seed=seed)
    clock.lap("1,000 permutations of 768 targets")
    notes["null"] = {"mean": float(null.mean()), "std": float(null.std())}
    print(json.dumps(notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder for 7 GB of targets")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu (NumPy), torch (on the CPU), cuda")
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--step", choices=["prepare", "measure"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        if args.step == "prepare":
            prepare(args.dir, args.seed, args.shrink)
        else:
            measure(args.dir, args.seed, args.shrink, args.device)
        return
    args.dir.mkdir(parents=True, exist_ok=True)
    folder = args.dir / "ridge-full-size"
    free = shutil.disk_usage(args.dir).free / 2**30
    if free * args.shrink < 9:
        sys.exit(f"{args.dir} has {free:.1f} GB free; the targets and brain data take 7 GB")
    folder.mkdir()  # refuses to write over what is there
    environment = os.environ | {
        f"{library}_NUM_THREADS": str(args.threads) for library in ("OMP", "OPENBLAS", "MKL")
    }
    print(
        f"n={N} p={P} test={TEST} shrink={args.shrink} seed={args.seed} "
        f"threads={args.threads} device={args.device}"
    )
    try:
        for step in ("prepare", "measure"):
            command = [sys.executable, __file__, "--dir", str(folder), "--step", step]
            command += ["--seed", str(args.seed), "--shrink", str(args.shrink)]
            command += ["--device", args.device]
            subprocess.run(command, env=environment, check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
