"""Attribution of scans: regions of the template or of files, stages, a page for the group."""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis import attribution_scans
from neurodiff.analysis.attribution_scans import (
    _replacement,
    atlas_of,
    grid_recording,
    mean_image,
    without_maps,
)
from neurodiff.analysis.attribution_verbs import AttributeOptions, attribute_run
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.datasets.mni import mni_grid


def _load(name):
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load("attribution_results").made
AFFINE, GRID = mni_grid(7.0)


def test_regions_of_the_template_by_name():
    whole = atlas_of(None, AFFINE, GRID)
    some = atlas_of(["hippocampus left"], AFFINE, GRID)
    assert list(some) == ["hippocampus left"]
    assert np.array_equal(some["hippocampus left"], whole["hippocampus left"])
    with pytest.raises(UsageError, match="no region 'thalamus' of the template"):
        atlas_of(["thalamus"], AFFINE, GRID)


def test_regions_of_a_file_with_the_names_beside_it(tmp_path):
    labels = np.zeros(GRID, np.int16)
    labels[4:8, 4:8, 4:8], labels[10:12, 4:8, 4:8] = 1, 2
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / "atlas.nii.gz")
    (tmp_path / "atlas.csv").write_text("label,name\n1,one\n2,two\n")
    found = atlas_of([str(tmp_path / "atlas.nii.gz")], AFFINE, GRID)
    assert list(found) == ["one", "two"]
    assert np.array_equal(found["two"], labels == 2)


@pytest.mark.parametrize("method", ["shapley", "region_occlusion:zero"])
def test_other_methods_are_refused(method):
    with pytest.raises(UsageError, match="no method for scans"):
        _replacement(method)


def test_an_empty_list_of_methods_is_a_mistake(tmp_path):
    run = Run.create(tmp_path / "run", {"name": "x"}, {"data": "y"}, command="test", seed=0)
    with pytest.raises(UsageError, match="no method was named"):
        attribution_scans.attribute_scans(run, tmp_path, methods=[])


def test_maps_belong_on_the_grid_in_order():
    regions = {"A": np.zeros(GRID, bool)}
    regions["A"][3, 4, 5] = True
    recording = grid_recording(AFFINE, GRID, regions, simulated=True)
    image = recording.space.to_image(regions["A"].ravel().astype(np.float32))
    assert np.argwhere(np.asarray(image.dataobj)).tolist() == [[3, 4, 5]]
    result = made("region_occlusion:mean", {"A": 1.0}, recording.rois, maps={"code": np.zeros(3)})
    assert without_maps(result).maps == {}
    volumes = np.stack([np.zeros((1, *GRID)), np.ones((1, *GRID))])
    assert np.asarray(mean_image(volumes, AFFINE).dataobj).max() == 0.5


@pytest.mark.slow
def test_a_run_of_scans_from_fit_to_page(session_tmp, capsys):
    from neurodiff.analysis.ldae_fit import fit_cohort

    short = [f"{part}.training.steps=3" for part in ("autoencoder", "trunk", "semantic")]
    scans = _load("ldae_cohort").write_scans(session_tmp / "attribution-scans")
    run = fit_cohort(
        "ldae_tiny", short, session_tmp / "attribution-ldae", str(scans), None, None, 0, False
    )
    more = AttributeOptions(draws=20, views=False, options={"region_occlusion": {"matched": 3}})
    page = attribute_run(run, more=more, progress=Progress.to_stdout())
    table = pd.read_csv(page.with_name("attribution.tsv"), sep="\t")
    assert set(table["stage"]) >= {"code"}
    assert set(table["subject"]) == {"all"}
    assert (page.parent / "group" / "func").is_dir()
    capsys.readouterr()
    attribute_run(run, more=more, progress=Progress.to_stdout())
    assert "done before" in capsys.readouterr().out
