"""CT series: order, gaps, tilt, padding and what is refused, on made files and on real ones."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_series import CTSeries, read_series


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = _load("ct_files")
NAME, PATIENT, ROOT = files.NAME, files.PATIENT, files.ROOT
ct_slice, enhanced, save = files.ct_slice, files.enhanced, files.save
slice_values, write_slices = files.slice_values, files.write_slices


@pytest.fixture
def five(tmp_path):
    write_slices(tmp_path)
    return tmp_path


def test_slices_lie_in_order_whatever_files_are_called(five):
    series = read_series(five)
    np.testing.assert_array_equal(series.hu, [slice_values(k) for k in range(5)])
    assert np.all(np.diff(series.positions_mm) == 2.0)
    assert series.regular
    assert series.facts.kernel == ("B30f",)
    assert (series.facts.vendor, series.facts.mas, series.facts.slices) == ("SIEMENS", 100.0, 5)


def test_reversed_instance_numbers_change_nothing(five, tmp_path_factory):
    other = tmp_path_factory.mktemp("reversed")
    for k in range(5):
        save(ct_slice(k, InstanceNumber=50 - k, SliceLocation=-k), other / f"{k}.dcm")
    np.testing.assert_array_equal(read_series(other).hu, read_series(five).hu)


def test_an_affine_of_pixels_that_are_not_square(five):
    series = read_series(five)
    assert series.spacing == (0.5, 0.8)
    # row 3, column 2, slice 4: x = -3 + 2 * 0.8, y = -4 + 3 * 0.5, z = 8, in LPS
    expected = [1.4, 2.5, 8.0]
    np.testing.assert_allclose((series.affine @ [2, 3, 4, 1])[:3], expected)
    np.testing.assert_allclose(series.position_of([4, 3, 2])[0], expected)
    np.testing.assert_allclose(series.index_of(expected)[0], [4, 3, 2], atol=1e-9)
    assert series.hu_at(expected)[0] == slice_values(4)[3, 2]
    volume = series.volume()
    assert volume.unit == "HU"
    assert volume.shape == (12, 16, 5)
    assert volume.data[0, 2, 3, 4] == slice_values(4)[3, 2]
    np.testing.assert_array_equal(series.back(volume), series.hu)


def test_the_same_place_as_simpleitk_and_highdicom(five):
    sitk = pytest.importorskip("SimpleITK")
    highdicom = pytest.importorskip("highdicom")
    series = read_series(five)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(five)))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), series.hu)
    point = image.TransformIndexToPhysicalPoint((2, 3, 4))
    np.testing.assert_allclose(series.position_of([4, 3, 2])[0], np.array(point) * [-1, -1, 1])
    files = [pydicom.dcmread(path) for path in sorted(five.iterdir())]
    for file in files:
        file.StudyID = "1"
    other = highdicom.get_volume_from_series(files)
    there = other.affine @ [*np.argwhere(other.array == slice_values(4)[3, 2])[0], 1]
    np.testing.assert_allclose(there[:3] * [-1, -1, 1], series.position_of([4, 3, 2])[0])


def test_every_slice_has_its_own_slope(tmp_path):
    for k in range(4):
        save(ct_slice(k, RescaleSlope=k + 1, RescaleIntercept=-k), tmp_path / f"{k}.dcm")
    expected = [slice_values(k) * (k + 1) - k for k in range(4)]
    np.testing.assert_array_equal(read_series(tmp_path).hu, expected)


def test_a_lookup_table_instead_of_a_slope(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.ModalityLUTType = "HU"
    table.LUTData = [1000 + 2 * v for v in range(256)]
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    file = ct_slice(0, RescaleSlope=None, RescaleIntercept=None, RescaleType=None)
    file.PixelRepresentation = 0
    file.ModalityLUTSequence = [table]
    save(file, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_series(tmp_path).hu[0], 1000 + 2 * slice_values(0))


def test_enhanced_multi_frame(tmp_path):
    save(enhanced(), tmp_path / "a.dcm")
    series = read_series(tmp_path)
    expected = [slice_values(k) * (k + 1) - 10 * k for k in range(3)]
    np.testing.assert_array_equal(series.hu, expected)
    assert series.facts.kernel == ("FC13",)
    assert series.facts.kvp == 120.0
    assert series.spacing == (0.5, 0.8)
    np.testing.assert_array_equal(Volume.open(tmp_path / "a.dcm").data[0, 2, 3], series.hu[:, 3, 2])


# ------------------------------------------------------------------------------ padding


def ring(outside, inside=-1100):
    values = np.full((16, 12), inside, np.int16)
    values[0], values[-1], values[:, 0], values[:, -1] = outside, outside, outside, outside
    values[8, 6] = outside  # a pixel of the body with the value of the padding
    return values


def test_padding_is_marked_and_real_air_stays(tmp_path):
    save(ct_slice(0, values=ring(-2048)), tmp_path / "a.dcm")
    series = read_series(tmp_path)
    assert series.padding[0, 0].all()
    assert not series.padding[0, 8, 6]
    assert series.hu[0, 8, 6] == -2048.0
    assert series.hu[0, 4, 4] == -1100.0
    assert series.hu[0, 0, 0] == -1024.0
    assert series.sources[0].padding_hu == -2048.0


def test_declared_padding_counts_in_stored_values(tmp_path):
    file = ct_slice(0, values=ring(-2000, 0), RescaleIntercept=-1024)
    file.add_new("PixelPaddingValue", "US", 63536)  # -2000 written without its sign
    save(file, tmp_path / "a.dcm")
    series = read_series(tmp_path)
    assert series.padding.sum() == 53  # the ring of 52 pixels and the one inside
    assert series.sources[0].padding_hu == -3024.0


def test_a_declared_padding_that_tissue_has_is_limited_to_the_outside(tmp_path):
    file = ct_slice(0, values=ring(0, 40))
    file.add_new("PixelPaddingValue", "SS", 0)
    save(file, tmp_path / "a.dcm")
    series = read_series(tmp_path)
    assert series.padding.sum() == 52
    assert series.hu[0, 8, 6] == 0.0
    assert any("tissue" in note for note in series.notes)


# ------------------------------------------------------------------------------ places


def test_identical_doubles_are_kept_once(five):
    save(ct_slice(2, SOPInstanceUID=ROOT + "99"), five / "again.dcm")
    series = read_series(five)
    assert len(series.hu) == 5
    assert any("twice" in note for note in series.notes)


def test_different_slices_at_one_place_are_named(five):
    save(ct_slice(2, values=slice_values(7)), five / "other.dcm")
    with pytest.raises(DataError, match=r"one place: .*88\.dcm and other\.dcm|other\.dcm and 88"):
        read_series(five)


def test_two_phases_are_told_apart_by_acquisition(five):
    for k in range(5):
        save(ct_slice(k, values=slice_values(9 + k), AcquisitionNumber=2), five / f"b{k}.dcm")
    with pytest.raises(DataError, match=r"2 series.*5\.1 \(B30f, 2 mm, 5 slices\), 5\.2"):
        read_series(five)
    np.testing.assert_array_equal(read_series(five, series="5.2").hu[0], slice_values(9))


def test_missing_slices(five):
    (five / "88.dcm").unlink()
    (five / "87.dcm").unlink()
    write_slices(five, [5, 6])
    with pytest.raises(DataError, match=r"lacks 2 slices in 1 place, first 2 after 89\.dcm"):
        read_series(five)
    filled = read_series(five, missing="interpolate")
    assert len(filled.hu) == 7
    assert [s.interpolated for s in filled.sources].count(True) == 2
    middle = (2 * slice_values(1).astype(float) + slice_values(4)) / 3
    np.testing.assert_allclose(filled.hu[2], middle, rtol=1e-6)
    parts = read_series(five, missing="split")
    assert [len(part.hu) for part in parts] == [2, 3]
    with pytest.raises(UsageError, match="'interpolate'"):
        read_series(five, missing="guess")


def test_thicker_slices_further_apart_are_no_gap(tmp_path):
    for k, (z, thick) in enumerate([(0, 2), (2, 2), (4, 2), (8, 4), (12, 4)]):
        place = [-3.0, -4.0, float(z)]
        save(ct_slice(k, ImagePositionPatient=place, SliceThickness=thick), tmp_path / f"{k}.dcm")
    series = read_series(tmp_path)
    assert len(series.hu) == 5
    assert not series.regular
    assert any("unevenly" in note for note in series.notes)


def tilted(folder, degrees=20.0, steps=(0, 2, 4, 6, 8, 10)):
    """Slices of a field that is linear in space, seen by a tilted gantry that moves along z."""
    angle = np.radians(degrees)
    down = np.array([0.0, np.cos(angle), -np.sin(angle)])
    row, column = np.indices((16, 12))
    for k, z in enumerate(steps):
        place = np.array([-3.0, -4.0, z])
        points = place + row[..., None] * 0.5 * down + column[..., None] * [0.8, 0.0, 0.0]
        values = np.rint(points @ [30.0, 20.0, 10.0])
        save(
            ct_slice(
                k, values=values, ImageOrientationPatient=[1, 0, 0, *down],
                ImagePositionPatient=list(place), GantryDetectorTilt=degrees,
            ),
            folder / f"{k}.dcm",
        )  # fmt: skip


def test_a_tilted_gantry_keeps_its_shear_and_is_resampled(tmp_path):
    tilted(tmp_path)
    series = read_series(tmp_path)
    assert abs(series.facts.tilt_degrees) == pytest.approx(20.0, abs=0.01)
    axes = series.affine[:3, :3] / np.linalg.norm(series.affine[:3, :3], axis=0)
    assert abs(axes[:, 1] @ axes[:, 2]) == pytest.approx(np.sin(np.radians(20)), abs=1e-6)
    volume = series.volume()
    turned = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(turned.T @ turned, np.eye(3), atol=1e-9)
    # inside, the resampled values are those of the field at the voxel's place
    i, j, k = np.indices(volume.shape)
    points = np.einsum("ab,bxyz->axyz", volume.affine[:3, :3], np.stack([i, j, k]))
    points += volume.affine[:3, 3][:, None, None, None]
    field = np.einsum("a,axyz->xyz", np.array([-30.0, -20.0, 10.0]), points)
    inside = volume.data[0] != -1024
    inside &= np.abs(volume.data[0]) < 900
    core = inside[:, 6:-6]
    assert core.mean() > 0.5
    assert np.abs(volume.data[0] - field)[:, 6:-6][core].max() < 1.5
    # and on the slices again
    back = series.back(volume)
    assert np.abs(back - series.hu)[:, 1:-1, 1:-1].max() < 1.5
    np.testing.assert_array_equal(series.back(volume, how="change"), series.hu)


def test_a_volume_on_another_grid_is_not_mapped_back(five):
    series = read_series(five)
    with pytest.raises(DataError, match=r"grid of series\.volume"):
        series.back(Volume.from_array(np.zeros((3, 3, 3)), np.eye(4)))


# ------------------------------------------------------------------------------ left out, refused


def test_localizers_and_screen_saves_are_left_out_and_said(five):
    save(ct_slice(30, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), five / "scout.dcm")
    save(ct_slice(31, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), five / "screen.dcm")
    save(ct_slice(32, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), five / "mr.dcm")
    (five / "readme.txt").write_text("hello")
    series = read_series(five)
    assert len(series.hu) == 5
    said = " ".join(series.notes)
    for word in ("LOCALIZER", "another kind of object", "modality MR", "no DICOM file"):
        assert word in said


def test_derived_series_are_left_out_beside_originals(five):
    for k in range(3):
        kind = ["DERIVED", "SECONDARY", "MPR"]
        save(ct_slice(k, ImageType=kind, SeriesInstanceUID=ROOT + "8", SeriesNumber=6),
             five / f"m{k}.dcm")  # fmt: skip
    series = read_series(five)
    assert len(series.hu) == 5
    assert any("derived series 6" in note for note in series.notes)
    assert len(read_series(five, series=6).hu) == 3


def test_no_kernel_is_allowed_and_noted(tmp_path):
    write_slices(tmp_path, ConvolutionKernel=None)
    series = read_series(tmp_path)
    assert series.facts.kernel == ()
    assert any("ConvolutionKernel" in note for note in series.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PixelSpacing": [0, 0.8]}, "PixelSpacing 0 x 0.8"),
        ({"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "modality MR"),
        ({"RescaleSlope": None}, "no RescaleSlope"),
        ({"RescaleSlope": 0}, "RescaleSlope 0"),
        ({"RescaleType": "OD"}, "are OD, not HU"),
        ({"ImagePositionPatient": None}, "no position"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "perpendicular"),
        ({"PixelData": b"\0" * 40}, "cut off"),
        ({"Rows": 65535, "Columns": 65535}, "cannot be"),
        ({"Rows": 9000, "Columns": 9000}, "cut off"),
        ({"PixelData": None}, "no pixels"),
    ],
)
def test_one_sentence_for_each_fault(tmp_path, changes, said):
    write_slices(tmp_path, range(2), **changes)
    with pytest.raises(DataError, match=said) as caught:
        read_series(tmp_path)
    message = str(caught.value)
    assert NAME not in message
    assert "Secret" not in message
    assert PATIENT not in message
    assert "\n" not in message


def test_two_patients_and_two_series_in_a_folder(five):
    for k in range(3):
        save(ct_slice(k, SeriesInstanceUID=ROOT + "8", SeriesNumber=6, PatientID="SECRET-2"),
             five / f"p{k}.dcm")  # fmt: skip
    with pytest.raises(DataError, match="scans of 2 patients \\(5 and 3 slices\\)") as caught:
        read_series(five)
    assert "SECRET" not in str(caught.value)
    for k in range(3):
        save(ct_slice(k, SeriesInstanceUID=ROOT + "8", SeriesNumber=6), five / f"p{k}.dcm")
    with pytest.raises(DataError, match=r"holds 2 series.*5 \(B30f.*6 \(B30f.*series='5'"):
        read_series(five)
    assert len(read_series(five, series=6).hu) == 3
    with pytest.raises(UsageError, match="no series '7'"):
        read_series(five, series=7)


def test_files_that_are_cut_off_or_encrypted(five):
    path = five / "88.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 100])
    with pytest.raises(DataError, match=r"88\.dcm.*cut off"):
        read_series(five)
    for length in (300, 500, 700, 900):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"88\.dcm"):
            read_series(five)
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(DataError, match="encrypted"):
        read_series(path)
    with pytest.raises(DataError, match="lacks 1 slice"):
        read_series(five)
    with pytest.raises(MissingDataError, match="does not exist"):
        read_series(five / "nowhere")
    (five / "empty").mkdir()
    with pytest.raises(MissingDataError, match="holds no file"):
        read_series(five / "empty")


# ------------------------------------------------------------------------------ real files


def test_compressed_and_odd_files_of_pydicom():
    plain = read_series(get_testdata_file("CT_small.dcm"))
    assert plain.hu.shape == (1, 128, 128)
    assert plain.facts.vendor == "GE MEDICAL SYSTEMS"
    stored = pydicom.dcmread(get_testdata_file("CT_small.dcm")).pixel_array
    keep = ~plain.padding[0]
    np.testing.assert_array_equal(plain.hu[0][keep], stored[keep] - 1024.0)


def test_a_codestream_whose_sign_differs_from_the_header():
    hu = read_series(get_testdata_file("J2K_pixelrep_mismatch.dcm")).hu
    assert -1100 < hu.min() <= -1000
    assert 200 < hu.max() < 4000


def test_damaged_bytes_end_in_a_sentence(tmp_path):
    whole = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    generator = np.random.default_rng(0)
    said = []
    for number in range(60):
        content = bytearray(whole)
        for place in generator.integers(132, 4000, 6):
            content[place] = generator.integers(256)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content[: len(content) if number % 3 else int(generator.integers(9000))])
        try:
            read_series(path)
        except DataError as error:
            said.append(str(error))
    assert len(said) > 20
    assert not any("\n" in text for text in said)


def test_a_lossless_syntax_gives_the_same_values(tmp_path):
    plain = ct_slice(0)
    save(plain, tmp_path / "plain.dcm")
    plain.compress(pydicom.uid.RLELossless)
    save(plain, tmp_path / "rle" / "a.dcm")
    a, b = (read_series(tmp_path / name) for name in ("plain.dcm", "rle"))
    np.testing.assert_array_equal(a.hu, b.hu)


def test_a_series_from_an_array():
    hu = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    series = CTSeries.from_array(hu, spacing=(0.5, 0.7), step=3.0)
    assert series.regular
    assert series.volume().spacing == pytest.approx((0.7, 0.5, 3.0))
    assert series.volume().data[0, 3, 2, 1] == hu[1, 2, 3]
    assert series.facts.slices == 2
    with pytest.raises(UsageError, match="slices, rows, columns"):
        CTSeries.from_array(hu[0], spacing=(1.0, 1.0))


def test_monochrome1_is_not_inverted(tmp_path):
    save(ct_slice(0, PhotometricInterpretation="MONOCHROME1"), tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_series(tmp_path).hu[0], slice_values(0))


def test_directions_that_differ_in_the_fifth_digit_are_one_series(tmp_path):
    for k in range(3):
        turned = [1, 0, 0, 0, 0.9484999 + 2e-7 * k, -0.3168]
        place = [-3.0, -4.0 + 0.6336 * k, 1.897 * k]
        save(ct_slice(k, ImageOrientationPatient=turned, ImagePositionPatient=place),
             tmp_path / f"{k}.dcm")  # fmt: skip
    assert len(read_series(tmp_path).hu) == 3


@pytest.mark.shared_data
def test_ge_gives_every_slice_with_its_gaps_and_tilt(shared_data):
    folder = shared_data / "ct" / "ge_tilt_irregular"
    series = read_series(folder)
    assert len(series.hu) == 28
    gaps = np.diff(series.positions_mm)
    np.testing.assert_allclose(sorted(set(np.round(gaps, 2))), [1.08, 4.0, 7.0], atol=0.005)
    assert abs(series.facts.tilt_degrees) == pytest.approx(18.5, abs=0.01)
    assert series.padding.mean() == pytest.approx(0.237, abs=0.001)
    for k in (0, 13, 14, 27):  # HU at a point in mm is the pixel of the slice
        file = pydicom.dcmread(series.sources[k].path)
        across, down = np.reshape(file.ImageOrientationPatient, (2, 3)).astype(float)
        place = np.array(file.ImagePositionPatient, float)
        point = place + 200 * 0.4882812 * down + 300 * 0.4882812 * across
        assert series.hu_at(point * [-1, -1, 1])[0] == file.pixel_array[200, 300]
    volume = series.volume()
    assert np.abs(series.back(volume) - series.hu).mean() < 10
    np.testing.assert_array_equal(series.back(volume, how="change"), series.hu)


@pytest.mark.shared_data
def test_philips_agrees_with_simpleitk(shared_data):
    sitk = pytest.importorskip("SimpleITK")
    folder = shared_data / "ct" / "philips_ub_1mm"
    series = read_series(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), series.hu)
    assert series.facts.iterative == "iDose"
    volume = Volume.open(folder)
    point = image.TransformIndexToPhysicalPoint((10, 20, 30))
    np.testing.assert_allclose((volume.affine @ [10, 20, 30, 1])[:3], np.array(point) * [-1, -1, 1])


@pytest.mark.shared_data
def test_toshiba_air_is_not_clipped(shared_data):
    series = read_series(shared_data / "ct" / "toshiba_fc51")
    assert (series.hu[~series.padding] < -1024).mean() > 0.05
    assert series.padding.mean() == pytest.approx(1 - np.pi / 4, abs=0.001)


def test_files_may_be_given_one_by_one(five):
    paths = sorted(five.iterdir())
    np.testing.assert_array_equal(read_series(paths).hu, read_series(five).hu)
    shutil.rmtree(five)
    with pytest.raises(MissingDataError, match="does not exist"):
        read_series(paths)
