"""`neurodiff check nsd`: every problem of a folder at once, none of them raised."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from neurodiff.datasets.nsd_files import SESSIONS
from neurodiff.datasets.opening import check_dataset


def _load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layout = _load("nsd_layout")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A subject who completed 5 sessions, with all files but some families of ROIs."""
    monkeypatch.setitem(SESSIONS, 1, 5)
    layout.write_nsd(tmp_path, sessions=range(1, 6))
    layout.write_pictures(tmp_path)
    layout.write_captions(tmp_path, {})
    monkeypatch.setattr("neurodiff.datasets.nsd_check.PLAIN", ("prf-visualrois", "floc-faces"))
    return tmp_path


def problems(root, **options):
    table = check_dataset("nsd", root=root, **options)
    assert (table.query("status != 'ok'")["what_to_do"] != "").all()
    return table.query("status != 'ok'")


def found(root, what):
    table = check_dataset("nsd", root=root)
    rows = table[table["what"].str.contains(what, regex=False)]
    assert len(rows) == 1, table["what"].tolist()
    return rows.iloc[0]


def test_a_whole_subject(root):
    assert len(problems(root)) == 0
    assert len(problems(root, subject="subj01")) == 0
    assert found(root, "mask")["found"] == "nsdgeneral has 20 voxels"
    order, pictures, shared, _ = layout.design()
    shown = set(pictures[0, order[:3750] - 1])
    test = len(shown & set(shared))
    assert found(root, "split")["found"] == (
        f"{len(shown) - test} pictures to train on, {test} to test on"
    )
    assert found(root, "Kastner2015")["found"] == "2 of 2 named regions are in the mask"


def test_the_sessions_that_were_withheld_are_a_note(root):
    for session in (3, 4, 5):
        (layout.betas_folder(root) / f"betas_session{session:02d}.nii.gz").unlink()
    assert len(problems(root)) == 0
    table = check_dataset("nsd", root=root)
    notes = table[table["found"].str.startswith("note:")]["found"].tolist()
    assert notes == [
        "note: sessions 1 to 2 of 5; open them with sessions=2, the split before the last 3 were "
        "public"
    ]
    (layout.betas_folder(root) / "betas_session01.nii.gz").unlink()
    row = problems(root).iloc[0]
    assert row["status"] == "missing"
    assert row["found"] == (
        "sessions 2 of 5; missing 1, 3 to 5, first betas_session01.hdf5 or betas_session01.nii.gz"
    )


def test_it_goes_on_after_every_problem(root):
    folder = layout.betas_folder(root)
    (folder / "betas_session02.nii.gz").write_bytes(b"x" * 400)
    layout.write_nifti(root, 4, layout.betas(4, shape=(2, 2, 2)))
    (folder / "ncsnr.nii.gz").unlink()
    layout.save_volume(layout.roi_folder(root) / "prf-visualrois.nii.gz",
                       np.full(layout.SHAPE, 9, np.int16))  # fmt: skip
    (root / "nsddata/freesurfer/fsaverage/label/floc-faces.mgz.ctab").write_text("what is this")
    layout.write_pictures(root, count=30)
    (root / "annots/COCO_73k_annots_curated.npy").unlink()
    (root / "nsddata/experiments/nsd/nsd_expdesign.mat").write_text("broken")
    rows = problems(root)
    assert [(row.status, row.what.split(", ")[-1]) for row in rows.itertuples()] == [
        ("broken", "design"),
        ("broken", "pictures"),
        ("missing", "captions"),
        ("broken", "session 2"),
        ("broken", "session 4"),
        ("missing", "func1pt8mm"),
        ("broken", "prf-visualrois"),
        ("broken", "floc-faces"),
    ]
    assert "labels 9 have no name" in rows["found"].iloc[6]


def test_values_of_the_first_session(root):
    values = layout.betas(1)
    values[layout.mask_of() > 0] = 3
    layout.write_nifti(root, 1, values)
    row = problems(root).iloc[0]
    assert row["found"] == "0 of 20 features hold NaN, 20 never vary"
    (path := layout.write_nifti(root, 1)).write_bytes(path.read_bytes()[:5000])
    assert "truncated" in problems(root)["found"].iloc[0]


def test_no_mask_no_subject_no_folder(root, tmp_path):
    (layout.roi_folder(root) / "nsdgeneral.nii.gz").unlink()
    assert problems(root)["what"].tolist() == ["subj01 mask, func1pt8mm"]
    assert "subj03 betas" in problems(root, subject=3)["what"].tolist()
    assert problems(tmp_path / "none")["what"].tolist() == ["folder"]
    (tmp_path / "empty").mkdir()
    assert "subject" in problems(tmp_path / "empty")["what"].tolist()


def test_pictures_that_differ_between_subjects(root):
    pictures = layout.design()[1]
    pictures[3, :5] = pictures[3, -5:]
    layout.write_design(root, pictures=pictures)
    assert problems(root)["found"].iloc[0].startswith("the first 1,000 pictures differ")
