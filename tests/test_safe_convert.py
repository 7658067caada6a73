"""Checkpoints that need code: refused, or converted in a process of its own with limits."""

import argparse
import os
import time

import pytest
import torch

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_io import load_weights, sha256_of
from neurodiff.core.weights_convert import convert_weights


class Runs:
    """Unpickling this runs a builtin with an argument."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def checkpoint(path, **more):
    content = {"state_dict": {"w": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, **more}
    torch.save(content, path)
    return path


def test_an_old_checkpoint_needs_trust_and_is_converted(tmp_path):
    path = checkpoint(tmp_path / "old.ckpt", hyper=argparse.Namespace(width=4))
    out = tmp_path / "new.safetensors"
    with pytest.raises(UsageError, match="--i-trust-this-file") as error:
        convert_weights(path, out)
    assert sha256_of(path) in str(error.value)
    assert not out.exists()
    found = convert_weights(path, out, trusted=True)
    assert (found.tensors, found.parameters, found.sha256) == (1, 6, sha256_of(path))
    assert torch.equal(load_weights(out)["w"], torch.arange(6.0).reshape(2, 3))


def test_a_safe_file_needs_no_trust(tmp_path):
    weights = {"a": {"b": torch.ones(2)}, "c": torch.ones(3), "steps": 4}
    torch.save(weights, tmp_path / "a.pt")
    found = convert_weights(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert set(load_weights(found.path)) == {"a.b", "c"}
    assert found.left_out == ("steps",)


def test_code_runs_in_the_other_process_with_limits_and_without_a_network(tmp_path):
    from builtins import exec as run

    out = tmp_path / "out.safetensors"
    cases = {
        "__import__('time').sleep(60)": (4.0, "was not read in"),
        "__import__('socket').create_connection(('127.0.0.1', 9))": (120.0, "--offline"),
        "bytearray(2**40)": (120.0, "could not be converted"),
        "__import__('os')._exit(7)": (120.0, "ended with 7"),
    }
    for code, (seconds, words) in cases.items():
        path = checkpoint(tmp_path / "evil.ckpt", x=Runs(run, code))
        start = time.monotonic()
        with pytest.raises(DataError, match=words):
            convert_weights(path, out, trusted=True, seconds=seconds)
        assert time.monotonic() - start < 60
        assert not out.exists()
    path = checkpoint(tmp_path / "pid.ckpt", x=Runs(run, f"open({str(tmp_path / 'pid')!r}, 'w')"
                      ".write(str(__import__('os').getpid()))"))  # fmt: skip
    convert_weights(path, out, trusted=True)
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_other_suffixes_and_files_without_tensors(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UsageError, match=r"\.safetensors"):
        convert_weights(path, tmp_path / "b.pt")
    torch.save({"x": argparse.Namespace()}, tmp_path / "none.ckpt")
    with pytest.raises(DataError, match="no named tensors"):
        convert_weights(tmp_path / "none.ckpt", tmp_path / "c.safetensors", trusted=True)
