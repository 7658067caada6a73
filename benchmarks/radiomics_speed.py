"""CPU time of all radiomic features of a cube of 64^3 voxels, beside pyradiomics where it is there.

The image is smooth noise over about 30 bins of 25 HU in a volume of 80^3. CPU seconds of one
process, best of ``--repeats``; the bar is 1.5 s for 107 features or more.

    python benchmarks/radiomics_speed.py --repeats 3

pyradiomics is no dependency: it is timed, and its 107 features compared, where ``import
radiomics`` and ``import SimpleITK`` work.
"""

from __future__ import annotations

import argparse
import logging
import time

import numpy as np
from scipy.ndimage import gaussian_filter

from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.radiomics import FAMILIES, RadiomicsSettings, as_pyradiomics, radiomics


def volume(side: int, cube: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise in HU and a cube in its middle."""
    generator = numpy_generator(item_seed(0, subject="speed", stimulus="cube"))
    image = gaussian_filter(generator.normal(size=(side, side, side)), 1.0)
    image *= 750.0 / np.ptp(image)
    mask = np.zeros(image.shape, dtype=bool)
    start = (side - cube) // 2
    mask[(slice(start, start + cube),) * 3] = True
    return image, mask


def best(repeats: int, function) -> tuple[float, float, dict]:
    """Least CPU and wall seconds of some runs, and the last result."""
    times = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        result = function()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(t[0] for t in times), min(t[1] for t in times), result


def peer(image: np.ndarray, mask: np.ndarray):
    """Return pyradiomics' extraction of this volume, or None where it is not installed."""
    try:
        import SimpleITK
        from radiomics import featureextractor
    except ImportError:
        return None
    logging.getLogger("radiomics").setLevel(logging.ERROR)
    extractor = featureextractor.RadiomicsFeatureExtractor(binWidth=25)
    one = SimpleITK.GetImageFromArray(image)
    two = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    return lambda: {
        k: float(v) for k, v in extractor.execute(one, two).items() if k.startswith("original")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=80)
    parser.add_argument("--cube", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    image, mask = volume(args.side, args.cube)
    spacing = (1.0, 1.0, 1.0)
    settings = RadiomicsSettings.pyradiomics()
    print(f"cube of {args.cube}^3 in {args.side}^3 voxels, seed 0, best of {args.repeats} runs")
    cpu, wall, ours = best(args.repeats, lambda: radiomics(image, mask, spacing, settings))
    print(f"neurodiff, every family: {len(ours)} features, {cpu:.2f} CPU s, {wall:.2f} s")
    for family in FAMILIES:
        alone = RadiomicsSettings(bin_origin="multiple", families=(family,))
        cpu, _, part = best(
            args.repeats, lambda alone=alone: radiomics(image, mask, spacing, alone)
        )
        print(f"  {family:6s} {len(part):4d} features {cpu:6.3f} CPU s")
    extract = peer(image, mask)
    if extract is None:
        print("pyradiomics is not installed: not timed")
        return
    cpu, wall, theirs = best(args.repeats, extract)
    print(f"pyradiomics: {len(theirs)} features, {cpu:.2f} CPU s, {wall:.2f} s")
    named = as_pyradiomics(ours)
    worst: dict[str, float] = {}
    for name, value in theirs.items():
        apart = abs(named[name] - value) / max(abs(value), 1e-9)
        kind = name.split("_")[1]
        worst[kind] = max(worst.get(kind, 0.0), apart)
    for kind, apart in worst.items():
        print(f"  greatest relative difference, {kind}: {apart:.1e}")


if __name__ == "__main__":
    main()
