"""The verb attribute: regions by name and file, stages that are not repeated, maps and a page."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import trimesh
from typer.testing import CliRunner

from neurodiff import Run
from neurodiff.analysis import attribution_verbs, demo_attribution
from neurodiff.analysis.attribution import Attribution, facts_of
from neurodiff.analysis.attribution_maps import brain_maps
from neurodiff.analysis.attribution_regions import regions_of
from neurodiff.analysis.attribution_verbs import (
    AttributeOptions,
    Embeddings,
    digest,
    planted_truth,
    run_stages,
    write_attribution,
)
from neurodiff.analysis.ceilings import ceilings
from neurodiff.analysis.sources import Source
from neurodiff.cli_attribution import app
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import MaskSpace, Recording, SubSpace
from neurodiff.datasets.cortex_maps import write_cifti
from neurodiff.datasets.simulated.attribution_subjects import attribution_subject
from neurodiff.datasets.surface import FlatMapSpace, load_visual_cortex


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load("attribution_results").made
SMALL = demo_attribution.DemoSize(40, 20, 29, ("MT", "MST", "V4t", "LO1"))


@pytest.fixture(scope="module")
def problem():
    return demo_attribution.ridge_problem(
        attribution_subject("own", areas=SMALL.areas), SMALL, seed=0
    )


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {"name": "x"}, {"data": "y"}, command="test", seed=0)


# --------------------------------------------------------------------------------------- regions


def cortex_recording():
    trials = pd.DataFrame({"stimulus": ["a", "b"]})
    areas = {name: load_visual_cortex().areas[name] for name in ("V1", "V2")}
    return Recording(np.zeros((2, 8921), np.float32), trials, areas, FlatMapSpace(), name="made")


def voxel_recording(mask):
    space = MaskSpace(mask, np.eye(4))
    data = np.zeros((2, space.n_features), np.float32)
    return Recording(data, pd.DataFrame({"stimulus": ["a", "b"]}), {}, space)


def test_regions_by_name_are_the_recordings():
    found = regions_of(cortex_recording(), ["V2"])
    assert list(found.rois) == ["V2"]
    assert list(regions_of(cortex_recording()).rois) == ["V1", "V2"]


def test_a_region_that_is_not_there_is_named_with_what_there_is():
    with pytest.raises(UsageError, match="no region 'V3'; the recording has V1, V2"):
        regions_of(cortex_recording(), ["V3"])
    with pytest.raises(UsageError, match="no region was named"):
        regions_of(cortex_recording(), [])
    with pytest.raises(UsageError, match="has no regions; give --rois FILE"):
        regions_of(voxel_recording(np.ones((2, 2, 2), bool)))


def test_regions_of_a_cifti_file_beside_names(tmp_path):
    values = np.zeros(8921, np.float32)
    values[100:200] = 1.0
    path = write_cifti(tmp_path / "mine.dscalar.nii", values, ("mine",))
    found = regions_of(cortex_recording(), ["V1", str(path)])
    assert list(found.rois) == ["V1", "mine"]
    assert np.flatnonzero(found.rois["mine"]).tolist() == list(range(100, 200))


def test_labels_of_a_volume_are_regions_with_the_names_beside_it(tmp_path):
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3] = True
    volume = np.zeros((4, 4, 4), np.int16)
    volume[1, :2], volume[2, 2:] = 3, 7
    path = tmp_path / "atlas_dseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    recording = voxel_recording(mask)
    assert list(regions_of(recording, [str(path)]).rois) == ["label 3", "label 7"]
    path.with_name("atlas_dseg.tsv").write_text("index\tname\n3\tV1\n7\tNA\n")
    found = regions_of(recording, [str(path)]).rois
    assert np.array_equal(found["V1"], (volume == 3)[mask])
    part = SubSpace(recording.space, np.flatnonzero((volume == 3)[mask]))
    cut = Recording(np.zeros((2, 8), np.float32), recording.trials, {}, part)
    assert list(regions_of(cut, [str(path)]).rois) == ["V1"]


def test_labels_of_a_volume_at_vertices_are_regions_too(tmp_path):
    points = load_visual_cortex().midthickness
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    volume = np.zeros((46, 55, 46), np.int16)
    volume[:23], volume[23:] = 2, 5  # left of x = 0, and right
    path = tmp_path / "sides_dseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    found = regions_of(cortex_recording(), [str(path)]).rois
    assert list(found) == ["label 2", "label 5"]
    left = found["label 2"]
    assert not (left & found["label 5"]).any()
    assert points[left, 0].max() < 0 < points[found["label 5"], 0].min() + 4


def test_a_volume_of_values_or_of_another_grid_is_refused(tmp_path):
    recording = voxel_recording(np.ones((4, 4, 4), bool))
    path = tmp_path / "far.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.int16), np.eye(4)), path)
    with pytest.raises(DataError, match="resample"):
        regions_of(recording, [str(path)])
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken\.nii"):
        regions_of(recording, [str(broken)])


# ---------------------------------------------------------------------------------------- stages


def test_a_finished_method_is_not_computed_again(run, problem, monkeypatch):
    methods = ["leave_one_out:mean"]
    first = run_stages(run, problem, methods, ["model"], options={methods[0]: {"matched": 3}})
    called = []
    real = attribution_verbs.run_method

    def counted(problem, method, **options):
        called.append(method)
        return real(problem, method, **options)

    monkeypatch.setattr(attribution_verbs, "run_method", counted)
    options = {methods[0]: {"matched": 3}}
    again = run_stages(run, problem, [*methods, "encoding"], ["model"], options=options)
    assert called == ["encoding"]
    pd.testing.assert_frame_equal(again[0].table, first[0].table)
    assert again[0].notes == first[0].notes
    run_stages(run, replace(problem, seed=1), methods, ["model"], options=options)
    run_stages(run, problem, methods, ["another model"], options=options)
    assert called == ["encoding", *methods, *methods]


def test_a_method_that_was_killed_is_computed_again(run, problem, monkeypatch):
    real = attribution_verbs.save_result

    def killed(result, folder):
        real(result, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(attribution_verbs, "save_result", killed)
    options = {"leave_one_out:mean": {"matched": 3}}
    with pytest.raises(KeyboardInterrupt):
        run_stages(run, problem, list(options), ["model"], options=options)
    monkeypatch.undo()
    [found] = run_stages(run, problem, list(options), ["model"], options=options)
    assert len(found.table) == 4


def test_a_method_that_cannot_be_done_leaves_the_others(run, problem):
    failed, options = {}, {"leave_one_out:mean": {"matched": 3}}
    methods = ["frames", "leave_one_out:mean"]  # the trials have none
    found = run_stages(run, problem, methods, ["model"], options=options, failed=failed)
    assert [result.method for result in found] == ["leave_one_out:mean"]
    assert list(failed) == ["frames"]
    with pytest.raises(UsageError):
        run_stages(run, problem, methods, ["model"], options=options)
    with pytest.raises(UsageError):  # where none can be done, its sentence is the answer
        run_stages(run, problem, ["frames"], ["model"], failed={})


def test_regions_have_an_identity():
    a, b = np.array([True, False]), np.array([False, True])
    assert digest({"A": a, "B": b}) == digest({"B": b, "A": a})
    assert digest({"A": a}) != digest({"A": b})
    assert digest({"A": a}) != digest({"B": a})


def test_maps_page_and_numbers_in_one_folder(tmp_path, problem):
    result = made(
        "encoding", dict.fromkeys(problem.rois, 0.1), problem.rois, subjects=("sim-own-0001",)
    )
    found = Attribution(results=(result,), facts=facts_of(problem))
    page = write_attribution(
        found, problem.test, tmp_path / "out", rois=problem.rois,
        more=AttributeOptions(views=True), ceilings=["noise ceiling: 0.1"],
    )  # fmt: skip
    text = page.read_text()
    assert "noise ceiling: 0.1" in text
    assert text.count("data:image/png") == 1
    assert (page.parent / "attribution_files" / "view-01.html").is_file()
    assert 'href="attribution_files/view-01.html"' in text
    assert (page.parent / "attribution.json").is_file()
    names = {p.name for p in (page.parent / "sub-simown0001" / "func").iterdir()}
    assert sum(name.endswith(".dscalar.nii") for name in names) == 2
    assert not list(page.parent.rglob(".tmp-*"))


def test_a_row_about_everything_is_no_place_and_the_ceilings_are_a_table(tmp_path, problem):
    """As the frames of a recording have it beside their regions."""
    result = made(
        "frames:only", dict.fromkeys(problem.rois, 0.1), problem.rois, subjects=("sim-own-0001",)
    )
    line = result.table.iloc[[0]].assign(
        roi="all features", value=9.0, n_features=problem.test.n_features
    )
    result = replace(result, table=pd.concat([line, result.table], ignore_index=True))
    painted = brain_maps([result], problem.rois, problem.test.n_features)[0].values
    assert np.nanmax(painted) == np.float32(0.1)
    found = Attribution(results=(result,), facts=facts_of(problem), notes=("Doubt this.",))
    page = write_attribution(
        found, problem.test, tmp_path / "out", rois=problem.rois,
        more=AttributeOptions(views=False),
        ceiling_table=ceilings(problem.test, rois=problem.rois),
    )  # fmt: skip
    text = page.read_text()
    assert "Doubt this." in text
    assert "split-half" in text
    assert "all features" in text


class Shape:
    """A stimulus with a mesh."""

    def mesh(self):
        return trimesh.creation.box((1.0, 2.0, 3.0))


class Views:
    """A pipeline whose embedding of views is their mean."""

    def embedding(self, views):
        return views.reshape(len(views), -1).mean(axis=1, keepdims=True)


def test_embeddings_without_a_bank_are_made_of_the_stimuli_meshes():
    stimuli = {"a": Shape()}
    embeddings = Embeddings(Views(), stimuli, None, ["a", "a"])
    assert list(embeddings) == ["a"]
    assert embeddings["a"].shape == (1,)
    assert embeddings.shapes is stimuli
    with pytest.raises(KeyError):
        embeddings["b"]


# ----------------------------------------------------------------------------------------- truth


def test_the_planted_truth_of_the_simulated_studies():
    table = planted_truth(Source("simulated_tiny", None, 1))
    assert table.set_index("area")["carries"]["MT"] == "nothing"
    assert table.set_index("area")["carries"]["V1"] == "contrast"
    [said] = attribution_verbs._planted_ceiling(table)
    assert "23 loaded areas" in said
    assert attribution_verbs._planted_ceiling(None) == []
    assert planted_truth(Source("fmri_shape", "somewhere", 1)) is None


# ------------------------------------------------------------------------------------------ demo


@pytest.mark.slow
def test_the_demo_finds_what_was_planted_and_repeats_nothing(tmp_path):
    said = demo_attribution.run_attribution_demo(
        tmp_path / "demo", 0, "tiny", progress=demo_attribution.SILENT
    )
    pages = [line.removeprefix("page: ") for line in said.splitlines() if line.startswith("page")]
    assert len(pages) == 2
    assert "area under the ROC" in said
    for page in pages:
        assert "Simulated" in Path(page).read_text()
    stages = sorted((tmp_path / "demo" / "stages").glob("*/done.json"))
    times = [path.stat().st_mtime_ns for path in stages]
    again = demo_attribution.run_attribution_demo(
        tmp_path / "demo", 0, "tiny", progress=demo_attribution.SILENT
    )
    assert again == said
    assert [path.stat().st_mtime_ns for path in stages] == times
    with pytest.raises(UsageError, match="no size"):
        demo_attribution.run_attribution_demo(tmp_path / "x", 0, "huge")


# --------------------------------------------------------------------------------------- command


def call(app, *arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert "is not a run" in str(result.exception)


@pytest.mark.slow
def test_the_command_on_a_run_of_mind3d(tiny_runs, tmp_path):
    """From a fitted run to page, as a user types it; a second call computes nothing again."""
    folder = str(tiny_runs(tmp_path))
    ask = [
        folder, "--rois", "V1,FFC,MT,LO1", "--methods", "leave_one_out,encoding", "--draws", 29,
        "--no-views", "--task", "objects",
    ]  # fmt: skip
    page = Path(call(app, *ask).stdout.splitlines()[-1])
    assert page == Path(folder) / "attribution" / "attribution.html"
    table = pd.read_csv(page.with_name("attribution.tsv"), sep="\t")
    assert set(table["roi"]) == {"V1", "FFC", "MT", "LO1"}
    assert set(table["method"]) == {"leave_one_out:mean", "encoding"}
    text = page.read_text()
    assert "Planted truth" in text
    assert "contrast" in text
    func = page.parent / "sub-sim01" / "func"
    assert any("task-objects_space-fsLR_den-91k" in p.name for p in func.iterdir())
    assert call(app, *ask).stdout.count("done before") == 2
    # a typing mistake in the last method ends before the first is computed
    unknown = CliRunner().invoke(app, [folder, "--methods", "roi_only,shaply"])
    assert "no method 'shaply'" in str(unknown.exception)
    assert "roi_only" not in unknown.stdout
    empty = CliRunner().invoke(app, [folder, "--methods", ","])
    assert "no method was named" in str(empty.exception)
    drawn = [folder, "--rois", "V1,MT", "--methods", "frames,reconstruction", "--draws", 29]
    page = Path(call(app, *drawn, "--no-views").stdout.splitlines()[-1])
    table = pd.read_csv(page.with_name("attribution.tsv"), sep="\t")
    assert set(table["method"]) == {"frames:leave_out", "reconstruction:mean"}
