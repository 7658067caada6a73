"""Derived CT series: valid, linked to their sources, without names where asked, and read back."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_identity import Remapped, earlier
from neurodiff.datasets.ct_nifti import write_nifti
from neurodiff.datasets.ct_series import CTSeries, read_series
from neurodiff.datasets.ct_write import write_series, write_warnings


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = _load("ct_files")
KEY = "a key that nobody knows"
SECRETS = re.compile(rb"secret|19500102|THORAX", re.IGNORECASE)


@pytest.fixture
def series(tmp_path):
    files.write_slices(tmp_path / "in")
    return read_series(tmp_path / "in")


def written(series, folder, **options):
    hu = options.pop("hu", series.hu + np.float32(0.3))
    paths = write_series(series, hu, folder, description="UB to YA, linear", **options)
    return paths, [pydicom.dcmread(path) for path in paths]


def complaints(path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not here; it comes with dicom3tools")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_the_list_of_a_derived_series(series, tmp_path):
    paths, made = written(series, tmp_path / "out", provenance={"model": "abc123", "seed": 7})
    source = pydicom.dcmread(series.sources[0].path)
    assert [path.name for path in paths] == [f"slice_{k:04d}.dcm" for k in range(1, 6)]
    assert len({file.SeriesInstanceUID for file in made}) == 1
    assert len({file.SOPInstanceUID for file in made}) == 5
    old = {s.sop_instance for s in series.sources} | {series.sources[0].series}
    assert not old & {uid for file in made for uid in (file.SOPInstanceUID, file.SeriesInstanceUID)}
    first = made[0]
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName",
                 "ConvolutionKernel", "SliceThickness", "PixelSpacing", "ImagePositionPatient",
                 "ImageOrientationPatient"):  # fmt: skip
        assert first[name].value == source[name].value, name
    assert list(first.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert first.SeriesNumber != source.SeriesNumber
    assert "UB to YA" in first.DerivationDescription
    assert "abc123" in first.DerivationDescription
    code = first.DerivationCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113062", "DCM")
    for file, origin in zip(made, series.sources, strict=True):
        item = file.SourceImageSequence[0]
        assert item.ReferencedSOPInstanceUID == origin.sop_instance
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert item.SpatialLocationsPreserved == "YES"
    equipment = first.ContributingEquipmentSequence[0]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert "neurodiff" in equipment.SoftwareVersions
    assert "abc123" in equipment.ContributionDescription
    assert (first.RescaleSlope, first.RescaleIntercept, first.RescaleType) == (1, 0, "HU")
    assert (first.PixelRepresentation, first.BitsStored) == (1, 16)
    assert "BurnedInAnnotation" not in first
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert about["provenance"] == {"model": "abc123", "seed": 7}
    assert about["slices"][4]["sources"] == [series.sources[4].sop_instance]


def test_private_and_free_text_never_go_out(series, tmp_path):
    paths, made = written(series, tmp_path / "out")
    for file in made:
        assert not any(element.tag.is_private for element in file)
        for name in ("InstitutionName", "ImageComments", "OperatorsName"):
            assert name not in file
    assert b"Secret comment" not in paths[0].read_bytes()


def test_deidentified_files_hold_nothing_of_the_person(series, tmp_path):
    folder = tmp_path / "out"
    _, made = written(series, folder, mode="deidentify", key=KEY)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not SECRETS.search(content), path.name
        assert KEY.encode() not in content
        for source in series.sources:
            for uid in (
                source.sop_instance,
                source.study,
                source.series,
                source.frame_of_reference,
            ):
                assert not re.search(re.escape(uid.encode()) + rb"[^\d.]", content)
    first = made[0]
    assert first.PatientIdentityRemoved == "YES"
    assert first.StudyDate == ""
    assert first.LongitudinalTemporalInformationModified == "REMOVED"
    assert first.PatientID.startswith("anon-")


def test_new_identifiers_are_the_same_in_every_run_of_one_key(series, tmp_path):
    def facts(folder, key):
        _, made = written(series, tmp_path / folder, mode="deidentify", key=key)
        return [
            (f.PatientID, f.StudyInstanceUID, f.FrameOfReferenceUID,
             f.SourceImageSequence[0].ReferencedSOPInstanceUID) for f in made
        ]  # fmt: skip

    one, again, other = facts("a", KEY), facts("b", KEY), facts("c", KEY + "!")
    assert one == again
    assert not set(one[0]) & set(other[0])
    assert all(len(uid) <= 64 and pydicom.uid.UID(uid).is_valid for _, *uids in one for uid in uids)
    assert Remapped(KEY.encode(), shift=False).uid("") == ""


def test_an_agent_is_named_only_where_the_person_is(tmp_path):
    files.write_slices(tmp_path / "in", range(2), ContrastBolusAgent="Iomeron 400 Secret")
    series = read_series(tmp_path / "in")
    assert written(series, tmp_path / "a")[1][0].ContrastBolusAgent == "Iomeron 400 Secret"
    _, made = written(series, tmp_path / "b", mode="deidentify", key=KEY)
    assert made[0].ContrastBolusAgent == "CONTRAST"


def test_dates_are_shifted_by_days_of_the_person(series, tmp_path):
    _, made = written(series, tmp_path / "out", mode="deidentify", key=KEY, dates="shift")
    assert re.fullmatch(r"20[01]\d{5}", made[0].StudyDate)
    assert made[0].StudyDate < "20200304"
    assert earlier("20200301", 1) == "20200229"
    assert earlier("no date", 1) is None


def test_read_back_by_ourselves_and_three_others(series, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    sitk = pytest.importorskip("SimpleITK")
    folder = tmp_path / "out"
    paths, made = written(series, folder)
    expected = np.rint(series.hu + 0.3)
    assert np.abs(expected - (series.hu + 0.3)).max() <= 0.5
    again = read_series(folder)
    np.testing.assert_array_equal(again.hu, expected)
    np.testing.assert_allclose(again.affine, series.affine, atol=1e-6)
    for file, image in zip(made, expected, strict=True):
        np.testing.assert_array_equal(file.pixel_array, image)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in paths])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(reader.Execute()), expected)
    volume = highdicom.get_volume_from_series(made)
    found = np.array(volume.array)
    assert sorted(found.ravel()) == sorted(expected.ravel())
    point = volume.affine @ [*np.argwhere(found == found.max())[0], 1]
    at = np.unravel_index(expected.argmax(), expected.shape)
    np.testing.assert_allclose(point[:3] * [-1, -1, 1], again.position_of(at)[0], atol=1e-6)


def test_padding_gets_its_value_back(tmp_path):
    values = np.full((16, 12), 40, np.int16)
    values[0], values[-1], values[:, 0], values[:, -1] = -2048, -2048, -2048, -2048
    for k in range(2):
        files.save(files.ct_slice(k, values=values), tmp_path / "in" / f"{k}.dcm")
    series = read_series(tmp_path / "in")
    _, made = written(series, tmp_path / "out", hu=series.hu + 1)
    assert made[0].pixel_array[0, 0] == made[0].PixelPaddingValue == -2048
    again = read_series(tmp_path / "out")
    np.testing.assert_array_equal(again.padding, series.padding)
    # a measured pixel of that value is not taken for padding
    hu = series.hu.copy()
    hu[0, 5, 5] = -2048
    _, made = written(series, tmp_path / "out2", hu=hu)
    assert made[0].PixelPaddingValue == -2049
    assert read_series(tmp_path / "out2").hu[0, 5, 5] == -2048


def test_interpolated_slices_name_both_neighbours(tmp_path):
    files.write_slices(tmp_path / "in", [0, 1, 3, 4])
    series = read_series(tmp_path / "in", missing="interpolate")
    _, made = written(series, tmp_path / "out")
    assert len(made) == 5
    assert [len(file.SourceImageSequence) for file in made] == [1, 1, 2, 1, 1]
    assert "interpolated" in made[2].DerivationDescription
    assert made[2].SourceImageSequence[0].SpatialLocationsPreserved == "NO"
    assert read_series(tmp_path / "out").regular


def test_a_multi_frame_source_becomes_single_slices(tmp_path):
    files.save(files.enhanced(), tmp_path / "in" / "a.dcm")
    series = read_series(tmp_path / "in")
    paths, made = written(series, tmp_path / "out", hu=series.hu)
    assert [f.SourceImageSequence[0].ReferencedFrameNumber for f in made] == [3, 2, 1]
    assert (made[0].ConvolutionKernel, float(made[0].KVP)) == ("FC13", 120.0)
    np.testing.assert_array_equal(read_series(tmp_path / "out").hu, series.hu)
    assert complaints(paths[0]) == []


@pytest.mark.parametrize("mode", ["link", "deidentify"])
def test_made_series_are_valid(series, tmp_path, mode):
    paths, _ = written(series, tmp_path / "out", mode=mode, key=KEY)
    assert complaints(paths[0]) == []


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["philips_ub_1mm", "toshiba_fc51", "ge_tilt_irregular"])
def test_series_derived_from_real_ones_are_valid(shared_data, tmp_path, name):
    highdicom = pytest.importorskip("highdicom")
    sitk = pytest.importorskip("SimpleITK")
    series = read_series(shared_data / "ct" / name)
    paths, made = written(series, tmp_path / "link")
    hidden, _ = written(series, tmp_path / "hidden", mode="deidentify", key=KEY)
    for path in (paths[0], paths[-1], hidden[0]):
        assert complaints(path) == []
    again = read_series(tmp_path / "link")
    np.testing.assert_array_equal(again.padding, series.padding)
    keep = ~series.padding
    np.testing.assert_array_equal(again.hu[keep], np.rint(series.hu + np.float32(0.3))[keep])
    np.testing.assert_allclose(again.stack.origins, series.stack.origins, atol=1e-6)
    stored = np.stack([file.pixel_array for file in made])
    np.testing.assert_array_equal(stored[keep], again.hu[keep])
    one = sitk.GetArrayFromImage(sitk.ReadImage(str(paths[1])))[0]
    np.testing.assert_array_equal(one, stored[1])
    if series.regular:
        volume = highdicom.get_volume_from_series(made)
        assert np.sort(volume.array, axis=None)[::999].tolist() == (
            np.sort(stored, axis=None)[::999].tolist()
        )


def test_nifti_with_its_sources_beside_it(series, tmp_path):
    path, beside = write_nifti(series, series.hu + 2, tmp_path / "a.nii.gz", provenance={"seed": 3})
    image = nibabel.load(path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    volume = Volume.open(path)
    np.testing.assert_array_equal(volume.data[0].transpose(2, 1, 0), series.hu + 2)
    np.testing.assert_allclose(volume.affine, series.affine, atol=1e-5)
    about = json.loads(beside.read_text())
    assert about["sources"] == [source.sop_instance for source in series.sources]
    assert about["hu_change"]["largest_change"] == 2.0
    assert about["provenance"] == {"seed": 3}
    _, beside = write_nifti(series, series.hu, tmp_path / "b.nii", mode="deidentify", key=KEY)
    assert files.ROOT not in beside.read_text()
    with pytest.raises(UsageError, match=r"\.nii"):
        write_nifti(series, series.hu, tmp_path / "a.png")


@pytest.mark.parametrize("uneven", [False, True])
def test_nifti_of_a_tilted_series_keeps_the_shear(tmp_path, uneven):
    down = [0.0, float(np.cos(0.3)), float(-np.sin(0.3))]
    for k in range(4):
        place = [-3.0, -4.0, 2.0 * k + uneven * 0.3 * k**2]
        file = files.ct_slice(
            k, ImageOrientationPatient=[1, 0, 0, *down], ImagePositionPatient=place
        )
        files.save(file, tmp_path / "in" / f"{k}.dcm")
    series = read_series(tmp_path / "in")
    if uneven:
        with pytest.raises(DataError, match="unevenly spaced"):
            write_nifti(series, series.hu, tmp_path / "a.nii")
        return
    path, _ = write_nifti(series, series.hu, tmp_path / "a.nii")
    image = nibabel.load(path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.affine, series.affine, atol=1e-5)
    np.testing.assert_allclose((image.affine @ [2, 3, 1, 1])[:3], series.position_of([1, 3, 2])[0],
                               atol=1e-5)  # fmt: skip


def test_nothing_is_left_of_a_write_that_fails(series, tmp_path, monkeypatch):
    calls = []
    original = pydicom.Dataset.save_as

    def full(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return original(self, *arguments, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(DataError, match="disk full"):
        written(series, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_refused(series, tmp_path):
    hu = series.hu
    with pytest.raises(UsageError, match="has shape"):
        write_series(series, hu[:2], tmp_path / "out")
    with pytest.raises(DataError, match="NaN"):
        write_series(series, hu * np.nan, tmp_path / "out")
    with pytest.raises(DataError, match="16 bits"):
        write_series(series, hu + 1e5, tmp_path / "out")
    with pytest.raises(UsageError, match="at least 16"):
        write_series(series, hu, tmp_path / "out", mode="deidentify", key="short")
    with pytest.raises(UsageError, match="'link' or"):
        write_series(series, hu, tmp_path / "out", mode="hide")
    with pytest.raises(UsageError, match="holds files"):
        write_series(series, hu, tmp_path / "in")
    made = CTSeries.from_array(hu, spacing=(1.0, 1.0))
    with pytest.raises(UsageError, match="no headers"):
        write_series(made, hu, tmp_path / "out")
    with pytest.raises(UsageError, match="64"):
        write_series(series, hu, tmp_path / "out", description="x" * 65)


def test_what_is_not_promised_is_said(series, tmp_path):
    assert any("burned into" in text for text in write_warnings(series))
    assert not any("face" in text for text in write_warnings(series))
    files.write_slices(tmp_path / "head", BodyPartExamined="HEAD", BurnedInAnnotation="YES")
    said = write_warnings(read_series(tmp_path / "head"))
    assert any("face" in text for text in said)
    assert any("look at them" in text for text in said)
