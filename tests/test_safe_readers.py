"""The shared checks: what they let pass, what they refuse, and that they are what refuses it."""

import argparse
import io
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import trimesh
from typer.testing import CliRunner

from neurodiff.core import safe_io
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_limits import memory_budget, require_ratio
from neurodiff.core.safe_mat import read_mat_arrays


def test_the_budget_is_half_of_the_machine_or_what_is_set(monkeypatch):
    monkeypatch.delenv("NEURODIFF_FILE_MEMORY_GB", raising=False)
    assert 2**28 <= memory_budget() <= 16 * 2**30
    monkeypatch.setenv("NEURODIFF_FILE_MEMORY_GB", "0.5")
    assert memory_budget() == 2**29
    for word in ("much", "-1", "nan", "0"):
        monkeypatch.setenv("NEURODIFF_FILE_MEMORY_GB", word)
        with pytest.raises(UsageError, match="number of GiB"):
            memory_budget()


def test_a_sound_array_over_the_budget_names_the_way_out(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones(400_000))
    monkeypatch.setenv("NEURODIFF_FILE_MEMORY_GB", "0.001")
    with pytest.raises(DataError, match="set NEURODIFF_FILE_MEMORY_GB"):
        safe_io.read_npy(tmp_path / "a.npy")
    assert safe_io.read_npy(tmp_path / "a.npy", mmap=True).shape == (400_000,)  # takes no memory


def test_ratio_of_what_deflate_can_do():
    require_ratio("x", 1032 * 10**4, 10**4)  # small, as a mask of zeros is
    with pytest.raises(DataError, match="bomb"):
        require_ratio("x", 10**9, 10**4)
    with pytest.raises(DataError, match="bomb"):
        require_ratio("x", 400 * 2**20, 379_000)


def test_npz_as_numpy_reads_it(tmp_path):
    arrays = {
        "a": np.arange(6).reshape(2, 3),
        "f": np.asfortranarray(np.ones((3, 2), ">f4")),
        "none": np.zeros((0, 4)),
        "one": np.float64(3),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays, text=np.array(["x", "yz"]))
    found = safe_io.read_npz(tmp_path / "a.npz", text=True)
    with np.load(tmp_path / "a.npz") as wanted:
        assert set(found) == set(wanted.files)
        for name in found:
            np.testing.assert_array_equal(found[name], wanted[name])
    found["a"][0, 0] = 7  # can be written to
    with pytest.raises(DataError, match="no array 'b'"):
        safe_io.read_npz(tmp_path / "a.npz", ["b"])
    with pytest.raises(DataError, match="expected numbers"):
        safe_io.read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("packed", [False, True])
def test_mat_as_scipy_reads_it(tmp_path, packed):
    fields = {
        "x": np.arange(24.0).reshape(2, 3, 4),
        "i": np.arange(-2, 3, dtype="i2"),
        "b": np.array([[True, False]]),
        "c": np.array([[1 + 2j, 3.0]]),
        "s": "hello",
        "none": np.zeros((0, 3)),
        "n": np.array([[1, 2**60]], dtype="u8"),
    }
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {**fields, "skipped": {"a": 1}}, do_compression=packed)
    wanted, found = scipy.io.loadmat(path), read_mat_arrays(path)
    assert set(found) == set(fields)
    for name in fields:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_archives_are_unpacked_whole_or_not_at_all(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("in/a.txt", "x")
        file.writestr("b.txt", "y")
    out = safe_io.extract_archive(tmp_path / "a.zip", tmp_path / "out")
    assert (out / "in" / "a.txt").read_text() == "x"
    with pytest.raises(UsageError, match="holds something"):
        safe_io.extract_archive(tmp_path / "a.zip", out)
    with tarfile.open(tmp_path / "b.tar", "w") as file:
        for name in ("good.txt", "../bad.txt"):
            about = tarfile.TarInfo(name)
            about.size = 1
            file.addfile(about, io.BytesIO(b"x"))
    with pytest.raises(DataError, match=r"'\.\./bad\.txt', which leads out"):
        safe_io.extract_archive(tmp_path / "b.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "bad.txt").exists()
    assert not list(tmp_path.glob(".tmp*"))
    with pytest.raises(DataError, match="at most 1 are taken"):
        safe_io.extract_archive(tmp_path / "a.zip", tmp_path / "small", limit=1)


def test_hdf5_external_storage_is_what_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"12345678")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (8,), "u1", external=[(str(tmp_path / "secret"), 0, 8)])
    with h5py.File(tmp_path / "a.h5") as file:  # the twin without the check reads the other file
        assert bytes(file["x"][:]) == b"12345678"
    with pytest.raises(DataError, match="in another file"):
        safe_io.open_hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.arange(3)
        file["same"] = file["x"]
        file["soft"] = h5py.SoftLink("/x")
        file["g/up"] = file["/"]  # a circle
    with safe_io.open_hdf5(tmp_path / "b.h5") as file:
        assert list(file["soft"][:]) == [0, 1, 2]


def test_materials_are_read_from_the_folder_of_the_mesh(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.mtl").write_text("newmtl red\nKd 1 0 0\nmap_Kd ../../secret.png\n")
    lines = "v 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl red\nf 1 2 3\n"
    (folder / "a.obj").write_text(f"mtllib a.mtl\n{lines}")
    assert len(safe_io.load_mesh(folder / "a.obj").faces) == 1
    (folder / "b.obj").write_text(f"mtllib ../a.mtl\n{lines}")
    with pytest.raises(DataError, match="leads out of its folder"):
        safe_io.load_mesh(folder / "b.obj")


@pytest.mark.parametrize("kind", ["glb", "obj", "ply", "stl", "off"])
def test_meshes_come_through_the_checks_unchanged(tmp_path, kind):
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.export(tmp_path / f"a.{kind}")
    found = safe_io.load_mesh(tmp_path / f"a.{kind}")
    assert len(found.faces) == len(ball.faces)
    assert found.volume == pytest.approx(ball.volume, rel=1e-4)


def test_a_pipe_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match="pipe or a device"):
        safe_io.read_json(tmp_path / "a.json")
    with pytest.raises(MissingDataError):
        safe_io.load_image(tmp_path / "absent.nii")


def test_commands(tmp_path):
    import torch

    from neurodiff.cli import app

    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    words = ["weights", "convert", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "1 tensors, 3 parameters" in result.output
    torch.save({"w": torch.ones(3), "args": argparse.Namespace(a=1)}, tmp_path / "a.pt")
    result = CliRunner().invoke(app, [*words, "--i-trust-this-file"])
    assert result.exit_code == 0, result.output
    assert result.stderr == f"SHA-256 {safe_io.sha256_of(tmp_path / 'a.pt')}\n"  # said first
    absent = str(tmp_path / "absent")
    result = CliRunner().invoke(app, ["doctor", "--data", "nsd", "--root", absent])
    assert result.exit_code == 3
    assert "39 GB" in result.output
    assert "licence: NSD Data Access Agreement" in result.output
    assert absent in result.output
