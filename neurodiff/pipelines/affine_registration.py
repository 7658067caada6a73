"""Affine registration of a brain to the MNI template, without a further package.

Twelve parameters (shift, turn, size, shear) maximise the correlation of the scan with the template
inside the template's brain, coarse to fine, by Adam on torch. It is a stand-in for ANTs where that
is not installed: affine only, so that it keeps the atrophy that the published non-linear
registration removes in part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurodiff.core.errors import DataError
from neurodiff.core.volume import Volume
from neurodiff.datasets.brain_mri_flags import tissue_of
from neurodiff.datasets.mni import mni_grid, mni_maps, sampled

LEVELS = ((10.0, 120), (6.0, 80), (4.0, 60))
"""Spacing in mm and number of steps of each level."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Registration:
    """What was found.

    Attributes
    ----------
    to_mni : (4, 4) from the scan's mm to those of MNI.
    likeness : correlation with the template inside its brain, -1 to 1.
    """

    to_mni: np.ndarray
    likeness: float


def register_to_mni(volume: Volume, *, least: float = 0.5) -> Registration:
    """The affine map of a scan's millimetres to those of MNI.

    Parameters
    ----------
    volume : one channel, best skull-stripped and roughly upright; its affine has to be right.
    least : correlation below which the registration counts as failed.

    Raises
    ------
    DataError : a constant picture, or a registration that failed.
    """
    import torch
    import torch.nn.functional as F

    what = volume.name or "the volume"
    tissue = tissue_of(volume.data[0])
    if not tissue.any() or tissue.all():
        raise DataError(f"{what} has no brain that stands out; it cannot be registered")
    maps = mni_maps(2)
    middle = np.array([0.0, -18.0, 8.0])
    own = volume.affine @ np.array([*np.argwhere(tissue).mean(axis=0), 1.0])
    centre = torch.tensor(middle, dtype=torch.float32)
    start = torch.tensor(own[:3], dtype=torch.float32)
    image = torch.from_numpy(volume.data[0])[None, None]
    inverse = torch.tensor(np.linalg.inv(volume.affine), dtype=torch.float32)
    sizes = torch.tensor(volume.shape, dtype=torch.float32)
    parameters = torch.zeros(12, requires_grad=True)
    likeness = torch.tensor(0.0)
    for spacing, steps in LEVELS:
        places, target = _points(maps, spacing)
        fine = _smoothed(image, spacing, volume.spacing)
        optimiser = torch.optim.Adam([parameters], lr=0.02 if spacing > 8 else 0.005)
        for _ in range(steps):
            there = (places - centre) @ _matrix(parameters).T + start + 50 * parameters[:3]
            voxels = there @ inverse[:3, :3].T + inverse[:3, 3]
            grid = (2 * (voxels + 0.5) / sizes - 1).flip(-1)[None, None, None]
            found = F.grid_sample(fine, grid, align_corners=False).reshape(-1)
            likeness = torch.corrcoef(torch.stack([found, target]))[0, 1]
            optimiser.zero_grad()
            (-likeness).backward()
            optimiser.step()
    with torch.no_grad():
        matrix = np.eye(4)
        matrix[:3, :3] = _matrix(parameters).double().numpy()
        shift = (start + 50 * parameters[:3]).double().numpy()
        matrix[:3, 3] = shift - matrix[:3, :3] @ middle
    score = float(likeness.detach())
    if not score >= least:
        raise DataError(
            f"{what} could not be registered to MNI: the best correlation is {score:.2f}; look at "
            "its orientation, strip its skull first, or register it by another program"
        )
    return Registration(to_mni=np.linalg.inv(matrix), likeness=score)


def to_mni(volume: Volume, *, spacing: float = 1.0) -> Volume:
    """A scan in MNI space: registered, then resampled once (linear) on the usual grid.

    The grid covers 182 x 218 x 182 mm. Errors as `register_to_mni`.
    """
    found = register_to_mni(volume)
    affine, shape = mni_grid(spacing)
    moved = Volume(volume.data, found.to_mni @ volume.affine, volume.unit, volume.name)
    return Volume(sampled(moved, affine, shape)[None], affine, volume.unit, volume.name)


def _matrix(parameters):  # type: ignore[no-untyped-def]
    """(3, 3) of turns, logarithms of sizes, and shears: from MNI to the scan."""
    import torch

    a, b, c = parameters[3:6]
    zero = torch.zeros(())
    turn = torch.linalg.matrix_exp(
        torch.stack(
            [torch.stack([zero, -c, b]), torch.stack([c, zero, -a]), torch.stack([-b, a, zero])]
        )
    )
    p, q, r = parameters[9:12]
    one = torch.ones(())
    shear = torch.stack(
        [torch.stack([one, p, q]), torch.stack([zero, one, r]), torch.stack([zero, zero, one])]
    )
    return turn @ torch.diag(torch.exp(parameters[6:9])) @ shear


def _points(maps: dict[str, Volume], spacing: float):  # type: ignore[no-untyped-def]
    """Places (n, 3) in mm around the template's brain, and the template's values there.

    The rim outside the brain is dark in the template and holds the outline.
    """
    import torch
    from scipy.ndimage import gaussian_filter

    template = maps["t1"]
    step = max(1, round(spacing / template.spacing[0]))
    blurred = gaussian_filter(template.data[0], 0.4 * spacing / template.spacing[0])
    rim = gaussian_filter(maps["mask"].data[0], 2.0) > 0.1
    index = np.stack(np.meshgrid(*(np.arange(0, n, step) for n in template.shape), indexing="ij"))
    index = index.reshape(3, -1)
    index = index[:, rim[tuple(index)]]
    places = (template.affine[:3, :3] @ index + template.affine[:3, 3:]).T
    values = blurred[tuple(index)]
    return torch.tensor(places, dtype=torch.float32), torch.tensor(values, dtype=torch.float32)


def _smoothed(image, spacing: float, own: tuple[float, float, float]):  # type: ignore[no-untyped-def]
    """The scan, blurred like the template at this level."""
    import torch
    from scipy.ndimage import gaussian_filter

    sigma = [0.4 * spacing / mm for mm in own]
    return torch.from_numpy(gaussian_filter(image[0, 0].numpy(), sigma))[None, None]
