"""Columns of tables that are read a block at a time, from memory and from files."""

import hashlib

import numpy as np
import pytest

from neurodiff.core.columns import open_columns
from neurodiff.core.errors import DataError, MissingDataError, UsageError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 4)])
@pytest.mark.parametrize("kind", ["array", "path", "map"])
def test_blocks_are_the_columns_of_the_flattened_rows(tmp_path, dtype, shape, kind):
    table = RNG.standard_normal(shape).astype(dtype)
    np.save(tmp_path / "t.npy", table)
    given = {
        "array": table,
        "path": tmp_path / "t.npy",
        "map": np.load(tmp_path / "t.npy", mmap_mode="r"),
    }[kind]
    source = open_columns(given)
    flat = table.reshape(5, -1)
    assert source.shape == flat.shape
    assert source.item_shape == shape[1:]
    assert (source.array is None) == (kind != "array")
    places = list(source.slices(5))
    found = np.concatenate([source.block(p.start, p.stop) for p in places], axis=1)
    np.testing.assert_array_equal(found, flat)
    assert source.block(0, 1, np.float32).dtype == np.float32
    some = np.arange(0, flat.shape[1], 2)
    np.testing.assert_array_equal(source.take(some, np.float64), flat[:, some])


def test_a_table_in_fortran_order_is_read_by_columns(tmp_path):
    table = np.asfortranarray(RNG.standard_normal((5, 7)))
    np.save(tmp_path / "t.npy", table)
    source = open_columns(tmp_path / "t.npy")
    np.testing.assert_array_equal(source.block(2, 6), table[:, 2:6])
    np.testing.assert_array_equal(source.take(np.array([0, 6])), table[:, [0, 6]])
    np.save(tmp_path / "t.npy", np.asfortranarray(RNG.standard_normal((5, 7, 2))))
    with pytest.raises(DataError, match="save it again in C order"):
        open_columns(tmp_path / "t.npy")


def test_a_part_of_a_memory_map_is_that_part(tmp_path):
    table = RNG.standard_normal((6, 4))
    np.save(tmp_path / "t.npy", table)
    part = np.load(tmp_path / "t.npy", mmap_mode="r")[2:5]
    np.testing.assert_array_equal(open_columns(part).block(0, 4), table[2:5])


def test_hashes_are_of_the_file_or_of_the_numbers(tmp_path):
    table = RNG.standard_normal((3, 4))
    np.save(tmp_path / "t.npy", table)
    assert open_columns(table).sha256() == hashlib.sha256(table.tobytes()).hexdigest()
    whole = hashlib.sha256((tmp_path / "t.npy").read_bytes()).hexdigest()
    assert open_columns(tmp_path / "t.npy").sha256() == whole


def test_whole_numbers_and_a_source_itself_are_taken():
    source = open_columns(np.arange(6).reshape(3, 2))
    assert source.block(0, 2).dtype == np.float64
    assert open_columns(source) is source


def test_hostile_tables_get_a_sentence(tmp_path):
    path = tmp_path / "t.npy"
    with pytest.raises(MissingDataError):
        open_columns(path)
    np.save(path, np.arange(6))
    with pytest.raises(DataError, match="expected float16 or float32 or float64"):
        open_columns(path)
    np.save(path, np.zeros((0, 3)))
    with pytest.raises(DataError, match="one row an item"):
        open_columns(path)
    for wrong in (np.array(["a"]), np.array([1j]), np.array([None])):
        with pytest.raises(DataError, match="expected real numbers"):
            open_columns(wrong)
    with pytest.raises(DataError, match="single value"):
        open_columns(3.0)
    np.save(path, RNG.standard_normal((50, 3)))
    source = open_columns(path)
    for start, stop in ((2, 2), (-1, 2), (0, 4)):
        with pytest.raises(UsageError, match="do not exist"):
            source.block(start, stop)
    with pytest.raises(UsageError, match="from 1"):
        list(source.slices(0))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="become shorter"):
        source.block(0, 3)
    with pytest.raises(DataError, match="truncated"):
        open_columns(path)
