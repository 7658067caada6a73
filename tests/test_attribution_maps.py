"""Maps of attribution in files: what is written is what nibabel reads, where it belongs."""

import importlib.util
import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.attribution_files import (
    MapNames,
    label_of,
    open_result,
    placed,
    save_result,
)
from neurodiff.analysis.attribution_maps import (
    brain_maps,
    least_significant,
    paint,
    write_maps,
)
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import MaskSpace, Recording, SubSpace, VectorSpace
from neurodiff.core.sealed import seal
from neurodiff.datasets.nsd_rois import FsaverageSpace
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load("attribution_results").made
AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1.0]])


def recording_in(space, rois, subject="sub-01"):
    data = np.zeros((2, space.n_features), np.float32)
    trials = pd.DataFrame({"stimulus": ["a", "b"], "subject": subject})
    return Recording(data, trials, rois, space, simulated=True, name="made")


def cube():
    mask = np.zeros((8, 9, 7), bool)
    mask[2:6, 3:7, 1:5] = True
    return MaskSpace(mask, AFFINE)


# -------------------------------------------------------------------------------------- painting


def test_each_feature_has_the_value_of_its_smallest_region():
    rois = {"all": np.ones(6, bool), "left": np.arange(6) < 3, "tip": np.arange(6) == 0}
    painted = paint({"left": 2.0, "tip": 3.0, "all": 1.0}, rois, 6)
    assert painted.tolist() == [3, 2, 2, 1, 1, 1]
    assert np.isnan(paint({"tip": 1.0}, rois, 6)[1:]).all()


def test_a_value_without_a_mask_and_a_mask_of_another_space_are_refused():
    with pytest.raises(UsageError, match="no mask of V9"):
        paint({"V9": 1.0}, {"V1": np.ones(3, bool)}, 3)
    with pytest.raises(UsageError, match="shape"):
        paint({"V1": 1.0}, {"V1": np.ones(4, bool)}, 3)


def test_maps_of_tables_and_of_single_features():
    rois = {"A": np.array([1, 1, 0, 0], bool), "B": np.array([0, 0, 1, 0], bool)}
    own = np.array([1, -1, 0, np.nan], np.float32)
    result = made("encoding", {"A": 0.3, "B": 0.1}, rois, good=["A"], maps={"sub-01/bridge/r": own})
    importance, q, r = brain_maps([result], rois, 4)
    assert np.allclose(importance.values, [0.3, 0.3, 0.1, np.nan], equal_nan=True)
    assert importance.threshold == pytest.approx(0.3)
    assert np.allclose(q.values[:3], [0.01, 0.01, 0.6])
    assert (r.subject, r.stage, r.statistic, r.painted) == ("sub-01", "bridge", "r", False)
    assert np.array_equal(r.values, own, equal_nan=True)


def test_a_map_of_another_length_is_refused():
    rois = {"A": np.ones(4, bool)}
    bad = made("encoding", {"A": 1.0}, rois, maps={"r": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="one value a feature"):
        brain_maps([bad], rois, 4)


def test_no_threshold_without_a_significant_region():
    result = made("shapley", {"A": 1.0}, {"A": np.ones(2, bool)})
    assert np.isnan(least_significant(result.table, 0.05))


# ----------------------------------------------------------------------------------------- names


def test_names_follow_bids():
    names = MapNames(
        subject="sub-01",
        task="objects",
        statistic="importance",
        method="leave_one_out:mean",
        stage="bridge",
    )
    assert names.name(".dscalar.nii", space="fsLR", den="91k") == (
        "sub-01_task-objects_space-fsLR_den-91k_stat-importance_desc-leaveoneoutmeanBridge_"
        "statmap.dscalar.nii"
    )
    assert names.name(".func.gii", hemi="L", space="fsLR", den="32k").startswith(
        "sub-01_task-objects_hemi-L_space-fsLR_den-32k_stat-"
    )


@pytest.mark.parametrize("text", ["../../etc/passwd", "a b", "sub-01\n", "V1/V2", "..", "é"])
def test_a_label_never_leaves_its_place(text):
    assert not set(label_of(text)) - set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    )


# ----------------------------------------------------------------------------------------- files


def test_vertices_become_cifti_and_gifti_that_read_equal(tmp_path):
    cortex = load_visual_cortex()
    rois = {name: cortex.areas[name] for name in ("V1", "FFC", "MT")}
    values = np.random.default_rng(0).standard_normal(8921).astype(np.float32)
    result = made(
        "encoding", {"V1": 0.2, "FFC": 0.1, "MT": -0.1}, rois, maps={"sub-01/bridge/r": values}
    )
    recording = recording_in(FlatMapSpace(), rois)
    written = write_maps([result], recording, tmp_path, task="objects")
    [dense] = [f for f in written.files if "stat-r_" in f.name and f.name.endswith(".dscalar.nii")]
    image = nibabel.load(dense)
    brain = image.header.get_axis(1)
    assert len(brain) == 59412
    assert np.array_equal(np.asarray(image.dataobj)[0, cortex.grayordinates], values)
    assert np.isnan(np.asarray(image.dataobj)).sum() == 59412 - 8921
    sides = {
        side: nibabel.load(dense.parent / f"{dense.name.replace('space', f'hemi-{side}_space')}"
                           .replace("den-91k", "den-32k").replace(".dscalar.nii", ".func.gii"))
        for side in ("L", "R")
    }  # fmt: skip
    for side, name in (("L", "CORTEX_LEFT"), ("R", "CORTEX_RIGHT")):
        data = sides[side].agg_data()
        structure = f"CIFTI_STRUCTURE_{name}"
        rows = np.asarray(image.dataobj)[0, brain.name == structure]
        assert np.array_equal(data[brain.vertex[brain.name == structure]], rows, equal_nan=True)


def test_pixels_become_vertices_and_regions_are_never_mixed(tmp_path):
    space = FlatImageSpace()
    cortex = load_visual_cortex()
    shown = cortex.pixel_vertex.ravel()
    rois = {name: (shown >= 0) & cortex.areas[name][shown] for name in ("V1", "V2")}
    values = paint({"V1": 1.0, "V2": 2.0}, rois, space.n_features)
    on_cortex = placed(values, space).values
    assert set(np.unique(on_cortex[np.isfinite(on_cortex)])) == {1.0, 2.0}


def test_voxels_become_nifti_with_a_fresh_header(tmp_path):
    space = cube()
    rois = {"A": np.arange(space.n_features) < 10, "B": np.arange(space.n_features) >= 40}
    result = made("roi_only", {"A": 0.25, "B": -0.5}, rois)
    written = write_maps(
        [result], recording_in(space, rois), tmp_path, space_label="MNI152NLin2009cAsym"
    )
    [path] = [f for f in written.files if "importance" in f.name and f.name.endswith(".nii.gz")]
    assert path.relative_to(tmp_path).as_posix() == (
        "sub-01/func/sub-01_space-MNI152NLin2009cAsym_stat-importance_desc-roionlyBridge_"
        "statmap.nii.gz"
    )
    image = nibabel.load(path)
    expected = np.full(space.mask.shape, np.nan, np.float32)
    expected[space.mask] = paint({"A": 0.25, "B": -0.5}, rois, space.n_features)
    assert np.array_equal(np.asarray(image.dataobj), expected, equal_nan=True)
    assert np.array_equal(image.affine, AFFINE)
    assert image.header["sform_code"] == 4
    assert image.header["descrip"].item() == b""


def test_parts_of_a_space_are_placed_in_the_whole():
    whole = cube()
    space = SubSpace(whole, np.array([5, 2]))
    volume, _ = placed(np.array([1.0, 2.0], np.float32), space).values
    flat = volume[whole.mask]
    assert (flat[5], flat[2]) == (1.0, 2.0)
    assert np.isfinite(volume).sum() == 2


def test_fsaverage_is_one_file_a_hemisphere(tmp_path):
    left, right = np.zeros(10242, bool), np.zeros(10242, bool)
    left[:3], right[5] = True, True
    rois = {"A": np.array([1, 1, 0, 0], bool), "B": np.array([0, 0, 1, 1], bool)}
    result = made("roi_only", {"A": 1.0, "B": 2.0}, rois)
    written = write_maps([result], recording_in(FsaverageSpace(left, right), rois), tmp_path)
    files = [f for f in written.files if f.name.endswith(".gii") and "importance" in f.name]
    assert ["hemi-L_space-fsaverage_den-10k" in f.name for f in files] == [True, False]
    sides = [nibabel.load(f).agg_data() for f in files]
    assert sides[0][:3].tolist() == [1, 1, 2]
    assert sides[1][5] == 2
    assert [int(np.isfinite(side).sum()) for side in sides] == [3, 1]


def test_features_without_a_place_give_the_table_and_say_so(tmp_path):
    rois = {"A": np.array([True, False])}
    result = made("shapley", {"A": 1.0}, rois)
    written = write_maps([result], recording_in(VectorSpace(2), rois), tmp_path)
    assert [f.name for f in written.files] == ["dataset_description.json", "attribution.tsv"]
    assert "no place" in written.notes[0]
    with pytest.raises(DataError, match="no place in a brain"):
        placed(np.zeros(2), VectorSpace(2))


def test_the_folder_is_a_derivative_without_paths_or_people(tmp_path):
    space = cube()
    rois = {"A": np.arange(space.n_features) < 10}
    result = made("roi_only", {"A": 0.25}, rois, good=["A"])
    write_maps([result], recording_in(space, rois), tmp_path)
    about = json.loads((tmp_path / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "neurodiff"
    sidecars = list(tmp_path.rglob("*statmap.json"))
    assert len(sidecars) == 2
    for path in [tmp_path / "dataset_description.json", *sidecars]:
        assert str(tmp_path) not in path.read_text()
    facts = json.loads(next(p for p in sidecars if "importance" in p.name).read_text())
    assert facts["SmallestSignificant"] == 0.25
    assert facts["NumberOfTrials"] == 300
    assert facts["Simulated"] is True
    table = pd.read_csv(tmp_path / "attribution.tsv", sep="\t")
    assert table["value"].tolist() == [0.25]


# --------------------------------------------------------------------------------------- results


def test_a_result_reads_back_equal(tmp_path):
    rois = {"1": np.array([1, 0, 0], bool), "B": np.array([0, 1, 1], bool)}
    maps = {"01/bridge/r": np.array([0.1, np.nan, 1], np.float32)}
    result = made("encoding", {"1": 1 / 3, "B": np.nan}, rois, subjects=("01",), maps=maps)
    with pytest.raises(DataError, match="no finished method"):
        open_result(save_result(result, tmp_path / "a"))
    seal(tmp_path / "a", ["table.csv", "facts.json", "maps.npy"], {})
    again = open_result(tmp_path / "a")
    pd.testing.assert_frame_equal(again.table, result.table)
    assert list(again.maps) == list(maps)
    assert np.array_equal(again.maps["01/bridge/r"], maps["01/bridge/r"], equal_nan=True)
    assert again.notes == result.notes
