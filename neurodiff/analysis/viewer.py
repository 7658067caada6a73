"""What the page needs to rotate objects: packed meshes, pictures and one packed viewer script.

A mesh travels as gzip of little-endian uint16: vertices quantised over their bounding box
(error at most half a 65535th of its side), then faces; about 15 kB for 2,500 faces. The script
is plotly's own bundle (MIT licence, its notice stays inside), gzip again: 2 MB instead of 4.8,
and the browser unpacks it at the first click only. Nothing here touches the network.
"""

from __future__ import annotations

import base64
import gzip
import io
import re
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

MAX_FACES = 2500
MAX_SIDE = 320


def pack_mesh(mesh: Any, *, max_faces: int = MAX_FACES) -> dict[str, Any]:
    """Turn a mesh into a JSON-ready record for the viewer.

    Parameters
    ----------
    mesh : trimesh.Trimesh or None; vertices (vertices, 3) with y up.
    max_faces : meshes with more faces are thinned by quadric decimation first.

    Returns
    -------
    ``vertices`` and ``faces`` counts of the packed mesh, ``faces_before`` of the given one,
    ``low`` and ``high`` (3,) of the bounding box and ``data`` (base64 of gzip of uint16:
    vertices*3 then faces*3). ``{"faces": 0, ...}`` without data for an empty mesh.

    Raises
    ------
    ValueError : a vertex is not finite, or a face points past the vertices.
    """
    if is_empty(mesh):
        return {"vertices": 0, "faces": 0, "faces_before": 0}
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    faces = np.asarray(mesh.faces, dtype=np.int64)
    if not np.isfinite(vertices).all():
        raise ValueError("a mesh of the report has vertices that are not finite; drop that item")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(
            f"a mesh of the report has {len(vertices)} vertices and a face of vertex {faces.max()}"
        )
    before = len(faces)
    if before > max_faces:
        vertices, faces = _decimate(vertices, faces, max_faces)
    used, faces = np.unique(faces, return_inverse=True)
    vertices, faces = vertices[used], faces.reshape(-1, 3)
    if len(vertices) > 65535:  # only if decimation could not thin it; keeps uint16 true
        raise ValueError(f"a mesh of the report keeps {len(vertices)} vertices; at most 65535")
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    side = np.where(high > low, high - low, 1.0)
    quantised = np.round((vertices - low) / side * 65535).astype("<u2")
    data = gzip.compress(quantised.tobytes() + faces.astype("<u2").tobytes(), 9, mtime=0)
    return {
        "vertices": len(vertices),
        "faces": len(faces),
        "faces_before": before,
        "low": [round(float(v), 6) for v in low],
        "high": [round(float(v), 6) for v in high],
        "data": base64.b64encode(data).decode("ascii"),
    }


def is_empty(mesh: Any) -> bool:
    """Say whether a mesh is missing or has no face (a reconstruction can fail this way)."""
    return mesh is None or len(mesh.faces) == 0 or len(mesh.vertices) == 0


def _decimate(vertices: np.ndarray, faces: np.ndarray, max_faces: int):
    import open3d

    thick = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(vertices), open3d.utility.Vector3iVector(faces)
    )
    thick.merge_close_vertices(1e-7 * float(np.ptp(vertices, axis=0).max()))
    thin = thick.simplify_quadric_decimation(max_faces)
    result = np.asarray(thin.vertices), np.asarray(thin.triangles).astype(np.int64)
    # A soup of unconnected triangles can collapse to nothing: then the full mesh is shown.
    return result if len(result[1]) else (vertices, faces)


def picture_uri(image: Image.Image, *, max_side: int = MAX_SIDE) -> str:
    """Encode a picture as a PNG data address, at most ``max_side`` pixels a side."""
    shown = image.convert("RGB")
    if max(shown.size) > max_side:
        shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail_uri(image: Image.Image, *, max_side: int = 112) -> str:
    """A picture of a grid as a JPEG data address: about 4 kB, so that a page holds a thousand."""
    shown = image.convert("RGB")
    if max(shown.size) > max_side:
        shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=1)
def viewer_bundle() -> tuple[str, str]:
    """Plotly's script as (base64 of gzip, version of plotly.js)."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    found = re.search(r"plotly\.js v([0-9.]+)", script[:500])
    packed = base64.b64encode(gzip.compress(script.encode("utf-8"), 9, mtime=0))
    return packed.decode("ascii"), found.group(1) if found else "unknown"
