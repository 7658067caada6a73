"""Areas of one person and maps back on the cortex: a vertex comes back to that vertex."""

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Image, LabelAxis, ScalarAxis
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable, GiftiMetaData

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import MaskSpace
from neurodiff.datasets.cifti import CORTEX, open_cifti
from neurodiff.datasets.cortex_maps import (
    plot_cortex,
    surface_file,
    to_hemispheres,
    write_cifti,
    write_gifti,
)
from neurodiff.datasets.localisers import rois_for, with_localisers
from neurodiff.datasets.surface import (
    FlatImageSpace,
    FlatMapSpace,
    load_grayordinates,
    load_midthickness,
    load_visual_cortex,
)

MESH = 32492


@pytest.fixture(scope="module")
def places():
    """Hemisphere mesh vertex of each of the 8,921 vertices."""
    mesh = load_grayordinates().mesh[load_visual_cortex().grayordinates]
    return mesh % MESH


@pytest.fixture(scope="module")
def ffa(places):
    """A planted area: the first 30 vertices of FFC in the left, 20 in the right hemisphere."""
    cortex = load_visual_cortex()
    inside = np.zeros(cortex.n_vertices, bool)
    inside[np.flatnonzero(cortex.area("L_FFC"))[:30]] = True
    inside[np.flatnonzero(cortex.area("R_FFC"))[:20]] = True
    return inside


def on_mesh(ffa, places, side):
    chosen = ffa & (load_visual_cortex().hemisphere == side)
    values = np.zeros(MESH, np.int32)
    values[places[chosen]] = 1
    return values


def save_gifti(path, values, *, labels=(), structure=None):
    table = GiftiLabelTable()
    for key, name in enumerate(labels):
        entry = GiftiLabel(key, 1.0, 0.0, 0.0, 1.0)
        entry.label = name
        table.labels.append(entry)
    intent = "NIFTI_INTENT_LABEL" if labels else "NIFTI_INTENT_SHAPE"
    kind = "NIFTI_TYPE_INT32" if labels else "NIFTI_TYPE_FLOAT32"
    data = np.asarray(values, np.int32 if labels else np.float32)
    meta = GiftiMetaData({"AnatomicalStructurePrimary": structure} if structure else {})
    array = GiftiDataArray(data, intent=intent, datatype=kind)
    nibabel.save(GiftiImage(meta=meta, labeltable=table, darrays=[array]), path)


def test_gifti_labels_of_both_hemispheres_are_one_area(tmp_path, ffa, places):
    paths = []
    for side, structure in (("L", "CortexLeft"), ("R", "CortexRight")):
        paths.append(tmp_path / f"sub-07.{side}.faces.label.gii")
        values = on_mesh(ffa, places, side)
        values[0] = 2  # an area elsewhere
        save_gifti(paths[-1], values, labels=("???", "FFA", "far"), structure=structure)
    recording = Recording.from_arrays(
        np.zeros((2, 8921), np.float32), None, dict(load_visual_cortex().areas), FlatMapSpace()
    )
    found = with_localisers(recording, *paths)
    assert set(found.rois) == {*load_visual_cortex().areas, "FFA"}
    np.testing.assert_array_equal(found.rois["FFA"], ffa)
    assert "FFA" not in recording.rois
    assert found.roi("FFA").n_features == 50
    # a part of the vertices gets the part of the area
    part = with_localisers(recording.roi("FFC"), *paths)
    assert part.rois["FFA"].sum() == 50
    assert part.n_features == load_visual_cortex().area("FFC").sum()


def test_gifti_values_above_a_threshold_by_file_name(tmp_path, ffa, places):
    path = tmp_path / "sub-07_hemi-L_FFA.shape.gii"
    save_gifti(path, 4.0 * on_mesh(ffa, places, "L") - 1)
    left = ffa & (load_visual_cortex().hemisphere == "L")
    np.testing.assert_array_equal(rois_for(FlatMapSpace(), path)["FFA"], left)
    with pytest.raises(DataError, match="no area inside this recording"):
        rois_for(FlatMapSpace(), path, threshold=3.5)


def test_in_pictures_an_area_is_the_pixels_that_show_it(tmp_path, ffa, places):
    path = tmp_path / "hemi-L_FFA.shape.gii"
    save_gifti(path, on_mesh(ffa, places, "L"))
    pixels = rois_for(FlatImageSpace(), path)["FFA"].reshape(256, 256)
    cortex = load_visual_cortex()
    left = ffa & (cortex.hemisphere == "L")
    shown = np.unique(cortex.pixel_vertex[pixels])
    assert left[shown].all()
    assert pixels.sum() == np.isin(cortex.pixel_vertex, np.flatnonzero(left)).sum()
    assert not pixels[~cortex.mask].any()


def test_cifti_labels_and_values(tmp_path, ffa, places):
    side = load_visual_cortex().hemisphere
    left = BrainModelAxis.from_surface(places[side == "L"], MESH, "CortexLeft")
    right = BrainModelAxis.from_surface(places[side == "R"], MESH, "CortexRight")
    brain = left + right
    table = {0: ("???", (0, 0, 0, 0)), 3: ("FFA", (1, 0, 0, 1))}
    label = Cifti2Image(3 * ffa[None].astype(np.float32), (LabelAxis(["faces"], [table]), brain))
    label.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_LABELS")
    nibabel.save(label, tmp_path / "a.dlabel.nii")
    found = rois_for(FlatMapSpace(), tmp_path / "a.dlabel.nii")
    assert list(found) == ["FFA"]
    np.testing.assert_array_equal(found["FFA"], ffa)
    scalar = Cifti2Image(ffa[None].astype(np.float32), (ScalarAxis(["zstat"]), brain))
    nibabel.save(scalar, tmp_path / "b.dscalar.nii")
    np.testing.assert_array_equal(
        rois_for(FlatMapSpace(), tmp_path / "b.dscalar.nii")["zstat"], ffa
    )


def test_a_volume_is_sampled_at_the_vertices(tmp_path):
    """A mask of all voxels with y below -80 mm holds exactly the vertices that lie there."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-90, -126, -72]
    y = affine[1, 3] + 2 * np.arange(109)
    volume = np.broadcast_to((y < -80)[None, :, None], (91, 109, 91)).astype(np.uint8)
    path = tmp_path / "sub-07_pole_mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    found = rois_for(FlatMapSpace(), path)["pole"]
    # voxel centres are at even y: the last one below -80 is -82 and reaches to -81
    at = load_visual_cortex().midthickness[:, 1]
    np.testing.assert_array_equal(found, at < -81)
    # the person's own surfaces, 10 mm further back
    own = {}
    for k, side in enumerate("LR"):
        points = load_midthickness()[k * MESH : (k + 1) * MESH] - [0, 10, 0]
        own[side] = tmp_path / f"{side}.surf.gii"
        array = GiftiDataArray(points.astype(np.float32), intent="NIFTI_INTENT_POINTSET")
        nibabel.save(GiftiImage(darrays=[array]), own[side])
    moved = rois_for(FlatMapSpace(), path, surfaces=own)["pole"]
    edge = np.abs(at + 71) > 1e-3
    np.testing.assert_array_equal(moved[edge], (at < -71)[edge])


def test_a_volume_over_a_recording_of_voxels(tmp_path):
    inside = np.zeros((4, 5, 6), bool)
    inside[1:3, 1:4, 1:5] = True
    space = MaskSpace(inside, np.eye(4))
    roi = np.zeros(inside.shape, np.uint8)
    roi[1, 1, :] = 1
    nibabel.save(nibabel.Nifti1Image(roi, np.eye(4)), tmp_path / "V1.nii.gz")
    np.testing.assert_array_equal(
        rois_for(space, tmp_path / "V1.nii.gz")["V1"], roi[inside].astype(bool)
    )
    with pytest.raises(UsageError, match="of the cortex, and the recording of voxels"):
        rois_for(space, tmp_path / "V1.label.gii")
    nibabel.save(nibabel.Nifti1Image(roi[:2], np.eye(4)), tmp_path / "cut.nii.gz")
    with pytest.raises(DataError, match="resample the image to the mask"):
        rois_for(space, tmp_path / "cut.nii.gz")


def test_wrong_meshes_and_files_are_refused(tmp_path):
    save_gifti(tmp_path / "x.L.shape.gii", np.ones(10242))
    with pytest.raises(DataError, match=r"\(10242,\) values; expected one for each of 32,492"):
        rois_for(FlatMapSpace(), tmp_path / "x.L.shape.gii")
    save_gifti(tmp_path / "x.shape.gii", np.ones(MESH))
    with pytest.raises(DataError, match="does not say its hemisphere"):
        rois_for(FlatMapSpace(), tmp_path / "x.shape.gii")
    with pytest.raises(MissingDataError, match="does not exist"):
        rois_for(FlatMapSpace(), tmp_path / "none.nii.gz")
    (tmp_path / "x.mgz").write_bytes(b"x")
    with pytest.raises(UsageError, match="no file of areas that is read"):
        rois_for(FlatMapSpace(), tmp_path / "x.mgz")


# ------------------------------------------------------------------------------- and back again


def test_a_value_comes_back_to_its_vertex_in_arrays_and_files(tmp_path, places):
    cortex = load_visual_cortex()
    values = np.random.default_rng(0).normal(size=8921).astype(np.float32)
    sides = to_hemispheres(values)
    paths = write_gifti(tmp_path / "map", values)
    image, _, brain = open_cifti(write_cifti(tmp_path / "map.dscalar.nii", values))
    stored = np.asarray(image.dataobj)[0]
    for side, structure in CORTEX.items():
        here = cortex.hemisphere == side
        np.testing.assert_array_equal(sides[side][places[here]], values[here])
        assert np.isfinite(sides[side]).sum() == here.sum()
        loaded = nibabel.load(paths[side])
        np.testing.assert_array_equal(loaded.darrays[0].data, sides[side])
        columns = brain.name == structure
        np.testing.assert_array_equal(brain.vertex[columns], places[here])
        np.testing.assert_array_equal(stored[columns], values[here])
    assert len(brain) == 8921


def test_pictures_and_whole_cortices_go_back_too():
    cortex = load_visual_cortex()
    values = np.random.default_rng(1).normal(size=(2, 8921)).astype(np.float32)
    picture = FlatMapSpace().to_image(values)
    drawn = np.unique(cortex.pixel_vertex[cortex.mask])
    mesh = load_grayordinates().mesh[cortex.grayordinates[drawn]]
    both = np.concatenate([*to_hemispheres(picture).values()], axis=-1)
    np.testing.assert_allclose(both[:, mesh], values[:, drawn], atol=1e-6)
    whole = np.arange(91282, dtype=np.float32)
    right = to_hemispheres(whole)["R"]
    assert right[load_grayordinates().right[0]] == 29696
    assert np.isnan(right).sum() == MESH - 29716  # the medial wall
    with pytest.raises(UsageError, match="values have shape \\(7,\\)"):
        to_hemispheres(np.zeros(7))


def test_a_map_is_plotted_on_the_surface():
    from matplotlib import pyplot as plt

    figure = plot_cortex(np.ones(8921), "R", surface="flat", view=(90.0, -90.0), colorbar=False)
    assert figure.axes
    plt.close(figure)
    assert surface_file("L", "inflated").is_file()
    with pytest.raises(UsageError, match="surface 'sulcus'"):
        plot_cortex(np.ones(8921), surface="sulcus")
