"""Measure the noise of the small real data sets, and show that simulated noise has the same.

    python benchmarks/fit_noise.py [FOLDER]

FOLDER holds ``fmri_shape_demo`` and ``haxby2001_slice``; without it, the environment variable
NEURODIFF_SHARED_DATA names the folder.  The constants MEASURED_* of
``neurodiff.datasets.simulated.noise`` are the first row of the table.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from neurodiff.datasets.fmri_shape import FMRIShape
from neurodiff.datasets.haxby import Haxby2001, block_rows, standardise_runs
from neurodiff.datasets.simulated.noise import (
    MEASURED_COMMON_SHARE,
    MEASURED_FWHM_MM,
    MEASURED_LAG1,
    common_share,
    fwhm_from_correlation,
    lag1_autocorrelation,
    neighbour_correlation,
    smooth_noise,
)
from neurodiff.datasets.surface import edges_of, load_visual_cortex


def describe(series: np.ndarray, pairs: tuple, distance_mm: float) -> dict[str, float]:
    """Statistics of ``(trials, frames, features)`` after the mean over frames is removed."""
    residuals = series - series.mean(axis=1, keepdims=True)
    flat = residuals.reshape(-1, residuals.shape[-1])
    local = flat - flat.mean(axis=1, keepdims=True)
    correlation = neighbour_correlation(local, pairs)
    return {
        "lag-1": lag1_autocorrelation(np.moveaxis(series, 1, -1)),
        "neighbour r": neighbour_correlation(flat, pairs),
        "r without common": correlation,
        "FWHM mm": fwhm_from_correlation(correlation, distance_mm),
        "common share": common_share(flat),
    }


def shape_residuals(root: Path) -> tuple[np.ndarray, tuple, float]:
    """Trials at the vertices that some pixel shows alone (their values are exact)."""
    cortex = load_visual_cortex()
    recording, _ = FMRIShape.open(root, subject=1, values="vertices")
    entries = cortex.pixel_weights.tocoo()
    exact = np.zeros(cortex.n_vertices, bool)
    exact[entries.col[entries.data == 1]] = True
    first, second = edges_of(cortex.neighbours)
    keep = exact[first] & exact[second]
    data = recording.array().astype(float)
    data[..., ~exact] = 0
    return data[..., exact], _renumbered(exact, first[keep], second[keep]), float(
        cortex.edge_lengths()[keep].mean()
    )  # fmt: skip


def haxby_residuals(root: Path) -> tuple[np.ndarray, tuple, float]:
    """Blocks of 9 volumes, detrended and z-scored by run; voxels next to each other in j."""
    recording, _ = Haxby2001.open(root, subject=1)
    series = standardise_runs(recording)
    blocks = [series[rows] for rows in block_rows(recording.trials) if len(rows) == 9]
    mask = recording.space.mask
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    pairs = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()])
    pairs = pairs[:, (pairs >= 0).all(axis=0)]
    distance = float(np.linalg.norm(recording.space.affine[:3, 1]))
    return np.stack(blocks).astype(float), (pairs[0], pairs[1]), distance


def simulated(trials: int = 60) -> tuple[np.ndarray, tuple, float]:
    cortex = load_visual_cortex()
    noise = smooth_noise((trials, 10), cortex, generator=np.random.default_rng(0))
    return noise.astype(float), edges_of(cortex.neighbours), float(cortex.edge_lengths().mean())


def main(folder: Path) -> None:
    rows = {
        "fMRI-Shape sub-0001, TR 0.8 s": describe(*shape_residuals(folder / "fmri_shape_demo")),
        "Haxby 2001 subj1, TR 2.5 s": describe(*haxby_residuals(folder / "haxby2001_slice")),
        "simulated, TR 0.8 s": describe(*simulated()),
    }
    names = list(next(iter(rows.values())))
    print(f"{'residuals':32s}" + "".join(f"{name:>18s}" for name in names))
    for label, row in rows.items():
        print(f"{label:32s}" + "".join(f"{row[name]:18.3f}" for name in names))
    print(
        f"constants in noise.py: lag-1 {MEASURED_LAG1}, FWHM {MEASURED_FWHM_MM} mm, "
        f"common share {MEASURED_COMMON_SHARE}"
    )


def _renumbered(kept: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple:
    number = np.cumsum(kept) - 1
    return number[first], number[second]


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("NEURODIFF_SHARED_DATA", "")
    if not Path(chosen).is_dir() or not chosen:
        sys.exit("give the folder of the small real data, or set NEURODIFF_SHARED_DATA")
    main(Path(chosen))
