"""The index of an archive: what headers say, no names, only what is new, and all that failed."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.ct import open_series
from neurodiff.datasets.ct_identity import pseudonym
from neurodiff.datasets.ct_index import coverage, failures, index_ct, read_index, series_table
from neurodiff.datasets.ct_kernels import kernel_name
from neurodiff.datasets.opening import check_dataset, open_dataset, open_recording


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = _load("ct_files")
KEY = "a key that nobody knows"
ROOT = files.ROOT


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "archive"
    files.write_slices(root / "one" / "a")
    files.write_slices(
        root / "two", range(3), SeriesInstanceUID=ROOT + "8", SeriesNumber=6, PatientID="SECRET-2",
        Manufacturer="TOSHIBA", ConvolutionKernel="FC51", ContrastBolusAgent="Iomeron",
        SliceThickness=1.0,
    )  # fmt: skip
    scout = files.ct_slice(40, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    files.save(scout, root / "two" / "scout.dcm")
    (root / "two" / "notes.txt").write_text("none")
    whole = (root / "two" / "90.dcm").read_bytes()
    (root / "two" / "cut.dcm").write_bytes(whole[:900])
    return root


def test_what_headers_say(archive):
    table = index_ct(archive, key=KEY)
    assert table["status"].value_counts().to_dict() == {"slice": 8, "left out": 2, "unreadable": 1}
    row = table.set_index("path").loc[os.path.join("two", "90.dcm")]
    assert (row["vendor"], row["kernel"], row["kernel_class"]) == ("TOSHIBA", "FC51", "sharp")
    assert (row["kvp"], row["mas"], row["thickness_mm"]) == (120.0, 100.0, 1.0)
    assert (row["row_mm"], row["column_mm"], row["rows"]) == (0.5, 0.8, 16)
    assert bool(row["contrast"])
    assert row["patient"] == pseudonym("SECRET-2", KEY.encode())
    assert table["path"].is_monotonic_increasing


def test_no_name_or_number_of_a_person_is_stored(archive, tmp_path):
    out = tmp_path / "i.parquet"
    table = index_ct(archive, out)
    text = table.to_csv() + str(out.read_bytes())
    for secret in ("SECRET-2", files.PATIENT, files.NAME, "Secret", "19500102", "20200304",
                   ROOT + "2", ROOT + "3", "SECRET-ACC"):  # fmt: skip
        assert secret not in text
    # without a key the salt differs from index to index, and stays within one
    other = index_ct(archive, tmp_path / "j.parquet")
    assert not set(table["patient"].dropna()) & set(other["patient"].dropna())
    pd.testing.assert_frame_equal(index_ct(archive, out), table)


def test_only_what_is_new_or_changed_is_read(archive, tmp_path):
    out = tmp_path / "i.parquet"
    assert index_ct(archive, out, key=KEY).attrs["counts"] == {"read": 11, "kept": 0, "gone": 0}
    assert index_ct(archive, out, key=KEY).attrs["counts"] == {"read": 0, "kept": 11, "gone": 0}
    files.write_slices(archive / "one" / "a", [1], ConvolutionKernel="B70f")
    (archive / "two" / "cut.dcm").unlink()
    files.write_slices(archive / "three", [0], PatientID="SECRET-3", SeriesInstanceUID=ROOT + "9")
    table = index_ct(archive, out, key=KEY)
    assert table.attrs["counts"] == {"read": 2, "kept": 9, "gone": 1}
    pd.testing.assert_frame_equal(table, index_ct(archive, key=KEY), check_like=False)
    assert "B70f" in set(table["kernel"])


def test_failures_are_listed(archive):
    lost = failures(index_ct(archive, key=KEY)).set_index("path")["reason"]
    assert "LOCALIZER" in lost[os.path.join("two", "scout.dcm")]
    assert "no DICOM file" in lost[os.path.join("two", "notes.txt")]
    assert os.path.join("two", "cut.dcm") in lost


def test_coverage_counts(archive):
    table = coverage(index_ct(archive, key=KEY))
    found = table[["vendor", "kernel", "thickness_mm", "patients", "series", "slices"]]
    assert found.values.tolist() == [
        ["SIEMENS", "B30", 2.0, 1, 1, 5], ["TOSHIBA", "FC51", 1.0, 1, 1, 3]
    ]  # fmt: skip


@pytest.mark.slow
def test_several_processes_give_the_same_table(tmp_path):
    for k in range(4):
        files.write_slices(tmp_path / f"s{k}", range(130), SeriesInstanceUID=f"{ROOT}7.{k}")
    one = index_ct(tmp_path, key=KEY)
    pd.testing.assert_frame_equal(one, index_ct(tmp_path, key=KEY, workers=2))


def test_one_row_a_series(archive):
    scans = series_table(index_ct(archive, key=KEY))
    assert scans["slices"].tolist() == [5, 3]
    assert scans["step_mm"].tolist() == [2.0, 2.0]
    assert scans["path"].tolist() == [os.path.join("one", "a"), "two"]


def test_a_cohort_of_series(archive):
    cohort = open_dataset("ct", root=archive, key=KEY)
    assert len(cohort) == 2
    assert all(name.startswith("anon-") for name in cohort.subjects)
    assert cohort[0].unit == "HU"
    assert cohort[0].shape == (12, 16, 5)
    series = open_series(cohort, 1)
    np.testing.assert_array_equal(series.hu[2], files.slice_values(2))
    assert len(cohort.left_out) == 3
    assert len(open_dataset("ct", root=archive, key=KEY, subject=cohort.subjects[1])) == 1
    with pytest.raises(UsageError, match="no subject"):
        open_dataset("ct", root=archive, key=KEY, subject="nobody")
    with pytest.raises(UsageError, match="cohort of volumes"):
        open_recording("ct", root=archive)
    found = check_dataset("ct", root=archive)
    assert (found["status"] == "ok").all()
    (archive / "one" / "a" / "88.dcm").unlink()
    results, failed = open_dataset("ct", root=archive, key=KEY).each(lambda row, v: v.shape)
    assert len(results) == 1
    assert "lacks 1 slice" in failed["reason"][0]
    assert "broken" in check_dataset("ct", root=archive)["status"].tolist()


def test_what_is_refused(archive, tmp_path):
    with pytest.raises(MissingDataError, match="no folder"):
        index_ct(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match="no file"):
        index_ct(tmp_path / "empty")
    out = tmp_path / "i.parquet"
    index_ct(archive, out, key=KEY)
    with pytest.raises(UsageError, match="with a key"):
        index_ct(archive, out)
    with pytest.raises(UsageError, match="another key"):
        index_ct(archive, out, key=KEY + "!")
    out.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="no parquet"):
        read_index(out)
    pd.DataFrame({"a": [1]}).to_parquet(out)
    with pytest.raises(DataError, match="no CT index"):
        index_ct(archive, out)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no CT slice"):
        open_dataset("ct", root=tmp_path / "text")


def test_names_of_kernels(tmp_path):
    assert kernel_name("GE MEDICAL SYSTEMS", ("bone plus",)) == ("BONEPLUS", "bone")
    assert kernel_name("SIEMENS", ("B31f", "3")) == ("B30", "medium")
    assert kernel_name(None, ("B31f",)) == ("B31f", None)
    assert kernel_name("SIEMENS", ()) == (None, None)
    own = tmp_path / "k.yaml"
    own.write_text("siemens:\n  X: {class: soft, also: [B31f]}\n")
    assert kernel_name("Siemens Healthineers", ("b31F",), own) == ("X", "soft")
    bad = tmp_path / "bad.yaml"
    bad.write_text("siemens:\n  X: {class: nice, also: []}\n")
    with pytest.raises(DataError, match="class: soft"):
        kernel_name("siemens", ("X",), bad)


@pytest.mark.shared_data
def test_real_scanners(shared_data):
    table = coverage(index_ct(shared_data / "ct", key=KEY))
    found = {(row["vendor"], row["kernel"]) for _, row in table.iterrows()}
    assert found == {
        ("Philips", "UB"), ("Philips", "YA"), ("GE MEDICAL SYSTEMS", "STANDARD+"),
        ("TOSHIBA", "FC13"), ("TOSHIBA", "FC51"),
    }  # fmt: skip
    assert table.set_index("kernel").loc["UB", "iterative"] == "iDose"
