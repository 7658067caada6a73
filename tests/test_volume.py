"""Volume: what files become, and the sentence for each that cannot be used."""

import gzip

import nibabel
import numpy as np
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.volume import FOLDER_READERS, Volume, checked_affine

AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])


def picture(shape=(4, 5, 6)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def write(path, values, affine=AFFINE):
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def test_a_file_keeps_values_and_place(tmp_path):
    values = picture()
    volume = Volume.open(write(tmp_path / "a.nii.gz", values))
    np.testing.assert_array_equal(volume.data, values[None])
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert (volume.shape, volume.channels, volume.orientation) == ((4, 5, 6), 1, "ALS")
    np.testing.assert_allclose(volume.spacing, (1.5, 2.0, 3.0))
    assert volume.voxel_ml == pytest.approx(0.009)
    again = Volume.open(volume.save(tmp_path / "b.nii.gz"))
    assert again.fingerprint() == volume.fingerprint()
    assert again.fingerprint() != Volume(volume.data, AFFINE + np.eye(4)[3, ::-1, None] * 0.1,
                                         volume.unit).fingerprint()  # fmt: skip


def test_turning_the_axes_moves_no_voxel(tmp_path):
    volume = Volume.from_array(picture(), AFFINE)
    turned = volume.reoriented("RAS")
    assert turned.orientation == "RAS"
    brightest = [np.unravel_index(v.data[0].argmax(), v.shape) for v in (volume, turned)]
    places = [v.affine @ [*b, 1] for v, b in zip((volume, turned), brightest, strict=True)]
    np.testing.assert_allclose(*places)
    back = turned.reoriented("ALS")
    np.testing.assert_array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.affine, volume.affine)
    for wrong in ("RAX", "RRS", "RA"):
        with pytest.raises(UsageError, match=wrong):
            volume.reoriented(wrong)


def test_int16_with_a_slope_is_scaled(tmp_path):
    stored = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.25, -7)
    nibabel.save(image, tmp_path / "scaled.nii")
    # nibabel rescales on saving, so the header of the file is written by hand
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    raw[112:120] = np.array([0.25, -7], "<f4").tobytes()
    raw[352:] = stored.astype("<i2").tobytes(order="F")
    (tmp_path / "scaled.nii").write_bytes(raw)
    volume = Volume.open(tmp_path / "scaled.nii")
    np.testing.assert_array_equal(volume.data[0], stored * np.float32(0.25) - 7)


def test_a_4d_file_is_refused_unless_its_volumes_are_channels(tmp_path):
    path = write(tmp_path / "four.nii.gz", picture((4, 5, 6, 3)))
    with pytest.raises(DataError, match=r"four\.nii\.gz is a 4D file of 3 volumes \(4, 5, 6\)"):
        Volume.open(path)
    assert Volume.open(path, channels=True).data.shape == (3, 4, 5, 6)
    alone = write(tmp_path / "one.nii.gz", picture((4, 5, 6, 1)))
    assert Volume.open(alone).data.shape == (1, 4, 5, 6)
    image = Volume.open(path, channels=True).to_image()
    assert Volume.from_image(image, channels=True).channels == 3


@pytest.mark.parametrize(
    ("affine", "said"),
    [(np.diag([0.0, 0, 0, 1]), "all zeros"), (np.diag([1.0, 1, 0, 1]), "no volume"),
     (np.diag([1.0, 1, np.nan, 1]), "not finite"), (np.ones((4, 4)), "last row"),
     (np.array([[1.0, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "no volume"),
     (np.eye(3), "shape")],
)  # fmt: skip
def test_affines_without_a_place(affine, said):
    with pytest.raises(DataError, match=said):
        Volume(picture()[None], affine)


def test_an_affine_of_zeros_in_a_file(tmp_path):
    path = write(tmp_path / "zeros.nii", picture(), np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[280:328] = bytes(48)  # the three rows of the sform
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"zeros\.nii is all zeros.*no place in space"):
        Volume.open(path)


def test_files_that_cannot_be_used(tmp_path):
    holed = picture()
    holed[1, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"nan\.nii holds NaN.*\(0, 1, 2, 3\)"):
        Volume.open(write(tmp_path / "nan.nii", holed))
    whole = write(tmp_path / "whole.nii.gz", picture((20, 20, 20))).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("no image")
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "scan.nrrd").write_text("NRRD0004")
    (tmp_path / "scan.xyz").write_text("what is this")
    with gzip.open(tmp_path / "short.nii.gz", "wb") as file:
        file.write(gzip.decompress(whole)[:1000])
    for name, said in [("cut.nii.gz", "damaged"), ("text.nii", "damaged"), ("empty.nii", "0 bytes"),
                       ("short.nii.gz", "damaged"), ("scan.nrrd", "not begin"),
                       ("scan.xyz", "not of a kind")]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            Volume.open(tmp_path / name)
    with pytest.raises(MissingDataError, match="does not exist"):
        Volume.open(tmp_path / "none.nii")
    with pytest.raises(DataError, match="no CT slice"):
        Volume.open(tmp_path)
    colours = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="colours"):
        Volume.open(write(tmp_path / "rgb.nii", colours))
    with pytest.raises(DataError, match="complex64"):
        Volume.open(write(tmp_path / "complex.nii", picture().astype(np.complex64)))


def test_analyze_pairs_say_that_left_and_right_are_unknown(tmp_path):
    nibabel.Spm2AnalyzeImage(picture(), np.diag([2.0, 2, 2, 1])).to_filename(tmp_path / "a.img")
    volume = Volume.open(tmp_path / "a.img")
    assert "left and right" in volume.notes[0]
    np.testing.assert_allclose(volume.data[0], picture())
    (tmp_path / "a.img").unlink()
    with pytest.raises((MissingDataError, DataError), match=r"a\.hdr"):
        Volume.open(tmp_path / "a.hdr")


def test_a_header_without_orientation_is_noted(tmp_path):
    image = nibabel.Nifti1Image(picture(), np.eye(4))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "nowhere.nii")
    assert "no orientation" in Volume.open(tmp_path / "nowhere.nii").notes[0]


def test_a_folder_reader_is_one_more_line(tmp_path, monkeypatch):
    made = Volume.from_array(picture(), np.eye(4), unit="HU")
    monkeypatch.setitem(FOLDER_READERS, "", lambda path, unit, channels: made)
    assert Volume.open(tmp_path) is made


def test_what_a_volume_is_made_of():
    with pytest.raises(UsageError, match="float64"):
        Volume(picture()[None].astype(np.float64), np.eye(4))
    with pytest.raises(DataError, match=r"\(channels, i, j, k\)"):
        Volume(picture(), np.eye(4))
    with pytest.raises(DataError, match="real numbers"):
        Volume.from_array(np.array([["a"]]), np.eye(4))
    with pytest.raises(UsageError, match=r"\.nii"):
        Volume(picture()[None], np.eye(4)).save("a.png")
    assert checked_affine(np.eye(4, dtype=np.float32)).dtype == np.float64
