"""Surfaces other than the visual flat map: fsaverage, grayordinates with voxels, label files."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nibabel.cifti2 import BrainModelAxis
from nibabel.gifti import GiftiDataArray, GiftiImage
from scipy.sparse import csr_array

from neurodiff.analysis import attribution_pictures
from neurodiff.analysis.attribution_files import placed
from neurodiff.analysis.attribution_labels import colours_of, write_labels
from neurodiff.analysis.attribution_maps import BrainMap, write_maps
from neurodiff.analysis.attribution_pictures import picture
from neurodiff.analysis.attribution_surfaces import sides_of, words_of
from neurodiff.analysis.category_searchlight import category_searchlight
from neurodiff.analysis.neighbourhoods import BOTH, SURFACE, kind_of, neighbourhoods, surface_discs
from neurodiff.analysis.searchlight import searchlight
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace, SubSpace
from neurodiff.datasets.fsaverage import N_FSAVERAGE5, edge_lengths, open_mesh, packaged_mesh
from neurodiff.datasets.grayordinates import GrayordinateSpace
from neurodiff.datasets.localisers import rois_for
from neurodiff.datasets.nsd_rois import FsaverageSpace
from neurodiff.datasets.surface import (
    N_GRAYORDINATES,
    N_MESH,
    FlatMapSpace,
    load_grayordinates,
    load_visual_cortex,
)


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load("attribution_results").made
linear_problem = _load("encoding_subjects").linear_problem


def recording_in(space, rois):
    trials = pd.DataFrame({"stimulus": ["a", "b"], "subject": "sub-01"})
    data = np.zeros((2, space.n_features), np.float32)
    return Recording(data, trials, rois, space, simulated=True, name="made")


def occipital5(count):
    """The hindmost vertices of each hemisphere of fsaverage5."""
    masks = []
    for side in ("left", "right"):
        order = np.argsort(packaged_mesh(f"white_{side}")[0][:, 1])
        mask = np.zeros(N_FSAVERAGE5, bool)
        mask[order[:count]] = True
        masks.append(mask)
    return FsaverageSpace(*masks)


def write_surface(path, points, triangles):
    arrays = [
        GiftiDataArray(np.asarray(points, np.float32), intent="NIFTI_INTENT_POINTSET",
                       datatype="NIFTI_TYPE_FLOAT32"),
        GiftiDataArray(np.asarray(triangles, np.int32), intent="NIFTI_INTENT_TRIANGLE",
                       datatype="NIFTI_TYPE_INT32"),
    ]  # fmt: skip
    nibabel.save(GiftiImage(darrays=arrays), path)
    return path


def strip(n):
    """A strip of n vertices, 3 mm apart, and the two sides of its zigzag."""
    points = np.array([[3.0 * (k // 2), 3.0 * (k % 2), 0.0] for k in range(n)])
    return points, np.array([[k, k + 1, k + 2] for k in range(n - 2)])


# ------------------------------------------------------------------------------------ fsaverage


def test_discs_on_fsaverage5_follow_its_own_mesh():
    space = occipital5(300)
    assert kind_of(space) == SURFACE
    near = neighbourhoods(space, 9.0)
    assert near.shape == (600, 600)
    assert (near != near.T).nnz == 0
    assert near[:300, 300:].nnz == 0  # nothing crosses between hemispheres
    points = (packaged_mesh("white_left")[0] + packaged_mesh("pial_left")[0]) / 2
    places = points[space.masks[0]]
    row, column = near[:300, :300].nonzero()
    assert np.linalg.norm(places[row] - places[column], axis=1).max() <= 9.0
    part = SubSpace(space, np.arange(0, 600, 7))
    expected = near.toarray()[::7, ::7]
    np.testing.assert_array_equal(neighbourhoods(part, 9.0).toarray(), expected)


def test_another_mesh_comes_from_the_user_s_files(tmp_path):
    files = [write_surface(tmp_path / f"{s}.surf.gii", *strip(40)) for s in ("lh", "rh")]
    space = FsaverageSpace(np.arange(40) < 30, np.arange(40) >= 20)
    with pytest.raises(UsageError, match="give surface= the GIfTI files of both hemispheres"):
        neighbourhoods(space, 4.0)
    lengths = edge_lengths(space, files).toarray()
    assert lengths[0, 1] == lengths[0, 2] == 3.0
    assert lengths[1, 2] == pytest.approx(np.sqrt(18))
    near = neighbourhoods(space, 3.5, surface=files)
    assert np.diff(near.indptr)[10] == 4  # itself, across, and one on either side
    for bad, message in (
        (files[:1], "two GIfTI files"),
        (str(files[0]), "two GIfTI files"),
        ([files[0], write_surface(tmp_path / "x.surf.gii", *strip(12))], "has 12 vertices"),
    ):
        with pytest.raises((UsageError, DataError), match=message):
            neighbourhoods(space, 3.5, surface=bad)
    with pytest.raises(UsageError, match="surface is of recordings on fsaverage"):
        neighbourhoods(MaskSpace(np.ones((2, 2, 2), bool), np.eye(4)), 3.0, surface=files)


def test_hostile_surfaces_are_one_sentence(tmp_path):
    points, triangles = strip(6)
    beyond = write_surface(tmp_path / "a.surf.gii", points, triangles + 5)
    with pytest.raises(DataError, match="triangles of points that it does not have"):
        open_mesh(beyond)
    unknown = write_surface(tmp_path / "b.surf.gii", points * np.nan, triangles)
    with pytest.raises(DataError, match="write it again"):
        open_mesh(unknown)
    only = GiftiImage(darrays=[GiftiDataArray(np.zeros(6, np.float32), intent="NIFTI_INTENT_NONE",
                                              datatype="NIFTI_TYPE_FLOAT32")])  # fmt: skip
    nibabel.save(only, tmp_path / "c.func.gii")
    with pytest.raises(DataError, match=r"holds no surface"):
        open_mesh(tmp_path / "c.func.gii")
    (tmp_path / "d.surf.gii").write_text("<GIFTI>")
    with pytest.raises(DataError):
        open_mesh(tmp_path / "d.surf.gii")


def on_strips(tmp_path, **options):
    """Two hemispheres of 60: "first" fills the left one, nothing is in the right one."""
    files = [write_surface(tmp_path / f"{s}.surf.gii", *strip(60)) for s in ("lh", "rh")]
    space = FsaverageSpace(np.ones(60, bool), np.ones(60, bool))
    problem = linear_problem(carries=("first", None), vertices=60, noise=0.5, draws=49, **options)
    test = Recording.from_arrays(
        problem.test.array(), problem.test.trials, dict(problem.rois), space
    )
    train = Recording.from_arrays(
        problem.train.array(), problem.train.trials, dict(problem.rois), space
    )
    return replace(problem, test=test, train=train), files


@pytest.mark.parametrize("score", ["rsa", "identification"])
def test_a_planted_hemisphere_is_found_on_fsaverage(tmp_path, score):
    problem, files = on_strips(tmp_path, n_train=60)
    result = searchlight(problem, radius=12.0, least=5, surface=files, score=score)
    table = result.table.set_index(["stage", "roi"])
    assert table.loc[("first", "first")]["p_max"] == 0.02
    assert table.loc[("first", "empty")]["share_significant"] == 0
    assert any("searchlight on the surface" in note for note in result.notes)


def test_categories_are_searched_on_fsaverage_too(tmp_path):
    problem, files = on_strips(tmp_path, with_train=True)
    shown = problem.test.trials["stimulus"].astype(str)
    kinds = {name: ("a", "b")[k % 2] for k, name in enumerate(dict.fromkeys(shown))}
    data = problem.test.array().copy()
    data[shown.map(kinds).to_numpy() == "a", :60] += 2.0
    trials = problem.test.trials.assign(category=shown.map(kinds))
    test = Recording.from_arrays(data, trials, dict(problem.rois), problem.test.space)
    result = category_searchlight(
        replace(problem, test=test, train=None), radius=5.0, folds=2, surface=files
    )
    value = result.table.set_index("roi")["value"]
    assert value["first"] > 0.95
    assert abs(value["empty"] - 0.5) < 0.15


# --------------------------------------------------------------------------------- label files


def test_regions_become_labels_that_are_read_back_as_the_same_regions(tmp_path):
    cortex = load_visual_cortex()
    rois = {name: cortex.areas[name] for name in ("V1", "FFC", "MT")}
    paths = write_labels(tmp_path, rois, FlatMapSpace(), participant="sub-01", task="objects")
    files = [p for p in paths if p.name.endswith(".label.gii")]
    assert [p.relative_to(tmp_path).as_posix() for p in files] == [
        f"sub-01/func/sub-01_task-objects_hemi-{s}_space-fsLR_den-32k_desc-regions_dseg.label.gii"
        for s in ("L", "R")
    ]
    again = [rois_for(FlatMapSpace(), p) for p in files]
    for name, mask in rois.items():
        np.testing.assert_array_equal(again[0][name] | again[1][name], mask)
    image = nibabel.load(files[0])
    assert image.darrays[0].intent == nibabel.nifti1.intent_codes["NIFTI_INTENT_LABEL"]
    assert image.darrays[0].data.dtype == np.int32
    assert image.labeltable.get_labels_as_dict() == {0: "???", 1: "V1", 2: "FFC", 3: "MT"}
    assert image.meta["AnatomicalStructurePrimary"] == "CortexLeft"
    assert image.labeltable.labels[0].alpha == 0.0
    assert len({tuple(c) for c in colours_of([str(k) for k in range(60)])}) == 60


def test_a_vertex_of_two_regions_has_the_label_of_the_smaller(tmp_path):
    space = FsaverageSpace(np.ones(12, bool), np.ones(12, bool))
    rois = {"whole": np.ones(24, bool), "part": np.arange(24) < 3}
    left, _, right, _ = write_labels(tmp_path, rois, space)
    assert "space-fsaverage_desc" in left.name  # no density is claimed for a mesh of 12
    assert nibabel.load(left).agg_data().tolist() == [2] * 3 + [1] * 9
    assert nibabel.load(right).agg_data().tolist() == [1] * 12


def test_maps_come_with_their_regions(tmp_path):
    space = FsaverageSpace(np.arange(10242) < 5, np.zeros(10242, bool))
    rois = {"A": np.arange(5) < 2, "B": np.arange(5) == 4}
    written = write_maps([made("roi_only", {"A": 1.0, "B": 2.0}, rois)],
                         recording_in(space, rois), tmp_path)  # fmt: skip
    [left] = [f for f in written.files if "hemi-L" in f.name and f.name.endswith("label.gii")]
    assert nibabel.load(left).agg_data()[:6].tolist() == [1, 1, 0, 0, 2, 0]
    assert "*_dseg.*" in (tmp_path / ".bidsignore").read_text()
    voxels = MaskSpace(np.ones((2, 2, 2), bool), np.eye(4))
    assert write_labels(tmp_path, {"A": np.ones(8, bool)}, voxels) == []


# ------------------------------------------------------------------------------- grayordinates

BOX = (91, 109, 91)
MNI = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def whole_axis():
    """59,412 vertices and 31,870 voxels of two structures, as in a file of 91,282."""
    gray, n = load_grayordinates(), N_GRAYORDINATES - 59412
    axis = BrainModelAxis.from_surface(gray.left, N_MESH, "CortexLeft")
    axis = axis + BrainModelAxis.from_surface(gray.right, N_MESH, "CortexRight")
    index = np.argwhere(np.ones((40, 40, 20), bool))[:n] + np.array([25, 30, 10])
    for name, part in (("thalamus_left", index[:1000]), ("cerebellum_right", index[1000:])):
        mask = np.zeros(BOX, bool)
        mask[tuple(part.T)] = True
        axis = axis + BrainModelAxis.from_mask(mask, name, MNI)
    return axis


def small_space():
    """240 vertices of the back of V1 and 4 x 4 x 4 voxels of the thalamus."""
    cortex, gray = load_visual_cortex(), load_grayordinates()
    columns = np.flatnonzero(cortex.area("L_V1"))
    columns = columns[np.argsort(cortex.midthickness[columns, 1])][:240]
    vertices = np.sort(gray.left[cortex.grayordinates[columns]])
    axis = BrainModelAxis.from_surface(vertices, N_MESH, "CortexLeft")
    mask = np.zeros(BOX, bool)
    mask[40:44, 50:54, 30:34] = True
    return GrayordinateSpace(axis + BrainModelAxis.from_mask(mask, "thalamus_left", MNI))


def test_a_dense_map_holds_its_subcortical_voxels(tmp_path):
    space = GrayordinateSpace(whole_axis())
    assert (space.n_features, space.has_voxels, kind_of(space)) == (N_GRAYORDINATES, True, BOTH)
    rois = space.structures()
    assert {name: int(mask.sum()) for name, mask in rois.items()} == {
        "THALAMUS_LEFT": 1000, "CEREBELLUM_RIGHT": 30870,
    }  # fmt: skip
    values = np.random.default_rng(0).standard_normal(N_GRAYORDINATES).astype(np.float32)
    result = made("encoding", {"THALAMUS_LEFT": 0.2, "CEREBELLUM_RIGHT": 0.1}, rois,
                  maps={"sub-01/bridge/r": values})  # fmt: skip
    written = write_maps([result], recording_in(space, rois), tmp_path)
    [dense] = [f for f in written.files if "stat-r_" in f.name and f.name.endswith(".dscalar.nii")]
    assert "space-fsLR_den-91k" in dense.name
    image = nibabel.load(dense)
    assert image.header.get_axis(1) == space.axis
    assert np.array_equal(np.asarray(image.dataobj)[0], values)
    again = GrayordinateSpace.open(dense)
    assert again.fingerprint() == space.fingerprint()
    np.testing.assert_allclose(again.places, space.places)
    [painted] = [f for f in written.files if "importance" in f.name and "dscalar" in f.name]
    found = np.asarray(nibabel.load(painted).dataobj)[0]
    assert np.isnan(found[:59412]).all()
    assert np.unique(found[59412:]).tolist() == pytest.approx([0.1, 0.2])
    sides = [nibabel.load(f).agg_data() for f in written.files
             if "stat-r_" in f.name and f.name.endswith("func.gii")]  # fmt: skip
    gray = load_grayordinates()
    assert np.array_equal(sides[0][gray.left], values[:29696])
    assert np.array_equal(sides[1][gray.right], values[29696:59412])
    volume, affine = space.in_volume(values)
    assert np.isfinite(volume).sum() == 31870
    assert np.array_equal(affine, MNI)


def test_parts_of_grayordinates_keep_their_place_and_claim_no_density(tmp_path):
    space = small_space()
    rois = {"V1": np.arange(304) < 240, **space.structures()}
    written = write_maps([made("roi_only", {"V1": 1.0, "THALAMUS_LEFT": 2.0}, rois)],
                         recording_in(SubSpace(space, np.arange(304)), rois), tmp_path)  # fmt: skip
    [dense] = [f for f in written.files if "importance" in f.name and "dscalar" in f.name]
    assert "space-fsLR_stat" in dense.name
    image = nibabel.load(dense)
    assert image.header.get_axis(1) == space.axis
    assert np.asarray(image.dataobj)[0].tolist() == [1.0] * 240 + [2.0] * 64


def test_discs_and_balls_of_grayordinates_do_not_mix():
    space = small_space()
    near = neighbourhoods(space, 4.0)
    assert near[:240, 240:].nnz == near[240:, :240].nnz == 0
    assert np.diff(near.indptr)[240:].max() == 33 - 3  # of 4 x 4 x 4: cut on three sides
    vertices = space.cortical()[1]
    cortex = load_visual_cortex()
    columns = np.searchsorted(cortex.grayordinates, vertices)
    # paths stay within these 240 vertices
    edges = cortex.neighbours[columns][:, columns].tocoo()
    places = cortex.midthickness[columns]
    mm = np.linalg.norm(places[edges.row] - places[edges.col], axis=1)
    expected = surface_discs(csr_array((mm, (edges.row, edges.col)), shape=edges.shape), 4.0)
    np.testing.assert_array_equal(near[:240, :240].toarray(), expected.toarray())
    part = SubSpace(space, np.arange(200, 300))
    np.testing.assert_array_equal(
        neighbourhoods(part, 4.0).toarray(), near[200:300][:, 200:300].toarray()
    )


def test_other_surfaces_are_refused_as_grayordinates():
    with pytest.raises(DataError, match="mesh of 10,242 vertices"):
        GrayordinateSpace(BrainModelAxis.from_surface(np.arange(9), 10242, "CortexLeft"))


# ------------------------------------------------------------------------------------ pictures


def test_a_finer_fsaverage_is_drawn_by_its_first_vertices():
    masks = [np.arange(40962) < 20000, np.arange(40962) < 100]
    at = placed(np.arange(20100, dtype=np.float32), FsaverageSpace(*masks))
    sides = sides_of(at)
    assert sides["L"].values[:3].tolist() == [0, 1, 2]
    assert len(sides["R"].values) == len(sides["R"].points) == N_FSAVERAGE5
    assert words_of(at) == "fsaverage5, 10,242 of 40,962 vertices"
    coarse = placed(np.ones(4, np.float32), FsaverageSpace(np.ones(2, bool), np.ones(2, bool)))
    with pytest.raises(UsageError, match="drawn on fsaverage5"):
        sides_of(coarse)
    with pytest.raises(UsageError, match="no surface 'flat' here"):
        sides_of(at, "flat")


def test_sulci_are_the_dark_ones_on_both_meshes():
    """The central sulcus' depth has another sign in HCP's file than in FreeSurfer's."""
    for at in (placed(np.zeros(8921, np.float32), FlatMapSpace()),
               placed(np.zeros(600, np.float32), occipital5(300))):  # fmt: skip
        one = sides_of(at, "white")["L"]
        # what lies deeper, nearer to the middle of the brain, is a sulcus
        depth = np.linalg.norm(one.points - one.points.mean(axis=0), axis=1)
        high = one.points[:, 2] > np.quantile(one.points[:, 2], 0.7)
        assert depth[high & (one.shade > 0.5)].mean() < depth[high & (one.shade < 0.5)].mean() - 2


@pytest.mark.slow
def test_fsaverage_is_drawn(monkeypatch):
    monkeypatch.setattr(attribution_pictures, "VIEWS", ("ventral",))
    space = occipital5(300)
    one = BrainMap(method="roi_only", subject="sub-01", stage="s", statistic="r", unit="r",
                   values=np.linspace(-1, 1, 600, dtype=np.float32), painted=False)  # fmt: skip
    svg = picture(one, space, format="svg").decode()
    for words in ("left hemisphere, ventral", "fsaverage5, inflated", "no value", "r</text>"):
        assert words in svg
