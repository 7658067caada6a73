"""Duplicates of pictures and shapes: planted ones are found, others are not."""

import io

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from neurodiff.geometry.mesh import sample_surface
from neurodiff.metrics.duplicates import (
    cosine_pairs,
    crop_pairs,
    exact_pairs,
    hash_pairs,
    is_flat,
    nearby_pairs,
    picture_hashes,
    thumbnail,
    windows,
)
from neurodiff.metrics.shape_descriptors import mesh_signature, shape_descriptor


def pictures(n, seed=0, side=128):
    """Smooth random pictures, 0 to 255."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        noise = [gaussian_filter(rng.standard_normal((side, side)), s) * s for s in (2, 5, 14)]
        total = sum(noise)
        out.append(np.clip(128 + 60 * total / total.std(), 0, 255))
    return out


def recompressed(picture, quality):
    file = io.BytesIO()
    PIL.Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file), np.float64)


def thumbs(some):
    return np.stack([thumbnail(one) for one in some])


def test_a_thumbnail_keeps_means_by_area():
    picture = np.arange(128.0 * 192).reshape(128, 192)
    small = thumbnail(picture)
    np.testing.assert_allclose(small, picture.reshape(64, 2, 64, 3).mean(axis=(1, 3)), rtol=1e-6)
    assert thumbnail(np.ones((30, 70))).mean() == pytest.approx(1)  # parts that share a pixel


def test_hashes_count_bits():
    """0b0111 and 0b0001 differ in two bits; all 64 of 0 and its complement."""
    first = np.array([7, 0], np.uint64)
    second = np.array([1, 2**64 - 1], np.uint64)
    found = hash_pairs(first, second, 64)
    assert found.value.reshape(2, 2).tolist() == [[2, 61], [1, 64]]
    assert list(zip(*hash_pairs(first, second, 1)[:2], strict=True)) == [(1, 0)]
    with pytest.raises(ValueError, match="65 bits"):
        hash_pairs(first, second, 65)


def test_a_hash_is_of_the_pattern_not_of_light_or_size():
    some = pictures(6)
    plain = picture_hashes(thumbs(some))
    assert (plain == picture_hashes(thumbs([0.5 * one + 30 for one in some]))).all()
    doubled = picture_hashes(thumbs([np.kron(one, np.ones((2, 2))) for one in some]))
    assert (plain == doubled).all()


def test_recompressed_pictures_are_near_and_others_are_not():
    some = pictures(40)
    a = picture_hashes(thumbs(some))
    b = picture_hashes(thumbs([recompressed(one, 20) for one in some]))
    found = hash_pairs(a, b, 8)
    assert list(zip(*found[:2], strict=True)) == [(k, k) for k in range(40)]


def test_crops_are_found_with_their_whole():
    some = pictures(12)
    boxes = [(k, 2 * k, int(128 * side)) for k, side in enumerate([0.65, 0.7, 0.75, 0.8])]
    crops = [some[k][top : top + n, left : left + n] for k, (top, left, n) in enumerate(boxes)]
    found = crop_pairs(thumbs(some), thumbs([*crops, *pictures(8, seed=1)]))
    assert list(zip(*found[:2], strict=True)) == [(k, k) for k in range(4)]
    assert (found.value > 0.95).all()


def test_windows_lie_in_the_picture_and_cover_it():
    some = np.array(windows())
    assert (some[:, :2] >= 0).all()
    assert (some[:, :2] + some[:, 2:] <= 1 + 1e-12).all()
    assert some[:, 2].min() == 0.435  # whose neighbourhood reaches 0.4
    assert len(some) == 510
    for column in (0, 1):
        assert some[:, column].max() == pytest.approx(1 - 0.435)


def test_flat_pictures_are_marked():
    assert is_flat(thumbs([np.full((20, 20), 7.0), *pictures(1)])).tolist() == [True, False]
    grey = thumbs([np.full((20, 20), 7.0)] * 2)
    assert len(crop_pairs(grey, grey).first) == 0


def test_cosines_need_a_centre():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 40), np.float32)
    common = np.full(40, 20.0, np.float32)
    near = x[:5] + 0.05 * rng.standard_normal((5, 40), np.float32)
    assert len(cosine_pairs(x + common, near + common, 0.95).first) == 250  # all alike
    found = cosine_pairs(x + common, near + common, 0.95, centre=(x + common).mean(axis=0))
    assert list(zip(*found[:2], strict=True)) == [(k, k) for k in range(5)]
    with pytest.raises(ValueError, match="not finite"):
        cosine_pairs(x, np.full((1, 40), np.nan, np.float32), 0.9)


def test_keys_that_are_none_equal_nothing():
    found = exact_pairs(["a", None, "b", "b"], ["b", None, "c"])
    assert list(zip(*found[:2], strict=True)) == [(2, 0), (3, 0)]


def torus(n=24, thin=0.3):
    import trimesh

    return trimesh.creation.torus(1.0, thin, major_sections=n, minor_sections=n)


def moved(mesh, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    turn = Rotation.random(rng=seed).as_matrix()
    order = rng.permutation(len(mesh.vertices))
    place = np.argsort(order)
    faces = place[np.asarray(mesh.faces)][rng.permutation(len(mesh.faces))]
    vertices = scale * np.asarray(mesh.vertices)[order] @ turn.T + rng.standard_normal(3)
    return vertices, np.roll(faces, 1, axis=1)


def test_a_signature_is_invariant_to_similarity_and_order():
    mesh = torus()
    plain = mesh_signature(np.asarray(mesh.vertices), np.asarray(mesh.faces))
    np.testing.assert_allclose(mesh_signature(*moved(mesh)), plain, atol=1e-9)
    vertices, faces = moved(mesh)
    mirrored = mesh_signature(vertices * [1, 1, -1], faces[:, ::-1])
    np.testing.assert_allclose(mirrored, plain, atol=1e-9)
    other = torus(thin=0.31)
    apart = mesh_signature(np.asarray(other.vertices), np.asarray(other.faces)) - plain
    assert np.abs(apart).max() > 3e-3


def test_moments_of_a_surface_in_closed_form():
    """A square plate of side 2 in z = 0: variance 1/3 along x and y, none along z."""
    vertices = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    found = mesh_signature(vertices, np.array([[0, 1, 2], [0, 2, 3]]))
    np.testing.assert_allclose(found[2:5], [0, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-12)
    with pytest.raises(ValueError, match="no area"):
        mesh_signature(np.zeros((3, 3)), np.array([[0, 1, 2]]))


def test_a_descriptor_is_of_the_shape_not_of_its_triangles():
    rng = np.random.default_rng(0)
    mesh, finer, other = torus(), torus(60), torus(thin=0.5)
    points = [sample_surface(one, 20_000, rng) for one in (mesh, finer, other)]
    points[1] = 5 * points[1] @ Rotation.random(rng=1).as_matrix().T + 3
    first, again, different = (shape_descriptor(one) for one in points)
    assert np.abs(first - again).max() < 0.008 < np.abs(first - different).max()
    found = nearby_pairs(first[None], np.stack([different, again]), 0.008)
    assert found.second.tolist() == [1]
    with pytest.raises(ValueError, match="coincide"):
        shape_descriptor(np.zeros((20, 3)))
