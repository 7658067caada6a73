"""Views of maps that turn (surfaces) or can be cut anywhere (volumes), one page each, by nilearn.

A page holds its scripts and asks for nothing from a network, which is checked before it is written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis.attribution_files import Placed, placed
from neurodiff.analysis.attribution_pictures import Scale, cut_at, legend_text
from neurodiff.analysis.attribution_surfaces import sides_of
from neurodiff.core.atomic import atomic_write
from neurodiff.core.errors import DataError

if TYPE_CHECKING:
    from neurodiff.analysis.attribution_maps import BrainMap

# what a browser fetches by itself; a link that a reader may follow (<a href>) is not
_REMOTE = re.compile(
    r"""<(?:script|img|iframe|video|audio|source|embed|link)\b[^>]*?\b(?:src|href)\s*=\s*"""
    r"""["']?\s*(?:https?:)?//|@import\s+(?:url\()?["']?(?:https?:)?//""",
    re.IGNORECASE,
)
_ICON = re.compile(r"""<link\b[^>]*\brel=["']icon["'][^>]*>""")  # nilearn's is on its web site


def interactive(one: BrainMap, space: Any, path: str | Path, *, below: Any = None) -> Path:
    """A page with a map that can be turned (surface) or cut anywhere (volume), by nilearn.

    The page holds its scripts and asks for nothing from a network, which is checked.

    Raises
    ------
    UsageError : a mesh coarser than fsaverage5.
    DataError : features without a place, or the page would ask for something from a network.
    """
    at = placed(one.values, space)
    scale = Scale(one.values, probability=one.is_probability)
    name = one.title.replace(f" · {one.statistic}", "", 1)
    title = f"{name}: {legend_text(one)}"
    shared = {"cmap": scale.colours, "symmetric_cmap": scale.signed, "title": title}
    limits = {"vmin": scale.low, "vmax": scale.high}
    if at.kind != "voxels":
        from nilearn.plotting import view_surf

        mesh, values, shade = _both_hemispheres(at)
        page = view_surf(
            mesh, values, bg_map=shade, threshold=None, title_fontsize=15, **shared, **limits
        )
    else:
        import nibabel
        from nilearn.plotting import view_img

        volume, affine = at.values
        image = nibabel.Nifti1Image(np.nan_to_num(volume), affine)
        page = view_img(
            image, bg_img=below, black_bg=False, threshold=1e-12,
            cut_coords=cut_at(volume, affine), **shared,
            **limits,
        )  # fmt: skip
    text = _ICON.sub('<link rel="icon" href="data:,">', page.get_standalone())
    remote = _REMOTE.search(text)
    if remote is not None:
        raise DataError(f"the page of {one.title} asks for {remote[0]}; it was not written")
    path = Path(path)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
    return path


def _both_hemispheres(at: Placed) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """One mesh of both inflated hemispheres beside each other, its values, its folds."""
    sides = sides_of(at)
    points, faces, before = [], [], 0
    for side, one in sides.items():
        xyz = np.asarray(one.points, np.float32)
        shift = -xyz[:, 0].max() - 4 if side == "L" else -xyz[:, 0].min() + 4
        points.append(xyz + np.array([shift, 0, 0], np.float32))
        faces.append(one.triangles + before)
        before += len(xyz)
    mesh = [np.concatenate(points), np.concatenate(faces)]
    return (
        mesh,
        np.concatenate([one.values for one in sides.values()]),
        np.concatenate([one.shade for one in sides.values()]),
    )
