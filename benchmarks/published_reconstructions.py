"""Published reconstructions of MinD-3D against views of their stimuli, by both protocols.

Run: ``NEURODIFF_SHARED_DATA=DIR .venv/bin/python benchmarks/published_reconstructions.py \
[--weights DIR] [--seed 0]``

``fmri_shape_demo`` holds, for six trials of the core test list, the mesh that the published weights
made and **one** picture of the stimulus. So the measures of pictures can be taken, of one view
instead of six. Without a mesh of the stimulus there is no CD, EMD, F-score, IoU or FPD.

The pose of the picture's camera is not given. One camera is fitted for all six pictures together:
of a grid of azimuths, elevations and distances the one whose silhouettes overlap the pictures' best
on average. It is fitted on the reconstructions that are then scored, so the figures are a little
too good, and equally so for the rows beside them:

    other reconstruction   no brain: the mesh of another of the six trials, mean over all five;
                           with six objects in five categories it is a weak baseline
    white picture          no brain: nothing there at all
    (no ceiling)           the true mesh is not there to be rendered

Pictures are rendered by ray casting in grey; the stimuli have colours. Networks are named; what a
stand-in gives is comparable with no published figure, and with six items nothing is.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from neurodiff.analysis.networks import find_networks
from neurodiff.analysis.protocol_scores import VIEW_PIXELS, ProtocolScorer
from neurodiff.analysis.protocols import PROTOCOLS, quantity
from neurodiff.core.errors import NeurodiffError
from neurodiff.geometry.views import render_silhouettes, render_views
from neurodiff.metrics.images import on_white
from neurodiff.metrics.statistics import bootstrap_interval

PICTURES = ("PSNR", "SSIM", "LPIPS", "2-way", "10-way")
NOT_SCORED = ("CD", "CD turned", "EMD", "F@2%", "IoU", "within", "FPD")
CATEGORIES = {
    "02691156": "aeroplane",
    "02958343": "car",
    "03636649": "lamp",
    "03691459": "loudspeaker",
    "04401088": "telephone",
}


def open_demo(folder: Path) -> tuple[list[str], dict[str, str], dict, dict[str, np.ndarray]]:
    """Names, categories, meshes and pictures with alpha (RGBA, 1024 px) of the six trials."""
    import trimesh

    paths = sorted(folder.glob("sub-0001/npy_data/*/*.npy"))
    kinds = {p.stem: CATEGORIES.get(p.parent.name, p.parent.name) for p in paths}
    names = sorted(kinds)
    meshes, pictures = {}, {}
    for name in names:
        mesh = trimesh.load(
            folder / "official_reconstructions" / f"{name}.obj", process=False, force="mesh"
        )
        meshes[name] = mesh
        pictures[name] = np.asarray(
            Image.open(folder / "stimulus_views" / f"{name}.png").convert("RGBA")
        )
    return names, kinds, meshes, pictures


def small_silhouette(picture: np.ndarray, size: int) -> np.ndarray:
    alpha = Image.fromarray(picture[..., 3]).resize((size, size), Image.Resampling.BOX)
    return np.asarray(alpha) > 127


def overlap(meshes: dict, masks: dict, **camera: float) -> float:
    """Mean intersection over union of silhouettes, one camera for all."""
    values = []
    for name, mesh in meshes.items():
        size = masks[name].shape[0]
        seen = render_silhouettes(
            mesh,
            size=size,
            azimuths=[camera["azimuth"]],
            elevations=camera["elevation"],
            distance=camera["distance"],
        )[0]
        values.append((seen & masks[name]).sum() / max((seen | masks[name]).sum(), 1))
    return float(np.mean(values))


def fit_camera(meshes: dict, pictures: dict) -> tuple[dict[str, float], float]:
    """Best of a grid, then of a finer one around it."""
    masks = {name: small_silhouette(picture, 64) for name, picture in pictures.items()}
    grid = [
        {"azimuth": float(a), "elevation": float(e), "distance": d}
        for a in range(0, 360, 15)
        for e in (-10, 10, 20, 30, 40)
        for d in (1.7, 2.0, 2.3)
    ]
    best = max(grid, key=lambda camera: overlap(meshes, masks, **camera))
    finer = [
        {
            "azimuth": best["azimuth"] + a,
            "elevation": best["elevation"] + e,
            "distance": best["distance"] + d,
        }
        for a in (-10.0, -5.0, 0.0, 5.0, 10.0)
        for e in (-5.0, 0.0, 5.0)
        for d in (-0.15, 0.0, 0.15)
    ]
    best = max(finer, key=lambda camera: overlap(meshes, masks, **camera))
    return best, overlap(meshes, masks, **best)


def view(mesh, camera: dict[str, float]) -> np.ndarray:
    return render_views(
        mesh,
        size=VIEW_PIXELS,
        azimuths=[camera["azimuth"]],
        elevations=camera["elevation"],
        distance=camera["distance"],
    )


def of_stimulus(picture: np.ndarray) -> np.ndarray:
    """The stimulus on white at the size of our views; (1, h, w, 3)."""
    size = (VIEW_PIXELS, VIEW_PIXELS)
    return np.asarray(Image.fromarray(on_white(picture)).resize(size, Image.Resampling.BOX))[None]


def scores(scorer: ProtocolScorer, names: list[str], views: dict, truths: dict) -> pd.DataFrame:
    """One row a condition and stimulus."""
    white = np.full((1, VIEW_PIXELS, VIEW_PIXELS, 3), 255, np.uint8)
    rows = []
    for name in names:
        true = scorer.true_shape(name, None)
        true.views = truths[name]
        answers = {"MinD-3D, published mesh": [views[name]], "white picture": [white]}
        answers["other reconstruction"] = [views[other] for other in names if other != name]
        for condition, pictures in answers.items():
            each = [
                scorer.pictures(picture, true, PICTURES, draw)
                for draw, picture in enumerate(pictures)
            ]
            mean = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
            rows.append({"condition": condition, "stimulus": name} | mean)
    return pd.DataFrame(rows)


def cell(values: np.ndarray) -> str:
    found = bootstrap_interval(values, seed=0)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shared = os.environ.get("NEURODIFF_SHARED_DATA")
    folder = Path(shared or "") / "fmri_shape_demo"
    if not shared or not (folder / "official_reconstructions").is_dir():
        print("error: set NEURODIFF_SHARED_DATA to the folder that holds fmri_shape_demo")
        return 3
    try:
        networks = find_networks(given.weights)
    except NeurodiffError as error:
        print(f"error: {error}")
        return error.exit_code
    names, kinds, meshes, pictures = open_demo(folder)
    camera, fit = fit_camera(meshes, pictures)
    views = {name: view(meshes[name], camera) for name in names}
    truths = {name: of_stimulus(pictures[name]) for name in names}
    print(
        f"{len(names)} published reconstructions against one view of each stimulus, seed "
        f"{given.seed}; real data, one subject\n"
        f"camera fitted for all six: azimuth {camera['azimuth']:.0f}, elevation "
        f"{camera['elevation']:.0f}, distance {camera['distance']:.2f}; mean overlap of "
        f"silhouettes {fit:.3f}\nnot scored, no mesh of the stimuli: {', '.join(NOT_SCORED)}; no "
        "ceiling either"
    )
    for line in networks.lines()[:2]:
        print(line)
    for protocol in PROTOCOLS.values():
        scorer = ProtocolScorer(protocol, networks, given.seed)
        table = scores(scorer, names, views, truths)
        columns = [c for c in table if c not in ("condition", "stimulus")]
        print(f"\nprotocol {protocol.name}: mean over {len(names)} stimuli [95 %]")
        print(
            "chance: "
            + ", ".join(
                f"{c} {quantity(c).chance:g}" for c in columns if quantity(c).chance is not None
            )
        )
        means = table.groupby("condition", sort=False)[columns].agg(lambda v: cell(v.to_numpy()))
        print(means.to_string())
        single = table[table["condition"] == "MinD-3D, published mesh"].set_index("stimulus")
        single.index = [f"  {name[:8]} {kinds[name]}" for name in single.index]
        print(single[columns].round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
