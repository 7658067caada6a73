"""Seconds of CD, EMD and FPD of 100 pairs at 2,048 points, and of rendering, beside baselines.

Run: ``.venv/bin/python benchmarks/mesh_metrics.py [--pairs 100] [--seed 0]``

Every row is measured in this run, on the same shapes (simulated objects, each pair of two
categories). The baselines are the same quantity by the plain way:

    CD    all distances as a matrix (scipy ``cdist``)
    EMD   SciPy's assignment solver on the costs as they are; the largest difference of the two
          answers is printed; it takes minutes, so of the first ``--baseline-pairs`` pairs
    FPD   ``scipy.linalg.sqrtm`` of the product of the covariances, as the published script does
          (it takes tens of seconds, so once); the activations are the same, of an untrained
          PointNet, as time does not depend on weights

Wall seconds of pairs are of ``--workers`` processes; CPU seconds are of all of them.
"""

import argparse
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np

LIMIT = "OMP_NUM_THREADS"


def clouds(pairs: int, seed: int) -> np.ndarray:
    """(pairs, 2, 2048, 3) points on simulated objects."""
    from neurodiff.datasets.simulated.objects import CATEGORIES, make_objects
    from neurodiff.geometry.mesh import sample_surface

    each = -(-2 * pairs // len(CATEGORIES))
    made = make_objects(each, seed=seed)
    order = np.random.default_rng(seed).permutation(len(made))[: 2 * pairs]
    rng = np.random.default_rng(seed)
    points = [sample_surface(made[k].mesh(24), 2048, rng) for k in order]
    return np.stack(points).reshape(pairs, 2, 2048, 3)


def chamfer(pair: np.ndarray) -> float:
    from neurodiff.metrics.meshes import chamfer_distance

    return float(chamfer_distance(pair[0], pair[1]))


def chamfer_matrix(pair: np.ndarray) -> float:
    from scipy.spatial.distance import cdist

    squared = cdist(pair[0], pair[1], "sqeuclidean")
    return float(squared.min(1).mean() + squared.min(0).mean())


def transport(pair: np.ndarray) -> float:
    from neurodiff.metrics.transport import earth_movers_distance

    return earth_movers_distance(pair[0], pair[1])


def transport_plain(pair: np.ndarray) -> float:
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    cost = cdist(pair[0], pair[1])
    return float(cost[linear_sum_assignment(cost)].mean())


def timed(job) -> tuple[float, float]:
    function, pair = job
    began = time.process_time()
    value = function(pair)
    return value, time.process_time() - began


def over(function, pairs, pool) -> tuple[np.ndarray, float, float]:
    """Values, wall seconds, CPU seconds."""
    began = time.perf_counter()
    found = list(pool.map(timed, [(function, pair) for pair in pairs]))
    values, seconds = (np.array(column) for column in zip(*found, strict=True))
    return values, time.perf_counter() - began, float(seconds.sum())


def activations_of(cloud: np.ndarray) -> np.ndarray:
    import torch

    from neurodiff.metrics.meshes import normalise_points
    from neurodiff.models.pointnet import PointNet, activations

    torch.manual_seed(0)
    network = PointNet().eval()
    return activations(network, normalise_points(cloud).astype(np.float32))


def frechet_by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.linalg import LinAlgWarning, sqrtm

    first, second = (np.cov(x.astype(np.float64), rowvar=False) for x in (a, b))
    with warnings.catch_warnings():  # the product is singular, as it is in the published use
        warnings.simplefilter("ignore", LinAlgWarning)
        root = np.real(sqrtm(first @ second))
    shift = ((a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)) ** 2).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * np.trace(root))


def rendering(seed: int) -> list[tuple[str, float]]:
    """CPU milliseconds a view, median of 10 objects: one colour view, six views in one call."""
    from neurodiff.analysis.protocol_scores import VIEW_PIXELS
    from neurodiff.datasets.simulated.objects import make_objects
    from neurodiff.geometry.views import render_views

    meshes = [one.mesh(64) for one in make_objects(1, seed=seed)][:10]
    faces = int(np.median([len(mesh.faces) for mesh in meshes]))
    render_views(meshes[0], size=VIEW_PIXELS)  # loads the library
    rows = []
    for size in (64, VIEW_PIXELS):
        spent = []
        for mesh in meshes:
            began = time.process_time()
            views = render_views(mesh, size=size)
            spent.append(1000 * (time.process_time() - began) / len(views))
        rows.append((f"ours: ray caster, {size} px, median {faces} faces", float(np.median(spent))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--baseline-pairs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ[LIMIT] = "1"  # of the processes below: one core each
    pairs = clouds(given.pairs, given.seed)
    load = os.getloadavg()[0]
    print(
        f"{given.pairs} pairs of 2,048 points, seed {given.seed}, {given.workers} processes, "
        f"{os.cpu_count()} cores, load {load:.1f} before the run"
    )
    print(f"{'row':<58}{'wall s':>9}{'CPU s':>9}")
    total = [0.0, 0.0]

    def line(name: str, wall: float, cpu: float) -> None:
        print(f"{name:<58}{wall:>9.1f}{cpu:>9.1f}", flush=True)

    with ProcessPoolExecutor(given.workers) as pool:
        list(pool.map(chamfer, pairs[: given.workers]))  # imports
        for label, ours, plain in (
            ("CD", chamfer, chamfer_matrix),
            ("EMD", transport, transport_plain),
        ):
            values, wall, cpu = over(ours, pairs, pool)
            line(f"ours: {label}", wall, cpu)
            total = [total[0] + wall, total[1] + cpu]
            some = pairs[: given.baseline_pairs]
            baseline, wall, cpu = over(plain, some, pool)
            line(f"baseline: {label}, the first {len(some)} pairs", wall, cpu)
            gap = np.abs(values[: len(some)] - baseline).max()
            print(f"  largest difference of these {gap:.1e}")
        from neurodiff.metrics.frechet import frechet_interval

        began = time.perf_counter()
        jobs = [(activations_of, pairs[:, side]) for side in (0, 1)]
        (a, first), (b, second) = pool.map(timed, jobs)
        between = time.process_time()
        found = frechet_interval(a, b)
        cpu = first + second + time.process_time() - between
        wall = time.perf_counter() - began
    line("ours: FPD with its interval, activations included", wall, cpu)
    total = [total[0] + wall, total[1] + cpu]
    began, between = time.perf_counter(), time.process_time()
    other = frechet_by_sqrtm(a, b)
    line(
        "baseline: FPD by sqrtm, without activations and interval",
        time.perf_counter() - began,
        time.process_time() - between,
    )
    print(f"  ours {found.value:.6f}, baseline {other:.6f} ({found.note})")
    line("ours: CD, EMD and FPD together", *total)
    print(f"\n{'rendering':<58}{'CPU ms a view':>18}")
    for name, milliseconds in rendering(given.seed):
        print(f"{name:<58}{milliseconds:>18.1f}")


if __name__ == "__main__":
    main()
