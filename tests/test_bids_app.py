"""The BIDS App on a small BIDS folder: names, resuming, failures, no word of a patient."""

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neurodiff.cli_bids import app
from neurodiff.core.derivatives import derivative_name, label
from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains
from neurodiff.pipelines.ldae import LDAE
from neurodiff.pipelines.ldae_networks import untrained

SECRET = "DOE^JANE"


def call(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture(scope="module")
def model(session_tmp):
    pipe = LDAE.from_recipe("ldae_tiny")
    pipe = LDAE.from_networks(
        untrained(pipe.recipe, 0), grid=pipe.size.grid, preparation=pipe.recipe.preparation
    )
    return pipe.save_pretrained(session_tmp / "bids-model")


@pytest.fixture
def study(tmp_path, model):
    """Two people, one with two sessions; the headers name a patient."""
    grid = LDAE.from_pretrained(model).size.grid
    brains = SimulatedBrains(BrainSettings(subjects=2, shape=grid), seed=0)
    root = tmp_path / "study"
    for number, (person, session, months) in enumerate(
        (("01", "ses-a", 0.0), ("01", "ses-b", 12.0), ("02", "", 0.0))
    ):
        volume = brains.scan(brains.names[number // 2], months)
        image = nib.Nifti1Image(volume.data[0], volume.affine)
        image.header["descrip"] = SECRET
        image.header["db_name"] = SECRET
        name = "_".join(p for p in (f"sub-{person}", session, "T1w") if p)
        place = root / f"sub-{person}" / session / "anat"
        place.mkdir(parents=True)
        nib.save(image, place / f"{name}.nii.gz")
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "Made up", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.0/x"})
    )
    return root


def files_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_both_levels_write_derivatives(study, tmp_path, model):
    out = tmp_path / "out"
    first = call(study, out, "participant", "--model", model)
    assert first.exit_code == 0, first.output
    assert "3 scans done, 0 were whole before, 0 failed" in first.output
    expected = [
        f"{folder}/anat/{stem}_desc-{rest}"
        for folder, stem in (
            ("sub-01/ses-a", "sub-01_ses-a"),
            ("sub-01/ses-b", "sub-01_ses-b"),
            ("sub-02", "sub-02"),
        )
        for rest in ("ldae_T1w.nii.gz", "ldae_codes.json", "ldae_codes.tsv", "preproc_T1w.nii.gz")
    ]
    own = [".bidsignore", "dataset_description.json"]
    assert files_of(out) == sorted([*own, *expected])
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "neurodiff"
    assert described["SourceDatasets"] == [{"Name": "Made up", "DOI": "doi:10.0/x"}]
    again = call(study, out, "participant", "--model", model)
    assert "0 scans done, 3 were whole before" in again.output
    group = call(study, out, "group")
    assert group.exit_code == 0, group.output
    table = pd.read_csv(out / "group_desc-ldae_codes.tsv", sep="\t", dtype={"session": str})
    assert len(table) == 3
    code = pd.read_csv(out / "sub-02/anat/sub-02_desc-ldae_codes.tsv", sep="\t").to_numpy()[0]
    row = table[table["subject"].astype(str).str.contains("02")].filter(regex=r"^c\d+$")
    np.testing.assert_allclose(row.to_numpy()[0], code, rtol=1e-6)
    assert (out / "group_T1w.html").is_file()


def test_no_word_of_a_patient_and_no_path_is_written(study, tmp_path, model):
    out = tmp_path / "out"
    call(study, out, "participant", "--model", model)
    call(study, out, "group")
    for path in out.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.name.endswith(".nii.gz"):
            header = nib.load(path).header
            data = header.binaryblock
            assert not header.extensions
        assert SECRET.encode() not in data, path
        if path.suffix in (".json", ".tsv"):
            assert str(tmp_path).encode() not in data, path


def test_one_person_of_many_and_nobody(study, tmp_path, model):
    out = tmp_path / "out"
    one = call(study, out, "participant", "--model", model, "--participant-label", "sub-02")
    assert "1 scans done" in one.output
    assert not (out / "sub-01").exists()
    none = call(study, out, "participant", "--model", model, "--participant-label", "09")
    assert none.exit_code == 3
    assert "there is no sub-09" in none.output
    one = call(study, out, "participant", "--model", model, "--session-label", "b")
    assert (out / "sub-01/ses-b").is_dir()
    assert not (out / "sub-01/ses-a").exists()


def test_a_broken_scan_is_named_and_the_rest_goes_on(study, tmp_path, model):
    broken = study / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "out"
    found = call(study, out, "participant", "--model", model)
    assert found.exit_code == 1
    assert "2 scans done, 0 were whole before, 1 failed" in found.output
    assert "Traceback" not in found.output
    stopped = call(
        study, tmp_path / "other", "participant", "--model", model, "--stop-on-first-crash"
    )
    assert "0 scans done" in stopped.output


def test_wrong_use_is_one_sentence(study, tmp_path, model):
    for words, code, told in (
        ((study, tmp_path / "o", "participant"), 2, "needs --model"),
        ((tmp_path / "no", tmp_path / "o", "participant", "--model", model), 3, "is not a folder"),
        ((study, study, "participant", "--model", model), 2, "is the input"),
        ((study, tmp_path / "o", "group"), 3, "run the level participant first"),
        ((study, tmp_path / "o", "participant", "--model", tmp_path), 3, "is no fitted model"),
    ):
        found = call(*words)
        assert (found.exit_code, told in found.output) == (code, True), found.output


def test_a_file_in_the_place_of_the_output_is_one_sentence(study, tmp_path, model):
    (tmp_path / "file").write_text("")
    found = call(study, tmp_path / "file", "participant", "--model", model)
    assert found.exit_code == 3, found.output
    assert "file: File exists; check the place" in found.output


def test_names_follow_the_standard():
    assert derivative_name({"desc": "x", "space": "fsLR", "sub": "01", "den": "91k"}, "bold",
                           ".nii") == "sub-01_space-fsLR_den-91k_desc-x_bold.nii"  # fmt: skip
    with pytest.raises(UsageError, match="no entity 'colour'"):
        derivative_name({"colour": "red"}, "T1w", ".nii")
    with pytest.raises(UsageError, match="gives no BIDS label"):
        label("___")


def test_the_command_is_installed():
    assert importlib.util.find_spec("neurodiff.cli_bids")
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert 'neurodiff-bids = "neurodiff.cli_bids:main"' in text
