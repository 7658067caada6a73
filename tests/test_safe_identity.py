"""A marked name in headers reaches no output, message, log or file name."""

import gzip
import importlib.util
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension

from neurodiff.core.errors import DataError
from neurodiff.core.safe_io import fresh_header
from neurodiff.core.spaces import MaskSpace
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_index import index_ct
from neurodiff.datasets.ct_nifti import write_nifti
from neurodiff.datasets.ct_series import read_series
from neurodiff.datasets.ct_write import write_series
from neurodiff.datasets.nrrd import read_nrrd_volume

MARK = "DOE^JANE"


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = _load("ct_files")
HIDDEN = {
    "PatientName": MARK, "PatientID": MARK, "OtherPatientNames": MARK, "StudyDescription": MARK,
    "SeriesDescription": MARK, "ImageComments": MARK, "InstitutionName": MARK, "ProtocolName": MARK,
    "PatientComments": MARK, "OperatorsName": MARK, "StationName": "DOE^JANE", "DeviceSerialNumber":
    MARK, "AccessionNumber": MARK, "StudyID": MARK,
}  # fmt: skip


def holds_mark(path):
    """Whether a file's name or bytes, unpacked where they are packed, hold the name."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    text = data.upper()
    return any(word in text for word in (b"DOE^", b"JANE")) or "JANE" in str(path.name).upper()


def marked_image(path, values=None):
    """A NIfTI file with the name in every field that has room for one."""
    values = np.ones((3, 4, 5), np.float32) if values is None else values
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2, 2, 1]))
    header = image.header
    header["descrip"], header["db_name"] = MARK.encode(), MARK.encode()
    header["aux_file"], header["intent_name"] = MARK.encode(), MARK.encode()
    header.extensions.append(Nifti1Extension("comment", MARK.encode()))
    nibabel.save(image, path)
    assert holds_mark(path)
    return path


@pytest.fixture
def everything(caplog, capsys):
    """Collects log and terminal of the test; at its end the name is in neither."""
    caplog.set_level(logging.DEBUG)
    yield
    out = capsys.readouterr()
    assert MARK not in caplog.text + out.out + out.err


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_headers_are_fresh(tmp_path, everything, ending):
    volume = Volume.open(marked_image(tmp_path / f"a{ending}"))
    saved = volume.save(tmp_path / f"b{ending}")
    assert not holds_mark(saved)
    assert MARK not in repr(volume) + str(volume.notes)
    np.testing.assert_array_equal(nibabel.load(saved).get_fdata(), volume.data[0])
    image = nibabel.load(tmp_path / f"a{ending}")
    nibabel.save(fresh_header(image), tmp_path / f"c{ending}")
    assert not holds_mark(tmp_path / f"c{ending}")
    np.testing.assert_array_equal(nibabel.load(tmp_path / f"c{ending}").affine, image.affine)
    # the twin without the safeguard: the header of the source carries the name along
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), None, image.header), tmp_path / "d.nii")
    assert holds_mark(tmp_path / "d.nii")


def test_masks_and_maps_are_fresh(tmp_path, everything):
    space = MaskSpace.open(marked_image(tmp_path / "mask.nii"))
    nibabel.save(space.to_image(np.ones(60)), tmp_path / "map.nii")
    assert not holds_mark(tmp_path / "map.nii")


def test_errors_about_images_do_not_quote_headers(tmp_path, everything):
    values = np.full((3, 4, 5), np.nan, np.float32)
    for k, spoil in enumerate((None, 200, 400)):
        path = marked_image(tmp_path / f"{k}.nii", values)
        path.write_bytes(path.read_bytes()[:spoil])
        with pytest.raises(DataError) as error:
            Volume.open(path)
        assert MARK not in str(error.value)
    head = f"NRRD0004\ntype: {MARK[:3]}\npatient:={MARK}\n# {MARK}\nsizes: 1 2\n\n"
    (tmp_path / "x.nrrd").write_text(head)
    with pytest.raises(DataError) as error:
        read_nrrd_volume(tmp_path / "x.nrrd")
    assert MARK not in str(error.value)


@pytest.fixture
def series(tmp_path):
    files.write_slices(tmp_path / "in", range(3), **HIDDEN)
    return read_series(tmp_path / "in")


def test_ct_index_and_errors(tmp_path, everything, series):
    files.write_slices(tmp_path / "bad", [0], Rows=60000, **HIDDEN)
    cut = tmp_path / "bad" / "cut.dcm"
    cut.write_bytes(next((tmp_path / "in").iterdir()).read_bytes()[:700])
    table = index_ct(tmp_path, tmp_path / "index.parquet", key="a key of some length")
    assert len(table) == 5
    assert MARK not in table.to_csv()
    assert not holds_mark(tmp_path / "index.parquet")
    for place in (tmp_path / "bad", cut):
        with pytest.raises(DataError) as error:
            read_series(place)
        assert MARK not in str(error.value)
    assert MARK not in repr(series) + str(series.facts) + str(series.notes)


def test_ct_results(tmp_path, everything, series):
    key = "a key of some length"
    made = write_nifti(series, series.hu, tmp_path / "n" / "a.nii.gz", mode="deidentify", key=key)
    write_series(
        series, series.hu, tmp_path / "d", description="UB to YA", mode="deidentify", key=key
    )
    written = [*made, *(tmp_path / "d").rglob("*")]
    assert len(written) >= 5
    for path in written:
        assert not path.is_file() or not holds_mark(path), path
