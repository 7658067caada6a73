"""Seconds of the linear filter on a chest CT of 140 slices of 512 x 512, beside SciPy's plain way.

    python benchmarks/ct_linear_speed.py [--slices 140] [--size 512] [--workers 2] [--repeats 3]

"plain" is one rfft2 a slice over the bare image, in double precision and one thread. "filter" adds
mirrored margins, padding outside the reconstruction circle filled and restored, and float32.
"standardizer" adds the decision, the checks and the report. The shortest of the repeats counts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=140)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    from scipy.fft import irfft2, rfft2

    from neurodiff.bridges.ct_filter import gaussian_filter
    from neurodiff.core.radial_gain import radial_frequency
    from neurodiff.pipelines.ct_standardizer import CTStandardizer, StandardizerSettings

    rng = np.random.default_rng(0)
    shape = (options.slices, options.size, options.size)
    hu = (100 * rng.standard_normal(shape, dtype=np.float32)).astype(np.float32)
    at = np.arange(options.size) - (options.size - 1) / 2
    circle = np.hypot(at[:, None], at[None]) > options.size / 2
    padding = np.broadcast_to(circle, shape).copy()
    hu[padding] = -1024
    spacing = (0.7, 0.7)
    soft = gaussian_filter(0.5, highest=20.0)
    settings = StandardizerSettings(workers=options.workers)
    standardizer = CTStandardizer.from_library("toshiba_fc51_fc13", settings=settings)
    facts = {"vendor": "TOSHIBA", "model": "Aquilion PRIME", "kernel": "FC51"}

    def plain() -> Any:
        gain = soft.at(radial_frequency(shape[1:], spacing))
        return [irfft2(rfft2(one.astype(np.float64)) * gain, s=shape[1:]) for one in hu]

    print(f"{options.slices} x {options.size} x {options.size}, {options.workers} threads")
    for name, work in (
        ("plain", plain),
        ("filter", lambda: soft.apply(hu, spacing, padding, workers=options.workers)),
        ("filter, no padding", lambda: soft.apply(hu, spacing, workers=options.workers)),
        (
            "standardizer",
            lambda: standardizer.apply_slices(hu, spacing, facts=facts, padding=padding),
        ),
    ):
        wall, cpu = shortest(work, options.repeats)
        print(f"  {name:20} {wall:6.2f} s wall {cpu:6.2f} s CPU")


def shortest(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of the quickest of some runs."""
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(times)


if __name__ == "__main__":
    main()
