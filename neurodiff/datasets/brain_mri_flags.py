"""What is unusual about a brain scan, before it spoils a model that expects another kind.

Each `Flag` is a name and a sentence. A mirror image cannot be told from the picture: the template
is symmetric, and people are nearly so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from neurodiff.core.volume import Volume
from neurodiff.datasets.mni import mni_maps, sampled

BRAIN_ML = (700.0, 2300.0)  # a skull-stripped adult brain with its fluid; the template has 1,880
COARSE_MM = 4.0
MNI_OVERLAP = 0.87  # Dice with the brain of MNI: 0.96 in place, 0.90 moved by 10 mm, 0.85 by 15 mm
MNI_LIKENESS = 0.35  # correlation with the template there, at 4 mm: 0.7 in place, 0.35 by 15 mm
BACKGROUND_SHARE = 0.15  # at least this share of voxels is exactly the background once stripped
EDGE_SHARE = 0.02

Stage = Literal["scan", "prepared"]


@dataclass(frozen=True)
class Flag:
    """A property that a published model does not expect: ``name`` for tables, ``text`` to read."""

    name: str
    text: str


def flags_of(volume: Volume, *, stage: Stage = "scan") -> list[Flag]:
    """Everything unusual about one volume; an empty list where nothing is.

    Parameters
    ----------
    volume : finite; one channel.
    stage : ``"prepared"`` expects values from 0 to 1 as well.
    """
    values = volume.data[0]
    low, high = float(values.min()), float(values.max())
    found = [Flag("header", note) for note in volume.notes]
    if high == low:
        return [*found, Flag("constant", f"every voxel is {low:g}; there is no picture")]
    found += _range(values, stage) + _orientation(volume)
    tissue = tissue_of(values)
    stripped = _not_stripped(volume, tissue)
    found += stripped
    found += _not_in_mni(volume, tissue, is_stripped=not stripped)
    found += _cut(volume, tissue, is_stripped=not stripped)
    return found


def flag_names(flags: list[Flag]) -> str:
    """Names for a cell of a table, ``""`` where there is none."""
    return ", ".join(dict.fromkeys(flag.name for flag in flags))


def tissue_of(values: np.ndarray) -> np.ndarray:
    """Voxels (i, j, k) that are not background: above a tenth of the brightest percentile.

    The background is the commonest value of the border; without one, the darkest.
    """
    background = background_of(values)
    span = float(np.percentile(values, 99.5)) - background
    if span <= 0:  # fewer than 0.5 % of the voxels hold anything
        span = float(values.max()) - background
    return values > background + 0.1 * span


def background_of(values: np.ndarray) -> float:
    """Median of the six faces of the box."""
    faces = [values[[0, -1]].ravel(), values[:, [0, -1]].ravel(), values[:, :, [0, -1]].ravel()]
    return float(np.median(np.concatenate(faces)))


def _range(values: np.ndarray, stage: Stage) -> list[Flag]:
    low, high = float(values.min()), float(values.max())
    if stage == "prepared":
        if low < -1e-3 or high > 1.001 or high < 0.5:
            text = f"values run from {low:.3g} to {high:.3g}; a prepared scan has 0 to 1"
            return [Flag("range", text)]
        return []
    found = []
    if low < 0:
        share = float((values < 0).mean())
        text = f"{share:.1%} of the voxels are negative (to {low:.3g}); MR magnitudes are not"
        found.append(Flag("range", text))
    top = float(np.percentile(values, 99.5))
    if top > 0 and high > 10 * top:
        text = (
            f"the brightest voxel ({high:.3g}) is {high / top:.0f} times the 99.5th percentile; "
            "scaling by the maximum would darken the brain"
        )
        found.append(Flag("range", text))
    return found


def _orientation(volume: Volume) -> list[Flag]:
    found = []
    if volume.orientation != "RAS":
        text = f"the axes run {volume.orientation}; they are turned to RAS when it is prepared"
        found.append(Flag("orientation", text))
    if volume.obliqueness > 15:
        text = f"the axes are turned by {volume.obliqueness:.0f} degrees from the anatomical ones"
        found.append(Flag("oblique", text))
    return found


def _not_stripped(volume: Volume, tissue: np.ndarray) -> list[Flag]:
    values = volume.data[0]
    amount = float(tissue.sum()) * volume.voxel_ml
    flat = float((values == background_of(values)).mean())
    if flat < BACKGROUND_SHARE:
        text = f"only {flat:.0%} of the voxels are pure background: it is not skull-stripped"
        return [Flag("skull", text)]
    if amount > BRAIN_ML[1]:
        text = (
            f"{amount:.0f} ml are above background, and a brain has at most {BRAIN_ML[1]:.0f}: it "
            "is not skull-stripped"
        )
        return [Flag("skull", text)]
    if amount < BRAIN_ML[0]:
        text = f"{amount:.0f} ml are above background, and a brain has at least {BRAIN_ML[0]:.0f}"
        return [Flag("size", text)]
    return []


def _not_in_mni(volume: Volume, tissue: np.ndarray, *, is_stripped: bool) -> list[Flag]:
    """Overlap and likeness with the template at 4 mm, through both affines."""
    maps = mni_maps(2)
    low, high = np.array([-90, -126, -90]), np.array([90, 90, 100])
    shape = tuple(((high - low) / COARSE_MM).astype(int))
    affine = np.diag([COARSE_MM] * 3 + [1.0])
    affine[:3, 3] = low
    step = [
        min(n, max(1, round(COARSE_MM / s)))
        for n, s in zip(volume.shape, volume.spacing, strict=True)
    ]
    small = Volume(
        _block_mean(volume.data[0], step)[None], _block_affine(volume.affine, step), volume.unit
    )
    inside = Volume(_block_mean(tissue.astype(np.float32), step)[None], small.affine)
    brain = sampled(maps["mask"], affine, shape) > 0.5
    picture, there = sampled(small, affine, shape), sampled(inside, affine, shape) > 0.5
    template = sampled(maps["t1"], affine, shape)
    likeness = _correlation(picture[brain], template[brain])
    overlap = 2 * float((there & brain).sum()) / max(1.0, float(there.sum() + brain.sum()))
    if is_stripped and overlap < MNI_OVERLAP:
        text = f"its brain and that of MNI overlap by {overlap:.2f} (Dice): it is not in MNI space"
        return [Flag("space", text)]
    if likeness < MNI_LIKENESS:
        text = (
            f"it correlates by {likeness:.2f} with the MNI template inside its brain: it is not in "
            "MNI space, or no T1-weighted image"
        )
        return [Flag("space", text)]
    return []


def _cut(volume: Volume, tissue: np.ndarray, *, is_stripped: bool) -> list[Flag]:
    if not is_stripped:  # a head may well leave the picture at the neck
        return []
    found = []
    for axis, letter in enumerate("ijk"):
        for side, place in (("first", 0), ("last", -1)):
            share = float(np.take(tissue, place, axis=axis).mean())
            if share > EDGE_SHARE:
                text = (
                    f"{share:.0%} of the {side} slice of axis {letter} is tissue (the volume covers"
                    f" {volume.extent[axis]:.0f} mm there): the brain is cut off"
                )
                found.append(Flag("cut", text))
    return found


def _block_mean(values: np.ndarray, step: list[int]) -> np.ndarray:
    """Means of blocks of voxels; a rest at the end is left out."""
    i, j, k = (n // s for n, s in zip(values.shape, step, strict=True))
    whole = values[: i * step[0], : j * step[1], : k * step[2]]
    blocks = whole.reshape(i, step[0], j, step[1], k, step[2])
    return np.ascontiguousarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))


def _block_affine(affine: np.ndarray, step: list[int]) -> np.ndarray:
    middle = np.array([(s - 1) / 2 for s in step] + [1.0])
    out = affine @ np.diag([*map(float, step), 1.0])
    out[:3, 3] = (affine @ middle)[:3]
    return out


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
