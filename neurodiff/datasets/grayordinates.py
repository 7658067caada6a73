"""Space of a whole CIFTI file: cortex on fsLR-32k and, where it has them, subcortical voxels.

The 91,282 grayordinates of fMRIPrep's ``--cifti-output 91k`` are 59,412 cortical vertices and
31,870 voxels of 19 structures; which voxels is written in every such file, and read from it.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from neurodiff.core.errors import DataError
from neurodiff.core.spaces import checked_values
from neurodiff.datasets.cifti import CORTEX, open_cifti, surface_vertices
from neurodiff.datasets.cortex_maps import surface_file
from neurodiff.datasets.fsaverage import joined_graphs, mesh_graph, open_mesh
from neurodiff.datasets.surface import load_grayordinates

_PREFIX = "CIFTI_STRUCTURE_"


class GrayordinateSpace:
    """The places of a CIFTI file, in its order.

    Parameters
    ----------
    axis : nibabel's ``BrainModelAxis``.

    Raises
    ------
    DataError : a surface that is not fsLR-32k, or no place at all.
    """

    fill = float("nan")

    def __init__(self, axis: Any, name: str = "grayordinates") -> None:
        if not len(axis):
            raise DataError("the brain axis has no place; give one with vertices or voxels")
        if axis.surface_mask.any():
            surface_vertices(name, axis)  # refuses another mesh
        self.axis, self.name = axis, name
        self.n_features = len(axis)

    @classmethod
    def open(cls, path: str | os.PathLike[str], name: str = "grayordinates") -> GrayordinateSpace:
        """The places of a ``.dtseries.nii``, ``.dscalar.nii`` or ``.dlabel.nii``.

        Raises
        ------
        MissingDataError, DataError : no such file, not CIFTI-2, or another surface.
        """
        return cls(open_cifti(path)[2], name)

    def fingerprint(self) -> str:
        """Identity of the space, from its structures, vertices and voxels."""
        axis, digest = self.axis, hashlib.sha256(b"grayordinates")
        digest.update("\n".join(map(str, axis.name)).encode())
        for array in (axis.vertex, axis.voxel):
            digest.update(np.ascontiguousarray(array, "<i8").data)
        if self.has_voxels:
            digest.update(np.asarray(axis.affine, "<f8").tobytes())
        return digest.hexdigest()[:16]

    def to_image(self, values: Any) -> np.ndarray:
        """``values`` (n_features,) unchanged, after a check of the length."""
        return checked_values(values, self)

    @property
    def has_voxels(self) -> bool:
        return bool(self.axis.volume_mask.any())

    @property
    def places(self) -> np.ndarray:
        """(voxels, 3) x, y, z in mm of the subcortical features, in their order."""
        axis = self.axis
        index = axis.voxel[axis.volume_mask]
        return index @ np.asarray(axis.affine)[:3, :3].T + np.asarray(axis.affine)[:3, 3]

    def structures(self) -> dict[str, np.ndarray]:
        """Subcortical structure -> its features, e.g. ``"AMYGDALA_LEFT"``; to attribute to."""
        names = np.asarray(self.axis.name)[self.axis.volume_mask]
        return {
            str(name).removeprefix(_PREFIX): np.asarray(self.axis.name) == name
            for name in dict.fromkeys(names)
        }

    def cortical(self) -> tuple[np.ndarray, np.ndarray]:
        """Cortical features, and which of the 59,412 cortical grayordinates each is.

        Vertices of the medial wall, which a file may hold, are left out.
        """
        gray = load_grayordinates()
        columns, places = [], []
        for side, vertices, first in (("L", gray.left, 0), ("R", gray.right, len(gray.left))):
            mine = np.flatnonzero(np.asarray(self.axis.name) == CORTEX[side])
            where = np.searchsorted(vertices, self.axis.vertex[mine])
            where = np.minimum(where, len(vertices) - 1)
            known = vertices[where] == self.axis.vertex[mine]
            columns.append(mine[known])
            places.append(where[known] + first)
        return np.concatenate(columns), np.concatenate(places)

    def on_cortex(self, values: np.ndarray) -> np.ndarray:
        """(59412,) of all cortical grayordinates, NaN where the space has none."""
        whole = np.full(len(load_grayordinates().mesh), np.nan, np.float32)
        columns, grayordinates = self.cortical()
        whole[grayordinates] = checked_values(values, self)[columns]
        return whole

    def in_volume(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Volume (i, j, k) of the subcortical voxels, NaN elsewhere, and its affine (4, 4)."""
        axis = self.axis
        volume = np.full(axis.volume_shape, np.nan, np.float32)
        volume[tuple(axis.voxel[axis.volume_mask].T)] = checked_values(values, self)[
            axis.volume_mask
        ]
        return volume, np.asarray(axis.affine, float)

    def __repr__(self) -> str:
        voxels = int(self.axis.volume_mask.sum())
        return f"GrayordinateSpace({self.n_features}, {voxels} of them voxels, name={self.name!r})"


@lru_cache(maxsize=1)
def load_cortex_graph() -> csr_array:
    """Edge lengths (mm) between the 59,412 cortical grayordinates on the S1200 midthickness."""
    gray = load_grayordinates()
    parts = []
    for side, kept in (("L", gray.left), ("R", gray.right)):
        points, triangles = open_mesh(surface_file(side, "midthickness"))
        parts.append(mesh_graph(points, triangles, kept))
    return joined_graphs(parts)
