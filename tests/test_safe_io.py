"""Hostile files end in one clear sentence; writes are whole or do not happen."""

import errno
import json
import os
import pickle
import struct

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.core import atomic, safe_io
from neurodiff.core.errors import DataError, MissingDataError, UsageError


class Evil:
    """Unpickling this writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def one_sentence(error, path):
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 500
    return text


# ------------------------------------------------------------------------------------ read_npy


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", "?", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("mmap", [False, True])
def test_npy_round_trip(tmp_path, dtype, order, mmap):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 5, dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    found = safe_io.read_npy(tmp_path / "a.npy", mmap=mmap, shape=(2, None, 4), dtype=dtype)
    np.testing.assert_array_equal(found, array)
    assert isinstance(found, np.memmap) == mmap


def test_npy_of_no_rows_and_of_one_number(tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 3), np.float32))
    np.save(tmp_path / "one.npy", np.float32(2.5))
    assert safe_io.read_npy(tmp_path / "none.npy", mmap=True).shape == (0, 3)
    assert safe_io.read_npy(tmp_path / "one.npy") == 2.5


@pytest.mark.parametrize("keep", [1, 5, 9, 60, 127, 128, 140])
def test_npy_truncated_anywhere(tmp_path, keep):
    path = tmp_path / "cut.npy"
    np.save(path, np.ones(8, np.float32))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError) as error:
        safe_io.read_npy(path)
    one_sentence(error, path)


def test_npy_size_is_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "huge.npy"
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1024), }"
    header = header.ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
    with pytest.raises(DataError, match="truncated") as error:
        safe_io.read_npy(path)
    one_sentence(error, path)


def test_npy_with_extra_bytes_or_negative_length(tmp_path):
    path = tmp_path / "long.npy"
    np.save(path, np.ones(4, np.float32))
    path.write_bytes(path.read_bytes() + b"12")
    with pytest.raises(DataError, match="longer than its header says"):
        safe_io.read_npy(path)
    path.write_bytes(path.read_bytes().replace(b"(4,)", b"(-4,)")[:-3])
    with pytest.raises(DataError, match=r"cannot be|complete"):
        safe_io.read_npy(path)


def test_npy_of_objects_runs_no_code(tmp_path):
    path, target = tmp_path / "objects.npy", tmp_path / "written"
    np.save(path, np.array([Evil(target)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        safe_io.read_npy(path)
    assert not target.exists()


@pytest.mark.parametrize("values", [np.array(["a"]), np.zeros(2, [("x", "f4")])])
def test_npy_of_other_things_than_numbers(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match="array of numbers"):
        safe_io.read_npy(tmp_path / "a.npy")


def test_npy_of_wrong_type_and_shape(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((2, 3), np.float64))
    with pytest.raises(DataError, match=r"holds float64; expected float32"):
        safe_io.read_npy(path, dtype=np.float32)
    assert safe_io.read_npy(path, dtype=(np.float32, np.floating)).dtype == np.float64
    with pytest.raises(DataError, match=r"shape \(2, 3\); expected \(any, 4\)"):
        safe_io.read_npy(path, shape=(None, 4))
    with pytest.raises(DataError, match=r"expected \(6,\)"):
        safe_io.read_npy(path, shape=(6,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mmap", [False, True])
def test_npy_with_values_that_are_not_finite(tmp_path, monkeypatch, value, mmap):
    monkeypatch.setattr(safe_io, "_BLOCK", 6)  # two rows at a time
    array = np.zeros((5, 3), np.float32)
    array[3, 1] = value
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"NaN or infinity, first at index \(3, 1\)"):
        safe_io.read_npy(tmp_path / "a.npy", mmap=mmap)
    assert safe_io.read_npy(tmp_path / "a.npy", finite=False, mmap=mmap).shape == (5, 3)


# -------------------------------------------------------------- missing, empty, not what it says


READERS = [
    safe_io.read_npy,
    safe_io.read_json,
    safe_io.read_yaml,
    safe_io.read_csv,
    safe_io.load_weights,
]


@pytest.mark.parametrize("read", READERS)
def test_missing_empty_and_folder(tmp_path, read):
    with pytest.raises(MissingDataError, match="does not exist") as error:
        read(tmp_path / "absent")
    one_sentence(error, tmp_path / "absent")
    assert isinstance(error.value, FileNotFoundError)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("read", READERS)
def test_random_bytes(tmp_path, read):
    path = tmp_path / "noise"
    path.write_bytes(b"\xff\xfe" + np.random.default_rng(0).bytes(500))
    with pytest.raises(DataError) as error:
        read(path)
    one_sentence(error, path)


@pytest.mark.parametrize("text", ["{", '{"a": 1,}', "[1, 2", "nope", "[" * 100_000])
def test_broken_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        safe_io.read_json(path)
    one_sentence(error, path)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: b: c",
        "\tx: 1",
        "a: 1\na: 2",
        "!!python/object/apply:os.system ['true']",
        "a: 2020-13-45",
        "&a [*a]",
        "? [1]\n: 2",
    ],
)
def test_broken_and_hostile_yaml(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        safe_io.read_yaml(path)
    one_sentence(error, path)


def test_yaml_that_expands_without_end(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="expands to over"):
        safe_io.read_yaml(path)


def test_yaml_numbers_and_merged_keys(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1}\nrate: 1e-4\ntext: '1e-4'\npart: {<<: *b, y: -2.5E3}\n")
    found = safe_io.read_yaml(path)
    assert found["rate"] == 1e-4
    assert found["text"] == "1e-4"
    assert found["part"] == {"x": 1, "y": -2500.0}


def test_csv_checks(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id, name\n007,NA\n")
    with pytest.raises(DataError, match=r"no column 'path'; its columns are id, name"):
        safe_io.read_csv(path, columns=("id", "path"))
    table = safe_io.read_csv(path, dtype={"id": str}, missing_words=False)
    assert table.to_dict("list") == {"id": ["007"], "name": ["NA"]}
    path.write_text("a,b\n1,2\n1,2,3,4\n")
    with pytest.raises(DataError, match="not a readable table") as error:
        safe_io.read_csv(path)
    one_sentence(error, path)
    path.write_text("a\nx\n")
    with pytest.raises(DataError, match="not a readable table"):
        safe_io.read_csv(path, dtype={"a": float})


# ------------------------------------------------------------------------------------- weights


def test_weights_that_are_a_pickle_of_another_thing(tmp_path):
    target = tmp_path / "written"
    raw, saved = tmp_path / "raw.pkl", tmp_path / "saved.pt"
    raw.write_bytes(pickle.dumps(Evil(target)))
    torch.save({"model": Evil(target)}, saved)
    for path in (raw, saved):
        with pytest.raises(DataError, match="pickle of something other") as error:
            safe_io.load_weights(path)
        one_sentence(error, path)
    assert not target.exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], {}, {"steps": 3}, torch.ones(2)])
def test_weights_without_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match="expected a state_dict"):
        safe_io.load_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("keep", [4, 40, -1])
def test_truncated_weights(tmp_path, name, keep):
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save({"w": torch.ones(50)}, path)
    else:
        safe_io.save_safetensors({"w": torch.ones(50)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError) as error:
        safe_io.load_weights(path)
    one_sentence(error, path)


def test_weights_round_trip(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    weights = {"a": shared, "tied": shared, "turned": shared.T, "half": shared.to(torch.bfloat16)}
    safe_io.save_safetensors(weights, tmp_path / "w.safetensors", {"version": 1})
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "new.pt")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = safe_io.load_weights(tmp_path / "w.safetensors")
    for other in (
        safe_io.load_weights(tmp_path / "new.pt")["state_dict"],
        safe_io.load_weights(tmp_path / "old.pt"),
        found,
    ):
        assert set(other) == set(weights)
        assert all(torch.equal(other[name], weights[name]) for name in weights)
    with pytest.raises(UsageError, match="'b' is list"):
        safe_io.save_safetensors({"b": [1.0]}, tmp_path / "bad.safetensors")
    assert not (tmp_path / "bad.safetensors").exists()


# ------------------------------------------------------------------------------------- writing


def write_all(folder):
    """Every writer, with the name it writes."""
    return {
        "a.json": lambda: safe_io.write_json(folder / "a.json", {"new": 1}),
        "a.yaml": lambda: safe_io.write_yaml(folder / "a.yaml", {"new": 1}),
        "a.csv": lambda: safe_io.write_csv(folder / "a.csv", pd.DataFrame({"new": [1]})),
        "a.npy": lambda: safe_io.write_npy(folder / "a.npy", np.ones(3)),
        "a.safetensors": lambda: safe_io.save_safetensors(
            {"new": torch.ones(3)}, folder / "a.safetensors"
        ),
    }


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.csv", "a.npy", "a.safetensors"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_leaves_the_old_file(tmp_path, monkeypatch, name, number):
    (tmp_path / name).write_bytes(b"old")

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(DataError, match="disk full") as error:
        write_all(tmp_path)[name]()
    one_sentence(error, tmp_path / name)
    assert error.value.exit_code == 3
    assert (tmp_path / name).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_device_that_is_really_full(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with (
        pytest.raises(DataError, match="disk full"),
        atomic.atomic_path(tmp_path / "a.bin"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_disk_full_inside_numpy_keeps_its_reason(tmp_path, monkeypatch):
    real = np.lib.format.write_array

    def half(file, array, **options):
        real(file, array, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", half)
    with pytest.raises(DataError, match="disk full"):
        safe_io.write_npy(tmp_path / "a.npy", np.ones(3))
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_block_leaves_the_old_file_and_passes_through(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write_half(error):
        with safe_io.atomic_write(path) as file:
            file.write(b"half")
            raise error

    for error in (KeyError("mine"), KeyboardInterrupt(), FileNotFoundError(2, "no", "other.txt")):
        with pytest.raises(type(error)):
            write_half(error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_before_the_end_and_new_folders_are_made(tmp_path):
    path = tmp_path / "new" / "deep" / "a.bin"
    with safe_io.atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
        assert os.path.dirname(file.name) == str(path.parent)
        assert file.name.endswith("a.bin")  # writers that choose a format by suffix
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(4))
    old = safe_io.read_npy(tmp_path / "a.npy", mmap=True)
    safe_io.write_npy(tmp_path / "a.npy", np.ones(4))
    np.testing.assert_array_equal(old, np.zeros(4))
    np.testing.assert_array_equal(safe_io.read_npy(tmp_path / "a.npy"), np.ones(4))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="could not be written"):
        safe_io.write_json(tmp_path / "file" / "a.json", {})


def test_new_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        safe_io.write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_json_of_numpy_and_of_values_json_does_not_have(tmp_path):
    value = {
        "array": np.arange(3, dtype=np.int64),
        "number": np.float32(0.5),
        "flag": np.bool_(True),
        "nan": float("nan"),
        "inf": np.array([np.inf, 1.0]),
        "path": tmp_path,
        "ä": ("x", None),
    }
    safe_io.write_json(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert found == {
        "array": [0, 1, 2],
        "number": 0.5,
        "flag": True,
        "nan": None,
        "inf": [None, 1.0],
        "path": str(tmp_path),
        "ä": ["x", None],
    }


def test_yaml_and_csv_round_trip(tmp_path):
    value = {"b": 1e-05, "a": ["1e-4", "yes", None, True, "ü"], "inf": float("inf")}
    safe_io.write_yaml(tmp_path / "a.yaml", value)
    found = safe_io.read_yaml(tmp_path / "a.yaml")
    assert found == value
    assert list(found) == list(value)
    table = pd.DataFrame({"key": ["01", "a,b"], "score": [0.1 + 0.2, -1.0]})
    safe_io.write_csv(tmp_path / "a.csv", table)
    pd.testing.assert_frame_equal(
        safe_io.read_csv(tmp_path / "a.csv", dtype={"key": str}), table, check_exact=True
    )


def test_npy_round_trip_of_our_writer_and_refusal_of_objects(tmp_path):
    array = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    safe_io.write_npy(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), array)
    with pytest.raises(UsageError, match="Python objects"):
        safe_io.write_npy(tmp_path / "b.npy", np.array([{}], dtype=object))
    assert not (tmp_path / "b.npy").exists()


def test_sha256_of_published_values(tmp_path):
    # FIPS 180-2, appendix B.1, and the empty message.
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "empty").write_bytes(b"")
    assert safe_io.sha256_of(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert safe_io.sha256_of(tmp_path / "empty") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
