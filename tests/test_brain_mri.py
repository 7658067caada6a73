"""Scans found in each layout, with what their tables say and the traps of each."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.brain_mri import discover, find_layout, ldae_2025_split, open_brain_mri
from neurodiff.datasets.brain_mri_words import months_of
from neurodiff.datasets.opening import check_dataset, open_dataset, open_recording


def _load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write = _load("brain_layouts")


def known(cohort, column):
    return [None if v is None or v != v else v for v in cohort.scans[column].tolist()]


@pytest.mark.parametrize("name", list(write.LAYOUT_WRITERS))
def test_the_layout_is_told_from_the_names(tmp_path, name):
    assert find_layout(write.LAYOUT_WRITERS[name](tmp_path)) == name
    cohort = discover(tmp_path)
    assert cohort[0].shape == (2, 2, 2)
    pd.testing.assert_frame_equal(cohort.scans, discover(tmp_path, name).scans)


def test_bids(tmp_path):
    cohort = discover(write.bids(tmp_path))
    assert cohort.ids == ["sub-ADNI002S0295_M000", "sub-ADNI002S0295_M006",
                          "sub-ADNI002S0295_M024", "sub-ADNI011S0002_M000",
                          "sub-ADNI011S0003_M000"]  # fmt: skip
    # the visit's table before the person's; the age of the third visit from the first
    np.testing.assert_allclose(cohort.scans["age"].iloc[:4], [84.8, 85.3, 86.8, 74.3])
    assert known(cohort, "age")[4] is None
    assert known(cohort, "diagnosis") == ["CN", "MCI", "AD", None, "AD"]
    assert known(cohort, "sex") == ["M", "M", "M", "F", "F"]
    assert known(cohort, "site") == ["002"] * 3 + ["011"] * 2
    # run 1 counts, whatever the order of names; the others and the stray file are listed
    assert cohort["sub-ADNI011S0002_M000"].data.max() == 1
    reasons = cohort.left_out["reason"].tolist()
    assert len(reasons) == 3
    assert sum("second scan with the id sub-ADNI011S0002_M000" in text for text in reasons) == 2
    assert any("its name says sub-ADNI099S9999" in reason for reason in reasons)


def test_an_age_at_baseline_in_every_visits_row_is_of_the_first(tmp_path):
    for session in ("ses-M000", "ses-M024"):
        write.scan(tmp_path / f"sub-1/{session}/anat/sub-1_{session}_T1w.nii.gz")
    write.text(tmp_path / "sub-1/sub-1_sessions.tsv", """
        session_id  age_bl  diagnosis_sc  diagnosis
        ses-M000  70.0  CN  CN
        ses-M024  70.0  CN  MCI
    """)  # fmt: skip
    cohort = discover(tmp_path)
    assert known(cohort, "age") == [70.0, 72.0]
    assert known(cohort, "diagnosis") == ["CN", "MCI"]


def test_all_runs_of_a_session(tmp_path):
    cohort = discover(write.bids(tmp_path), repeats="all")
    assert cohort.ids[3:6] == ["sub-ADNI011S0002_M000", "sub-ADNI011S0002_M000_run-2",
                               "sub-ADNI011S0002_M000_run-10"]  # fmt: skip
    parts = cohort.split({"train": 0.67, "test": 0.33}, seed=0, stratify=[])
    assert len(set(parts["train"].subjects) & set(parts["test"].subjects)) == 0


def test_sessions_that_state_no_months(tmp_path):
    for session in ("ses-01", "ses-02"):
        write.scan(tmp_path / "sub-1" / session / "anat" / f"sub-1_{session}_T1w.nii.gz")
    write.scan(tmp_path / "sub-2/anat/sub-2_T1w.nii.gz")
    cohort = discover(tmp_path)
    assert cohort.ids == ["sub-1_01", "sub-1_02", "sub-2_M000"]
    assert known(cohort, "session") == [None, None, 0.0]
    assert any("'ses-01', which states no months" in note for note in cohort.notes)
    assert any("no participants.tsv" in note for note in cohort.notes)
    dates = write.text(tmp_path / "visits.csv", """
        subject  session  scan_date  age
        1  01  2001-01-01  70
        1  02  2003-01-01  n/a
    """)  # fmt: skip
    dated = discover(tmp_path, table=dates)
    assert known(dated, "session") == [0.0, 24.0, 0.0]
    assert known(dated, "age") == [70.0, None, None]


def test_caps_prefers_the_whole_image(tmp_path):
    cohort = discover(write.caps(tmp_path))
    assert cohort.ids == ["sub-01_M000", "sub-01_M012"]
    assert [volume.data.max() for volume in cohort] == [2.0, 1.0]
    assert "Crop" in cohort.left_out["path"][0]


def test_oasis1_knows_that_mr2_is_the_same_person(tmp_path):
    cohort = discover(write.oasis1(tmp_path))
    assert known(cohort, "subject") == ["OAS1_0001", "OAS1_0061", "OAS1_0061"]
    assert known(cohort, "session") == [0.0, 0.0, 0.9]
    assert known(cohort, "diagnosis") == ["CN", None, None]  # the young have no CDR
    assert cohort[0].data.max() == 2  # the masked image
    assert cohort.left_out["scan"].tolist() == ["OAS1_0099_MR1"]
    assert any("left and right" in note for note in cohort.notes)


def test_oasis2(tmp_path):
    cohort = discover(write.oasis2(tmp_path))
    assert cohort.ids == ["OAS2_0001_M000", "OAS2_0001_M015"]
    assert known(cohort, "diagnosis") == ["CN", "AD"]
    assert known(cohort, "age") == [87.0, 88.0]
    assert cohort[1].data.max() == 1  # the first of the repeats
    assert len(cohort.left_out) == 2


def test_oasis3_sessions_are_days(tmp_path):
    cohort = discover(write.oasis3(tmp_path))
    assert known(cohort, "session") == [0.0, 24.9]
    np.testing.assert_allclose(cohort.scans["age"], [65.15, 65.15 + 757 / 365.25])
    assert known(cohort, "diagnosis") == ["CN", "AD"]  # of the visit within a year
    assert known(cohort, "sex") == ["F", "F"]


def test_ixi(tmp_path):
    cohort = discover(write.ixi(tmp_path))
    assert known(cohort, "subject") == ["IXI002", "IXI012", "IXI013", "IXI014"]
    assert known(cohort, "age") == [35.8, 38.78, None, None]
    assert known(cohort, "sex") == ["F", "M", "M", None]
    assert known(cohort, "site") == ["Guys", "HH", "IOP", "HH"]
    assert set(known(cohort, "diagnosis")) == {"CN"}
    assert any("two ages" in note and "IXI013" in note for note in cohort.notes)


def test_ixi_without_the_reader_of_xls(tmp_path):
    if importlib.util.find_spec("xlrd"):
        pytest.skip("xlrd is installed")
    (write.ixi(tmp_path) / "IXI.csv").unlink()
    (tmp_path / "IXI.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    without = discover(tmp_path)
    assert set(known(without, "age")) == {None}
    assert any("needs the package xlrd" in note for note in without.notes)
    (tmp_path / "IXI.xls").write_text("no table")
    with pytest.raises(DataError, match="not a readable table"):
        discover(tmp_path)


def test_adni(tmp_path):
    cohort = discover(write.adni(tmp_path))
    assert cohort.ids == ["002_S_0295_M000", "002_S_0295_M006", "011_S_0003_M000"]
    np.testing.assert_allclose(cohort.scans["age"], [84, 85, 81.3], atol=0.05)
    assert known(cohort, "diagnosis") == ["CN", "CN", "AD"]
    assert known(cohort, "site") == ["002", "002", "011"]
    assert "dcm2niix" in cohort.left_out["reason"][0]
    (tmp_path / "ida.csv").unlink()
    (tmp_path / "ADNIMERGE.csv").unlink()
    by_date = discover(tmp_path)
    assert known(by_date, "session") == [0.0, 6.5, 0.0]
    assert set(known(by_date, "age")) == {None}


def test_the_published_csv_reads_months_from_the_path(tmp_path):
    for session in ("ses-M000", "ses-M012"):
        write.scan(tmp_path / f"sub-1/{session}/a.nii.gz")
    write.text(tmp_path / "train.csv", """
        subject  path  diagnosis  latent_path  age
        1  sub-1/ses-M000/a.nii.gz  AD  sub-1/a_compressed_latent.npz  70.5
        1  sub-1/ses-M012/a.nii.gz  AD  n/a  n/a
        1  sub-1/ses-M012/a.nii.gz  AD  n/a  71.5
        2  sub-2/ses-M000/a.nii.gz  CN  n/a  60
        3  n/a  CN  n/a  60
    """)  # fmt: skip
    cohort = discover(tmp_path / "train.csv")
    assert cohort.ids == ["1_M000", "1_M012"]
    assert known(cohort, "age") == [70.5, None]
    assert cohort.scans["latent_path"][0] == str(tmp_path / "sub-1/a_compressed_latent.npz")
    reasons = " | ".join(cohort.left_out["reason"])
    assert "does not exist" in reasons
    assert "line 6 of train.csv has no path" in reasons
    assert "a second scan with the id 1_M012" in reasons
    with pytest.raises(DataError, match="1 of 2 scans have no age, first 1_M012"):
        cohort.require("age")


def test_brlp_ages_are_hundredths(tmp_path):
    for name in "ab":
        write.scan(tmp_path / f"{name}.nii.gz")
    write.text(tmp_path / "scans.csv", """
        subject_id  image_uid  split  sex  age  diagnosis  image_path
        1  u1  train  1  0.705  0.5  a.nii.gz
        1  u2  train  1  0.725  1.0  b.nii.gz
    """)  # fmt: skip
    cohort = discover(tmp_path)
    np.testing.assert_allclose(cohort.scans["age"], [70.5, 72.5])
    assert known(cohort, "session") == [0.0, 24.0]
    assert known(cohort, "diagnosis") == ["MCI", "AD"]
    assert set(known(cohort, "split")) == {"train"}


def test_a_csv_of_our_own_keeps_ids_and_further_columns(tmp_path):
    for name in "ab":
        write.scan(tmp_path / f"{name}.nii.gz")
    write.text(tmp_path / "scans.csv", """
        scan  subject  path  session  true_ml  comment
        x_run-1  x  a.nii.gz  0.0  17.5  good
        x_run-2  x  b.nii.gz  0.0  n/a  7
    """)  # fmt: skip
    cohort = discover(tmp_path)
    assert cohort.ids == ["x_run-1", "x_run-2"]
    assert known(cohort, "true_ml") == [17.5, None]
    assert known(cohort, "comment") == ["good", "7"]
    assert (check_dataset("brain_mri", root=tmp_path, layout="csv")["status"] == "ok").all()


def test_folders_that_are_nothing_or_two_things(tmp_path):
    with pytest.raises(MissingDataError, match="no layout that is known"):
        discover(tmp_path)
    with pytest.raises(MissingDataError, match="does not exist"):
        discover(tmp_path / "none")
    write.bids(tmp_path)
    with pytest.raises(UsageError, match=r"no layout 'bid'.*Did you mean 'bids'"):
        discover(tmp_path, "bid")
    with pytest.raises(MissingDataError, match="no T1-weighted scan as ixi"):
        discover(tmp_path, "ixi")
    write.ixi(tmp_path)
    with pytest.raises(UsageError, match="looks like bids and ixi"):
        discover(tmp_path)
    assert len(discover(tmp_path, "ixi")) == 4
    (tmp_path / "scan.nii").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        discover(tmp_path / "scan.nii")
    write.text(tmp_path / "bad.csv", "path age")
    with pytest.raises(DataError, match=r"no column 'participant_id'"):
        discover(tmp_path / "bad.csv")


def test_words_of_sessions():
    assert [months_of(s) for s in ("ses-M000", "M6", "m144", "d0000", "Month 12", "scmri")] == [
        0.0, 6.0, 144.0, 0.0, 12.0, 0.0]  # fmt: skip
    assert all(np.isnan(months_of(s)) for s in ("01", "followup", "", None, "v06", "M6b"))


def test_by_name_and_check(tmp_path):
    cohort = open_dataset("brain_mri", root=write.bids(tmp_path), subject="ADNI002S0295")
    assert len(cohort) == 3
    with pytest.raises(UsageError, match="no subject '7'"):
        open_brain_mri(tmp_path, "7")
    with pytest.raises(UsageError, match="cohort of volumes"):
        open_recording("brain_mri", root=tmp_path)
    path = tmp_path / "sub-ADNI011S0003/ses-M000/anat/sub-ADNI011S0003_ses-M000_T1w.nii"
    path.write_bytes(path.read_bytes()[:300])
    found = check_dataset("brain_mri", root=tmp_path)
    broken = found[found["status"] == "broken"]
    assert broken["where"].tolist() == [str(path)]
    assert "damaged" in broken["found"].iloc[0]
    assert found["found"].str.contains("1 of 5 scans have no age").any()
    assert found["found"].str.contains("every voxel is 1").sum() == 4


def test_a_cohort_with_every_kind_of_bad_file_goes_on(tmp_path):
    import nibabel

    def place(subject):
        path = tmp_path / f"sub-{subject}/anat/sub-{subject}_T1w.nii"
        path.parent.mkdir(parents=True)
        return path

    values = np.ones((4, 4, 4), np.float32)
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(place("good"))
    nibabel.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), np.eye(4)).to_filename(place("four"))
    nibabel.Nifti1Image(values * np.nan, np.eye(4)).to_filename(place("nan"))
    zeros = place("zeros")
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(zeros)
    raw = bytearray(zeros.read_bytes())
    raw[280:328] = bytes(48)
    zeros.write_bytes(raw)
    place("empty").touch()
    cohort = discover(tmp_path)
    means, failed = cohort.each(lambda row, volume: float(volume.data.mean()))
    assert means == {"sub-good_M000": 1.0}
    reasons = dict(zip(failed["scan"], failed["reason"], strict=True))
    assert "4D file of 2 volumes" in reasons["sub-four_M000"]
    assert "holds NaN" in reasons["sub-nan_M000"]
    assert "is all zeros" in reasons["sub-zeros_M000"]
    assert "is empty" in reasons["sub-empty_M000"]
    assert (check_dataset("brain_mri", root=tmp_path)["status"] == "broken").sum() == 4


def test_the_published_split_is_by_subject_and_differs_between_stages():
    rows = [(f"s{n}", 6.0 * visit) for n in range(60) for visit in range(2)]
    from neurodiff.core.cohort import Cohort

    cohort = Cohort(pd.DataFrame(rows, columns=["subject", "session"]))
    parts = ldae_2025_split(cohort, "supervised")
    people = {name: set(part.subjects) for name, part in parts.items()}
    sizes = {name: len(names) for name, names in people.items()}
    assert sizes == {"train": 37, "validation": 17, "test": 6}
    assert len(set.union(*people.values())) == 60
    assert set(ldae_2025_split(cohort, "autoencoder")["test"].subjects) == people["test"]
    assert set(ldae_2025_split(cohort.select("session >= 0")).keys()) == set(parts)
    fewer = ldae_2025_split(cohort.select("subject != 's0'"), "supervised")
    assert set(fewer["test"].subjects) != people["test"]
    with pytest.raises(UsageError, match="no stage 'probe'"):
        ldae_2025_split(cohort, "probe")


def test_ages_that_cannot_be_are_said(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    ages = ("70", "seventy", "", "430")
    lines = [f"{n},{n}.nii.gz,{age}" for n, age in zip("abcd", ages, strict=True)]
    (tmp_path / "scans.csv").write_text("\n".join(["subject,path,age", *lines]))
    found = discover(tmp_path)
    assert [age == age for age in found.scans["age"]] == [True, False, False, False]
    assert len(found.notes) == 1
    assert "2 ages that are no numbers from 0 to 130, first in line 3" in found.notes[0]
    assert "seventy" not in found.notes[0]
