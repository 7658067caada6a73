"""Train the stand-in PointNet on simulated categories: ``python -m neurodiff.analysis.\
stand_in_pointnet DIR``.

The published point-cloud distance uses a PointNet that was trained on 13 ShapeNet classes; where
its weights are not at hand, this one classifies the simulated families. It takes about two
minutes on one core, the same seed gives the same weights on the same machine, and its distances are
named "FPD [PointNet simulated]" and stand beside no published number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from neurodiff.analysis.networks import STAND_IN_POINTNET
from neurodiff.core.errors import NeurodiffError
from neurodiff.core.progress import SILENT, Progress

OBJECTS, HELD_OUT = 48, 8  # a category
POINTS, BATCH, RATE = 256, 16, 1e-3


def train_stand_in(
    folder: str | Path,
    *,
    seed: int = 0,
    steps: int = 250,
    objects: int = OBJECTS,
    categories: tuple[str, ...] | None = None,
    progress: Progress = SILENT,
) -> tuple[Path, float]:
    """Train, write the weights into ``folder``; returns the file and the held-out accuracy.

    Parameters
    ----------
    steps : of Adam at batch 16, 256 points a cloud drawn anew at each.
    objects : training objects a category; 8 more are held out.
    categories : None takes all simulated families.
    """
    import torch
    from torch.nn import functional as F

    from neurodiff.core.safe_io import save_safetensors
    from neurodiff.core.seeds import item_seed, numpy_generator
    from neurodiff.datasets.simulated.objects import CATEGORIES, make_objects
    from neurodiff.geometry.mesh import sample_surface
    from neurodiff.metrics.meshes import normalise_points
    from neurodiff.models.pointnet import PointNet

    names = categories or CATEGORIES
    clouds, labels = [], []
    made = make_objects(objects + HELD_OUT, seed=seed, categories=names)
    for one in progress.over(made, "simulated objects"):
        rng = numpy_generator(item_seed(seed, subject="", stimulus=one.id, stage="pointnet"))
        clouds.append(normalise_points(sample_surface(one.mesh(32), 2048, rng)).astype(np.float32))
        labels.append(names.index(one.category))
    x, y = torch.from_numpy(np.stack(clouds)), torch.tensor(labels)
    numbers = np.array([int(one.id.rsplit("-", 1)[1]) for one in made])
    train = torch.from_numpy(np.flatnonzero(numbers < objects))
    test = torch.from_numpy(np.flatnonzero(numbers >= objects))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights and dropout
        network = PointNet(len(names))
        optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
        draws = torch.Generator().manual_seed(seed)
        network.train()
        for _ in progress.over(range(steps), "PointNet", steps):
            rows = train[torch.randint(len(train), (BATCH,), generator=draws)]
            points = torch.randperm(x.shape[1], generator=draws)[:POINTS]
            logits, _, transform = network(x[rows][:, points].transpose(1, 2))
            square = transform @ transform.transpose(1, 2) - torch.eye(3)
            loss = F.cross_entropy(logits, y[rows]) + 1e-3 * square.square().sum((1, 2)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        guesses = torch.cat([network(x[i : i + 1].transpose(1, 2))[0].argmax(1) for i in test])
    accuracy = float((guesses == y[test]).float().mean())
    path = Path(folder) / STAND_IN_POINTNET
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(network.state_dict(), path)
    return path, accuracy


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m neurodiff.analysis.stand_in_pointnet")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the weights")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        path, accuracy = train_stand_in(
            given.folder, seed=given.seed, progress=Progress.to_stdout()
        )
    except NeurodiffError as error:
        print(f"error: {error}")
        return error.exit_code
    print(f"held-out accuracy {accuracy:.3f} over the simulated categories")
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
