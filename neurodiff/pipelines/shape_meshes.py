"""Codes of objects -> meshes: planes, occupancy asked only near the surface, marching cubes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neurodiff.geometry.mise import extract, grid_to_mesh
from neurodiff.models.triplane_vq import TriplaneVQ

if TYPE_CHECKING:
    import trimesh

BOX = 1.1  # occupancy is evaluated in a cube a little larger than the objects


@torch.no_grad()
def meshes_of_codes(
    model: TriplaneVQ,
    codes: Int[np.ndarray, "n codes"],
    *,
    resolution: int,
    threshold: float,
    batch: int = 16,
) -> Iterator[trimesh.Trimesh]:
    """The mesh of each row of codes, in turn.

    Parameters
    ----------
    resolution : cells along a side of the finest grid; the coarsest has a quarter of them.
    threshold : occupancy at the surface, between 0 and 1.
    batch : objects whose planes are made at once.
    """
    level = float(np.log(threshold / (1 - threshold)))
    device = model.quantizer.quantizer.embedding.weight.device
    for part in torch.from_numpy(codes).split(batch):
        for planes in model.planes_from_ids(part.to(device)):
            values = occupancy_grid(model, planes, level=level, resolution=resolution)
            yield grid_to_mesh(values, threshold=level, box=BOX)


@torch.no_grad()
def occupancy_grid(
    model: TriplaneVQ, planes: Float[Tensor, "3 channels r r"], *, level: float, resolution: int
) -> Float[np.ndarray, "n n n"]:
    """Logits of occupancy on ``resolution + 1`` points a side, exact where they cross ``level``."""

    def field(points: np.ndarray) -> np.ndarray:
        queries = torch.from_numpy(points).to(planes)
        return model.occupancy(planes[None], queries[None])[0].cpu().numpy()

    values, _ = extract(
        field, threshold=level, resolution0=resolution // 4, upsampling_steps=2, box=BOX
    )
    return values
