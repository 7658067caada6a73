"""CPU seconds and memory of the CLIP-Vision regression at 1/8 scale, beside scikit-learn's.

Run: ``.venv/bin/python benchmarks/ridge_heads.py [--tokens 24 | --all] [--threads 1] [--seed 0]``

1,107 training trials x 1,965 vertices, 257 tokens x 768 targets, 122 test trials, alpha 6e4 / 8
(a subject of NSD divided by eight), synthetic data. Every way runs in a process of its own; its
seconds are of fitting and predicting all tokens, its memory is the peak of the whole process, the
targets included (1.6 GB in float64, 0.8 in float32).

    published loop   one ``sklearn.linear_model.Ridge`` a token, as the released scripts do
    RidgeCV          scikit-learn's, with its leave-one-out choice among three penalties
    himalaya Ridge   if it is installed
    ours             ``FactoredRidge`` on the CPU, by NumPy or (device="torch") by torch;
                     "3 alphas": with the choice by leave-one-out and the leave-one-out
                     statistics that re-standardisation needs

Ours take about a second, so they run three times and the median counts. A way marked * fits its
tokens one after another, so only the first ``--tokens`` of the 257 are timed and the seconds are
multiplied; ``--all`` runs every one. Differences are the largest against the published loop over
the tokens that it ran. Leave-one-out predictions are timed apart, beside scikit-learn's closed
form and literal refits (one trial, one token; multiplied).
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N, P, TEST, TOKENS, WIDTH, ALPHA = 1107, 1965, 122, 257, 768, 6e4 / 8
ALPHAS = [ALPHA / 4, ALPHA, 4 * ALPHA]


def write_data(folder: Path, seed: int) -> None:
    """Brain data and targets with half their variance in it; targets rounded to float32."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N + TEST, P))
    np.save(folder / "X.npy", X)
    low = X[:N, :50].astype(np.float32)
    with open(folder / "Y.npy", "xb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (N, TOKENS * WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        mixing = rng.standard_normal((50, TOKENS * WIDTH), dtype=np.float32) / 7
        for start in range(0, N, 123):
            rows = low[start : start + 123]
            noise = rng.standard_normal((len(rows), TOKENS * WIDTH), dtype=np.float32)
            file.write((rows @ mixing + noise + 1).tobytes())


class Data:
    """What a way is given; the tokens that a slow one runs."""

    def __init__(self, folder: Path, tokens: int, dtype: str) -> None:
        X = np.load(folder / "X.npy")
        self.X, self.new = X[:N], X[N:]
        self.Y = np.load(folder / "Y.npy").astype(dtype, copy=False)
        self.tokens = tokens

    def token(self, k: int) -> np.ndarray:
        return self.Y[:, k * WIDTH : (k + 1) * WIDTH]


def loop(data: Data, make) -> tuple[np.ndarray, float]:
    began = time.process_time()
    found = [make().fit(data.X, data.token(k)).predict(data.new) for k in range(data.tokens)]
    seconds = (time.process_time() - began) * TOKENS / data.tokens
    return np.hstack(found), seconds


def published_loop(data: Data) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import Ridge

    return loop(data, lambda: Ridge(alpha=ALPHA, max_iter=50000, fit_intercept=True))


def ridge_cv(data: Data) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import RidgeCV

    return loop(data, lambda: RidgeCV(ALPHAS))


def himalaya(data: Data) -> tuple[np.ndarray, float]:
    from himalaya.ridge import Ridge

    return loop(data, lambda: Ridge(alpha=ALPHA, fit_intercept=True))


def ours(data: Data, alphas: list[float], dtype: str, standardise: str, device: str = "cpu"):
    import torch  # noqa: F401  its import is not part of the fit, and neither is scikit-learn's

    from neurodiff.bridges.factored_ridge import FactoredRidge

    began = time.process_time()
    model = FactoredRidge(
        alphas, absolute=True, standardise=standardise, dtype=dtype, device=device
    )
    found = model.fit(data.X, data.Y).predict(data.new)
    return found[:, : data.tokens * WIDTH], time.process_time() - began


def loo_ours(data: Data, dtype: str) -> tuple[np.ndarray, float]:
    from neurodiff.bridges.factored_ridge import FactoredRidge

    began = time.process_time()
    model = FactoredRidge(ALPHA, absolute=True, standardise="none", dtype=dtype)
    kept = []
    for place, part in model.fit(data.X, data.Y).loo_blocks():
        if place.start < data.tokens * WIDTH:
            kept.append(np.square(data.Y[:, place] - part))
    seconds = time.process_time() - began
    return np.hstack(kept)[:, : data.tokens * WIDTH], seconds


def loo_ridge_cv(data: Data) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import RidgeCV

    began = time.process_time()
    found = [
        RidgeCV([ALPHA], store_cv_results=True).fit(data.X, data.token(k)).cv_results_[..., 0]
        for k in range(data.tokens)
    ]
    return np.hstack(found), (time.process_time() - began) * TOKENS / data.tokens


def loo_refits(data: Data) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import Ridge

    errors = np.full((N, WIDTH), np.nan)
    began = time.process_time()
    model = Ridge(alpha=ALPHA).fit(data.X[1:], data.token(0)[1:])
    errors[0] = np.square(data.token(0)[0] - model.predict(data.X[:1])[0])
    return errors, (time.process_time() - began) * TOKENS * N


WAYS = {
    "published loop *": ("float64", published_loop),
    "RidgeCV, 3 alphas *": ("float64", ridge_cv),
    "himalaya Ridge *": ("float64", himalaya),
    "ours, float64": ("float64", lambda d: ours(d, [ALPHA], "float64", "none")),
    "ours, float32": ("float32", lambda d: ours(d, [ALPHA], "float32", "none")),
    "ours, float32, by torch": (
        "float32",
        lambda d: ours(d, [ALPHA], "float32", "none", "torch"),
    ),
    "ours, float64, 3 alphas": ("float64", lambda d: ours(d, ALPHAS, "float64", "loo")),
    "ours, float32, 3 alphas": ("float32", lambda d: ours(d, ALPHAS, "float32", "loo")),
    "LOO: RidgeCV *": ("float64", loo_ridge_cv),
    "LOO: refits *": ("float64", loo_refits),
    "LOO: ours, float64": ("float64", lambda d: loo_ours(d, "float64")),
    "LOO: ours, float32": ("float32", lambda d: loo_ours(d, "float32")),
}


def child(name: str, folder: Path, tokens: int) -> None:
    dtype, way = WAYS[name]
    data = Data(folder, tokens, dtype)
    runs = [way(data) for _ in range(3 if name.startswith("ours") else 1)]
    found, seconds = runs[0][0], float(np.median([run[1] for run in runs]))
    np.save(folder / "found.npy", found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24, help="tokens timed of a slow way")
    parser.add_argument("--all", action="store_true", help="time every token of every way")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    tokens = TOKENS if args.all else min(args.tokens, TOKENS)
    if args.child:
        child(args.child[0], Path(args.child[1]), tokens)
        return
    environment = os.environ | {
        f"{library}_NUM_THREADS": str(args.threads) for library in ("OMP", "OPENBLAS", "MKL")
    }
    print(
        f"n={N} p={P} test={TEST} targets={TOKENS}x{WIDTH} alpha={ALPHA:g} seed={args.seed} "
        f"threads={args.threads}; * timed on {tokens} of {TOKENS} tokens"
    )
    print(f"{'way':26}{'CPU s':>10}{'cheaper':>9}{'peak GB':>9}{'max diff':>11}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder, args.seed)
        truth, base = None, 0.0
        for name in WAYS:
            if name.startswith("himalaya") and importlib.util.find_spec("himalaya") is None:
                print(f"{name:26}  not installed")
                continue
            command = [sys.executable, __file__, "--child", name, place, "--tokens", str(tokens)]
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            row = json.loads(done.stdout.splitlines()[-1])
            found = np.load(folder / "found.npy")
            if name in ("published loop *", "LOO: RidgeCV *"):
                truth, base, same = found, row["seconds"], ""
                if name.startswith("LOO"):
                    print("leave-one-out predictions of the training trials (squared errors)")
            elif "3 alphas" in name:
                same = "other alpha"
            else:
                known = ~np.isnan(found)
                same = f"{np.abs(found[known] - truth[:, : found.shape[1]][known]).max():.1e}"
            times = f"{base / row['seconds']:.1f}x"
            print(f"{name:26}{row['seconds']:10.2f}{times:>9}{row['peak']:9.2f}{same:>12}")


if __name__ == "__main__":
    main()
