"""Shape of a region (IBSI 3.1): mesh, axes, enclosing bodies, and how intensity lies within it."""

from __future__ import annotations

import math

import numpy as np

from neurodiff.metrics.radiomics_chain import Region

# the transform of Moran's I is of twice the box; more than this is 1 GB of work
_MAX_TRANSFORM = 2**25


def morphology(region: Region) -> dict[str, float]:
    """Shape features, names ``morph_*``; lengths in mm.

    Beside IBSI's: the number of voxels, and pyradiomics' longest diameters within one slice
    (``morph_diam_slice``), one coronal plane (``_column``: the row stays) and one sagittal plane
    (``_row``: the column stays). The enclosing bodies
    without a reference value (oriented box, minimum ellipsoid) are left out.
    """
    vertices, faces = surface(region.morphological, region.spacing)
    corner = vertices[faces]
    area = float(np.linalg.norm(_cross(corner), axis=1).sum()) / 2
    volume = abs(float((corner[:, 0] * np.cross(corner[:, 1], corner[:, 2])).sum())) / 6
    voxels = int(region.morphological.sum())
    sphere = (36 * math.pi * volume**2) ** (1 / 3)  # area of the sphere of this volume
    result = {
        "morph_volume": volume,
        "morph_voxels": float(voxels),
        "morph_vol_approx": voxels * region.voxel_volume(),
        "morph_area_mesh": area,
        "morph_av": area / volume,
        "morph_comp_1": volume / (math.sqrt(math.pi) * area**1.5),
        "morph_comp_2": (sphere / area) ** 3,
        "morph_sph_dispr": area / sphere,
        "morph_sphericity": sphere / area,
        "morph_asphericity": area / sphere - 1,
    }
    result |= _axes(region, volume, area)
    result |= _boxes(vertices, volume, area)
    result |= _weights(region, volume)
    return result


def surface(mask: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Closed triangle mesh halfway between the voxels of a mask and those outside.

    Returns
    -------
    vertices in mm (n, 3) and faces (m, 3).
    """
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    return (vertices.astype(np.float64) - 1) * np.array(spacing), faces


def _cross(corner: np.ndarray) -> np.ndarray:
    return np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])


def _axes(region: Region, volume: float, area: float) -> dict[str, float]:
    """Principal axes of the voxels' centres and the ellipsoid that they span.

    The covariance is that of a sample (n - 1), which is what IBSI's values were made with;
    pyradiomics divides by n.
    """
    points = np.argwhere(region.morphological) * np.array(region.spacing)
    nan = math.nan
    if len(points) < 2:
        names = ("pca_maj_axis", "pca_min_axis", "pca_least_axis", "pca_elongation")
        names = (*names, "pca_flatness", "vol_dens_aee", "area_dens_aee")
        return {f"morph_{name}": nan for name in names}
    centred = points - points.mean(axis=0)
    spread = np.linalg.eigvalsh(centred.T @ centred / (len(points) - 1))
    # what rounding leaves of a flat direction is no axis
    spread[spread < 1e-12 * spread[-1]] = 0.0
    least, minor, major = np.sqrt(spread).tolist()
    a, b, c = 2 * major, 2 * minor, 2 * least
    flat = c == 0
    return {
        "morph_pca_maj_axis": 4 * major,
        "morph_pca_min_axis": 4 * minor,
        "morph_pca_least_axis": 4 * least,
        "morph_pca_elongation": minor / major,
        "morph_pca_flatness": least / major,
        "morph_vol_dens_aee": nan if flat else volume / (4 / 3 * math.pi * a * b * c),
        "morph_area_dens_aee": nan if flat else area / ellipsoid_area(a, b, c),
    }


def ellipsoid_area(a: float, b: float, c: float) -> float:
    """Area of an ellipsoid by the series that IBSI prescribes, semi-axes a >= b >= c > 0.

    Twenty terms of 4 pi a b sum (alpha beta)^n / (1 - 4 n^2) P_n((alpha^2 + beta^2) / (2 alpha
    beta)), alpha^2 = 1 - b^2/a^2 and beta^2 = 1 - c^2/a^2. It is exact for a sphere only: the
    exact area of the digital phantom's ellipsoid is 4 % larger, and the reference value of
    ``morph_area_dens_aee`` is met with the series alone.
    """
    alpha2, beta2 = 1 - (b / a) ** 2, 1 - (c / a) ** 2
    product2, mean = alpha2 * beta2, (alpha2 + beta2) / 2
    # Legendre's recurrence for (alpha beta)^n P_n, which does not divide by alpha beta
    before, now, total = 1.0, mean, 1.0
    for n in range(1, 21):
        total += now / (1 - 4 * n * n)
        before, now = now, ((2 * n + 1) * mean * now - n * product2 * before) / (n + 1)
    return 4 * math.pi * a * b * total


def _boxes(vertices: np.ndarray, volume: float, area: float) -> dict[str, float]:
    from scipy.spatial import ConvexHull

    x, y, z = np.ptp(vertices, axis=0).tolist()
    hull = ConvexHull(vertices)
    result = {
        "morph_diam": longest(vertices[hull.vertices]),
        "morph_vol_dens_aabb": volume / (x * y * z),
        "morph_area_dens_aabb": area / (2 * (x * y + y * z + x * z)),
        "morph_vol_dens_conv_hull": volume / float(hull.volume),
        "morph_area_dens_conv_hull": area / float(hull.area),
    }
    for axis, name in enumerate(("slice", "column", "row")):
        result[f"morph_diam_{name}"] = _longest_within(vertices, axis)
    return result


def longest(points: np.ndarray) -> float:
    """Greatest distance between any two of the points."""
    from scipy.spatial.distance import cdist

    best = 0.0
    for start in range(0, len(points), 1024):
        best = max(best, float(cdist(points[start : start + 1024], points).max()))
    return best


def _longest_within(vertices: np.ndarray, axis: int) -> float:
    """Longest distance between vertices in one plane across the axis."""
    from scipy.spatial import ConvexHull, QhullError

    order = np.argsort(vertices[:, axis], kind="stable")
    along = vertices[order, axis]
    cuts = np.flatnonzero(np.diff(along) > 1e-6) + 1
    best = 0.0
    for plane in np.split(np.delete(vertices[order], axis, axis=1), cuts):
        if np.linalg.norm(np.ptp(plane, axis=0)) <= best:  # even its box is shorter
            continue
        try:
            ring = plane[ConvexHull(plane).vertices]
        except QhullError:  # fewer than three points, or all on a line
            ring = plane[np.lexsort(plane.T)[[0, -1]]]
        best = max(best, longest(ring))
    return best


def _weights(region: Region, volume: float) -> dict[str, float]:
    """How the intensities lie in the region."""
    values = region.values[region.intensity]
    spacing = np.array(region.spacing)
    shape = np.argwhere(region.morphological).mean(axis=0) * spacing
    total = values.sum()
    shift = math.nan
    if abs(total) > 1e-12 * np.abs(values).sum():
        weighted = (np.argwhere(region.intensity) * values[:, None]).sum(axis=0) / total
        shift = float(np.linalg.norm(weighted * spacing - shape))
    moran, geary = autocorrelation(region)
    return {
        "morph_com": shift,
        "morph_integ_int": volume * float(values.mean()),
        "morph_moran_i": moran,
        "morph_geary_c": geary,
    }


def autocorrelation(region: Region) -> tuple[float, float]:
    """Moran's I and Geary's C of all pairs of voxels, weighted by one over their distance.

    The sums over n^2 pairs are convolutions with 1/distance, computed exactly (to rounding) by
    Fourier transforms of the box padded to twice its size, in n log n.
    """
    from scipy.fft import next_fast_len, rfftn

    inside = region.intensity
    values = region.values[inside]
    n = values.size
    if n < 2 or values.max() == values.min():
        return math.nan, math.nan
    sizes = [next_fast_len(2 * s - 1, real=True) for s in inside.shape]
    if math.prod(sizes) > _MAX_TRANSFORM:
        return math.nan, math.nan
    centred = np.zeros(inside.shape)
    centred[inside] = values - values.mean()
    variance = float((centred**2).sum())
    offsets = [
        np.minimum(np.arange(s), s - np.arange(s)) * h
        for s, h in zip(sizes, region.spacing, strict=True)
    ]
    a, b, c = np.meshgrid(*offsets, indexing="ij", sparse=True)
    distance = np.sqrt(a**2 + b**2 + c**2)
    distance[0, 0, 0] = np.inf
    kernel = rfftn(1 / distance).real  # even, so real
    ones, ours = rfftn(inside.astype(np.float64), sizes), rfftn(centred, sizes)
    squares = rfftn(centred**2, sizes)
    # the last axis holds half of the spectrum: all but its ends count twice
    twice = np.full(kernel.shape[2], 2.0)
    twice[0] = 1.0
    if sizes[2] % 2 == 0:
        twice[-1] = 1.0
    kernel *= twice / math.prod(sizes)
    weight = float((kernel * np.abs(ones) ** 2).sum())
    cross = float((kernel * np.abs(ours) ** 2).sum())
    own = float((kernel * (ones.conj() * squares).real).sum())
    return n / weight * cross / variance, (n - 1) / weight * (own - cross) / variance
