"""Arrays out of pickles: those of every protocol, and pickles that would run something."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets.numpy_pickle import read_npy_dictionary, read_pickled_arrays

ARRAYS = {
    "weight": np.arange(24.0).reshape(2, 3, 4),
    "bias": np.arange(6, dtype=">f4").reshape(2, 3),
    "turned": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "strided": np.arange(12.0)[::2],
    "flags": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
}


def write(path, value, protocol=5):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(tmp_path, protocol):
    path = write(tmp_path / "w.pkl", ARRAYS, protocol)
    found = read_pickled_arrays(path, ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


def test_old_names_of_numpy(tmp_path):
    data = pickle.dumps(ARRAYS, 2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in data
    path = tmp_path / "w.pkl"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_pickled_arrays(path, ["bias"])["bias"], ARRAYS["bias"])


class Calls:
    """A pickle that makes a file when it is loaded by the ordinary reader."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_nothing_is_run(tmp_path, protocol, nested):
    mark = tmp_path / "ran"
    hostile = Calls(os.mkdir, str(mark))
    value = {"weight": hostile, "bias": ARRAYS["bias"]} if nested else hostile
    path = write(tmp_path / "w.pkl", value, protocol)
    with pytest.raises(DataError, match=r"asks for (posix|nt|os)\.mkdir, and loading it could run"):
        read_pickled_arrays(path, ["weight", "bias"])
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # noqa: S301  (the ordinary reader does run it)
    assert mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        Calls(eval, "1"),
        Calls(bytearray, 10**6),
        Calls(getattr, "a", "upper"),
        Calls(np.load, "x.npy"),
        Calls(np.zeros, 10**15),
        {"weight": OrderedDict(a=1)},
        {"weight": range(3)},
        {"weight": np.random.default_rng(0)},
    ],
    ids=["eval", "bytearray", "getattr", "load", "zeros", "OrderedDict", "range", "Generator"],
)
def test_any_other_name_is_refused(tmp_path, value):
    with pytest.raises(DataError, match="could run code"):
        read_pickled_arrays(write(tmp_path / "w.pkl", value), ["weight"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps(ARRAYS)[:-20],
        pickle.dumps({"weight": np.array([{}, "a"], dtype=object)}),
        pickle.dumps({"weight": np.zeros(3, [("a", "f4")])}),
        pickle.dumps({"weight": np.array(["text"])}),
        pickle.dumps({"weight": np.array(["2020"], "M8[Y]")}),
        # an array that claims more values than it has
        pickle.dumps({"weight": ARRAYS["flags"]}, 2).replace(b"K\x02\x85", b"K\x63\x85"),
        # numpy.dtype called with what is no code; numpy.ndarray called
        b"cnumpy\ndtype\n(]tR.",
        b"cnumpy\nndarray\n((I5\ntS'f8'\ntR.",
        b"(dcnumpy\nndarray\n.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"((((" * 3000 + b"t" * 12000 + b".",
    ],
)
def test_broken_and_crafted_pickles(tmp_path, data):
    path = tmp_path / "w.pkl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"w\.pkl"):
        read_pickled_arrays(path, ["weight"])


def test_what_is_missing_is_named(tmp_path):
    path = write(tmp_path / "w.pkl", ARRAYS)
    with pytest.raises(DataError, match="no array 'wieght'; it has weight, bias"):
        read_pickled_arrays(path, ["wieght"])
    with pytest.raises(DataError, match="holds list; expected a dictionary"):
        read_pickled_arrays(write(path, [1]), ["weight"])
    with pytest.raises(MissingDataError):
        read_pickled_arrays(tmp_path / "no.pkl", ["weight"])


def test_dictionaries_saved_as_npy(tmp_path):
    path = tmp_path / "mapping.npy"
    for mapping in ({0: "Unknown", 1: "V1v"}, {np.int64(2): "V1d"}):
        np.save(path, mapping, allow_pickle=True)
        assert read_npy_dictionary(path) == mapping
    np.save(path, Calls(os.getcwd), allow_pickle=True)
    with pytest.raises(DataError, match="could run code"):
        read_npy_dictionary(path)
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="expected one dictionary"):
        read_npy_dictionary(path)
    np.save(path, [1, "a"], allow_pickle=True)
    with pytest.raises(DataError, match="expected one dictionary"):
        read_npy_dictionary(path)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match=r"not a \.npy file"):
        read_npy_dictionary(path)
