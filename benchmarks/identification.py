"""Identification among all pictures of a test set: normalised products against np.corrcoef.

    OMP_NUM_THREADS=1 python benchmarks/identification.py [--items 982] [--features 43264]

The released scripts stack true and reconstructed features, take ``np.corrcoef`` of all rows and
read one quarter of it. ``similarities`` computes that quarter alone. Features are float32, as a
network returns them (43,264 is AlexNet's fifth layer at 224 px). CPU seconds of the process, one
run each; both are in float64 and have to agree to 1e-12. Peak memory is that of the arrays that
each way allocates (tracemalloc), without the input.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from neurodiff.metrics.identification import pairing_rates, similarities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=982)
    parser.add_argument("--features", type=int, default=43_264)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    true = rng.standard_normal((given.items, given.features), dtype=np.float32)
    made = 0.005 * true + rng.standard_normal(true.shape, dtype=np.float32)
    n = given.items

    def stacked() -> np.ndarray:
        return np.corrcoef(made, true, dtype=np.float64)[:n, n:]

    published, slow, slow_memory = _timed(stacked)
    ours, fast, fast_memory = _timed(lambda: similarities(made, true))
    rates, ranks, _ = _timed(lambda: pairing_rates(ours))
    right = np.diagonal(published)
    loop = np.array([(published[j] < right[j]).sum() for j in range(n)]) / (n - 1)
    print(f"{n} x {given.features}, float32 features, float64 products")
    print(f"  np.corrcoef of the stack  {slow:6.2f} CPU s  {slow_memory / 2**20:6.0f} MiB")
    print(f"  similarities              {fast:6.2f} CPU s  {fast_memory / 2**20:6.0f} MiB")
    print(f"  times cheaper             {slow / fast:6.1f}")
    print(f"  largest difference        {np.abs(published - ours).max():.1e}")
    print(f"  2-way of all pairings     {ranks:6.2f} CPU s, score {np.diagonal(rates).mean():.6f}")
    print(f"  2-way of the release      {loop.mean():.6f}")


def _timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, int]:
    started = time.process_time()
    result = work()
    seconds = time.process_time() - started
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, seconds, peak


if __name__ == "__main__":
    main()
