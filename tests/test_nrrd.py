"""NRRD: the same image as another reader sees, and hostile headers answered in a sentence."""

import gzip

import numpy as np
import pytest

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.volume import Volume
from neurodiff.datasets.nrrd import read_nrrd_volume

HEADER = """NRRD0004
# a comment
type: short
dimension: 3
space: left-posterior-superior
sizes: 3 4 5
space directions: (0.5,0,0) (0,0.6,0.1) (0,0,2)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (-10,-20,30)
name:=somebody
"""
VALUES = np.arange(60, dtype="<i2").reshape((3, 4, 5), order="F") - 30


DATA = VALUES.tobytes(order="F")


def write(path, header=HEADER, data=DATA):
    path.write_bytes(header.encode() + b"\n" + data)
    return path


def test_values_and_place(tmp_path):
    volume = Volume.open(write(tmp_path / "a.nrrd"), unit="HU")
    np.testing.assert_array_equal(volume.data[0], VALUES)
    np.testing.assert_allclose(volume.affine @ [1, 1, 1, 1], [9.5, 19.4, 32.1, 1])
    assert volume.unit == "HU"


def test_gzip_and_big_endian(tmp_path):
    header = HEADER.replace("raw", "gzip").replace("little", "big")
    data = gzip.compress(VALUES.astype(">i2").tobytes(order="F"))
    volume = read_nrrd_volume(write(tmp_path / "a.nrrd", header, data))
    np.testing.assert_array_equal(volume.data[0], VALUES)


@pytest.mark.parametrize("compressed", [False, True])
def test_as_simpleitk_writes(tmp_path, compressed):
    sitk = pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)  # z, y, x
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 0.7, 2.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), compressed)
    volume = Volume.open(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.data[0], values.transpose(2, 1, 0))
    point = np.array(image.TransformIndexToPhysicalPoint((1, 2, 3)))
    np.testing.assert_allclose((volume.affine @ [1, 2, 3, 1])[:3], point * [-1, -1, 1])


BOMB = gzip.compress(bytes(10_000_000))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("NRRD0004", "NRRD9", "does not begin"),
        ("sizes: 3 4 5", "sizes: 3 4 9999999", "cut off"),
        ("sizes: 3 4 5", "sizes: 9999999 9999999 9999999", "cannot be"),
        ("sizes: 3 4 5", "sizes: -3 4 5", "three axes"),
        ("dimension: 3", "dimension: 4", "three axes"),
        ("type: short", "type: block", "type 'block'"),
        ("encoding: raw", "encoding: bzip2", "raw and gzip"),
        ("encoding: raw", "encoding: gzip", "damaged"),
        ("endian: little", "data file: ../../secret.raw", "another file"),
        ("space: left-posterior-superior\n", "", "no place in space"),
        ("(0,0,2)", "(0,0,nan)", "no place in space"),
        ("(0,0,2)", "(0,0,0)", "no volume"),
        ("encoding: raw", "encoding: raw\nbyte skip: -1", "skips"),
    ],
)
def test_hostile_headers(tmp_path, old, new, said):
    assert old in HEADER
    with pytest.raises(DataError, match=said) as caught:
        read_nrrd_volume(write(tmp_path / "a.nrrd", HEADER.replace(old, new)))
    assert "somebody" not in str(caught.value)


def test_more_data_than_declared_is_not_unpacked(tmp_path):
    with pytest.raises(DataError, match=r"longer than declared \(121 bytes"):
        read_nrrd_volume(write(tmp_path / "a.nrrd", HEADER.replace("raw", "gzip"), BOMB))


def test_a_file_that_is_not_there_or_ends_early(tmp_path):
    with pytest.raises(MissingDataError, match="does not exist"):
        read_nrrd_volume(tmp_path / "a.nrrd")
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    with pytest.raises(DataError, match="no end of its header"):
        read_nrrd_volume(tmp_path / "b.nrrd")
